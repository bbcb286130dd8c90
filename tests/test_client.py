"""The client over real servers and over peers that mean no good; what one plain call does is in test_plain_call.py."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from simulations.virtual_loop import run
from synapse_p2p.client import IDLE_S, PLAIN_MEMORY_S, Client
from synapse_p2p.config import PoolConfig, ServerConfig
from synapse_p2p.context import CallContext
from synapse_p2p.exceptions import ConfigError, HandshakeFailed, PeerUnavailable, RemoteError, Timeout
from synapse_p2p.framing import encode_frame
from synapse_p2p.identity import Identity
from synapse_p2p.messages import RPCError, RPCResponse
from synapse_p2p.runtime import Runtime, system_runtime
from synapse_p2p.serializers import MessagePackRPCSerializer
from synapse_p2p.server import Server
from synapse_p2p.transport.base import ByteStream, Receiver
from synapse_p2p.transport.memory import MemoryTransport

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
PREAMBLE_AS_LENGTH = int.from_bytes(b"\xa5SYN", "big")
NOT_MINE = Identity.from_seed(b"n" * 32).node_id


@contextlib.asynccontextmanager
async def serving(server: Server | None = None, **client_options: Any) -> AsyncIterator[Client]:
    """A client of a server that runs meanwhile; it closes neither itself."""
    server = server or app()
    await server.start()
    try:
        yield Client(port=server.port, **({"timeout": 10} | client_options))
    finally:
        await server.stop(grace=0)


def app(**options: Any) -> Server:
    server = Server(port=0, **options)

    @server.endpoint()
    async def add(a: int, b: int = 0) -> int:
        return a + b

    @server.endpoint()
    async def who(call: CallContext) -> list[Any]:
        return [call.peer, call.network, call.deadline is not None]

    return server


def virtual_runtime() -> Runtime:
    loop = asyncio.get_running_loop()
    real = system_runtime()
    return Runtime(now=loop.time, unix_now=real.unix_now, rng=real.rng, token_bytes=real.token_bytes)


# One session


async def test_all_calls_of_a_client_travel_on_one_session():
    server = app()
    async with serving(server) as client:
        answers = await asyncio.gather(*(client.call("add", number, b=1) for number in range(20)))
        await client.with_options(timeout_s=5).call("add", 1)

        assert answers == list(range(1, 21))
        assert len(server.sessions) == 1
        await client.close()


async def test_a_server_learns_who_calls_and_a_client_who_answers():
    server, own = app(network="lab"), Identity.from_seed(b"o" * 32)
    async with serving(server, identity=own, network="lab") as client, client:
        assert client.peer_id is None
        assert await client.call("who") == [own.node_id, "lab", True]
        assert len(server.sessions) == 1
    assert client.peer_id == server.identity.node_id


async def test_answers_come_in_the_order_in_which_they_are_ready():
    server, gate = app(), asyncio.Event()

    @server.endpoint()
    async def wait() -> str:
        await gate.wait()
        return "late"

    async with serving(server) as client, client:
        late = asyncio.ensure_future(client.call("wait"))
        assert await client.call("add", 1) == 1
        gate.set()
        assert await late == "late"


async def test_a_cancelled_call_cancels_the_handler_and_leaves_the_session():
    server, started, ended = app(), asyncio.Event(), asyncio.Event()

    @server.endpoint()
    async def hang() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with serving(server) as client, client:
        call = asyncio.ensure_future(client.call("hang"))
        await started.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        async with asyncio.timeout(5):
            await ended.wait()

        assert await client.call("add", 1) == 1
        assert len(server.sessions) == 1


async def test_a_deadline_that_passes_ends_the_handler_as_well():
    server, ended = app(), asyncio.Event()

    @server.endpoint()
    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with serving(server) as client, client:
        with pytest.raises(TimeoutError) as caught:
            await client.with_options(timeout_s=0.05).call("hang")
        async with asyncio.timeout(5):
            await ended.wait()

    assert isinstance(caught.value, Timeout)


async def test_a_failure_of_the_handler_is_a_remote_error_with_its_code():
    async with serving() as client, client:
        with pytest.raises(RuntimeError, match="Unregistered") as caught:
            await client.call("nothing")

    assert isinstance(caught.value, RemoteError)
    assert caught.value.code == "not_found"


async def test_a_server_that_comes_back_is_dialed_again():
    server = app()
    async with serving(server) as client, client:
        await client.call("add", 1)
        await server.stop(grace=0)
        with pytest.raises(PeerUnavailable):
            await client.call("add", 1)

        await server.start()

        assert await client.call("add", 2) == 2


async def test_a_call_that_a_stopping_server_refused_is_sent_once_more():
    # What a restart looks like to a client with a session: the old process drains, the new one takes the port.
    old, new = app(), app()
    running, gate = asyncio.Event(), asyncio.Event()

    @old.endpoint()
    async def wait() -> None:
        running.set()
        await gate.wait()

    await old.start()
    async with Client(port=old.port, timeout=10) as client:
        first = asyncio.ensure_future(client.call("wait"))
        await running.wait()
        stopping = asyncio.ensure_future(old.stop(grace=5))
        await asyncio.sleep(0.01)  # until the port is free
        new.port = old.port
        await new.start()

        assert await client.call("add", 3) == 3

        gate.set()
        await first
        await stopping
    await new.stop()


async def test_a_call_in_flight_when_the_client_closes_ends_as_unavailable():
    server, started = app(), asyncio.Event()

    @server.endpoint()
    async def hang() -> None:
        started.set()
        await asyncio.Event().wait()

    async with serving(server) as client:
        call = asyncio.ensure_future(client.call("hang"))
        await started.wait()
        await client.close()

        with pytest.raises(PeerUnavailable) as caught:
            await call
        assert caught.value.may_have_started
        assert await client.call("add", 4) == 4
        await client.close()
        await client.close()


async def test_a_server_that_calls_back_is_told_that_a_client_offers_nothing():
    server = app()

    @server.endpoint()
    async def call_me(call: CallContext) -> str:
        connection = next(iter(server.sessions._connections))
        with pytest.raises(RemoteError) as caught:
            await connection.call("anything", [], {}, timeout_s=5)
        return caught.value.code

    async with serving(server) as client, client:
        assert await client.call("call_me") == "not_found"


async def test_messages_may_be_as_large_as_both_ends_allow():
    payload = bytes(5 * 2**20)
    server = app(max_upload_size=6 * 2**20)

    @server.endpoint()
    async def echo(data: bytes) -> bytes:
        return data

    async with serving(server, max_upload_size=6 * 2**20, max_download_size=6 * 2**20) as client, client:
        assert await client.call("echo", payload) == payload


async def test_answers_that_nobody_reads_are_not_made():
    server, made = app(), 0

    @server.endpoint()
    async def large() -> bytes:
        nonlocal made
        made += 1
        return bytes(2**20)

    async with serving(server) as client:
        await client.call("add", 1)
        reading = client._session._by_loop[asyncio.get_running_loop()].connection._stream  # type: ignore[union-attr]
        assert reading is not None
        reading.pause_reading()
        calls = [asyncio.ensure_future(client.call("large")) for _ in range(60)]
        await asyncio.sleep(0.2)
        unread = made
        reading.resume_reading()
        await asyncio.gather(*calls)
        await client.close()

    assert unread < 30  # what fits into the buffers of both ends of TCP, and one more
    assert made == 60


# Dialing


class CountingTransport(MemoryTransport):
    """Counts dials; each takes a while."""

    dials = 0

    async def connect(self, host: str, port: int, receiver: Receiver) -> ByteStream:
        self.dials += 1
        await asyncio.sleep(0.1)
        return await super().connect(host, port, receiver)


def test_many_first_calls_at_once_dial_once():
    async def main() -> tuple[list[int], int]:
        transport = CountingTransport()
        server = app(transport=transport, runtime=virtual_runtime())
        await server.start()
        async with Client(port=server.port, transport=transport, runtime=virtual_runtime()) as client:
            answers = await asyncio.gather(*(client.call("add", number) for number in range(50)))
        await server.stop()
        return answers, transport.dials

    assert run(main()) == (list(range(50)), 1)


class NotingTransport(MemoryTransport):
    """Notes how much a dialer writes at a time, after its first message."""

    def __init__(self) -> None:
        super().__init__()
        self.written_bytes: list[int] = []

    async def connect(self, host: str, port: int, receiver: Receiver) -> ByteStream:
        stream: Any = await super().connect(host, port, receiver)
        write = stream.write

        def noting(data: bytes) -> None:
            self.written_bytes.append(len(data))
            write(data)

        stream.write = noting
        return stream


def test_the_first_call_leaves_together_with_the_last_message_of_the_handshake():
    async def main() -> list[int]:
        transport = NotingTransport()
        server = app(transport=transport, runtime=virtual_runtime())
        await server.start()
        async with Client(port=server.port, transport=transport, runtime=virtual_runtime()) as client:
            assert await client.call("add", 1, 2) == 3
            written_bytes = list(transport.written_bytes)
        await server.stop()
        return written_bytes

    assert len(run(main())) == 1


def test_a_dial_that_nobody_waits_for_any_more_is_given_up():
    async def main() -> int:
        transport = UnreachableTransport()
        client = Client(transport=transport, runtime=virtual_runtime())
        calls = [asyncio.ensure_future(client.call("add", number)) for number in range(3)]
        await asyncio.sleep(1)
        calls[0].cancel()
        await asyncio.sleep(1)
        assert transport.dialing == 1
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await asyncio.sleep(0)
        return transport.dialing

    assert run(main()) == 0


class UnreachableTransport:
    """Packets to it vanish: a dial never ends."""

    dialing = 0

    async def connect(self, host: str, port: int, receiver: Receiver) -> ByteStream:
        self.dialing += 1
        try:
            return await asyncio.get_running_loop().create_future()
        finally:
            self.dialing -= 1

    async def listen(self, host: str, port: int, accept: Any) -> Any:
        raise OSError("nobody can listen here")


def test_the_timeout_covers_the_dial():
    async def main() -> float:
        with pytest.raises(Timeout, match="not started"):
            await Client(transport=UnreachableTransport(), runtime=virtual_runtime(), timeout=3).call("anything")
        return asyncio.get_running_loop().time()

    assert run(main()) == 3


async def test_an_address_where_nobody_listens_is_unavailable_and_nothing_started():
    async with serving() as client:
        port = client.port

    for _ in range(2):  # the second is no echo of the first: a server may have come up in between
        with pytest.raises(ConnectionError, match=f"127.0.0.1:{port}") as caught:
            await Client(port=port).call("anything")
        assert isinstance(caught.value, PeerUnavailable)
        assert not caught.value.may_have_started


async def test_an_argument_that_cannot_travel_fails_here_and_nobody_is_dialed():
    client = Client(port=1)

    with pytest.raises(ConfigError, match=r"ask cannot be .*: argument diff is of type set, .* send a list"):
        await client.call("ask", diff={1, 2})
    with pytest.raises(ConfigError, match=r"take \d+ bytes; one call carries 4194304 at most"):
        await client.call("ask", bytes(5 * 2**20))


async def test_an_argument_that_cannot_travel_leaves_an_open_session_as_it_is():
    async with serving() as client, client:
        await client.call("add", 1)
        with pytest.raises(ConfigError, match=r"add cannot be .*: argument 1 is of type set"):
            await client.call("add", {1, 2})

        assert await client.call("add", 2) == 2


@pytest.mark.parametrize("name", ["", "a" * 257, 12])
async def test_a_name_that_no_endpoint_can_have_leaves_the_session_and_its_other_calls_alone(name: Any):
    server, gate = app(), asyncio.Event()

    @server.endpoint()
    async def wait() -> str:
        await gate.wait()
        return "done"

    async with serving(server) as client, client:
        with pytest.raises(ConfigError, match="an endpoint's name is text"):
            await client.call(name)
        waiting = asyncio.ensure_future(client.call("wait"))
        await client.call("add", 1)
        with pytest.raises(ConfigError, match="an endpoint's name is text"):
            await client.call(name)
        gate.set()

        assert await waiting == "done"


def test_a_call_after_a_dial_that_took_too_long_dials_anew():
    async def main() -> list[str]:
        client = Client(transport=UnreachableTransport(), runtime=virtual_runtime(), timeout=1)
        texts = []
        for _ in range(2):
            with pytest.raises(Timeout) as caught:
                await client.call("add")
            texts.append(str(caught.value))
        return texts

    assert run(main()) == ["127.0.0.1:9999 took no connection in the time given; add was not started"] * 2


async def test_those_who_wait_for_one_dial_are_each_told_whether_their_own_call_may_have_run():
    server = app()
    has_begun = asyncio.Event()

    @server.endpoint()
    async def wait_long() -> None:
        has_begun.set()
        await asyncio.sleep(60)

    async with serving(server) as client, client:
        sent_once = asyncio.ensure_future(client.with_options(idempotent=True).call("wait_long"))
        await has_begun.wait()
        server._listener.close()  # type: ignore[union-attr]
        next(iter(server.sessions._connections)).abort()
        while client._session._here().dial is None:  # noqa: ASYNC110 - there is nothing to wait for but time
            await asyncio.sleep(0)
        never_sent = asyncio.ensure_future(client.call("add", 1))
        errors = await asyncio.gather(sent_once, never_sent, return_exceptions=True)

    assert [type(error) for error in errors] == [PeerUnavailable] * 2
    assert [error.may_have_started for error in errors if isinstance(error, PeerUnavailable)] == [True, False]


async def test_a_second_try_that_reaches_nobody_does_not_hide_that_the_first_may_have_run():
    server = app()

    @server.endpoint()
    async def vanish() -> None:
        server._listener.close()  # type: ignore[union-attr]
        next(iter(server.sessions._connections)).abort()

    async with serving(server) as client:
        with pytest.raises(PeerUnavailable, match="cannot be reached") as caught:
            await client.with_options(idempotent=True).call("vanish")

    assert caught.value.may_have_started


def test_a_call_on_a_session_that_takes_no_more_is_not_cut_off_by_its_client():
    async def main() -> str:
        transport = MemoryTransport()
        server, running = app(transport=transport, runtime=virtual_runtime()), asyncio.Event()

        @server.endpoint()
        async def slow() -> str:
            running.set()
            await asyncio.sleep(4 * IDLE_S)
            return "done"

        await server.start()
        client = Client(port=server.port, transport=transport, runtime=virtual_runtime(), timeout=None)
        call = asyncio.ensure_future(client.call("slow"))
        await running.wait()
        stopping = asyncio.ensure_future(server.stop(grace=10 * IDLE_S))
        await asyncio.sleep(1)
        with pytest.raises(PeerUnavailable):
            await client.call("add", 1)  # from now on the client knows that it is draining
        answer = await call
        await stopping
        return answer

    assert run(main()) == "done"


async def test_a_burst_of_calls_waits_for_its_turn_instead_of_being_refused():
    server = app()

    @server.endpoint()
    async def nap() -> str:
        await asyncio.sleep(0)
        return "slept"

    async with serving(server) as client, client:
        answers = await asyncio.gather(*(client.call("nap") for _ in range(1000)))
        calls = [asyncio.ensure_future(client.call("nap")) for _ in range(600)]
        await asyncio.sleep(0)
        for call in calls[::2]:
            call.cancel()
        left = await asyncio.gather(*calls, return_exceptions=True)

    assert answers == ["slept"] * 1000
    assert left[1::2] == ["slept"] * 300


async def test_more_clients_than_a_server_keeps_idle_all_get_their_answers():
    server = app(config=ServerConfig(pool=PoolConfig(max_idle_sessions=4)))
    async with serving(server) as first:

        async def call_now_and_then(number: int) -> list[int]:
            async with Client(port=first.port, timeout=10) as client:
                return [await client.call("add", number) for _ in range(3)]

        answers = await asyncio.gather(*(call_now_and_then(number) for number in range(40)))

    assert answers == [[number] * 3 for number in range(40)]


@pytest.mark.parametrize("timeout", [float("nan"), float("inf"), 1e18])
def test_a_timeout_that_is_no_time_is_refused(timeout: float):
    with pytest.raises(ConfigError, match="ten years"):
        Client(timeout=timeout)
    with pytest.raises(ConfigError, match="ten years"):
        Client().with_options(timeout_s=timeout)


# The end of a session


def test_a_session_is_closed_after_thirty_idle_seconds_and_opened_again_by_the_next_call():
    async def main() -> list[int]:
        transport = MemoryTransport()
        server = app(transport=transport, runtime=virtual_runtime())
        await server.start()
        client = Client(port=server.port, transport=transport, runtime=virtual_runtime())
        counts = []
        await client.call("add", 1)
        await asyncio.sleep(IDLE_S - 1)
        await client.call("add", 1)
        await asyncio.sleep(IDLE_S - 1)
        counts.append(len(server.sessions))
        await asyncio.sleep(2)
        counts.append(len(server.sessions))
        counts.append(await client.call("add", 7))
        await client.close()
        await server.stop()
        return counts

    assert run(main()) == [1, 0, 7]


def test_a_session_with_a_long_call_is_not_idle():
    async def main() -> str:
        transport = MemoryTransport()
        server = app(transport=transport, runtime=virtual_runtime())

        @server.endpoint()
        async def slow() -> str:
            await asyncio.sleep(10 * IDLE_S)
            return "done"

        await server.start()
        client = Client(port=server.port, transport=transport, runtime=virtual_runtime(), timeout=None)
        try:
            return await client.call("slow")
        finally:
            await client.close()
            await server.stop()

    assert run(main()) == "done"


def open_descriptors() -> set[str]:
    return {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_socket(fd)}


def _is_socket(descriptor: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}").startswith("socket:")
    except OSError:
        return False


@pytest.fixture
def lasting_server() -> Iterator[int]:
    """The port of a server in a loop of its own, so that others may come and go."""
    loop, server, ready = asyncio.new_event_loop(), app(), threading.Event()

    async def serve() -> None:
        await server.start()
        ready.set()
        await server._has_stopped.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert ready.wait(10)
    yield server.port
    asyncio.run_coroutine_threadsafe(server.stop(grace=0), loop).result(10)
    thread.join(10)
    loop.close()


@pytest.mark.linux
@pytest.mark.parametrize("runner", ["run", "Runner", "twice"])
def test_a_client_that_nobody_closes_leaves_no_socket_when_its_loop_is_ended(lasting_server: int, runner: str):
    client = Client(port=lasting_server)
    before = open_descriptors()

    async def main() -> list[int]:
        return await asyncio.gather(client.call("add", 1), client.call("add", 2))

    if runner == "Runner":
        with asyncio.Runner() as ended:
            assert ended.run(main()) == [1, 2]
            assert ended.run(main()) == [1, 2]
    else:
        for _ in range(2 if runner == "twice" else 1):  # another loop starts afresh
            assert asyncio.run(main()) == [1, 2]
    gc.collect()  # -X dev and warnings as errors: what was left open would fail the test here

    assert len(open_descriptors() - before) <= 1  # the server's end of the last session may be a moment behind
    assert len(client._session._by_loop) <= 1


def test_a_client_is_used_in_two_loops_at_once(lasting_server: int):
    client = Client(port=lasting_server)

    async def outer() -> list[int]:
        async def main() -> int:
            return await client.call("add", 1)

        there = await asyncio.to_thread(asyncio.run, main())
        here = await client.call("add", 2)
        await client.close()
        return [there, here]

    assert asyncio.run(outer()) == [1, 2]


# Who answers


async def test_the_expected_id_is_checked_in_every_form():
    server = app()
    own_id = server.identity.node_id
    async with serving(server) as client:
        for expecting in (
            Client(port=client.port, expect=own_id),
            Client(port=client.port, expect=own_id.hex()),
            Client(f"{own_id.hex()}@127.0.0.1:{client.port}"),
        ):
            async with expecting:
                assert await expecting.call("add", 1) == 1
        with pytest.raises(HandshakeFailed, match=NOT_MINE.hex()) as caught:
            await Client(port=client.port, expect=NOT_MINE).call("add", 1)

    assert caught.value.reason == "identity"


@pytest.mark.parametrize(
    ("address", "options"),
    [
        ("127.0.0.1", {"expect": b"short"}),
        ("127.0.0.1", {"expect": "no hex"}),
        ("127.0.0.1", {"expect": 5}),
        (f"{NOT_MINE.hex()}@127.0.0.1:9999", {"expect": bytes(32)}),
        ("10.0.0.5:1234", {"port": 4321}),
        ("http://10.0.0.5", {}),
        ("http://10.0.0.5:1234", {}),
        ("abc@10.0.0.5:1234", {}),
        ("127.0.0.1", {"network_key": b"passphrase"}),
        ("legacy://10.0.0.5", {"expect": NOT_MINE}),
        ("legacy://10.0.0.5", {"network_key": bytes(32)}),
    ],
)
def test_a_client_that_could_not_mean_what_it_says_is_refused(address: str, options: dict[str, Any]):
    with pytest.raises(ConfigError):
        Client(address, **options)


def test_an_address_may_carry_the_port():
    assert (Client("10.0.0.5:1234").address, Client("10.0.0.5:1234").port) == ("10.0.0.5", 1234)
    assert (Client("[::1]:1234").address, Client("[::1]:1234").port) == ("::1", 1234)
    assert (Client("::1", 7).address, Client("::1", 7).port) == ("::1", 7)
    assert (Client("legacy://10.0.0.5", 9000).address, Client("legacy://10.0.0.5:9000").port) == ("10.0.0.5", 9000)


@pytest.mark.parametrize(
    ("server_options", "client_options"),
    [
        ({"network": "a"}, {"network": "b"}),
        ({"network_key": bytes(32)}, {"network_key": b"k" * 32}),
        ({"network_key": bytes(32)}, {}),
        ({}, {"network_key": bytes(32)}),
    ],
)
async def test_another_network_or_key_is_refused_and_the_text_says_where_to_look(
    server_options: dict[str, Any], client_options: dict[str, Any]
):
    async with serving(app(**server_options), **client_options) as client:
        with pytest.raises((HandshakeFailed, PeerUnavailable), match="network") as caught:
            await client.call("add", 1)
        assert not getattr(caught.value, "may_have_started", False)


async def test_with_the_right_network_key_calls_go_through():
    key = bytes(range(32))
    async with serving(app(network_key=key, network="lab"), network_key=key, network="lab") as client, client:
        assert await client.call("add", 1) == 1


# Old servers


class OldServer:
    """What releases 1 and 2 do: one plain frame is read, one answered. `seen` is every byte that came."""

    def __init__(self, *, max_bytes: int = 2**20) -> None:
        self.seen: list[bytes] = []
        self._max_bytes = max_bytes

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            head = await reader.readexactly(4)
            size = int.from_bytes(head, "big")
            if size > self._max_bytes:
                self.seen.append(head)
                error = RPCError("bad_request", f"frame too large: {size} > {self._max_bytes}")
                response = RPCResponse(id="", ok=False, error=error)
            else:
                body = await reader.readexactly(size)
                self.seen.append(head + body)
                request: Any = MessagePackRPCSerializer.deserialize(body)
                response = RPCResponse(id=request.id, ok=True, result=[request.endpoint, *request.args])
            writer.write(encode_frame(MessagePackRPCSerializer.serialize(response)))
            await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    @property
    def plain_requests(self) -> int:
        return sum(not data.startswith(b"\xa5") for data in self.seen)


@contextlib.asynccontextmanager
async def old_server() -> AsyncIterator[tuple[OldServer, int]]:
    old = OldServer()
    async with await asyncio.start_server(old.serve, "127.0.0.1", 0) as listener:
        yield old, listener.sockets[0].getsockname()[1]


async def test_an_old_server_on_this_machine_is_asked_once_and_then_called_in_plain():
    async with old_server() as (old, port):
        client = Client(port=port)

        assert await client.call("sum", 1, 2) == ["sum", 1, 2]
        assert await client.with_options(timeout_s=5).call("sum", 3) == ["sum", 3]
        assert client.peer_id is None

    assert [data[:1] for data in old.seen] == [b"\xa5", b"\0", b"\0"]


async def test_an_old_server_is_asked_again_when_it_was_away_or_long_ago():
    now = [0.0]
    real = system_runtime()
    runtime = Runtime(now=lambda: now[0], unix_now=real.unix_now, rng=real.rng, token_bytes=real.token_bytes)
    async with old_server() as (old, port):
        client = Client(port=port, runtime=runtime)
        await client.call("sum")
        now[0] += PLAIN_MEMORY_S + 1
        await client.call("sum")
    with pytest.raises(PeerUnavailable):
        await client.call("sum")
    server = app()
    server.port = port
    await server.start()

    assert await client.call("add", 1) == 1

    assert [data[:1] for data in old.seen] == [b"\xa5", b"\0", b"\xa5", b"\0"]
    await client.close()
    await server.stop()


@pytest.mark.parametrize("options", [{"expect": NOT_MINE}, {"network_key": bytes(32)}])
async def test_an_old_server_is_refused_where_an_id_or_a_key_has_to_be_proved(options: dict[str, Any]):
    async with old_server() as (old, port):
        with pytest.raises(HandshakeFailed, match=r"speaks only the plain wire.*upgrade") as caught:
            await Client(port=port, **options).call("sum")

    assert caught.value.reason == "plain"
    assert old.plain_requests == 0


async def test_a_client_that_speaks_plain_stops_when_another_met_the_server_encrypted():
    async with old_server() as (old, port):
        client = Client(port=port)
        await client.call("sum")
    server = app()
    server.port = port
    await server.start()
    async with Client(port=port) as other:
        await other.call("add", 1)

    assert await client.call("who") != [None, "", False]

    assert client.peer_id == server.identity.node_id
    assert old.plain_requests == 1
    await client.close()
    await server.stop()


async def test_an_address_that_spoke_the_encrypted_wire_is_never_called_in_plain_again():
    async with serving() as client, client:
        await client.call("add", 1)
        port = client.port
    old = OldServer()
    async with await asyncio.start_server(old.serve, "127.0.0.1", port):
        for address in ("127.0.0.1", "legacy://127.0.0.1"):
            with pytest.raises(HandshakeFailed, match="somebody may be in between"):
                await Client(address, port).call("sum")

    assert old.plain_requests == 0


class ElsewhereTransport(MemoryTransport):
    """A network of memory in which an old server lives at 10.0.0.5."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[bytes] = []

    async def start(self) -> None:
        await self.listen("10.0.0.5", 9999, lambda: _OldReceiver(self.requests))


class _OldReceiver:
    def __init__(self, requests: list[bytes]) -> None:
        self._requests = requests
        self._stream: ByteStream | None = None

    def connection_made(self, stream: ByteStream) -> None:
        self._stream = stream

    def data_received(self, data: bytes) -> None:
        assert self._stream is not None
        self._requests.append(data)
        if data[:1] == b"\xa5":
            error = RPCError("bad_request", f"frame too large: {PREAMBLE_AS_LENGTH} > 4194304")
            response = RPCResponse(id="", ok=False, error=error)
        else:
            request: Any = MessagePackRPCSerializer.deserialize(data[4:])
            response = RPCResponse(id=request.id, ok=True, result="old")
        self._stream.write(encode_frame(MessagePackRPCSerializer.serialize(response)))
        self._stream.close()

    def eof_received(self) -> bool | None:
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        pass

    def pause_writing(self) -> None:
        pass

    def resume_writing(self) -> None:
        pass


def test_an_old_server_elsewhere_is_called_in_plain_only_where_the_user_wrote_so():
    async def main() -> Any:
        transport = ElsewhereTransport()
        await transport.start()
        runtime = virtual_runtime()
        with pytest.raises(HandshakeFailed, match=r"write Client\('legacy://10.0.0.5', 9999\)"):
            await Client("10.0.0.5", transport=transport, runtime=runtime).call("sum")
        assert [data[:1] for data in transport.requests] == [b"\xa5"]
        return await Client("legacy://10.0.0.5", transport=transport, runtime=runtime).call("sum")

    assert run(main()) == "old"


@pytest.mark.parametrize("end", ["reset", "close", "silence", "half an answer"])
async def test_a_proxy_that_breaks_a_hundred_secure_dials_sees_no_plain_byte(end: str):
    seen: list[bytes] = []
    ended = asyncio.Semaphore(0)

    async def break_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.read(65536))
        if end == "half an answer":
            writer.write(b"\0\0\0\x40\x85")
        if end == "silence":
            with contextlib.suppress(ConnectionError):
                await reader.read(-1)
        if end == "reset":
            writer.transport.abort()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        ended.release()

    async with await asyncio.start_server(break_off, "127.0.0.1", 0) as proxy:
        port = proxy.sockets[0].getsockname()[1]
        client = Client(port=port, timeout=0.02 if end == "silence" else 5).with_options(idempotent=True)
        legacy = Client("legacy://127.0.0.1", port, timeout=client.timeout)
        for number in range(100):
            with pytest.raises((PeerUnavailable, HandshakeFailed, Timeout)):
                await (legacy if number % 2 else client).call("add", 1)
            await ended.acquire()

    assert len(seen) >= 100
    assert all(data.startswith(b"\xa5SYNN") for data in seen)


class OwnSerializer(MessagePackRPCSerializer):
    """A user's own."""


async def test_a_serializer_of_the_users_own_travels_on_the_plain_wire():
    async with old_server() as (old, port):
        assert await Client(port=port, serializer_class=OwnSerializer).call("sum", 1) == ["sum", 1]

    assert [data[:1] for data in old.seen] == [b"\0"]
    with pytest.raises(ConfigError, match=r"legacy://10\.0\.0\.5"):
        Client("10.0.0.5", serializer_class=OwnSerializer)
    with pytest.raises(ConfigError, match="proves no id"):
        Client(serializer_class=OwnSerializer, expect=NOT_MINE)


# Options


@pytest.mark.parametrize("timeout", [0, -1])
def test_a_timeout_that_has_passed_already_is_refused(timeout: float):
    with pytest.raises(ConfigError, match="above 0"):
        Client(timeout=timeout)
    with pytest.raises(ConfigError, match="above 0"):
        Client().with_options(timeout_s=timeout)


def test_options_make_another_client_and_leave_the_first():
    client = Client("127.0.0.1", 9000, timeout=30)

    quick = client.with_options(timeout_s=2)

    assert (quick.address, quick.port, quick.timeout) == ("127.0.0.1", 9000, 2)
    assert client.timeout == 30


def test_an_option_that_is_not_given_stays_as_it_was():
    client = Client(timeout=7).with_options(idempotent=True)

    other = client.with_options(traceparent=TRACEPARENT)

    assert (other.timeout, other.idempotent) == (7, True)
    assert (client.traceparent, Client().idempotent) == (None, False)


def test_a_traceparent_of_another_shape_is_refused():
    with pytest.raises(ConfigError, match="W3C"):
        Client().with_options(traceparent="00-1-2-3")
