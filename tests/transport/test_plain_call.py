"""One call on the plain wire, against peers that do with it what they like."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from simulations.virtual_loop import run
from synapse_p2p.exceptions import (
    ConfigError,
    FrameTooLarge,
    InvalidMessageError,
    PeerUnavailable,
    RemoteError,
    Timeout,
)
from synapse_p2p.framing import encode_frame, read_frame
from synapse_p2p.messages import RPCError, RPCRequest, RPCResponse
from synapse_p2p.serializers import MessagePackRPCSerializer
from synapse_p2p.transport.base import ByteStream, Receiver
from synapse_p2p.transport.memory import MemoryTransport
from synapse_p2p.transport.plain_call import PlainCaller

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class PlainClient:
    """A PlainCaller that words its requests itself."""

    def __init__(
        self, port: int = 9999, *, timeout: float | None = 30, idempotent: bool = False, **options: Any
    ) -> None:
        sizes = {"max_upload_size": 2**20, "max_download_size": 2**20}
        self.port = port
        self._caller = PlainCaller("127.0.0.1", port, serializer_class=MessagePackRPCSerializer, **(sizes | options))
        self._timeout = timeout
        self._idempotent = idempotent

    async def call(self, endpoint: str, /, *args: Any, **kwargs: Any) -> Any:
        request = RPCRequest(endpoint=endpoint, id="1234", args=list(args), kwargs=kwargs)
        return await self._caller.call(request, timeout_s=self._timeout, idempotent=self._idempotent)


@contextlib.asynccontextmanager
async def peer(serve: Serve, **client_options: Any) -> AsyncIterator[PlainClient]:
    """A client, and a peer on loopback that does with each connection what it is told."""

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with server:
        yield PlainClient(port=server.sockets[0].getsockname()[1], **({"timeout": 10} | client_options))


def answering(make_response: Callable[[RPCRequest], Any]) -> Serve:
    """What a peer does that answers one request with what the function makes of it: a message, or bytes of a frame."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = MessagePackRPCSerializer.deserialize(await read_frame(reader, 2**20))
        assert isinstance(request, RPCRequest)
        response = make_response(request)
        payload = response if isinstance(response, bytes) else MessagePackRPCSerializer.serialize(response)
        writer.write(encode_frame(payload))
        await writer.drain()

    return serve


async def test_an_answer_is_the_result_of_the_call():
    def echo(request: RPCRequest) -> RPCResponse:
        return RPCResponse(id=request.id, ok=True, result=[request.endpoint, request.args, request.kwargs])

    async with peer(answering(echo)) as client:
        assert await client.call("sum", 1, 2, scale=3) == ["sum", [1, 2], {"scale": 3}]


async def test_every_keyword_belongs_to_the_remote_function():
    def echo(request: RPCRequest) -> RPCResponse:
        return RPCResponse(id=request.id, ok=True, result=request.kwargs)

    async with peer(answering(echo)) as client:
        assert await client.call("f", endpoint=1, self=2, timeout=3) == {"endpoint": 1, "self": 2, "timeout": 3}


async def test_calls_may_be_in_flight_together_on_one_client():
    async with peer(answering(lambda request: RPCResponse(request.id, ok=True, result=request.args[0]))) as client:
        answers = await asyncio.gather(*(client.call("echo", number) for number in range(20)))

    assert answers == list(range(20))


@pytest.mark.parametrize(
    ("sent", "code"), [("bad_request", "bad_request"), ("internal_error", "internal_error"), ("new", "internal_error")]
)
async def test_a_failure_of_the_peer_is_a_remote_error_and_a_runtime_error(sent: str, code: str):
    failure = answering(lambda request: RPCResponse(request.id, ok=False, error=RPCError(sent, "its words")))

    async with peer(failure) as client:
        with pytest.raises(RuntimeError, match="its words") as caught:
            await client.call("anything")

    assert isinstance(caught.value, RemoteError)
    assert caught.value.code == code


async def test_a_refusal_without_an_id_is_taken():
    # A peer that could not read the request does not know its id.
    refusal = answering(lambda request: RPCResponse("", ok=False, error=RPCError("bad_request", "frame too large")))

    async with peer(refusal) as client:
        with pytest.raises(RemoteError, match="frame too large"):
            await client.call("anything")


async def test_the_answer_to_another_request_is_refused():
    async with peer(answering(lambda request: RPCResponse("another", ok=True))) as client:
        with pytest.raises(InvalidMessageError, match="another request"):
            await client.call("anything")


async def test_a_request_as_an_answer_is_refused():
    async with peer(answering(lambda request: request)) as client:
        with pytest.raises(RuntimeError, match="non-response"):
            await client.call("anything")


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\xc0", b"\x80"])
async def test_garbage_as_an_answer_is_refused(payload: bytes):
    async with peer(answering(lambda request: payload)) as client:
        with pytest.raises(InvalidMessageError):
            await client.call("anything")


async def test_an_answer_over_the_limit_is_refused_by_its_length():
    async with peer(answering(lambda request: b"x" * 101), max_download_size=100) as client:
        with pytest.raises(FrameTooLarge) as caught:
            await client.call("anything")

    assert caught.value.actual_bytes == 101


@pytest.mark.parametrize("data", [b"", b"\x00\x00", b"\x00\x00\x00\x09half"])
async def test_a_peer_that_leaves_before_its_answer_may_have_started_the_call(data: bytes):
    async def leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_frame(reader, 1000)
        writer.write(data)

    async with peer(leave) as client:
        with pytest.raises(ConnectionError) as caught:
            await client.call("anything")

    assert isinstance(caught.value, PeerUnavailable)
    assert caught.value.may_have_started


async def test_an_address_where_nobody_listens_is_unavailable_and_nothing_started():
    async with peer(answering(lambda request: request)) as client:
        port = client.port

    with pytest.raises(PeerUnavailable, match=f"127.0.0.1:{port}") as caught:
        await PlainClient(port=port).call("anything")

    assert not caught.value.may_have_started


async def test_an_argument_that_cannot_travel_fails_here_and_nothing_is_sent():
    client = PlainClient(port=1)

    with pytest.raises(ConfigError, match=r"argument diff is of type set, .* send a list"):
        await client.call("ask", diff={1, 2})


async def test_arguments_that_are_too_large_fail_here_and_nothing_is_sent():
    client = PlainClient(port=1, max_upload_size=100)

    with pytest.raises(ConfigError, match="at most 100"):
        await client.call("ask", b"x" * 100)


@pytest.mark.parametrize("idempotent", [False, True])
async def test_only_an_idempotent_call_is_tried_again_when_the_connection_breaks(idempotent: bool):
    connections: list[asyncio.StreamWriter] = []
    frame = encode_frame(
        MessagePackRPCSerializer.serialize(RPCResponse(id="", ok=False, error=RPCError("x", "second")))
    )

    async def break_the_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        await reader.read(1000)
        if len(connections) == 2:
            writer.write(frame)
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(break_the_first, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        client = PlainClient(port=port, idempotent=idempotent)
        with pytest.raises(RemoteError if idempotent else PeerUnavailable):
            await client.call("anything")

    assert len(connections) == (2 if idempotent else 1)


class SilentReceiver:
    """A peer that takes a connection and says nothing; it notes when the connection ends."""

    def __init__(self) -> None:
        self.stream: ByteStream | None = None
        self.lost_at: float | None = None

    def connection_made(self, stream: ByteStream) -> None:
        self.stream = stream

    def data_received(self, data: bytes) -> None:
        pass

    def eof_received(self) -> bool | None:
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost_at = asyncio.get_running_loop().time()

    def pause_writing(self) -> None:
        pass

    def resume_writing(self) -> None:
        pass


class UnreachableTransport:
    """Packets to it vanish: a dial never ends."""

    async def connect(self, host: str, port: int, receiver: Receiver) -> ByteStream:
        return await asyncio.get_running_loop().create_future()

    async def listen(self, host: str, port: int, accept: Callable[[], Receiver]) -> Any:
        raise OSError("nobody can listen here")


def test_a_silent_peer_times_out_and_its_connection_is_closed():
    async def main() -> tuple[float, float | None]:
        transport, silent = MemoryTransport(), SilentReceiver()
        await transport.listen("127.0.0.1", 9999, lambda: silent)

        with pytest.raises(TimeoutError, match=r"in the time given$") as caught:
            await PlainClient(transport=transport).call("anything")

        assert isinstance(caught.value, Timeout)
        ended_at = asyncio.get_running_loop().time()
        await asyncio.sleep(1)
        return ended_at, silent.lost_at

    assert run(main()) == (30, 30)


def test_the_timeout_covers_the_dial():
    async def main() -> float:
        with pytest.raises(Timeout, match="the call was not started"):
            await PlainClient(transport=UnreachableTransport(), timeout=3).call("anything")
        return asyncio.get_running_loop().time()

    assert run(main()) == 3


def test_without_a_timeout_a_call_waits_for_ever():
    async def main() -> bool:
        transport, silent = MemoryTransport(), SilentReceiver()
        await transport.listen("127.0.0.1", 9999, lambda: silent)
        call = asyncio.ensure_future(PlainClient(transport=transport, timeout=None).call("anything"))
        await asyncio.sleep(1e6)
        is_done = call.done()
        call.cancel()
        return is_done

    assert run(main()) is False


async def test_a_cancelled_call_closes_its_connection():
    asked, closed = asyncio.Event(), asyncio.Event()

    async def notice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_frame(reader, 1000)
        asked.set()
        with pytest.raises(ConnectionResetError):  # an end would look like that of a caller who waits
            await reader.read()
        closed.set()

    async with peer(notice) as client:
        call = asyncio.create_task(client.call("slow"))
        await asked.wait()

        call.cancel()

        with pytest.raises(asyncio.CancelledError):
            await call
        async with asyncio.timeout(10):
            await closed.wait()
