"""Whose a source file is: the user's, one of our packages', or a library's."""

from __future__ import annotations

import functools
import os
from pathlib import Path

_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_ROOT = Path(__file__).parents[1]  # installed or not, they lie side by side
_OWN_FOLDERS = tuple(str(_ROOT / package) + os.sep for package in ("synapse_p2p", "dht", "simulations"))


@functools.lru_cache(maxsize=4096)  # of files; a process has imported a few thousand at most
def is_library(filename: str) -> bool:
    """Whether a file is part of Python, of an installed package or of this one, and so not the user's."""
    folders = _library_folders()
    return filename.startswith(folders) or any(folder in filename for folder in _INSTALLED) or is_own(filename)


def is_own(filename: str) -> bool:
    """Whether a file belongs to one of our three packages."""
    return filename.startswith(_OWN_FOLDERS)


@functools.cache
def _library_folders() -> tuple[str, ...]:
    import sysconfig  # here: it reads how Python was built, and is asked about when a loop has been blocked

    return ("<frozen ", *(sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib")))
