"""What is counted, against what really happened: known calls, refusals and handshakes over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from dht import Swarm
from synapse_p2p import (
    AgentNode,
    CallError,
    Client,
    HandshakeFailed,
    Identity,
    Metrics,
    MetricsSnapshot,
    PeerUnavailable,
    RemoteError,
    RPCRequest,
    Server,
    ServerConfig,
    Timeout,
)
from synapse_p2p.config import SessionConfig
from synapse_p2p.framing import encode_frame
from synapse_p2p.loop_beat import BEAT_S
from synapse_p2p.metrics_snapshot import CallStats
from synapse_p2p.serializers import MessagePackRPCSerializer
from tests.network.cancellation import until

ANN = Identity.from_seed(b"a" * 32)
SMALL = ServerConfig(session=SessionConfig(max_calls_served=2, max_calls_queued=1))


class Plain(MessagePackRPCSerializer):
    """A serializer of a user's own: its client speaks the plain wire, and nothing else."""


class Work:
    """A server whose endpoints end in every way there is."""

    def __init__(self, **options: Any) -> None:
        self.server = server = Server(port=0, operators=[ANN.node_id], **options)
        self.goes_on = asyncio.Event()
        server.endpoint("echo")(self.echo)
        server.endpoint("refuse")(self.refuse)
        server.endpoint("fail")(self.fail)
        server.endpoint("wait")(self.wait)
        server.endpoint("tail")(self.tail)
        server.endpoint("swallow")(self.swallow)
        server.endpoint("closed", allow=[])(self.echo)

    @property
    def stats(self) -> MetricsSnapshot:
        return self.server.metrics.snapshot()

    async def echo(self, value: Any = None) -> Any:
        return value

    async def refuse(self) -> None:
        raise CallError("not today")

    async def fail(self) -> None:
        raise ZeroDivisionError

    async def wait(self) -> None:
        await self.goes_on.wait()

    async def tail(self, length: int) -> AsyncIterator[int]:
        for number in range(length):
            yield number

    async def swallow(self, items: AsyncIterator[int]) -> int:
        return len([item async for item in items])


@contextlib.asynccontextmanager
async def working(**options: Any) -> AsyncIterator[tuple[Work, Client]]:
    work = Work(**options)
    await work.server.start()
    try:
        async with Client(port=work.server.port) as client:
            yield work, client
    finally:
        await work.server.stop()


def ends(stats: CallStats | Any) -> dict[str, int]:
    """How many ended in each way; only the ways that there were."""
    return {name: count for name, count in {"ok": stats.ok, **stats.failed}.items() if count}


def some(counts: Any) -> dict[str, int]:
    return {name: count for name, count in counts.items() if count}


async def ended(client: Client, endpoint: str, *args: Any) -> str:
    """The code that a call ended with."""
    try:
        await client.call(endpoint, *args)
    except RemoteError as error:
        return str(error.code)
    except Timeout:
        return "deadline_exceeded"
    except PeerUnavailable:
        return "unavailable"
    except asyncio.CancelledError:
        return "cancelled"
    return "ok"


async def numbers(count: int) -> AsyncIterator[int]:
    for number in range(count):
        yield number


# Calls


async def test_calls_are_counted_by_how_they_ended_at_both_ends(caplog: pytest.LogCaptureFixture):
    async with working() as (work, client):
        for _ in range(3):
            await client.call("echo", 1)
        assert [item async for item in client.stream("tail", 4)] == [0, 1, 2, 3]
        assert await client.call("swallow", numbers(5)) == 5
        for endpoint in ("refuse", "fail", "nowhere", "closed"):
            with pytest.raises(RemoteError):
                await client.call(endpoint)
        with pytest.raises(RemoteError):
            await client.call("echo", 1, 2)
        with pytest.raises(Timeout):
            await client.with_options(timeout_s=0.5).call("wait")
        waits = asyncio.ensure_future(client.call("wait"))
        await until(lambda: work.stats.calls_in.in_flight == client.metrics.snapshot().calls_out.in_flight == 1)
        waits.cancel()
        await until(lambda: work.stats.calls_in.in_flight == 0)
        async with contextlib.aclosing(client.stream("tail", 10**9)) as items:
            await anext(items)
        await until(lambda: work.stats.calls_in.in_flight == 0)
        asked, served = client.metrics.snapshot(), work.stats

    expected = {
        "ok": 5,
        "bad_request": 1,
        "not_found": 1,
        "forbidden": 1,
        "failed": 1,
        "internal_error": 1,
        "deadline_exceeded": 1,
        "cancelled": 2,
    }
    assert ends(asked.calls_out) == expected
    # Whose clock is first tells the other: to the server it is the caller's deadline, or a caller that gives up.
    caller_first = {name: count for name, count in expected.items() if name != "deadline_exceeded"} | {"cancelled": 3}
    assert ends(served.calls_in) in (expected, caller_first)
    assert ends(asked.calls_in) == ends(served.calls_out) == ends(served.overlay_in) == {}
    assert {name: ends(stats) for name, stats in served.endpoints.items() if ends(stats)} == {
        "echo": {"ok": 3, "bad_request": 1},
        "tail": {"ok": 1, "cancelled": 1},
        "swallow": {"ok": 1},
        "refuse": {"failed": 1},
        "fail": {"internal_error": 1},
        "wait": {"cancelled": 2},
    }
    assert served.endpoints["wait"].took_s > 0
    assert asked.calls_out.in_flight == served.calls_in.in_flight == 0


async def test_calls_that_find_no_place_are_counted_as_busy_and_those_that_wait_as_waiting():
    async with working(config=SMALL) as (work, client):
        calls = [asyncio.ensure_future(ended(client, "wait")) for _ in range(4)]
        await until(lambda: ends(work.stats.calls_in) == {"busy": 1})
        stats = work.stats
        work.goes_on.set()
        codes = await asyncio.gather(*calls)

        assert (stats.calls_in.in_flight, stats.calls_waiting) == (3, 1)
        assert codes == ["ok", "ok", "ok", "busy"]
        assert ends(work.stats.calls_in) == {"ok": 3, "busy": 1}


async def test_calls_in_flight_when_the_server_stops_are_counted_as_unavailable():
    async with working() as (work, client):
        calls = [asyncio.ensure_future(ended(client, "wait")) for _ in range(3)]
        await until(lambda: work.stats.calls_in.in_flight == 3)
        await work.server.stop(grace=0)

        assert await asyncio.gather(*calls) == ["unavailable"] * 3
        assert ends(work.stats.calls_in) == ends(client.metrics.snapshot().calls_out) == {"unavailable": 3}
        assert work.stats.calls_in.in_flight == client.metrics.snapshot().calls_out.in_flight == 0


async def test_plain_calls_are_counted_with_the_others(caplog: pytest.LogCaptureFixture):
    async with working() as (work, _):
        client = Client(port=work.server.port, serializer_class=Plain)
        await client.call("echo")
        for endpoint in ("fail", "nowhere", "closed"):
            with pytest.raises(RemoteError):
                await client.call(endpoint)
        with pytest.raises(Timeout):
            await client.with_options(timeout_s=0.5).call("wait")
        await until(lambda: work.stats.calls_in.in_flight == 0)
        stats = work.stats

    assert ends(stats.calls_in) == {
        "ok": 1,
        "internal_error": 1,
        "not_found": 1,
        "forbidden": 1,
        "cancelled": 1,
    }
    assert stats.sessions.accepted_ever == 0


async def test_bytes_of_the_plain_wire_are_counted_as_they_came_and_left():
    request = encode_frame(Plain.serialize(RPCRequest("echo", args=["x" * 1000])))
    async with working() as (work, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", work.server.port)
        writer.write(request)
        response = await reader.read()
        writer.close()
        await writer.wait_closed()

        assert len(response) > 1000
        assert (work.stats.received_bytes, work.stats.sent_bytes) == (len(request), len(response))


async def test_calls_of_the_overlay_are_counted_apart():
    async with working() as (work, client):
        work.server.mount("_dht.", {"_dht.ping": lambda request, context: None})
        for _ in range(4):
            await client.call("_dht.ping")
        await client.call("echo")

        assert (ends(work.stats.overlay_in), ends(work.stats.calls_in)) == ({"ok": 4}, {"ok": 1})
        asked = client.metrics.snapshot()
        assert (ends(asked.overlay_out), ends(asked.calls_out)) == ({"ok": 4}, {"ok": 1})


async def test_names_that_peers_make_up_are_counted_under_none():
    async with working() as (work, client):
        before = set(work.stats.endpoints)
        codes = [await ended(client, f"name {number}") for number in range(50)]

        assert set(codes) == {"not_found"}
        assert set(work.stats.endpoints) == before
        assert ends(work.stats.calls_in) == {"not_found": 50}


@pytest.mark.parametrize("seed", [1, 2])
async def test_after_any_mix_of_ends_every_call_is_counted_once_and_none_is_in_flight(
    seed: int, caplog: pytest.LogCaptureFixture
):
    rng = random.Random(seed)
    async with working(config=SMALL) as (work, client):
        work.goes_on.set()
        calls: list[asyncio.Task[str]] = []
        for _ in range(150):
            endpoint = rng.choice(["echo", "refuse", "fail", "wait", "tail", "swallow"])
            caller = client.with_options(timeout_s=rng.choice([None, 0.001, 1.0]))
            arguments = {"tail": [3], "swallow": [numbers(3)]}.get(endpoint, [])
            calls.append(asyncio.ensure_future(ended(caller, endpoint, *arguments)))
            if rng.random() < 0.3:
                rng.choice(calls).cancel()
            if rng.random() < 0.03:
                await client.close()
            if rng.random() < 0.3:
                await asyncio.sleep(0)
        await asyncio.gather(*calls, return_exceptions=True)
        made = sum(client.metrics.snapshot().calls_out.failed.values()) + client.metrics.snapshot().calls_out.ok
        await client.close()
        await until(lambda: work.stats.sessions.accepted == 0)
        asked, served = client.metrics.snapshot(), work.stats

    assert asked.calls_out.in_flight == served.calls_in.in_flight == served.calls_waiting == 0
    assert 0 < sum(ends(asked.calls_out).values()) == made <= len(calls)
    assert sum(ends(served.calls_in).values()) <= made  # some were taken back before they left
    assert asked.sessions == replace(asked.sessions, dialed=0, accepted=0, idle=0)
    assert asked.sessions.dialed_ever == served.sessions.accepted_ever


# Sessions and handshakes


async def test_sessions_are_counted_by_who_dialed_and_bytes_as_they_left_and_came():
    async with working() as (work, client):
        await client.call("echo", bytes(100_000))
        open_here, open_there = client.metrics.snapshot().sessions, work.stats.sessions
        await client.close()
        await until(lambda: work.stats.sessions.accepted == 0)
        asked, served = client.metrics.snapshot(), work.stats

    assert asdict(open_here) == {"dialed": 1, "accepted": 0, "idle": 1, "dialed_ever": 1, "accepted_ever": 0}
    assert asdict(open_there) == {"dialed": 0, "accepted": 1, "idle": 1, "dialed_ever": 0, "accepted_ever": 1}
    assert asked.sessions.idle == served.sessions.idle == 0
    assert asked.sent_bytes == served.received_bytes > 100_000
    assert served.sent_bytes == asked.received_bytes > 100_000


async def test_a_server_and_a_client_of_one_program_may_count_together():
    async with (
        working() as (work, _),
        working() as (other, _),
        Client(port=other.server.port, metrics=work.server.metrics) as client,
        Client(port=work.server.port) as stranger,
    ):
        await client.call("echo")
        await stranger.call("echo")

        stats = work.stats
        assert (ends(stats.calls_in), ends(stats.calls_out)) == ({"ok": 1}, {"ok": 1})
        assert (stats.sessions.dialed, stats.sessions.accepted) == (1, 1)


async def refused_at(work: Work, data: bytes) -> None:
    """Connect, say this, and wait for the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", work.server.port)
    writer.write(data)
    with contextlib.suppress(ConnectionError):
        await reader.read()
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


PREAMBLE = b"\xa5SYNN\x01\x01"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\xa5SYNX", "preamble"),
        (b"\xa5SYNN\x02\x01\x00", "version"),
        (b"\xa5SYNN\x01\x03\x00", "suite"),
        (PREAMBLE + b"hint", "network"),
        (PREAMBLE + b"\xe3\x00\x00", "message"),
        (PREAMBLE + b"\xe3\x00\x20" + bytes(32), "crypto"),
    ],
)
async def test_a_handshake_that_is_refused_is_counted_by_its_reason(data: bytes, reason: str):
    async with working() as (work, _):
        assert work.server.network_id[0] == 0xE3
        await refused_at(work, data)
        await until(lambda: some(work.stats.handshakes_refused) == {reason: 1})

        assert work.stats.sessions.accepted_ever == 0


async def test_dials_that_fail_are_counted_by_their_reason_at_both_ends():
    metrics = Metrics()
    async with working() as (work, _), working(network_key=os.urandom(32)) as (closed, _):

        async def dial(server: Server, **options: Any) -> None:
            async with Client(port=server.port, metrics=metrics, **options) as client:
                with pytest.raises((HandshakeFailed, PeerUnavailable)):
                    await client.call("echo")

        await dial(work.server, expect=b"x" * 32)
        await dial(work.server, network_key=os.urandom(32))
        await dial(work.server, network="another")
        await dial(closed.server, network_key=os.urandom(32))
        nobody = Server(port=0)
        await nobody.start()
        await nobody.stop()
        await dial(nobody)
        await until(lambda: sum(work.stats.handshakes_refused.values()) == 3)
        await until(lambda: sum(closed.stats.handshakes_refused.values()) == 1)

        assert some(metrics.snapshot().dials_failed) == {"identity": 1, "suite": 1, "network": 2, "unreachable": 1}
        assert some(work.stats.handshakes_refused) == {"closed": 1, "suite": 1, "network": 1}
        assert some(closed.stats.handshakes_refused) == {"network": 1}
        assert metrics.snapshot().sessions.dialed_ever == 0


async def test_connections_that_are_too_many_are_counted_as_busy():
    pool = replace(ServerConfig().pool, max_handshakes=1)
    async with working(config=ServerConfig(pool=pool)) as (work, _), contextlib.AsyncExitStack() as stack:
        for _ in range(3):
            _, writer = await asyncio.open_connection("127.0.0.1", work.server.port)
            stack.callback(writer.close)
            writer.write(PREAMBLE)
            await writer.drain()
        await until(lambda: some(work.stats.handshakes_refused) == {"busy": 2})

    assert some(work.stats.handshakes_refused) == {"busy": 2, "closed": 1}


async def test_sessions_that_are_too_many_are_counted_as_busy():
    pool = replace(ServerConfig().pool, max_sessions=1)
    async with working(config=ServerConfig(pool=pool)) as (work, client):
        waits = asyncio.ensure_future(client.call("wait"))
        await until(lambda: work.stats.calls_in.in_flight == 1)
        async with Client(port=work.server.port) as second:
            with pytest.raises(PeerUnavailable):
                await second.call("echo")
        stats, dialed = work.stats, second.metrics.snapshot()
        work.goes_on.set()
        await waits

    assert some(stats.handshakes_refused) == some(dialed.dials_failed) == {"busy": 1}


# The endpoint


async def stats_of(server: Server, identity: Identity | None = ANN) -> dict[str, Any]:
    async with Client(port=server.port, identity=identity) as client:
        return await client.call("_synapse.stats")


async def test_operators_alone_are_told():
    async with working() as (work, client):
        answer = await stats_of(work.server)
        with pytest.raises(RemoteError, match="operators alone") as refused:
            await client.call("_synapse.stats")
        with pytest.raises(RemoteError, match="operators alone"):
            await Client(port=work.server.port, serializer_class=Plain).call("_synapse.stats")
        names = [each["name"] for each in await client.call("_synapse.methods")]

        assert refused.value.code == "forbidden"
        assert "_synapse.stats" not in names
        assert set(answer) == {"uptime_s", *asdict(work.stats)}
        assert answer["sessions"]["accepted"] == answer["calls_in"]["in_flight"] == 1  # this very one
        assert answer["uptime_s"] > 0


async def test_operators_are_told_though_no_handler_finds_a_place():
    async with working(config=replace(ServerConfig(), max_handlers=1)) as (work, client):
        waits = asyncio.ensure_future(client.call("wait"))
        await until(lambda: work.stats.calls_in.in_flight == 1)
        busy = await ended(client, "echo")
        answer = await stats_of(work.server)
        work.goes_on.set()
        await waits

        assert busy == "busy"
        assert answer["calls_in"]["in_flight"] == 2
        assert answer["calls_in"]["failed"]["busy"] == 1


async def test_an_agent_tells_of_its_tasks():
    agent = AgentNode(name="Ann", role="worker", port=0, max_tasks=1, queue=5, operators=[ANN.node_id])
    goes_on = asyncio.Event()

    @agent.task_handler
    async def work(task: str, context: dict[str, Any]) -> None:
        await goes_on.wait()

    await agent.start()
    async with Client(port=agent.port) as client:
        tasks = [asyncio.ensure_future(client.call("_agent.ask", "work")) for _ in range(3)]
        await until(lambda: agent.load()["waiting"] == 2)
        busy = await stats_of(agent)
        goes_on.set()
        await asyncio.gather(*tasks)
        idle = await stats_of(agent)
    await agent.stop()

    assert busy["tasks"] == {"running": 1, "waiting": 2, "max_tasks": 1, "queue": 5}
    assert idle["tasks"] == {"running": 0, "waiting": 0, "max_tasks": 1, "queue": 5}
    assert idle["endpoints"]["_agent.ask"]["ok"] == 3


async def test_a_server_measures_how_late_its_loop_is_while_it_runs():
    async with working() as (work, _):
        time.sleep(BEAT_S + 0.2)  # noqa: ASYNC251 - this is what is measured
        await until(lambda: work.stats.loop_lag is not None)
        lag = (await stats_of(work.server))["loop_lag"]

    assert lag["max_s"] >= 0.2
    assert lag["count"] >= 1


async def test_a_client_whose_loop_ended_leaves_no_session_in_what_is_counted_with_it():
    metrics = Metrics()
    async with working() as (work, _):

        def call_and_forget() -> None:
            loop = asyncio.new_event_loop()
            client = Client(port=work.server.port, metrics=metrics)
            loop.run_until_complete(client.call("echo"))
            loop.run_until_complete(client.close())
            loop.close()

        await asyncio.to_thread(call_and_forget)
        gc.collect()

        assert metrics.snapshot().sessions.dialed == 0
        assert metrics.snapshot().sessions.dialed_ever == 1


async def test_the_swarm_of_an_agent_counts_what_the_agent_counts(tmp_path: Path):
    agent = AgentNode(name="Ann", role="worker", capabilities=["work"])

    @agent.task_handler
    async def work(task: str, context: dict[str, Any]) -> str:
        return task

    async with Swarm(agent, data_dir=tmp_path) as swarm:
        async with Swarm(bootstrap=swarm.status().listening) as client:
            await client.ask("work", "a task")
            asked = client.metrics.snapshot()
        told = swarm.metrics.snapshot()

    assert swarm.metrics is agent.metrics
    assert told.endpoints["_agent.ask"].ok == 1
    assert ends(told.overlay_in).keys() == {"ok"}
    assert asked.calls_out.ok >= 1
    assert asked.sessions.dialed_ever >= 1
