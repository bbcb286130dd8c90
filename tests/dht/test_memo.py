"""Answers that are remembered: worked out once, and bounded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dht.memo import remembered


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(1, 12))
def test_answers_are_those_of_the_function_whatever_was_forgotten(arguments, max_count):
    asked = []

    @remembered(max_count)
    def half_of(number):
        asked.append(number)
        return number / 2

    assert [half_of(number) for number in arguments] == [number / 2 for number in arguments]
    if max_count > 9:
        assert len(asked) == len(set(arguments))


def test_no_more_answers_are_kept_than_allowed():
    asked = []
    length_of = remembered(2)(lambda text: asked.append(text) or len(text))

    for text in ("a", "bb", "a", "ccc", "a"):
        length_of(text)

    assert asked == ["a", "bb", "ccc", "a"]
    assert len(length_of.__self__) == 2
