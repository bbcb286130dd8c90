"""What a lookup takes: hops, requests and time, early beside strict, cold and warm, in a swarm in which nobody is dead.

Half of the lookups are early and half strict, of random keys from random nodes. Each is made twice: the first is cold,
for most of those it asks have no session with the searcher; the second is warm. Hops and requests are of the first.
The hop of a contact of one's own is 1, and one more than that of whoever named it for others.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

from dht.lookup import LookupMode
from simulations import sabotage
from simulations.model import expected_hops
from simulations.scenarios.base import Outcome, Progress, Scenario, Settings
from simulations.scenarios.lookups import EARLY_SUCCESS, PAUSE_S
from simulations.scenarios.phases import grow, paced
from simulations.statistics import quantile, wilson_low
from simulations.virtual_loop import VirtualLoop
from simulations.world import UNDISTURBED, World


@dataclass(slots=True)
class _Lookups:
    """Those of one mode."""

    nearest: int = 0
    """How many found the node nearest to their key."""
    asked: list[int] = field(default_factory=list)
    cold_s: list[float] = field(default_factory=list)
    warm_s: list[float] = field(default_factory=list)

    def figures(self, name: str) -> dict[str, int | float | str]:
        figures: dict[str, int | float | str] = {f"{name}_requests_mean": round(fmean(self.asked), 3)}
        for state, seconds in (("cold", self.cold_s), ("warm", self.warm_s)):
            figures[f"{name}_{state}_ms_mean"] = round(1000 * fmean(seconds), 1)
            figures[f"{name}_{state}_ms_p99"] = round(1000 * quantile(seconds, 0.99), 1)
        return figures


async def _play(world: World, settings: Settings, progress: Progress) -> Outcome:
    await grow(world, settings, progress)
    early, strict = _Lookups(), _Lookups()
    modes = itertools.cycle(((LookupMode.EARLY, early), (LookupMode.STRICT, strict)))
    hops: list[int] = []
    ended = itertools.count(1)

    async def look_up(mode: LookupMode, lookups: _Lookups) -> None:
        await _look_up_twice(world, mode, lookups, hops)
        done = next(ended)
        progress("lookups", done, settings.lookups, Outcome(done, len(hops), hops, (), EARLY_SUCCESS))

    await paced(settings.lookups, PAUSE_S, lambda: look_up(*next(modes)))
    figures = _figures(settings, early, strict, hops)
    return Outcome(settings.lookups, len(hops), hops, (), EARLY_SUCCESS, figures)


async def _look_up_twice(world: World, mode: LookupMode, lookups: _Lookups, hops: list[int]) -> None:
    """`hops` is given those of the first, where it found the nearest node."""
    loop = asyncio.get_running_loop()
    searcher, target = world.rng.choice(world.nodes), world.random_key()
    began_at = loop.time()
    outcome = await searcher.lookup(target, mode)
    lookups.cold_s.append(loop.time() - began_at)
    lookups.asked.append(outcome.asked)
    is_nearest = bool(outcome.closest) and outcome.closest[0].id == world.closest_other(target, searcher).id
    world.note_lookup(f"{mode.value}, cold", began_at, is_success=is_nearest)
    world.note_trace(searcher.id, outcome, k=UNDISTURBED.lookup.k, is_success=is_nearest)
    if is_nearest:
        lookups.nearest += 1
        hops.append(outcome.hops or 0)
    began_at = loop.time()
    await searcher.lookup(target, mode)
    lookups.warm_s.append(loop.time() - began_at)
    world.samples.add_seconds(f"{mode.value}, warm", lookups.warm_s[-1])


def _figures(
    settings: Settings, early: _Lookups, strict: _Lookups, hops: Sequence[int]
) -> dict[str, int | float | str]:
    if not (early.asked and strict.asked and hops):
        return {}
    return {
        **early.figures("early"),
        **strict.figures("strict"),
        "hops_mean": round(fmean(hops), 4),
        "hops_to_formula_mean": round(fmean(hops) / expected_hops(settings.nodes), 4),
        "early_to_strict_mean": round(fmean(early.asked) / fmean(strict.asked), 4),
        "early_lookups": len(early.asked),
        "early_nearest": early.nearest,
        "early_nearest_low": round(wilson_low(early.nearest, len(early.asked)), 5),
    }


class _StepsScenario(Scenario):
    """One that can go without a defence."""

    def new_world(self, loop: VirtualLoop, settings: Settings) -> World:
        """See Scenario."""
        config = sabotage.dht_config(UNDISTURBED, settings.sabotage)
        return World(loop, seed=settings.seed, start=settings.start, wire=settings.wire, config=config)


STEPS = _StepsScenario(
    "steps",
    "hops, requests and time of early and strict lookups, cold and warm",
    _play,
    sabotages=("small-buckets",),
)
