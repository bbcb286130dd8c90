"""Plain lookups: everybody joins by protocol, then random nodes look for random keys.

A lookup succeeds when the nearest node that answered is the nearest of all, which the onlooker knows. With `hours` the
lookups are spread evenly over that time, in which the swarm maintains itself; without, each follows the one before.
"""

from __future__ import annotations

import asyncio
import itertools

from dht.keyspace import Key
from dht.lookup import LookupMode
from dht.node import DHTNode
from simulations.scenarios.base import MAX_NOTES, Outcome, Progress, Scenario, Settings
from simulations.world import World

SECONDS_PER_HOUR = 3600.0


async def _play(world: World, settings: Settings, progress: Progress) -> Outcome:
    joined = itertools.count(1)
    await world.grow(settings.nodes, lambda: progress("join", next(joined), settings.nodes))
    loop = asyncio.get_running_loop()
    first_at = loop.time()
    pause_s = (settings.hours or 0.0) * SECONDS_PER_HOUR / settings.lookups
    hops: list[int] = []
    notes: list[str] = []
    outcome = Outcome(0, 0, hops, notes)
    for count in range(1, settings.lookups + 1):
        taken = await _look_up(world, notes)
        if taken is not None:
            hops.append(taken)
        outcome = Outcome(count, len(hops), hops, notes)
        progress("lookups", count, settings.lookups, outcome)
        if pause_s:
            await asyncio.sleep(first_at + count * pause_s - loop.time())
    return outcome


async def _look_up(world: World, notes: list[str]) -> int | None:
    """The hops of a lookup that found what it had to; None for one that did not, of which there is a note."""
    searcher: DHTNode = world.rng.choice(world.nodes)
    target: Key = world.random_key()
    outcome = await searcher.lookup(target, LookupMode.STRICT)
    found = outcome.closest[0].id if outcome.closest else None
    nearest = world.closest_other(target, searcher).id
    if found == nearest:
        return outcome.hops or 0
    if len(notes) < MAX_NOTES:
        at_s = asyncio.get_running_loop().time()
        what = "nobody" if found is None else found.hex()
        notes.append(
            f"at {at_s:.6f} s {searcher.id.hex()} looked for {target.hex()}: found {what}, not {nearest.hex()}"
        )
    return None


LOOKUPS = Scenario("lookups", "join by protocol, then strict lookups of random keys from random nodes", _play)
