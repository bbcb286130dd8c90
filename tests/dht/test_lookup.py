"""The machine by itself: static networks against brute force, its promises under any delays, and each rule alone."""

from __future__ import annotations

from itertools import count
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dht.config import LookupConfig
from dht.contact import Contact
from dht.keyspace import distance
from dht.lookup import (
    SHORTLIST_FACTOR,
    Ask,
    Finished,
    Lookup,
    LookupMode,
    LookupOutcome,
    Strangers,
    TraceEvent,
    TraceStep,
    Wait,
    Why,
    Widen,
)
from dht.region import SPACE, GroupOf, Region, thin
from tests.dht.lookup_model import Model, play

TARGET = bytes(32)
OWN_ID = b"\xff" * 32


def contact_at(number: int, host: int = 1) -> Contact:
    """A contact at distance `number` from TARGET."""
    return Contact(number.to_bytes(32, "big"), (f"10.0.0.{host}:{9000 + number % 50_000}",))


def lookup_of(*seeds: Contact, mode: LookupMode = LookupMode.STRICT, **config: float) -> Lookup:
    return Lookup(
        TARGET, own_id=OWN_ID, seeds=seeds, mode=mode, config=LookupConfig(**{"request_timeout_s": 2.0, **config})
    )


def asked_by(lookup: Lookup, now: float = 0.0) -> tuple[Contact, ...]:
    step = lookup.poll(now)
    assert isinstance(step, Ask)
    return step.contacts


def outcome_of(lookup: Lookup, now: float = 0.0) -> LookupOutcome:
    step = lookup.poll(now)
    assert isinstance(step, Finished)
    return step.outcome


class Slow(Strangers):
    """All count as slow after a second; `connected` need no dial, `resting` failed a moment ago."""

    def __init__(
        self,
        config: LookupConfig | None = None,
        *,
        connected: tuple[Contact, ...] = (),
        resting: tuple[Contact, ...] = (),
    ) -> None:
        super().__init__(config or LookupConfig())
        self.connected = connected
        self.resting = resting
        self.rtts_s: dict[bytes, float] = {}
        self.groups: dict[tuple[str, ...], str] = {}

    def timeouts_s(self, contact: Contact) -> tuple[float, float]:
        return 1.0, 4.0

    def is_connected(self, contact: Contact) -> bool:
        return contact in self.connected

    def is_resting(self, contact: Contact) -> bool:
        return contact in self.resting

    def rtt_s(self, contact: Contact) -> float:
        return self.rtts_s.get(contact.id, 0.1)

    @property
    def group_of(self) -> GroupOf:
        return self.groups.get


SIZES = st.integers(1, 60) | st.integers(61, 500)


@settings(max_examples=15, deadline=None)
@given(SIZES, st.sampled_from([3, 8, 20]), st.sampled_from([LookupMode.STRICT, LookupMode.GUARDED]), st.integers())
def test_the_true_k_closest_of_an_honest_network_are_found(size: int, k: int, mode: LookupMode, seed: int):
    config = LookupConfig(k=k, max_requests=1000)
    model = Model.grow(size + 1, Random(seed), config=config, knows_size=False)
    asker, target = model.honest(), model.rng.randbytes(32)

    outcome = model.lookup(asker, target, mode)

    others = sorted((node.id for node in model.nodes if node != asker), key=lambda node: distance(node, target))
    assert [contact.id for contact in outcome.closest] == others[:k]
    assert (outcome.complete, outcome.failed, outcome.found) == (True, 0, False)


@settings(max_examples=15, deadline=None)
@given(SIZES, st.sampled_from([LookupMode.STRICT, LookupMode.GUARDED]), st.integers())
def test_who_knows_the_size_finds_all_inside_the_region_and_whom_density_lets_in(
    size: int, mode: LookupMode, seed: int
):
    model = Model.grow(size + 1, Random(seed), config=LookupConfig(max_requests=1000), spread=0.0)
    asker, target = model.honest(), model.rng.randbytes(32)
    region = model.regions[asker.id]

    outcome = model.lookup(asker, target, mode)

    point = int.from_bytes(target, "big")
    others = sorted((node for node in model.nodes if node != asker), key=lambda node: node.point ^ point)
    kept, skipped = thin(others, target, region, model.group_of, max_per_group=2)
    inside = [node for node in kept if region.is_inside(node, target)][:60]
    assert list(outcome.region) == inside
    if not skipped:
        assert list(outcome.closest) == others[:20]


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 300), st.integers())
def test_a_put_reaches_the_true_region_and_k_nodes_in_any_case(size: int, seed: int):
    model = Model.grow(size + 1, Random(seed), spread=0.0)
    owner, key = model.honest(), model.rng.randbytes(32)
    region = model.regions[owner.id]

    requests = model.put(owner, key)

    point = int.from_bytes(key, "big")
    others = sorted((node for node in model.nodes if node != owner), key=lambda node: node.point ^ point)
    kept, _ = thin(others, key, region, model.group_of, max_per_group=2)
    inside = {node.id for node in kept[:60] if region.is_inside(node, key)}
    assert inside <= model.holders[key]
    assert len(model.holders[key]) >= min(20, size)
    assert len(model.holders[key]) <= requests


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 120), st.sampled_from(LookupMode), st.integers(1, 5), st.integers(1, 60), st.integers())
def test_lookup_ends_under_any_failures_and_delays(
    size: int, mode: LookupMode, alpha: int, max_requests: int, seed: int
):
    rng = Random(seed)
    config = LookupConfig(k=5, alpha=alpha, max_requests=max(alpha, max_requests), request_timeout_s=2.0)
    model = Model.grow(size, rng, config=config)
    asker, target = model.honest(), rng.randbytes(32)
    table = model.tables[asker.id]
    lookup = Lookup(
        target,
        own_id=asker.id,
        seeds=table.closest(target, 5),
        mode=mode,
        config=config,
        region=rng.choice([None, model.regions[asker.id]]),
    )
    answered: set[bytes] = set()

    def tell(asked: Contact) -> tuple[float, list[Contact] | None, bool]:
        delay = rng.choice([0.0, 0.1, 1.9, 2.0, 2.1, 9.0])
        if rng.random() < 0.3:
            return delay, None, False
        if delay <= config.request_timeout_s:
            answered.add(asked.id)
        return delay, model.answer(asked, asker, target, -1), rng.random() < 0.1

    outcome = play(lookup, config, tell, lambda number: table.closest(target, number))

    ids = [contact.id for contact in outcome.closest]
    assert ids == sorted(ids, key=lambda node_id: distance(node_id, target))
    assert set(ids) <= answered
    assert outcome.failed <= outcome.asked <= config.max_requests
    assert (outcome.hops is None) == (not ids)


@given(st.integers(1, 64), st.integers(1, 60), st.integers())
def test_lies_cannot_make_a_lookup_ask_more_than_its_budget(named: int, max_requests: int, seed: int):
    rng = Random(seed)
    config = LookupConfig(k=5, alpha=1, max_requests=max_requests, request_timeout_s=2.0)
    lookup = lookup_of(contact_at(2**30), k=5, alpha=1, max_requests=max_requests)
    invented = count(2**29, -1)

    # Every answer names nodes that nobody named before and that are nearer than all of those.
    outcome = play(
        lookup,
        config,
        lambda _: (rng.random(), [contact_at(next(invented)) for _ in range(named)], False),
        lambda _: [],
    )

    assert outcome.asked == max_requests
    assert not outcome.complete


def test_strict_ends_when_the_k_closest_answered_and_nothing_is_in_flight():
    lookup = lookup_of(contact_at(3), contact_at(4), contact_at(5), k=2, alpha=2)
    assert asked_by(lookup) == (contact_at(3), contact_at(4))

    lookup.on_reply(contact_at(3).id, [contact_at(1)], 0.0)
    assert asked_by(lookup) == (contact_at(1),)
    lookup.on_reply(contact_at(1).id, [], 0.0)
    assert isinstance(lookup.poll(0.0), Wait)
    lookup.on_reply(contact_at(4).id, [], 0.0)

    outcome = outcome_of(lookup)
    assert outcome.closest == (contact_at(1), contact_at(3))
    assert (outcome.asked, outcome.failed, outcome.complete, outcome.found) == (3, 0, True, False)


def test_early_ends_when_the_three_closest_answered_whoever_is_still_asked():
    lookup = lookup_of(*(contact_at(number) for number in range(2, 9)), mode=LookupMode.EARLY, alpha=4)
    assert asked_by(lookup) == (contact_at(2), contact_at(3), contact_at(4))

    lookup.on_reply(contact_at(2).id, [contact_at(1)], 0.0)
    assert asked_by(lookup) == (contact_at(1),)
    lookup.on_reply(contact_at(1).id, [], 0.0)
    lookup.on_reply(contact_at(3).id, [], 0.0)

    # The fourth is in flight still; it is not among the three closest any more.
    assert outcome_of(lookup).closest == (contact_at(1), contact_at(2), contact_at(3))


def test_early_is_content_with_fewer_where_there_are_no_three():
    lookup = lookup_of(contact_at(1), contact_at(2), mode=LookupMode.EARLY)
    asked_by(lookup)

    lookup.on_reply(contact_at(1).id, [], 0.0)
    assert isinstance(lookup.poll(0.0), Wait)
    lookup.on_failure(contact_at(2).id, 0.0)

    assert outcome_of(lookup).closest == (contact_at(1),)


def test_fast_ends_at_the_first_value():
    lookup = lookup_of(*(contact_at(number) for number in range(1, 9)), mode=LookupMode.FAST)
    asked_by(lookup)

    lookup.on_found(contact_at(3).id, [], 0.5)

    outcome = outcome_of(lookup, 0.5)
    assert (outcome.found, outcome.complete, outcome.closest) == (True, True, (contact_at(3),))


def test_fast_without_a_value_is_strict_and_then_widens():
    lookup = lookup_of(contact_at(1), contact_at(2), mode=LookupMode.FAST)
    asked_by(lookup)

    lookup.on_reply(contact_at(1).id, [], 0.0)
    assert isinstance(lookup.poll(0.0), Wait)
    lookup.on_reply(contact_at(2).id, [], 0.0)
    assert isinstance(lookup.poll(0.0), Widen)
    lookup.on_widen([], 0.0)

    assert not outcome_of(lookup).found


@pytest.mark.parametrize("mode", [LookupMode.STRICT, LookupMode.EARLY])
def test_a_value_is_a_reply_like_any_other_to_other_modes(mode: LookupMode):
    lookup = lookup_of(contact_at(5), mode=mode)
    asked_by(lookup)

    lookup.on_found(contact_at(5).id, [contact_at(1)], 0.0)

    assert asked_by(lookup) == (contact_at(1),)
    lookup.on_reply(contact_at(1).id, [], 0.0)
    assert outcome_of(lookup).found


def test_a_request_unanswered_in_time_counts_as_failed():
    lookup = lookup_of(contact_at(1), contact_at(2), request_timeout_s=2.0, alpha=1)
    asked_by(lookup, 10.0)

    assert lookup.poll(11.0) == Wait(12.0)
    assert asked_by(lookup, 12.0) == (contact_at(2),)
    assert lookup.poll(12.0) == Wait(14.0)


@pytest.mark.parametrize("sender", [contact_at(1), contact_at(7), Contact(OWN_ID, ())])
def test_replies_of_those_not_in_flight_are_ignored(sender: Contact):
    lookup = lookup_of(contact_at(1), contact_at(2), alpha=1)
    asked_by(lookup, 0.0)
    asked_by(lookup, 2.0)

    lookup.on_reply(sender.id, [contact_at(0)], 2.0)
    lookup.on_found(sender.id, [contact_at(0)], 2.0)
    lookup.on_failure(sender.id, 2.0)

    assert lookup.poll(2.0) == Wait(4.0)
    lookup.on_reply(contact_at(2).id, [], 3.0)
    outcome = outcome_of(lookup, 3.0)
    assert (outcome.closest, outcome.asked, outcome.failed, outcome.found) == ((contact_at(2),), 2, 1, False)


def test_nothing_changes_an_outcome():
    lookup = lookup_of(contact_at(1), contact_at(2), contact_at(3), mode=LookupMode.FAST)
    asked_by(lookup)
    lookup.on_found(contact_at(1).id, [], 0.0)
    outcome = outcome_of(lookup)

    lookup.on_found(contact_at(2).id, [contact_at(0)], 1.0)
    lookup.on_reply(contact_at(2).id, [contact_at(0)], 1.0)
    lookup.on_failure(contact_at(3).id, 1.0)

    assert lookup.poll(1.0) == Finished(outcome)


def test_a_failed_contact_is_never_asked_again_though_others_name_it():
    lookup = lookup_of(contact_at(1), contact_at(2), alpha=1)
    asked_by(lookup)
    lookup.on_failure(contact_at(1).id, 0.0)
    asked_by(lookup)

    lookup.on_reply(contact_at(2).id, [contact_at(1)], 0.0)

    assert outcome_of(lookup).closest == (contact_at(2),)


def test_own_id_is_never_asked():
    lookup = Lookup(
        TARGET,
        own_id=contact_at(1).id,
        seeds=[contact_at(1), contact_at(2)],
        mode=LookupMode.STRICT,
        config=LookupConfig(),
    )
    assert asked_by(lookup) == (contact_at(2),)

    lookup.on_reply(contact_at(2).id, [contact_at(1)], 0.0)

    assert outcome_of(lookup).closest == (contact_at(2),)


def test_a_contact_named_twice_keeps_its_first_addresses():
    lookup = lookup_of(contact_at(4), contact_at(5, host=1), alpha=1)
    asked_by(lookup)

    lookup.on_reply(contact_at(4).id, [contact_at(5, host=2)], 0.0)

    assert asked_by(lookup) == (contact_at(5, host=1),)


def test_hops_are_the_smallest_depth_at_which_the_closest_was_named_before_it_was_asked():
    # 90 names 80, 80 names 1; then 70, a seed asked last, names 1 as well, while it is unasked: depth 2, not 3.
    lookup = lookup_of(contact_at(90), contact_at(91), k=20, alpha=2)
    asked_by(lookup)
    lookup.on_reply(contact_at(90).id, [contact_at(80)], 0.0)
    asked_by(lookup)
    lookup.on_reply(contact_at(80).id, [contact_at(1)], 0.0)
    lookup.on_reply(contact_at(91).id, [contact_at(1)], 0.0)
    asked_by(lookup)
    lookup.on_reply(contact_at(1).id, [], 0.0)

    assert outcome_of(lookup).hops == 2


def test_being_named_on_a_shorter_way_after_it_was_asked_changes_no_hops():
    lookup = lookup_of(contact_at(90), contact_at(91), alpha=2)
    asked_by(lookup)
    lookup.on_reply(contact_at(90).id, [contact_at(80)], 0.0)
    asked_by(lookup)
    lookup.on_reply(contact_at(80).id, [contact_at(1)], 0.0)
    asked_by(lookup)
    lookup.on_reply(contact_at(91).id, [contact_at(1)], 0.0)
    lookup.on_reply(contact_at(1).id, [], 0.0)

    assert outcome_of(lookup).hops == 3


def test_seeds_have_depth_one():
    lookup = lookup_of(contact_at(1))
    asked_by(lookup)
    lookup.on_reply(contact_at(1).id, [], 0.0)

    assert outcome_of(lookup).hops == 1


def test_trace_tells_who_was_asked_and_what_came_of_it():
    lookup = lookup_of(contact_at(1), contact_at(2), alpha=2)
    asked_by(lookup, 1.0)
    lookup.on_reply(contact_at(2).id, [], 1.5)

    outcome = outcome_of(lookup, 3.0)

    assert outcome.trace == (
        TraceStep(1.0, TraceEvent.ASKED, contact_at(1).id, 1, 0, Why.NEAREST),
        TraceStep(1.0, TraceEvent.ASKED, contact_at(2).id, 1, 0, Why.NEAREST),
        TraceStep(1.5, TraceEvent.ANSWERED, contact_at(2).id, 1),
        TraceStep(3.0, TraceEvent.FAILED, contact_at(1).id, 1),
    )


def test_trace_tells_who_of_one_hop_before_named_the_one_that_was_asked():
    # As above: 80 names 1 first, at depth 3, and then 91 does, at depth 2.
    lookup = lookup_of(contact_at(90), contact_at(91), k=20, alpha=2)
    asked_by(lookup)
    lookup.on_reply(contact_at(90).id, [contact_at(80)], 0.0)
    asked_by(lookup)
    lookup.on_reply(contact_at(80).id, [contact_at(1)], 0.0)
    lookup.on_reply(contact_at(91).id, [contact_at(1)], 0.0)
    asked_by(lookup)
    lookup.on_reply(contact_at(1).id, [], 0.0)

    asked = [step for step in outcome_of(lookup).trace if step.event is TraceEvent.ASKED]

    assert [(step.contact_id, step.depth, step.named_by) for step in asked] == [
        (contact_at(90).id, 1, None),
        (contact_at(91).id, 1, None),
        (contact_at(80).id, 2, contact_at(90).id),
        (contact_at(1).id, 2, contact_at(91).id),
    ]


@settings(max_examples=5, deadline=None)
@given(st.integers())
def test_whoever_named_somebody_was_asked_before_at_one_hop_less(seed: int):
    model = Model.grow(200, Random(seed), config=LookupConfig(k=8), knows_size=False)

    outcome = model.lookup(model.honest(), model.rng.randbytes(32), LookupMode.STRICT)

    depths: dict[bytes, int] = {}
    for step in outcome.trace:
        if step.event is TraceEvent.ASKED:
            depths[step.contact_id] = step.depth
            assert (0 if step.named_by is None else depths[step.named_by]) in (0, step.depth - 1)
    assert depths


def test_lookup_with_nobody_to_ask_is_over_and_complete():
    outcome = outcome_of(lookup_of())

    assert (outcome.closest, outcome.hops, outcome.asked, outcome.complete) == ((), None, 0, True)


def test_lookup_that_nobody_answered_is_incomplete():
    lookup = lookup_of(contact_at(1))
    asked_by(lookup)
    lookup.on_failure(contact_at(1).id, 0.0)

    outcome = outcome_of(lookup)

    assert (outcome.closest, outcome.failed, outcome.complete) == ((), 1, False)


def test_lookup_that_spent_its_requests_is_incomplete_unless_it_had_all_it_needed():
    seeds = [contact_at(number) for number in (1, 2, 3)]
    short, enough = lookup_of(*seeds, alpha=1, max_requests=2), lookup_of(*seeds, alpha=1, max_requests=2, k=2)

    for lookup in (short, enough):
        for _ in range(2):
            lookup.on_reply(asked_by(lookup)[0].id, [], 0.0)

    assert not outcome_of(short).complete
    assert outcome_of(enough).complete


def test_full_shortlist_drops_the_farthest_unasked():
    far = [contact_at(1000 + number) for number in range(SHORTLIST_FACTOR * 2)]
    lookup = lookup_of(*far, k=2, alpha=2)
    asked_by(lookup)

    lookup.on_reply(far[0].id, [contact_at(1)], 0.0)
    lookup.on_failure(far[1].id, 0.0)

    # The farthest of all gave way to the nearer newcomer: failing through everyone else never reaches it.
    asked = []
    while isinstance(step := lookup.poll(0.0), Ask):
        for contact in step.contacts:
            asked.append(contact)
            lookup.on_failure(contact.id, 0.0)
    assert asked == [contact_at(1), *far[2:-1]]


# Slow answers, and who failed a moment ago


def slow_lookup(*seeds: Contact, mode: LookupMode = LookupMode.STRICT, peers: Slow, **config: int) -> Lookup:
    return Lookup(TARGET, own_id=OWN_ID, seeds=seeds, mode=mode, config=LookupConfig(**config), peers=peers)


def test_past_the_short_time_somebody_else_is_asked_and_the_slow_one_may_still_answer():
    lookup = slow_lookup(contact_at(1), contact_at(2), contact_at(3), alpha=1, peers=Slow())
    assert asked_by(lookup, 0.0) == (contact_at(1),)
    assert lookup.poll(0.5) == Wait(1.0)

    assert asked_by(lookup, 1.0) == (contact_at(2),)
    assert lookup.poll(1.5) == Wait(2.0)
    lookup.on_reply(contact_at(1).id, [], 1.6)
    assert lookup.poll(1.6) == Wait(2.0)
    assert asked_by(lookup, 2.0) == (contact_at(3),)
    lookup.on_reply(contact_at(3).id, [], 2.1)

    assert lookup.poll(2.1) == Wait(5.0)
    outcome = outcome_of(lookup, 5.0)
    assert outcome.closest == (contact_at(1), contact_at(3))
    assert (outcome.slow, outcome.failed) == (2, 1)
    assert [step.why for step in outcome.trace if step.why] == [Why.NEAREST, Why.BRANCH, Why.BRANCH]


def test_slow_ones_are_bounded_however_many_there_are():
    seeds = [contact_at(number) for number in range(1, 41)]
    lookup = slow_lookup(*seeds, k=40, peers=Slow())
    asked: list[Contact] = []

    now = 0.0
    while now < 4.0:
        step = lookup.poll(now)
        if isinstance(step, Ask):
            asked += step.contacts
        else:
            assert isinstance(step, Wait)
            now = step.until

    assert len(asked) == 12


def test_who_failed_another_lookup_a_moment_ago_is_not_waited_for():
    lookup = slow_lookup(contact_at(1), contact_at(2), peers=Slow(resting=(contact_at(1),)))
    assert asked_by(lookup) == (contact_at(2),)
    lookup.on_reply(contact_at(2).id, [contact_at(1)], 0.0)

    assert outcome_of(lookup).closest == (contact_at(2),)


def test_when_nobody_else_answers_those_that_failed_a_moment_ago_are_asked():
    lookup = slow_lookup(contact_at(1), contact_at(2), peers=Slow(resting=(contact_at(1),)))
    asked_by(lookup)
    lookup.on_failure(contact_at(2).id, 0.0)

    assert asked_by(lookup) == (contact_at(1),)
    lookup.on_reply(contact_at(1).id, [], 0.0)
    outcome = outcome_of(lookup)
    assert outcome.closest == (contact_at(1),)
    assert outcome.trace[2].why is Why.RESTING


# The search for a value


def region_of(radius: int, k: int = 20) -> Region:
    return Region(radius, k, Region.unknown(k).floors)


def value_lookup(
    *seeds: Contact, mode: LookupMode, peers: Slow | None = None, radius: int = 100, **config: int
) -> Lookup:
    return Lookup(
        TARGET,
        own_id=OWN_ID,
        seeds=seeds,
        mode=mode,
        config=LookupConfig(**config),
        region=region_of(radius),
        peers=peers,
    )


def test_a_fast_lookup_asks_one_that_needs_no_dial_alone_and_others_once_it_is_slow():
    seeds = [contact_at(number) for number in (1, 2, 3, 4, 200)]
    peers = Slow(connected=(seeds[2],))
    lookup = value_lookup(*seeds, mode=LookupMode.FAST, peers=peers)

    assert asked_by(lookup, 0.0) == (seeds[2],)
    assert lookup.poll(0.0) == Wait(1.0)
    assert asked_by(lookup, 1.0) == (seeds[0], seeds[1], seeds[3])


def test_inside_the_region_the_least_asked_group_goes_first_then_an_open_session_then_a_fast_answer():
    one, two, three, four, far = seeds = [contact_at(number) for number in (1, 2, 3, 4, 200)]
    peers = Slow(connected=(two, three))
    peers.rtts_s = {two.id: 0.5, three.id: 0.2, one.id: 0.1, four.id: 0.3}
    peers.groups = {one.addresses: "a", two.addresses: "b", three.addresses: "b", four.addresses: "a"}
    lookup = value_lookup(*seeds, mode=LookupMode.FAST, peers=peers)

    # `three` is connected and the faster of two; alone in flight. Then nobody of its group: the faster of the others
    # and, as it needs a dial, who comes next beside it.
    assert asked_by(lookup) == (three,)
    lookup.on_reply(three.id, [], 0.0)
    assert asked_by(lookup) == (one, four, two)
    lookup.on_reply(one.id, [], 0.0)

    assert asked_by(lookup) == (far,)


def test_a_fresh_lookup_ends_with_three_groups_and_names_the_stale():
    seeds = [contact_at(number) for number in range(1, 8)]
    peers = Slow()
    peers.groups = {seeds[0].addresses: "a", seeds[1].addresses: "a"}
    lookup = value_lookup(*seeds, mode=LookupMode.FRESH, peers=peers, alpha=7)
    asked_by(lookup)

    for contact, version in zip(seeds[:3], (5, 7, 6), strict=True):
        lookup.on_found(contact.id, [], 0.0, version=version)
    assert isinstance(lookup.poll(0.0), Wait)  # two of them are one party
    lookup.on_reply(seeds[3].id, [], 0.0)
    lookup.on_found(seeds[4].id, [], 0.0, version=7)

    outcome = outcome_of(lookup)
    assert (outcome.found, outcome.complete, outcome.newest) == (True, True, 7)
    assert outcome.stale == (seeds[0], seeds[2], seeds[3])


def test_a_fresh_lookup_is_content_with_fewer_groups_where_all_have_answered():
    seeds = [contact_at(1), contact_at(2)]
    lookup = value_lookup(*seeds, mode=LookupMode.FRESH)
    asked_by(lookup)

    for contact in seeds:
        lookup.on_found(contact.id, [], 0.0, version=1)

    assert outcome_of(lookup).found


def finish(lookup: Lookup, holders: tuple[Contact, ...] = ()) -> list[Contact]:
    """Let everybody answer at once until it is over or wants to widen; who was asked."""
    asked: list[Contact] = []
    while isinstance(step := lookup.poll(0.0), Ask):
        for contact in step.contacts:
            asked.append(contact)
            (lookup.on_found if contact in holders else lookup.on_reply)(contact.id, [], 0.0)
    return asked


def test_a_miss_goes_on_over_four_paths_from_contacts_that_nobody_was_asked_for():
    near = [contact_at(number) for number in range(1, 21)]
    far = [contact_at(1000 + number) for number in range(60)]
    lookup = value_lookup(*near, mode=LookupMode.FAST)
    assert sorted(finish(lookup), key=lambda contact: contact.point) == near

    assert lookup.poll(0.0) == Widen(4 * 10 + 20)
    lookup.on_widen([*near, *far], 0.0)
    step = lookup.poll(0.0)

    assert isinstance(step, Ask)
    assert step.contacts == tuple(far[:4])
    for contact in step.contacts:
        lookup.on_reply(contact.id, near, 0.0)
    assert finish(lookup) == []  # each path has heard of those that answered already
    outcome = outcome_of(lookup)
    assert (outcome.found, outcome.complete, outcome.paths) == (False, True, 5)


SPARSE = SPACE // 20 // 20
"""Between nodes where half as many are near the target as there should be; see `dense_lookup`."""


def dense_lookup(mode: LookupMode, *seeds: Contact) -> Lookup:
    """One that expects its 20 nodes within a 40th of the space."""
    region = Region.of_radius(SPACE // 40, 20)
    return Lookup(TARGET, own_id=OWN_ID, seeds=seeds, mode=mode, config=LookupConfig(), region=region)


def far_contacts(number: int) -> list[Contact]:
    return [contact_at(SPACE // 2 + place) for place in range(number)]


def ring_naming(lookup: Lookup, ring: list[Contact], *, honest: dict[Contact, list[Contact]] | None = None) -> int:
    """Let everybody name the ring alone, but for those honest; how many were asked until it is over or widens."""
    asked = 0
    while isinstance(step := lookup.poll(0.0), Ask):
        for contact in step.contacts:
            asked += 1
            lookup.on_reply(contact.id, (honest or {}).get(contact, ring), 0.0)
    return asked


@pytest.mark.parametrize(("mode", "paths"), [(LookupMode.FAST, 1 + 4 + 2 * 8), (LookupMode.GUARDED, 4 + 2 * 8)])
def test_who_meets_too_few_goes_on_twice_over_eight_paths_then_to_twenty_more_and_knows_that_it_is_incomplete(
    mode: LookupMode, paths: int
):
    ring = [contact_at(SPARSE * number) for number in range(1, 21)]
    own = far_contacts(200)
    lookup = dense_lookup(mode, *own[:40])
    asked = ring_naming(lookup, ring)
    if mode is LookupMode.FAST:
        lookup.on_widen(own, 0.0)
        asked += ring_naming(lookup, ring)

    for number in range(2):
        assert lookup.poll(0.0) == Widen(8 * 10 + asked)
        lookup.on_widen(own, 0.0)
        asked += (more := ring_naming(lookup, ring))
        # Each names those that have answered already, and a path ends with that.
        assert more == (8 if number == 0 else 8 + 20)

    outcome = outcome_of(lookup)
    assert (outcome.paths, outcome.asked) == (paths, asked)
    assert outcome.is_thin is (mode is LookupMode.FAST)
    assert outcome.complete is (mode is LookupMode.GUARDED)


def test_one_contact_who_names_others_than_the_ring_is_enough_for_a_guarded_lookup():
    ring = [contact_at(SPARSE * number) for number in range(1, 21)]
    hidden = [contact_at(SPARSE * number + SPARSE // 2) for number in range(1, 21)]
    own = far_contacts(200)
    lookup = dense_lookup(LookupMode.GUARDED, *own[:40])
    honest = {own[11]: [hidden[15], *ring[:16]], **dict.fromkeys(hidden, hidden)}
    ring_naming(lookup, ring, honest=honest)

    assert isinstance(lookup.poll(0.0), Widen)
    lookup.on_widen(own, 0.0)
    ring_naming(lookup, ring, honest=honest)

    outcome = outcome_of(lookup)
    assert outcome.paths == 4 + 8
    assert set(hidden[:9]) < set(outcome.region)


def test_what_one_good_contact_said_is_asked_at_last_though_the_ring_is_nearer():
    ring = [contact_at(SPARSE * number) for number in range(1, 21)]
    hidden = [contact_at(SPARSE * number + SPARSE // 2) for number in range(1, 21)]
    farther = contact_at(SPARSE * 50)
    own = far_contacts(200)
    lookup = dense_lookup(LookupMode.GUARDED, *own[:40])
    honest = {own[2]: [farther, *ring], farther: hidden, **dict.fromkeys(hidden, hidden)}

    for _ in range(2):
        ring_naming(lookup, ring, honest=honest)
        assert isinstance(lookup.poll(0.0), Widen)
        lookup.on_widen(own, 0.0)
    ring_naming(lookup, ring, honest=honest)

    assert set(hidden[:9]) < set(outcome_of(lookup).region)


def test_a_guarded_lookup_that_met_all_it_expected_asks_no_more():
    nodes = [contact_at(SPARSE // 2 * number) for number in range(1, 41)]
    lookup = dense_lookup(LookupMode.GUARDED, *nodes)

    finish(lookup)

    assert outcome_of(lookup).paths == 4


def test_without_an_estimate_nothing_is_thin():
    lookup = lookup_of(contact_at(1), mode=LookupMode.GUARDED)

    finish(lookup)

    assert outcome_of(lookup).paths == 1


def test_a_late_path_asks_the_first_of_its_own_contacts_that_lives_though_others_are_nearer():
    ring = [contact_at(SPARSE * number) for number in range(1, 21)]
    own = far_contacts(120)
    lookup = dense_lookup(LookupMode.GUARDED, *own[:4])
    ring_naming(lookup, ring)
    lookup.on_widen(own, 0.0)
    first = asked_by(lookup)
    assert first == tuple(own[4:12])

    lookup.on_failure(first[0].id, 0.0)
    for contact in first[1:]:
        lookup.on_reply(contact.id, ring, 0.0)

    assert asked_by(lookup) == (own[12],)


def test_storers_that_contradict_each_other_make_a_fresh_lookup_look_farther():
    near = [contact_at(number) for number in range(1, 21)]
    lookup = value_lookup(*near, mode=LookupMode.FRESH)

    finish(lookup, holders=(near[0], near[4]))

    assert lookup.poll(0.0) == Widen(8 * 10 + 20)
    lookup.on_widen([], 0.0)
    outcome = outcome_of(lookup)
    assert (outcome.found, outcome.stale) == (True, tuple(near[1:4] + near[5:]))


def test_a_guarded_lookup_shares_nobody_between_its_paths_and_asks_no_one_on_two():
    seeds = [contact_at(100 + number) for number in range(40)]
    lookup = lookup_of(*seeds, mode=LookupMode.GUARDED)
    first = asked_by(lookup)
    assert first == tuple(seeds[:4])

    # Two paths are told of the same nearest node: the first to ask it has it, and the other goes on.
    for contact in first:
        lookup.on_reply(contact.id, [contact_at(1)], 0.0)
    second = asked_by(lookup)

    assert second == (contact_at(1), seeds[5], seeds[6], seeds[7])


def test_what_a_liar_names_on_one_path_does_not_crowd_out_the_others():
    seeds = [contact_at(1000 + number) for number in range(8)]
    lookup = lookup_of(*seeds, mode=LookupMode.GUARDED, k=3, alpha=2, paths=2, max_paths=2)
    assert asked_by(lookup) == (seeds[0], seeds[1])

    lookup.on_reply(seeds[0].id, [contact_at(number) for number in range(1, 20)], 0.0)
    lookup.on_reply(seeds[1].id, [contact_at(500)], 0.0)

    assert asked_by(lookup) == (contact_at(1), contact_at(500))


def test_who_named_three_that_fail_is_believed_last():
    liar, honest = contact_at(1000), contact_at(1001)
    invented = [contact_at(number) for number in range(1, 10)]
    named = contact_at(500)
    lookup = lookup_of(liar, honest, k=5, alpha=1)
    assert asked_by(lookup) == (liar,)
    lookup.on_reply(liar.id, invented, 0.0)

    for number in range(3):
        assert asked_by(lookup) == (invented[number],)
        lookup.on_failure(invented[number].id, 0.0)

    assert asked_by(lookup) == (honest,)
    lookup.on_reply(honest.id, [named], 0.0)
    assert asked_by(lookup) == (named,)
    lookup.on_reply(named.id, [], 0.0)
    assert asked_by(lookup) == (invented[3],)  # three answered, and five are wanted


def test_a_dial_that_we_may_not_make_now_says_nothing_of_who_named_the_contact():
    informer, other = contact_at(1000), contact_at(1001)
    named = [contact_at(number) for number in range(1, 5)]
    lookup = lookup_of(informer, other, k=5, alpha=1)
    asked_by(lookup)
    lookup.on_reply(informer.id, named, 0.0)

    for contact in named[:3]:
        assert asked_by(lookup) == (contact,)
        lookup.on_failure(contact.id, 0.0, was_tried=False)

    assert asked_by(lookup) == (named[3],)


def test_one_whom_a_misleader_named_is_asked_in_its_turn_where_another_names_it_too_and_at_his_address():
    liar, honest = contact_at(1000), contact_at(1001)
    invented = [contact_at(number) for number in range(1, 4)]
    elsewhere, there = contact_at(500, host=66), contact_at(500, host=7)
    lookup = lookup_of(liar, honest, k=5, alpha=1)
    asked_by(lookup)
    lookup.on_reply(liar.id, [*invented, elsewhere], 0.0)
    for contact in invented:
        assert asked_by(lookup) == (contact,)
        lookup.on_failure(contact.id, 0.0)

    assert asked_by(lookup) == (honest,)
    lookup.on_reply(honest.id, [there], 0.0)

    assert asked_by(lookup) == (there,)


# Density and diversity


def test_ids_ground_near_the_target_take_no_more_than_their_share():
    ground = [contact_at(number) for number in range(1, 21)]
    honest = [contact_at(SPACE // 50 * number) for number in range(1, 50)]
    lookup = Lookup(
        TARGET,
        own_id=OWN_ID,
        seeds=[*ground, *honest],
        mode=LookupMode.STRICT,
        config=LookupConfig(),
        region=Region.of_radius(SPACE // 50 * 20, 20),
    )

    asked = finish(lookup)

    assert asked[:3] == ground[:3]
    assert sum(contact in ground for contact in asked) == 4
    assert outcome_of(lookup).closest == (*ground[:4], *honest[:16])


def test_of_one_group_two_are_asked_and_the_others_only_for_want_of_better():
    crowd = [contact_at(number) for number in range(1, 6)]
    other = contact_at(50)
    peers = Slow()
    peers.groups = {contact.addresses: "a" for contact in crowd}
    lookup = slow_lookup(*crowd, other, k=5, peers=peers)

    first = asked_by(lookup)
    assert first == (crowd[0], crowd[1], other)
    for contact in first:
        lookup.on_reply(contact.id, [], 0.0)

    # Three of five have answered: two of those that were skipped fill the places.
    assert asked_by(lookup) == (crowd[2], crowd[3])
    for contact in crowd[2:4]:
        lookup.on_reply(contact.id, [], 0.0)
    outcome = outcome_of(lookup)
    assert outcome.closest == (*crowd[:4], other)
    assert outcome.trace[-1].event is TraceEvent.ANSWERED


def test_a_value_with_versions_makes_a_fast_lookup_fresh_and_asks_no_more_than_are_missing():
    seeds = [contact_at(number) for number in range(1, 9)]
    lookup = slow_lookup(*seeds, mode=LookupMode.FAST, peers=Slow(connected=tuple(seeds)))
    [first] = asked_by(lookup)

    lookup.on_found(first.id, [], 0.1, version=5)

    second, third = asked_by(lookup, 0.1)
    lookup.on_found(second.id, [], 0.2, version=5)
    assert isinstance(lookup.poll(0.2), Wait)
    lookup.on_found(third.id, [], 0.3, version=7)
    outcome = outcome_of(lookup, 0.3)
    assert (outcome.found, outcome.newest, outcome.asked) == (True, 7, 3)


def test_an_early_lookup_asks_those_that_failed_a_moment_ago_when_there_is_nobody_else():
    lookup = slow_lookup(contact_at(1), mode=LookupMode.EARLY, peers=Slow(resting=(contact_at(1),)))

    assert asked_by(lookup) == (contact_at(1),)
