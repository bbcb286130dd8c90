"""Plays a timetable of faults on the members of a world. Each fault is part of the digest, and of the trace.

They act through the links of the network and the pauses of its hosts. Faults end by themselves; a crash ends by its
restart, a clock's error by the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

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
from simulations.links import LinkQuality
from simulations.members import Member, Members


class FaultPlayer:
    """Does to members what a timetable says. `counts` has how many faults of each kind took place."""

    def __init__(self, members: Members) -> None:
        self.counts: dict[str, int] = {}
        self._members = members
        self._network = members.world.network
        self._losses: list[float] = []  # those under way; the largest counts

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
                self._note(self._member(cut[0]), str(fault))
                partition = self._network.cut([self._member(host).host for host in cut], one_way=one_way)
                self._network.loop.call_later(duration_s, self._network.heal, partition)
            case Loss(share, duration_s):
                self._note(self._member(0), str(fault))
                self._losses.append(share)
                self._set_loss()
                self._network.loop.call_later(duration_s, self._end_loss, share)
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
                member.pause(duration_s)
            case Suspend(duration_s=duration_s):
                member.sleep(duration_s)
            case ClockSkew(skew_s=skew_s):
                member.clock.skew_s = skew_s

    def _member(self, number: int) -> Member:
        return self._members.all[number]

    def _note(self, member: Member, fault: str) -> None:
        self._network.digest.add_fault(self._network.loop.now_us, member.id, fault)

    def _end_loss(self, share: float) -> None:
        self._losses.remove(share)
        self._set_loss()

    def _set_loss(self) -> None:
        self._network.links.set_quality(LinkQuality(loss=max(self._losses, default=0.0)))
