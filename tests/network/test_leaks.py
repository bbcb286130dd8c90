"""After a storm of calls that end in every way there is, and after a stop with all kinds of callers, nothing is left.

Chance is seeded: which call is cancelled, which has how long, and who dies when is the same in every run.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from synapse_p2p import CallError, Client, Server
from synapse_p2p.background import TaskScope
from synapse_p2p.config import MIB, PoolConfig, ServerConfig, SessionConfig
from synapse_p2p.exceptions import PeerUnavailable, RemoteError, Timeout
from synapse_p2p.framing import encode_frame
from synapse_p2p.identity import Identity, NodeID
from synapse_p2p.messages import RPCRequest
from synapse_p2p.serializers import MessagePackRPCSerializer
from synapse_p2p.spare_task import SPARE
from synapse_p2p.transport.base import ByteStream, Receiver
from synapse_p2p.transport.tcp import TcpTransport
from tests.network.cancellation import open_descriptors, until

MAX_HANDLERS = 8
CONFIG = ServerConfig(
    max_handlers=MAX_HANDLERS,
    session=SessionConfig(max_calls_served=MAX_HANDLERS, max_control_calls=4, goodbye_timeout_s=0.2),
    pool=PoolConfig(redial_pause_s=0.002, max_redial_pause_s=0.004),
)
CALL_COUNT = 300
LONGEST_S = 0.02  # that a handler takes, or a caller waits
STOP_GRACE_S = 0.1


@dataclass(frozen=True)
class Peer:
    id: NodeID
    addresses: tuple[str, ...]


@pytest.fixture(autouse=True)
def nothing_is_left(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    descriptors = open_descriptors()
    yield
    gc.collect()
    assert [record.getMessage() for record in caplog.get_records("call") if record.levelno > logging.INFO] == []
    # The loop has three of its own, which close with it.
    assert open_descriptors() <= descriptors + 3


class Mortal(TcpTransport):
    """TCP whose accepted connections can all break at once."""

    def __init__(self) -> None:
        super().__init__()
        self._streams: list[ByteStream] = []

    async def listen(self, host: str, port: int, accept: Callable[[], Receiver]) -> Any:
        def accept_and_note() -> Receiver:
            receiver = accept()
            made = receiver.connection_made

            def connection_made(stream: ByteStream) -> None:
                self._streams.append(stream)
                made(stream)

            receiver.connection_made = connection_made  # type: ignore[method-assign]
            return receiver

        return await super().listen(host, port, accept_and_note)

    def break_all(self) -> None:
        for stream in self._streams:
            stream.abort()
        self._streams.clear()


class Called:
    """A server that may die at any moment; it comes back at its port."""

    def __init__(self, number: int) -> None:
        self.transport = Mortal()
        self.server = Server(
            port=0, identity=Identity.from_seed(bytes([number] * 32)), transport=self.transport, config=CONFIG
        )
        self.running = 0
        self.together = asyncio.Barrier(MAX_HANDLERS)
        self.server.endpoint("take")(self._take)
        self.server.endpoint("in_a_thread")(lambda value: value)
        self.server.endpoint("refuse")(self._refuse)
        self.server.endpoint("meet")(self._meet)
        self.server.mount("_dht.", {"_dht.echo": lambda request, context: request["value"]})

    @property
    def peer(self) -> Peer:
        return Peer(self.server.identity.node_id, (f"127.0.0.1:{self.server.port}",))

    async def die_and_come_back(self) -> None:
        """Every connection breaks without a goodbye, and the port is open again."""
        self.transport.break_all()
        await self.server.stop(grace=0)
        await self.server.start()

    async def _take(self, seconds: float, value: bytes = b"") -> bytes:
        self.running += 1
        try:
            await asyncio.sleep(seconds)
        finally:
            self.running -= 1
        return value

    async def _refuse(self, value: int) -> None:
        raise CallError("not_today", str(value))

    async def _meet(self) -> str:
        await self.together.wait()
        return "met"


def random_call(rng: random.Random, caller: Server, called: Called) -> Callable[[], Any]:
    """One call of any kind, as a function that makes its coroutine; its answer is right, or it raises."""
    value, taken_s = rng.randrange(2**32), rng.uniform(0, LONGEST_S)
    left_s = rng.choice((5.0, rng.uniform(0.0005, LONGEST_S)))
    payload = rng.randbytes(rng.choice((0, 10, 100_000)))
    endpoint, arguments, answer = rng.choice(
        (
            ("take", {"seconds": taken_s, "value": payload}, payload),
            ("in_a_thread", {"value": value}, value),
            ("_dht.echo", {"value": value}, value),
            ("refuse", {"value": value}, None),
        )
    )

    async def call() -> str:
        assert await caller.sessions.call(called.peer, endpoint, arguments, timeout_s=left_s) == answer
        return "answered"

    return call


async def outcome_of(call: Callable[[], Any]) -> str:
    try:
        return await call()
    except asyncio.CancelledError:
        return "cancelled"
    except Timeout:
        return "late"
    except PeerUnavailable:
        return "unavailable"
    except RemoteError as error:
        return error.code


async def assert_every_place_is_free(caller: Server, called: Called) -> None:
    """As many calls as there are places run at once: all of them have to meet, or none returns."""

    async def meet() -> Any:
        return await caller.sessions.call(called.peer, "meet", {}, timeout_s=5)

    assert await asyncio.gather(*(meet() for _ in range(MAX_HANDLERS))) == ["met"] * MAX_HANDLERS


async def test_a_storm_of_calls_that_end_in_every_way_leaves_no_place_task_or_descriptor_taken():
    rng = random.Random(300)
    tasks_before = asyncio.all_tasks()
    caller = Server(identity=Identity.from_seed(bytes([9] * 32)), config=CONFIG)
    all_called = [Called(number) for number in (1, 2, 3)]
    for called in all_called:
        await called.server.start()
    descriptors = await connected_descriptors(caller, all_called)
    outcomes: Counter[str] = Counter()
    loop = asyncio.get_running_loop()

    async with TaskScope("deaths") as deaths:
        for _ in range(CALL_COUNT // 20):
            batch = [random_call(rng, caller, rng.choice(all_called)) for _ in range(20)]
            calls = [asyncio.ensure_future(outcome_of(call)) for call in batch]
            for call in rng.sample(calls, 6):
                loop.call_later(rng.uniform(0, LONGEST_S), call.cancel)
            if rng.random() < 0.4:
                dying = rng.choice(all_called)
                loop.call_later(rng.uniform(0, LONGEST_S / 2), lambda it=dying: deaths.spawn(it.die_and_come_back()))
            # One that was cancelled before it began has no outcome of its own.
            ended = await asyncio.gather(*calls, return_exceptions=True)
            outcomes.update("cancelled" if isinstance(end, asyncio.CancelledError) else end for end in ended)
        await until(lambda: not len(deaths))
    await until(lambda: all(called.running == 0 for called in all_called))
    await until(lambda: {task for task in asyncio.all_tasks() if task.get_name() != SPARE} <= tasks_before)
    for called in all_called:
        await assert_every_place_is_free(caller, called)
    await until(lambda: open_descriptors() <= descriptors)
    started_at = loop.time()
    await asyncio.gather(*(server.stop(grace=5) for server in (caller, *(called.server for called in all_called))))
    took_s = loop.time() - started_at

    assert sum(outcomes.values()) == CALL_COUNT
    assert set(outcomes) <= {"answered", "cancelled", "late", "unavailable", "failed", "busy", "deadline_exceeded"}
    assert min(outcomes[name] for name in ("answered", "cancelled", "late", "unavailable", "failed")) > 3
    assert took_s < 1.0  # no call is in flight, so the grace is not used
    assert asyncio.all_tasks() == tasks_before


async def connected_descriptors(caller: Server, all_called: list[Called]) -> int:
    """How many descriptors are open when there is one session with each."""
    for called in all_called:
        await caller.sessions.connect(called.peer)
    await until(lambda: all(called.server.sessions.peer_ids() for called in all_called))
    return open_descriptors()


# Stopping with peers connected


class OfTheirOwn(MessagePackRPCSerializer):
    """A serializer of the user's: such a client speaks the plain wire."""


async def test_a_stop_with_all_kinds_of_callers_connected_takes_no_longer_than_its_parts():
    called = Called(1)
    await called.server.start()
    called.server.endpoint("much")(much)
    others = [Server(config=CONFIG) for _ in range(8)]
    clients = [Client(port=called.server.port, timeout=5) for _ in range(4)]
    clients += [Client(port=called.server.port, serializer_class=OfTheirOwn, timeout=5) for _ in range(4)]
    strays = [await asyncio.open_connection("127.0.0.1", called.server.port) for _ in range(12)]
    for number, (_, writer) in enumerate(strays):
        writer.write((b"\xa5SYNN\x01\x01\x00\x00\x20" + bytes(30))[: 4 * number])
    calls = [
        asyncio.ensure_future(
            outcome_of(lambda other=other: other.sessions.call(called.peer, "take", TOO_LONG, timeout_s=5))
        )
        for other in others[:6]
    ]
    calls += [
        asyncio.ensure_future(outcome_of(lambda it=client: it.call("take", **TOO_LONG))) for client in clients[::2]
    ]
    unread = await one_who_reads_nothing(called.server.port)
    # Those for whom there is no place have been told so: one that comes later would be told of the stop.
    turned_away = len(calls) - MAX_HANDLERS
    await until(lambda: called.running == MAX_HANDLERS and sum(call.done() for call in calls) == turned_away)

    loop = asyncio.get_running_loop()
    started_at = loop.time()
    await called.server.stop(grace=STOP_GRACE_S)
    took_s = loop.time() - started_at
    outcomes = Counter(await asyncio.gather(*calls))
    for _, writer in (*strays, unread):
        writer.transport.abort()
    await asyncio.gather(*(other.stop(grace=0) for other in others), *(client.close() for client in clients))

    parts_s = STOP_GRACE_S + CONFIG.session.goodbye_timeout_s + CONFIG.stop_timeout_s + CONFIG.pool.stop_timeout_s
    assert STOP_GRACE_S <= took_s < parts_s + 0.5
    assert set(outcomes) <= {"unavailable", "busy"}
    assert outcomes["unavailable"] == MAX_HANDLERS
    assert called.running == 0
    await until(lambda: len(asyncio.all_tasks()) == 1)


TOO_LONG = {"seconds": 60.0}


async def much() -> bytes:
    return bytes(8 * MIB)


async def one_who_reads_nothing(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A plain caller whose answer is larger than what the system takes for it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
    payload = MessagePackRPCSerializer.serialize(RPCRequest(endpoint="much", id="1"))
    writer.write(encode_frame(payload))
    return reader, writer


@pytest.mark.parametrize("wire", ["session", "plain"])
async def test_a_server_that_stops_at_any_moment_of_a_call_leaves_its_caller_waiting_for_nothing(wire: str):
    async def ask(server: Server) -> str:
        serializer = MessagePackRPCSerializer if wire == "session" else OfTheirOwn
        async with Client(port=server.port, serializer_class=serializer, timeout=5) as client:
            return await client.call("_synapse.ping")

    outcomes: Counter[str] = Counter()
    for turn_count in range(36):
        server = Server(port=0, config=CONFIG)
        await server.start()
        asking = asyncio.ensure_future(outcome_of(lambda its=server: ask(its)))
        for _ in range(turn_count):
            await asyncio.sleep(0)
        await server.stop(grace=0)
        async with asyncio.timeout(1.0):
            outcomes[await asking] += 1
        await until(lambda: len(asyncio.all_tasks()) == 1)

    assert set(outcomes) == {"unavailable", "pong"}


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_client_closes_soon_wherever_its_dial_was_cancelled(loop: str):
    """In the turn in which the connection was there and nobody had been told, uvloop tells of no end of it."""

    async def add(a: int, b: int) -> int:
        return a + b

    async def main() -> None:
        server = Server(port=0)
        server.endpoint("add")(add)
        await server.start()
        for turns in range(300):
            client = Client(port=server.port)
            call = asyncio.ensure_future(client.call("add", 1, 2))
            for _ in range(turns % 30):
                await asyncio.sleep(0)
            call.cancel()
            async with asyncio.timeout(5):
                await client.close()
            await asyncio.wait([call])
        await server.stop()

    pytest.importorskip(loop).run(main())


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_server_that_stops_leaves_no_descriptor(loop: str):
    async def main() -> None:
        before = open_descriptors()
        for _ in range(20):
            server = Server(port=0)
            await server.start()
            await server.stop()
        await until(lambda: open_descriptors() <= before + 5)  # some are the loop's, as it needs them

    pytest.importorskip(loop).run(main())
