"""What a sample says: intervals and quantiles as in the books."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulations.statistics import chi_square_p, pearson, quantile, wilson_low


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


@pytest.mark.parametrize(
    ("statistic", "degrees", "p"),
    [
        (3.841, 1, 0.05),
        (6.635, 1, 0.01),
        (18.307, 10, 0.05),
        (66.339, 49, 0.05),
        (74.919, 49, 0.01),
        (10.828, 1, 0.001),
    ],
)
def test_the_chance_of_a_chi_square_is_that_of_the_printed_tables(statistic: float, degrees: int, p: float):
    assert chi_square_p(statistic, degrees) == pytest.approx(p, rel=1e-3)


@given(statistic=st.floats(0.0, 500.0))
def test_with_two_degrees_the_chance_of_a_chi_square_is_an_exponential(statistic: float):
    assert chi_square_p(statistic, 2) == pytest.approx(math.exp(-statistic / 2), rel=1e-9)


@given(statistic=st.floats(0.0, 2000.0), degrees=st.integers(1, 300))
def test_the_chance_of_a_chi_square_is_one_and_falls(statistic: float, degrees: int):
    assert 0.0 <= chi_square_p(statistic + 1, degrees) <= chi_square_p(statistic, degrees) <= 1.0 + 1e-12


def test_of_fair_draws_one_test_in_twenty_is_below_a_twentieth():
    rng = random.Random(3)

    def p() -> float:
        counts = [0] * 20
        for _ in range(2000):
            counts[rng.randrange(20)] += 1
        return chi_square_p(pearson(counts, [100.0] * 20), 19)

    assert 5 <= sum(p() < 0.05 for _ in range(200)) <= 20


def test_a_chi_square_without_degrees_or_below_zero_is_refused():
    with pytest.raises(ValueError, match="1 degree or more"):
        chi_square_p(1.0, 0)
    with pytest.raises(ValueError, match="not negative"):
        chi_square_p(-1.0, 3)
