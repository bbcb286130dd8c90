"""Answers others: the `_dht.` endpoints. Each is a plain function that returns at once.

A request comes from an authenticated peer or is refused. Whoever asks and listens somewhere is a candidate for our
routing table; it enters once a dial of ours has proved the address.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dht.agents.index import capability_key, check_belongs
from dht.agents.record import AgentRecord
from dht.config import DHTConfig
from dht.contact import Contact, shared_contact
from dht.exceptions import RecordRefused
from dht.keyspace import Key, distance
from dht.messages import (
    MAX_CONTACTS,
    Exchange,
    ExchangeAnswer,
    FindNode,
    FindNodeAnswer,
    FindValue,
    FindValueAnswer,
    Offer,
    Ping,
    PingAnswer,
    Store,
    StoreAnswer,
)
from dht.quotas import OWN_GROUP
from dht.reading import Record, RecordReader
from dht.records import Envelope, RecordKind, Refusal, Verdicts, open_envelope
from dht.region import REGION_FACTOR, GroupOf, RegionEstimate, answer, every_one_alone
from dht.routing import RoutingTable
from dht.store import ANY_OWNER, RecordStore, StoredRecord
from synapse_p2p.context import CallContext
from synapse_p2p.exceptions import CallError
from synapse_p2p.identity import NodeID
from synapse_p2p.peers import Host
from synapse_p2p.transport.base import parse_address
from synapse_p2p.trust import TrustConfig

MAX_TOMBSTONES = 100
"""In one answer: what was withdrawn within a lease is mostly less, and the room is for those who are there."""

_KINDS = frozenset(RecordKind)


def _tell_nobody(_key: Key, _record: StoredRecord) -> None:
    """Nobody wants to know."""


class Responder:
    """What one node answers. `on_candidate` is told of callers that say they listen and are not known at that
    address, `on_heard` of every call, `on_leaving` of callers that go, `on_returning` of callers that look for
    themselves, `on_kept` of every record that is new here. `reader` is what it reads records with.
    """

    def __init__(
        self,
        host: Host,
        table: RoutingTable,
        store: RecordStore,
        config: DHTConfig,
        *,
        on_candidate: Callable[[Contact], None],
        on_heard: Callable[[], None] | None = None,
        on_leaving: Callable[[NodeID], None] | None = None,
        on_returning: Callable[[NodeID], None] | None = None,
        on_kept: Callable[[Key, StoredRecord], None] = _tell_nobody,
        trust: TrustConfig | None = None,
        estimate: RegionEstimate | None = None,
        group_of: GroupOf = every_one_alone,
    ) -> None:
        self._host = host
        self._table = table
        self._store = store
        self._config = config
        self._on_candidate = on_candidate
        self._on_heard = on_heard
        self._on_leaving = on_leaving
        self._on_returning = on_returning
        self._trust = trust or TrustConfig()
        self._on_kept = on_kept
        self.reader = RecordReader(host.network_id, config.records, Verdicts())
        self._estimate = estimate or RegionEstimate(host.identity.node_id, config.lookup)
        self._group_of = group_of

    def endpoints(self) -> dict[str, Callable[[Mapping[str, Any], CallContext], Any]]:
        """The endpoints by name."""
        return {
            "_dht.ping": self.ping,
            "_dht.find_node": self.find_node,
            "_dht.find_value": self.find_value,
            "_dht.store": self.store,
            "_dht.exchange": self.exchange,
        }

    def ping(self, request: Mapping[str, Any], context: CallContext) -> dict[str, Any]:
        """Alive, and what our clock says. A caller that goes is told to whoever keeps contacts."""
        caller = self._see(context, is_candidate=not (leaving := Ping.from_map(request).leaving))
        if leaving and self._on_leaving is not None:
            self._on_leaving(caller)
        return PingAnswer(self._unix_ms()).to_map()

    def find_node(self, request: Mapping[str, Any], context: CallContext) -> dict[str, Any]:
        """The contacts we know nearest to the target."""
        caller = self._see(context)
        wanted = FindNode.from_map(request)
        if wanted.target == caller and self._on_returning is not None:
            self._on_returning(caller)
        radius = -1 if wanted.radius is None else int.from_bytes(wanted.radius, "big")
        return FindNodeAnswer(self._near(wanted.target, caller, radius)).to_map()

    def find_value(self, request: Mapping[str, Any], context: CallContext) -> dict[str, Any]:
        """What we hold under the key, as much as fits, in an order that the searcher's nonce decides; and contacts near
        it, but beside a value that is its own proof, with which the search is over. Tombstones come last and are not
        counted: they correct what other storers say.
        """
        caller = self._see(context)
        wanted = FindValue.from_map(request)
        held = self._store.get(wanted.key, self._host.runtime.now())
        # A digest and not a shuffle: nobody but the searcher decides who comes first, and a simulation repeats.
        held.sort(key=lambda stored: hashlib.sha256(wanted.nonce + stored.owner).digest())
        live = [stored for stored in held if not stored.is_gone]
        tombstones = [stored for stored in held if stored.is_gone]
        is_final = any(stored.kind is RecordKind.IMMUTABLE for stored in held)
        return FindValueAnswer(
            records=self._as_many_as_fit([*live[: wanted.limit or None], *tombstones[:MAX_TOMBSTONES]]),
            count=len(live),
            depth=0,
            full=len(held) >= self._config.records.max_records_per_key,
            estimate=len(live),
            contacts=() if is_final else self._near(wanted.key, caller),
        ).to_map()

    def store(self, request: Mapping[str, Any], context: CallContext) -> dict[str, Any]:
        """Keep a record, or say in one word why not; and say which of those that are offered are missing here.

        Answers leave once the store has made safe what they say.
        """
        caller = self._see(context)
        wanted = Store.from_map(request)
        missing = self._missing(wanted.offers)
        if wanted.record is None:
            return StoreAnswer(False, None, None, (), missing).to_map()
        try:
            envelope, record = self.reader.decode(wanted.record, self._unix_ms())
            key = self._key_of(record, wanted.capability, wanted.depth)
        except RecordRefused as refused:
            return StoreAnswer(False, refused.reason, None, (), missing).to_map()
        refusal, newer = self._keep(key, envelope, record, context, wanted.expected_seq)
        self._store.flush()
        return StoreAnswer(refusal is None, refusal, newer, self._near(key, caller), missing).to_map()

    def exchange(self, request: Mapping[str, Any], context: CallContext) -> dict[str, Any]:
        """Some of our contacts at random."""
        caller = self._see(context)
        sample = self._table.sample(Exchange.from_map(request).count, self._host.runtime.rng)
        return ExchangeAnswer(tuple(contact for contact in sample if contact.id != caller)).to_map()

    def read(self, envelope: bytes) -> AgentRecord:
        """The agent's record in an envelope, checked in full. Raises RecordRefused."""
        record = self.reader.read(envelope, self._unix_ms())
        if not isinstance(record, AgentRecord):
            raise RecordRefused(Refusal.WRONG_KEY, "it is a value, and not an agent's record")
        return record

    def keep(self, key: Key, data: bytes, record: Record) -> tuple[Refusal | None, bytes | None]:
        """Store a record of our own, which belongs under `key`: the refusal if any, and the newer record held if that
        is why.
        """
        answer = self._keep(key, open_envelope(data), record, None, None)
        self._store.flush()
        return answer

    def keep_value(self, key: Key, data: bytes, expected_seq: int | None) -> tuple[Refusal | None, bytes | None]:
        """The same for a value of our own, in the place of the version that is expected."""
        envelope, record = self.reader.decode(data, self._unix_ms())
        answer = self._keep(key, envelope, record, None, expected_seq)
        self._store.flush()
        return answer

    def _key_of(self, record: Record, capability: str | None, depth: int) -> Key:
        """Under which key a record is to be kept. Raises RecordRefused. The caller's word is not taken for it."""
        if not isinstance(record, AgentRecord):
            return record.key
        if capability is None:
            raise RecordRefused(Refusal.NOT_LISTED, "an agent record is stored for a capability")
        key = capability_key(self._host.network_id, capability, record.owner, depth)
        check_belongs(record, capability, depth, key)
        return key

    def _keep(
        self, key: Key, envelope: Envelope, record: Record, caller: CallContext | None, expected_seq: int | None
    ) -> tuple[Refusal | None, bytes | None]:
        """The signature comes last: it costs a hundred times what all the rest does together."""
        if not self._is_close(key):
            return Refusal.NOT_CLOSE, None
        now = self._host.runtime.now()
        new = self._as_stored(envelope.data, record, caller, now)
        if new.kind is RecordKind.IMMUTABLE:
            expected_seq = None  # there are no versions of it
        refusal = self._store.refusal_of(key, new, now, expected_seq=expected_seq)
        if refusal in (Refusal.STALE, Refusal.SEQ_MISMATCH):
            held = self._store.find(key, new.slot)
            if new.kind is RecordKind.IMMUTABLE:
                return None, None  # the same value is held, for longer
            return refusal, held.record if held else None
        if refusal is not None:
            return refusal, None
        is_new = not self._store.holds(key, new)
        if not is_new:
            self._store.note_heard(key, new.slot, now)  # whoever brings it to us brings it to others too
        else:
            try:
                self.reader.verdicts.check(envelope, record.public_key)
            except RecordRefused:
                return Refusal.BAD_SIGNATURE, None
        refusal = self._store.put(key, new, now, expected_seq=expected_seq)
        if is_new and refusal is None:
            self._on_kept(key, new)
        return refusal, None

    def _as_stored(self, data: bytes, record: Record, caller: CallContext | None, now: float) -> StoredRecord:
        max_life_s = self._config.records.max_ttl_s  # of a final tombstone, which has no end of its own
        return StoredRecord(
            data,
            record.owner,
            record.seq,
            expires_at=now + min(max_life_s, (record.expires_ms - self._unix_ms()) / 1000),
            kind=record.kind,
            group=self._party_of(record, caller),
            is_gone=record.gone is not None,
        )

    def _party_of(self, record: Record, caller: CallContext | None) -> str | None:
        """Whose share of the store a record takes: the party of the address where its owner was seen, by its own call
        or by a dial of ours. None where it was not, or where its record says that it is somewhere else.
        """
        if record.owner == self._host.identity.node_id:
            return OWN_GROUP
        if caller is not None and caller.peer == record.owner:
            address = caller.address
        elif (contact := self._table.get(record.owner)) is not None and contact.addresses:
            address = contact.addresses[0]
        else:
            return None
        host = parse_address(address)[0]
        named = record.addresses if isinstance(record, AgentRecord) else ()
        if named and host not in [parse_address(address)[0] for address in named]:
            return None
        return record.owner.hex() if self._trust.is_exempt(host) else self._trust.group_of(host)

    def _missing(self, offers: tuple[Offer, ...]) -> tuple[int, ...]:
        """The places of the offers that we should have and have not. Others are known to be kept elsewhere now."""
        now = self._host.runtime.now()
        missing: list[int] = []
        for place, offer in enumerate(offers):
            held = self._store.find(offer.key, ANY_OWNER if offer.kind == RecordKind.IMMUTABLE else offer.owner)
            if held is not None and held.seq >= offer.seq:
                self._store.note_heard(offer.key, held.slot, now)
            elif offer.kind in _KINDS and self._is_close(offer.key):
                missing.append(place)
        return tuple(missing)

    def _as_many_as_fit(self, held: Iterable[StoredRecord]) -> tuple[bytes, ...]:
        """The records until one more would be too much; the first in any case."""
        records: list[bytes] = []
        left_bytes = self._config.records.max_answer_bytes
        for stored in held:
            left_bytes -= len(stored.record)
            if left_bytes < 0 and records:
                break
            records.append(stored.record)
        return tuple(records)

    def _see(self, context: CallContext, *, is_candidate: bool = True) -> bytes:
        """Who asks. Plain callers are anonymous and have no place in an overlay."""
        if context.peer is None:
            raise CallError("not_authenticated", "the overlay answers encrypted sessions alone")
        if self._on_heard is not None:
            self._on_heard()
        if is_candidate and context.listen_address is not None:
            self._on_candidate(shared_contact(context.peer, (context.listen_address,)))
        return context.peer

    def _near(self, target: Key, caller: bytes, radius: int | None = None) -> tuple[Contact, ...]:
        """Who is within a radius, ours by default, and k in any case."""
        lookup = self._config.lookup
        near = answer(
            lambda count: self._nearest_but(caller, target, count),
            target,
            self._estimate.region.radius if radius is None else radius,
            self._estimate.region,
            self._group_of if self._table.counts_places else every_one_alone,
            k=lookup.k,
            max_count=MAX_CONTACTS,
            max_per_group=lookup.max_per_group,
        )
        return tuple(near)

    def _nearest_but(self, caller: bytes, target: Key, count: int) -> list[Contact]:
        near = self._table.closest_unsuspected(target, count)
        if caller in [contact.id for contact in near]:
            # Asked for only now: one more than k is mostly in another k-bucket, all of which would be sorted for it.
            near = [contact for contact in self._table.closest_unsuspected(target, count + 1) if contact.id != caller]
        return near

    def _is_close(self, key: Key) -> bool:
        """Whether a record of this key would be found here: within twice our region, or among the nearest we know."""
        point = int.from_bytes(key, "big")
        own_distance = distance(self._host.identity.node_id, key)
        nearest = self._table.closest_unsuspected(key, REGION_FACTOR * self._config.lookup.k)
        nearer = [contact for contact in nearest if contact.point ^ point < own_distance]
        return self._estimate.accepts(key, nearer, self._group_of)

    def _unix_ms(self) -> int:
        return round(self._host.runtime.unix_now() * 1000)
