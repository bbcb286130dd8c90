"""Plain lookups: everybody joins by protocol, then random nodes look for random keys.

A lookup succeeds when the nearest node that answered is the nearest of all, which the onlooker knows. As whoever looks
for one node does, it ends when the 3 nearest have answered; the variant `strict` asks all of the k nearest. With
`hours` the lookups begin evenly spread over that time, in which the swarm maintains itself; without, in as quick
succession as a busy swarm's would.
"""

from __future__ import annotations

import asyncio
import itertools

from dht.keyspace import Key
from dht.lookup import LookupMode
from dht.node import DHTNode
from simulations.scenarios.base import MAX_NOTES, Outcome, Progress, Scenario, Settings
from simulations.scenarios.phases import grow, paced
from simulations.world import UNDISTURBED, World

SECONDS_PER_HOUR = 3600.0
PAUSE_S = 0.02
"""Between the beginnings of two lookups; each takes about a second, so some dozens are under way."""
EARLY_SUCCESS = 0.999
"""A lookup that does not ask all who might be nearer finds the nearest at least so often."""
_STRICT = "strict"


async def _play(world: World, settings: Settings, progress: Progress) -> Outcome:
    await grow(world, settings, progress)
    mode = LookupMode.STRICT if settings.variant == _STRICT else LookupMode.EARLY
    required = 1.0 if mode is LookupMode.STRICT else EARLY_SUCCESS
    pause_s = PAUSE_S if settings.hours is None else settings.hours * SECONDS_PER_HOUR / settings.lookups
    hops: list[int] = []
    notes: list[str] = []
    ended = itertools.count(1)

    async def look_up() -> None:
        taken = await _look_up(world, mode, notes)
        if taken is not None:
            hops.append(taken)
        done = next(ended)
        progress("lookups", done, settings.lookups, Outcome(done, len(hops), hops, notes, required))

    await paced(settings.lookups, pause_s, look_up)
    return Outcome(settings.lookups, len(hops), hops, notes, required)


async def _look_up(world: World, mode: LookupMode, notes: list[str]) -> int | None:
    """The hops of a lookup that found what it had to; None for one that did not, of which there is a note."""
    searcher: DHTNode = world.rng.choice(world.nodes)
    target: Key = world.random_key()
    began_at_s = asyncio.get_running_loop().time()
    outcome = await searcher.lookup(target, mode)
    found = outcome.closest[0].id if outcome.closest else None
    nearest = world.closest_other(target, searcher).id
    world.note_lookup(mode.value, began_at_s, is_success=found == nearest)
    world.note_trace(searcher.id, outcome, k=UNDISTURBED.lookup.k, is_success=found == nearest)
    if found == nearest:
        return outcome.hops or 0
    if len(notes) < MAX_NOTES:
        at_s = asyncio.get_running_loop().time()
        what = "nobody" if found is None else found.hex()
        notes.append(
            f"at {at_s:.6f} s {searcher.id.hex()} looked for {target.hex()}: found {what}, not {nearest.hex()}"
        )
    return None


LOOKUPS = Scenario(
    "lookups",
    "join by protocol, then lookups of random keys from random nodes",
    _play,
    {
        "early": "for the node nearest to a key: a lookup ends when the 3 nearest have answered",
        _STRICT: "for the k nearest: a lookup ends when all of them have answered",
    },
    config=UNDISTURBED,
)
