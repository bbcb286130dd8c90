"""Keeps an agent's record where searchers look for it: under each capability, at the depths that its crowd asks for.

It runs what `agents/placement.py` decides. A capability that is new to this node costs a look at its root, which is
part of the lookup that stores there where the root holds everybody. A renewal goes to the storers of before, to each
once for all that it keeps, and they are searched for only when they are not those any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dht.agents.index import capability_key, capability_root
from dht.agents.placement import Placed, Placement, ReadRoot, Write
from dht.agents.record import AgentRecord
from dht.agents.shards import ROOT_SHARD, ShardReport, median_report
from dht.config import DHTConfig
from dht.contact import Contact
from dht.exceptions import RecordRefused
from dht.keyspace import distance
from dht.lookup import LookupMode
from dht.messages import FindValue, RecordPlace, Store
from dht.putting import Parcel, Placing, Putting
from dht.records import Gone
from dht.renewing import WATCHERS, HeldPlace, renew
from dht.requester import Requester
from dht.responder import Responder
from synapse_p2p.background import TaskScope
from synapse_p2p.identity import NodeID

ROOT_READERS = 3
"""Storers of a root whose median is believed about a capability that we have no record of our own under."""
WATCHED_STORERS = 8
"""The nearest storers of a key: while they are the same, a renewal needs no lookup."""
LEAST_KEPT_PART = 1 / 2
"""Of the storers of before; where fewer keep a renewal, others are looked for."""


@dataclass(frozen=True, slots=True)
class PublishReport:
    """What became of one record under one capability: how many were asked, how many keep it, and why the others do not.

    `depths` are those of the shards where it is; `lookups` how many it took to get there. `kept_here` says that we are
    among the storers, `is_revoked` that one of them has proof that its owner has revoked its key.
    """

    capability: str
    asked: int
    stored: int
    refusals: tuple[str, ...]
    kept_here: bool = False
    depths: tuple[int, ...] = (0,)
    lookups: int = 1
    is_revoked: bool = False

    @property
    def is_kept(self) -> bool:
        """Whether others can find it. A copy of our own counts where there was nobody else to ask."""
        return self.stored > (1 if self.kept_here and self.asked > 1 else 0)


@dataclass(slots=True)
class _Announced:
    """One capability of ours: where its record is, and who keeps it there."""

    placement: Placement
    storers: dict[int, list[Contact]] = field(default_factory=dict)  # by depth, nearest to the key first
    asked: dict[int, frozenset[NodeID]] = field(default_factory=dict)  # those, and who would not keep it
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class Announcing:
    """One node's records of its agent. It remembers what it was asked to publish: an agent has few capabilities."""

    def __init__(self, config: DHTConfig, requester: Requester, putting: Putting, responder: Responder) -> None:
        self._cap = config.records.max_records_per_key
        self._k = config.lookup.k
        self._requester = requester
        self._putting = putting
        self._responder = responder
        self._announced: dict[tuple[NodeID, str], _Announced] = {}

    async def publish(
        self,
        envelope: bytes,
        record: AgentRecord,
        capability: str,
        *,
        renewed: Mapping[RecordPlace, Placing] | None = None,
    ) -> PublishReport:
        """Have a record kept under a capability that it lists, where it was before, or where it belongs by now.

        `renewed` has what its storers said to a renewal of it. Cost: a lookup for each depth where it is new; a request
        to each storer of before who has not renewed it.
        """
        announced = self._announced.setdefault((record.owner, capability), _Announced(Placement(self._cap)))
        async with announced.turn:
            announced.placement.renew()
            return await _Publication(self, announced, envelope, record, capability, renewed or {}).run()

    async def renew(self, renewal: bytes, envelope: bytes, record: AgentRecord) -> list[PublishReport]:
        """Have a record live on under all of its names by its renewal alone; `envelope` has both, for those who need
        all of it. Cost: a small request to each storer.
        """
        names = record.indexed_names()
        held = [
            HeldPlace(RecordPlace(name, depth), tuple(storers))
            for name in names
            if (announced := self._announced.get((record.owner, name))) is not None
            for depth in announced.placement.depths
            if (storers := announced.storers.get(depth))
        ]
        renewed = await renew(self._requester, renewal, held)
        async with TaskScope("renew") as scope:
            tasks = [scope.spawn_awaited(self.publish(envelope, record, name, renewed=renewed)) for name in names]
            return [await task for task in tasks]

    async def withdraw(self, envelope: bytes, record: AgentRecord, capability: str) -> None:
        """Have a tombstone take the place of a record under a capability, at the storers who have that.

        Cost: a request to each. What they do not hear lapses.
        """
        announced = self._announced.pop((record.owner, capability), None)
        if announced is not None:
            async with announced.turn:
                await _Publication(self, announced, envelope, record, capability, {}).replace()


class _Publication:
    """One action: until the record is where it has to be."""

    def __init__(
        self,
        announcing: Announcing,
        announced: _Announced,
        envelope: bytes,
        record: AgentRecord,
        capability: str,
        renewed: Mapping[RecordPlace, Placing],
    ) -> None:
        self._of = announcing
        self._announced = announced
        self._envelope = envelope
        self._record = record
        self._capability = capability
        self._renewed = renewed
        self._root = capability_root(record.network_id, capability)
        self._placings: dict[int, Placing] = {}
        self._lookups = 0

    async def run(self) -> PublishReport:
        placement = self._announced.placement
        while not isinstance(step := placement.poll(), Placed):
            match step:
                case ReadRoot(all_storers=False):
                    placement.on_root(await self._enter())
                case ReadRoot():
                    placement.on_root(await self._read_root())
                case Write(depth):
                    placing = self._placings.get(depth) or await self._write(depth)
                    self._placings[depth] = placing
                    placement.on_written(depth, placing.reports)
        return self._report(step.depths)

    async def replace(self) -> None:
        """Bring the record to those who keep the last version."""
        async with TaskScope("withdraw") as scope:
            for task in [
                scope.spawn_awaited(self._of._putting.bring_to(storers, self._parcel(depth)))
                for depth, storers in self._announced.storers.items()
            ]:
                await task

    async def _enter(self) -> Sequence[ShardReport]:
        """What a few storers of the root say. Where that is all there is, the others are asked to keep the record."""
        scout = _Scout(self._of._requester, self._question())
        placing = await self._of._putting.place(self._parcel(0), scout=scout)
        self._lookups += 1
        if scout.holds_all:
            self._note(0, placing)
            self._placings[0] = placing
        return scout.reports

    async def _read_root(self) -> Sequence[ShardReport]:
        """What all of its storers say."""
        reports: list[ShardReport] = []
        question = self._question()

        async def ask(contact: Contact) -> tuple[Sequence[Contact], bool]:
            answer = await self._of._requester.find_value(contact, question)
            if answer.count or answer.full:
                reports.append(answer.report)
            return answer.contacts, False

        await self._of._requester.lookup(self._root, LookupMode.STRICT, ask=ask)
        self._lookups += 1
        return reports

    async def _write(self, depth: int) -> Placing:
        parcel, storers = self._parcel(depth), self._announced.storers.get(depth)
        if storers:
            renewed = self._renewed.get(RecordPlace(self._capability, depth))
            placing = await self._of._putting.bring_to(storers, parcel, renewed)
            if not self._have_changed(depth, placing):
                return placing
        placing = await self._of._putting.place(parcel)
        self._lookups += 1
        self._note(depth, placing)
        return placing

    def _note(self, depth: int, placing: Placing) -> None:
        key = self._parcel(depth).key
        self._announced.asked[depth] = frozenset(placing.storers)
        self._announced.storers[depth] = sorted(placing.keepers(), key=lambda storer: distance(storer.id, key))

    def _have_changed(self, depth: int, placing: Placing) -> bool:
        """Whether a renewal went to storers who are not those any more who should have it.

        Others are told of where they are nearer than the last of those watched; where there were too few, anywhere.
        """
        storers, key = self._announced.storers[depth], self._parcel(depth).key
        if len(placing.keepers()) < LEAST_KEPT_PART * len(storers):
            return True
        if all(placing.answers[storer.id] is not None for storer in storers[:WATCHERS]):
            return True  # nobody who stands at the key says who else does
        unknown = [contact for contact in placing.named if contact.id not in self._announced.asked[depth]]
        if len(storers) + placing.kept_here < self._of._k:
            return bool(unknown)
        reach = distance(storers[:WATCHED_STORERS][-1].id, key)
        return any(distance(contact.id, key) < reach for contact in unknown)

    def _parcel(self, depth: int) -> Parcel:
        record, capability = self._record, self._capability
        return Parcel(
            capability_key(record.network_id, capability, record.owner, depth),
            Store(self._envelope, capability, depth),
            lambda: self._of._responder.keep_agent(self._envelope, record, capability, depth),
        )

    def _question(self) -> FindValue:
        return FindValue.of_shard(self._root, self._capability, ROOT_SHARD, b"", limit=1)

    def _report(self, depths: Sequence[int]) -> PublishReport:
        placings = [self._placings[depth] for depth in depths if depth in self._placings]
        return PublishReport(
            self._capability,
            asked=sum(placing.asked for placing in placings),
            stored=sum(placing.stored for placing in placings),
            refusals=tuple(refusal for placing in placings for refusal in placing.refusals),
            kept_here=any(placing.kept_here for placing in placings),
            depths=tuple(depths),
            lookups=self._lookups,
            is_revoked=any(self._is_revocation(newer) for placing in placings for newer in placing.newer),
        )

    def _is_revocation(self, newer: bytes) -> bool:
        """Whether what a storer holds instead is the final tombstone of this owner; its word alone proves nothing."""
        try:
            held = self._of._responder.read(newer)
        except RecordRefused:
            return False
        return held.gone is Gone.FINAL and held.owner == self._record.owner


class _Scout:
    """Asks the first storers of a root that a put comes to what they hold; then it is known whether to store there."""

    def __init__(self, requester: Requester, question: FindValue) -> None:
        self._requester = requester
        self._question = question
        self.reports: list[ShardReport] = []

    @property
    def is_open(self) -> bool | None:
        """Whether the root holds everybody; None while too few have said."""
        return None if len(self.reports) < ROOT_READERS else self.holds_all

    @property
    def holds_all(self) -> bool:
        """The same by those who have said so far."""
        root = median_report(self.reports) if self.reports else None
        return root is None or (root.depth == 0 and not root.is_full)

    async def ask(self, contact: Contact) -> Sequence[Contact]:
        """Have one storer say. Raises as every request."""
        answer = await self._requester.find_value(contact, self._question)
        self.reports.append(answer.report)
        return answer.contacts
