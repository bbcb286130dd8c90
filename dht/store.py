"""What a storer keeps: signed records by key, in memory, and the one contract that every store keeps.

Pure. It decides by counts, bytes, sequence numbers and times alone; whether a record is genuine was checked by whoever
puts it. Times are monotonic seconds from the caller. Synchronous: every operation is done when it returns, and what
`flush` has returned for outlives the process where the store is one that does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias, TypeVar

from sortedcontainers import SortedList

from dht.config import RecordConfig
from dht.exceptions import StoreDamaged
from dht.keyspace import Key
from dht.records import LAST_SEQ, RecordKind, Refusal
from synapse_p2p.exceptions import InvalidMessageError
from synapse_p2p.identity import NodeID
from synapse_p2p.protocol.wire import Limits, pack, unpack

RECORD_OVERHEAD_BYTES = 1024
"""What a record takes beside its own bytes, counted with them; measured, in memory."""
SNAPSHOT_LABEL = b"synapse-snapshot:v1:"
OWN_GROUP = "own"
"""The group of the storer's own records: they take nobody's share, and only all room there is bounds them."""
ANY_OWNER = b""
"""The slot of an immutable value: whoever signs it, it is the same."""

Slot: TypeAlias = bytes
_Name = TypeVar("_Name", bound=Hashable)


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """An envelope as received, who signed it, its place among the versions, and when it ends.

    `group` is the party whose share it takes, None where its owner was not seen at an address of its own. `is_gone`
    marks a tombstone.
    """

    record: bytes
    owner: NodeID
    seq: int
    expires_at: float
    kind: RecordKind = RecordKind.AGENT
    group: str | None = None
    is_gone: bool = False

    @property
    def slot(self) -> Slot:
        """Its place under a key: its owner's, but for an immutable value, of which there is one for all."""
        return ANY_OWNER if self.kind is RecordKind.IMMUTABLE else self.owner

    @property
    def size_bytes(self) -> int:
        """What it counts for."""
        return len(self.record) + RECORD_OVERHEAD_BYTES


class RecordStore(Protocol):
    """Records by key and slot. Nothing is ever evicted: a full store refuses newcomers and still takes newer versions.

    An expired record is not there, whether or not a sweep has taken it.
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

    def flush(self) -> None:
        """Return when all that was put is as safe as this store makes it. Acknowledge nothing before. Never raises."""
        ...

    def close(self) -> None:
        """Flush, and let go of files. Records stay readable in memory."""
        ...

    def __len__(self) -> int: ...


_Expiry: TypeAlias = tuple[float, Key, Slot]


@dataclass(slots=True)
class _Usage:
    count: int = 0
    size_bytes: int = 0


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
        self._records: dict[Key, dict[Slot, _Held]] = {}
        self._total = _Usage()
        self._by_owner: dict[NodeID, _Usage] = {}
        self._by_group: dict[str | None, _Usage] = {}
        self._expiries = SortedList()  # of _Expiry

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
        if held is not None and held.record == new.record:
            new = self._welcomed_again(key, held, new)
            if new == held:
                return None
        self.remove(key, new.slot)
        self._insert(key, new, now)
        return None

    def holds(self, key: Key, new: StoredRecord) -> bool:
        """See RecordStore."""
        held = self.find(key, new.slot)
        return held is not None and held.record == new.record

    def get(self, key: Key, now: float) -> list[StoredRecord]:
        """See RecordStore."""
        return [held.stored for held in self._records.get(key, {}).values() if held.stored.expires_at > now]

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
            self.remove(key, slot)
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
        stored = held.stored
        self._expiries.remove((stored.expires_at, key, slot))
        self._charge(stored, -1)
        self._on_changed(key, slot)
        return stored

    def flush(self) -> None:
        """There is nothing safer than memory here."""

    def close(self) -> None:
        """There are no files here."""

    def __len__(self) -> int:
        return len(self._expiries)

    def snapshot(self, now: float, unix_ms: int) -> bytes:
        """Everything held, for `restore`; `unix_ms` is the wall clock, by which the time between is reckoned."""
        rows = [
            [key, int(r.kind), r.owner, r.seq, round((r.expires_at - now) * 1000), r.group, r.is_gone, r.record]
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
        config = self._config
        held = [(key, slot, held.stored) for key, by_slot in self._records.items() for slot, held in by_slot.items()]
        assert all(slot == record.slot for _, slot, record in held)
        assert sorted((record.expires_at, key, slot) for key, slot, record in held) == list(self._expiries)
        others = [record for _, _, record in held if record.group != OWN_GROUP]
        assert self._by_owner == _usages((record.owner, record.size_bytes) for record in others)
        assert self._by_group == _usages((record.group, record.size_bytes) for record in others)
        assert self._total == _usages((None, record.size_bytes) for _, _, record in held).get(None, _Usage())
        assert len(held) <= config.max_records and self._total.size_bytes <= config.max_bytes
        assert all(0 < len(by_slot) <= config.max_records_per_key for by_slot in self._records.values())
        for usage in self._by_owner.values():
            assert usage.count <= config.max_records_per_owner and usage.size_bytes <= config.max_bytes_per_owner
        for group, usage in self._by_group.items():
            max_count, max_bytes = self._group_caps(group)
            assert usage.count <= max_count and usage.size_bytes <= max_bytes

    def _all(self) -> Iterator[tuple[Key, _Held]]:
        for key, by_slot in self._records.items():
            for held in by_slot.values():
                yield key, held

    def _room_for(self, key: Key, new: StoredRecord, held: StoredRecord | None) -> Refusal | None:
        config = self._config
        if held is None and len(self._records.get(key, {})) >= config.max_records_per_key:
            return Refusal.FULL
        if not _fits(self._total, new, held, config.max_records, config.max_bytes):
            return Refusal.FULL
        if new.group == OWN_GROUP:
            return None
        own = held if held is not None and held.owner == new.owner else None
        usage = self._by_owner.get(new.owner, _Usage())
        if not _fits(usage, new, own, config.max_records_per_owner, config.max_bytes_per_owner):
            return Refusal.OWNER_QUOTA
        own = held if held is not None and held.group == new.group else None
        usage = self._by_group.get(new.group, _Usage())
        if not _fits(usage, new, own, *self._group_caps(new.group)):
            return Refusal.UNSEEN_QUOTA if new.group is None else Refusal.GROUP_QUOTA
        return None

    def _group_caps(self, group: str | None) -> tuple[int, int]:
        config = self._config
        if group is not None:
            return config.max_records_per_group, config.max_bytes_per_group
        # At least one record, however small the store: a share of nothing would refuse all copies.
        return (
            max(1, int(config.max_records * config.unseen_share)),
            max(config.max_value_bytes + 2 * RECORD_OVERHEAD_BYTES, int(config.max_bytes * config.unseen_share)),
        )

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
        self._charge(stored, 1)
        self._on_changed(key, stored.slot)

    def _charge(self, stored: StoredRecord, sign: int) -> None:
        self._total.count += sign
        self._total.size_bytes += sign * stored.size_bytes
        if stored.group != OWN_GROUP:
            _charge(self._by_owner, stored.owner, stored, sign)
            _charge(self._by_group, stored.group, stored, sign)


def life_left_s(life_s: float, off_s: float, config: RecordConfig) -> float:
    """The life of a record that had `life_s` left when it was saved, `off_s` ago by the wall clock.

    A clock that went back adds nothing, so that no record outlives what it was granted by being saved again and again.
    One that ran ahead takes nothing for good: what ran out meanwhile is kept for a while, in which the clock may be
    found wrong or the owner come by. Readers check the signed times by clocks of their own.
    """
    left_s = life_s - max(0.0, off_s)
    return left_s if left_s > 0 else min(life_s, config.restart_grace_s)


def _fits(usage: _Usage, new: StoredRecord, old: StoredRecord | None, max_records: int, max_bytes: int) -> bool:
    """Whether `new` has room in the place of `old`. A version no larger than the last always has."""
    if old is not None and new.size_bytes <= old.size_bytes:
        return True
    count = usage.count + (old is None)
    size_bytes = usage.size_bytes + new.size_bytes - (0 if old is None else old.size_bytes)
    return count <= max_records and size_bytes <= max_bytes


def _tell_nobody(key: Key, slot: Slot) -> None:
    pass


def _charge(usages: dict[_Name, _Usage], name: _Name, stored: StoredRecord, sign: int) -> None:
    usage = usages.setdefault(name, _Usage())
    usage.count += sign
    usage.size_bytes += sign * stored.size_bytes
    if not usage.count:
        del usages[name]


def _usages(charges: Iterable[tuple[_Name, int]]) -> dict[_Name, _Usage]:
    usages: dict[_Name, _Usage] = {}
    for name, size_bytes in charges:
        usage = usages.setdefault(name, _Usage())
        usage.count += 1
        usage.size_bytes += size_bytes
    return usages


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
            (key, StoredRecord(record, owner, seq, 0.0, RecordKind(kind), group, is_gone), life_ms / 1000)
            for key, kind, owner, seq, life_ms, group, is_gone, record in rows
        ]
    except (InvalidMessageError, ValueError, TypeError) as error:
        raise StoreDamaged(str(error)) from error
