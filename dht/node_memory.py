"""What a node remembers beyond its life: the records that it keeps for others, and the peers to come back through."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dht import known_peers
from dht.config import DHTConfig
from dht.contact import Contact
from dht.routing import RoutingTable
from dht.store import MemoryRecordStore, RecordStore
from synapse_p2p.runtime import Runtime

if TYPE_CHECKING:
    from dht.sqlite_store import SqliteRecordStore

RECORDS_FILE_NAME = "records.db"


class NodeMemory:
    """The store of one node, and its best peers. In `data_dir` both outlive it, a store that was given apart.

    `peers` are those of the last look, first of all those of an earlier life: at most 16.
    """

    def __init__(
        self,
        config: DHTConfig,
        runtime: Runtime,
        store: RecordStore | None,
        data_dir: str | os.PathLike[str] | None,
    ) -> None:
        self._peers_path = None if data_dir is None else Path(data_dir, known_peers.FILE_NAME)
        self.peers: Sequence[Contact] = () if self._peers_path is None else known_peers.load(self._peers_path)
        self._own_store: SqliteRecordStore | None = None
        if store is None and data_dir is not None:
            from dht.sqlite_store import SqliteRecordStore  # here: a client is there before SQLite is

            store = self._own_store = SqliteRecordStore(Path(data_dir, RECORDS_FILE_NAME), config.records, runtime)
        self.store: RecordStore = MemoryRecordStore(config.records) if store is None else store

    def remember(self, table: RoutingTable) -> None:
        """Note the best of these peers. A table without any takes nothing away. Cost: it waits for the disk."""
        best = known_peers.best(table)
        if best:
            self.peers = best
            if self._peers_path is not None:
                known_peers.save(self._peers_path, best)

    def close(self) -> None:
        """Let go of files; records stay in memory. A store that was given is its giver's to close."""
        if self._own_store is not None:
            self._own_store.close()
