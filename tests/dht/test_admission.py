from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.admission import MAX_REMEMBERED, MAX_WAITING, PROVE_PAUSE_S, RETURN_PAUSE_S, Candidates
from dht.contact import Contact
from synapse_p2p.trust import TrustConfig


def make_contact(number: int) -> Contact:
    return Contact(number.to_bytes(32, "big"), (f"10.0.{number // 250}.{number % 250 + 1}:9000",))


def test_candidates_are_taken_in_the_order_in_which_they_came():
    candidates = Candidates(pause_s=600)

    for number in (3, 1, 2):
        assert candidates.offer(make_contact(number), now=0)

    taken = [candidates.take(now=0) for _ in range(4)]
    assert taken == [(make_contact(3), False), (make_contact(1), False), (make_contact(2), False), None]


def test_an_address_is_dialed_again_only_after_the_pause():
    candidates = Candidates(pause_s=600)
    candidates.offer(make_contact(1), now=0)
    candidates.take(now=0)

    assert not candidates.offer(make_contact(1), now=599)
    assert candidates.offer(make_contact(1), now=600)


def test_a_contact_that_was_given_up_is_dialed_again_as_soon_as_it_asks():
    candidates = Candidates(pause_s=600)
    candidates.offer(make_contact(1), now=0)
    candidates.take(now=0)

    candidates.forget(make_contact(1), now=100)
    candidates.forget(make_contact(2), now=100)

    assert not candidates.offer(make_contact(1), now=100 + RETURN_PAUSE_S - 0.1)
    assert candidates.offer(make_contact(1), now=100 + RETURN_PAUSE_S)


def test_who_comes_and_goes_all_the_time_is_dialed_after_a_pause_each_time():
    candidates = Candidates(pause_s=600)
    dialed_at = []
    for step in range(2_000):
        now = step / 10
        candidates.forget(make_contact(1), now)
        if candidates.offer(make_contact(1), now):
            candidates.take(now)
            dialed_at.append(now)

    assert len(dialed_at) > 50
    assert all(later - earlier >= RETURN_PAUSE_S for earlier, later in pairwise(dialed_at))


def test_another_id_at_the_same_address_does_not_get_round_the_pause():
    candidates = Candidates(pause_s=600)
    candidates.offer(make_contact(1), now=0)
    candidates.take(now=0)

    assert not candidates.offer(Contact(bytes(32), make_contact(1).addresses), now=1)


@given(st.lists(st.tuples(st.integers(0, 3000), st.booleans()), max_size=300))
def test_what_strangers_can_make_us_remember_is_bounded(steps: list[tuple[int, bool]]):
    candidates = Candidates(pause_s=10, source_pause_s=3, trust=NOBODY)

    for now, (number, takes) in enumerate(steps):
        candidates.offer(make_contact(number), now=now)
        if takes:
            candidates.take(now=now)
        candidates.check_invariants()


def test_the_oldest_check_dial_is_forgotten_first():
    candidates = Candidates(pause_s=10**9)

    for number in range(MAX_REMEMBERED + 1):
        candidates.offer(make_contact(number), now=0)
        candidates.take(now=0)

    assert candidates.offer(make_contact(0), now=0)
    assert not candidates.offer(make_contact(1), now=0)
    assert len(candidates) == 1 <= MAX_WAITING


NOBODY = TrustConfig(loopback=False, private=False)


def at(address: str, number: int = 1) -> Contact:
    return Contact(number.to_bytes(32, "big"), (address,))


@pytest.mark.parametrize("source", ["8.8.8.8:{}", "[2a01:4f8:1:2::{}]:9000", "127.0.0.1:{}"])
def test_one_source_gets_a_check_dial_a_second_whatever_ports_it_announces(source: str):
    candidates = Candidates(pause_s=600, trust=NOBODY)
    addresses = [source.format(9000 + number) for number in range(4)]

    assert candidates.offer(at(addresses[0]), now=0)
    assert not candidates.offer(at(addresses[1]), now=0), "one of a source waits"
    candidates.take(now=5)
    assert not candidates.offer(at(addresses[1]), now=5.9)
    assert candidates.offer(at(addresses[1]), now=6)


def test_sources_do_not_wait_for_each_other_and_exempt_ones_for_nothing():
    strict = Candidates(pause_s=600, trust=NOBODY)
    lenient = Candidates(pause_s=600)

    assert all(strict.offer(at(f"8.8.8.{number}:9000"), now=0) for number in range(20))
    assert all(lenient.offer(at(f"127.0.0.1:{9000 + number}"), now=0) for number in range(20))


def test_a_flood_from_one_source_takes_one_of_the_places_to_wait():
    candidates = Candidates(pause_s=600, trust=NOBODY)

    for number in range(1000):
        candidates.offer(at(f"66.6.6.6:{9000 + number}", number), now=0)

    assert len(candidates) == 1
    assert candidates.offer(at("8.8.8.8:9000"), now=0)
    candidates.check_invariants()


def test_who_asks_to_be_dialed_waits_for_less_and_is_known_as_one_who_asked():
    candidates = Candidates(pause_s=600)
    candidates.offer(make_contact(1), now=0)
    assert candidates.take(now=0) == (make_contact(1), False)

    assert not candidates.offer(make_contact(1), now=PROVE_PAUSE_S - 1, has_asked=True)
    assert not candidates.offer(make_contact(1), now=PROVE_PAUSE_S)
    assert candidates.offer(make_contact(1), now=PROVE_PAUSE_S, has_asked=True)
    assert candidates.take(now=PROVE_PAUSE_S) == (make_contact(1), True)
    assert not candidates.offer(make_contact(1), now=PROVE_PAUSE_S + 1, has_asked=True)
    candidates.check_invariants()


def test_who_asks_to_be_dialed_has_no_more_dials_of_his_host_than_others():
    candidates = Candidates(pause_s=600, trust=TrustConfig(loopback=False, private=False))

    dialed = 0
    for second in range(100):
        for port in range(9000, 9020):
            candidates.offer(at(f"8.8.8.8:{port}"), now=second, has_asked=True)
        while candidates.take(now=second) is not None:
            dialed += 1
        candidates.check_invariants()

    assert dialed <= 100
