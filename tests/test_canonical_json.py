from __future__ import annotations

import json
import math
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synapse_p2p.canonical_json import MAX_DEPTH, canonical_json
from synapse_p2p.exceptions import ConfigError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | FLOATS | TEXT
VALUES = st.recursive(SCALARS, lambda items: st.lists(items, max_size=4) | st.dictionaries(TEXT, items, max_size=4))


@pytest.mark.parametrize(
    ("bits", "written"),
    [
        ("0000000000000000", "0"),
        ("8000000000000000", "0"),
        ("0000000000000001", "5e-324"),
        ("8000000000000001", "-5e-324"),
        ("7fefffffffffffff", "1.7976931348623157e+308"),
        ("ffefffffffffffff", "-1.7976931348623157e+308"),
        ("4340000000000000", "9007199254740992"),
        ("c340000000000000", "-9007199254740992"),
        ("4430000000000000", "295147905179352830000"),
        ("44b52d02c7e14af5", "9.999999999999997e+22"),
        ("44b52d02c7e14af6", "1e+23"),
        ("44b52d02c7e14af7", "1.0000000000000001e+23"),
        ("444b1ae4d6e2ef4e", "999999999999999700000"),
        ("444b1ae4d6e2ef50", "1e+21"),
        ("3eb0c6f7a0b5ed8c", "9.999999999999997e-7"),
        ("3eb0c6f7a0b5ed8d", "0.000001"),
        ("41b3de4355555554", "333333333.33333325"),
        ("becbf647612f3696", "-0.0000033333333333333333"),
        ("43143ff3c1cb0959", "1424953923781206.2"),
    ],
)
def test_a_double_is_written_as_in_the_appendix_of_rfc_8785(bits: str, written: str):
    [number] = struct.unpack(">d", bytes.fromhex(bits))

    assert canonical_json(number).decode() == written


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ({}, "{}"),
        ([], "[]"),
        ([1, 1.0, 0.5, True, None], "[1,1,0.5,true,null]"),
        ((1, "a"), '[1,"a"]'),
        (2**53 + 1, "9007199254740992"),
        (-(10**21), "-1e+21"),
        ({"b": {}, "a": [[]]}, '{"a":[[]],"b":{}}'),
        ('\u20ac$\x0f\nA\'B"\\"/\x7f', '"\u20ac$\\u000f\\nA\'B\\"\\\\\\"/\x7f"'),
        # By UTF-16 code units, in which a smiley begins with 0xd83d: before 0xfb33, and after it by code points.
        (
            {"\u20ac": 1, "\r": 2, "\ufb33": 3, "1": 4, "\U0001f600": 5, "\x80": 6, "\xf6": 7},
            '{"\\r":2,"1":4,"\x80":6,"\xf6":7,"\u20ac":1,"\U0001f600":5,"\ufb33":3}',
        ),
    ],
)
def test_a_value_has_one_text(value: Any, written: str):
    assert canonical_json(value).decode() == written


@given(VALUES)
def test_what_is_written_is_read_back_as_the_same_value_where_all_numbers_are_doubles(value: Any):
    assert json.loads(canonical_json(value), parse_int=float) == value


@given(st.dictionaries(TEXT, SCALARS, max_size=6), st.randoms(use_true_random=False))
def test_the_order_in_which_a_map_was_made_does_not_matter(value: dict[str, Any], chance: Any):
    members = list(value.items())
    chance.shuffle(members)

    assert canonical_json(dict(members)) == canonical_json(value)


@given(FLOATS.filter(float.is_integer) | st.integers(-(2**70), 2**70))
def test_a_whole_number_and_the_double_of_it_are_one(number: float):
    assert canonical_json(number) == canonical_json(float(number))


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (math.nan, "nan is no JSON number"),
        ([math.inf], "inf is no JSON number"),
        (10**400, "more than 1,024 bits"),
        (b"bytes", "JSON has no bytes"),
        ({1: 2}, "keys of a JSON object are text"),
        ("\ud800", "half a surrogate"),
        ({"\ud800": 1}, "half a surrogate"),
        ({1, 2}, "JSON has no set"),
    ],
    ids=repr,
)
def test_what_json_cannot_say_is_refused(value: Any, complaint: str):
    with pytest.raises(ConfigError, match=complaint):
        canonical_json(value)


def test_a_value_that_holds_itself_is_refused():
    value: list[Any] = []
    value.append(value)

    with pytest.raises(ConfigError, match=f"more than {MAX_DEPTH} lists"):
        canonical_json(value)


def test_a_value_may_be_as_deep_as_the_bound():
    value: Any = []
    for _ in range(MAX_DEPTH - 1):
        value = [value]

    assert canonical_json(value) == b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
