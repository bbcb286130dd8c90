from __future__ import annotations

import math
import operator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.agents.claim import CapabilityClaim
from dht.agents.where import Operator, parse_where, read_where, where_to_list
from synapse_p2p.exceptions import ConfigError, InvalidMessageError
from synapse_p2p.protocol.wire import CONTROL_LIMITS, pack, unpack

# Few values, of which many are nearly the same
SCALARS = st.sampled_from([0, 1, 2, 3, 0.0, 1.0, 1.5, -1, True, False, "", "a", "b", "B", "1", "é"])
VALUES = SCALARS | st.lists(SCALARS, max_size=3)
ORDERED = SCALARS.filter(lambda value: type(value) is not bool)
COMPARISONS = st.dictionaries(
    st.sampled_from(["=", "!=", "<", "<=", ">", ">="]), ORDERED, max_size=3
) | st.fixed_dictionaries({"in": st.lists(SCALARS, min_size=1, max_size=3)}, optional={"<": ORDERED, "!=": SCALARS})


# An oracle in the words of the specification, written apart from the code


def kind(value: Any) -> str:
    return "bool" if isinstance(value, bool) else "number" if isinstance(value, (int, float)) else "text"


def holds(word: str, value: Any, operand: Any) -> bool:
    if word == "in":
        return any(holds("=", value, each) for each in operand)
    signs = {"=": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le}
    signs |= {">": operator.gt, ">=": operator.ge}
    return kind(value) == kind(operand) and signs[word](value, operand)


def is_met(wanted: Any, attribute: Any) -> bool:
    comparisons = wanted if isinstance(wanted, dict) else {"=": wanted}
    values = attribute if isinstance(attribute, list) else [attribute]
    if any(holds("=", value, comparisons["!="]) for value in values if "!=" in comparisons):
        return False
    return any(all(holds(word, value, operand) for word, operand in comparisons.items()) for value in values)


@given(SCALARS | COMPARISONS, VALUES)
def test_a_condition_holds_where_the_oracle_says_so(wanted: Any, attribute: Any):
    claim = CapabilityClaim("a", "", {"x": attribute})
    try:
        [condition] = parse_where({"x": wanted})
    except ConfigError:
        # Empty, or refused since nothing can meet it.
        assert wanted == {} or not is_met(wanted, attribute)
        return

    assert condition.is_contradicted_by(claim) is not is_met(wanted, attribute)
    assert condition.is_stated_by([claim])


@pytest.mark.parametrize(
    ("wanted", "met", "not_met"),
    [
        ("gold", ["gold", ["silver", "gold"]], ["Gold", "silver", [], 1, True, ["silver"]]),
        (1, [1, 1.0], [True, "1", 2]),
        (True, [True, [1, True]], [1, "True", False]),
        ({"<": 5}, [4, 4.9, -1.0, [9, 1]], [5, 6, "4", False, []]),
        ({"<": "m"}, ["a", "L"], ["m", "z", 1]),
        ({"!=": "gold"}, ["silver", ["silver", 1]], ["gold", 1, ["silver", "gold"], []]),
        ({"in": ["de", 1]}, ["de", 1.0, ["fr", "de"]], ["en", True, "1"]),
        ({">": 4, "<": 9}, [5, [3, 5]], [3, 10, [3, 10]]),
        ({">=": 4, "<=": 4}, [4, 4.0], [3, 5]),
    ],
    ids=str,
)
def test_a_condition_means_what_the_page_says(wanted: Any, met: list[Any], not_met: list[Any]):
    [condition] = parse_where({"x": wanted})
    claims = [CapabilityClaim("a", "", {"x": value}) for value in [*met, *not_met]]

    assert [condition.is_contradicted_by(claim) for claim in claims] == [False] * len(met) + [True] * len(not_met)


def test_what_is_not_stated_is_neither_met_nor_contradicted():
    [condition] = parse_where({"x": {"!=": 1}})

    assert not condition.is_contradicted_by(CapabilityClaim("a"))
    assert not condition.is_stated_by([CapabilityClaim("a", "", {"y": 1})])


@pytest.mark.parametrize(
    ("where", "sentence"),
    [
        (["tier"], "where is a map, as in"),
        ({1: 2}, "an attribute's name is text"),
        ({"x" * 65: 2}, "at most 64 characters"),
        ({"x": ["de", "en"]}, r'attribute \'x\': write \{"in": \[\.\.\.\]\}'),
        ({"x": {"de"}}, r'write \{"in"'),
        ({"x": None}, "attribute 'x': a value after '=' is NoneType"),
        ({"x": {}}, "an empty map asks for nothing"),
        ({"x": {"<": math.nan}}, "is nan, and nothing compares with that"),
        ({"x": math.inf}, "is inf"),
        ({"x": 2**63}, "more than 63 bits"),
        ({"x": "v" * 65}, "more than 64 characters"),
        ({"x": {"==": 1}}, "'==' is no operator; write '='"),
        ({"x": {"contains": "de"}}, "'contains' is no operator; '=' holds for a list where"),
        ({"x": {"~": 1}}, "'~' is no operator: there are '=', '!=', '<', '<=', '>', '>=', 'in'"),
        ({"x": {1: 1}}, "1 is no operator"),
        ({"x": {"<": True}}, "true and false have no order"),
        ({"x": {"<": [1]}}, "'<' takes one value; write it as in"),
        ({"x": {"in": "de"}}, "'in' takes a list; write it as in"),
        ({"x": {"in": []}}, "'in' takes 1 to 16 values, not 0"),
        ({"x": {"in": list(range(17))}}, "'in' takes 1 to 16 values, not 17"),
        ({"x": {"in": [None]}}, "a value after 'in' is NoneType"),
        ({"x": {"<": 5, ">": 9}}, "nothing can meet 'x < 5 and x > 9'"),
        ({"x": {"<": 5, ">=": 5}}, "nothing can meet"),
        ({"x": {"<=": 5, ">": 5}}, "nothing can meet"),
        ({"x": {"<": 5, ">": "a"}}, "nothing can meet"),
        ({"x": {"=": 5, "!=": 5}}, "nothing can meet"),
        ({"x": {"=": 5, "!=": "a"}}, "nothing can meet"),
        ({"x": {"in": [1, 2], ">": 2}}, "nothing can meet"),
        ({str(number): 1 for number in range(9)}, "at most 8 comparisons with attributes, not 9"),
    ],
    ids=str,
)
def test_a_mistake_is_told_in_a_sentence(where: Any, sentence: str):
    with pytest.raises(ConfigError, match=sentence):
        parse_where(where)


# On the wire


@given(st.dictionaries(st.text(max_size=3), SCALARS | COMPARISONS, max_size=3))
def test_conditions_travel(where: dict[str, Any]):
    try:
        conditions = parse_where(where)
    except ConfigError:
        return

    assert read_where(unpack(pack(where_to_list(conditions)), CONTROL_LIMITS)) == conditions


def test_comparisons_of_one_attribute_belong_together_wherever_they_stand():
    read = read_where([["x", ">", 4, "more"], ["y", "=", "a"], ["x", "<", 9]])

    assert read == parse_where({"x": {">": 4, "<": 9}, "y": "a"})


def test_an_operator_from_the_future_lets_all_through():
    assert read_where([["x", "near", {"lat": 1.0}], ["y", "=", "a"]]) == parse_where({"y": "a"})
    assert read_where([["x", "near", None]]) == ()


@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        "x",
        [["x", "=", 1]] * 9,
        ["x"],
        [["x"]],
        [["x", "="]],
        [[1, "=", 1]],
        [["x", 1, 1]],
        [["x" * 65, "=", 1]],
        [["x", "=", None]],
        [["x", "=", [1]]],
        [["x", "=", b"1"]],
        [["x", "=", math.nan]],
        [["x", "<", True]],
        [["x", "in", 1]],
        [["x", "in", []]],
        [["x", "in", [1] * 17]],
        [["x", "in", [[1]]]],
        [["x", "<", "v" * 65]],
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_no_list_of_conditions_is_refused(value: Any):
    with pytest.raises(InvalidMessageError):
        read_where(value)


def test_what_nothing_can_meet_is_read_and_met_by_nothing():
    [condition] = read_where([["x", "<", 1], ["x", ">", 2]])

    assert condition.is_contradicted_by(CapabilityClaim("a", "", {"x": 1}))


def test_every_operator_has_its_word():
    assert [each.value for each in Operator] == ["=", "!=", "<", "<=", ">", ">=", "in"]
