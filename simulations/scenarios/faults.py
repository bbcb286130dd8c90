"""Faults from a timetable, then quiet: nothing may break a rule meanwhile, and afterwards everybody finds everybody.

Phase A lasts `hours`, a tenth of an hour without: crashes, restarts, freezes, stalls, suspends, wrong clocks,
partitions and loss, as often as the seed says; members publish and renew, search for each other, and somebody forges
records all the time. Then the faults end, and after a lease, in which all records come anew, come `lookups` searches,
which all have to succeed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeAlias

from dht.config import DHTConfig, LookupConfig, RoutingConfig
from simulations.fault_player import FaultPlayer
from simulations.faults import FaultSpec, PlannedFault, timetable
from simulations.scenarios.base import Outcome, Progress, Scenario, Settings
from simulations.scenarios.inspected import Finds, Inspected, grow, inspect_members
from simulations.world import World
from synapse_p2p.background import TaskScope

DEFAULT_HOURS = 0.1
FIND_PAUSE_S = 2.0
"""Between the searches, and between the forgeries, of phase A: several are under way during most faults."""
K = 8  # of buckets and storers: with the usual 20 all of a small world would store everything
WATCH_S = 10.0  # between two words of progress
MIN_SUCCESS_AFTER_FAULTS = 1.0
CONFIG = DHTConfig(lookup=LookupConfig(k=K), routing=RoutingConfig(k=K))

Activity: TypeAlias = Callable[[TaskScope], Coroutine[Any, Any, None]]
"""What members do all the time; what it begins belongs to the scope."""


async def _play(world: World, settings: Settings, progress: Progress) -> Outcome:
    inspected = inspect_members(world, CONFIG)
    try:
        await grow(inspected, settings, progress)
        player = FaultPlayer(inspected.members)
        disturbed = await _phase_of_faults(world, settings, inspected, player, progress)
        finds = Finds(inspected.members)
        await inspected.inspector.watch(inspected.members.config.records.lease_s)
        for count in range(1, settings.lookups + 1):
            await finds.find_one()
            await inspected.inspector.watch(0.0)
            progress("quiet", count, settings.lookups, finds.outcome(MIN_SUCCESS_AFTER_FAULTS))
        inspected.inspector.look_after_faults()
    finally:
        await inspected.members.stop()
    return finds.outcome(MIN_SUCCESS_AFTER_FAULTS, _figures(inspected, player, disturbed))


async def _phase_of_faults(
    world: World, settings: Settings, inspected: Inspected, player: FaultPlayer, progress: Progress
) -> Finds:
    """The searches while the faults were on."""
    duration_s = (settings.hours or DEFAULT_HOURS) * 3600
    planned = timetable(world.rng, FaultSpec(), settings.nodes, duration_s)
    finds = Finds(inspected.members)
    activities: list[Activity] = [lambda scope: search(finds, scope), lambda _: forge(world, inspected)]
    await disturb(inspected, player, planned, duration_s, activities, progress)
    return finds


async def disturb(
    inspected: Inspected,
    player: FaultPlayer,
    planned: Sequence[PlannedFault],
    duration_s: float,
    activities: Sequence[Activity],
    progress: Progress,
) -> None:
    """Play a timetable, and look on, while the members are busy with these."""
    async with TaskScope("faults") as scope:
        tasks = [scope.spawn_awaited(player.play(planned), name="faults")]
        tasks += [scope.spawn_awaited(activity(scope)) for activity in activities]
        left_s = duration_s
        while left_s > 0:
            await inspected.inspector.watch(min(WATCH_S, left_s), tasks)
            left_s -= WATCH_S
            progress("faults", round(duration_s - max(0.0, left_s)), round(duration_s))
        await tasks[0]  # all that is down comes back at this very moment


async def search(finds: Finds, scope: TaskScope) -> None:
    """Begin a search for an agent now and then, for ever."""
    while True:
        scope.spawn(finds.find_one(), name="search")
        await asyncio.sleep(FIND_PAUSE_S)


async def forge(world: World, inspected: Inspected) -> None:
    """Offer a forgery of somebody's record to somebody now and then, for ever."""
    while True:
        forger, victim, owner = (world.rng.choice(inspected.members.alive()) for _ in range(3))
        if forger is not victim:
            await forger.offer_forgery(victim, owner)
        await asyncio.sleep(FIND_PAUSE_S)


def _figures(inspected: Inspected, player: FaultPlayer, disturbed: Finds) -> dict[str, int | float | str]:
    return {
        "faults": sum(player.counts.values()),
        "fault_kinds": ", ".join(f"{count} {kind}" for kind, count in sorted(player.counts.items())),
        "finds_disturbed": disturbed.count,
        "found_disturbed": disturbed.successes,
        "records_died_out": inspected.durability.all_holders_died,
    }


FAULTS = Scenario("faults", "faults from a timetable, six rules checked at every step, then quiet", _play)
