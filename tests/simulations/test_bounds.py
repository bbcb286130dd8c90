"""What is bounded of a node is counted as its store charges it."""

from __future__ import annotations

from dht.config import DHTConfig
from dht.quotas import OWN_GROUP
from dht.store import MemoryRecordStore
from dht.stored_record import RECORD_OVERHEAD_BYTES, StoredRecord
from simulations.bounds import counts_of, shares_of
from synapse_p2p.config import PoolConfig

NODE, OWNER, OTHER = b"n" * 32, b"o" * 32, b"x" * 32
CONFIG = DHTConfig()


class Two:
    def peer_ids(self) -> list[bytes]:
        return [OWNER, OTHER]


def store() -> MemoryRecordStore:
    """Two of one owner, one of another whose party is not known, one of the node's own; and one that expired."""
    store = MemoryRecordStore(CONFIG.records)
    groups = [(OWNER, "net"), (OWNER, "net"), (OTHER, None), (NODE, OWN_GROUP)]
    for number, (owner, group) in enumerate(groups):
        assert store.put(bytes([number]) * 32, StoredRecord(b"record", owner, 1, 900.0, group=group), 0.0) is None
    assert store.put(b"k" * 32, StoredRecord(b"record", OWNER, 1, 10.0, group="net"), 0.0) is None
    return store


def test_sessions_and_records_are_counted():
    amounts = {what: amount for what, _, amount, _ in counts_of(NODE, store(), Two(), CONFIG, PoolConfig())}

    assert amounts == {"sessions": 2, "records": 5}


def test_shares_are_those_of_the_largest_and_leave_out_the_nodes_own_and_what_expired():
    amounts = {what: (amount, cap) for what, _, amount, cap in shares_of(NODE, store(), 20.0, CONFIG)}

    assert amounts == {
        "bytes of records": (4 * (RECORD_OVERHEAD_BYTES + 6), CONFIG.records.max_bytes),
        "records of one owner": (2, CONFIG.records.max_records_per_owner),
        "records of one party": (2, CONFIG.records.max_records_per_group),
        "records of unseen owners": (1, 819),
    }
