"""What a storer keeps: signed records by key, in memory, and the one contract that every store keeps.

Pure. It decides by counts, bytes, sequence numbers and times alone; whether a record is genuine was checked by whoever
puts it. Times are monotonic seconds from the caller. Synchronous: every operation is done when it returns, and what
`flush` has returned for outlives the process where the store is one that does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias

from sortedcontainers import SortedList

from dht.agents.shards import FULL_PART_OF_LEASE, first_to_go
from dht.config import RecordConfig
from dht.exceptions import StoreDamaged
from dht.keyspace import Key
from dht.quotas import Quotas
from dht.records import LAST_SEQ, RecordKind, Refusal
from dht.stored_record import Slot, StoredRecord
from synapse_p2p.exceptions import InvalidMessageError
from synapse_p2p.identity import NodeID
from synapse_p2p.protocol.wire import Limits, pack, unpack

SNAPSHOT_LABEL = b"synapse-snapshot:v2:"


class RecordStore(Protocol):
    """Records by key and slot. A full store refuses newcomers and still takes newer versions.

    Nothing is evicted, but of agents' records under a key that has as many as it may: there the one goes that
    `agents.shards` says, which may be the newcomer. An expired record is not there, whether or not a sweep has taken
    it.
    """

    def refusal_of(self, key: Key, new: StoredRecord, now: float, *, expected_seq: int | None = None) -> Refusal | None:
        """What `put` would say. It costs no more than that, so that it can be asked before a signature is checked."""
        ...

    def put(self, key: Key, new: StoredRecord, now: float, *, expected_seq: int | None = None) -> Refusal | None:
        """Keep a record; the refusal, or None where it is held now.

        A larger `seq` replaces what is in the slot, unless that has another `seq` than expected. The same bytes again
        are welcome and change nothing, their end neither: a copy must not outlive what the owner signed. Only a final
        tombstone, which has no end, is kept on by every copy.
        """
        ...

    def holds(self, key: Key, new: StoredRecord) -> bool:
        """Whether these very bytes are held under this key."""
        ...

    def get(self, key: Key, now: float) -> list[StoredRecord]:
        """The records under a key, in the order in which they came or were replaced."""
        ...

    def is_full(self, key: Key, now: float) -> bool:
        """Whether this key has as many records as it may, or one was dropped lately for want of room."""
        ...

    def find(self, key: Key, slot: Slot) -> StoredRecord | None:
        """What is in this slot, expired or not, until a sweep takes it."""
        ...

    def held_keys(self) -> list[Key]:
        """The keys under which anything is held."""
        ...

    def items(self, now: float) -> Iterator[tuple[Key, StoredRecord]]:
        """Every record with its key. The store must not change while it is iterated."""
        ...

    def note_copy(self, key: Key, slot: Slot, now: float) -> None:
        """We have just seen to it that the others who should have this record do."""
        ...

    def note_heard(self, key: Key, slot: Slot, now: float) -> None:
        """Another storer says that it sees to that. It is believed once until the next `note_copy`: anybody can say so,
        and nobody shall stop all copies.
        """
        ...

    def not_copied_since(self, when: float, now: float) -> list[tuple[Key, StoredRecord]]:
        """The records that neither came since then nor were copied, by us or as we heard."""
        ...

    def expire(self, now: float) -> int:
        """Remove what is expired at `now`; how many that were."""
        ...

    def remove(self, key: Key, slot: Slot) -> StoredRecord | None:
        """Forget what is in this slot; the record if there was one."""
        ...

    def watch(self, on_stored: Callable[[Key, NodeID], None], on_expired: Callable[[Key, NodeID], None]) -> None:
        """Tell from now on, and nobody else: the key and owner of every record that is new or in a newer version, and
        of every one that is gone because its time was over.
        """
        ...

    def flush(self) -> None:
        """Return when all that was put is as safe as this store makes it. Acknowledge nothing before. Never raises."""
        ...

    def close(self) -> None:
        """Flush, and let go of files. Records stay readable in memory."""
        ...

    def __len__(self) -> int: ...


_Expiry: TypeAlias = tuple[float, Key, Slot]


@dataclass(slots=True)
class _Held:
    stored: StoredRecord
    copied_at: float
    is_hearsay: bool = False  # of copied_at


class MemoryRecordStore:
    """A RecordStore that lasts as long as its process, bounded by `config`.

    Invariants: no cap of `config` is passed; every record has exactly one entry in the order of expiry; what owners and
    groups are charged with adds up to what is held. Cost: O(log n) for each change.
    """

    def __init__(self, config: RecordConfig, *, on_changed: Callable[[Key, Slot], None] | None = None) -> None:
        """`on_changed` is told of every slot that was filled, replaced or emptied."""
        self._config = config
        self._on_changed = on_changed or _tell_nobody
        self._on_stored: Callable[[Key, NodeID], None] = _tell_nobody
        self._on_expired: Callable[[Key, NodeID], None] = _tell_nobody
        self._records: dict[Key, dict[Slot, _Held]] = {}
        self._quotas = Quotas(config)
        self._expiries = SortedList()  # of _Expiry
        self._dropped_at: dict[Key, float] = {}  # when a record last made room for another, of keys that are held

    def refusal_of(self, key: Key, new: StoredRecord, now: float, *, expected_seq: int | None = None) -> Refusal | None:
        """See RecordStore."""
        if new.expires_at <= now:
            return Refusal.EXPIRED
        self.expire(now)
        held = self.find(key, new.slot)
        if held is not None:
            if held.record == new.record:
                return None
            if expected_seq is not None and held.seq != expected_seq:
                return Refusal.SEQ_MISMATCH
            if new.seq <= held.seq:
                return Refusal.STALE
        return self._room_for(key, new, held)

    def put(self, key: Key, new: StoredRecord, now: float, *, expected_seq: int | None = None) -> Refusal | None:
        """See RecordStore."""
        refusal = self.refusal_of(key, new, now, expected_seq=expected_seq)
        if refusal is not None:
            return refusal
        held = self.find(key, new.slot)
        is_held = held is not None and held.record == new.record
        if held is not None and is_held:
            new = self._welcomed_again(key, held, new)
            if new == held:
                return None
        self.remove(key, new.slot)
        if self._is_crowded(key):
            self.remove(key, self._first_to_go(key, new).slot)
            self._dropped_at[key] = now
        self._insert(key, new, now)
        if not is_held:
            self._on_stored(key, new.owner)
        return None

    def holds(self, key: Key, new: StoredRecord) -> bool:
        """See RecordStore."""
        held = self.find(key, new.slot)
        return held is not None and held.record == new.record

    def get(self, key: Key, now: float) -> list[StoredRecord]:
        """See RecordStore."""
        return [held.stored for held in self._records.get(key, {}).values() if held.stored.expires_at > now]

    def is_full(self, key: Key, now: float) -> bool:
        """See RecordStore."""
        dropped_at = self._dropped_at.get(key)
        was_dropped = dropped_at is not None and now - dropped_at < FULL_PART_OF_LEASE * self._config.lease_s
        return was_dropped or self._is_crowded(key)

    def find(self, key: Key, slot: Slot) -> StoredRecord | None:
        """See RecordStore."""
        held = self._records.get(key, {}).get(slot)
        return None if held is None else held.stored

    def held_keys(self) -> list[Key]:
        """See RecordStore."""
        return list(self._records)

    def items(self, now: float) -> Iterator[tuple[Key, StoredRecord]]:
        """See RecordStore."""
        for key, held in self._all():
            if held.stored.expires_at > now:
                yield key, held.stored

    def note_copy(self, key: Key, slot: Slot, now: float) -> None:
        """See RecordStore."""
        held = self._records.get(key, {}).get(slot)
        if held is not None:
            held.copied_at, held.is_hearsay = now, False

    def note_heard(self, key: Key, slot: Slot, now: float) -> None:
        """See RecordStore."""
        held = self._records.get(key, {}).get(slot)
        if held is not None and not held.is_hearsay:
            held.copied_at, held.is_hearsay = now, True

    def not_copied_since(self, when: float, now: float) -> list[tuple[Key, StoredRecord]]:
        """See RecordStore. Cost: O(n)."""
        return [
            (key, held.stored) for key, held in self._all() if held.copied_at < when and held.stored.expires_at > now
        ]

    def expire(self, now: float) -> int:
        """See RecordStore. Cost: O(log n) for each."""
        count = 0
        while self._expiries and self._expiries[0][0] <= now:
            _, key, slot = self._expiries[0]
            stored = self.remove(key, slot)
            assert stored is not None, "every entry in the order of expiry has its record"
            self._on_expired(key, stored.owner)
            count += 1
        return count

    def remove(self, key: Key, slot: Slot) -> StoredRecord | None:
        """See RecordStore."""
        by_slot = self._records.get(key)
        held = None if by_slot is None else by_slot.pop(slot, None)
        if by_slot is None or held is None:
            return None
        if not by_slot:
            del self._records[key]
            self._dropped_at.pop(key, None)
        stored = held.stored
        self._expiries.remove((stored.expires_at, key, slot))
        self._quotas.give_back(stored)
        self._on_changed(key, slot)
        return stored

    def watch(self, on_stored: Callable[[Key, NodeID], None], on_expired: Callable[[Key, NodeID], None]) -> None:
        """See RecordStore."""
        self._on_stored, self._on_expired = on_stored, on_expired

    def flush(self) -> None:
        """There is nothing safer than memory here."""

    def close(self) -> None:
        """There are no files here."""

    def __len__(self) -> int:
        return len(self._expiries)

    def snapshot(self, now: float, unix_ms: int) -> bytes:
        """Everything held, for `restore`; `unix_ms` is the wall clock, by which the time between is reckoned."""
        rows = [
            [
                key,
                int(r.kind),
                r.owner,
                r.seq,
                round((r.expires_at - now) * 1000),
                r.group,
                r.is_gone,
                r.rank,
                r.depth,
                r.record,
            ]
            for key, r in self.items(now)
        ]
        body = pack([unix_ms, rows])
        return SNAPSHOT_LABEL + hashlib.sha256(body).digest() + body

    def restore(self, snapshot: bytes, now: float, unix_ms: int) -> int:
        """Put what a snapshot holds; how many of its records are held now. Raises StoreDamaged, and then holds nothing
        of it.
        """
        saved_ms, rows = _read_snapshot(snapshot, self._config)
        off_s = (unix_ms - saved_ms) / 1000
        count = 0
        for key, new, life_s in rows:
            left_s = life_left_s(life_s, off_s, self._config)
            count += self.put(key, replace(new, expires_at=now + left_s), now) is None
        return count

    def check_invariants(self) -> None:
        """Assert what the class promises; for tests."""
        held = [(key, slot, held.stored) for key, by_slot in self._records.items() for slot, held in by_slot.items()]
        assert all(slot == record.slot for _, slot, record in held)
        assert sorted((record.expires_at, key, slot) for key, slot, record in held) == list(self._expiries)
        assert all(0 < len(by_slot) <= self._config.max_records_per_key for by_slot in self._records.values())
        assert self._dropped_at.keys() <= self._records.keys()
        self._quotas.check_invariants(record for _, _, record in held)

    def _all(self) -> Iterator[tuple[Key, _Held]]:
        for key, by_slot in self._records.items():
            for held in by_slot.values():
                yield key, held

    def _room_for(self, key: Key, new: StoredRecord, held: StoredRecord | None) -> Refusal | None:
        is_newcomer = held is None and self._is_crowded(key)
        if is_newcomer and (new.kind is not RecordKind.AGENT or self._first_to_go(key, new) is new):
            return Refusal.FULL
        return self._quotas.refusal_of(new, held)

    def _is_crowded(self, key: Key) -> bool:
        return len(self._records.get(key, {})) >= self._config.max_records_per_key

    def _first_to_go(self, key: Key, new: StoredRecord) -> StoredRecord:
        held = [held.stored for held in self._records[key].values()]
        return first_to_go([*(stored for stored in held if stored.kind is RecordKind.AGENT), new])

    def _welcomed_again(self, key: Key, held: StoredRecord, new: StoredRecord) -> StoredRecord:
        """What is held once the same bytes came again: a final tombstone lives on, and an owner may be seen now."""
        if held.seq == LAST_SEQ and new.expires_at > held.expires_at:
            held = replace(held, expires_at=new.expires_at)
        if held.group is None and new.group is not None:
            seen = replace(held, group=new.group)
            return held if self._room_for(key, seen, held) else seen
        return held

    def _insert(self, key: Key, stored: StoredRecord, now: float) -> None:
        self._records.setdefault(key, {})[stored.slot] = _Held(stored, now)
        self._expiries.add((stored.expires_at, key, stored.slot))
        self._quotas.take(stored)
        self._on_changed(key, stored.slot)


def life_left_s(life_s: float, off_s: float, config: RecordConfig) -> float:
    """The life of a record that had `life_s` left when it was saved, `off_s` ago by the wall clock.

    A clock that went back adds nothing, so that no record outlives what it was granted by being saved again and again.
    One that ran ahead takes nothing for good: what ran out meanwhile is kept for a while, in which the clock may be
    found wrong or the owner come by. Readers check the signed times by clocks of their own.
    """
    left_s = life_s - max(0.0, off_s)
    return left_s if left_s > 0 else min(life_s, config.restart_grace_s)


def _tell_nobody(key: Key, slot: Slot) -> None:
    pass


def _read_snapshot(snapshot: bytes, config: RecordConfig) -> tuple[int, list[tuple[Key, StoredRecord, float]]]:
    label_size, digest_size = len(SNAPSHOT_LABEL), hashlib.sha256().digest_size
    body = snapshot[label_size + digest_size :]
    if len(snapshot) > 2 * config.max_bytes:
        raise StoreDamaged(f"a snapshot of {len(snapshot)} bytes is larger than this store may be")
    if not snapshot.startswith(SNAPSHOT_LABEL):
        raise StoreDamaged("it is no snapshot, or one of another release")
    if hashlib.sha256(body).digest() != snapshot[label_size : label_size + digest_size]:
        raise StoreDamaged("its bytes are not those that were saved")
    max_elements = 16 * (config.max_records + 16)
    try:
        saved_ms, rows = unpack(body, Limits(max_elements=max_elements, max_map_entries=16))
        return saved_ms, [
            (key, StoredRecord(record, owner, seq, 0.0, RecordKind(kind), group, is_gone, rank, depth), life_ms / 1000)
            for key, kind, owner, seq, life_ms, group, is_gone, rank, depth, record in rows
        ]
    except (InvalidMessageError, ValueError, TypeError) as error:
        raise StoreDamaged(str(error)) from error
