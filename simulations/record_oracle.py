"""Agents' records from global knowledge: a capability that stands at once, as if its providers had long been there.

Every provider's `Placement` decides as it always does; what storers would answer is read off their stores, and what
they would be sent is put there, so that ten thousand registrations take a minute and not an hour. What providers' nodes
remember of their storers is what they would have heard, and the next renewal is theirs.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from dht.agents.index import capability_key, capability_root
from dht.agents.placement import Placed, Placement, ReadRoot, Write
from dht.agents.record import AgentRecord
from dht.agents.shards import RANK_BITS, ROOT_SHARD, Shard, ShardReport, rank_of, report_on
from dht.announcing import ROOT_READERS, _Announced
from dht.config import DHTConfig
from dht.keyspace import Key
from dht.node import DHTNode
from dht.quotas import OWN_GROUP
from dht.stored_record import StoredRecord
from simulations.network import EPOCH_S
from simulations.oracle import nearest_points
from simulations.population import Population, Resident
from synapse_p2p.transport.base import parse_address

MAX_DEPTH = 16
"""Real depths stay below 11 with a million providers."""
HEARD_REPORTS = 3
"""Storers whose word stands for that of all: with nothing lost they hold the same."""


Sealed: TypeAlias = Callable[[], tuple[bytes, AgentRecord]]
"""Gives the next version of a provider's record, signed."""


@dataclass(slots=True)
class _Entry:
    """One provider's record in the stores."""

    resident: Resident
    sealed: Sealed
    rank: int
    placement: Placement
    at: dict[int, Key] = field(default_factory=dict)  # by depth, where it is
    keys: frozenset[Key] = frozenset()  # of all depths, once they are asked for


class RecordOracle:
    """Puts records of one capability where their providers' rules have them put."""

    def __init__(self, population: Population, capability: str, config: DHTConfig, rng: random.Random) -> None:
        self._capability = capability
        self._config = config
        self._rng = rng
        self._trust = population.world.network.config.pool.trust
        self._now = population.world.network.loop.time
        self._by_point = {resident.contact.point: resident for resident in population.residents}
        self._points = sorted(self._by_point)
        self._network_id = population.residents[0].host.network_id
        self._root = capability_root(self._network_id, capability)
        self._entries: list[_Entry] = []
        self._storers_of: dict[Key, list[Resident]] = {}

    def add(self, resident: Resident, sealed: Sealed) -> None:
        """One more provider registers."""
        rank = rank_of(self._root, resident.host.id)
        entry = _Entry(resident, sealed, rank, Placement(self._config.records.max_records_per_key))
        self._entries.append(entry)
        self._place(entry)

    def renew_all(self) -> None:
        """Every provider renews in turn; after that all that was left where it is not any more has lapsed."""
        for entry in self._entries:
            entry.placement.renew()
            self._place(entry)
            entry.at = {depth: key for depth, key in entry.at.items() if depth in entry.placement.depths}
        self._let_lapse()

    def tell_nodes(self) -> None:
        """Let every provider's node remember where its record is, and who keeps it there."""
        for entry in self._entries:
            storers = {
                depth: [each.contact for each in self._storers(key) if each is not entry.resident]
                for depth, key in entry.at.items()
            }
            asked = {depth: frozenset(contact.id for contact in contacts) for depth, contacts in storers.items()}
            announcing = _node(entry.resident)._announcing  # as an onlooker who was there at its publications
            announced = _Announced(entry.placement, storers, asked)
            announcing._announced[entry.resident.host.id, self._capability] = announced

    def _let_lapse(self) -> None:
        now = self._now()
        by_owner = {entry.resident.host.id: entry for entry in self._entries}
        for resident in self._by_point.values():
            store = _node(resident).store
            for key, stored in list(store.items(now)):
                entry = by_owner.get(stored.owner)
                if entry is None or key not in self._keys_of(entry):
                    continue  # of another capability
                if key not in entry.at.values() or resident not in self._storers(key):
                    store.remove(key, stored.owner)

    def _keys_of(self, entry: _Entry) -> frozenset[Key]:
        """All keys under which this provider may ever have been."""
        if not entry.keys:
            owner = entry.resident.host.id
            entry.keys = frozenset(
                capability_key(self._network_id, self._capability, owner, depth) for depth in range(MAX_DEPTH + 1)
            )
        return entry.keys

    def _place(self, entry: _Entry) -> None:
        placement = entry.placement
        envelope, record = entry.sealed()
        while not isinstance(step := placement.poll(), Placed):
            match step:
                case ReadRoot(all_storers):
                    storers = self._storers(self._root)
                    count = HEARD_REPORTS if all_storers else ROOT_READERS
                    said = self._rng.sample(storers, min(count, len(storers)))
                    placement.on_root([self._report(storer, self._root, ROOT_SHARD) for storer in said])
                case Write(depth):
                    placement.on_written(depth, self._write(entry, envelope, record, depth))

    def _write(self, entry: _Entry, envelope: bytes, record: AgentRecord, depth: int) -> list[ShardReport]:
        owner, now = record.owner, self._now()
        key = capability_key(self._network_id, self._capability, owner, depth)
        entry.at[depth] = key
        host = parse_address(entry.resident.host.address)[0]
        group = owner.hex() if self._trust.is_exempt(host) else self._trust.group_of(host)
        storers = self._storers(key)
        for storer in storers:
            stored = StoredRecord(
                envelope,
                owner,
                record.seq,
                record.expires_ms / 1000 - EPOCH_S,
                group=OWN_GROUP if storer is entry.resident else group,
                rank=entry.rank,
                depth=depth,
            )
            _node(storer).store.put(key, stored, now)
        shard = Shard(depth, entry.rank >> (RANK_BITS - depth))
        return [self._report(storer, key, shard) for storer in storers[:HEARD_REPORTS]]

    def _report(self, storer: Resident, key: Key, shard: Shard) -> ShardReport:
        records, store, now = self._config.records, _node(storer).store, self._now()
        return report_on(
            store.get(key, now),
            shard,
            is_full=store.is_full(key, now),
            cap=records.max_records_per_key,
            max_per_party=max(1, int(records.max_records_per_key * records.party_share)),
        )

    def _storers(self, key: Key) -> list[Resident]:
        if key not in self._storers_of:
            near = nearest_points(self._points, int.from_bytes(key, "big"), self._config.lookup.k)
            self._storers_of[key] = [self._by_point[point] for point in near]
        return self._storers_of[key]


def _node(resident: Resident) -> DHTNode:
    assert resident.node is not None, "a resident of a swarm that stands has a node"
    return resident.node
