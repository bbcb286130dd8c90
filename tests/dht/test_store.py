from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dht.config import RecordConfig
from dht.records import Refusal
from dht.store import MemoryRecordStore, StoredRecord

KEYS = [bytes([index]) * 32 for index in range(3)]
OWNERS = [bytes([100 + index]) * 32 for index in range(4)]
SMALL = RecordConfig(max_records_per_key=3, max_records=6, max_records_per_owner=2)


def put(
    store: MemoryRecordStore, key: bytes = KEYS[0], owner: bytes = OWNERS[0], *,
    seq: int = 1, record: bytes = b"r", expires_at: float = 10.0, now: float = 0.0,
) -> Refusal | None:  # fmt: skip
    return store.put(key, record, owner=owner, seq=seq, expires_at=expires_at, now=now)


def test_larger_seq_replaces_the_owners_record():
    store = MemoryRecordStore(RecordConfig())
    put(store, seq=1, record=b"old")

    refusal = put(store, seq=2, record=b"new", expires_at=20.0)

    assert refusal is None
    assert store.get(KEYS[0], 0.0) == [StoredRecord(b"new", OWNERS[0], 2, 20.0)]


def test_smaller_seq_and_other_bytes_of_the_same_seq_are_stale():
    store = MemoryRecordStore(RecordConfig())
    put(store, seq=5, record=b"held")

    refusals = [put(store, seq=4, record=b"held"), put(store, seq=5, record=b"other")]

    assert refusals == [Refusal.STALE, Refusal.STALE]
    assert store.find(KEYS[0], OWNERS[0]) == StoredRecord(b"held", OWNERS[0], 5, 10.0)


def test_the_same_record_again_is_accepted_and_lives_no_longer():
    store = MemoryRecordStore(RecordConfig())
    put(store, expires_at=10.0)

    refusal = put(store, expires_at=99.0)

    assert refusal is None
    assert store.get(KEYS[0], 10.0) == []


def test_expired_records_are_neither_taken_nor_shown_nor_counted():
    store = MemoryRecordStore(SMALL)
    for key in KEYS[:2]:
        put(store, key, expires_at=10.0)

    assert put(store, KEYS[2], expires_at=5.0, now=5.0) is Refusal.EXPIRED
    assert put(store, KEYS[2], expires_at=20.0, now=9.9) is Refusal.OWNER_QUOTA
    assert put(store, KEYS[2], expires_at=20.0, now=10.0) is None
    assert store.held_keys() == [KEYS[2]]


def test_a_replaced_record_may_come_back_after_it_expired():
    store = MemoryRecordStore(RecordConfig())
    put(store, seq=9, expires_at=10.0)

    assert put(store, seq=1, expires_at=30.0, now=20.0) is None


def test_caps_refuse_newcomers_and_never_replacements():
    store = MemoryRecordStore(RecordConfig(max_records_per_key=2, max_records=3, max_records_per_owner=2))
    put(store, KEYS[0], OWNERS[0])
    put(store, KEYS[0], OWNERS[1])

    assert put(store, KEYS[0], OWNERS[2]) is Refusal.FULL
    assert put(store, KEYS[1], OWNERS[0]) is None
    assert put(store, KEYS[2], OWNERS[0]) is Refusal.OWNER_QUOTA
    assert put(store, KEYS[2], OWNERS[2]) is Refusal.FULL
    assert put(store, KEYS[0], OWNERS[0], seq=2, record=b"new") is None
    assert len(store) == 3


class StoreModel(RuleBasedStateMachine):
    """The store against a dict that is filtered and counted anew each time."""

    def __init__(self) -> None:
        super().__init__()
        self.store = MemoryRecordStore(SMALL)
        self.model: dict[tuple[bytes, bytes], StoredRecord] = {}
        self.now = 0.0

    def live(self) -> dict[tuple[bytes, bytes], StoredRecord]:
        return {place: record for place, record in self.model.items() if record.expires_at > self.now}

    def expected_refusal(self, key: bytes, new: StoredRecord) -> Refusal | None:
        live = self.live()
        held = live.get((key, new.owner))
        if new.expires_at <= self.now:
            return Refusal.EXPIRED
        if held is not None:
            is_same = (held.seq, held.record) == (new.seq, new.record)
            return None if is_same or new.seq > held.seq else Refusal.STALE
        if sum(owner == new.owner for _, owner in live) >= SMALL.max_records_per_owner:
            return Refusal.OWNER_QUOTA
        is_full = len(live) >= SMALL.max_records or sum(at == key for at, _ in live) >= SMALL.max_records_per_key
        return Refusal.FULL if is_full else None

    @rule(
        key=st.sampled_from(KEYS),
        owner=st.sampled_from(OWNERS),
        seq=st.integers(1, 3),
        record=st.sampled_from([b"a", b"b"]),
        life_s=st.integers(-1, 4),
    )
    def put(self, key: bytes, owner: bytes, seq: int, record: bytes, life_s: int) -> None:
        new = StoredRecord(record, owner, seq, self.now + life_s)
        expected = self.expected_refusal(key, new)

        refusal = self.store.put(key, record, owner=owner, seq=seq, expires_at=new.expires_at, now=self.now)

        assert refusal is expected
        if expected is not Refusal.EXPIRED:
            self.model = self.live()
        held = self.model.get((key, owner))
        if expected is None and (held is None or held.seq < seq):
            self.model.pop((key, owner), None)
            self.model[key, owner] = new

    @rule(seconds=st.integers(0, 3))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds

    @rule()
    def expire(self) -> None:
        live = self.live()

        assert self.store.expire(self.now) == len(self.model) - len(live)
        self.model = live

    @rule(key=st.sampled_from(KEYS), owner=st.sampled_from(OWNERS))
    def remove(self, key: bytes, owner: bytes) -> None:
        assert self.store.remove(key, owner) == self.model.pop((key, owner), None)

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        live = self.live()
        self.store.check_invariants()
        assert len(self.store) == len(self.model)
        assert {(key, record.owner): record for key, record in self.store.items(self.now)} == live
        for key in KEYS:
            assert self.store.get(key, self.now) == [record for (at, _), record in live.items() if at == key]
            assert all(self.store.find(key, owner) == self.model.get((key, owner)) for owner in OWNERS)
        assert sorted(self.store.held_keys()) == sorted({key for key, _ in self.model})


TestStoreModel = StoreModel.TestCase
TestStoreModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
