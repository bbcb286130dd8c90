"""Requests and answers of the `_dht.` endpoints, as frozen values with a bound on every field.

Pure. A request travels as the keyword arguments of a call, an answer as its result, each a map whose keys are
the field names. Unknown keys are ignored; a missing key is the field's default, and None travels as nil.
Everything else of a wrong type or size raises InvalidMessageError, which names the field. Layout:
docs/spec/dht.md.

    _dht.ping        Ping        -> PingAnswer
    _dht.find_node   FindNode    -> FindNodeAnswer
    _dht.find_value  FindValue   -> FindValueAnswer
    _dht.store       Store       -> StoreAnswer
    _dht.renew       Renew       -> RenewAnswer
    _dht.exchange    Exchange    -> ExchangeAnswer
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dht.agents.index import MAX_SHARD_DEPTH
from dht.agents.query import Query
from dht.agents.renewal import MAX_RENEWAL_SIZE_BYTES
from dht.agents.shards import Shard, ShardReport
from dht.contact import Contact, decode_contacts, encode_contacts
from dht.keyspace import KEY_SIZE_BYTES, Key
from dht.records import MAX_INT, MAX_RECORD_SIZE_BYTES
from synapse_p2p.exceptions import InvalidMessageError
from synapse_p2p.identity import NodeID

MAX_CONTACTS = 64
"""In one answer: more than the k of a plain one, for a radius may ask for a whole neighbourhood."""
MAX_EXCHANGE_COUNT = 20
MAX_RECORDS = 1000
MAX_CAPABILITY_CHARS = 128
MAX_PREFIX_SIZE_BYTES = MAX_SHARD_DEPTH // 8
MAX_NONCE_SIZE_BYTES = 16
MAX_REFUSAL_CHARS = 64
MAX_OFFERS = 256
"""In one request: 20 KiB, and a storer with thousands of records does not need a hundred requests."""
MAX_RENEWED_PLACES = 64
"""In one request: the 32 keys of an agent, at two depths each."""


@dataclass(frozen=True, slots=True)
class Ping:
    """Are you there? `leaving` says that the asker goes, and is no contact of anybody's any more; `prove` asks to be
    dialed, so that it knows whether that can be done.
    """

    leaving: bool = False
    prove: bool = False

    def to_map(self) -> dict[str, Any]:
        return {"leaving": self.leaving, **({"prove": True} if self.prove else {})}

    @classmethod
    def from_map(cls, mapping: Any) -> Ping:
        fields = _map(mapping)
        return cls(
            leaving=_bool(fields, "leaving", default=False),
            prove=_bool(fields, "prove", default=False),
        )


@dataclass(frozen=True, slots=True)
class PingAnswer:
    """Alive. `unix_ms` is the answerer's wall clock; `dials` says that it dials the asker in a moment."""

    unix_ms: int
    dials: bool = False

    def to_map(self) -> dict[str, Any]:
        return {"unix_ms": self.unix_ms, **({"dials": True} if self.dials else {})}

    @classmethod
    def from_map(cls, mapping: Any) -> PingAnswer:
        fields = _map(mapping)
        return cls(unix_ms=_int(fields, "unix_ms"), dials=_bool(fields, "dials", default=False))


@dataclass(frozen=True, slots=True)
class FindNode:
    """Whom do you know near `target`? `radius` is a distance as 32 bytes: name all within it."""

    target: Key
    radius: Key | None = None

    def to_map(self) -> dict[str, Any]:
        return {"target": self.target, "radius": self.radius}

    @classmethod
    def from_map(cls, mapping: Any) -> FindNode:
        fields = _map(mapping)
        radius = None if fields.get("radius") is None else _key(fields, "radius")
        return cls(target=_key(fields, "target"), radius=radius)


@dataclass(frozen=True, slots=True)
class FindNodeAnswer:
    """Contacts near the target, nearest first."""

    contacts: tuple[Contact, ...]

    def to_map(self) -> dict[str, Any]:
        return {"contacts": encode_contacts(self.contacts)}

    @classmethod
    def from_map(cls, mapping: Any) -> FindNodeAnswer:
        return cls(contacts=_contacts(_map(mapping), MAX_CONTACTS))


@dataclass(frozen=True, slots=True)
class FindValue:
    """What do you hold under `key`, and whom do you know near it?

    For a capability: its name, the shard's `depth` and `prefix` bits (left-aligned), the `nonce` that decides
    which sample is drawn, `limit`, the most records wanted (0: as many as fit), how many to `skip` in that order, where
    they were looked at before, and the `query` that an agent has to match.
    """

    key: Key
    capability: str | None = None
    depth: int = 0
    prefix: bytes = b""
    nonce: bytes = b""
    limit: int = 0
    skip: int = 0
    query: Query | None = None

    @classmethod
    def of_shard(
        cls, key: Key, capability: str, shard: Shard, nonce: bytes, *, limit: int = 0, query: Query | None = None
    ) -> FindValue:
        """The question for a shard, which is kept under `key`."""
        size_bytes = (shard.depth + 7) // 8
        prefix = (shard.prefix << (8 * size_bytes - shard.depth)).to_bytes(size_bytes, "big")
        return cls(key, capability, shard.depth, prefix, nonce, limit, query=query)

    def after(self, answer: FindValueAnswer) -> FindValue:
        """The same question for what comes after the records of an answer to it."""
        return replace(self, skip=answer.next)

    @property
    def shard(self) -> Shard | None:
        """Which one is asked for; None where prefix and depth do not fit together."""
        size_bytes = (self.depth + 7) // 8
        bits = int.from_bytes(self.prefix, "big")
        unused = 8 * size_bytes - self.depth
        if len(self.prefix) != size_bytes or bits & ((1 << unused) - 1):
            return None
        return Shard(self.depth, bits >> unused)

    def to_map(self) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "key": self.key,
            "capability": self.capability,
            "depth": self.depth,
            "prefix": self.prefix,
            "nonce": self.nonce,
            "limit": self.limit,
        }
        if self.skip:
            fields["skip"] = self.skip
        if self.query is not None:
            fields["query"] = self.query.to_map()
        return fields

    @classmethod
    def from_map(cls, mapping: Any) -> FindValue:
        fields = _map(mapping)
        return cls(
            key=_key(fields, "key"),
            capability=_text_or_none(fields, "capability", MAX_CAPABILITY_CHARS),
            depth=_int(fields, "depth", default=0, max_value=MAX_SHARD_DEPTH),
            prefix=_bytes(fields, "prefix", MAX_PREFIX_SIZE_BYTES, default=b""),
            nonce=_bytes(fields, "nonce", MAX_NONCE_SIZE_BYTES, default=b""),
            limit=_int(fields, "limit", default=0),
            skip=_int(fields, "skip", default=0),
            query=None if fields.get("query") is None else Query.from_map(fields["query"]),
        )


@dataclass(frozen=True, slots=True)
class FindValueAnswer:
    """Records held under the key, and contacts near it, nearest first; none beside an immutable value.

    Of a capability `count`, `depth`, `full` and `estimate` are what an `agents.shards.ShardReport` says; of other keys
    `count` is how many records are held. `next` is what to `skip` for those that come after these; 0 where none do.
    """

    records: tuple[bytes, ...]
    count: int
    depth: int
    full: bool
    estimate: int
    contacts: tuple[Contact, ...]
    next: int = 0

    @property
    def report(self) -> ShardReport:
        """What it says of a shard."""
        return ShardReport(self.count, self.depth, self.full, self.estimate)

    def to_map(self) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "records": list(self.records),
            "count": self.count,
            "depth": self.depth,
            "full": self.full,
            "estimate": self.estimate,
            "contacts": encode_contacts(self.contacts),
        }
        if self.next:
            fields["next"] = self.next
        return fields

    @classmethod
    def from_map(cls, mapping: Any) -> FindValueAnswer:
        fields = _map(mapping)
        return cls(
            records=_records(fields),
            count=_int(fields, "count"),
            depth=_int(fields, "depth", max_value=MAX_SHARD_DEPTH),
            full=_bool(fields, "full"),
            estimate=_int(fields, "estimate"),
            contacts=_contacts(fields, MAX_CONTACTS),
            next=_int(fields, "next", default=0),
        )


@dataclass(frozen=True, slots=True)
class Offer:
    """ "I have this version of that record": `[kind, key, owner, seq]`. Kinds of later releases are numbers too.

    Of an immutable record `seq` is when it expires.
    """

    kind: int
    key: Key
    owner: NodeID
    seq: int

    def to_list(self) -> list[Any]:
        return [self.kind, self.key, self.owner, self.seq]


@dataclass(frozen=True, slots=True)
class Store:
    """Please keep this record; for an agent record, under the key of this capability at this depth.

    `expected_seq` is of the version that `record` is to replace, where another one must not be. `offers` ask which
    other records are missing; without a `record` they are all that is asked.
    """

    record: bytes | None
    capability: str | None = None
    depth: int = 0
    expected_seq: int | None = None
    offers: tuple[Offer, ...] = ()

    def to_map(self) -> dict[str, Any]:
        fields: dict[str, Any] = {"record": self.record, "capability": self.capability, "depth": self.depth}
        if self.expected_seq is not None:
            fields["expected_seq"] = self.expected_seq
        if self.offers:
            fields["offers"] = [offer.to_list() for offer in self.offers]
        return fields

    @classmethod
    def from_map(cls, mapping: Any) -> Store:
        fields = _map(mapping)
        offers = _offers(fields)
        is_there = fields.get("record") is not None or not offers
        return cls(
            record=_bytes(fields, "record", MAX_RECORD_SIZE_BYTES) if is_there else None,
            capability=_text_or_none(fields, "capability", MAX_CAPABILITY_CHARS),
            depth=_int(fields, "depth", default=0, max_value=MAX_SHARD_DEPTH),
            expected_seq=None if fields.get("expected_seq") is None else _int(fields, "expected_seq"),
            offers=offers,
        )


@dataclass(frozen=True, slots=True)
class StoreAnswer:
    """Kept, or the word why not (see `records.Refusal`; a newer release may say others).

    `newer` is the record held where ours was refused for its `seq`. `contacts` are near the key, nearest first.
    `wanted` are the places of those offers whose records are welcome, in ascending order. `report` is on the shard of
    an agent's record, where that is kept or the key has no room for it.
    """

    stored: bool
    refusal: str | None
    newer: bytes | None
    contacts: tuple[Contact, ...]
    wanted: tuple[int, ...] = ()
    report: ShardReport | None = None

    def to_map(self) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "stored": self.stored,
            "refusal": None if self.refusal is None else str(self.refusal),
            "newer": self.newer,
            "contacts": encode_contacts(self.contacts),
        }
        if self.wanted:
            fields["wanted"] = list(self.wanted)
        if (report := self.report) is not None:
            fields["report"] = _encode_report(report)
        return fields

    @classmethod
    def from_map(cls, mapping: Any) -> StoreAnswer:
        fields = _map(mapping)
        newer = None if fields.get("newer") is None else _bytes(fields, "newer", MAX_RECORD_SIZE_BYTES)
        return cls(
            stored=_bool(fields, "stored"),
            refusal=_text_or_none(fields, "refusal", MAX_REFUSAL_CHARS),
            newer=newer,
            contacts=_contacts(fields, MAX_CONTACTS),
            wanted=_wanted(fields),
            report=_report(fields),
        )


@dataclass(frozen=True, slots=True)
class RecordPlace:
    """Where an agent's record is kept: under this capability at this depth, `[capability, depth]`."""

    capability: str
    depth: int

    def to_list(self) -> list[Any]:
        return [self.capability, self.depth]


@dataclass(frozen=True, slots=True)
class Renew:
    """Please let an agent's record live on in these places, where you keep the version that `renewal` is of.

    Near the keys of the first `watched` of them contacts are wanted as well.
    """

    renewal: bytes
    places: tuple[RecordPlace, ...]
    watched: int = 0

    def to_map(self) -> dict[str, Any]:
        places = [place.to_list() for place in self.places]
        return {"renewal": self.renewal, "places": places, "watched": self.watched}

    @classmethod
    def from_map(cls, mapping: Any) -> Renew:
        fields = _map(mapping)
        places = _record_places(fields)
        return cls(
            renewal=_bytes(fields, "renewal", MAX_RENEWAL_SIZE_BYTES),
            places=places,
            watched=_int(fields, "watched", default=0, max_value=len(places)),
        )


@dataclass(frozen=True, slots=True)
class RenewAnswer:
    """For each place, in the order of the request, what `_dht.store` would say: `[refusal, report, contacts]`.

    All contacts together are no more than those of one other answer.
    """

    places: tuple[StoreAnswer, ...]

    def to_map(self) -> dict[str, Any]:
        return {
            "places": [
                [
                    None if answer.refusal is None else str(answer.refusal),
                    None if answer.report is None else _encode_report(answer.report),
                    encode_contacts(answer.contacts),
                ]
                for answer in self.places
            ]
        }

    @classmethod
    def from_map(cls, mapping: Any) -> RenewAnswer:
        value = _map(mapping).get("places")
        if type(value) is not list or len(value) > MAX_RENEWED_PLACES:
            raise InvalidMessageError(f"places are an array of at most {MAX_RENEWED_PLACES}")
        left = MAX_CONTACTS
        places: list[StoreAnswer] = []
        for item in value:
            places.append(_place_answer(item, left))
            left -= len(places[-1].contacts)
        return cls(tuple(places))


@dataclass(frozen=True, slots=True)
class Exchange:
    """Name me up to `count` good peers at random, not only near ones."""

    count: int

    def to_map(self) -> dict[str, Any]:
        return {"count": self.count}

    @classmethod
    def from_map(cls, mapping: Any) -> Exchange:
        return cls(count=_int(_map(mapping), "count", min_value=1, max_value=MAX_EXCHANGE_COUNT))


@dataclass(frozen=True, slots=True)
class ExchangeAnswer:
    """Some peers, in random order."""

    contacts: tuple[Contact, ...]

    def to_map(self) -> dict[str, Any]:
        return {"contacts": encode_contacts(self.contacts)}

    @classmethod
    def from_map(cls, mapping: Any) -> ExchangeAnswer:
        return cls(contacts=_contacts(_map(mapping), MAX_EXCHANGE_COUNT))


def _map(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidMessageError("a request or answer of the overlay is a map")
    return value


def _int(
    fields: Mapping[str, Any],
    name: str,
    *,
    min_value: int = 0,
    max_value: int = MAX_INT,
    default: int | None = None,
) -> int:
    value = fields.get(name, default)
    # `type`, not isinstance: True is an int to Python and no count to us.
    if type(value) is not int or not min_value <= value <= max_value:
        raise InvalidMessageError(f"{name} is a whole number from {min_value} to {max_value}")
    return value


def _bool(fields: Mapping[str, Any], name: str, *, default: bool | None = None) -> bool:
    value = fields.get(name, default)
    if type(value) is not bool:
        raise InvalidMessageError(f"{name} is true or false")
    return value


def _bytes(fields: Mapping[str, Any], name: str, max_size_bytes: int, *, default: bytes | None = None) -> bytes:
    value = fields.get(name, default)
    if type(value) is not bytes or len(value) > max_size_bytes:
        raise InvalidMessageError(f"{name} is at most {max_size_bytes} bytes")
    return value


def _key(fields: Mapping[str, Any], name: str) -> Key:
    value = fields.get(name)
    if type(value) is not bytes or len(value) != KEY_SIZE_BYTES:
        raise InvalidMessageError(f"{name} is {KEY_SIZE_BYTES} bytes")
    return value


def _text_or_none(fields: Mapping[str, Any], name: str, max_chars: int) -> str | None:
    value = fields.get(name)
    if value is not None and (type(value) is not str or len(value) > max_chars):
        raise InvalidMessageError(f"{name} is text of at most {max_chars} characters, or nil")
    return value


def _records(fields: Mapping[str, Any]) -> tuple[bytes, ...]:
    value = fields.get("records")
    if type(value) is not list or len(value) > MAX_RECORDS:
        raise InvalidMessageError(f"records are an array of at most {MAX_RECORDS}")
    for record in value:
        if type(record) is not bytes or len(record) > MAX_RECORD_SIZE_BYTES:
            raise InvalidMessageError(f"records are at most {MAX_RECORD_SIZE_BYTES} bytes each")
    return tuple(value)


def _offers(fields: Mapping[str, Any]) -> tuple[Offer, ...]:
    value = fields.get("offers", [])
    if type(value) is not list or len(value) > MAX_OFFERS:
        raise InvalidMessageError(f"offers are an array of at most {MAX_OFFERS}")
    return tuple(_offer(item) for item in value)


def _offer(value: Any) -> Offer:
    if type(value) is not list or len(value) < 4:
        raise InvalidMessageError("offers are [kind, key, owner, seq]")
    fields = dict(zip(("kind", "key", "owner", "seq"), value, strict=False))
    return Offer(_int(fields, "kind"), _key(fields, "key"), _key(fields, "owner"), _int(fields, "seq"))


def _wanted(fields: Mapping[str, Any]) -> tuple[int, ...]:
    value = fields.get("wanted", [])
    # Ascending, so that none is twice: each costs the sender a record.
    is_good = type(value) is list and all(type(place) is int and 0 <= place < MAX_OFFERS for place in value)
    if not is_good or any(later <= earlier for earlier, later in itertools.pairwise(value)):
        raise InvalidMessageError(f"wanted are ascending whole numbers below {MAX_OFFERS}")
    return tuple(value)


def _encode_report(report: ShardReport) -> list[Any]:
    return [report.count, report.depth, report.is_full, report.estimate]


def _report(fields: Mapping[str, Any]) -> ShardReport | None:
    value = fields.get("report")
    if value is None:
        return None
    if type(value) is not list or len(value) < 4:
        raise InvalidMessageError("report is [count, depth, full, estimate]")
    parts = dict(zip(("count", "depth", "full", "estimate"), value, strict=False))
    depth = _int(parts, "depth", max_value=MAX_SHARD_DEPTH)
    return ShardReport(_int(parts, "count"), depth, _bool(parts, "full"), _int(parts, "estimate"))


def _record_places(fields: Mapping[str, Any]) -> tuple[RecordPlace, ...]:
    value = fields.get("places")
    if type(value) is not list or not 0 < len(value) <= MAX_RENEWED_PLACES:
        raise InvalidMessageError(f"places are an array of 1 to {MAX_RENEWED_PLACES}")
    places = tuple(_record_place(item) for item in value)
    # Each once: every one costs the storer a look.
    if len(set(places)) < len(places):
        raise InvalidMessageError("places are all different")
    return places


def _record_place(value: Any) -> RecordPlace:
    if type(value) is not list or len(value) < 2 or type(value[0]) is not str or len(value[0]) > MAX_CAPABILITY_CHARS:
        raise InvalidMessageError(f"places are [text of at most {MAX_CAPABILITY_CHARS} characters, depth]")
    return RecordPlace(value[0], _int({"depth": value[1]}, "depth", max_value=MAX_SHARD_DEPTH))


def _place_answer(value: Any, max_contacts: int) -> StoreAnswer:
    if type(value) is not list or len(value) < 3:
        raise InvalidMessageError("places are [refusal, report, contacts]")
    fields = dict(zip(("refusal", "report", "contacts"), value, strict=False))
    refusal = _text_or_none(fields, "refusal", MAX_REFUSAL_CHARS)
    return StoreAnswer(refusal is None, refusal, None, _contacts(fields, max_contacts), report=_report(fields))


def _contacts(fields: Mapping[str, Any], max_count: int) -> tuple[Contact, ...]:
    if "contacts" not in fields:
        raise InvalidMessageError("contacts are missing")
    return tuple(decode_contacts(fields["contacts"], max_count=max_count))
