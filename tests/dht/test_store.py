"""The contract of a store, for each of them, and what is special about the one in memory."""

from __future__ import annotations

import hashlib
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dht.agents.claim import CapabilityClaim
from dht.agents.record import AgentRecord, Reach
from dht.config import RecordConfig
from dht.exceptions import StoreDamaged
from dht.quotas import OWN_GROUP
from dht.records import LAST_SEQ, RecordKind, Refusal
from dht.sqlite_store import SqliteRecordStore
from dht.store import MemoryRecordStore, life_left_s
from dht.stored_record import RECORD_OVERHEAD_BYTES, StoredRecord
from synapse_p2p.identity import Identity
from synapse_p2p.runtime import Runtime

KEYS = [bytes([index]) * 32 for index in range(3)]
OWNERS = [bytes([100 + index]) * 32 for index in range(4)]
GROUPS = [None, "10.1.1.0/24", "10.1.2.0/24"]
SMALL = RecordConfig(
    max_records_per_key=3, max_records=6, max_records_per_owner=3, max_records_per_group=4, unseen_share=0.34,
    max_bytes=7 * RECORD_OVERHEAD_BYTES, max_bytes_per_owner=3 * RECORD_OVERHEAD_BYTES + 1000,
    max_bytes_per_group=6 * RECORD_OVERHEAD_BYTES, max_value_bytes=1,
)  # fmt: skip

Store = MemoryRecordStore


class Clock:
    """A monotonic and a wall clock that are set by hand."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.unix_s = 1_800_000_000.0

    def runtime(self) -> Runtime:
        return Runtime(lambda: self.now_s, lambda: self.unix_s, random.Random(1), lambda size: bytes(size))


@pytest.fixture(params=["memory", "sqlite"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Store]]:
    stores: list[Store] = []

    def make(config: RecordConfig | None = None) -> Store:
        config = config or RecordConfig()
        if request.param == "memory":
            store: Store = MemoryRecordStore(config)
        else:
            store = SqliteRecordStore(tmp_path / f"{len(stores)}.db", config, Clock().runtime())
        stores.append(store)
        return store

    yield make
    for store in stores:
        store.check_invariants()
        store.close()


def a_record(
    record: bytes = b"r", owner: bytes = OWNERS[0], seq: int = 1, *, expires_at: float = 10.0,
    kind: RecordKind = RecordKind.AGENT, group: str | None = "g",
) -> StoredRecord:  # fmt: skip
    return StoredRecord(record, owner, seq, expires_at, kind, group)


def test_larger_seq_replaces_the_owners_record(make_store):
    store = make_store()
    store.put(KEYS[0], a_record(b"old"), 0.0)
    new = a_record(b"new", seq=2, expires_at=20.0)

    refusal = store.put(KEYS[0], new, 0.0)

    assert refusal is None
    assert store.get(KEYS[0], 0.0) == [new]


def test_smaller_seq_and_other_bytes_of_the_same_seq_are_stale(make_store):
    store = make_store()
    held = a_record(b"held", seq=5)
    store.put(KEYS[0], held, 0.0)

    refusals = [store.put(KEYS[0], a_record(b"older", seq=4), 0.0), store.put(KEYS[0], a_record(b"other", seq=5), 0.0)]

    assert refusals == [Refusal.STALE, Refusal.STALE]
    assert store.find(KEYS[0], OWNERS[0]) == held


def test_the_same_record_again_is_accepted_and_lives_no_longer(make_store):
    store = make_store()
    store.put(KEYS[0], a_record(expires_at=10.0), 0.0)

    refusal = store.put(KEYS[0], a_record(expires_at=99.0), 0.0)

    assert refusal is None
    assert store.get(KEYS[0], 10.0) == []


def test_a_final_tombstone_lives_on_with_every_copy_and_nothing_follows_it(make_store):
    store = make_store()
    final = a_record(b"final", seq=LAST_SEQ, expires_at=10.0)
    store.put(KEYS[0], final, 0.0)

    store.put(KEYS[0], a_record(b"final", seq=LAST_SEQ, expires_at=99.0), 5.0)
    refusal = store.put(KEYS[0], a_record(b"risen", seq=LAST_SEQ), 5.0)

    assert refusal is Refusal.STALE
    assert [record.record for record in store.get(KEYS[0], 98.0)] == [b"final"]


# What an agent takes back


OWNER = Identity.from_seed(bytes(32))
UNIX_MS = 1_800_000_000_000
AGENT = AgentRecord(
    public_key=OWNER.public_key, seq=5, issued_ms=UNIX_MS, expires_ms=UNIX_MS + 900_000, network_id=bytes(16),
    addresses=("10.1.1.1:9000",), reach=Reach.DIRECT, name="Rita", role="reviewer", description="",
    capabilities=(CapabilityClaim("python", "3.11.0"),),
)  # fmt: skip


def stored(record: AgentRecord) -> StoredRecord:
    """As a storer keeps it that met it at time 0, UNIX_MS by its wall clock."""
    life_s = min(RecordConfig().max_ttl_s, (record.expires_ms - UNIX_MS) / 1000)
    is_gone = record.gone is not None
    return StoredRecord(record.seal(OWNER), record.owner, record.seq, life_s, group="g", is_gone=is_gone)


def test_a_withdrawn_agent_is_gone_until_it_publishes_anew(make_store):
    store = make_store()
    gone = AGENT.withdrawn(seq=6, issued_ms=UNIX_MS + 1)
    again = replace(AGENT, seq=7, issued_ms=UNIX_MS + 2)
    store.put(KEYS[0], stored(AGENT), 0.0)

    answers = [store.put(KEYS[0], stored(record), 0.0) for record in (gone, AGENT, replace(AGENT, seq=6))]
    is_gone = [record.is_gone for record in store.get(KEYS[0], 899.0)]
    published = store.put(KEYS[0], stored(again), 0.0)

    assert answers == [None, Refusal.STALE, Refusal.STALE]
    assert is_gone == [True]
    assert published is None
    assert [record.seq for record in store.get(KEYS[0], 0.0)] == [7]


def test_a_withdrawal_is_forgotten_when_the_record_would_have_been(make_store):
    store = make_store()
    store.put(KEYS[0], stored(AGENT), 0.0)
    store.put(KEYS[0], stored(AGENT.withdrawn(seq=6, issued_ms=UNIX_MS + 1)), 0.0)

    assert store.get(KEYS[0], 899.9) != []
    assert store.get(KEYS[0], 900.0) == []


def test_a_withdrawal_has_room_where_nothing_else_has(make_store):
    store = make_store(RecordConfig(max_records_per_key=1, max_records_per_owner=1, max_records=1))
    store.put(KEYS[0], stored(AGENT), 0.0)

    assert store.put(KEYS[0], stored(AGENT.withdrawn(seq=6, issued_ms=UNIX_MS + 1)), 0.0) is None
    assert store.put(KEYS[0], stored(AGENT.revoked(issued_ms=UNIX_MS + 1)), 0.0) is None
    assert store.put(KEYS[0], a_record(), 0.0) is Refusal.FULL


def test_nothing_follows_a_revoked_key(make_store):
    store = make_store()
    store.put(KEYS[0], stored(AGENT), 0.0)
    final = stored(AGENT.revoked(issued_ms=UNIX_MS + 1))

    refusals = [
        store.put(KEYS[0], record, 0.0)
        for record in (
            final,
            stored(replace(AGENT, seq=LAST_SEQ - 1)),
            stored(AGENT.revoked(issued_ms=UNIX_MS + 2)),
            replace(final, expires_at=999_999.0),
        )
    ]

    assert refusals == [None, Refusal.STALE, Refusal.STALE, None]
    assert [record.seq for record in store.get(KEYS[0], 999_998.0)] == [LAST_SEQ]


def test_a_version_is_replaced_only_by_who_knows_it_where_that_is_asked(make_store):
    store = make_store()
    store.put(KEYS[0], a_record(b"v5", seq=5), 0.0)

    mismatch = store.put(KEYS[0], a_record(b"v7", seq=7), 0.0, expected_seq=6)
    nothing_there = store.put(KEYS[1], a_record(b"v7", seq=7), 0.0, expected_seq=6)
    again = store.put(KEYS[0], a_record(b"v5", seq=5), 0.0, expected_seq=4)
    match = store.put(KEYS[0], a_record(b"v7", seq=7), 0.0, expected_seq=5)

    assert (mismatch, nothing_there, again, match) == (Refusal.SEQ_MISMATCH, None, None, None)


def test_an_immutable_value_is_kept_once_whoever_signed_it_and_for_the_longest_time(make_store):
    store = make_store()
    first, second = (
        a_record(bytes([number]), OWNERS[number], seq=100 + number, kind=RecordKind.IMMUTABLE) for number in (0, 1)
    )

    assert store.put(KEYS[0], first, 0.0) is None
    assert store.put(KEYS[0], second, 0.0) is None
    assert store.put(KEYS[0], first, 0.0) is Refusal.STALE
    assert store.get(KEYS[0], 0.0) == [second]


def test_expired_records_are_neither_taken_nor_shown_nor_counted(make_store):
    store = make_store(RecordConfig(max_records_per_owner=2))
    for key in KEYS[:2]:
        store.put(key, a_record(expires_at=10.0), 0.0)

    assert store.put(KEYS[2], a_record(expires_at=5.0), 5.0) is Refusal.EXPIRED
    assert store.put(KEYS[2], a_record(expires_at=20.0), 9.9) is Refusal.OWNER_QUOTA
    assert store.put(KEYS[2], a_record(expires_at=20.0), 10.0) is None
    assert store.held_keys() == [KEYS[2]]


def test_a_store_tells_of_what_is_new_and_of_what_has_expired_once_each(make_store):
    told: list[tuple[str, bytes, bytes]] = []
    store = make_store()
    store.watch(
        lambda key, owner: told.append(("stored", key, owner)), lambda key, owner: told.append(("expired", key, owner))
    )

    store.put(KEYS[0], a_record(), 0.0)
    store.put(KEYS[0], a_record(), 1.0)
    store.put(KEYS[0], a_record(b"new", seq=2), 2.0)
    store.put(KEYS[0], a_record(), 2.0)
    store.put(KEYS[1], a_record(owner=OWNERS[1], kind=RecordKind.IMMUTABLE), 3.0)
    store.put(KEYS[2], a_record(), 4.0)
    store.remove(KEYS[2], OWNERS[0])
    store.expire(10.0)
    store.expire(11.0)

    assert told == [
        ("stored", KEYS[0], OWNERS[0]), ("stored", KEYS[0], OWNERS[0]), ("stored", KEYS[1], OWNERS[1]),
        ("stored", KEYS[2], OWNERS[0]), ("expired", KEYS[0], OWNERS[0]), ("expired", KEYS[1], OWNERS[1]),
    ]  # fmt: skip


def test_an_owner_that_is_seen_later_makes_no_new_record(make_store):
    told: list[bytes] = []
    store = make_store()
    store.watch(lambda key, owner: told.append(owner), lambda key, owner: None)

    store.put(KEYS[0], a_record(group=None), 0.0)
    store.put(KEYS[0], a_record(group="g"), 1.0)

    assert store.find(KEYS[0], OWNERS[0]).group == "g"
    assert told == [OWNERS[0]]


def test_a_replaced_record_may_come_back_after_it_expired(make_store):
    store = make_store()
    store.put(KEYS[0], a_record(seq=9, expires_at=10.0), 0.0)

    assert store.put(KEYS[0], a_record(seq=1, expires_at=30.0), 20.0) is None


@pytest.mark.parametrize(
    ("bound", "refusal"),
    [
        ({"max_records_per_key": 2}, Refusal.FULL),
        ({"max_records": 2}, Refusal.FULL),
        ({"max_bytes": 3 * RECORD_OVERHEAD_BYTES}, Refusal.FULL),
        ({"max_records_per_owner": 2}, Refusal.OWNER_QUOTA),
        ({"max_bytes_per_owner": 3 * RECORD_OVERHEAD_BYTES}, Refusal.OWNER_QUOTA),
        ({"max_records_per_group": 2}, Refusal.GROUP_QUOTA),
        ({"max_bytes_per_group": 3 * RECORD_OVERHEAD_BYTES}, Refusal.GROUP_QUOTA),
        ({"max_records": 40}, Refusal.UNSEEN_QUOTA),
    ],
    ids=lambda part: next(iter(part)) if isinstance(part, dict) else str(part),
)
def test_caps_refuse_newcomers_and_never_newer_versions(make_store, bound: dict[str, int], refusal: Refusal):
    store = make_store(RecordConfig(**bound))
    is_same_owner, is_same_key = refusal is Refusal.OWNER_QUOTA, bound.keys() == {"max_records_per_key"}
    group = None if refusal is Refusal.UNSEEN_QUOTA else "g"

    def put(number: int, seq: int = 1) -> Refusal | None:
        owner = OWNERS[0 if is_same_owner else number]
        new = a_record(b"%d" % seq * 10, owner, seq, kind=RecordKind.MUTABLE, group=group)
        return store.put(KEYS[0 if is_same_key else number], new, 0.0)

    assert (put(0), put(1)) == (None, None)
    assert put(2) is refusal
    assert put(0, seq=2) is None


@pytest.mark.parametrize("is_crowd_seen", [True, False])
def test_of_agents_under_a_crowded_key_those_of_the_largest_group_go_first_and_of_these_the_last_rank(
    make_store, is_crowd_seen: bool
):
    store = make_store(RecordConfig(max_records_per_key=4))
    agents = [
        a_record(b"%d" % number, b"%032d" % number, group="crowd" if is_crowd_seen and number < 3 else f"{number}")
        for number in range(5)
    ]
    agents = [replace(agent, rank=rank) for agent, rank in zip(agents, (5, 9, 1, 99, 7), strict=True)]

    said = [store.put(KEYS[0], agent, 0.0) for agent in agents]

    gone = 1 if is_crowd_seen else 3
    assert said == [None] * 5
    assert store.get(KEYS[0], 0.0) == [agent for number, agent in enumerate(agents) if number != gone]
    assert store.put(KEYS[0], replace(agents[gone], rank=2**63), 1.0) is Refusal.FULL
    assert store.is_full(KEYS[0], 1.0)


def test_a_key_is_full_while_it_is_crowded_and_for_part_of_a_lease_after_a_record_made_room(make_store):
    config = RecordConfig(max_records_per_key=2)
    store = make_store(config)
    for number, rank in enumerate((3, 2, 1)):
        store.put(
            KEYS[0], replace(a_record(b"%d" % number, b"%032d" % number, expires_at=10.0 + number), rank=rank), 0.0
        )
    store.expire(11.5)
    assert len(store) == 1

    assert store.is_full(KEYS[0], 0.6 * config.lease_s - 1)
    assert not store.is_full(KEYS[0], 0.6 * config.lease_s + 1)
    assert not store.is_full(KEYS[1], 0.0)


def test_one_groups_flood_leaves_room_for_all_others(make_store):
    config = RecordConfig(max_records=320, max_records_per_group=20, max_records_per_owner=10)
    store = make_store(config)
    store.put(KEYS[0], a_record(b"was here before", group="honest/0"), 0.0)
    rng = random.Random(1)

    for number in range(2000):
        attacker = rng.randbytes(32)
        store.put(rng.randbytes(32), a_record(b"junk", attacker, group=f"evil/{number % 4}"), 0.0)
        store.put(rng.randbytes(32), a_record(b"junk", attacker, group=None), 0.0)
    honest = [
        store.put(rng.randbytes(32), a_record(b"new", rng.randbytes(32), group=f"h/{n}"), 0.0) for n in range(100)
    ]

    assert len(store) == 1 + 4 * 20 + 320 // 20 + 100
    assert honest == [None] * 100
    assert store.get(KEYS[0], 0.0)


def test_our_own_records_are_bounded_by_all_room_alone(make_store):
    store = make_store(RecordConfig(max_records=10, max_records_per_owner=1, max_records_per_group=1))

    own = [store.put(bytes([n]) * 32, a_record(b"%d" % n, group=OWN_GROUP), 0.0) for n in range(11)]
    stranger = store.put(KEYS[0], a_record(owner=OWNERS[1]), 0.0)

    assert own == [None] * 10 + [Refusal.FULL]
    assert stranger is Refusal.FULL


def test_an_owner_seen_later_leaves_the_share_of_the_unseen(make_store):
    store = make_store(RecordConfig(max_records=20))
    store.put(KEYS[0], a_record(group=None), 0.0)

    full = store.put(KEYS[1], a_record(owner=OWNERS[1], group=None), 0.0)
    store.put(KEYS[0], a_record(group="seen"), 0.0)
    room = store.put(KEYS[1], a_record(owner=OWNERS[1], group=None), 0.0)

    assert (full, room) == (Refusal.UNSEEN_QUOTA, None)


def test_hearsay_of_a_copy_is_believed_once_until_our_own(make_store):
    store = make_store()
    store.put(KEYS[0], a_record(expires_at=1000.0), 0.0)

    def is_due(when: float) -> bool:
        return bool(store.not_copied_since(when, when))

    assert is_due(10.0)
    store.note_heard(KEYS[0], OWNERS[0], 10.0)
    assert not is_due(10.0)
    store.note_heard(KEYS[0], OWNERS[0], 20.0)
    assert is_due(20.0), "whoever says it again and again cannot stop all copies"
    store.note_copy(KEYS[0], OWNERS[0], 20.0)
    store.note_heard(KEYS[0], OWNERS[0], 30.0)
    assert not is_due(30.0)


class StoreModel(RuleBasedStateMachine):
    """A store against a dict that is filtered and counted anew each time."""

    def __init__(self) -> None:
        super().__init__()
        self.store = self.make()
        self.model: dict[tuple[bytes, bytes], StoredRecord] = {}
        self.now = 0.0

    def make(self) -> Store:
        return MemoryRecordStore(SMALL)

    def live(self) -> dict[tuple[bytes, bytes], StoredRecord]:
        return {place: record for place, record in self.model.items() if record.expires_at > self.now}

    def is_crowded(self, key: bytes) -> bool:
        return sum(at == key for at, _ in self.live()) >= SMALL.max_records_per_key

    def who_goes(self, key: bytes, new: StoredRecord) -> StoredRecord:
        """Of agents' records, the newcomer's as well: from the largest group the one with the largest rank."""
        if new.kind is not RecordKind.AGENT:
            return new
        there = [record for (at, _), record in self.live().items() if at == key and record.kind is RecordKind.AGENT]
        groups = [
            [record for record in (*there, new) if record.group == group] for group in {r.group for r in (*there, new)}
        ]
        largest = max(len(group) for group in groups)
        crowd = [record for group in groups if len(group) == largest for record in group]
        return max(crowd, key=lambda record: (record.rank, record.owner))

    def expected_refusal(self, key: bytes, new: StoredRecord, expected_seq: int | None) -> Refusal | None:
        live = self.live()
        held = live.pop((key, new.slot), None)
        if new.expires_at <= self.now:
            return Refusal.EXPIRED
        if held is not None:
            if held.record == new.record:
                return None
            if expected_seq not in (None, held.seq):
                return Refusal.SEQ_MISMATCH
            if new.seq <= held.seq:
                return Refusal.STALE
        if held is None and self.is_crowded(key) and self.who_goes(key, new) is new:
            return Refusal.FULL
        unseen_bytes = max(1 + 2 * RECORD_OVERHEAD_BYTES, int(SMALL.max_bytes * SMALL.unseen_share))
        group = (SMALL.max_records_per_group, SMALL.max_bytes_per_group) if new.group else (2, unseen_bytes)
        refusals = (
            (lambda r: True, SMALL.max_records, SMALL.max_bytes, Refusal.FULL),
            (
                lambda r: r.owner == new.owner,
                SMALL.max_records_per_owner,
                SMALL.max_bytes_per_owner,
                Refusal.OWNER_QUOTA,
            ),
            (lambda r: r.group == new.group, *group, Refusal.GROUP_QUOTA if new.group else Refusal.UNSEEN_QUOTA),
        )
        for is_counted, max_count, max_bytes, refusal in refusals:
            others = [record for record in live.values() if is_counted(record)]
            no_more = held is not None and is_counted(held) and new.size_bytes <= held.size_bytes
            total_bytes = sum(record.size_bytes for record in others) + new.size_bytes
            if not no_more and (len(others) >= max_count or total_bytes > max_bytes):
                return refusal
        return None

    @rule(
        key=st.sampled_from(KEYS),
        owner=st.sampled_from(OWNERS),
        group=st.sampled_from(GROUPS),
        kind=st.sampled_from([RecordKind.AGENT, RecordKind.IMMUTABLE]),
        seq=st.integers(1, 3),
        record=st.sampled_from([b"a", b"b" * 900]),
        life_s=st.integers(-1, 4),
        expected_seq=st.none() | st.integers(1, 2),
    )
    def put(self, key, owner, group, kind, seq: int, record: bytes, life_s: int, expected_seq: int | None) -> None:
        # The bytes say who signed which version, as those of real records do; a rank follows from key and owner.
        record += bytes([OWNERS.index(owner), seq])
        rank = int.from_bytes(hashlib.sha256(key + owner).digest()[:8], "big") if kind is RecordKind.AGENT else 0
        new = StoredRecord(record, owner, seq, self.now + life_s, kind, group, rank=rank, depth=rank % 3)
        expected = self.expected_refusal(key, new, expected_seq)
        is_newcomer = (key, new.slot) not in self.live()
        goes = self.who_goes(key, new) if expected is None and is_newcomer and self.is_crowded(key) else None

        asked = self.store.refusal_of(key, new, self.now, expected_seq=expected_seq)
        refusal = self.store.put(key, new, self.now, expected_seq=expected_seq)

        assert refusal is asked is expected
        if expected is not Refusal.EXPIRED:
            self.model = self.live()
        held = self.model.get((key, new.slot))
        if expected is None and (held is None or held.record != record):
            self.model.pop((key, new.slot), None)
            if goes is not None:
                del self.model[key, goes.slot]
            self.model[key, new.slot] = new
        elif expected is None:
            self.model[key, new.slot] = self.store.find(key, new.slot)  # its group alone may be another
            assert held == replace(new, expires_at=held.expires_at, group=held.group)

    @rule(seconds=st.integers(0, 3))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds

    @rule()
    def expire(self) -> None:
        live = self.live()

        assert self.store.expire(self.now) == len(self.model) - len(live)
        self.model = live

    @rule(key=st.sampled_from(KEYS), owner=st.sampled_from([b"", *OWNERS]))
    def remove(self, key: bytes, owner: bytes) -> None:
        assert self.store.remove(key, owner) == self.model.pop((key, owner), None)

    @rule()
    def restore(self) -> None:
        """All of it once more, as after a restart that took no time."""
        saved = self.store.snapshot(self.now, 1000)
        self.store = MemoryRecordStore(SMALL)

        assert self.store.restore(saved, self.now, 1000) == len(self.live())
        self.model = self.live()

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        live = self.live()
        self.store.check_invariants()
        assert len(self.store) == len(self.model)
        assert {(key, record.slot): record for key, record in self.store.items(self.now)} == live
        for key in KEYS:
            held = self.store.get(key, self.now)
            assert {record.slot: record for record in held} == {s: r for (at, s), r in live.items() if at == key}
        assert sorted(self.store.held_keys()) == sorted({key for key, _ in self.model})


class SqliteModel(StoreModel):
    """The same in a file, which is closed and opened in between: at the same moment, so that nothing ages."""

    def make(self) -> Store:
        self.folder = tempfile.TemporaryDirectory()
        self.clock = Clock()
        self.clock.now_s = 0.0
        return self.open()

    def open(self) -> SqliteRecordStore:
        return SqliteRecordStore(Path(self.folder.name, "records.db"), SMALL, self.clock.runtime())

    @rule()
    def restore(self) -> None:
        self.clock.unix_s += self.now - self.clock.now_s
        self.clock.now_s = self.now
        self.store.flush()
        self.store.close()
        self.store = self.open()

        assert not self.store.fault
        self.model = self.live()

    @rule()
    @precondition(lambda self: self.store.path.exists())
    def flush(self) -> None:
        self.clock.unix_s += self.now - self.clock.now_s
        self.clock.now_s = self.now
        self.store.flush()

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()


TestStoreModel = StoreModel.TestCase
TestStoreModel.settings = settings(max_examples=50, stateful_step_count=35, deadline=None)
TestSqliteModel = SqliteModel.TestCase
TestSqliteModel.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)


# Snapshots


def filled() -> MemoryRecordStore:
    store = MemoryRecordStore(RecordConfig())
    store.put(KEYS[0], a_record(b"agent", expires_at=100.0), 0.0)
    store.put(KEYS[1], a_record(b"value", seq=7, expires_at=50.0, kind=RecordKind.IMMUTABLE, group=None), 0.0)
    return store


def test_a_snapshot_holds_everything_and_what_is_left_of_its_life():
    saved = filled().snapshot(40.0, unix_ms=1_000_000)
    store = MemoryRecordStore(RecordConfig())

    count = store.restore(saved, 5000.0, unix_ms=1_004_000)

    assert count == 2
    assert store.get(KEYS[0], 5000.0) == [a_record(b"agent", expires_at=5056.0)]
    (value,) = store.get(KEYS[1], 5000.0)
    assert (value.kind, value.seq, value.group, value.expires_at) == (RecordKind.IMMUTABLE, 7, None, 5006.0)


def test_a_snapshot_that_was_damaged_is_refused_whole():
    saved = filled().snapshot(0.0, unix_ms=0)
    damaged = [saved[:end] for end in range(0, len(saved), 7)]
    damaged += [saved[:at] + bytes([saved[at] ^ 1]) + saved[at + 1 :] for at in range(0, len(saved), 5)]
    damaged += [saved + b"\x00", b"", bytes(3 * RecordConfig().max_bytes)]

    for snapshot in damaged:
        store = MemoryRecordStore(RecordConfig())
        with pytest.raises(StoreDamaged):
            store.restore(snapshot, 0.0, unix_ms=0)
        assert len(store) == 0


@pytest.mark.parametrize(
    ("life_s", "off_s", "left_s"),
    [
        (900, 0, 900),
        (900, 300, 600),
        (900, -1e9, 900),  # the clock went back by years: no longer than was granted
        (7200, 1e9, 600),  # it ran ahead by years, or we were off so long: the grace
        (100, 1e9, 100),  # never more than it had
        (900, 900, 600),
    ],
)
def test_no_clock_makes_a_record_immortal_or_kills_it_at_once(life_s: float, off_s: float, left_s: float):
    assert life_left_s(life_s, off_s, RecordConfig()) == left_s
