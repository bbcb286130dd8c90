from __future__ import annotations

import asyncio
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synapse_p2p.exceptions import ConfigError
from synapse_p2p.traceparent import (
    MAX_TRACEPARENT_CHARS,
    carrying,
    checked_traceparent,
    current_traceparent,
    is_traceparent,
    traced,
    with_new_parent,
)

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GIVEN = f"00-{TRACE}-{PARENT}-01"


def hex_of(digits: int) -> st.SearchStrategy[str]:
    """Not all zeros."""
    return st.integers(1, 16**digits - 1).map(lambda number: f"{number:0{digits}x}")


def well_formed() -> st.SearchStrategy[str]:
    flags = st.integers(0, 255).map(lambda number: f"{number:02x}")
    version_00 = st.builds("00-{}-{}-{}".format, hex_of(32), hex_of(16), flags)
    later = st.builds(
        "{:02x}-{}-{}-{}{}".format,
        st.integers(1, 254),
        hex_of(32),
        hex_of(16),
        flags,
        st.just("")
        | st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), max_size=72).map("-{}".format),
    )
    return version_00 | later


@given(well_formed(), st.integers())
def test_what_is_carried_on_is_the_same_trace_with_another_parent_in_version_00(text: str, seed: int):
    carried = with_new_parent(text, random.Random(seed))
    _, trace_id, parent_id, flags = text.split("-")[:4]
    version, carried_trace_id, carried_parent_id, carried_flags = carried.split("-")

    assert is_traceparent(text)
    assert is_traceparent(carried)
    assert len(carried) == 55
    assert (version, carried_trace_id) == ("00", trace_id)
    assert carried_parent_id != parent_id
    assert int(carried_flags, 16) == int(flags, 16) & 3
    assert carried == with_new_parent(text, random.Random(seed))  # nothing but the given chance is in it


@given(well_formed(), st.data())
def test_one_character_that_does_not_belong_there_makes_it_none(text: str, data: st.DataObject):
    index = data.draw(st.integers(0, 54))
    wrong = data.draw(st.characters().filter(lambda each: each not in "0123456789abcdef-"))

    assert not is_traceparent(text[:index] + wrong + text[index + 1 :])


@given(st.text() | st.binary() | st.integers() | st.none() | st.lists(st.text()) | st.just(GIVEN))
def test_whatever_a_peer_sends_is_judged_without_an_error(value: object):
    simple = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
    if isinstance(value, str) and value.startswith("00-"):
        assert is_traceparent(value) == (simple.fullmatch(value) is not None)
    elif not isinstance(value, str):
        assert not is_traceparent(value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "00",
        f"00-{TRACE}-{PARENT}",
        f"00-{TRACE}-{PARENT}-1",
        f"00-{TRACE}-{PARENT}-01-",
        f"00-{TRACE}-{PARENT}-01-more",
        f"ff-{TRACE}-{PARENT}-01",
        f"01-{TRACE}-{PARENT}-01more",
        f"01-{TRACE}-{PARENT}-01-\n",
        f"01-{TRACE}-{PARENT}-01-" + "x" * (MAX_TRACEPARENT_CHARS - 55),
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        GIVEN.upper(),
        GIVEN + "\n",
        " " + GIVEN,
        GIVEN.replace("0", "\u0660"),
    ],
)
def test_what_w3c_does_not_allow_is_none(text: str):
    assert not is_traceparent(text)
    with pytest.raises(ConfigError, match="traceparent is "):
        checked_traceparent(text)


@pytest.mark.parametrize("more", ["", "-", "-x", "-" + "x" * (MAX_TRACEPARENT_CHARS - 56)])
def test_a_version_to_come_may_say_more_at_its_end(more: str):
    assert is_traceparent(f"cc-{TRACE}-{PARENT}-01{more}")


def test_calls_carry_what_a_block_says_and_the_innermost_counts():
    other = f"00-{TRACE}-{'1' * 16}-00"

    assert current_traceparent() is None
    with traced(GIVEN):
        with traced(other):
            assert current_traceparent() == other
        with traced(None):
            assert current_traceparent() is None
        assert current_traceparent() == GIVEN
    assert current_traceparent() is None


async def test_a_block_holds_for_the_tasks_that_are_begun_in_it_and_for_no_others():
    async def what_is_carried() -> str | None:
        await asyncio.sleep(0)
        return current_traceparent()

    before = asyncio.ensure_future(what_is_carried())
    with traced(GIVEN):
        within = asyncio.ensure_future(what_is_carried())

    assert (await before, await within) == (None, GIVEN)


def test_the_trace_that_a_call_names_itself_is_the_one_it_carries():
    assert carrying(None, GIVEN) == {"traceparent": GIVEN}
    assert carrying({"delegation": {}}, GIVEN) == {"delegation": {}, "traceparent": GIVEN}
    assert carrying({"traceparent": "its own"}, GIVEN) == {"traceparent": "its own"}


@pytest.mark.parametrize("text", ["00-1-2-3", GIVEN + "-x"])
def test_our_own_user_is_told_of_a_wrong_one(text: str):
    with pytest.raises(ConfigError, match="W3C has it as 00-"), traced(text):
        pass
