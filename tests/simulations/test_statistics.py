"""What a sample says: intervals and quantiles as in the books."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulations.statistics import quantile, wilson_low


@pytest.mark.parametrize(
    ("successes", "trials", "low"),
    [(10_000, 10_000, 0.99962), (400, 400, 0.99049), (50, 100, 0.40383), (0, 10, 0.0), (0, 0, 0.0)],
)
def test_the_lower_end_is_that_of_the_published_interval(successes: int, trials: int, low: float):
    assert wilson_low(successes, trials) == pytest.approx(low, abs=1e-5)


def test_the_true_share_is_below_the_lower_end_in_one_of_forty_samples():
    rng = random.Random(1)

    misses = sum(wilson_low(sum(rng.random() < 0.9 for _ in range(200)), 200) > 0.9 for _ in range(2000))

    assert 20 <= misses <= 90


@given(values=st.lists(st.integers(-50, 50), min_size=1), share=st.floats(0.0, 1.0))
def test_a_quantile_is_the_smallest_value_that_a_share_does_not_exceed(values: list[int], share: float):
    found = quantile(values, share)

    assert sum(value <= found for value in values) >= share * len(values)
    assert all(sum(each <= value for each in values) < share * len(values) for value in values if value < found)
