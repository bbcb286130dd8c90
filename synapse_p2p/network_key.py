"""Network keys in files: 64 hexadecimal digits on a line, readable by their owner alone.

The same file for all members, on each machine its own copy. Unlike a node's key it is held by nobody: many processes
read one file at once.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path

from synapse_p2p.identity import NETWORK_KEY_SIZE_BYTES
from synapse_p2p.keyfile import PRIVATE_FILE, KeyFault, KeyFileError, check_private_file, make_private_folder

MAX_FILE_BYTES = 256
"""A file has 65 bytes; blanks round the digits do no harm."""
FINGERPRINT_HEX_DIGITS = 16
_FINGERPRINT_LABEL = b"synapse-network-key-fingerprint:v1:"
_DIGITS = re.compile(rb"\s*([0-9a-fA-F]{64})\s*")
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # a pipe is not waited for
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)


def read_network_key(path: str | os.PathLike[str]) -> bytes:
    """The 32 bytes in a file. Raises KeyFileError, whose text never holds the key, and OSError."""
    real_path = Path(path).expanduser()
    descriptor = os.open(real_path, _READ)
    try:
        check_private_file(real_path, os.fstat(descriptor), harm="can join this network")
        found = _DIGITS.fullmatch(os.read(descriptor, MAX_FILE_BYTES + 1))
        key = None if found is None else bytes.fromhex(found[1].decode())
    finally:
        os.close(descriptor)
    if key is None:
        raise KeyFileError(
            f"{real_path} is no network key: it holds {2 * NETWORK_KEY_SIZE_BYTES} hexadecimal digits and nothing else",
            fault=KeyFault.FOREIGN,
        )
    return key


def create_network_key(path: str | os.PathLike[str], *, token_bytes: Callable[[int], bytes]) -> bytes:
    """A new key, in a new file. Raises FileExistsError where something is there, and OSError."""
    key = token_bytes(NETWORK_KEY_SIZE_BYTES)
    write_network_key(path, key)
    return key


def write_network_key(path: str | os.PathLike[str], key: bytes) -> None:
    """A copy of a key, in a new file. Raises FileExistsError where something is there, and OSError."""
    real_path = Path(path).expanduser()
    make_private_folder(real_path.absolute().parent)
    descriptor = os.open(real_path, _CREATE, PRIVATE_FILE)
    with open(descriptor, "wb") as file:
        file.write(key.hex().encode() + b"\n")


def fingerprint_of(key: bytes) -> str:
    """16 hexadecimal digits by which two machines see that they have the same key, and nobody learns it."""
    return hashlib.sha256(_FINGERPRINT_LABEL + key).hexdigest()[:FINGERPRINT_HEX_DIGITS]
