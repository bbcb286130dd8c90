"""Which pictures a run has, and that they show what happened."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulations.pictures.run import MAX_CURVE_POINTS, curve_of, histogram_of, pictures_of_run
from simulations.pictures.shapes import HopBars, Lapse, Latencies, Loads, Picture
from simulations.report import Report, run_scenario
from simulations.samples import MAX_SECONDS, Samples
from simulations.scenarios import SCENARIOS, Settings
from simulations.scenarios.base import Start
from simulations.statistics import quantile

FIGURES = {"hops": {"1": 3, "2": 1}, "mean_hops": 1.25, "nodes": 50}


@pytest.fixture(scope="module")
def run() -> Report:
    return run_scenario(SCENARIOS["lookups"], Settings(30, 20, 1))


@pytest.fixture(scope="module")
def massacre() -> Report:
    return run_scenario(SCENARIOS["overlay-massacre"], Settings(40, 20, 1, start=Start.ORACLE))


def samples() -> Samples:
    return Samples(random.Random(1))


def drawn(samples: Samples | None, figures: dict[str, Any] | None = None) -> dict[str, Picture]:
    return {picture.name: picture for picture in pictures_of_run(figures or {"nodes": 50}, samples)[0]}


def test_a_run_of_lookups_has_every_picture_of_one_run(run: Report):
    pictures, left_out = pictures_of_run(run.figures, run.samples)

    assert [picture.name for picture in pictures] == ["hops", "latency", "success", "load", "circle"]
    assert [each.title for each in left_out] == ["Success against the dead, the hostile, or the length of a session"]
    assert all(picture.alt and picture.caption for picture in pictures)


def test_what_a_run_has_not_is_named_with_its_reason(massacre: Report):
    pictures, left_out = pictures_of_run(massacre.figures, massacre.samples)

    assert [picture.name for picture in pictures] == ["latency", "success", "load"]
    assert {each.title for each in left_out} >= {"Hops of a lookup", "One lookup in the key space"}
    assert all(each.why for each in left_out)


def test_an_engine_that_keeps_no_samples_has_its_hops_alone():
    pictures, left_out = pictures_of_run(FIGURES, None)

    assert [picture.name for picture in pictures] == ["hops"]
    assert "keeps nothing" in left_out[0].why


def test_hops_are_beside_the_model_and_a_small_swarm_is_said_to_be_beyond_it():
    small, large = (drawn(None, {**FIGURES, "nodes": nodes})["hops"] for nodes in (50, 1000))

    assert isinstance(large.drawing, HopBars)
    assert (large.drawing.counts, large.drawing.mean) == ([(1, 3), (2, 1)], 1.25)
    assert large.drawing.model_mean == pytest.approx(1.865, abs=0.001)
    assert "fitted from 1,000 nodes on" in small.caption
    assert "fitted from" not in large.caption
    assert "4 lookups that found their target, among 1,000 nodes" in large.caption


def test_the_curve_of_a_kind_ends_with_its_slowest():
    kept = samples()
    for seconds in (0.0, 0.2, 0.1):
        kept.add_seconds("early", seconds)
    kept.add_seconds("strict", 9.0)

    drawing = drawn(kept)["latency"].drawing

    assert isinstance(drawing, Latencies)
    assert [(curve.label, curve.seconds[-1]) for curve in drawing.curves] == [("early", 0.2), ("strict", 9.0)]
    assert not drawing.is_log


def test_a_long_tail_has_a_logarithmic_axis():
    kept = samples()
    for seconds in (0.0, 0.1, 0.1, 9.0):
        kept.add_seconds("read", seconds)

    latency = drawn(kept)["latency"]

    assert isinstance(latency.drawing, Latencies)
    assert latency.drawing.is_log
    assert "Under 1 ms is drawn at 1 ms" in latency.caption


@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=2000))
def test_a_curve_is_the_cumulative_distribution_in_a_bounded_number_of_steps(values: list[float]):
    curve = curve_of("read", values)

    assert len(curve.seconds) <= MAX_CURVE_POINTS
    assert (curve.seconds[0], curve.seconds[-1], curve.shares[-1]) == (min(values), max(values), 1.0)
    for seconds, share in zip(curve.seconds, curve.shares, strict=True):
        assert seconds == quantile(values, share - 1e-9)


def test_a_massacre_is_in_the_picture_of_success(massacre: Report):
    lapse = {each.name: each for each in pictures_of_run(massacre.figures, massacre.samples)[0]}["success"].drawing

    assert isinstance(lapse, Lapse)
    assert {kind: sum(count for _, count in times) for kind, times in lapse.faults} == {"crash": 12}


def test_the_load_is_of_every_message_that_arrived(run: Report):
    assert run.samples is not None
    load = {each.name: each for each in pictures_of_run(run.figures, run.samples)[0]}["load"]

    assert isinstance(load.drawing, Loads)
    assert sum(run.samples.arrivals.values()) == run.figures["messages"]
    assert sum(load.drawing.counts) == len(run.samples.arrivals) == 30
    assert f"{run.figures['messages']:,} messages" in load.caption


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=200), st.booleans())
def test_a_histogram_has_every_value_between_its_edges(values: list[int], is_log: bool):
    values.sort()

    edges, counts = histogram_of(values, is_log=is_log)

    assert edges[0] <= values[0]
    assert edges[-1] > values[-1] or edges[-1] == pytest.approx(values[-1] + 1)
    assert sum(counts) == len(values)
    for number, count in enumerate(counts):
        inside = sum(edges[number] <= value < edges[number + 1] for value in values)
        assert count == inside or number == len(counts) - 1


def test_of_very_many_durations_the_caption_says_how_many_are_drawn():
    kept = samples()
    for _ in range(MAX_SECONDS + 1):
        kept.add_seconds("read", 0.1)

    assert f"read ({MAX_SECONDS + 1:,}, {MAX_SECONDS:,} of them at random)" in drawn(kept)["latency"].caption


@pytest.mark.parametrize(("hosts", "is_said"), [(99, False), (200, True)])
def test_the_share_of_the_busiest_hundredth_is_said_where_there_is_one(hosts: int, is_said: bool):
    kept = samples()
    kept.arrivals = {number.to_bytes(32, "big"): 1 + 99 * (number < 2) for number in range(hosts)}

    caption = drawn(kept)["load"].caption

    assert ("the busiest 1 % had" in caption) is is_said
    assert not is_said or f"{200 / 398:.1%} of all" in caption
