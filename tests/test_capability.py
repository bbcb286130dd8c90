from __future__ import annotations

import hashlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synapse_p2p.capability import MAX_NAME_BYTES, AgentCapability, ancestors, normalize_capability
from synapse_p2p.exceptions import ConfigError

SEGMENT = st.text("abcxyz0189._-", min_size=1, max_size=12)
NORMAL_NAME = st.lists(SEGMENT, min_size=1, max_size=4).map("/".join)


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("code-review", "code-review"),
        ("Code-Review", "code-review"),
        ("NLP/Summarization", "nlp/summarization"),
        ("\uff30ython", "python"),  # a full-width P
        ("\u212aafka", "kafka"),  # the Kelvin sign
    ],
)
def test_spellings_of_one_name_become_one(written: str, normal: str):
    assert normalize_capability(written) == normal


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("", "empty segment"),
        ("nlp/", "empty segment"),
        ("/nlp", "empty segment"),
        ("a//b", "empty segment"),
        ("a/b/c/d/e", "5 segments"),
        ("code review", "' '"),
        ("überprüfung", "'ü'"),
        ("a" * 129, "more than 128"),
        ("a" * 1024, "more than 128"),
        ("a\0b", r"'\x00'"),
        ("\u0441ode", "'\u0441'"),  # a Cyrillic letter that looks like c
        ("*", "'*'"),
        ("\ufdfa", "contains"),
        (7, "text, not int"),
    ],
)
def test_a_name_outside_the_rule_is_refused_with_what_is_wrong(name: str, complaint: str):
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        normalize_capability(name)


def test_a_name_that_grows_past_the_limit_when_normalised_is_refused():
    name = "\u2026" * 50  # an ellipsis is three dots to NFKC

    with pytest.raises(ConfigError, match="once normalised"):
        normalize_capability(name)


@given(NORMAL_NAME)
def test_a_normal_name_stays_as_it_is(name: str):
    assert normalize_capability(name) == name


@given(st.text(max_size=40))
def test_what_is_accepted_obeys_the_rule_and_normalises_to_itself(name: str):
    try:
        normal = normalize_capability(name)
    except ConfigError:
        return

    assert re.fullmatch(r"[a-z0-9._-]+(/[a-z0-9._-]+){0,3}", normal)
    assert len(normal.encode()) <= MAX_NAME_BYTES
    assert normalize_capability(normal) == normal


def test_ancestors_are_the_broader_names_broadest_first():
    assert ancestors("a") == ()
    assert ancestors("a/b/c") == ("a", "a/b")


@given(NORMAL_NAME)
def test_a_name_begins_with_each_of_its_ancestors(name: str):
    assert all(name.startswith(ancestor + "/") for ancestor in ancestors(name))
    assert len(ancestors(name)) == name.count("/")


def test_descriptors_do_not_share_their_schemas():
    first, second = AgentCapability("a"), AgentCapability("b")

    first.input_schema["type"] = "object"

    assert second.input_schema == {}


def test_what_is_new_in_a_descriptor_comes_after_what_was_there():
    capability = AgentCapability("a", "described", {"type": "object"}, {}, "1.2", {"lang": ["de", "en"]})

    assert capability == AgentCapability(
        "a", description="described", input_schema={"type": "object"}, version="1.2", attributes={"lang": ["de", "en"]}
    )


# The digest of schemas

DIFF = {"type": "object", "properties": {"diff": {"type": "string"}}, "required": ["diff"]}


def test_a_capability_without_schemas_has_no_digest():
    assert AgentCapability("a", "described", version="1.0", attributes={"tier": "gold"}).schema_digest() == b""


def test_the_digest_is_of_both_schemas_and_of_nothing_else():
    first = AgentCapability("a", "described", DIFF, {"type": "string"}, version="1.0", attributes={"tier": "gold"})
    turned = {"required": ["diff"], "type": "object", "properties": {"diff": {"type": "string"}}}

    assert len(first.schema_digest()) == 32
    assert AgentCapability("b", "", turned, {"type": "string"}).schema_digest() == first.schema_digest()
    assert AgentCapability("a", "", {"type": "string"}, DIFF).schema_digest() != first.schema_digest()
    assert AgentCapability("a", "", DIFF).schema_digest() != AgentCapability("a", "", {}, DIFF).schema_digest()


def test_the_digest_is_that_of_the_text_in_the_specification():
    capability = AgentCapability("a", "", {"minLength": 1.0, "type": "string"})
    text = b'synapse-schemas:v1:{"input":{"minLength":1,"type":"string"},"output":{}}'

    assert capability.schema_digest() == hashlib.sha256(text).digest()


@pytest.mark.parametrize("schema", [{"const": float("nan")}, {"const": b"x"}, {1: "x"}], ids=str)
def test_a_schema_that_json_cannot_say_has_no_digest(schema: dict):
    with pytest.raises(ConfigError, match="a schema of capability 'a' is no JSON"):
        AgentCapability("a", input_schema=schema).schema_digest()
