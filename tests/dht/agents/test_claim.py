from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.agents.claim import CapabilityClaim, Difference, claims_of, descriptor_of
from synapse_p2p.capability import AgentCapability
from synapse_p2p.exceptions import ConfigError
from synapse_p2p.protocol.wire import CONTROL_LIMITS, TASK_LIMITS, pack, unpack

DIFF = {"type": "object", "properties": {"diff": {"type": "string"}}, "required": ["diff"]}
REVIEW = AgentCapability(
    "Code-Review",
    description="Reads a diff.",
    input_schema=DIFF,
    output_schema={"type": "string", "maxLength": 1e3},
    version="2.1",
    attributes={"tier": "gold", "price": 0.5, "workers": 4, "gpu": False, "lang": ["de", "en"]},
)
[CLAIM] = claims_of([REVIEW])


def answer_of(*capabilities: AgentCapability) -> list[dict[str, Any]]:
    """What an agent answers, as it comes out of the wire."""
    return unpack(pack(list(capabilities)), TASK_LIMITS)


# What a record says of capabilities


def test_a_claim_is_in_its_normal_form():
    assert (
        CapabilityClaim(
            "code-review",
            "2.1.0",
            {"tier": "gold", "price": 0.5, "workers": 4, "gpu": False, "lang": ("de", "en")},
            REVIEW.schema_digest(),
        )
        == CLAIM
    )
    assert claims_of([AgentCapability("python")]) == (CapabilityClaim("python"),)
    assert claims_of([]) == ()


def test_a_claim_travels_as_a_list():
    travelled = unpack(pack(CLAIM.to_list()), CONTROL_LIMITS)

    assert travelled == [CLAIM.name, CLAIM.version, dict(REVIEW.attributes), CLAIM.digest]
    assert CapabilityClaim(*travelled) == CLAIM


def test_spellings_of_one_capability_are_one_claim():
    same = copy.deepcopy(REVIEW)
    same.name, same.version, same.description = "CODE-REVIEW", "2.1.0", "described otherwise"

    assert claims_of([REVIEW, AgentCapability("python"), same]) == (CLAIM, CapabilityClaim("python"))


@pytest.mark.parametrize(
    "other",
    [
        {"version": "2.1.1"},
        {"attributes": REVIEW.attributes | {"price": 1}},
        {"attributes": REVIEW.attributes | {"gpu": 0}},
        {"input_schema": {}},
    ],
    ids=str,
)
def test_capabilities_of_one_name_have_to_agree(other: dict[str, Any]):
    changed = copy.deepcopy(REVIEW)
    for name, value in other.items():
        setattr(changed, name, value)

    with pytest.raises(ConfigError, match=r"'code-review' once normalised, and .* differ: give one another name"):
        claims_of([REVIEW, changed])


@pytest.mark.parametrize(
    ("capability", "sentence"),
    [
        (AgentCapability("code review"), "'code review' contains ' '"),
        (AgentCapability("a", version="latest"), "capability 'a': 'latest' is no semantic version"),
        (AgentCapability("a", version="v" * 33), "capability 'a': .* at most 32 travel"),
        (AgentCapability("a", attributes={"b": None}), "attribute 'b' of 'a' is NoneType"),
        (AgentCapability("a", attributes={"b": float("nan")}), "nothing compares with that"),
        (AgentCapability("a", attributes={"b": [[1]]}), "a value of attribute 'b' of 'a' is list"),
        (AgentCapability("a", attributes={"b": [1] * 9}), "has 9 values; at most 8"),
        (AgentCapability("a", attributes={"b": 2**63}), "more than 63 bits"),
        (AgentCapability("a", attributes={str(n): n for n in range(9)}), "9 attributes; at most 8"),
        (AgentCapability("a", attributes=["b"]), "attributes of 'a' are a map, not list"),
        (AgentCapability("a", input_schema={"const": b""}), "a schema of capability 'a' is no JSON"),
    ],
    ids=lambda part: part if isinstance(part, str) else "-",
)
def test_what_does_not_fit_a_record_is_told_in_a_sentence(capability: AgentCapability, sentence: str):
    with pytest.raises(ConfigError, match=sentence):
        claims_of([capability])


def test_a_name_is_claimed_in_its_normal_form():
    with pytest.raises(ConfigError, match="write 'python'"):
        CapabilityClaim("Python")


def test_a_claim_does_not_change_with_the_map_it_was_made_of():
    attributes = {"lang": ["de"]}
    claim = CapabilityClaim("a", "", attributes)

    attributes["lang"].append("en")
    attributes["tier"] = "gold"

    assert claim == CapabilityClaim("a", "", {"lang": ("de",)})


# Whether a descriptor is what was claimed


def test_the_descriptor_that_keeps_its_claim_is_found_among_others():
    others = AgentCapability("not a name at all"), AgentCapability("python", version="7")

    described = descriptor_of(answer_of(*others, REVIEW), CLAIM)

    assert described == REVIEW


def test_an_agent_of_an_earlier_release_keeps_a_claim_of_nothing_more():
    answer = [{"name": "python", "description": "", "input_schema": {}, "output_schema": {}}]

    assert descriptor_of(answer, CapabilityClaim("python")) == AgentCapability("python")
    assert descriptor_of(answer, CapabilityClaim("python", "1.0.0")) is Difference.VERSION


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        ({"name": "python"}, Difference.MISSING),
        ({"name": 7}, Difference.MISSING),
        ({"version": "2.1.1"}, Difference.VERSION),
        ({"version": "2.1.0+5"}, Difference.VERSION),
        ({"version": "latest"}, Difference.VERSION),
        ({"version": 2}, Difference.MALFORMED),
        ({"attributes": {}}, Difference.ATTRIBUTES),
        ({"attributes": REVIEW.attributes | {"gpu": 0}}, Difference.ATTRIBUTES),
        ({"attributes": REVIEW.attributes | {"lang": ["en", "de"]}}, Difference.ATTRIBUTES),
        ({"attributes": REVIEW.attributes | {"lang": None}}, Difference.MALFORMED),
        ({"attributes": ["tier"]}, Difference.MALFORMED),
        ({"input_schema": {}}, Difference.SCHEMAS),
        ({"input_schema": DIFF | {"required": []}}, Difference.SCHEMAS),
        ({"input_schema": {1: 2}}, Difference.MALFORMED),
        ({"input_schema": {"const": b""}}, Difference.MALFORMED),
        ({"output_schema": None}, Difference.MALFORMED),
        ({"description": 1}, Difference.MALFORMED),
    ],
    ids=str,
)
def test_what_differs_is_named(changed: dict[str, Any], difference: Difference):
    [item] = answer_of(REVIEW)

    assert descriptor_of([item | changed], CLAIM) is difference


def test_what_means_the_same_keeps_the_claim():
    [item] = answer_of(REVIEW)
    item |= {"version": "2.1.0", "attributes": dict(reversed((REVIEW.attributes | {"workers": 4.0}).items()))}
    item["output_schema"]["maxLength"] = 1000

    assert isinstance(descriptor_of([item], CLAIM), AgentCapability)


def test_of_two_descriptors_of_one_name_the_one_that_keeps_the_claim_counts():
    [item] = answer_of(REVIEW)

    assert descriptor_of([item | {"version": "1.0.0"}, item], CLAIM) == REVIEW
    assert descriptor_of([item | {"version": "1.0.0"}], CLAIM) is Difference.VERSION


@pytest.mark.parametrize("answer", [None, {}, "python", [{}] * 257], ids=lambda answer: str(answer)[:20])
def test_an_answer_that_is_no_list_of_descriptors_is_malformed(answer: Any):
    assert descriptor_of(answer, CLAIM) is Difference.MALFORMED


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=4) | st.binary(),
    lambda items: st.lists(items, max_size=3) | st.dictionaries(st.text(max_size=3) | st.binary(max_size=2), items),
    max_leaves=6,
)
FIELDS = st.sampled_from(["name", "version", "attributes", "input_schema", "output_schema", "description"])


@given(JUNK | st.lists(st.dictionaries(FIELDS, st.just("code-review") | JUNK, max_size=6), max_size=3))
def test_no_answer_of_a_peer_is_an_error_here(answer: Any):
    assert isinstance(descriptor_of(answer, CLAIM), Difference)
