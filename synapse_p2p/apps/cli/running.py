"""What a running node leaves for commands on the same machine: a file `running.json` in its data directory.

It says where the node listens, who it is and which process it is; with the operator key beside it a command is let in.
The file of a node that was killed stays: its process is gone then, or nobody answers at its address.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from dht.introduction import WILDCARDS
from dht.results import SwarmStatus
from synapse_p2p.data_dir import OPERATOR_KEY
from synapse_p2p.transport.base import format_address, parse_address

FILE_NAME = "running.json"
MAX_FILE_BYTES = 16_384
PRIVATE_FILE = 0o600


@dataclass(frozen=True, slots=True)
class RunningNode:
    """`address` is where it is dialed from this machine, empty where it listens nowhere. `network_key_file` is empty
    where its network has no key, or it did not come from a file.
    """

    pid: int
    id: str
    name: str
    network: str
    address: str
    network_key_file: str
    started_unix_ms: int
    folder: str

    @property
    def seed(self) -> str:
        """Its address, with the id that has to answer there."""
        return f"{self.id}@{self.address}"

    @property
    def operator_key(self) -> Path:
        """The file with the key that it lets in as its operator's."""
        return Path(self.folder, OPERATOR_KEY)


def encoded(node: RunningNode) -> str:
    """The text of the file; the folder is not in it, for folders are moved."""
    return json.dumps({name: value for name, value in asdict(node).items() if name != "folder"}) + "\n"


def decoded(text: str, folder: str) -> RunningNode | None:
    """The node that a file tells of; None for text that is no such file. Unknown keys are ignored."""
    try:
        read = json.loads(text)
    except ValueError:
        return None
    if not isinstance(read, dict):
        return None
    read["folder"] = folder
    kinds: dict[str, Any] = {"pid": int, "started_unix_ms": int}
    if any(type(read.get(each.name)) is not kinds.get(each.name, str) for each in fields(RunningNode)):
        return None
    return RunningNode(**{each.name: read[each.name] for each in fields(RunningNode)})


def newest_first(nodes: Iterable[RunningNode]) -> list[RunningNode]:
    """Those that started last come first; of two at once, by folder."""
    return sorted(nodes, key=lambda node: (-node.started_unix_ms, node.folder))


# Files and processes


def this_process(status: SwarmStatus, *, name: str, folder: str, network_key_file: str = "") -> RunningNode:
    """What is left of a node that runs here. `network_key_file` is absolute, for commands are typed anywhere."""
    address = ""
    if status.listening:
        host, port = parse_address(status.listening[0])
        address = format_address(WILDCARDS.get(host, host), port)
    return RunningNode(
        pid=os.getpid(),
        id=status.id.hex(),
        name=name,
        network=status.network,
        address=address,
        network_key_file=network_key_file,
        started_unix_ms=round(time.time() * 1000),
        folder=folder,
    )


def leave(node: RunningNode) -> None:
    """Write the file, whole. Raises OSError."""
    path = Path(node.folder, FILE_NAME)
    new_path = path.with_name(f"{FILE_NAME}.new")  # the folder is locked by the node: nobody else writes here
    with contextlib.suppress(FileNotFoundError):
        new_path.unlink()
    descriptor = os.open(new_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(encoded(node))
    os.replace(new_path, path)


def take_away(node: RunningNode) -> None:
    """The node ends. A file that another process has left there meanwhile stays."""
    with contextlib.suppress(OSError):
        if read(Path(node.folder)) == node:
            Path(node.folder, FILE_NAME).unlink()


def read(folder: Path) -> RunningNode | None:
    """The node that left a file there, whether it still runs or not; None where there is none."""
    try:
        with (folder / FILE_NAME).open("rb") as file:
            content = file.read(MAX_FILE_BYTES)
        return decoded(content.decode(), str(folder))
    except (OSError, UnicodeDecodeError):
        return None


def is_alive(pid: int) -> bool:
    """Whether a process has this number. Where that cannot be asked, yes: its address will tell."""
    if sys.platform == "win32" or pid <= 0:
        return pid > 0
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it is there, and another user's
    return True
