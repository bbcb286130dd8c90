"""Where a capability lives: from its name, and a depth, to the keys under which its providers are stored.

Pure. Owns the keys and who may be stored under which; knows nothing of who stores them. H(a, b) = SHA-256(a
|| b).

    root  = SHA-256("synapse-capability:v1:" || network_id || name)
    h     = H(root, provider id); at depth d a provider is in the shard of prefix x, the first d bits of h
    y     = x without its trailing zeros
    key   = root if y is empty, else H(root, count of bits in y, one byte || y, left-aligned in whole bytes)

Dropping trailing zeros makes the root the all-zero shard at every depth: it always holds a sample of the
providers, and when a shard is split its 0-half stays where it is.
"""

from __future__ import annotations

import hashlib

from dht.agents.record import AgentRecord
from dht.exceptions import RecordRefused
from dht.keyspace import ID_BITS, Key
from dht.records import Refusal
from synapse_p2p.identity import NodeID

CAPABILITY_LABEL = b"synapse-capability:v1:"
MAX_SHARD_DEPTH = 64
"""Bits of a prefix at most. Real depths stay below 11 with a million providers."""


def capability_root(network_id: bytes, name: str) -> Key:
    """The key of a normalised capability name in a network, at depth 0."""
    return hashlib.sha256(CAPABILITY_LABEL + network_id + name.encode()).digest()


def shard_key(root: Key, prefix_bits: int, depth: int) -> Key:
    """The key of the shard whose prefix is the `depth` low bits of `prefix_bits`.

    Raises ValueError where the prefix does not fit its depth, or the depth is outside 0 to MAX_SHARD_DEPTH.
    """
    _check_depth(depth)
    if not 0 <= prefix_bits < 1 << depth:
        raise ValueError(f"prefix {prefix_bits} has more than {depth} bits")
    while depth and not prefix_bits & 1:
        prefix_bits >>= 1
        depth -= 1
    if not depth:
        return root
    size_bytes = (depth + 7) // 8
    left_aligned = (prefix_bits << (8 * size_bytes - depth)).to_bytes(size_bytes, "big")
    return hashlib.sha256(root + bytes((depth,)) + left_aligned).digest()


def provider_prefix(root: Key, provider: NodeID, depth: int) -> int:
    """The shard of a provider at a depth: the first `depth` bits of H(root, provider), as a number."""
    _check_depth(depth)
    return int.from_bytes(hashlib.sha256(root + provider).digest(), "big") >> (ID_BITS - depth)


def capability_key(network_id: bytes, name: str, provider: NodeID, depth: int) -> Key:
    """The key under which this provider of a normalised capability name is stored at a depth."""
    root = capability_root(network_id, name)
    return shard_key(root, provider_prefix(root, provider, depth), depth)


def check_belongs(record: AgentRecord, capability: str, depth: int, key: Key) -> None:
    """Whether a record may be stored under `key` for this capability. Storers ask it, and searchers again.

    Raises RecordRefused: `not_listed` unless the record lists the capability or a descendant of it,
    `wrong_key` unless the key is the one of its signer at this depth.
    """
    below = capability + "/"
    if not any(claim.name == capability or claim.name.startswith(below) for claim in record.capabilities):
        raise RecordRefused(Refusal.NOT_LISTED, f"the record does not list {capability!r}")
    if not 0 <= depth <= MAX_SHARD_DEPTH or capability_key(record.network_id, capability, record.owner, depth) != key:
        raise RecordRefused(Refusal.WRONG_KEY)


def _check_depth(depth: int) -> None:
    if not 0 <= depth <= MAX_SHARD_DEPTH:
        raise ValueError(f"a shard's depth is 0 to {MAX_SHARD_DEPTH}, not {depth}")
