"""The id space: 256-bit points, the XOR distance between them, and keys drawn or hashed into it.

Pure. A node's id and a record's key are points of the same space, written as 32 bytes, big-endian.
Source: Maymounkov and Mazieres, "Kademlia" (2002), section 2.1.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, TypeAlias

from synapse_p2p.identity import distance as distance

if TYPE_CHECKING:
    from random import Random

Key: TypeAlias = bytes
"""32 bytes: a point of the id space."""

ID_BITS = 256
KEY_SIZE_BYTES = 32
VALUE_LABEL = b"synapse-value:v1:"
MUTABLE_LABEL = b"synapse-mutable:v1:"


def common_prefix_length(a: bytes, b: bytes) -> int:
    """How many leading bits two points share: 0 to 256, and 256 for equal points alone."""
    return ID_BITS - distance(a, b).bit_length()


def random_key_in_bucket(own_id: bytes, index: int, rng: Random) -> Key:
    """A random key that shares exactly `index` leading bits with `own_id`: a point of k-bucket `index`.

    Raises ValueError where no key does, that is outside 0 to 255.
    """
    if not 0 <= index < ID_BITS:
        raise ValueError(f"a k-bucket's index is 0 to {ID_BITS - 1}, not {index}")
    free_bits = ID_BITS - 1 - index
    flipped = (int.from_bytes(own_id, "big") >> free_bits) ^ 1
    return (flipped << free_bits | rng.getrandbits(free_bits)).to_bytes(KEY_SIZE_BYTES, "big")


def content_key(value: bytes) -> Key:
    """The key of a value that is found by what it is: SHA-256 of a label and the value.

    The label keeps kinds of keys apart. Without it a value could be written whose hash is the id of a node, or the
    key of a capability, both of which are hashes too.
    """
    return hashlib.sha256(VALUE_LABEL + value).digest()


def mutable_key(public_key: bytes, salt: bytes) -> Key:
    """The key of the value that the owner of a raw 32-byte public key may change; a salt for each such value."""
    return hashlib.sha256(MUTABLE_LABEL + public_key + salt).digest()
