"""Plays a timetable of faults on the members of a world. Each fault is part of the digest, and of the trace.

Faults end by themselves; a crash ends by its restart, a clock's error by the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from simulations.disturbance import Disturbance
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
from simulations.members import Member, Members


class FaultPlayer:
    """Does to members what a timetable says. `counts` has how many faults of each kind took place."""

    def __init__(self, members: Members, disturbance: Disturbance) -> None:
        self.counts: dict[str, int] = {}
        self._members = members
        self._disturbance = disturbance

    async def play(self, planned: Sequence[PlannedFault]) -> None:
        """Live through the timetable, from now on; over when the last fault has begun."""
        loop = asyncio.get_running_loop()
        begun_at_s = loop.time()
        for fault in planned:
            await asyncio.sleep(begun_at_s + fault.at_s - loop.time())
            self.apply(fault.fault)

    def apply(self, fault: Fault) -> None:
        """Let it happen now. A crash of a host that is down changes nothing, nor does a restart of one that is up."""
        name = type(fault).__name__
        self.counts[name] = self.counts.get(name, 0) + 1
        match fault:
            case Partition(cut, one_way, duration_s):
                inside = frozenset(self._member(host).id for host in cut)
                self._note(self._member(cut[0]), str(fault))
                self._disturbance.cut(inside, one_way=one_way, duration_s=duration_s)
            case Loss(share, duration_s):
                self._note(self._member(0), str(fault))
                self._disturbance.lose(share, duration_s)
            case _:
                self._apply_to_one(self._member(fault.host), fault)

    def _apply_to_one(self, member: Member, fault: Crash | Restart | Freeze | LoopStall | Suspend | ClockSkew) -> None:
        self._note(member, str(fault))
        match fault:
            case Crash():
                if member.is_alive:
                    member.crash()
            case Restart(with_state=with_state):
                if not member.is_alive:
                    member.restart(self._members.seeds_for(member), with_state=with_state)
            case Freeze(duration_s=duration_s) | LoopStall(duration_s=duration_s):
                self._disturbance.pause(member.id, duration_s)
            case Suspend(duration_s=duration_s):
                self._disturbance.pause(member.id, duration_s)
                member.clock.sleep(duration_s)
            case ClockSkew(skew_s=skew_s):
                member.clock.skew_s = skew_s

    def _member(self, number: int) -> Member:
        return self._members.all[number]

    def _note(self, member: Member, fault: str) -> None:
        network = self._members.world.network
        network.digest.add_fault(network.loop.now_us, member.id, fault)
