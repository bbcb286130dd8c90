"""A capability that everybody has, and one that ten have, in one swarm: what it costs to register, and to be found."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from dht.agents.index import capability_root
from dht.config import DHTConfig
from dht.keyspace import Key
from simulations.population import Population, Resident
from simulations.record_oracle import RecordOracle
from simulations.scenarios.agents import AgentScenario, Load, Provider, Search, agents_config, cap_for, search
from simulations.scenarios.base import Outcome, Progress, Settings
from simulations.scenarios.overlay import SETTLE_S, Figures
from simulations.scenarios.phases import paced
from simulations.statistics import quantile
from simulations.values import NEVER_S
from simulations.world import World
from synapse_p2p.background import TaskScope
from synapse_p2p.identity import NodeID, network_id_of

COMMON = "code-review"
RARE = "palaeography"
RARE_PROVIDERS = 10
SEARCH_PAUSE_S = 0.05
LIMIT = 16
"""Agents that a search for the common one wants: what `Swarm.find(limit=8)` asks its node for. Of a small cap it is an
eighth, for no shard has more to give than it holds.
"""
STAGES = 30
SAMPLED = 10
"""Of each stage of the crowd's growth, so many register by themselves where the others are placed."""
PLACED_RENEWALS = 2
"""After it has grown at one instant, a crowd is where its size says when each has renewed; once more, and it stays."""
SETTLED_PART = 0.6
"""Of a lease: when so much is over since the last registration, everybody has renewed."""
WINDOW_PART = 0.1
"""Of a lease: so long requests are counted, while a fifth of all renew and others search."""
SURVIVORS_PART = 100
"""After the collapse one of so many is left."""
LOOKED_AFTER_LEASES = (1.0, 1.5, 2.0)
RECALL_SEARCHES = 20
LOOK_S = 900.0
"""Between a node's looks at what it has, where nothing changes."""


async def _play(world: World, settings: Settings, progress: Progress) -> Outcome:
    crowd = _Crowd(world, settings, progress)
    try:
        async with TaskScope("providers") as scope:
            await crowd.stand()
            if CROWD.variant(settings) == "registered":
                await crowd.register(scope)
            else:
                await crowd.place(scope)
            figures = crowd.registrations()
            figures |= await crowd.searches()
            figures |= crowd.storers()
            figures |= await crowd.collapse()
    finally:
        await crowd.population.stop()
    searches = settings.lookups
    found = round(float(figures["rare_recall_mean"]) * searches * RARE_PROVIDERS)
    return Outcome(searches * RARE_PROVIDERS, found, (), (), 0.999, figures)


class _Crowd:
    """The swarm, and the agents in it: everybody has COMMON, and RARE_PROVIDERS of them RARE."""

    def __init__(self, world: World, settings: Settings, progress: Progress) -> None:
        self.cap = cap_for(settings.nodes)
        self._limit = min(LIMIT, self.cap // 8)
        self._settings = settings
        self._progress = progress
        self._rng = world.rng
        self._config = _config(self.cap, settings)
        self._lease_s = self._config.records.lease_s
        self.population = Population(world, self._config)
        self._root = capability_root(network_id_of(""), COMMON)
        self._load = Load(COMMON, self._root)
        self._providers: list[Provider] = []
        self._rare: dict[NodeID, None] = {}

    async def stand(self) -> None:
        """Everybody is there, and knows everybody."""
        population = self.population
        await population.start_residents(self._settings.nodes)
        population.acquaint()
        self._load.watch(resident.host for resident in population.residents)
        rare = self._rng.sample(population.residents, RARE_PROVIDERS)
        self._rare = {resident.host.id: None for resident in rare}
        await asyncio.sleep(SETTLE_S)

    async def register(self, scope: TaskScope) -> None:
        """All register within half a lease, and have renewed once when it returns."""
        nodes = self._settings.nodes
        residents = iter(self._rng.sample(self.population.residents, nodes))

        async def register_one() -> None:
            provider = self._new_provider(next(residents))
            await provider.publish()
            provider.renew_in(scope)
            self._progress("registrations", len(self._providers), nodes)

        await paced(nodes, self._lease_s / 2 / nodes, register_one)
        await asyncio.sleep(SETTLED_PART * self._lease_s)

    async def place(self, scope: TaskScope) -> None:
        """All are where their rules have them, and in the midst of a lease.

        Some register by themselves before they are placed, as many at the beginning as at the end of the crowd's
        growth. The rare ones are not placed: they register last, for their record is to be the same at all its keys.
        """
        oracle = RecordOracle(self.population, COMMON, self._config, self._rng)
        residents = [each for each in self.population.residents if each.host.id not in self._rare]
        self._rng.shuffle(residents)
        size = -(-len(residents) // STAGES)
        for first in range(0, len(residents), size):
            stage = residents[first : first + size]
            providers = [self._new_provider(resident) for resident in stage]
            await _publish_all(providers[:SAMPLED])
            for resident, provider in zip(stage, providers, strict=True):
                oracle.add(resident, provider.sealed_of_late)
            self._progress("registrations", len(self._providers), self._settings.nodes)
        for _ in range(PLACED_RENEWALS):
            oracle.renew_all()
        oracle.tell_nodes()
        rare = [self._new_provider(each) for each in self.population.residents if each.host.id in self._rare]
        await _publish_all(rare)
        for provider in self._providers:
            provider.renew_in(scope)

    def _new_provider(self, resident: Resident) -> Provider:
        assert resident.node is not None
        capabilities = (COMMON, RARE) if resident.host.id in self._rare else (COMMON,)
        provider = Provider(resident.host, resident.node, self._config, *capabilities)
        self._providers.append(provider)
        return provider

    def registrations(self) -> Figures:
        """What the first publication of each took, and the last renewal."""
        registered = [provider.first for provider in self._providers if provider.first]
        lookups = [first[COMMON].lookups for first in registered]
        rare = [first[RARE].lookups for first in registered if RARE in first]
        return {
            "providers": len(self._providers),
            "registrations": len(lookups),
            "registration_lookups_mean": round(fmean(lookups), 4),
            "registration_lookups_max": max(lookups),
            "rare_registration_lookups_mean": round(fmean(rare), 4),
        }

    async def searches(self) -> Figures:
        """As many of each kind as the settings say, while the providers go on renewing and requests are counted."""
        self._load.begin_window()
        began_at = self.population.world.network.loop.time()
        rare = await self._search_all("rare", RARE)
        common = await self._search_all("cold", COMMON, limit=self._limit)
        warm = await self._search_all("warm", COMMON, limit=LIMIT, again=True)
        both = await self._search_all("both", COMMON, RARE)
        took_s = self.population.world.network.loop.time() - began_at
        await asyncio.sleep(max(0.0, WINDOW_PART * self._lease_s - took_s))
        return {
            **_figures("rare", rare),
            **_figures("cold", common),
            **_figures("warm", warm),
            **_figures("both", both),
            "rare_recall_mean": self._recall(rare),
            "both_recall_mean": self._recall(both),
            "both_extra_lookups_mean": round(_mean_lookups(both) - _mean_lookups(rare), 4),
            "warm_full_mean": round(fmean(len(each.found.records) >= self._limit for each in warm), 4),
        }

    async def _search_all(
        self, phase: str, *capabilities: str, limit: int | None = None, again: bool = False
    ) -> list[Search]:
        """Searches by random residents; with `again` each is by one who has made the same a moment before."""
        done: list[Search] = []
        count = self._settings.lookups
        searchers = iter(self._rng.sample(self.population.residents, min(count, len(self.population.residents))))

        async def search_one() -> None:
            node = next(searchers).node
            assert node is not None
            if again:
                await search(node, *capabilities, limit=limit)
            world = self.population.world
            began_at_s = world.network.loop.time()
            done.append(await search(node, *capabilities, limit=limit))
            world.samples.add_seconds(f"{phase} search", world.network.loop.time() - began_at_s)
            for read in done[-1].found.reads:
                if read.outcome is not None:
                    world.note_trace(node.id, read.outcome, k=self._config.lookup.k)
            self._progress(phase, len(done), count)

        await paced(count, SEARCH_PAUSE_S, search_one)
        return done

    def _recall(self, searches: Sequence[Search]) -> float:
        """The share of the rare ones that these found, on average."""
        return round(fmean(sum(found in self._rare for found in each.ids()) / RARE_PROVIDERS for each in searches), 5)

    def storers(self) -> Figures:
        """What those hold, and served, who have records of the common one. Reads of the root are counted apart."""
        now = self.population.world.network.loop.time()
        held: list[int] = []
        of_root: list[int] = []
        of_shards: list[int] = []
        for resident in self.population.residents:
            counts = self._counts(resident, now)
            held += counts.values()
            if counts:
                (of_root if self._root in counts else of_shards).append(self._load.served.get(resident.host.id, 0))
        everybody = [*of_root, *of_shards]
        mean = fmean(everybody)
        renewals = [each.last[COMMON].lookups for each in self._providers if each.last and each.last is not each.first]
        reads = [self._load.root_reads.get(resident.host.id, 0) for resident in self.population.residents]
        return {
            "cap": self.cap,
            "storers": len(everybody),
            "records_mean": round(fmean(held), 2),
            "records_max": max(held),
            "requests_mean": round(mean, 2),
            "busiest_to_mean": round(max(everybody) / mean, 4),
            "root_to_mean": round(fmean(of_root) / mean, 4),
            "root_reads_share": round(sum(reads) / (sum(reads) + sum(everybody)), 4),
            "root_busiest_reads_to_mean": round(max(reads) / mean, 4),
            "renewals": len(renewals),
            "renewal_lookups_mean": round(fmean(renewals), 4) if renewals else 0.0,
        }

    def _counts(self, resident: Resident, now: float) -> dict[Key, int]:
        """How many records of the common one it holds, by key. The rare ones have one key, which is left out."""
        assert resident.node is not None
        store = resident.node.store
        rare_root = capability_root(resident.host.network_id, RARE)
        return {key: count for key in store.held_keys() if key != rare_root and (count := len(store.get(key, now)))}

    async def collapse(self) -> Figures:
        """All but a hundredth fall silent; how many of those a search finds then, as time goes by."""
        survivors = self._rng.sample(self._providers, max(1, len(self._providers) // SURVIVORS_PART))
        wanted = {provider.id for provider in survivors}
        for provider in self._providers:
            if provider.id not in wanted:
                provider.fall_silent()
        figures: Figures = {"survivors": len(survivors)}
        elapsed = 0.0
        for leases in LOOKED_AFTER_LEASES:
            await asyncio.sleep((leases - elapsed) * self._lease_s)
            elapsed = leases
            searches = await self._search_survivors()
            shares = [sum(owner in wanted for owner in each.ids()) / len(wanted) for each in searches]
            figures[f"survivor_recall_mean_at_{leases:g}"] = round(fmean(shares), 4)
            figures[f"survivor_complete_mean_at_{leases:g}"] = round(fmean(each.found.complete for each in searches), 4)
            figures[f"survivor_lookups_mean_at_{leases:g}"] = round(_mean_lookups(searches), 4)
        return figures

    async def _search_survivors(self) -> list[Search]:
        """Searches for all of them."""
        done: list[Search] = []

        async def search_one() -> None:
            node = self.population.any_living().node
            assert node is not None
            done.append(await search(node, COMMON))

        await paced(RECALL_SEARCHES, SEARCH_PAUSE_S, search_one)
        return done


def _config(cap: int, settings: Settings) -> DHTConfig:
    """Nobody dies here, so nobody looks whether others live: of 10,000 nodes that would be most of the work."""
    config = agents_config(cap, settings.sabotage)
    routing = replace(config.routing, stale_after_s=NEVER_S)
    return replace(config, routing=routing, liveness_s=LOOK_S, replicate_look_s=LOOK_S)


async def _publish_all(providers: Sequence[Provider]) -> None:
    async with TaskScope("registrations") as scope:
        for task in [scope.spawn_awaited(provider.publish()) for provider in providers]:
            await task


def _mean_lookups(searches: Sequence[Search]) -> float:
    return fmean(each.lookups for each in searches)


def _figures(prefix: str, searches: Sequence[Search]) -> Figures:
    return {
        f"{prefix}_searches": len(searches),
        f"{prefix}_lookups_mean": round(_mean_lookups(searches), 4),
        f"{prefix}_requests_mean": round(fmean(each.requests for each in searches), 3),
        f"{prefix}_requests_p99": quantile([each.requests for each in searches], 0.99),
        f"{prefix}_found_mean": round(fmean(len(each.found.records) for each in searches), 3),
    }


CROWD = AgentScenario(
    "agents-crowd",
    f"a capability that all have, and one that {RARE_PROVIDERS} have; a lookup is one of those ten to be found",
    _play,
    {
        "placed": "providers are placed as by an oracle, and some register on the way: rare ones >= 99.9%",
        "registered": "all register by themselves, and have renewed: the same, at twenty times the cost",
    },
    ("one-shard", "no-return"),
)
