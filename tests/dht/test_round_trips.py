"""How long is waited for whom, and who and what is left alone for a while."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.config import LookupConfig
from dht.contact import Contact
from dht.round_trips import MAX_ROUND_TRIPS, Pauses, RoundTrips, dead_contacts, missed_keys

CONFIG = LookupConfig()
A, B = b"a" * 32, b"b" * 32


def measured(*samples_s: float, node_id: bytes = A, was_connected: bool = True) -> RoundTrips:
    trips = RoundTrips(CONFIG)
    for sample_s in samples_s:
        trips.on_answer(node_id, sample_s, was_connected=was_connected)
    return trips


def test_before_anybody_answered_a_second_is_waited_and_two_for_failure():
    assert RoundTrips(CONFIG).timeouts_s(A, is_connected=True) == (1.0, 4.0)
    assert RoundTrips(CONFIG).timeouts_s(A, is_connected=False) == (1.0, 2.0)


def test_the_first_answer_counts_three_times_and_later_ones_smooth_it():
    # RFC 6298: SRTT = R and RTTVAR = R/2; then RTTVAR = 3/4 RTTVAR + 1/4 |SRTT - R'|, SRTT = 7/8 SRTT + 1/8 R'.
    assert measured(0.4).timeouts_s(A, is_connected=True)[0] == pytest.approx(0.4 + 4 * 0.2)
    assert measured(0.4, 0.8).timeouts_s(A, is_connected=True)[0] == pytest.approx(0.45 + 4 * 0.25)
    assert measured(0.4, 0.8).rtt_s(A) == pytest.approx(0.45)


@given(st.lists(st.floats(0.0, 100.0), max_size=20), st.booleans(), st.booleans())
def test_waits_have_a_floor_and_a_ceiling(samples: list[float], was_connected: bool, is_connected: bool):
    slow_s, fails_s = measured(*samples, was_connected=was_connected).timeouts_s(A, is_connected=is_connected)

    assert CONFIG.min_timeout_s <= slow_s <= fails_s <= CONFIG.max_timeout_s
    assert fails_s >= CONFIG.request_timeout_s


def test_a_peer_never_asked_is_taken_to_be_as_the_others_are():
    trips = measured(*[0.1] * 50)

    assert trips.timeouts_s(B, is_connected=True) == (0.2, 1.5)
    assert trips.rtt_s(B) < 0.2


def test_a_dial_has_its_own_patience_and_says_nothing_of_an_open_session():
    trips = measured(*[0.6] * 60, was_connected=False)

    assert trips.timeouts_s(A, is_connected=False) == (pytest.approx(0.6, abs=0.01), 2.0)
    assert trips.timeouts_s(A, is_connected=True) == (1.0, 4.0)


def test_round_trips_of_the_peers_measured_last_are_remembered():
    trips = RoundTrips(CONFIG)

    for number in range(3 * MAX_ROUND_TRIPS):
        trips.on_answer(number.to_bytes(32, "big"), 0.3, was_connected=True)
        trips.on_answer(A, 2.0, was_connected=True)
        trips.check_invariants()

    assert trips.rtt_s(A) == pytest.approx(2.0)


def test_who_failed_rests_and_twice_as_long_when_it_fails_again():
    pauses: Pauses[str] = Pauses(pause_s=30.0, max_pause_s=100.0, max_count=10)

    pauses.add("a", 0.0)
    pauses.add("a", 1.0)  # asked at the same time as before
    assert (pauses.is_paused("a", 29.9), pauses.is_paused("a", 30.0)) == (True, False)
    pauses.add("a", 31.0)
    assert (pauses.is_paused("a", 90.9), pauses.is_paused("a", 91.0)) == (True, False)
    pauses.add("a", 91.0)
    assert (pauses.is_paused("a", 190.9), pauses.is_paused("a", 191.0)) == (True, False)
    pauses.add("a", 500.0)  # long after: a failure of its own
    assert not pauses.is_paused("a", 530.0)


def test_who_is_well_again_does_not_rest():
    pauses = missed_keys(CONFIG)
    pauses.add(A, 0.0)

    pauses.remove(A)
    pauses.remove(B)

    assert not pauses.is_paused(A, 1.0)
    assert len(pauses) == 0


def test_an_id_at_another_address_is_not_dead():
    dead = dead_contacts(CONFIG)

    dead.add(Contact(A, ("10.0.0.1:1",)), 0.0)

    assert dead.is_paused(Contact(A, ("10.0.0.1:1",)), 1.0)
    assert not dead.is_paused(Contact(A, ("10.0.0.2:1",)), 1.0)


@given(st.lists(st.tuples(st.integers(0, 12), st.floats(0.0, 500.0), st.booleans()), max_size=80))
def test_pauses_are_bounded_whatever_fails(events: list[tuple[int, float, bool]]):
    pauses: Pauses[int] = Pauses(pause_s=3.0, max_pause_s=20.0, max_count=5)
    now = 0.0

    for thing, pause_s, is_failure in events:
        now += pause_s / 50
        if is_failure:
            pauses.add(thing, now)
            assert pauses.is_paused(thing, now)
        else:
            pauses.remove(thing)
            assert not pauses.is_paused(thing, now)
        pauses.check_invariants()
