from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from synapse_p2p.protocol.pool_policy import (
    AcceptedConnections,
    DialBackoff,
    SessionFacts,
    SessionLimits,
    SessionUse,
    Survivor,
    choose_survivor,
    has_place,
    sessions_to_close,
)

IDS = st.binary(min_size=32, max_size=32)
INSTANCES = st.binary(min_size=8, max_size=8)
USES = st.lists(st.tuples(st.floats(0, 100), st.booleans(), st.booleans()), max_size=30)
LIMITS = st.builds(
    lambda max_accepted, reserved, max_idle: SessionLimits(max_accepted + reserved, max_accepted, max_idle),
    st.integers(1, 20),
    st.integers(0, 5),
    st.integers(1, 20),
)


@given(IDS, IDS, INSTANCES, INSTANCES, st.booleans(), st.booleans())
def test_both_ends_of_two_crossing_sessions_keep_the_same_one(
    one: bytes, other: bytes, instance_one: bytes, instance_other: bytes, opened_first_by_one: bool, swaps_order: bool
):
    """Whatever order each end saw the two sessions open in."""
    if one == other:
        return
    order_at_one = [opened_first_by_one, not opened_first_by_one]  # is it dialed by `one`, older session first
    order_at_other = order_at_one[::-1] if swaps_order else order_at_one

    def dialer_kept(own: bytes, peer: bytes, peer_instance: bytes, order: list[bool]) -> bytes:
        older, newer = (SessionFacts(peer_instance, by_one == (own == one)) for by_one in order)
        survivor = choose_survivor(own, peer, older, newer)
        assert survivor is not Survivor.BOTH
        return one if order[survivor is Survivor.NEWER] else other

    kept_at_one = dialer_kept(one, other, instance_other, order_at_one)
    kept_at_other = dialer_kept(other, one, instance_one, order_at_other)

    assert kept_at_one == kept_at_other == min(one, other)


@given(IDS, IDS, INSTANCES)
def test_of_two_dialed_by_one_side_that_side_alone_ends_the_older(own_id: bytes, peer_id: bytes, instance: bytes):
    dialed, accepted = SessionFacts(instance, True), SessionFacts(instance, False)

    assert choose_survivor(own_id, peer_id, dialed, dialed) is Survivor.NEWER
    assert choose_survivor(peer_id, own_id, accepted, accepted) is Survivor.BOTH


@given(IDS, IDS, st.lists(INSTANCES, min_size=2, max_size=2, unique=True), st.booleans(), st.booleans())
def test_sessions_with_different_processes_of_one_peer_both_stay(
    own_id: bytes, peer_id: bytes, instances: list[bytes], is_older_dialed: bool, is_newer_dialed: bool
):
    older, newer = SessionFacts(instances[0], is_older_dialed), SessionFacts(instances[1], is_newer_dialed)

    assert choose_survivor(own_id, peer_id, older, newer) is Survivor.BOTH


def test_sessions_take_a_quarter_of_the_descriptors_at_most_and_keep_some_places_for_our_dials():
    assert SessionLimits.of(256, 8, 64, 20_000) == SessionLimits(256, 248, 64)
    assert SessionLimits.of(256, 8, 64, None) == SessionLimits(256, 248, 64)
    assert SessionLimits.of(256, 8, 64, 256) == SessionLimits(64, 56, 64)
    assert SessionLimits.of(4, 8, 64, None) == SessionLimits(4, 2, 64)
    assert SessionLimits.of(256, 8, 64, 2) == SessionLimits(1, 1, 64)


def uses_of(drawn: list[tuple[float, bool, bool]]) -> list[SessionUse[int]]:
    return [SessionUse(number, *facts) for number, facts in enumerate(drawn)]


@given(USES, LIMITS)
def test_the_idle_sessions_over_the_limits_go_least_recently_used_first(
    drawn: list[tuple[float, bool, bool]], limits: SessionLimits
):
    uses = uses_of(drawn)

    closed = sessions_to_close(uses, limits)

    kept = [use for use in uses if use.session not in closed]
    kept_idle = [use for use in kept if use.is_idle]
    gone = [use for use in uses if use.session in closed]
    assert len(closed) == len(set(closed)) == len(gone)
    assert all(use.is_idle for use in gone)
    assert len(kept_idle) <= limits.max_idle
    assert len(kept) <= limits.max_sessions or not kept_idle
    assert sum(use.is_accepted for use in kept) <= limits.max_accepted or not any(u.is_accepted for u in kept_idle)
    # Nobody goes before one of the same kind that was used longer ago.
    for is_accepted in (False, True):
        latest_gone = max((use.last_used for use in gone if use.is_accepted == is_accepted), default=0.0)
        assert all(latest_gone <= use.last_used for use in kept_idle if use.is_accepted == is_accepted)


@given(USES, LIMITS)
def test_no_session_goes_that_could_have_stayed(drawn: list[tuple[float, bool, bool]], limits: SessionLimits):
    uses = uses_of(drawn)

    closed = sessions_to_close(uses, limits)

    for back in closed:
        kept = [use for use in uses if use.session not in closed or use.session == back]
        is_too_many = (
            len(kept) > limits.max_sessions
            or sum(use.is_idle for use in kept) > limits.max_idle
            or (uses[back].is_accepted and sum(use.is_accepted for use in kept) > limits.max_accepted)
        )
        assert is_too_many


@given(USES, LIMITS)
def test_no_session_goes_where_there_are_the_fewest(drawn: list[tuple[float, bool, bool]], limits: SessionLimits):
    assert sessions_to_close(uses_of(drawn[: limits.fewest]), limits) == []


@given(USES, LIMITS)
def test_there_is_a_place_exactly_when_closing_idle_ones_makes_one(
    drawn: list[tuple[float, bool, bool]], limits: SessionLimits
):
    uses = uses_of(drawn)
    newcomer = SessionUse(len(uses), 200.0, is_idle=False, is_accepted=True)

    closed = sessions_to_close([*uses, newcomer], limits)

    kept = [use for use in [*uses, newcomer] if use.session not in closed]
    fits = len(kept) <= limits.max_sessions and sum(use.is_accepted for use in kept) <= limits.max_accepted
    assert has_place(uses, limits) == fits


def test_a_session_in_use_is_never_closed_for_room():
    uses = [SessionUse(number, 0.0, is_idle=False, is_accepted=bool(number % 2)) for number in range(10)]

    assert sessions_to_close(uses, SessionLimits(1, 1, 1)) == []


class Doors(RuleBasedStateMachine):
    """AcceptedConnections against lists that are searched."""

    def __init__(self) -> None:
        super().__init__()
        self.accepted: AcceptedConnections[int] = AcceptedConnections(
            max_unproved=6, max_unproved_per_host=3, max_sessions_per_host=2
        )
        self.unproved: list[tuple[int, str | None]] = []
        self.sessions: list[tuple[int, str | None]] = []
        self.number = 0

    @rule(host=st.sampled_from(["a", "b", "c", None]))
    def add(self, host: str | None) -> None:
        self.number += 1
        same = [held for held in self.unproved if host is not None and held[1] == host]
        expected = same[0] if len(same) == 3 else self.unproved[0] if len(self.unproved) == 6 else None

        surplus = self.accepted.add(self.number, host)

        assert surplus == (None if expected is None else expected[0])
        self.unproved = [held for held in self.unproved if held != expected] + [(self.number, host)]

    @precondition(lambda self: self.unproved)
    @rule(data=st.data())
    def prove(self, data: st.DataObject) -> None:
        held = data.draw(st.sampled_from(self.unproved))
        is_full = held[1] is not None and sum(session[1] == held[1] for session in self.sessions) == 2
        self.unproved.remove(held)

        assert self.accepted.is_host_full(held[1]) == is_full
        assert self.accepted.on_proved(held[0]) == (not is_full)
        if not is_full:
            self.sessions.append(held)

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(0, self.number))
        self.accepted.remove(number)
        self.unproved = [held for held in self.unproved if held[0] != number]
        self.sessions = [held for held in self.sessions if held[0] != number]

    @rule()
    def drop_oldest(self) -> None:
        expected = self.unproved.pop(0)[0] if self.unproved else None

        assert self.accepted.take_oldest_unproved() == expected

    @rule(data=st.data())
    def prove_one_that_went(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(0, self.number))
        if number not in [held[0] for held in self.unproved]:
            assert not self.accepted.on_proved(number)

    @invariant()
    def counts_are_right(self) -> None:
        self.accepted.check_invariants()
        assert self.accepted.unproved_count == len(self.unproved)


TestDoors = Doors.TestCase


def backoff(*, max_remembered: int = 10) -> DialBackoff:
    return DialBackoff(pause_s=1.0, max_pause_s=8.0, max_remembered=max_remembered)


def test_an_address_rests_twice_as_long_after_every_failure_up_to_the_limit():
    dials = backoff()
    now, rests = 100.0, []
    for _ in range(6):
        dials.on_failure("a", now)
        rests.append(next(rest for rest in (1.0, 2.0, 4.0, 8.0, 16.0) if not dials.is_resting("a", now + rest)))
        assert dials.is_resting("a", now + rests[-1] - 0.001)
        now += rests[-1]

    assert rests == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]


def test_a_success_ends_the_rest_and_starts_again_from_the_shortest():
    dials = backoff()
    for _ in range(3):
        dials.on_failure("a", 0.0)

    dials.on_success("a")
    assert not dials.is_resting("a", 0.0)
    assert len(dials) == 0

    dials.on_failure("a", 0.0)
    assert dials.is_resting("a", 0.999)
    assert not dials.is_resting("a", 1.0)


def test_once_failures_prove_nothing_no_address_rests():
    dials = backoff()
    for address in "ab":
        dials.on_failure(address, 0.0)

    dials.forget()

    assert len(dials) == 0
    assert not dials.is_resting("a", 0.5)


def test_an_address_that_never_failed_does_not_rest():
    dials = backoff()
    dials.on_failure("a", 0.0)
    dials.on_success("never dialed")

    assert not dials.is_resting("b", 0.0)


def test_the_longest_ago_failure_is_forgotten_first():
    dials = backoff(max_remembered=2)
    for address in ("a", "b", "a", "c"):
        dials.on_failure(address, 0.0)

    assert [dials.is_resting(address, 0.5) for address in ("a", "b", "c")] == [True, False, True]


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.booleans(), st.floats(0, 100)), max_size=60))
def test_what_is_remembered_and_how_long_it_rests_are_bounded(steps: list[tuple[str, bool, float]]):
    dials = backoff(max_remembered=3)
    now = 0.0
    for address, is_failure, passed in steps:
        now += passed
        if is_failure:
            dials.on_failure(address, now)
            assert dials.is_resting(address, now)
        else:
            dials.on_success(address)
            assert not dials.is_resting(address, now)

        assert len(dials) <= 3
        assert not any(dials.is_resting(each, now + 8.001) for each in "abcdefgh")


@pytest.mark.parametrize("pause_s", [9.0, 1000.0])
def test_the_first_rest_is_bounded_too(pause_s: float):
    dials = DialBackoff(pause_s=pause_s, max_pause_s=8.0, max_remembered=1)

    dials.on_failure("a", 0.0)

    assert not dials.is_resting("a", 8.0)


def test_a_session_just_accepted_is_not_closed_for_being_idle_but_for_its_place():
    limits = SessionLimits(max_sessions=3, max_accepted=3, max_idle=1)
    old, older = (SessionUse(name, at, is_idle=True, is_accepted=True) for name, at in (("old", 2.0), ("older", 1.0)))
    fresh = [SessionUse(f"fresh {n}", 3.0 + n, is_idle=True, is_accepted=True, is_settled=False) for n in range(3)]

    assert sessions_to_close([old, older, fresh[0]], limits) == ["older"]
    assert sessions_to_close(fresh, limits) == []
    assert sessions_to_close([*fresh, old], limits) == ["old"]
    assert sessions_to_close([*fresh, replace(fresh[2], session="newest", last_used=9.0)], limits) == ["fresh 0"]
