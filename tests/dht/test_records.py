import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.exceptions import RecordRefused
from dht.records import (
    LAST_SEQ,
    MAX_INT,
    RENEWAL_LABEL,
    Gone,
    RecordKind,
    Refusal,
    Signed,
    Verdicts,
    next_seq,
    open_envelope,
    seal,
    version_fault,
)
from synapse_p2p.identity import Identity
from synapse_p2p.protocol.wire import CONTROL_LIMITS, pack, unpack

OWNER = Identity.from_seed(bytes(32))
STRANGER = Identity.from_seed(bytes([1] * 32))


def refusal_of(data: bytes, max_size_bytes: int = 1500) -> str:
    with pytest.raises(RecordRefused) as caught:
        open_envelope(data, max_size_bytes).check_signature(OWNER.public_key)
    return caught.value.reason


@given(st.binary(max_size=1000))
def test_what_is_sealed_opens_and_proves_its_owner(body: bytes):
    envelope = open_envelope(seal(RecordKind.AGENT, body, OWNER), 2000)

    envelope.check_signature(OWNER.public_key)

    assert (envelope.kind, envelope.body) == (RecordKind.AGENT, body)


def test_signature_is_over_label_and_body():
    _, body, signature = unpack(seal(RecordKind.AGENT, b"body", OWNER), CONTROL_LIMITS)

    assert body == b"body"
    assert signature == OWNER.sign(b"synapse-record:v1:agent:", b"body")


def test_nobody_else_signed_it():
    sealed = seal(RecordKind.AGENT, b"body", STRANGER)

    assert refusal_of(sealed) == Refusal.BAD_SIGNATURE


@given(st.binary(min_size=1, max_size=60), st.data())
def test_one_flipped_bit_of_the_body_breaks_the_signature(body: bytes, data: st.DataObject):
    _, _, signature = unpack(seal(RecordKind.AGENT, body, OWNER), CONTROL_LIMITS)
    position = data.draw(st.integers(0, len(body) * 8 - 1))
    changed = (int.from_bytes(body, "big") ^ 1 << position).to_bytes(len(body), "big")

    assert refusal_of(pack([3, changed, signature])) == Refusal.BAD_SIGNATURE


def test_elements_from_the_future_are_ignored():
    kind, body, signature = unpack(seal(RecordKind.AGENT, b"body", OWNER), CONTROL_LIMITS)

    envelope = open_envelope(pack([kind, body, signature, {"later": 1}]), 1500)

    assert (envelope.kind, envelope.body, envelope.signature) == (RecordKind.AGENT, b"body", signature)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([0, b"", bytes(64)], Refusal.UNKNOWN_KIND),
        ([4, b"", bytes(64)], Refusal.UNKNOWN_KIND),
        ([-(2**63), b"", bytes(64)], Refusal.UNKNOWN_KIND),
        ([99, {"another": "shape"}], Refusal.UNKNOWN_KIND),
        ([3], Refusal.MALFORMED),
        ([3, b"body"], Refusal.MALFORMED),
        ([3, "body", bytes(64)], Refusal.MALFORMED),
        ([3, b"body", bytes(63)], Refusal.MALFORMED),
        ([True, b"body", bytes(64)], Refusal.MALFORMED),
        (["agent", b"body", bytes(64)], Refusal.MALFORMED),
        ({"kind": 3}, Refusal.MALFORMED),
        ([], Refusal.MALFORMED),
        (None, Refusal.MALFORMED),
    ],
)
def test_other_shapes_and_kinds_are_refused_by_reason(value: object, reason: Refusal):
    assert refusal_of(pack(value)) == reason


def test_size_is_checked_before_anything_is_decoded():
    assert refusal_of(b"\xc1" * 11, max_size_bytes=10) == Refusal.TOO_LARGE
    assert refusal_of(b"\xc1" * 10, max_size_bytes=10) == Refusal.MALFORMED


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_a_refusal(data: bytes):
    assert refusal_of(data) in set(Refusal)


@pytest.mark.parametrize("kind", RecordKind)
def test_a_signature_for_one_kind_is_none_for_another(kind: RecordKind):
    for other in RecordKind:
        _, body, signature = unpack(seal(kind, b"body", OWNER), CONTROL_LIMITS)
        envelope = open_envelope(pack([int(other), body, signature]))

        if other is kind:
            envelope.check_signature(OWNER.public_key)
        else:
            with pytest.raises(RecordRefused):
                envelope.check_signature(OWNER.public_key)


def test_a_renewal_is_two_more_elements_of_an_agent_record_and_of_nothing_else():
    signature = OWNER.sign(RENEWAL_LABEL, b"renewal")
    for kind in RecordKind:
        _, body, signed = unpack(seal(kind, b"body", OWNER), CONTROL_LIMITS)
        envelope = open_envelope(pack([int(kind), body, signed, b"renewal", signature, "later"]))

        envelope.check_signature(OWNER.public_key)
        is_renewed = envelope.renewal == Signed(b"synapse-record:v1:renewal:", b"renewal", signature)
        assert is_renewed is (kind is RecordKind.AGENT)


@pytest.mark.parametrize("wrong", [0, 1])
def test_both_signatures_of_a_renewed_record_have_to_be_the_owners(wrong: int):
    signers = [OWNER, OWNER]
    signers[wrong] = STRANGER
    labels = [b"synapse-record:v1:agent:", RENEWAL_LABEL]
    first, second = (who.sign(label, b"body") for who, label in zip(signers, labels, strict=True))
    envelope = open_envelope(pack([3, b"body", first, b"body", second]))
    verdicts = Verdicts()

    for check in (envelope.check_signature, lambda key: verdicts.check(envelope, key)):
        with pytest.raises(RecordRefused):
            check(OWNER.public_key)


def test_verdicts_are_those_of_the_signatures_and_the_latest_are_remembered():
    verdicts = Verdicts(max_verdicts=2)
    good, forged = (
        open_envelope(seal(RecordKind.AGENT, b"a", OWNER)),
        open_envelope(seal(RecordKind.AGENT, b"b", STRANGER)),
    )

    for _ in range(2):
        verdicts.check(good, OWNER.public_key)
        with pytest.raises(RecordRefused):
            verdicts.check(forged, OWNER.public_key)
    verdicts.check(open_envelope(seal(RecordKind.AGENT, b"c", OWNER)), OWNER.public_key)

    assert len(verdicts) == 2


def test_a_verdict_once_found_costs_no_signature(monkeypatch: pytest.MonkeyPatch):
    verdicts = Verdicts()
    good = open_envelope(seal(RecordKind.AGENT, b"a", OWNER))
    verdicts.check(good, OWNER.public_key)
    monkeypatch.setattr("dht.records.verify", lambda *_: pytest.fail("a signature was checked again"))

    verdicts.check(good, OWNER.public_key)


@given(st.integers(0, 2**62), st.integers(0, 2**62))
def test_the_next_number_grows_and_follows_the_clock(last: int, unix_ms: int):
    seq = next_seq(last, unix_ms)

    assert seq > last
    assert seq >= unix_ms


@pytest.mark.parametrize(
    ("seq", "issued_ms", "expires_ms", "gone", "is_good"),
    [
        (1, 0, 1, None, True),
        (1, 0, 1, Gone.NOW, True),
        (LAST_SEQ, 0, MAX_INT, Gone.FINAL, True),
        (0, 0, 1, None, False),
        (-1, 0, 1, None, False),
        (2**63, 0, 1, None, False),
        (LAST_SEQ, 0, 1, None, False),
        (LAST_SEQ, 0, MAX_INT, Gone.NOW, False),
        (LAST_SEQ, 0, 1, Gone.FINAL, False),
        (5, 0, MAX_INT, Gone.FINAL, False),
        (1, 1, 1, None, False),
        (1, -1, 1, None, False),
        (1, 0, 2**63, None, False),
    ],
)
def test_the_last_number_and_final_tombstones_belong_together(
    seq: int, issued_ms: int, expires_ms: int, gone: Gone | None, is_good: bool
):
    assert (version_fault(seq, issued_ms, expires_ms, gone) == "") is is_good
