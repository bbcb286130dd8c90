"""What a run keeps for its pictures: bounded, true to what happened, and with no part in the run."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.contact import Contact
from dht.outcome import LookupOutcome
from simulations import virtual_loop
from simulations.samples import FIRST_BIN_S, FOUND, MAX_BINS, MAX_MEMBERS, MISSED, Reservoir, Samples, Timeline
from simulations.statistics import chi_square_p, pearson
from simulations.world import World


def outcome_of(hops: int | None, failed: int = 0, target: bytes = bytes(32)) -> LookupOutcome:
    closest = (Contact(b"\x01" * 32, ()),)
    return LookupOutcome(target, closest, hops, 3, failed, found=False, complete=True, trace=())


def samples() -> Samples:
    return Samples(random.Random(1))


@given(st.lists(st.tuples(st.floats(0, 1e7), st.sampled_from("ab")), max_size=50))
def test_a_timeline_counts_everything_in_the_bin_of_its_time(happened: list[tuple[float, str]]):
    timeline = Timeline()

    for at_s, what in happened:
        timeline.add(at_s, what)

    expected: dict[str, list[int]] = {what: [0] * MAX_BINS for _, what in happened}
    for at_s, what in happened:
        expected[what][int(at_s / timeline.width_s)] += 1
    assert timeline.counts == expected


@given(st.floats(0, 1e7))
def test_a_timeline_is_no_wider_than_its_latest_event_needs(at_s: float):
    timeline = Timeline()

    timeline.add(at_s, FOUND)

    assert timeline.width_s == FIRST_BIN_S or at_s >= MAX_BINS * timeline.width_s / 2


def test_a_reservoir_has_everything_until_it_is_full_and_never_more_than_its_size():
    reservoir = Reservoir(random.Random(1), 5)

    for value in range(5):
        reservoir.add(value)
    first = list(reservoir.values)
    for value in range(5, 1000):
        reservoir.add(value)

    assert first == [0, 1, 2, 3, 4]
    assert (len(reservoir.values), reservoir.count) == (5, 1000)
    assert len(set(reservoir.values)) == 5


def test_every_value_is_as_likely_to_be_kept():
    rng = random.Random(1)
    counts = [0] * 20

    for _ in range(2000):
        reservoir = Reservoir(rng, 5)
        for value in range(20):
            reservoir.add(value)
        for value in reservoir.values:
            counts[int(value)] += 1

    assert chi_square_p(pearson(counts, [500.0] * 20), 19) > 0.001


def test_a_lookup_counts_when_it_began_and_by_its_kind():
    kept = samples()

    kept.add_lookup("early", 1.0, 0.5, is_success=True)
    kept.add_lookup("strict", 2.0, 1.5, is_success=False)
    kept.add_seconds("strict", 2.5)

    assert {kind: each.values for kind, each in kept.seconds.items()} == {"early": [0.5], "strict": [1.5, 2.5]}
    assert kept.timeline.counts[FOUND][int(1.0 / FIRST_BIN_S)] == 1
    assert kept.timeline.counts[MISSED][int(2.0 / FIRST_BIN_S)] == 1


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        ("crash", "crash"),
        ("fall silent", "silence"),
        ("pause 3.0 s", "standstill"),
        ("cut 1 both ways", "cut off"),
        ("ClockSkew(host=3, skew_s=5.0)", "wrong clock"),
        ("Crash(host=3)", None),  # of a timetable: the crash itself follows
        ("", None),
    ],
)
def test_a_fault_is_counted_once_by_what_is_done(fault: str, name: str | None):
    kept = samples()

    kept.add_fault(0.0, fault)

    assert list(kept.timeline.counts) == ([] if name is None else [name])


def test_the_lookup_that_shows_most_is_kept_and_of_equals_the_first():
    kept = samples()
    asked = [
        (outcome_of(2), True, True),
        (outcome_of(2), True, False),
        (outcome_of(2, failed=1), None, True),
        (outcome_of(1, failed=9), True, False),
        (outcome_of(3), True, True),
        (outcome_of(None), False, True),
        (outcome_of(9, failed=9), True, False),
    ]

    for outcome, is_success, is_wanted in asked:
        assert kept.is_wanted(outcome, is_success=is_success) is is_wanted
        if is_wanted:
            kept.keep_trace(b"\x00" * 32, outcome, [], k=3, is_success=is_success)

    assert kept.traced is not None
    assert kept.traced.is_success is False


def test_the_swarm_beside_a_lookup_is_a_part_of_it_and_the_nearest_are_of_all():
    rng = random.Random(1)
    members = [rng.randbytes(32) for _ in range(3 * MAX_MEMBERS)]
    target, searcher = rng.randbytes(32), members[7]
    kept = samples()

    kept.keep_trace(searcher, outcome_of(1, target=target), members, k=20, is_success=True)

    by_distance = sorted(members, key=lambda each: int.from_bytes(each, "big") ^ int.from_bytes(target, "big"))
    traced = kept.traced
    assert traced is not None
    assert list(traced.nearest) == [each for each in by_distance if each != searcher][:20]
    assert (traced.member_count, len(set(traced.members))) == (3 * MAX_MEMBERS, MAX_MEMBERS)
    assert {*traced.members} < {*members} - {searcher}
    assert list(traced.members) == sorted(traced.members)


def test_what_is_kept_takes_nothing_from_the_chance_of_the_run():
    async def live() -> bool:
        world = World(asyncio.get_running_loop(), seed=1)  # type: ignore[arg-type]
        before = world.rng.getstate()
        for _ in range(20_000):
            world.note_lookup("early", 0.0, is_success=True)
        world.note_trace(b"\x00" * 32, outcome_of(3), k=20)
        return world.rng.getstate() == before

    assert virtual_loop.run(live())
