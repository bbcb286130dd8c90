"""A lock that a system keeps, one that it does not, and what it says of its holder."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from synapse_p2p.file_lock import MAX_PID_BYTES, WINDOWS_LOCKED_AT, FileLock, LockHeld

locked_places: set[tuple[int, int]] = set()
"""What the stand-in for Windows' locks has locked: (file, position)."""


def locking(descriptor: int, mode: str, size: int) -> None:
    """Like `msvcrt.locking`: at the position of the file, and refused where somebody else was first."""
    place = (os.fstat(descriptor).st_ino, os.lseek(descriptor, 0, os.SEEK_CUR))
    assert size == 1
    if mode == "unlock":
        locked_places.remove(place)
    elif place in locked_places:
        raise OSError(errno.EACCES, "locked")
    else:
        locked_places.add(place)


@pytest.fixture(params=["its own", "windows"])
def locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The locks of the system that runs the tests, and the calls that are made on Windows."""
    if request.param == "windows" and sys.platform != "win32":
        monkeypatch.setattr(sys, "platform", "win32")
        msvcrt = SimpleNamespace(locking=locking, LK_NBLCK="lock", LK_UNLCK="unlock")
        monkeypatch.setitem(sys.modules, "msvcrt", msvcrt)
    return request.param


def test_a_lock_keeps_others_out_until_it_is_released_and_says_who_holds_it(tmp_path: Path, locks: str):
    path = tmp_path / "lock"
    first = FileLock.take(path)

    with pytest.raises(LockHeld) as held:
        FileLock.take(path)
    first.release()
    first.release()
    second = FileLock.take(path)

    assert held.value.pid == os.getpid()
    assert first.is_real
    assert second.is_real
    assert path.read_text() == f"{os.getpid()}\n"
    second.release()
    assert locked_places == set()


def test_windows_locks_a_byte_that_nobody_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if sys.platform == "win32":
        pytest.skip("the stand-in is looked at")
    monkeypatch.setattr(sys, "platform", "win32")
    msvcrt = SimpleNamespace(locking=locking, LK_NBLCK="lock", LK_UNLCK="unlock")
    monkeypatch.setitem(sys.modules, "msvcrt", msvcrt)

    lock = FileLock.take(tmp_path / "lock")

    assert locked_places == {((tmp_path / "lock").stat().st_ino, WINDOWS_LOCKED_AT)}
    assert WINDOWS_LOCKED_AT > MAX_PID_BYTES
    lock.release()


@pytest.mark.parametrize("content", ["", "\n", "someone", "-1", "9" * 5_000_000])
def test_a_holder_that_does_not_say_who_it_is_is_nobody_by_name(tmp_path: Path, content: str):
    path = tmp_path / "lock"
    lock = FileLock.take(path)
    path.write_text(content)

    with pytest.raises(LockHeld) as held:
        FileLock.take(path)

    assert held.value.pid is None or held.value.pid < 10**MAX_PID_BYTES
    lock.release()


@pytest.mark.skipif(sys.platform == "win32", reason="its locks do not come with a module of that name")
def test_a_file_system_without_locks_gives_one_that_is_not_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import fcntl

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)

    first, second = FileLock.take(tmp_path / "lock"), FileLock.take(tmp_path / "lock")

    assert not first.is_real
    assert not second.is_real
    first.release()
    second.release()


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="needs a system that can refuse links")
def test_a_lock_is_not_taken_through_a_link(tmp_path: Path):
    (tmp_path / "lock").symlink_to("elsewhere")

    with pytest.raises(OSError, match="symbolic"):
        FileLock.take(tmp_path / "lock")

    assert not (tmp_path / "elsewhere").exists()
