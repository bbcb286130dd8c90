"""Nodes that come and go in a world, each with an agent that publishes a record; noted in a History.

Owns their lives: join, leave, crash, restart, with the tasks of each. How their requests and stores are noted is in
`watched.py`. The world's own `grow` makes nodes that stay.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from typing import Any, TypeVar

from dht.agents.index import capability_key
from dht.agents.record import AgentRecord, CapabilityClaim, Reach
from dht.config import DHTConfig
from dht.contact import Contact
from dht.keyspace import Key
from dht.lookup import LookupMode
from dht.messages import Store
from dht.node import DHTNode
from dht.store import MemoryRecordStore
from simulations.bounds import Amount, counts_of, shares_of
from simulations.faults import MAX_SKEW_S
from simulations.history import Acknowledged, History, Read
from simulations.host_clock import HostClock
from simulations.network import EPOCH_S, VirtualHost
from simulations.oracle import introduce_everybody
from simulations.pool import VirtualPool
from simulations.watched import WatchedHost, WatchedStore
from simulations.world import SEEDS_PER_JOIN, World
from synapse_p2p.background import TaskScope
from synapse_p2p.exceptions import SynapseError
from synapse_p2p.identity import NodeID
from synapse_p2p.peers import Host
from synapse_p2p.server import Server
from synapse_p2p.transport.pool import SessionPool

T = TypeVar("T")

CAPABILITY_COUNT = 8
"""Member number n has capability `skill/(n mod 8)`: some agents for each, and some keys in all."""
FORGERY_TIMEOUT_S = 2.0


class Member:
    """One host and the node that lives there, if any. A new `life` begins whenever its process ends.

    Whatever the node does runs in the context of its host, so that a pause of the host holds it. `is_published` says
    that its latest record is kept by others.
    """

    def __init__(self, members: Members, number: int, host: VirtualHost) -> None:
        self.number = number
        self.host = host
        self.clock = HostClock(members.world.network.loop, host)
        self.store: MemoryRecordStore = members.new_store(host)
        self.capability = f"skill/{number % CAPABILITY_COUNT}"
        self.node: DHTNode | None = None
        self.is_published = False
        self._server: Server | None = None  # of this life; none in a plain world
        self._members = members
        self._context = host.network.pauses.context_of(host.id)
        self._scope = TaskScope(f"member {number}")
        self._seq = 0

    def __repr__(self) -> str:
        return f"Member({self.number}, {self.host!r})"

    @property
    def id(self) -> NodeID:
        return self.host.id

    @property
    def life(self) -> int:
        return self.host.incarnation

    @property
    def is_alive(self) -> bool:
        return self.node is not None

    @property
    def peers(self) -> VirtualPool | SessionPool:
        """Its way to others, with nobody looking on."""
        return self.host.peers if self._server is None else self._server.peers

    @property
    def key(self) -> Key:
        """Where its record is stored."""
        return capability_key(self.host.network_id, self.capability, self.id, 0)

    def begin(self, seeds: list[str]) -> None:
        """Start a node, which joins and publishes in its own time."""
        members, self._server = self._members, self._members.world.new_server(self.host)
        place: Host = self.host if self._server is None else self._server
        watched = WatchedHost(place, self.host.network.config, members.history)
        self.node = DHTNode(watched, config=members.config, store=self.store)
        self._scope = scope = TaskScope(f"member {self.number}")
        life = self._live(self.node, self._server, seeds)
        self._context.run(lambda: scope.spawn(life, name=f"life of member {self.number}"))

    def leave(self) -> None:
        """End in good order: everybody with a session is told."""
        if self._server is None:
            self.host.stop()
        self._end(is_in_order=True)

    def crash(self) -> None:
        """Die and tell nobody."""
        self.clock.wake()  # a process that comes up later does not begin asleep
        self.host.crash()
        self._end()

    def pause(self, duration_s: float) -> None:
        """Stand still; nothing happens to one that is down."""
        if self.is_alive:
            self.host.network.pause(self.host, duration_s)

    def sleep(self, duration_s: float) -> None:
        """The same, and the monotonic clock stands still too."""
        self.pause(duration_s)
        if self.is_alive:
            self.clock.sleep(duration_s)

    def restart(self, seeds: list[str], *, with_state: bool) -> None:
        """Come up again under the same key, with the records it stored for others or without."""
        if self.is_alive:
            self.crash()
        if not with_state:
            self.store = self._members.new_store(self.host)
        self.host.restart()
        self.begin(seeds)

    async def stop(self) -> None:
        """End all its tasks."""
        node, self.node = self.node, None
        if node is not None:
            await _end_tasks(self._scope, node, self._server)

    async def find(self, owner: Member) -> bool:
        """Whether a strict search for the owner's capability finds its record; what it finds is noted."""
        node = self.node
        return node is not None and await self._run(self._find(node, owner))

    async def _find(self, node: DHTNode, owner: Member) -> bool:
        life, history = self.life, self._members.history
        with history.request(self.id, f"find {owner.capability}", self._members.find_timeout_s):
            found = await node.find_providers(owner.capability, LookupMode.STRICT)
        history.reads += [Read((self.id, life), record.owner, record.seq) for record in found.records]
        for read in found.reads:
            if read.outcome is not None:
                self._members.world.note_trace(self.id, read.outcome, k=self._members.config.lookup.k)
        return any(record.owner == owner.id for record in found.records)

    async def do(self, action: Callable[[DHTNode], Coroutine[Any, Any, T]]) -> T | None:
        """What its node makes of this, in its own time; None where it is down."""
        node = self.node
        return None if node is None else await self._run(action(node))

    async def offer_forgery(self, victim: Member, owner: Member) -> None:
        """Ask the victim to store another's record with a bit of it turned; whether it does, the checkers see."""
        held = next((held for _, held in self.store.items(self.host.runtime.now()) if held.owner == owner.id), None)
        envelope = owner.sealed_record()[0] if held is None else held.record
        forged = bytearray(envelope)
        forged[self._members.world.rng.randrange(len(forged))] ^= 1
        await self.offer(victim, Store(bytes(forged), owner.capability))

    async def offer(self, victim: Member, record: Store) -> None:
        """Ask somebody to store this, whatever comes of it."""
        contact = Contact(victim.id, victim.host.advertised_addresses)
        with suppress(SynapseError):  # refused in whatever way
            await self._run(self.peers.call(contact, "_dht.store", record.to_map(), timeout_s=FORGERY_TIMEOUT_S))

    def sealed_record(self) -> tuple[bytes, AgentRecord]:
        """Its next version, signed."""
        config = self._members.config.records
        unix_ms = round(self.host.runtime.unix_now() * 1000)
        self._seq = max(self._seq + 1, unix_ms)
        record = AgentRecord(
            public_key=self.host.identity.public_key,
            seq=self._seq,
            issued_ms=unix_ms,
            expires_ms=unix_ms + round(config.lease_s * 1000),
            network_id=self.host.network_id,
            addresses=self.host.advertised_addresses,
            reach=Reach.DIRECT,
            name=f"agent {self.number}",
            role="member",
            description="",
            capabilities=(CapabilityClaim(self.capability),),
        )
        return record.seal(self.host.identity), record

    async def _live(self, node: DHTNode, server: Server | None, seeds: list[str]) -> None:
        config = self._members.config
        if server is not None:
            await server.start()
        await node.start()
        pause_s = config.join_retry_min_s
        while seeds and not (await node.join(seeds)).joined:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, config.join_retry_max_s)
        pause_s = config.join_retry_min_s
        while True:
            await self._publish(node)
            if self.is_published:
                pause_s = config.join_retry_min_s
                renew_s = config.records.lease_s * config.renew_fraction
                await asyncio.sleep(renew_s * self.host.runtime.rng.uniform(0.9, 1.1))
            else:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, config.join_retry_max_s)

    async def _publish(self, node: DHTNode) -> None:
        envelope, record = self.sealed_record()
        self.is_published = False
        report = await node.publish(envelope, record, self.capability)
        self.is_published = report.is_kept
        if report.is_kept:
            # By a storer's clock it may be over earlier, by as much as clocks are ever wrong.
            expires_at_s = record.expires_ms / 1000 - EPOCH_S - MAX_SKEW_S
            self._members.history.acknowledged.append(Acknowledged(self.key, self.id, record.seq, expires_at_s))

    async def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The result of something that the process does for an onlooker."""
        scope = self._members.scope
        return await self._context.run(lambda: scope.spawn_awaited(coroutine))

    def _end(self, *, is_in_order: bool = False) -> None:
        node, self.node = self.node, None
        self.is_published = False
        if node is not None:
            end = self._end_life(self._scope, node, self._server, is_in_order=is_in_order)
            self._members.scope.spawn(end, name=f"end of member {self.number}")

    async def _end_life(self, scope: TaskScope, node: DHTNode, server: Server | None, *, is_in_order: bool) -> None:
        life = self.life
        await _end_tasks(scope, node, server)
        if is_in_order and server is not None and self.life == life:
            self.host.stop()  # it has said goodbye by now


class Members:
    """All members of a world that come and go; number 0 is the first, and everybody can join through it."""

    def __init__(self, world: World, history: History, config: DHTConfig | None = None) -> None:
        self.world = world
        self.history = history
        self.config = config or DHTConfig()
        lookup = self.config.lookup
        self.find_timeout_s = lookup.max_timeout_s * lookup.max_requests / lookup.alpha  # if nobody ever answers
        self.scope = TaskScope("members")
        self.all: list[Member] = []
        self._count = 0  # of all there ever were
        self._turn = 0

    def alive(self) -> list[Member]:
        """Those whose process runs, by number."""
        return [member for member in self.all if member.is_alive]

    def add(self) -> Member:
        """A new member, which begins to join at once."""
        member = self._new_member()
        member.begin(self.seeds_for(member))
        return member

    def _new_member(self) -> Member:
        member = Member(self, self._count, self.world.network.host())
        self._count += 1
        self.all.append(member)
        return member

    def forget(self, member: Member) -> None:
        """Keep a member that is dead for good no longer: a long run has very many of them. Numbers stay."""
        self.all.remove(member)

    def add_at_once(self, count: int) -> None:
        """So many new members, which an oracle lets know all others."""
        for _ in range(count):
            self._new_member().begin([])
        introduce_everybody(
            [member.node for member in self.all if member.node is not None],
            [Contact(member.id, member.host.advertised_addresses) for member in self.all],
            k=self.config.routing.k,
            rng=self.world.rng,
            now=self.world.network.loop.time(),
        )
        for member in self.all:
            member.peers.dialed_at = self.world.network.loop.time()  # whoever is in tables was dialed

    def seeds_for(self, member: Member) -> list[str]:
        """The first member, and one other that is alive."""
        others = [other.host.address for other in self.alive() if other is not member]
        return list(dict.fromkeys([*others[:1], *self.world.rng.sample(others, min(SEEDS_PER_JOIN - 1, len(others)))]))

    def new_store(self, storer: VirtualHost) -> MemoryRecordStore:
        """An empty store, whose records are noted."""
        return WatchedStore(self.config.records, storer, self.history)

    def amounts(self) -> Iterator[Amount]:
        """What is bounded, of everybody alive; what takes long to add up, of the next in turn."""
        alive, pool = self.alive(), self.world.network.config.pool
        for member in alive:
            yield from counts_of(member.id, member.store, member.peers, self.config, pool)
        self._turn += 1
        for member in alive[self._turn % len(alive) :][:1] if alive else ():
            yield from self._shares_of(member)

    def all_amounts(self) -> Iterator[Amount]:
        """The same, of everybody all of it."""
        yield from self.amounts()
        for member in self.alive():
            yield from self._shares_of(member)

    def _shares_of(self, member: Member) -> list[Amount]:
        return shares_of(member.id, member.store, member.host.runtime.now(), self.config)

    async def stop(self) -> None:
        """End everybody's tasks."""
        for member in self.all:
            await member.stop()
        await self.scope.drain()
        await self.scope.close()


async def _end_tasks(scope: TaskScope, node: DHTNode, server: Server | None) -> None:
    await scope.close()
    await node.stop()
    if server is not None:
        await server.stop(grace=0)
