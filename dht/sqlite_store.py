"""A store of records that outlives its process: the memory store, with a journal of it in one SQLite file.

Everything is answered from memory; the file is written by `flush` and read when the store is opened. So a full disk or
a folder that cannot be written costs a warning and the next start its records, and nothing else.

Time in the file is the store's own: milliseconds that it has existed, run or not. What passed while nobody ran is known
from the wall clock alone, and bounded by `store.life_left_s`.

    file:   SQLite 3 in WAL mode; application_id "SYNR", user_version 2
    record: one row for each slot, with a digest of the row: a flipped bit is not left to the pages' luck
    clock:  one row: the store's own time, and the wall clock at the same moment
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from dht.agents.shards import RANK_BITS
from dht.config import RecordConfig
from dht.exceptions import StoreDamaged
from dht.keyspace import Key
from dht.records import RecordKind
from dht.store import MemoryRecordStore, life_left_s
from dht.stored_record import Slot, StoredRecord
from synapse_p2p.protocol.wire import pack
from synapse_p2p.runtime import Runtime

logger = logging.getLogger(__name__)

APPLICATION_ID = int.from_bytes(b"SYNR", "big")
SCHEMA_VERSION = 2
RETRY_S = 30.0
"""After a save that failed: each try costs a transaction, and disks do not get empty within seconds."""
CLOCK_S = 300.0
"""The store's own time is saved so often where nothing else is."""
MAX_FILE_FACTOR = 4
"""A file larger than so many times what a store may hold is none of ours: pages are at least half full."""

_SCHEMA = f"""
BEGIN;
CREATE TABLE record (
    key BLOB NOT NULL, slot BLOB NOT NULL, kind INTEGER NOT NULL, owner BLOB NOT NULL, seq INTEGER NOT NULL,
    ends_ms INTEGER NOT NULL, party TEXT, is_gone INTEGER NOT NULL, rank BLOB NOT NULL, depth INTEGER NOT NULL,
    record BLOB NOT NULL, digest BLOB NOT NULL,
    PRIMARY KEY (key, slot));
CREATE TABLE clock (id INTEGER PRIMARY KEY CHECK (id = 1), own_ms INTEGER NOT NULL, unix_ms INTEGER NOT NULL);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}

_Row: TypeAlias = tuple[Any, ...]


class SqliteRecordStore(MemoryRecordStore):
    """A RecordStore in a file. Opening never fails: where the file cannot be used, `fault` says why.

    A file that is damaged, or of another release, is moved aside and never deleted. While `fault` is not empty the
    store is one in memory; a disk that was full is tried again, and then all is saved that came meanwhile.
    """

    def __init__(self, path: str | os.PathLike[str], config: RecordConfig, runtime: Runtime) -> None:
        super().__init__(config, on_changed=self._note_change)
        self.path = Path(path)
        self.fault = ""
        self.failed_saves = 0
        self._config = config
        self._runtime = runtime
        self._connection: sqlite3.Connection | None = None
        self._changed: dict[tuple[Key, Slot], None] = {}
        self._is_all_changed = False
        self._retry_at = 0.0
        self._saved_at = self._opened_at = runtime.now()
        self._own_ms_at_open = 0
        self._open()

    def flush(self) -> None:
        """See RecordStore. One transaction; 50 us for a small record. Every thousandth page waits for the disk."""
        now = self._runtime.now()
        is_due = self._changed or self._is_all_changed or now >= self._saved_at + CLOCK_S
        if self._connection is None or not is_due or now < self._retry_at:
            return
        try:
            self._save(self._connection, now)
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                self._connection.rollback()
            self._retry_at = now + RETRY_S
            self._on_fault(str(error))
        else:
            self._saved_at = now
            if self.fault:
                logger.info("records are saved again in %s", self.path)
                self.fault = ""

    def close(self) -> None:
        """See RecordStore."""
        self._retry_at = 0.0
        self._saved_at -= CLOCK_S
        self.flush()
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def _note_change(self, key: Key, slot: Slot) -> None:
        self._changed[key, slot] = None
        # Where nothing can be saved, what was emptied would pile up.
        if len(self._changed) > 2 * self._config.max_records:
            self._changed.clear()
            self._is_all_changed = True

    # Opening

    def _open(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = self._connect()
            self._load(self._connection)
            self._connection.execute("BEGIN IMMEDIATE")  # a file that cannot be written says so now
            self._connection.rollback()
        except StoreDamaged as error:
            self._give_up(str(error), is_damaged=True)
        except sqlite3.DatabaseError as error:
            self._give_up(str(error), is_damaged=error.sqlite_errorcode & 0xFF in _DAMAGE)
        except OSError as error:
            self._give_up(error.strerror or str(error), is_damaged=False)

    def _connect(self) -> sqlite3.Connection:
        if self.path.exists() and self.path.stat().st_size > MAX_FILE_FACTOR * self._config.max_bytes:
            raise StoreDamaged(f"it has {self.path.stat().st_size} bytes, more than this store ever writes")
        # No waiting for another process that has it, and no transactions but those that are written here.
        connection = sqlite3.connect(self.path, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            is_new = _check_version(connection)
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            if is_new:
                connection.executescript(_SCHEMA)
        except BaseException:
            connection.close()
            raise
        return connection

    def _load(self, connection: sqlite3.Connection) -> None:
        if (fault := connection.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise StoreDamaged(fault)
        now, unix_ms = self._opened_at, self._unix_ms()
        own_ms, saved_unix_ms = connection.execute("SELECT own_ms, unix_ms FROM clock").fetchone() or (0, unix_ms)
        off_ms = max(0, unix_ms - saved_unix_ms)
        self._own_ms_at_open = own_ms + off_ms
        rows = [_read_row(row) for row in connection.execute("SELECT * FROM record ORDER BY rowid")]
        for key, ends_ms, stored in rows:
            life_s = (ends_ms - own_ms) / 1000
            left_s = life_left_s(life_s, off_ms / 1000, self._config)
            is_kept = self.put(key, replace(stored, expires_at=now + left_s), now) is None
            if is_kept and left_s == life_s - off_ms / 1000:
                self._changed.pop((key, stored.slot), None)  # its row is right as it is
            else:
                self._changed[key, stored.slot] = None

    def _give_up(self, fault: str, *, is_damaged: bool) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()
        if is_damaged:
            fault = f"{fault}; moved to {self._move_aside()}"
        self._on_fault(fault)

    def _move_aside(self) -> str:
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.aside-{number}")).exists():
            number += 1
        try:
            for suffix in ("-wal", "-shm", ""):
                part = self.path.with_name(self.path.name + suffix)
                if part.exists():
                    part.rename(aside.with_name(aside.name + suffix))
        except OSError as error:
            return f"nowhere ({error.strerror})"
        return aside.name

    def _on_fault(self, fault: str) -> None:
        self.failed_saves += 1
        if not self.fault:
            logger.warning("records are not saved in %s: %s; the node goes on with those in memory", self.path, fault)
        self.fault = fault

    # Saving

    def _save(self, connection: sqlite3.Connection, now: float) -> None:
        own_ms = self._own_ms(now)
        if self._is_all_changed:
            changed = [(key, stored.slot) for key, stored in self.items(now)]
        else:
            changed = list(self._changed)
        rows, emptied = [], []
        for key, slot in changed:
            stored = self.find(key, slot)
            if stored is None:
                emptied.append((key, slot))
            else:
                rows.append(_write_row(key, own_ms + round((stored.expires_at - now) * 1000), stored))
        connection.execute("BEGIN IMMEDIATE")
        if self._is_all_changed:
            connection.execute("DELETE FROM record")
        connection.executemany("DELETE FROM record WHERE key = ? AND slot = ?", emptied)
        connection.executemany("REPLACE INTO record VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
        connection.execute("REPLACE INTO clock VALUES (1, ?, ?)", (own_ms, self._unix_ms()))
        connection.execute("COMMIT")
        self._changed.clear()
        self._is_all_changed = False

    def _own_ms(self, now: float) -> int:
        return self._own_ms_at_open + round((now - self._opened_at) * 1000)

    def _unix_ms(self) -> int:
        return round(self._runtime.unix_now() * 1000)


def _check_version(connection: sqlite3.Connection) -> bool:
    """Whether the file is empty. Raises StoreDamaged for one that is not of this release."""
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    is_new = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
    if not is_new and application != APPLICATION_ID:
        raise StoreDamaged("it is another program's")
    if not is_new and version != SCHEMA_VERSION:
        raise StoreDamaged(f"it is of another release (version {version}; this one reads {SCHEMA_VERSION})")
    return is_new


def _write_row(key: Key, ends_ms: int, stored: StoredRecord) -> _Row:
    fields = (
        key, stored.slot, int(stored.kind), stored.owner, stored.seq, ends_ms, stored.group, int(stored.is_gone),
        stored.rank.to_bytes(RANK_BITS // 8, "big"), stored.depth, stored.record,
    )  # fmt: skip
    return (*fields, _digest(fields))


def _read_row(row: _Row) -> tuple[Key, int, StoredRecord]:
    *fields, digest = row
    if _digest(tuple(fields)) != digest:
        raise StoreDamaged("a record in it is not what was saved")
    key, _, kind, owner, seq, ends_ms, group, is_gone, rank, depth, record = fields
    place = int.from_bytes(rank, "big"), depth
    return key, ends_ms, StoredRecord(record, owner, seq, 0.0, RecordKind(kind), group, bool(is_gone), *place)


def _digest(fields: _Row) -> bytes:
    return hashlib.blake2b(pack(fields), digest_size=16).digest()
