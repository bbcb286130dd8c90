"""Nodes that come and go as people were measured to: sessions are Weibull(0.40, 42 min), whoever leaves is replaced.

Each member publishes a record and renews it. For `hours`, half of one without, `lookups` searches are spread evenly
over that time, and the rules are checked at every step. Half of those that go say goodbye, half crash. The first member
stays: somebody has to be there through whom others join.
"""

from __future__ import annotations

import asyncio

from dht.config import DHTConfig
from simulations.churn import BITTORRENT
from simulations.members import Member, Members
from simulations.scenarios.base import Outcome, Progress, Scenario, Settings
from simulations.scenarios.inspected import Finds, grow, inspect_members
from simulations.world import World
from synapse_p2p.background import TaskScope

DEFAULT_HOURS = 0.5
MIN_SUCCESS = 0.99
"""Of the searches for records that their owner knows to be kept: a storer may have left a moment ago."""


async def _play(world: World, settings: Settings, progress: Progress) -> Outcome:
    inspected = inspect_members(world, DHTConfig())
    finds = Finds(inspected.members)
    lives = _Lives(inspected.members)
    pause_s = (settings.hours or DEFAULT_HOURS) * 3600 / settings.lookups
    try:
        added = await grow(inspected, settings, progress)
        async with TaskScope("churn") as scope:
            tasks = [scope.spawn_awaited(lives.live(member)) for member in added[1:]]
            for count in range(1, settings.lookups + 1):
                scope.spawn(finds.find_one(), name="search")
                await inspected.inspector.watch(pause_s, tasks)
                progress("churn", count, settings.lookups, finds.outcome(MIN_SUCCESS))
            await inspected.inspector.watch(inspected.members.find_timeout_s, tasks)
        inspected.inspector.look_after_faults()
    finally:
        await inspected.members.stop()
    died = inspected.durability.all_holders_died
    return finds.outcome(MIN_SUCCESS, {"sessions_ended": lives.ended, "records_died_out": died})


class _Lives:
    """One place in the swarm after the other, each filled by one member at a time."""

    def __init__(self, members: Members) -> None:
        self.ended = 0
        self._members = members

    async def live(self, member: Member) -> None:
        """Let this member stay for a session, and another take its place, for ever."""
        rng = self._members.world.rng
        while True:
            await asyncio.sleep(BITTORRENT.draw(rng))
            if rng.random() < 0.5:
                member.leave()
            else:
                member.crash()
            self.ended += 1
            self._members.forget(member)
            member = self._members.add()


CHURN = Scenario("churn", "sessions of Weibull(0.40, 42 min), searches for agents, rules checked at every step", _play)
