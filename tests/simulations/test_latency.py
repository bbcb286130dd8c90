"""Latency models: what stays the same for two hosts, what differs from message to message, and what repeats."""

from __future__ import annotations

import math
import random
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulations.latency import ConstantLatency, CoordinateLatency, LogNormalLatency
from synapse_p2p.exceptions import ConfigError

ids = st.binary(min_size=32, max_size=32)
seeds = st.integers(0, 2**32)


def some_ids(count):
    rng = random.Random(7)
    return [rng.randbytes(32) for _ in range(count)]


def models(seed, **options):
    return [LogNormalLatency(seed, **options), CoordinateLatency(seed, **options)]


def test_constant_latency_is_the_same_for_all():
    latency = ConstantLatency(0.05)

    assert {latency(source, target) for source in some_ids(3) for target in some_ids(3)} == {0.05}


@given(seeds, ids, ids)
def test_without_jitter_a_pair_keeps_its_distance_both_ways(seed, one, other):
    for latency in models(seed, jitter=0.0):
        assert latency(one, other) == latency(other, one) == latency(one, other) >= 0


@given(seeds, ids, ids, st.floats(0, 3))
def test_a_message_is_never_early_and_late_by_the_jitter_at_most(seed, one, other, jitter):
    for exact, jittered in zip(models(seed, jitter=0.0), models(seed, jitter=jitter), strict=True):
        base_s = exact(one, other)

        assert all(base_s <= jittered(one, other) <= base_s * (1 + jitter) for _ in range(5))


@given(seeds, st.lists(st.tuples(ids, ids), max_size=10))
def test_same_seed_gives_the_same_latencies(seed, pairs):
    for one, again in zip(models(seed), models(seed), strict=True):
        assert [one(*pair) for pair in pairs] == [again(*pair) for pair in pairs]


def test_distance_does_not_depend_on_who_talked_before():
    ids = some_ids(4)
    for early, late in zip(models(1, jitter=0.0), models(1, jitter=0.0), strict=True):
        first = early(ids[0], ids[1])
        late(ids[2], ids[3])
        late(ids[3], ids[1])

        assert late(ids[0], ids[1]) == first


def test_another_seed_gives_other_distances():
    one, other = some_ids(2)
    for first, second in zip(models(1, jitter=0.0), models(2, jitter=0.0), strict=True):
        assert first(one, other) != second(one, other)


def test_log_normal_distances_have_the_median_and_the_spread_asked_for():
    latency = LogNormalLatency(3, median_s=0.08, sigma=0.6, jitter=0.0)
    one, *others = some_ids(4000)

    logs = sorted(math.log(latency(one, other)) for other in others)

    assert median(logs) == pytest.approx(math.log(0.08), abs=0.03)
    # One standard deviation above and below the median are 68.3 % of all.
    low, high = logs[round(len(logs) * 0.1587)], logs[round(len(logs) * 0.8413)]
    assert (high - low) / 2 == pytest.approx(0.6, abs=0.03)


def test_latency_of_placed_hosts_is_their_distance_and_both_accesses():
    near, far = some_ids(2)
    latency = CoordinateLatency(1, s_per_unit=0.1, jitter=0.0)
    latency.place(near, 0.0, 0.0, access_s=0.002)
    latency.place(far, 0.3, 0.4, access_s=0.005)

    assert latency(near, far) == pytest.approx(0.1 * 0.5 + 0.007)
    assert latency(near, near) == pytest.approx(0.004)


def test_hosts_that_nobody_placed_fill_the_square():
    latency = CoordinateLatency(1, s_per_unit=1.0, max_access_s=0.0, jitter=0.0)
    corner, *others = some_ids(500)
    latency.place(corner, 0.0, 0.0)

    distances = [latency(corner, other) for other in others]

    # A quarter circle of radius 1/2 around a corner has pi/16 of the square.
    assert sum(distance < 0.5 for distance in distances) / len(distances) == pytest.approx(math.pi / 16, abs=0.05)
    assert 1 < max(distances) <= math.sqrt(2)


@pytest.mark.parametrize("option", ["median_s", "sigma", "jitter"])
def test_negative_setting_of_the_log_normal_model_is_refused(option):
    for value in (-0.1, math.nan):
        with pytest.raises(ConfigError, match=option):
            LogNormalLatency(1, **{option: value})


@pytest.mark.parametrize("option", ["s_per_unit", "max_access_s", "jitter"])
def test_negative_setting_of_the_coordinate_model_is_refused(option):
    for value in (-0.1, math.nan):
        with pytest.raises(ConfigError, match=option):
            CoordinateLatency(1, **{option: value})
