"""`id`: who nodes are, and the keys of networks; what is in the files, and new ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from synapse_p2p.apps.cli.connecting import live_nodes
from synapse_p2p.apps.cli.exit_codes import CommandError, ExitCode
from synapse_p2p.apps.cli.settings import Settings
from synapse_p2p.data_dir import NODE_KEY, OPERATOR_KEY, known_data_dirs
from synapse_p2p.exceptions import ConfigError
from synapse_p2p.identity import network_id_of
from synapse_p2p.keyfile import KeyFile, KeyFileError, read_identity
from synapse_p2p.network_key import create_network_key, fingerprint_of, read_network_key
from synapse_p2p.runtime import system_runtime


def show(settings: Settings, path: str | None) -> dict[str, Any]:
    """The id in one key file, or those of all nodes of this user that keep one."""
    if path is not None:
        return {"keys": [{"path": path, "id": read_identity(path).node_id.hex(), "runs": False, "problem": ""}]}
    folders = known_data_dirs(settings.network) if settings.data_dir is None else [Path(settings.data_dir)]
    running = _running_folders(settings)
    keys = [_key(folder, is_running=str(folder) in running) for folder in folders if (folder / NODE_KEY).exists()]
    if not keys:
        raise CommandError(
            ExitCode.NOTHING_FOUND, "no node of yours keeps a key here: a node makes its own when it starts", "up"
        )
    return {"keys": keys}


def new(path: str) -> dict[str, Any]:
    """A new key in a new file. Raises CommandError where something is there."""
    if Path(path).expanduser().exists():
        raise CommandError(ExitCode.USAGE, f"{path} is there already: name another file", f"id show {path}")
    with KeyFile.open(path) as key_file:
        return {"path": str(key_file.path), "id": key_file.identity.node_id.hex()}


def new_network_key(path: str) -> dict[str, Any]:
    """A new network key in a new file. Raises CommandError where something is there."""
    try:
        key = create_network_key(path, token_bytes=system_runtime().token_bytes)
    except FileExistsError as error:
        raise CommandError(
            ExitCode.USAGE, f"{path} is there already: name another file", f"id network --network-key-file {path}"
        ) from error
    return {"path": path, "fingerprint": fingerprint_of(key)}


def network(settings: Settings) -> dict[str, Any]:
    """Which network is meant: its name, the id that travels, and the fingerprint of its key."""
    name = settings.network or ""
    key_file = settings.network_key_file
    return {
        "network": name,
        "network_id": network_id_of(name).hex(),
        "key_file": key_file or "",
        "fingerprint": fingerprint_of(read_network_key(key_file)) if key_file else "",
    }


def _running_folders(settings: Settings) -> set[str]:
    try:
        return {node.folder for node in live_nodes(settings)}
    except CommandError:
        return set()


def _key(folder: Path, *, is_running: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"path": str(folder / NODE_KEY), "id": "", "runs": is_running, "problem": ""}
    try:
        found["id"] = read_identity(folder / NODE_KEY).node_id.hex()
        if (folder / OPERATOR_KEY).exists():
            found["operator_id"] = read_identity(folder / OPERATOR_KEY).node_id.hex()
    except (KeyFileError, ConfigError) as error:
        found["problem"] = str(error)
    return found
