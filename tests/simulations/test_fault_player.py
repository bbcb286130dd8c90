"""Faults, as they are done to members of a world; and members, as they come and go."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from dht.config import DHTConfig
from simulations.disturbance import Disturbance
from simulations.fault_player import FaultPlayer
from simulations.faults import (
    ClockSkew,
    Crash,
    Fault,
    Freeze,
    LoopStall,
    Loss,
    Partition,
    PlannedFault,
    Restart,
    Suspend,
)
from simulations.history import History
from simulations.members import Members
from simulations.virtual_loop import VirtualLoop, run
from simulations.world import World

COUNT = 4
EVERY_FAULT = [
    Crash(1),
    Restart(1, with_state=True),
    Freeze(2, 3.0),
    LoopStall(2, 3.0),
    Suspend(3, 3.0),
    ClockSkew(3, 10.0),
    Partition((1, 2), one_way=True, duration_s=3.0),
    Loss(0.2, 3.0),
]


class Stage:
    """A small world, grown, with a player."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.disturbance = Disturbance(loop, random.Random(2))
        self.world = World(loop, seed=1, latency=self.disturbance)
        self.history = History(loop.time)
        self.members = Members(self.world, self.history, DHTConfig())
        self.player = FaultPlayer(self.members, self.disturbance)


def on_stage(check: Callable[[Stage], Awaitable[None]]) -> Stage:
    async def main() -> Stage:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        stage = Stage(loop)
        for _ in range(COUNT):
            stage.members.add()
            await asyncio.sleep(0.5)
        await asyncio.sleep(20)
        await check(stage)
        await stage.members.stop()
        await asyncio.sleep(30)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert stage.history.open_requests == {}
        return stage

    return run(main())


def test_members_join_and_publish_by_themselves_and_find_each_other():
    async def check(stage: Stage) -> None:
        for member in stage.members.all:
            assert member.is_published
            assert await member.find(stage.members.all[0])

    stage = on_stage(check)

    assert {record.owner for record in stage.history.acknowledged} == {member.id for member in stage.members.all}
    assert {read.owner for read in stage.history.reads} >= {stage.members.all[0].id}


@pytest.mark.parametrize("with_state", [True, False])
def test_a_member_restarts_with_what_it_stored_or_with_nothing(with_state: bool):
    async def check(stage: Stage) -> None:
        member = stage.members.all[1]
        held = len(member.store)

        stage.player.apply(Crash(1))
        assert not member.is_alive
        await asyncio.sleep(1)
        stage.player.apply(Restart(1, with_state))

        assert (member.is_alive, member.life) == (True, 1)
        assert len(member.store) == (held if with_state else 0)
        await asyncio.sleep(20)
        assert member.is_published
        assert await member.find(stage.members.all[2])

    on_stage(check)


def test_a_member_that_crashed_or_left_is_found_no_more_than_its_record_and_asks_nothing():
    async def check(stage: Stage) -> None:
        crashed, left = stage.members.all[1:3]
        crashed.crash()
        left.leave()

        assert stage.members.alive() == [stage.members.all[0], stage.members.all[3]]
        assert not await crashed.find(left)

    on_stage(check)


def test_suspend_lets_the_wall_clock_run_ahead_and_skew_sets_it_wrong():
    async def check(stage: Stage) -> None:
        clock = stage.members.all[3].clock
        wall_s, monotonic_s = clock.unix_now(), clock.now()

        stage.player.apply(Suspend(3, 30.0))
        stage.player.apply(ClockSkew(3, -5.0))
        await asyncio.sleep(40)

        assert clock.unix_now() - wall_s == pytest.approx(35.0)
        assert clock.now() - monotonic_s == pytest.approx(10.0, abs=0.1)

    on_stage(check)


@pytest.mark.parametrize("fault", [Freeze(2, 5.0), LoopStall(2, 5.0), Partition((2,), one_way=False, duration_s=5.0)])
def test_a_member_that_is_held_up_is_there_again_afterwards(fault: Fault):
    async def check(stage: Stage) -> None:
        held_up, other = stage.members.all[2:4]

        stage.player.apply(fault)
        delay_s = stage.disturbance(other.id, held_up.id)
        await asyncio.sleep(6)

        assert delay_s >= 5.0
        assert stage.disturbance(other.id, held_up.id) < 0.1
        assert await held_up.find(other)

    on_stage(check)


def test_every_fault_is_counted_and_is_part_of_the_digest():
    async def check(stage: Stage) -> None:
        for fault in EVERY_FAULT:
            before = stage.world.digest.hexdigest()
            stage.player.apply(fault)
            assert stage.world.digest.hexdigest() != before

    stage = on_stage(check)

    assert stage.player.counts == {type(fault).__name__: 1 for fault in EVERY_FAULT}


def test_a_timetable_is_played_at_its_times():
    async def check(stage: Stage) -> None:
        loop = asyncio.get_running_loop()
        begun_at_s = loop.time()

        await stage.player.play([PlannedFault(1.0, Crash(1)), PlannedFault(7.0, Restart(1, with_state=False))])

        assert loop.time() - begun_at_s == pytest.approx(7.0)
        assert stage.members.all[1].is_alive

    on_stage(check)


async def forge(stage: Stage) -> None:
    forger, victim, owner = stage.members.all[1:4]
    accepted = len(stage.history.accepted)
    for _ in range(20):
        await forger.offer_forgery(victim, owner)
    assert len(stage.history.accepted) == accepted


def test_a_forged_record_is_offered_and_not_taken():
    on_stage(forge)
