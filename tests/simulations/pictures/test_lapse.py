"""Success over time, and the faults meanwhile."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulations.pictures.lapse import GAP_BINS, MAX_MARKS, MAX_STEPS, share_of, spans_of, success_picture
from simulations.pictures.shapes import Lapse, LeftOut, Picture
from simulations.samples import MAX_BINS, Samples


def samples() -> Samples:
    return Samples(random.Random(1))


def drawn(kept: Samples) -> Picture:
    picture = success_picture(kept.timeline)
    assert isinstance(picture, Picture)
    return picture


def test_success_over_time_has_every_lookup_and_every_fault_of_the_time_shown():
    kept = samples()
    kept.add_fault(1.0, "crash")
    for second in range(20, 30):
        kept.add_lookup("read", second, 0.1, is_success=second != 25)
    kept.add_fault(25.0, "crash")
    kept.add_fault(25.0, "restart")

    picture = drawn(kept)

    lapse = picture.drawing
    assert isinstance(lapse, Lapse)
    assert [step.share.y for step in lapse.steps] == [1.0, 1.0, 0.5, 1.0, 1.0]  # of two lookups each
    assert [kind for kind, _ in lapse.faults] == ["crash", "restart"]
    assert len(lapse.marks) == 1
    assert lapse.begin <= 20 and lapse.end >= 29
    assert "9 of 10 lookups" in picture.caption
    assert "1 x crash, 1 x restart; 1 before what is shown" in picture.caption


def test_faults_at_many_moments_are_not_marked_through_the_curve():
    kept = samples()
    for second in range(MAX_MARKS + 2):
        kept.add_lookup("read", second, 0.1, is_success=True)
        kept.add_fault(second, "crash")

    lapse = drawn(kept).drawing

    assert isinstance(lapse, Lapse)
    assert not lapse.marks
    assert sum(count for _, times in lapse.faults for _, count in times) == MAX_MARKS + 2


def test_where_all_missed_the_share_is_none():
    kept = samples()
    kept.add_lookup("read", 1.0, 0.1, is_success=False)

    lapse = drawn(kept).drawing

    assert isinstance(lapse, Lapse)
    assert [step.share.y for step in lapse.steps] == [0.0]


COUNTS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 9)), max_size=MAX_BINS)


@given(COUNTS)
def test_steps_have_every_lookup_in_order_and_end_at_a_pause(counts: list[tuple[int, int]]):
    found, missed = [good for good, _ in counts], [bad for _, bad in counts]

    spans = spans_of(found, missed)

    assert sum(span.count for span in spans) == sum(found) + sum(missed)
    for span in spans:
        inside = slice(span.first, span.end)
        trials = [sum(each) for each in counts[inside]]
        assert (span.found, span.count) == (sum(found[inside]), sum(trials))
        assert "0" * GAP_BINS not in "".join("1" if count else "0" for count in trials)
    assert all(before.end <= after.first for before, after in pairwise(spans))


@pytest.mark.parametrize(("lookups", "steps"), [(1, 1), (16, 8), (100, 8), (640, 16), (64_000, MAX_STEPS)])
def test_a_step_has_enough_lookups_to_tell(lookups: int, steps: int):
    found = [lookups * (number + 1) // MAX_BINS - lookups * number // MAX_BINS for number in range(MAX_BINS)]

    spans = spans_of(found, [0] * MAX_BINS)

    assert len(spans) <= steps
    assert len(spans) >= steps * 0.6


def test_where_no_lookup_ended_there_is_no_picture():
    kept = samples()
    kept.add_fault(1.0, "crash")

    assert isinstance(success_picture(kept.timeline), LeftOut)


@given(st.integers(0, 50), st.integers(1, 50))
def test_the_interval_of_a_share_is_round_it(successes: int, more: int):
    share = share_of(1.0, successes, successes + more)

    assert 0 <= share.low <= share.y <= share.high <= 1
