import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.config import RecordConfig
from dht.exceptions import RecordRefused
from dht.keyspace import content_key, mutable_key
from dht.reading import RecordReader
from dht.records import LABELS, MAX_INT, Gone, RecordKind, Refusal, Verdicts
from dht.values import ImmutableRecord, MutableRecord
from synapse_p2p.exceptions import ConfigError
from synapse_p2p.identity import Identity
from synapse_p2p.protocol.wire import CONTROL_LIMITS, pack, unpack

OWNER = Identity.from_seed(b"o" * 32)
STRANGER = Identity.from_seed(b"s" * 32)
NETWORK = bytes(range(16))
NOW = 1_800_000_000_000
DAY_MS = 86_400_000


def reader(config: RecordConfig | None = None) -> RecordReader:
    return RecordReader(NETWORK, config or RecordConfig(), Verdicts())


def immutable(value: bytes = b"value", **fields: object) -> ImmutableRecord:
    common = {"public_key": OWNER.public_key, "issued_ms": NOW, "expires_ms": NOW + DAY_MS, "network_id": NETWORK}
    return ImmutableRecord(**{**common, "value": value, **fields})


def mutable(value: bytes = b"value", **fields: object) -> MutableRecord:
    common = {"public_key": OWNER.public_key, "issued_ms": NOW, "expires_ms": NOW + DAY_MS, "network_id": NETWORK}
    return MutableRecord(**{**common, "salt": b"salt", "seq": 1, "value": value, **fields})


@given(st.binary(max_size=2000), st.binary(max_size=64), st.integers(1, MAX_INT - 1))
def test_what_is_sealed_is_read_as_it_was(value: bytes, salt: bytes, seq: int):
    for record in (immutable(value), mutable(value, salt=salt, seq=seq)):
        assert reader().read(record.seal(OWNER), NOW) == record


def test_keys_are_those_of_the_value_and_of_the_owner_with_a_salt():
    assert immutable(b"v").key == content_key(b"v")
    assert mutable(salt=b"a").key == mutable_key(OWNER.public_key, b"a") != mutable(salt=b"b").key
    assert mutable().owner == immutable().owner == OWNER.node_id


def test_the_largest_value_and_salt_fit_an_envelope():
    value = bytes(16 * 1024)

    for record in (immutable(value), mutable(value, salt=bytes(64), seq=MAX_INT - 1)):
        assert reader().read(record.seal(OWNER), NOW) == record


@pytest.mark.parametrize(
    "fields",
    [
        {"value": bytes(16 * 1024 + 1)},
        {"public_key": bytes(31)},
        {"network_id": bytes(15)},
        {"issued_ms": NOW + DAY_MS},
        {"issued_ms": -1},
        {"expires_ms": 2**63},
        {"salt": bytes(65)},
        {"seq": 0},
        {"seq": MAX_INT},
        {"gone": Gone.NOW},
        {"gone": Gone.FINAL, "value": b""},
    ],
    ids=str,
)
def test_a_record_that_breaks_a_bound_is_not_built(fields: dict[str, object]):
    with pytest.raises(ConfigError):
        mutable(**{"value": b"x", **fields})
    if not fields.keys() & {"salt", "seq", "gone"}:
        with pytest.raises(ConfigError):
            immutable(**{"value": b"x", **fields})


def test_nobody_seals_for_another():
    for record in (immutable(), mutable()):
        with pytest.raises(ConfigError):
            record.seal(STRANGER)


def test_a_final_tombstone_has_the_last_number_and_no_end():
    final = MutableRecord.final(OWNER.public_key, b"salt", issued_ms=NOW, network_id=NETWORK)

    assert reader().read(final.seal(OWNER), NOW + 100 * 365 * DAY_MS) == final
    assert (final.key, final.seq, final.gone) == (mutable().key, MAX_INT, Gone.FINAL)


def body_of(record: ImmutableRecord | MutableRecord) -> dict[str, object]:
    return unpack(unpack(record.seal(OWNER), CONTROL_LIMITS)[1], CONTROL_LIMITS)


def signed(kind: RecordKind, body: object) -> bytes:
    packed = pack(body)
    return pack([int(kind), packed, OWNER.sign(LABELS[kind], packed)])


WRONG = (None, True, -1, 0, 2**63, 2**64 - 1, 1.5, float("nan"), "text", b"", bytes(33), [], {}, [[]])


@pytest.mark.parametrize("kind", [RecordKind.IMMUTABLE, RecordKind.MUTABLE])
def test_each_field_of_each_wrong_type_and_size_is_refused_or_read_as_it_stands(kind: RecordKind):
    good = body_of(immutable() if kind is RecordKind.IMMUTABLE else mutable())
    bodies = [{name: value for name, value in good.items() if name != field} for field in good]
    bodies += [good | {field: value} for field in [*good, "gone"] for value in WRONG]
    bodies += [[], None, 5, b"", {}, {1: 2}]

    for body in bodies:
        try:
            record = reader().read(signed(kind, body), NOW)
        except RecordRefused:
            continue
        assert isinstance(body, dict)
        is_known = dict.fromkeys(good) if kind is RecordKind.IMMUTABLE else dict.fromkeys([*good, "gone"])
        known = {name: value for name, value in body.items() if name in is_known and value is not None}
        assert body_of(record) == known or (record.gone is Gone.NOW and body["gone"] == "text")


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"expires": NOW}, Refusal.EXPIRED),
        ({"issued": NOW + 300_001}, Refusal.FROM_THE_FUTURE),
        ({"issued": NOW + 300_000}, None),
        ({"issued": NOW - 365 * DAY_MS}, None),
        ({"expires": NOW + 2 * DAY_MS + 1}, Refusal.LIFE_TOO_LONG),
        ({"expires": NOW + 2 * DAY_MS}, None),
        ({"expires": MAX_INT}, Refusal.LIFE_TOO_LONG),
        ({"network": bytes(16)}, Refusal.WRONG_NETWORK),
        ({"value": bytes(16 * 1024 + 1)}, Refusal.TOO_LARGE),
        ({"key": STRANGER.public_key}, Refusal.BAD_SIGNATURE),
    ],
)
def test_the_reason_of_a_refusal_is_said(changes: dict[str, object], refusal: Refusal | None):
    for kind, record in ((RecordKind.IMMUTABLE, immutable()), (RecordKind.MUTABLE, mutable())):
        data = signed(kind, body_of(record) | changes)
        if refusal is None:
            reader().read(data, NOW)
            continue

        with pytest.raises(RecordRefused) as refused:
            reader().read(data, NOW)

        assert refused.value.reason == refusal


def test_an_immutable_value_is_never_final():
    body = body_of(immutable()) | {"gone": "final", "expires": MAX_INT}

    with pytest.raises(RecordRefused) as refused:
        reader().read(signed(RecordKind.IMMUTABLE, body), NOW)

    assert refused.value.reason == Refusal.LIFE_TOO_LONG


def test_a_signature_is_checked_after_everything_else(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dht.records.verify", lambda *_: pytest.fail("a signature was checked"))
    late = signed(RecordKind.MUTABLE, body_of(mutable()) | {"expires": NOW})

    with pytest.raises(RecordRefused):
        reader().read(late, NOW)


def test_a_storer_may_take_less_than_the_protocol_allows():
    with pytest.raises(RecordRefused) as refused:
        reader(RecordConfig(max_value_bytes=10)).read(mutable(bytes(11)).seal(OWNER), NOW)

    assert refused.value.reason == Refusal.TOO_LARGE
