"""Four small worlds with a bug in each, which the checkers have to find: who looks for bugs is itself looked after.

None has a node of the overlay. Each is a mistake that people make; what it breaks, and for whom, depends on the seed. A
run of one that passes is a seed in which nothing happened to come between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from dht.contact import Contact
from simulations.checkers import AtMostOnce, Caps, Checker, Deadlines, Inspector, MonotonicReads
from simulations.history import History, Read
from simulations.network import VirtualHost
from simulations.scenarios.base import Outcome, Progress, Scenario, Settings
from simulations.virtual_loop import VirtualLoop
from simulations.world import Start, World
from synapse_p2p.background import TaskScope
from synapse_p2p.context import CallContext
from synapse_p2p.exceptions import ConfigError, PeerUnavailable, Timeout
from synapse_p2p.identity import NodeID

PATIENCE_S = 2.0  # of every request in these worlds
SLOTS = 4
IDLE_NOTE_S = 0.02  # what the worker of the lost wake-up does between looking and sleeping
REPLICATION_S = 1.0

Endpoint: TypeAlias = Callable[[Mapping[str, Any], CallContext], Any]


class _Bench:
    """What every planted world has: a client, a history, and requests that come at random moments."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rng = world.rng
        self.history = History(world.network.awake_s)
        self.client = world.network.host()

    def server(self, endpoints: Mapping[str, Endpoint]) -> VirtualHost:
        """A host that serves these, under the prefix of agents: for others a host has none."""
        host = self.world.network.host()
        host.mount("_agent.", endpoints)
        return host

    async def call(self, host: VirtualHost, endpoint: str, request: Mapping[str, Any], timeout_s: float) -> Any:
        """The client's call."""
        contact = Contact(host.id, host.advertised_addresses)
        return await self.client.peers.call(contact, endpoint, request, timeout_s=timeout_s)

    async def live(
        self,
        settings: Settings,
        progress: Progress,
        checkers: Iterable[Checker],
        request: Callable[[int], Any],
        *,
        mean_pause_s: float,
        server: Callable[[], Any] | None = None,
    ) -> Outcome:
        """Start `lookups` requests at random moments, look on, and wait until the last has to be over."""
        inspector = Inspector(checkers)
        async with TaskScope("requests") as scope:
            tasks = [] if server is None else [scope.spawn_awaited(server())]
            for number in range(1, settings.lookups + 1):
                scope.spawn(request(number), name=f"request {number}")
                await inspector.watch(self.rng.expovariate(1 / mean_pause_s), tasks)
                progress("requests", number, settings.lookups)
            await inspector.watch(2 * PATIENCE_S, tasks)
            inspector.look_after_faults()
        return Outcome(0, 0, ())


async def _lose_wakeup(world: World, settings: Settings, progress: Progress) -> Outcome:
    bench = _Bench(world)
    jobs: list[asyncio.Future[None]] = []
    waiting: dict[int, asyncio.Future[None]] = {}
    has_come = asyncio.Event()

    def take(request: Mapping[str, Any], _: CallContext) -> None:
        jobs.append(waiting[request["number"]])
        has_come.set()

    async def work() -> None:
        while True:
            if not jobs:
                await asyncio.sleep(IDLE_NOTE_S)
                has_come.clear()  # the bug: a job may have come since the look, and its wake-up is thrown away
                await has_come.wait()
            jobs.pop(0).set_result(None)

    worker = bench.server({"_agent.take": take})

    async def ask(number: int) -> None:
        done = waiting[number] = asyncio.get_running_loop().create_future()
        with bench.history.request(bench.client.id, f"job {number}", PATIENCE_S):
            await bench.call(worker, "_agent.take", {"number": number}, PATIENCE_S)
            await done

    return await bench.live(settings, progress, [Deadlines(bench.history)], ask, mean_pause_s=3.0, server=work)


async def _read_stale(world: World, settings: Settings, progress: Progress) -> Outcome:
    bench = _Bench(world)
    owner = bench.client.id

    def replica() -> VirtualHost:
        held = {"seq": 0}

        def read(_: Mapping[str, Any], __: CallContext) -> int:
            return held["seq"]

        def write(request: Mapping[str, Any], _: CallContext) -> None:
            held["seq"] = max(held["seq"], request["seq"])

        return bench.server({"_agent.read": read, "_agent.write": write})

    first, second = replicas = (replica(), replica())

    async def ask(number: int) -> None:
        if bench.rng.random() < 0.1:
            await bench.call(first, "_agent.write", {"seq": number}, PATIENCE_S)
            await asyncio.sleep(REPLICATION_S)
            await bench.call(second, "_agent.write", {"seq": number}, PATIENCE_S)
            return
        host = bench.rng.choice(replicas)  # the bug: any replica will do, whatever was read before
        seq = await bench.call(host, "_agent.read", {}, PATIENCE_S)
        if seq:
            bench.history.reads.append(Read((owner, 0), owner, seq))

    return await bench.live(settings, progress, [MonotonicReads(bench.history)], ask, mean_pause_s=1.0)


async def _leak_slot(world: World, settings: Settings, progress: Progress) -> Outcome:
    bench = _Bench(world)
    free = asyncio.Semaphore(SLOTS)
    # Half a second of work; one in 55 runs out of time.
    server = bench.server({"_agent.start": lambda request, context: bench.rng.expovariate(2.0)})
    taken = running = 0

    def slots() -> list[tuple[str, NodeID, int, int]]:
        return [("slots taken", bench.client.id, taken, running)]

    async def ask(_: int) -> None:
        nonlocal taken, running
        running += 1
        try:
            async with asyncio.timeout(PATIENCE_S):
                await free.acquire()
                taken += 1
                work_s = await bench.call(server, "_agent.start", {}, PATIENCE_S)
                await asyncio.sleep(work_s)
                taken -= 1
                free.release()  # the bug: not in a `finally`, so whoever is cancelled keeps the slot
        except TimeoutError:
            pass
        finally:
            running -= 1

    return await bench.live(settings, progress, [Caps(slots)], ask, mean_pause_s=2.0)


async def _run_twice(world: World, settings: Settings, progress: Progress) -> Outcome:
    bench = _Bench(world)

    def run(request: Mapping[str, Any], _: CallContext) -> None:
        bench.history.note_execution(f"task {request['number']}")

    workers = [bench.server({"_agent.run": run}) for _ in range(2)]

    async def pause_now_and_then() -> None:
        while True:
            await asyncio.sleep(bench.rng.expovariate(1 / 60))
            world.network.pause(bench.rng.choice(workers), bench.rng.uniform(0.0, 2 * PATIENCE_S))

    async def ask(number: int) -> None:
        for worker in bench.rng.sample(workers, len(workers)):
            try:
                await bench.call(worker, "_agent.run", {"number": number}, PATIENCE_S / 2)
                return
            except (PeerUnavailable, Timeout):
                pass  # the bug: one that did not answer may have the task all the same, and do it later

    checkers = [AtMostOnce(bench.history)]
    return await bench.live(settings, progress, checkers, ask, mean_pause_s=2.0, server=pause_now_and_then)


class _PlantedScenario(Scenario):
    """A scenario without nodes, so that how they start and what they speak has no meaning."""

    def new_world(self, loop: VirtualLoop, settings: Settings) -> World:
        if settings.start is not Start.PROTOCOL or settings.wire:
            raise ConfigError(f"{self.name} has no nodes: leave --start and --wire out")
        return World(loop, seed=settings.seed)


PLANTED: tuple[Scenario, ...] = (
    _PlantedScenario("planted-lost-wakeup", "has a bug: a worker forgets a wake-up; breaks S5", _lose_wakeup),
    _PlantedScenario("planted-stale-read", "has a bug: a client reads any replica; breaks S2", _read_stale),
    _PlantedScenario("planted-slot-leak", "has a bug: a cancelled task keeps its slot; breaks S4", _leak_slot),
    _PlantedScenario("planted-double-run", "has a bug: a task in doubt is given to another; breaks S6", _run_twice),
)
