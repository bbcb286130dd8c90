"""What a reader believes of what storers answer: every wrong answer to `find_value` for the key of a value."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.config import RecordConfig
from dht.reading import RecordReader, ValueReading
from dht.records import LABELS, Gone, RecordKind, Verdicts
from dht.values import ImmutableRecord, MutableRecord
from synapse_p2p.identity import Identity
from synapse_p2p.protocol.wire import CONTROL_LIMITS, pack, unpack

OWNER = Identity.from_seed(b"o" * 32)
STRANGER = Identity.from_seed(b"s" * 32)
NETWORK = bytes(range(16))
NOW = 1_800_000_000_000
DAY_MS = 86_400_000
A, B, C = (bytes([number]) * 32 for number in (1, 2, 3))


def immutable(value: bytes = b"value") -> ImmutableRecord:
    return ImmutableRecord(OWNER.public_key, NOW, NOW + DAY_MS, NETWORK, value)


def version(seq: int, value: bytes = b"", *, gone: Gone | None = None, **fields: object) -> MutableRecord:
    common = {"public_key": OWNER.public_key, "salt": b"", "issued_ms": NOW, "expires_ms": NOW + DAY_MS}
    value = b"" if gone else value or b"v%d" % seq
    return MutableRecord(**{**common, "seq": seq, "network_id": NETWORK, "value": value, "gone": gone, **fields})


def reading(record: ImmutableRecord | MutableRecord) -> ValueReading:
    return ValueReading(record.key, RecordReader(NETWORK, RecordConfig(), Verdicts()))


def flipped(envelope: bytes, at: int = -1) -> bytes:
    changed = bytearray(envelope)
    changed[at] ^= 1
    return bytes(changed)


BAD_ANSWERS = {
    "no records": [],
    "no record at all": [b""],
    "noise": [b"\xc1" * 100],
    "value of another key": [immutable(b"another").seal(OWNER)],
    "another salt": [version(9, salt=b"x").seal(OWNER)],
    "another owner": [MutableRecord(STRANGER.public_key, b"", 9, NOW, NOW + 1, NETWORK, b"v").seal(STRANGER)],
    "flipped bit": [flipped(version(9).seal(OWNER))],
    "truncated": [version(9).seal(OWNER)[:-1]],
    "expired": [version(9, issued_ms=NOW - 2, expires_ms=NOW).seal(OWNER)],
    "from the future": [version(9, issued_ms=NOW + 300_001).seal(OWNER)],
    "another network": [version(9, network_id=bytes(16)).seal(OWNER)],
    "1000 values, the first wrong": [b"junk", *[version(9).seal(OWNER)] * 999],
}


@pytest.mark.parametrize("bad", BAD_ANSWERS, ids=str)
def test_a_bad_answer_is_as_none_and_spoils_no_good_one(bad: str):
    got = reading(version(1))

    first = got.take(A, BAD_ANSWERS[bad], NOW)
    is_found_by_it = got.is_found
    got.take(B, [version(5).seal(OWNER)], NOW)
    got.take(C, BAD_ANSWERS[bad], NOW)

    assert (first, is_found_by_it) == (False, False)
    assert got.value == b"v5"
    assert got.behind() == [A, C]


def test_another_owner_cannot_sign_for_a_key():
    body = unpack(unpack(version(9).seal(OWNER), CONTROL_LIMITS)[1], CONTROL_LIMITS)
    packed = pack(body)
    forged = pack([2, packed, STRANGER.sign(LABELS[RecordKind.MUTABLE], packed)])
    got = reading(version(1))

    assert not got.take(A, [forged], NOW)
    assert got.value is None


def test_a_thousand_values_cost_at_most_one_signature(monkeypatch: pytest.MonkeyPatch):
    checked = []
    monkeypatch.setattr("dht.records.verify", lambda *_: checked.append(1))
    answer = [flipped(version(seq).seal(OWNER)) for seq in range(1, 50)]

    reading(version(1)).take(A, answer, NOW)

    assert len(checked) <= 1


@given(st.permutations([1, 2, 3, 4]), st.sampled_from([None, 2, 4]))
def test_the_newest_version_wins_in_any_order_and_the_others_are_behind(order: list[int], deleted: int | None):
    got = reading(version(1))

    for seq in order:
        gone = Gone.NOW if seq == deleted else None
        assert got.take(bytes([seq]) * 32, [version(seq, gone=gone).seal(OWNER)], NOW)

    assert got.newest is not None and got.newest.seq == 4
    assert got.value == (None if deleted == 4 else b"v4")
    assert sorted(got.behind()) == [bytes([seq]) * 32 for seq in (1, 2, 3)]


def test_a_tombstone_is_found_and_holds_nothing():
    got = reading(version(1))

    got.take(A, [version(3, gone=Gone.NOW).seal(OWNER)], NOW)
    got.take(B, [version(2).seal(OWNER)], NOW)

    assert (got.is_found, got.value, got.behind()) == (True, None, [B])


def test_nothing_follows_a_final_tombstone():
    final = MutableRecord.final(OWNER.public_key, b"", issued_ms=NOW, network_id=NETWORK)
    answers = [final.seal(OWNER), version(2**63 - 2).seal(OWNER)]

    for order in itertools.permutations(answers):
        got = reading(final)
        for sender, answer in zip((A, B), order, strict=True):
            got.take(sender, [answer], NOW)

        assert got.value is None


def test_an_immutable_value_is_proved_by_its_hash_alone():
    good = immutable()
    got = reading(good)
    unsigned = flipped(good.seal(OWNER))

    assert got.take(A, [unsigned], NOW + 365 * DAY_MS)
    assert got.value == b"value"


def test_one_flipped_bit_of_an_immutable_value_is_another_value():
    envelope = immutable(b"value").seal(OWNER)
    got = reading(immutable(b"value"))

    assert not got.take(A, [flipped(envelope, envelope.rindex(b"value"))], NOW)
    assert got.value is None


@given(st.lists(st.binary(max_size=300), max_size=3))
def test_no_bytes_raise_anything(records: list[bytes]):
    got = reading(version(1))

    assert not got.take(A, records, NOW)
    assert not got.is_found
