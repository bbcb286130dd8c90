"""What a hostile or broken plain caller can send, entry by entry, over real TCP.

Each entry gets one clear error or a close and one line of log without its payload, and the listener keeps serving. The
caps of a listener are the same for every address: no caller is exempt from any of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import re
import socket
import struct
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import msgpack
import pytest

from synapse_p2p import Client, RemoteError, Server, Timeout
from synapse_p2p.config import MIB, ServerConfig
from synapse_p2p.messages import RPCError, RPCRequest, RPCResponse
from synapse_p2p.protocol.plain import PlainExchange, PlainLimits, Reply, Serve, encode_frame
from synapse_p2p.serializers import MessagePackRPCSerializer
from synapse_p2p.transport.plain_call import PlainCaller
from synapse_p2p.transport.tcp import TcpTransport

CANARY = "canary-7f3a"  # a payload: it must never be seen in a log
SHORT = ServerConfig(header_timeout_s=0.2, body_grace_s=0.2)  # for callers whose deadline is awaited

# What decoding one frame may take. Times are CPU, with five-fold slack for a busy machine.
MAX_REFUSED_BYTES, MAX_REFUSED_S = 8 * MIB, 0.020 * 5
# A frame that stays within the budget of elements is served: what the worst of them take, measured, and 10 % on top.
MAX_SERVED_BYTES, MAX_SERVED_S = 26 * MIB, 0.040 * 5


def fields(**changes: Any) -> dict[str, Any]:
    return {"type": "request", "id": "7", "endpoint": "_synapse.ping", "args": [], "kwargs": {}} | changes


PING = encode_frame(msgpack.packb(fields()))
PONG = RPCResponse(id="7", ok=True, result="pong")


class Caller:
    """A plain caller that sends what it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        with contextlib.suppress(ConnectionError):
            await self.writer.drain()

    async def answer(self) -> bytes:
        """All bytes until the server closes; empty if it closed without a word."""
        async with asyncio.timeout(10):
            try:
                return await self.reader.read()
            except ConnectionResetError:
                return b""

    def reset(self) -> None:
        """Leave without the end that a caller may also send while it waits for its answer."""
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()

    async def leave(self) -> None:
        self.writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


@contextlib.asynccontextmanager
async def calling(server: Server, **options: Any) -> AsyncIterator[Caller]:
    reader, writer = await asyncio.open_connection(server.address, server.port, **options)
    caller = Caller(reader, writer)
    try:
        yield caller
    finally:
        await caller.leave()


@contextlib.asynccontextmanager
async def serving(server: Server) -> AsyncIterator[Server]:
    """A server that runs, and that still serves a good caller after whatever happened in between."""
    await server.start()
    try:
        yield server
        good = PlainCaller(
            server.address,
            server.port,
            serializer_class=MessagePackRPCSerializer,
            max_upload_size=2**20,
            max_download_size=2**20,
        )
        assert await good.call(RPCRequest(endpoint="_synapse.ping", id="1"), timeout_s=10) == "pong"
    finally:
        await server.stop(grace=0)


async def answer_to(server: Server, data: bytes) -> bytes:
    """All that the server answers to these bytes and their end."""
    async with calling(server) as caller:
        await caller.send(data)
        caller.writer.write_eof()
        return await caller.answer()


def response_in(answer: bytes) -> RPCResponse:
    assert int.from_bytes(answer[:4], "big") == len(answer) - 4
    response = MessagePackRPCSerializer.deserialize(answer[4:])
    assert isinstance(response, RPCResponse)
    return response


def error_in(answer: bytes) -> RPCError:
    error = response_in(answer).error
    assert error is not None
    return error


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG)
    return caplog


def our_lines(log: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in log.records if record.name.startswith("synapse_p2p")]


class WatchedTransport(TcpTransport):
    """TCP that tells of every piece that a listener received, so that a caller can wait until one has arrived."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: asyncio.Queue[bytes] = asyncio.Queue()

    async def listen(self, host: str, port: int, accept: Callable[[], Any]) -> Any:
        def accept_watched() -> Any:
            receiver = accept()
            receive = receiver.data_received

            def data_received(data: bytes) -> None:
                receive(data)
                self.pieces.put_nowait(data)

            receiver.data_received = data_received
            return receiver

        return await super().listen(host, port, accept_watched)


# Frames that are late, short or cut


async def test_a_connection_without_a_byte_is_closed_without_a_word(log: pytest.LogCaptureFixture):
    async with serving(Server(port=0)) as server:
        answer = await answer_to(server, b"")

    assert answer == b""
    assert len(our_lines(log)) == 1


@pytest.mark.parametrize(
    "sent",
    [b"", b"\x00\x00", b"\x00\x00\x00", (100).to_bytes(4, "big"), (100).to_bytes(4, "big") + b"half"],
    ids=["nothing", "half a header", "most of a header", "body withheld", "half a body"],
)
async def test_a_caller_that_stays_and_sends_no_more_is_cut_off(sent: bytes, log: pytest.LogCaptureFixture):
    async with serving(Server(port=0, config=SHORT)) as server, calling(server) as caller:
        await caller.send(sent)

        assert await caller.answer() == b""
        assert [line for line in our_lines(log) if "took too long" in line] == our_lines(log)
        assert len(our_lines(log)) == 1


@pytest.mark.parametrize("cuts", [[1, 2, 3, 4], range(1, len(PING))], ids=["the header", "header and body"])
async def test_a_request_that_arrives_byte_by_byte_is_served(cuts: Any):
    transport = WatchedTransport()

    async with serving(Server(port=0, transport=transport)) as server, calling(server) as caller:
        for start, end in zip([0, *cuts], [*cuts, len(PING)], strict=True):
            await caller.send(PING[start:end])
            assert await transport.pieces.get() == PING[start:end]

        assert response_in(await caller.answer()) == PONG


def request_of(size_bytes: int) -> bytes:
    """A frame whose payload, a call of `size`, is of just this many bytes."""
    empty = msgpack.packb(fields(endpoint="size", args=[b""]))
    argument = bytes(size_bytes - len(empty) - 3)  # the length of a long argument takes three bytes more
    frame = encode_frame(msgpack.packb(fields(endpoint="size", args=[argument])))
    assert len(frame) == 4 + size_bytes
    return frame


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((0).to_bytes(4, "big"), "not a valid MsgPack message: ValueError"),
        ((1).to_bytes(4, "big") + b"\xc0", "a message is a map"),
        (request_of(MIB + 1), f"frame too large: {MIB + 1} > {MIB}"),
        ((2**32 - 1).to_bytes(4, "big"), f"frame too large: {2**32 - 1} > {MIB}"),
        (b"\x00\x00\x00", "incomplete frame"),
        (PING[:-1], "incomplete frame"),
    ],
    ids=["0", "1", "limit + 1", "2^32 - 1", "header cut", "body cut"],
)
async def test_a_length_that_cannot_be_is_answered_with_the_reason(
    data: bytes, message: str, log: pytest.LogCaptureFixture
):
    async with serving(Server(port=0)) as server:
        answer = await answer_to(server, data)

    assert error_in(answer) == RPCError("bad_request", message)
    assert len(our_lines(log)) == 1


async def test_a_request_at_the_limit_is_served():
    server = Server(port=0)

    @server.endpoint("size")
    async def size(data: bytes) -> int:
        return len(data)

    async with serving(server):
        response = response_in(await answer_to(server, request_of(MIB)))

    assert response.ok
    assert MIB - 100 < response.result < MIB


# Frames that are no request


NO_REQUESTS = {
    "not MsgPack": (b"\xc1" + CANARY.encode(), "not a valid MsgPack message: .*"),
    "text": (b"GET / HTTP/1.1\r\nX: " + CANARY.encode(), "not a valid MsgPack message: .*"),
    "a value after the message": (msgpack.packb(fields()) + msgpack.packb(CANARY), "not a valid MsgPack message: .*"),
    "half a map": (msgpack.packb(fields(args=[CANARY]))[:-5], "not a valid MsgPack message: .*"),
    "a list": (msgpack.packb([CANARY]), "a message is a map"),
    "a string": (msgpack.packb(CANARY), "a message is a map"),
    "nil": (msgpack.packb(None), "a message is a map"),
    "an unknown key": (msgpack.packb(fields(surplus=CANARY)), "unknown request fields: 'surplus'"),
    "many unknown keys": (
        msgpack.packb(fields(**{f"key-{number}": CANARY for number in range(1000)})),
        "unknown request fields: ('key-[0-9]', ){3}'key-[0-9]'",
    ),
    "an unknown type": (msgpack.packb(fields(type="event", args=[CANARY])), "unknown message type: 'event'"),
    "a type that is a number": (msgpack.packb(fields(type=1, args=[CANARY])), "unknown message type: 1"),
    "an endpoint that is a number": (msgpack.packb(fields(endpoint=7, args=[CANARY])), "endpoint is text .*"),
    "no endpoint": (msgpack.packb({"args": [CANARY]}), "endpoint is text .*"),
    "an empty endpoint": (msgpack.packb(fields(endpoint="", args=[CANARY])), "endpoint is text .*"),
    "args that are a map": (msgpack.packb(fields(args={"a": CANARY})), "args is a list"),
    "args that are text": (msgpack.packb(fields(args=CANARY)), "args is a list"),
    "kwargs that are a list": (msgpack.packb(fields(kwargs=[CANARY])), "kwargs is a map .*"),
    "kwargs with bytes for names": (msgpack.packb(fields(kwargs={b"a": CANARY})), "kwargs is a map .*"),
    "kwargs with numbers for names": (msgpack.packb(fields(kwargs={1: CANARY})), "not a valid MsgPack message: .*"),
    "kwargs with nil for a name": (msgpack.packb(fields(kwargs={None: CANARY})), "not a valid MsgPack message: .*"),
    "an id that is a list": (msgpack.packb(fields(id=[CANARY])), "id is text"),
    "a response": (
        msgpack.packb({"type": "response", "id": "7", "ok": True, "result": CANARY, "error": None}),
        "expected request message",
    ),
    "depth 2,000": (b"\x81\xa4args" + b"\x91" * 2000 + msgpack.packb(CANARY), "not a valid MsgPack message: .*"),
    "depth 33": (b"\x81\xa4args" + b"\x91" * 32 + msgpack.packb(CANARY), "nested deeper than 32"),
    "invalid UTF-8": (
        b"\x82\xa8endpoint\xa4\xff\xfe\xfd\xfc\xa4args\x91" + msgpack.packb(CANARY),
        "not a valid MsgPack message: UnicodeDecodeError",
    ),
    "an extension type": (b"\x81\xa8endpoint\xd4\x05x", "not a valid MsgPack message: .*"),
    "a list that promises 2^32 - 1 items": (b"\x81\xa4args\xdd\xff\xff\xff\xff", "not a valid MsgPack message: .*"),
    "an endpoint name of 1 MiB": (
        msgpack.packb({"endpoint": (CANARY * (MIB // len(CANARY)))[: MIB - 15]}),
        "endpoint is text of 1 to 256 characters",
    ),
}


@pytest.mark.parametrize(("payload", "message"), NO_REQUESTS.values(), ids=NO_REQUESTS.keys())
async def test_what_is_no_request_gets_one_clear_error(payload: bytes, message: str, log: pytest.LogCaptureFixture):
    async with serving(Server(port=0)) as server:
        error = error_in(await answer_to(server, encode_frame(payload)))

    assert error.code == "bad_request"
    assert re.fullmatch(message, error.message)
    assert len(our_lines(log)) == 1
    assert CANARY not in log.text


# Frames that grow when they are decoded

HEAD = b"\x82\xa8endpoint\xadunknown.thing\xa4args\xdd"
ROOM_BYTES = MIB - len(HEAD) - 4
ELEMENT_BUDGET = 262_144 - 20  # what a request with one list of arguments leaves for its items
MAP_BUDGET = 65_536 - 2


def frame_of(item: bytes, count: int) -> bytes:
    """A request whose argument is `count` times an item: a frame of at most 1 MiB."""
    payload = HEAD + count.to_bytes(4, "big") + item * count
    assert len(payload) <= MIB
    return encode_frame(payload)


def frame_of_names(count: int) -> bytes:
    """A request with `count` named arguments, all nil."""
    names = (bytes((0x20 + i // 96**2, 0x20 + i // 96 % 96, 0x20 + i % 96)) for i in range(count))
    wide = b"".join(b"\xa3" + name + b"\xc0" for name in names)
    return encode_frame(b"\x82\xa8endpoint\xadunknown.thing\xa6kwargs\xdf" + count.to_bytes(4, "big") + wide)


def filled_with(item: bytes) -> bytes:
    """As many of an item as 1 MiB has room for."""
    return frame_of(item, ROOM_BYTES // len(item))


BOMBS = {
    "empty lists": filled_with(b"\x90"),
    "empty maps": filled_with(b"\x80"),
    "maps of one entry": filled_with(b"\x81\xa0\xc0"),
    "lists of one list": filled_with(b"\x91\x90"),
    "short strings": filled_with(b"\xa2xy"),
    "small ints": filled_with(b"\x01"),
    "ints of two bytes": filled_with(b"\xcd\x01\x01"),
    "nil": filled_with(b"\xc0"),
    "one wide map": frame_of_names(ROOM_BYTES // 5 - 8),
}
HEAVIEST_SERVED = {
    "empty lists": frame_of(b"\x90", ELEMENT_BUDGET // 5),
    "empty maps": frame_of(b"\x80", ELEMENT_BUDGET // 9),
    "short strings": frame_of(b"\xa2xy", ELEMENT_BUDGET),
    "characters of three bytes": frame_of(b"\xa3\xe2\x82\xac", ELEMENT_BUDGET),
    "characters of four bytes": frame_of(b"\xa4\xf0\x9f\x98\x80", ROOM_BYTES // 5),
    "ints of two bytes": frame_of(b"\xcd\x01\x01", ELEMENT_BUDGET),
    "floats of four bytes": frame_of(b"\xca\x00\x00\x00\x01", ROOM_BYTES // 5),
    "bytes of two": frame_of(b"\xc4\x02xy", ELEMENT_BUDGET),
    "nil": frame_of(b"\xc0", ELEMENT_BUDGET),
    "one wide map": frame_of_names(MAP_BUDGET),
}


def received(frame: bytes) -> Serve | Reply:
    """What a listener makes of a frame that comes in as TCP brings it."""
    limits = PlainLimits(max_request_bytes=MIB, header_timeout_s=1, body_grace_s=1, min_body_bytes_per_s=1)
    exchange = PlainExchange(MessagePackRPCSerializer, limits, opened_at=0)
    for start in range(0, len(frame), 2**16):
        exchange.receive_data(frame[start : start + 2**16], now=0)
    step = exchange.poll(0)
    assert isinstance(step, Serve | Reply)
    return step


def cost_of(frame: bytes) -> tuple[Serve | Reply, int, float]:
    """What comes of a frame, the memory it takes at most, in bytes beside the frame itself, and seconds of CPU."""
    times = []
    gc.collect()
    gc.freeze()  # or the time is that of the collector among what thousands of other tests have left
    for _ in range(3):
        started = time.process_time()
        received(frame)
        times.append(time.process_time() - started)
    tracemalloc.start()
    try:
        step = received(frame)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    return step, peak_bytes, min(times)


@pytest.mark.parametrize("frame", BOMBS.values(), ids=BOMBS.keys())
def test_a_bomb_at_the_frame_limit_is_refused_before_it_costs_much(frame: bytes):
    step, peak_bytes, cpu_s = cost_of(frame)

    assert MIB - 100 < len(frame) <= 4 + MIB
    assert isinstance(step, Reply)
    assert peak_bytes < MAX_REFUSED_BYTES
    assert cpu_s < MAX_REFUSED_S


@pytest.mark.parametrize("frame", HEAVIEST_SERVED.values(), ids=HEAVIEST_SERVED.keys())
def test_the_heaviest_request_within_all_budgets_stays_below_the_stated_worst_case(frame: bytes):
    step, peak_bytes, cpu_s = cost_of(frame)

    assert isinstance(step, Serve)
    assert peak_bytes < MAX_SERVED_BYTES
    assert cpu_s < MAX_SERVED_S


@pytest.mark.parametrize("frame", [*BOMBS.values(), *HEAVIEST_SERVED.values()])
async def test_a_bomb_over_tcp_is_answered_with_an_error(frame: bytes, log: pytest.LogCaptureFixture):
    async with serving(Server(port=0)) as server:
        error = error_in(await answer_to(server, frame))

    assert error.code == "bad_request"
    assert len(our_lines(log)) <= 1


# Handlers and callers that misbehave


def misbehaving_server() -> tuple[Server, asyncio.Event, asyncio.Event]:
    """A server, and what tells that its hanging handler has started and was cancelled."""
    server = Server(port=0)
    started, cancelled = asyncio.Event(), asyncio.Event()

    @server.endpoint()
    async def raises() -> None:
        raise ValueError(CANARY)

    @server.endpoint()
    async def returns_a_set() -> Any:
        return {"found": {1, 2}}

    @server.endpoint()
    async def returns_a_generator() -> Any:
        return (number for number in range(3))

    @server.endpoint()
    async def returns_itself() -> Any:
        loop: list[Any] = []
        loop.append(loop)
        return loop

    @server.endpoint()
    async def returns_a_lot() -> bytes:
        return bytes(16 * MIB)

    @server.endpoint()
    async def hangs() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    return server, started, cancelled


@pytest.mark.parametrize("endpoint", ["raises", "returns_a_set", "returns_a_generator", "returns_itself"])
async def test_a_handler_without_a_result_that_travels_is_an_internal_error(
    endpoint: str, log: pytest.LogCaptureFixture
):
    server, _, _ = misbehaving_server()

    async with serving(server):
        with pytest.raises(RemoteError, match=r"^internal error \(reference [0-9a-f]{8}\)$") as caught:
            async with Client(port=server.port, timeout=10) as client:
                await client.call(endpoint)

    assert caught.value.code == "internal_error"
    own = [record for record in log.records if record.name.startswith("synapse_p2p")]
    assert [record.levelname for record in own if record.levelno > logging.DEBUG] == ["ERROR"]


async def test_a_handler_that_hangs_keeps_nobody_else_waiting_and_ends_with_its_caller():
    server, _, cancelled = misbehaving_server()

    async with serving(server), asyncio.timeout(10):
        with pytest.raises(Timeout):
            await Client(port=server.port, timeout=0.2).call("hangs")

        assert response_in(await answer_to(server, PING)) == PONG
        await cancelled.wait()


async def test_a_caller_whose_connection_breaks_while_its_handler_runs_ends_the_handler():
    server, started, cancelled = misbehaving_server()

    async with serving(server), asyncio.timeout(10):
        async with calling(server) as caller:
            await caller.send(encode_frame(msgpack.packb(fields(endpoint="hangs"))))
            await started.wait()
            caller.reset()

        await cancelled.wait()


@pytest.mark.parametrize("sent", [PING[:2], PING[:20]], ids=["header", "body"])
async def test_a_caller_that_leaves_in_the_middle_of_its_request_leaves_nothing_behind(sent: bytes):
    transport = WatchedTransport()

    async with serving(Server(port=0, transport=transport)) as server:
        async with calling(server) as caller:
            await caller.send(sent)
            await transport.pieces.get()

        assert await answer_to(server, PING) != b""


async def test_a_caller_that_leaves_in_the_middle_of_its_answer_harms_nobody(log: pytest.LogCaptureFixture):
    server, _, _ = misbehaving_server()

    async with serving(server), calling(server, limit=2**16) as caller:
        await caller.send(encode_frame(msgpack.packb(fields(endpoint="returns_a_lot"))))
        await caller.reader.readexactly(1000)
        await caller.leave()

    assert not [record for record in log.records if record.levelno >= logging.WARNING]


async def test_a_caller_that_reads_nothing_of_its_answer_is_cut_off():
    server, _, _ = misbehaving_server()
    server.config = ServerConfig(write_stall_s=0.2)

    async with serving(server), calling(server, limit=2**16) as caller, asyncio.timeout(10):
        with heard("reads nothing") as cut_off:
            await caller.send(encode_frame(msgpack.packb(fields(endpoint="returns_a_lot"))))
            caller.writer.transport.pause_reading()

            await cut_off.wait()


@contextlib.contextmanager
def heard(text: str) -> Iterator[asyncio.Event]:
    """An event that is set when a line with this text is logged."""
    event = asyncio.Event()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if text in record.getMessage():
                event.set()

    listener = Listener()
    logging.getLogger("synapse_p2p").addHandler(listener)
    try:
        yield event
    finally:
        logging.getLogger("synapse_p2p").removeHandler(listener)


# Many callers


@pytest.mark.linux
async def test_five_hundred_idle_callers_keep_nobody_out():
    async with serving(Server(port=0)) as server, silent_callers(server, 500) as callers:
        assert response_in(await answer_to(server, PING)) == PONG
        assert not any(caller.reader.at_eof() for caller in callers)


@pytest.mark.linux
async def test_past_the_cap_the_oldest_idle_caller_makes_room():
    config = ServerConfig(max_plain_connections=50)

    async with serving(Server(port=0, config=config)) as server, silent_callers(server, 51) as callers:
        assert await callers[0].answer() == b""
        assert not any(caller.reader.at_eof() for caller in callers[1:])


@pytest.mark.linux
async def test_a_crowd_that_came_while_the_loop_was_busy_pushes_out_nobody_who_asks():
    config = ServerConfig(max_plain_connections=50)

    async with serving(Server(port=0, config=config)) as server:
        # The loop does not run meanwhile: all of them wait at the port.
        *before, asking = [socket.create_connection((server.address, server.port)) for _ in range(10)]
        asking.sendall(PING)
        after = [socket.create_connection((server.address, server.port)) for _ in range(100)]
        asking.setblocking(False)
        answer = await asyncio.get_running_loop().sock_recv(asking, 1000)
        for caller in (*before, asking, *after):
            caller.close()

    assert response_in(answer) == PONG


@pytest.mark.linux
async def test_stop_does_not_wait_for_a_hundred_silent_callers():
    server = Server(port=0)
    await server.start()

    async with silent_callers(server, 100, sent=[b"", b"\x00\x00", PING[:4], PING[:20]]) as callers:
        started = time.monotonic()
        await server.stop()
        took_s = time.monotonic() - started

        assert [await caller.answer() for caller in callers] == [b""] * 100
    assert took_s < 2


@contextlib.asynccontextmanager
async def silent_callers(server: Server, count: int, sent: Sequence[bytes] = (b"",)) -> AsyncIterator[list[Caller]]:
    """Callers that send next to nothing and stay, each from another /24 below 127."""
    async with contextlib.AsyncExitStack() as stack:
        callers = []
        for number in range(count):
            source = (f"127.{1 + number // 250}.{number % 250}.1", 0)
            callers.append(await stack.enter_async_context(calling(server, local_addr=source)))
            await callers[-1].send(sent[number % len(sent)])
        yield callers
