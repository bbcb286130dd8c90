"""What is typed becomes values, or an error that shows the form wanted."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dht.agents.where import parse_where
from synapse_p2p.apps.cli.arguments import call_arguments, context_of, value_of, where_of
from synapse_p2p.exceptions import ConfigError

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(), lambda inner: st.lists(inner, max_size=3)
)


@settings(max_examples=30)
@given(json_values)
def test_what_is_json_is_that_value(value: object):
    assert value_of(json.dumps(value)) == value


@pytest.mark.parametrize("text", ["gold", "Review this diff", "", "1.2.3", "{x", "'5'", "None", "True"])
def test_what_is_no_json_is_text(text: str):
    assert value_of(text) == text


def test_conditions_are_those_of_find():
    conditions = ["price<5", "price >= 1", "tier=gold", "lang in de, en", "name != x=y", 'zip="01"']

    where = where_of(conditions)

    assert where == {
        "price": {"<": 5, ">=": 1},
        "tier": {"=": "gold"},
        "lang": {"in": ["de", "en"]},
        "name": {"!=": "x=y"},
        "zip": {"=": "01"},
    }
    assert parse_where(where)


def test_no_conditions_are_none():
    assert where_of([]) is None


@pytest.mark.parametrize("condition", ["price", "", "=5", "price~5", "a b"])
def test_what_is_no_condition_is_refused_with_examples(condition: str):
    with pytest.raises(ConfigError, match="write 'price<5', tier=gold"):
        where_of([condition])


@pytest.mark.parametrize("condition", ["price<", "price <= ", "tier=", "lang in ", "lang in de,,en"])
def test_a_condition_without_a_value_is_refused(condition: str):
    with pytest.raises(ConfigError, match="lacks a value; write 'price<5'"):
        where_of([condition])


def test_no_text_at_all_is_a_value():
    assert where_of(['tier=""']) == {"tier": {"=": ""}}


def test_the_same_condition_twice_is_refused():
    with pytest.raises(ConfigError, match="says price < twice"):
        where_of(["price<5", "price<6"])


def test_pairs_go_over_the_context_file():
    context = context_of(["diff=+ one", "count=3", "note=a=b"], '{"count": 1, "who": "me"}')

    assert context == {"count": 3, "who": "me", "diff": "+ one", "note": "a=b"}


@pytest.mark.parametrize(
    ("pairs", "text", "said"),
    [
        (["diff"], None, "is not key=value"),
        (["=x"], None, "is not key=value"),
        ([], "[1]", "has to hold a JSON object"),
        ([], "{", "is no JSON"),
    ],
)
def test_a_context_that_is_none_is_refused(pairs: list[str], text: str | None, said: str):
    with pytest.raises(ConfigError, match=said):
        context_of(pairs, text)


def test_positions_come_before_names_and_quotes_make_text_of_what_looks_like_a_name():
    assert call_arguments(["2", "three", '"a=2"', "b=4", 'c={"d": 1}']) == (
        [2, "three", "a=2"],
        {"b": 4, "c": {"d": 1}},
    )
    assert call_arguments(["2+2=4"]) == (["2+2=4"], {})
    with pytest.raises(ConfigError, match="stands behind named ones"):
        call_arguments(["a=1", "2"])
    with pytest.raises(ConfigError, match="given twice"):
        call_arguments(["a=1", "a=2"])
