from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synapse_p2p.exceptions import ProtocolViolation
from synapse_p2p.protocol.channel import LENGTH_BYTES, MAX_PLAINTEXT_BYTES, SecureChannel
from synapse_p2p.protocol.noise import TAG_SIZE_BYTES, CipherState

OVERHEAD_BYTES = LENGTH_BYTES + TAG_SIZE_BYTES
FLUSHES = st.lists(st.binary(min_size=1, max_size=60), min_size=2, max_size=8)


def channel_pair(*, records_per_key: int = 1000) -> tuple[SecureChannel, SecureChannel]:
    def cipher(number: int) -> CipherState:
        return CipherState("AESGCM", bytes([number] * 32))

    return (
        SecureChannel(cipher(1), cipher(2), records_per_key=records_per_key),
        SecureChannel(cipher(2), cipher(1), records_per_key=records_per_key),
    )


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


def delivered_of(channel: SecureChannel, parts: list[bytes]) -> tuple[bytes, bool]:
    """What came out before the first fault, and whether there was one."""
    delivered = b""
    for part in parts:
        try:
            delivered += channel.open(part)
        except ProtocolViolation:
            return delivered, True
    return delivered, False


@given(st.lists(st.binary(max_size=200), max_size=6), st.lists(st.integers(0, 2000), max_size=12))
def test_what_is_sealed_is_opened_however_it_is_split(flushes: list[bytes], cuts: list[int]):
    here, there = channel_pair()

    sealed = b"".join(here.seal(flush) for flush in flushes)

    assert b"".join(there.open(piece) for piece in pieces(sealed, cuts)) == b"".join(flushes)


@given(
    st.sampled_from([1, MAX_PLAINTEXT_BYTES - 1, MAX_PLAINTEXT_BYTES, MAX_PLAINTEXT_BYTES + 1, 200_000]),
    st.lists(st.integers(0, 300_000), max_size=6),
)
@settings(max_examples=25)
def test_a_flush_takes_as_few_records_as_can_be(size_bytes: int, cuts: list[int]):
    here, there = channel_pair()
    flush = (b"0123456789" * (size_bytes // 10 + 1))[:size_bytes]

    sealed = here.seal(flush)

    records = -(-size_bytes // MAX_PLAINTEXT_BYTES)
    assert len(sealed) == size_bytes + records * OVERHEAD_BYTES
    assert b"".join(there.open(piece) for piece in pieces(sealed, cuts)) == flush


def test_both_directions_are_independent():
    here, there = channel_pair()

    assert there.open(here.seal(b"one") + here.seal(b"two")) == b"onetwo"
    assert here.open(there.seal(b"three")) == b"three"


def test_nothing_to_say_takes_no_record():
    here, there = channel_pair()

    assert here.seal(b"") == b""
    assert there.open(here.seal(b"") + here.seal(b"next")) == b"next"


def test_half_a_record_says_nothing_yet():
    here, there = channel_pair()
    sealed = here.seal(b"whole")

    assert there.open(sealed[:-1]) == b""
    assert there.open(sealed[-1:]) == b"whole"


@given(FLUSHES, st.data())
def test_after_a_changed_byte_only_what_came_before_is_delivered(flushes: list[bytes], data: st.DataObject):
    here, there = channel_pair()
    records = [here.seal(flush) for flush in flushes]
    damaged = data.draw(st.integers(0, len(records) - 1))
    index = data.draw(st.integers(0, len(records[damaged]) - 1))
    change = data.draw(st.integers(1, 255))
    record = records[damaged]
    records[damaged] = record[:index] + bytes((record[index] ^ change,)) + record[index + 1 :]

    delivered, is_violated = delivered_of(there, records)

    assert delivered == b"".join(flushes[:damaged])
    assert is_violated or index < LENGTH_BYTES  # a length that grew may wait for bytes that never come


@given(FLUSHES, st.data())
def test_a_dropped_repeated_or_moved_record_is_a_violation_and_a_prefix_is_delivered(
    flushes: list[bytes], data: st.DataObject
):
    here, there = channel_pair()
    records = [here.seal(flush) for flush in flushes]
    first = data.draw(st.integers(0, len(records) - 2))
    fault = data.draw(st.sampled_from(["drop", "repeat", "swap"]))
    match fault:
        case "drop":
            wire, intact = records[:first] + records[first + 1 :], first
        case "repeat":
            wire, intact = records[: first + 1] + records[first:], first + 1
        case _:
            wire, intact = [*records[:first], records[first + 1], records[first], *records[first + 2 :]], first

    delivered, is_violated = delivered_of(there, wire)

    assert is_violated
    assert delivered == b"".join(flushes[:intact])


def test_a_record_sent_back_to_its_sender_is_a_violation():
    here, _ = channel_pair()

    with pytest.raises(ProtocolViolation):
        here.open(here.seal(b"mine"))


@pytest.mark.parametrize("size_bytes", [0, 1, 15, 16])
def test_a_record_too_short_to_say_anything_is_refused_at_its_length(size_bytes: int):
    _, there = channel_pair()

    with pytest.raises(ProtocolViolation, match=f"{size_bytes} bytes"):
        there.open(size_bytes.to_bytes(2, "big"))


def test_nothing_of_a_read_with_a_bad_record_is_delivered():
    here, there = channel_pair()
    good, bad = here.seal(b"good"), bytearray(here.seal(b"bad"))
    bad[-1] ^= 1

    with pytest.raises(ProtocolViolation):
        there.open(good + bad)


@given(st.binary(max_size=400))
def test_arbitrary_bytes_are_a_violation_or_wait_for_more(data: bytes):
    _, there = channel_pair()

    delivered, _ = delivered_of(there, [data])

    assert delivered == b""


@given(st.lists(st.binary(min_size=1, max_size=5), max_size=40), st.integers(1, 7))
def test_both_ends_take_a_new_key_after_the_same_record(flushes: list[bytes], records_per_key: int):
    here, there = channel_pair(records_per_key=records_per_key)

    assert [there.open(here.seal(flush)) for flush in flushes] == flushes
    assert [here.open(there.seal(flush)) for flush in flushes] == flushes


def test_a_key_seals_exactly_its_records():
    here, _ = channel_pair(records_per_key=3)
    unchanged, _ = channel_pair(records_per_key=1000)

    ours, theirs = ([channel.seal(b"x") for _ in range(5)] for channel in (here, unchanged))

    assert [one == other for one, other in zip(ours, theirs, strict=True)] == [True, True, True, False, False]


def test_a_record_of_the_key_before_is_not_opened():
    here, _ = channel_pair(records_per_key=4)
    _, there = channel_pair(records_per_key=3)
    records = [here.seal(b"x") for _ in range(4)]

    assert there.open(b"".join(records[:3])) == b"xxx"
    with pytest.raises(ProtocolViolation):
        there.open(records[3])


def test_after_a_bad_record_the_channel_is_closed_for_good_ones():
    here, there = channel_pair()
    first, second = here.seal(b"first"), here.seal(b"second")

    assert delivered_of(there, [second]) == (b"", True)
    assert delivered_of(there, [first]) == (b"", True)
