"""Agents that crowd out others from a few networks, providers at wrong depths, and storers that lie about counts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from statistics import fmean
from typing import Any

from dht.agents.index import capability_key, capability_root
from dht.lookup import LookupMode
from dht.messages import FindValueAnswer, Store, StoreAnswer
from dht.node import DHTNode
from dht.searching import sought_for
from simulations.network import LISTEN_PORT, VirtualHost
from simulations.oracle import fill_tables
from simulations.places import HOSTILE_OCTETS, Places
from simulations.population import Population, Resident
from simulations.scenarios.agents import LEAST_CAP, AgentScenario, Provider, agents_config, cap_for, search
from simulations.scenarios.base import Outcome, Progress, Settings
from simulations.scenarios.overlay import SETTLE_S, Figures
from simulations.scenarios.phases import paced
from simulations.statistics import wilson_low
from simulations.undefended import RULES
from simulations.world import World
from synapse_p2p.background import TaskScope
from synapse_p2p.context import CallContext
from synapse_p2p.exceptions import SynapseError
from synapse_p2p.identity import NodeID

SKILL = "code-review"
OTHER_SKILL = "palaeography"
MAX_HONEST = 200
"""Honest providers in the flood; so many records a key has room for, and 2,000 are announced."""
HONEST_PART = 0.1
"""Of all announcements; the others come from HOSTILE_NETWORKS."""
HOSTILE_NETWORKS = 3
PROCESSES_PER_MACHINE = 3
LATE_PART = 0.2
"""Of the honest providers; they announce themselves when the flood is there."""
LIMIT = 30
HONEST_WANTED = 5
SMALL_LIMIT = 5  # of `find(limit=5)`
LYING_PART = 0.1
WRONG_DEPTHS = (0, 40)
LIE = {"count": 10**6, "depth": 40, "full": True, "estimate": 10**9}
SEARCH_PAUSE_S = 0.05
FOREIGN_STORES = 200
"""In the midst of the flood; where they are all that is done, as many as the settings say."""
FOREIGN_DEPTH = 12
OTHER_PROVIDERS = 5
SPREAD_VARIANTS = ("liars", "misplaced")
"""In these everybody has the capability, so that it is spread over shards."""
STORE_TIMEOUT_S = 2.0
MEMBERS_PER_PROVIDER = 5
"""Nodes of the swarm for each honest provider among them, in the flood: the network is large, and the capability
small.
"""


async def _play(world: World, settings: Settings, progress: Progress) -> Outcome:
    swarm = _Swarm(world, settings, progress)
    try:
        async with TaskScope("providers") as scope:
            await swarm.stand()
            match HOSTILE.variant(settings):
                case "flood":
                    return await swarm.live_through_flood(scope)
                case "foreign":
                    return await swarm.live_with_foreign_records(scope)
                case variant:
                    return await swarm.live_among_liars(scope, are_storers_lying=variant == "liars")
    finally:
        await swarm.stop()


class _Swarm:
    """Honest residents, some of them providers, and hosts that are hostile to them."""

    def __init__(self, world: World, settings: Settings, progress: Progress) -> None:
        self.honest_count = min(MAX_HONEST, max(LEAST_CAP // 4, settings.nodes // MEMBERS_PER_PROVIDER))
        is_spread = HOSTILE.variant(settings) in SPREAD_VARIANTS
        cap = cap_for(settings.nodes) if is_spread else max(LEAST_CAP, self.honest_count)
        self.config = agents_config(cap, settings.sabotage)
        self.population = Population(world, self.config)
        self._settings = settings
        self._progress = progress
        self._rng = world.rng
        self._hostile_nodes: list[DHTNode] = []
        self._honest: dict[NodeID, Provider] = {}
        self._skills: dict[NodeID, str] = {}  # of those, what they offer

    async def stand(self) -> None:
        """Everybody who is honest is there, and knows everybody."""
        await self.population.start_residents(self._settings.nodes)
        self.population.acquaint()
        await asyncio.sleep(SETTLE_S)

    async def stop(self) -> None:
        """End everybody's tasks."""
        for node in self._hostile_nodes:
            await node.stop()
        await self.population.stop()

    # A flood from three networks

    async def live_through_flood(self, scope: TaskScope) -> Outcome:
        """Nine of ten announcements are of agents in three /24s; some honest ones come when those are there."""
        lease_s = self.config.records.lease_s
        residents = self._rng.sample(self.population.residents, self.honest_count)
        late_count = max(1, round(LATE_PART * self.honest_count))
        early = [self._new_provider(resident) for resident in residents[late_count:]]
        flood = await self._new_flood(round(self.honest_count * (1 - HONEST_PART) / HONEST_PART))
        await self._announce_all([*early, *flood], lease_s / 2, scope)
        await asyncio.sleep(0.6 * lease_s)
        late = [self._new_provider(resident) for resident in residents[:late_count]]
        await self._announce_all(late, lease_s / 10, scope)
        found_late = await self._recall({provider.id for provider in late})
        await asyncio.sleep(0.5 * lease_s)
        found_all = await self._recall(set(self._honest))
        honest_found = await self._search_all(LIMIT)
        good = sum(count >= HONEST_WANTED for count in honest_found)
        foreign = await self._store_under_foreign_keys(list(self._honest.values()), FOREIGN_STORES)
        figures: Figures = {
            "honest": self.honest_count,
            "flood": len(flood),
            "late_found_mean": found_late,
            "honest_unfound_mean": round(1 - found_all, 5),
            "searches": len(honest_found),
            "searches_good": good,
            "search_success_low": round(wilson_low(good, len(honest_found)), 5),
            "search_success_mean": round(good / len(honest_found), 5),
            "honest_of_30_mean": round(fmean(honest_found), 3),
            "fewest_honest_of_30": min(honest_found),
            **foreign,
        }
        return Outcome(len(honest_found), good, (), (), 0.99, figures)

    async def _new_flood(self, count: int) -> list[Provider]:
        """So many hostile agents on the machines of three /24s. They are clients of the overlay, which stores nothing
        with them, but for the address that they announce.
        """
        places = Places(HOSTILE_NETWORKS, octets=HOSTILE_OCTETS)
        network = self.population.world.network
        flood: list[Provider] = []
        while len(flood) < count:
            ip = places.next_ip()
            for port in range(PROCESSES_PER_MACHINE):
                host = network.host(ip=ip, port=LISTEN_PORT + port)
                node = DHTNode(host, config=self.config)
                await node.start()
                self._hostile_nodes.append(node)
                flood.append(Provider(host, node, self.config, SKILL))
        now = network.loop.time()
        tables = [(node.id, node.routing_table) for node in self._hostile_nodes]
        fill_tables(tables, self.population.contacts(), k=self.config.routing.k, rng=self._rng, now=now)
        for node in self._hostile_nodes:
            node.estimate.note(node.id, node.routing_table.closest(node.id, self.config.routing.k))
        return flood[:count]

    async def _announce_all(self, providers: Sequence[Provider], within_s: float, scope: TaskScope) -> None:
        in_order = iter(self._rng.sample(providers, len(providers)))
        done = 0

        async def announce_one() -> None:
            nonlocal done
            provider = next(in_order)
            await provider.publish()
            provider.renew_in(scope)
            done += 1
            self._progress("announcements", done, len(providers))

        await paced(len(providers), within_s / len(providers), announce_one)

    async def _recall(self, wanted: set[NodeID]) -> float:
        """The share of these that a search for everybody finds, on average over some searchers."""
        shares: list[float] = []

        async def search_one() -> None:
            found = await search(self._any_node(), SKILL, mode=LookupMode.STRICT)
            shares.append(len(wanted.intersection(found.ids())) / len(wanted))

        await paced(RECALL_SEARCHES, SEARCH_PAUSE_S, search_one)
        return round(fmean(shares), 5)

    async def _search_all(self, limit: int) -> list[int]:
        """As many searches as the settings say; how many honest ones each returns, of the first `limit` that it found,
        which `Swarm.find` takes.
        """
        counts: list[int] = []

        async def search_one() -> None:
            found = (await search(self._any_node(), SKILL, limit=sought_for(limit))).ids()
            counts.append(sum(each in self._honest for each in found[:limit]))
            self._progress("searches", len(counts), self._settings.lookups)

        await paced(self._settings.lookups, SEARCH_PAUSE_S, search_one)
        return counts

    # Honest records under keys that are not theirs

    async def live_with_foreign_records(self, scope: TaskScope) -> Outcome:
        """Records of one capability are brought to storers of another, which few have and are then looked for."""
        residents = self._rng.sample(self.population.residents, self.honest_count + OTHER_PROVIDERS)
        providers = [self._new_provider(resident) for resident in residents[OTHER_PROVIDERS:]]
        others = [self._new_provider(resident, OTHER_SKILL) for resident in residents[:OTHER_PROVIDERS]]
        await self._announce_all([*providers, *others], self.config.records.lease_s / 10, scope)
        foreign = await self._store_under_foreign_keys(providers, self._settings.lookups)
        wanted = {provider.id for provider in others}
        shares, returned, requests = [], 0, []

        async def search_one() -> None:
            nonlocal returned
            found = await search(self._any_node(), OTHER_SKILL)
            shares.append(len(wanted.intersection(found.ids())) / len(wanted))
            returned += len(set(found.ids()) - wanted)
            requests.append(found.requests)

        await paced(RECALL_SEARCHES, SEARCH_PAUSE_S, search_one)
        figures: Figures = {
            "honest": len(providers),
            **foreign,
            "foreign_returned": returned,
            "other_recall_mean": round(fmean(shares), 5),
            "other_requests_mean": round(fmean(requests), 3),
        }
        tried = self._settings.lookups
        return Outcome(tried, tried - int(foreign["foreign_kept"]), (), (), 1.0, figures)

    async def _store_under_foreign_keys(self, victims: Sequence[Provider], tries: int) -> Figures:
        """Honest records brought to storers of keys that are not theirs: how many are kept, and where they are then.

        Every other one to a storer who would keep it, for a capability that it does not list; the rest to who is
        farthest of all from the key that it has at a depth where nobody is.
        """
        attacker = self.population.world.network.client()
        residents = self.population.residents
        network_id = residents[0].host.network_id
        other_root = int.from_bytes(capability_root(network_id, OTHER_SKILL), "big")
        near = sorted(residents, key=lambda each: each.contact.point ^ other_root)[: self.config.lookup.k]
        kept = {OTHER_SKILL: 0, SKILL: 0}
        for number in range(tries):
            envelope, record = self._rng.choice(victims).sealed()
            if number % 2:
                capability, depth, storer = OTHER_SKILL, 0, self._rng.choice(near)
            else:
                point = int.from_bytes(capability_key(network_id, SKILL, record.owner, FOREIGN_DEPTH), "big")
                storer = max(residents, key=lambda each: each.contact.point ^ point)
                capability, depth = SKILL, FOREIGN_DEPTH
            request = Store(envelope, capability, depth).to_map()
            with suppress(SynapseError):
                answer = await attacker.peers.call(storer.contact, "_dht.store", request, timeout_s=STORE_TIMEOUT_S)
                kept[capability] += StoreAnswer.from_map(answer).stored
        return {
            "foreign_stores": tries,
            "foreign_kept": sum(kept.values()),
            "foreign_kept_unlisted": kept[OTHER_SKILL],
            "foreign_held": self._held_under_foreign_keys(),
        }

    def _held_under_foreign_keys(self) -> int:
        """Records that anybody holds under a key that is not one of their owner's."""
        now, network_id = self.population.world.network.loop.time(), self.population.residents[0].host.network_id
        return sum(
            key != capability_key(network_id, self._skills.get(stored.owner, SKILL), stored.owner, stored.depth)
            for resident in self.population.residents
            if resident.node is not None
            for key, stored in resident.node.store.items(now)
        )

    # Providers and storers that lie

    async def live_among_liars(self, scope: TaskScope, *, are_storers_lying: bool) -> Outcome:
        """A tenth of the providers is at a wrong depth for ever; a tenth of the storers may lie about counts."""
        lease_s = self.config.records.lease_s
        residents = self._rng.sample(self.population.residents, len(self.population.residents))
        lying = round(LYING_PART * len(residents))
        for resident in residents[:lying] if are_storers_lying else ():
            _make_liar(resident.host)
        wrong = [(resident, self._rng.choice(WRONG_DEPTHS)) for resident in residents[lying : 2 * lying]]
        honest = [self._new_provider(resident) for resident in residents[2 * lying :]]
        misplaced = iter(wrong)

        async def misplace_one() -> None:
            resident, depth = next(misplaced)
            provider = self._new_provider(resident)
            await _store_at(provider, depth)
            scope.spawn(_keep_at(provider, depth, lease_s / 2), name="misplaced")

        await self._announce_all(honest, lease_s / 2, scope)
        await paced(len(wrong), lease_s / 10 / max(1, len(wrong)), misplace_one)
        await asyncio.sleep(0.6 * lease_s)
        lookups: list[int] = []
        full = complete = 0

        async def search_one() -> None:
            nonlocal full, complete
            found = await search(self._any_node(), SKILL, limit=sought_for(SMALL_LIMIT))
            full += len(found.found.records) >= SMALL_LIMIT
            complete += found.found.complete
            lookups.append(found.lookups)
            self._progress("searches", len(lookups), self._settings.lookups)

        await paced(self._settings.lookups, SEARCH_PAUSE_S, search_one)
        figures: Figures = {
            "lying_storers": lying if are_storers_lying else 0,
            "misplaced": len(wrong),
            "searches": len(lookups),
            "searches_full": full,
            "full_mean": round(full / len(lookups), 5),
            "wrongly_complete": complete,
            "lookups_mean": round(fmean(lookups), 4),
            "registration_lookups_mean": round(fmean(each.first[SKILL].lookups for each in honest), 4),
        }
        return Outcome(len(lookups), full, (), (), 1.0, figures)

    def _new_provider(self, resident: Resident, skill: str = SKILL) -> Provider:
        assert resident.node is not None
        provider = Provider(resident.host, resident.node, self.config, skill)
        self._honest[provider.id] = provider
        self._skills[provider.id] = skill
        return provider

    def _any_node(self) -> DHTNode:
        node = self.population.any_living().node
        assert node is not None
        return node


RECALL_SEARCHES = 20


async def _store_at(provider: Provider, depth: int) -> None:
    """Have a record kept at this depth, whatever the storers say of it; and by those of the root, where all begin."""
    envelope, record = provider.sealed()
    request = Store(envelope, SKILL, depth).to_map()
    root = capability_root(record.network_id, SKILL)
    for key in dict.fromkeys((capability_key(record.network_id, SKILL, record.owner, depth), root)):
        outcome = await provider.node.lookup(key, LookupMode.STRICT)
        for contact in outcome.closest:
            with suppress(SynapseError):
                await provider.host.peers.call(contact, "_dht.store", request, timeout_s=STORE_TIMEOUT_S)


async def _keep_at(provider: Provider, depth: int, pause_s: float) -> None:
    while True:
        await asyncio.sleep(pause_s)
        await _store_at(provider, depth)


def _make_liar(host: VirtualHost) -> None:
    """From now on this storer says of every shard that millions are there, at a depth where nobody is."""

    def lying(
        handler: Callable[[Mapping[str, Any], CallContext], Any], twisted: Callable[[Any], dict[str, Any]]
    ) -> Callable[[Mapping[str, Any], CallContext], Any]:
        return lambda request, context: twisted(handler(request, context))

    def found(answer: Any) -> dict[str, Any]:
        return replace(FindValueAnswer.from_map(answer), **LIE).to_map()

    def stored(answer: Any) -> dict[str, Any]:
        honest = StoreAnswer.from_map(answer)
        if honest.report is None:
            return honest.to_map()
        report = replace(honest.report, count=LIE["count"], depth=LIE["depth"], is_full=True, estimate=LIE["estimate"])
        return replace(honest, report=report).to_map()

    for endpoint, twisted in (("_dht.find_value", found), ("_dht.store", stored)):
        handler = host.endpoints.mounted(endpoint)
        assert handler is not None, "a node lives there"
        host.mount("_dht.", {endpoint: lying(handler, twisted)})


HOSTILE = AgentScenario(
    "agents-hostile",
    "a capability of which most providers, or some storers, are hostile; a lookup is a search for some agents",
    _play,
    {
        "flood": f"nine of ten announcements are from three /24s: {HONEST_WANTED} honest ones of {LIMIT} in >= 99%",
        "liars": f"a tenth of providers is misplaced, a tenth of storers lies: every search for {SMALL_LIMIT} is full",
        "misplaced": "the same, where no storer lies",
        "foreign": "honest records are brought to storers of foreign keys; a lookup is one, refused",
    },
    ("trust-all", *RULES),
)
