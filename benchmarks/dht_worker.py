"""One swarm of one system, measured from its first node to the last get after a crash; a process of its own.

    python -m benchmarks.dht_worker SYSTEM NODES SEED

Run by the interpreter that has the system, so it and the file of the system (`dht_systems/`) import nothing else of
this repository, but for our own. Prints the figures as one line of JSON, named as in `dht_figures.py`.

No process is pinned: two of the systems have a thread or more for each node, and on one core these would only wait
for each other. Readers never hold the record that they read. Each system does what its users get, and the first value
ends a get. Requests are those that all nodes sent during a phase, for each operation in it, counted as the file of each
system says.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import logging
import math
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

SYSTEMS = ("synapse", "kademlia", "opendht", "libtorrent")
VALUE_SIZE_BYTES = 100
PUTS = 60
FIRST_GETS = 40
GETS = 200
GETS_AT_ONCE = 400
MISSES = 20
FRESH_PUTS = 20
GETS_AFTER_KILL = 40
IN_FLIGHT = 16
KILLED_SHARE = 0.3
STAGGER_S = 0.05  # after the crash a get this old holds up no other: else one dead peer's timeout hides the next
QUIET_SHARE = 0.05  # of a core, in a window of QUIET_WINDOW_S: less, and a join has no work left
QUIET_WINDOW_S = 0.25
MAX_QUIET_S = 8.0
STRAGGLERS_S = 0.1  # what an ended get has still in flight leaves within this


class Node(Protocol):
    """A joined node of any system. One with records that their owner may change has `put_fresh`, too, as `put`."""

    async def put(self, value: bytes) -> Any:
        """Store a value in the swarm; its key, or None where nobody keeps it."""
        ...

    async def get(self, key: Any) -> bytes | None:
        """The value under a key; None where none was found."""
        ...

    def holds(self, key: Any) -> bool:
        """Whether this node keeps the record itself, so that reading it here says nothing of the network."""
        ...

    async def requests_sent(self) -> int:
        """Requests that this node has sent since it started."""
        ...

    async def kill(self) -> None:
        """End it without a word to others."""
        ...


class System(Protocol):
    """One DHT, all of whose nodes run in this process.

    One that encrypts has `handshakes()`, how many began so far, and `await handshake_cpu_s()`, the CPU of one.
    """

    async def start(self, others: Sequence[Any]) -> Any:
        """A new node that has joined through the first of the others."""
        ...

    def missing_key(self, rng: random.Random) -> Any:
        """A key under which nothing was put."""
        ...


class Swarm:
    """The nodes of one system, and what was put into it."""

    def __init__(self, system: System, rng: random.Random) -> None:
        self.system = system
        self.rng = rng
        self.nodes: list[Node] = []
        self.values: dict[Any, bytes] = {}

    async def measure(self, count: int) -> dict[str, float]:
        """Every figure, in the order in which a swarm lives."""
        figures: dict[str, float] = {}
        if hasattr(self.system, "handshake_cpu_s"):
            figures["handshake_cpu_ms"] = await self.system.handshake_cpu_s() * 1e3
        memory_before = resident_bytes()
        figures |= await self._join(count)
        figures |= await self._put(PUTS)
        figures |= await self._read("first_get", self._first_reads())
        await self._read_at_once(4 * count)  # every node has spoken with those it reads from
        figures |= await self._read("get", [self._read_of(self._any_key()) for _ in range(GETS)])
        figures["gets_per_s"] = await self._read_at_once(GETS_AT_ONCE)
        figures |= await self._miss(MISSES)
        if memory_before and (memory := resident_bytes()):
            figures["memory_kib"] = (memory - memory_before) / 1024 / count
        if hasattr(self.nodes[0], "put_fresh"):
            figures |= await self._read_fresh(FRESH_PUTS)
        figures |= await self._crash()
        return figures

    async def _join(self, count: int) -> dict[str, float]:
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        for _ in range(count):
            self.nodes.append(await self.system.start(self.nodes))
        wall_s = time.perf_counter() - wall_s
        await quiet()
        figures = {"join_s": wall_s, "join_cpu_s": time.process_time() - cpu_s}
        if hasattr(self.system, "handshakes"):
            figures["handshakes_per_join"] = self.system.handshakes() / count
        return figures

    async def _put(self, count: int) -> dict[str, float]:
        before = await self._costs()
        latencies = []
        for _ in range(count):
            value = self.rng.randbytes(VALUE_SIZE_BYTES)
            latency_ms, key = await timed(self.rng.choice(self.nodes).put(value))
            latencies.append(latency_ms)
            if key is not None:
                self.values[key] = value
        if not self.values:
            raise RuntimeError("not one put was kept")
        figures = {f"put_{kind}_ms": value for kind, value in spread(latencies).items()}
        figures["put_success"] = 100 * len(self.values) / count
        return figures | await self._costs_since(before, "put", count)

    def _first_reads(self) -> list[tuple[Node, Any]]:
        """A read for each of some nodes; of a record that it does not hold, unless it holds all."""
        readers = self.rng.sample(self.nodes, min(FIRST_GETS, len(self.nodes)))
        unheld = {reader: [key for key in self.values if not reader.holds(key)] for reader in readers}
        return [(reader, self.rng.choice(keys or list(self.values))) for reader, keys in unheld.items()]

    def _any_key(self) -> Any:
        return self.rng.choice(list(self.values))

    def _read_of(self, key: Any) -> tuple[Node, Any]:
        """A reader that does not hold the record, and its key; any reader where all hold it."""
        reader = self.rng.choice(self.nodes)
        for _ in range(100):
            if not reader.holds(key):
                break
            reader = self.rng.choice(self.nodes)
        return reader, key

    async def _read(self, name: str, reads: Sequence[tuple[Node, Any]]) -> dict[str, float]:
        """One get after the other."""
        before = await self._costs()
        latencies, found = [], 0
        for reader, key in reads:
            latency_ms, value = await timed(reader.get(key))
            latencies.append(latency_ms)
            found += value == self.values[key]
        figures = {f"{name}_{kind}_ms": value for kind, value in spread(latencies).items()}
        figures[f"{name}_success"] = 100 * found / len(reads)
        return figures | await self._costs_since(before, name, len(reads))

    async def _read_at_once(self, count: int) -> float:
        """Gets per second, with 16 in flight all the time."""
        reads = iter([self._read_of(self._any_key()) for _ in range(count)])

        async def read_in_turn() -> None:
            for reader, key in reads:
                await reader.get(key)

        wall_s = time.perf_counter()
        await asyncio.gather(*(read_in_turn() for _ in range(IN_FLIGHT)))
        return count / (time.perf_counter() - wall_s)

    async def _miss(self, count: int) -> dict[str, float]:
        """Gets of keys that nobody ever put."""
        before = await self._costs()
        latencies = []
        for _ in range(count):
            latency_ms, value = await timed(self.rng.choice(self.nodes).get(self.system.missing_key(self.rng)))
            latencies.append(latency_ms)
            if value is not None:
                raise RuntimeError("a value was found that nobody put")
        return {"miss_mean_ms": fmean(latencies)} | await self._costs_since(before, "miss", count)

    async def _read_fresh(self, count: int) -> dict[str, float]:
        """Records that their owner may change, each of another owner: a read asks several storers for the newest."""
        keys = []
        owners: list[Any] = self.rng.sample(self.nodes, min(count, len(self.nodes)))
        for owner in owners:
            value = self.rng.randbytes(VALUE_SIZE_BYTES)
            key = await owner.put_fresh(value)
            if key is not None:
                self.values[key] = value
                keys.append(key)
        if not keys:
            raise RuntimeError("not one put of a mutable record was kept")
        await self._read("fresh", [self._read_of(key) for key in keys for _ in range(3)])
        return await self._read("fresh", [self._read_of(key) for key in keys for _ in range(3)])

    async def _crash(self) -> dict[str, float]:
        """Kill 30 % at once, and read from the rest as soon as they are gone."""
        dying = self.rng.sample(self.nodes, round(KILLED_SHARE * len(self.nodes)))
        self.nodes = [node for node in self.nodes if node not in dying]
        await asyncio.gather(*(node.kill() for node in dying))
        before = await self._costs()
        reads = []
        for _ in range(GETS_AFTER_KILL):
            reader, key = self._read_of(self._any_key())
            reads.append((key, asyncio.ensure_future(timed(reader.get(key)))))
            await asyncio.wait([reads[-1][1]], timeout=STAGGER_S)
        answers = [(key, *await read) for key, read in reads]
        latencies = [latency_ms for _, latency_ms, _ in answers]
        found = sum(value == self.values[key] for key, _, value in answers)
        figures = {f"killed_{kind}_ms": value for kind, value in spread(latencies).items()}
        figures["killed_success"] = 100 * found / len(reads)
        return figures | await self._costs_since(before, "killed", len(reads))

    async def _costs(self) -> dict[str, float]:
        """What all nodes have spent so far; the CPU comes last, for to ask the nodes costs some as well."""
        await asyncio.sleep(STRAGGLERS_S)
        costs: dict[str, float] = {"requests": sum([await node.requests_sent() for node in self.nodes])}
        if hasattr(self.system, "handshakes"):
            costs["handshakes"] = self.system.handshakes()
        return costs | {"cpu_ms": time.process_time() * 1e3}

    async def _costs_since(self, before: dict[str, float], name: str, count: int) -> dict[str, float]:
        """What they have spent since then, for each of `count` operations."""
        await asyncio.sleep(STRAGGLERS_S)
        cpu_ms = time.process_time() * 1e3
        costs = await self._costs() | {"cpu_ms": cpu_ms}
        return {f"{name}_{cost}": (value - before[cost]) / count for cost, value in costs.items()}


async def timed(awaitable: Awaitable[Any]) -> tuple[float, Any]:
    """How many milliseconds something took, and what came of it."""
    began = time.perf_counter()
    result = await awaitable
    return (time.perf_counter() - began) * 1e3, result


def spread(values: Iterable[float]) -> dict[str, float]:
    """Mean, median and 99 % quantile (nearest rank)."""
    ordered = sorted(values)

    def rank(share: float) -> float:
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)]

    return {"mean": fmean(ordered), "p50": rank(0.5), "p99": rank(0.99)}


async def until(is_so: Callable[[], bool], *, what: str, timeout_s: float = 10.0) -> None:
    """Wait for what a system tells nobody. Raises RuntimeError when it is not so in time."""
    deadline = time.perf_counter() + timeout_s
    while not is_so():
        if time.perf_counter() > deadline:
            raise RuntimeError(f"{what} took more than {timeout_s:g} s")
        await asyncio.sleep(0.002)


async def quiet() -> None:
    """Wait until the process is nearly idle: a join may go on behind the back of the one who asked for it."""
    deadline = time.perf_counter() + MAX_QUIET_S
    while time.perf_counter() < deadline:
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        await asyncio.sleep(QUIET_WINDOW_S)
        if time.process_time() - cpu_s < QUIET_SHARE * (time.perf_counter() - wall_s):
            return


def resident_bytes() -> int:
    """Memory of this process; 0 where the system does not tell what it is now."""
    with contextlib.suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return 0


def open_many_files() -> None:
    """A hundred nodes in one process have thousands of connections."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> None:
    name, count, seed = sys.argv[1:]
    if name not in SYSTEMS:
        raise SystemExit(f"no such system: {name}; one of {', '.join(SYSTEMS)}")
    open_many_files()
    logging.disable()  # kademlia writes an error for each dead peer
    system = importlib.import_module(f"benchmarks.dht_systems.{name}").System()
    asyncio.run(_measure_and_tell(Swarm(system, random.Random(int(seed))), int(count)))


async def _measure_and_tell(swarm: Swarm, count: int) -> None:
    print(json.dumps(await swarm.measure(count)), flush=True)
    os._exit(0)  # a hundred nodes take seconds to stop in good manners, and nobody waits for them


if __name__ == "__main__":
    main()
