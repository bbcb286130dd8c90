"""Agents that crash and tell nobody, while others look for them and have tasks done: how stale answers are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from statistics import fmean
from typing import Any

from dht.agents.delegation import Delegation, NextAsk
from dht.agents.query import parse_query
from dht.agents.selection import Experience
from dht.asking import Asking
from dht.asks import ASKED_OF
from dht.contact import Contact
from dht.lookup import LookupMode
from dht.node import DHTNode
from dht.results import FindResult, FoundAgent
from dht.searching import Searching
from dht.swarm import SwarmConfig
from simulations.churn import BITTORRENT, stale_share
from simulations.network import HostState
from simulations.population import Population, Resident
from simulations.scenarios.agents import Provider, agents_config, cap_for
from simulations.scenarios.base import MAX_NOTES, Outcome, Progress, Settings
from simulations.scenarios.overlay import SECONDS_PER_HOUR, SETTLE_S, Figures, OverlayScenario
from simulations.scenarios.phases import paced
from simulations.statistics import wilson_low
from simulations.world import World
from synapse_p2p.background import TaskScope
from synapse_p2p.context import CallContext
from synapse_p2p.exceptions import SynapseError
from synapse_p2p.identity import NodeID

SKILL = "code-review"
NO_PROBES = "no-probes"
DEFAULT_HOURS = 0.5
REQUIRED_ASKS = 0.999
ASK_TIMEOUT_S = 60.0
LIMIT = 8
"""Agents that a probed search wants; one that is not probed is for all."""
LISTINGS = 200
"""Searches for all of them; where more searches are made, these are spread over them. Each reads every shard, and tells
of as many agents as there are.
"""
LOAD = {"running": 0, "waiting": 0, "max_tasks": 4, "queue": 16}
DONE = "done"


async def _play(world: World, settings: Settings, progress: Progress) -> Outcome:
    swarm = _Swarm(world, settings, progress)
    hours = settings.hours or DEFAULT_HOURS
    lease_s = swarm.config.records.lease_s
    try:
        async with TaskScope("providers") as scope:
            await swarm.stand(scope)
            churning = scope.spawn_awaited(swarm.population.churn(BITTORRENT, crashing=1.0), name="churn")
            await asyncio.sleep(lease_s)  # as many dead are in the stores then as there will ever be
            pause_s = hours * SECONDS_PER_HOUR / settings.lookups
            await paced(settings.lookups, pause_s, swarm.look_and_ask)
            if churning.done():
                churning.result()
    finally:
        await swarm.population.stop()
    return swarm.outcome()


class _Swarm:
    """Residents of whom each has the capability, as soon as it has joined; and how searches and asks went."""

    def __init__(self, world: World, settings: Settings, progress: Progress) -> None:
        self.config = agents_config(cap_for(settings.nodes))
        self.population = Population(world, self.config)
        self._providers: dict[int, Provider] = {}  # of residents that live, by number
        self._settings = settings
        self._progress = progress
        self._scope: TaskScope | None = None
        self._registered_s: list[float] = []  # from the first moment of a process to its first publication
        self._stale: list[float] = []  # of each search that was not probed, the share of the dead
        self._returned = 0  # by searches that were probed
        self._returned_dead = 0
        self._looks = 0
        self._looks_per_listing = max(1, settings.lookups // LISTINGS)
        self._asks = 0
        self._answered = 0
        self._attempts: list[int] = []
        self._notes: list[str] = []

    async def stand(self, scope: TaskScope) -> None:
        """All of the settings' nodes are there and have published."""
        self._scope = scope
        population = self.population
        population.on_joined = self._on_joined
        population.on_end = self._on_end
        await population.start_residents(self._settings.nodes)
        population.acquaint()
        await asyncio.sleep(SETTLE_S)
        renew_s = self.config.records.lease_s * self.config.renew_fraction
        residents = iter(list(population.residents))

        async def publish_one() -> None:
            self._on_joined(next(residents))

        # Spread over the time between two renewals, as they would be who came one after the other.
        await paced(self._settings.nodes, renew_s / self._settings.nodes, publish_one)
        await asyncio.sleep(SETTLE_S)

    def _on_joined(self, resident: Resident) -> None:
        assert self._scope is not None and resident.node is not None
        self._providers[resident.number] = provider = Provider(resident.host, resident.node, self.config, SKILL)
        resident.host.mount("_agent.", {"_agent.load": _load, "_agent.ask": _do})
        self._scope.spawn(self._keep(resident, provider), name="provider")

    def _on_end(self, resident: Resident, _: DHTNode) -> None:
        provider = self._providers.pop(resident.number, None)
        if provider is not None:
            provider.fall_silent()

    async def _keep(self, resident: Resident, provider: Provider) -> None:
        """Publish, and renew for as long as its process lives."""
        await provider.publish()
        if self._scope is not None and resident.number in self._providers:
            if resident.joining is not None:
                self._registered_s.append(provider.host.runtime.now() - resident.began_at)
            provider.renew_in(self._scope)

    # Searching and asking

    async def look_and_ask(self) -> None:
        """One search for all without probes, of some of these; one with, and one task, by a random resident."""
        resident = self.population.any_living()
        node, life = resident.node, resident.host.incarnation
        assert node is not None
        searching = Searching(resident.host, lambda: node, _Nobody(), probe_timeout_s=SwarmConfig().probe_timeout_s)
        query = parse_query([SKILL])
        self._looks += 1
        found: list[FoundAgent] = []
        if self._looks % self._looks_per_listing == 0:
            found, _ = await searching.search(query, LookupMode.FRESH)
        alive = self._alive()
        dead = sum(agent.id not in alive for agent in found)
        living, _ = await searching.search(query, LookupMode.FRESH, limit=LIMIT)
        if self._settings.sabotage != NO_PROBES:
            living = await searching.answering(living, LIMIT, [])
        alive = self._alive()
        returned_dead = sum(agent.id not in alive for agent in living[:LIMIT])
        if resident.host.incarnation != life:
            return  # whoever died over a search is told nothing
        if found:
            self._stale.append(dead / len(found))
        self._returned += len(living[:LIMIT])
        self._returned_dead += returned_dead
        await self._ask(resident, searching)
        self._progress("searches", self._asks, self._settings.lookups)

    async def _ask(self, resident: Resident, searching: Searching) -> None:
        host, life = resident.host, resident.host.incarnation

        async def find(mode: LookupMode) -> FindResult:
            limit = ASKED_OF if mode is LookupMode.FAST else None
            agents, providers = await searching.search(parse_query([SKILL]), mode, limit=limit)
            return FindResult(tuple(agents), not providers.reason, providers.reason)

        async def send(agent: FoundAgent, _: NextAsk, left_s: float) -> Any:
            return await host.peers.call(agent.contact, "_agent.ask", {}, timeout_s=left_s)

        asking = Asking(
            SKILL,
            find=find,
            probe=searching.probe_load,
            send=send,
            experience=Experience(),
            delegation=Delegation(),
            own_id=host.id,
            now=host.runtime.now,
            timeout_s=ASK_TIMEOUT_S,
            is_idempotent=True,
        )
        began_at_s, text = self.population.world.network.loop.time(), ""
        try:
            answer = await asking.run()
            self._attempts.append(len(answer.attempts))
            is_answered = answer.result == DONE
        except SynapseError as error:
            is_answered, text = False, str(error)
        if host.incarnation != life:
            return
        self._asks += 1
        self._answered += is_answered
        self.population.world.note_lookup("task", began_at_s, is_success=is_answered)
        if not is_answered and len(self._notes) < MAX_NOTES:
            self._notes.append(f"at {host.runtime.now():.3f} s {host.id.hex()[:16]} had no answer: {text[:200]}")

    def _alive(self) -> set[NodeID]:
        return {each.host.id for each in self.population.residents if each.host.state is HostState.UP}

    def outcome(self) -> Outcome:
        """How the asks went, and how many of those found were dead."""
        first_s = fmean(self._registered_s)
        renew_s = self.config.records.lease_s * self.config.renew_fraction
        expected = stale_share(BITTORRENT, lease_s=self.config.records.lease_s, renew_s=renew_s, first_s=first_s)
        stale = fmean(self._stale)
        figures: Figures = {
            "searches": len(self._stale),
            "stale_mean": round(stale, 5),
            "stale_expected_mean": round(expected, 5),
            "stale_off_mean": round(abs(stale - expected), 5),
            "probed_returned": self._returned,
            "probed_dead": self._returned_dead,
            "probed_dead_mean": round(self._returned_dead / max(1, self._returned), 6),
            "asks": self._asks,
            "asks_answered": self._answered,
            "ask_success_low": round(wilson_low(self._answered, self._asks), 5),
            "ask_success_mean": round(self._answered / max(1, self._asks), 5),
            "ask_attempts_mean": round(fmean(self._attempts), 4) if self._attempts else 0.0,
            "registration_seconds_mean": round(first_s, 3),
        }
        return Outcome(self._asks, self._answered, (), self._notes, REQUIRED_ASKS, figures)


def _load(_: Mapping[str, Any], __: CallContext) -> dict[str, int]:
    return LOAD


def _do(_: Mapping[str, Any], __: CallContext) -> str:
    return DONE


class _Nobody:
    """The caller of found agents: here they are called by their contacts."""

    async def call_agent(
        self, contact: Contact, endpoint: str, args: list[Any], kwargs: dict[str, Any], *, timeout_s: float | None
    ) -> Any:
        raise NotImplementedError

    async def ask_agent(self, contact: Contact, task: str, context: Mapping[str, Any], *, timeout_s: float) -> Any:
        raise NotImplementedError

    def stream_agent(
        self, contact: Contact, endpoint: str, args: list[Any], kwargs: dict[str, Any], *, timeout_s: float
    ) -> AsyncGenerator[Any, None]:
        raise NotImplementedError

    def stream_ask_agent(
        self, contact: Contact, task: str, context: Mapping[str, Any], *, timeout_s: float
    ) -> AsyncGenerator[Any, None]:
        raise NotImplementedError


CHURN = OverlayScenario(
    "agents-churn",
    "agents crash after sessions of Weibull(0.40, 42 min), as in BitTorrent; a lookup is a task to be done by one",
    _play,
    sabotages=(NO_PROBES,),
)
