from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dht.config import RoutingConfig
from dht.contact import Contact
from dht.keyspace import common_prefix_length, distance, random_key_in_bucket
from dht.routing import Observation, RoutingTable

OWN_ID = bytes(32)
IDS = st.binary(min_size=32, max_size=32)


def contact_in(bucket: int, number: int = 0, host: int = 1) -> Contact:
    """A contact whose id shares exactly `bucket` leading bits with OWN_ID."""
    return Contact((1 << (255 - bucket) | number).to_bytes(32, "big"), (f"10.0.0.{host}:9000",))


def table_of(*contacts: Contact, k: int = 20, max_failures: int = 2, own_id: bytes = OWN_ID) -> RoutingTable:
    """A table that observed these contacts one second after another, from second 0."""
    table = RoutingTable(own_id, RoutingConfig(k=k, max_failures=max_failures, stale_after_s=900))
    for second, contact in enumerate(contacts):
        table.observe(contact, float(second))
    return table


def test_full_bucket_keeps_its_oldest_live_contact():
    first, second, newcomer = (contact_in(0, number) for number in range(3))
    table = table_of(first, second, k=2)

    observation = table.observe(newcomer, 9.0)

    assert observation is Observation.WAITING
    assert list(table) == [first, second]


def test_own_id_never_enters():
    table = table_of()

    assert table.observe(Contact(OWN_ID, ("10.0.0.1:9000",)), 0.0) is Observation.OWN
    assert len(table) == 0
    assert OWN_ID not in table
    assert not table.has_room(OWN_ID)


def test_seen_contact_becomes_most_recently_seen_with_its_newly_proved_address():
    first, second = contact_in(0, 0), contact_in(0, 1)
    table = table_of(first, second)
    moved = contact_in(0, 0, host=7)

    observation = table.observe(moved, 9.0)

    assert observation is Observation.SEEN
    assert list(table) == [second, moved]
    assert table.get(first.id).addresses == ("10.0.0.7:9000",)


def test_contact_is_evicted_after_max_failures_in_a_row():
    contact = contact_in(0)
    table = table_of(contact, max_failures=3)

    evicted = [table.on_failure(contact.id, now) for now in (1.0, 2.0, 3.0)]

    assert evicted == [None, None, contact]
    assert contact.id not in table


def test_being_seen_clears_failures():
    contact = contact_in(0)
    table = table_of(contact)
    table.on_failure(contact.id, 1.0)

    table.observe(contact, 2.0)

    assert table.on_failure(contact.id, 3.0) is None
    assert contact.id in table


def test_most_recently_seen_of_the_waiting_takes_an_evicted_ones_place():
    held = [contact_in(0, number) for number in range(2)]
    waiting = [contact_in(0, number) for number in (2, 3, 4)]
    table = table_of(*held, *waiting, k=2)

    table.remove(held[0].id)

    assert list(table) == [held[1], waiting[2]]


def test_promoted_contacts_are_ordered_by_when_they_were_seen():
    held = [contact_in(0, number) for number in range(2)]
    waiting = [contact_in(0, number) for number in (2, 3, 4)]
    table = table_of(*held, *waiting, k=2)

    for contact in held:
        table.remove(contact.id)

    # Two wait, the last two seen; the later seen is let in first, and the order is by when each was seen.
    assert list(table) == [waiting[1], waiting[2]]


def test_a_waiting_contact_that_fails_waits_no_longer():
    held, waiting = contact_in(0, 0), contact_in(0, 1)
    table = table_of(held, waiting, k=1)

    table.on_failure(waiting.id, 2.0)
    table.remove(held.id)

    assert len(table) == 0


def test_suspects_are_found_and_never_handed_to_others():
    suspect, good = contact_in(0, 0), contact_in(0, 1)
    table = table_of(suspect, good)

    table.on_failure(suspect.id, 2.0)

    assert table.closest(suspect.id, 2) == [suspect, good]
    assert table.closest_unsuspected(suspect.id, 2) == [good]
    assert table.sample(2, Random(1)) == [good]


def test_room_is_for_unknown_contacts_of_buckets_that_are_not_full():
    table = table_of(contact_in(0, 0), contact_in(0, 1), contact_in(1, 0), k=2)

    assert not table.has_room(contact_in(0, 2).id)
    assert not table.has_room(contact_in(1, 0).id)
    assert table.has_room(contact_in(1, 1).id)
    assert table.has_room(contact_in(5).id)


def test_stale_contacts_are_each_buckets_least_recently_seen():
    table = table_of(contact_in(0, 0), contact_in(0, 1), contact_in(3, 0), contact_in(7, 0))

    assert table.stale_contacts(900.0) == []
    assert table.stale_contacts(902.5) == [contact_in(0, 0), contact_in(3, 0)]


def test_stale_buckets_reach_to_the_deepest_one_and_include_empty_ones():
    table = table_of(contact_in(1), contact_in(3))
    table.mark_refreshed(0, 100.0)
    table.mark_refreshed(3, 150.0)

    assert table_of().stale_buckets(0.0, 60.0) == []
    assert table.stale_buckets(150.0, 60.0) == [1, 2]
    assert table.stale_buckets(161.0, 60.0) == [0, 1, 2]
    assert table.stale_buckets(211.0, 60.0) == [0, 1, 2, 3]


@pytest.mark.parametrize("index", [-1, 256])
def test_a_bucket_that_cannot_be_is_not_marked(index: int):
    with pytest.raises(ValueError, match="0 to 255"):
        table_of().mark_refreshed(index, 0.0)


@given(st.integers(0, 30), st.integers())
def test_sample_is_some_of_the_contacts_each_once(count: int, seed: int):
    contacts = [contact_in(index % 4, index) for index in range(20)]
    table = table_of(*contacts)

    sample = table.sample(count, Random(seed))

    assert len(sample) == len(set(sample)) == min(count, 20)
    assert set(sample) <= set(contacts)


@given(IDS, st.lists(IDS, max_size=60), IDS, st.integers(1, 30))
def test_closest_equals_sorting_everyone(own_id: bytes, ids: list[bytes], target: bytes, count: int):
    table = table_of(*(Contact(node_id, ()) for node_id in ids), own_id=own_id)

    expected = sorted(table, key=lambda contact: distance(contact.id, target))[:count]

    assert table.closest(target, count) == expected


@given(IDS, st.lists(st.integers(0, 255), max_size=60), st.integers(-1, 255), st.integers(1, 80), st.integers())
def test_closest_is_exact_with_contacts_and_target_at_every_depth(
    own_id: bytes, depths: list[int], target_depth: int, count: int, seed: int
):
    # Random ids all fall into the first few buckets; here contacts and target share any number of bits with us.
    rng = Random(seed)
    ids = [random_key_in_bucket(own_id, depth, rng) for depth in depths]
    table = table_of(*(Contact(node_id, ()) for node_id in ids), own_id=own_id)
    for node_id in ids[::3]:
        table.on_failure(node_id, 99.0)
    target = own_id if target_depth < 0 else random_key_in_bucket(own_id, target_depth, rng)

    by_distance = sorted(table, key=lambda contact: distance(contact.id, target))
    unsuspected = [contact for contact in by_distance if contact.id not in ids[::3]]

    assert table.closest(target, count) == by_distance[:count]
    assert table.closest_unsuspected(target, count) == unsuspected[:count]


@dataclass
class ModelContact:
    contact: Contact
    seen_at: int
    failures: int = 0


FEW_IDS = [contact_in(bucket, number).id for bucket in (0, 250) for number in range(5)]


class RoutingModel(RuleBasedStateMachine):
    """The table against two plain lists per bucket that are searched and sorted anew each time."""

    K = 2
    MAX_FAILURES = 2

    def __init__(self) -> None:
        super().__init__()
        config = RoutingConfig(k=self.K, max_failures=self.MAX_FAILURES, stale_after_s=10)
        self.table = RoutingTable(OWN_ID, config)
        self.held: list[ModelContact] = []
        self.waiting: list[ModelContact] = []
        self.now = 0

    def in_bucket(self, group: list[ModelContact], node_id: bytes) -> list[ModelContact]:
        index = common_prefix_length(OWN_ID, node_id)
        return [item for item in group if common_prefix_length(OWN_ID, item.contact.id) == index]

    @staticmethod
    def item_of(group: list[ModelContact], node_id: bytes) -> ModelContact | None:
        return next((item for item in group if item.contact.id == node_id), None)

    def drop(self, node_id: bytes) -> Contact | None:
        self.waiting = [item for item in self.waiting if item.contact.id != node_id]
        item = self.item_of(self.held, node_id)
        if item is None:
            return None
        self.held.remove(item)
        if line := self.in_bucket(self.waiting, node_id):
            latest = max(line, key=lambda waiting: waiting.seen_at)
            self.waiting.remove(latest)
            self.held.append(latest)
        return item.contact

    @rule(node_id=st.sampled_from(FEW_IDS), host=st.integers(1, 3))
    def observe(self, node_id: bytes, host: int) -> None:
        self.now += 1
        contact = Contact(node_id, (f"10.0.0.{host}:9000",))
        new = ModelContact(contact, self.now)
        item = self.item_of(self.held, node_id)
        if item is not None:
            self.held.remove(item)
            expected = Observation.SEEN
            self.held.append(new)
        elif len(self.in_bucket(self.held, node_id)) < self.K:
            expected = Observation.ADDED
            self.held.append(new)
        else:
            expected = Observation.WAITING
            self.waiting = [item for item in self.waiting if item.contact.id != node_id]
            self.waiting.append(new)
            if len(line := self.in_bucket(self.waiting, node_id)) > self.K:
                self.waiting.remove(min(line, key=lambda waiting: waiting.seen_at))

        assert self.table.has_room(node_id) == (expected is Observation.ADDED)
        assert self.table.observe(contact, self.now) is expected

    @rule(node_id=st.sampled_from(FEW_IDS))
    def fail(self, node_id: bytes) -> None:
        item = self.item_of(self.held, node_id)
        expected = None
        if item is None:
            self.drop(node_id)
        else:
            item.failures += 1
            if item.failures == self.MAX_FAILURES:
                expected = self.drop(node_id)

        assert self.table.on_failure(node_id, self.now) == expected

    @rule(node_id=st.sampled_from(FEW_IDS))
    def remove(self, node_id: bytes) -> None:
        assert self.table.remove(node_id) == self.drop(node_id)

    @rule(seconds=st.integers(1, 15))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds

    @rule(wanted=IDS)
    def look_for(self, wanted: bytes) -> None:
        by_distance = sorted(self.held, key=lambda item: distance(item.contact.id, wanted))

        assert self.table.closest(wanted, 5) == [item.contact for item in by_distance][:5]
        unsuspected = [item.contact for item in by_distance if not item.failures]
        assert self.table.closest_unsuspected(wanted, 5) == unsuspected[:5]

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        self.table.check_invariants()
        order = sorted(self.held, key=lambda item: (common_prefix_length(OWN_ID, item.contact.id), item.seen_at))
        assert list(self.table) == [item.contact for item in order]
        assert len(self.table) == len(self.held)
        stale = []
        for bucket in sorted({common_prefix_length(OWN_ID, item.contact.id) for item in self.held}):
            oldest = next(item for item in order if common_prefix_length(OWN_ID, item.contact.id) == bucket)
            if self.now - oldest.seen_at > 10:
                stale.append(oldest.contact)
        assert self.table.stale_contacts(self.now) == stale


TestRoutingModel = RoutingModel.TestCase
TestRoutingModel.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
