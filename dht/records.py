"""The signed envelope that every stored record travels in, and the words with which one is refused.

Pure. It proves who signed which bytes; what the bytes mean belongs to each kind of record.

    envelope:   MsgPack array [kind: int, body: bin, signature: bin(64), ...]

The signature is Ed25519 over the kind's label and the body exactly as received: nothing is decoded and
encoded again to check it, so unknown keys inside a body keep their place in what is signed, and copies stay
valid byte for byte. Elements after the third are kept with the envelope and are not signed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum

from dht.exceptions import RecordRefused
from synapse_p2p.exceptions import ConfigError, InvalidMessageError
from synapse_p2p.identity import SIGNATURE_SIZE_BYTES, Identity, verify
from synapse_p2p.protocol.wire import CONTROL_LIMITS, pack, unpack

AGENT_LABEL = b"synapse-record:v1:agent:"


class RecordKind(IntEnum):
    """The first element of an envelope. Numbers are for ever."""

    IMMUTABLE = 1
    MUTABLE = 2
    AGENT = 3


class Refusal(StrEnum):
    """Why a record is not kept, or not believed: the word that travels."""

    TOO_LARGE = "too_large"
    MALFORMED = "malformed"
    UNKNOWN_KIND = "unknown_kind"
    WRONG_NETWORK = "wrong_network"
    BAD_SIGNATURE = "bad_signature"
    EXPIRED = "expired"
    FROM_THE_FUTURE = "from_the_future"
    LIFE_TOO_LONG = "life_too_long"
    STALE = "stale"
    WRONG_KEY = "wrong_key"
    NOT_LISTED = "not_listed"
    NOT_CLOSE = "not_close"
    FULL = "full"
    OWNER_QUOTA = "owner_quota"


@dataclass(frozen=True, slots=True)
class Envelope:
    """A record taken apart. `signature` is unproved until `check_signature` says otherwise."""

    kind: RecordKind
    body: bytes
    signature: bytes

    def check_signature(self, public_key: bytes) -> None:
        """Raises RecordRefused unless the owner of `public_key` signed this body. Cost: about 0.1 ms."""
        if not verify(public_key, _LABELS[self.kind], self.body, self.signature):
            raise RecordRefused(Refusal.BAD_SIGNATURE)


# Kinds without a label are named on the wire and not read by this release.
_LABELS = {RecordKind.AGENT: AGENT_LABEL}


def seal(kind: RecordKind, body: bytes, identity: Identity) -> bytes:
    """The envelope round `body`, signed. Raises ConfigError for a kind that this release does not sign."""
    label = _LABELS.get(kind)
    if label is None:
        raise ConfigError(f"records of kind {kind.name} are not signed by this release")
    return pack([int(kind), body, identity.sign(label, body)])


def open_envelope(data: bytes, max_size_bytes: int) -> Envelope:
    """The parts of a record, signature unproved. Raises RecordRefused: too_large, malformed, unknown_kind."""
    if len(data) > max_size_bytes:
        raise RecordRefused(Refusal.TOO_LARGE, f"{len(data)} bytes, and {max_size_bytes} are allowed")
    try:
        value = unpack(data, CONTROL_LIMITS)
    except InvalidMessageError as error:
        raise RecordRefused(Refusal.MALFORMED, str(error)) from error
    match value:
        case [int() as number, bytes() as body, bytes() as signature, *_] if type(number) is int:
            kind = _read_kind(number)
        case [int() as number, *_] if type(number) is int:
            # A kind from the future may have another shape: it is unknown, not malformed.
            _read_kind(number)
            raise RecordRefused(Refusal.MALFORMED, "an envelope is [kind, body, signature]")
        case _:
            raise RecordRefused(Refusal.MALFORMED, "an envelope is an array that starts with a kind")
    if len(signature) != SIGNATURE_SIZE_BYTES:
        raise RecordRefused(Refusal.MALFORMED, f"a signature has {SIGNATURE_SIZE_BYTES} bytes")
    return Envelope(kind, body, signature)


def _read_kind(number: int) -> RecordKind:
    for kind in _LABELS:
        if number == kind:
            return kind
    raise RecordRefused(Refusal.UNKNOWN_KIND, f"kind {number}")
