"""Values that anybody can store: an immutable one is found by what it is, a mutable one by who may change it.

Pure. Bodies, MsgPack maps; times are Unix milliseconds; unknown keys are ignored here and stay signed:

    immutable:  key, issued, expires, network, value
    mutable:    key, salt, seq, issued, expires, network, value, [gone]

An immutable record is signed by whoever asks others to keep it, and proved by its hash to whoever reads it: see
docs/adr/0011-values-and-their-stores.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dht.config import MAX_VALUE_SIZE_BYTES, RecordConfig
from dht.exceptions import RecordRefused
from dht.keyspace import Key, content_key, mutable_key
from dht.records import (
    LAST_SEQ,
    MAX_INT,
    Envelope,
    Gone,
    RecordKind,
    Refusal,
    check_size,
    check_times,
    field_of,
    read_body,
    read_gone,
    seal,
    version_fault,
)
from synapse_p2p.exceptions import ConfigError
from synapse_p2p.identity import PUBLIC_KEY_SIZE_BYTES, Identity, NodeID, node_id_of
from synapse_p2p.protocol.wire import pack

MAX_SALT_SIZE_BYTES = 64
"""Enough for a name or two hashes; a salt travels with every version. BEP 44 has the same."""
NETWORK_ID_SIZE_BYTES = 16


@dataclass(frozen=True, slots=True)
class ImmutableRecord:
    """ "Keep this until then", signed by `public_key`. Building one that breaks a bound raises ConfigError."""

    public_key: bytes
    issued_ms: int
    expires_ms: int
    network_id: bytes
    value: bytes

    def __post_init__(self) -> None:
        _check_common(self.public_key, self.network_id, self.value)
        if not 0 <= self.issued_ms < self.expires_ms <= MAX_INT:
            raise ConfigError("a record expires after it was issued; both are Unix milliseconds")

    @property
    def kind(self) -> RecordKind:
        return RecordKind.IMMUTABLE

    @property
    def owner(self) -> NodeID:
        """Who asks others to keep it, and whose share of a store it takes."""
        return node_id_of(self.public_key)

    @property
    def key(self) -> Key:
        return content_key(self.value)

    @property
    def seq(self) -> int:
        """Its place among copies of the same value, of which a storer keeps one: the one that lives longest."""
        return self.expires_ms

    @property
    def gone(self) -> None:
        """A value that is its own name cannot be taken back."""
        return None

    def seal(self, identity: Identity) -> bytes:
        """The signed envelope. Raises ConfigError for another's identity."""
        body = {
            "key": self.public_key,
            "issued": self.issued_ms,
            "expires": self.expires_ms,
            "network": self.network_id,
            "value": self.value,
        }
        return _seal(self.kind, self.public_key, body, identity)


@dataclass(frozen=True, slots=True)
class MutableRecord:
    """One version of a value that its owner may replace or delete. Building one that breaks a bound raises ConfigError.

    A tombstone (`gone`) has an empty value. A final one has `seq` LAST_SEQ and never expires.
    """

    public_key: bytes
    salt: bytes
    seq: int
    issued_ms: int
    expires_ms: int
    network_id: bytes
    value: bytes
    gone: Gone | None = None

    def __post_init__(self) -> None:
        _check_common(self.public_key, self.network_id, self.value)
        if len(self.salt) > MAX_SALT_SIZE_BYTES:
            raise ConfigError(f"a salt has at most {MAX_SALT_SIZE_BYTES} bytes, not {len(self.salt)}")
        if self.gone is not None and self.value:
            raise ConfigError("a tombstone has no value")
        if fault := version_fault(self.seq, self.issued_ms, self.expires_ms, self.gone):
            raise ConfigError(fault)

    @classmethod
    def final(cls, public_key: bytes, salt: bytes, *, issued_ms: int, network_id: bytes) -> MutableRecord:
        """The tombstone that revokes this key for good."""
        return cls(public_key, salt, LAST_SEQ, issued_ms, MAX_INT, network_id, b"", Gone.FINAL)

    @property
    def kind(self) -> RecordKind:
        return RecordKind.MUTABLE

    @property
    def owner(self) -> NodeID:
        """Who alone may sign the next version."""
        return node_id_of(self.public_key)

    @property
    def key(self) -> Key:
        return mutable_key(self.public_key, self.salt)

    def seal(self, identity: Identity) -> bytes:
        """The signed envelope. Raises ConfigError for another's identity."""
        body: dict[str, Any] = {
            "key": self.public_key,
            "salt": self.salt,
            "seq": self.seq,
            "issued": self.issued_ms,
            "expires": self.expires_ms,
            "network": self.network_id,
            "value": self.value,
        }
        if self.gone is not None:
            body["gone"] = str(self.gone)
        return _seal(self.kind, self.public_key, body, identity)


def decode_immutable(envelope: Envelope, *, network_id: bytes, unix_ms: int, config: RecordConfig) -> ImmutableRecord:
    """The record in an opened envelope, checked but for its signature; `unix_ms` is our wall clock.

    Raises RecordRefused: too_large, malformed, wrong_network, expired, from_the_future, life_too_long.
    """
    body = read_body(envelope, network_id)
    _check(body, None, unix_ms, config)
    try:
        return ImmutableRecord(
            public_key=field_of(body, "key", bytes),
            issued_ms=field_of(body, "issued", int),
            expires_ms=field_of(body, "expires", int),
            network_id=field_of(body, "network", bytes),
            value=field_of(body, "value", bytes),
        )
    except ConfigError as error:
        raise RecordRefused(Refusal.MALFORMED, str(error)) from error


def decode_mutable(envelope: Envelope, *, network_id: bytes, unix_ms: int, config: RecordConfig) -> MutableRecord:
    """As `decode_immutable`."""
    body = read_body(envelope, network_id)
    gone = read_gone(body)
    _check(body, gone, unix_ms, config)
    try:
        return MutableRecord(
            public_key=field_of(body, "key", bytes),
            salt=field_of(body, "salt", bytes),
            seq=field_of(body, "seq", int),
            issued_ms=field_of(body, "issued", int),
            expires_ms=field_of(body, "expires", int),
            network_id=field_of(body, "network", bytes),
            value=field_of(body, "value", bytes),
            gone=gone,
        )
    except ConfigError as error:
        raise RecordRefused(Refusal.MALFORMED, str(error)) from error


def _check(body: dict[Any, Any], gone: Gone | None, unix_ms: int, config: RecordConfig) -> None:
    check_times(body, unix_ms, gone=gone, max_life_s=config.max_ttl_s, max_future_s=config.max_future_s)
    # A storer need not take as much as the protocol allows.
    check_size(field_of(body, "value", bytes), config.max_value_bytes)


def _check_common(public_key: bytes, network_id: bytes, value: bytes) -> None:
    if len(public_key) != PUBLIC_KEY_SIZE_BYTES:
        raise ConfigError(f"a public key has {PUBLIC_KEY_SIZE_BYTES} bytes, not {len(public_key)}")
    if len(network_id) != NETWORK_ID_SIZE_BYTES:
        raise ConfigError(f"a network id has {NETWORK_ID_SIZE_BYTES} bytes, not {len(network_id)}")
    if len(value) > MAX_VALUE_SIZE_BYTES:
        raise ConfigError(
            f"a value has at most {MAX_VALUE_SIZE_BYTES} bytes, not {len(value)}: store a small record that says where "
            "the rest is, and let its owner send that by a call"
        )


def _seal(kind: RecordKind, public_key: bytes, body: dict[str, Any], identity: Identity) -> bytes:
    if identity.public_key != public_key:
        raise ConfigError("a record is sealed by the identity whose public key it carries")
    return seal(kind, pack(body), identity)
