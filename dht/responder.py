"""Answers others: the `_dht.` endpoints. Each is a plain function that returns at once.

A request comes from an authenticated peer or is refused. Whoever asks and listens somewhere is a candidate for our
routing table; it enters once a dial of ours has proved the address.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dht.agents.index import capability_key, capability_root, check_belongs, shard_key
from dht.agents.query import Query
from dht.agents.record import AgentRecord
from dht.agents.renewal import read_renewal, with_renewal
from dht.agents.shards import RANK_BITS, Shard, ShardReport, rank_of, report_on, sampled
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
    Renew,
    RenewAnswer,
    Store,
    StoreAnswer,
)
from dht.quotas import OWN_GROUP
from dht.reading import Record, RecordReader
from dht.records import Envelope, RecordKind, Refusal, Verdicts, open_envelope
from dht.region import REGION_FACTOR, GroupOf, RegionEstimate, answer, every_one_alone
from dht.routing import RoutingTable
from dht.store import RecordStore
from dht.stored_record import ANY_OWNER, StoredRecord
from synapse_p2p.context import CallContext
from synapse_p2p.exceptions import CallError
from synapse_p2p.identity import NodeID
from synapse_p2p.peers import Host
from synapse_p2p.transport.base import parse_address
from synapse_p2p.trust import TrustConfig

MAX_TOMBSTONES = 100
"""In one answer: what was withdrawn within a lease is mostly less, and the room is for those who are there."""

MAX_EXAMINED = 250
"""Records that a query is held against in one request."""
MAX_DECODED = 2000
"""Records kept taken apart for queries: 4 MiB, and those of two crowded capabilities."""

_KINDS = frozenset(RecordKind)


@dataclass(frozen=True, slots=True)
class Kept:
    """Whether a record is held now, or why not; the version held where that is why, and what its shard holds."""

    refusal: Refusal | None = None
    newer: bytes | None = None
    report: ShardReport | None = None


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a record is kept; of an agent's also its shard, and its rank in it."""

    key: Key
    shard: Shard | None = None
    rank: int = 0


def _dial_nobody(_contact: Contact) -> bool:
    return False


def _tell_nobody(_key: Key, _record: StoredRecord, _bringer: NodeID | None) -> None:
    """Nobody wants to know."""


class Responder:
    """What one node answers. `on_candidate` is told of callers that say they listen and are not known at that
    address, `on_prove` of those who ask to be dialed there, and says whether they are; `on_heard` of every call,
    `on_leaving` of callers that go, `on_returning` of callers that look for themselves, `on_kept` of every record that
    is new here, and who brought it. `reader` is what it reads records with.
    """

    def __init__(
        self,
        host: Host,
        table: RoutingTable,
        store: RecordStore,
        config: DHTConfig,
        *,
        on_candidate: Callable[[Contact], None],
        on_prove: Callable[[Contact], bool] = _dial_nobody,
        on_heard: Callable[[], None] | None = None,
        on_leaving: Callable[[NodeID], None] | None = None,
        on_returning: Callable[[NodeID], None] | None = None,
        on_kept: Callable[[Key, StoredRecord, NodeID | None], None] = _tell_nobody,
        trust: TrustConfig | None = None,
        estimate: RegionEstimate | None = None,
        group_of: GroupOf = every_one_alone,
    ) -> None:
        self._host = host
        self._table = table
        self._store = store
        self._config = config
        self._on_candidate = on_candidate
        self._on_prove = on_prove
        self._on_heard = on_heard
        self._on_leaving = on_leaving
        self._on_returning = on_returning
        self._trust = trust or TrustConfig()
        self._on_kept = on_kept
        self.reader = RecordReader(host.network_id, config.records, Verdicts())
        self._decoded: dict[bytes, Record] = {}
        self._estimate = estimate or RegionEstimate(host.identity.node_id, config.lookup)
        self._group_of = group_of

    def endpoints(self) -> dict[str, Callable[[Mapping[str, Any], CallContext], Any]]:
        """The endpoints by name."""
        return {
            "_dht.ping": self.ping,
            "_dht.find_node": self.find_node,
            "_dht.find_value": self.find_value,
            "_dht.store": self.store,
            "_dht.renew": self.renew,
            "_dht.exchange": self.exchange,
        }

    def ping(self, request: Mapping[str, Any], context: CallContext) -> dict[str, Any]:
        """Alive, and what our clock says. A caller that goes is told to whoever keeps contacts."""
        asked = Ping.from_map(request)
        caller = self._see(context, is_candidate=not asked.leaving and not asked.prove)
        if asked.leaving and self._on_leaving is not None:
            self._on_leaving(caller)
        address = context.listen_address
        dials = asked.prove and address is not None and self._on_prove(shared_contact(caller, (address,)))
        return PingAnswer(self._unix_ms(), dials).to_map()

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
        is_final = any(stored.kind is RecordKind.IMMUTABLE for stored in held)
        return self._answer(wanted, held, () if is_final else self._near(wanted.key, caller)).to_map()

    def held(self, wanted: FindValue) -> FindValueAnswer:
        """The same without contacts, for a search of our own."""
        return self._answer(wanted, self._store.get(wanted.key, self._host.runtime.now()), ())

    def _answer(
        self, wanted: FindValue, held: Sequence[StoredRecord], contacts: tuple[Contact, ...]
    ) -> FindValueAnswer:
        report = self._report_on_asked(wanted, held)
        if report is not None and wanted.shard is not None:
            held = [stored for stored in held if wanted.shard.holds(stored.rank)]
        live = sampled([stored for stored in held if not stored.is_gone], wanted.nonce)
        tombstones = sampled([stored for stored in held if stored.is_gone], wanted.nonce)
        if report is None:
            is_full = self._store.is_full(wanted.key, self._host.runtime.now())
            report = ShardReport(len(live), 0, is_full, len(live))
        fitting, next_place = self._fitting(live, wanted)
        # One that does not match proves that we keep the shard: else a search would ask on until somebody matches.
        proof = live[:1] if wanted.query is not None and not wanted.skip and not fitting else []
        records = self._as_many_as_fit([*fitting, *proof, *tombstones[:MAX_TOMBSTONES]])
        if len(records) < len(fitting):  # the last that is sent was in this place
            next_place = live.index(fitting[len(records)])
        return FindValueAnswer(
            records=records,
            count=report.count,
            depth=report.depth,
            full=report.is_full,
            estimate=report.estimate,
            contacts=contacts,
            next=next_place,
        )

    def _fitting(self, live: Sequence[StoredRecord], wanted: FindValue) -> tuple[list[StoredRecord], int]:
        """Those of these that the query matches, after those to skip; and the place of the first not looked at, or 0.

        A query costs up to 0.2 ms a record, where it is made to be slow, so few are looked at in one request.
        """
        query = wanted.query
        end = wanted.skip + (MAX_EXAMINED if query is not None else len(live))
        fitting: list[StoredRecord] = []
        for place, stored in enumerate(live[wanted.skip : end], wanted.skip):
            if query is None or self._matches(query, stored):
                if wanted.limit and len(fitting) == wanted.limit:
                    return fitting, place
                fitting.append(stored)
        return fitting, end if end < len(live) else 0

    def _matches(self, query: Query, stored: StoredRecord) -> bool:
        record = self._decoded.get(stored.record)
        if record is None:
            try:
                _, record = self.reader.decode(stored.record, self._unix_ms())
            except RecordRefused:
                return False  # it has expired by its owner's clock
            self._decoded[stored.record] = record
            if len(self._decoded) > MAX_DECODED:
                del self._decoded[next(iter(self._decoded))]
        return isinstance(record, AgentRecord) and query.matches(record)

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
            place = self._place_of(record, wanted.capability, wanted.depth)
        except RecordRefused as refused:
            return StoreAnswer(False, refused.reason, None, (), missing).to_map()
        kept = self._keep(place, envelope, record, context, wanted.expected_seq)
        self._store.flush()
        near = self._near(place.key, caller)
        return StoreAnswer(kept.refusal is None, kept.refusal, kept.newer, near, missing, kept.report).to_map()

    def renew(self, request: Mapping[str, Any], context: CallContext) -> dict[str, Any]:
        """Let an agent's record live on in the places where it is held, whoever brings the owner's word for it; of each
        place what became of it, and contacts near those that the caller watches.

        Cost: as a store, and a part of that for each further place: a record is taken apart and proved once.
        """
        caller = self._see(context)
        wanted = Renew.from_map(request)
        try:
            owner = read_renewal(wanted.renewal).owner
        except RecordRefused as refused:
            return RenewAnswer((StoreAnswer(False, refused.reason, None, ()),) * len(wanted.places)).to_map()
        decoded: dict[bytes, tuple[Envelope, Record]] = {}
        max_contacts = MAX_CONTACTS // max(1, wanted.watched)
        answers: list[StoreAnswer] = []
        for number, place in enumerate(wanted.places):
            key = capability_key(self._host.network_id, place.capability, owner, place.depth)
            near = self._near(key, caller)[:max_contacts] if number < wanted.watched else ()
            try:
                envelope, record = self._renewed(key, owner, wanted.renewal, decoded)
                kept = self._keep(
                    self._place_of(record, place.capability, place.depth), envelope, record, context, None
                )
            except RecordRefused as refused:
                answers.append(StoreAnswer(False, refused.reason, None, near))
            else:
                answers.append(StoreAnswer(kept.refusal is None, kept.refusal, None, near, report=kept.report))
        self._store.flush()
        return RenewAnswer(tuple(answers)).to_map()

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

    def keep_agent(self, data: bytes, record: AgentRecord, capability: str, depth: int) -> Kept:
        """Store the record of our own agent for a capability that it lists, at a depth."""
        kept = self._keep(self._place_of(record, capability, depth), open_envelope(data), record, None, None)
        self._store.flush()
        return kept

    def keep_value(self, data: bytes, expected_seq: int | None = None) -> Kept:
        """Store a value of our own, in the place of the version that is expected."""
        envelope, record = self.reader.decode(data, self._unix_ms())
        kept = self._keep(self._place_of(record, None, 0), envelope, record, None, expected_seq)
        self._store.flush()
        return kept

    def _renewed(
        self, key: Key, owner: NodeID, renewal: bytes, decoded: dict[bytes, tuple[Envelope, Record]]
    ) -> tuple[Envelope, Record]:
        """The next version of what is held under a key, checked but for its signatures. Raises RecordRefused.

        `decoded` are those of this request: mostly it is one record under all keys.
        """
        held = self._store.find(key, owner)
        if held is None:
            raise RecordRefused(Refusal.NOT_HELD)
        data = with_renewal(held.record, renewal)
        if data not in decoded:
            decoded[data] = self.reader.decode(data, self._unix_ms())
        return decoded[data]

    def _place_of(self, record: Record, capability: str | None, depth: int) -> _Place:
        """Where a record is to be kept. Raises RecordRefused. The caller's word is not taken for it."""
        if not isinstance(record, AgentRecord):
            return _Place(record.key)
        if capability is None:
            raise RecordRefused(Refusal.NOT_LISTED, "an agent record is stored for a capability")
        key = capability_key(self._host.network_id, capability, record.owner, depth)
        check_belongs(record, capability, depth, key)
        rank = rank_of(capability_root(self._host.network_id, capability), record.owner)
        return _Place(key, Shard(depth, rank >> (RANK_BITS - depth)), rank)

    def _keep(
        self, place: _Place, envelope: Envelope, record: Record, caller: CallContext | None, expected_seq: int | None
    ) -> Kept:
        """The signature comes last: it costs a hundred times what all the rest does together."""
        key = place.key
        if not self._is_close(key):
            return Kept(Refusal.NOT_CLOSE)
        now = self._host.runtime.now()
        new = self._as_stored(envelope.data, record, caller, now, place)
        if new.kind is RecordKind.IMMUTABLE:
            expected_seq = None  # there are no versions of it
        refusal = self._store.refusal_of(key, new, now, expected_seq=expected_seq)
        if refusal in (Refusal.STALE, Refusal.SEQ_MISMATCH):
            held = self._store.find(key, new.slot)
            if new.kind is RecordKind.IMMUTABLE:
                return Kept()  # the same value is held, for longer
            return Kept(refusal, held.record if held else None)
        if refusal is not None:
            return Kept(refusal, report=self._report_on(place) if refusal is Refusal.FULL else None)
        is_new = not self._store.holds(key, new)
        if not is_new:
            self._store.note_heard(key, new.slot, now)  # whoever brings it to us brings it to others too
        else:
            try:
                self.reader.verdicts.check(envelope, record.public_key)
            except RecordRefused:
                return Kept(Refusal.BAD_SIGNATURE)
        refusal = self._store.put(key, new, now, expected_seq=expected_seq)
        if is_new and refusal is None:
            self._on_kept(key, new, None if caller is None else caller.peer)
        return Kept(refusal, report=self._report_on(place))

    def _report_on(self, place: _Place, held: Sequence[StoredRecord] | None = None) -> ShardReport | None:
        """What we say of an agent's shard; None of a value, which is in none."""
        if place.shard is None:
            return None
        now, records = self._host.runtime.now(), self._config.records
        if held is None:
            held = self._store.get(place.key, now)
        return report_on(
            [stored for stored in held if not stored.is_gone],
            place.shard,
            is_full=self._store.is_full(place.key, now),
            cap=records.max_records_per_key,
            max_per_party=max(1, int(records.max_records_per_key * records.party_share)),
        )

    def _report_on_asked(self, wanted: FindValue, held: Sequence[StoredRecord]) -> ShardReport | None:
        """The same of the shard that a searcher asks for; None where it is not kept under the key that it names."""
        if wanted.capability is None or wanted.shard is None:
            return None
        root = capability_root(self._host.network_id, wanted.capability)
        if shard_key(root, wanted.shard.prefix, wanted.shard.depth) != wanted.key:
            return None
        return self._report_on(_Place(wanted.key, wanted.shard), held)

    def _as_stored(
        self, data: bytes, record: Record, caller: CallContext | None, now: float, place: _Place
    ) -> StoredRecord:
        max_life_s = self._config.records.max_ttl_s  # of a final tombstone, which has no end of its own
        return StoredRecord(
            data,
            record.owner,
            record.seq,
            expires_at=now + min(max_life_s, (record.expires_ms - self._unix_ms()) / 1000),
            kind=record.kind,
            group=self._party_of(record, caller),
            is_gone=record.gone is not None,
            rank=place.rank,
            depth=0 if place.shard is None else place.shard.depth,
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
            lambda count: self._table.closest_unsuspected(target, count, but=caller),
            target,
            self._estimate.region.radius if radius is None else radius,
            self._estimate.region,
            self._group_of if self._table.counts_places else every_one_alone,
            k=lookup.k,
            max_count=MAX_CONTACTS,
            max_per_group=lookup.max_per_group,
        )
        return tuple(near)

    def _is_close(self, key: Key) -> bool:
        """Whether a record of this key would be found here: within twice our region, or among the nearest we know."""
        point = int.from_bytes(key, "big")
        own_distance = distance(self._host.identity.node_id, key)
        nearest = self._table.closest_unsuspected(key, REGION_FACTOR * self._config.lookup.k)
        nearer = [contact for contact in nearest if contact.point ^ point < own_distance]
        return self._estimate.accepts(key, nearer, self._group_of)

    def _unix_ms(self) -> int:
        return round(self._host.runtime.unix_now() * 1000)
