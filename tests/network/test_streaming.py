"""Streams over real sockets: each index of a short one, many items, slow readers, and an upload beside calls."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dht import DHTNode
from dht.agent_calls import AgentCalls
from dht.contact import Contact
from dht.status import NodeStatus
from synapse_p2p import Client, RemoteError, Server
from synapse_p2p.config import KIB, MIB
from synapse_p2p.exceptions import CallError, PeerUnavailable
from synapse_p2p.protocol.streams import FIRST_CREDIT_BYTES
from synapse_p2p.transport.base import format_address
from tests.network.cancellation import until

LENGTH = 5  # of the short stream
PATIENCE_S = 120.0
HOST = "127.0.0.1"
LINK_BYTES = 16 * KIB


@pytest.fixture(autouse=True)
def nobody_complained(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    gc.collect()  # a task or a generator that was forgotten says so now
    assert [record.getMessage() for record in caplog.get_records("call") if record.levelno > logging.INFO] == []


class Tail:
    """A server of streams that counts what begins and what ends."""

    def __init__(self) -> None:
        self.server = Server(port=0)
        self.begun = self.closed = self.sent = self.received = 0
        self.goes_on = asyncio.Event()
        self.server.endpoint("tail")(self.tail)
        self.server.endpoint("count")(self.count)
        self.server.endpoint("echo")(self.echo)
        self.server.endpoint("swallow")(self.swallow)

    async def tail(self, length: int, waits_at: int | None = None, fails_at: int | None = None) -> AsyncIterator[int]:
        self.begun += 1
        try:
            for number in range(length):
                if number == waits_at:
                    await asyncio.Event().wait()
                if number == fails_at:
                    raise CallError("enough", details={"at": number})
                self.sent += 1
                yield number
        finally:
            self.closed += 1

    async def count(self, length: int, size_bytes: int) -> AsyncIterator[bytes]:
        for _ in range(length):
            self.sent += 1
            yield bytes(size_bytes)

    async def echo(self, value: Any) -> Any:
        return value

    async def swallow(self, rows: AsyncIterator[bytes], stops_at: int | None = None) -> int:
        self.begun += 1
        try:
            async for _ in rows:
                if self.received == stops_at:
                    break
                self.received += 1
            return self.received
        finally:
            self.closed += 1

    async def settled(self) -> None:
        """Every handler that began has come to its end, once."""
        await until(lambda: self.begun == self.closed and not self.calls_served())
        assert self.begun == self.closed

    def calls_served(self) -> int:
        return sum(connection.calls_in_flight for connection in self.server.sessions._connections)


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[tuple[Tail, Client]]:
    tasks_before = asyncio.all_tasks()
    tail = Tail()
    await tail.server.start()
    try:
        async with asyncio.timeout(PATIENCE_S), Client(port=tail.server.port, timeout=10) as client:
            yield tail, client
    finally:
        await tail.server.stop(grace=0)
    await until(lambda: not asyncio.all_tasks() - tasks_before)


# Each index of a short stream


@pytest.mark.parametrize("index", range(LENGTH))
async def test_leaving_the_loop_closes_the_generator_once(index: int):
    async with serving() as (tail, client):
        async with contextlib.aclosing(client.stream("tail", 10**9)) as items:
            async for item in items:
                if item == index:
                    break
        await tail.settled()

        assert (tail.begun, tail.closed) == (1, 1)
        assert await client.call("echo", "still here") == "still here"


async def test_a_generator_that_is_only_forgotten_is_closed_by_the_garbage_collector():
    async with serving() as (tail, client):
        async for item in client.stream("tail", 10**9):
            if item == 3:
                break
        gc.collect()
        await tail.settled()

        assert (tail.begun, tail.closed) == (1, 1)


@pytest.mark.parametrize("index", range(LENGTH))
async def test_a_reader_that_is_cancelled_ends_the_generator_where_it_waits(index: int):
    async with serving() as (tail, client):
        got: list[int] = []

        async def read() -> None:
            got.extend([item async for item in client.stream("tail", LENGTH + 1, waits_at=index)])

        reading = asyncio.create_task(read())
        await until(lambda: tail.sent == index and tail.begun == 1)
        await asyncio.sleep(0.01)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await tail.settled()

        assert (tail.begun, tail.closed) == (1, 1)
        assert await client.call("echo", "still here") == "still here"


@pytest.mark.parametrize("index", range(LENGTH))
async def test_a_failure_comes_after_the_items_before_it(index: int):
    async with serving() as (tail, client):
        got: list[int] = []

        async def read() -> None:
            async for item in client.stream("tail", LENGTH, fails_at=index):
                got.append(item)

        with pytest.raises(RemoteError) as failure:
            await read()

        await tail.settled()
        assert got == list(range(index))
        assert (failure.value.reason, failure.value.details) == ("enough", {"at": index})


@pytest.mark.parametrize("index", range(LENGTH))
@pytest.mark.parametrize("dies", ["server", "client"])
async def test_a_dead_peer_ends_a_stream_once_on_both_sides(dies: str, index: int):
    async with serving() as (tail, client):
        got: list[int] = []

        async def read() -> None:
            async for item in client.stream("tail", LENGTH + 1, waits_at=index):
                got.append(item)

        reading = asyncio.create_task(read())
        await until(lambda: tail.sent == index and tail.begun == 1)
        await asyncio.sleep(0.01)
        here = client._session._here().connection if dies == "client" else None
        connection = here or next(iter(tail.server.sessions._connections))
        connection.abort()
        with pytest.raises(PeerUnavailable) as failure:
            await reading
        await tail.settled()

        assert failure.value.may_have_started
        assert got == list(range(index))
        assert (tail.begun, tail.closed) == (1, 1)


@pytest.mark.parametrize("index", range(LENGTH))
async def test_a_server_that_stops_tells_the_readers_of_its_streams(index: int):
    async with serving() as (tail, client):
        got: list[int] = []

        async def read() -> None:
            async for item in client.stream("tail", LENGTH + 1, waits_at=index):
                got.append(item)

        reading = asyncio.create_task(read())
        await until(lambda: tail.sent == index and tail.begun == 1)
        await tail.server.stop(grace=0.05)

        with pytest.raises(PeerUnavailable, match="stopping"):
            await reading
        assert got == list(range(index))
        assert (tail.begun, tail.closed) == (1, 1)


# Uploads


class Rows:
    """An upload that knows how it ended."""

    def __init__(self, length: int, *, fails_at: int | None = None, size_bytes: int = 1) -> None:
        self.sent = self.closed = 0
        self._length = length
        self._fails_at = fails_at
        self._size_bytes = size_bytes

    async def rows(self) -> AsyncIterator[bytes]:
        try:
            for number in range(self._length):
                if number == self._fails_at:
                    raise LookupError("the file is gone")
                self.sent += 1
                yield bytes(self._size_bytes)
        finally:
            self.closed += 1


@pytest.mark.parametrize("index", range(LENGTH))
async def test_a_function_that_returns_early_closes_the_upload(index: int):
    async with serving() as (tail, client):
        rows = Rows(10**9)
        assert await client.call("swallow", rows.rows(), stops_at=index) == index
        await tail.settled()
        await until(lambda: rows.closed == 1)

        assert (tail.begun, tail.closed) == (1, 1)


@pytest.mark.parametrize("index", range(LENGTH))
async def test_an_upload_that_fails_ends_the_call_with_its_own_error(index: int):
    async with serving() as (tail, client):
        rows = Rows(LENGTH, fails_at=index)
        with pytest.raises(LookupError, match="the file is gone"):
            await client.call("swallow", rows=rows.rows())
        await tail.settled()

        assert rows.closed == 1
        assert tail.begun <= 1
        assert await client.call("echo", "still here") == "still here"


@pytest.mark.parametrize("index", range(LENGTH))
async def test_an_upload_that_is_cancelled_is_closed_on_both_sides(index: int):
    async with serving() as (tail, client):
        held = asyncio.Event()
        closed: list[int] = []

        async def rows() -> AsyncIterator[int]:
            try:
                for number in range(index):
                    yield number
                await held.wait()
            finally:
                closed.append(index)

        calling = asyncio.create_task(client.call("swallow", rows()))
        await until(lambda: tail.received == index and tail.begun == 1)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        await tail.settled()
        await until(lambda: bool(closed))

        assert closed == [index]


# Many items, and slow readers


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


async def read_many(length: int, size_bytes: int) -> int:
    """How much the process grew while so many items went through one call."""
    async with asyncio.timeout(None), serving() as (_, client):
        assert [len(item) async for item in client.stream("count", 2000, size_bytes)] == [size_bytes] * 2000
        before = peak = resident_bytes()
        count = 0
        async for _ in client.stream("count", length, size_bytes):
            count += 1
            if not count % 1000:
                peak = max(peak, resident_bytes())
    assert count == length
    return peak - before


@pytest.mark.linux
async def test_fifty_thousand_items_go_through_one_call_in_constant_memory():
    assert await read_many(50_000, 200) < 8 * MIB  # were they kept, 12 MiB at least


@pytest.mark.linux
@pytest.mark.gates
async def test_a_million_items_go_through_one_call_in_constant_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tests.network.test_streaming.PATIENCE_S", 600.0)

    assert await read_many(1_000_000, 200) < 8 * MIB


async def test_a_slow_reader_makes_the_generator_wait():
    async with serving() as (tail, client):
        lead = got = 0
        async for _ in client.stream("count", 400, 4000):
            got += 1
            lead = max(lead, tail.sent - got)
            await asyncio.sleep(0.001)  # the generator takes a tenth of that, or less

        in_flight_bytes = lead * 4000
        assert got == 400
        assert in_flight_bytes < 2 * FIRST_CREDIT_BYTES + 5 * 4000


async def test_a_slow_function_makes_its_upload_wait():
    async with serving() as (tail, client):
        received = 0

        @tail.server.endpoint("slowly")
        async def slowly(rows: AsyncIterator[bytes]) -> int:
            nonlocal received
            async for _ in rows:
                received += 1
                await asyncio.sleep(0.001)
            return received

        lead = 0
        rows = Rows(400, size_bytes=4000)

        async def watched() -> AsyncIterator[bytes]:
            nonlocal lead
            async for row in rows.rows():
                lead = max(lead, rows.sent - received)
                yield row

        assert await client.call("slowly", watched()) == 400
        assert lead * 4000 < 2 * FIRST_CREDIT_BYTES + 5 * 4000


async def test_a_subscriber_that_never_reads_costs_its_first_credit_and_nothing_else():
    async with serving() as (tail, client):
        streams = [client.stream("count", 10**6, 10_000) for _ in range(20)]
        for stream in streams:
            assert await anext(stream) == bytes(10_000)
        await asyncio.sleep(0.05)
        sent = tail.sent
        await asyncio.sleep(0.05)

        assert tail.sent == sent <= 20 * (FIRST_CREDIT_BYTES // 10_000 + 2)
        assert await client.call("echo", "still here") == "still here"
        for stream in streams:
            await stream.aclose()
        await tail.settled()


# An upload beside calls


async def latencies(client: Client, is_over: Callable[[], bool], at_least: int) -> list[float]:
    """In seconds, of calls made one after another until then."""
    took: list[float] = []
    while len(took) < at_least or not is_over():
        began_at = time.perf_counter()
        assert await client.call("echo", "short") == "short"
        took.append(time.perf_counter() - began_at)
        await asyncio.sleep(0)
    return sorted(took)


async def upload_beside_calls(size_bytes: int) -> tuple[list[float], list[float]]:
    """What calls take by themselves, and beside an upload on the same session."""
    async with serving() as (tail, client):
        await latencies(client, lambda: True, at_least=50)
        alone = await latencies(client, lambda: True, at_least=300)
        rows = Rows(size_bytes // (64 * KIB), size_bytes=64 * KIB)
        upload = asyncio.create_task(client.with_options(timeout_s=None).call("swallow", rows.rows()))
        beside = await latencies(client, upload.done, at_least=1)
        assert await upload == size_bytes // (64 * KIB)
        assert len(tail.server.sessions) == 1
        await tail.settled()
    return alone, beside


async def test_calls_are_answered_while_an_upload_goes_on():
    _, beside = await upload_beside_calls(8 * MIB)

    assert len(beside) > 8  # not one after the other: each takes its turn while the upload goes on
    assert beside[len(beside) // 2] < 0.25


@pytest.mark.gates
async def test_calls_beside_an_upload_of_a_hundred_mebibytes_take_no_three_times_as_long(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("tests.network.test_streaming.PATIENCE_S", 600.0)
    alone, beside = await upload_beside_calls(100 * MIB)

    p99 = [took[len(took) * 99 // 100] for took in (alone, beside)]
    print(f"p99 alone {p99[0] * 1e3:.2f} ms, beside {p99[1] * 1e3:.2f} ms, {len(beside)} calls")
    assert p99[1] < 3 * p99[0]


@contextlib.asynccontextmanager
async def two_nodes(*servers: Server) -> AsyncIterator[tuple[DHTNode, DHTNode]]:
    """The nodes of both; the second has joined through the first."""
    nodes = [DHTNode(server) for server in servers]
    try:
        for node, server in zip(nodes, servers, strict=True):
            await server.start()
            await node.start()
        await nodes[1].join(servers[0].listening_addresses)
        yield nodes[0], nodes[1]
    finally:
        for node, server in zip(nodes, servers, strict=True):
            await node.stop()
            await server.stop(grace=0)


async def upload_beside_lookups(size_bytes: int) -> tuple[int, list[NodeStatus]]:
    """How many lookups asked a peer while an upload to it went on, over one session, and how both nodes were then."""
    tail, server = Tail(), Server(port=0)
    rows = Rows(size_bytes // (64 * KIB), size_bytes=64 * KIB)
    async with two_nodes(tail.server, server) as (receiver, sender):
        peer = Contact(receiver.id, tail.server.listening_addresses)
        calling = AgentCalls(server).call_agent(peer, "swallow", [rows.rows()], {}, timeout_s=None)
        upload = asyncio.create_task(calling)
        await until(lambda: tail.begun == 1)
        count = 0
        while not upload.done():
            assert [contact.id for contact in await sender.find_node(receiver.id)] == [receiver.id]
            count += 1
        assert await upload == size_bytes // (64 * KIB)
        await until(lambda: tail.closed == 1)
        return count, [receiver.status(), sender.status()]


def assert_nobody_is_suspected(statuses: list[NodeStatus]) -> None:
    assert [(status.contacts, status.suspects, status.is_connected) for status in statuses] == [(1, 0, True)] * 2


class SlowLink:
    """Listens, and goes on to a place with whoever connects: so fast and no faster on the way there.

    It takes in what it passes on, and hardly more: the rest stays with who sends, as before a slow link.
    """

    def __init__(self, port: int, bytes_per_s: int) -> None:
        self.carried_bytes = 0
        self._port = port
        self._pause_s = LINK_BYTES / bytes_per_s
        self._listening = socket.create_server((HOST, 0))
        self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LINK_BYTES)
        self._ends = [self._listening]
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> SlowLink:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        for end in self._ends:
            end.close()

    @property
    def place(self) -> str:
        return format_address(*self._listening.getsockname())

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            self._ends.append(self._listening.accept()[0])
            self._ends.append(socket.create_connection((HOST, self._port)))
            _, near, far = self._ends
            back = threading.Thread(target=self._carry_back, args=(far, near))
            back.start()
            while data := near.recv(LINK_BYTES):
                far.sendall(data)
                self.carried_bytes += len(data)
                time.sleep(self._pause_s)
            far.shutdown(socket.SHUT_WR)
            back.join()

    def _carry_back(self, far: socket.socket, near: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := far.recv(LINK_BYTES):
                near.sendall(data)
            near.shutdown(socket.SHUT_WR)


@pytest.mark.skipif(not hasattr(socket, "TCP_NOTSENT_LOWAT"), reason="the system cannot be told how much to hold")
async def test_over_a_slow_link_a_call_does_not_wait_for_all_that_the_system_would_hold_of_uploads():
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(16 * KIB)

    async with serving() as (tail, _):
        with SlowLink(tail.server.port, bytes_per_s=4 * MIB) as link:
            async with Client(link.place, timeout=60) as client:
                uploads = [asyncio.create_task(client.call("swallow", endless())) for _ in range(8)]
                await until(lambda: tail.received > 100)
                waited_bytes = []
                for _ in range(5):
                    before = link.carried_bytes
                    assert await client.call("echo", "short") == "short"
                    waited_bytes.append(link.carried_bytes - before)
                for upload in uploads:
                    upload.cancel()
                await asyncio.gather(*uploads, return_exceptions=True)
        await tail.settled()

    # The queue of the stream and that of the system are 384 KiB; without a limit the system takes 2.5 MiB and more.
    assert max(waited_bytes) < 700 * KIB


async def test_a_peer_to_which_an_upload_goes_answers_lookups_and_is_not_suspected():
    count, statuses = await upload_beside_lookups(8 * MIB)

    assert count > 2  # none of them waits for the end of the upload
    assert_nobody_is_suspected(statuses)


@pytest.mark.gates
async def test_a_peer_to_which_a_hundred_mebibytes_go_is_not_suspected():
    count, statuses = await upload_beside_lookups(100 * MIB)

    assert count > 20
    assert_nobody_is_suspected(statuses)


async def test_a_call_of_the_overlay_overtakes_a_long_one():
    async with serving() as (tail, client):
        tail.server.mount("_dht.", {"_dht.echo": lambda request, context: request["value"]})
        await client.call("echo", "connected")

        long = asyncio.create_task(client.call("echo", bytes(3 * MIB)))
        await asyncio.sleep(0)

        assert await client.call("_dht.echo", value=1) == 1
        assert not long.done()
        assert len(await long) == 3 * MIB
