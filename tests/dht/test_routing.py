import gc
import re
import tracemalloc
from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dht.config import RoutingConfig
from dht.contact import Contact
from dht.keyspace import common_prefix_length, distance, random_key_in_bucket
from dht.routing import Change, Observation, RoutingTable
from synapse_p2p.trust import TrustConfig

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
    assert not table.has_room(Contact(OWN_ID, ()))


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

    table.remove(held[0].id, 9.0)

    assert list(table) == [waiting[2], held[1]]


def test_who_comes_from_the_waiting_is_the_next_to_be_asked_whether_it_lives():
    held = [contact_in(0, number) for number in range(2)]
    waiting = [contact_in(0, number) for number in (2, 3, 4)]
    table = table_of(*held, *waiting, k=2)

    table.remove(held[0].id, 9.0)

    assert table.stale_contacts(9.0) == [waiting[2]]
    table.observe(waiting[2], 10.0)
    assert table.stale_contacts(10.0) == []
    assert list(table) == [held[1], waiting[2]]


def test_a_waiting_contact_that_fails_waits_no_longer():
    held, waiting = contact_in(0, 0), contact_in(0, 1)
    table = table_of(held, waiting, k=1)

    table.on_failure(waiting.id, 2.0)
    table.remove(held.id, 9.0)

    assert len(table) == 0


def test_suspects_are_found_and_never_handed_to_others():
    suspect, good = contact_in(0, 0), contact_in(0, 1)
    table = table_of(suspect, good)

    table.on_failure(suspect.id, 2.0)

    assert table.closest(suspect.id, 2) == [suspect, good]
    assert table.closest_unsuspected(suspect.id, 2) == [good]
    assert table.sample(2, Random(1)) == [good]


def test_each_contact_says_whether_it_is_a_suspect_and_when_it_was_seen():
    steady, silent = contact_in(0), contact_in(1)
    table = table_of(steady, silent)
    table.observe(steady, 7.0)
    table.on_failure(silent.id, 8.0)

    assert (table.is_suspect(steady.id), table.is_suspect(silent.id)) == (False, True)
    assert table.seen_at(steady.id) == 7.0
    assert table.seen_at(silent.id) is not None
    assert table.seen_at(bytes(32)) is None and not table.is_suspect(bytes(32))


def test_room_is_for_unknown_contacts_of_buckets_that_are_not_full():
    table = table_of(contact_in(0, 0), contact_in(0, 1), contact_in(1, 0), k=2)

    assert not table.has_room(contact_in(0, 2))
    assert not table.has_room(contact_in(1, 0))
    assert table.has_room(contact_in(1, 1))
    assert table.has_room(contact_in(5))


def test_stale_contacts_are_each_buckets_least_recently_seen():
    table = table_of(contact_in(0, 0), contact_in(0, 1), contact_in(3, 0), contact_in(7, 0))

    assert table.stale_contacts(900.0) == []
    assert table.stale_contacts(902.5) == [contact_in(0, 0), contact_in(3, 0)]


def test_who_was_there_for_long_is_asked_later_and_a_suspect_is_not():
    old, new = contact_in(0, 0), contact_in(0, 1)
    table = table_of(old, new)
    table.observe(old, 4000.0)
    table.observe(new, 4000.0)
    table.remove(new.id, 4000.0)
    table.observe(new, 4010.0)

    assert table.stale_contacts(4905.0) == []
    assert table.stale_contacts(4911.0) == [new]
    table.observe(new, 5900.0)
    assert table.stale_contacts(5995.0) == []
    assert table.stale_contacts(6001.0) == [old]
    table.on_failure(old.id, 6001.0)
    assert table.stale_contacts(4901.0) == [old]

    table.observe(old, 100_000.0)
    table.observe(new, 103_500.0)
    assert table.stale_contacts(103_600.0) == []
    assert table.stale_contacts(103_601.0) == [old]


def test_contacts_of_a_far_and_full_bucket_are_asked_half_as_often_and_suspects_are_not():
    far, other_far, near, other_near = contact_in(0, 0), contact_in(0, 1), contact_in(3, 0), contact_in(3, 1)
    table = table_of(far, other_far, near, other_near, k=2)

    assert table.stale_contacts(950.0) == [near]
    assert table.stale_contacts(1795.0) == [near]
    assert table.stale_contacts(1810.0) == [far, near]
    table.on_failure(other_far.id, 1810.0)
    assert table.stale_contacts(950.0) == [other_far, near]
    table.remove(other_far.id, 1810.0)
    assert table.stale_contacts(950.0) == [far, near]


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


# Diversity

NOBODY = TrustConfig(loopback=False, private=False)


def at(contact: Contact, host: str) -> Contact:
    """The same id somewhere else."""
    return Contact(contact.id, (f"{host}:9000",))


def in_part(bucket: int, part: int, number: int, host: str = "10.0.0.1") -> Contact:
    """A contact in one of the eight parts of a k-bucket that its next 3 bits make."""
    return at(contact_in(bucket, part << (252 - bucket) | number), host)


def open_table(trust: TrustConfig = NOBODY, **limits: int) -> RoutingTable:
    return RoutingTable(OWN_ID, RoutingConfig(**limits), trust)


def fill_near_buckets(table: RoutingTable, count: int = 20) -> list[Contact]:
    """So many contacts nearer to us than k-bucket 4, one to a place."""
    near = [at(contact_in(5 + number), f"30.{number}.0.1") for number in range(count)]
    for contact in near:
        assert table.observe(contact, 0.0) is Observation.ADDED
    return near


def test_one_24_has_two_places_in_a_bucket_and_four_in_the_table_and_one_16_has_eight():
    table = open_table()

    seen = [table.observe(at(contact_in(0, number), f"8.8.8.{number}"), 0.0) for number in range(3)]
    seen += [table.observe(at(contact_in(1 + number), f"8.8.8.1{number}"), 0.0) for number in range(3)]
    seen += [table.observe(at(contact_in(4 + number), f"8.8.{number}.1"), 0.0) for number in range(6)]

    added = Observation.ADDED
    assert seen[:3] == [added, added, Observation.CROWDED_BUCKET]
    assert seen[3:6] == [added, added, Observation.CROWDED_GROUP]
    assert seen[6:] == [added] * 4 + [Observation.CROWDED_WIDE_GROUP] * 2
    table.check_invariants()


def test_ipv6_counts_by_48_and_32():
    table = open_table()

    seen = [table.observe(at(contact_in(number), f"[2a01:4f8:1:{number}::1]"), 0.0) for number in range(5)]
    seen += [table.observe(at(contact_in(5 + number), f"[2a01:4f8:{number + 2}::1]"), 0.0) for number in range(5)]

    added = Observation.ADDED
    assert seen == [added] * 4 + [Observation.CROWDED_GROUP] + [added] * 4 + [Observation.CROWDED_WIDE_GROUP]


@pytest.mark.parametrize(
    ("trust", "host"),
    [
        (TrustConfig(), "10.0.0.{}"),
        (TrustConfig(), "127.0.0.{}"),
        (TrustConfig(networks=("8.8.0.0/16",)), "8.8.8.{}"),
        (TrustConfig.everybody(), "8.8.8.{}"),
        (TrustConfig.everybody(), "[2a01:4f8::{}]"),
    ],
)
def test_hosts_that_are_exempt_and_members_of_a_network_with_a_key_are_not_counted_by_place(
    trust: TrustConfig, host: str
):
    table = open_table(trust)

    seen = {table.observe(at(contact_in(number % 3, number), host.format(number + 1)), 0.0) for number in range(15)}

    assert seen == {Observation.ADDED}


@pytest.mark.linux
def test_without_exemptions_addresses_of_one_machine_are_counted_as_hosts():
    table = open_table()

    seen = [table.observe(at(contact_in(0, number), f"127.0.0.{number + 1}"), 0.0) for number in range(3)]
    seen.append(table.observe(at(contact_in(0, 3), "127.0.1.1"), 0.0))

    assert seen[2:] == [Observation.CROWDED_BUCKET, Observation.ADDED]


def test_in_a_far_bucket_five_contacts_share_their_next_bits():
    table = open_table()
    fill_near_buckets(table)

    seen = [table.observe(in_part(3, 2, number, f"{40 + number}.1.1.1"), 0.0) for number in range(6)]
    other_part = table.observe(in_part(3, 3, 0, "60.1.1.1"), 0.0)

    assert seen == [Observation.ADDED] * 5 + [Observation.CROWDED_BITS]
    assert other_part is Observation.ADDED


def test_a_near_bucket_takes_all_whatever_bits_they_share_and_is_far_once_k_are_nearer():
    table = open_table()
    fill_near_buckets(table, 19)

    seen = [table.observe(in_part(3, 2, number, f"{40 + number}.1.1.1"), 0.0) for number in range(6)]
    table.observe(at(contact_in(4), "90.1.1.1"), 0.0)
    late = table.observe(in_part(3, 2, 9, "60.1.1.1"), 0.0)

    assert seen == [Observation.ADDED] * 6
    assert late is Observation.CROWDED_BITS
    assert len(table) == 26, "who came in stays"


@given(st.sets(IDS, min_size=1, max_size=300), IDS)
def test_all_of_our_neighbourhood_are_known_in_whatever_order_all_come(ids: set[bytes], own_id: bytes):
    table = RoutingTable(own_id, RoutingConfig(k=8, max_per_next_bits=1))
    by_bucket = [[node_id for node_id in ids if common_prefix_length(own_id, node_id) == index] for index in range(256)]

    for node_id in sorted(ids):
        table.observe(Contact(node_id, ()), 0.0)

    for index, bucket in enumerate(by_bucket):
        if len(bucket) <= 8 and sum(map(len, by_bucket[index + 1 :])) < 8:
            assert all(node_id in table for node_id in bucket)


@pytest.mark.parametrize("observation", Observation)
def test_a_refusal_by_diversity_names_the_setting_that_lifts_it(observation: Observation):
    is_refusal = observation.name.startswith("CROWDED")

    assert bool(observation.lifted_by) is is_refusal
    for setting in re.findall(r"RoutingConfig\.(\w+)", observation.lifted_by):
        assert hasattr(RoutingConfig(), setting)


def test_a_live_contact_that_moves_to_a_crowded_place_waits_and_comes_back_when_there_is_room():
    table = open_table()
    crowd = [at(contact_in(0, number), f"8.8.8.{number + 1}") for number in range(2)]
    mover = at(contact_in(0, 5), "9.9.9.9")
    for contact in (*crowd, mover):
        table.observe(contact, 0.0)

    seen = table.observe(at(mover, "8.8.8.7"), 1.0)

    assert seen is Observation.CROWDED_BUCKET
    assert mover.id not in table
    table.remove(crowd[0].id, 2.0)
    assert table.get(mover.id) == at(mover, "8.8.8.7")
    table.check_invariants()


def test_ids_of_one_place_do_not_push_others_out_of_the_waiting():
    table = open_table(k=3, max_group=2)
    held = [at(contact_in(0, number), f"{40 + number}.1.1.1") for number in range(3)]
    honest = at(contact_in(0, 7), "50.1.1.1")
    for contact in (*held, honest):
        table.observe(contact, 0.0)

    for number in range(100, 200):
        table.observe(at(contact_in(0, number), f"8.8.8.{number}"), 1.0)
        table.check_invariants()
    for contact in held:
        table.remove(contact.id, 2.0)

    assert honest in list(table)


def test_a_poisoner_with_two_24s_and_ten_thousand_ids_gets_eight_places_and_displaces_nobody():
    rng = Random(3)
    table = open_table()
    honest = [Contact(rng.randbytes(32), (f"{number % 90 + 100}.{number // 90}.7.7:9000",)) for number in range(400)]
    for contact in honest[:200]:
        table.observe(contact, 0.0)
    before = set(table)

    for number in range(10_000):
        table.observe(Contact(rng.randbytes(32), (f"66.{6 + number % 2}.6.{number % 250}:9000",)), 1.0)
    for contact in honest[200:]:
        table.observe(contact, 2.0)

    hostile = [contact for contact in table if contact.addresses[0].startswith("66.")]
    assert len(hostile) <= 8
    assert before <= set(table)
    assert len(table) > 100


# Our own network as the suspect


def test_while_evictions_are_held_whoever_fails_is_suspect_and_stays():
    live, waiting = contact_in(0, 0), contact_in(0, 1)
    table = table_of(live, waiting, k=1)
    table.hold_evictions()

    evicted = [table.on_failure(node_id, 2.0) for node_id in (live.id,) * 5 + (waiting.id,) * 5]
    table.check_invariants()
    suspects = table.closest_unsuspected(OWN_ID, 5)
    table.resume_evictions()

    assert evicted == [None] * 10
    assert list(table) == [live]
    assert suspects == []
    assert table.on_failure(live.id, 3.0) == live
    assert list(table) == [waiting]


def test_who_is_forgiven_has_all_its_chances_again():
    contact = contact_in(0)
    table = table_of(contact)
    table.on_failure(contact.id, 1.0)

    table.forgive(contact.id)

    assert table.closest_unsuspected(OWN_ID, 5) == [contact]
    assert table.on_failure(contact.id, 2.0) is None
    assert table.on_failure(contact.id, 3.0) == contact
    table.forgive(contact.id)  # a stranger by now


@pytest.mark.parametrize("max_failures", [1, 2, 3])
def test_after_holding_evictions_a_contact_that_answers_is_as_good_as_before(max_failures: int):
    contact = contact_in(0)
    table = table_of(contact, max_failures=max_failures)
    table.hold_evictions()
    for _ in range(9):
        table.on_failure(contact.id, 1.0)
    table.resume_evictions()

    table.observe(contact, 2.0)

    assert [table.on_failure(contact.id, 3.0) for _ in range(max_failures)] == [None] * (max_failures - 1) + [contact]


# Whom to remember


def test_longest_lived_are_those_who_have_answered_longest_and_not_those_known_longest():
    silent, steady, fresh, suspect = (contact_in(index) for index in range(4))
    table = table_of()
    for contact in (silent, steady, suspect):
        table.observe(contact, 0.0)
    table.observe(steady, 500.0)
    table.observe(suspect, 900.0)
    table.observe(fresh, 890.0)
    table.observe(fresh, 900.0)
    table.on_failure(suspect.id, 901.0)

    assert table.longest_lived(9) == [steady, fresh, silent]
    assert table.longest_lived(1) == [steady]


def test_who_came_from_the_waiting_has_no_credit_until_it_answers():
    first, second, other = contact_in(0, 0), contact_in(0, 1), contact_in(3)
    table = table_of(first, second, other, k=1)
    table.remove(first.id, 5.0)

    assert table.longest_lived(2) == [other, second]
    table.observe(second, 50.0)
    assert table.longest_lived(2) == [second, other]


def test_a_table_takes_a_hundred_bytes_for_each_contact_beside_the_contacts():
    rng = Random(1)
    contacts = [Contact(rng.randbytes(32), ("10.0.0.1:9000",)) for _ in range(10_000)]
    own_ids = [rng.randbytes(32) for _ in range(20)]
    gc.collect()
    tracemalloc.start()
    try:
        tables = [RoutingTable(own_id, RoutingConfig()) for own_id in own_ids]
        for table in tables:
            for contact in contacts:
                table.observe(contact, 1.0)
        size_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    kbuckets = [kbucket for table in tables for kbucket in table._kbuckets.values()]
    entries = sum(len(kbucket.places) + len(kbucket.waiting or ()) for kbucket in kbuckets)
    assert entries > 20 * 300
    assert size_bytes / entries <= 100


@dataclass(eq=False)
class ModelContact:
    contact: Contact
    seen_at: float
    failures: int = 0
    since: float = 0.0

    @property
    def index(self) -> int:
        return common_prefix_length(OWN_ID, self.contact.id)

    @property
    def part(self) -> int:
        return self.contact.point >> (255 - self.index - 3)


FEW_IDS = [in_part(bucket, part, number).id for bucket in (0, 3, 250) for part in (1, 6) for number in range(4)]
FEW_HOSTS = ["8.1.1.1", "8.1.1.2", "8.1.2.1", "8.1.3.1", "8.2.1.1", "[2a01:1:1::1]", "[2a01:1:1:2::1]", "10.0.0.1"]
NARROW = {host: host.rpartition(".")[0] if "." in host else "2a01:1:1" for host in FEW_HOSTS}
WIDE = {host: host[:4] if "." in host else "2a01:1" for host in FEW_HOSTS}


class RoutingModel(RuleBasedStateMachine):
    """The table against two plain lists that are searched and sorted anew each time.

    A k-bucket is not split: it is what contacts that share a prefix with us make, however deep that is.
    """

    K, MAX_FAILURES, MAX_BITS, MAX_IN_BUCKET, MAX_GROUP, MAX_WIDE = 4, 2, 2, 1, 2, 3

    @initialize(counts_private=st.booleans(), has_network_key=st.booleans(), counts_bits=st.booleans())
    def begin(self, counts_private: bool, has_network_key: bool, counts_bits: bool) -> None:
        self.max_bits = self.MAX_BITS if counts_bits else 99
        config = RoutingConfig(
            k=self.K,
            max_failures=self.MAX_FAILURES,
            stale_after_s=10,
            max_stale_after_s=30,
            max_per_next_bits=self.max_bits,
            max_group_per_bucket=self.MAX_IN_BUCKET,
            max_group=self.MAX_GROUP,
            max_wide_group=self.MAX_WIDE,
        )
        self.counted = set() if has_network_key else set(FEW_HOSTS) - (set() if counts_private else {"10.0.0.1"})
        trust = TrustConfig.everybody() if has_network_key else TrustConfig(private=not counts_private)
        self.table = RoutingTable(OWN_ID, config, trust, on_changed=self.note)
        self.told: dict[Contact, bool] = {}  # by what it said: who is in it, and whether suspect
        self.held: list[ModelContact] = []
        self.waiting: list[ModelContact] = []  # as last seen
        self.is_holding = False
        self.now = 0

    def note(self, contact: Contact, change: Change) -> None:
        assert (contact.id in [told.id for told in self.told]) is (change is not Change.JOINED)
        if change is Change.LEFT:
            self.forget(contact.id)
        else:
            self.told[contact] = change is Change.SUSPECTED

    def forget(self, node_id: bytes) -> None:
        self.told = {contact: suspect for contact, suspect in self.told.items() if contact.id != node_id}

    @staticmethod
    def host_of(item: ModelContact) -> str:
        return item.contact.addresses[0].removesuffix(":9000")

    def places(self, items: list[ModelContact], names: dict[str, str], host: str) -> int:
        return sum(self.host_of(item) in self.counted and names[self.host_of(item)] == names[host] for item in items)

    @staticmethod
    def item_of(group: list[ModelContact], node_id: bytes) -> ModelContact | None:
        return next((item for item in group if item.contact.id == node_id), None)

    def refusal(self, new: ModelContact, *, moves: bool = False) -> Observation | None:
        bucket = [item for item in self.held if item.index == new.index]
        if not moves and len(bucket) >= self.K:
            return Observation.WAITING
        is_near = sum(item.index > new.index for item in self.held) < self.K
        sharing = sum(item.part == new.part for item in bucket)
        if not moves and new.index <= 252 and not is_near and sharing >= self.max_bits:
            return Observation.CROWDED_BITS
        host = self.host_of(new)
        if host not in self.counted:
            return None
        if self.places(bucket, NARROW, host) >= self.MAX_IN_BUCKET:
            return Observation.CROWDED_BUCKET
        if self.places(self.held, NARROW, host) >= self.MAX_GROUP:
            return Observation.CROWDED_GROUP
        if self.places(self.held, WIDE, host) >= self.MAX_WIDE:
            return Observation.CROWDED_WIDE_GROUP
        return None

    def wait(self, new: ModelContact) -> None:
        self.waiting = [item for item in self.waiting if item.contact.id != new.contact.id]
        if not any(item.index == new.index for item in self.held):
            return
        host = self.host_of(new)
        if host in self.counted and self.places(self.waiting, NARROW, host) >= self.MAX_GROUP:
            return
        line = [item for item in self.waiting if item.index == new.index]
        if len(line) >= self.K:
            self.waiting.remove(line[0])
        self.waiting.append(new)

    def leave(self, item: ModelContact) -> None:
        self.held.remove(item)
        line = [other for other in self.waiting if other.index == item.index]
        for other in reversed(line):
            if self.refusal(other) is None:
                self.waiting.remove(other)
                self.held.append(ModelContact(other.contact, float("-inf"), since=self.now))
                return
        if not any(other.index == item.index for other in self.held):
            self.waiting = [other for other in self.waiting if other.index != item.index]

    @rule(node_id=st.sampled_from(FEW_IDS), host=st.sampled_from(FEW_HOSTS))
    def observe(self, node_id: bytes, host: str) -> None:
        self.now += 1
        contact = Contact(node_id, (f"{host}:9000",))
        new = ModelContact(contact, self.now, since=self.now)
        item = self.item_of(self.held, node_id)
        has_room = False
        if item is None:
            expected = self.refusal(new) or Observation.ADDED
            has_room = expected is Observation.ADDED
            if has_room:
                self.waiting = [other for other in self.waiting if other.contact.id != node_id]
                self.held.append(new)
            else:
                self.wait(new)
        else:
            expected = Observation.SEEN
            new.since = item.since
            place = self.held.index(item)
            old, now_at = self.host_of(item), host
            groups = [(NARROW[each], WIDE[each]) if each in self.counted else None for each in (old, now_at)]
            if groups[0] == groups[1]:
                self.held[place] = new
            else:
                self.held.remove(item)
                refusal = self.refusal(new, moves=True)
                if refusal is None:
                    self.held.append(new)
                else:
                    self.held.append(item)
                    self.leave(item)
                    self.wait(new)
                    expected = refusal

        assert self.table.has_room(contact) is has_room
        assert self.table.observe(contact, self.now) is expected

    @rule(node_id=st.sampled_from(FEW_IDS))
    def fail(self, node_id: bytes) -> None:
        item = self.item_of(self.held, node_id)
        expected = None
        if item is None:
            if not self.is_holding:
                self.waiting = [other for other in self.waiting if other.contact.id != node_id]
        elif item.failures + 1 < self.MAX_FAILURES:
            item.failures += 1
        elif not self.is_holding:
            expected = item.contact
            self.leave(item)

        assert self.table.on_failure(node_id, self.now) == expected

    @rule(node_id=st.sampled_from(FEW_IDS))
    def remove(self, node_id: bytes) -> None:
        item = self.item_of(self.held, node_id)
        self.waiting = [other for other in self.waiting if other.contact.id != node_id]
        if item is not None:
            self.leave(item)

        assert self.table.remove(node_id, self.now) == (None if item is None else item.contact)

    @rule()
    def our_network_fails_or_is_back(self) -> None:
        self.is_holding = not self.is_holding
        if self.is_holding:
            self.table.hold_evictions()
        else:
            self.table.resume_evictions()

    @rule(seconds=st.integers(1, 15))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds

    @rule(wanted=IDS, count=st.integers(1, 30))
    def look_for(self, wanted: bytes, count: int) -> None:
        by_distance = sorted(self.held, key=lambda item: distance(item.contact.id, wanted))

        assert self.table.closest(wanted, count) == [item.contact for item in by_distance][:count]
        unsuspected = [item.contact for item in by_distance if not item.failures]
        assert self.table.closest_unsuspected(wanted, count) == unsuspected[:count]

    @rule(node_id=st.sampled_from(FEW_IDS))
    def forgive(self, node_id: bytes) -> None:
        item = self.item_of(self.held, node_id)
        if item is not None:
            item.failures = 0

        self.table.forgive(node_id)

    @invariant()
    def tells_what_changes(self) -> None:
        assert {contact.id for contact in self.told} == {item.contact.id for item in self.held}
        suspects = {item.contact.id for item in self.held if item.failures}
        assert suspects <= {contact.id for contact, is_suspect in self.told.items() if is_suspect}
        assert self.table.suspect_count() == len(suspects)

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        self.table.check_invariants()
        order = sorted(self.held, key=lambda item: (item.index, item.seen_at))
        assert list(self.table) == [item.contact for item in order]
        assert len(self.table) == len(self.held)
        stale = []
        for bucket in sorted({item.index for item in self.held}):
            latest = max((item for item in order if item.index == bucket), key=self.overdue_s)
            if self.overdue_s(latest) > 0:
                stale.append((bucket, self.overdue_s(latest)))
        named = [self.item_of(self.held, contact.id) for contact in self.table.stale_contacts(self.now)]
        # Of two that were never seen since they waited, either may be the latest.
        assert [(item.index, self.overdue_s(item)) for item in named if item is not None] == stale

    def overdue_s(self, item: ModelContact) -> float:
        lived_s = 0.0 if item.failures or item.seen_at == float("-inf") else item.seen_at - item.since
        is_full = sum(other.index == item.index for other in self.held) == self.K
        is_far = sum(other.index > item.index for other in self.held) >= self.K
        patience = 2 if is_full and is_far and not item.failures else 1
        return self.now - item.seen_at - patience * min(max(10, 0.5 * lived_s), 30)


TestRoutingModel = RoutingModel.TestCase
TestRoutingModel.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
