"""Nodes of a world that come and go, and hostile hosts among them, for scenarios that ask how the overlay stands it.

Owns who lives where and for how long. What they store is in `custody.py`. Unlike `members.py` it publishes nothing by
itself, so that a thousand nodes live for a day in minutes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence

from dht.config import DHTConfig
from dht.contact import Contact
from dht.node import DHTNode
from dht.store import RecordStore
from simulations.adversary import Conduct, settle
from simulations.bounds import Amount, counts_of, shares_of
from simulations.churn import SessionLength
from simulations.history import Acknowledged, History
from simulations.network import VirtualHost
from simulations.oracle import introduce_everybody, offer
from simulations.places import Places
from simulations.watched import WatchedHost, WatchedStore
from simulations.world import World
from synapse_p2p.background import TaskScope
from synapse_p2p.identity import Identity, NodeID
from synapse_p2p.peers import Host

SEEDS_PER_JOIN = 3
"""Through how many random members a newcomer joins: the first may have died a moment ago."""


class Resident:
    """An honest host and the node that lives there, if any. `has_joined` says that it can be asked to do something."""

    def __init__(self, population: Population, number: int, host: VirtualHost) -> None:
        self.number = number
        self.host = host
        self.node: DHTNode | None = None
        self.has_joined = False
        self.began_at = 0.0  # by the loop's clock
        self.joining: asyncio.Task[None] | None = None
        self._population = population
        self._scope = TaskScope(f"resident {number}")

    def __repr__(self) -> str:
        return f"Resident({self.number}, {self.host!r})"

    @property
    def contact(self) -> Contact:
        """Who and where."""
        return Contact(self.host.id, self.host.advertised_addresses)

    @property
    def history(self) -> History | None:
        """Where onlookers note what it does, if there are any."""
        return self._population.history

    @property
    def find_timeout_s(self) -> float:
        """When a search of its own is over, if nobody ever answers."""
        lookup = self._population.config.lookup
        return lookup.max_timeout_s * lookup.max_requests / lookup.alpha

    def note_acknowledged(self, record: Acknowledged) -> None:
        """It was told that a record of its own is kept. What hostile hosts alone took was never kept."""
        history = self.history
        if history is not None and (history.takers(record) or not self._population.hostile):
            history.acknowledged.append(record)

    # As a `simulations.checkers.Storer`

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
    def store(self) -> RecordStore:
        return _node(self).store

    def make_node(self, store: RecordStore | None = None) -> DHTNode:
        """A node with nothing in its table, and in its store what it is given; not started."""
        host: Host = self.host
        config, history = self._population.config, self._population.history
        if history is not None:
            host = WatchedHost(self.host, self.host.network.config, history)
            store = WatchedStore(config.records, self.host, history) if store is None else store
        self.node = DHTNode(host, config=config, store=store)
        self._scope = TaskScope(f"resident {self.number}")
        return self.node

    def begin(self, seeds: Sequence[str], *, store: RecordStore | None = None) -> None:
        """Make a node, which starts and joins in its own time."""
        self.began_at = self._population.world.network.loop.time()
        node = self.make_node(store)  # first: it comes with a scope of its own
        self.joining = self._scope.spawn_awaited(self._join(node, seeds), name=f"join of resident {self.number}")

    async def _join(self, node: DHTNode, seeds: Sequence[str]) -> None:
        config = self._population.config
        await node.start()
        pause_s = config.join_retry_min_s
        while not (await node.join(seeds)).joined:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, config.join_retry_max_s)
        self.has_joined = True
        self._population.on_joined(self)

    def die(self) -> None:
        """Crash and tell nobody."""
        self.host.crash()
        self._end()

    def leave(self) -> None:
        """Say goodbye to everybody with a session, and go."""
        self.host.stop()
        self._end()

    def _end(self) -> None:
        node, self.node, self.has_joined = self.node, None, False
        if node is not None:
            self._population.on_end(self, node)
            self._population.scope.spawn(_end_tasks(self._scope, node), name=f"end of resident {self.number}")

    async def stop(self) -> None:
        """End all its tasks."""
        if self.node is not None:
            await _end_tasks(self._scope, self.node)


class Population:
    """Everybody in a world. `residents` are honest, in order of arrival; `hostile` hosts never go.

    With a `history`, set before anybody comes, it is noted what residents ask and store.

    `on_joined` is told of every newcomer that is in, and `on_end` of every resident that ends, with its node, while its
    store can still be looked at.
    """

    def __init__(self, world: World, config: DHTConfig, *, places: Places | None = None) -> None:
        self.world = world
        self.config = config
        self.places = places or Places()
        self.residents: list[Resident] = []
        self.hostile: list[VirtualHost] = []
        self.history: History | None = None
        self.scope = TaskScope("population")
        self.on_joined: Callable[[Resident], None] = lambda resident: None
        self.on_end: Callable[[Resident, DHTNode], None] = lambda resident, node: None
        self._count = 0  # of all residents there ever were
        self._next_looked_at = 0

    # Who there is

    def living(self) -> list[Resident]:
        """Those whose node runs and has joined."""
        return [resident for resident in self.residents if resident.has_joined]

    def any_living(self) -> Resident:
        """One of those at random. Raises IndexError where there is none."""
        rng, residents = self.world.rng, self.residents
        for _ in range(8):  # nearly all have joined, nearly always
            resident = rng.choice(residents)
            if resident.has_joined:
                return resident
        return rng.choice(self.living())

    def seeds(self) -> list[str]:
        """Addresses of some members of this moment, to join through."""
        living = self.living()
        return [each.host.address for each in self.world.rng.sample(living, min(SEEDS_PER_JOIN, len(living)))]

    def contacts(self) -> list[Contact]:
        """Of all residents."""
        return [resident.contact for resident in self.residents]

    def storers(self) -> list[Resident]:
        """Those whose node runs, joined or not."""
        return [resident for resident in self.residents if resident.node is not None]

    def some_amounts(self, part: float) -> Iterator[Amount]:
        """What is bounded, of this part of the residents, which is another part each time."""
        for _ in range(max(1, round(part * len(self.residents)))):
            self._next_looked_at = (self._next_looked_at + 1) % len(self.residents)
            yield from self._amounts_of(self.residents[self._next_looked_at])

    def amounts(self) -> Iterator[Amount]:
        """The same of all."""
        for resident in self.residents:
            yield from self._amounts_of(resident)

    def _amounts_of(self, resident: Resident) -> Iterator[Amount]:
        node = resident.node
        if node is not None:
            network = self.world.network
            yield from counts_of(resident.id, node.store, resident.host.peers, self.config, network.config.pool)
            yield from shares_of(resident.id, node.store, network.loop.time(), self.config)

    # How they come

    def new_resident(self) -> Resident:
        """A new honest host, on which nothing runs yet."""
        host = self.world.network.host(ip=self.places.next_ip())
        resident = Resident(self, self._count, host)
        self._count += 1
        self.residents.append(resident)
        return resident

    def arrive(self) -> Resident:
        """A newcomer, which begins to join through members of this moment."""
        seeds = self.seeds()
        resident = self.new_resident()
        resident.begin(seeds)
        return resident

    def add_hostile(self, places: Places, identity: Identity | None = None) -> VirtualHost:
        """A hostile host, which answers nothing until it is told how."""
        host = self.world.network.host(ip=places.next_ip(), identity=identity)
        self.hostile.append(host)
        return host

    def instruct(self, conduct_of: Callable[[VirtualHost], Conduct]) -> None:
        """Tell every hostile host how to behave."""
        for host in self.hostile:
            settle(host, conduct_of(host))

    async def start_residents(self, count: int) -> None:
        """So many new residents at once, who know nobody yet."""
        for _ in range(count):
            resident = self.new_resident()
            await resident.make_node().start()
            resident.has_joined = True

    def acquaint(self, hostile: Sequence[Contact] = (), *, weight: float = 1.0) -> None:
        """Let all residents know each other, and these, as an oracle has it, and the size of the network.

        A hostile contact is `weight` times as likely as an honest one to be in a place of a table.
        """
        points = {contact.point for contact in hostile}
        introduce_everybody(
            [_node(resident) for resident in self.residents],
            [*self.contacts(), *hostile],
            k=self.config.routing.k,
            rng=self.world.rng,
            now=self.world.network.loop.time(),
            weight_of=None if weight == 1 else lambda each: weight if each.point in points else 1.0,
        )
        for resident in self.residents:
            resident.host.peers.dialed_at = self.world.network.loop.time()  # whoever is in tables was dialed

    def offer_to_all(self, newcomers: Sequence[Contact]) -> None:
        """Show every table these contacts, as proved; it takes those for whom it has room."""
        tables = (_node(resident).routing_table for resident in self.residents)
        offer(tables, newcomers, rng=self.world.rng, now=self.world.network.loop.time())

    # How they go

    def remove(self, resident: Resident) -> None:
        """Keep a resident that is dead for good no longer; its machine is gone."""
        self.residents.remove(resident)
        self.world.network.remove(resident.host)

    async def churn(self, lengths: SessionLength, *, crashing: float = 0.5) -> None:
        """Let everybody come and go for ever, the number staying the same. A share crashes, the others say goodbye.

        The swarm is in equilibrium from the first moment: those who are here have been here for a while.
        """
        async with TaskScope("churn") as scope:
            places = [scope.spawn_awaited(self._fill_place(each, lengths, crashing)) for each in list(self.residents)]
            for place in places:
                await place

    async def _fill_place(self, resident: Resident, lengths: SessionLength, crashing: float) -> None:
        rng = self.world.rng
        stays_s = lengths.draw_rest(rng)
        while True:
            await asyncio.sleep(stays_s)
            if rng.random() < crashing:
                resident.die()
            else:
                resident.leave()
            self.remove(resident)
            resident = self.arrive()
            stays_s = lengths.draw(rng)

    async def stop(self) -> None:
        """End everybody's tasks."""
        for resident in self.residents:
            await resident.stop()
        await self.scope.drain()
        await self.scope.close()


def contacts_of(hosts: Sequence[VirtualHost]) -> list[Contact]:
    """Who and where they are."""
    return [Contact(host.id, host.advertised_addresses) for host in hosts]


def _node(resident: Resident) -> DHTNode:
    assert resident.node is not None, "a resident of a swarm that stands has a node"
    return resident.node


async def _end_tasks(scope: TaskScope, node: DHTNode) -> None:
    await scope.close()
    await node.stop()
