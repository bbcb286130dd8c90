"""Whose a source file is: the user's, one of our packages', or a library's."""

from __future__ import annotations

import functools
import os
import sysconfig
from pathlib import Path

_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_LIBRARY_FOLDERS = ("<frozen ", *(sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib")))
_ROOT = Path(__file__).parents[1]  # installed or not, they lie side by side
_OWN_FOLDERS = tuple(str(_ROOT / package) + os.sep for package in ("synapse_p2p", "dht", "simulations"))


@functools.lru_cache(maxsize=4096)  # of files; a process has imported a few thousand at most
def is_library(filename: str) -> bool:
    """Whether a file is part of Python, of an installed package or of this one, and so not the user's."""
    return filename.startswith(_LIBRARY_FOLDERS) or any(folder in filename for folder in _INSTALLED) or is_own(filename)


def is_own(filename: str) -> bool:
    """Whether a file belongs to one of our three packages."""
    return filename.startswith(_OWN_FOLDERS)
