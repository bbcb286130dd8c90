"""What a storer keeps: signed records by key and owner, in memory.

It decides by counts, sequence numbers and times alone; whether a record is genuine was checked by whoever
puts it. Times are monotonic seconds from the caller. Synchronous: every operation is done when it returns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from sortedcontainers import SortedList

from dht.config import RecordConfig
from dht.keyspace import Key
from dht.records import Refusal
from synapse_p2p.identity import NodeID


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """An envelope as received, who signed it, its place among the owner's versions, and when it ends."""

    record: bytes
    owner: NodeID
    seq: int
    expires_at: float


_Expiry: TypeAlias = tuple[float, Key, NodeID]


class MemoryRecordStore:
    """Records by key and owner, one of each owner under a key, bounded by `config`.

    Invariants: no cap of `config` is passed; every record has exactly one entry in the order of expiry.
    """

    def __init__(self, config: RecordConfig) -> None:
        self._config = config
        self._records: dict[Key, dict[NodeID, StoredRecord]] = {}
        self._count_by_owner: dict[NodeID, int] = {}
        self._expiries = SortedList()  # of _Expiry

    def put(
        self, key: Key, record_bytes: bytes, *, owner: NodeID, seq: int, expires_at: float, now: float
    ) -> Refusal | None:
        """Keep a record; the refusal, or None where it is held now.

        A larger `seq` replaces the owner's record under this key. The same bytes again are welcome and change
        nothing, their end neither: a copy must not outlive what the owner signed.
        """
        if expires_at <= now:
            return Refusal.EXPIRED
        self.expire(now)
        held = self.find(key, owner)
        if held is None:
            refusal = self._room_for(key, owner)
        elif seq == held.seq and record_bytes == held.record:
            return None
        else:
            refusal = None if seq > held.seq else Refusal.STALE
        if refusal is not None:
            return refusal
        self.remove(key, owner)
        self._insert(key, StoredRecord(record_bytes, owner, seq, expires_at))
        return None

    def get(self, key: Key, now: float) -> list[StoredRecord]:
        """The unexpired records under a key, in the order in which they came or were replaced."""
        return [record for record in self._records.get(key, {}).values() if record.expires_at > now]

    def find(self, key: Key, owner: NodeID) -> StoredRecord | None:
        """This owner's record under this key, expired or not, until a sweep takes it."""
        return self._records.get(key, {}).get(owner)

    def held_keys(self) -> list[Key]:
        """The keys under which anything is held."""
        return list(self._records)

    def items(self, now: float) -> Iterator[tuple[Key, StoredRecord]]:
        """Every unexpired record with its key. The store must not change while it is iterated."""
        for key, by_owner in self._records.items():
            for record in by_owner.values():
                if record.expires_at > now:
                    yield key, record

    def expire(self, now: float) -> int:
        """Remove what is expired at `now`; how many that were. Cost: O(log n) for each."""
        count = 0
        while self._expiries and self._expiries[0][0] <= now:
            _, key, owner = self._expiries[0]
            self.remove(key, owner)
            count += 1
        return count

    def remove(self, key: Key, owner: NodeID) -> StoredRecord | None:
        """Forget this owner's record under this key; the record if there was one."""
        by_owner = self._records.get(key)
        record = None if by_owner is None else by_owner.pop(owner, None)
        if by_owner is None or record is None:
            return None
        if not by_owner:
            del self._records[key]
        self._expiries.remove((record.expires_at, key, owner))
        self._count_by_owner[owner] -= 1
        if not self._count_by_owner[owner]:
            del self._count_by_owner[owner]
        return record

    def __len__(self) -> int:
        return len(self._expiries)

    def check_invariants(self) -> None:
        """Assert what the class promises; for tests."""
        held = [(key, owner, record) for key, by_owner in self._records.items() for owner, record in by_owner.items()]
        counts: dict[NodeID, int] = {}
        for _, owner, record in held:
            assert record.owner == owner
            counts[owner] = counts.get(owner, 0) + 1
        assert counts == self._count_by_owner
        assert sorted((record.expires_at, key, owner) for key, owner, record in held) == list(self._expiries)
        assert len(held) <= self._config.max_records
        assert all(count <= self._config.max_records_per_owner for count in counts.values())
        assert all(0 < len(by_owner) <= self._config.max_records_per_key for by_owner in self._records.values())

    def _room_for(self, key: Key, owner: NodeID) -> Refusal | None:
        if self._count_by_owner.get(owner, 0) >= self._config.max_records_per_owner:
            return Refusal.OWNER_QUOTA
        if len(self._expiries) >= self._config.max_records:
            return Refusal.FULL
        if len(self._records.get(key, {})) >= self._config.max_records_per_key:
            return Refusal.FULL
        return None

    def _insert(self, key: Key, record: StoredRecord) -> None:
        self._records.setdefault(key, {})[record.owner] = record
        self._expiries.add((record.expires_at, key, record.owner))
        self._count_by_owner[record.owner] = self._count_by_owner.get(record.owner, 0) + 1
