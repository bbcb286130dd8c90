from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import random
from collections.abc import Sequence
from typing import Any

import pytest

from synapse_p2p.config import PoolConfig, SessionConfig
from synapse_p2p.exceptions import HandshakeFailed, PeerUnavailable
from synapse_p2p.transport.base import ByteStream, Receiver, format_address, parse_address
from synapse_p2p.trust import TrustConfig
from tests.transport.pool_nodes import (
    HOST,
    Deaf,
    Door,
    Handlers,
    Network,
    Node,
    Place,
    echo,
    virtually,
)

pytestmark = pytest.mark.usefixtures("nothing_is_left")


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
        b = await Node(network, 1, config=PoolConfig(max_sessions=5, reserved_sessions=1)).listen()
        clients = [Node(network, number) for number in range(2, 12)]
        for client in clients:
            await client.echo(b)
            await asyncio.sleep(0.1)
        connected = [index for index, client in enumerate(clients) if b.pool.is_connected(client.id)]
        await asyncio.gather(b.stop(), *(client.stop() for client in clients))

        assert connected == [6, 7, 8, 9]

    virtually(main())


def test_who_refuses_calls_keeps_no_session_longer_than_others():
    async def main() -> None:
        network = Network()
        b = await Node(network, 1, config=PoolConfig(max_sessions=5, reserved_sessions=1)).listen()
        clients = [Node(network, number) for number in range(2, 12)]
        for client in clients:
            await client.echo(b)
            for connection in client.pool._connections:
                connection.drain()
            with pytest.raises(PeerUnavailable):
                await b.echo(client)
            await asyncio.sleep(0.1)
        await asyncio.sleep(5)
        held_count = len(b.pool)
        await stop_all(b, *clients)

        assert held_count <= 5

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


# Who is let in


async def stop_all(*nodes: Node) -> None:
    await asyncio.gather(*(node.stop() for node in nodes))


async def knock(network: Network, listener: Node, count: int, *, host: str = HOST) -> list[Deaf]:
    """Connect so often, say the first byte of a session, and nothing more."""
    knocking = []
    for _ in range(count):
        stranger = Deaf()
        stream = await Place(network, host).connect(*parse_address(listener.address), stranger)
        stream.write(b"\xa5")
        knocking.append(stranger)
        await asyncio.sleep(0.001)
    return knocking


async def refusals(clients: Sequence[Node], listener: Node) -> list[str | None]:
    """What each client is told when it connects, None where it got a session."""
    told: list[str | None] = []
    for client in clients:
        try:
            await client.pool.connect_address(listener.address)
            told.append(None)
        except HandshakeFailed as error:
            told.append(error.refusal)
    return told


def test_a_newcomer_is_told_busy_while_every_session_is_in_use():
    async def main() -> tuple[list[str | None], str | None, int]:
        network = Network()
        gate = asyncio.Event()
        config = PoolConfig(max_sessions=4, reserved_sessions=1)
        b = await Node(network, 1, config=config, handlers=Handlers(wait=gate.wait)).listen()
        clients = [Node(network, number) for number in range(2, 7)]
        calls = [asyncio.create_task(client.call(b, "wait")) for client in clients[:3]]
        await asyncio.sleep(1)
        told = await refusals(clients[3:], b)
        gate.set()
        answers = await asyncio.gather(*calls)
        await asyncio.sleep(60)
        (later,) = await refusals(clients[3:4], b)
        kept_count = len(b.pool.peer_ids())
        await stop_all(b, *clients)

        assert answers == [True] * 3
        return told, later, kept_count

    assert virtually(main()) == (["busy", "busy"], None, 3)


def test_accepted_sessions_leave_places_for_those_that_we_dial():
    async def main() -> tuple[int, list[Any]]:
        network = Network()
        config = PoolConfig(max_sessions=6, reserved_sessions=2)
        b = await Node(network, 1, config=config).listen()
        clients = [Node(network, number) for number in range(2, 9)]
        others = [await Node(network, number).listen() for number in range(20, 22)]
        for client in clients:
            await client.echo(b)
            await asyncio.sleep(0.1)
        accepted_ids = b.pool.peer_ids()
        answers = [await b.echo(other) for other in others]
        await asyncio.sleep(5)
        kept_ids = b.pool.peer_ids()
        await stop_all(b, *clients, *others)

        assert kept_ids == [*accepted_ids, *(other.id for other in others)]
        return len(accepted_ids), answers

    assert virtually(main()) == (4, ["hello"] * 2)


def test_those_who_prove_nothing_take_no_place_of_those_who_did():
    async def main() -> None:
        network = Network()
        b = await Node(network, 1, config=PoolConfig(max_sessions=4, reserved_sessions=1)).listen()
        clients = [Node(network, number) for number in range(2, 5)]
        for client in clients:
            await client.echo(b)
        await knock(network, b, 50)
        kept_ids = b.pool.peer_ids()
        await stop_all(b, *clients)

        assert kept_ids == [client.id for client in clients]

    virtually(main())


@pytest.mark.parametrize(
    ("hosts", "trust", "told"),
    [
        (["198.51.100.1"] * 5, TrustConfig(), [None] * 3 + ["busy"] * 2),
        (["2001:db8::1", "2001:db8::2", "2001:db8:0:0:ffff::1", "2001:db8::9"], TrustConfig(), [None] * 3 + ["busy"]),
        (["198.51.100.1", "198.51.100.2"] * 3, TrustConfig(), [None] * 6),
        ([f"2001:db8:0:{n}::1" for n in range(5)], TrustConfig(), [None] * 5),
        (["10.0.0.9"] * 5, TrustConfig(), [None] * 5),
        (["127.0.0.1"] * 5, TrustConfig(), [None] * 5),
        (["127.0.0.1"] * 4, TrustConfig(loopback=False), [None] * 3 + ["busy"]),
        (["10.0.0.9"] * 4, TrustConfig(private=False), [None] * 3 + ["busy"]),
        (["198.51.100.1"] * 5, TrustConfig(networks=("198.51.100.0/24",)), [None] * 5),
    ],
)
def test_a_host_has_so_many_sessions_and_the_next_is_told_busy_unless_it_is_exempt(
    hosts: list[str], trust: TrustConfig, told: list[str | None]
):
    async def main() -> None:
        network = Network()
        b = await Node(network, 1, config=PoolConfig(max_sessions_per_address=3, trust=trust)).listen()
        clients = [Node(network, number, host=host) for number, host in enumerate(hosts, start=2)]
        outcomes = await refusals(clients, b)
        await stop_all(b, *clients)

        assert outcomes == told

    virtually(main())


def test_a_host_that_hangs_up_has_its_place_again():
    async def main() -> None:
        network = Network()
        b = await Node(network, 1, config=PoolConfig(max_sessions_per_address=1)).listen()
        clients = [Node(network, number, host="198.51.100.1") for number in range(2, 6)]
        for client in clients:
            assert await client.echo(b) == "hello"
            await client.stop()
        await b.stop()

    virtually(main())


def test_of_many_who_prove_themselves_at_once_a_host_keeps_so_many_sessions():
    async def main() -> tuple[int, int]:
        network = Network()
        config = PoolConfig(max_sessions_per_address=3, max_handshakes_per_address=20)
        b = await Node(network, 1, config=config).listen()
        clients = [Node(network, number, host="198.51.100.1") for number in range(2, 12)]
        ends = await asyncio.gather(*(client.echo(b) for client in clients), return_exceptions=True)
        kept_count = len(b.pool.peer_ids())
        await stop_all(b, *clients)

        assert all(end == "hello" or isinstance(end, PeerUnavailable) for end in ends)
        assert not any(end.may_have_started for end in ends if isinstance(end, PeerUnavailable))
        return ends.count("hello"), kept_count

    assert virtually(main()) == (3, 3)


def test_a_host_that_proves_nothing_crowds_out_itself_alone():
    async def main() -> tuple[list[bool], list[bool], str, str]:
        network = Network()
        config = PoolConfig(max_handshakes=10, max_handshakes_per_address=4)
        b = await Node(network, 1, config=config).listen()
        quiet = await knock(network, b, 3, host="203.0.113.1")
        loud = await knock(network, b, 20, host="198.51.100.1")
        neighbour, stranger = Node(network, 2, host="198.51.100.1"), Node(network, 3, host="192.0.2.1")
        answers = await neighbour.echo(b), await stranger.echo(b)
        hung_up = [[each.is_hung_up_on for each in knocking] for knocking in (quiet, loud)]
        await stop_all(b, neighbour, stranger)
        return hung_up[0], hung_up[1], *answers

    quiet, loud, *answers = virtually(main())

    assert quiet == [False] * 3
    assert loud == [True] * 17 + [False] * 3
    assert answers == ["hello"] * 2


def test_who_is_refused_and_reads_nothing_is_gone_all_the_same():
    async def main() -> int:
        network = Network()
        b = await Node(network, 1, config=PoolConfig(max_sessions_per_address=1)).listen()
        client = Node(network, 2, host="198.51.100.1")
        await client.echo(b)
        for _ in range(20):
            deaf = Deaf()
            stream = await Place(network, "198.51.100.1").connect(*parse_address(b.address), deaf)
            stream.pause_reading()
            stream.write(b"\xa5")
        await asyncio.sleep(SessionConfig().goodbye_timeout_s + 0.1)
        kept_count = len(b.pool._connections)
        await stop_all(b, client)
        return kept_count

    assert virtually(main()) == 1


def test_peers_that_read_nothing_lose_their_places():
    async def main() -> tuple[list[str | None], int, list[str | None]]:
        network = Network()
        config = PoolConfig(max_sessions=4, reserved_sessions=1)
        handlers = Handlers(big=lambda: echo(b"x" * 1_000_000))
        b = await Node(network, 1, config=config, handlers=handlers).listen()
        slow = [Node(network, number) for number in range(2, 5)]
        for client in slow:
            await client.echo(b)
            next(iter(client.pool._connections))._stream.pause_reading()  # type: ignore[union-attr]
        calls = [asyncio.create_task(client.call(b, "big")) for client in slow for _ in range(3)]
        await asyncio.sleep(0.1)
        client = Node(network, 9)
        before = await refusals([client], b)
        await asyncio.sleep(SessionConfig().write_stall_s + 1)
        kept_count = len(b.pool._connections)
        after = await refusals([client], b)
        await stop_all(b, client, *slow)
        await asyncio.gather(*calls, return_exceptions=True)
        return before, kept_count, after

    assert virtually(main()) == (["busy"], 0, [None])


# No descriptor left


class Exhausted(Network):
    """A network in which this process can open nothing while `is_exhausted()`."""

    def is_exhausted(self) -> bool:
        return True

    async def connect(self, host: str, port: int, receiver: Receiver) -> ByteStream:
        if self.is_exhausted():
            self.dialed.append(format_address(host, port))
            raise OSError(errno.EMFILE, "Too many open files")
        return await super().connect(host, port, receiver)


def test_for_a_dial_without_a_descriptor_a_stranger_goes(caplog: pytest.LogCaptureFixture):
    async def main() -> tuple[str, list[bool]]:
        network = Exhausted()
        a, b = await Node(network, 1).listen(), await Node(network, 2).listen()
        strangers = await knock(network, a, 3)
        network.is_exhausted = lambda: not strangers[0].is_hung_up_on  # type: ignore[method-assign]
        answer = await a.echo(b)
        hung_up = [stranger.is_hung_up_on for stranger in strangers]
        await stop_all(a, b)
        return answer, hung_up

    assert virtually(main()) == ("hello", [True, False, False])
    assert len(lines_about_descriptors(caplog)) == 1


def test_a_dial_without_a_descriptor_says_so_and_is_no_fault_of_the_address(caplog: pytest.LogCaptureFixture):
    async def main() -> tuple[list[PeerUnavailable], int, str]:
        network = Exhausted()
        a, b = Node(network, 1), await Node(network, 2).listen()
        errors = []
        for _ in range(2):
            with pytest.raises(PeerUnavailable, match="too much is open here") as raised:
                await a.echo(b)
            errors.append(raised.value)
        dialed_count = len(network.dialed)
        network.is_exhausted = lambda: False  # type: ignore[method-assign]
        answer = await a.echo(b)
        await stop_all(a, b)
        return errors, dialed_count, answer

    errors, dialed_count, answer = virtually(main())

    assert [(error.was_tried, error.may_have_started) for error in errors] == [(False, False)] * 2
    assert (dialed_count, answer) == (2, "hello")
    assert len(lines_about_descriptors(caplog)) == 1


def test_room_is_made_by_those_who_have_not_begun_first_and_then_by_the_oldest_unproved(
    caplog: pytest.LogCaptureFixture,
):
    async def main() -> None:
        network = Network()
        not_begun = [True, True]
        b = await Node(network, 1, drop_stranger=lambda: bool(not_begun and not_begun.pop())).listen()
        client = Node(network, 2)
        await client.echo(b)
        strangers = await knock(network, b, 2)

        steps = []
        for _ in range(5):
            has_room = b.pool.make_room()
            await asyncio.sleep(0)
            steps.append((has_room, [stranger.is_hung_up_on for stranger in strangers]))
        answer = await client.echo(b)
        await stop_all(b, client)

        assert steps == [
            (True, [False, False]),
            (True, [False, False]),
            (True, [True, False]),
            (True, [True, True]),
            (False, [True, True]),
        ]
        assert answer == "hello"

    virtually(main())
    assert len(lines_about_descriptors(caplog)) == 1


def lines_about_descriptors(caplog: pytest.LogCaptureFixture) -> list[Any]:
    """The lines, which are then forgotten: this once they are expected."""
    lines = [record for record in caplog.records if "out of file descriptors" in record.msg]
    assert len(lines) == len([record for record in caplog.records if record.levelno > logging.INFO])
    caplog.clear()
    return lines
