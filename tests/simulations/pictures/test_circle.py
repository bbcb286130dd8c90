"""One lookup on the circle of the key space."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.contact import Contact
from dht.outcome import LookupOutcome, TraceEvent, TraceStep, Why
from simulations.pictures.circle import (
    MAX_REQUESTS,
    circle_picture,
    levels_of,
    offset_of,
    path_of,
    requests_of,
    turn_of,
)
from simulations.pictures.shapes import Ending, KeyCircle
from simulations.samples import TracedLookup

TURNS = st.floats(0, 1, exclude_max=True)
ANN, BOB, EVE, SEARCHER = (bytes([number]) * 32 for number in (0x40, 0x80, 0x81, 0xC0))


def asked(at: float, who: bytes, hop: int, named_by: bytes | None = None) -> TraceStep:
    return TraceStep(at, TraceEvent.ASKED, who, hop, 0, Why.NEAREST, named_by)


TRACE = (
    asked(10.0, ANN, 1),
    asked(10.0, EVE, 1),
    TraceStep(10.1, TraceEvent.ANSWERED, ANN, 1),
    asked(10.1, BOB, 2, ANN),
    TraceStep(10.15, TraceEvent.SLOW, EVE, 1),
    TraceStep(10.2, TraceEvent.FAILED, EVE, 1),
    TraceStep(10.3, TraceEvent.ANSWERED, BOB, 2),
)


def traced(trace: tuple[TraceStep, ...] = TRACE, *, is_success: bool | None = True) -> TracedLookup:
    outcome = LookupOutcome(
        b"\x82" * 32, (Contact(BOB, ()),), 2, len(trace), 1, found=False, complete=True, trace=trace
    )
    return TracedLookup(SEARCHER, outcome, is_success, 4, (ANN, BOB, EVE), (BOB, EVE))


def test_an_id_is_where_its_part_of_the_key_space_is():
    assert [turn_of(point) for point in (bytes(32), b"\x80" + bytes(31))] == [0.0, 0.5]


@given(TURNS, TURNS)
def test_from_the_target_to_a_place_is_the_shorter_way_round(turn: float, target: float):
    offset = offset_of(turn, target)

    assert -0.5 <= offset <= 0.5
    assert (target + offset - turn + 0.5) % 1.0 == pytest.approx(0.5)


def test_the_path_goes_from_a_contact_of_ones_own_to_the_nearest():
    assert path_of(TRACE, BOB) == [ANN, BOB]
    assert path_of(TRACE, SEARCHER) == path_of(TRACE, None) == path_of((), BOB) == []


def test_a_trace_in_which_two_name_each_other_has_an_end():
    assert path_of((asked(0.0, ANN, 2, BOB), asked(0.0, BOB, 3, ANN)), BOB) == [ANN, BOB]


def test_requests_have_their_times_and_what_became_of_them():
    requests = requests_of(TRACE[:-1], [ANN, BOB])

    assert [(each.hop, each.ending, each.is_on_path) for each in requests] == [
        (1, Ending.ANSWERED, True),
        (1, Ending.FAILED, False),
        (2, Ending.UNFINISHED, True),
    ]
    assert [each.asked_ms for each in requests] == pytest.approx([0.0, 0.0, 100.0])
    assert [each.ended_ms for each in requests] == pytest.approx([100.0, 200.0, 200.0])


def test_the_picture_says_what_it_shows():
    picture = circle_picture(traced())
    missed = circle_picture(traced(is_success=False))

    assert isinstance(picture.drawing, KeyCircle)
    assert picture.drawing.path == [(1, turn_of(ANN)), (2, turn_of(BOB))]
    assert "reached the nearest that answered in 2 hops" in picture.alt
    assert "300 ms" in picture.alt
    assert "4 of 4 nodes are drawn, and the 2 nearest" in picture.caption
    assert "It missed the nearest node." in missed.caption


def test_the_look_round_the_target_reaches_all_of_the_nearest():
    drawing = circle_picture(traced()).drawing

    assert isinstance(drawing, KeyCircle)
    assert all(abs(offset_of(turn, drawing.target)) < drawing.lens for turn in drawing.nearest)


def test_of_very_many_requests_the_first_are_drawn_and_it_is_said():
    trace = tuple(asked(0.0, number.to_bytes(32, "big"), 1) for number in range(MAX_REQUESTS + 5))

    picture = circle_picture(traced(trace))

    assert isinstance(picture.drawing, KeyCircle)
    assert len(picture.drawing.requests) == MAX_REQUESTS
    assert f"The first {MAX_REQUESTS} of its {MAX_REQUESTS + 5} requests are shown." in picture.caption


@given(st.lists(TURNS, max_size=12), st.floats(0.001, 0.3))
def test_no_label_covers_another(turns: list[float], gap: float):
    levels = levels_of(turns, gap)

    placed = list(zip(turns, levels, strict=True))
    for number, (turn, level) in enumerate(placed):
        assert all(level != other or abs(offset_of(at, turn)) >= gap for at, other in placed[:number])
