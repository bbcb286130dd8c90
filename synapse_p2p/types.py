"""Two small shapes that release 1.3 published, kept for their callers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class Node:
    """Where a call came from. `identifier` is 8 hex digits of the address: a label, not a proof."""

    identifier: str
    ip: str
    port: int


@dataclass(slots=True)
class BackgroundTask:
    """A function to run every `period` seconds, each time up to `jitter` seconds earlier or later."""

    name: str
    callable: Callable[..., Any]
    period: float
    jitter: float = 0.0


def build_node_from_peer_name(peer_name: tuple[Any, ...]) -> Node:
    """The Node at a socket's peer name: (host, port), or four items for IPv6."""
    ip, port = peer_name[:2]
    return Node(identifier=hashlib.sha256(f"{ip}:{port}".encode()).hexdigest()[:8], ip=ip, port=port)
