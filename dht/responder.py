"""Answers others: the `_dht.` endpoints. Each is a plain function that returns at once.

A request comes from an authenticated peer or is refused. Whoever asks and listens somewhere is a candidate for our
routing table; it enters once a dial of ours has proved the address.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from dht.agents.index import capability_key, check_belongs
from dht.agents.record import AgentRecord, read_agent_record
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
    PingAnswer,
    Store,
    StoreAnswer,
)
from dht.records import Refusal
from dht.region import REGION_FACTOR, GroupOf, RegionEstimate, answer, every_one_alone
from dht.routing import RoutingTable
from dht.store import MemoryRecordStore
from synapse_p2p.context import CallContext
from synapse_p2p.exceptions import CallError
from synapse_p2p.peers import Host


class Responder:
    """What one node answers. `on_candidate` is told of callers that say they listen and are not known at that
    address.
    """

    def __init__(
        self,
        host: Host,
        table: RoutingTable,
        store: MemoryRecordStore,
        config: DHTConfig,
        *,
        on_candidate: Callable[[Contact], None],
        estimate: RegionEstimate | None = None,
        group_of: GroupOf = every_one_alone,
    ) -> None:
        self._host = host
        self._table = table
        self._store = store
        self._config = config
        self._on_candidate = on_candidate
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
        """Alive, and what our clock says."""
        self._see(context)
        return PingAnswer(self._unix_ms()).to_map()

    def find_node(self, request: Mapping[str, Any], context: CallContext) -> dict[str, Any]:
        """The contacts we know nearest to the target."""
        caller = self._see(context)
        wanted = FindNode.from_map(request)
        radius = -1 if wanted.radius is None else int.from_bytes(wanted.radius, "big")
        return FindNodeAnswer(self._near(wanted.target, caller, radius)).to_map()

    def find_value(self, request: Mapping[str, Any], context: CallContext) -> dict[str, Any]:
        """What we hold under the key, as much as fits, in an order that the searcher's nonce decides; and contacts near
        it.
        """
        caller = self._see(context)
        wanted = FindValue.from_map(request)
        held = self._store.get(wanted.key, self._host.runtime.now())
        # A digest and not a shuffle: nobody but the searcher decides who comes first, and a simulation repeats.
        held.sort(key=lambda record: hashlib.sha256(wanted.nonce + record.owner).digest())
        records: list[bytes] = []
        left_bytes = self._config.records.max_answer_bytes
        for stored in held[: wanted.limit or None]:
            left_bytes -= len(stored.record)
            if left_bytes < 0:
                break
            records.append(stored.record)
        return FindValueAnswer(
            records=tuple(records),
            count=len(held),
            depth=0,
            full=len(held) >= self._config.records.max_records_per_key,
            estimate=len(held),
            contacts=self._near(wanted.key, caller),
        ).to_map()

    def store(self, request: Mapping[str, Any], context: CallContext) -> dict[str, Any]:
        """Keep a record, or say in one word why not."""
        caller = self._see(context)
        wanted = Store.from_map(request)
        try:
            record = self.read(wanted.record)
            if wanted.capability is None:
                raise RecordRefused(Refusal.NOT_LISTED, "an agent record is stored for a capability")
            key = capability_key(self._host.network_id, wanted.capability, record.owner, wanted.depth)
            check_belongs(record, wanted.capability, wanted.depth, key)
        except RecordRefused as refused:
            return StoreAnswer(False, refused.reason, None, ()).to_map()
        refusal, newer = self.keep(key, wanted.record, record)
        return StoreAnswer(refusal is None, refusal, newer, self._near(key, caller)).to_map()

    def exchange(self, request: Mapping[str, Any], context: CallContext) -> dict[str, Any]:
        """Some of our contacts at random."""
        caller = self._see(context)
        sample = self._table.sample(Exchange.from_map(request).count, self._host.runtime.rng)
        return ExchangeAnswer(tuple(contact for contact in sample if contact.id != caller)).to_map()

    def read(self, envelope: bytes) -> AgentRecord:
        """The record in an envelope. Raises RecordRefused."""
        return read_agent_record(
            envelope, network_id=self._host.network_id, unix_ms=self._unix_ms(), config=self._config.records
        )

    def keep(self, key: Key, envelope: bytes, record: AgentRecord) -> tuple[Refusal | None, bytes | None]:
        """Store a record that was read and belongs under `key`: the refusal if any, and the newer record held if that
        is why.
        """
        if not self._is_close(key):
            return Refusal.NOT_CLOSE, None
        now = self._host.runtime.now()
        refusal = self._store.put(
            key,
            envelope,
            owner=record.owner,
            seq=record.seq,
            expires_at=now + (record.expires_ms - self._unix_ms()) / 1000,
            now=now,
        )
        held = self._store.find(key, record.owner) if refusal is Refusal.STALE else None
        return refusal, held.record if held else None

    def _see(self, context: CallContext) -> bytes:
        """Who asks. Plain callers are anonymous and have no place in an overlay."""
        if context.peer is None:
            raise CallError("not_authenticated", "the overlay answers encrypted sessions alone")
        if context.listen_address is not None:
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
            self._group_of,
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
