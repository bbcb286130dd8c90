from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from synapse_p2p.background import TaskScope
from synapse_p2p.config import SessionConfig
from synapse_p2p.exceptions import ConfigError, HandshakeFailed, PeerUnavailable, Timeout
from synapse_p2p.identity import Identity
from synapse_p2p.runtime import Runtime
from synapse_p2p.transport.base import ByteStream, parse_address
from synapse_p2p.transport.connection import SessionConnection
from synapse_p2p.transport.dialing import SessionDialer, time_limit
from synapse_p2p.transport.spoken import SPOKEN, spoke_encrypted
from tests.transport.pool_nodes import HOST, Deaf, Handlers, Network, now, virtually

pytestmark = pytest.mark.usefixtures("nothing_is_left")

DIAL_TIMEOUT_S = 2.0
KEY = b"k" * 32


@pytest.fixture(autouse=True)
def nobody_spoke_yet() -> Iterator[None]:
    SPOKEN.clear()
    yield
    SPOKEN.clear()


class End:
    """A dialer with what it is told of its connections, and a listener that accepts or refuses them."""

    def __init__(self, network: Network, number: int, *, network_name: str = "test", **options: Any) -> None:
        loop, rng = asyncio.get_running_loop(), random.Random(number)
        self.identity = Identity.from_seed(bytes([number]) * 32)
        self.scope = TaskScope()
        self.told: list[tuple[str, SessionConnection]] = []
        self.opened: list[SessionConnection] = []
        self.has_room = True
        self.network = network
        self.address = ""
        self.dialer = SessionDialer(
            self.identity,
            server=Handlers(),
            transport=network,
            runtime=Runtime(now=loop.time, unix_now=loop.time, rng=rng, token_bytes=rng.randbytes),
            agent="test",
            dial_timeout_s=DIAL_TIMEOUT_S,
            session_config=SessionConfig(),
            network=network_name,
            **options,
        )

    async def listen(self) -> End:
        door = await self.network.listen(HOST, 0, lambda: Entry(self))
        self.address = door.addresses[0]
        return self

    async def dial(self, address: str, expected_id: bytes | None = None, **options: Any) -> SessionConnection:
        return await self.dialer.dial(address, expected_id, scope=self.scope, **self.callbacks, **options)

    @property
    def callbacks(self) -> dict[str, Any]:
        return {
            "on_established": lambda connection: self.told.append(("established", connection)),
            "on_closed": lambda connection: self.told.append(("closed", connection)),
        }

    @property
    def words(self) -> list[str]:
        return [word for word, _ in self.told]

    async def close(self) -> None:
        for _, connection in self.told:
            connection.close()
        for _, connection in list(self.told):
            await connection.wait_closed()
        await self.scope.close()


class Entry(Deaf):
    """A new stream at a listener."""

    def __init__(self, end: End) -> None:
        self._end = end

    def connection_made(self, stream: ByteStream) -> None:
        self._stream = stream

    def data_received(self, data: bytes) -> None:
        end, dialer = self._end, self._end.dialer
        if end.has_room:
            connection = dialer.accepted(self._stream, scope=end.scope, **end.callbacks)
        else:
            connection = dialer.refused(self._stream, scope=end.scope, on_closed=end.callbacks["on_closed"])
        connection.data_received(data)


async def two_ends(**options: Any) -> tuple[End, End]:
    network = Network(delay_s=0.01)
    return End(network, 1, **options), await End(network, 2, **options).listen()


@pytest.mark.parametrize("network_key", [None, KEY])
def test_a_dial_ends_with_a_session_between_two_proved_peers(network_key: bytes | None):
    async def main() -> None:
        a, b = await two_ends(network_key=network_key)
        connection = await a.dial(b.address, b.identity.node_id)
        answer = await connection.call("echo", ["hello"], {}, timeout_s=5)
        words = a.words, b.words
        (_, accepted), *_ = b.told
        await asyncio.gather(a.close(), b.close())

        assert answer == "hello"
        assert words == (["established"], ["established"])
        assert a.words == b.words == ["established", "closed"]
        assert connection.is_dialer
        assert not accepted.is_dialer
        assert (connection.peer.node_id, accepted.peer.node_id) == (b.identity.node_id, a.identity.node_id)

    virtually(main())


def test_whoever_answers_will_do_when_nobody_in_particular_is_wanted():
    async def main() -> None:
        a, b = await two_ends()
        connection = await a.dial(b.address)
        await asyncio.gather(a.close(), b.close())

        assert connection.peer.node_id == b.identity.node_id

    virtually(main())


def test_an_end_says_where_it_listens_and_is_a_client_where_it_does_not():
    async def main() -> None:
        a, b = await two_ends()
        node, client = End(a.network, 3, listen_port=lambda: 7777), End(a.network, 4)
        other_words = replace(client.dialer.parameters(), agent="another")
        for end, options in ((node, {}), (client, {}), (client, {"parameters": other_words})):
            await end.dial(b.address, **options)
        await asyncio.sleep(1)
        said = [connection.peer.parameters for word, connection in b.told if word == "established"]
        await asyncio.gather(*(end.close() for end in (a, b, node, client)))

        assert [(words.mode, words.port, words.agent) for words in said] == [
            ("node", 7777, "test"),
            ("client", 0, "test"),
            ("client", 0, "another"),
        ]
        assert said[0].instance != said[1].instance == said[2].instance

    virtually(main())


@pytest.mark.parametrize(
    ("own", "theirs"),
    [
        ({"network_name": "another"}, {}),
        ({"network_key": KEY}, {}),
        ({}, {"network_key": KEY}),
        ({"network_key": b"x" * 32}, {"network_key": KEY}),
    ],
)
def test_a_dial_into_another_network_fails_at_both_ends(own: dict[str, Any], theirs: dict[str, Any]):
    async def main() -> None:
        network = Network(delay_s=0.01)
        a, b = End(network, 1, **own), await End(network, 2, **theirs).listen()
        with pytest.raises(HandshakeFailed) as raised:
            await a.dial(b.address)
        await asyncio.sleep(2)

        assert raised.value.reason == "refused"
        assert a.words == b.words == ["closed"]
        assert len(SPOKEN) == 0

    virtually(main())


def test_a_listener_without_room_says_busy_and_both_ends_are_closed():
    async def main() -> None:
        a, b = await two_ends()
        b.has_room = False
        with pytest.raises(HandshakeFailed) as raised:
            await a.dial(b.address)
        await asyncio.sleep(0.1)

        assert (raised.value.reason, raised.value.refusal) == ("refused", "busy")
        assert a.words == b.words == ["closed"]

    virtually(main())


def test_somebody_else_at_the_address_ends_the_dial_and_the_connection():
    async def main() -> None:
        a, b = await two_ends()
        with pytest.raises(HandshakeFailed) as raised:
            await a.dial(b.address, bytes(32))
        words = list(a.words)
        await asyncio.sleep(0.1)

        assert raised.value.reason == "identity"
        assert words == b.words == ["closed"]
        assert not spoke_encrypted(b.address)

    virtually(main())


@pytest.mark.parametrize("address", ["nonsense", "10.0.0.1", "10.0.0.1:99999"])
def test_what_is_no_address_is_not_dialed(address: str):
    async def main() -> None:
        a = End(Network(), 1)
        with pytest.raises(ConfigError):
            await a.dial(address)

        assert a.network.dialed == a.told == []

    virtually(main())


def test_nobody_at_the_address_is_unavailable_at_once():
    async def main() -> None:
        a = End(Network(), 1)
        with pytest.raises(PeerUnavailable, match=r"10\.9\.9\.9:1 cannot be reached") as raised:
            await a.dial("10.9.9.9:1")

        assert raised.value.was_tried
        assert not raised.value.may_have_started
        assert a.told == []

    virtually(main())


def test_a_connect_and_a_handshake_have_each_their_own_limit_of_time():
    async def main() -> tuple[float, float]:
        network = Network()
        a, deaf = End(network, 1), Deaf()
        network.silent.add("10.9.9.9:1")
        await network.listen("10.9.9.9", 2, lambda: deaf)
        with pytest.raises(Timeout, match="took no connection within 2 s"):
            await a.dial("10.9.9.9:1")
        connect_s = now()
        with pytest.raises(HandshakeFailed, match="in time") as raised:
            await a.dial("10.9.9.9:2")
        handshake_s = now() - connect_s

        assert raised.value.reason == "timeout"
        assert a.words == ["closed"]
        assert deaf.is_hung_up_on
        return connect_s, handshake_s

    connect_s, handshake_s = virtually(main())

    assert (connect_s, handshake_s) == (DIAL_TIMEOUT_S, pytest.approx(SessionConfig().handshake_timeout_s, abs=0.01))


def test_a_dial_cancelled_at_any_moment_leaves_nothing():
    async def main() -> set[bool]:
        outcomes = set()
        for moment in range(60):
            a, b = await two_ends()
            dial = asyncio.create_task(a.dial(b.address))
            await asyncio.sleep(moment * 0.001)
            was_done = dial.done()
            dial.cancel()
            await asyncio.gather(dial, return_exceptions=True)
            is_clean = a.words in ([], ["closed"], ["established", "closed"])
            assert was_done or is_clean
            outcomes.add(was_done)
            await a.close()
            await asyncio.sleep(1)
            assert b.words in ([], ["closed"], ["established", "closed"])
            assert len(a.scope) == len(b.scope) == 0
        return outcomes

    assert virtually(main()) == {False, True}


# Who spoke the encrypted protocol once


def test_an_address_that_was_dialed_is_known_as_it_was_written_and_as_it_was_found():
    class Resolver(Network):
        async def connect(self, host: str, port: int, receiver: Any) -> ByteStream:
            return await super().connect(HOST if host == "peer.example.org" else host, port, receiver)

    async def main() -> None:
        network = Resolver()
        a, b = End(network, 1), await End(network, 2).listen()
        port = parse_address(b.address)[1]
        await a.dial(f"peer.example.org:{port}")
        await asyncio.gather(a.close(), b.close())

        assert spoke_encrypted(f"Peer.Example.org:{port}")
        assert spoke_encrypted(b.address)
        assert len(SPOKEN) == 2

    virtually(main())


# Limits of time


def test_a_limit_of_time_ends_in_our_own_error_and_none_is_no_limit():
    async def main() -> float:
        with pytest.raises(Timeout, match="too slow"):
            async with time_limit(3, "too slow"):
                await asyncio.Event().wait()
        async with time_limit(None, "never"):
            await asyncio.sleep(100)
        return now()

    assert virtually(main()) == 103
