"""Faults from a timetable over an overlay with values, then quiet: no rule is broken, and every value is read again.

As the scenario `faults`, and meanwhile members put immutable values, and a few of them write and delete mutable ones,
which all read again and again. The more members, the more faults. After the quiet come `lookups` reads of values whose
storers did not all die. Each has to give what was acknowledged last, or a newer version; where that was deleted, its
tombstone.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from simulations.fault_player import FaultPlayer
from simulations.faults import FaultSpec, timetable
from simulations.member_values import KeptValue, MemberValues
from simulations.members import Member
from simulations.scenarios.base import MAX_NOTES, Outcome, Progress, Scenario, Settings
from simulations.scenarios.faults import (
    CONFIG as FAULTS_CONFIG,
)
from simulations.scenarios.faults import (
    DEFAULT_HOURS,
    FIND_PAUSE_S,
    MIN_SUCCESS_AFTER_FAULTS,
    disturb,
)
from simulations.scenarios.inspected import Inspected, grow, inspect_members
from simulations.world import World
from synapse_p2p.background import TaskScope

CONFIG = replace(FAULTS_CONFIG, replicate_s=300.0)
"""What reached a few storers alone is brought to the others by a copy, so there have to be some while it is quiet."""
FAULTS_PER_MEMBER = {"usual": 2.0, "stormy": 15.0}
"""Of each kind in an hour, at most, by variant."""
USE_PAUSE_S = 0.3
WRITERS = 4
"""Members with a mutable value: so few that everybody meets versions of the same ones."""
PUT_SHARE, WRITE_SHARE, DELETE_SHARE = 0.02, 0.15, 0.05
"""Of what is done in the phase of faults; the rest is read, mutable values as often as others."""


async def _play(world: World, settings: Settings, progress: Progress) -> Outcome:
    inspected = inspect_members(world, CONFIG)
    values = MemberValues(inspected.members)
    try:
        await grow(inspected, settings, progress)
        await _put_first(inspected, values)
        player = FaultPlayer(inspected.members)
        duration_s = (settings.hours or DEFAULT_HOURS) * 3600
        spec = FaultSpec(max_per_hour=FAULTS_PER_MEMBER[settings.variant or "usual"] * settings.nodes)
        planned = timetable(world.rng, spec, settings.nodes, duration_s)
        disturbed = _Reads(inspected, values)
        activities = [lambda scope: _use(disturbed, values, scope), lambda _: _forge(disturbed, values)]
        await disturb(inspected, player, planned, duration_s, activities, progress)
        await inspected.inspector.watch(inspected.members.config.records.lease_s)
        reads = _Reads(inspected, values)
        for count in range(1, settings.lookups + 1):
            await reads.read_one()
            await inspected.inspector.watch(0.0)
            progress("quiet", count, settings.lookups, reads.outcome({}))
        inspected.inspector.look_after_faults()
    finally:
        await inspected.members.stop()
    figures: dict[str, int | float | str] = {
        "faults": sum(player.counts.values()),
        "fault_kinds": ", ".join(f"{count} {kind}" for kind, count in sorted(player.counts.items())),
        "values": len(values.kept),
        "values_deleted": sum(kept.value is None for kept in values.kept.values()),
        "reads_disturbed": disturbed.count,
        "read_disturbed": disturbed.successes,
        "records_died_out": inspected.durability.all_holders_died,
    }
    return reads.outcome(figures)


async def _put_first(inspected: Inspected, values: MemberValues) -> None:
    async with TaskScope("puts") as scope:
        for number, member in enumerate(inspected.members.all):
            scope.spawn(values.put(member), name="put")
            if number < WRITERS:
                scope.spawn(values.write(member), name="write")
            await inspected.inspector.watch(USE_PAUSE_S)
        await inspected.inspector.watch(FIND_PAUSE_S)


async def _use(reads: _Reads, values: MemberValues, scope: TaskScope) -> None:
    """Begin to put, write, delete or read something now and then, for ever."""
    members, rng = reads.members, reads.members.world.rng
    while True:
        chance = rng.random()
        writer = rng.choice(members.all[:WRITERS])
        if chance < DELETE_SHARE:
            scope.spawn(values.delete(writer), name="delete")
        elif chance < DELETE_SHARE + WRITE_SHARE:
            scope.spawn(values.write(writer), name="write")
        elif chance < DELETE_SHARE + WRITE_SHARE + PUT_SHARE:
            scope.spawn(values.put(rng.choice(members.alive())), name="put")
        else:
            scope.spawn(reads.read_one(), name="read")
        await asyncio.sleep(USE_PAUSE_S)


async def _forge(reads: _Reads, values: MemberValues) -> None:
    """Have somebody forge a version of a mutable value now and then, for ever."""
    members, rng = reads.members, reads.members.world.rng
    while True:
        forger, victim = (rng.choice(members.alive()) for _ in range(2))
        owner = rng.choice(members.all[:WRITERS])
        if forger not in (victim, owner):
            await values.forge(forger, victim, owner)
        await asyncio.sleep(FIND_PAUSE_S)


class _Reads:
    """Reads by random members of random values that are owed, and how they went."""

    def __init__(self, inspected: Inspected, values: MemberValues) -> None:
        self.count = 0
        self.successes = 0
        self.notes: list[str] = []
        self.members = inspected.members
        self._durability = inspected.durability
        self._values = values

    async def read_one(self) -> None:
        """One read; it counts if the reader lived to its end. Nothing where there is nothing to be read."""
        world, alive = self.members.world, self.members.alive()
        is_mutable = world.rng.random() < 0.5
        owed = [
            kept
            for kept in self._values.kept.values()
            if kept.is_mutable == is_mutable and self._durability.is_owed(kept.key, kept.slot)
        ]
        if not owed:
            return
        reader, wanted = world.rng.choice(alive), world.rng.choice(owed)
        life, began_at_s = reader.life, world.network.loop.time()
        is_read = await self._values.read(reader, wanted)
        if not is_read and reader.life != life:
            return
        self.count += 1
        self.successes += is_read
        world.note_lookup("read", began_at_s, is_success=is_read)
        if not is_read:
            self._note(reader, wanted)

    def outcome(self, figures: dict[str, int | float | str]) -> Outcome:
        """So far."""
        return Outcome(self.count, self.successes, (), self.notes, MIN_SUCCESS_AFTER_FAULTS, figures)

    def _note(self, reader: Member, wanted: KeptValue) -> None:
        if len(self.notes) < MAX_NOTES:
            at_s = self.members.world.network.loop.time()
            kind = "mutable" if wanted.is_mutable else "immutable"
            self.notes.append(
                f"at {at_s:.6f} s {reader.id.hex()[:16]} did not get the {kind} value {wanted.key.hex()[:16]}"
            )


OVERLAY_FAULTS = Scenario(
    "overlay-faults",
    "faults from a timetable while values are put, changed, deleted and read; then quiet",
    _play,
    {name: f"at most {rate:g} faults of each kind an hour for each member" for name, rate in FAULTS_PER_MEMBER.items()},
)
