"""What happens to a listener in a process that can open nothing more: real sockets, and a real limit."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import os
import socket
import warnings
from collections.abc import Iterator

import pytest

from synapse_p2p.transport.base import ByteStream, parse_address
from synapse_p2p.transport.listening import ACCEPTS_A_TURN, bound_sockets
from synapse_p2p.transport.tcp import TcpListener, TcpTransport

resource = pytest.importorskip("resource")

HOST = "127.0.0.1"
PATIENCE_S = 10.0


class Echo:
    """A Receiver that sends back what it is sent."""

    def __init__(self, accepted: list[ByteStream]) -> None:
        self._accepted = accepted

    def connection_made(self, stream: ByteStream) -> None:
        self._stream = stream
        self._accepted.append(stream)

    def data_received(self, data: bytes) -> None:
        self._stream.write(data)

    def eof_received(self) -> bool | None: ...

    def connection_lost(self, exc: Exception | None) -> None: ...

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...


@contextlib.contextmanager
def nothing_to_open() -> Iterator[list[int]]:
    """Every descriptor that the process may have is taken; those in the list can be given back."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = os.open(os.devnull, os.O_RDONLY)
    os.close(probe)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe + 20, hard))
    taken: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        yield taken
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)


def caller(listener: TcpListener) -> socket.socket:
    """A connection that waits in the backlog until the loop runs."""
    calling = socket.create_connection(parse_address(listener.addresses[0]), timeout=PATIENCE_S)
    calling.setblocking(False)
    return calling


async def said_back(calling: socket.socket, text: bytes) -> bytes:
    """What the listener sends back; empty when it hangs up."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(PATIENCE_S):
        with contextlib.suppress(ConnectionError):
            await loop.sock_sendall(calling, text)
            return await loop.sock_recv(calling, 100)
    return b""


@pytest.fixture(autouse=True)
def nobody_complained(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    gc.collect()
    assert [record for record in caplog.get_records("call") if record.name == "asyncio" and not is_late(record)] == []


def is_late(record: logging.LogRecord) -> bool:
    """What asyncio says in its debug mode, as it is under -X dev, of a caller who came as the port was closed."""
    return record.exc_info is not None and isinstance(record.exc_info[1], ConnectionAbortedError)


async def test_for_a_caller_without_a_descriptor_another_connection_goes():
    accepted: list[ByteStream] = []
    asked: list[None] = []

    def make_room() -> bool:
        asked.append(None)
        accepted[0].abort()
        return True

    listener = await TcpTransport(make_room).listen(HOST, 0, lambda: Echo(accepted))
    with caller(listener) as older, caller(listener) as newer:
        assert await said_back(older, b"hello") == b"hello"
        assert await said_back(newer, b"hello") == b"hello"
        with caller(listener) as late, nothing_to_open():
            answers = [await said_back(calling, b"again") for calling in (late, older, newer)]
    listener.close()
    for stream in accepted:
        stream.abort()
    await asyncio.sleep(0)

    assert answers == [b"again", b"", b"again"]
    assert len(asked) == 1


async def test_where_nobody_can_go_the_caller_is_turned_away_and_the_listener_lives():
    accepted: list[ByteStream] = []
    asked: list[None] = []
    listener = await TcpTransport(lambda: bool(asked.append(None))).listen(HOST, 0, lambda: Echo(accepted))
    with caller(listener) as served:
        assert await said_back(served, b"hello") == b"hello"
        late = [caller(listener) for _ in range(5)]
        with nothing_to_open() as taken:
            turned_away = [await said_back(calling, b"hello") for calling in late]
            still_served = await said_back(served, b"again")
            asked_count = len(asked)
            for _ in range(2):
                os.close(taken.pop())
            with caller(listener) as later:
                answer = await said_back(later, b"later")
    listener.close()
    for calling in late:
        calling.close()
    for stream in accepted:
        stream.abort()
    await asyncio.sleep(0)

    assert turned_away == [b""] * 5
    assert asked_count == 5  # once for each: the loop did not spin
    assert (still_served, answer) == (b"again", b"later")


async def test_a_crowd_at_the_port_comes_in_a_few_at_a_time():
    accepted: list[ByteStream] = []
    listener = await TcpTransport().listen(HOST, 0, lambda: Echo(accepted))
    crowd = [caller(listener) for _ in range(80)]
    most = 0
    async with asyncio.timeout(PATIENCE_S):
        while len(accepted) < len(crowd):
            before = len(accepted)
            await asyncio.sleep(0)
            most = max(most, len(accepted) - before)
    listener.close()
    for calling in crowd:
        calling.close()
    for stream in accepted:
        stream.abort()
    await asyncio.sleep(0)

    assert most <= ACCEPTS_A_TURN


async def test_a_listener_leaves_no_descriptor_behind():
    def opened() -> int:
        probe = os.open(os.devnull, os.O_RDONLY)
        os.close(probe)
        return probe

    before = opened()
    for _ in range(5):
        listener = await TcpTransport().listen(HOST, 0, lambda: Echo([]))
        listener.close()
        with pytest.raises(OSError, match="address already in use"), socket.create_server((HOST, 0)) as taken:
            await TcpTransport().listen(*taken.getsockname(), lambda: Echo([]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gc.collect()

    assert opened() == before


async def test_who_was_accepted_as_the_port_closes_is_hung_up_on():
    hung_up_count = 0
    for turns in range(8):
        accepted: list[ByteStream] = []
        listener = await TcpTransport().listen(HOST, 0, lambda accepted=accepted: Echo(accepted))
        with caller(listener) as calling:
            for _ in range(turns):
                await asyncio.sleep(0)
            listener.close()
            await asyncio.sleep(0)
            if not accepted:
                assert await said_back(calling, b"hello") == b""
                hung_up_count += 1
        for stream in accepted:
            stream.abort()
        await asyncio.sleep(0)

    assert 0 < hung_up_count < 8


async def test_a_name_is_bound_at_every_address_that_this_machine_has():
    listener = await TcpTransport().listen("localhost", 0, lambda: Echo([]))
    addresses = listener.addresses
    for address in addresses:
        with socket.create_connection(parse_address(address), timeout=PATIENCE_S):
            pass
    listener.close()

    assert addresses
    assert all(parse_address(address)[0] in (HOST, "::1") for address in addresses)


@pytest.mark.parametrize(("host", "expected"), [("", errno.EADDRINUSE), ("203.0.113.1", errno.EADDRNOTAVAIL)])
async def test_an_address_that_cannot_be_had_fails_with_its_reason(host: str, expected: int):
    with (
        socket.create_server(("", 0)) as taken,
        pytest.raises(OSError, match=r"cannot listen on .*:\d+: .*; ") as raised,
    ):
        await bound_sockets(host, taken.getsockname()[1], lambda: False)

    assert raised.value.errno == expected


@pytest.mark.parametrize("host", ["no..name", "x" * 64])
async def test_a_name_that_is_none_is_an_error_with_its_reason(host: str):
    with pytest.raises(OSError, match=f"cannot listen on {host}:9999: no address is known for that name"):
        await bound_sockets(host, 9999, lambda: False)
