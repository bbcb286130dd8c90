"""Our own network, loop and clock: when they are to blame, and when they are not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.config import HealthConfig
from dht.health import MAX_CLOCK_GROUPS, MAX_SILENT_PEERS, ClockWatch, LoopWatch, OwnNetwork, Pause

CONFIG = HealthConfig()


def peer(number: int) -> bytes:
    return number.to_bytes(32, "big")


# Our network


def test_the_silence_of_several_makes_our_own_network_the_suspect():
    network = OwnNetwork(CONFIG, 0.0)

    told = [network.on_silence(peer(number), 100, 10.0) for number in range(6)]

    assert told == [False, False, False, False, True, False]
    assert network.is_lost
    assert network.silent_peers() == [peer(number) for number in range(6)]


def test_one_peer_that_is_silent_again_and_again_is_its_own_fault():
    network = OwnNetwork(CONFIG, 0.0)

    assert not any(network.on_silence(peer(1), 100, 10.0) for _ in range(20))
    assert not network.is_lost


def test_while_somebody_is_heard_the_silent_are_silent():
    network = OwnNetwork(CONFIG, 0.0)

    for number in range(100):
        assert not network.on_silence(peer(number), 100, 10.0 + number)
        if number % 4 == 3:
            assert not network.on_heard(10.0 + number)

    assert not network.is_lost


def test_many_silent_at_once_right_after_an_answer_prove_nothing_yet():
    network = OwnNetwork(CONFIG, 0.0)
    network.on_heard(10.0)

    assert not any(network.on_silence(peer(number), 100, 10.0 + CONFIG.lost_after_s - 0.1) for number in range(50))


def test_the_first_word_of_anybody_ends_a_loss():
    network = OwnNetwork(CONFIG, 0.0)
    for number in range(5):
        network.on_silence(peer(number), 100, 10.0)

    assert network.on_heard(60.0)
    assert not network.is_lost
    assert network.silent_peers() == []
    assert not network.on_heard(61.0)


@pytest.mark.parametrize(("contacts", "needed"), [(0, 2), (1, 2), (2, 2), (3, 3), (5, 5), (500, 5)])
def test_who_knows_few_needs_the_silence_of_all(contacts: int, needed: int):
    network = OwnNetwork(CONFIG, 0.0)

    told = [network.on_silence(peer(number), contacts, 10.0) for number in range(needed)]

    assert told == [False] * (needed - 1) + [True]


def test_the_silent_that_are_remembered_are_bounded():
    network = OwnNetwork(CONFIG, 0.0)

    for number in range(2 * MAX_SILENT_PEERS):
        network.on_silence(peer(number), 10_000, 1.0)

    assert len(network.silent_peers()) == MAX_SILENT_PEERS


# Our loop


def test_beats_in_time_tell_of_nothing():
    watch = LoopWatch(CONFIG, 0.0, 1000.0)

    assert all(watch.beat(at, 1000.0 + at) is None for at in (1.0, 2.1, 3.0, 4.9))
    assert not watch.was_paused_since(0.0, 5.5, 1005.5)


def test_a_blocked_loop_is_a_stall_and_what_began_before_it_is_no_evidence():
    watch = LoopWatch(CONFIG, 0.0, 1000.0)
    watch.beat(1.0, 1001.0)

    assert watch.was_paused_since(1.5, 31.0, 1031.0)  # the beat itself has not come yet
    assert watch.beat(31.0, 1031.0) == Pause(29.0, 0.0)

    assert watch.was_paused_since(1.5, 31.5, 1031.5)
    assert watch.was_paused_since(31.0, 31.5, 1031.5)
    assert not watch.was_paused_since(31.2, 31.5, 1031.5)


def test_a_machine_that_slept_is_known_by_the_wall():
    watch = LoopWatch(CONFIG, 0.0, 1000.0)

    assert watch.beat(1.0, 8201.0) == Pause(0.0, 7200.0)
    assert watch.was_paused_since(0.5, 1.1, 8201.1)
    assert not watch.was_paused_since(1.05, 1.1, 8201.1)


def test_a_clock_that_is_set_back_or_a_little_forward_is_no_sleep():
    watch = LoopWatch(CONFIG, 0.0, 1000.0)

    assert watch.beat(1.0, 500.0) is None
    assert watch.beat(2.0, 505.0) is None


@given(st.lists(st.integers(0, 100), max_size=30))
def test_every_pause_is_told_once(delays_s: list[int]):
    watch = LoopWatch(CONFIG, 0.0, 0.0)
    now = 0.0
    for delay_s in delays_s:
        now += CONFIG.beat_s + delay_s
        assert (watch.beat(now, now) is not None) == (delay_s >= CONFIG.min_stall_s)

        now += CONFIG.beat_s
        assert watch.beat(now, now) is None


# Our clock


def test_the_median_of_several_parties_judges_our_clock():
    clock = ClockWatch(CONFIG)

    for party, ahead_s in enumerate([120.0, 121.0, 119.0, 0.0]):
        clock.note(str(party), ahead_s)
    assert (clock.ahead_s, clock.is_wrong) == (None, False)

    clock.note("4", 122.0)
    assert (clock.ahead_s, clock.is_wrong) == (120.0, True)


def test_one_party_has_one_voice():
    clock = ClockWatch(CONFIG)

    for _ in range(10):
        clock.note("a liar", -500.0)

    assert clock.ahead_s is None


@pytest.mark.parametrize(("ahead_s", "is_wrong"), [(30.0, False), (30.1, True), (-30.1, True), (0.0, False)])
def test_thirty_seconds_are_borne(ahead_s: float, is_wrong: bool):
    clock = ClockWatch(CONFIG)
    for party in range(5):
        clock.note(str(party), ahead_s)

    assert clock.is_wrong == is_wrong


def test_the_parties_that_are_remembered_are_the_latest():
    clock = ClockWatch(CONFIG)

    for party in range(10 * MAX_CLOCK_GROUPS):
        clock.note(str(party), 0.0 if party < 9 * MAX_CLOCK_GROUPS else 60.0)

    assert clock.ahead_s == 60.0
