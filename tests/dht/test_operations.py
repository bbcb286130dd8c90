"""What a node tells its operators, over real sessions, and nobody else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from dht import Swarm
from dht.operations import MAX_EVENTS_KEPT, MAX_EVENTS_TOLD
from synapse_p2p import AgentNode, Client, Identity, PeerUnavailable, RemoteError, RPCRequest
from synapse_p2p.framing import read_frame, write_frame
from synapse_p2p.serializers import MessagePackRPCSerializer

OPERATOR = Identity.from_seed(b"o" * 32)
NAMES = ("_swarm.status", "_swarm.peers", "_swarm.agents", "_swarm.events")


@pytest.fixture
async def swarm() -> AsyncIterator[Swarm]:
    agent = AgentNode(
        name="Rita",
        role="reviewer",
        capabilities=["python"],
        address="127.0.0.1",
        port=0,
        operators=[OPERATOR.node_id],
        identity=Identity.from_seed(b"r" * 32),
    )

    @agent.endpoint()
    async def add(a: int, b: int) -> int:
        return a + b

    async with Swarm(agent) as swarm:
        yield swarm


@pytest.fixture
async def operator(swarm: Swarm) -> AsyncIterator[Client]:
    async with Client(swarm.status().listening[0], identity=OPERATOR) as client:
        yield client


def member(swarm: Swarm, name: str = "Olga", **options: Any) -> Swarm:
    agent = AgentNode(
        name=name, role="coder", capabilities=["coding"], identity=Identity.from_seed(name[0].encode() * 32)
    )
    return Swarm(agent, bootstrap=swarm.status().listening, **options)


@pytest.mark.parametrize("name", NAMES)
async def test_others_are_refused_whatever_they_send(swarm: Swarm, name: str):
    async with Client(swarm.status().listening[0]) as stranger:
        for arguments in ({}, {"after": "x"}, {"after": None, "more": 1}):
            with pytest.raises(RemoteError, match="for operators alone") as refused:
                await stranger.call(name, **arguments)
            assert refused.value.code == "forbidden"
        with pytest.raises(RemoteError) as hidden:
            await stranger.call("_synapse.describe", name)
    assert hidden.value.code == "not_found"


async def test_a_plain_caller_on_this_machine_is_refused_too(swarm: Swarm):
    host, _, port = swarm.status().listening[0].rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    await write_frame(writer, MessagePackRPCSerializer.serialize(RPCRequest(endpoint="_swarm.status", id="1")))

    answer = MessagePackRPCSerializer.deserialize(await read_frame(reader, max_size=2**20))

    writer.close()
    await writer.wait_closed()
    assert (answer.ok, answer.error.code) == (False, "bad_request")
    assert "for operators alone" in answer.error.message


async def test_status_is_that_of_the_swarm_and_of_its_agent(swarm: Swarm, operator: Client):
    async with member(swarm):
        await operator.call("add", 1, 2)
        told = await operator.call("_swarm.status")
        again = await operator.call("_swarm.status")

    status = swarm.status()
    assert (told["id"], told["listening"]) == (status.id.hex(), list(status.listening))
    assert (told["mode"], told["contacts"], told["seeds"]) == ("node", 1, [])
    assert (told["agent"]["name"], told["agent"]["running"]) == ("Rita", 0)
    assert told["record"]["capabilities"][0]["is_kept"]
    assert 0 < told["record"]["expires_in_s"] <= 900
    assert told["last_stall"] is None
    assert again["calls_served"] == told["calls_served"]  # looking at it is no call
    assert told["calls_served"] >= 1


async def test_a_node_without_an_agent_has_no_record():
    server_key = Identity.from_seed(b"n" * 32)
    async with Swarm(listen="127.0.0.1:0", identity=server_key) as swarm:
        swarm._server.operators.add(OPERATOR.node_id)
        async with Client(swarm.status().listening[0], identity=OPERATOR) as operator:
            told = await operator.call("_swarm.status")

    assert (told["agent"], told["record"]) == (None, None)


async def test_peers_are_contacts_and_guests_without_the_one_who_asks(swarm: Swarm, operator: Client):
    async with member(swarm) as other, Client(swarm.status().listening[0]) as guest:
        await guest.call("_synapse.ping")
        told = await operator.call("_swarm.peers")

        assert [(peer["id"], peer["addresses"]) for peer in told["peers"]] == [
            (other.status().id.hex(), list(other.status().listening))
        ]
        assert (told["peers"][0]["is_connected"], told["peers"][0]["is_suspect"]) == (True, False)
        assert 0 <= told["peers"][0]["seen_s"] < 60
        assert (told["guest_count"], OPERATOR.node_id.hex() in told["guests"]) == (1, False)


async def test_agents_are_those_whose_records_are_kept_here(swarm: Swarm, operator: Client):
    async with member(swarm) as other:
        there = await operator.call("_swarm.agents")
    gone = await operator.call("_swarm.agents")

    assert [(agent["id"], agent["name"], agent["is_known"]) for agent in there["agents"]] == [
        (other._server.identity.node_id.hex(), "Olga", True)
    ]
    assert gone == {"count": 0, "agents": []}


async def test_events_are_those_since_the_number_that_was_told_last(swarm: Swarm, operator: Client):
    first = await operator.call("_swarm.events", after=None)
    async with member(swarm) as other:
        joined = await operator.call("_swarm.events", after=first["last"])
        other_id = other.status().id.hex()
    left = await operator.call("_swarm.events", after=joined["last"])
    nothing = await operator.call("_swarm.events", after=left["last"])

    assert first == {"last": 0, "events": []}
    assert ("joined", other_id) in [(event["event"], event["id"]) for event in joined["events"]]
    assert ("left", other_id) in [(event["event"], event["id"]) for event in left["events"]]
    assert nothing == {"last": left["last"], "events": []}
    numbers = [event["number"] for event in (*joined["events"], *left["events"])]
    assert numbers == list(range(1, len(numbers) + 1))


async def test_events_that_nobody_asks_for_are_bounded(swarm: Swarm, operator: Client):
    from dht.events import Reconnected

    await operator.call("_swarm.events", after=None)
    node = swarm._node
    assert node is not None
    for _ in range(3 * MAX_EVENTS_KEPT):
        node._events.tell(Reconnected())

    last, told = 0, []
    while events := (await operator.call("_swarm.events", after=last))["events"]:
        assert len(events) <= MAX_EVENTS_TOLD
        told += events
        last = events[-1]["number"]

    assert len(told) == MAX_EVENTS_KEPT
    assert {event["event"] for event in told} <= {"reconnected", "dropped"}


async def test_a_handler_that_blocked_the_loop_is_named(swarm: Swarm, operator: Client):
    @swarm._server.endpoint()
    async def block() -> None:
        time.sleep(3)  # noqa: ASYNC251 - what handlers must not do

    await operator.call("block")
    stall = None
    async with asyncio.timeout(20):
        # A busy machine may have stalled before, with nobody to blame.
        while stall is None or "block" not in stall["blocked_by"]:
            await asyncio.sleep(0.05)
            stall = (await operator.call("_swarm.status"))["last_stall"]

    assert 1 < stall["stalled_s"] < 20
    assert 0 <= stall["ago_s"] < 20


async def test_an_agent_that_goes_on_without_its_swarm_says_so(caplog: pytest.LogCaptureFixture):
    own = Identity.from_seed(b"r" * 32)
    agent = AgentNode(name="Rita", role="reviewer", port=0, operators=[OPERATOR.node_id], identity=own)
    async with Swarm(agent):
        pass
    await agent.start()
    async with Client(port=agent.port, identity=OPERATOR) as operator:
        for name in NAMES:
            with pytest.raises(PeerUnavailable, match="is not started"):
                await operator.call(name)
    await agent.stop()

    assert "Traceback" not in caplog.text


async def test_a_number_that_is_none_is_bad_request(swarm: Swarm, operator: Client):
    for after in ("1", 1.5, True, [1]):
        with pytest.raises(RemoteError) as error:
            await operator.call("_swarm.events", after=after)
        assert error.value.code == "bad_request"


async def test_a_full_server_still_answers_its_operator(swarm: Swarm, operator: Client):
    agent = swarm._server
    release = asyncio.Event()

    @agent.endpoint()
    async def wait() -> None:
        await release.wait()

    agent.endpoints._max_handlers = 1
    async with Client(swarm.status().listening[0]) as caller:
        waiting = asyncio.ensure_future(caller.call("wait"))
        await asyncio.sleep(0)  # it is written before the next call, on the same session
        with pytest.raises(RemoteError, match="too many calls"):
            await caller.call("add", 1, 2)
        assert (await operator.call("_swarm.status"))["mode"] == "node"
        release.set()
        await waiting
