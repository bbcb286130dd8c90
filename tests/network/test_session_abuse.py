"""What a peer can do wrong once it has proved who it is, entry by entry, over real TCP, by a peer that is led by hand.

Its session is closed at once and without a word; whoever else is there notices nothing, and neither does the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import pytest

from synapse_p2p import CallError, Server
from synapse_p2p.config import KIB, MIB, PoolConfig, ServerConfig
from synapse_p2p.exceptions import PeerUnavailable
from synapse_p2p.identity import Identity, NodeID, network_id_of
from synapse_p2p.protocol.channel import MAX_PLAINTEXT_BYTES, SecureChannel
from synapse_p2p.protocol.handshake import Established, Handshake, HandshakeKeys, Parameters, Role
from synapse_p2p.protocol.wire import (
    Call,
    Cancel,
    Fail,
    FrameKind,
    FrameReader,
    Goodbye,
    Message,
    Ping,
    Pong,
    Result,
    decode_message,
    encode_frame,
    encode_message,
    pack,
)
from synapse_p2p.trust import TrustConfig
from tests.network.cancellation import until

VICTIM, EVE = (Identity.from_seed(bytes([number] * 32)) for number in (1, 3))
STRICT = ServerConfig(pool=PoolConfig(trust=TrustConfig(loopback=False, private=False)))  # nobody is exempt
CANARY = "canary-7f3a"  # what only our own exception says: it must not be seen by a peer
CLOSED_WITHIN_S = 0.1 * 5  # with five-fold slack for a busy machine
PATIENCE_S = 5.0
CONTROL, TASK = FrameKind.CONTROL, FrameKind.TASK


@dataclass(frozen=True)
class Peer:
    id: NodeID
    addresses: tuple[str, ...]


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """After each test, what was said louder than DEBUG; a test that expects something takes it out."""
    caplog.set_level(logging.DEBUG)
    yield caplog
    records = caplog.get_records("call")
    assert [record.getMessage() for record in records if record.levelno > logging.DEBUG] == []
    assert [record.getMessage() for record in records if record.exc_info] == []


def now() -> float:
    return asyncio.get_running_loop().time()


class ByHand:
    """A proved peer that seals and sends what it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, established: Established) -> None:
        self.reader = reader
        self.writer = writer
        self.cipher = established.send
        self.channel = SecureChannel(established.send, established.receive)
        self.received: list[Message] = []
        self.sent_at = 0.0
        self._taken_count = 0
        self._surplus = established.surplus
        self._frames = FrameReader(max_control_frame_bytes=64 * KIB, max_task_frame_bytes=4 * MIB)

    def send_bytes(self, data: bytes) -> None:
        """As they are, sealed or not."""
        self.writer.write(data)
        self.sent_at = now()

    def send_frames(self, *frames: bytes) -> None:
        self.send_bytes(self.channel.seal(b"".join(frames)))

    def send(self, *messages: Message, kind: FrameKind = TASK) -> None:
        self.send_frames(*(encode_frame(kind, encode_message(message)) for message in messages))

    async def message(self) -> Message:
        """The next that has not been taken yet."""
        async with asyncio.timeout(PATIENCE_S):
            while len(self.received) == self._taken_count:
                assert await self._read(), "closed before a message came"
        self._taken_count += 1
        return self.received[self._taken_count - 1]

    async def until_closed(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            with contextlib.suppress(ConnectionError):
                while await self._read():
                    pass

    async def _read(self) -> bool:
        data, self._surplus = self._surplus or await self.reader.read(65_536), b""
        for kind, body in self._frames.feed(self.channel.open(data)):
            self.received.append(decode_message(body, kind))
        return bool(data)

    def reset(self) -> None:
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()

    async def leave(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


async def proved_peer(victim: Server) -> ByHand:
    """Eve, who dialed and proved that she is."""
    reader, writer = await asyncio.open_connection("127.0.0.1", victim.port)
    handshake = Handshake(
        Role.DIALER,
        identity=EVE,
        network_id=network_id_of(""),
        keys=HandshakeKeys(bytes([7] * 32), bytes([8] * 32)),
        parameters=Parameters("client", 0, b"eve-----"),
    )
    handshake.start()
    established = None
    while established is None:
        writer.write(handshake.data_to_send())
        established = handshake.receive_data(await reader.read(65_536))
    writer.write(handshake.data_to_send())
    return ByHand(reader, writer, established)


class Victim:
    """A server with a bystander whose call runs all the while."""

    def __init__(self) -> None:
        self.server = Server(port=0, identity=VICTIM, config=STRICT)
        self.running = 0
        self.go_on = asyncio.Event()
        self.server.endpoint("wait")(self._wait)
        self.server.endpoint("break")(self._break)
        self.server.endpoint("refuse")(self._refuse)
        self.server.mount("_dht.", {"_dht.echo": lambda request, context: request.get("value")})

    async def _wait(self) -> str:
        self.running += 1
        try:
            await self.go_on.wait()
        finally:
            self.running -= 1
        return "went on"

    async def _break(self) -> None:
        raise ZeroDivisionError(CANARY)

    async def _refuse(self) -> None:
        raise CallError("not_today", "come back tomorrow")


@contextlib.asynccontextmanager
async def victim_with_a_bystander() -> AsyncIterator[Victim]:
    """In the end the bystander's call, which ran from the beginning, returns."""
    victim, bystander = Victim(), Server()
    await victim.server.start()
    address = Peer(VICTIM.node_id, victim.server.listening_addresses)
    call = asyncio.ensure_future(bystander.sessions.call(address, "wait", {}, timeout_s=30))
    try:
        await until(lambda: victim.running == 1)
        yield victim
        assert not call.done()
        victim.go_on.set()
        assert await call == "went on"
        assert await bystander.sessions.call(address, "_dht.echo", {"value": 7}, timeout_s=PATIENCE_S) == 7
        assert bystander.sessions.peer_ids() == [VICTIM.node_id]
        await until(lambda: victim.running == 0)
    finally:
        call.cancel()
        await asyncio.gather(bystander.stop(grace=0), victim.server.stop(grace=0))


def ping(call_id: int) -> Call:
    return Call(call_id, "_synapse.ping", [], {})


def frame(kind: int, body: bytes) -> bytes:
    return bytes((kind,)) + len(body).to_bytes(3, "big") + body


def header(kind: int, size_bytes: int) -> bytes:
    return bytes((kind,)) + size_bytes.to_bytes(3, "big")


# What is wrong in itself

Abuse: TypeAlias = Callable[[ByHand], Awaitable[Any] | None]


def seals_twice(eve: ByHand) -> None:
    record = eve.channel.seal(encode_frame(TASK, encode_message(ping(2))))
    eve.send_bytes(record + record)


def seals_in_the_wrong_order(eve: ByHand) -> None:
    first, second = (eve.channel.seal(encode_frame(TASK, encode_message(ping(number)))) for number in (2, 4))
    eve.send_bytes(second + first)


def leaves_a_record_out(eve: ByHand) -> None:
    eve.channel.seal(encode_frame(TASK, encode_message(ping(2))))
    eve.send(ping(4))


def changes_a_bit(eve: ByHand) -> None:
    record = bytearray(eve.channel.seal(encode_frame(TASK, encode_message(ping(2)))))
    record[9] ^= 1
    eve.send_bytes(bytes(record))


def seals_nothing(eve: ByHand) -> None:
    eve.send_bytes(b"\x00\x10" + eve.cipher.encrypt(b""))


def sends_frames(*frames: bytes) -> Abuse:
    return lambda eve: eve.send_frames(*frames)


def says(*messages: Message, kind: FrameKind = TASK) -> Abuse:
    return lambda eve: eve.send(*messages, kind=kind)


def sends_bytes(data: bytes) -> Abuse:
    return lambda eve: eve.send_bytes(data)


async def reuses_the_id_of_a_call_that_runs(eve: ByHand) -> None:
    eve.send(Call(2, "wait", [], {}))
    eve.send(ping(2))


async def reuses_the_id_of_a_call_that_ended(eve: ByHand) -> None:
    eve.send(ping(2))
    await eve.message()
    eve.send(ping(2))


async def reuses_an_id_in_the_other_kind_while_it_runs(eve: ByHand) -> None:
    eve.send(Call(2, "wait", [], {}))
    eve.send(Call(2, "_dht.echo", [], {}), kind=CONTROL)


RECORDS: dict[str, Abuse] = {
    "a record twice": seals_twice,
    "records in the wrong order": seals_in_the_wrong_order,
    "a record left out": leaves_a_record_out,
    "a record with a bit changed": changes_a_bit,
    "a record of nothing, well sealed": seals_nothing,
    "a record of 0 bytes": sends_bytes(b"\x00\x00"),
    "a record of 16 bytes": sends_bytes(b"\x00\x10" + bytes(16)),
    "a record in clear": sends_bytes(frame(TASK, encode_message(ping(2))) + bytes(400)),
    "a second preamble": sends_bytes(b"\xa5SYNN\x01\x01\x00" + bytes(65_535)),
}
FRAMES: dict[str, Abuse] = {
    "an unknown kind": sends_frames(frame(2, b"")),
    "another unknown kind": sends_frames(frame(255, b"")),
    "a control frame above its limit": sends_frames(header(CONTROL, 64 * KIB + 1)),
    "a task frame above its limit": sends_frames(header(TASK, 4 * MIB + 1)),
    "the largest length": sends_frames(header(TASK, 2**24 - 1)),
    "an empty frame": sends_frames(frame(TASK, b"")),
    "a good frame and a bad one": sends_frames(encode_frame(TASK, encode_message(ping(2))), frame(9, b"")),
}
IDS: dict[str, Abuse] = {
    "the id of a call that runs": reuses_the_id_of_a_call_that_runs,
    "the id of a call that ended": reuses_the_id_of_a_call_that_ended,
    "the id of a call that runs, in the other kind": reuses_an_id_in_the_other_kind_while_it_runs,
    "an id that falls": says(ping(8), ping(6)),
    "an id of the other side's": says(ping(3)),
    "id 0": says(ping(0)),
    "a negative id": sends_frames(frame(TASK, pack([1, -2, "_synapse.ping", [], {}, {}]))),
    "an id past the last": sends_frames(frame(TASK, pack([1, 2**63, "_synapse.ping", [], {}, {}]))),
    "an id that is true": sends_frames(frame(TASK, pack([1, True, "_synapse.ping", [], {}, {}]))),
    "an answer to no call": says(Result(1, "x")),
    "an answer to its own call": says(ping(2), Result(2, "x")),
    "a failure of no call": says(Fail(1, "busy", "")),
    "a cancel of no call": says(Cancel(2), kind=CONTROL),
    "a cancel of a call of the other side's": says(Cancel(1), kind=CONTROL),
    "a task's call in a control frame": says(ping(2), kind=CONTROL),
    "an overlay call in a task frame": says(Call(2, "_dht.echo", [], {})),
}
BODIES: dict[str, bytes] = {
    "not MsgPack": b"\xc1",
    "a map": pack({"type": 1}),
    "nil": pack(None),
    "an empty list": pack([]),
    "a type that is text": pack(["call", 2]),
    "a call without an endpoint": pack([1, 2]),
    "an endpoint that is a number": pack([1, 2, 7, [], {}, {}]),
    "an endpoint of 257 characters": pack([1, 2, "x" * 257, [], {}, {}]),
    "args that are a map": pack([1, 2, "_synapse.ping", {}, {}, {}]),
    "kwargs with bytes for names": pack([1, 2, "_synapse.ping", [], {b"a": 1}, {}]),
    "kwargs with numbers for names": b"\x96\x01\x02\xadsynapse.thing\x90\x81\x01\x01\x80",
    "bytes after the message": pack([1, 2, "_synapse.ping", [], {}, {}]) + b"\xc0",
    "half a message": pack([1, 2, "_synapse.ping", [], {}, {}])[:-3],
    "invalid UTF-8": b"\x96\x01\x02\xa4\xff\xfe\xfd\xfc\x90\x80\x80",
    "an extension type": b"\x96\x01\x02\xa1x\x91\xd4\x05x\x80\x80",
    "a goodbye without words": pack([7, 0]),
}


def call_with(args: bytes) -> bytes:
    """The body of a call whose arguments are these bytes of MsgPack."""
    return b"\x96\x01\x02\xa5thing" + args + b"\x80\x80"


ROOM_BYTES = 4 * MIB - 32
BOMBS: dict[str, bytes] = {
    "depth 33": call_with(b"\x91" * 32 + b"\xc0"),
    "depth 100,000": call_with(b"\x91" * 100_000 + b"\xc0"),
    "4 MiB of empty lists": call_with(b"\xdd" + ROOM_BYTES.to_bytes(4, "big") + b"\x90" * ROOM_BYTES),
    "4 MiB of empty maps": call_with(b"\xdd" + ROOM_BYTES.to_bytes(4, "big") + b"\x80" * ROOM_BYTES),
    "a list that promises 2^32 - 1 items": call_with(b"\xdd\xff\xff\xff\xff"),
    "lists that promise 2^16 items, in each other": call_with(b"\xdc\xff\xff" * 1000),
    "a map of 65,537 entries": call_with(
        b"\x91\xdf" + (65_537).to_bytes(4, "big") + b"".join(b"\xa5%05d\xc0" % i for i in range(65_537))
    ),
}
ABUSES = RECORDS | FRAMES | IDS | {name: sends_frames(frame(TASK, body)) for name, body in BODIES.items()}


@pytest.mark.parametrize("name", ABUSES)
async def test_a_breach_of_the_rules_closes_the_session_at_once_and_without_a_word(name: str):
    async with victim_with_a_bystander() as victim:
        eve = await proved_peer(victim.server)
        await until(lambda: EVE.node_id in victim.server.sessions.peer_ids())
        if (abusing := ABUSES[name](eve)) is not None:
            await abusing
        await eve.until_closed()
        took_s = now() - eve.sent_at
        await eve.leave()

        assert took_s < CLOSED_WITHIN_S
        # What was right before it may still be answered; of what was wrong not a word is said.
        assert [message for message in eve.received if not isinstance(message, Result)] == []
        assert EVE.node_id not in victim.server.sessions.peer_ids()
        await until(lambda: victim.running == 1)  # the bystander's


@pytest.mark.parametrize("name", BOMBS)
async def test_a_bomb_closes_the_session_before_it_costs_much(name: str):
    body = BOMBS[name]
    assert len(body) <= 4 * MIB

    async with victim_with_a_bystander() as victim:
        eve = await proved_peer(victim.server)
        eve.send_frames(frame(TASK, body))
        with contextlib.suppress(ConnectionError):
            await eve.writer.drain()
        sent_at = now()
        await eve.until_closed()
        took_s = now() - sent_at
        await eve.leave()

        assert took_s < 2 * CLOSED_WITHIN_S  # four MiB travel, and are decrypted, as well
        assert eve.received == []


async def test_what_is_late_or_from_the_future_is_no_breach():
    async with victim_with_a_bystander() as victim:
        eve = await proved_peer(victim.server)
        eve.send(ping(2))
        answers = [await eve.message()]
        eve.send(Cancel(2), Pong(), kind=CONTROL)
        eve.send_frames(frame(TASK, pack([99, 4, "later"])), frame(TASK, pack([99, 0])))
        answers.append(await eve.message())
        eve.send(Call(6, "_dht.echo", [], {"value": 1}), kind=CONTROL)
        answers.append(await eve.message())
        eve.send(Ping(), kind=CONTROL)
        answers.append(await eve.message())
        eve.send(Goodbye("closing", ""), kind=CONTROL)
        await eve.until_closed()
        await eve.leave()

    assert answers[0] == Result(2, "pong")
    assert isinstance(answers[1], Fail)
    assert answers[1].code == "not_found"
    assert answers[2:] == [Result(6, 1), Pong()]


async def test_a_record_of_the_largest_size_is_none_too_large():
    padding = encode_frame(CONTROL, encode_message(Ping()))
    count = MAX_PLAINTEXT_BYTES // len(padding)

    async with victim_with_a_bystander() as victim:
        eve = await proved_peer(victim.server)
        eve.send_frames(*[padding] * count)
        answers = [await eve.message() for _ in range(count)]
        await eve.leave()

    assert set(answers) == {Pong()}


# What our own exceptions say


@pytest.mark.parametrize("endpoint", ["break", "nowhere", "refuse", "wait"])
async def test_no_text_of_an_exception_of_ours_is_sent(endpoint: str, log: pytest.LogCaptureFixture):
    async with victim_with_a_bystander() as victim:
        eve = await proved_peer(victim.server)
        eve.send(Call(2, endpoint, [], {"surplus": 1} if endpoint == "wait" else {}))
        answer = await eve.message()
        await eve.leave()

    assert isinstance(answer, Fail)
    said = f"{answer.code} {answer.message} {answer.details}"
    assert CANARY not in said
    assert "Error" not in said
    assert "Traceback" not in said
    if endpoint == "break":
        loud = [record for record in log.get_records("call") if record.levelno > logging.DEBUG]
        assert len(loud) == 1  # in our own log, once, is where it belongs
        log.get_records("call").remove(loud[0])


# Ends without a goodbye


def half_a_record(eve: ByHand) -> None:
    eve.send_bytes(eve.channel.seal(encode_frame(TASK, encode_message(ping(2))))[:20])
    eve.writer.write_eof()


def half_a_frame(eve: ByHand) -> None:
    eve.send_frames(encode_frame(TASK, encode_message(ping(2)))[:9])
    eve.writer.write_eof()


CUTS: dict[str, Abuse] = {
    "an end": lambda eve: eve.writer.write_eof(),
    "a reset": ByHand.reset,
    "an end in a record": half_a_record,
    "an end in a frame": half_a_frame,
    "a breach": sends_frames(frame(9, b"")),
    "a record in clear": sends_bytes(b"\x00\x00"),
}


@pytest.mark.parametrize("name", CUTS)
async def test_a_session_cut_short_fails_what_is_in_flight_in_both_directions(name: str):
    async with victim_with_a_bystander() as victim:
        eve = await proved_peer(victim.server)
        eve.send(Call(2, "wait", [], {}))
        await until(lambda: victim.running == 2)
        calling = asyncio.ensure_future(
            victim.server.sessions.call(Peer(EVE.node_id, ()), "anything", {}, timeout_s=30)
        )
        asked = await eve.message()
        CUTS[name](eve)
        cut_at = now()
        with pytest.raises(PeerUnavailable) as failure:
            await calling
        took_s = now() - cut_at
        await until(lambda: victim.running == 1, within_s=CLOSED_WITHIN_S)
        await eve.leave()

    assert isinstance(asked, Call)
    assert asked.endpoint == "anything"
    assert failure.value.may_have_started
    assert took_s < CLOSED_WITHIN_S


async def test_a_goodbye_tells_that_what_is_in_flight_has_not_started():
    async with victim_with_a_bystander() as victim:
        eve = await proved_peer(victim.server)
        await until(lambda: EVE.node_id in victim.server.sessions.peer_ids())
        calling = asyncio.ensure_future(
            victim.server.sessions.call(Peer(EVE.node_id, ()), "anything", {}, timeout_s=30)
        )
        await eve.message()
        eve.send(Goodbye("closing", ""), kind=CONTROL)
        with pytest.raises(PeerUnavailable) as failure:
            await calling
        await eve.leave()

    assert not failure.value.may_have_started


async def test_one_who_asks_for_more_than_its_places_is_told_so_and_served_afterwards():
    async with victim_with_a_bystander() as victim:
        eve = await proved_peer(victim.server)
        count = 64 + 256 + 10
        eve.send(*(Call(2 * number, "wait", [], {}) for number in range(1, count + 1)))
        refused = [await eve.message() for _ in range(10)]
        await until(lambda: victim.running == 1 + 64)
        eve.send(*(Cancel(2 * number) for number in range(1, 64 + 256 + 1)), kind=CONTROL)
        await until(lambda: victim.running == 1)
        eve.send(ping(2 * count + 2))
        answer = await eve.message()
        await eve.leave()

    assert {message.code for message in refused if isinstance(message, Fail)} == {"busy"}
    assert answer == Result(2 * count + 2, "pong")
