"""Three functions that release 1.3 published, kept for their callers."""

from __future__ import annotations

import secrets

from synapse_p2p.types import Node


def random_hash() -> str:
    """64 random hex digits."""
    return secrets.token_hex(32)


def xor_distance(source: int, candidate: str) -> int:
    """The XOR distance between a number and a number in hex."""
    return source ^ int(candidate, 16)


def sort_nodes_by_xor_distance(source: int, nodes: list[Node], reverse: bool = False) -> list[Node]:
    """A new list, nearest to `source` first, or last if `reverse`."""
    return sorted(nodes, key=lambda node: xor_distance(source, node.identifier), reverse=reverse)
