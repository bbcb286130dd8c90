"""One process at a time: a lock on a file that also says who has it.

The operating system keeps the lock and drops it when its holder ends, however that ends; the file stays, and means
nothing by itself. Uses `flock` on Unix, `msvcrt` on Windows. Where there is neither, or the file system has no locks, a
lock keeps nobody out, and `is_real` says so.
"""

from __future__ import annotations

import contextlib
import os
import sys
from enum import Enum
from pathlib import Path

MAX_PID_BYTES = 20
WINDOWS_LOCKED_AT = 1 << 30
"""The byte that is locked on Windows: far behind the pid, for nobody else can read a locked byte there."""

_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


class LockHeld(Exception):
    """Another process has the lock, or this one took it before. `pid` is None where the holder did not say."""

    def __init__(self, pid: int | None) -> None:
        super().__init__(f"held by process {pid}")
        self.pid = pid


class FileLock:
    """A lock from `take` to `release`. Not inherited: a forked child that releases it leaves it to its parent."""

    __slots__ = ("_descriptor", "_pid", "is_real")

    def __init__(self, descriptor: int, *, is_real: bool) -> None:
        self._descriptor = descriptor
        self._pid = os.getpid()
        self.is_real = is_real

    @classmethod
    def take(cls, path: Path) -> FileLock:
        """The lock, at once. Raises LockHeld, and OSError where the file cannot be had."""
        descriptor = os.open(path, _FLAGS, 0o600)
        taking = _try_lock(descriptor)
        if taking is _Taking.HELD:
            with contextlib.closing(FileLock(descriptor, is_real=False)) as other:
                raise LockHeld(other._read_pid())
        lock = cls(descriptor, is_real=taking is _Taking.TAKEN)
        lock._write_pid()
        return lock

    def release(self) -> None:
        """Let others have it. Released already, it does nothing."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor < 0:
            return
        try:
            # Said, and not left to the closing: a child that was forked meanwhile has the file open as well.
            if self.is_real and self._pid == os.getpid():
                _unlock(descriptor)
        finally:
            os.close(descriptor)

    close = release

    def _read_pid(self) -> int | None:
        with contextlib.suppress(OSError):
            text = os.read(self._descriptor, MAX_PID_BYTES).strip()
            return int(text) if text.isdigit() else None
        return None

    def _write_pid(self) -> None:
        # It is for people: on a full disk the lock is as good without.
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, f"{self._pid}\n".encode())


class _Taking(Enum):
    TAKEN = "taken"
    HELD = "held"
    UNAVAILABLE = "unavailable"


def _try_lock(descriptor: int) -> _Taking:
    if sys.platform == "win32":
        import msvcrt

        os.lseek(descriptor, WINDOWS_LOCKED_AT, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return _Taking.HELD
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)
        return _Taking.TAKEN
    try:
        import fcntl
    except ImportError:
        return _Taking.UNAVAILABLE
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return _Taking.HELD
    except OSError:
        return _Taking.UNAVAILABLE  # some network file systems know no locks
    return _Taking.TAKEN


def _unlock(descriptor: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        os.lseek(descriptor, WINDOWS_LOCKED_AT, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_UN)
