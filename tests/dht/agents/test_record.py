from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.agents.record import AgentRecord, CapabilityClaim, NewestSeen, Reach, read_agent_record
from dht.config import RecordConfig
from dht.exceptions import RecordRefused
from dht.records import LAST_SEQ, Gone, RecordKind, Refusal, open_envelope, seal
from synapse_p2p.exceptions import ConfigError
from synapse_p2p.identity import Identity, network_id_of, node_id_of
from synapse_p2p.protocol.wire import CONTROL_LIMITS, pack, unpack

NETWORK_ID = network_id_of("test")
OWNER = Identity.from_seed(bytes(32))
NOW_MS = 1_700_000_000_000
RECORD = AgentRecord(
    public_key=OWNER.public_key,
    seq=7,
    issued_ms=NOW_MS,
    expires_ms=NOW_MS + 900_000,
    network_id=NETWORK_ID,
    addresses=("10.0.0.1:9000",),
    reach=Reach.DIRECT,
    name="Reviewer",
    role="reviewer",
    description="Reviews Python code.",
    capabilities=(
        CapabilityClaim("python", "3.11", {"gpu": False, "price": 0.5}, bytes(32)),
        CapabilityClaim("nlp/en"),
    ),
)
BODY = {
    "key": OWNER.public_key,
    "seq": 7,
    "issued": NOW_MS,
    "expires": NOW_MS + 900_000,
    "network": NETWORK_ID,
    "addresses": ["10.0.0.1:9000"],
    "reach": "direct",
    "name": "Reviewer",
    "role": "reviewer",
    "description": "Reviews Python code.",
    "capabilities": [["python", "3.11", {"gpu": False, "price": 0.5}, bytes(32)], ["nlp/en", "", {}, b""]],
}


def read(envelope: bytes, *, unix_ms: int = NOW_MS, config: RecordConfig = RecordConfig()) -> AgentRecord:  # noqa: B008
    return read_agent_record(envelope, network_id=NETWORK_ID, unix_ms=unix_ms, config=config)


def sealed(body: Any) -> bytes:
    return seal(RecordKind.AGENT, pack(body), OWNER)


def refusal_of(envelope: bytes, *, unix_ms: int = NOW_MS) -> str:
    with pytest.raises(RecordRefused) as caught:
        read(envelope, unix_ms=unix_ms)
    return caught.value.reason


NAMES = st.from_regex(r"[a-z]{1,5}(/[a-z]{1,5}){0,1}", fullmatch=True)
SCALARS = st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4)
CLAIMS = st.builds(
    CapabilityClaim,
    NAMES,
    st.sampled_from(["", "1", "1.2", "1.2.3", "1.2.3-rc.1+5"]),
    st.dictionaries(st.text(max_size=5), SCALARS | st.lists(SCALARS, max_size=3), max_size=3),
    st.just(b"") | st.binary(min_size=32, max_size=32),
)


@given(
    seq=st.integers(1, LAST_SEQ - 1),
    name=st.text(max_size=64),
    description=st.text(max_size=50),
    claims=st.lists(CLAIMS, max_size=5, unique_by=lambda claim: claim.name),
)
def test_a_sealed_record_is_read_back(seq: int, name: str, description: str, claims: list[CapabilityClaim]):
    record = replace(RECORD, seq=seq, name=name, description=description, capabilities=tuple(claims))

    assert read(record.seal(OWNER)) == record


def test_the_body_is_the_map_of_the_specification():
    body = unpack(open_envelope(RECORD.seal(OWNER), 1500).body, CONTROL_LIMITS)

    assert body == BODY
    assert read(sealed(BODY)) == RECORD


def test_owner_is_who_signed():
    assert RECORD.owner == node_id_of(OWNER.public_key) == OWNER.node_id


def test_a_record_is_indexed_under_its_capabilities_and_their_ancestors():
    record = replace(RECORD, capabilities=tuple(map(CapabilityClaim, ("python", "nlp/en/summary", "nlp"))))

    assert record.indexed_names() == ("nlp", "nlp/en", "nlp/en/summary", "python")


def test_what_a_later_release_adds_is_ignored():
    body = BODY | {"later": [1, 2], "capabilities": [["python", "", {}, b"", "more"]], "reach": "relay"}

    record = read(sealed(body))

    assert record.capabilities == (CapabilityClaim("python"),)
    assert record.reach is Reach.NONE


@pytest.mark.parametrize("version", ["latest", "v2", "2.0.0.1", "2-beta", "1" * 32])
def test_a_version_that_is_no_semantic_one_is_read_as_none(version: str):
    record = read(sealed(BODY | {"capabilities": [["python", version, {}, b""]]}))

    assert record.capabilities == (CapabilityClaim("python"),)


@pytest.mark.parametrize(
    ("unix_ms", "reason"),
    [
        (NOW_MS + 900_000, Refusal.EXPIRED),
        (NOW_MS - 300_001, Refusal.FROM_THE_FUTURE),
    ],
)
def test_times_are_checked_against_our_clock(unix_ms: int, reason: Refusal):
    assert refusal_of(RECORD.seal(OWNER), unix_ms=unix_ms) == reason


def test_times_hold_to_the_last_millisecond():
    record = replace(RECORD, expires_ms=NOW_MS + 3_600_000)

    assert read(record.seal(OWNER), unix_ms=NOW_MS + 3_599_999) == record
    assert read(RECORD.seal(OWNER), unix_ms=NOW_MS - 300_000) == RECORD
    assert read(record.seal(OWNER)) == record
    assert refusal_of(replace(record, expires_ms=NOW_MS + 3_600_001).seal(OWNER)) == Refusal.LIFE_TOO_LONG


def test_another_network_is_refused():
    assert refusal_of(replace(RECORD, network_id=bytes(16)).seal(OWNER)) == Refusal.WRONG_NETWORK


def test_signature_of_another_is_refused():
    stranger = Identity.from_seed(bytes([1] * 32))

    assert refusal_of(seal(RecordKind.AGENT, pack(BODY), stranger)) == Refusal.BAD_SIGNATURE


def test_cheap_checks_come_before_the_signature():
    stranger = Identity.from_seed(bytes([1] * 32))
    expired_and_forged = seal(RecordKind.AGENT, pack(BODY | {"issued": 1, "expires": 2}), stranger)

    assert refusal_of(expired_and_forged) == Refusal.EXPIRED


@pytest.mark.parametrize("name", sorted(BODY))
def test_a_missing_field_is_malformed(name: str):
    assert refusal_of(sealed({key: value for key, value in BODY.items() if key != name})) == Refusal.MALFORMED


@pytest.mark.parametrize(
    "wrong",
    [
        {"key": bytes(31)},
        {"seq": 0},
        {"seq": True},
        {"seq": 1.0},
        {"seq": 2**63},
        {"issued": NOW_MS + 2, "expires": NOW_MS + 1},
        {"issued": -1},
        {"addresses": []},
        {"addresses": [b"10.0.0.1:9000"]},
        {"addresses": ["example.org:80"]},
        {"addresses": ["10.0.0.1:9000"] * 5},
        {"name": "n" * 65},
        {"role": "r" * 65},
        {"description": "d" * 201},
        {"description": None},
        {"capabilities": ["python"]},
        {"capabilities": [["python"]]},
        {"capabilities": [["Python", "", {}, b""]]},
        {"capabilities": [["", "", {}, b""]]},
        {"capabilities": [["a/b/c/d/e", "", {}, b""]]},
        {"capabilities": [["c" * 129, "", {}, b""]]},
        {"capabilities": [["pyth\0on", "", {}, b""]]},
        {"capabilities": [["\x1b[2Jpython", "", {}, b""]]},
        {"capabilities": [["\u202epython", "", {}, b""]]},  # it turns the writing round
        {"capabilities": [["\u0440ython", "", {}, b""]]},  # a Cyrillic letter that looks like p
        {"capabilities": [["\uff50ython", "", {}, b""]]},  # a full-width p: another spelling of one name
        {"capabilities": [["python", "v" * 33, {}, b""]]},
        {"capabilities": [["python", "", {}, bytes(31)]]},
        {"capabilities": [["python", "", {"a": None}, b""]]},
        {"capabilities": [["python", "", {"a": [None]}, b""]]},
        {"capabilities": [["python", "", {"a": [[1]]}, b""]]},
        {"capabilities": [["python", "", {"a": {"b": 1}}, b""]]},
        {"capabilities": [["python", "", {"a": [1] * 9}, b""]]},
        {"capabilities": [["python", "", {"a": ["t" * 65]}, b""]]},
        {"capabilities": [["python", "", {"a": [float("inf")]}, b""]]},
        {"capabilities": [["python", 3, {}, b""]]},
        {"capabilities": [["python", "", {"a": float("nan")}, b""]]},
        {"capabilities": [["python", "", {"a": 2**63}, b""]]},
        {"capabilities": [["python", "", {"a": "t" * 65}, b""]]},
        {"capabilities": [["python", "", {"a" * 65: 1}, b""]]},
        {"capabilities": [["python", "", {b"a": 1}, b""]]},
        {"capabilities": [["python", "", {str(i): i for i in range(9)}, b""]]},
        {"capabilities": [["python", "", {}, b""]] * 2},
        {"capabilities": [[f"c{i}", "", {}, b""] for i in range(17)]},
        {"capabilities": [[f"c{i}/a/b", "", {}, b""] for i in range(11)]},
    ],
    ids=str,
)
def test_a_field_beyond_its_bound_is_malformed(wrong: dict):
    assert refusal_of(sealed(BODY | wrong)) == Refusal.MALFORMED


@pytest.mark.parametrize("body", [None, [], "body", {}])
def test_a_body_of_another_shape_is_malformed(body: object):
    assert refusal_of(sealed(body)) == Refusal.MALFORMED


def test_bytes_that_are_no_msgpack_are_malformed():
    assert refusal_of(seal(RecordKind.AGENT, b"\xc1", OWNER)) == Refusal.MALFORMED


def test_a_record_over_its_size_is_refused_unread():
    assert refusal_of(sealed(BODY | {"later": bytes(1500)})) == Refusal.TOO_LARGE


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"name": "n" * 65}, "name has 65 characters; at most 64"),
        ({"description": "d" * 201}, "description has 201 characters; at most 200"),
        ({"addresses": ("example.org:80",)}, "'example.org:80' is not an IP address with a port"),
        ({"addresses": ()}, "reach 'none'"),
        ({"seq": 0}, "seq is 1 to"),
        (
            {"capabilities": tuple(CapabilityClaim(f"c{i}") for i in range(17))},
            "at most 16 capabilities, not 17",
        ),
        ({"capabilities": (CapabilityClaim("a"),) * 2}, "each capability once"),
        ({"capabilities": tuple(CapabilityClaim(f"c{i}/a/b") for i in range(11))}, "33 keys"),
    ],
)
def test_a_users_mistake_is_told_in_a_sentence(wrong: dict, sentence: str):
    with pytest.raises(ConfigError, match=sentence):
        replace(RECORD, **wrong)


def test_a_record_too_large_to_travel_is_not_sealed():
    attributes = {f"attribute-{i}": "x" * 60 for i in range(8)}
    record = replace(RECORD, capabilities=tuple(CapabilityClaim(f"c{i}", "", attributes) for i in range(4)))

    with pytest.raises(ConfigError, match="at most 1500 travel"):
        record.seal(OWNER)


def test_only_its_own_identity_seals_a_record():
    with pytest.raises(ConfigError, match="public key"):
        RECORD.seal(Identity.from_seed(bytes([1] * 32)))


def test_an_agent_that_cannot_be_dialed_needs_no_address():
    record = replace(RECORD, reach=Reach.NONE, addresses=())

    assert read(record.seal(OWNER)) == record


def test_records_are_hashable_values():
    assert len({RECORD, replace(RECORD), replace(RECORD, seq=8)}) == 2


# What was replaced is not taken for new again


def test_a_version_older_than_one_met_before_is_left_out():
    seen = NewestSeen()
    old, new = (replace(RECORD, seq=seq) for seq in (1, 2))

    assert seen.of([old]) == (old,)
    assert seen.of([new]) == (new,)
    assert seen.of([old]) == ()
    assert seen.of([new]) == (new,)


def test_the_owners_met_longest_ago_are_forgotten_first():
    seen = NewestSeen(max_owners=2)
    keys = [Identity.from_seed(bytes([number]) * 32).public_key for number in range(3)]
    first, second, third = (replace(RECORD, public_key=key) for key in keys)

    seen.of([first, second, first, third])

    assert len(seen) == 2
    assert seen.of([replace(second, seq=1)]) == (replace(second, seq=1),)


def test_a_withdrawal_keeps_its_names_and_needs_no_address():
    gone = replace(RECORD, seq=8, gone=Gone.NOW, addresses=())

    read_back = read(gone.seal(OWNER))

    assert read_back == gone
    assert read_back.indexed_names() == RECORD.indexed_names()


def test_a_record_that_lives_says_nothing_of_being_gone():
    assert "gone" not in unpack(open_envelope(RECORD.seal(OWNER), 1500).body, CONTROL_LIMITS)


def test_a_final_withdrawal_never_ends_and_nothing_else_has_the_last_number():
    final = replace(RECORD, seq=LAST_SEQ, expires_ms=LAST_SEQ, gone=Gone.FINAL)

    assert read(final.seal(OWNER), unix_ms=NOW_MS + 10**12).gone is Gone.FINAL
    for broken in ({"gone": None}, {"gone": Gone.NOW}, {"seq": 8}, {"expires_ms": NOW_MS + 1}):
        with pytest.raises(ConfigError):
            replace(final, **broken)


@pytest.mark.parametrize("word", [None, "now", "final", "for-a-walk", True, 1, b"now"])
def test_what_a_body_says_of_being_gone_is_read_or_malformed(word: Any):
    if word is None:
        assert read(sealed(BODY | {"gone": word})).gone is None
    elif type(word) is not str or word == "final":
        assert refusal_of(sealed(BODY | {"gone": word})) == Refusal.MALFORMED
    else:
        assert read(sealed(BODY | {"gone": word})).gone is Gone.NOW


@given(st.lists(CLAIMS, max_size=5, unique_by=lambda claim: claim.name), st.text(max_size=20))
def test_a_withdrawal_is_found_where_the_record_was_lives_as_long_and_is_no_larger(
    claims: list[CapabilityClaim], description: str
):
    record = replace(RECORD, capabilities=tuple(claims), description=description)

    gone = read(record.withdrawn(seq=8, issued_ms=NOW_MS + 5).seal(OWNER), unix_ms=NOW_MS + 5)

    assert (gone.gone, gone.seq, gone.owner) == (Gone.NOW, 8, record.owner)
    assert (gone.issued_ms, gone.expires_ms) == (NOW_MS + 5, record.expires_ms)
    assert gone.indexed_names() == record.indexed_names()
    assert len(gone.seal(OWNER)) <= len(record.seal(OWNER))


def test_a_withdrawal_needs_a_larger_number_and_a_record_that_lives():
    with pytest.raises(ConfigError, match="above its 7, not 7"):
        RECORD.withdrawn(seq=7, issued_ms=NOW_MS)
    with pytest.raises(ConfigError, match="expires after it was issued"):
        RECORD.withdrawn(seq=8, issued_ms=RECORD.expires_ms)


def test_a_revocation_is_final_and_is_found_where_the_record_was():
    final = RECORD.revoked(issued_ms=NOW_MS + 5)

    read_back = read(final.seal(OWNER), unix_ms=NOW_MS + 10**12)

    assert read_back == final
    assert (final.gone, final.seq, final.expires_ms) == (Gone.FINAL, LAST_SEQ, LAST_SEQ)
    assert final.indexed_names() == RECORD.indexed_names()
