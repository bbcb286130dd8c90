"""A swarm in which every node has an agent of one design: who lives there, who offers the capability, who dies when.

The workload does not depend on the design: providers, moments of death and searchers come from random numbers of its
own, so that one seed gives every design the same.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.discovery_designs.agent import Design, DesignAgent
from dht.node import DHTNode
from simulations.churn import SessionLength
from simulations.delivery import Digest
from simulations.latency import LogNormalLatency
from simulations.population import Population, Resident
from simulations.virtual_loop import VirtualLoop
from simulations.world import World
from synapse_p2p.background import TaskScope
from synapse_p2p.identity import NodeID

PUBLISHED_AFTER_S = 30.0
"""Who offers for so long is expected to be found."""


@dataclass(frozen=True, slots=True)
class NodeLoad:
    """What went in and out of one node."""

    messages: int = 0
    size_bytes: int = 0


class LoadDigest(Digest):
    """A digest that counts what goes in and out of every node, while it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.is_counting = False
        self.delivered = 0
        self._messages: dict[NodeID, int] = {}
        self._bytes: dict[NodeID, int] = {}

    def add_message(self, at_us: int, source: NodeID, target: NodeID, endpoint: str, body: bytes) -> None:
        """See Digest."""
        super().add_message(at_us, source, target, endpoint, body)
        if self.is_counting:
            self.delivered += 1
            messages, size_bytes = self._messages, self._bytes
            for node in (source, target):
                messages[node] = messages.get(node, 0) + 1
                size_bytes[node] = size_bytes.get(node, 0) + len(body)

    def of(self, nodes: Iterable[NodeID]) -> list[NodeLoad]:
        """What was counted of these."""
        return [NodeLoad(self._messages.get(node, 0), self._bytes.get(node, 0)) for node in nodes]


@dataclass(slots=True)
class Provider:
    """One that offers the capability, and since when."""

    resident: Resident
    since_s: float
    is_alive: bool = True


class DiscoveryWorld:
    """The swarm of one run; what must be the same in all designs is drawn from `rng`."""

    def __init__(self, loop: VirtualLoop, design: Design, seed: int) -> None:
        self.loop = loop
        self.design = design
        self.rng = random.Random(f"{seed} workload")
        self.world = World(loop, seed=seed, latency=LogNormalLatency(seed), config=design.config)
        self.digest = LoadDigest()
        self.world.digest = self.world.network.digest = self.digest
        self.population = Population(self.world, design.config)
        self.population.on_end = self._on_end
        self.agents: dict[int, DesignAgent] = {}  # by the number of its resident; those that live
        self.providers: dict[NodeID, Provider] = {}
        self._seed = seed
        self._scope = TaskScope("discovery")

    async def start(self, nodes: int, providers: int, *, within_s: float = 60.0) -> None:
        """So many residents, who know each other; some of them, at random, begin to offer."""
        await self.population.start_residents(nodes)
        self.population.acquaint()
        for resident in self.population.residents:
            self._settle(resident)
        for resident in self.rng.sample(self.population.residents, providers):
            self.offer(resident, within_s=within_s)

    def offer(self, resident: Resident, *, within_s: float) -> None:
        """Let an agent offer the capability from now on."""
        self.providers[resident.host.id] = Provider(resident, self.loop.time() + within_s)
        self.agents[resident.number].offer(within_s=within_s)

    def any_agent(self) -> DesignAgent:
        """One that lives, at random."""
        return self.agents[self.rng.choice(list(self.agents))]

    def expected(self, but: NodeID) -> set[NodeID]:
        """Who should be found by this one: all others who live, and have offered for a while."""
        latest_s = self.loop.time() - PUBLISHED_AFTER_S
        return {
            owner
            for owner, provider in self.providers.items()
            if provider.is_alive and provider.since_s <= latest_s and owner != but
        }

    def is_alive(self, owner: NodeID) -> bool:
        """Whether this provider lives."""
        provider = self.providers.get(owner)
        return provider is not None and provider.is_alive

    async def join(self) -> DesignAgent:
        """A newcomer, once it is in."""
        resident = self.population.arrive()
        assert resident.joining is not None
        await resident.joining
        return self._settle(resident)

    def kill(self, owner: NodeID) -> None:
        """Let a provider's process die, which tells nobody."""
        self.providers[owner].resident.die()

    async def churn(self, lengths: SessionLength) -> None:
        """Let every resident crash when its session is over, and another come in its place, for ever.

        Who comes in the place of a provider offers too.
        """
        async with TaskScope("churn") as scope:
            places = [
                scope.spawn_awaited(self._fill_place(resident, lengths, random.Random(f"{self._seed} place {number}")))
                for number, resident in enumerate(list(self.population.residents))
            ]
            for place in places:
                await place

    async def stop(self) -> None:
        """End everybody's tasks."""
        for agent in list(self.agents.values()):
            await agent.stop()
        await self.population.stop()  # now those who wait for a newcomer to be in wait no longer
        await self._scope.drain()
        await self._scope.close()
        await self.world.stop()

    def _settle(self, resident: Resident) -> DesignAgent:
        assert resident.node is not None, "it has joined"
        agent = self.agents[resident.number] = self.design.new_agent(resident.host, resident.node)
        return agent

    async def _fill_place(self, resident: Resident, lengths: SessionLength, rng: random.Random) -> None:
        offers = resident.host.id in self.providers
        stays_s = lengths.draw_rest(rng)
        while True:
            await asyncio.sleep(stays_s)
            resident.die()
            self.population.remove(resident)
            resident = self.population.arrive()
            self._scope.spawn(self._take_place(resident, offers=offers), name=f"arrival of {resident.number}")
            stays_s = lengths.draw(rng)

    async def _take_place(self, resident: Resident, *, offers: bool) -> None:
        joining = resident.joining
        assert joining is not None
        await asyncio.wait([joining])
        if resident.has_joined:  # else it died before it was in
            self._settle(resident)
            if offers:
                self.offer(resident, within_s=0.0)

    def _on_end(self, resident: Resident, _node: DHTNode) -> None:
        agent = self.agents.pop(resident.number, None)
        if agent is not None:
            self._scope.spawn(agent.stop(), name=f"end of agent {resident.number}")
        if (provider := self.providers.get(resident.host.id)) is not None:
            provider.is_alive = False
