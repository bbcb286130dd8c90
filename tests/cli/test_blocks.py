"""Lines and tables as a pipe gets them; nothing of a stranger's moves a cursor."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synapse_p2p.apps.cli.blocks import Line, Table, Tone, json_line, json_text, plain_text, printable


def test_columns_are_as_wide_as_what_is_in_them():
    table = Table(("NAME", "ID"), (("Rita", "1"), ("Olga the coder", "22")))

    assert (
        plain_text([Line("found", Tone.GOOD), table])
        == "found\nNAME            ID\nRita            1\nOlga the coder  22\n"
    )


@settings(max_examples=50)
@given(st.text())
def test_no_text_can_do_anything_to_a_terminal(text: str):
    shown = plain_text([Line(text), Table(("A",), ((text,),))])

    assert shown.count("\n") == 3
    assert shown.replace("\n", "").isprintable()


@settings(max_examples=50)
@given(st.text().filter(str.isprintable))
def test_text_that_can_be_printed_stays_as_it_is(text: str):
    assert printable(text) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"key": b"\x01\xff"}, '{"key": "01ff"}'),
        ({1: "a", b"\x02": (1, 2)}, '{"1": "a", "02": [1, 2]}'),
        ([float("inf"), 1.5], '["inf", 1.5]'),
        ({"x": {2}}, '{"x": "{2}"}'),
    ],
)
def test_values_that_json_has_no_word_for_are_text(value: object, text: str):
    assert json_line(value) == text


def test_json_is_one_line_of_ascii_for_programs_and_many_of_letters_for_people():
    value = {"name": "Zoë\x1b"}

    assert json_line(value).isascii()
    assert "\n" not in json_line(value)
    assert "Zoë" in json_text(value)
    assert json.loads(json_line(value)) == json.loads(json_text(value)) == value
