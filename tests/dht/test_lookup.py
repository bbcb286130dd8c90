from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dht.config import LookupConfig, RoutingConfig
from dht.contact import Contact
from dht.keyspace import distance
from dht.lookup import (
    SHORTLIST_FACTOR,
    Ask,
    Finished,
    Lookup,
    LookupMode,
    LookupOutcome,
    TraceEvent,
    TraceStep,
    Wait,
)
from dht.routing import RoutingTable

TARGET = bytes(32)
OWN_ID = b"\xff" * 32


def contact_at(number: int, host: int = 1) -> Contact:
    """A contact at distance `number` from TARGET."""
    return Contact(number.to_bytes(32, "big"), (f"10.0.0.{host}:9000",))


def lookup_of(*seeds: Contact, mode: LookupMode = LookupMode.STRICT, **config: float) -> Lookup:
    return Lookup(TARGET, own_id=OWN_ID, seeds=seeds, mode=mode, config=LookupConfig(**config))


def asked_by(lookup: Lookup, now: float = 0.0) -> tuple[Contact, ...]:
    step = lookup.poll(now)
    assert isinstance(step, Ask)
    return step.contacts


def outcome_of(lookup: Lookup, now: float = 0.0) -> LookupOutcome:
    step = lookup.poll(now)
    assert isinstance(step, Finished)
    return step.outcome


@dataclass
class Network:
    """Static nodes whose tables saw every other node once, in random order."""

    k: int
    tables: dict[bytes, RoutingTable] = field(default_factory=dict)

    @classmethod
    def grow(cls, size: int, k: int, rng: Random) -> "Network":
        network = cls(k)
        contacts = [Contact(rng.randbytes(32), ("10.0.0.1:9000",)) for _ in range(size)]
        for contact in contacts:
            table = network.tables[contact.id] = RoutingTable(contact.id, RoutingConfig(k=k))
            for other in rng.sample(contacts, size):
                table.observe(other, 0.0)
        return network

    def answer(self, asked: bytes, asker: bytes, target: bytes) -> list[Contact]:
        """The k contacts nearest to the target that a node knows, the asker aside: it needs no telling of itself."""
        known = self.tables[asked].closest(target, self.k + 1)
        return [contact for contact in known if contact.id != asker][: self.k]


Answer = Callable[[Contact], tuple[float, list[Contact] | None]]
"""After how many seconds a contact answers, and what; None for a failure."""


def run(lookup: Lookup, config: LookupConfig, answer: Answer) -> LookupOutcome:
    """Play the runner in virtual time, holding the lookup to its promises on the way. Late replies are delivered."""
    now = 0.0
    deadlines: dict[bytes, float] = {}
    asked: list[bytes] = []
    events: list[tuple[float, int, Contact, list[Contact] | None]] = []
    order = count()
    while True:
        step = lookup.poll(now)
        if isinstance(step, Finished):
            return step.outcome
        deadlines = {node_id: deadline for node_id, deadline in deadlines.items() if deadline > now}
        if isinstance(step, Ask):
            for contact in step.contacts:
                delay, closer = answer(contact)
                heappush(events, (now + delay, next(order), contact, closer))
                deadlines[contact.id] = now + config.request_timeout_s
                asked.append(contact.id)
            assert step.contacts
            assert len(deadlines) <= config.alpha
            assert len(asked) == len(set(asked)) <= config.max_requests
            continue
        assert step.until == min(deadlines.values())
        if not events or events[0][0] > step.until:
            now = step.until
            continue
        now, _, contact, closer = heappop(events)
        deadlines.pop(contact.id, None)
        if closer is None:
            lookup.on_failure(contact.id, now)
        else:
            lookup.on_reply(contact.id, closer, now)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 500), st.sampled_from([1, 3, 8, 20]), st.booleans(), st.integers())
def test_strict_lookup_finds_the_true_k_closest_of_an_honest_network(
    size: int, k: int, knows_one_node: bool, seed: int
):
    rng = Random(seed)
    network = Network.grow(size, k, rng)
    asker, target = rng.choice(list(network.tables)), rng.randbytes(32)
    known = network.tables[asker].closest(target, k)
    seeds = rng.sample(known, min(1, len(known))) if knows_one_node else known
    config = LookupConfig(k=k, max_requests=1000)
    lookup = Lookup(target, own_id=asker, seeds=seeds, mode=LookupMode.STRICT, config=config)

    outcome = run(lookup, config, lambda asked: (rng.random(), network.answer(asked.id, asker, target)))

    others = sorted(network.tables.keys() - {asker}, key=lambda node_id: distance(node_id, target))
    assert [contact.id for contact in outcome.closest] == others[:k]
    assert outcome.complete
    assert outcome.failed == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 120), st.sampled_from(LookupMode), st.integers(1, 5), st.integers(1, 60), st.integers())
def test_lookup_ends_under_any_failures_and_delays(
    size: int, mode: LookupMode, alpha: int, max_requests: int, seed: int
):
    rng = Random(seed)
    network = Network.grow(size, 5, rng)
    asker, target = OWN_ID, rng.randbytes(32)
    config = LookupConfig(k=5, alpha=alpha, max_requests=max(alpha, max_requests))
    seeds = next(iter(network.tables.values())).closest(target, 5)
    lookup = Lookup(target, own_id=asker, seeds=seeds, mode=mode, config=config)
    answered: set[bytes] = set()

    def answer(asked: Contact) -> tuple[float, list[Contact] | None]:
        delay = rng.choice([0.0, 0.1, 1.9, 2.0, 2.1, 9.0])
        if rng.random() < 0.3:
            return delay, None
        if delay <= config.request_timeout_s:
            answered.add(asked.id)
        return delay, network.answer(asked.id, asker, target)

    outcome = run(lookup, config, answer)

    ids = [contact.id for contact in outcome.closest]
    assert ids == sorted(ids, key=lambda node_id: distance(node_id, target))
    assert set(ids) <= answered
    assert outcome.failed <= outcome.asked <= config.max_requests
    assert (outcome.hops is None) == (not ids)
    assert lookup.poll(99.0) == Finished(outcome)


@given(st.integers(1, 64), st.integers(1, 60), st.integers())
def test_lies_cannot_make_a_lookup_ask_more_than_its_budget(named: int, max_requests: int, seed: int):
    rng = Random(seed)
    config = LookupConfig(k=5, alpha=1, max_requests=max_requests)
    lookup = lookup_of(contact_at(2**30), k=5, alpha=1, max_requests=max_requests)
    invented = count(2**29, -1)

    # Every answer names nodes that nobody named before and that are nearer than all of those.
    outcome = run(lookup, config, lambda _: (rng.random(), [contact_at(next(invented)) for _ in range(named)]))

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


def test_fast_without_a_value_is_strict():
    lookup = lookup_of(contact_at(1), contact_at(2), mode=LookupMode.FAST)
    asked_by(lookup)

    lookup.on_reply(contact_at(1).id, [], 0.0)
    assert isinstance(lookup.poll(0.0), Wait)
    lookup.on_reply(contact_at(2).id, [], 0.0)

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
        TraceStep(1.0, TraceEvent.ASKED, contact_at(1).id, 1),
        TraceStep(1.0, TraceEvent.ASKED, contact_at(2).id, 1),
        TraceStep(1.5, TraceEvent.ANSWERED, contact_at(2).id, 1),
        TraceStep(3.0, TraceEvent.FAILED, contact_at(1).id, 1),
    )


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
