"""Keys in files: one line each, readable by their owner alone, and held by one process at a time.

On disk are `node.key`, the line `synapse-key-1 SEED CHECK` (64 hexadecimal digits, and the first 8 of the SHA-256 of
what stands before them); `node.key.lock`, which says who holds it; and for a moment `node.key.RANDOM.new`. A key comes
into being whole: it is brought to the disk under that other name, and then linked to its own. A process killed at any
moment leaves either no key or a whole one, and of two that start at once one makes it.

Two nodes with one key would each get half of what is meant for both, so a key is locked while it is used. Where the
system knows no locks a warning says so, and nothing else keeps a second process out.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import shlex
import stat
import threading
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from types import TracebackType

from synapse_p2p.exceptions import ConfigError
from synapse_p2p.file_lock import FileLock, LockHeld
from synapse_p2p.identity import SEED_SIZE_BYTES, Identity
from synapse_p2p.kept_file import sync_folder
from synapse_p2p.runtime import system_runtime

logger = logging.getLogger(__name__)

FORMAT = 1
MAX_FILE_BYTES = 1024
"""A key file has 88 bytes; those of later releases may have more."""
CHECK_HEX_DIGITS = 8
NEW_SUFFIX = ".new"
PRIVATE_FILE, PRIVATE_FOLDER = 0o600, 0o700

_LINE = re.compile(rb"synapse-key-%d ([0-9a-f]{64}) ([0-9a-f]{8})(?:\r?\n)?" % FORMAT)
_OF_ANY_FORMAT = re.compile(rb"synapse-key-([0-9]{1,9}) ")
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # a pipe is not waited for
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
_ADVICE = {
    errno.ELOOP: "Its links lead in a circle: name the file itself",
    errno.ENOSPC: "Make room on that disk, or name another place",
    errno.EDQUOT: "Make room on that disk, or name another place",
}


class KeyFault(StrEnum):
    """What is wrong with a key file."""

    IN_USE = "in use"
    EXPOSED = "exposed"  # others on this machine can read or replace it
    DAMAGED = "damaged"
    FOREIGN = "foreign"  # it is something else
    NEWER = "newer"  # of a later release
    STORAGE = "storage"  # the file system said no


class KeyFileError(ConfigError):
    """A key file that cannot be used; the text says what happened, why, and what to do. It never holds the key.

    `pid` is the process that holds the key where the fault is IN_USE and that process is known.
    """

    def __init__(self, text: str, *, fault: KeyFault, pid: int | None = None) -> None:
        super().__init__(text)
        self.fault = fault
        self.pid = pid


class KeyFile:
    """One identity, kept in a file and held by this process until `close`, the end of `with`, or its own end."""

    __slots__ = ("_lock", "identity", "path")

    def __init__(self, path: Path, identity: Identity, lock: FileLock) -> None:
        """Made by `open`."""
        self.path = path
        self.identity = identity
        self._lock = lock

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, token_bytes: Callable[[int], bytes] | None = None) -> KeyFile:
        """The key in a file, which is made with a new one, and folders above it, where there is none.

        `~` is home, and links are followed. Raises KeyFileError. Cost: a new key waits for the disk twice.
        """
        real_path = _real_path(path)
        with _storage_faults(real_path):
            make_private_folder(real_path.parent)
            lock = _take_lock(real_path)
        try:
            identity = load_or_create(real_path, token_bytes=token_bytes, is_locked=lock.is_real)
        except BaseException:
            lock.release()
            raise
        return cls(real_path, identity, lock)

    @property
    def is_locked(self) -> bool:
        """Whether the system keeps other processes out; False where it knows no locks."""
        return self._lock.is_real

    def close(self) -> None:
        """Let another process have it. Closed already, it does nothing."""
        self._lock.release()

    def __enter__(self) -> KeyFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"KeyFile({str(self.path)!r}, {self.identity!r})"


_of_this_process: dict[tuple[int, Path], KeyFile] = {}
_of_this_process_lock = threading.Lock()


def load_identity(path: str | os.PathLike[str]) -> Identity:
    """The identity in a key file, made where there is none, and held until this process ends.

    The same file gives the same identity again; a forked child is another process. Raises KeyFileError.
    """
    with _of_this_process_lock:
        place = (os.getpid(), _real_path(path))
        if place not in _of_this_process:
            _of_this_process[place] = KeyFile.open(place[1])
        return _of_this_process[place].identity


def read_identity(path: str | os.PathLike[str]) -> Identity:
    """The identity in a key file that some process may hold, without holding it. Raises KeyFileError, also for none."""
    real_path = _real_path(path)
    identity = _load(real_path)
    if identity is None:
        raise KeyFileError(f"there is no key file {real_path}; a node that runs makes it", fault=KeyFault.STORAGE)
    return identity


def load_or_create(path: Path, *, token_bytes: Callable[[int], bytes] | None, is_locked: bool) -> Identity:
    """What `KeyFile.open` does for who holds the lock already, or another one over it. Raises KeyFileError.

    `is_locked` says that no other process does the same: what one that was killed left behind is then cleared away.
    """
    if is_locked:
        _clear_leftovers(path)
    identity = _load(path)
    if identity is not None:
        return identity
    # Without a lock another process may be first: then its key is the one.
    with _storage_faults(path), contextlib.suppress(FileExistsError):
        _create(path, token_bytes or system_runtime().token_bytes)
    return read_identity(path)


def make_private_folder(folder: Path) -> None:
    """Make a folder, and those above it, where they are missing, for their owner alone. Raises OSError."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    for each in reversed(missing):
        with contextlib.suppress(FileExistsError):  # another process may make it meanwhile
            each.mkdir(PRIVATE_FOLDER)
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder")


# Reading


def _load(path: Path) -> Identity | None:
    """The identity in a file; None where there is no such file. Raises KeyFileError."""
    with _storage_faults(path):
        try:
            descriptor = os.open(path, _READ)
        except FileNotFoundError:
            return None
        try:
            check_private_file(path, os.fstat(descriptor), harm="can pass for this node")
            found = _parse(os.read(descriptor, MAX_FILE_BYTES + 1))
        finally:
            os.close(descriptor)
    # Raised from here, where no variable holds the key: reports of errors may show those.
    if isinstance(found, KeyFault):
        raise _unreadable(path, found)
    return found


def check_private_file(path: Path, status: os.stat_result, *, harm: str) -> None:
    """Raises KeyFileError for what is no file, or not this user's alone. `harm` is what whoever has the key can do."""
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
        raise KeyFileError(f"{path} is {kind}, and a key is kept in a file: name one", fault=KeyFault.FOREIGN)
    if os.name != "posix":
        return  # elsewhere these bits say nothing; folders of a user are private by default there
    if status.st_uid != os.geteuid():
        raise KeyFileError(
            f"{path} belongs to user {status.st_uid}, and this process runs as user {os.geteuid()}: whoever owns a key "
            "file can replace it. Run it as that user, or name a file of your own",
            fault=KeyFault.EXPOSED,
        )
    if status.st_mode & 0o077:
        raise KeyFileError(
            f"{path} is open to others on this machine (mode {stat.S_IMODE(status.st_mode):04o}), and whoever has the "
            f"key {harm}. If nobody took it, type: chmod 600 {shlex.quote(str(path))}",
            fault=KeyFault.EXPOSED,
        )


def _parse(content: bytes) -> Identity | KeyFault:
    line = _LINE.fullmatch(content)
    if line is not None and line[2] == _check_of(line[1]):
        return Identity.from_seed(bytes.fromhex(line[1].decode()))
    version = _OF_ANY_FORMAT.match(content)
    if version is None:
        return KeyFault.FOREIGN
    return KeyFault.NEWER if int(version[1]) > FORMAT else KeyFault.DAMAGED


def _unreadable(path: Path, fault: KeyFault) -> KeyFileError:
    text = {
        KeyFault.DAMAGED: "is damaged: what it holds does not fit its checksum. Put a copy back, or move it away; the "
        "node then gets a new key, and with it a new id",
        KeyFault.NEWER: f"was written by a later release: this one reads format {FORMAT} alone. Install that release",
        KeyFault.FOREIGN: f"is no key file: it does not begin with `synapse-key-{FORMAT}`. Name another file",
    }
    return KeyFileError(f"{path} {text[fault]}", fault=fault)


def _line_of(seed: bytes) -> bytes:
    digits = seed.hex().encode()
    return b"synapse-key-%d %s %s\n" % (FORMAT, digits, _check_of(digits))


def _check_of(digits: bytes) -> bytes:
    return hashlib.sha256(b"synapse-key-%d %s" % (FORMAT, digits)).hexdigest()[:CHECK_HEX_DIGITS].encode()


# Making one


def _create(path: Path, token_bytes: Callable[[int], bytes]) -> None:
    """Put a new key there, whole. Raises FileExistsError where something is, and OSError; leaves nothing then."""
    new_path = path.with_name(f"{path.name}.{token_bytes(8).hex()}{NEW_SUFFIX}")
    descriptor = os.open(new_path, _CREATE, PRIVATE_FILE)
    try:
        with open(descriptor, "wb") as file:
            file.write(_line_of(token_bytes(SEED_SIZE_BYTES)))
            file.flush()
            os.fsync(file.fileno())
        _give_name(new_path, path)
        sync_folder(path.parent)
    finally:
        new_path.unlink(missing_ok=True)


def _give_name(new_path: Path, path: Path) -> None:
    try:
        os.link(new_path, path)
    except FileExistsError:
        raise
    except OSError:
        # Some file systems have no second names. Renaming replaces what is there, and nothing was a moment ago.
        os.rename(new_path, path)


def _clear_leftovers(path: Path) -> None:
    """Take away what a process that was killed while it made this key could not; what stays now may go next time."""
    # By the whole form of the name: a key of the user's may be called `node.key.new` or `node.key.backup.new`.
    leftover = re.compile(re.escape(path.name) + r"\.[0-9a-f]{16}" + re.escape(NEW_SUFFIX))
    with contextlib.suppress(OSError):
        for name in os.listdir(path.parent):
            if leftover.fullmatch(name):
                (path.parent / name).unlink(missing_ok=True)


# At the edge


def _real_path(path: str | os.PathLike[str]) -> Path:
    """One spelling for each file, so that there is one lock. Raises KeyFileError."""
    try:
        return Path(os.path.realpath(os.path.expanduser(path)))
    except (OSError, ValueError) as error:
        raise KeyFileError(f"{os.fspath(path)!r:.200} is no path: {error}", fault=KeyFault.STORAGE) from error


def _take_lock(path: Path) -> FileLock:
    try:
        lock = FileLock.take(path.with_name(f"{path.name}.lock"))
    except LockHeld as held:
        if held.pid == os.getpid():
            who = "this very process"
        else:
            who = "another process" if held.pid is None else f"process {held.pid}, or one that it started"
        raise KeyFileError(
            f"{path} is in use by {who}: one key is one node. Stop that one, or give this node another file",
            fault=KeyFault.IN_USE,
            pid=held.pid,
        ) from None
    if not lock.is_real:
        logger.warning("nothing here keeps a second process from using %s: this system has no file locks", path)
    return lock


@contextlib.contextmanager
def _storage_faults(path: Path) -> Iterator[None]:
    """What the file system refuses becomes a KeyFileError."""
    try:
        yield
    except OSError as error:
        where = "" if error.filename in (None, str(path)) else f" ({error.filename})"
        advice = _ADVICE.get(error.errno or 0, "Let this user read and write in its folder, or name another place")
        raise KeyFileError(
            f"the key file {path} cannot be used: {error.strerror or error}{where}. {advice}",
            fault=KeyFault.STORAGE,
        ) from error
