"""Swarms of whole agents over encrypted sessions, in memory and on virtual time."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any

import pytest

from dht import DescriptorDiffers, JoinFailed, NoAgentFound, Swarm
from dht.agents.index import capability_root
from dht.agents.record import Reach
from dht.bootstrap import SeedState
from dht.contact import Contact
from dht.messages import FindValue, FindValueAnswer
from dht.node import DHTNode
from dht.records import Envelope, open_envelope
from dht.results import FoundAgent, SwarmMode
from simulations.network import EPOCH_S
from simulations.virtual_loop import run
from synapse_p2p import (
    AgentCapability,
    AgentNode,
    CallContext,
    CallError,
    Client,
    ConfigError,
    HandshakeFailed,
    Identity,
    KeyFileError,
    PeerUnavailable,
    RemoteError,
)
from synapse_p2p.data_dir import DataDir
from synapse_p2p.identity import network_id_of
from synapse_p2p.keyfile import KeyFile, read_identity
from synapse_p2p.runtime import Runtime
from synapse_p2p.transport.base import parse_address
from synapse_p2p.transport.memory import MemoryTransport

DEAD = "127.0.0.1:5"
OTHER_DEAD = "127.0.0.1:6"
SILENT = "127.0.0.1:7"


class SilentReceiver:
    """Takes a connection, and says nothing."""

    def connection_made(self, stream: Any) -> None:
        pass

    def data_received(self, data: bytes) -> None:
        pass

    def eof_received(self) -> None:
        pass

    def connection_lost(self, exc: Exception | None) -> None:
        pass


class World:
    """A machine of its own: its ports are names in memory, its clock is the loop's."""

    def __init__(self) -> None:
        self.transport = MemoryTransport(delay_s=0.01)
        self.rng = random.Random(1)
        self.swarms: list[Swarm] = []

    def runtime(self) -> Runtime:
        rng = random.Random(self.rng.getrandbits(64))
        loop = asyncio.get_running_loop()
        return Runtime(now=loop.time, unix_now=lambda: EPOCH_S + loop.time(), rng=rng, token_bytes=rng.randbytes)

    def agent(self, name: str = "Reviewer", *capabilities: str, **options: Any) -> AgentNode:
        """An agent that is somebody new, drawn from this world's chance."""
        runtime = self.runtime()
        identity = options.pop("identity", None) or Identity.from_seed(runtime.token_bytes(32))
        return self.keeping_agent(name, *capabilities, identity=identity, runtime=runtime, **options)

    def keeping_agent(self, name: str = "Reviewer", *capabilities: str, **options: Any) -> AgentNode:
        """An agent that is given no identity: its swarm keeps its key."""
        agent = AgentNode(
            name=name,
            role="worker",
            capabilities=list(capabilities),
            transport=self.transport,
            **{"runtime": self.runtime(), **options},
        )

        @agent.task_handler
        async def handle(task: str, context: dict) -> dict:
            if task == "refuse":
                raise CallError("not_today", "come back tomorrow")
            return {"by": name, "task": task}

        return agent

    def swarm(self, agent: AgentNode | None = None, **options: Any) -> Swarm:
        swarm = Swarm(agent, **options)
        if agent is None:
            # A swarm without an agent makes a server of its own; it is put on this machine before it starts.
            swarm._server._transport = self.transport
            swarm._server.runtime = self.runtime()
        self.swarms.append(swarm)
        return swarm

    async def start(self, agent: AgentNode | None = None, **options: Any) -> Swarm:
        swarm = self.swarm(agent, **options)
        await swarm.start()
        return swarm

    async def silent_listener(self) -> None:
        await self.transport.listen("127.0.0.1", 7, SilentReceiver)

    async def end(self) -> None:
        for swarm in self.swarms:
            await swarm.stop(grace=0)


def simulated(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test in virtual time, in a world of its own; when it ends no task and no port may be left."""

    @functools.wraps(test)
    def run_test(**fixtures: Any) -> None:
        async def main() -> None:
            world = World()
            try:
                await test(world, **fixtures)
            finally:
                await world.end()
            for _ in range(5):
                await asyncio.sleep(1)
            assert asyncio.all_tasks() == {asyncio.current_task()}
            assert [port for port in world.transport.listeners if port != SILENT] == []

        run(main())

    parameters = list(inspect.signature(test).parameters.values())[1:]
    run_test.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run_test


def now() -> float:
    return asyncio.get_running_loop().time()


def seed_of(swarm: Swarm) -> str:
    return swarm.status().listening[0]


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# Where it is


@simulated
async def test_a_first_node_listens_on_loopback(world: World):
    swarm = await world.start()

    status = swarm.status()

    assert status.mode is SwarmMode.NODE
    assert status.listening[0].startswith("127.0.0.1:")
    assert status.advertised == status.listening


@simulated
async def test_a_swarm_with_seeds_and_nothing_to_offer_is_a_client_and_opens_no_port(world: World):
    first = await world.start()
    ports = set(world.transport.listeners)

    client = await world.start(bootstrap=[seed_of(first)])

    status = client.status()
    assert (status.mode, status.listening, status.advertised) == (SwarmMode.CLIENT, (), ())
    assert (status.seeds_joined, status.seeds_tried, status.contacts) == (1, 1, 1)
    assert set(world.transport.listeners) == ports


@simulated
@pytest.mark.parametrize(
    ("options", "bind", "listening"),
    [
        ({"bootstrap": [DEAD]}, {}, "127.0.0.1:"),
        ({"bootstrap": ["localhost:5", "[::1]:5"]}, {}, "127.0.0.1:"),
        ({"bootstrap": ["10.0.0.5:9999", DEAD]}, {}, "0.0.0.0:"),
        ({"bootstrap": ["seed.example:9999"]}, {}, "0.0.0.0:"),
        ({}, {}, "127.0.0.1:"),
        ({"bootstrap": ["10.0.0.5:9999"]}, {"address": "10.0.0.7"}, "10.0.0.7:9999"),
        ({}, {"port": 7777}, "127.0.0.1:7777"),
        ({"listen": "10.0.0.8:0"}, {"address": "10.0.0.7", "port": 7777}, "10.0.0.8:"),
        ({"listen": "[::1]:7070"}, {}, "[::1]:7070"),
    ],
)
async def test_an_agent_listens_where_its_seeds_its_bind_or_its_swarm_say(
    world: World, options: dict, bind: dict, listening: str
):
    swarm = world.swarm(world.agent(**bind), **options)

    await swarm.start(join_timeout=0.5)

    assert swarm.status().mode is SwarmMode.NODE
    assert swarm.status().listening[0].startswith(listening)


@simulated
async def test_a_join_that_is_tried_once_fails_as_soon_as_that_has(world: World):
    swarm = world.swarm(bootstrap=["10.0.0.5:9999"])
    began = asyncio.get_running_loop().time()

    with pytest.raises(JoinFailed) as failed:
        await swarm.start(join_timeout=600, wait_joined=True, join_attempts=1)

    assert asyncio.get_running_loop().time() - began < 60
    assert [seed.address for seed in failed.value.report.seeds] == ["10.0.0.5:9999"]


@simulated
async def test_a_lookup_of_a_key_comes_to_those_nearest_to_it_and_tells_how(world: World):
    first = await world.start()
    other = await world.start(bootstrap=[seed_of(first)], listen="127.0.0.1:0")

    outcome = await other.lookup(first.status().id)

    assert [contact.id for contact in outcome.closest][:1] == [first.status().id]
    assert [step.event.value for step in outcome.trace] == ["asked", "answered"]
    assert other.join_report().joined == 1


@simulated
async def test_a_node_without_an_agent_listens_when_it_is_told_to(world: World):
    first = await world.start()

    node = await world.start(listen="127.0.0.1:7070", bootstrap=[seed_of(first)])

    assert node.status().listening == ("127.0.0.1:7070",)
    assert node.status().capabilities == ()


@simulated
async def test_a_node_that_only_loopback_reaches_while_its_seeds_are_elsewhere_is_a_client_and_is_told_the_fix(
    world: World, caplog: pytest.LogCaptureFixture
):
    swarm = world.swarm(world.agent(address="127.0.0.1", port=0), bootstrap=["10.0.0.5:9999"])
    said = warnings_in(caplog)

    await swarm.start(join_timeout=0.5)

    assert len(said) == 1
    assert "listen='0.0.0.0:0'" in said[0]
    assert (swarm.status().mode, swarm.status().listening) == (SwarmMode.CLIENT, ())


@simulated
async def test_what_is_advertised_is_what_others_are_told(world: World):
    first = await world.start()
    agent = world.agent("Reviewer", "python")

    await world.start(agent, bootstrap=[seed_of(first)], advertise="192.0.2.7:4242")
    found = await first.find("python", probe=False)

    assert found[0].addresses == ("192.0.2.7:4242",)


@pytest.mark.parametrize("advertise", ["10.0.0.5", "seed.example:1", "10.0.0.5:0", "0.0.0.0", "10.0.0.5:70000", ""])
def test_an_address_that_nobody_could_dial_is_not_advertised(advertise: str):
    with pytest.raises(ConfigError, match=r"10\.0\.0\.5:9999"):
        Swarm(advertise=advertise)


def test_seeds_given_as_text_are_refused_with_what_to_write():
    with pytest.raises(ConfigError, match=r"\['10\.0\.0\.5:9999'\]"):
        Swarm(bootstrap="10.0.0.5:9999")


@pytest.mark.parametrize("listen", ["", "7070", "127.0.0.1", "127.0.0.1:x"])
def test_a_listening_address_that_is_none_is_refused(listen: str):
    with pytest.raises(ConfigError):
        Swarm(listen=listen)


# Its life


@pytest.mark.parametrize(
    "use",
    [
        lambda swarm: swarm.find("x"),
        lambda swarm: swarm.ask("x", "task"),
        lambda swarm: swarm.join([DEAD]),
    ],
)
@simulated
async def test_a_swarm_that_is_not_started_says_so(world: World, use: Callable[[Swarm], Coroutine[Any, Any, Any]]):
    swarm = world.swarm()

    with pytest.raises(ConfigError, match="not started"):
        swarm.status()
    with pytest.raises(ConfigError, match=r"await swarm\.start\(\)"):
        await use(swarm)


@simulated
async def test_started_twice_it_is_started_once(world: World):
    swarm = world.swarm(world.agent())

    await asyncio.gather(swarm.start(), swarm.start())
    node_id, listening = swarm.status().id, swarm.status().listening
    await swarm.start()

    assert (swarm.status().id, swarm.status().listening) == (node_id, listening)
    assert len(world.transport.listeners) == 1


@simulated
async def test_stopped_twice_or_never_started_it_is_stopped(world: World):
    never, swarm = world.swarm(), await world.start(world.agent())

    await never.stop()
    await asyncio.gather(swarm.stop(), swarm.stop())
    await swarm.stop()

    assert world.transport.listeners == {}
    with pytest.raises(ConfigError, match="not started"):
        swarm.status()


@simulated
async def test_a_stopped_swarm_starts_again_and_is_found_again(world: World):
    first = await world.start()
    swarm = await world.start(world.agent("Reviewer", "python"), bootstrap=[seed_of(first)])
    await swarm.stop()
    while_away = await first.find("python")

    await swarm.start()
    found = await first.find("python")

    assert list(while_away) == []
    assert [agent.name for agent in found] == ["Reviewer"]


@pytest.mark.parametrize("at_s", [0.0, 0.005, 0.5, 3.0])
@simulated
async def test_stopped_while_joining_it_ends_both(world: World, at_s: float):
    await world.silent_listener()
    swarm = world.swarm(world.agent(), bootstrap=[SILENT])
    starting = asyncio.ensure_future(swarm.start(join_timeout=60))
    await asyncio.sleep(at_s)
    asked_at = now()

    await swarm.stop()
    await starting

    assert now() - asked_at < 3
    with pytest.raises(ConfigError, match="not started"):
        swarm.status()


@simulated
async def test_stopped_while_joining_a_start_that_wants_to_be_joined_says_that_it_is_not(world: World):
    await world.silent_listener()
    swarm = world.swarm(world.agent(), bootstrap=[SILENT])
    starting = asyncio.ensure_future(swarm.start(join_timeout=60, wait_joined=True))
    await asyncio.sleep(1)

    await swarm.stop()

    with pytest.raises(JoinFailed):
        await starting


@simulated
async def test_started_while_it_stops_it_is_up_in_the_end(world: World):
    swarm = await world.start(world.agent())

    stopping = asyncio.ensure_future(swarm.stop())
    await asyncio.sleep(0)
    await swarm.start()
    await stopping

    assert len(swarm.status().listening) == 1
    assert list(world.transport.listeners) == list(swarm.status().listening)


@simulated
async def test_started_anew_before_a_stop_came_to_its_end_it_is_up_and_nothing_of_before_is_left(world: World):
    await world.silent_listener()
    swarm = world.swarm(world.agent(), bootstrap=[SILENT])
    first = asyncio.ensure_future(swarm.start(join_timeout=60))
    await asyncio.sleep(1)
    old = swarm._started()
    stopping = asyncio.ensure_future(swarm.stop())
    await asyncio.sleep(0)

    await swarm.start(join_timeout=1)
    await asyncio.gather(first, stopping)

    with pytest.raises(AssertionError, match="not started"):
        _ = old.maintenance
    assert list(world.transport.listeners) == [SILENT, *swarm.status().listening]


@simulated
async def test_a_port_that_is_taken_is_an_error_of_start_and_leaves_nothing(world: World):
    first = await world.start(world.agent(), listen="127.0.0.1:7070")
    second = world.swarm(world.agent(), listen="127.0.0.1:7070")

    with pytest.raises(OSError, match="in use"):
        await second.start()
    await first.stop()
    await second.start()

    assert second.status().listening == ("127.0.0.1:7070",)


@simulated
async def test_an_agent_that_no_record_can_tell_of_is_refused_before_the_port_opens(world: World):
    swarm = world.swarm(world.agent("x" * 65))

    with pytest.raises(ConfigError, match="name has 65 characters"):
        await swarm.start()

    assert world.transport.listeners == {}


# Joining


@simulated
async def test_start_returns_as_soon_as_it_is_joined_and_published(world: World):
    first = await world.start()
    started_at = now()

    await world.start(world.agent("Reviewer", "python"), bootstrap=[DEAD, seed_of(first)])

    assert now() - started_at < 2
    assert [agent.name for agent in await first.find("python")] == ["Reviewer"]


@simulated
async def test_dead_seeds_cost_the_time_given_and_one_warning_that_names_each_and_why(
    world: World, caplog: pytest.LogCaptureFixture
):
    await world.silent_listener()
    swarm = world.swarm(world.agent(), bootstrap=[DEAD, OTHER_DEAD, SILENT])

    await swarm.start(join_timeout=3)

    assert now() == pytest.approx(3)
    [said] = warnings_in(caplog)
    assert "not joined yet, still trying: joined 0 of 3 seeds" in said
    for seed, why in ((DEAD, "nothing listens there"), (OTHER_DEAD, "is it running"), (SILENT, "no answer")):
        assert why in next(line for line in said.splitlines() if seed in line)
    assert swarm.status().seeds_tried == 3


@simulated
async def test_who_wants_to_be_joined_gets_an_error_with_the_report_and_a_stopped_swarm(
    world: World, caplog: pytest.LogCaptureFixture
):
    swarm = world.swarm(world.agent(), bootstrap=[DEAD])

    with pytest.raises(JoinFailed, match=DEAD) as failed:
        await swarm.start(join_timeout=3, wait_joined=True)

    assert now() >= 3
    assert failed.value.report.tried == 1
    assert world.transport.listeners == {}
    assert warnings_in(caplog) == []


@simulated
async def test_a_seed_that_comes_up_in_time_is_joined_without_a_word(world: World, caplog: pytest.LogCaptureFixture):
    late = world.swarm(world.agent("late"), listen=DEAD)
    asyncio.get_running_loop().call_later(1.5, lambda: asyncio.ensure_future(late.start()))

    swarm = await world.start(world.agent(), bootstrap=[DEAD])

    assert swarm.status().seeds_joined == 1
    assert now() < 5
    assert warnings_in(caplog) == []


@simulated
async def test_a_seed_that_comes_up_later_is_joined_in_the_background_and_told_what_we_offer(world: World):
    swarm = world.swarm(world.agent("Reviewer", "python"), bootstrap=[DEAD])
    await swarm.start(join_timeout=1)
    await asyncio.sleep(100)

    late = await world.start(world.agent("late"), listen=DEAD)
    await asyncio.sleep(120)

    assert swarm.status().seeds_joined == 1
    assert [agent.name for agent in await late.find("python")] == ["Reviewer"]


@simulated
async def test_one_of_two_seeds_that_comes_up_later_is_met_too(world: World):
    first = await world.start()
    swarm = await world.start(world.agent("Reviewer", "python"), bootstrap=[seed_of(first), DEAD])
    assert swarm.status().seeds_joined == 1

    late = await world.start(listen=DEAD)
    await asyncio.sleep(120)

    assert swarm.status().seeds_joined == 2
    assert [agent.name for agent in await late.find("python")] == ["Reviewer"]


@simulated
async def test_a_seed_that_is_ourselves_is_skipped(world: World, caplog: pytest.LogCaptureFixture):
    swarm = await world.start(world.agent(), listen="127.0.0.1:7070", bootstrap=["127.0.0.1:7070"])

    assert (swarm.status().seeds_tried, swarm.status().seeds_joined) == (0, 0)
    assert now() < 1
    assert warnings_in(caplog) == []


@simulated
async def test_more_seeds_can_be_joined_later_and_count_beside_the_first(world: World):
    first, second = await world.start(), await world.start()
    swarm = await world.start(world.agent("Reviewer", "python"), bootstrap=[seed_of(first)])

    report = await swarm.join([seed_of(second)])

    assert [seed.address for seed in report.seeds] == [seed_of(second)]
    assert (swarm.status().seeds_joined, swarm.status().seeds_tried) == (2, 2)
    assert [agent.name for agent in await second.find("python")] == ["Reviewer"]
    with pytest.raises(ConfigError, match="write"):
        await swarm.join(seed_of(second))


@pytest.mark.parametrize("method", ["join", "publish"])
@simulated
async def test_an_error_that_nobody_foresaw_is_logged_and_does_not_end_joining_and_publishing(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, method: str
):
    works = getattr(DHTNode, method)
    broken = 2

    async def breaks(node: DHTNode, *arguments: Any) -> Any:
        nonlocal broken
        if broken:
            broken -= 1
            raise ZeroDivisionError
        return await works(node, *arguments)

    first = await world.start()
    monkeypatch.setattr(DHTNode, method, breaks)

    swarm = await world.start(world.agent("Reviewer", "python"), bootstrap=[seed_of(first)])
    await asyncio.sleep(10)

    assert swarm.status().contacts == 1
    assert [agent.name for agent in await first.find("python")] == ["Reviewer"]
    assert 0 < len([record for record in caplog.records if record.exc_info]) <= 2


# Offering


@simulated
async def test_a_capability_has_one_spelling_and_counts_once(world: World):
    first = await world.start()
    agent = world.agent("Reviewer", "Code-Review", "code-review", "NLP/Summarization")

    swarm = await world.start(agent, bootstrap=[seed_of(first)])

    assert swarm.status().capabilities == ("code-review", "nlp/summarization")
    for name in ("CODE-REVIEW", "nlp", "nlp/summarization", "\uff4e\uff4c\uff50"):
        assert [found.capabilities for found in await first.find(name)] == [swarm.status().capabilities]
    assert list(await first.find("nlp/translation")) == []


@pytest.mark.parametrize("name", ["", "code review", "a/b/c/d/e", "a//b", "x" * 129])
def test_a_capability_whose_name_cannot_be_one_is_refused_at_once(name: str):
    agent = AgentNode(name="Reviewer", role="reviewer", capabilities=[name])

    with pytest.raises(ConfigError, match="capability"):
        Swarm(agent)


@simulated
async def test_a_name_that_cannot_be_one_is_refused_by_find_and_ask(world: World):
    swarm = await world.start()

    for use in (swarm.find(), swarm.find("a", "b c"), swarm.ask("b c", "task"), swarm.find("a", limit=0)):
        with pytest.raises(ConfigError):
            await use


@simulated
async def test_a_capability_added_while_it_runs_is_found_within_seconds(world: World):
    first = await world.start()
    agent = world.agent("Reviewer", "python")
    await world.start(agent, bootstrap=[seed_of(first)])

    agent.capability("Rust")
    await asyncio.sleep(5)

    assert [found.capabilities for found in await first.find("rust")] == [("python", "rust")]


@simulated
async def test_a_record_that_nobody_kept_is_offered_again_soon(world: World, monkeypatch: pytest.MonkeyPatch):
    first = await world.start()
    assert first._node is not None
    store = first._node._responder.store
    refusal = {"stored": False, "refusal": "full", "newer": None, "contacts": []}
    first._server.mount("_dht.", {"_dht.store": lambda request, context: refusal})
    await world.start(world.agent("Reviewer", "python"), bootstrap=[seed_of(first)])
    client = await world.start(bootstrap=[seed_of(first)])
    assert len(first._node.store) == 0

    first._server.mount("_dht.", {"_dht.store": store})
    await asyncio.sleep(15)

    assert len(first._node.store) == 1
    assert [agent.name for agent in await client.find("python")] == ["Reviewer"]


@simulated
async def test_an_agent_stays_found_for_hours_and_is_gone_one_lease_after_it_crashed(world: World):
    first = await world.start()
    swarm = await world.start(world.agent("Reviewer", "python"), bootstrap=[seed_of(first)])
    ages = []
    for _ in range(8):
        await asyncio.sleep(1000)
        [agent] = await first.find("python")
        ages.append(agent.age_s)

    await swarm.stop(grace=0)  # which tells nobody, as a crash
    listed = await first.find("python", probe=False)
    await asyncio.sleep(900)
    later = await first.find("python", probe=False)

    assert max(ages) <= 0.55 * 900
    assert len(listed) == 1
    assert len(later) == 0


def held_by(swarm: Swarm, capability: str) -> Envelope:
    """The one record that a node keeps under a capability at depth 0."""
    assert swarm._node is not None
    key = capability_root(network_id_of(""), capability)
    [stored] = swarm._node.store.get(key, swarm._server.runtime.now())
    return open_envelope(stored.record)


@simulated
async def test_a_lease_is_renewed_by_a_word_and_what_changed_is_signed_anew(world: World):
    first = await world.start()
    agent = world.agent("Reviewer", "python")
    swarm = await world.start(agent, bootstrap=[seed_of(first)])
    signed = held_by(first, "python")

    await asyncio.sleep(2000)
    renewed = held_by(first, "python")
    agent.description = "Reviews Rust as well."
    await asyncio.sleep(500)
    changed = held_by(first, "python")
    await asyncio.sleep(500)
    renewed_again = held_by(first, "python")
    await swarm.stop()

    assert signed.renewal is None
    assert (renewed.body, renewed.signature) == (signed.body, signed.signature)
    assert renewed.renewal is not None
    assert changed.renewal is None and b"Rust" in changed.body
    assert renewed_again.body == changed.body and renewed_again.renewal is not None
    assert list(await first.find("python", probe=False)) == []


@simulated
async def test_a_record_that_fills_its_bound_is_signed_anew(world: World):
    first = await world.start()
    names = [f"{'a' * 80}-{number}" for number in range(11)]
    await world.start(world.agent("Reviewer", *names, description="x" * 200), bootstrap=[seed_of(first)])
    signed = held_by(first, names[0])

    await asyncio.sleep(500)
    anew = held_by(first, names[0])

    assert len(signed.data) > 1500 - 256
    assert anew.renewal is None and anew.body != signed.body
    assert len(await first.find(names[0])) == 1


# Finding and asking


@simulated
async def test_find_wants_all_capabilities_and_leaves_ourselves_out(world: World):
    first = await world.start(world.agent("both", "python", "rust"))
    await world.start(world.agent("one", "python"), bootstrap=[seed_of(first)])
    also = await world.start(world.agent("also", "rust", "python"), bootstrap=[seed_of(first)])

    both = await also.find("rust", "python")
    alone = await first.find("rust", probe=False)
    python = await also.find("python")

    assert [agent.name for agent in both] == ["both"]
    assert [agent.name for agent in alone] == ["also"]
    assert sorted(agent.name for agent in python) == ["both", "one"]
    assert both.complete
    assert both.reason == ""


@simulated
async def test_find_gives_as_many_as_wanted_in_an_order_of_chance_and_says_that_there_are_more(world: World):
    first = await world.start(world.agent("seed"))
    for number in range(5):
        await world.start(world.agent(f"agent-{number}", "x"), bootstrap=[seed_of(first)])

    limited = [await first.find("x", limit=2) for _ in range(12)]
    exact = await first.find("x", limit=5)

    assert all(len(found) == 2 for found in limited)
    assert all((found.complete, found.reason) == (False, "limit 2") for found in limited)
    assert {agent.name for found in limited for agent in found} == {f"agent-{number}" for number in range(5)}
    assert (len(exact), exact.complete) == (5, True)


def priced(name: str, price: float, *, version: str = "", **attributes: Any) -> AgentCapability:
    return AgentCapability(name, version=version, attributes={"price": price, **attributes})


def names_of(agents: Iterable[FoundAgent]) -> list[str]:
    return sorted(agent.name for agent in agents)


async def shops(world: World) -> Swarm:
    """Three agents with prices, and a client."""
    first = await world.start(world.agent("first"))
    for name, capabilities in {
        "cheap": [priced("parser/html", 1, version="2.1", lang=["de", "en"]), AgentCapability("python")],
        "dear": [priced("parser/html", 9, version="3", lang=["fr"]), AgentCapability("python")],
        "plain": [AgentCapability("parser", version="2")],
    }.items():
        agent = world.agent(name)
        agent.capabilities = capabilities
        await world.start(agent, bootstrap=[seed_of(first)])
    return first


@simulated
async def test_a_query_is_met_by_all_of_what_one_agent_says_of_itself(world: World):
    first = await shops(world)

    async def found(*wanted: str, **where: Any) -> list[str]:
        return names_of(await first.find(*wanted, where=where or None))

    assert await found("parser") == await found("parser/") == ["cheap", "dear", "plain"]
    assert await found("parser/html", "python") == ["cheap", "dear"]
    assert await found("parser/html>=2,<3") == ["cheap"]
    assert await found("parser>=2") == ["plain"]
    assert await found("parser/html", price={"<": 5}) == ["cheap"]
    assert await found("python", "parser/html", lang={"in": ["fr", "it"]}) == ["dear"]
    assert await found("python", "cooking") == []
    with pytest.raises(ConfigError, match="in"):
        await found("parser", price={"near": 5})


@simulated
async def test_storers_send_only_what_matches(world: World):
    first = await shops(world)
    answers: list[FindValueAnswer] = []
    asks = first._node._requester.find_value

    async def find_value(contact: Any, request: FindValue) -> FindValueAnswer:
        answers.append(await asks(contact, request))
        return answers[-1]

    first._node._requester.find_value = find_value
    await first.find("parser/html", where={"price": {"<": 5}})

    holding = [answer for answer in answers if answer.count == 2]  # one that came last may lack them yet
    assert len(holding) >= 2
    assert [len(answer.records) for answer in holding] == [1] * len(holding)


@simulated
async def test_an_agent_that_learns_something_else_is_found_by_that_and_not_by_the_old(world: World):
    first = await world.start(world.agent("first"))
    agent = world.agent("learner", "old", "kept/below")
    await world.start(agent, bootstrap=[seed_of(first)])
    assert names_of(await first.find("old")) == ["learner"]

    await agent.set_capabilities(["new", "kept/below"])

    for capability, found in (("new", ["learner"]), ("kept", ["learner"]), ("old", [])):
        assert names_of(await first.find(capability, probe=False)) == found
    with pytest.raises(ConfigError):
        await agent.set_capabilities([AgentCapability("new", version="one")])
    assert [each.name for each in agent.capabilities] == ["new", "kept/below"]


@simulated
async def test_one_that_stops_in_good_order_is_found_no_more(world: World):
    first = await world.start(world.agent("first"))
    gone = await world.start(world.agent("gone", "x"), bootstrap=[seed_of(first)])
    assert names_of(await first.find("x", probe=False)) == ["gone"]

    await gone.stop()

    assert names_of(await first.find("x", probe=False)) == []


@simulated
async def test_one_that_stops_is_withdrawn_while_its_last_tasks_still_run_to_their_end(world: World):
    first = await world.start(world.agent("first"))
    agent = world.agent("slow", "x")

    @agent.task_handler
    async def handle(task: str, context: dict) -> str:
        await asyncio.sleep(3)
        return "done"

    slow = await world.start(agent, bootstrap=[seed_of(first)])
    asking = asyncio.ensure_future(first.ask("x", "work"))
    await asyncio.sleep(1)
    stopping = asyncio.ensure_future(slow.stop(grace=5))
    await asyncio.sleep(1)

    meanwhile = await first.find("x", probe=False)
    is_running = not asking.done() and not stopping.done()
    answer = await asking
    await stopping

    assert (names_of(meanwhile), is_running, answer.result) == ([], True, "done")


@simulated
async def test_a_stream_gives_each_agent_as_soon_as_it_has_answered_and_says_whether_all_were_there(world: World):
    first = await shops(world)

    stream = first.stream_find("parser")
    whole = [agent async for agent in stream]
    some = first.stream_find("parser", limit=2)
    two = [agent async for agent in some]
    unprobed = first.stream_find("parser", probe=False)
    async with unprobed:
        async for _ in unprobed:
            break
    late = await first.find("parser", timeout=0.001)
    in_time = await first.find("parser", timeout=60)

    assert (names_of(whole), stream.complete, stream.reason) == (["cheap", "dear", "plain"], True, "")
    assert (len(two), some.complete, some.reason) == (2, False, "limit 2")
    assert (len(late), late.complete, late.reason) == (0, False, "not over after 0.001 s")
    assert (names_of(in_time), in_time.complete) == (["cheap", "dear", "plain"], True)
    for mistake in ({"limit": 0}, {"timeout": 0}):
        with pytest.raises(ConfigError):
            first.stream_find("parser", **mistake)


@simulated
async def test_a_search_explains_which_keys_it_read_and_whom_it_asked(world: World):
    first = await shops(world)
    silent = await world.start(world.agent("silent", "python", "parser/html"), bootstrap=[seed_of(first)])
    await silent.stop(grace=0)

    found = await first.find("parser", "python", explain=True)

    explanation = found.explanation
    assert names_of(found) == ["cheap", "dear"]
    assert explanation.capability == "python", "3 have it, and 4 the other"
    assert [(read.capability, read.agents, read.report.count) for read in explanation.reads] == [
        ("parser", 3, 4),
        ("python", 3, 3),
    ]
    assert explanation.silent == (silent._server.identity.node_id,)
    assert "read python (root): 3 agents" in str(explanation)
    assert "asked" in str(explanation)
    assert (await first.find("python")).explanation is None
    with pytest.raises(ConfigError, match="leave timeout"):
        await first.find("python", explain=True, timeout=1)


@simulated
async def test_an_agent_describes_in_full_what_its_record_claims(world: World):
    first = await world.start(world.agent("first"))
    agent = world.agent("there")
    agent.capabilities = [AgentCapability("x", "does x", {"type": "object"}, version="2", attributes={"price": 1})]
    await world.start(agent, bootstrap=[seed_of(first)])
    [found] = await first.find("x")

    [described] = await found.describe()
    agent.capabilities = [AgentCapability("x", "does x", {"type": "string"}, version="2", attributes={"price": 1})]

    assert (described.description, described.input_schema) == ("does x", {"type": "object"})
    assert [(claim.version, dict(claim.attributes)) for claim in found.claims] == [("2.0.0", {"price": 1})]
    with pytest.raises(DescriptorDiffers, match="'x' is not what its record claims: schemas"):
        await found.describe()


@simulated
async def test_a_member_is_reached_by_its_address_and_by_its_id(world: World):
    first = await world.start(world.agent("first"))
    there = await world.start(world.agent("there", "x"), bootstrap=[seed_of(first)])
    client = await world.start(bootstrap=[seed_of(first)])
    identity = there.status().id
    address = there.status().listening[0]

    for place in (identity, identity.hex(), address, f"{identity.hex()}@{address}"):
        peer = client.peer(place)
        assert (await peer.call("_agent.info"))["name"] == "there"
        assert (await peer.ask("work"))["by"] == "there"

    with pytest.raises(PeerUnavailable, match="no member has the id"):
        await client.peer(bytes(32)).call("_agent.info")
    with pytest.raises(HandshakeFailed, match="expected"):
        await client.peer(f"{'11' * 32}@{address}").call("_agent.info")
    for mistake in (b"short", "no address", "g" * 64):
        with pytest.raises(ConfigError):
            client.peer(mistake)


@simulated
async def test_a_node_lists_the_agents_whose_records_it_keeps(world: World):
    first = await world.start(world.agent("first", "x"))
    gone = await world.start(world.agent("gone", "x", "y/z"), bootstrap=[seed_of(first)])
    await world.start(world.agent("there", "x", "y/z"), bootstrap=[seed_of(first)])
    assert names_of(first.agents()) == ["gone", "there"]

    await gone.stop()

    assert names_of(first.agents()) == ["there"]
    assert first.agents()[0].capabilities == ("x", "y/z")


@simulated
async def test_find_leaves_out_the_silent_and_the_old_when_asked_to(world: World):
    first = await world.start(world.agent("seed"))
    gone = await world.start(world.agent("gone", "x"), bootstrap=[seed_of(first)])
    await asyncio.sleep(100)
    await world.start(world.agent("fresh", "x"), bootstrap=[seed_of(first)])
    await gone.stop(grace=0)

    probed = await first.find("x")
    unprobed = await first.find("x", probe=False)
    young = await first.find("x", probe=False, max_age=50)

    assert [agent.name for agent in probed] == ["fresh"]
    assert sorted(agent.name for agent in unprobed) == ["fresh", "gone"]
    assert [agent.name for agent in young] == ["fresh"]


@simulated
async def test_who_has_joined_nobody_does_not_say_that_there_is_nobody(world: World):
    swarm = world.swarm(bootstrap=[DEAD])
    await swarm.start(join_timeout=1)
    alone = await world.start()

    found, certain = await swarm.find("x"), await alone.find("x")
    with pytest.raises(NoAgentFound, match="joined nobody") as raised:
        await swarm.ask("x", "task")

    assert (found.complete, found.reason) == (False, "this node has joined nobody yet")
    assert (certain.complete, certain.reason) == (True, "")
    assert not raised.value.complete


@simulated
async def test_an_agent_that_cannot_be_dialed_is_asked_over_the_session_that_it_holds(world: World):
    first = await world.start(world.agent("seed"))
    hidden = world.swarm(world.agent("hidden", "x", address="127.0.0.1", port=0), bootstrap=["[2001:db8::1]:1"])
    await hidden.start(join_timeout=0.1)
    await hidden.join([seed_of(first)])
    stranger = await world.start(bootstrap=[seed_of(first)])

    answer = await first.ask("x", "hello")
    seen = await stranger.find("x")
    listed = await stranger.find("x", probe=False)

    assert answer.result == {"by": "hidden", "task": "hello"}
    assert list(seen) == []
    assert [agent.reach for agent in listed] == [Reach.NONE]


@simulated
async def test_ask_finds_chooses_calls_and_fails_over(world: World):
    first = await world.start(world.agent("seed"))
    swarms = {name: await world.start(world.agent(name, "x"), bootstrap=[seed_of(first)]) for name in ("one", "two")}

    answer = await first.ask("x", "hello", context={"n": 1})
    await swarms[answer.agent.name].stop(grace=0)
    second = await first.ask("x", "again")
    with pytest.raises(RemoteError) as refused:
        await first.ask("x", "refuse")

    assert answer.result == {"by": answer.agent.name, "task": "hello"}
    assert {answer.agent.name, second.agent.name} == {"one", "two"}
    assert refused.value.reason == "not_today"
    assert refused.value.answer.agent.name == second.agent.name


@simulated
async def test_a_handler_reaches_its_swarm_while_it_is_a_member_of_one(world: World):
    first = await world.start(world.agent("seed"))
    await world.start(world.agent("worker", "work"), bootstrap=[seed_of(first)])
    boss = world.agent("boss", "lead")

    @boss.task_handler
    async def delegate(task: str, context: dict) -> Any:
        answer = await boss.swarm.ask("work", task)
        return [answer.agent.name, answer.result["task"]]

    with pytest.raises(ConfigError, match="in no swarm yet"):
        _ = boss.swarm
    swarm = await world.start(boss, bootstrap=[seed_of(first)])

    answer = await first.ask("lead", "dig")
    mounted = boss.swarm
    await swarm.stop()

    assert answer.result == ["worker", "dig"]
    assert mounted is swarm
    with pytest.raises(ConfigError, match="in no swarm yet"):
        _ = boss.swarm


@simulated
async def test_an_endpoint_is_told_of_the_swarm_and_what_it_asks_is_a_part_of_its_call(world: World):
    worker, boss = world.agent("worker"), world.agent("boss", "lead")
    worker.capability("work")

    @worker.task_handler
    async def work(task: str, context: dict, asker: CallContext) -> list[bytes]:
        return list(asker.delegation.path)

    @boss.endpoint()
    async def passed_on(caller: CallContext) -> Any:
        return [caller.swarm.status().id, (await caller.swarm.ask("work", "dig")).result]

    @boss.endpoint()
    def in_a_thread(caller: CallContext) -> Any:
        return [caller.swarm.status().id, list(caller.delegation.path)]

    first = await world.start(world.agent("seed"))
    below = await world.start(worker, bootstrap=[seed_of(first)])
    swarm = await world.start(boss, bootstrap=[seed_of(first)])
    [found] = await first.find("lead")

    asked = await found.call("passed_on")
    threaded = await found.call("in_a_thread")
    await swarm.stop()

    first_id, own_id, below_id = first.status().id, found.id, below.status().id
    assert asked == [own_id, [first_id, own_id, below_id]]
    assert threaded == [own_id, [first_id, own_id]]


@simulated
async def test_what_a_stream_asks_is_a_part_of_its_call_to_its_end(world: World):
    worker, boss = world.agent("worker"), world.agent("boss")
    worker.capability("work")

    @worker.task_handler
    async def work(task: str, context: dict, asker: CallContext) -> list[bytes]:
        return list(asker.delegation.path)

    @boss.endpoint()
    async def each(caller: CallContext) -> AsyncIterator[Any]:
        for _ in range(2):
            yield (await caller.swarm.ask("work", "dig")).result

    below = await world.start(worker)
    swarm = await world.start(boss, bootstrap=[seed_of(below)])
    caller = Identity.from_seed(b"c" * 32)

    host, port = parse_address(boss.listening_addresses[0])
    async with Client(host, port, transport=world.transport, identity=caller) as client:
        paths = [path async for path in client.stream("each")]

    assert paths == [[caller.node_id, swarm.status().id, below.status().id]] * 2


@simulated
async def test_a_call_that_is_a_part_of_a_task_is_held_to_its_hops_budget_and_time(world: World):
    boss = world.agent("boss", "lead")

    @boss.endpoint()
    async def left(caller: CallContext) -> list[Any]:
        return [caller.delegation.hops, caller.delegation.budget, len(caller.delegation.path)]

    first = await world.start(world.agent("seed"))
    swarm = await world.start(boss, bootstrap=[seed_of(first)])
    own_id, boss_id = first.status().id, swarm.status().id
    contact = Contact(boss_id, swarm.status().listening)

    async def call(delegation: Any, endpoint: str = "left") -> Any:
        options = {"delegation": delegation}
        return await first._server.sessions.call_with(contact, endpoint, [], {}, timeout_s=5, options=options)

    good = {"hops": 3, "path": [own_id], "budget": 10}
    in_circles = {"hops": 3, "path": [boss_id, own_id], "budget": 10}

    assert await call(good) == [2, 9, 2]
    assert await call(in_circles) == [2, 9, 3]  # an endpoint takes calls back
    assert await call(good | {"hops": 10**6, "budget": 10**6}) == [7, 1023, 2]
    for wrong, code in (
        ("a list", "bad_request"),
        (good | {"path": [boss_id]}, "bad_request"),
        (good | {"hops": 0}, "exhausted"),
        (good | {"budget": 0}, "exhausted"),
    ):
        with pytest.raises(RemoteError) as refused:
            await call(wrong)
        assert refused.value.code == code
        assert await call(wrong, "_synapse.ping") == "pong"  # which nothing is passed on by


@simulated
async def test_agents_that_call_and_ask_each_other_in_circles_come_to_an_end(world: World):
    one, two = world.agent("one", "one"), world.agent("two", "two")

    @one.endpoint()
    async def begin(caller: CallContext) -> Any:
        return (await caller.swarm.ask("two", "go on")).result

    @two.task_handler
    async def go_on(task: str, context: dict) -> Any:
        [found] = await two.swarm.find("one")
        return await found.ask("go on")

    @one.task_handler
    async def and_on(task: str, context: dict) -> Any:
        return (await one.swarm.ask("two", "go on")).result

    first = await world.start(world.agent("seed"))
    await world.start(one, bootstrap=[seed_of(first)])
    await world.start(two, bootstrap=[seed_of(first)])
    [found] = await first.find("one")

    with pytest.raises(RemoteError):
        await found.call("begin")

    assert now() < 60


@simulated
async def test_an_endpoint_of_an_agent_in_no_swarm_is_told_of_none(world: World):
    agent = world.agent("alone")

    @agent.endpoint()
    async def member(caller: CallContext) -> bool:
        return caller.swarm is not None

    await agent.start()
    async with Client(*parse_address(agent.listening_addresses[0]), transport=world.transport) as client:
        assert await client.call("member") is False
    await agent.stop()


@simulated
async def test_a_found_agent_is_called_and_asked_directly(world: World):
    first = await world.start(world.agent("seed"))
    agent = world.agent("worker", "work")

    @agent.endpoint()
    async def add(a: int, b: int = 0) -> int:
        return a + b

    await world.start(agent, bootstrap=[seed_of(first)])
    [found] = await first.find("work")

    assert await found.call("add", 2, b=3) == 5
    assert await found.ask("hello") == {"by": "worker", "task": "hello"}


# Who it is


KEY, OTHER_KEY = bytes(range(32)), bytes(32)


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's state folder, empty."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


def everything_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@simulated
async def test_an_agent_is_the_same_at_each_start_and_in_each_swarm_and_holds_its_key_meanwhile(
    world: World, state: Path
):
    swarm = await world.start(world.keeping_agent("reviewer"), network="lab")
    folder, first_id = swarm.data_dir, swarm.status().id
    with pytest.raises(KeyFileError, match="in use by this very process"):
        DataDir.open(state / "synapse-p2p" / "lab" / "reviewer")
    await swarm.stop()
    while_stopped = swarm.data_dir

    await swarm.start()
    second_id = swarm.status().id
    await swarm.stop()
    other = await world.start(world.keeping_agent("reviewer"), network="lab")

    assert folder == other.data_dir == state / "synapse-p2p" / "lab" / "reviewer"
    assert while_stopped is None
    assert first_id == second_id == other.status().id == read_identity(folder / "node.key").node_id


@simulated
async def test_a_swarm_in_a_folder_of_its_own_is_refused_where_that_is_in_use(world: World, tmp_path: Path):
    first = await world.start(world.keeping_agent("one"), data_dir=tmp_path / "mine")
    second = world.swarm(world.keeping_agent("two"), data_dir=str(tmp_path / "mine"))

    with pytest.raises(KeyFileError, match="in use"):
        await second.start()
    await first.stop()
    await second.start()

    assert second.data_dir == tmp_path / "mine"


@simulated
async def test_agents_of_one_name_are_several_peers_that_find_each_other(world: World, state: Path):
    first = await world.start(world.keeping_agent("reviewer", "python"), network="lab")
    second = await world.start(world.keeping_agent("reviewer", "python"), network="lab", bootstrap=[seed_of(first)])

    [found] = await first.find("python")

    assert second.data_dir == state / "synapse-p2p" / "lab" / "reviewer.2"
    assert found.id == second.status().id != first.status().id


@simulated
async def test_a_node_whose_slot_was_taken_while_it_was_stopped_is_another_peer_and_reachable(
    world: World, state: Path
):
    first = await world.start(world.agent("seed"))
    swarm = await world.start(world.keeping_agent("reviewer", "python"), bootstrap=[seed_of(first)])
    old_id = swarm.status().id
    await swarm.stop()
    newcomer = await world.start(world.keeping_agent("reviewer"), bootstrap=[seed_of(first)])

    await swarm.start()
    [found] = [agent for agent in await first.find("python") if agent.id != old_id]

    assert newcomer.status().id == old_id
    assert found.id == swarm.status().id
    assert await found.ask("hello") == {"by": "reviewer", "task": "hello"}


@simulated
async def test_a_swarm_without_an_agent_is_somebody_new_unless_it_has_a_folder(
    world: World, state: Path, tmp_path_factory: pytest.TempPathFactory
):
    folder = tmp_path_factory.mktemp("keys")
    first, second = await world.start(), await world.start(network="lab")
    kept = await world.start(data_dir=folder)
    kept_id = kept.status().id
    await kept.stop()
    await kept.start()

    assert first.status().id != second.status().id
    assert (first.data_dir, second.data_dir) == (None, None)
    assert kept.status().id == kept_id == read_identity(folder / "node.key").node_id
    assert everything_in(state) == []


@pytest.mark.parametrize("given_to", ["agent", "swarm"])
@simulated
async def test_who_is_given_an_identity_keeps_no_key(world: World, state: Path, given_to: str):
    identity = Identity.from_seed(KEY)
    agent = world.agent(identity=identity) if given_to == "agent" else world.keeping_agent()

    swarm = await world.start(agent, **({"identity": identity} if given_to == "swarm" else {}))

    assert swarm.status().id == identity.node_id
    assert swarm.data_dir is None
    assert everything_in(state) == []


@simulated
async def test_what_agent_and_swarm_are_given_must_not_differ(world: World, tmp_path: Path):
    identity = Identity.from_seed(KEY)

    for agent, options, hint in [
        (world.agent(identity=identity), {"data_dir": tmp_path}, "data_dir= holds another"),
        (world.keeping_agent(), {"identity": identity, "data_dir": tmp_path}, "data_dir= holds another"),
        (world.agent(identity=identity), {"identity": Identity.from_seed(OTHER_KEY)}, "another identity"),
        (world.agent(network="lab"), {"network": "shop"}, "'lab' and the swarm's 'shop'"),
        (world.agent(network_key=KEY), {"network_key": OTHER_KEY}, "another network_key"),
        (world.agent(), {"network_key": b"secret"}, r"32 random bytes"),
    ]:
        with pytest.raises(ConfigError, match=hint):
            Swarm(agent, **options)
    for agent, options in [
        (world.agent(identity=identity), {"identity": identity}),
        (world.agent(network="lab", network_key=KEY), {"network": "lab", "network_key": KEY}),
    ]:
        assert Swarm(agent, **options)._server is agent


@simulated
async def test_a_start_that_fails_lets_go_of_the_key(world: World, tmp_path: Path):
    first = await world.start(world.agent("seed"), listen="127.0.0.1:7070")
    for swarm, error in [
        (world.swarm(world.keeping_agent(), listen="127.0.0.1:7070", data_dir=tmp_path), OSError),
        (world.swarm(world.keeping_agent("x" * 65), data_dir=tmp_path), ConfigError),
        (world.swarm(world.keeping_agent(), bootstrap=[DEAD], data_dir=tmp_path), JoinFailed),
    ]:
        with pytest.raises(error):
            await swarm.start(join_timeout=1, wait_joined=True)

        KeyFile.open(tmp_path / "node.key").close()
        assert swarm.data_dir is None
    assert first.status().listening == ("127.0.0.1:7070",)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 8, 13, 21])
@simulated
async def test_a_start_or_a_stop_that_is_cancelled_lets_go_of_the_key(world: World, tmp_path: Path, count: int):
    first = await world.start(world.agent("seed"))
    swarm = world.swarm(world.keeping_agent(), bootstrap=[seed_of(first), DEAD], data_dir=tmp_path)

    await cancel_after(count, swarm.start())
    await cancel_after(count, swarm.stop())
    await turns(20)
    if swarm.data_dir is not None:  # that stop was cancelled before it began
        await swarm.stop()

    KeyFile.open(tmp_path / "node.key").close()
    assert swarm.data_dir is None


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a place where nobody can write")
@simulated
async def test_a_node_without_a_place_for_its_key_says_so_once_and_is_the_same_until_its_process_ends(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
):
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/self/nothing")
    swarm = await world.start(world.keeping_agent())
    first_id = swarm.status().id
    await swarm.stop()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))

    await swarm.start()

    assert swarm.status().id == first_id
    assert swarm.data_dir is None
    assert len(warnings_in(caplog)) == 1
    assert "data_dir=" in warnings_in(caplog)[0]


@simulated
async def test_an_agent_that_listens_already_stays_who_its_peers_know(world: World, state: Path, tmp_path: Path):
    agent = world.keeping_agent("reviewer", "python")
    await agent.start()
    node_id = agent.identity.node_id
    too_late = world.swarm(agent, data_dir=tmp_path / "mine")

    with pytest.raises(ConfigError, match="comes too late"):
        await too_late.start()
    await agent.start()
    swarm = await world.start(agent)

    assert swarm.status().id == node_id
    assert everything_in(state) == []


@simulated
async def test_the_operator_key_of_a_running_node_opens_it_for_its_operator(world: World, tmp_path: Path):
    agent = world.keeping_agent()
    swarm = await world.start(agent, data_dir=tmp_path)

    while_running = set(agent.operators)
    await swarm.stop()

    assert while_running == {read_identity(tmp_path / "operator.key").node_id}
    assert agent.operators == set()


# Which network it is


@simulated
async def test_members_with_one_network_key_find_each_other(world: World):
    first = await world.start(world.agent("Reviewer", "python"), network_key=KEY)
    second = await world.start(bootstrap=[seed_of(first)], network_key=KEY)

    found = await second.find("python")

    assert [agent.name for agent in found] == ["Reviewer"]
    assert second.status().seeds_joined == 1


@pytest.mark.parametrize("key", [None, OTHER_KEY], ids=["no key", "another key"])
@simulated
async def test_who_has_not_the_network_key_is_not_let_in_and_learns_why(world: World, key: bytes | None):
    first = await world.start(world.agent("Reviewer", "python"), network_key=KEY)
    stranger = world.swarm(bootstrap=[seed_of(first)], network_key=key)

    with pytest.raises(JoinFailed, match=r"network_key") as failed:
        await stranger.start(join_timeout=2, wait_joined=True)

    assert KEY.hex() not in str(failed.value)
    assert first.status().contacts == 0


# Seeds with an id


@simulated
async def test_a_seed_with_its_id_is_joined_and_one_with_another_id_is_reported_with_both(world: World):
    first = await world.start(world.agent("seed"))
    right_id, wrong_id = first.status().id.hex(), bytes(32).hex()

    sure = await world.start(bootstrap=[f"{right_id}@{seed_of(first)}"])
    deceived = world.swarm(bootstrap=[f"{wrong_id}@{seed_of(first)}"])
    with pytest.raises(JoinFailed) as failed:
        await deceived.start(join_timeout=2, wait_joined=True)

    assert sure.status().seeds_joined == 1
    [seed] = failed.value.report.seeds
    assert seed.state is SeedState.NOT_OURS
    assert f"expected {wrong_id} here, found {right_id}" in seed.text
    assert "write its id, or the address alone" in seed.text


# Being cancelled


async def turns(count: int) -> None:
    """Let the loop go round; where nothing is ready, time passes."""
    for number in range(count):
        await asyncio.sleep(0 if number % 2 else 0.004)


async def cancel_after(count: int, act: Coroutine[Any, Any, Any]) -> None:
    task = asyncio.ensure_future(act)
    await turns(count)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 6, 8, 11, 14, 18, 23, 30, 40, 55])
@simulated
async def test_a_start_that_is_cancelled_leaves_no_task_and_no_port(world: World, count: int):
    first = await world.start(world.agent("seed"))
    swarm = world.swarm(world.agent("Reviewer", "python"), bootstrap=[seed_of(first), DEAD])

    task = asyncio.ensure_future(swarm.start())
    await turns(count)
    was_running = not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await first.stop()
    await turns(20)

    if was_running:
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert world.transport.listeners == {}
        await swarm.start(join_timeout=0.1)
    assert swarm.status().listening


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 9, 13, 20])
@simulated
async def test_a_stop_that_is_cancelled_stops_all_the_same(world: World, count: int):
    first = await world.start(world.agent("seed", "x"))
    agent = world.agent("Reviewer", "python")

    @agent.task_handler
    async def never(task: str, context: dict) -> None:
        await asyncio.sleep(3600)

    swarm = await world.start(agent, bootstrap=[seed_of(first)])
    asking = asyncio.ensure_future(first.ask("python", "hang"))
    await asyncio.sleep(1)

    await cancel_after(count, swarm.stop(grace=60))
    await asyncio.gather(asking, return_exceptions=True)
    await first.stop()
    await asyncio.sleep(2)

    assert now() < 30
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert world.transport.listeners == {}


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 8])
@simulated
async def test_a_stop_that_is_cancelled_while_a_start_still_waits_stops_both(world: World, count: int):
    await world.silent_listener()
    swarm = world.swarm(world.agent(), bootstrap=[SILENT])
    starting = asyncio.ensure_future(swarm.start(join_timeout=60))
    await asyncio.sleep(1)

    stopping = asyncio.ensure_future(swarm.stop())
    for _ in range(count):
        await asyncio.sleep(0)
    stopping.cancel()
    await asyncio.gather(starting, stopping, return_exceptions=True)
    await asyncio.sleep(1)

    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert list(world.transport.listeners) == [SILENT]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 8, 13, 21, 34])
@simulated
async def test_a_find_or_an_ask_that_is_cancelled_leaves_no_task(world: World, count: int):
    first = await world.start(world.agent("seed"))
    for number in range(3):
        await world.start(world.agent(f"agent-{number}", "x"), bootstrap=[seed_of(first)])
    client = await world.start(bootstrap=[seed_of(first)])
    await asyncio.sleep(10)
    before = asyncio.all_tasks()

    await cancel_after(count, client.find("x"))
    await cancel_after(count, client.ask("x", "hello"))
    await asyncio.sleep(3)

    assert asyncio.all_tasks() == before


async def test_a_network_key_for_an_agent_that_listens_already_is_refused_and_not_forgotten():
    agent = AgentNode(name="Rita", role="reviewer", port=0)
    await agent.start()
    try:
        with pytest.raises(ConfigError, match="runs already"):
            Swarm(agent, network="lab", network_key=bytes(32))
    finally:
        await agent.stop()

    swarm = Swarm(agent, network="lab", network_key=bytes(32), identity=agent.identity)
    await swarm.start()
    try:
        with pytest.raises(HandshakeFailed, match="network_key"):
            await Client(port=agent.port).call("_synapse.ping")
    finally:
        await swarm.stop()


@simulated
async def test_an_agent_whose_seed_is_dead_comes_back_through_peers_in_its_data_directory(world: World, tmp_path: Path):
    seed = await world.start(world.agent("Seed"))
    seed_address = seed_of(seed)
    other = await world.start(world.agent("Other", "python"), bootstrap=[seed_address])
    first = await world.start(world.keeping_agent("one", "go"), bootstrap=[seed_address], data_dir=tmp_path)
    await asyncio.sleep(5)
    await first.stop()
    gone = [agent.name for agent in await other.find("go")]
    await seed.stop(grace=0)

    again = await world.start(world.keeping_agent("one", "go"), bootstrap=[seed_address], data_dir=tmp_path)

    assert gone == []
    assert [agent.name for agent in await again.find("python")] == ["Other"]
    assert [agent.name for agent in await other.find("go")] == ["one"]
