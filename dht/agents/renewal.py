"""The renewal: "my record with this digest goes on until T", signed by its owner.

Pure. 195 bytes, where a record has 400 to 1,500. It travels alone, one for all places of an agent's record at a storer,
as a MsgPack array [body, signature, ...], and with the record it renews as the fourth and fifth elements of that one's
envelope. The body is a map: key, seq, issued, expires, digest. So a storer holds one value, which copies, offers and
answers carry on as it is; a searcher reads a record whose `seq`, `issued` and `expires` are those of the renewal, and
checks both signatures.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from dht.config import MAX_AGENT_RECORD_SIZE_BYTES
from dht.exceptions import RecordRefused
from dht.records import (
    RENEWAL_LABEL,
    Envelope,
    RecordKind,
    Refusal,
    check_size,
    decode_map,
    field_of,
    open_envelope,
    version_fault,
)
from synapse_p2p.exceptions import ConfigError, InvalidMessageError
from synapse_p2p.identity import PUBLIC_KEY_SIZE_BYTES, SIGNATURE_SIZE_BYTES, Identity, NodeID, node_id_of
from synapse_p2p.protocol.wire import CONTROL_LIMITS, pack, unpack

MAX_RENEWAL_SIZE_BYTES = 256
"""As it travels alone. This release needs 195."""
RECORD_DIGEST_SIZE_BYTES = 32


@dataclass(frozen=True, slots=True)
class Renewal:
    """A new number and new times for the record whose body has this digest. Raises ConfigError as a record does."""

    public_key: bytes
    seq: int
    issued_ms: int
    expires_ms: int
    digest: bytes

    def __post_init__(self) -> None:
        if len(self.public_key) != PUBLIC_KEY_SIZE_BYTES or len(self.digest) != RECORD_DIGEST_SIZE_BYTES:
            raise ConfigError("a renewal has a public key and a digest, of 32 bytes each")
        if fault := version_fault(self.seq, self.issued_ms, self.expires_ms, None):
            raise ConfigError(fault)

    @classmethod
    def of(cls, record: bytes, *, seq: int, issued_ms: int, expires_ms: int) -> Renewal:
        """The renewal of the record in this envelope. Raises RecordRefused for bytes that are none."""
        envelope = open_envelope(record)
        public_key = field_of(decode_map(envelope), "key", bytes)
        return cls(public_key, seq, issued_ms, expires_ms, body_digest(envelope))

    @property
    def owner(self) -> NodeID:
        """Whose record it renews: the NodeID of the public key."""
        return node_id_of(self.public_key)

    def applies_to(self, envelope: Envelope) -> bool:
        """Whether this is the record that it renews, as far as bytes can tell: number and times may not fit."""
        return envelope.kind is RecordKind.AGENT and self.digest == body_digest(envelope)

    def seal(self, identity: Identity) -> bytes:
        """As it travels alone. Raises ConfigError for another's identity."""
        if identity.public_key != self.public_key:
            raise ConfigError("a renewal is sealed by the identity whose public key it carries")
        body = pack(
            {
                "key": self.public_key,
                "seq": self.seq,
                "issued": self.issued_ms,
                "expires": self.expires_ms,
                "digest": self.digest,
            }
        )
        return pack([body, identity.sign(RENEWAL_LABEL, body)])


def body_digest(envelope: Envelope) -> bytes:
    """What a renewal calls a record by: SHA-256 of its body."""
    return hashlib.sha256(envelope.body).digest()


def can_be_renewed(record: bytes) -> bool:
    """Whether a record and its renewal travel together; a longer record is signed anew."""
    # The envelope's two new elements are what travels alone, less the array round them.
    return len(record) + MAX_RENEWAL_SIZE_BYTES <= MAX_AGENT_RECORD_SIZE_BYTES


def read_renewal(data: bytes) -> Renewal:
    """What a peer sent alone, with everything left to check that needs the record: see `with_renewal`.

    Raises RecordRefused: too_large, malformed.
    """
    return _decode(_split(data)[0])


def with_renewal(record: bytes, data: bytes) -> bytes:
    """The envelope of a record with this renewal, in place of an earlier one. To be checked as any that comes in.

    Raises RecordRefused: too_large, malformed; stale where it renews another version of the record.
    """
    body, signature = _split(data)
    envelope = open_envelope(record)
    if not _decode(body).applies_to(envelope):
        raise RecordRefused(Refusal.STALE, "it renews another version")
    return pack([int(envelope.kind), envelope.body, envelope.signature, body, signature])


def renewed_body(body: dict[Any, Any], envelope: Envelope) -> dict[Any, Any]:
    """The body of a record with the number and times of its renewal, if it has one. Raises RecordRefused: malformed."""
    if envelope.renewal is None:
        return body
    renewal = _decode(envelope.renewal.body)
    if not renewal.applies_to(envelope) or field_of(body, "key", bytes) != renewal.public_key:
        raise RecordRefused(Refusal.MALFORMED, "the renewal is of another record")
    times = {name: field_of(body, name, int) for name in ("seq", "issued", "expires")}
    if version_fault(times["seq"], times["issued"], times["expires"], None) or renewal.seq <= times["seq"]:
        # Of a tombstone that is final there is no renewal either: its number is a fault here.
        raise RecordRefused(Refusal.MALFORMED, "what is renewed has a smaller seq, and times of its own")
    return body | {"seq": renewal.seq, "issued": renewal.issued_ms, "expires": renewal.expires_ms}


def _split(data: bytes) -> tuple[bytes, bytes]:
    check_size(data, MAX_RENEWAL_SIZE_BYTES)
    try:
        value = unpack(data, CONTROL_LIMITS)
    except InvalidMessageError as error:
        raise RecordRefused(Refusal.MALFORMED, str(error)) from error
    match value:
        case [bytes() as body, bytes() as signature, *_] if len(signature) == SIGNATURE_SIZE_BYTES:
            return body, signature
    raise RecordRefused(Refusal.MALFORMED, "a renewal is [body, signature]")


def _decode(body: bytes) -> Renewal:
    try:
        fields = unpack(body, CONTROL_LIMITS)
    except InvalidMessageError as error:
        raise RecordRefused(Refusal.MALFORMED, str(error)) from error
    if type(fields) is not dict:
        raise RecordRefused(Refusal.MALFORMED, "a renewal's body is a map")
    try:
        return Renewal(
            public_key=field_of(fields, "key", bytes),
            seq=field_of(fields, "seq", int),
            issued_ms=field_of(fields, "issued", int),
            expires_ms=field_of(fields, "expires", int),
            digest=field_of(fields, "digest", bytes),
        )
    except ConfigError as error:
        raise RecordRefused(Refusal.MALFORMED, str(error)) from error
