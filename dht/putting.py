"""Puts records where they belong: on all nodes of a key's region, and on k in any case.

Inside the region the request of the search is the store itself, and its answer names nearer nodes: about 26 requests a
record instead of 46. Many records at once are swept: their keys are taken in order, and one search serves all keys of
one part of the key space, whose nodes are the same. Sources: Kademlia section 2.5; for sweeps, Provide Sweep of IPFS.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Protocol

from dht.agents.shards import ShardReport
from dht.config import DHTConfig
from dht.contact import Contact
from dht.keyspace import ID_BITS, KEY_SIZE_BYTES, Key, distance
from dht.lookup import LookupMode, LookupOutcome
from dht.messages import Store, StoreAnswer
from dht.region import REGION_FACTOR, SPACE, Region, RegionEstimate
from dht.requester import UNREACHABLE, Requester
from dht.responder import Kept
from synapse_p2p.background import TaskScope
from synapse_p2p.exceptions import InvalidMessageError, RemoteError
from synapse_p2p.identity import NodeID
from synapse_p2p.peers import Host

MIN_SWEPT = 3
"""Records that lie together and are worth one search for all the nodes of their part of the key space."""
MAX_STORES_AT_ONCE = 32
"""Requests of a sweep in flight."""
UNREACHED = "unreachable"
"""Instead of an answer: nobody with that id was there."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """A record on its way: its key, the request that brings it, and how to keep it here if we are a storer of it."""

    key: Key
    request: Store
    keep_here: Callable[[], Kept]


class Scout(Protocol):
    """Asks the first storers that a put comes to something else, until it is known whether to store there at all."""

    @property
    def is_open(self) -> bool | None:
        """Whether to store; None while that is not known."""
        ...

    @property
    def holds_all(self) -> bool:
        """The same, where no more storers are there to ask."""
        ...

    async def ask(self, contact: Contact) -> Sequence[Contact]:
        """Ask one storer; whom it names."""
        ...


@dataclass(slots=True)
class Placing:
    """Where a record went. `answers` has of every storer asked the word of refusal, None where it is kept."""

    answers: dict[NodeID, str | None] = field(default_factory=dict)
    newer: dict[bytes, None] = field(default_factory=dict)  # versions that storers hold instead; unproved
    reports: list[ShardReport] = field(default_factory=list)  # what storers say of the shard of an agent's record
    storers: dict[NodeID, Contact] = field(default_factory=dict)  # those asked, without ourselves
    named: dict[Contact, None] = field(default_factory=dict)  # by storers, as near the key; unproved
    kept_here: bool = False
    region_size: int = 0

    @property
    def asked(self) -> int:
        """How many storers there were, ourselves included."""
        return len(self.answers)

    @property
    def refusals(self) -> tuple[str, ...]:
        """Of those who do not keep it."""
        return tuple(str(answer) for answer in self.answers.values() if answer is not None)

    @property
    def stored(self) -> int:
        """How many keep it."""
        return len(self.answers) - len(self.refusals)

    def keepers(self) -> list[Contact]:
        """The others who keep it."""
        return [storer for storer_id, storer in self.storers.items() if self.answers[storer_id] is None]

    def note(self, storer: Contact, answer: StoreAnswer | str) -> None:
        """What one storer said; a word, where it did not answer as it should."""
        self.storers[storer.id] = storer
        if isinstance(answer, str):
            self.answers[storer.id] = answer
            return
        self.answers[storer.id] = None if answer.stored else answer.refusal or "refused"
        self.named |= dict.fromkeys(answer.contacts)
        self._note_held(answer.newer, answer.report)

    def note_here(self, own_id: NodeID, kept: Kept) -> None:
        """What became of it at ourselves."""
        self.answers[own_id] = kept.refusal
        self.kept_here = kept.refusal is None
        self._note_held(kept.newer, kept.report)

    def _note_held(self, newer: bytes | None, report: ShardReport | None) -> None:
        if newer is not None:
            self.newer[newer] = None
        if report is not None:
            self.reports.append(report)


class Putting:
    """One node's way to have records kept."""

    def __init__(
        self,
        host: Host,
        config: DHTConfig,
        requester: Requester,
        estimate: RegionEstimate,
        *,
        is_node: Callable[[], bool],
    ) -> None:
        """`is_node` says whether others ask us for what we keep, as they ask no client."""
        self._host = host
        self._is_node = is_node
        self._k = config.lookup.k
        self._requester = requester
        self._estimate = estimate

    async def place(self, parcel: Parcel, *, scout: Scout | None = None) -> Placing:
        """Have one record kept; with a `scout` only if that finds it should be. Cost: about 26 requests."""
        key, region = parcel.key, self._estimate.region
        radius = min(region.radius, SPACE - 1).to_bytes(KEY_SIZE_BYTES, "big") if region.radius >= 0 else None
        placing = Placing()

        async def ask(contact: Contact) -> tuple[Sequence[Contact], bool]:
            if not region.is_inside(contact, key):
                return (await self._requester.find_node(contact, key, radius)).contacts, False
            if scout is not None and scout.is_open is None:
                return await scout.ask(contact), False
            if scout is not None and not scout.is_open:
                return (), False  # it is not to be stored here: let the search come to its end
            answer = await self._requester.store(contact, parcel.request)
            placing.note(contact, answer)
            return answer.contacts, False

        outcome = await self._requester.lookup(key, LookupMode.GUARDED, ask=ask)
        if scout is None or scout.holds_all:
            await self._complete(parcel, placing, region, _met(outcome), asyncio.Semaphore(MAX_STORES_AT_ONCE))
        return placing

    async def bring_to(self, storers: Sequence[Contact], parcel: Parcel, placing: Placing | None = None) -> Placing:
        """Have one record kept by these, and by ourselves if we keep the last version. Cost: a request to each.

        With a `placing`, which has what they said to a renewal, who keeps it or was not there is not asked again.
        """
        placing = placing or Placing()
        placing.region_size = len(storers)
        if self._is_node() and (kept := parcel.keep_here()).refusal is None:
            placing.note_here(self._host.identity.node_id, kept)
        missing = [storer for storer in storers if placing.answers.get(storer.id, "") not in (None, UNREACHED)]
        await self._bring_all(missing, parcel, placing, asyncio.Semaphore(MAX_STORES_AT_ONCE))
        return placing

    async def place_many(self, parcels: Iterable[Parcel]) -> dict[Key, Placing]:
        """Have many kept, by key. Cost: a search for each part of the key space that k to 2k nodes share, and a request
        for each storer of each record.

        A key that lies alone is searched for alone.
        """
        placings: dict[Key, Placing] = {}
        region = self._estimate.region
        bits = min(region.radius, SPACE - 1).bit_length() if region.radius >= 0 else 0
        in_order = sorted(parcels, key=lambda parcel: parcel.key)
        # A part is what agrees in the bits above those of a radius: whoever is within it of a key is in the key's part.
        # Where fewer than k are, the next nearest are in the part beside it, so two are searched together.
        for _, group in groupby(in_order, key=lambda parcel: int.from_bytes(parcel.key, "big") >> (bits + 1)):
            neighbours = list(group)
            if len(neighbours) < MIN_SWEPT or not bits:
                for parcel in neighbours:
                    placings[parcel.key] = await self.place(parcel)
            else:
                placings |= await self._sweep(neighbours, region, bits)
        return placings

    async def bring(self, storer: Contact, request: Store) -> StoreAnswer | str:
        """Ask one node to keep a record: its answer, or a word where there is none."""
        try:
            return await self._requester.store(storer, request)
        except UNREACHABLE:
            return UNREACHED
        except (RemoteError, InvalidMessageError):
            return "bad_answer"

    async def _sweep(self, parcels: Sequence[Parcel], region: Region, bits: int) -> dict[Key, Placing]:
        met: dict[NodeID, Contact] = {}
        point = int.from_bytes(parcels[0].key, "big")
        wide = replace(region, radius=(1 << bits) - 1) if bits < ID_BITS else region
        for target in (point, point ^ 1 << bits) if bits < ID_BITS else (point,):
            outcome = await self._requester.lookup(
                target.to_bytes(KEY_SIZE_BYTES, "big"), LookupMode.GUARDED, region=wide
            )
            met |= {contact.id: contact for contact in _met(outcome)}
        places = asyncio.Semaphore(MAX_STORES_AT_ONCE)
        placings = {parcel.key: Placing() for parcel in parcels}
        async with TaskScope("sweep") as scope:
            tasks = [
                scope.spawn_awaited(self._complete(parcel, placings[parcel.key], region, list(met.values()), places))
                for parcel in parcels
            ]
            for task in tasks:
                await task
        return placings

    async def _complete(
        self, parcel: Parcel, placing: Placing, region: Region, met: Sequence[Contact], places: asyncio.Semaphore
    ) -> None:
        """Ask those who should keep it and were not asked yet: all inside the region, k in any case, and ourselves."""
        key, own_id = parcel.key, self._host.identity.node_id
        in_order = sorted(met, key=lambda contact: distance(contact.id, key))
        inside = [contact for contact in in_order if region.is_inside(contact, key)][: REGION_FACTOR * self._k]
        storers = inside if len(inside) >= self._k else in_order[: self._k]
        placing.region_size = len(storers)
        own_distance = distance(own_id, key)
        is_storer = sum(distance(storer.id, key) < own_distance for storer in storers) < self._k
        if self._is_node() and (is_storer or own_distance <= region.radius):
            placing.note_here(own_id, parcel.keep_here())
            placing.region_size += 1
            if len(inside) < self._k:
                storers = storers[: self._k - 1]

        missing = [storer for storer in storers if storer.id not in placing.answers]
        await self._bring_all(missing, parcel, placing, places)

    async def _bring_all(
        self, storers: Sequence[Contact], parcel: Parcel, placing: Placing, places: asyncio.Semaphore
    ) -> None:
        async def ask(storer: Contact) -> None:
            async with places:
                placing.note(storer, await self.bring(storer, parcel.request))

        async with TaskScope("put") as scope:
            for task in [scope.spawn_awaited(ask(storer)) for storer in storers]:
                await task


def _met(outcome: LookupOutcome) -> list[Contact]:
    """Whom a search found alive near its target."""
    return list({contact.id: contact for contact in (*outcome.region, *outcome.closest)}.values())
