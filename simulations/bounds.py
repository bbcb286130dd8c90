"""What is bounded of a node: how much there is of each, and how much there may be. Whoever looks decides how often."""

from __future__ import annotations

from typing import Protocol, TypeAlias

from dht.config import DHTConfig
from dht.quotas import OWN_GROUP
from dht.store import RecordStore
from synapse_p2p.config import PoolConfig
from synapse_p2p.identity import NodeID

Amount: TypeAlias = tuple[str, NodeID, int, int]
"""What it is, whose, how much there is, how much may be."""


class Sessions(Protocol):
    """Those of a node: a real pool or a virtual one."""

    def peer_ids(self) -> list[NodeID]: ...


def counts_of(
    node: NodeID, store: RecordStore, sessions: Sessions, config: DHTConfig, pool: PoolConfig
) -> list[Amount]:
    """Of one node, what is counted anyway. Cost: O(sessions)."""
    return [
        ("sessions", node, len(sessions.peer_ids()), pool.max_sessions),
        ("records", node, len(store), config.records.max_records),
    ]


def shares_of(node: NodeID, store: RecordStore, now: float, config: DHTConfig) -> list[Amount]:
    """What its store holds in bytes, of one owner and of one party. Cost: O(records)."""
    records = config.records
    by_owner: dict[NodeID, int] = {}
    by_group: dict[str | None, int] = {}
    size_bytes = 0
    for _, stored in store.items(now):
        size_bytes += stored.size_bytes
        if stored.group != OWN_GROUP:  # its own records take nobody's share
            by_owner[stored.owner] = by_owner.get(stored.owner, 0) + 1
            by_group[stored.group] = by_group.get(stored.group, 0) + 1
    unseen = by_group.pop(None, 0)
    return [
        ("bytes of records", node, size_bytes, records.max_bytes),
        ("records of one owner", node, max(by_owner.values(), default=0), records.max_records_per_owner),
        ("records of one party", node, max(by_group.values(), default=0), records.max_records_per_group),
        ("records of unseen owners", node, unseen, max(1, int(records.max_records * records.unseen_share))),
    ]
