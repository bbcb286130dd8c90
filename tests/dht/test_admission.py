from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dht.admission import MAX_REMEMBERED, MAX_WAITING, Candidates
from dht.contact import Contact


def make_contact(number: int) -> Contact:
    return Contact(number.to_bytes(32, "big"), (f"10.0.{number // 250}.{number % 250 + 1}:9000",))


def test_candidates_are_taken_in_the_order_in_which_they_came():
    candidates = Candidates(pause_s=600)

    for number in (3, 1, 2):
        assert candidates.offer(make_contact(number), now=0)

    assert [candidates.take(now=0) for _ in range(4)] == [make_contact(3), make_contact(1), make_contact(2), None]


def test_an_address_is_dialed_again_only_after_the_pause():
    candidates = Candidates(pause_s=600)
    candidates.offer(make_contact(1), now=0)
    candidates.take(now=0)

    assert not candidates.offer(make_contact(1), now=599)
    assert candidates.offer(make_contact(1), now=600)


def test_another_id_at_the_same_address_does_not_get_round_the_pause():
    candidates = Candidates(pause_s=600)
    candidates.offer(make_contact(1), now=0)
    candidates.take(now=0)

    assert not candidates.offer(Contact(bytes(32), make_contact(1).addresses), now=1)


@given(st.lists(st.tuples(st.integers(0, 3000), st.booleans()), max_size=300))
def test_what_strangers_can_make_us_remember_is_bounded(steps: list[tuple[int, bool]]):
    candidates = Candidates(pause_s=10)

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
