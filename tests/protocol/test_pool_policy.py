import pytest
from hypothesis import given
from hypothesis import strategies as st

from synapse_p2p.protocol.pool_policy import (
    DialBackoff,
    SessionFacts,
    SessionUse,
    Survivor,
    choose_survivor,
    sessions_to_close,
)

IDS = st.binary(min_size=32, max_size=32)
INSTANCES = st.binary(min_size=8, max_size=8)
USES = st.lists(st.tuples(st.floats(0, 100), st.booleans()), max_size=30)


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


@given(USES, st.integers(1, 20), st.integers(1, 20))
def test_the_idle_sessions_over_the_limits_go_least_recently_used_first(
    drawn: list[tuple[float, bool]], max_sessions: int, max_idle: int
):
    uses = [SessionUse(number, last_used, is_idle) for number, (last_used, is_idle) in enumerate(drawn)]

    closed = sessions_to_close(uses, max_sessions=max_sessions, max_idle=max_idle)

    idle = [use for use in uses if use.is_idle]
    kept = [use for use in idle if use.session not in closed]
    assert len(closed) == len(set(closed)) == len(idle) - len(kept)
    assert len(kept) <= max_idle
    assert len(uses) - len(closed) <= max_sessions or not kept
    assert all(uses[gone].last_used <= use.last_used for gone in closed for use in kept)
    within_limits = len(idle) <= max_idle and len(uses) <= max_sessions
    assert (not closed) == (within_limits or not idle)


def test_a_session_in_use_is_never_closed_for_room():
    uses = [SessionUse(number, 0.0, is_idle=False) for number in range(10)]

    assert sessions_to_close(uses, max_sessions=1, max_idle=1) == []


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
