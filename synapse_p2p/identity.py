"""Who a node is: an Ed25519 key pair, and the NodeID that its public half hashes to.

Pure: a key comes from a seed that the caller drew. Files are kept elsewhere. Source: RFC 8032 (Ed25519).
"""

from __future__ import annotations

import hashlib
import re
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
NETWORK_KEY_SIZE_BYTES = 32

_NODE_ID_TEXT = re.compile("[0-9a-fA-F]{64}")


def node_id_of(public_key: bytes) -> NodeID:
    """The NodeID that belongs to a raw 32-byte Ed25519 public key."""
    return hashlib.sha256(public_key).digest()


def parse_node_id(text: str) -> NodeID:
    """The id that 64 hexadecimal digits write. Raises ConfigError, which says what is wrong with the text."""
    if _NODE_ID_TEXT.fullmatch(text):
        return bytes.fromhex(text)
    size = f"has {len(text)} characters" if len(text) != 2 * NODE_ID_SIZE_BYTES else "has others among its 64"
    raise ConfigError(
        f"a node id is 64 hexadecimal digits, and {text!r:.80} {size}: copy the id that the node prints when it starts"
    )


def checked_node_id(given: object, *, named: str) -> NodeID:
    """An id that a user gave, as 32 bytes or 64 hexadecimal digits. Raises ConfigError about the argument `named`."""
    if isinstance(given, bytes) and len(given) == NODE_ID_SIZE_BYTES:
        return given
    if isinstance(given, str):
        return parse_node_id(given)
    raise ConfigError(f"{named}= holds {given!r:.80}; a node id is 32 bytes, or the same as 64 hexadecimal digits")


def distance(a: bytes, b: bytes) -> int:
    """XOR of two points as a number below 2^256. No two points are equally far from a third.

    A node's id and a record's key are points of the same space. Source: Kademlia, section 2.1.
    """
    return int.from_bytes(a, "big") ^ int.from_bytes(b, "big")


def network_id_of(network: str) -> bytes:
    """16 bytes that stand for a network's name on the wire; the empty name is a network like any other."""
    return hashlib.sha256(network.encode()).digest()[:16]


def checked_network_key(key: bytes | None) -> bytes | None:
    """The key again. Raises ConfigError for one that is not 32 bytes, as passphrases are not."""
    if key is not None and (not isinstance(key, bytes) or len(key) != NETWORK_KEY_SIZE_BYTES):
        given = f"{len(key)} bytes" if isinstance(key, bytes) else type(key).__name__
        raise ConfigError(
            f"a network key is {NETWORK_KEY_SIZE_BYTES} random bytes, not a passphrase, and network_key= is {given}: "
            f"draw one with secrets.token_bytes({NETWORK_KEY_SIZE_BYTES}) and give every member the same"
        )
    return key


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
