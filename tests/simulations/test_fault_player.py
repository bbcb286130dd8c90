"""Faults, as they are done to members of a world; and members, as they come and go."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from dht.config import DHTConfig
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
from simulations.members import Member, Members
from simulations.virtual_loop import VirtualLoop, run
from simulations.world import World
from synapse_p2p.identity import NodeID

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

    def __init__(self, loop: VirtualLoop, *, wire: bool) -> None:
        self.world = World(loop, seed=1, wire=wire)
        self.history = History(self.world.network.awake_s)
        self.members = Members(self.world, self.history, DHTConfig())
        self.player = FaultPlayer(self.members)

    def hear(self, member: Member) -> list[str]:
        """What arrives from now on, from this member or at it."""
        heard: list[str] = []
        digest = self.world.network.digest
        add_message = digest.add_message

        def note(at_us: int, source: NodeID, target: NodeID, endpoint: str, body: bytes) -> None:
            if member.id in (source, target):
                heard.append(endpoint)
            add_message(at_us, source, target, endpoint, body)

        digest.add_message = note
        return heard


def on_stage(check: Callable[[Stage], Awaitable[None]], *, wire: bool = False) -> Stage:
    async def main() -> Stage:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        stage = Stage(loop, wire=wire)
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


@pytest.mark.parametrize("wire", [False, True])
def test_members_join_and_publish_by_themselves_and_find_each_other(wire: bool):
    async def check(stage: Stage) -> None:
        for member in stage.members.all:
            assert member.is_published
            assert await member.find(stage.members.all[0])

    stage = on_stage(check, wire=wire)

    assert {record.slot for record in stage.history.acknowledged} == {member.id for member in stage.members.all}
    assert {read.name for read in stage.history.reads} >= {stage.members.all[0].id}


@pytest.mark.parametrize("wire", [False, True])
@pytest.mark.parametrize("with_state", [True, False])
def test_a_member_restarts_with_what_it_stored_or_with_nothing(with_state: bool, wire: bool):
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

    on_stage(check, wire=wire)


@pytest.mark.parametrize("wire", [False, True])
def test_a_member_that_crashed_or_left_is_found_no_more_than_its_record_and_asks_nothing(wire: bool):
    async def check(stage: Stage) -> None:
        crashed, left = stage.members.all[1:3]
        crashed.crash()
        left.leave()

        assert stage.members.alive() == [stage.members.all[0], stage.members.all[3]]
        assert not await crashed.find(left)
        await asyncio.sleep(5)
        assert not any(member.host.is_up for member in (crashed, left))

    on_stage(check, wire=wire)


def test_suspend_lets_the_wall_clock_run_ahead_and_skew_sets_it_wrong():
    async def check(stage: Stage) -> None:
        clock = stage.members.all[3].clock
        wall_s, monotonic_s = clock.unix_now(), clock.now()

        stage.player.apply(Suspend(3, 30.0))
        stage.player.apply(ClockSkew(3, -5.0))
        await asyncio.sleep(40)

        assert clock.unix_now() - wall_s == pytest.approx(35.0)
        assert clock.now() - monotonic_s == pytest.approx(10.0)

    on_stage(check)


@pytest.mark.parametrize("wire", [False, True])
@pytest.mark.parametrize(
    "fault", [Freeze(2, 5.0), LoopStall(2, 5.0), Suspend(2, 5.0), Partition((2,), one_way=False, duration_s=5.0)]
)
def test_a_member_that_is_held_up_neither_hears_nor_says_anything_and_is_there_again_afterwards(
    fault: Fault, wire: bool
):
    async def check(stage: Stage) -> None:
        held_up, other = stage.members.all[2:4]
        heard = stage.hear(held_up)

        stage.player.apply(fault)
        searches = [asyncio.ensure_future(held_up.find(other)), asyncio.ensure_future(other.find(held_up))]
        await asyncio.sleep(4.9)
        heard_meanwhile = list(heard)
        await asyncio.gather(*searches)
        await asyncio.sleep(6)

        assert heard_meanwhile == []
        assert heard
        assert await held_up.find(other)
        assert await other.find(held_up)

    on_stage(check, wire=wire)


def test_of_losses_at_one_time_the_largest_counts_and_all_end():
    async def check(stage: Stage) -> None:
        links = stage.world.network.links
        for fault in (Loss(0.2, 3.0), Loss(0.1, 9.0), Loss(0.3, 1.0)):
            stage.player.apply(fault)

        losses = []
        for _ in range(4):
            await asyncio.sleep(0.5)
            losses.append(links._quality.loss)
            await asyncio.sleep(2.5)

        assert losses == [0.3, 0.1, 0.1, 0.0]
        assert links.is_perfect

    on_stage(check)


@pytest.mark.parametrize("fault", [Freeze(1, 60.0), Suspend(1, 60.0)])
def test_a_member_that_restarts_in_a_pause_lives_at_once(fault: Fault):
    async def check(stage: Stage) -> None:
        member = stage.members.all[1]

        stage.player.apply(fault)
        await asyncio.sleep(5)
        stage.player.apply(Crash(1))
        stage.player.apply(fault)  # there is nothing that could stand still
        stage.player.apply(Restart(1, with_state=True))
        begun_at_s = member.clock.now()
        await asyncio.sleep(20)

        assert member.is_published
        assert member.clock.now() - begun_at_s == pytest.approx(20.0)

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
