"""One trace over real sockets: through calls, streams, uploads, threads and asks, and what is no trace at all."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from dht import Swarm
from synapse_p2p import AgentNode, CallContext, Client, Identity, Server, blocking, current_traceparent, traced
from synapse_p2p.protocol.wire import Call
from synapse_p2p.traceparent import MAX_TRACEPARENT_CHARS
from tests.network.test_asking import somebody_new, swarms

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GIVEN = f"00-{TRACE}-{PARENT}-01"


@pytest.fixture(autouse=True)
def nobody_complained(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.DEBUG)
    yield
    records = caplog.get_records("call")
    assert [record.getMessage() for record in records if record.levelno > logging.INFO] == []
    assert not any(TRACE in record.getMessage() for record in records)


def parts(traceparent: str | None) -> tuple[str, str]:
    """Trace and parent."""
    assert traceparent is not None
    _, trace_id, parent_id, _ = traceparent.split("-")
    return trace_id, parent_id


class Hop:
    """A server that notes of each call what came and what its own calls carry, and calls the next one."""

    def __init__(self, following: Hop | None) -> None:
        self.server = Server(port=0)
        self.following = following
        self.came: list[str | None] = []
        self.carried: list[str | None] = []
        self.server.endpoint("call")(self.call)
        self.server.endpoint("threaded")(self.threaded)
        self.server.endpoint("tail")(self.tail)
        self.server.endpoint("swallow")(self.swallow)

    def note(self, context: CallContext) -> None:
        self.came.append(context.traceparent)
        self.carried.append(current_traceparent())

    def next_client(self) -> Client:
        assert self.following is not None
        return Client(port=self.following.server.port)

    async def call(self, context: CallContext) -> None:
        self.note(context)
        if self.following is not None:
            async with self.next_client() as client:
                await client.call("call")
                await client.call("call")

    def threaded(self, context: CallContext) -> None:
        self.note(context)
        if self.following is not None:
            with blocking.Client(port=self.following.server.port) as client:
                client.call("threaded")

    async def tail(self, context: CallContext) -> AsyncIterator[int]:
        self.note(context)
        yield 0
        if self.following is not None:
            async with self.next_client() as client:
                async for item in client.stream("tail"):
                    yield item + 1

    async def swallow(self, items: AsyncIterator[int], context: CallContext) -> list[int]:
        self.note(context)
        taken = [item async for item in items]
        if self.following is None:
            return taken

        async def again() -> AsyncIterator[int]:
            for item in taken:
                yield item

        async with self.next_client() as client:
            return await client.call("swallow", again())


@contextlib.asynccontextmanager
async def three_hops() -> AsyncIterator[tuple[Client, list[Hop]]]:
    """A client of the first of three."""
    last = Hop(None)
    second = Hop(last)
    hops = [Hop(second), second, last]
    for hop in hops:
        await hop.server.start()
    try:
        async with Client(port=hops[0].server.port) as client:
            yield client, hops
    finally:
        for hop in hops:
            await hop.server.stop()


async def say(client: Client, endpoint: str) -> None:
    async def numbers() -> AsyncIterator[int]:
        for number in range(3):
            yield number

    match endpoint:
        case "tail":
            assert [item async for item in client.stream("tail")] == [0, 1, 2]
        case "swallow":
            assert await client.call("swallow", numbers()) == [0, 1, 2]
        case _:
            await client.call(endpoint)


@pytest.mark.parametrize("endpoint", ["call", "threaded", "tail", "swallow"])
async def test_a_trace_goes_over_three_hops_and_each_handler_is_the_parent_of_what_it_calls(endpoint: str):
    async with three_hops() as (client, hops):
        await say(client.with_options(traceparent=GIVEN), endpoint)

    came = [set(map(parts, hop.came)) for hop in hops]
    carried = [set(map(parts, hop.carried)) for hop in hops]
    assert came[0] == {(TRACE, PARENT)}
    assert (came[1], came[2]) == (carried[0], carried[1])
    runs = [parent for hop in hops for _, parent in map(parts, hop.carried)]
    assert len({PARENT, *runs}) == 1 + len(runs)  # nobody's parent is another's
    assert {trace_id for hop in hops for trace_id, _ in map(parts, hop.came)} == {TRACE}


@pytest.mark.parametrize("endpoint", ["call", "threaded", "tail", "swallow"])
async def test_where_nobody_names_a_trace_there_is_none(endpoint: str):
    async with three_hops() as (client, hops):
        await say(client, endpoint)

    assert {value for hop in hops for value in (*hop.came, *hop.carried)} == {None}


async def test_a_traced_block_is_for_the_calls_in_it_and_what_a_call_names_itself_comes_first():
    other = f"00-{TRACE}-{'1' * 16}-00"
    async with three_hops() as (client, hops):
        with traced(GIVEN):
            await client.call("call")
            await client.with_options(traceparent=other).call("call")
        await client.call("call")

    assert hops[0].came == [GIVEN, other, None]


async def test_a_handler_that_begins_a_server_gives_its_trace_to_none_of_the_calls_that_come_there():
    outer, inner, port = Server(port=0), Hop(None), asyncio.get_running_loop().create_future()

    @outer.endpoint()
    async def begin() -> None:
        await inner.server.start()
        port.set_result(inner.server.port)

    await outer.start()
    async with Client(port=outer.port) as client:
        await client.with_options(traceparent=GIVEN).call("begin")
    async with Client(port=await port) as client:
        await client.call("call")
    await inner.server.stop()
    await outer.stop()

    assert (inner.came, inner.carried) == ([None], [None])


@pytest.mark.parametrize(
    "value",
    [
        "",
        "canary",
        f"00-{TRACE}-{PARENT}",
        f"00-{TRACE}-{PARENT}-01-more",
        "cc-" + GIVEN[3:] + "-" + "x" * MAX_TRACEPARENT_CHARS,
        GIVEN.upper(),
        7,
        True,
        None,
        GIVEN.encode(),
        [GIVEN],
        {"traceparent": GIVEN},
    ],
)
async def test_what_is_no_traceparent_is_dropped_and_the_call_is_served(value: Any, caplog: pytest.LogCaptureFixture):
    last, caller = Hop(None), Server(port=0, identity=Identity.from_seed(b"c" * 32))
    await last.server.start()
    peer = await caller.sessions.connect_address(f"127.0.0.1:{last.server.port}")
    await caller.sessions.call_with(peer, "call", [], {}, timeout_s=5, options={"traceparent": value})
    await caller.stop()
    await last.server.stop()

    assert (last.came, last.carried) == ([None], [None])
    assert "canary" not in caplog.text


class Told(Server):
    """Answers every call with nothing, and keeps what came with it."""

    def __init__(self) -> None:
        super().__init__(port=0)
        self.options: dict[str, dict[str, Any]] = {}

    def mounted(self, endpoint: str) -> None:
        return None

    async def serve_session_call(self, call: Call, context: CallContext) -> None:
        self.options[call.endpoint] = call.options


async def test_calls_of_the_overlay_carry_no_trace():
    told, caller = Told(), Server(port=0)
    await told.start()
    peer = await caller.sessions.connect_address(f"127.0.0.1:{told.port}")
    with traced(GIVEN):
        for endpoint in ("_dht.ping", "_synapse.ping"):
            await caller.sessions.call_with(peer, endpoint, [], {}, timeout_s=None)
    await caller.stop()
    await told.stop()

    assert told.options == {"_dht.ping": {}, "_synapse.ping": {"traceparent": GIVEN}}


class Asked(AgentNode):
    """Notes the traces of its tasks; the first `refuses` of them it has no place for."""

    def __init__(self, name: str, capability: str, **options: Any) -> None:
        super().__init__(name=name, role="worker", capabilities=[capability], identity=somebody_new(), **options)
        self.came: list[str | None] = []
        self.task_handler(self.work)

    async def work(self, task: str, context: dict[str, Any], call: CallContext) -> Any:
        self.came.append(call.traceparent)
        if task == "pass on":
            return (await call.swarm.ask("second", "work")).result
        return task


async def asked(client: Swarm, way: str, traceparent: str | None) -> None:
    match way:
        case "ask":
            await client.ask("first", "pass on", traceparent=traceparent)
        case "stream_ask":
            assert [item async for item in client.stream_ask("first", "pass on", traceparent=traceparent)] == ["work"]
        case _:
            agent = (await client.find("first"))[0]
            with traced(traceparent):
                await agent.ask("pass on")


@pytest.mark.parametrize("way", ["ask", "stream_ask", "a found agent"])
async def test_an_ask_carries_its_trace_to_the_provider_and_to_those_that_it_asks(way: str):
    first, second = Asked("first", "first"), Asked("second", "second")
    async with swarms(first, second) as client:
        await asked(client, way, GIVEN)
        await asked(client, way, None)

    assert first.came == [GIVEN, None]
    assert parts(second.came[0])[0] == TRACE
    assert parts(second.came[0])[1] != PARENT
    assert second.came[1] is None


async def test_a_provider_that_is_tried_second_is_told_the_same_trace():
    first, second = Asked("one", "first", allow=[]), Asked("two", "first")
    async with swarms(first, second) as client:
        while True:
            answer = await client.ask("first", "work", traceparent=GIVEN)
            if len(answer.attempts) > 1:
                break

    assert first.came == []
    assert set(second.came) == {GIVEN}
