"""The agent record: "agent A can do this until T, and is reached there", signed by A.

Pure. Owns the bounds of a record and its body on the wire, a MsgPack map:

    key, seq, issued, expires, network, addresses, reach, name, role, description,
    capabilities: [[name, version, attributes, digest, ...], ...], [gone]

Times are Unix milliseconds. Of a record that was renewed `seq`, `issued` and `expires` are those of the renewal
(`renewal.py`). Unknown keys and trailing elements are ignored here and stay in the signed bytes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from dht.agents.claim import CapabilityClaim
from dht.agents.renewal import renewed_body
from dht.agents.versions import MAX_VERSION_CHARS, read_version
from dht.config import MAX_AGENT_RECORD_SIZE_BYTES, RecordConfig
from dht.contact import MAX_ADDRESSES
from dht.exceptions import RecordRefused
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
    open_envelope,
    read_body,
    read_gone,
    seal,
    version_fault,
)
from synapse_p2p.capability import ancestors
from synapse_p2p.exceptions import ConfigError
from synapse_p2p.identity import PUBLIC_KEY_SIZE_BYTES, Identity, NodeID, node_id_of
from synapse_p2p.protocol.wire import pack
from synapse_p2p.transport.base import is_literal_address

NETWORK_ID_SIZE_BYTES = 16
MAX_NAME_CHARS = 64
MAX_ROLE_CHARS = 64
MAX_DESCRIPTION_CHARS = 200
MAX_CAPABILITIES = 16
MAX_CAPABILITY_KEYS = 32
"""Distinct names an agent is stored under: its capabilities and all their ancestors."""
MAX_REMEMBERED_OWNERS = 4096  # whose newest version a searcher remembers


class Reach(StrEnum):
    """How an agent can be reached."""

    DIRECT = "direct"  # dial one of its addresses
    NONE = "none"  # it cannot be dialed; only who holds a session with it reaches it


@dataclass(frozen=True, slots=True)
class AgentRecord:
    """What an agent publishes about itself. Building one that breaks a bound raises ConfigError.

    `seq` grows with every version an owner signs. `addresses` are IP literals with ports; an agent with reach
    `none` may have none. A tombstone (`gone`) lists the capabilities that are withdrawn, to be found where they were.
    """

    public_key: bytes
    seq: int
    issued_ms: int
    expires_ms: int
    network_id: bytes
    addresses: tuple[str, ...]
    reach: Reach
    name: str
    role: str
    description: str
    capabilities: tuple[CapabilityClaim, ...]
    gone: Gone | None = None

    def __post_init__(self) -> None:
        _check_size("a public key", self.public_key, PUBLIC_KEY_SIZE_BYTES)
        _check_size("a network id", self.network_id, NETWORK_ID_SIZE_BYTES)
        if fault := version_fault(self.seq, self.issued_ms, self.expires_ms, self.gone):
            raise ConfigError(fault)
        self._check_addresses()
        _check_length("an agent's name", self.name, MAX_NAME_CHARS)
        _check_length("an agent's role", self.role, MAX_ROLE_CHARS)
        _check_length("an agent's description", self.description, MAX_DESCRIPTION_CHARS)
        self._check_capabilities()

    @property
    def kind(self) -> RecordKind:
        return RecordKind.AGENT

    @property
    def owner(self) -> NodeID:
        """Whose record this is: the NodeID of its public key."""
        return node_id_of(self.public_key)

    def indexed_names(self) -> tuple[str, ...]:
        """The names under which searchers find this record: capabilities and all their ancestors, sorted."""
        names = {claim.name for claim in self.capabilities}
        return tuple(sorted(names.union(*(ancestors(name) for name in names))))

    def withdrawn(self, *, seq: int, issued_ms: int) -> AgentRecord:
        """The tombstone that takes this record's place: "not now". `seq` is above this one's.

        It lists the same capabilities, and nothing else, so that it is found in every place of the record and needs no
        more room; it lives as long as the record would. Raises ConfigError for a `seq` that is not above, and for a
        record that is over at `issued_ms`.
        """
        if seq <= self.seq:
            raise ConfigError(f"what takes the place of a record has a seq above its {self.seq}, not {seq}")
        return self._emptied(seq=seq, issued_ms=issued_ms, expires_ms=self.expires_ms, gone=Gone.NOW)

    def revoked(self, *, issued_ms: int) -> AgentRecord:
        """The final tombstone of this record's key: nothing it signs is ever stored again in this record's places."""
        return self._emptied(seq=LAST_SEQ, issued_ms=issued_ms, expires_ms=MAX_INT, gone=Gone.FINAL)

    def _emptied(self, *, seq: int, issued_ms: int, expires_ms: int, gone: Gone) -> AgentRecord:
        return AgentRecord(
            public_key=self.public_key,
            seq=seq,
            issued_ms=issued_ms,
            expires_ms=expires_ms,
            network_id=self.network_id,
            addresses=(),
            reach=Reach.NONE,
            name="",
            role="",
            description="",
            capabilities=tuple(CapabilityClaim(claim.name) for claim in self.capabilities),
            gone=gone,
        )

    def seal(self, identity: Identity) -> bytes:
        """The signed envelope. Raises ConfigError for another's identity and for too large a record."""
        if identity.public_key != self.public_key:
            raise ConfigError("a record is sealed by the identity whose public key it carries")
        envelope = seal(RecordKind.AGENT, self._encode_body(), identity)
        if len(envelope) > MAX_AGENT_RECORD_SIZE_BYTES:
            raise ConfigError(
                f"this record has {len(envelope)} bytes and at most {MAX_AGENT_RECORD_SIZE_BYTES} travel"
                ": shorten its description, or offer fewer capabilities or attributes"
            )
        return envelope

    def _check_addresses(self) -> None:
        if len(self.addresses) > MAX_ADDRESSES:
            raise ConfigError(f"a record has at most {MAX_ADDRESSES} addresses, not {len(self.addresses)}")
        if self.reach is Reach.DIRECT and not self.addresses and self.gone is None:
            raise ConfigError(
                "an agent with reach 'direct' needs an address; one that cannot be dialed has reach 'none'"
            )
        for address in self.addresses:
            if not is_literal_address(address):
                raise ConfigError(f"{address!r} is not an IP address with a port, as in 10.0.0.5:9999 or [::1]:9999")

    def _check_capabilities(self) -> None:
        names = [claim.name for claim in self.capabilities]
        if len(names) > MAX_CAPABILITIES:
            raise ConfigError(f"an agent has at most {MAX_CAPABILITIES} capabilities, not {len(names)}")
        if len(set(names)) < len(names):
            raise ConfigError("an agent lists each capability once")
        key_count = len(self.indexed_names())
        if key_count > MAX_CAPABILITY_KEYS:
            raise ConfigError(
                f"these capabilities and the names above them are {key_count} keys, and an agent has at most "
                f"{MAX_CAPABILITY_KEYS}: use fewer levels"
            )

    def _encode_body(self) -> bytes:
        body: dict[str, Any] = {
            "key": self.public_key,
            "seq": self.seq,
            "issued": self.issued_ms,
            "expires": self.expires_ms,
            "network": self.network_id,
            "addresses": list(self.addresses),
            "reach": str(self.reach),
            "name": self.name,
            "role": self.role,
            "description": self.description,
            "capabilities": [claim.to_list() for claim in self.capabilities],
        }
        if self.gone is not None:
            body["gone"] = str(self.gone)
        return pack(body)


def read_agent_record(envelope: bytes, *, network_id: bytes, unix_ms: int, config: RecordConfig) -> AgentRecord:
    """The record in an envelope, checked in full; `unix_ms` is our wall clock.

    Raises RecordRefused with one of: too_large, malformed, unknown_kind, wrong_network, expired,
    from_the_future, life_too_long, bad_signature. The signature comes last, as it costs more than all else
    together.
    """
    opened = open_envelope(envelope, config.max_agent_record_bytes)
    record = decode_agent_record(opened, network_id=network_id, unix_ms=unix_ms, config=config)
    opened.check_signature(record.public_key)
    return record


def decode_agent_record(envelope: Envelope, *, network_id: bytes, unix_ms: int, config: RecordConfig) -> AgentRecord:
    """As `read_agent_record` of an opened envelope, with the signature left to check."""
    check_size(envelope.data, config.max_agent_record_bytes)
    body = renewed_body(read_body(envelope, network_id), envelope)
    check_times(body, unix_ms, gone=read_gone(body), max_life_s=config.max_lease_s, max_future_s=config.max_future_s)
    try:
        return _decode_body(body)
    except ConfigError as error:
        raise RecordRefused(Refusal.MALFORMED, str(error)) from error


def _decode_body(body: dict[Any, Any]) -> AgentRecord:
    addresses = field_of(body, "addresses", list)
    if not all(type(address) is str for address in addresses):
        raise RecordRefused(Refusal.MALFORMED, "addresses are text")
    return AgentRecord(
        public_key=field_of(body, "key", bytes),
        seq=field_of(body, "seq", int),
        issued_ms=field_of(body, "issued", int),
        expires_ms=field_of(body, "expires", int),
        network_id=field_of(body, "network", bytes),
        addresses=tuple(addresses),
        reach=_decode_reach(field_of(body, "reach", str)),
        name=field_of(body, "name", str),
        role=field_of(body, "role", str),
        description=field_of(body, "description", str),
        capabilities=tuple(_decode_claim(item) for item in field_of(body, "capabilities", list)),
        gone=read_gone(body),
    )


def _decode_reach(text: str) -> Reach:
    """A way of reaching agents that this release does not know is no way for it."""
    return Reach.DIRECT if text == Reach.DIRECT else Reach.NONE


def _decode_claim(value: Any) -> CapabilityClaim:
    match value:
        case [str() as name, str() as version, dict() as attributes, bytes() as digest, *_]:
            if len(version) > MAX_VERSION_CHARS:
                raise RecordRefused(Refusal.MALFORMED, f"a version has at most {MAX_VERSION_CHARS} characters")
            return CapabilityClaim(name, read_version(version), attributes, digest)
    raise RecordRefused(Refusal.MALFORMED, "a capability is [name, version, attributes, digest]")


def is_news(newest: Mapping[NodeID, AgentRecord], owner: NodeID, seq: int) -> bool:
    """Whether a version with this number is newer than the newest known of its owner."""
    held = newest.get(owner)
    return held is None or held.seq < seq


class NewestSeen:
    """The highest `seq` met of each owner, for the `max_owners` met last: what was replaced is not taken for new again.

    A storer that was cut off for a while sends what it holds; who has seen a newer version knows better.
    """

    def __init__(self, max_owners: int = MAX_REMEMBERED_OWNERS) -> None:
        self._max_owners = max_owners
        self._seqs: OrderedDict[NodeID, int] = OrderedDict()

    def of(self, records: Iterable[AgentRecord]) -> tuple[AgentRecord, ...]:
        """Those that no newer version was ever met of, which are remembered."""
        return tuple(record for record in records if self._meet(record))

    def __len__(self) -> int:
        return len(self._seqs)

    def _meet(self, record: AgentRecord) -> bool:
        known = self._seqs.pop(record.owner, record.seq)
        self._seqs[record.owner] = max(known, record.seq)
        if len(self._seqs) > self._max_owners:
            self._seqs.popitem(last=False)
        return record.seq >= known


def _check_length(what: str, text: str, max_chars: int) -> None:
    if len(text) > max_chars:
        raise ConfigError(f"{what} has {len(text)} characters; at most {max_chars} are allowed")


def _check_size(what: str, value: bytes, size_bytes: int) -> None:
    if len(value) != size_bytes:
        raise ConfigError(f"{what} has {size_bytes} bytes, not {len(value)}")
