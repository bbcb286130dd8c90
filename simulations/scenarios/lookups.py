"""Plain lookups: everybody joins by protocol, then random nodes look for random keys.

A lookup succeeds when the nearest node that answered is the nearest of all, which the onlooker knows.
"""

from __future__ import annotations

import itertools

from dht.lookup import LookupMode
from simulations.scenarios.base import Outcome, Progress, Scenario, Settings
from simulations.world import World


async def _play(world: World, settings: Settings, progress: Progress) -> Outcome:
    joined = itertools.count(1)
    await world.grow(settings.nodes, lambda: progress("join", next(joined), settings.nodes))
    successes = 0
    hops: list[int] = []
    for count in range(settings.lookups):
        searcher = world.rng.choice(world.nodes)
        target = world.random_key()
        outcome = await searcher.lookup(target, LookupMode.STRICT)
        if outcome.closest and outcome.closest[0].id == world.closest_other(target, searcher).id:
            successes += 1
            hops.append(outcome.hops or 0)
        progress("lookups", count + 1, settings.lookups)
    return Outcome(settings.lookups, successes, hops)


LOOKUPS = Scenario("lookups", "join by protocol, then strict lookups of random keys from random nodes", _play)
