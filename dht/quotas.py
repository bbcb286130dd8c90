"""How much of a store anybody may take: its owners, their parties, and all together.

Pure. It counts; what is kept is the store's business. The reason for each share is in `config.RecordConfig`.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from dht.config import RecordConfig
from dht.records import Refusal
from dht.stored_record import RECORD_OVERHEAD_BYTES, StoredRecord
from synapse_p2p.identity import NodeID

OWN_GROUP = "own"
"""The group of the storer's own records: they take nobody's share, and only all room there is bounds them."""

_Name = TypeVar("_Name", bound=Hashable)


@dataclass(slots=True)
class _Usage:
    count: int = 0
    size_bytes: int = 0


class Quotas:
    """What is taken of each share. Invariant: nothing is over its cap of `config`."""

    def __init__(self, config: RecordConfig) -> None:
        self._config = config
        self._total = _Usage()
        self._by_owner: dict[NodeID, _Usage] = {}
        self._by_group: dict[str | None, _Usage] = {}

    def refusal_of(self, new: StoredRecord, old: StoredRecord | None) -> Refusal | None:
        """Why there is no room for `new` in the place of `old`; None where there is."""
        config = self._config
        if not _fits(self._total, new, old, config.max_records, config.max_bytes):
            return Refusal.FULL
        if new.group == OWN_GROUP:
            return None
        if old is not None and old.group == OWN_GROUP:
            old = None  # it takes no share that it could leave
        own = old if old is not None and old.owner == new.owner else None
        usage = self._by_owner.get(new.owner, _Usage())
        if not _fits(usage, new, own, config.max_records_per_owner, config.max_bytes_per_owner):
            return Refusal.OWNER_QUOTA
        own = old if old is not None and old.group == new.group else None
        usage = self._by_group.get(new.group, _Usage())
        if not _fits(usage, new, own, *self._group_caps(new.group)):
            return Refusal.UNSEEN_QUOTA if new.group is None else Refusal.GROUP_QUOTA
        return None

    def take(self, stored: StoredRecord) -> None:
        """It is kept now."""
        self._charge(stored, 1)

    def give_back(self, stored: StoredRecord) -> None:
        """It is kept no more."""
        self._charge(stored, -1)

    def check_invariants(self, held: Iterable[StoredRecord]) -> None:
        """Assert what the class promises of just these records; for tests."""
        config, held = self._config, list(held)
        others = [record for record in held if record.group != OWN_GROUP]
        assert self._by_owner == _usages((record.owner, record.size_bytes) for record in others)
        assert self._by_group == _usages((record.group, record.size_bytes) for record in others)
        assert self._total == _usages((None, record.size_bytes) for record in held).get(None, _Usage())
        assert self._total.count <= config.max_records and self._total.size_bytes <= config.max_bytes
        for usage in self._by_owner.values():
            assert usage.count <= config.max_records_per_owner and usage.size_bytes <= config.max_bytes_per_owner
        for group, usage in self._by_group.items():
            max_count, max_bytes = self._group_caps(group)
            assert usage.count <= max_count and usage.size_bytes <= max_bytes

    def _group_caps(self, group: str | None) -> tuple[int, int]:
        config = self._config
        if group is not None:
            return config.max_records_per_group, config.max_bytes_per_group
        # At least one record, however small the store: a share of nothing would refuse all copies.
        return (
            max(1, int(config.max_records * config.unseen_share)),
            max(config.max_value_bytes + 2 * RECORD_OVERHEAD_BYTES, int(config.max_bytes * config.unseen_share)),
        )

    def _charge(self, stored: StoredRecord, sign: int) -> None:
        self._total.count += sign
        self._total.size_bytes += sign * stored.size_bytes
        if stored.group != OWN_GROUP:
            _charge(self._by_owner, stored.owner, stored, sign)
            _charge(self._by_group, stored.group, stored, sign)


def _fits(usage: _Usage, new: StoredRecord, old: StoredRecord | None, max_records: int, max_bytes: int) -> bool:
    """Whether `new` has room in the place of `old`. A version no larger than the last always has."""
    if old is not None and new.size_bytes <= old.size_bytes:
        return True
    count = usage.count + (old is None)
    size_bytes = usage.size_bytes + new.size_bytes - (0 if old is None else old.size_bytes)
    return count <= max_records and size_bytes <= max_bytes


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
