"""What a hostile peer can do before it has proved who it is, entry by entry, over real TCP, to whom it dials and to who
dials it.

Each is refused at once, without a line of log; the one whose name was misused is as welcome as ever, and the listener
serves the next caller.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import pytest

from synapse_p2p import CallContext, Server
from synapse_p2p.background import TaskScope
from synapse_p2p.config import PoolConfig, ServerConfig
from synapse_p2p.exceptions import HandshakeFailed, PeerUnavailable
from synapse_p2p.identity import Identity, NodeID, network_id_of
from synapse_p2p.protocol.handshake import (
    MAX_MESSAGE_BYTES,
    PREAMBLE_BYTES,
    Handshake,
    HandshakeKeys,
    Parameters,
    Refusal,
    Role,
)
from synapse_p2p.protocol.noise import NoiseXX
from synapse_p2p.protocol.wire import pack
from synapse_p2p.trust import TrustConfig
from tests.network.cancellation import until

VICTIM, INNOCENT, EVE = (Identity.from_seed(bytes([number] * 32)) for number in (1, 2, 3))
STRICT = ServerConfig(pool=PoolConfig(trust=TrustConfig(loopback=False, private=False)))  # nobody is exempt
NETWORK = "test"
NETWORK_KEY, OTHER_KEY = b"k" * 32, b"o" * 32
EVE_SAYS = Parameters("node", 9, b"eve-----", "eve", 0, "127.0.0.1:9")
FIRST_FLIGHT_BYTES = PREAMBLE_BYTES + 2 + 32  # message 1 is a key
LABEL = b"synapse-noise-id:v1:"
REFUSED_WITHIN_S = 0.1 * 5  # with five-fold slack for a busy machine
PATIENCE_S = 5.0


@dataclass(frozen=True)
class Peer:
    id: NodeID
    addresses: tuple[str, ...]


def peer_of(server: Server) -> Peer:
    return Peer(server.identity.node_id, server.listening_addresses)


@pytest.fixture(autouse=True)
def nobody_complained(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert [record.getMessage() for record in caplog.get_records("call") if record.levelno > logging.DEBUG] == []


def same_hint(network: str) -> str:
    """Another network, whose id begins with the same byte."""
    hint = network_id_of(network)[0]
    return next(name for name in map(str, range(10_000)) if network_id_of(name)[0] == hint)


def other_hint(network: str) -> str:
    hint = network_id_of(network)[0]
    return next(name for name in map(str, range(10_000)) if network_id_of(name)[0] != hint)


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(2, "big") + message


class Wire:
    """The hostile end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.sent_at = 0.0

    def send(self, data: bytes) -> None:
        self.writer.write(data)
        self.sent_at = now()

    async def message(self) -> bytes:
        size_bytes = int.from_bytes(await self.reader.readexactly(2), "big")
        return await self.reader.readexactly(size_bytes)

    async def until_closed(self) -> bytes:
        """What still comes before the other end closes."""
        async with asyncio.timeout(PATIENCE_S):
            try:
                return await self.reader.read()
            except ConnectionResetError:
                return b""

    async def leave(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


def now() -> float:
    return asyncio.get_running_loop().time()


class Cheat:
    """A peer that finishes Noise properly, and says what it likes as its proof."""

    def __init__(self, role: Role, *, network: str = NETWORK, network_key: bytes | None = None) -> None:
        self.role = role
        self.network_id = network_id_of(network)
        self.network_key = network_key
        suite = b"\x01" if network_key is None else b"\x03"
        self.preamble = b"\xa5SYNN\x01" + suite + self.network_id[:1]
        self.noise = self._noise(self.preamble)

    def _noise(self, preamble: bytes) -> NoiseXX:
        prologue = b"synapse-noise/1" + preamble + self.network_id
        return NoiseXX(self.role is Role.DIALER, prologue=prologue, static=bytes([9] * 32), psk=self.network_key)

    def first_flight(self) -> bytes:
        return self.preamble + framed(self.noise.write_message())

    async def read_first_flight(self, wire: Wire) -> None:
        self.noise = self._noise(await wire.reader.readexactly(PREAMBLE_BYTES))
        self.noise.read_message(await wire.message())

    def proof(self, identity: Identity = EVE, *, role: Role | None = None, signed: bytes | None = None) -> list[Any]:
        """A right proof but for what is given. Valid between the halves of `presenting` alone."""
        label = LABEL + (role or self.role).value
        signature = identity.sign(label, self.noise.handshake_hash if signed is None else signed)
        return [1, identity.public_key, signature, EVE_SAYS.to_map()]

    def presenting(self, make_proof: Callable[[Cheat], list[Any]]) -> bytes:
        head = self.noise.begin_message()
        return framed(head + self.noise.finish_message(pack(make_proof(self))))


def other_role(role: Role) -> Role:
    return Role.LISTENER if role is Role.DIALER else Role.DIALER


WRONG_PROOFS: dict[str, Callable[[Cheat], list[Any]]] = {
    "bad signature": lambda cheat: [1, EVE.public_key, bytes(64), EVE_SAYS.to_map()],
    "swapped role": lambda cheat: cheat.proof(role=other_role(cheat.role)),
    "the innocent's key": lambda cheat: [1, INNOCENT.public_key, *cheat.proof()[2:]],
    "the innocent's proof of another connection": lambda cheat: cheat.proof(INNOCENT, signed=bytes(32)),
    "a key that is no point": lambda cheat: [1, b"\xff" * 32, *cheat.proof()[2:]],
    "no proof": lambda cheat: [],
}


def whole_handshake(role: Role, identity: Identity, *, network: str = NETWORK) -> Handshake:
    handshake = Handshake(
        role,
        identity=identity,
        network_id=network_id_of(network),
        keys=HandshakeKeys(bytes([7] * 32), bytes([8] * 32)),
        parameters=replace(EVE_SAYS, mode="client", port=0),
    )
    handshake.start()
    return handshake


# Against whom it dials

Attack: TypeAlias = Callable[[Wire, Server], Awaitable[Any]]


def presents(make_proof: Callable[[Cheat], list[Any]]) -> Attack:
    async def attack(wire: Wire, victim: Server) -> None:
        cheat = Cheat(Role.DIALER)
        wire.send(cheat.first_flight())
        cheat.noise.read_message(await wire.message())
        wire.send(cheat.presenting(make_proof))

    return attack


def sends(make_data: Callable[[], bytes]) -> Attack:
    async def attack(wire: Wire, victim: Server) -> None:
        wire.send(make_data())

    return attack


def sends_third(make_data: Callable[[bytes], bytes]) -> Attack:
    """Answers message 2 with what is made of a right message 3."""

    async def attack(wire: Wire, victim: Server) -> None:
        cheat = Cheat(Role.DIALER)
        wire.send(cheat.first_flight())
        cheat.noise.read_message(await wire.message())
        wire.send(make_data(cheat.presenting(Cheat.proof)))

    return attack


def changed(data: bytes, index: int) -> bytes:
    return data[:index] + bytes([data[index] ^ 1]) + data[index + 1 :]


async def replays_message_3(wire: Wire, victim: Server) -> None:
    """The innocent proves itself once, is recorded, and played again."""
    innocent = whole_handshake(Role.DIALER, INNOCENT)
    first = innocent.data_to_send()
    reader, writer = await asyncio.open_connection("127.0.0.1", victim.port)
    recorded = Wire(reader, writer)
    recorded.send(first)
    innocent.receive_data(framed(await recorded.message()))
    third = innocent.data_to_send()
    recorded.send(third)
    await recorded.leave()

    wire.send(first)
    await wire.message()
    wire.send(third)


async def reflects_message_2(wire: Wire, victim: Server) -> None:
    cheat = Cheat(Role.DIALER)
    wire.send(cheat.first_flight())
    second = await wire.message()
    wire.send(framed(second))


async def comes_from_another_network(wire: Wire, victim: Server) -> None:
    """With the same hint: it reads the victim's answer under another prologue, and so cannot, and goes on all the
    same.
    """
    cheat = Cheat(Role.DIALER, network=same_hint(NETWORK))
    wire.send(cheat.first_flight())
    second = await wire.message()
    wire.send(framed(second[:64] + bytes(200)))


def refusal(code: Refusal) -> bytes:
    return b"\xa5NO" + bytes((code,))


ATTACKS: dict[str, tuple[Attack, bytes]] = {
    **{name: (presents(make_proof), b"") for name, make_proof in WRONG_PROOFS.items()},
    "the listener's own identity": (presents(lambda cheat: cheat.proof(VICTIM)), b""),
    "message 3 replayed": (replays_message_3, b""),
    "message 2 reflected": (reflects_message_2, b""),
    "message 3 of zeros": (sends_third(lambda third: framed(bytes(len(third) - 2))), b""),
    "message 3 with a bit changed": (sends_third(lambda third: changed(third, 100)), b""),
    "message 3 without its end": (sends_third(lambda third: framed(third[2:-1])), b""),
    "message 3 empty": (sends_third(lambda third: framed(b"")), b""),
    "message 3 too long": (sends_third(lambda third: (MAX_MESSAGE_BYTES + 1).to_bytes(2, "big")), b""),
    "another network": (
        sends(lambda: Cheat(Role.DIALER, network=other_hint(NETWORK)).first_flight()),
        refusal(Refusal.NETWORK),
    ),
    "another network with the same hint": (comes_from_another_network, b""),
    "a network key": (sends(lambda: Cheat(Role.DIALER, network_key=OTHER_KEY).first_flight()), refusal(Refusal.SUITE)),
    "another version": (sends(lambda: b"\xa5SYNN\x02\x01" + network_id_of(NETWORK)[:1]), refusal(Refusal.VERSION)),
    "another magic": (sends(lambda: b"\xa5SYNC"), b""),
    "a preamble wrong at its second byte": (sends(lambda: b"\xa5s"), b""),
    "a key of zeros": (sends(lambda: Cheat(Role.DIALER).preamble + framed(bytes(32))), b""),
    "a short message 1": (sends(lambda: Cheat(Role.DIALER).preamble + framed(bytes(31))), b""),
    "an empty message 1": (sends(lambda: Cheat(Role.DIALER).preamble + framed(b"")), b""),
    "a long message 1": (
        sends(lambda: Cheat(Role.DIALER).preamble + framed(bytes(MAX_MESSAGE_BYTES + 1))),
        b"",
    ),
}


@contextlib.asynccontextmanager
async def serving(identity: Identity = VICTIM, **options: Any) -> AsyncIterator[Server]:
    server = Server(port=0, identity=identity, network=NETWORK, config=STRICT, **options)

    @server.endpoint("who")
    async def who(context: CallContext) -> bytes | None:
        return context.peer

    await server.start()
    try:
        yield server
    finally:
        await server.stop(grace=0)


async def assert_welcome(identity: Identity, listener: Server, **options: Any) -> None:
    """Dialed by this identity, the listener serves it at once, and knows it."""
    caller = Server(identity=identity, network=NETWORK, config=STRICT, **options)
    started_at = now()
    try:
        answer = await caller.sessions.call(peer_of(listener), "who", {}, timeout_s=PATIENCE_S)
    finally:
        await caller.stop(grace=0)

    assert answer == identity.node_id
    assert now() - started_at < 2 * REFUSED_WITHIN_S


@pytest.mark.parametrize("name", ATTACKS)
async def test_a_listener_refuses_at_once_whoever_proves_nothing(name: str):
    attack, answer = ATTACKS[name]

    async with serving() as victim:
        wire = Wire(*await asyncio.open_connection("127.0.0.1", victim.port))
        await attack(wire, victim)
        told = await wire.until_closed()
        took_s = now() - wire.sent_at
        await wire.leave()

        assert took_s < REFUSED_WITHIN_S
        # Message 2 answers a whole message 1; after it comes no word. Its length is told from a refusal's first byte.
        assert told == answer or (told[:1] < b"\xa5" and len(told) == 2 + int.from_bytes(told[:2], "big"))
        assert victim.sessions.peer_ids() == []
        await assert_welcome(INNOCENT, victim)


@pytest.mark.parametrize("key", [OTHER_KEY, None], ids=["another key", "no key"])
async def test_a_listener_with_a_network_key_refuses_whoever_has_it_not(key: bytes | None):
    async with serving(network_key=NETWORK_KEY, plain="off") as victim:
        wire = Wire(*await asyncio.open_connection("127.0.0.1", victim.port))
        wire.send(Cheat(Role.DIALER, network_key=key).first_flight())
        told = await wire.until_closed()
        took_s = now() - wire.sent_at
        await wire.leave()

        assert took_s < REFUSED_WITHIN_S
        assert told == refusal(Refusal.NETWORK if key else Refusal.SUITE)
        await assert_welcome(INNOCENT, victim, network_key=NETWORK_KEY)


async def test_a_handshake_cut_in_the_middle_is_given_up_without_a_word():
    flight = Cheat(Role.DIALER).first_flight()

    async with serving() as victim:
        for size_bytes in (1, 4, 7, 8, 9, 10, 41):
            wire = Wire(*await asyncio.open_connection("127.0.0.1", victim.port))
            wire.send(flight[:size_bytes])
            wire.writer.write_eof()
            told = await wire.until_closed()
            took_s = now() - wire.sent_at
            await wire.leave()

            assert told == b""
            # One byte less than a preamble may still be a plain caller's end, which is answered by a close as well.
            assert took_s < REFUSED_WITHIN_S
        await assert_welcome(INNOCENT, victim)


# Against who dials it

HostileAnswer: TypeAlias = Callable[[Wire], Awaitable[Any]]


def answers(make_data: Callable[[Cheat], bytes]) -> HostileAnswer:
    """Reads the first flight and answers it."""

    async def attack(wire: Wire) -> None:
        cheat = Cheat(Role.LISTENER)
        await cheat.read_first_flight(wire)
        wire.send(make_data(cheat))

    return attack


def says(data: bytes) -> HostileAnswer:
    """Sends this, whatever the victim says."""

    async def attack(wire: Wire) -> None:
        await wire.reader.readexactly(FIRST_FLIGHT_BYTES)
        wire.send(data)

    return attack


async def replays_message_2(wire: Wire) -> None:
    """The innocent, who listens elsewhere, answers a dial of Eve's, and she plays that to the victim."""
    await wire.reader.readexactly(FIRST_FLIGHT_BYTES)
    async with serving(INNOCENT) as innocent:
        recorded = Wire(*await asyncio.open_connection("127.0.0.1", innocent.port))
        recorded.send(Cheat(Role.DIALER).first_flight())
        second = await recorded.message()
        await recorded.leave()
    wire.send(framed(second))


async def answers_for_another_network(wire: Wire) -> None:
    cheat = Cheat(Role.LISTENER, network=same_hint(NETWORK))
    await cheat.read_first_flight(wire)
    wire.send(cheat.presenting(Cheat.proof))


async def echoes(wire: Wire) -> None:
    wire.send(await wire.reader.readexactly(FIRST_FLIGHT_BYTES))


async def hangs_up(wire: Wire) -> None:
    await wire.reader.readexactly(FIRST_FLIGHT_BYTES)
    wire.send(b"")
    wire.writer.close()


async def hangs_up_in_message_2(wire: Wire) -> None:
    cheat = Cheat(Role.LISTENER)
    await cheat.read_first_flight(wire)
    wire.send(cheat.presenting(Cheat.proof)[:100])
    wire.writer.close()


HOSTILE_LISTENERS: dict[str, tuple[HostileAnswer, str]] = {
    **{
        name: (answers(lambda cheat, make=make_proof: cheat.presenting(make)), "proof")
        for name, make_proof in WRONG_PROOFS.items()
    },
    "the dialer's own identity": (answers(lambda cheat: cheat.presenting(lambda its: its.proof(VICTIM))), "self"),
    "another identity than the wanted one": (answers(lambda cheat: cheat.presenting(Cheat.proof)), "identity"),
    "message 2 replayed": (replays_message_2, "crypto"),
    "message 2 of zeros": (answers(lambda cheat: framed(bytes(300))), "crypto"),
    "message 2 with a bit changed": (answers(lambda cheat: changed(cheat.presenting(Cheat.proof), 150)), "crypto"),
    "another network with the same hint": (answers_for_another_network, "crypto"),
    "a key of zeros": (says(framed(bytes(32) + bytes(200))), "crypto"),
    "a short message 2": (says(framed(bytes(20))), "message"),
    "an empty message 2": (says(framed(b"") + framed(b"")), "message"),
    "a long message 2": (says((MAX_MESSAGE_BYTES + 1).to_bytes(2, "big")), "message"),
    "HTTP": (says(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "message"),
    "the dialer's own bytes": (echoes, "message"),
    "nearly a refusal": (says(b"\xa5YES"), "message"),
    "a refusal: busy": (says(refusal(Refusal.BUSY)), "refused"),
    "a refusal: network": (says(refusal(Refusal.NETWORK)), "refused"),
    "a refusal for no known reason": (says(b"\xa5NO\xff"), "refused"),
    "a close": (hangs_up, "closed"),
    "a close in the middle of message 2": (hangs_up_in_message_2, "closed"),
}
SOMEBODY_IS_THERE = ("identity", "self")  # the address answers: only this id is not to be had there


@dataclass(frozen=True)
class Hostile:
    """A listener that plays an attack on whoever dials it; `told` is what each said after it."""

    address: str
    wires: list[Wire]
    told: list[bytes]


@contextlib.asynccontextmanager
async def hostile_listener(attack: HostileAnswer) -> AsyncIterator[Hostile]:
    """At its end everybody has to have hung up."""
    wires: list[Wire] = []
    told: list[bytes] = []
    scope = TaskScope("hostile")

    async def play(wire: Wire) -> None:
        wires.append(wire)
        await attack(wire)
        told.append(await wire.until_closed())
        await wire.leave()

    listening = await asyncio.start_server(
        lambda reader, writer: scope.spawn(play(Wire(reader, writer))) and None, "127.0.0.1", 0
    )
    try:
        yield Hostile(f"127.0.0.1:{listening.sockets[0].getsockname()[1]}", wires, told)
        await scope.drain()
    finally:
        listening.close()


@pytest.mark.parametrize("name", HOSTILE_LISTENERS)
async def test_a_dialer_refuses_at_once_and_blames_nobody_but_who_was_there(name: str):
    attack, reason = HOSTILE_LISTENERS[name]

    async with (
        hostile_listener(attack) as hostile,
        serving(VICTIM) as victim,
        serving(INNOCENT) as innocent,
    ):
        with pytest.raises(HandshakeFailed) as failure:
            await victim.sessions.connect_address(hostile.address, INNOCENT.node_id)
        took_s = now() - hostile.wires[0].sent_at
        again = await error_of(victim.sessions.connect_address(hostile.address))
        proved = await victim.sessions.connect(Peer(INNOCENT.node_id, (hostile.address, *innocent.listening_addresses)))

        assert failure.value.reason == reason
        assert took_s < REFUSED_WITHIN_S
        # The address rests unless somebody proved there who it is; the id does not, wherever it is said to be.
        is_resting = isinstance(again, PeerUnavailable) and not again.was_tried
        assert is_resting == (reason not in SOMEBODY_IS_THERE)
        assert proved.id == INNOCENT.node_id
        assert proved.addresses == innocent.listening_addresses
        await assert_welcome(EVE, victim)
    assert hostile.told[0] == b""


async def error_of(dialing: Awaitable[Any]) -> Exception | None:
    try:
        await dialing
    except (HandshakeFailed, PeerUnavailable) as error:
        return error
    return None


async def test_the_cheat_of_these_tests_is_welcome_when_it_does_not_cheat():
    async with serving() as victim:
        wire = Wire(*await asyncio.open_connection("127.0.0.1", victim.port))
        await presents(Cheat.proof)(wire, victim)
        await until(victim.sessions.peer_ids)
        known = victim.sessions.peer_ids()
        await wire.leave()

    assert known == [EVE.node_id]


async def test_a_wrong_id_at_an_address_costs_neither_that_address_nor_who_lives_there():
    async with serving(VICTIM) as victim, serving(EVE) as eve, serving(INNOCENT) as innocent:
        (address,) = eve.listening_addresses

        with pytest.raises(HandshakeFailed) as failure:
            await victim.sessions.connect_address(address, INNOCENT.node_id)
        found = await victim.sessions.connect_address(address, EVE.node_id)
        true = await victim.sessions.connect(peer_of(innocent))

    assert failure.value.reason == "identity"
    assert found.id == EVE.node_id
    assert true.id == INNOCENT.node_id


async def test_a_node_that_dials_its_own_address_learns_that_it_is_itself():
    async with serving() as victim:
        with pytest.raises(HandshakeFailed) as failure:
            await victim.sessions.connect_address(victim.listening_addresses[0])

        assert failure.value.reason == "self"
        assert victim.sessions.peer_ids() == []
        await assert_welcome(INNOCENT, victim)


@pytest.mark.parametrize(
    ("ours", "theirs", "refusal"),
    [(NETWORK_KEY, OTHER_KEY, "network"), (NETWORK_KEY, None, "suite"), (None, NETWORK_KEY, "suite")],
    ids=["another", "ours alone", "theirs alone"],
)
async def test_who_has_another_network_key_is_not_reached(ours: bytes | None, theirs: bytes | None, refusal: str):
    async with serving(EVE, network_key=theirs) as listener:
        dialer = Server(network=NETWORK, network_key=ours)
        started_at = now()
        with pytest.raises(HandshakeFailed) as failure:
            await dialer.sessions.connect_address(listener.listening_addresses[0])
        took_s = now() - started_at
        await dialer.stop(grace=0)

        assert (failure.value.reason, failure.value.refusal) == ("refused", refusal)
        assert took_s < REFUSED_WITHIN_S
        await assert_welcome(INNOCENT, listener, network_key=theirs)
