"""Streams over the virtual network: the contract of every transport, and what only a simulation can do to them."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import random
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from simulations.network import ConstantLatency, Digest, LinkQuality, Nat, VirtualHost, VirtualNetwork
from simulations.streams import VirtualStreams, VirtualTransport
from simulations.virtual_loop import run
from synapse_p2p.transport.base import ByteStream, parse_address

ONE_WAY_S = 0.05
PORT = 9000


def contract() -> dict[str, Callable[..., Coroutine[Any, Any, None]]]:
    """The tests that TCP and streams in memory pass, by name: those that need nothing but a transport."""
    path = Path(__file__).parents[1] / "transport" / "test_streams.py"
    spec = importlib.util.spec_from_file_location("contract_of_streams", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {
        name: function
        for name, function in vars(module).items()
        if name.startswith("test_")
        and inspect.iscoroutinefunction(function)
        and list(inspect.signature(function).parameters) == ["transport"]
    }


CONTRACT = contract()


class Ear:
    """A Receiver that notes what it hears, and when."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.data = b""
        self.heard_at: list[float] = []
        self.stream: ByteStream
        self.error: Exception | None = None
        self.answer = b""  # what it writes as soon as the stream is open

    def connection_made(self, stream: ByteStream) -> None:
        self.stream = stream
        self._hear("made")
        stream.write(self.answer)

    def data_received(self, data: bytes) -> None:
        self.data += data
        self._hear("data")

    def eof_received(self) -> bool | None:
        self._hear("eof")
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self.error = exc
        self._hear("lost")

    def pause_writing(self) -> None:
        self._hear("pause")

    def resume_writing(self) -> None:
        self._hear("resume")

    def _hear(self, word: str) -> None:
        self.words.append(word)
        self.heard_at.append(asyncio.get_running_loop().time())


class Draws:
    """Latencies that differ, so that a later message could be faster."""

    def __init__(self) -> None:
        self._rng = random.Random(1)

    def __call__(self, source: bytes, target: bytes) -> float:
        return self._rng.uniform(0.001, 0.2)


class Pair:
    """Two hosts and their transports; the second listens."""

    def __init__(self, latency: Any = None) -> None:
        self.digest = Digest()
        self.network = VirtualNetwork(
            asyncio.get_running_loop(), random.Random(1), latency or ConstantLatency(ONE_WAY_S), self.digest
        )
        streams = VirtualStreams(self.network)
        self.hosts: list[VirtualHost] = [self.network.host(), self.network.host()]
        self.dialer, self.listener = (streams.transport(host) for host in self.hosts)
        self.accepted: list[Ear] = []

    async def listen(self, transport: VirtualTransport | None = None, host: str = "0.0.0.0") -> None:
        await (transport or self.listener).listen(host, PORT, self._accept)

    async def dial(self) -> Ear:
        ear = Ear()
        await self.dialer.connect(self.listener.ip, PORT, ear)
        return ear

    async def opened(self) -> tuple[Ear, Ear]:
        await self.listen()
        ours = await self.dial()
        return ours, self.accepted[-1]

    def _accept(self) -> Ear:
        self.accepted.append(Ear())
        return self.accepted[-1]


def played(scene: Callable[[Pair], Coroutine[Any, Any, None]], latency: Any = None) -> None:
    """Play a scene with two hosts, in virtual time."""

    async def main() -> None:
        await scene(Pair(latency))

    run(main())


def test_the_contract_is_found():
    assert len(CONTRACT) >= 15


@pytest.mark.parametrize("name", CONTRACT)
def test_virtual_streams_keep_the_contract_of_tcp(name: str):
    async def main() -> None:
        # Without latency, for some of these tests wait in turns of the loop.
        network = VirtualNetwork(asyncio.get_running_loop(), random.Random(1), ConstantLatency(0.0), Digest())
        await CONTRACT[name](VirtualStreams(network).transport(network.host()))

    run(main())


def test_opening_takes_a_round_trip_and_bytes_one_way():
    async def scene(pair: Pair) -> None:
        ours, theirs = await pair.opened()
        ours.stream.write(b"hello")
        await asyncio.sleep(1)

        assert (ours.words, ours.heard_at) == (["made"], pytest.approx([2 * ONE_WAY_S]))
        assert (theirs.words, theirs.heard_at) == (["made", "data"], pytest.approx([ONE_WAY_S, 3 * ONE_WAY_S]))

    played(scene)


def test_each_end_knows_the_others_address():
    async def scene(pair: Pair) -> None:
        ours, theirs = await pair.opened()

        assert ours.stream.peer_address == theirs.stream.local_address == f"{pair.listener.ip}:{PORT}"
        assert theirs.stream.peer_address == ours.stream.local_address
        assert parse_address(theirs.stream.peer_address)[0] == pair.dialer.ip

    played(scene)


def test_bytes_stay_in_order_though_some_messages_are_faster():
    pieces = [f"{number:04}".encode() for number in range(200)]

    async def scene(pair: Pair) -> None:
        ours, theirs = await pair.opened()
        for piece in pieces:
            ours.stream.write(piece)
            await asyncio.sleep(0.01)
        ours.stream.close()
        await asyncio.sleep(1)

        assert theirs.data == b"".join(pieces)
        assert theirs.words[-2:] == ["eof", "lost"]

    played(scene, Draws())


def test_what_the_listener_writes_at_once_comes_after_the_opening():
    class Greeter(Ear):
        def __init__(self) -> None:
            super().__init__()
            self.answer = b"welcome"

    async def scene(pair: Pair) -> None:
        await pair.listener.listen("0.0.0.0", PORT, Greeter)
        ours = await pair.dial()
        await asyncio.sleep(1)

        assert (ours.words, ours.data) == (["made", "data"], b"welcome")

    played(scene, Draws())


def test_the_digest_has_every_byte():
    def digest(data: bytes) -> tuple[str, int]:
        async def main() -> tuple[str, int]:
            pair = Pair()
            ours, _ = await pair.opened()
            ours.stream.write(data)
            await asyncio.sleep(1)
            return pair.digest.hexdigest(), pair.digest.message_count

        return run(main())

    assert digest(b"one") == digest(b"one")
    assert digest(b"one") != digest(b"two")
    assert digest(b"one")[1] == 3  # open, opened, data


def test_nobody_at_an_address_never_answers():
    async def scene(pair: Pair) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(60):
                await pair.dialer.connect("10.9.9.9", PORT, Ear())

    played(scene)


def test_a_silent_host_never_answers_and_what_was_sent_stays_unsent():
    async def scene(pair: Pair) -> None:
        ours, theirs = await pair.opened()
        pair.hosts[1].fall_silent()
        ours.stream.write(b"are you there?")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(60):
                await pair.dial()

        assert ours.stream.unsent_bytes() == 14
        assert (ours.words, theirs.words) == (["made"], ["made"])

    played(scene)


def test_a_crashed_host_refuses_dials_and_resets_streams():
    async def scene(pair: Pair) -> None:
        ours, theirs = await pair.opened()
        pair.hosts[1].crash()
        ours.stream.write(b"are you there?")
        await asyncio.sleep(1)
        with pytest.raises(ConnectionRefusedError):
            await pair.dial()

        assert ours.words == ["made", "lost"]
        assert isinstance(ours.error, ConnectionResetError)
        assert theirs.words == ["made"]  # the process that would hear of it is gone

    played(scene)


def test_a_host_that_came_back_knows_no_stream_and_no_listener_of_before():
    async def scene(pair: Pair) -> None:
        ours, _ = await pair.opened()
        pair.hosts[1].restart()
        ours.stream.write(b"are you there?")
        await asyncio.sleep(1)
        with pytest.raises(ConnectionRefusedError):
            await pair.dial()
        await pair.listen()
        again = await pair.dial()

        assert isinstance(ours.error, ConnectionResetError)
        assert again.words == ["made"]

    played(scene)


def test_one_whose_own_host_crashed_is_told_when_it_writes():
    async def scene(pair: Pair) -> None:
        ours, theirs = await pair.opened()
        pair.hosts[0].crash()
        ours.stream.write(b"hello")
        await asyncio.sleep(1)
        with pytest.raises(OSError, match="down"):
            await pair.dial()

        assert (ours.words, theirs.data) == (["made", "lost"], b"")
        assert isinstance(ours.error, ConnectionAbortedError)

    played(scene)


def test_a_dial_that_nobody_wants_any_more_leaves_no_stream():
    async def scene(pair: Pair) -> None:
        await pair.listen()
        dialing = asyncio.create_task(pair.dial())
        await asyncio.sleep(1.5 * ONE_WAY_S)
        dialing.cancel()
        await asyncio.sleep(1)

        assert pair.accepted[0].words == ["made", "lost"]

    played(scene)


def test_a_dial_cancelled_in_the_turn_in_which_it_opens_leaves_no_stream():
    class Impatient(Ear):
        def connection_made(self, stream: ByteStream) -> None:
            super().connection_made(stream)
            dialing.cancel()

    async def scene(pair: Pair) -> None:
        nonlocal dialing
        await pair.listen()
        ear = Impatient()
        dialing = asyncio.create_task(pair.dialer.connect(pair.listener.ip, PORT, ear))
        await asyncio.sleep(1)

        assert dialing.cancelled()
        assert ear.words == ["made", "lost"]
        assert pair.accepted[0].words == ["made", "lost"]

    dialing: asyncio.Task[ByteStream]
    played(scene)


def test_a_listener_on_loopback_is_for_its_own_host_alone():
    async def scene(pair: Pair) -> None:
        await pair.listen(host="127.0.0.1")
        with pytest.raises(ConnectionRefusedError):
            await pair.dial()
        ear = Ear()
        await pair.listener.connect("127.0.0.1", PORT, ear)

        assert ear.words == ["made"]

    played(scene)


def test_nobody_listens_at_anothers_address():
    async def scene(pair: Pair) -> None:
        with pytest.raises(OSError, match="no address of this host"):
            await pair.listen(host=pair.dialer.ip)

    played(scene)


def test_bytes_that_a_cut_stops_arrive_in_order_once_it_is_healed():
    async def scene(pair: Pair) -> None:
        ours, theirs = await pair.opened()
        cut = pair.network.cut([pair.hosts[0]])
        for piece in (b"one ", b"two ", b"three"):
            ours.stream.write(piece)
            await asyncio.sleep(1)
        held = theirs.data
        pair.network.heal(cut)
        ours.stream.write(b" four")
        await asyncio.sleep(120)

        assert held == b""
        assert theirs.data == b"one two three four"
        assert ours.stream.unsent_bytes() == 0

    played(scene)


def test_a_stream_is_not_opened_through_a_cut():
    async def scene(pair: Pair) -> None:
        await pair.listen()
        pair.network.cut([pair.hosts[1]])
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(60):
                await pair.dial()

    played(scene)


def test_what_is_lost_is_sent_again_and_overtaken_by_nothing():
    pieces = [f"{number:04}".encode() for number in range(200)]

    async def scene(pair: Pair) -> None:
        ours, theirs = await pair.opened()
        pair.network.links.set_quality(LinkQuality(loss=0.3, jitter_s=0.1))
        for piece in pieces:
            ours.stream.write(piece)
            await asyncio.sleep(0.01)
        await asyncio.sleep(120)

        assert theirs.data == b"".join(pieces)
        assert theirs.heard_at[-1] > 3 * ONE_WAY_S + 2 + 0.2

    played(scene)


def test_many_bytes_take_their_time_on_a_narrow_line():
    async def scene(pair: Pair) -> None:
        ours, theirs = await pair.opened()
        pair.network.links.limit_upload(pair.hosts[0].id, 1000)
        ours.stream.write(bytes(2000))
        await asyncio.sleep(60)

        assert theirs.heard_at[-1] == pytest.approx(3 * ONE_WAY_S + 2.06)

    played(scene)


def test_a_host_behind_a_nat_is_not_dialed_and_dials():
    async def scene(pair: Pair) -> None:
        await pair.listen()
        pair.hosts[1].put_behind(Nat.REFUSES)
        with pytest.raises(ConnectionRefusedError):
            await pair.dial()
        pair.hosts[1].put_behind(Nat.DROPS)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(60):
                await pair.dial()
        ours, theirs = Ear(), Ear()
        await pair.dialer.listen("0.0.0.0", PORT, lambda: theirs)
        await pair.listener.connect(pair.dialer.ip, PORT, ours)
        theirs.stream.write(b"hello")
        await asyncio.sleep(1)
        itself = Ear()
        await pair.listener.connect("127.0.0.1", PORT, itself)

        assert ours.data == b"hello"
        assert itself.words == ["made"]

    played(scene)


def test_a_router_that_lets_nobody_in_leaves_open_streams_alone():
    async def scene(pair: Pair) -> None:
        ours, theirs = await pair.opened()
        pair.hosts[1].put_behind(Nat.DROPS)
        ours.stream.write(b"hello")
        await asyncio.sleep(1)

        assert theirs.data == b"hello"

    played(scene)
