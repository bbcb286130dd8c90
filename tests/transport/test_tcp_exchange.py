from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from synapse_p2p.exceptions import FrameTooLarge
from synapse_p2p.protocol.plain import FrameReader, encode_frame
from synapse_p2p.transport.tcp_exchange import ask, dial

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
QUESTION, ANSWER = encode_frame(b"question"), encode_frame(b"answer")


@pytest.fixture(autouse=True, params=["readers", "no readers"])
async def kind_of_loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs on a loop with readers, and on one without, as that of Windows is."""

    def refuse(*args: object) -> None:
        raise NotImplementedError

    if request.param == "no readers":
        monkeypatch.setattr(asyncio.get_running_loop(), "add_reader", refuse)


@contextlib.asynccontextmanager
async def peer(serve: Serve) -> AsyncIterator[int]:
    """The port of a peer that does with each connection what it is told."""

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def answer_at_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    assert await reader.readexactly(len(QUESTION)) == QUESTION
    writer.write(ANSWER)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_question_brings_its_answer(host: str):
    async with peer(answer_at_once) as port:
        connection = await dial(host, port)

        assert await ask(connection, QUESTION, FrameReader(100)) == b"answer"

    assert connection.fileno() == -1  # closed


async def test_an_answer_may_come_in_pieces():
    async def answer_in_pieces(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(QUESTION))
        for start in range(len(ANSWER)):
            writer.write(ANSWER[start : start + 1])
            await writer.drain()
            await asyncio.sleep(0)

    async with peer(answer_in_pieces) as port:
        assert await ask(await dial("127.0.0.1", port), QUESTION, FrameReader(100)) == b"answer"


@pytest.mark.parametrize("size_bytes", [10, 3_000_000])
async def test_messages_of_any_size_go_both_ways(size_bytes: int):
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(4 + size_bytes))
        await writer.drain()

    async with peer(echo) as port:
        payload = bytes(size_bytes)

        assert await ask(await dial("127.0.0.1", port), encode_frame(payload), FrameReader(size_bytes)) == payload


@pytest.mark.parametrize("sent", [b"", ANSWER[:3], ANSWER[:-1]])
async def test_a_peer_that_closes_before_it_has_answered_gave_no_answer(sent: bytes):
    async def leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(QUESTION))
        writer.write(sent)

    async with peer(leave) as port:
        assert await ask(await dial("127.0.0.1", port), QUESTION, FrameReader(100)) is None


async def test_an_answer_over_the_limit_is_refused():
    async with peer(answer_at_once) as port:
        connection = await dial("127.0.0.1", port)

        with pytest.raises(FrameTooLarge):
            await ask(connection, QUESTION, FrameReader(5))

    assert connection.fileno() == -1


async def test_being_cancelled_resets_the_connection():
    asked, was_reset = asyncio.Event(), asyncio.Event()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(QUESTION))
        asked.set()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        was_reset.set()

    async with peer(wait) as port, asyncio.timeout(10):
        question = asyncio.create_task(ask(await dial("127.0.0.1", port), QUESTION, FrameReader(100)))
        await asked.wait()
        question.cancel()

        with pytest.raises(asyncio.CancelledError):
            await question
        await was_reset.wait()


async def test_a_port_where_nobody_listens_is_an_os_error():
    async with peer(answer_at_once) as port:
        pass

    with pytest.raises(ConnectionRefusedError):
        await dial("127.0.0.1", port)


@pytest.mark.parametrize("host", ["", "no such host", "label." + "x" * 64, "1.2.3.4.5"])
async def test_what_is_no_host_is_an_os_error(host: str, monkeypatch: pytest.MonkeyPatch):
    def resolve_nothing(name: str, *args: object, **options: object) -> list[object]:
        name.encode("idna")  # what the real one does first
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", resolve_nothing)

    with pytest.raises(OSError, match=r"not the name of a host|unknown"):
        await dial(host, 9999)
