from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.agents.claim import CapabilityClaim
from dht.agents.record import AgentRecord, Reach, read_agent_record
from dht.agents.renewal import (
    MAX_RENEWAL_SIZE_BYTES,
    Renewal,
    body_digest,
    can_be_renewed,
    read_renewal,
    with_renewal,
)
from dht.config import MAX_AGENT_RECORD_SIZE_BYTES, RecordConfig
from dht.exceptions import RecordRefused
from dht.reading import RecordReader
from dht.records import LAST_SEQ, RecordKind, Refusal, Verdicts, open_envelope
from dht.store import MemoryRecordStore
from dht.stored_record import StoredRecord
from dht.values import ImmutableRecord
from synapse_p2p.exceptions import ConfigError
from synapse_p2p.identity import Identity, network_id_of, verify
from synapse_p2p.protocol.wire import CONTROL_LIMITS, pack, unpack

NETWORK_ID = network_id_of("test")
OWNER, STRANGER = Identity.from_seed(bytes(32)), Identity.from_seed(bytes([1] * 32))
NOW_MS = 1_700_000_000_000
LEASE_MS = 900_000
RECORD = AgentRecord(
    public_key=OWNER.public_key,
    seq=7,
    issued_ms=NOW_MS,
    expires_ms=NOW_MS + LEASE_MS,
    network_id=NETWORK_ID,
    addresses=("10.0.0.1:9000",),
    reach=Reach.DIRECT,
    name="Reviewer",
    role="reviewer",
    description="Reviews Python code.",
    capabilities=(CapabilityClaim("python", "3.11.0", {"gpu": False}),),
)
SEALED = RECORD.seal(OWNER)
LATER_MS = NOW_MS + LEASE_MS + 60_000
RENEWAL = Renewal.of(SEALED, seq=8, issued_ms=NOW_MS + 450_000, expires_ms=NOW_MS + 450_000 + LEASE_MS)
RENEWED = with_renewal(SEALED, RENEWAL.seal(OWNER))


def read(envelope: bytes, *, unix_ms: int = LATER_MS) -> AgentRecord:
    return read_agent_record(envelope, network_id=NETWORK_ID, unix_ms=unix_ms, config=RecordConfig())


def refusal_of(envelope: bytes, *, unix_ms: int = LATER_MS) -> str:
    with pytest.raises(RecordRefused) as caught:
        read(envelope, unix_ms=unix_ms)
    return caught.value.reason


def sealed_body(**changed: Any) -> list[Any]:
    """The fourth and fifth elements of an envelope: a renewal with these fields changed, signed by the owner."""
    body = unpack(unpack(RENEWAL.seal(OWNER), CONTROL_LIMITS)[0], CONTROL_LIMITS) | changed
    packed = pack({key: value for key, value in body.items() if value is not None})
    return [packed, OWNER.sign(b"synapse-record:v1:renewal:", packed)]


def with_elements(*elements: Any) -> bytes:
    return pack([*unpack(SEALED, CONTROL_LIMITS), *elements])


def test_a_renewed_record_has_the_number_and_times_of_its_renewal():
    renewed = read(RENEWED)

    assert refusal_of(SEALED) == Refusal.EXPIRED
    assert renewed == replace(RECORD, seq=8, issued_ms=RENEWAL.issued_ms, expires_ms=RENEWAL.expires_ms)


def test_a_renewal_is_short_and_is_the_map_of_the_specification():
    sealed = RENEWAL.seal(OWNER)
    body, signature = unpack(sealed, CONTROL_LIMITS)

    by_the_clock = replace(RENEWAL, seq=NOW_MS).seal(OWNER)
    assert len(by_the_clock) == 195 < MAX_RENEWAL_SIZE_BYTES
    assert len(with_renewal(SEALED, by_the_clock)) == len(SEALED) + 194
    assert unpack(body, CONTROL_LIMITS) == {
        "key": OWNER.public_key,
        "seq": 8,
        "issued": RENEWAL.issued_ms,
        "expires": RENEWAL.expires_ms,
        "digest": body_digest(open_envelope(SEALED)),
    }
    assert signature == OWNER.sign(b"synapse-record:v1:renewal:", body)
    assert with_elements(body, signature) == RENEWED
    assert read_renewal(sealed) == RENEWAL
    assert RENEWAL.owner == OWNER.node_id


def test_a_renewal_takes_the_place_of_an_earlier_one():
    next_one = replace(RENEWAL, seq=9, issued_ms=NOW_MS + LEASE_MS, expires_ms=NOW_MS + 2 * LEASE_MS)

    again = with_renewal(RENEWED, next_one.seal(OWNER))

    assert again == with_renewal(SEALED, next_one.seal(OWNER))
    assert read(again).seq == 9


def test_a_renewal_of_a_renewed_record_is_of_the_same_body():
    assert Renewal.of(RENEWED, seq=9, issued_ms=1, expires_ms=2).digest == RENEWAL.digest


def test_times_of_the_renewal_are_checked_as_those_of_a_record():
    assert refusal_of(RENEWED, unix_ms=RENEWAL.expires_ms) == Refusal.EXPIRED
    assert refusal_of(RENEWED, unix_ms=RENEWAL.issued_ms - 300_001) == Refusal.FROM_THE_FUTURE
    long = replace(RENEWAL, expires_ms=LATER_MS + 3_600_001)
    assert refusal_of(with_renewal(SEALED, long.seal(OWNER))) == Refusal.LIFE_TOO_LONG


def test_a_renewal_of_another_version_is_stale_to_who_holds_this_one():
    other = replace(RECORD, description="Other work.", seq=9).seal(OWNER)

    with pytest.raises(RecordRefused) as refused:
        with_renewal(other, RENEWAL.seal(OWNER))

    assert refused.value.reason == Refusal.STALE
    assert not RENEWAL.applies_to(open_envelope(other))
    assert RENEWAL.applies_to(open_envelope(SEALED)) and RENEWAL.applies_to(open_envelope(RENEWED))


def test_a_value_is_not_renewed():
    value = ImmutableRecord(OWNER.public_key, NOW_MS, NOW_MS + LEASE_MS, NETWORK_ID, b"value").seal(OWNER)
    renewal = Renewal.of(value, seq=8, issued_ms=NOW_MS, expires_ms=NOW_MS + 1)

    with pytest.raises(RecordRefused):
        with_renewal(value, renewal.seal(OWNER))
    assert open_envelope(pack([*unpack(value, CONTROL_LIMITS), b"any", b"thing"])).renewal is None


def test_a_renewal_by_a_stranger_is_refused():
    forged = replace(RENEWAL, public_key=STRANGER.public_key).seal(STRANGER)
    body, _ = unpack(RENEWAL.seal(OWNER), CONTROL_LIMITS)

    assert refusal_of(with_renewal(SEALED, forged)) == Refusal.MALFORMED
    assert refusal_of(with_elements(body, STRANGER.sign(b"synapse-record:v1:renewal:", body))) == Refusal.BAD_SIGNATURE
    assert refusal_of(with_elements(body, OWNER.sign(b"synapse-record:v1:agent:", body))) == Refusal.BAD_SIGNATURE


def test_a_renewal_proves_nothing_about_a_forged_record():
    forged = replace(RECORD, seq=6).seal(OWNER)
    _, body, _ = unpack(forged, CONTROL_LIMITS)
    stolen = pack([3, body, STRANGER.sign(b"synapse-record:v1:agent:", body)])

    assert refusal_of(
        with_renewal(stolen, Renewal.of(stolen, seq=8, issued_ms=NOW_MS, expires_ms=LATER_MS + 1).seal(OWNER))
    ) == (Refusal.BAD_SIGNATURE)


@pytest.mark.parametrize(
    "changed",
    [
        {"seq": 7},
        {"seq": 6},
        {"seq": 0},
        {"seq": LAST_SEQ},
        {"seq": True},
        {"seq": None},
        {"issued": "now"},
        {"issued": 2, "expires": 1},
        {"expires": None},
        {"digest": bytes(32)},
        {"digest": bytes(31)},
        {"digest": None},
        {"key": STRANGER.public_key},
        {"key": bytes(31)},
        {"key": None},
    ],
    ids=str,
)
def test_a_renewal_that_does_not_fit_its_record_is_malformed(changed: dict[str, Any]):
    assert refusal_of(with_elements(*sealed_body(**changed))) == Refusal.MALFORMED


@pytest.mark.parametrize(
    "elements",
    [[b"", b""], [b"\xc1", bytes(64)], [pack([]), bytes(64)], [b"body", bytes(63)], [b"body", bytes(65)]],
    ids=repr,
)
def test_bytes_in_both_places_of_a_renewal_are_one_or_malformed(elements: list[Any]):
    assert refusal_of(with_elements(*elements), unix_ms=NOW_MS) == Refusal.MALFORMED


@pytest.mark.parametrize("elements", [["later"], [None], [{"later": 1}, b"x"], [b"body"], [b"body", None]], ids=repr)
def test_anything_else_in_its_place_is_of_the_future(elements: list[Any]):
    assert read(with_elements(*elements), unix_ms=NOW_MS) == RECORD


def test_what_a_later_release_adds_to_a_renewal_is_ignored():
    assert read(with_elements(*sealed_body(more=1), "more")).seq == 8
    assert read_renewal(pack([*sealed_body(more=1), "more"])) == RENEWAL


def test_a_record_whose_own_fields_are_wrong_is_not_made_good_by_a_renewal():
    _, body, _ = unpack(SEALED, CONTROL_LIMITS)
    fields = unpack(body, CONTROL_LIMITS)
    for wrong in ({"seq": 0}, {"issued": None}, {"expires": NOW_MS - 1}, {"network": bytes(16)}):
        packed = pack(fields | wrong)
        record = pack([3, packed, OWNER.sign(b"synapse-record:v1:agent:", packed)])
        renewal = Renewal.of(record, seq=8, issued_ms=NOW_MS, expires_ms=NOW_MS + LEASE_MS)

        assert refusal_of(with_renewal(record, renewal.seal(OWNER)), unix_ms=NOW_MS) in (
            Refusal.MALFORMED,
            Refusal.WRONG_NETWORK,
        )


def test_a_final_tombstone_is_not_renewed():
    final = RECORD.revoked(issued_ms=NOW_MS).seal(OWNER)

    renewal = Renewal.of(final, seq=8, issued_ms=NOW_MS, expires_ms=NOW_MS + LEASE_MS)

    assert refusal_of(with_renewal(final, renewal.seal(OWNER)), unix_ms=NOW_MS) == Refusal.MALFORMED


@pytest.mark.parametrize(
    "wrong",
    [{"seq": 0}, {"seq": LAST_SEQ}, {"digest": b""}, {"public_key": b""}, {"issued_ms": 5, "expires_ms": 5}],
    ids=str,
)
def test_a_users_mistake_is_a_config_error(wrong: dict[str, Any]):
    with pytest.raises(ConfigError):
        replace(RENEWAL, **wrong)


def test_only_its_own_identity_seals_a_renewal():
    with pytest.raises(ConfigError, match="public key"):
        RENEWAL.seal(STRANGER)


def test_a_record_with_room_for_a_renewal_can_be_renewed_and_a_longer_one_is_signed_anew():
    def record_of(size_bytes: int) -> bytes:
        """About so large; unknown fields are signed too."""
        _, body, _ = unpack(SEALED, CONTROL_LIMITS)
        packed = pack(unpack(body, CONTROL_LIMITS) | {"more": bytes(size_bytes - len(SEALED) - 8)})
        return pack([3, packed, OWNER.sign(b"synapse-record:v1:agent:", packed)])

    def renewed(record: bytes) -> bytes:
        renewal = Renewal.of(record, seq=LAST_SEQ - 1, issued_ms=NOW_MS, expires_ms=NOW_MS + LEASE_MS)
        return with_renewal(record, renewal.seal(OWNER))

    room = MAX_AGENT_RECORD_SIZE_BYTES - MAX_RENEWAL_SIZE_BYTES
    assert [can_be_renewed(bytes(size)) for size in (room, room + 1)] == [True, False]
    assert read(renewed(record_of(room)), unix_ms=NOW_MS).seq == LAST_SEQ - 1
    assert refusal_of(renewed(record_of(1400)), unix_ms=NOW_MS) == Refusal.TOO_LARGE


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_but_a_refusal(data: bytes):
    for use in (read_renewal, lambda data: with_renewal(SEALED, data)):
        with pytest.raises(RecordRefused) as refused:
            use(data)
        assert refused.value.reason in (Refusal.MALFORMED, Refusal.TOO_LARGE)


@given(st.integers(0, 8 * (len(RENEWED) - len(SEALED)) - 1))
def test_one_flipped_bit_of_a_renewal_is_noticed(position: int):
    start = len(SEALED)
    flipped = (int.from_bytes(RENEWED[start:], "big") ^ 1 << position).to_bytes(len(RENEWED) - start, "big")

    with pytest.raises(RecordRefused):
        # As bytes alone some are another, later thing; then the record is as old as it was.
        read(RENEWED[:start] + flipped)


# At storers and searchers


def test_a_renewal_costs_one_signature_and_the_record_none_again(monkeypatch: pytest.MonkeyPatch):
    reader = RecordReader(NETWORK_ID, RecordConfig(), Verdicts())
    reader.read(SEALED, NOW_MS)
    checked: list[bytes] = []
    monkeypatch.setattr(
        "dht.records.verify",
        lambda key, label, *signed: checked.append(label) or verify(key, label, *signed),
    )

    for _ in range(2):
        assert reader.read(RENEWED, LATER_MS).seq == 8

    assert checked == [b"synapse-record:v1:renewal:"]


def test_a_store_takes_a_renewed_record_for_the_next_version():
    store = MemoryRecordStore(RecordConfig())
    key = bytes(32)

    def put(record: bytes, now: float) -> Refusal | None:
        read_back = read(record, unix_ms=NOW_MS + round(now * 1000))
        expires_at = (read_back.expires_ms - NOW_MS) / 1000
        return store.put(key, StoredRecord(record, read_back.owner, read_back.seq, expires_at, RecordKind.AGENT), now)

    assert put(SEALED, 0.0) is None
    assert put(RENEWED, 450.0) is None
    assert put(SEALED, 451.0) is Refusal.STALE
    assert put(with_renewal(SEALED, replace(RENEWAL, issued_ms=NOW_MS).seal(OWNER)), 452.0) is Refusal.STALE
    assert [stored.record for stored in store.get(key, 1349.0)] == [RENEWED]
    assert store.get(key, 1350.0) == []
    withdrawal = read(RENEWED).withdrawn(seq=9, issued_ms=LATER_MS).seal(OWNER)
    assert put(RENEWED, 500.0) is None
    assert put(withdrawal, 961.0) is None
    store.check_invariants()
