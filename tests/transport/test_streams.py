"""One contract, two transports: TCP on loopback and streams in memory."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import random
import socket
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from synapse_p2p.transport import memory
from synapse_p2p.transport.base import HIGH_WATER_BYTES, ByteStream, Listener, Transport, parse_address
from synapse_p2p.transport.memory import MemoryTransport
from synapse_p2p.transport.tcp import MAX_NOT_SENT_BYTES, TcpTransport

HOST = "127.0.0.1"
PATIENCE_S = 10.0  # a test that waits longer has failed


class Recorder:
    """A Receiver that notes what it is told; `told` grows by one with each word."""

    def __init__(self, *, keeps_half_open: bool = False, on_made: Callable[[Recorder], None] | None = None) -> None:
        self.words: list[str] = []
        self.data = bytearray()
        self.stream: ByteStream
        self.error: Exception | None = None
        self._keeps_half_open = keeps_half_open
        self._on_made = on_made
        self._has_changed = asyncio.Event()

    def connection_made(self, stream: ByteStream) -> None:
        self.stream = stream
        self._note("made")
        if self._on_made is not None:
            self._on_made(self)

    def data_received(self, data: bytes) -> None:
        self.data += data
        self._note("data")

    def eof_received(self) -> bool | None:
        self._note("eof")
        return self._keeps_half_open

    def connection_lost(self, exc: Exception | None) -> None:
        self.error = exc
        self._note("lost")

    def pause_writing(self) -> None:
        self._note("pause")

    def resume_writing(self) -> None:
        self._note("resume")

    async def until(self, word: str) -> None:
        await self._until(lambda: word in self.words)

    async def until_received(self, size_bytes: int) -> None:
        await self._until(lambda: len(self.data) >= size_bytes)

    async def _until(self, condition: Any) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self._has_changed.clear()
                await self._has_changed.wait()

    def _note(self, word: str) -> None:
        if not self.words or (word, self.words[-1]) != ("data", "data"):
            self.words.append(word)
        self._has_changed.set()


class Place:
    """A listener of a transport, and the receivers of what it accepted."""

    def __init__(self, transport: Transport, listener: Listener, newcomers: asyncio.Queue[Recorder]) -> None:
        self.transport = transport
        self.listener = listener
        self._newcomers = newcomers
        self.port = parse_address(listener.addresses[0])[1]

    async def dial(self, *, keeps_half_open: bool = False) -> Recorder:
        recorder = Recorder(keeps_half_open=keeps_half_open)
        await self.transport.connect(HOST, self.port, recorder)
        return recorder

    async def pair(self, *, keeps_half_open: bool = False) -> tuple[Recorder, Recorder]:
        """The dialer's end and the listener's end of a new stream."""
        ours = await self.dial(keeps_half_open=keeps_half_open)
        return ours, await self.accepted()

    async def accepted(self) -> Recorder:
        """The end of the oldest stream that was accepted and not asked for yet."""
        async with asyncio.timeout(PATIENCE_S):
            return await self._newcomers.get()


@contextlib.asynccontextmanager
async def listening(transport: Transport, port: int = 0, *, keeps_half_open: bool = False) -> AsyncIterator[Place]:
    newcomers: asyncio.Queue[Recorder] = asyncio.Queue()
    streams: list[ByteStream] = []

    def on_made(recorder: Recorder) -> None:
        streams.append(recorder.stream)
        newcomers.put_nowait(recorder)

    def accept() -> Recorder:
        return Recorder(keeps_half_open=keeps_half_open, on_made=on_made)

    listener = await transport.listen(HOST, port, accept)
    try:
        yield Place(transport, listener, newcomers)
    finally:
        listener.close()
        for stream in streams:
            last = Recorder()
            is_open = not stream.is_closing()
            stream.set_receiver(last)
            stream.abort()
            if is_open:
                await last.until("lost")


@pytest.fixture(params=[TcpTransport, MemoryTransport])
def transport(request: pytest.FixtureRequest) -> Transport:
    return request.param()


@pytest.fixture(autouse=True)
def no_socket_is_left_open() -> Iterator[None]:
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        gc.collect()


async def test_both_ends_are_told_of_the_connection_once_and_know_each_others_address(transport: Transport):
    async with listening(transport) as place:
        ours, theirs = await place.pair()

        assert ours.words == theirs.words == ["made"]
        assert ours.stream.peer_address == theirs.stream.local_address == place.listener.addresses[0]
        assert theirs.stream.peer_address == ours.stream.local_address


async def test_bytes_arrive_in_order_however_they_are_cut(transport: Transport):
    rng = random.Random(1)
    pieces = [rng.randbytes(rng.choice([1, 2, 100, 5_000])) for _ in range(300)]

    async with listening(transport) as place:
        ours, theirs = await place.pair()
        for piece in pieces:
            ours.stream.write(piece)
        await theirs.until_received(sum(map(len, pieces)))

        assert bytes(theirs.data) == b"".join(pieces)


async def test_both_directions_carry_at_once(transport: Transport):
    async with listening(transport) as place:
        ours, theirs = await place.pair()
        ours.stream.write(b"a" * 200_000)
        theirs.stream.write(b"b" * 200_000)
        await ours.until_received(200_000)
        await theirs.until_received(200_000)

        assert (set(ours.data), set(theirs.data)) == (set(b"b"), set(b"a"))


async def test_a_buffer_may_be_changed_once_it_is_written(transport: Transport):
    async with listening(transport) as place:
        ours, theirs = await place.pair()
        buffer = bytearray(b"before")
        ours.stream.write(buffer)
        buffer[:] = b"after!"
        await theirs.until_received(6)

        assert theirs.data == b"before"


async def test_too_much_unsent_pauses_the_writer_and_reading_resumes_it(transport: Transport):
    data = random.Random(2).randbytes(16 * 1024 * 1024)  # more than the buffers of a kernel take

    async with listening(transport) as place:
        ours, theirs = await place.pair()
        theirs.stream.pause_reading()
        ours.stream.write(data)
        paused_words, unsent_bytes = list(ours.words), ours.stream.unsent_bytes()
        theirs.stream.resume_reading()
        await theirs.until_received(len(data))
        await ours.until("resume")

        assert paused_words == ["made", "pause"]
        assert unsent_bytes > HIGH_WATER_BYTES
        assert ours.stream.unsent_bytes() <= HIGH_WATER_BYTES // 4
        assert bytes(theirs.data) == data


async def test_a_writer_below_the_high_water_is_left_alone(transport: Transport):
    async with listening(transport) as place:
        ours, theirs = await place.pair()
        ours.stream.write(b"x" * HIGH_WATER_BYTES)
        await theirs.until_received(HIGH_WATER_BYTES)

        assert ours.words == ["made"]


async def test_one_who_does_not_read_is_told_nothing_until_he_does(transport: Transport):
    async with listening(transport) as place:
        ours, theirs = await place.pair()
        theirs.stream.pause_reading()
        ours.stream.write(b"x")
        for _ in range(20):
            await asyncio.sleep(0)
        words_before = list(theirs.words)
        theirs.stream.resume_reading()
        await theirs.until_received(1)

        assert words_before == ["made"]


async def test_close_sends_what_is_queued_first(transport: Transport):
    data = random.Random(3).randbytes(8 * 1024 * 1024)

    async with listening(transport) as place:
        ours, theirs = await place.pair()
        ours.stream.write(data)
        ours.stream.close()
        was_closing = ours.stream.is_closing()
        await theirs.until("lost")
        await ours.until("lost")

        assert was_closing
        assert bytes(theirs.data) == data
        assert theirs.words == ["made", "data", "eof", "lost"]
        assert (ours.words[-1], ours.error, theirs.error) == ("lost", None, None)


async def test_a_closed_end_receives_nothing_more(transport: Transport):
    async with listening(transport) as place:
        ours, theirs = await place.pair()
        ours.stream.close()
        theirs.stream.write(b"late")
        await ours.until("lost")
        await theirs.until("lost")

        assert ours.words == ["made", "lost"]


async def test_closing_and_aborting_again_does_nothing_more(transport: Transport):
    async with listening(transport) as place:
        ours, theirs = await place.pair()
        for _ in range(2):
            ours.stream.close()
            ours.stream.abort()
        await ours.until("lost")
        await theirs.until("lost")
        ours.stream.close()
        ours.stream.abort()
        ours.stream.pause_reading()
        ours.stream.resume_reading()
        await asyncio.sleep(0)

        assert ours.words == ["made", "lost"]
        assert theirs.words.count("lost") == 1


async def test_abort_drops_what_is_queued_and_both_ends_learn_of_it(transport: Transport):
    data = b"x" * 16 * 1024 * 1024

    async with listening(transport) as place:
        ours, theirs = await place.pair()
        theirs.stream.pause_reading()
        ours.stream.write(data)
        ours.stream.abort()
        was_closing = ours.stream.is_closing()
        await ours.until("lost")
        theirs.stream.resume_reading()
        await theirs.until("lost")

        assert was_closing
        assert ours.error is None
        assert len(theirs.data) < len(data)


async def test_a_close_that_the_peer_holds_up_can_be_aborted(transport: Transport):
    async with listening(transport) as place:
        ours, theirs = await place.pair()
        theirs.stream.pause_reading()
        ours.stream.write(b"x" * 16 * 1024 * 1024)
        ours.stream.close()
        for _ in range(20):
            await asyncio.sleep(0)
        words_before = list(ours.words)
        ours.stream.abort()
        await ours.until("lost")

        assert "lost" not in words_before


async def test_writing_to_a_peer_that_is_gone_ends_the_stream(transport: Transport):
    async with listening(transport) as place:
        ours, theirs = await place.pair(keeps_half_open=True)
        theirs.stream.abort()
        await theirs.until("lost")
        async with asyncio.timeout(PATIENCE_S):
            while "lost" not in ours.words:
                ours.stream.write(b"x" * 100)
                await asyncio.sleep(0)

        assert ours.error is None or isinstance(ours.error, ConnectionError)


async def test_an_end_that_keeps_its_half_open_closes_when_it_wants(transport: Transport):
    async with listening(transport) as place:
        ours, theirs = await place.pair(keeps_half_open=True)
        theirs.stream.close()
        await ours.until("eof")
        await theirs.until("lost")
        was_closing = ours.stream.is_closing()
        ours.stream.close()
        await ours.until("lost")

        assert not was_closing
        assert ours.words == ["made", "eof", "lost"]


async def test_another_receiver_can_take_over_in_the_middle(transport: Transport):
    async with listening(transport) as place:
        ours, theirs = await place.pair()
        ours.stream.write(b"first")
        await theirs.until_received(5)
        successor = Recorder()
        theirs.stream.set_receiver(successor)
        ours.stream.write(b"second")
        ours.stream.close()
        await successor.until("lost")

        assert (theirs.words, theirs.data) == (["made", "data"], b"first")
        assert (successor.words, successor.data) == (["data", "eof", "lost"], b"second")


async def test_nobody_listening_refuses_at_once(transport: Transport):
    async with listening(transport) as place:
        port = place.port

    with pytest.raises(ConnectionRefusedError):
        await transport.connect(HOST, port, Recorder())


async def test_an_address_is_taken_by_one_and_free_again_after(transport: Transport):
    async with listening(transport) as place:
        with pytest.raises(OSError, match="in use") as raised:
            await transport.listen(HOST, place.port, Recorder)
        port = place.port

    async with listening(transport, port) as second:
        ours, _ = await second.pair()

        assert ours.words == ["made"]
    assert raised.value.errno == errno.EADDRINUSE


async def test_port_0_is_a_free_port_each_time(transport: Transport):
    async with listening(transport) as first, listening(transport) as second:
        assert first.port > 0
        assert second.port > 0
        assert first.port != second.port


async def test_closing_the_door_leaves_those_inside(transport: Transport):
    async with listening(transport) as place:
        ours, theirs = await place.pair()
        place.listener.close()
        ours.stream.write(b"still here")
        await theirs.until_received(10)

        with pytest.raises(ConnectionRefusedError):
            await transport.connect(HOST, place.port, Recorder())


async def test_a_hundred_connections_do_not_mix(transport: Transport):
    async with listening(transport) as place:
        dialed = await asyncio.gather(*(place.dial() for _ in range(100)))
        for number, recorder in enumerate(dialed):
            recorder.stream.write(f"{number:03}".encode())
        for recorder in dialed:
            recorder.stream.close()
            await recorder.until("lost")
        accepted = [await place.accepted() for _ in dialed]
        for recorder in accepted:
            await recorder.until("lost")

        assert sorted(int(bytes(recorder.data)) for recorder in accepted) == list(range(100))


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".example", "."])
async def test_a_name_that_is_none_is_an_oserror_as_any_other_failure_to_connect(transport: Transport, host: str):
    with pytest.raises(OSError, match=r"name|listens"):
        await transport.connect(host, 80, Recorder())


async def test_small_tcp_writes_are_not_held_back():
    async with listening(TcpTransport()) as place:
        ours, theirs = await place.pair()

        for end in (ours, theirs):
            connected = end.stream._transport.get_extra_info("socket")
            assert connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_what_a_tcp_peer_has_not_read_is_dropped_by_the_system_too_when_it_is_cut_off():
    async with listening(TcpTransport()) as place:
        ours, theirs = await place.pair()
        theirs.stream.pause_reading()
        ours.stream.write(b"x" * 16 * 1024 * 1024)
        ours.stream.abort()
        await ours.until("lost")
        theirs.stream.resume_reading()
        await theirs.until("lost")

        # An end in good order would come behind all that the system had taken from us, and kept.
        assert isinstance(theirs.error, ConnectionResetError)


@pytest.mark.skipif(not hasattr(socket, "TCP_NOTSENT_LOWAT"), reason="the system cannot be told how much to hold")
async def test_the_system_holds_little_of_what_has_still_to_be_sent():
    async with listening(TcpTransport()) as place:
        ours, theirs = await place.pair()

        for end in (ours, theirs):
            connected = end.stream._transport.get_extra_info("socket")
            assert connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == MAX_NOT_SENT_BYTES


@pytest.mark.parametrize("is_handed_over", [False, True])
async def test_a_tcp_stream_whose_last_bytes_left_after_its_close_can_be_aborted_still(is_handed_over: bool):
    async with listening(TcpTransport()) as place:
        ours, theirs = await place.pair()
        if is_handed_over:
            ours.stream.set_receiver(ours)
        theirs.stream.pause_reading()
        ours.stream.write(b"x" * 16 * 1024 * 1024)
        ours.stream.close()
        theirs.stream.resume_reading()
        await ours.until("lost")

        ours.stream.abort()

        assert ours.error is None


async def test_a_tcp_peer_that_closes_only_its_half_still_gets_an_answer():
    async with listening(TcpTransport(), keeps_half_open=True) as place:
        reader, writer = await asyncio.open_connection(HOST, place.port)
        writer.write(b"question")
        writer.write_eof()
        theirs = await place.accepted()
        await theirs.until("eof")
        theirs.stream.write(b"answer")
        theirs.stream.close()
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()

        assert (bytes(theirs.data), answer) == (b"question", b"answer")


async def test_memory_ports_come_round_again_and_pass_by_those_that_listen(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "FREE_PORTS", range(50_000, 50_004))
    transport = MemoryTransport()

    async with listening(transport) as place:
        ports = [parse_address((await place.dial()).stream.local_address)[1] for _ in range(6)]

    assert place.port == 50_001
    assert ports == [50_002, 50_003, 50_000] * 2


async def test_memory_says_so_when_every_port_listens(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "FREE_PORTS", range(50_000, 50_002))
    transport = MemoryTransport()

    async with listening(transport), listening(transport):
        with pytest.raises(OSError, match="no port is free"):
            await transport.listen(HOST, 0, Recorder)


async def test_memory_streams_take_their_time_in_each_direction():
    transport, loop = MemoryTransport(delay_s=0.02), asyncio.get_running_loop()

    async with listening(transport) as place:
        started_at = loop.time()
        ours = await place.dial()
        connected_at = loop.time()
        ours.stream.write(b"x")
        await (await place.accepted()).until_received(1)
        arrived_at = loop.time()

    assert connected_at - started_at >= 0.035
    assert arrived_at - connected_at >= 0.015
