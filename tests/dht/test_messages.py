import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.agents.shards import ShardReport
from dht.contact import Contact
from dht.messages import (
    Exchange,
    ExchangeAnswer,
    FindNode,
    FindNodeAnswer,
    FindValue,
    FindValueAnswer,
    Offer,
    Ping,
    PingAnswer,
    RecordPlace,
    Renew,
    RenewAnswer,
    Store,
    StoreAnswer,
)
from dht.records import Refusal
from synapse_p2p.exceptions import InvalidMessageError
from synapse_p2p.protocol.wire import CONTROL_LIMITS, pack, unpack

KEYS = st.binary(min_size=32, max_size=32)
DEPTHS = st.integers(0, 64)
COUNTS = st.integers(0, 2**63 - 1)
RECORDS = st.binary(max_size=50)
NAMES = st.none() | st.text(max_size=128)
CONTACT = Contact(bytes(range(32)), ("10.0.0.1:9000", "[::1]:9001"))
CONTACTS = st.integers(0, 20).map(lambda count: (CONTACT,) * count)
OFFERS = st.lists(st.builds(Offer, COUNTS, KEYS, KEYS, COUNTS), max_size=3).map(tuple)
WANTED = st.sets(st.integers(0, 255), max_size=5).map(lambda places: tuple(sorted(places)))

PLACES = st.lists(st.builds(RecordPlace, st.text(max_size=128), DEPTHS), min_size=1, max_size=4, unique=True).map(tuple)
REPORTS = st.none() | st.builds(ShardReport, COUNTS, DEPTHS, st.booleans(), COUNTS)


def place_answer(refusal: str | None, report: ShardReport | None, contacts: tuple[Contact, ...]) -> StoreAnswer:
    return StoreAnswer(refusal is None, refusal, None, contacts, report=report)


MESSAGES = st.one_of(
    st.builds(Ping, st.booleans(), st.booleans()),
    st.builds(PingAnswer, COUNTS, st.booleans()),
    st.builds(FindNode, KEYS, st.none() | KEYS),
    st.builds(FindNodeAnswer, CONTACTS),
    st.builds(FindValue, KEYS, NAMES, DEPTHS, st.binary(max_size=8), st.binary(max_size=16), COUNTS),
    st.builds(
        FindValueAnswer,
        st.lists(RECORDS, max_size=3).map(tuple),
        COUNTS,
        DEPTHS,
        st.booleans(),
        COUNTS,
        CONTACTS,
    ),
    st.builds(Store, RECORDS, NAMES, DEPTHS, st.none() | COUNTS, OFFERS),
    st.builds(Store, st.none(), NAMES, DEPTHS, st.none(), OFFERS.filter(bool)),
    st.builds(StoreAnswer, st.booleans(), st.none() | st.sampled_from(Refusal), st.none() | RECORDS, CONTACTS, WANTED),
    PLACES.flatmap(
        lambda places: st.builds(Renew, st.binary(max_size=256), st.just(places), st.integers(0, len(places)))
    ),
    st.lists(st.builds(place_answer, st.none() | st.sampled_from(Refusal), REPORTS, CONTACTS), max_size=3)
    .map(tuple)
    .map(RenewAnswer),
    st.builds(Exchange, st.integers(1, 20)),
    st.builds(ExchangeAnswer, CONTACTS),
)
KINDS = [
    Ping, PingAnswer, FindNode, FindNodeAnswer, FindValue, FindValueAnswer, Store, StoreAnswer, Exchange,
    ExchangeAnswer, Renew, RenewAnswer,
]  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=6,
)
NAMES_OF_FIELDS = sorted({name for kind in KINDS for name in kind.__dataclass_fields__})


@given(MESSAGES)
def test_every_message_survives_the_wire(message):
    wire = unpack(pack(message.to_map()), CONTROL_LIMITS)

    assert type(message).from_map(wire) == message


@given(MESSAGES)
def test_the_wire_names_the_fields_and_ignores_keys_from_the_future(message):
    fields = message.to_map()

    assert (
        set(fields) | {"expected_seq", "offers", "wanted", "skip", "next", "query", "report", "prove", "dials"}
        >= set(type(message).__dataclass_fields__)
        >= set(fields)
    )
    assert type(message).from_map(fields | {"contacts": fields.get("contacts"), "later": [1]}) == message


@given(st.sampled_from(KINDS), st.dictionaries(st.sampled_from(NAMES_OF_FIELDS), VALUES) | VALUES)
def test_anything_at_all_is_a_message_or_refused(kind, value):
    try:
        message = kind.from_map(value)
    except InvalidMessageError:
        return

    assert kind.from_map(message.to_map()) == message


def test_absent_keys_are_the_defaults():
    key = bytes(32)

    assert FindNode.from_map({"target": key}) == FindNode(key)
    assert FindValue.from_map({"key": key}) == FindValue(key)
    assert Store.from_map({"record": b"r"}) == Store(b"r", None)


WIRE_CONTACTS = [[bytes(32), ["10.0.0.1:1"]]]
OFFER = [1, bytes(32), bytes(32), 1]
FOUND = FindValueAnswer((), 0, 0, False, 0, ()).to_map()
PLACE = ["python", 0]
RENEW = {"renewal": b"", "places": [PLACE]}
STORED = StoreAnswer(True, None, None, ()).to_map()


@pytest.mark.parametrize(
    ("kind", "wire", "field"),
    [
        (PingAnswer, {}, "unix_ms"),
        (PingAnswer, {"unix_ms": True}, "unix_ms"),
        (PingAnswer, {"unix_ms": -1}, "unix_ms"),
        (PingAnswer, {"unix_ms": 1.5}, "unix_ms"),
        (FindNode, {}, "target"),
        (FindNode, {"target": bytes(31)}, "target"),
        (FindNode, {"target": "t" * 32}, "target"),
        (FindNode, {"target": bytes(32), "radius": bytes(33)}, "radius"),
        (FindNodeAnswer, {}, "contacts"),
        (FindNodeAnswer, {"contacts": None}, "contacts"),
        (FindNodeAnswer, {"contacts": WIRE_CONTACTS * 65}, "contacts"),
        (FindValue, {"key": b""}, "key"),
        (FindValue, {"key": bytes(32), "capability": b"python"}, "capability"),
        (FindValue, {"key": bytes(32), "capability": "c" * 129}, "capability"),
        (FindValue, {"key": bytes(32), "depth": 65}, "depth"),
        (FindValue, {"key": bytes(32), "prefix": bytes(9)}, "prefix"),
        (FindValue, {"key": bytes(32), "nonce": bytes(17)}, "nonce"),
        (FindValue, {"key": bytes(32), "limit": -1}, "limit"),
        (FindValueAnswer, FOUND | {"records": [b""] * 1001}, "records"),
        (FindValueAnswer, FOUND | {"records": [bytes(17 * 1024 + 1)]}, "records"),
        (FindValueAnswer, FOUND | {"records": ["text"]}, "records"),
        (FindValueAnswer, FOUND | {"count": None}, "count"),
        (FindValueAnswer, FOUND | {"full": 1}, "full"),
        (FindValueAnswer, FOUND | {"estimate": 2**63}, "estimate"),
        (Store, {}, "record"),
        (Store, {"record": bytes(17 * 1024 + 1)}, "record"),
        (Store, {"record": None}, "record"),
        (Store, {"record": b"", "expected_seq": -1}, "expected_seq"),
        (Store, {"record": b"", "offers": None}, "offers"),
        (Store, {"record": b"", "offers": [OFFER] * 257}, "offers"),
        (Store, {"offers": [OFFER[:3]]}, "offers"),
        (Store, {"offers": [[True, *OFFER[1:]]]}, "kind"),
        (Store, {"offers": [[1, b"", *OFFER[2:]]]}, "key"),
        (Store, {"offers": [[*OFFER[:2], bytes(31), 1]]}, "owner"),
        (Store, {"offers": [[*OFFER[:3], 2**63]]}, "seq"),
        (StoreAnswer, STORED | {"wanted": [1, 1]}, "wanted"),
        (StoreAnswer, STORED | {"wanted": [2, 1]}, "wanted"),
        (StoreAnswer, STORED | {"wanted": [256]}, "wanted"),
        (StoreAnswer, STORED | {"wanted": [True]}, "wanted"),
        (StoreAnswer, STORED | {"wanted": None}, "wanted"),
        (StoreAnswer, STORED | {"stored": None}, "stored"),
        (StoreAnswer, STORED | {"refusal": "r" * 65}, "refusal"),
        (StoreAnswer, STORED | {"newer": bytes(17 * 1024 + 1)}, "newer"),
        (Renew, {"places": [PLACE]}, "renewal"),
        (Renew, RENEW | {"renewal": bytes(257)}, "renewal"),
        (Renew, RENEW | {"places": None}, "places"),
        (Renew, RENEW | {"places": []}, "places"),
        (Renew, RENEW | {"places": [[f"skill-{n}", 0] for n in range(65)]}, "places"),
        (Renew, RENEW | {"places": [PLACE, PLACE]}, "places"),
        (Renew, RENEW | {"places": [["python"]]}, "places"),
        (Renew, RENEW | {"places": [[b"python", 0]]}, "places"),
        (Renew, RENEW | {"places": [["c" * 129, 0]]}, "places"),
        (Renew, RENEW | {"places": [["python", 65]]}, "depth"),
        (Renew, RENEW | {"places": [["python", False]]}, "depth"),
        (Renew, RENEW | {"watched": 2}, "watched"),
        (Renew, RENEW | {"watched": None}, "watched"),
        (RenewAnswer, {}, "places"),
        (RenewAnswer, {"places": [[None, None, []]] * 65}, "places"),
        (RenewAnswer, {"places": [[None, None]]}, "places"),
        (RenewAnswer, {"places": [["r" * 65, None, []]]}, "refusal"),
        (RenewAnswer, {"places": [[None, [1], []]]}, "report"),
        (RenewAnswer, {"places": [[None, None, WIRE_CONTACTS * 33]] * 2}, "contacts"),
        (Exchange, {"count": 0}, "count"),
        (Exchange, {"count": 21}, "count"),
        (ExchangeAnswer, {"contacts": WIRE_CONTACTS * 21}, "contacts"),
        (Exchange, [1], "map"),
    ],
)
def test_a_wrong_field_is_refused_by_name(kind, wire, field: str):
    with pytest.raises(InvalidMessageError, match=field):
        kind.from_map(wire)
