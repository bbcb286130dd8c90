from __future__ import annotations

import operator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.agents.claim import CapabilityClaim
from dht.agents.query import Query, Wanted, parse_query
from dht.agents.record import AgentRecord, Reach
from synapse_p2p.exceptions import ConfigError, InvalidMessageError
from synapse_p2p.protocol.wire import CONTROL_LIMITS, pack, unpack

NAMES = st.sampled_from(["nlp", "nlp/en", "nlp/en/sum", "nlp-x", "parser"])
VERSIONS = st.sampled_from(["", "1.0.0", "2", "2.5.0", "3.0.0-rc.1", "3.0.0"])
ATTRIBUTES = st.dictionaries(
    st.sampled_from(["tier", "price", "lang"]),
    st.sampled_from(["gold", "silver", 1, 5, 9, True]) | st.lists(st.sampled_from(["de", "en", 1]), max_size=2),
    max_size=3,
)
CLAIMS = st.lists(
    st.builds(CapabilityClaim, NAMES, VERSIONS, ATTRIBUTES), max_size=4, unique_by=lambda claim: claim.name
)
RANGES = st.sampled_from(["", "/", ">=2", "/>=2", ">=2,<3", "/==2.5", "!=2", "<=3.0.0-rc.1"])
WANTED = st.lists(st.tuples(NAMES, RANGES), min_size=1, max_size=3)
WHERE = st.dictionaries(
    st.sampled_from(["tier", "price", "lang"]),
    st.sampled_from(["gold", 5, {"<": 6}, {">": 1, "<=": 9}, {"!=": "silver"}, {"in": ["de", "gold", 1]}, {"<": "f"}]),
    max_size=2,
)


def record_of(*claims: CapabilityClaim) -> AgentRecord:
    return AgentRecord(
        public_key=bytes(32),
        seq=1,
        issued_ms=1,
        expires_ms=2,
        network_id=bytes(16),
        addresses=(),
        reach=Reach.NONE,
        name="",
        role="",
        description="",
        capabilities=claims,
    )


# An oracle in the words of the specification, written apart from the code. It tries every choice of claims


def kind(value: Any) -> str:
    return "bool" if isinstance(value, bool) else "number" if isinstance(value, (int, float)) else "text"


SIGNS = {"=": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


def holds(word: str, value: Any, operand: Any) -> bool:
    if word == "in":
        return any(holds("=", value, each) for each in operand)
    return kind(value) == kind(operand) and SIGNS[word](value, operand)


def is_met(wanted: Any, attribute: Any) -> bool:
    comparisons = wanted if isinstance(wanted, dict) else {"=": wanted}
    values = attribute if isinstance(attribute, tuple) else (attribute,)
    if any(holds("=", value, comparisons["!="]) for value in values if "!=" in comparisons):
        return False
    return any(all(holds(word, value, operand) for word, operand in comparisons.items()) for value in values)


IN_RANGE = {
    "": {"", "1.0.0", "2", "2.5.0", "3.0.0-rc.1", "3.0.0"},
    ">=2": {"2", "2.5.0", "3.0.0"},
    ">=2,<3": {"2", "2.5.0"},
    "==2.5": {"2.5.0"},
    "!=2": {"1.0.0", "2.5.0", "3.0.0"},
    "<=3.0.0-rc.1": {"1.0.0", "2", "2.5.0", "3.0.0-rc.1"},
}


def takes(name: str, ending: str, claim: CapabilityClaim) -> bool:
    is_below = claim.name.split("/")[: name.count("/") + 1] == name.split("/") and claim.name != name
    may_be_below = ending.startswith("/") or not ending
    return (claim.name == name or (is_below and may_be_below)) and claim.version in IN_RANGE[ending.lstrip("/")]


def matches(claims: list[CapabilityClaim], wanted: list[tuple[str, str]], where: dict[str, Any]) -> bool:
    fitting = [
        claim
        for claim in claims
        if all(is_met(wish, claim.attributes[name]) for name, wish in where.items() if name in claim.attributes)
    ]
    taken = [[claim for claim in fitting if takes(name, ending, claim)] for name, ending in wanted]
    stated = {name for claims in taken for claim in claims for name in claim.attributes}
    return all(taken) and set(where) <= stated


@given(CLAIMS, WANTED, WHERE)
def test_a_query_matches_whom_the_oracle_matches(
    claims: list[CapabilityClaim], wanted: list[tuple[str, str]], where: dict[str, Any]
):
    query = parse_query([name + ending for name, ending in wanted], where)

    assert query.matches(record_of(*claims)) == matches(claims, wanted, where)


@given(WANTED, WHERE)
def test_a_query_travels(wanted: list[tuple[str, str]], where: dict[str, Any]):
    query = parse_query([name + ending for name, ending in wanted], where)

    assert Query.from_map(unpack(pack(query.to_map()), CONTROL_LIMITS)) == query


@given(CLAIMS, WANTED, WHERE, st.randoms(use_true_random=False))
def test_what_a_storer_leaves_out_of_a_query_lets_more_through_and_never_less(
    claims: list[CapabilityClaim], wanted: list[tuple[str, str]], where: dict[str, Any], chance: Any
):
    record = record_of(*claims)
    mapping = parse_query([name + ending for name, ending in wanted], where).to_map()
    future = {
        "wanted": [
            [name, below, [[chance.choice([symbol, "~~"]), version, "more"] for symbol, version in range_], "more"]
            for name, below, range_ in mapping["wanted"]
        ],
        "where": [[name, chance.choice([word, "near"]), operand, "more"] for name, word, operand in mapping["where"]],
        "later": 1,
    }

    if Query.from_map(mapping).matches(record):
        assert Query.from_map(future).matches(record)


def matching(query: Query, *claims: CapabilityClaim) -> list[str]:
    return [claim.name + claim.version for claim in claims if query.matches(record_of(claim))]


def test_a_name_takes_what_is_below_it_and_a_range_does_where_that_is_said():
    claims = [
        CapabilityClaim("parser", "2.0.0"),
        CapabilityClaim("parser/html", "2.1.0"),
        CapabilityClaim("parser2", "2.0.0"),
        CapabilityClaim("parser", "3.0.0"),
        CapabilityClaim("parser"),
    ]

    every = ["parser2.0.0", "parser/html2.1.0", "parser3.0.0", "parser"]
    assert matching(parse_query(["parser"]), *claims) == every
    assert matching(parse_query(["Parser/"]), *claims) == every
    assert matching(parse_query(["parser>=2,<3"]), *claims) == ["parser2.0.0"]
    assert matching(parse_query([" parser/ >= 2, < 3 "]), *claims) == ["parser2.0.0", "parser/html2.1.0"]


def test_one_agent_has_to_have_all_capabilities():
    python, review = CapabilityClaim("python"), CapabilityClaim("code-review")
    query = parse_query(["python", "code-review"])

    assert query.matches(record_of(python, review))
    assert not query.matches(record_of(python))


def test_where_is_about_one_claim_where_one_capability_is_asked_for():
    query = parse_query(["nlp/"], {"tier": "gold", "price": {"<": 5}, "lang": {"in": ["de", "en"]}})
    fine = CapabilityClaim("nlp/a", "", {"tier": "gold", "price": 4, "lang": ["fr", "de"]})
    dear = CapabilityClaim("nlp/b", "", {"tier": "gold", "price": 9, "lang": ["de"]})
    cheap = CapabilityClaim("nlp/c", "", {"tier": "silver", "price": 1, "lang": ["en"]})

    assert query.matches(record_of(fine))
    assert query.matches(record_of(dear, fine))
    assert not query.matches(record_of(dear, cheap))


def test_an_attribute_may_stand_at_one_of_several_capabilities_and_must_not_be_contradicted_at_another():
    query = parse_query(["python", "code-review"], {"tier": "gold", "price": {"<": 5}})
    gold, cheap = CapabilityClaim("python", "", {"tier": "gold"}), CapabilityClaim("code-review", "", {"price": 1})

    assert query.matches(record_of(gold, cheap))
    assert not query.matches(record_of(CapabilityClaim("python", "", {"tier": "gold", "price": 100}), cheap))
    assert not query.matches(record_of(CapabilityClaim("python"), cheap))
    assert not query.matches(record_of(CapabilityClaim("python"), cheap, CapabilityClaim("rust", "", {"tier": "gold"})))


def test_a_query_says_which_names_lead_to_its_agents_and_whether_they_all_match():
    query = parse_query(["parser/>=2", "nlp", "parser>=2,<3"], {"price": {"<": 5}})

    assert query.names == ("parser", "nlp")
    assert parse_query(["nlp"]).is_met_by_name
    assert parse_query(["nlp/", "nlp"]).is_met_by_name
    assert not any(each.is_met_by_name for each in (query, parse_query(["nlp>1"]), parse_query(["nlp"], {"x": 1})))


def test_a_query_is_shown_as_it_is_typed():
    query = parse_query(["Parser >=2, <3", "nlp/"], {"price": {"<": 5}, "lang": {"in": ["de", "en"]}})

    assert str(query) == "parser>=2.0.0,<3.0.0, nlp/ where price < 5 and lang in ['de', 'en']"
    assert str(parse_query(["nlp"])) == "nlp"


def test_a_capability_that_is_asked_for_twice_is_asked_for_once():
    assert parse_query(["nlp", "NLP"]).wanted == (Wanted("nlp"),)


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        ([], r'name at least one capability, as in find\("code-review"\)'),
        ("nlp", r"names a list of capabilities: write \['nlp'\]"),
        ([""], "empty segment"),
        (["/"], "empty segment"),
        ([">=2"], "empty segment"),
        (["nlp//"], "empty segment"),
        (["nlp*"], r"contains '\*'"),
        ([7], "text, not int"),
        (["parser 2"], "contains ' '"),
        (["parser>=two"], "capability 'parser>=two': 'two' is no semantic version"),
        (["parser>=3,<2"], "capability 'parser>=3,<2': no version is in the range"),
        (["parser~=1.4"], "write '>=1.4,<2'"),
        (["a/b/c/d/e/"], "5 segments"),
        ([f"c{number}" for number in range(9)], "at most 8 capabilities, not 9"),
    ],
    ids=str,
)
def test_a_mistake_is_told_in_a_sentence(wanted: Any, sentence: str):
    with pytest.raises(ConfigError, match=sentence):
        parse_query(wanted)


@pytest.mark.parametrize(
    "mapping",
    [
        None,
        [],
        {},
        {"wanted": []},
        {"wanted": "nlp"},
        {"wanted": [["nlp", False, []]] * 9},
        {"wanted": [["nlp"]]},
        {"wanted": [["nlp", 0, []]]},
        {"wanted": [["nlp", False, None]]},
        {"wanted": [["NLP", False, []]]},
        {"wanted": [["", False, []]]},
        {"wanted": [["nlp/", True, []]]},
        {"wanted": [[b"nlp", False, []]]},
        {"wanted": [["nlp", False, [">="]]]},
        {"wanted": [["nlp", False, [[">=", 2]]]]},
        {"wanted": [["nlp", False, [[">=", ""]]]]},
        {"wanted": [["nlp", False, [[">=", "two"]]]]},
        {"wanted": [["nlp", False, [[">=", "1"]] * 5]]},
        {"wanted": [["nlp", False, []]], "where": {}},
        {"wanted": [["nlp", False, []]], "where": [["x", "=", None]]},
    ],
    ids=lambda mapping: str(mapping)[:60],
)
def test_what_is_no_query_is_refused(mapping: Any):
    with pytest.raises(InvalidMessageError):
        Query.from_map(mapping)


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.sampled_from(["nlp", "=", "<", "in", ">=", "1.0.0", "x"])
    | st.binary(max_size=2),
    lambda items: st.lists(items, max_size=4),
    max_leaves=8,
)


@given(st.fixed_dictionaries({}, optional={"wanted": st.lists(JUNK, max_size=2), "where": JUNK}) | JUNK)
def test_hostile_bytes_are_a_query_that_can_be_asked_or_an_invalid_message(mapping: Any):
    try:
        query = Query.from_map(unpack(pack(mapping), CONTROL_LIMITS))
    except InvalidMessageError:
        return

    query.matches(record_of(CapabilityClaim("nlp", "1.0.0", {"x": [1, "x"]})))
    assert Query.from_map(query.to_map()) == query
