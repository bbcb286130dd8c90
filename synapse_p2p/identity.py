"""Who a node is: an Ed25519 key pair, and the NodeID that its public half hashes to.

Pure: a key comes from a seed that the caller drew. Files are kept elsewhere. Source: RFC 8032 (Ed25519).
"""

from __future__ import annotations

import hashlib
from typing import TypeAlias

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from synapse_p2p.exceptions import ConfigError

NodeID: TypeAlias = bytes
"""32 bytes: SHA-256 of an Ed25519 public key."""

SEED_SIZE_BYTES = 32
PUBLIC_KEY_SIZE_BYTES = 32
SIGNATURE_SIZE_BYTES = 64
NODE_ID_SIZE_BYTES = 32


def node_id_of(public_key: bytes) -> NodeID:
    """The NodeID that belongs to a raw 32-byte Ed25519 public key."""
    return hashlib.sha256(public_key).digest()


def network_id_of(network: str) -> bytes:
    """16 bytes that stand for a network's name on the wire; the empty name is a network like any other."""
    return hashlib.sha256(network.encode()).digest()[:16]


class Identity:
    """An Ed25519 key pair. Two identities are equal when their public keys are; the secret never shows in text."""

    __slots__ = ("_private_key", "node_id", "public_key")

    def __init__(self, private_key: Ed25519PrivateKey) -> None:
        self._private_key = private_key
        self.public_key: bytes = private_key.public_key().public_bytes_raw()
        self.node_id: NodeID = node_id_of(self.public_key)

    @classmethod
    def from_seed(cls, seed: bytes) -> Identity:
        """The identity whose private key is these 32 bytes. Raises ConfigError for any other length."""
        if len(seed) != SEED_SIZE_BYTES:
            raise ConfigError(f"an identity's seed is {SEED_SIZE_BYTES} random bytes, not {len(seed)}")
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    def sign(self, label: bytes, message: bytes) -> bytes:
        """64 bytes over `label || message`. The label keeps a signature made for one purpose from serving another."""
        return self._private_key.sign(label + message)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and other.public_key == self.public_key

    def __hash__(self) -> int:
        return hash(self.public_key)

    def __repr__(self) -> str:
        return f"Identity({self.node_id.hex()[:16]})"

    def __reduce__(self) -> str:
        raise TypeError("an Identity holds a private key and is not pickled")


def verify(public_key: bytes, label: bytes, message: bytes, signature: bytes) -> bool:
    """Whether `signature` over `label || message` was made by the owner of `public_key`; wrong sizes are a plain no."""
    if len(public_key) != PUBLIC_KEY_SIZE_BYTES or len(signature) != SIGNATURE_SIZE_BYTES:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, label + message)
    except (InvalidSignature, ValueError):
        return False
    return True
