"""How long nodes stay: the distributions draw what they say."""

from __future__ import annotations

import random

import pytest

from simulations.churn import BITTORRENT, Exponential, LogNormal, SessionLength, Weibull

DISTRIBUTIONS = [BITTORRENT, Weibull(0.59, 2520.0), Exponential(600.0), LogNormal(1800.0, 1.5)]


@pytest.mark.parametrize("length", DISTRIBUTIONS)
def test_half_of_all_sessions_are_over_at_the_median(length: SessionLength):
    rng = random.Random(1)

    over = sum(length.draw(rng) <= length.median_s for _ in range(4000))

    assert 1880 <= over <= 2120  # four deviations


@pytest.mark.parametrize("length", DISTRIBUTIONS)
def test_one_seed_draws_the_same_sessions(length: SessionLength):
    first, again = random.Random(7), random.Random(7)

    assert [length.draw(first) for _ in range(20)] == [length.draw(again) for _ in range(20)]


def test_measured_sessions_are_mostly_short_and_a_few_are_very_long():
    rng = random.Random(1)
    sessions = sorted(BITTORRENT.draw(rng) for _ in range(4000))

    assert sum(session < 60 for session in sessions) > 600
    assert sum(sessions[-400:]) > sum(sessions[:-400])
    assert 950 < BITTORRENT.median_s < 1050
