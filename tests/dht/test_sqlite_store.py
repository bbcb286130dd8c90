"""What the store in a file does that the one in memory does not: deaths, full disks, damage, wrong clocks.

Run as a program, it is the storer that is killed: `python test_sqlite_store.py FOLDER SEED`.
"""

from __future__ import annotations

import logging
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dht.config import RecordConfig
from dht.records import RecordKind
from dht.sqlite_store import RETRY_S, SqliteRecordStore
from dht.stored_record import StoredRecord
from synapse_p2p.runtime import Runtime, system_runtime

OWNERS = [bytes([100 + index]) * 32 for index in range(4)]
DEATHS = 30
DAY_S = 86_400.0


class Machine:
    """A folder, and two clocks set by hand. `start` gives the store of a new process."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "records.db"
        self.now_s = 0.0
        self.unix_s = 1_800_000_000.0
        self.store: SqliteRecordStore | None = None

    def start(self, config: RecordConfig | None = None, *, off_s: float = 0.0) -> SqliteRecordStore:
        """After `off_s` on the wall clock. The monotonic clock begins anew."""
        if self.store is not None:
            self.store.close()
        self.now_s = random.Random(self.unix_s).uniform(0, 1e6)
        self.unix_s += off_s
        runtime = Runtime(lambda: self.now_s, lambda: self.unix_s, random.Random(1), lambda size: bytes(size))
        self.store = SqliteRecordStore(self.path, config or RecordConfig(), runtime)
        return self.store

    def run(self, seconds: float) -> None:
        self.now_s += seconds
        self.unix_s += seconds

    def put(self, number: int, *, life_s: float = DAY_S, seq: int = 1, record: bytes = b"record") -> None:
        assert self.store is not None
        new = StoredRecord(record, OWNERS[0], seq, self.now_s + life_s, RecordKind.MUTABLE, "group")
        assert self.store.put(key_of(number), new, self.now_s) is None
        self.store.flush()

    def life_s(self, number: int) -> float | None:
        """What is left of a record's life; None where it is not held."""
        assert self.store is not None
        held = self.store.get(key_of(number), self.now_s)
        return round(held[0].expires_at - self.now_s, 1) if held else None


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    machine.start()
    yield machine
    assert machine.store is not None
    machine.store.check_invariants()
    machine.store.close()


def key_of(number: int) -> bytes:
    return number.to_bytes(32, "big")


# Deaths


def storer(folder: Path, seed: int) -> None:
    """Put versions of a few records for ever, and say of each that it is kept, once it is."""
    rng = random.Random(seed)
    store = SqliteRecordStore(folder / "records.db", RecordConfig(), system_runtime())
    assert not store.fault, store.fault
    seqs = {number: held[0].seq if (held := store.get(key_of(number), 0.0)) else 0 for number in range(8)}
    while True:
        puts = []
        for _ in range(rng.randint(1, 4)):
            number = rng.randrange(len(seqs))
            seqs[number] += 1
            record = b"%d of %d" % (seqs[number], number) + bytes(rng.randrange(6000))
            new = StoredRecord(record, OWNERS[0], seqs[number], time.monotonic() + DAY_S, RecordKind.MUTABLE, "group")
            assert store.put(key_of(number), new, time.monotonic()) is None
            puts.append(b"%d %d\n" % (number, seqs[number]))
        store.flush()
        os.write(1, b"".join(puts))


def die_again_and_again(folder: Path, seed: int) -> None:
    """Fork the storer, kill it at a random moment, and look whether all is there that it said was kept."""
    rng = random.Random(seed)
    acknowledged: dict[int, int] = {}
    for death in range(DEATHS):
        reads, writes = os.pipe()
        child = os.fork()
        if not child:
            os.dup2(writes, 1)
            storer(folder, death)
        os.close(writes)
        with os.fdopen(reads, "rb") as says:
            for _ in range(rng.randint(1, 60)):
                _note(acknowledged, says.readline())
            time.sleep(rng.random() * 0.003)
            os.kill(child, signal.SIGKILL)
            for line in says:
                _note(acknowledged, line)
        os.waitpid(child, 0)
        store = SqliteRecordStore(folder / "records.db", RecordConfig(), system_runtime())
        assert not store.fault, store.fault
        for number, seq in acknowledged.items():
            (held,) = store.get(key_of(number), time.monotonic())
            assert held.seq >= seq, f"record {number}: {held.seq} after {seq} was acknowledged"
            assert held.record.startswith(b"%d of %d" % (held.seq, number))
        store.check_invariants()
        store.close()
    print(f"survived {DEATHS} deaths with {sum(acknowledged.values())} versions")


def _note(acknowledged: dict[int, int], line: bytes) -> None:
    if line.endswith(b"\n"):  # else it died while it spoke
        number, seq = map(int, line.split())
        acknowledged[number] = seq


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a storer is forked to be killed")
def test_what_was_acknowledged_survives_a_kill_at_any_moment(tmp_path: Path):
    # In a process of its own: this one has threads, which do not survive a fork.
    run = subprocess.run(
        [sys.executable, __file__, str(tmp_path), "7"], capture_output=True, text=True, timeout=60, check=False
    )

    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(f"survived {DEATHS} deaths")


def test_what_was_not_flushed_is_not_in_the_file_and_a_close_flushes(machine: Machine):
    machine.put(1)
    new = StoredRecord(b"r", OWNERS[0], 1, machine.now_s + 60, RecordKind.MUTABLE, "group")
    machine.store.put(key_of(2), new, machine.now_s)
    copy = machine.path.with_name("copy.db")
    for suffix in ("", "-wal"):
        shutil.copy(f"{machine.path}{suffix}", f"{copy}{suffix}")

    after_death = SqliteRecordStore(copy, RecordConfig(), system_runtime())
    after_death_keys = after_death.held_keys()
    after_death.close()
    machine.start()

    assert after_death_keys == [key_of(1)]
    assert machine.store.held_keys() == [key_of(1), key_of(2)]


def test_removed_and_expired_records_stay_away(machine: Machine):
    for number, life_s in enumerate((10.0, 100.0, 1000.0)):
        machine.put(number, life_s=life_s)
    machine.store.remove(key_of(1), OWNERS[0])
    machine.run(20.0)
    machine.store.expire(machine.now_s)

    machine.start()

    assert machine.store.held_keys() == [key_of(2)]


def test_a_second_process_does_not_write_into_the_file_of_the_first(machine: Machine, caplog):
    machine.put(1)

    second = SqliteRecordStore(machine.path, RecordConfig(), system_runtime())

    assert "locked" in second.fault
    assert len(second) == 0
    assert machine.path.exists(), "it is not damaged, and stays where it is"


# Clocks


def test_life_goes_on_while_nobody_runs(machine: Machine):
    machine.put(1, life_s=3600.0)
    machine.run(600.0)

    machine.start(off_s=1000.0)

    assert machine.life_s(1) == 2000.0


def test_a_clock_that_goes_back_at_every_start_makes_no_record_immortal(machine: Machine):
    machine.put(1, life_s=3600.0)
    lives = []

    for _ in range(5):
        machine.run(900.0)
        machine.store.expire(machine.now_s)
        machine.store.flush()
        machine.unix_s = 0.0
        machine.start()
        lives.append(machine.life_s(1))

    assert lives == [2700.0, 1800.0, 900.0, None, None]


def test_a_clock_that_is_years_ahead_kills_nothing_at_once_and_spares_nothing_for_good(machine: Machine):
    machine.put(1, life_s=3600.0)
    machine.start(off_s=20 * 365 * DAY_S)
    first = machine.life_s(1)

    machine.run(400.0)
    machine.start(off_s=10.0)
    second = machine.life_s(1)
    machine.unix_s -= 20 * 365 * DAY_S
    machine.start()
    third = machine.life_s(1)

    assert (first, second, third) == (600.0, 190.0, 190.0)


# Disks


def test_a_full_disk_is_one_warning_and_the_node_goes_on_and_saves_all_once_there_is_room(
    machine: Machine, caplog: pytest.LogCaptureFixture
):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    machine.put(0)
    with caplog.at_level(logging.INFO):
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
        try:
            for number in range(1, 30):
                machine.put(number, record=bytes([number]) * 16_000)
                machine.run(RETRY_S)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        while_full = (machine.store.fault, machine.store.failed_saves, len(machine.store))
        machine.put(30)
        after = machine.store.fault
        machine.start()

    assert while_full[0] and while_full[1] > 5
    assert while_full[2] == 30, "it serves from memory"
    assert after == ""
    assert len(machine.store) == 31
    assert [record.levelname for record in caplog.records if "saved" in record.message] == ["WARNING", "INFO"]


def test_a_failed_save_is_tried_again_after_a_while_and_not_at_every_put(machine: Machine):
    machine.store._connection.execute("PRAGMA max_page_count = 8")
    for number in range(50):
        machine.put(number, record=bytes(16_000))

    assert machine.store.failed_saves == 1
    assert len(machine.store) == 50


def test_what_comes_and_goes_while_nothing_can_be_saved_does_not_pile_up(machine: Machine):
    machine.start(RecordConfig(max_records=10))
    machine.store._connection.execute("PRAGMA max_page_count = 1")
    for number in range(200):
        machine.put(number)
        machine.store.remove(key_of(number), OWNERS[0])
    machine.put(777)

    assert len(machine.store._changed) <= 20
    machine.store._connection.execute("PRAGMA max_page_count = 10000")
    machine.start(RecordConfig(max_records=10))
    assert machine.store.held_keys() == [key_of(777)]


@pytest.mark.parametrize("folder", ["/proc/nowhere", "a file"])
def test_a_folder_that_cannot_be_written_is_one_warning_and_the_node_keeps_to_memory(
    folder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    if folder == "a file":
        (tmp_path / "a file").write_text("not a folder")
    elif not Path("/proc").exists():
        pytest.skip("there is no folder that nobody can write")
    machine = Machine(Path(tmp_path, folder))

    machine.start()
    machine.put(1)
    machine.put(2)

    assert machine.store.fault
    assert len(machine.store) == 2
    (warning,) = caplog.records
    assert str(machine.path) in warning.message and "memory" in warning.message


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is read-only to root")
def test_a_read_only_folder_is_a_warning(tmp_path: Path):
    tmp_path.chmod(0o500)
    machine = Machine(tmp_path)

    machine.start()
    machine.put(1)

    assert machine.store.fault


# Damage


def damaged(kind: str, good: bytes) -> bytes:
    at = good.rindex(b"record of the second")
    return {
        "flipped bit in a record": good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :],
        "flipped bit in the magic": b"R" + good[1:],
        "truncated": good[: len(good) // 2],
        "noise": random.Random(1).randbytes(len(good)),
        "text": b"hello world\n" * 1000,
        "huge": good + bytes(5 * RecordConfig().max_bytes - len(good)),
    }[kind]


@pytest.mark.parametrize(
    "kind",
    ["flipped bit in a record", "flipped bit in the magic", "truncated", "noise", "text", "huge"],
)
def test_a_damaged_file_is_moved_aside_unchanged_and_the_node_goes_on(
    machine: Machine, kind: str, caplog: pytest.LogCaptureFixture
):
    machine.put(1, record=b"record of the first " * 500)
    machine.put(2, record=b"record of the second " * 500)
    machine.store.close()
    bad = damaged(kind, machine.path.read_bytes())
    machine.path.write_bytes(bad)

    machine.start()
    machine.put(3)

    assert "aside" in machine.store.fault
    assert len(machine.store) == 1, "nothing of a damaged file is believed"
    assert machine.path.with_name("records.db.aside-1").read_bytes() == bad
    assert len(caplog.records) == 1
    machine.start()
    assert not machine.store.fault, "the next start has a new file"


def test_any_flipped_bit_is_noticed_or_changes_nothing(machine: Machine):
    for number in range(4):
        machine.put(number, record=b"record %d " % number * 30)
    machine.store.close()
    good = machine.path.read_bytes()
    rng = random.Random(2)
    was_noticed = 0

    for _ in range(60):
        with tempfile.TemporaryDirectory() as folder:
            other = Machine(Path(folder))
            other.unix_s = machine.unix_s
            at = rng.randrange(len(good))
            other.path.write_bytes(good[:at] + bytes([good[at] ^ 1 << rng.randrange(8)]) + good[at + 1 :])
            store = other.start()
            held = {record.record for number in range(4) for record in store.get(key_of(number), other.now_s)}
            was_noticed += bool(store.fault)
            assert held <= {b"record %d " % number * 30 for number in range(4)}
            assert store.fault or len(held) == 4
            store.close()

    assert was_noticed > 0


def test_a_file_of_a_later_release_is_refused_and_kept(machine: Machine):
    machine.put(1)
    machine.store.close()
    with sqlite3.connect(machine.path) as connection:
        connection.execute("PRAGMA user_version = 3")
    connection.close()

    machine.start()
    machine.put(2)

    assert "another release" in machine.store.fault
    assert machine.path.with_name("records.db.aside-1").exists()
    assert len(machine.store) == 1


def test_another_programs_file_is_not_written_into(machine: Machine):
    machine.store.close()
    machine.path.unlink()
    with sqlite3.connect(machine.path) as connection:
        connection.execute("CREATE TABLE letters (text TEXT)")
    connection.close()

    machine.start()

    assert "another program" in machine.store.fault
    with sqlite3.connect(machine.path.with_name("records.db.aside-1")) as connection:
        assert connection.execute("SELECT count(*) FROM letters").fetchone() == (0,)
    connection.close()


def test_each_damaged_file_is_kept(machine: Machine):
    for _ in range(3):
        machine.store.close()
        machine.path.write_bytes(b"junk" * 100)
        machine.start()

    assert sorted(path.name for path in machine.path.parent.glob("*.aside-*")) == [
        f"records.db.aside-{number}" for number in (1, 2, 3)
    ]


if __name__ == "__main__":
    die_again_and_again(Path(sys.argv[1]), int(sys.argv[2]))
