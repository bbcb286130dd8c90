from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import enum
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

import pydantic
import pytest

from simulations.virtual_loop import run
from synapse_p2p import CallContext, CallError, Client, ConfigError, Identity, RemoteError, Server
from synapse_p2p.config import ServerConfig
from synapse_p2p.exceptions import PeerUnavailable
from synapse_p2p.framing import encode_frame
from synapse_p2p.messages import RPCError, RPCMessage, RPCRequest, RPCResponse
from synapse_p2p.runtime import Runtime
from synapse_p2p.serializers import MessagePackRPCSerializer
from synapse_p2p.server import STOP_GRACE_S
from synapse_p2p.transport.base import ByteStream, Transport
from synapse_p2p.transport.memory import MemoryTransport
from synapse_p2p.transport.tcp import TcpTransport
from synapse_p2p.trust import TrustConfig
from synapse_p2p.types import Node

T = TypeVar("T")
SHORT_LINGER = ServerConfig(linger_s=0.05)  # the caller here reads to the end of the stream
PING = encode_frame(MessagePackRPCSerializer.serialize(RPCRequest(endpoint="_synapse.ping", id="7")))


@pytest.fixture(params=[TcpTransport, MemoryTransport])
def transport(request: pytest.FixtureRequest) -> Transport:
    return request.param()


@contextlib.asynccontextmanager
async def serving(server: Server) -> AsyncIterator[Server]:
    await server.start()
    try:
        yield server
    finally:
        await server.stop(grace=0)


class PlainSerializer(MessagePackRPCSerializer):
    """The one of release 1.3. A client with a serializer of its own speaks the plain wire."""


def client_of(server: Server, transport: Transport | None = None) -> Client:
    """A plain caller."""
    return Client(server.address, server.port, PlainSerializer, timeout=10, transport=transport)


def session_client_of(server: Server, **options: Any) -> Client:
    return Client(server.address, server.port, timeout=10, network=server.network, **options)


async def bytes_answered(server: Server, data: bytes, *, says_end: bool = False) -> bytes:
    """All that a TCP server answers to these bytes before it closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(data)
        if says_end:
            writer.write_eof()
        async with asyncio.timeout(10):
            return await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def error_in(answer: bytes) -> RPCError:
    assert int.from_bytes(answer[:4], "big") == len(answer) - 4
    response = MessagePackRPCSerializer.deserialize(answer[4:])
    assert isinstance(response, RPCResponse)
    assert response.error is not None
    return response.error


# What release 1.3 offers


async def test_endpoints_answer_over_any_transport(transport: Transport):
    server = Server(port=0, transport=transport)

    @server.endpoint("sum")
    async def add(a: int, b: int, scale: int = 1) -> int:
        return (a + b) * scale

    @server.endpoint()
    def shout(text: str) -> str:
        return text.upper()

    async with serving(server):
        client = client_of(server, transport)

        assert await client.call("sum", 2, 3, scale=2) == 10
        assert await client.call("shout", "hello") == "HELLO"
        assert await client.call("_synapse.ping") == "pong"


async def test_the_request_the_node_and_the_context_are_filled_in():
    server = Server(port=0, network="workshop")

    @server.endpoint()
    async def who(rpc: Any, node: Any, context: CallContext) -> Any:
        return [rpc.endpoint, len(rpc.id), node.ip, len(node.identifier), context.peer, context.network]

    async with serving(server):
        assert await client_of(server).call("who") == ["who", 32, "127.0.0.1", 8, None, "workshop"]


async def test_methods_tells_of_the_published_endpoints_alone():
    server = Server(port=0)

    @server.endpoint("shown")
    async def shown() -> None:
        """The docstring describes it."""

    @server.endpoint("hidden", publish=False)
    async def hidden() -> None: ...

    async with serving(server):
        methods = await client_of(server).call("_synapse.methods")

    assert methods == [{"name": "shown", "publish": True, "description": "The docstring describes it."}]


async def test_info_tells_who_the_server_is():
    server = Server(port=0, network="workshop")

    async with serving(server):
        info = await client_of(server).call("_synapse.info")

    assert set(info) == {"id", "version", "network"}
    assert (info["id"], info["network"]) == (server.identity.node_id.hex(), "workshop")


def test_decorators_register_by_name():
    server = Server()

    @server.endpoint()
    async def ping() -> None: ...

    @server.background(5)
    async def heartbeat() -> None: ...

    assert server.endpoint_directory["ping"] is ping
    assert server.endpoint_metadata["ping"].publish
    assert [(task.name, task.period) for task in server.background_executor.tasks] == [("heartbeat", 5)]


async def test_the_stream_callback_of_release_1_3_serves_a_call():
    server = Server()

    @server.endpoint("sum")
    async def add(a: int, b: int) -> int:
        return a + b

    listener = await asyncio.start_server(server.handle_data, "127.0.0.1", 0)
    async with listener:
        server.port = listener.sockets[0].getsockname()[1]

        assert await client_of(server).call("sum", 2, 3) == 5
        with pytest.raises(RuntimeError, match="Unregistered endpoint called: missing"):
            await client_of(server).call("missing")
        assert error_in(await bytes_answered(server, b"\x00\x00", says_end=True)).message == "incomplete frame"
        assert await bytes_answered(server, b"", says_end=True) == b""


async def test_the_background_runs_while_the_server_does():
    server = Server(port=0)
    has_run = asyncio.Event()

    @server.background(1000)
    async def beat() -> None:
        has_run.set()

    async with serving(server), asyncio.timeout(10):
        await has_run.wait()


# Failures


async def test_an_unknown_endpoint_is_a_bad_request():
    async with serving(Server(port=0)) as server:
        with pytest.raises(RemoteError, match=r"^Unregistered endpoint called: nope$") as caught:
            await client_of(server).call("nope")

    assert caught.value.code == "bad_request"


async def test_the_text_of_an_exception_never_reaches_the_caller(caplog: pytest.LogCaptureFixture):
    server = Server(port=0)

    @server.endpoint()
    async def boom() -> None:
        raise RuntimeError("canary")

    request = encode_frame(MessagePackRPCSerializer.serialize(RPCRequest(endpoint="boom")))
    async with serving(server):
        answer = await bytes_answered(server, request)
        assert await client_of(server).call("_synapse.ping") == "pong"

    error = error_in(answer)
    assert error.code == "internal_error"
    assert b"canary" not in answer
    assert "canary" in caplog.text
    assert error.message.removeprefix("internal error (reference ").removesuffix(")") in caplog.text
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1


async def test_exceptions_are_shown_to_callers_while_developing():
    server = Server(port=0, expose_errors=True)

    @server.endpoint()
    async def boom() -> None:
        raise RuntimeError("canary")

    async with serving(server):
        with pytest.raises(RemoteError, match="canary"):
            await client_of(server).call("boom")


async def test_a_handlers_own_refusal_is_told_in_its_words():
    server = Server(port=0)

    @server.endpoint()
    async def refuse() -> None:
        raise CallError("out_of_budget", "come back tomorrow")

    async with serving(server):
        with pytest.raises(RemoteError, match=r"^out_of_budget: come back tomorrow$") as caught:
            await client_of(server).call("refuse")

    assert caught.value.code == "internal_error"


async def test_a_result_that_cannot_travel_is_an_internal_error(caplog: pytest.LogCaptureFixture):
    server = Server(port=0)

    @server.endpoint()
    async def sets() -> Any:
        return {"found": {1, 2}}

    async with serving(server):
        with pytest.raises(RemoteError, match="internal error") as caught:
            await client_of(server).call("sets")

    assert caught.value.code == "internal_error"
    assert "the result['found'] is of type set" in caplog.text


async def test_any_error_of_a_users_serializer_is_an_internal_error():
    class Picky(MessagePackRPCSerializer):
        @classmethod
        def serialize(cls, outgoing: RPCMessage) -> bytes:
            if isinstance(outgoing, RPCResponse) and outgoing.ok:
                raise LookupError("no")
            return super().serialize(outgoing)

    async with serving(Server(port=0, serializer_class=Picky)) as server:
        with pytest.raises(RemoteError, match="internal error"):
            await client_of(server).call("_synapse.ping")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (encode_frame(b"\xc1 garbage"), "not a valid MsgPack message"),
        (encode_frame(MessagePackRPCSerializer.serialize(RPCResponse(id="7", ok=True))), "expected request message"),
        (encode_frame(b"\x81\xa8endpoint\x07"), "endpoint is text"),
        (b"\x7f\xff\xff\xff" + b"x" * 100_000, "frame too large: 2147483647 > 1048576"),
    ],
)
async def test_what_is_no_request_is_answered_with_a_bad_request(data: bytes, message: str):
    async with serving(Server(port=0, config=SHORT_LINGER)) as server:
        error = error_in(await bytes_answered(server, data))

    assert error.code == "bad_request"
    assert message in error.message


@pytest.mark.parametrize("data", [b"\x00", b"\x00\x00\x00", PING[:10]])
async def test_half_a_request_is_answered_with_incomplete_frame(data: bytes):
    async with serving(Server(port=0)) as server:
        error = error_in(await bytes_answered(server, data, says_end=True))

    assert error == RPCError("bad_request", "incomplete frame")


async def test_a_caller_may_end_its_half_once_it_has_asked():
    async with serving(Server(port=0)) as server:
        answer = await bytes_answered(server, PING, says_end=True)

    assert MessagePackRPCSerializer.deserialize(answer[4:]) == RPCResponse(id="7", ok=True, result="pong")


async def test_a_caller_that_leaves_midway_takes_nothing_with_it():
    server = Server(port=0)
    started, release = asyncio.Event(), asyncio.Event()

    @server.endpoint()
    async def slow() -> str:
        started.set()
        await release.wait()
        return "x" * 1_000_000

    async with serving(server):
        call = asyncio.create_task(client_of(server).call("slow"))
        await started.wait()
        call.cancel()
        release.set()

        assert await client_of(server).call("_synapse.ping") == "pong"
        assert call.cancelled()


async def test_large_messages_go_both_ways(transport: Transport):
    server = Server(port=0, transport=transport)

    @server.endpoint()
    async def echo(data: bytes) -> bytes:
        return data

    data = bytes(range(256)) * 4000
    async with serving(server):
        assert await client_of(server, transport).call("echo", data) == data


# Both wires


@dataclasses.dataclass
class Part:
    name: str
    size: Size


class Size(enum.Enum):
    SMALL = "small"


class Receipt(pydantic.BaseModel):
    number: int


def no_hint():
    return {"parts": [Part("bolt", Size.SMALL)], "size": Size.SMALL}


def open_map() -> dict:
    return {"first": Part("bolt", Size.SMALL), "more": {"receipt": Receipt(number=7)}}


def open_list() -> list[Any]:
    return [Part("bolt", Size.SMALL), [Size.SMALL], 7]


def named_map() -> dict[str, Part]:
    return {"first": Part("bolt", Size.SMALL)}


def wrong_hint() -> dict[str, int]:
    return {"first": Part("bolt", Size.SMALL)}  # type: ignore[dict-item]


def plain_values() -> dict:
    return {"text": "a", "bytes": b"b", "numbers": [1, 2.5, None, True]}


BOLT = {"name": "bolt", "size": "small"}


@pytest.mark.parametrize(
    ("function", "result"),
    [
        (no_hint, {"parts": [BOLT], "size": "small"}),
        (open_map, {"first": BOLT, "more": {"receipt": {"number": 7}}}),
        (open_list, [BOLT, ["small"], 7]),
        (named_map, {"first": BOLT}),
        (wrong_hint, {"first": BOLT}),
        (plain_values, plain_values()),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_a_result_travels_alike_on_both_wires_whatever_the_hints_say(function: Any, result: Any):
    server = Server(port=0)
    server.endpoint("give")(function)

    async with serving(server), session_client_of(server) as client:
        assert await client.call("give") == result
        assert await client_of(server).call("give") == result


def endless() -> list:
    held: list[Any] = []
    held.append(held)
    return held


class Moody(pydantic.BaseModel):
    def model_dump(self, **options: Any) -> Any:
        raise LookupError("canary")


@pytest.mark.parametrize("value", [endless(), {"a": {1, 2}}, [Part("bolt", endless())], [Moody()]])
async def test_a_result_that_nothing_can_dump_is_an_internal_error_on_both_wires(
    value: Any, caplog: pytest.LogCaptureFixture
):
    server = Server(port=0)

    @server.endpoint()
    async def give() -> dict:
        return value

    async with serving(server), session_client_of(server) as client:
        for caller in (client, client_of(server)):
            with pytest.raises(RemoteError) as caught:
                await caller.call("give")
            assert caught.value.code == "internal_error"
            assert "canary" not in str(caught.value)
        assert await client.call("_synapse.ping") == "pong"


async def test_a_handler_learns_who_calls_in_which_network_until_when_and_for_which_trace():
    server = Server(port=0, network="workshop")
    contexts: list[CallContext] = []
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    @server.endpoint()
    async def note(context: CallContext) -> None:
        contexts.append(context)

    identity = Identity.from_seed(b"a" * 32)
    async with serving(server), session_client_of(server, identity=identity) as client:
        before = server.runtime.now()
        await client.with_options(timeout_s=5, traceparent=traceparent).call("note")
        await client.with_options(timeout_s=None).call("note")
        await client_of(server).call("note")
    timed, unlimited, plain = contexts

    assert timed.peer == unlimited.peer == identity.node_id
    assert timed.deadline is not None and before < timed.deadline < before + 6
    assert (timed.traceparent, unlimited.traceparent, unlimited.deadline) == (traceparent, None, None)
    assert (plain.peer, plain.deadline, plain.traceparent) == (None, None, None)
    assert {context.network for context in contexts} == {"workshop"}
    assert {context.address.partition(":")[0] for context in contexts} == {"127.0.0.1"}


# Who is served


class ElsewhereTransport(TcpTransport):
    """Loopback whose callers seem to come from another host."""

    async def listen(self, host: str, port: int, accept: Any) -> Any:
        def accept_elsewhere() -> Any:
            receiver = accept()
            made = receiver.connection_made
            receiver.connection_made = lambda stream: made(ElsewhereStream(stream))
            return receiver

        return await super().listen(host, port, accept_elsewhere)


class ElsewhereStream:
    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self.peer_address = "192.0.2.7:4000"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@pytest.mark.parametrize(
    ("plain", "transport_class", "advice"),
    [
        ("loopback", ElsewhereTransport, 'Server(plain="anywhere")'),
        ("off", TcpTransport, "encrypted client"),
        ("off", ElsewhereTransport, "encrypted client"),
    ],
)
async def test_a_plain_caller_that_is_not_served_is_told_what_to_do(plain: Any, transport_class: Any, advice: str):
    async with serving(Server(port=0, plain=plain, transport=transport_class(), config=SHORT_LINGER)) as server:
        error = error_in(await bytes_answered(server, PING))

    assert error.code == "bad_request"
    assert advice in error.message


async def test_plain_callers_from_elsewhere_are_served_on_request():
    async with serving(Server(port=0, plain="anywhere", transport=ElsewhereTransport())) as server:
        assert await client_of(server).call("_synapse.ping") == "pong"


@pytest.mark.parametrize("options", [{"plain": "sometimes"}, {"max_upload_size": 0}, {"max_upload_size": 0xA5000000}])
def test_a_setting_that_cannot_be_is_refused(options: dict[str, Any]):
    with pytest.raises(ConfigError, match=next(iter(options))):
        Server(**options)


# Deadlines and bounds, on virtual time


class Probe:
    """A caller that does as it is told and notes what comes back, and when it was cut off."""

    def __init__(self) -> None:
        self.stream: ByteStream | None = None
        self.received = b""
        self.lost_at: float | None = None

    def connection_made(self, stream: ByteStream) -> None:
        self.stream = stream

    def data_received(self, data: bytes) -> None:
        self.received += data

    def eof_received(self) -> bool | None:
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost_at = asyncio.get_running_loop().time()

    def pause_writing(self) -> None:
        pass

    def resume_writing(self) -> None:
        pass


def on_virtual_time(main: Coroutine[Any, Any, T]) -> T:
    return run(main)


def virtual_server(transport: MemoryTransport, **config: Any) -> Server:
    loop = asyncio.get_running_loop()
    rng = random.Random(7)
    runtime = Runtime(now=loop.time, unix_now=loop.time, rng=rng, token_bytes=rng.randbytes)
    return Server(transport=transport, runtime=runtime, config=ServerConfig(**config))


def plain_client(transport: MemoryTransport, **options: Any) -> Client:
    return Client(serializer_class=PlainSerializer, transport=transport, **options)


async def probe(transport: MemoryTransport, server: Server, data: bytes = b"") -> Probe:
    caller = Probe()
    stream = await transport.connect(server.address, server.port, caller)
    stream.write(data)
    return caller


@pytest.mark.parametrize(
    ("data", "cut_off_at"),
    [
        (b"", 10),
        (b"\x00\x00\x00", 10),
        ((32 * 1024).to_bytes(4, "big"), 12),  # 10 s and what 16 KiB/s need
        (PING[:-1], 10 + (len(PING) - 4) / (16 * 1024)),
    ],
)
def test_a_caller_that_stops_sending_is_cut_off(data: bytes, cut_off_at: float):
    async def main() -> Probe:
        transport = MemoryTransport()
        async with serving(virtual_server(transport)) as server:
            caller = await probe(transport, server, data)
            await asyncio.sleep(60)
        return caller

    caller = on_virtual_time(main())

    assert caller.received == b""
    assert caller.lost_at == pytest.approx(cut_off_at, abs=1e-3)


def test_a_handler_may_take_longer_than_any_request():
    async def main() -> Any:
        transport = MemoryTransport()
        server = virtual_server(transport)

        @server.endpoint()
        async def slow() -> str:
            await asyncio.sleep(3600)
            return "done"

        async with serving(server):
            return await plain_client(transport, timeout=None).call("slow")

    assert on_virtual_time(main()) == "done"


def test_silent_callers_keep_no_newcomer_out():
    async def main() -> tuple[Any, list[float | None]]:
        transport = MemoryTransport()
        async with serving(virtual_server(transport, max_plain_connections=3)) as server:
            silent = [await probe(transport, server) for _ in range(3)]
            answer = await plain_client(transport).call("_synapse.ping")
            await asyncio.sleep(0.1)
            return answer, [caller.lost_at for caller in silent]

    answer, lost_at = on_virtual_time(main())

    assert answer == "pong"
    assert lost_at == [0, None, None]  # the oldest made room


def test_callers_that_are_being_served_keep_their_place():
    async def main() -> tuple[Any, Any]:
        transport = MemoryTransport()
        server = virtual_server(transport, max_plain_connections=1)

        @server.endpoint()
        async def slow() -> str:
            await asyncio.sleep(5)
            return "done"

        async with serving(server):
            first = asyncio.ensure_future(plain_client(transport).call("slow"))
            await asyncio.sleep(1)
            with pytest.raises(PeerUnavailable):
                await plain_client(transport).call("_synapse.ping")
            return await first, await plain_client(transport).call("_synapse.ping")

    assert on_virtual_time(main()) == ("done", "pong")


def test_calls_beyond_the_bound_are_told_that_the_server_is_busy_and_pings_are_answered():
    async def main() -> Any:
        transport = MemoryTransport()
        server = virtual_server(transport, max_handlers=1)

        @server.endpoint()
        async def slow() -> str:
            await asyncio.sleep(5)
            return "done"

        async with serving(server):
            first = asyncio.ensure_future(plain_client(transport).call("slow"))
            await asyncio.sleep(1)
            with pytest.raises(RemoteError, match="too many calls"):
                await plain_client(transport).call("slow")
            return await plain_client(transport).call("_synapse.ping"), await first

    assert on_virtual_time(main()) == ("pong", "done")


def test_a_caller_refused_early_gets_to_read_it():
    async def main() -> Probe:
        transport = MemoryTransport()
        async with serving(virtual_server(transport)) as server:
            caller = await probe(transport, server, b"\x7f\xff\xff\xff")
            assert caller.stream is not None
            for _ in range(100):
                caller.stream.write(b"x" * 10_000)
                await asyncio.sleep(0.1)
        return caller

    caller = on_virtual_time(main())

    assert error_in(caller.received).message.startswith("frame too large")
    assert caller.lost_at == pytest.approx(1, abs=0.2)


# Life


async def test_port_zero_becomes_the_real_port_and_start_repeats_itself():
    server = Server(port=0)

    first = await server.start()
    second = await server.start()

    assert first is second is server._server
    assert server.port == first.sockets[0].getsockname()[1] != 0
    await server.stop()
    assert server._server is None


async def test_starts_at_the_same_time_open_one_port():
    server = Server(port=0)

    first, second = await asyncio.gather(server.start(), server.start())

    assert first is second
    await server.stop()


async def test_a_stopped_server_takes_no_calls_and_can_start_again():
    server = Server(port=0)
    await server.start()
    await server.stop()

    with pytest.raises(PeerUnavailable):
        await client_of(server).call("_synapse.ping")
    async with serving(server):
        assert await client_of(server).call("_synapse.ping") == "pong"


async def test_a_stop_before_the_start_does_nothing():
    server = Server(port=0)

    await server.stop()

    assert server._server is None


async def test_a_hundred_silent_callers_do_not_hold_up_the_stop():
    server = Server(port=0)
    await server.start()
    streams = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(100)]
    started = time.monotonic()

    await server.stop()

    assert time.monotonic() - started < 2
    for _, writer in streams:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def test_a_call_that_ends_in_time_is_answered_though_the_server_stops():
    async def main() -> tuple[Any, float]:
        transport = MemoryTransport()
        server = virtual_server(transport)

        @server.endpoint()
        async def slow(seconds: float) -> str:
            await asyncio.sleep(seconds)
            return "done"

        await server.start()
        quick = asyncio.ensure_future(plain_client(transport).call("slow", 2))
        late = asyncio.ensure_future(plain_client(transport).call("slow", 9))
        await asyncio.sleep(1)
        await server.stop(grace=3)
        with pytest.raises(PeerUnavailable):
            await late
        return await quick, asyncio.get_running_loop().time()

    assert on_virtual_time(main()) == ("done", 4)


def test_calls_that_run_get_five_seconds_and_callers_that_wait_for_none_take_nothing():
    async def main() -> Any:
        transport = MemoryTransport()
        server = virtual_server(transport)
        loop = asyncio.get_running_loop()

        @server.endpoint()
        async def slow(seconds: float) -> str:
            await asyncio.sleep(seconds)
            return "done"

        def session_client() -> Client:
            return Client(transport=transport, runtime=server.runtime, timeout=None)

        await server.start()
        idle = session_client()
        await idle.call("_synapse.ping")
        await probe(transport, server)
        begun = loop.time()
        await server.stop()
        idle_stop_s = loop.time() - begun

        await server.start()
        quick = [asyncio.ensure_future(each.call("slow", 4.5)) for each in (session_client(), plain_client(transport))]
        late = [asyncio.ensure_future(each.call("slow", 60)) for each in (session_client(), plain_client(transport))]
        await asyncio.sleep(0.1)
        begun = loop.time()
        await server.stop()
        busy_stop_s = loop.time() - begun
        for each in late:
            with pytest.raises(PeerUnavailable):
                await each
        return idle_stop_s, busy_stop_s, await asyncio.gather(*quick)

    idle_stop_s, busy_stop_s, answers = on_virtual_time(main())

    assert idle_stop_s < 0.1
    assert STOP_GRACE_S <= busy_stop_s < STOP_GRACE_S + 0.6
    assert answers == ["done", "done"]


def test_what_arrives_while_the_server_drains_is_refused():
    async def main() -> Any:
        transport = MemoryTransport()
        server = virtual_server(transport)
        ran: list[str] = []

        @server.endpoint()
        async def slow(name: str) -> str:
            ran.append(name)
            await asyncio.sleep(2)
            return "done"

        await server.start()
        client = Client(transport=transport, runtime=server.runtime, timeout=None)
        in_time = asyncio.ensure_future(client.call("slow", "in time"))
        half = await probe(transport, server, PING[:-1])
        await asyncio.sleep(1)
        stopping = asyncio.ensure_future(server.stop(grace=9))
        await asyncio.sleep(0.1)
        for late in (client, plain_client(transport)):
            with pytest.raises(PeerUnavailable) as caught:
                await late.call("slow", "late")
            assert not caught.value.may_have_started
        await stopping
        return ran, half.received, await in_time

    assert on_virtual_time(main()) == (["in time"], b"", "done")


def test_a_handler_that_ignores_its_cancellation_does_not_hold_up_the_stop(caplog: pytest.LogCaptureFixture):
    async def main() -> float:
        transport = MemoryTransport()
        server = virtual_server(transport)

        @server.endpoint()
        async def stubborn() -> None:
            while asyncio.get_running_loop().time() < 100:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(10)

        await server.start()
        call = asyncio.ensure_future(plain_client(transport).call("stubborn"))
        await asyncio.sleep(1)
        await server.stop(grace=0.5)
        stopped_at = asyncio.get_running_loop().time()
        with pytest.raises(PeerUnavailable):
            await call
        await asyncio.sleep(200)
        return stopped_at

    assert on_virtual_time(main()) < 3
    assert "1 handlers ignore" in caplog.text


async def test_a_handler_may_stop_its_own_server_and_still_answer(transport: Transport):
    server = Server(port=0, transport=transport)

    @server.endpoint()
    async def leave() -> str:
        await server.stop()
        return "goodbye"

    await server.start()

    assert await client_of(server, transport).call("leave") == "goodbye"
    assert server._server is None


async def test_a_blocked_thread_does_not_hold_up_the_stop():
    server = Server(port=0)
    started, release = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    @server.endpoint()
    def block() -> None:
        loop.call_soon_threadsafe(started.set)
        release.wait(10)

    await server.start()
    call = asyncio.create_task(client_of(server).call("block"))
    await started.wait()
    begun = time.monotonic()
    await server.stop(grace=0.1)

    assert time.monotonic() - begun < 2
    release.set()
    with pytest.raises(PeerUnavailable):
        await call


async def test_serve_says_where_it_listens_and_what_it_offers(capsys: pytest.CaptureFixture[str]):
    server = Server(port=0)
    is_up = asyncio.Event()

    @server.endpoint("sum")
    async def add(a: int, b: int) -> int:
        return a + b

    @server.background(5)
    async def heartbeat() -> None:
        is_up.set()

    serving_task = asyncio.create_task(server.serve())
    await is_up.wait()
    await server.stop()
    await serving_task

    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"Listening on 127.0.0.1:{server.port}"
    assert {"Registered Endpoints:", "- sum", "- _synapse.ping", "Background Tasks:", "- heartbeat (5s)"} <= set(lines)


async def test_a_cancelled_serve_stops_the_server():
    server = Server(port=0)
    is_up = asyncio.Event()

    @server.background(5)
    async def beat() -> None:
        is_up.set()

    serving_task = asyncio.create_task(server.serve())
    await is_up.wait()
    serving_task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await serving_task
    assert server._server is None


async def test_run_inside_a_loop_names_the_way_out():
    with pytest.raises(ConfigError, match=r"await server\.start\(\)"):
        Server(port=0).run()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no such signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_run_with_a_clean_exit(number: signal.Signals):
    program = "from synapse_p2p import Server; Server(port=0).run(); print('ended')"
    arguments = [sys.executable, "-W", "error", "-u", "-c", program]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDEVMODE"}  # it logs more

    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        first_line = process.stdout.readline()
        os.kill(process.pid, number)
        out, errors = process.communicate(timeout=20)

    assert first_line.startswith("Listening on 127.0.0.1:")
    assert out.endswith("ended\n")
    assert (process.returncode, errors) == (0, "")


def test_a_server_serves_in_one_loop_after_another():
    server = Server(port=0)

    async def ask() -> Any:
        async with serving(server):
            return await client_of(server).call("_synapse.ping")

    assert [asyncio.run(ask()), asyncio.run(ask())] == ["pong", "pong"]


def test_the_package_offers_what_it_lists_and_names_the_heirs_of_release_2():
    import synapse_p2p

    assert all(hasattr(synapse_p2p, name) for name in synapse_p2p.__all__)
    assert synapse_p2p.__version__[0].isdigit()
    with pytest.raises(ImportError, match="here use AgentNode"):
        from synapse_p2p import Node  # noqa: F401
    with pytest.raises(AttributeError, match="nothing_like_this"):
        _ = synapse_p2p.nothing_like_this


def test_endpoint_metadata_has_three_fields():
    server = Server()

    assert dataclasses.asdict(server.endpoint_metadata["_synapse.ping"]) == {
        "name": "_synapse.ping",
        "publish": False,
        "description": "Whether this server answers.",
    }


async def test_a_stop_during_the_start_closes_the_port():
    server = Server(port=0)
    starting = asyncio.ensure_future(server.start())
    await asyncio.sleep(0)

    await server.stop()

    listening = await starting
    assert not listening.is_serving()
    assert server.listening_addresses == ()


async def test_callers_come_over_ipv6_too():
    server = Server("::1", 0)
    seen = []

    @server.endpoint()
    async def whoami(node: Node) -> str:
        seen.append(node.ip)
        return node.ip

    try:
        await server.start()
    except OSError:
        pytest.skip("this machine has no IPv6")
    answer = await Client("::1", server.port).call("whoami")
    await server.stop()

    assert answer == seen[0] == "::1"


def test_limits_by_place_follow_the_settings_and_end_where_a_key_keeps_strangers_out():
    config = ServerConfig(pool=dataclasses.replace(ServerConfig().pool, trust=TrustConfig(private=False)))

    assert Server(config=config).trust == TrustConfig(private=False)
    assert Server(config=config, network_key=bytes(32)).trust == TrustConfig.everybody()
