"""What a lookup takes: hops, requests and time, early beside strict, cold and warm, in a swarm in which nobody is dead.

Half of the lookups are early and half strict, of random keys from random nodes. Each is made twice: the first is cold,
for most of those it asks have no session with the searcher; the second is warm. Hops and requests are of the first.
The hop of a contact of one's own is 1, and one more than that of whoever named it for others.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

from dht.lookup import LookupMode
from simulations.scenarios.base import Outcome, Progress, Scenario, Settings
from simulations.scenarios.lookups import EARLY_SUCCESS, PAUSE_S
from simulations.statistics import quantile, wilson_low
from simulations.world import World
from synapse_p2p.background import TaskScope


@dataclass(slots=True)
class _Lookups:
    """Those of one mode."""

    hops: list[int] = field(default_factory=list)
    """Of those that found the node nearest to their key."""
    asked: list[int] = field(default_factory=list)
    cold_s: list[float] = field(default_factory=list)
    warm_s: list[float] = field(default_factory=list)

    def figures(self, name: str) -> dict[str, int | float | str]:
        figures: dict[str, int | float | str] = {f"{name}_requests_mean": round(fmean(self.asked), 3)}
        for state, seconds in (("cold", self.cold_s), ("warm", self.warm_s)):
            figures[f"{name}_{state}_ms_mean"] = round(1000 * fmean(seconds), 1)
            figures[f"{name}_{state}_ms_p99"] = round(1000 * quantile(seconds, 0.99), 1)
        return figures


def expected_hops(nodes: int) -> float:
    """In a network of this size whose tables an oracle filled: fitted to a model with k = 20."""
    return 0.38 + 0.149 * math.log2(nodes)


async def _play(world: World, settings: Settings, progress: Progress) -> Outcome:
    joined = itertools.count(1)
    await world.grow(settings.nodes, lambda: progress("join", next(joined), settings.nodes))
    loop = asyncio.get_running_loop()
    first_at = loop.time()
    early, strict = _Lookups(), _Lookups()
    ended = itertools.count(1)

    async def look_up(mode: LookupMode) -> None:
        await _look_up_twice(world, mode, early if mode is LookupMode.EARLY else strict)
        done = next(ended)
        progress("lookups", done, settings.lookups, _outcome(settings, early, strict, done))

    async with TaskScope("lookups") as scope:
        under_way = []
        for count in range(1, settings.lookups + 1):
            under_way.append(scope.spawn_awaited(look_up(LookupMode.EARLY if count % 2 else LookupMode.STRICT)))
            await asyncio.sleep(first_at + count * PAUSE_S - loop.time())
        for lookup in under_way:
            await lookup
    return _outcome(settings, early, strict, settings.lookups)


async def _look_up_twice(world: World, mode: LookupMode, lookups: _Lookups) -> None:
    loop = asyncio.get_running_loop()
    searcher, target = world.rng.choice(world.nodes), world.random_key()
    began_at = loop.time()
    outcome = await searcher.lookup(target, mode)
    lookups.cold_s.append(loop.time() - began_at)
    lookups.asked.append(outcome.asked)
    if outcome.closest and outcome.closest[0].id == world.closest_other(target, searcher).id:
        lookups.hops.append(outcome.hops or 0)
    began_at = loop.time()
    await searcher.lookup(target, mode)
    lookups.warm_s.append(loop.time() - began_at)


def _outcome(settings: Settings, early: _Lookups, strict: _Lookups, count: int) -> Outcome:
    hops: Sequence[int] = [*early.hops, *strict.hops]
    figures: dict[str, int | float | str] = {}
    if count == settings.lookups and early.asked and strict.asked and hops:
        figures = {**early.figures("early"), **strict.figures("strict")}
        figures["hops_mean"] = round(fmean(hops), 4)
        figures["hops_to_formula_mean"] = round(fmean(hops) / expected_hops(settings.nodes), 4)
        figures["early_to_strict_mean"] = round(fmean(early.asked) / fmean(strict.asked), 4)
        figures["early_lookups"] = len(early.asked)
        figures["early_nearest"] = len(early.hops)
        figures["early_nearest_low"] = round(wilson_low(len(early.hops), len(early.asked)), 5)
    return Outcome(count, len(hops), hops, (), EARLY_SUCCESS, figures)


STEPS = Scenario("steps", "hops, requests and time of early and strict lookups, cold and warm", _play)
