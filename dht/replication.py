"""Keeps as many copies of what is stored here as there should be, while storers come and go.

Every record is offered to the others of its region now and then, and soon where a quarter of them are gone; bodies go
only to who lacks them. Whoever heard another storer do it lets a period pass. A newcomer is offered what it should have
by the storers nearest to it, and so is a contact that looks for itself: those do who begin or were away, and who comes
back without what it kept is still in our table. Copies keep their owner's end: only the owner extends a life.

Source: Kademlia section 2.5, with digests in the place of whole values.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeAlias, cast

from dht.config import DHTConfig
from dht.contact import Contact
from dht.keyspace import ID_BITS, Key, distance
from dht.messages import MAX_OFFERS, Offer, Store
from dht.region import REGION_FACTOR, RegionEstimate
from dht.region_memory import RegionMemory
from dht.requester import UNREACHABLE, Requester
from dht.round_trips import Pauses
from dht.routing import RoutingTable
from dht.store import RecordStore
from dht.stored_record import Slot, StoredRecord
from synapse_p2p.exceptions import InvalidMessageError, RemoteError
from synapse_p2p.identity import NodeID
from synapse_p2p.peers import Host

RECORDS_PER_TURN = 100
"""Of a full store, looked at before others get their turn: each costs some microseconds."""
MAX_RETURNED = 1024
"""Contacts remembered that were offered records when they came back; tables hold some hundred."""
PASS_ON_AFTER_S = 1.0
"""What newcomers are offered comes in many requests; what is to be passed on of it is offered in one."""
LOST_PART = 0.25
"""Of a record's storers gone since its last copy, and it is copied now."""

Item: TypeAlias = tuple[Key, StoredRecord]


class Replication:
    """One node's share of the copies. `names_under` says for which capabilities an agent's record lies under a key, and
    None for a value.
    """

    def __init__(
        self,
        host: Host,
        config: DHTConfig,
        *,
        table: RoutingTable,
        estimate: RegionEstimate,
        store: RecordStore,
        requester: Requester,
        names_under: Callable[[Key, StoredRecord], list[str | None]],
    ) -> None:
        self._host = host
        self._config = config
        self._table = table
        self._estimate = estimate
        self._store = store
        self._requester = requester
        self._names_under = names_under
        self._returned: Pauses[NodeID] = Pauses(
            pause_s=config.offer_pause_s, max_pause_s=config.max_offer_pause_s, max_count=MAX_RETURNED
        )
        self._to_pass_on: dict[tuple[Key, Slot], None] = {}
        self._memory = RegionMemory(lost_part=LOST_PART, max_storers=REGION_FACTOR * config.lookup.k)

    def on_gone(self, contact: Contact) -> None:
        """A contact left the routing table."""
        self._memory.on_gone(contact.id)

    def on_kept(self, key: Key, stored: StoredRecord, bringer: NodeID | None) -> bool:
        """A record is new here. Mostly whoever brought it brought it to the others too. Whether to `pass_on` now.

        In a crowd of newcomers a storer offers to the first that are nearer than itself, and then leaves it to those to
        offer to the next. These have met the next before they had anything, so they make up for it.
        """
        held = (key, stored.slot)
        if not self._memory.knows(held):
            self._memory.remember(held, [contact.id for contact in self._region_of(key)])
        if bringer is None or bringer == stored.owner or not self._is_outrun(key, bringer):
            return False
        self._to_pass_on[held] = None
        return len(self._to_pass_on) == 1

    async def pass_on(self) -> None:
        """Offer what `on_kept` said, and what comes within a second of it: to all others, where we are among the
        nearest, and to the nearest, where we are not.
        """
        await asyncio.sleep(PASS_ON_AFTER_S)
        held, self._to_pass_on = self._to_pass_on, {}
        await self._offer_all(list(held), self._others_to_pass_on_to)

    def forget_expired(self) -> None:
        """Some records are not held any more. Cost: O(n)."""
        for held in self._memory.remembered():
            key, slot = cast("tuple[Key, Slot]", held)
            if self._store.find(key, slot) is None:
                self._memory.forget(held)

    async def copy_due(self) -> None:
        """Offer what is due to its regions: to each neighbour a request for up to 256 records, and what it lacks."""
        runtime = self._host.runtime
        now = runtime.now()
        # Storers of one record got it together, and would all copy it together: some are a little early.
        period_s = self._config.replicate_s * runtime.rng.uniform(0.8, 1.2)
        due = dict.fromkeys((key, stored.slot) for key, stored in self._store.not_copied_since(now - period_s, now))
        due |= dict.fromkeys(cast("list[tuple[Key, Slot]]", self._memory.urgent()))
        await self._offer_all(list(due), self._region_of)

    async def _offer_all(self, due: Sequence[tuple[Key, Slot]], others_of: Callable[[Key], list[Contact]]) -> None:
        now = self._host.runtime.now()
        neighbours: dict[NodeID, tuple[Contact, list[Item]]] = {}
        for count, (key, slot) in enumerate(due):
            if count % RECORDS_PER_TURN == RECORDS_PER_TURN - 1:
                await asyncio.sleep(0)
            stored = self._store.find(key, slot)
            if stored is None:
                continue
            for contact in others_of(key):
                neighbours.setdefault(contact.id, (contact, []))[1].append((key, stored))
            self._store.note_copy(key, slot, now)
            self._memory.remember((key, slot), [contact.id for contact in self._region_of(key)])
        for contact, items in neighbours.values():
            await self._offer(contact, items)

    async def offer_to(self, newcomer: Contact) -> None:
        """Offer a contact the records that belong to it, where we are among the nearest who hold them."""
        items: list[Item] = []
        neighbour_bits = self._neighbour_bits()
        for count, key in enumerate(self._store.held_keys()):
            if count % RECORDS_PER_TURN == RECORDS_PER_TURN - 1:
                await asyncio.sleep(0)
                neighbour_bits = self._neighbour_bits()
            if not self._is_remote(key, newcomer, neighbour_bits) and self._should_offer(key, newcomer):
                items += [(key, stored) for stored in self._store.get(key, self._host.runtime.now())]
        await self._offer(newcomer, items)

    def is_offered_again(self, contact: Contact) -> bool:
        """Whether a contact that may have lost what it kept is to be offered it now; it is counted as done then."""
        now = self._host.runtime.now()
        is_due = not self._returned.is_paused(contact.id, now)
        if is_due:
            self._returned.add(contact.id, now)
        return is_due

    async def _offer(self, contact: Contact, items: Sequence[Item]) -> None:
        """Bring the contact those of these records that it lacks."""
        for start in range(0, len(items), MAX_OFFERS):
            chunk = items[start : start + MAX_OFFERS]
            offers = tuple(Offer(int(stored.kind), key, stored.owner, stored.seq) for key, stored in chunk)
            try:
                answer = await self._requester.store(contact, Store(None, offers=offers))
                for place in answer.wanted:
                    if place < len(chunk):
                        await self._bring(contact, *chunk[place])
            except (*UNREACHABLE, RemoteError, InvalidMessageError):
                return

    async def _bring(self, contact: Contact, key: Key, stored: StoredRecord) -> None:
        for name in self._names_under(key, stored):
            await self._requester.store(contact, Store(stored.record, name, stored.depth))

    def _region_of(self, key: Key) -> list[Contact]:
        """The others who should have a record: all that we know within the radius, and the k nearest in any case."""
        k, radius = self._config.lookup.k, self._estimate.region.radius
        near = self._table.closest_unsuspected(key, REGION_FACTOR * k)
        point = int.from_bytes(key, "big")
        inside = sum(contact.point ^ point <= radius for contact in near)
        return near[: max(k, inside)]

    def _others_to_pass_on_to(self, key: Key) -> list[Contact]:
        nearest = self._table.closest(key, self._config.offering_storers)
        own_distance = distance(self._host.identity.node_id, key)
        is_one_of_them = any(own_distance < distance(each.id, key) for each in nearest)
        return self._region_of(key) if is_one_of_them else nearest

    def _is_outrun(self, key: Key, storer: NodeID) -> bool:
        """Whether there are as many nearer storers as it takes to leave offering to them."""
        own_distance = distance(storer, key)
        nearer = self._table.closest(key, self._config.offering_storers)
        return bool(nearer) and sum(distance(each.id, key) < own_distance for each in nearer) == len(nearer)

    def _neighbour_bits(self) -> int:
        """The bits of the distance to the k-th contact from us: all, where we know fewer."""
        k, own_id = self._config.lookup.k, self._host.identity.node_id
        neighbours = self._table.closest(own_id, k)
        return distance(neighbours[-1].id, own_id).bit_length() if len(neighbours) == k else ID_BITS

    def _is_remote(self, key: Key, newcomer: Contact, neighbour_bits: int) -> bool:
        """Whether the newcomer is certainly none of those who should have a record, for our own k neighbours are all
        nearer to it. That spares asking the routing table about most pairs of a record and a newcomer.
        """
        point = int.from_bytes(key, "big")
        to_newcomer = newcomer.point ^ point
        if to_newcomer <= self._estimate.region.radius:
            return False
        # The XOR of two distances has no more bits than the longer of them.
        to_us = int.from_bytes(self._host.identity.node_id, "big") ^ point
        return to_newcomer.bit_length() > max(neighbour_bits, to_us.bit_length())

    def _should_offer(self, key: Key, newcomer: Contact) -> bool:
        # The cheaper question first: most records are another's to offer.
        offering = self._config.offering_storers
        nearest = self._table.closest(key, offering + 1)
        others = [contact for contact in nearest if contact.id != newcomer.id]
        own_distance = distance(self._host.identity.node_id, key)
        if sum(distance(other.id, key) < own_distance for other in others) >= offering:
            return False
        if newcomer.point ^ int.from_bytes(key, "big") <= self._estimate.region.radius:
            return True
        return newcomer in self._table.closest(key, self._config.lookup.k)
