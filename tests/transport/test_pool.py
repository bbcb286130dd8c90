from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from simulations.virtual_loop import VirtualLoop, run
from synapse_p2p.config import PoolConfig, ServerConfig, SessionConfig
from synapse_p2p.context import CallContext
from synapse_p2p.exceptions import ConfigError, HandshakeFailed, PeerUnavailable, RemoteError, Timeout
from synapse_p2p.identity import Identity, NodeID
from synapse_p2p.protocol.wire import Call
from synapse_p2p.runtime import Runtime
from synapse_p2p.server import Server
from synapse_p2p.transport.base import ByteStream, Receiver, parse_address
from synapse_p2p.transport.connection import SessionConnection
from synapse_p2p.transport.memory import MemoryTransport
from synapse_p2p.transport.pool import SessionPool

HOST = "10.0.0.1"


@dataclass(frozen=True)
class Peer:
    id: NodeID
    addresses: tuple[str, ...]


class Network(MemoryTransport):
    """Streams in memory, with a note of every dial, addresses that swallow them, and a latency of each stream's own."""

    def __init__(self, *, delay_s: float = 0.0, latency: Callable[[], float] | None = None) -> None:
        super().__init__(delay_s=delay_s)
        self.dialed: list[str] = []
        self.silent: set[str] = set()
        self._latency = latency

    async def connect(self, host: str, port: int, receiver: Receiver) -> ByteStream:
        address = f"{host}:{port}"
        self.dialed.append(address)
        if address in self.silent:
            await asyncio.Event().wait()
        if self._latency is not None:
            self.delay_s = self._latency()
        return await super().connect(host, port, receiver)


class Handlers:
    """A CallServer of coroutine functions; it counts what it ran."""

    def __init__(self, **functions: Callable[..., Any]) -> None:
        self._functions: dict[str, Callable[..., Any]] = {"_synapse.ping": pong, "echo": echo, **functions}
        self.ran: Counter[Any] = Counter()

    def mounted(self, endpoint: str) -> None:
        return None

    async def serve_session_call(self, call: Call, context: CallContext) -> Any:
        if (function := self._functions.get(call.endpoint)) is None:
            raise RemoteError("not_found", call.endpoint)
        self.ran[call.endpoint, *call.args] += 1
        return await function(*call.args, **call.kwargs)


class Door:
    """What a listener does with a new stream before it belongs to the pool."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._stream: ByteStream

    def connection_made(self, stream: ByteStream) -> None:
        self._stream = stream

    def data_received(self, data: bytes) -> None:
        self._node.accepted_count += 1
        self._node.pool.accept(self._stream, data)

    def eof_received(self) -> bool | None: ...

    def connection_lost(self, exc: Exception | None) -> None: ...

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...


class Deaf(Door):
    """Takes a connection and says nothing."""

    def __init__(self) -> None: ...

    def data_received(self, data: bytes) -> None: ...


class Node:
    """A pool with a listener, or without one until `listen()`."""

    def __init__(
        self,
        network: Network,
        number: int,
        *,
        handlers: Handlers | None = None,
        config: PoolConfig | None = None,
        session_config: SessionConfig | None = None,
        instance: int = 0,
    ) -> None:
        loop, rng = asyncio.get_running_loop(), random.Random(1000 * number + instance)
        self.id = Identity.from_seed(bytes([number]) * 32).node_id
        self.handlers = handlers or Handlers()
        self.network = network
        self.address = ""
        self.accepted_count = 0
        self.pool = SessionPool(
            Identity.from_seed(bytes([number]) * 32),
            network="test",
            server=self.handlers,
            transport=network,
            runtime=Runtime(now=loop.time, unix_now=loop.time, rng=rng, token_bytes=rng.randbytes),
            listen_port=lambda: parse_address(self.address)[1] if self.address else 0,
            agent="test",
            config=config,
            session_config=session_config,
        )

    async def listen(self, port: int = 0) -> Node:
        self.pool.open()
        self._door = await self.network.listen(HOST, port, lambda: Door(self))
        self.address = self._door.addresses[0]
        return self

    @property
    def peer(self) -> Peer:
        return Peer(self.id, (self.address,) if self.address else ())

    async def echo(self, other: Node, value: Any = "hello", *, timeout_s: float | None = 5) -> Any:
        return await self.pool.call_with(other.peer, "echo", [value], {}, timeout_s=timeout_s)

    async def call(self, other: Node, endpoint: str, *args: Any, timeout_s: float | None = None) -> Any:
        return await self.pool.call_with(other.peer, endpoint, list(args), {}, timeout_s=timeout_s)

    async def stop(self, grace: float = 0.0) -> None:
        if self.address:
            self._door.close()
        await self.pool.stop(grace)

    async def crash(self) -> None:
        """Every connection breaks at once; nobody says goodbye."""
        self._door.close()
        for connection in list(self.pool._connections):
            connection.abort()
        await self.pool.stop(0)


def virtually(main: Coroutine[Any, Any, Any]) -> Any:
    """Run in virtual time; at the end no task is left."""

    async def checked() -> Any:
        result = await main
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        assert loop.pending_tasks() == [asyncio.current_task()]
        return result

    return run(checked())


def now() -> float:
    return asyncio.get_running_loop().time()


@pytest.fixture(autouse=True)
def nothing_is_left_and_nobody_complained(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    gc.collect()  # a socket or a future that was forgotten says so now, and that is an error here
    allowed = "ignore that they were cancelled"
    records = [*caplog.get_records("call"), *caplog.records]
    assert [record for record in records if record.levelno > logging.INFO and allowed not in record.msg] == []


async def echo(value: Any = None) -> Any:
    return value


async def pong() -> str:
    return "pong"


async def for_ever() -> None:
    await asyncio.Event().wait()


async def two_nodes(network: Network | None = None, **options: Any) -> tuple[Node, Node]:
    network = network or Network(delay_s=0.01)
    return await Node(network, 1, **options).listen(), await Node(network, 2).listen()


# Sessions


@pytest.mark.parametrize(("max_control_calls", "refused"), [(128, 0), (1000, 600 - 256)])
def test_a_burst_of_overlay_calls_waits_here_instead_of_being_refused_there(max_control_calls: int, refused: int):
    async def slow(value: int) -> int:
        await asyncio.sleep(0.1)
        return value

    async def main() -> list[Any]:
        network = Network(delay_s=0.01)
        a = Node(network, 1, session_config=SessionConfig(max_control_calls=max_control_calls))
        b = await Node(network, 2, handlers=Handlers(**{"_dht.slow": slow})).listen()
        answers = await asyncio.gather(*(a.call(b, "_dht.slow", n) for n in range(600)), return_exceptions=True)
        await asyncio.gather(a.stop(), b.stop())
        return answers

    answers = virtually(main())

    assert sum(isinstance(answer, RemoteError) and answer.code == "busy" for answer in answers) == refused
    assert sum(answer == n for n, answer in enumerate(answers)) == 600 - refused


def test_a_handler_that_is_torn_down_still_ends_its_call(caplog: pytest.LogCaptureFixture):
    class TornDown(BaseException):
        """What a library throws to get out of everything."""

    async def torn() -> None:
        raise TornDown

    async def main() -> tuple[list[Any], str]:
        network = Network(delay_s=0.01)
        a, b = Node(network, 1), await Node(network, 2, handlers=Handlers(torn=torn)).listen()
        ends = await asyncio.gather(*(a.call(b, "torn", timeout_s=5) for _ in range(100)), return_exceptions=True)
        answer = await a.echo(b)
        await asyncio.gather(a.stop(), b.stop())
        return ends, answer

    ends, answer = virtually(main())

    assert {type(end) for end in ends} == {RemoteError}
    assert {end.code for end in ends} == {"internal_error"}
    assert answer == "hello"
    assert len([record for record in caplog.records if record.exc_info]) == len(ends)
    caplog.clear()


def test_calls_share_the_session_that_the_first_one_opened():
    async def main() -> None:
        a, b = await two_nodes()
        answers = [await a.echo(b, number) for number in range(5)]
        answer = await a.pool.call(b.peer, "echo", {"value": "named"}, timeout_s=5)
        await asyncio.gather(a.stop(), b.stop())

        assert answers == list(range(5))
        assert answer == "named"
        assert a.network.dialed == [b.address]

    virtually(main())


def test_a_client_is_called_back_over_its_own_session():
    async def main() -> None:
        network = Network()
        client, server = Node(network, 1), await Node(network, 2).listen()
        with pytest.raises(PeerUnavailable, match="no address and no session"):
            await server.echo(client)
        await client.echo(server)
        answer = await server.echo(client, "back")
        await asyncio.gather(client.stop(), server.stop())

        assert answer == "back"
        assert network.dialed == [server.address]

    virtually(main())


def test_a_pool_knows_whom_it_is_connected_to_and_how():
    async def main() -> None:
        a, b = await two_nodes()
        proved = await a.pool.connect(b.peer)
        by_address = await a.pool.connect_address(b.address)

        assert (proved.id, proved.addresses) == (by_address.id, by_address.addresses) == (b.id, (b.address,))
        assert parse_address(proved.seen)[0] == HOST
        assert a.pool.is_connected(b.id)
        assert b.pool.is_connected(a.id)
        assert a.pool.peer_ids() == [b.id]
        assert (a.pool.proved_addresses(b.id), b.pool.proved_addresses(a.id)) == ((b.address,), ())
        assert a.pool.seen_hosts() == Counter({HOST: 1})
        await asyncio.gather(a.stop(), b.stop())
        assert not a.pool.is_connected(b.id)
        assert not b.pool.is_connected(a.id)
        assert (a.pool.peer_ids(), a.pool.seen_hosts(), a.pool.proved_addresses(b.id)) == ([], Counter(), ())

    virtually(main())


def test_fifty_callers_share_one_dial():
    async def main() -> None:
        a, b = await two_nodes()
        answers = await asyncio.gather(*(a.echo(b, number) for number in range(50)))
        await asyncio.gather(a.stop(), b.stop())

        assert answers == list(range(50))
        assert a.network.dialed == [b.address]
        assert b.accepted_count == 1

    virtually(main())


def test_a_caller_who_gives_up_leaves_the_dial_to_the_others():
    async def main() -> None:
        a, b = await two_nodes()
        callers = [asyncio.create_task(a.echo(b, number)) for number in range(3)]
        await asyncio.sleep(0.005)
        callers[0].cancel()
        answers = await asyncio.gather(*callers, return_exceptions=True)
        await asyncio.gather(a.stop(), b.stop())

        assert isinstance(answers[0], asyncio.CancelledError)
        assert answers[1:] == [1, 2]
        assert b.accepted_count == 1

    virtually(main())


def test_a_failed_dial_fails_for_all_who_wait_for_it():
    async def main() -> None:
        a, b = await two_nodes()
        await b.stop()
        errors = await asyncio.gather(*(a.echo(b) for _ in range(5)), return_exceptions=True)
        await a.stop()

        assert [type(error) for error in errors] == [PeerUnavailable] * 5
        assert [error.may_have_started for error in errors] == [False] * 5
        assert a.network.dialed == [b.address]

    virtually(main())


def test_the_next_address_is_tried_when_one_does_not_answer():
    async def main() -> None:
        a, b = await two_nodes()
        peer = Peer(b.id, ("10.9.9.9:1", "10.9.9.9:2", b.address))
        a.network.silent.add("10.9.9.9:2")
        answer = await a.pool.call_with(peer, "echo", ["found"], {}, timeout_s=10)
        await asyncio.gather(a.stop(), b.stop())

        assert answer == "found"
        assert a.network.dialed == list(peer.addresses)

    virtually(main())


def test_two_pools_that_dial_each_other_at_any_two_moments_keep_one_session_and_lose_no_call():
    async def meet(number: int, rng: random.Random) -> int:
        network = Network(latency=lambda: rng.uniform(0.0, 0.05))
        a, b = await Node(network, 2 * number % 250).listen(), await Node(network, 2 * number % 250 + 1).listen()

        async def calls(caller: Node, other: Node, delay_s: float) -> list[Any]:
            await asyncio.sleep(delay_s)
            return [await caller.echo(other, value) for value in range(5)]

        offset_s = rng.uniform(-0.12, 0.12)
        answers = await asyncio.gather(calls(a, b, offset_s), calls(b, a, -offset_s))
        await asyncio.sleep(1)
        kept_counts = [len(node.pool._connections) for node in (a, b)]
        dialed_count = len(network.dialed)
        later = await asyncio.gather(a.echo(b), b.echo(a))
        await asyncio.gather(a.stop(), b.stop())

        assert answers == [list(range(5))] * 2
        assert kept_counts == [1, 1]
        assert later == ["hello"] * 2
        assert len(network.dialed) == dialed_count
        return dialed_count

    async def main() -> Counter[int]:
        rng = random.Random(1)
        return Counter([await meet(number, rng) for number in range(150)])

    dial_counts = virtually(main())

    assert dial_counts[2] > 30  # else they hardly ever met


def test_two_pools_that_dial_each_other_at_the_same_instant_keep_one_session():
    async def main() -> None:
        for number in range(10):
            network = Network(delay_s=0.01)
            a, b = await Node(network, 2 * number).listen(), await Node(network, 2 * number + 1).listen()
            values = range(20)
            answers = await asyncio.gather(*(a.echo(b, v) for v in values), *(b.echo(a, v) for v in values))
            await asyncio.sleep(1)
            kept_counts = [len(node.pool._connections) for node in (a, b)]
            survivor = next(iter(a.pool._connections))
            await asyncio.gather(a.stop(), b.stop())

            assert answers == [*values] * 2
            assert kept_counts == [1, 1]
            assert survivor.is_dialer == (a.id < b.id)
            assert len(network.dialed) == 2

    virtually(main())


def test_sessions_with_two_instances_of_one_identity_never_merge():
    async def main() -> None:
        network = Network()
        server = await Node(network, 1).listen()
        twins = [Node(network, 2, instance=1), Node(network, 2, instance=2)]
        for twin in twins:
            await twin.echo(server)
        await asyncio.sleep(1)
        answers = [await twin.echo(server) for twin in twins]
        await asyncio.gather(server.stop(), *(twin.stop() for twin in twins))

        assert answers == ["hello"] * 2
        assert len(network.dialed) == 2

    virtually(main())


def test_a_restarted_peer_is_reached_again():
    async def main() -> None:
        a, b = await two_nodes()
        await a.echo(b)
        await b.crash()
        await asyncio.sleep(1)
        again = await Node(a.network, 2, instance=1).listen(parse_address(b.address)[1])
        answer = await a.echo(again)
        await asyncio.gather(a.stop(), again.stop())

        assert answer == "hello"
        assert again.accepted_count == 1

    virtually(main())


def test_a_restarted_peer_that_dials_us_is_called_over_the_new_session():
    async def main() -> None:
        network = Network()
        a, b = await Node(network, 1).listen(), await Node(network, 2).listen()
        await a.echo(b)
        again = Node(network, 2, instance=1)
        await again.listen()
        await again.echo(a)
        await a.echo(again, "new")
        await asyncio.gather(a.stop(), b.stop(), again.stop())

        assert again.handlers.ran == Counter({("echo", "new"): 1})

    virtually(main())


# What never left is tried once more, what may have started is not


def test_a_call_over_a_session_that_died_a_moment_ago_dials_anew():
    async def main() -> None:
        a, b = await two_nodes()
        await a.echo(b)
        for end in (*a.pool._connections, *b.pool._connections):
            end.abort()
        answer = await a.echo(b, "again")
        await asyncio.gather(a.stop(), b.stop())

        assert answer == "again"
        assert b.handlers.ran["echo", "again"] == 1

    virtually(main())


def test_a_call_that_crosses_a_goodbye_is_made_once_more_and_runs_once():
    async def main() -> None:
        a, b = await two_nodes()
        await a.echo(b)
        next(iter(b.pool._connections)).close("idle")
        answer = await a.echo(b, "crossing")
        await asyncio.gather(a.stop(), b.stop())

        assert answer == "crossing"
        assert b.handlers.ran["echo", "crossing"] == 1
        assert len(a.network.dialed) == 2

    virtually(main())


def test_a_second_try_whose_dial_turns_out_a_duplicate_takes_the_session_that_survives():
    async def main() -> None:
        network = Network(latency=iter([0.01, 0.008, 0.01]).__next__)
        nodes = [await Node(network, number).listen() for number in (1, 2)]
        smaller, larger = sorted(nodes, key=lambda node: node.id)
        await larger.echo(smaller)
        next(iter(smaller.pool._connections)).close("idle")
        # The larger one's call crosses the goodbye; when it dials again, the smaller one dials as well, and faster.
        answers = await asyncio.gather(larger.echo(smaller, "crossing"), smaller.echo(larger, "back"))
        await asyncio.gather(smaller.stop(), larger.stop())

        assert answers == ["crossing", "back"]
        assert network.dialed == [smaller.address, larger.address, smaller.address]

    virtually(main())


def test_a_call_that_may_have_started_is_not_repeated():
    async def main() -> None:
        handlers = Handlers(wait=for_ever)
        network = Network()
        a, b = await Node(network, 1).listen(), await Node(network, 2, handlers=handlers).listen()
        call = asyncio.create_task(a.call(b, "wait"))
        await asyncio.sleep(1)
        next(iter(b.pool._connections)).abort()
        with pytest.raises(PeerUnavailable) as raised:
            await call
        await asyncio.gather(a.stop(), b.stop())

        assert raised.value.may_have_started
        assert handlers.ran["wait",] == 1
        assert len(network.dialed) == 1

    virtually(main())


def test_a_peer_that_goes_on_refusing_is_asked_twice_and_no_more(monkeypatch: pytest.MonkeyPatch):
    async def main() -> None:
        a, b = await two_nodes()
        original = b.pool._on_established

        def establish_and_refuse(connection: SessionConnection) -> None:
            original(connection)
            connection.drain()

        monkeypatch.setattr(b.pool, "_on_established", establish_and_refuse)
        with pytest.raises(PeerUnavailable) as raised:
            await a.echo(b)
        await asyncio.gather(a.stop(), b.stop())

        assert not raised.value.may_have_started
        assert len(a.network.dialed) == 2

    virtually(main())


# Time


@pytest.mark.parametrize("addresses", [("10.9.9.9:1",), ("10.9.9.9:1", "10.9.9.9:2", "10.9.9.9:3")])
def test_the_time_of_a_call_covers_its_dials(addresses: tuple[str, ...]):
    async def main() -> float:
        network = Network()
        network.silent.update(addresses)
        a = Node(network, 1)
        with pytest.raises(Timeout, match="not started"):
            await a.pool.call(Peer(bytes(32), addresses), "echo", {}, timeout_s=0.5)
        ended_at = now()
        await a.stop()
        return ended_at

    assert virtually(main()) == 0.5


def test_a_dial_ends_after_its_own_limit():
    async def main() -> float:
        network = Network()
        network.silent.add("10.9.9.9:1")
        a = Node(network, 1)
        with pytest.raises(Timeout):
            await a.pool.connect_address("10.9.9.9:1")
        ended_at = now()
        await a.stop()
        return ended_at

    assert virtually(main()) == PoolConfig().dial_timeout_s


def test_a_dead_address_rests_longer_each_time_and_not_after_it_answered():
    async def main() -> None:
        network = Network()
        a, b = Node(network, 1), await Node(network, 2).listen()
        port = parse_address(b.address)[1]
        await b.stop()
        dialed_at: list[float] = []
        while now() < 10:
            count = len(network.dialed)
            with pytest.raises(PeerUnavailable):
                await a.echo(b)
            dialed_at += [now()] * (len(network.dialed) - count)
            await asyncio.sleep(0.25)
        await b.listen(port)
        await asyncio.sleep(PoolConfig().max_redial_pause_s)
        await a.echo(b)
        await b.stop()
        await asyncio.sleep(1)
        errors = await asyncio.gather(*(a.echo(b) for _ in range(2)), return_exceptions=True)
        await asyncio.sleep(PoolConfig().redial_pause_s)
        count = len(network.dialed)
        with pytest.raises(PeerUnavailable, match="reached"):
            await a.echo(b)
        await a.stop()

        assert dialed_at == [0, 1, 3, 7]
        assert [type(error) for error in errors] == [PeerUnavailable] * 2
        assert len(network.dialed) == count + 1

    virtually(main())


# Somebody else, or nobody


def test_somebody_else_at_an_address_is_an_error_and_no_fault_of_the_address():
    async def main() -> None:
        a, b = await two_nodes()
        stranger = Identity.from_seed(b"s" * 32).node_id
        with pytest.raises(HandshakeFailed) as raised:
            await a.pool.connect_address(b.address, stranger)
        with pytest.raises(PeerUnavailable):
            await a.pool.call(Peer(stranger, (b.address,)), "echo", {}, timeout_s=5)
        answer = await a.echo(b)
        await asyncio.gather(a.stop(), b.stop())

        assert raised.value.reason == "identity"
        assert answer == "hello"

    virtually(main())


def test_dialing_oneself_is_an_error_and_no_fault_of_the_address():
    async def main() -> None:
        a, b = await two_nodes()
        for _ in range(2):
            with pytest.raises(HandshakeFailed) as raised:
                await a.pool.connect_address(a.address)
            assert raised.value.reason == "self"
        await asyncio.gather(a.stop(), b.stop())

    virtually(main())


@pytest.mark.parametrize("address", ["nonsense", "10.0.0.1", "10.0.0.1:99999", "::1:80"])
def test_an_address_that_is_none_is_a_config_error(address: str):
    async def main() -> None:
        a = Node(Network(), 1)
        with pytest.raises(ConfigError):
            await a.pool.connect_address(address)
        with pytest.raises(PeerUnavailable):
            await a.pool.call(Peer(bytes(32), (address,)), "echo", {}, timeout_s=5)
        await a.stop()

    virtually(main())


# The check dial


def test_a_check_dial_proves_an_address_and_leaves_the_open_session_alone():
    async def main() -> None:
        network = Network(delay_s=0.01)
        gate = asyncio.Event()
        a = await Node(network, 1).listen()
        b = await Node(network, 2, handlers=Handlers(wait=gate.wait)).listen()
        call = asyncio.create_task(a.call(b, "wait"))
        await asyncio.sleep(1)
        sessions = [list(node.pool._connections) for node in (a, b)]
        await a.pool.check_dial(b.peer)
        await asyncio.sleep(1)
        sessions_after = [list(node.pool._connections) for node in (a, b)]
        gate.set()
        answer = await call
        answers = await asyncio.gather(a.echo(b), b.echo(a))
        await asyncio.gather(a.stop(), b.stop())

        assert sessions == sessions_after
        assert answer is True
        assert answers == ["hello"] * 2
        assert len(network.dialed) == 2

    virtually(main())


def test_no_call_goes_over_a_check_dial_in_either_direction():
    async def main() -> None:
        network = Network()
        gate = asyncio.Event()
        handlers = Handlers(**{"_synapse.ping": gate.wait})
        a, b = await Node(network, 1).listen(), await Node(network, 2, handlers=handlers).listen()
        check = asyncio.create_task(a.pool.check_dial(b.peer))
        await asyncio.sleep(1)
        was_connected = a.pool.is_connected(b.id)
        await a.echo(b)
        dialed_count = len(network.dialed)
        await b.echo(a)
        gate.set()
        await check
        await asyncio.gather(a.stop(), b.stop())

        assert not was_connected
        assert dialed_count == len(network.dialed) == 2

    virtually(main())


def test_a_check_dial_fails_for_another_id_for_nobody_and_without_an_address():
    async def main() -> None:
        a, b = await two_nodes()
        with pytest.raises(HandshakeFailed) as raised:
            await a.pool.check_dial(Peer(bytes(32), (b.address,)))
        with pytest.raises(PeerUnavailable):
            await a.pool.check_dial(Peer(b.id, ("10.9.9.9:1",)))
        with pytest.raises(PeerUnavailable, match="no address"):
            await a.pool.check_dial(Peer(b.id, ()))
        a.network.silent.add("10.9.9.9:2")
        with pytest.raises(Timeout):
            await a.pool.check_dial(Peer(b.id, ("10.9.9.9:2",)))
        await asyncio.gather(a.stop(), b.stop())

        assert raised.value.reason == "identity"
        assert not a.pool._connections
        assert not b.pool._connections

    virtually(main())


def test_a_peer_that_is_too_busy_to_answer_the_check_is_proved_all_the_same():
    async def busy() -> None:
        raise RemoteError("busy", "later")

    async def main() -> None:
        network = Network()
        a = await Node(network, 1).listen()
        b = await Node(network, 2, handlers=Handlers(**{"_synapse.ping": busy})).listen()
        await a.pool.check_dial(b.peer)
        await asyncio.gather(a.stop(), b.stop())

    virtually(main())


# Limits


def test_of_idle_sessions_the_least_recently_used_go():
    async def main() -> None:
        network = Network()
        hub = Node(network, 1, config=PoolConfig(max_idle_sessions=3))
        others = [await Node(network, number).listen() for number in range(2, 8)]
        for other in others[:3]:
            await hub.echo(other)
            await asyncio.sleep(1)
        await hub.echo(others[0])
        await asyncio.sleep(1)
        for other in others[3:5]:
            await hub.echo(other)
            await asyncio.sleep(1)
        await asyncio.sleep(1)
        connected = [index for index, other in enumerate(others) if hub.pool.is_connected(other.id)]
        await asyncio.gather(hub.stop(), *(other.stop() for other in others))

        assert connected == [0, 3, 4]

    virtually(main())


def test_a_session_with_a_call_in_flight_is_no_idle_one():
    async def main() -> None:
        network = Network()
        gate = asyncio.Event()
        hub = Node(network, 1, config=PoolConfig(max_idle_sessions=1))
        others = [await Node(network, number, handlers=Handlers(wait=gate.wait)).listen() for number in range(2, 6)]
        calls = [asyncio.create_task(hub.call(other, "wait")) for other in others]
        await asyncio.sleep(1)
        await asyncio.sleep(10)
        connected_count = len(hub.pool.peer_ids())
        gate.set()
        answers = await asyncio.gather(*calls)
        await asyncio.gather(hub.stop(), *(other.stop() for other in others))

        assert answers == [True] * 4
        assert connected_count == len(network.dialed) == 4

    virtually(main())


def test_a_burst_of_short_calls_keeps_its_sessions_until_it_is_over():
    async def main() -> None:
        network = Network(latency=itertools.count(0.01, 0.02).__next__)
        hub = Node(network, 1, config=PoolConfig(max_idle_sessions=3))
        others = [await Node(network, number).listen() for number in range(2, 12)]
        answers = await asyncio.gather(*(hub.echo(other) for other in others))
        dialed_count = len(network.dialed)
        await asyncio.sleep(5)
        connected_count = len(hub.pool.peer_ids())
        await asyncio.gather(hub.stop(), *(other.stop() for other in others))

        assert answers == ["hello"] * 10
        assert (dialed_count, connected_count) == (10, 3)

    virtually(main())


def test_more_sessions_than_a_listener_keeps_close_its_oldest_idle_ones():
    async def main() -> None:
        network = Network()
        b = await Node(network, 1, config=PoolConfig(max_sessions=4)).listen()
        clients = [Node(network, number) for number in range(2, 12)]
        for client in clients:
            await client.echo(b)
            await asyncio.sleep(0.1)
        connected = [index for index, client in enumerate(clients) if b.pool.is_connected(client.id)]
        await asyncio.gather(b.stop(), *(client.stop() for client in clients))

        assert connected == [6, 7, 8, 9]

    virtually(main())


def test_those_who_connect_and_prove_nothing_keep_nobody_out():
    async def main() -> None:
        network = Network()
        b = await Node(network, 2, config=PoolConfig(max_handshakes=10)).listen()
        a = Node(network, 1)
        for _ in range(50):
            stream = await network.connect(*parse_address(b.address), Door(a))
            stream.write(b"\xa5")
        await asyncio.sleep(0.1)
        count = len(b.pool._connections)
        answer = await a.echo(b)
        await b.stop()
        await a.stop()

        assert count == 10
        assert answer == "hello"

    virtually(main())


def test_garbage_from_strangers_leaves_the_listener_and_its_sessions_as_they_are():
    async def main() -> None:
        network = Network()
        rng = random.Random(9)
        a, b = Node(network, 1), await Node(network, 2).listen()
        await a.echo(b)
        for size_bytes in range(60):
            stream = await network.connect(*parse_address(b.address), Door(a))
            stream.write(b"\xa5SYNN\x01\x01"[: size_bytes % 8] + rng.randbytes(size_bytes))
        await asyncio.sleep(SessionConfig().handshake_timeout_s + 1)
        connection_count = len(b.pool._connections)
        answers = [await a.echo(b), await Node(network, 3).echo(b)]
        await asyncio.gather(a.stop(), b.stop())

        assert connection_count == 1
        assert answers == ["hello"] * 2

    virtually(main())


# Stop


def test_a_stop_lets_a_running_call_finish_and_refuses_new_ones():
    async def main() -> tuple[Any, float]:
        network = Network(delay_s=0.01)

        async def wait() -> str:
            await asyncio.sleep(2)
            return "finished"

        a, b = Node(network, 1), await Node(network, 2, handlers=Handlers(wait=wait)).listen()
        call = asyncio.create_task(a.call(b, "wait"))
        await asyncio.sleep(1)
        stop = asyncio.create_task(b.stop(grace=5))
        await asyncio.sleep(0.1)
        with pytest.raises(PeerUnavailable) as refused:
            await a.echo(b)
        with pytest.raises(PeerUnavailable, match="stopping"):
            await b.echo(await Node(network, 3).listen())
        answer = await call
        await stop
        stopped_at = now()
        await a.stop()

        assert not refused.value.may_have_started
        return answer, stopped_at

    answer, stopped_at = virtually(main())

    assert answer == "finished"
    assert 2 < stopped_at < 2.5


def test_a_stop_ends_what_outlasts_its_grace_and_says_it_may_have_started():
    async def main() -> float:
        network = Network(delay_s=0.01)
        a, b = Node(network, 1), await Node(network, 2, handlers=Handlers(wait=for_ever)).listen()
        call = asyncio.create_task(a.call(b, "wait"))
        await asyncio.sleep(1)
        started_at = now()
        await b.stop(grace=2)
        stopped_after_s = now() - started_at
        with pytest.raises(PeerUnavailable) as raised:
            await call
        await a.stop()

        assert raised.value.may_have_started
        return stopped_after_s

    assert virtually(main()) == pytest.approx(2, abs=0.1)


def test_a_stop_without_calls_does_not_wait_for_its_grace():
    async def main() -> float:
        a, b = await two_nodes()
        await a.echo(b)
        started_at = now()
        await a.stop(grace=60)
        await b.stop(grace=60)
        return now() - started_at

    assert virtually(main()) < 0.5


def test_a_stop_is_bounded_when_peers_read_nothing_and_handlers_ignore_it(caplog: pytest.LogCaptureFixture):
    release = False

    async def stubborn() -> None:
        while not release:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(10)

    async def main() -> float:
        nonlocal release
        network = Network()
        b = await Node(network, 2, handlers=Handlers(stubborn=stubborn, big=lambda: echo(b"x" * 1_000_000))).listen()
        others = [Node(network, number) for number in range(3, 8)]
        calls = [asyncio.create_task(other.call(b, "stubborn")) for other in others]
        await asyncio.sleep(1)
        for other in others:
            next(iter(other.pool._connections))._stream.pause_reading()  # type: ignore[union-attr]
        calls += [asyncio.create_task(other.call(b, "big")) for other in others]
        await asyncio.sleep(1)
        started_at = now()
        await b.stop(grace=1)
        stopped_after_s = now() - started_at
        release = True
        await asyncio.gather(*calls, return_exceptions=True)
        await asyncio.gather(*(other.stop() for other in others))
        await asyncio.sleep(20)
        return stopped_after_s

    bound_s = 1 + PoolConfig().stop_timeout_s + SessionConfig().goodbye_timeout_s
    assert virtually(main()) <= bound_s + 0.1
    assert "5 handlers ignore" in caplog.text


def test_a_call_whose_place_comes_free_because_the_node_stops_is_refused_unstarted():
    async def stubborn() -> str:
        with contextlib.suppress(asyncio.CancelledError):
            await for_ever()
        return "done"

    async def main() -> None:
        network = Network()
        handlers = Handlers(stubborn=stubborn)
        session_config = SessionConfig(max_calls_served=1)
        a, b = Node(network, 1), await Node(network, 2, handlers=handlers, session_config=session_config).listen()
        calls = [asyncio.create_task(a.call(b, "stubborn")) for _ in range(3)]
        await asyncio.sleep(1)
        await b.stop()
        answers = await asyncio.gather(*calls, return_exceptions=True)
        await a.stop()

        assert answers[0] == "done"
        assert [type(answer) for answer in answers[1:]] == [PeerUnavailable] * 2
        assert handlers.ran["stubborn",] == 1

    virtually(main())


@pytest.mark.parametrize("start", ["connect_address", "check_dial", "call"])
@pytest.mark.parametrize("where", ["connect", "handshake"])
def test_a_stop_ends_what_is_being_dialed(start: str, where: str):
    async def main() -> float:
        network = Network(delay_s=0.01)
        a = Node(network, 1)
        address = "10.9.9.9:1"
        if where == "connect":
            network.silent.add(address)
        else:
            await network.listen(*parse_address(address), Deaf)
        peer = Peer(bytes(32), (address,))
        starts: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
            "connect_address": lambda: a.pool.connect_address(address),
            "check_dial": lambda: a.pool.check_dial(peer),
            "call": lambda: a.pool.call(peer, "echo", {}, timeout_s=60),
        }
        waiting = asyncio.create_task(starts[start]())
        await asyncio.sleep(0.1)
        started_at = now()
        await a.stop(grace=5)
        stopped_after_s = now() - started_at
        with pytest.raises(PeerUnavailable, match="stopping"):
            await waiting
        return stopped_after_s

    assert virtually(main()) < 0.1


def test_a_stop_ends_handshakes_of_others_too():
    async def main() -> float:
        network = Network()
        b = await Node(network, 2).listen()
        stream = await network.connect(*parse_address(b.address), Door(b))
        stream.write(b"\xa5SYNN")
        await asyncio.sleep(0.1)
        started_at = now()
        await b.stop(grace=5)
        return now() - started_at

    assert virtually(main()) < 0.1


def test_who_knocks_while_the_pool_stops_is_turned_away():
    async def main() -> None:
        network = Network(delay_s=0.01)
        gate = asyncio.Event()
        a, b = Node(network, 1), await Node(network, 2, handlers=Handlers(wait=gate.wait)).listen()
        call = asyncio.create_task(a.call(b, "wait"))
        await asyncio.sleep(1)
        late = Node(network, 3)
        in_handshake = asyncio.create_task(late.echo(b))
        await asyncio.sleep(0.045)  # one round trip to connect, two and a half for the handshake
        stop = asyncio.create_task(b.pool.stop(5))
        await asyncio.sleep(0)
        latest = asyncio.create_task(Node(network, 4).echo(b))
        results = await asyncio.gather(in_handshake, latest, return_exceptions=True)
        gate.set()
        await asyncio.gather(call, stop)
        await asyncio.gather(a.stop(), late.stop(), b.stop())

        assert [type(result) for result in results] == [PeerUnavailable] * 2
        assert not b.pool._connections

    virtually(main())


def test_a_stopped_pool_dials_nobody_until_it_is_opened_again():
    async def main() -> None:
        a, b = await two_nodes()
        await a.echo(b)
        await asyncio.gather(a.pool.stop(), a.pool.stop(0))
        await a.pool.stop()
        with pytest.raises(PeerUnavailable, match="stopping"):
            await a.echo(b)
        a.pool.open()
        answers = [await a.echo(b), await b.echo(a)]
        await asyncio.gather(a.stop(), b.stop())

        assert answers == ["hello"] * 2

    virtually(main())


def test_a_stop_that_is_cancelled_leaves_no_connection():
    async def main() -> None:
        network = Network()
        a, b = Node(network, 1), await Node(network, 2, handlers=Handlers(wait=for_ever)).listen()
        call = asyncio.create_task(a.call(b, "wait"))
        await asyncio.sleep(1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await b.pool.stop(60)
        with pytest.raises(PeerUnavailable):
            await call
        assert not b.pool._connections
        await asyncio.gather(a.stop(), b.stop())

    virtually(main())


def test_a_handler_may_stop_its_own_node():
    async def main() -> list[str]:
        network = Network()
        ended: list[str] = []

        async def stop() -> None:
            await b.stop(grace=1)
            ended.append("stopped")

        a, b = Node(network, 1), Node(network, 2, handlers=Handlers(stop=stop))
        await b.listen()
        with pytest.raises(PeerUnavailable):
            await a.call(b, "stop")
        await asyncio.sleep(5)
        await a.stop()
        return ended

    assert virtually(main()) == ["stopped"]


# Being cancelled


@pytest.mark.parametrize("delay_s", [0.0, 0.001])
def test_a_call_cancelled_at_any_moment_leaves_nothing_behind(delay_s: float):
    async def main() -> Counter[str]:
        outcomes = Counter[str]()
        for turns in range(70):
            network = Network(delay_s=delay_s)
            handlers = Handlers(slow=lambda: asyncio.sleep(2 * delay_s))
            a, b = Node(network, 1), await Node(network, 2, handlers=handlers).listen()
            call = asyncio.create_task(a.call(b, "slow", timeout_s=60))
            for _ in range(turns):
                await asyncio.sleep(delay_s / 5)
            was_done = call.done()
            call.cancel()
            (result,) = await asyncio.gather(call, return_exceptions=True)
            assert was_done or isinstance(result, asyncio.CancelledError)
            outcomes["done" if was_done else "cancelled"] += 1
            await asyncio.sleep(1)
            assert sum(connection.calls_in_flight for node in (a, b) for connection in node.pool._connections) == 0
            assert len(a.pool._connections) == len(b.pool._connections) <= 1
            assert not a.pool._dials
            assert await a.echo(b) == "hello"
            await asyncio.gather(a.stop(), b.stop())
            assert not a.pool._connections
            assert not b.pool._connections
        return outcomes

    outcomes = virtually(main())

    assert min(outcomes["done"], outcomes["cancelled"]) > 5


def test_a_check_dial_cancelled_at_any_moment_leaves_nothing_behind():
    async def main() -> None:
        for turns in range(40):
            network = Network(delay_s=0.001)
            a, b = Node(network, 1), await Node(network, 2).listen()
            check = asyncio.create_task(a.pool.check_dial(b.peer))
            await asyncio.sleep(turns * 0.0003)
            check.cancel()
            await asyncio.gather(check, return_exceptions=True)
            await asyncio.sleep(1)
            assert not a.pool._connections
            assert not b.pool._connections
            await asyncio.gather(a.stop(), b.stop())

    virtually(main())


def test_a_check_dial_that_is_cancelled_hangs_up_at_once():
    async def main() -> None:
        network = Network()
        a = Node(network, 1)
        await network.listen("10.9.9.9", 1, Deaf)
        check = asyncio.create_task(a.pool.check_dial(Peer(bytes(32), ("10.9.9.9:1",))))
        await asyncio.sleep(0.1)
        was_connected = bool(a.pool._connections)
        check.cancel()
        await asyncio.sleep(0.1)
        is_connected = bool(a.pool._connections)
        await a.stop()

        assert was_connected
        assert not is_connected

    virtually(main())


def test_a_caller_cancelled_while_the_pool_stops_was_cancelled():
    async def main() -> int:
        cancelled_count = 0
        for turns in range(15):
            network = Network()
            network.silent.add("10.9.9.9:1")
            a = Node(network, 1)
            waiting = asyncio.create_task(a.pool.connect_address("10.9.9.9:1"))
            await asyncio.sleep(0.1)
            stop = asyncio.create_task(a.pool.stop())
            for _ in range(turns):
                await asyncio.sleep(0)
            was_cancelled = waiting.cancel()
            (result,) = await asyncio.gather(waiting, return_exceptions=True)
            await stop
            assert isinstance(result, asyncio.CancelledError if was_cancelled else PeerUnavailable)
            cancelled_count += was_cancelled
        return cancelled_count

    assert 2 < virtually(main()) < 15


# Over TCP, with a real server


def make_server(number: int, port: int = 0) -> Server:
    server = Server(
        port=port,
        identity=Identity.from_seed(bytes([number]) * 32),
        config=ServerConfig(session=SessionConfig(goodbye_timeout_s=0.5)),
    )
    server.endpoint(name="echo")(echo)
    return server


def peer_of(server: Server) -> Peer:
    return Peer(server.identity.node_id, server.listening_addresses)


async def ask(caller: Server, called: Server, value: Any) -> Any:
    return await caller.sessions.call(peer_of(called), "echo", {"value": value}, timeout_s=10)


async def test_servers_that_dial_each_other_at_once_lose_no_call_over_tcp():
    for _ in range(25):
        servers = [make_server(1), make_server(2)]
        for server in servers:
            await server.start()
        pairs = [(*pair, value) for value in range(10) for pair in itertools.permutations(servers)]
        answers = await asyncio.gather(*(ask(*pair) for pair in pairs))
        later = await asyncio.gather(*(ask(*pair) for pair in pairs))
        await asyncio.gather(*(server.stop() for server in servers))

        assert answers == later == [value for _, _, value in pairs]
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_server_that_restarts_at_its_port_is_reached_again_over_tcp():
    caller, called = make_server(1), make_server(2)
    await called.start()
    answers = [await ask(caller, called, 1)]
    await called.stop(grace=0)
    again = make_server(2, called.port)
    await again.start()
    answers.append(await ask(caller, again, 2))
    await asyncio.gather(caller.stop(), again.stop())

    assert answers == [1, 2]
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_hundred_clients_and_their_strays_leave_nothing_over_tcp():
    server = make_server(1)
    await server.start()
    clients = [make_server(number) for number in range(2, 42)]
    strays = [await asyncio.open_connection(*parse_address(server.listening_addresses[0])) for _ in range(20)]
    for number, (_, writer) in enumerate(strays):
        writer.write(b"\xa5SYNN\x01\x01\x00garbage"[:number])
    answers = await asyncio.gather(*(ask(client, server, number) for number, client in enumerate(clients)))
    await server.stop(grace=0)
    for reader, writer in strays:
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    await asyncio.gather(*(client.stop() for client in clients))

    assert answers == list(range(40))
    assert asyncio.all_tasks() == {asyncio.current_task()}
