"""What is changed, cut, repeated, moved or dropped on its way is never taken for what was sent.

One conversation is played of fixed keys, with and without a network key: the handshake, then a few records each way.
Fixed keys let its bytes be played again into a fresh end, which sends what the first one sent; that end then meets each
fault. Accepted would be: a handshake that ends well with a changed byte in it, or plaintext from a record that is not
whole and in its place.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate, pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synapse_p2p.exceptions import HandshakeFailed, ProtocolViolation
from synapse_p2p.identity import Identity, network_id_of
from synapse_p2p.protocol.channel import LENGTH_BYTES, SecureChannel
from synapse_p2p.protocol.handshake import PREAMBLE_BYTES, Established, Handshake, HandshakeKeys, Parameters, Role
from synapse_p2p.protocol.noise import CipherState

SEED = 20_260_801
CHANGES_PER_PLACE = 834  # six places, with and without a network key: 10,008 changed bytes
RECORDS = 5
MAX_RECORDS = 1000
PLACES = ["preamble", "message 1", "message 2", "message 3", "records to the listener", "records to the dialer"]
NETWORK_KEYS = [pytest.param(None, id="open network"), pytest.param(bytes(range(32)), id="network key")]
CUTS = st.lists(st.integers(0, 2000), max_size=12)


# A conversation, to be played again


@dataclass(frozen=True, slots=True)
class Flow:
    """The records of one direction: what they say, their bytes, and the cipher that opens the first of them."""

    flushes: list[bytes]
    records: list[bytes]
    cipher: CipherState

    def receiver(self) -> tuple[SecureChannel, CipherState]:
        """A fresh receiving end, and the cipher in it. What it would send is of no interest here."""
        cipher = copy.copy(self.cipher)
        return SecureChannel(CipherState("AESGCM", bytes(32)), cipher, records_per_key=MAX_RECORDS), cipher


@dataclass(frozen=True, slots=True)
class Conversation:
    """Everything that two ends of fixed keys said to each other."""

    flights: tuple[bytes, bytes, bytes]  # preamble and message 1, message 2, message 3
    flows: dict[Role, Flow]  # by who receives them


def end(role: Role, network_key: bytes | None) -> tuple[Handshake, bytes]:
    """The same end again and again, and what it says at the start."""
    number = 1 if role is Role.DIALER else 2
    handshake = Handshake(
        role,
        identity=Identity.from_seed(bytes([number] * 32)),
        network_id=network_id_of("corruption"),
        keys=HandshakeKeys(bytes([number + 2] * 32), bytes([number + 4] * 32)),
        parameters=Parameters("node", 9999, bytes([number] * 8), "synapse/3", 1_700_000_000_000, "192.0.2.1:9999"),
        network_key=network_key,
    )
    handshake.start()
    return handshake, handshake.data_to_send()


def dialer_of(network_key: bytes | None) -> Handshake:
    """The dialer, with its first flight sent."""
    return end(Role.DIALER, network_key)[0]


def listener_of(network_key: bytes | None) -> Handshake:
    """The listener, with nothing received."""
    return end(Role.LISTENER, network_key)[0]


@cache
def conversation(network_key: bytes | None) -> Conversation:
    listener = listener_of(network_key)
    dialer, first = end(Role.DIALER, network_key)
    listener.receive_data(first)
    second = listener.data_to_send()
    at_dialer = dialer.receive_data(second)
    third = dialer.data_to_send()
    at_listener = listener.receive_data(third)
    assert at_dialer is not None
    assert at_listener is not None
    flows = {Role.LISTENER: flow(at_dialer, at_listener, "ask"), Role.DIALER: flow(at_listener, at_dialer, "answer")}
    return Conversation((first, second, third), flows)


def flow(sender: Established, receiver: Established, word: str) -> Flow:
    opens = copy.copy(receiver.receive)
    channel = SecureChannel(sender.send, sender.receive, records_per_key=MAX_RECORDS)
    flushes = [f"{word} {number} ".encode() * (10 * number + 1) for number in range(RECORDS)]
    return Flow(flushes, [channel.seal(flush) for flush in flushes], opens)


def changed(data: bytes, index: int, change: int) -> bytes:
    return data[:index] + bytes((data[index] ^ change,)) + data[index + 1 :]


def changes(place: str, size_bytes: int) -> Iterator[tuple[int, int]]:
    """Where to change a byte, and by what: every byte of the place in turn, the changes drawn."""
    rng = random.Random(f"{SEED} {place}")
    for number in range(CHANGES_PER_PLACE):
        yield number % size_bytes, rng.randrange(1, 256)


# One changed byte


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("network_key", NETWORK_KEYS)
def test_one_changed_byte_is_never_accepted(network_key: bytes | None, place: str):
    played = conversation(network_key)
    first, second, third = played.flights

    match place:
        case "preamble":
            for index, change in changes(place, PREAMBLE_BYTES):
                failure = check_changed_first_flight(network_key, changed(first, index, change))
                assert failure is not None
                assert failure.reason == "preamble"
        case "message 1":
            for index, change in changes(place, len(first) - PREAMBLE_BYTES):
                failure = check_changed_first_flight(network_key, changed(first, PREAMBLE_BYTES + index, change))
                assert failure is not None or index < LENGTH_BYTES
        case "message 2":
            for index, change in changes(place, len(second)):
                dialer = dialer_of(network_key)
                failure = check_refused(dialer, changed(second, index, change))
                assert failure is not None or index < LENGTH_BYTES
                assert dialer.data_to_send() == b""
        case "message 3":
            for index, change in changes(place, len(third)):
                failure = check_refused(listener_of(network_key), first, changed(third, index, change))
                assert failure is not None or index < LENGTH_BYTES
        case _:
            received = played.flows[Role.LISTENER if place == "records to the listener" else Role.DIALER]
            for index, change in changes(place, len(b"".join(received.records))):
                check_changed_record(received, index, change)


def check_changed_first_flight(network_key: bytes | None, first: bytes) -> HandshakeFailed | None:
    """Neither end is established. Without a key the listener has to answer, and both find out after that."""
    listener, dialer = listener_of(network_key), dialer_of(network_key)

    failure = check_refused(listener, first, conversation(network_key).flights[2])

    if answer := listener.data_to_send():
        assert check_refused(dialer, answer) is not None
        assert dialer.data_to_send() == b""
    return failure


def check_refused(reader: Handshake, *flights: bytes) -> HandshakeFailed | None:
    """How it fails, for good. None where it waits: a length that grew may be waiting for bytes that never come."""
    outcomes = [failure_at(reader, flight) for flight in (*flights, flights[-1])]
    failure = next((outcome for outcome in outcomes if outcome is not None), None)
    waits = outcomes.index(failure)
    assert outcomes[waits:] == [failure] * (len(outcomes) - waits)
    return failure


def failure_at(reader: Handshake, data: bytes) -> HandshakeFailed | None:
    try:
        established = reader.receive_data(data)
    except HandshakeFailed as failure:
        return failure
    assert established is None
    return None


def check_changed_record(received: Flow, index: int, change: int) -> None:
    """Byte `index` of all records together is changed; what comes after is read on, as it would be by mistake."""
    channel, cipher = received.receiver()
    wire = changed(b"".join(received.records), index, change)
    ends = list(accumulate(len(record) for record in received.records))
    intact = sum(stop <= index for stop in ends)
    delivered: list[bytes] = []
    is_violated = False

    for start, stop in pairwise([0, *ends]):
        try:
            if plaintext := channel.open(wire[start:stop]):
                delivered.append(plaintext)
        except ProtocolViolation:
            is_violated = True

    assert delivered == received.flushes[:intact]
    assert cipher.nonce == intact
    assert is_violated or index - [0, *ends][intact] < LENGTH_BYTES  # a length that grew waits


# Cut, repeated, moved, dropped


@pytest.mark.parametrize("network_key", NETWORK_KEYS)
def test_a_conversation_cut_at_any_byte_says_no_more_than_what_was_whole(network_key: bytes | None):
    played = conversation(network_key)
    ends = {Role.DIALER: dialer_of(network_key), Role.LISTENER: listener_of(network_key)}

    # Read byte by byte, every prefix of the conversation is what one cut there would leave.
    for number, flight in enumerate(played.flights):
        reader = ends[Role.DIALER if number == 1 else Role.LISTENER]
        for index in range(len(flight) - 1):
            assert reader.receive_data(flight[index : index + 1]) is None
            assert reader.data_to_send() == b""
        established = reader.receive_data(flight[-1:])
        assert (established is None) == (number == 0)
        assert (reader.data_to_send() == b"") == (number == 2)
    for received in played.flows.values():
        channel, cipher = received.receiver()
        for number, (record, flush) in enumerate(zip(received.records, received.flushes, strict=True)):
            for index in range(len(record) - 1):
                assert channel.open(record[index : index + 1]) == b""
                assert cipher.nonce == number
            assert channel.open(record[-1:]) == flush


@pytest.mark.parametrize("receiver", Role, ids=lambda role: f"to the {role.name.lower()}")
@pytest.mark.parametrize("network_key", NETWORK_KEYS)
def test_a_record_repeated_swapped_or_dropped_anywhere_is_refused(network_key: bytes | None, receiver: Role):
    received = conversation(network_key).flows[receiver]
    numbers = list(range(RECORDS))

    for first, other in product(numbers, numbers):
        if first <= other:
            check_order(received, [*numbers[: other + 1], first, *numbers[other + 1 :]])  # repeated
        if first < other:
            check_order(received, [{first: other, other: first}.get(number, number) for number in numbers])  # swapped
            check_order(received, [number for number in numbers if not first <= number < other])  # dropped


def check_order(received: Flow, order: list[int]) -> None:
    """Records arrive in this order, which is not theirs: what was in its place is delivered, and no more."""
    channel, cipher = received.receiver()
    intact = next(place for place, number in enumerate(order) if place != number)
    delivered = [channel.open(received.records[number]) for number in order[:intact]]

    with pytest.raises(ProtocolViolation):
        channel.open(received.records[order[intact]])

    assert delivered == received.flushes[:intact]
    assert cipher.nonce == intact


@pytest.mark.parametrize("receiver", Role, ids=lambda role: f"to the {role.name.lower()}")
def test_a_record_of_another_conversation_or_direction_is_refused(receiver: Role):
    received = conversation(None).flows[receiver]
    other = Role.LISTENER if receiver is Role.DIALER else Role.DIALER
    strangers = (conversation(None).flows[other], conversation(bytes(range(32))).flows[receiver])

    for stranger in strangers:
        channel, cipher = received.receiver()
        with pytest.raises(ProtocolViolation):
            channel.open(stranger.records[0])
        assert cipher.nonce == 0


@pytest.mark.parametrize("network_key", NETWORK_KEYS)
def test_a_message_of_the_handshake_dropped_or_repeated_ends_in_no_session(network_key: bytes | None):
    first, second, third = conversation(network_key).flights

    for flights in ((first, first), (first, first[PREAMBLE_BYTES:]), (third,), (first[:PREAMBLE_BYTES], third)):
        assert check_refused(listener_of(network_key), *flights) is not None
    for flights in ((third,), (first,), (first[PREAMBLE_BYTES:], second)):
        assert check_refused(dialer_of(network_key), *flights) is not None


# Split anywhere


@dataclass(slots=True)
class Heard:
    """What one end made of a stream: who the peer is or why not, and what it said before a fault, if there was one."""

    proved: tuple[bytes, bytes] | None = None  # id, handshake hash
    failure: tuple[str, str] | None = None  # reason, text
    delivered: bytearray = field(default_factory=bytearray)
    is_violated: bool = False


def heard(reader: Handshake, parts: list[bytes]) -> Heard:
    """Read parts of a stream as they come, until something is wrong."""
    outcome = Heard()
    channel: SecureChannel | None = None
    for part in parts:
        data = part
        try:
            if channel is None:
                if (established := reader.receive_data(data)) is None:
                    continue
                outcome.proved = established.peer.node_id, established.handshake_hash
                channel = SecureChannel(established.send, established.receive, records_per_key=MAX_RECORDS)
                data = established.surplus
            outcome.delivered += channel.open(data)
        except HandshakeFailed as error:
            outcome.failure = error.reason, str(error)
            break
        except ProtocolViolation:
            outcome.is_violated = True
            break
    return outcome


def stream_to(reader: Role, network_key: bytes | None) -> bytes:
    """All bytes that an end receives in a conversation."""
    played = conversation(network_key)
    first, second, third = played.flights
    opening = first + third if reader is Role.LISTENER else second
    return opening + b"".join(played.flows[reader].records)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


@pytest.mark.parametrize("reader", Role, ids=lambda role: f"to the {role.name.lower()}")
@pytest.mark.parametrize("network_key", NETWORK_KEYS)
@given(cuts=CUTS)
@settings(max_examples=40)
def test_any_split_of_a_conversation_gives_the_same_outcome(network_key: bytes | None, reader: Role, cuts: list[int]):
    stream = stream_to(reader, network_key)

    outcome = heard(end(reader, network_key)[0], pieces(stream, cuts))

    assert outcome == heard(end(reader, network_key)[0], [stream])
    assert outcome.proved is not None
    assert outcome.delivered == b"".join(conversation(network_key).flows[reader].flushes)


@pytest.mark.parametrize("reader", Role, ids=lambda role: f"to the {role.name.lower()}")
@given(cuts=CUTS, index=st.integers(0, 5000), change=st.integers(1, 255), key=st.sampled_from([None, bytes(range(32))]))
@settings(max_examples=100)
def test_any_split_of_a_changed_conversation_ends_in_the_same_fault(
    reader: Role, cuts: list[int], index: int, change: int, key: bytes | None
):
    whole = stream_to(reader, key)
    stream = changed(whole, index % len(whole), change)

    outcome = heard(end(reader, key)[0], pieces(stream, cuts))

    at_once = heard(end(reader, key)[0], [stream])
    said = b"".join(conversation(key).flows[reader].flushes)
    assert (outcome.proved, outcome.failure, outcome.is_violated) == (
        at_once.proved,
        at_once.failure,
        at_once.is_violated,
    )
    # How much of what came before the fault is heard depends on the split: a read with a bad record says nothing.
    assert said.startswith(outcome.delivered)
    assert len(outcome.delivered) < len(said)
