"""Where a node keeps what outlives its process: a folder with its key, and the key of those who may operate it.

Owns where that folder is by default and which of several processes has which; what is in a key file is the business of
`keyfile.py`. The one place that looks at the user's home. Source of the places: XDG Base Directory Specification 0.8,
and the manuals of macOS and Windows.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from synapse_p2p.identity import Identity
from synapse_p2p.keyfile import KeyFault, KeyFile, KeyFileError, load_or_create

logger = logging.getLogger(__name__)

NODE_KEY, OPERATOR_KEY = "node.key", "operator.key"
MAX_SLOTS = 64
"""Nodes of one name on one machine that keep their keys; one more has a key for its own life alone."""
MAX_NAME_CHARS = 48
HASH_HEX_DIGITS = 12

_SAFE_NAME = re.compile("[a-z0-9][a-z0-9_-]*")
_UNSAFE = re.compile("[^a-z0-9_-]+")
_DEVICES = re.compile("con|prn|aux|nul|(com|lpt)[0-9]")  # names that Windows keeps for itself


class DataDir:
    """A folder that this process holds until `close`. `operator` is whose calls the node takes as its operator's."""

    __slots__ = ("_key_file", "operator", "path")

    def __init__(self, key_file: KeyFile, operator: Identity) -> None:
        """Made by `open` and `claim`."""
        self._key_file = key_file
        self.path = key_file.path.parent
        self.operator = operator

    @classmethod
    def open(cls, folder: str | os.PathLike[str], *, token_bytes: Callable[[int], bytes] | None = None) -> DataDir:
        """This folder, made where it is missing. Raises KeyFileError, for one that is in use as well."""
        key_file = KeyFile.open(Path(folder, NODE_KEY), token_bytes=token_bytes)
        try:
            # Under the lock of the node's key and without one of its own: commands read it while the node runs.
            operator_path = key_file.path.with_name(OPERATOR_KEY)
            operator = load_or_create(operator_path, token_bytes=token_bytes, is_locked=key_file.is_locked)
        except BaseException:
            key_file.close()
            raise
        return cls(key_file, operator)

    @classmethod
    def claim(cls, *, network: str, name: str, token_bytes: Callable[[int], bytes] | None = None) -> DataDir | None:
        """The user's folder for a node of this name in this network, or the next of its slots that nobody uses.

        None, after one warning, where there is no home or it cannot be written. Raises KeyFileError for a key that is
        there and damaged, or that others can read: a node must not change its id because of that.
        """
        folder = _default_folder(network, name)
        if folder is None:
            _warn_not_kept("there is no home folder to keep it in")
            return None
        for slot, slot_folder in enumerate(_slot_folders(folder), start=1):
            try:
                data_dir = cls.open(slot_folder, token_bytes=token_bytes)
            except KeyFileError as error:
                if error.fault is KeyFault.STORAGE:
                    _warn_not_kept(str(error))
                    return None
                if error.fault is not KeyFault.IN_USE:
                    raise
            else:
                if slot > 1:
                    logger.info(
                        "%s is in use: this node is another one, and keeps its key in %s", folder, data_dir.path
                    )
                return data_dir
        _warn_not_kept(f"{MAX_SLOTS} nodes of this name run already")
        return None

    @property
    def identity(self) -> Identity:
        """The node's own."""
        return self._key_file.identity

    def close(self) -> None:
        """Let another process have it. Closed already, it does nothing."""
        self._key_file.close()

    def __repr__(self) -> str:
        return f"DataDir({str(self.path)!r}, {self.identity!r})"


def state_folder(platform: str, environment: Mapping[str, str], home: str) -> str | None:
    """Where programs keep the state of a user; None where there is no place. `platform` is as in `sys.platform`.

    `XDG_STATE_HOME` counts on every system, for who sets it means it; relative paths count nowhere.
    """
    own_choice = environment.get("XDG_STATE_HOME", "")
    if os.path.isabs(own_choice):
        return own_choice
    if platform == "win32":
        return environment.get("LOCALAPPDATA") or None
    if not os.path.isabs(home):
        return None
    return os.path.join(home, *(("Library", "Application Support") if platform == "darwin" else (".local", "state")))


def folder_name(text: str) -> str:
    """A name for a folder on any system, another for every text: what cannot stay as it is gets a hash of it all.

    `+` stands before a hash and nowhere else, and a dot nowhere: slots are told apart by it. Capitals count as unsafe,
    for some file systems take `Reviewer` and `reviewer` for one.
    """
    if _SAFE_NAME.fullmatch(text) and len(text) <= MAX_NAME_CHARS and not _DEVICES.fullmatch(text):
        return text
    readable = _UNSAFE.sub("-", text.lower()).strip("-")[:MAX_NAME_CHARS] or "unnamed"
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{readable}+{digest[:HASH_HEX_DIGITS]}"


def default_folders(network: str, name: str) -> list[Path]:
    """The user's folders for nodes of this name in this network, in the order in which they are taken: `reviewer`,
    `reviewer.2` ... Empty where there is no home.
    """
    folder = _default_folder(network, name)
    return [] if folder is None else _slot_folders(folder)


def known_data_dirs(network: str | None) -> list[Path]:
    """The user's folders of all nodes that ever kept a key in this network, or in any, by name. Raises OSError."""
    folder = _default_folder(network or "", "")
    if folder is None:
        return []
    networks = _folders_in(folder.parents[1]) if network is None else [folder.parent]
    return [each for network_folder in networks for each in _folders_in(network_folder)]


def _folders_in(folder: Path) -> list[Path]:
    return sorted(each for each in folder.iterdir() if each.is_dir()) if folder.is_dir() else []


def _slot_folders(folder: Path) -> list[Path]:
    return [folder, *(folder.with_name(f"{folder.name}.{slot}") for slot in range(2, MAX_SLOTS + 1))]


def _default_folder(network: str, name: str) -> Path | None:
    home = os.path.expanduser("~")
    state = state_folder(sys.platform, os.environ, home if os.path.isdir(home) else "")
    return None if state is None else Path(state, "synapse-p2p", folder_name(network), folder_name(name))


def _warn_not_kept(reason: str) -> None:
    logger.warning("this node gets a new id at each start, for its key is not kept: %s. Give it data_dir=", reason)
