"""One small file that outlives its process: read whole, and replaced whole.

A file is written under another name, brought to the disk, and then given its own: a process killed at any moment leaves
the old one or the new one. One process at a time writes a file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

NEW_SUFFIX = ".new"

_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # a pipe is not waited for


class NotAFile(OSError):
    """What has the name of a file is a folder, a pipe or a device."""


def read_file(path: str | os.PathLike[str], *, max_bytes: int) -> bytes:
    """Its content; of one that is larger, a byte more than `max_bytes`. Raises OSError, and so NotAFile."""
    descriptor = os.open(path, _READ)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise NotAFile(errno.EINVAL, "it is no regular file")
        return os.read(descriptor, max_bytes + 1)
    finally:
        os.close(descriptor)


def replace_file(path: str | os.PathLike[str], content: bytes) -> None:
    """Have this content in place of what was there. Raises OSError and ValueError; the old one is there still then.

    Cost: it waits for the disk, some milliseconds.
    """
    target = Path(path)
    new_path = target.with_name(target.name + NEW_SUFFIX)
    try:
        with open(new_path, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new_path, target)
        sync_folder(target.parent)
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            new_path.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, where that can be asked for."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # what some file systems say to it
            raise
    finally:
        os.close(descriptor)
