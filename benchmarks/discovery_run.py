"""One run of one design: a swarm that stands, what it costs, who finds whom, and how long the dead are found.

Two worlds are played. In the first nobody leaves until some providers crash at one instant; in the second everybody
comes and goes. A search is the design's own; whether those found live is not asked of them, though every design could.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, TypeAlias, cast

from benchmarks.discovery_designs.agent import DesignAgent
from benchmarks.discovery_designs.catalog import new_design
from benchmarks.discovery_world import DiscoveryWorld
from simulations import virtual_loop
from simulations.churn import BITTORRENT
from simulations.pool import REQUESTS
from simulations.scenarios.phases import paced
from simulations.statistics import quantile
from simulations.virtual_loop import VirtualLoop
from synapse_p2p.background import TaskScope
from synapse_p2p.identity import NodeID

SOME = 5
"""Agents that a usual search is for."""
SEARCHES_PER_AGENT_HOUR = 6.0
MAX_LOAD_WINDOW_S = 3600.0
"""Of virtual time in which load is counted, where announcements are rarer than that."""
JOINERS = 20
CRASHED_SHARE = 0.1
MIN_CRASHED = 5
LOOKS_PER_LIFE = 30
"""Looks for the dead, in the time that an announcement is believed: so exact are the times in which they disappear."""
SEARCHES_PER_LOOK = 2
CHURN_WARM_UP_S = 900.0
"""Until then no more of the dead are found than ever: with the longest lease that a churning swarm is played with."""
CHURN_WINDOW_S = 300.0
CHURN_SEARCHES = 100

Figures: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Cell:
    """What a run is made of: the same cell gives the same figures, but for the CPU that they took."""

    design: str
    nodes: int
    providers: int
    seed: int = 1


def run_cell(cell: Cell) -> Figures:
    """Play both worlds. Figures that were not measured are not there."""
    began_s = time.process_time()
    steady = virtual_loop.run(play_standing(cell))
    churning = virtual_loop.run(play_churning(cell))
    return {**asdict(cell), **steady, **churning, "cpu_s": round(time.process_time() - began_s, 1)}


async def play_standing(cell: Cell) -> Figures:
    """Load, late joiners, and how long those are found who crashed at one instant."""
    world = new_world(cell)
    try:
        await world.start(cell.nodes, cell.providers)
        await asyncio.sleep(world.design.times.renew_s)
        load = await measure_load(world)
        late = await measure_late_joiners(world)
        gone = await measure_disappearance(world)
    finally:
        await world.stop()
    return {**load, **late, **gone, "steady_digest": world.digest.hexdigest()}


async def play_churning(cell: Cell) -> Figures:
    """Who is found while everybody comes and goes."""
    world = new_world(cell)
    recalls: list[float] = []
    found_count = dead_count = 0

    async def search() -> None:
        nonlocal found_count, dead_count
        agent = world.any_agent()
        expected = world.expected(agent.host.id)
        found = await _found_by(agent, None)
        if agent.host.is_up and expected:
            recalls.append(len(found & expected) / len(expected))
            found_count += len(found)
            dead_count += sum(not world.is_alive(owner) for owner in found)

    try:
        await world.start(cell.nodes, cell.providers)
        async with TaskScope("churn") as scope:
            churning = scope.spawn_awaited(world.churn(BITTORRENT), name="churn")
            await asyncio.sleep(CHURN_WARM_UP_S)
            await paced(CHURN_SEARCHES, CHURN_WINDOW_S / CHURN_SEARCHES, search)
            if churning.done():
                churning.result()
    finally:
        await world.stop()
    return {
        "churn_searches": len(recalls),
        "churn_recall": round(fmean(recalls), 4),
        "churn_dead_share": round(dead_count / max(found_count, 1), 4),
        "churn_digest": world.digest.hexdigest(),
    }


async def measure_load(world: DiscoveryWorld) -> Figures:
    """What all nodes do while everybody searches now and then, and those who offer announce themselves."""
    window_s = min(world.design.times.renew_s, MAX_LOAD_WINDOW_S)
    searches = round(len(world.agents) * window_s / 3600 * SEARCHES_PER_AGENT_HOUR)
    requests: list[int] = []

    async def search() -> None:
        agent = world.any_agent()
        made: list[str] = []
        REQUESTS.set(made)
        await agent.find(SOME)
        requests.append(len(made))

    world.digest.is_counting = True
    await paced(searches, window_s / searches, search)
    world.digest.is_counting = False
    nodes = [agent.host.id for agent in world.agents.values()]
    loads = world.digest.of(nodes)
    held = [agent.held() for agent in world.agents.values()]
    per_hour = 3600 / window_s
    return {
        "messages_per_agent_hour": round(world.digest.delivered / len(nodes) * per_hour, 1),
        "requests_per_search": round(fmean(requests), 2),
        **_spread("node_messages_hour", [load.messages * per_hour for load in loads]),
        **_spread("node_kib_hour", [load.size_bytes / 1024 * per_hour for load in loads]),
        **_spread("records_held", [each.records for each in held]),
        **_spread("kib_held", [each.size_bytes / 1024 for each in held]),
    }


async def measure_late_joiners(world: DiscoveryWorld, joiners: int = JOINERS) -> Figures:
    """Newcomers, one after another, each of whom searches as soon as it is in."""
    recalls: list[float] = []
    served: list[float] = []
    for _ in range(joiners):
        agent = await world.join()
        expected = world.expected(agent.host.id)
        some = await _found_by(agent, SOME)
        served.append(len(some & expected) >= min(SOME, len(expected)))
        recalls.append(len((await _found_by(agent, None)) & expected) / len(expected))
    return {"late_recall": round(fmean(recalls), 4), "late_served": round(fmean(served), 4)}


async def measure_disappearance(world: DiscoveryWorld) -> Figures:
    """How long after a crash a dead provider is still in anybody's answer."""
    life_s = world.design.times.life_s
    owners = sorted(world.providers)
    count = min(len(owners) - 1, max(MIN_CRASHED, round(CRASHED_SHARE * len(owners))))
    dead = world.rng.sample(owners, count)
    for owner in dead:
        world.kill(owner)
    died_s = world.loop.time()
    last_seen_s = dict.fromkeys(dead, 0.0)
    for _ in range(LOOKS_PER_LIFE + 2):
        await asyncio.sleep(life_s / LOOKS_PER_LIFE)
        for _ in range(SEARCHES_PER_LOOK):
            asked_s = world.loop.time() - died_s
            for owner in await _found_by(world.any_agent(), None):
                if owner in last_seen_s:
                    last_seen_s[owner] = asked_s
    times = list(last_seen_s.values())
    return {"gone_s_p50": round(quantile(times, 0.5), 1), "gone_s_p99": round(quantile(times, 0.99), 1)}


async def _found_by(agent: DesignAgent, limit: int | None) -> set[NodeID]:
    """Whom one search finds, but the searcher itself."""
    return set(await agent.find(limit)) - {agent.host.id}


def _spread(name: str, values: list[float]) -> Mapping[str, float]:
    return {f"{name}_mean": round(fmean(values), 2), f"{name}_max": round(max(values), 2)}


def new_world(cell: Cell) -> DiscoveryWorld:
    return DiscoveryWorld(cast("VirtualLoop", asyncio.get_running_loop()), new_design(cell.design), cell.seed)
