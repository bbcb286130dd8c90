from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulations.virtual_loop import VirtualLoop, run
from synapse_p2p.background import TaskScope
from synapse_p2p.config import MIB, SessionConfig
from synapse_p2p.context import CallContext
from synapse_p2p.exceptions import (
    ConfigError,
    HandshakeFailed,
    PeerUnavailable,
    ProtocolViolation,
    RemoteError,
    Timeout,
)
from synapse_p2p.identity import Identity, network_id_of
from synapse_p2p.messages import Items, Refusal
from synapse_p2p.protocol import channel
from synapse_p2p.protocol.channel import LENGTH_BYTES
from synapse_p2p.protocol.code import Code
from synapse_p2p.protocol.handshake import Handshake, HandshakeKeys, Parameters, Role
from synapse_p2p.protocol.wire import Call, FrameKind, encode_frame, encode_result
from synapse_p2p.runtime import Runtime
from synapse_p2p.transport import byte_budget
from synapse_p2p.transport.base import HIGH_WATER_BYTES, ByteStream, Receiver, Transport, parse_address
from synapse_p2p.transport.connection import MESSAGES_A_TURN, MESSAGES_A_TURN_BEHIND, SessionConnection
from synapse_p2p.transport.memory import MemoryTransport
from synapse_p2p.transport.tcp import TcpTransport
from synapse_p2p.uploads import Upload

NETWORK = "test"
DIALER, LISTENER = Identity.from_seed(b"d" * 32), Identity.from_seed(b"l" * 32)
PATIENCE_S = 10.0  # a test that waits longer has failed


class Handlers:
    """A CallServer of coroutine functions, and of plain ones where the name starts with an underscore."""

    def __init__(self, **functions: Callable[..., Any]) -> None:
        self._functions = functions
        self.contexts: list[CallContext] = []

    def mounted(self, endpoint: str) -> Any:
        function = self._functions.get(endpoint.replace(".", "_"))
        if function is None or not endpoint.startswith("_"):
            return None
        return lambda kwargs, context: function(**kwargs)

    def refusal_of(self, error: Exception, name: str) -> Refusal:
        logging.getLogger("synapse_p2p").error("the result of %s cannot be sent: %s", name, error)
        return Refusal(Code.INTERNAL_ERROR, f"the result of {name} cannot be sent")

    async def serve_session_call(self, call: Call, context: CallContext) -> Any:
        self.contexts.append(context)
        assert all(isinstance(call.args[place], Upload) for place in call.options.get("uploads", ()))
        return await self._functions[call.endpoint](*call.args, **call.kwargs)


class Tap:
    """A stream that keeps what was written to it."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self.writes: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.writes.append(data)
        self._stream.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class End(SessionConnection):
    """One end of a session, with its stream and what it wrote there."""

    stream: ByteStream
    writes: list[bytes]
    writes_at_once: list[int]  # how many were made while bytes were received, each time

    def connection_made(self, stream: ByteStream) -> None:
        tap: Any = Tap(stream)
        self.stream, self.writes, self.writes_at_once = tap, tap.writes, []
        super().connection_made(tap)

    def data_received(self, data: bytes) -> None:
        before = len(self.writes)
        super().data_received(data)
        self.writes_at_once.append(len(self.writes) - before)


@dataclass
class Owner:
    """Makes the ends of one side."""

    role: Role
    server: Handlers
    scope: TaskScope
    config: SessionConfig
    told: list[str]

    def end(self) -> End:
        loop = asyncio.get_running_loop()
        rng = random.Random(self.role.value)
        identity = DIALER if self.role is Role.DIALER else LISTENER

        def make_handshake(peer_address: str) -> Handshake:
            parameters = Parameters("node", 9000, bytes(8), "test", 0, seen=peer_address)
            return Handshake(
                self.role,
                identity=identity,
                network_id=network_id_of(NETWORK),
                keys=HandshakeKeys(rng.randbytes(32), rng.randbytes(32)),
                parameters=parameters,
            )

        return End(
            make_handshake,
            is_dialer=self.role is Role.DIALER,
            server=self.server,
            scope=self.scope,
            runtime=Runtime(now=loop.time, unix_now=loop.time, rng=rng, token_bytes=rng.randbytes),
            config=self.config,
            network=NETWORK,
            on_established=lambda _: self.told.append("established"),
            on_closed=lambda _: self.told.append("closed"),
        )


@contextlib.asynccontextmanager
async def owner(
    role: Role, server: Handlers | None = None, config: SessionConfig | None = None
) -> AsyncIterator[Owner]:
    async with TaskScope(f"the {role.name.lower()}") as scope:
        yield Owner(role, server or Handlers(), scope, config or SessionConfig(), [])


@contextlib.asynccontextmanager
async def session(
    transport: Transport,
    *,
    dialer: Handlers | None = None,
    listener: Handlers | None = None,
    dialer_config: SessionConfig | None = None,
    listener_config: SessionConfig | None = None,
) -> AsyncIterator[tuple[End, End]]:
    """The dialer's and the listener's end of an established session; afterwards nothing of it is left."""
    async with (
        owner(Role.DIALER, dialer, dialer_config) as dialing,
        owner(Role.LISTENER, listener, listener_config) as listening,
    ):
        accepted: asyncio.Queue[End] = asyncio.Queue()

        def accept() -> End:
            end = listening.end()
            accepted.put_nowait(end)
            return end

        door = await transport.listen("127.0.0.1", 0, accept)
        ours = dialing.end()
        await transport.connect(*parse_address(door.addresses[0]), ours)
        theirs = await accepted.get()
        await asyncio.gather(ours.wait_established(), theirs.wait_established())
        door.close()
        try:
            yield ours, theirs
        finally:
            for end in (ours, theirs):
                end.abort()
                await end.wait_closed()
            assert dialing.told == listening.told == ["established", "closed"]


class FakeStream:
    """A stream into nowhere; nothing of what is written leaves if `is_stuck`."""

    local_address = "127.0.0.1:1"
    peer_address = "127.0.0.1:2"

    def __init__(self, receiver: Receiver, *, is_stuck: bool = False) -> None:
        self.written = b""
        self.aborted_at: float | None = None
        self._receiver = receiver
        self._is_stuck = is_stuck
        self._is_closing = False

    def write(self, data: bytes) -> None:
        self.written += data

    def unsent_bytes(self) -> int:
        return len(self.written) if self._is_stuck else 0

    def close(self) -> None:
        if not self._is_closing and not self._is_stuck:
            asyncio.get_running_loop().call_soon(self._receiver.connection_lost, None)
        self._is_closing = True

    def abort(self) -> None:
        if self.aborted_at is None and (self._is_stuck or not self._is_closing):
            asyncio.get_running_loop().call_soon(self._receiver.connection_lost, None)
            self.aborted_at = asyncio.get_running_loop().time()
        self._is_closing = True

    def is_closing(self) -> bool:
        return self._is_closing

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def set_receiver(self, receiver: Receiver) -> None: ...


class Deaf:
    """A Receiver that does nothing."""

    def connection_made(self, stream: ByteStream) -> None: ...

    def data_received(self, data: bytes) -> None: ...

    def eof_received(self) -> bool | None: ...

    def connection_lost(self, exc: Exception | None) -> None: ...

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...


def virtually(main: Coroutine[Any, Any, Any]) -> Any:
    """Run in virtual time; at the end no task is left."""

    async def checked() -> Any:
        result = await main
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        assert len(loop.pending_tasks()) == 1
        return result

    return run(checked())


@pytest.fixture(params=[TcpTransport, MemoryTransport])
def transport(request: pytest.FixtureRequest) -> Transport:
    return request.param()


@pytest.fixture(autouse=True)
def nothing_is_left_and_nobody_complained(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    gc.collect()  # a socket or a future that was forgotten says so now, and that is an error here
    records = [*caplog.get_records("call"), *caplog.records]
    assert [record for record in records if record.levelno > logging.INFO and record.exc_info is not None] == []
    assert [record for record in records if record.levelno > logging.INFO and record.name == "asyncio"] == []


async def echo(value: Any = None) -> Any:
    return value


async def for_ever() -> None:
    await asyncio.Event().wait()


# Calls


async def test_both_ends_call_over_one_session(transport: Transport):
    async with session(transport, dialer=Handlers(who=lambda: echo("d")), listener=Handlers(who=lambda: echo("l"))) as (
        ours,
        theirs,
    ):
        answers = await asyncio.gather(
            ours.call("who", [], {}, timeout_s=5), theirs.call("who", [], {}, timeout_s=None)
        )

        assert answers == ["l", "d"]
        assert (ours.peer.node_id, theirs.peer.node_id) == (LISTENER.node_id, DIALER.node_id)


async def test_a_handler_learns_who_calls_and_from_where(transport: Transport):
    handlers = Handlers(echo=echo)

    async with session(transport, listener=handlers) as (ours, theirs):
        await ours.call("echo", [], {}, timeout_s=None)
        await ours.call("echo", [], {}, timeout_s=5)

        unlimited, limited = handlers.contexts
        assert unlimited == CallContext(
            peer=DIALER.node_id, address=theirs.address, listen_address="127.0.0.1:9000", network=NETWORK
        )
        assert limited.deadline is not None
        assert replace(limited, deadline=None) == unlimited


async def test_answers_come_in_the_order_in_which_handlers_end(transport: Transport):
    gate, ended = asyncio.Event(), []

    async def wait() -> str:
        await gate.wait()
        return "waited"

    async def open_gate() -> str:
        gate.set()
        return "opened"

    async with session(transport, listener=Handlers(wait=wait, open_gate=open_gate)) as (ours, _):
        calls = [asyncio.create_task(ours.call(name, [], {}, timeout_s=5)) for name in ("wait", "open_gate")]
        for call in calls:
            call.add_done_callback(lambda done: ended.append(done.result()))
        await asyncio.gather(*calls)

        assert ended == ["opened", "waited"]


@pytest.mark.parametrize("max_calls_served", [64, 256])
async def test_two_hundred_calls_are_in_flight_at_once(transport: Transport, max_calls_served: int):
    running = most_running = 0
    gate = asyncio.Event()

    async def wait(number: int) -> int:
        nonlocal running, most_running
        running += 1
        most_running = max(most_running, running)
        await gate.wait()
        running -= 1
        return number

    config = SessionConfig(max_calls_served=max_calls_served)
    async with session(transport, listener=Handlers(wait=wait), listener_config=config) as (ours, theirs):
        calls = [asyncio.create_task(ours.call("wait", [number], {}, timeout_s=5)) for number in range(200)]
        await until(lambda: theirs.calls_in_flight == 200 and running == min(200, max_calls_served))
        assert ours.calls_in_flight == 200
        gate.set()

        assert await asyncio.gather(*calls) == list(range(200))
        assert most_running == min(200, max_calls_served)


async def test_calls_and_answers_of_one_turn_share_one_record_and_one_write(transport: Transport):
    async with session(transport, listener=Handlers(echo=echo)) as (ours, theirs):

        async def call_64_times() -> None:
            await asyncio.gather(*(ours.call("echo", [number], {}, timeout_s=5) for number in range(64)))

        await call_64_times()  # the first of these is alone, and leaves at once
        ours.writes.clear()
        theirs.writes.clear()
        await call_64_times()

        for writes in (ours.writes, theirs.writes):
            [data] = writes
            assert len(data) == LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "big")


async def test_a_call_that_is_alone_is_written_before_anything_else_runs(transport: Transport):
    async with session(transport, listener=Handlers(echo=echo)) as (ours, _):
        for _ in range(3):
            ours.writes.clear()
            call = asyncio.create_task(ours.call("echo", [], {}, timeout_s=5))
            await asyncio.sleep(0)

            assert len(ours.writes) == 1
            await call


async def test_a_cancelled_call_cancels_its_handler_and_no_other(transport: Transport):
    started, cancelled, gate = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def wait() -> str:
        try:
            started.set()
            await gate.wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return "done"

    async with session(transport, listener=Handlers(wait=wait)) as (ours, theirs):
        call = asyncio.create_task(ours.call("wait", [], {}, timeout_s=5))
        await started.wait()
        started.clear()
        other = asyncio.create_task(ours.call("wait", [], {}, timeout_s=5))
        await started.wait()
        call.cancel()
        await asyncio.wait_for(cancelled.wait(), PATIENCE_S)
        gate.set()

        assert await other == "done"
        assert call.cancelled()
        assert (ours.calls_in_flight, theirs.calls_in_flight) == (0, 0)


def test_a_deadline_ends_the_call_at_both_ends():
    cancelled_at: list[float] = []

    async def wait() -> None:
        try:
            await for_ever()
        finally:
            cancelled_at.append(asyncio.get_running_loop().time())

    async def main() -> float:
        async with session(MemoryTransport(), listener=Handlers(wait=wait)) as (ours, theirs):
            with pytest.raises(Timeout):
                await ours.call("wait", [], {}, timeout_s=3)
            assert (ours.calls_in_flight, theirs.calls_in_flight) == (0, 0)
            return asyncio.get_running_loop().time()

    assert virtually(main()) == pytest.approx(3)
    assert cancelled_at == pytest.approx([3])


def test_an_answer_after_the_deadline_hurts_nobody():
    async def slow() -> str:
        with contextlib.suppress(asyncio.CancelledError):
            await for_ever()
        return "late"

    async def main() -> str:
        async with session(MemoryTransport(delay_s=0.1), listener=Handlers(slow=slow, echo=echo)) as (ours, _):
            with pytest.raises(Timeout):
                await ours.call("slow", [], {}, timeout_s=1)
            return await ours.call("echo", ["alive"], {}, timeout_s=1)

    assert virtually(main()) == "alive"


CYCLE: list[Any] = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    "value",
    [object(), 2**64, "\ud800", CYCLE, b"x" * (4 * MIB + 1)],
    ids=["object", "2**64", "surrogate", "cycle", "4 MiB"],
)
async def test_arguments_that_cannot_travel_fail_here_and_the_session_lives(transport: Transport, value: Any):
    async with session(transport, listener=Handlers(echo=echo)) as (ours, theirs):
        with pytest.raises(ConfigError, match="echo"):
            await ours.call("echo", [value], {}, timeout_s=5)

        assert await ours.call("echo", ["alive"], {}, timeout_s=5) == "alive"
        assert (ours.calls_in_flight, theirs.calls_in_flight) == (0, 0)


@pytest.mark.parametrize("value", [object(), 2**64, "\ud800", CYCLE], ids=["object", "2**64", "surrogate", "cycle"])
async def test_a_result_that_cannot_travel_is_an_internal_error_and_logged_once(
    transport: Transport, value: Any, caplog: pytest.LogCaptureFixture
):
    async with session(transport, listener=Handlers(bad=lambda: echo(value), echo=echo)) as (ours, _):
        with pytest.raises(RemoteError) as raised:
            await ours.call("bad", [], {}, timeout_s=5)

        assert await ours.call("echo", ["alive"], {}, timeout_s=5) == "alive"
    assert raised.value.code == "internal_error"
    assert [record.levelname for record in caplog.records if record.levelno > logging.DEBUG] == ["ERROR"]


async def test_a_result_that_is_too_large_says_how_large(transport: Transport):
    async with session(transport, listener=Handlers(big=lambda: echo(b"x" * (4 * MIB + 1)))) as (ours, _):
        with pytest.raises(RemoteError, match=str(4 * MIB)) as raised:
            await ours.call("big", [], {}, timeout_s=5)

        assert raised.value.code == "too_large"


async def test_the_largest_argument_travels_there_and_back(transport: Transport):
    data = random.Random(4).randbytes(4 * MIB - 100)

    async with session(transport, listener=Handlers(echo=echo)) as (ours, _):
        assert await ours.call("echo", [data], {}, timeout_s=10) == data


@pytest.mark.parametrize("code", [code for code in Code if code not in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED)])
@pytest.mark.parametrize("endpoint", ["fail", "_fail"])
async def test_a_failure_arrives_with_its_code_and_details(endpoint: str, code: Code):
    error = RemoteError(code, "text", details={"reason": "why", "reference": "0a", "more": [1]})

    async def fail() -> None:
        raise error

    def fail_at_once() -> None:
        raise error

    async with session(MemoryTransport(), listener=Handlers(fail=fail, _fail=fail_at_once)) as (ours, _):
        with pytest.raises(RemoteError) as raised:
            await ours.call(endpoint, [], {}, timeout_s=5)

    got = raised.value
    assert (got.code, got.message, got.reason, got.reference, got.details) == (code, "text", "why", "0a", {"more": [1]})


async def test_a_code_nobody_knows_reads_as_internal_error():
    async def fail() -> None:
        raise RemoteError("teapot", "short and stout")

    async with session(MemoryTransport(), listener=Handlers(fail=fail)) as (ours, _):
        with pytest.raises(RemoteError, match="short") as raised:
            await ours.call("fail", [], {}, timeout_s=5)

    assert raised.value.code == "internal_error"


@pytest.mark.parametrize("details", [{"value": object()}, {"value": b"x" * (4 * MIB)}], ids=["object", "4 MiB"])
async def test_a_failure_whose_details_cannot_travel_still_ends_the_call(details: dict[str, Any]):
    async def fail() -> None:
        raise RemoteError("failed", "text", details=details)

    async with session(MemoryTransport(), listener=Handlers(fail=fail)) as (ours, _):
        with pytest.raises(RemoteError) as raised:
            await ours.call("fail", [], {}, timeout_s=5)

    assert raised.value.code == "failed"


# The end


async def test_a_peer_that_dies_ends_calls_in_flight_and_their_handlers(transport: Transport):
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        try:
            started.set()
            await for_ever()
        finally:
            cancelled.set()

    async with session(transport, listener=Handlers(wait=wait)) as (ours, theirs):
        call = asyncio.create_task(ours.call("wait", [], {}, timeout_s=5))
        await started.wait()
        theirs.abort()
        with pytest.raises(PeerUnavailable) as raised:
            await call
        await asyncio.wait_for(cancelled.wait(), PATIENCE_S)
        await ours.wait_closed()

        assert raised.value.may_have_started
        assert not ours.is_open
        with pytest.raises(PeerUnavailable) as raised:
            await ours.call("wait", [], {}, timeout_s=5)
        assert not raised.value.may_have_started


async def test_a_request_that_is_still_queued_when_the_connection_dies_has_not_started(transport: Transport):
    async with session(transport, listener=Handlers(wait=for_ever)) as (ours, _):
        calls = [asyncio.create_task(ours.call("wait", [], {}, timeout_s=5)) for _ in range(2)]
        await asyncio.sleep(0)  # the first is written at once, the second waits for the end of this turn
        ours.stream.abort()
        assert not ours.is_open
        calls.append(asyncio.create_task(ours.call("_dht.late", [], {}, timeout_s=5)))
        results = await asyncio.gather(*calls, return_exceptions=True)

        assert [type(result) for result in results] == [PeerUnavailable] * 3
        assert [result.may_have_started for result in results] == [True, False, False]


async def test_a_goodbye_says_whether_a_call_had_started(transport: Transport):
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        try:
            started.set()
            await for_ever()
        finally:
            cancelled.set()

    async with session(transport, listener=Handlers(wait=wait, echo=echo)) as (ours, theirs):
        running = asyncio.create_task(ours.call("wait", [], {}, timeout_s=5))
        await started.wait()
        crossing = asyncio.create_task(ours.call("echo", [], {}, timeout_s=5))
        theirs.close("closing")
        results = await asyncio.gather(running, crossing, return_exceptions=True)
        await asyncio.wait_for(cancelled.wait(), PATIENCE_S)
        await ours.wait_closed()
        await theirs.wait_closed()

        assert [type(result) for result in results] == [PeerUnavailable] * 2
        assert [result.may_have_started for result in results] == [True, False]
        assert ours.failure is None
        assert theirs.failure is None


async def test_closing_ends_our_own_calls(transport: Transport):
    async with session(transport, listener=Handlers(wait=for_ever)) as (ours, theirs):
        call = asyncio.create_task(ours.call("wait", [], {}, timeout_s=5))
        await asyncio.sleep(0)
        ours.close()
        with pytest.raises(PeerUnavailable):
            await call
        await theirs.wait_closed()

        assert theirs.calls_in_flight == 0


async def test_a_retired_session_finishes_its_calls_and_starts_none(transport: Transport):
    started, gate = asyncio.Event(), asyncio.Event()

    async def wait() -> str:
        started.set()
        await gate.wait()
        return "finished"

    async with session(transport, listener=Handlers(wait=wait), dialer=Handlers(wait=wait)) as (ours, theirs):
        call = asyncio.create_task(ours.call("wait", [], {}, timeout_s=5))
        await started.wait()
        theirs.retire("duplicate")
        with pytest.raises(PeerUnavailable) as refused_there:
            await ours.call("wait", [], {}, timeout_s=5)
        with pytest.raises(PeerUnavailable) as refused_here:
            await theirs.call("wait", [], {}, timeout_s=5)
        is_open = ours.is_open
        gate.set()
        answer = await call
        await ours.wait_closed()

        assert answer == "finished"
        assert not is_open
        assert not refused_there.value.may_have_started
        assert not refused_here.value.may_have_started


async def test_a_retired_session_closes_when_its_last_call_is_cancelled(transport: Transport):
    started = asyncio.Event()

    async def wait() -> None:
        started.set()
        await for_ever()

    async with session(transport, listener=Handlers(wait=wait)) as (ours, theirs):
        call = asyncio.create_task(ours.call("wait", [], {}, timeout_s=5))
        await started.wait()
        ours.retire("duplicate")
        call.cancel()
        await asyncio.wait_for(ours.wait_closed(), PATIENCE_S)
        await theirs.wait_closed()

        assert call.cancelled()
        assert (ours.failure, theirs.failure) == (None, None)


async def test_a_retired_session_without_calls_closes_at_once(transport: Transport):
    async with session(transport) as (ours, theirs):
        theirs.retire("duplicate")
        await ours.wait_closed()
        await theirs.wait_closed()

        assert ours.failure is None


async def test_wait_idle_waits_for_calls_of_both_directions(transport: Transport):
    gate = asyncio.Event()

    async def wait() -> None:
        await gate.wait()

    async with session(transport, listener=Handlers(wait=wait), dialer=Handlers(wait=wait)) as (ours, theirs):
        await ours.wait_idle()
        calls = [asyncio.create_task(end.call("wait", [], {}, timeout_s=5)) for end in (ours, theirs)]
        await asyncio.sleep(0)
        idle = [asyncio.create_task(end.wait_idle()) for end in (ours, ours, theirs)]
        await asyncio.sleep(0)
        was_idle = any(task.done() for task in idle)
        gate.set()
        await asyncio.gather(*idle)

        assert not was_idle
        assert (ours.calls_in_flight, theirs.calls_in_flight) == (0, 0)
        await asyncio.gather(*calls)


async def test_wait_idle_ends_with_the_connection(transport: Transport):
    async with session(transport, listener=Handlers(wait=for_ever)) as (ours, theirs):
        call = asyncio.create_task(ours.call("wait", [], {}, timeout_s=5))
        await asyncio.sleep(0)
        idle = asyncio.create_task(ours.wait_idle())
        await asyncio.sleep(0)
        theirs.abort()
        await asyncio.wait_for(idle, PATIENCE_S)

        with pytest.raises(PeerUnavailable):
            await call


async def test_a_handler_that_closes_its_own_session_runs_to_its_end(transport: Transport):
    ended = asyncio.Event()

    async def close() -> None:
        theirs.close()
        await theirs.wait_closed()
        ended.set()

    async with session(transport, listener=Handlers(close=close)) as (ours, theirs):
        with pytest.raises(PeerUnavailable):
            await ours.call("close", [], {}, timeout_s=5)

        await asyncio.wait_for(ended.wait(), PATIENCE_S)


async def test_a_session_outlives_its_keys(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(channel, "RECORDS_PER_KEY", 100)

    async with session(MemoryTransport(), listener=Handlers(echo=echo)) as (ours, theirs):
        for number in range(1_000):
            assert await ours.call("echo", [number], {}, timeout_s=5) == number

        assert ours.is_open and theirs.is_open


def test_a_silent_peer_is_asked_and_then_given_up():
    async def main() -> tuple[float, float]:
        loop = asyncio.get_running_loop()
        async with session(MemoryTransport(), listener=Handlers(wait=for_ever)) as (ours, theirs):
            started_at = loop.time()
            theirs.stream.set_receiver(Deaf())
            with pytest.raises(PeerUnavailable) as raised:
                await ours.call("wait", [], {}, timeout_s=None)
            given_up_after_s = loop.time() - started_at
            await ours.wait_closed()
            assert raised.value.may_have_started
            theirs.connection_lost(None)  # it was told of nothing since it is deaf
            return given_up_after_s, loop.time() - started_at

    given_up_after_s, closed_after_s = virtually(main())

    config = SessionConfig()
    assert given_up_after_s == pytest.approx(config.idle_ping_s + config.ping_timeout_s)
    assert closed_after_s <= given_up_after_s + config.goodbye_timeout_s


def test_an_idle_session_with_a_peer_that_is_there_stays():
    async def main() -> bool:
        async with session(MemoryTransport(delay_s=0.1)) as (ours, theirs):
            await asyncio.sleep(3_600)
            return ours.is_open and theirs.is_open

    assert virtually(main())


# A peer that reads too little


def test_results_nobody_reads_stay_out_of_the_stream():
    async def big(number: int) -> bytes:
        await asyncio.sleep(number / 100)
        return b"x" * 200_000

    async def main() -> int:
        async with session(MemoryTransport(), listener=Handlers(big=big)) as (ours, theirs):
            ours.stream.pause_reading()
            calls = [asyncio.create_task(ours.call("big", [number], {}, timeout_s=None)) for number in range(60)]
            await asyncio.sleep(5)
            unsent_bytes = theirs.stream.unsent_bytes()
            ours.stream.resume_reading()
            answers = await asyncio.gather(*calls)
            assert [len(answer) for answer in answers] == [200_000] * 60
            return unsent_bytes

    assert HIGH_WATER_BYTES < virtually(main()) < HIGH_WATER_BYTES + 210_000


def test_calls_of_a_peer_that_reads_nothing_start_when_it_reads():
    started = 0

    async def large() -> bytes:
        nonlocal started
        started += 1
        return b"x" * 200_000

    async def main() -> int:
        async with session(MemoryTransport(), listener=Handlers(large=large)) as (ours, _):
            ours.stream.pause_reading()
            calls = [asyncio.create_task(ours.call("large", [], {}, timeout_s=None)) for _ in range(60)]
            await asyncio.sleep(5)
            started_unread = started
            ours.stream.resume_reading()
            assert [len(answer) for answer in await asyncio.gather(*calls)] == [200_000] * 60
            return started_unread

    assert virtually(main()) <= 3  # a queue of 256 KiB is full with the second


def test_calls_that_wait_until_the_peer_reads_take_no_task_and_keep_their_order():
    begun: list[int] = []

    async def large(number: int) -> bytes:
        begun.append(number)
        if number % 7 == 3:
            await asyncio.sleep(0)  # and so keeps its task, and who comes next has one of its own
        return b"x" * 200_000

    async def main() -> int:
        async with session(MemoryTransport(), listener=Handlers(large=large)) as (ours, _):
            ours.stream.pause_reading()
            calls = [asyncio.create_task(ours.call("large", [number], {}, timeout_s=None)) for number in range(60)]
            await asyncio.sleep(5)
            others = asyncio.all_tasks() - {*calls, asyncio.current_task()}
            ours.stream.resume_reading()
            assert [len(answer) for answer in await asyncio.gather(*calls)] == [200_000] * 60
            return len(others)

    assert virtually(main()) <= 2  # the spare ones of both ends
    assert begun == list(range(60))


def test_calls_that_begin_when_the_peer_reads_again_make_place_for_others_and_the_session_idle():
    async def large() -> bytes:
        return b"x" * 400_000

    async def main() -> tuple[float, float]:
        loop = asyncio.get_running_loop()
        config = SessionConfig(max_calls_served=2)
        listener = Handlers(echo=echo, large=large)
        async with session(MemoryTransport(), listener=listener, listener_config=config) as (ours, theirs):
            await ours.call("echo", [0], {}, timeout_s=None)  # a task is kept from now on
            ours.stream.pause_reading()
            calls = [asyncio.create_task(ours.call("large", [], {}, timeout_s=None))]
            await asyncio.sleep(1)
            calls += [asyncio.create_task(ours.call("echo", [number], {}, timeout_s=None)) for number in range(6)]
            await asyncio.sleep(1)
            began_at = loop.time()
            ours.stream.resume_reading()
            theirs_idle = asyncio.create_task(theirs.wait_idle())
            assert (await asyncio.gather(*calls))[1:] == list(range(6))
            answered_s = loop.time() - began_at
            await theirs_idle
            return answered_s, loop.time() - began_at

    answered_s, idle_s = virtually(main())
    assert answered_s <= idle_s < 1


def test_a_call_withdrawn_while_it_waits_until_the_peer_reads_is_forgotten():
    begun: list[int] = []

    async def large(number: int) -> bytes:
        begun.append(number)
        return b"x" * 200_000

    async def main() -> int:
        async with session(MemoryTransport(), listener=Handlers(large=large)) as (ours, theirs):
            ours.stream.pause_reading()
            calls = [asyncio.create_task(ours.call("large", [number], {}, timeout_s=None)) for number in range(2)]
            await asyncio.sleep(1)
            for number in range(2, 500):
                withdrawn = asyncio.create_task(ours.call("large", [number], {}, timeout_s=None))
                await asyncio.sleep(0.01)
                withdrawn.cancel()
            await asyncio.sleep(1)
            assert theirs._served is not None
            held = len(theirs._served.arrived)
            ours.stream.resume_reading()
            await asyncio.gather(*calls)
            await asyncio.sleep(1)
            return held

    assert virtually(main()) == 0
    assert begun == [0, 1]


def test_results_that_nobody_reads_are_dropped_when_the_process_holds_too_much(monkeypatch: pytest.MonkeyPatch):
    budget = byte_budget.ByteBudget(max_bytes=2_000_000)
    monkeypatch.setattr(byte_budget, "PROCESS", budget)

    async def large() -> bytes:
        await asyncio.sleep(1)
        return b"x" * 200_000

    async def main() -> tuple[int, list[Any]]:
        async with session(MemoryTransport(), listener=Handlers(large=large)) as (ours, theirs):
            ours.stream.pause_reading()
            calls = [asyncio.create_task(ours.call("large", [], {}, timeout_s=None)) for _ in range(60)]
            await asyncio.sleep(5)
            assert theirs._session is not None
            held_bytes = theirs._session.outbox.queued_bytes
            ours.stream.resume_reading()
            return held_bytes, await asyncio.gather(*calls, return_exceptions=True)

    held_bytes, answers = virtually(main())

    assert 1_500_000 < held_bytes < 2_500_000
    dropped = [answer for answer in answers if isinstance(answer, RemoteError)]
    assert {answer.code for answer in dropped} == {Code.BUSY}
    assert 40 < len(dropped) < 60
    assert all(len(answer) == 200_000 for answer in answers if answer not in dropped)
    assert not budget.is_over


def test_a_peer_that_never_reads_is_cut_off_after_the_stall():
    async def main() -> float:
        loop = asyncio.get_running_loop()
        async with session(MemoryTransport(), listener=Handlers(big=lambda: echo(b"x" * MIB))) as (ours, theirs):
            ours.stream.pause_reading()
            started_at = loop.time()
            call = asyncio.create_task(ours.call("big", [], {}, timeout_s=None))
            await theirs.wait_closed()
            with pytest.raises(PeerUnavailable):
                await call
            assert isinstance(theirs.failure, PeerUnavailable)
            return loop.time() - started_at

    assert virtually(main()) == pytest.approx(SessionConfig().write_stall_s, abs=0.1)


def test_calls_wait_their_turn_while_the_peer_reads_too_slowly():
    async def main() -> None:
        async with session(MemoryTransport(), listener=Handlers(echo=echo)) as (ours, theirs):
            theirs.stream.pause_reading()
            first = asyncio.create_task(ours.call("echo", [b"x" * MIB], {}, timeout_s=None))
            await asyncio.sleep(0)
            unsent_bytes = ours.stream.unsent_bytes()
            waiting = [asyncio.create_task(ours.call("echo", [b"y" * MIB], {}, timeout_s=None)) for _ in range(5)]
            with pytest.raises(Timeout, match="not started"):
                await ours.call("echo", [], {}, timeout_s=2)
            assert ours.stream.unsent_bytes() == unsent_bytes
            theirs.stream.resume_reading()
            assert [len(await call) for call in (first, *waiting)] == [MIB] * 6

    virtually(main())


async def read_a_little(reader: End) -> None:
    """As over a slow link: now and then there is room again, for a moment."""
    while True:
        reader.stream.pause_reading()
        await asyncio.sleep(1)
        reader.stream.resume_reading()
        await asyncio.sleep(0)


def test_streams_that_wait_for_room_take_turns():
    sent = [0] * 5

    async def items(number: int) -> AsyncIterator[bytes]:
        while True:
            sent[number] += 1
            yield b"x" * 16_384

    async def take(items: AsyncIterator[bytes]) -> None:
        async for _ in items:
            pass

    async def main() -> None:
        async with session(MemoryTransport(), listener=Handlers(take=take)) as (ours, theirs):
            slow = asyncio.create_task(read_a_little(theirs))
            uploads = [
                asyncio.create_task(ours.call_uploading("take", [None], {}, uploads={0: items(number)}, timeout_s=None))
                for number in range(len(sent))
            ]
            await asyncio.sleep(300)
            for task in (slow, *uploads):
                task.cancel()
            await asyncio.gather(slow, *uploads, return_exceptions=True)

    virtually(main())

    assert min(sent) > 100
    assert min(sent) > 0.7 * max(sent)


def test_a_call_beside_an_upload_that_never_leaves_room_is_next():
    async def take(items: AsyncIterator[bytes]) -> None:
        async for _ in items:
            await asyncio.sleep(0)

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 16_384

    async def main() -> float:
        async with session(MemoryTransport(), listener=Handlers(echo=echo, take=take)) as (ours, theirs):
            upload = asyncio.create_task(
                ours.call_uploading("take", [None], {}, uploads={0: endless()}, timeout_s=None)
            )
            slow = asyncio.create_task(read_a_little(theirs))
            await asyncio.sleep(10)
            began_at = asyncio.get_running_loop().time()
            assert await ours.call("echo", [b"x"], {}, timeout_s=60) == b"x"
            took_s = asyncio.get_running_loop().time() - began_at
            for task in (slow, upload):
                task.cancel()
            await asyncio.gather(slow, upload, return_exceptions=True)
            return took_s

    assert virtually(main()) <= 3


def test_a_call_that_waits_for_room_when_the_peer_dies_has_not_started():
    async def main() -> None:
        async with session(MemoryTransport(), listener=Handlers(echo=echo)) as (ours, theirs):
            theirs.stream.pause_reading()
            calls = []
            for size_bytes in (MIB, 1):
                calls.append(asyncio.create_task(ours.call("echo", [b"x" * size_bytes], {}, timeout_s=None)))
                await asyncio.sleep(0)
            theirs.abort()
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert [result.may_have_started for result in results] == [True, False]

    virtually(main())


def test_an_overlay_call_does_not_wait_behind_others():
    async def main() -> str:
        transport = MemoryTransport()
        async with session(transport, listener=Handlers(echo=echo, _dht_ping=lambda: "pong")) as (ours, theirs):
            theirs.stream.pause_reading()
            big = asyncio.create_task(ours.call("echo", [b"x" * MIB], {}, timeout_s=None))
            await asyncio.sleep(0)
            size_before_bytes = ours.stream.unsent_bytes()
            ping = asyncio.create_task(ours.call("_dht.ping", [], {}, timeout_s=None))
            await asyncio.sleep(0.001)
            assert ours.stream.unsent_bytes() > size_before_bytes
            theirs.stream.resume_reading()
            await big
            return await ping

    assert virtually(main()) == "pong"


def test_a_peer_that_asks_and_never_reads_is_read_no_more_past_a_bound():
    config = SessionConfig(max_unsent_bytes=600_000)

    async def main() -> int:
        listener = Handlers(_dht_big=lambda: b"x" * 10_000)
        async with session(MemoryTransport(), listener=listener, listener_config=config) as (ours, theirs):
            ours.stream.pause_reading()
            calls = []
            for _ in range(300):
                calls.append(asyncio.create_task(ours.call("_dht.big", [], {}, timeout_s=None)))
                await asyncio.sleep(0.001)
            unsent_bytes = theirs.stream.unsent_bytes()
            ours.stream.resume_reading()
            assert [len(answer) for answer in await asyncio.gather(*calls)] == [10_000] * 300
            return unsent_bytes

    assert HIGH_WATER_BYTES < virtually(main()) < 620_000


async def test_long_answers_that_were_made_leave_before_the_goodbye():
    async with session(MemoryTransport(), listener=Handlers(big=big)) as (ours, theirs):
        ours.stream.pause_reading()
        calls = [asyncio.create_task(ours.call("big", [], {}, timeout_s=PATIENCE_S)) for _ in range(3)]
        await until(lambda: theirs.stream.unsent_bytes() > HIGH_WATER_BYTES)

        theirs.close("stopping")
        ours.stream.resume_reading()
        answers = await asyncio.gather(*calls, return_exceptions=True)

        assert answers[0] == bytes(3 * MIB)
        assert all(isinstance(answer, PeerUnavailable) or answer == bytes(3 * MIB) for answer in answers)


async def test_an_overlay_call_is_answered_while_the_peer_reads_a_long_result_slowly():
    """What is written stays little: the rest of a result waits where control frames overtake it."""
    async with session(MemoryTransport(), listener=Handlers(big=big, _dht_ping=lambda: "pong")) as (ours, theirs):
        ours.stream.pause_reading()
        long = asyncio.create_task(ours.call("big", [], {}, timeout_s=PATIENCE_S))
        await until(lambda: theirs.stream.unsent_bytes() > HIGH_WATER_BYTES)

        assert theirs.stream.unsent_bytes() < 2 * HIGH_WATER_BYTES
        ours.stream.resume_reading()
        assert await ours.call("_dht.ping", [], {}, timeout_s=PATIENCE_S) == "pong"
        assert not long.done()
        assert await long == bytes(3 * MIB)


async def test_a_handler_whose_task_is_cancelled_by_its_own_program_is_answered_for(transport: Transport):
    async def confused() -> None:
        for task in asyncio.all_tasks():
            if task.get_name() == "confused":
                task.cancel()
        await asyncio.sleep(PATIENCE_S)

    async with session(transport, listener=Handlers(confused=confused)) as (ours, theirs):
        with pytest.raises(RemoteError) as failed:
            await ours.call("confused", [], {}, timeout_s=PATIENCE_S)
        assert failed.value.code == "internal_error"
        assert theirs.calls_served == 0


async def test_a_peer_that_says_much_at_once_leaves_the_loop_to_others(transport: Transport):
    looked_at = 0
    most_in_a_turn = 0

    def note() -> None:
        nonlocal looked_at
        looked_at += 1

    async def watch() -> None:
        nonlocal most_in_a_turn
        while True:
            before = looked_at
            await asyncio.sleep(0)
            most_in_a_turn = max(most_in_a_turn, looked_at - before)

    async with session(transport, listener=Handlers(_dht_note=note)) as (ours, theirs):
        watching = asyncio.create_task(watch())
        calls = [asyncio.create_task(ours.call("_dht.note", [], {}, timeout_s=PATIENCE_S)) for _ in range(1000)]
        await asyncio.gather(*calls)
        watching.cancel()
        assert await ours.call("_dht.note", [], {}, timeout_s=PATIENCE_S) is None
        assert not theirs._is_reading_paused

    assert looked_at == 1001
    assert most_in_a_turn <= MESSAGES_A_TURN + MESSAGES_A_TURN_BEHIND  # the last of one reading, the first of the next


async def test_while_a_flood_lasts_no_reading_of_it_is_looked_at_at_once(transport: Transport):
    looked_at, most_in_turns = 0, []

    def note(padding: bytes) -> None:
        nonlocal looked_at
        looked_at += 1

    async def watch() -> None:
        while True:
            before = looked_at
            await asyncio.sleep(0)
            most_in_turns.append(looked_at - before)

    async with session(transport, listener=Handlers(_dht_note=note)) as (ours, _):
        watching = asyncio.create_task(watch())
        flood = {"padding": bytes(1000)}
        calls = [asyncio.create_task(ours.call("_dht.note", [], flood, timeout_s=PATIENCE_S)) for _ in range(2000)]
        await asyncio.gather(*calls)
        watching.cancel()

    assert looked_at == 2000
    assert sum(count > 2 * MESSAGES_A_TURN_BEHIND for count in most_in_turns) <= 5


async def test_what_a_peer_said_before_it_died_is_looked_at(transport: Transport):
    looked_at: list[int] = []

    async with session(transport, listener=Handlers(_dht_note=lambda value: looked_at.append(value))) as (ours, theirs):
        count = MESSAGES_A_TURN + 2 * MESSAGES_A_TURN_BEHIND
        calls = [asyncio.create_task(ours.call("_dht.note", [], {"value": n}, timeout_s=None)) for n in range(count)]
        await until(lambda: looked_at)
        ours.abort()
        await theirs.wait_closed()
        await asyncio.gather(*calls, return_exceptions=True)

    assert looked_at == list(range(count))


@pytest.mark.parametrize("end", ["its end", "the session's"])
async def test_the_place_of_a_stream_that_has_ended_goes_to_who_stands_in_line(end: str):
    config = SessionConfig(max_calls_served=1, max_calls_queued=1)
    may_end = asyncio.Event()

    async def rows() -> AsyncGenerator[int, None]:
        yield 1
        await may_end.wait()

    async def tail() -> Items:
        return Items(rows())

    listener = Handlers(tail=tail, echo=echo)
    async with session(MemoryTransport(), listener=listener, dialer_config=config) as (ours, theirs):
        streams: list[Any] = [await ours.open_stream("tail", [], {}, uploads={}, timeout_s=None) for _ in range(2)]
        in_line: list[asyncio.Task[Any]] = [
            asyncio.create_task(ours.call("echo", [1], {}, timeout_s=None)),
            *(asyncio.create_task(ours.open_stream("tail", [], {}, uploads={}, timeout_s=None)) for _ in range(3)),
        ]
        await asyncio.sleep(0)

        if end == "its end":
            may_end.set()
        else:
            theirs.abort()
        async with asyncio.timeout(PATIENCE_S):
            outcomes = await asyncio.gather(*in_line, return_exceptions=True)

        if end == "its end":
            assert outcomes[0] == 1
            streams += outcomes[1:]
        else:
            assert [type(outcome) for outcome in outcomes] == [PeerUnavailable] * 4
        for stream in streams:
            stream.close()


async def test_uploads_that_nobody_takes_stop_the_reading_and_let_it_go_on():
    config = SessionConfig(max_unread_bytes=200_000)
    may_read = asyncio.Event()

    async def lazy(rows: AsyncIterator[bytes]) -> int:
        await may_read.wait()
        return sum([len(row) async for row in rows])

    async def rows() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield bytes(40_000)

    async with session(MemoryTransport(), listener=Handlers(lazy=lazy), listener_config=config) as (ours, theirs):
        calls = [
            asyncio.create_task(ours.call_uploading("lazy", [None], {}, uploads={0: rows()}, timeout_s=PATIENCE_S))
            for _ in range(8)
        ]
        await until(lambda: theirs._is_reading_paused)
        assert theirs._session is not None
        assert theirs._session.streams.unread_bytes < 200_000 + HIGH_WATER_BYTES

        may_read.set()

        assert await asyncio.gather(*calls) == [400_000] * 8
        assert theirs._session.held_bytes == 0


async def test_uploads_that_a_handler_leaves_unread_let_the_reading_go_on():
    config = SessionConfig(max_unread_bytes=200_000)
    may_end = asyncio.Event()

    async def lazy(rows: AsyncIterator[bytes]) -> None:
        await may_end.wait()

    async def rows() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield bytes(40_000)

    listener = Handlers(lazy=lazy, echo=echo)
    async with session(MemoryTransport(), listener=listener, listener_config=config) as (ours, theirs):
        calls = [
            asyncio.create_task(ours.call_uploading("lazy", [None], {}, uploads={0: rows()}, timeout_s=PATIENCE_S))
            for _ in range(8)
        ]
        await until(lambda: theirs._is_reading_paused)

        may_end.set()

        await asyncio.gather(*calls)
        assert await ours.call("echo", ["still here"], {}, timeout_s=PATIENCE_S) == "still here"


@pytest.mark.parametrize("is_ended", [False, True], ids=["that goes on", "at its end"])
async def test_a_stream_that_is_closed_unread_lets_the_reading_go_on(is_ended: bool):
    config = SessionConfig(max_unread_bytes=20_000)

    async def rows() -> AsyncGenerator[bytes, None]:
        yield bytes(30_000)
        if not is_ended:
            await asyncio.sleep(PATIENCE_S)

    async def tail() -> Items:
        return Items(rows())

    listener = Handlers(tail=tail, echo=echo)
    async with session(MemoryTransport(), listener=listener, dialer_config=config) as (ours, _):
        stream = await ours.open_stream("tail", [], {}, uploads={}, timeout_s=PATIENCE_S)
        await until(lambda: ours._is_reading_paused and stream.done() is is_ended)

        stream.close()

        assert await ours.call("echo", ["still here"], {}, timeout_s=PATIENCE_S) == "still here"


async def test_a_long_message_counts_for_the_process_until_it_is_whole(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(byte_budget, "PROCESS", byte_budget.ByteBudget(max_bytes=4 * MIB))
    listener = Handlers(echo=lambda data: echo(len(data)))

    async with (
        session(MemoryTransport(), listener=listener) as (first, _),
        session(MemoryTransport(), listener=listener) as (second, _),
    ):
        for ours in (first, second):
            assert await ours.call("echo", [bytes(3 * MIB)], {}, timeout_s=PATIENCE_S) == 3 * MIB


async def test_a_process_that_holds_too_much_reads_on_when_it_does_no_more(monkeypatch: pytest.MonkeyPatch):
    budget = byte_budget.ByteBudget(max_bytes=100_000)
    monkeypatch.setattr(byte_budget, "PROCESS", budget)
    may_read = asyncio.Event()

    async def lazy(rows: AsyncIterator[bytes]) -> int:
        await may_read.wait()
        return sum([len(row) async for row in rows])

    async def rows() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield bytes(40_000)

    async with session(MemoryTransport(), listener=Handlers(lazy=lazy)) as (ours, theirs):
        calls = [
            asyncio.create_task(ours.call_uploading("lazy", [None], {}, uploads={0: rows()}, timeout_s=PATIENCE_S))
            for _ in range(12)
        ]
        await until(lambda: budget.is_over and theirs._is_reading_paused)

        may_read.set()

        assert await asyncio.gather(*calls) == [400_000] * 12
        assert not budget.is_over


def test_sessions_that_wait_for_each_others_bytes_do_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch):
    budget = byte_budget.ByteBudget(max_bytes=4 * MIB)
    monkeypatch.setattr(byte_budget, "PROCESS", budget)
    patient, config = SessionConfig(write_stall_s=1000.0), SessionConfig(write_stall_s=5.0)
    listener = Handlers(echo=lambda data: echo(len(data)))

    async def main() -> tuple[list[Any], float]:
        loop = asyncio.get_running_loop()
        async with contextlib.AsyncExitStack() as stack:
            ends = [
                await stack.enter_async_context(
                    session(
                        MemoryTransport(),
                        dialer=Handlers(echo=echo),
                        listener=listener,
                        dialer_config=patient,
                        listener_config=config,
                    )
                )
                for _ in range(3)
            ]
            started_at = loop.time()
            calls = [asyncio.create_task(ours.call("echo", [bytes(3 * MIB)], {}, timeout_s=None)) for ours, _ in ends]
            await until(lambda: all(theirs._is_reading_paused for _, theirs in ends))
            for _, theirs in ends:
                with pytest.raises(Timeout):  # its deadline is looked at before the end of that patience
                    await theirs.call("echo", [], {}, timeout_s=1.0)
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            return outcomes, loop.time() - started_at

    outcomes, took_s = virtually(main())

    assert took_s < 15.0
    assert not budget.is_over
    refused = [outcome for outcome in outcomes if isinstance(outcome, PeerUnavailable)]
    assert refused
    assert not any(error.may_have_started for error in refused)
    assert [outcome for outcome in outcomes if outcome not in refused] == [3 * MIB] * (3 - len(refused))


def test_a_peer_that_is_not_read_is_not_silent():
    config = SessionConfig(max_unread_bytes=100_000, idle_ping_s=5.0, ping_timeout_s=5.0)

    async def main() -> list[int]:
        async def lazy(rows: AsyncIterator[bytes]) -> int:
            await asyncio.sleep(100)
            return len([row async for row in rows])

        async def rows() -> AsyncIterator[bytes]:
            for _ in range(3):
                yield bytes(25_000)  # all of them too few for the stall of a writer

        async with session(MemoryTransport(), listener=Handlers(lazy=lazy), listener_config=config) as (ours, theirs):
            uploads = [ours.call_uploading("lazy", [None], {}, uploads={0: rows()}, timeout_s=None) for _ in range(3)]
            counts = await asyncio.gather(*uploads)
            assert theirs.failure is None
            return counts

    assert virtually(main()) == [3, 3, 3]


async def big() -> bytes:
    return bytes(3 * MIB)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - there is nothing to wait for but time
            await asyncio.sleep(0)


# What is no peer


async def test_before_the_handshake_is_over_no_call_can_be_made():
    async with owner(Role.DIALER) as dialing:
        end = dialing.end()
        end.connection_made(FakeStream(end))

        with pytest.raises(PeerUnavailable, match="no session") as raised:
            await end.call("echo", [], {}, timeout_s=5)

        assert not raised.value.may_have_started
        end.abort()
        await end.wait_closed()


def recorded_handshake() -> list[bytes]:
    """What a dialer sends in a handshake that succeeds; with keys that are always the same it can be played again."""

    async def main() -> list[bytes]:
        async with owner(Role.DIALER) as dialing, owner(Role.LISTENER) as listening:
            dialer, listener = dialing.end(), listening.end()
            there, here = FakeStream(dialer), FakeStream(listener)
            dialer.connection_made(there)
            listener.connection_made(here)
            first = there.written
            listener.data_received(first)
            dialer.data_received(here.written)
            second = there.written[len(first) :]
            listener.data_received(second)
            assert listener.is_established
            dialer.abort()
            listener.abort()
            await dialer.wait_closed()
            await listener.wait_closed()
            return [first, second]

    return run(main())


RECORDED = recorded_handshake()
HANDSHAKE = b"".join(RECORDED)


async def outcome_of(*pieces: bytes) -> Exception | None:
    """How a listener's connection ends, or None if it is established, when a peer sends these pieces and no more."""
    async with owner(Role.LISTENER) as listening:
        end = listening.end()
        stream = FakeStream(end)
        end.connection_made(stream)
        for piece in pieces:
            if not stream.is_closing():
                end.data_received(piece)
        if not stream.is_closing():
            end.eof_received()
        await end.wait_closed()
        assert listening.told == (["established", "closed"] if end.is_established else ["closed"])
        return end.failure


async def test_a_handshake_arrives_in_one_piece_or_byte_by_byte():
    assert await outcome_of(HANDSHAKE) is None
    assert await outcome_of(*RECORDED) is None
    assert await outcome_of(*(HANDSHAKE[index : index + 1] for index in range(len(HANDSHAKE)))) is None


async def test_a_handshake_cut_anywhere_only_closes():
    for size_bytes in range(len(HANDSHAKE)):
        failure = await outcome_of(HANDSHAKE[:size_bytes])

        assert isinstance(failure, HandshakeFailed), size_bytes
        assert failure.reason == "closed", size_bytes


async def test_a_handshake_with_any_byte_changed_proves_nothing():
    for index in range(len(HANDSHAKE)):
        changed = bytearray(HANDSHAKE)
        changed[index] ^= 0x01

        assert isinstance(await outcome_of(bytes(changed)), HandshakeFailed), index


@settings(max_examples=150, deadline=None)
@given(kept=st.integers(min_value=0, max_value=len(HANDSHAKE)), garbage=st.binary(min_size=1, max_size=200))
def test_garbage_at_any_point_only_closes(kept: int, garbage: bytes):
    async def main() -> Exception | None:
        return await outcome_of(HANDSHAKE[:kept], garbage)

    failure = run(main())

    sent = HANDSHAKE[:kept] + garbage  # now and then garbage is, byte for byte, what was to come
    if not HANDSHAKE.startswith(sent) and not sent.startswith(HANDSHAKE):
        assert isinstance(failure, HandshakeFailed)
    assert failure is None or isinstance(failure, ProtocolViolation)


async def test_garbage_in_an_open_session_ends_that_session_alone(transport: Transport):
    handlers = Handlers(wait=for_ever, echo=echo)

    async with (
        session(transport, listener=handlers) as (ours, theirs),
        session(transport, listener=handlers) as (
            other,
            _,
        ),
    ):
        call = asyncio.create_task(ours.call("wait", [], {}, timeout_s=5))
        await asyncio.sleep(0)
        theirs.data_received(b"\x00\x20" + b"garbage " * 4)
        with pytest.raises(PeerUnavailable):
            await call
        await theirs.wait_closed()

        assert isinstance(theirs.failure, ProtocolViolation)
        assert await other.call("echo", ["alive"], {}, timeout_s=5) == "alive"


async def test_who_is_told_of_an_answer_that_came_before_garbage_can_call_no_more(transport: Transport):
    async with session(transport, listener=Handlers(wait=for_ever)) as (ours, theirs):
        seen: list[Any] = []

        async def call_twice() -> None:
            seen.append(await ours.call("wait", [], {}, timeout_s=5))
            seen.append(ours.is_open)
            with pytest.raises(PeerUnavailable) as raised:
                await ours.call("wait", [], {}, timeout_s=5)
            seen.append(raised.value.may_have_started)

        calling = asyncio.create_task(call_twice())
        await until(lambda: ours.calls_asked)
        answer_and_garbage = encode_frame(FrameKind.TASK, encode_result(2, "good")) + encode_frame(
            FrameKind.TASK, b"\xc1"
        )
        assert theirs._channel is not None
        # From the loop, as a transport does: within a task the one that waits would go on a turn later.
        asyncio.get_running_loop().call_soon(ours.data_received, theirs._channel.seal(answer_and_garbage))
        await calling

        assert seen == ["good", False, False]
        assert isinstance(ours.failure, ProtocolViolation)


@pytest.mark.parametrize("role", Role)
def test_one_who_says_nothing_is_not_waited_for(role: Role):
    async def main() -> tuple[float, str]:
        async with owner(role) as side:
            end = side.end()
            end.connection_made(FakeStream(end))
            with pytest.raises(HandshakeFailed) as raised:
                await end.wait_established()
            await end.wait_closed()
            return asyncio.get_running_loop().time(), raised.value.reason

    assert virtually(main()) == (pytest.approx(SessionConfig().handshake_timeout_s), "timeout")


def test_one_who_dribbles_is_not_waited_for_either():
    async def main() -> float:
        async with owner(Role.LISTENER) as side:
            end = side.end()
            stream = FakeStream(end)
            end.connection_made(stream)
            for index in range(len(HANDSHAKE)):
                if stream.is_closing():
                    break
                end.data_received(HANDSHAKE[index : index + 1])
                await asyncio.sleep(0.1)
            await end.wait_closed()
            return asyncio.get_running_loop().time()

    assert virtually(main()) <= SessionConfig().handshake_timeout_s + 0.1


@pytest.mark.parametrize("ending", ["eof_received", "close", "garbage"])
def test_a_peer_that_reads_nothing_does_not_keep_a_connection_that_ends(ending: str):
    async def main() -> float | None:
        async with owner(Role.LISTENER) as side:
            end = side.end()
            stream = FakeStream(end, is_stuck=True)
            end.connection_made(stream)
            end.data_received(RECORDED[0])
            match ending:
                case "garbage":
                    end.data_received(b"\xff" * 100)
                case _:
                    getattr(end, ending)()
            await end.wait_closed()
            return stream.aborted_at

    assert virtually(main()) == SessionConfig().goodbye_timeout_s


# The tasks of handlers


async def at_once(end: End, endpoint: str, *firsts: Any, timeout_s: float | None = PATIENCE_S) -> list[Any]:
    """The ends of calls with these arguments, all in one record."""
    calls = (end.call(endpoint, [first], {}, timeout_s=timeout_s) for first in firsts)
    # The first of all leaves alone, so that is one whose answer nobody looks at.
    _, *ends = await asyncio.gather(end.call("echo", [], {}, timeout_s=None), *calls, return_exceptions=True)
    return ends


async def test_calls_that_wait_for_nothing_share_a_task_and_no_context(transport: Transport):
    whose: contextvars.ContextVar[int | None] = contextvars.ContextVar("whose", default=None)
    tasks: set[asyncio.Task[Any] | None] = set()

    async def mark(number: int) -> int | None:
        tasks.add(asyncio.current_task())
        found = whose.get()
        whose.set(number)
        return found

    async with session(transport, listener=Handlers(echo=echo, mark=mark)) as (ours, _):
        await ours.call("mark", [0], {}, timeout_s=PATIENCE_S)
        assert await at_once(ours, "mark", *range(20)) == [None] * 20
        assert await ours.call("mark", [0], {}, timeout_s=PATIENCE_S) is None
        assert len(tasks) == 1


async def test_what_waits_for_nothing_is_answered_in_the_turn_in_which_it_came_and_so_is_the_answer_taken(
    transport: Transport,
):
    async def name() -> str:
        task = asyncio.current_task()
        assert task is not None
        return task.get_name()

    async def call_thrice() -> list[str]:
        return [await ours.call("name", [], {}, timeout_s=PATIENCE_S) for _ in range(3)]

    async with session(transport, listener=Handlers(name=name)) as (ours, theirs):
        await asyncio.ensure_future(call_thrice())  # the first of all gets a task of its own
        tasks = asyncio.all_tasks()
        ours.writes_at_once.clear()
        theirs.writes_at_once.clear()

        assert await asyncio.ensure_future(call_thrice()) == ["name"] * 3

        assert theirs.writes_at_once == [1, 1, 1]
        assert ours.writes_at_once == [1, 1, 0]  # each answer has the next call behind it
        assert asyncio.all_tasks() == tasks


@pytest.mark.parametrize("how", ["returns", "raises", "hangs up", "stops"])
async def test_what_a_task_does_within_the_turn_of_its_answer_harms_nothing(transport: Transport, how: str):
    async def call(number: int) -> int:
        answer = await ours.call("echo", [number], {}, timeout_s=PATIENCE_S)
        if number == 2:
            if how == "raises":
                raise RuntimeError(how)
            if how == "hangs up":
                ours.close()
            elif how == "stops":
                ours.abort()
        return answer

    async with session(transport, listener=Handlers(echo=echo)) as (ours, theirs):
        await ours.call("echo", ["first"], {}, timeout_s=PATIENCE_S)

        ends = await asyncio.gather(*map(call, range(6)), return_exceptions=True)

        # The first leaves alone, and all others in one record, as do their answers: these were here when one was taken.
        assert ends[:2] == [0, 1] and ends[3:] == [3, 4, 5]
        assert str(ends[2]) == ("raises" if how == "raises" else "2")
        if how in ("returns", "raises"):
            assert await ours.call("echo", ["alive"], {}, timeout_s=PATIENCE_S) == "alive"
        else:
            await theirs.wait_closed()
        assert ours.calls_in_flight == theirs.calls_in_flight == 0


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_where_a_handler_ends_the_program_and_the_loop_goes_on_so_do_the_calls(error: type[BaseException]):
    async def end_the_program() -> None:
        raise error

    loop = asyncio.new_event_loop()
    with contextlib.closing(loop):
        made = session(MemoryTransport(), listener=Handlers(echo=echo, end=end_the_program))
        ours, theirs = loop.run_until_complete(made.__aenter__())
        loop.run_until_complete(ours.call("echo", ["first"], {}, timeout_s=5))
        ends = [loop.create_task(ours.call(name, [], {}, timeout_s=5)) for name in ("echo", "end", "echo")]

        with pytest.raises(error):
            loop.run_until_complete(asyncio.wait(ends))

        loop.run_until_complete(asyncio.wait(ends))
        torn = ends[1].exception()
        assert isinstance(torn, RemoteError) and torn.message == "end was torn down"
        assert [end.result() for end in ends[::2]] == [None, None]
        assert loop.run_until_complete(ours.call("echo", ["alive"], {}, timeout_s=5)) == "alive"
        assert theirs.calls_served == ours.calls_in_flight == 0
        loop.run_until_complete(made.__aexit__(None, None, None))


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_where_who_got_an_answer_ends_the_program_and_the_loop_goes_on_the_other_answers_are_taken(
    error: type[BaseException],
):
    async def call_and_end() -> None:
        await ours.call("echo", [], {}, timeout_s=5)
        raise error

    loop = asyncio.new_event_loop()
    with contextlib.closing(loop):
        made = session(MemoryTransport(), listener=Handlers(echo=echo))
        ours, theirs = loop.run_until_complete(made.__aenter__())
        loop.run_until_complete(loop.create_task(ours.call("echo", ["first"], {}, timeout_s=5)))
        calls = [loop.create_task(ours.call("echo", [number], {}, timeout_s=5)) for number in range(2)]
        ending = loop.create_task(call_and_end())
        calls += [loop.create_task(ours.call("echo", [number], {}, timeout_s=5)) for number in range(2, 5)]

        with pytest.raises(error):
            loop.run_until_complete(asyncio.wait(calls))

        done, _ = loop.run_until_complete(asyncio.wait(calls, timeout=PATIENCE_S))
        assert sorted(call.result() for call in done) == list(range(5))
        assert isinstance(ending.exception(), error)
        assert loop.run_until_complete(ours.call("echo", ["alive"], {}, timeout_s=5)) == "alive"
        assert theirs.calls_served == ours.calls_in_flight == 0
        loop.run_until_complete(made.__aexit__(None, None, None))


async def test_the_task_of_a_handler_has_its_name(transport: Transport):
    async def named() -> str:
        task = asyncio.current_task()
        assert task is not None
        return task.get_name()

    async with session(transport, listener=Handlers(one=named, other=named)) as (ours, _):
        names = ["one", "one", "other", "one", "other", "other"]
        assert await asyncio.gather(*(ours.call(name, [], {}, timeout_s=PATIENCE_S) for name in names)) == names


async def test_a_call_that_waits_has_its_task_and_context_to_itself_and_holds_nobody_up(transport: Transport):
    gate = asyncio.Event()
    whose: contextvars.ContextVar[int | None] = contextvars.ContextVar("whose", default=None)
    tasks: dict[int, asyncio.Task[Any] | None] = {}

    async def wait(number: int) -> int | None:
        tasks[number] = asyncio.current_task()
        whose.set(number)
        if number % 3 == 0:
            await gate.wait()
            assert asyncio.current_task() is tasks[number]
            await asyncio.sleep(0)
        elif number == 19:
            gate.set()  # the last: where it did not run, nobody that waits would go on
        return whose.get()

    async with session(transport, listener=Handlers(echo=echo, wait=wait)) as (ours, theirs):
        assert await at_once(ours, "wait", *range(20)) == list(range(20))
        assert len({tasks[number] for number in range(0, 20, 3)}) == 7
        assert theirs.calls_served == 0


async def test_calls_that_all_wait_begin_in_the_same_turn_but_for_the_first(transport: Transport):
    turn = 0
    began_in: list[int] = []

    async def wait(_: int) -> None:
        began_in.append(turn)
        await asyncio.sleep(0.05)

    async def count() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    async with TaskScope() as scope, session(transport, listener=Handlers(echo=echo, wait=wait)) as (ours, _):
        scope.spawn(count())
        for _ in range(2):
            began_in.clear()
            await at_once(ours, "wait", *range(40))
            assert len(began_in) == 40
            assert max(began_in) - min(began_in) <= 2


async def test_time_limits_and_cancels_of_one_handler_are_no_others(transport: Transport):
    async def run(how: str) -> str:
        task = asyncio.current_task()
        assert task is not None and not task.cancelling()
        if how == "limited":
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    await for_ever()
        elif how == "cancels itself":
            task.cancel()
        elif how == "is cancelled within":
            raise asyncio.CancelledError
        elif how == "waits":
            await asyncio.sleep(0.02)
        return how

    async with session(transport, listener=Handlers(echo=echo, run=run)) as (ours, theirs):
        hows = ("limited", "fine", "cancels itself", "waits", "fine", "cancels itself", "fine", "limited", "waits")
        assert await at_once(ours, "run", *hows) == list(hows)
        [torn, fine] = await at_once(ours, "run", "is cancelled within", "fine")
        assert isinstance(torn, RemoteError) and torn.code == "internal_error" and fine == "fine"
        assert theirs.calls_served == 0


async def test_a_call_that_is_withdrawn_before_it_begins_never_runs(transport: Transport):
    began: list[str] = []

    async def begin(name: str) -> None:
        began.append(name)

    async with session(transport, listener=Handlers(begin=begin)) as (ours, theirs):
        theirs.stream.pause_reading()
        call = asyncio.create_task(ours.call("begin", ["withdrawn"], {}, timeout_s=PATIENCE_S))
        await until(lambda: bool(ours.calls_asked))
        call.cancel()
        await asyncio.wait([call])

        theirs.stream.resume_reading()  # the CALL and its CANCEL in one piece
        await ours.call("begin", ["wanted"], {}, timeout_s=PATIENCE_S)

        assert began == ["wanted"]
        assert theirs.calls_served == 0


async def test_who_stops_all_tasks_before_one_begins_stops_no_later_call_and_its_caller_is_told():
    async with session(MemoryTransport(), listener=Handlers(echo=echo)) as (ours, theirs):
        call = asyncio.create_task(ours.call("echo", ["lost"], {}, timeout_s=5))
        mine = {asyncio.current_task(), call}
        begun: list[asyncio.Task[Any]] = []
        for _ in range(100):
            if begun := list(asyncio.all_tasks() - mine):
                break
            await asyncio.sleep(0)
        begun[0].cancel()

        with pytest.raises(RemoteError) as lost:
            await call
        assert (lost.value.code, lost.value.message) == ("internal_error", "echo was torn down")
        assert await ours.call("echo", ["served"], {}, timeout_s=5) == "served"
        assert theirs.calls_served == 0


async def test_what_was_answered_leaves_before_a_call_that_waits_long():
    async def answer(number: int) -> int:
        if number == 3:
            await for_ever()
        return number

    async with session(MemoryTransport(), listener=Handlers(echo=echo, answer=answer)) as (ours, _):
        ends = await at_once(ours, "answer", 1, 2, 3, 4, timeout_s=0.5)

        assert ends[:2] == [1, 2] and isinstance(ends[2], Timeout) and ends[3] == 4
