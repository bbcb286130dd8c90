"""How long nodes stay: the distributions draw what they say."""

from __future__ import annotations

import math
import random

import pytest

from simulations.churn import (
    BITTORRENT,
    Exponential,
    LogNormal,
    SessionLength,
    Weibull,
    crowd_times,
    stale_share,
    struck,
)

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


@pytest.mark.parametrize("length", [Weibull(0.59, 2520.0), Exponential(600.0), LogNormal(1800.0, 0.8)])
def test_the_rest_of_a_session_is_what_is_left_at_a_random_moment(length: SessionLength):
    rng = random.Random(3)
    sessions = [length.draw(rng) for _ in range(100_000)]
    # A moment falls into a session as likely as that is long, and anywhere in it.
    met = rng.choices(sessions, weights=sessions, k=20_000)
    rests = sorted(session * rng.random() for session in met)

    drawn = sorted(length.draw_rest(rng) for _ in range(20_000))

    for share in (0.1, 0.5, 0.9):
        place = round(share * 20_000)
        assert drawn[place] == pytest.approx(rests[place], rel=0.08)


def test_a_massacre_strikes_its_share_and_a_crowd_comes_within_its_time():
    rng = random.Random(1)

    dead = struck(list(range(100)), 0.3, rng)
    times = crowd_times(50, 10.0, rng)

    assert len(set(dead)) == 30
    assert times == sorted(times)
    assert 0 <= times[0] < times[-1] <= 10


@pytest.mark.parametrize("first_s", [0.0, 20.0])
def test_the_share_of_the_dead_is_what_owners_who_renew_and_crash_come_to(first_s: float):
    """Sessions one by one, with renewals that are not quite even, as those of owners are."""
    rng = random.Random(1)
    lengths, lease_s, renew_s = Weibull(0.7, 1200.0), 900.0, 450.0
    alive_s = dead_s = 0.0

    for _ in range(10_000):
        length = lengths.draw(rng)
        if length <= first_s:
            continue
        last = first_s
        while (following := last + renew_s * rng.uniform(0.9, 1.1)) < length:
            last = following
        alive_s += length - first_s
        dead_s += last + lease_s - length

    assert stale_share(lengths, lease_s=lease_s, renew_s=renew_s, first_s=first_s) == pytest.approx(
        dead_s / (alive_s + dead_s), rel=0.03
    )


def test_the_share_of_the_dead_is_that_of_exponential_sessions_where_the_shape_is_one():
    """Then a dead record lives for the lease less what is left of a geometric number of renewals."""
    mean_s, lease_s, renew_s = 3000.0, 900.0, 450.0
    gone = math.exp(-renew_s / mean_s)
    since_renewal_s = mean_s - renew_s * gone / (1 - gone)

    share = stale_share(Weibull(1.0, mean_s), lease_s=lease_s, renew_s=renew_s)

    dead_s = lease_s - since_renewal_s
    assert share == pytest.approx(dead_s / (mean_s + dead_s), rel=1e-4)
