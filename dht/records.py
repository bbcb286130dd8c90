"""The signed envelope that every stored record travels in, what all kinds have in common, and the words with which one
is refused.

Pure. It proves who signed which bytes; what the bytes mean belongs to each kind of record: `values.py` and
`agents/record.py`.

    envelope:   MsgPack array [kind: int, body: bin, signature: bin(64), ...]; of an agent record that was renewed
                [kind, body, signature, renewal: bin, signature of that: bin(64), ...]
    body:       MsgPack map with key, issued, expires, network, mostly seq, maybe gone, and what the kind adds

The signature is Ed25519 over the kind's label and the body exactly as received: nothing is decoded and
encoded again to check it, so unknown keys inside a body keep their place in what is signed, and copies stay
valid byte for byte. Further elements are kept with the envelope and are not signed.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any, TypeVar

from dht.exceptions import RecordRefused
from synapse_p2p.exceptions import InvalidMessageError
from synapse_p2p.identity import SIGNATURE_SIZE_BYTES, Identity, verify
from synapse_p2p.protocol.wire import CONTROL_LIMITS, pack, unpack

MAX_RECORD_SIZE_BYTES = 17 * 1024
"""The largest value of any kind, 16 KiB, with its envelope. Each kind has a bound of its own below this."""
MAX_INT = 2**63 - 1
LAST_SEQ = MAX_INT
"""The number of a final tombstone, and of nothing else: no version can follow it."""
MAX_VERDICTS = 4096

_T = TypeVar("_T")


class RecordKind(IntEnum):
    """The first element of an envelope. Numbers are for ever."""

    IMMUTABLE = 1
    MUTABLE = 2
    AGENT = 3


LABELS = {
    RecordKind.IMMUTABLE: b"synapse-record:v1:immutable:",
    RecordKind.MUTABLE: b"synapse-record:v1:mutable:",
    RecordKind.AGENT: b"synapse-record:v1:agent:",
}
"""What is signed before the body, so that a signature made for one kind says nothing in another."""
RENEWAL_LABEL = b"synapse-record:v1:renewal:"


class Gone(StrEnum):
    """What a tombstone says instead of a value."""

    NOW = "now"  # deleted; a later version may bring it back
    FINAL = "final"  # revoked: there is no later version


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
    SEQ_MISMATCH = "seq_mismatch"
    WRONG_KEY = "wrong_key"
    NOT_LISTED = "not_listed"
    NOT_CLOSE = "not_close"
    NOT_HELD = "not_held"
    FULL = "full"
    OWNER_QUOTA = "owner_quota"
    GROUP_QUOTA = "group_quota"
    UNSEEN_QUOTA = "unseen_quota"


@dataclass(frozen=True, slots=True)
class Signed:
    """A body with its label and a signature, which is unproved until `check` says otherwise."""

    label: bytes
    body: bytes
    signature: bytes

    def check(self, public_key: bytes) -> None:
        """Raises RecordRefused unless the owner of `public_key` signed this body. Cost: about 0.15 ms."""
        if not verify(public_key, self.label, self.body, self.signature):
            raise RecordRefused(Refusal.BAD_SIGNATURE)


@dataclass(frozen=True, slots=True)
class Envelope:
    """A record taken apart: its body, and the renewal of an agent record that has one (`agents/renewal.py`)."""

    kind: RecordKind
    body: bytes
    signature: bytes
    data: bytes = field(repr=False, compare=False)
    renewal: Signed | None = None

    def signed(self) -> tuple[Signed, ...]:
        """What the owner signed."""
        record = Signed(LABELS[self.kind], self.body, self.signature)
        return (record,) if self.renewal is None else (record, self.renewal)

    def check_signature(self, public_key: bytes) -> None:
        """Raises RecordRefused unless the owner of `public_key` signed all of it. Cost: about 0.15 ms for each part."""
        for part in self.signed():
            part.check(public_key)


class Verdicts:
    """Remembers which bodies carry a good signature, the `max_verdicts` met last.

    An agent's record is the same bytes under each of its keys, and k storers send a searcher the same bytes: a digest
    takes a hundredth of the time of a signature. Of a record that is renewed the renewal alone is new.
    """

    def __init__(self, max_verdicts: int = MAX_VERDICTS) -> None:
        self._max_verdicts = max_verdicts
        self._is_good: OrderedDict[bytes, bool] = OrderedDict()

    def check(self, envelope: Envelope, public_key: bytes) -> None:
        """As `Envelope.check_signature`. `public_key` has to be the one in the bodies: the digest is of these."""
        for part in envelope.signed():
            self._check(part, public_key)

    def _check(self, part: Signed, public_key: bytes) -> None:
        # No label begins with another, and all signatures are of one size: these bytes can be cut in one way only.
        digest = hashlib.sha256(part.label + part.body + part.signature).digest()
        is_good = self._is_good.pop(digest, None)
        if is_good is None:
            try:
                part.check(public_key)
                is_good = True
            except RecordRefused:
                is_good = False
        self._is_good[digest] = is_good
        if len(self._is_good) > self._max_verdicts:
            self._is_good.popitem(last=False)
        if not is_good:
            raise RecordRefused(Refusal.BAD_SIGNATURE)

    def __len__(self) -> int:
        return len(self._is_good)


def seal(kind: RecordKind, body: bytes, identity: Identity) -> bytes:
    """The envelope round `body`, signed."""
    return pack([int(kind), body, identity.sign(LABELS[kind], body)])


def open_envelope(data: bytes, max_size_bytes: int = MAX_RECORD_SIZE_BYTES) -> Envelope:
    """The parts of a record, signature unproved. Raises RecordRefused: too_large, malformed, unknown_kind."""
    check_size(data, max_size_bytes)
    try:
        value = unpack(data, CONTROL_LIMITS)
    except InvalidMessageError as error:
        raise RecordRefused(Refusal.MALFORMED, str(error)) from error
    match value:
        case [int() as number, bytes() as body, bytes() as signature, *more] if type(number) is int:
            kind = _read_kind(number)
        case [int() as number, *_] if type(number) is int:
            # A kind from the future may have another shape: it is unknown, not malformed.
            _read_kind(number)
            raise RecordRefused(Refusal.MALFORMED, "an envelope is [kind, body, signature]")
        case _:
            raise RecordRefused(Refusal.MALFORMED, "an envelope is an array that starts with a kind")
    _check_signature_size(signature)
    return Envelope(kind, body, signature, data, _read_renewal(more) if kind is RecordKind.AGENT else None)


def _read_renewal(more: list[Any]) -> Signed | None:
    match more:
        case [bytes() as body, bytes() as signature, *_]:
            _check_signature_size(signature)
            return Signed(RENEWAL_LABEL, body, signature)
    return None  # whatever a later release puts there


def _check_signature_size(signature: bytes) -> None:
    if len(signature) != SIGNATURE_SIZE_BYTES:
        raise RecordRefused(Refusal.MALFORMED, f"a signature has {SIGNATURE_SIZE_BYTES} bytes")


def check_size(data: bytes, max_size_bytes: int) -> None:
    """Raises RecordRefused for more bytes than that."""
    if len(data) > max_size_bytes:
        raise RecordRefused(Refusal.TOO_LARGE, f"{len(data)} bytes, and {max_size_bytes} are allowed")


def decode_map(envelope: Envelope) -> dict[Any, Any]:
    """The body, of any network. Raises RecordRefused: malformed."""
    try:
        body = unpack(envelope.body, CONTROL_LIMITS)
    except InvalidMessageError as error:
        raise RecordRefused(Refusal.MALFORMED, str(error)) from error
    if type(body) is not dict:
        raise RecordRefused(Refusal.MALFORMED, "a record's body is a map")
    return body


def read_body(envelope: Envelope, network_id: bytes) -> dict[Any, Any]:
    """The body of a record of this network. Raises RecordRefused: malformed, wrong_network."""
    body = decode_map(envelope)
    if field_of(body, "network", bytes) != network_id:
        raise RecordRefused(Refusal.WRONG_NETWORK)
    return body


def check_times(
    body: dict[Any, Any], unix_ms: int, *, gone: Gone | None, max_life_s: float, max_future_s: float
) -> None:
    """Whether a body's times are believed at `unix_ms`, our wall clock.

    A final tombstone has no end, so its life is never too long. Raises RecordRefused: malformed, expired,
    from_the_future, life_too_long.
    """
    issued_ms, expires_ms = field_of(body, "issued", int), field_of(body, "expires", int)
    if expires_ms <= unix_ms:
        raise RecordRefused(Refusal.EXPIRED)
    if issued_ms - unix_ms > max_future_s * 1000:
        raise RecordRefused(Refusal.FROM_THE_FUTURE)
    if expires_ms - unix_ms > max_life_s * 1000 and gone is not Gone.FINAL:
        raise RecordRefused(Refusal.LIFE_TOO_LONG)


def read_gone(body: dict[Any, Any]) -> Gone | None:
    """What a body says of its own deletion; None for a record that lives. Raises RecordRefused: malformed.

    A word from the future says that there is no value for us to show.
    """
    word = body.get("gone")
    if word is not None and type(word) is not str:
        raise RecordRefused(Refusal.MALFORMED, "gone is text")
    return None if word is None else Gone.FINAL if word == Gone.FINAL else Gone.NOW


def version_fault(seq: int, issued_ms: int, expires_ms: int, gone: Gone | None) -> str:
    """What is wrong with a version's number and times; empty where nothing is.

    The last number and the last time belong to final tombstones: whoever has one need not compare to know that nothing
    follows.
    """
    if not 0 < seq <= LAST_SEQ:
        return f"a record's seq is 1 to 2^63 - 1, not {seq}"
    if not 0 <= issued_ms < expires_ms <= MAX_INT:
        return "a record expires after it was issued; both are Unix milliseconds"
    if (seq == LAST_SEQ) != (gone is Gone.FINAL) or (gone is Gone.FINAL and expires_ms != MAX_INT):
        return "a final tombstone has seq and expires 2^63 - 1, and no other record has that seq"
    return ""


def next_seq(last: int, unix_ms: int) -> int:
    """The number of an owner's next version: above the last, and the clock's where that is larger.

    An owner that lost its state so begins above what it signed before, as long as its clock does not go back; where a
    storer says `stale`, `last` is the one in its answer.
    """
    return max(last + 1, unix_ms)


def field_of(body: dict[Any, Any], name: str, kind: type[_T]) -> _T:
    """A field of a body. Raises RecordRefused: malformed, where it is missing or of another type."""
    value = body.get(name)
    if type(value) is not kind:  # not isinstance: True is an int to Python and no number to us
        raise RecordRefused(Refusal.MALFORMED, f"{name} is missing or of another type")
    return value


def _read_kind(number: int) -> RecordKind:
    try:
        return RecordKind(number)
    except ValueError:
        raise RecordRefused(Refusal.UNKNOWN_KIND, f"kind {number}") from None
