"""What an idle node does: one scheduler for all of it, no task per peer.

`Timetable` (pure) says which job is due; `Maintenance` starts it and sets one timer for the next.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from synapse_p2p.background import TaskScope
from synapse_p2p.runtime import Runtime

if TYPE_CHECKING:
    from random import Random

JITTER = 0.1
"""Every period is lengthened or shortened by up to this part, so that nodes started together do not act together."""


@dataclass(frozen=True, slots=True)
class Job:
    """Something done again and again."""

    name: str
    period_s: float
    run: Callable[[], Awaitable[None]] = field(compare=False)


class Timetable:
    """Which job is due when. A job is planned again once it has ended, so it never overlaps itself."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._due: list[tuple[float, int, Job]] = []
        self._count = 0

    def plan(self, job: Job, now: float) -> None:
        """Run it about one period from now."""
        when = now + job.period_s * self._rng.uniform(1 - JITTER, 1 + JITTER)
        heapq.heappush(self._due, (when, self._count, job))
        self._count += 1

    def take_due(self, now: float) -> list[Job]:
        """What is due, in order; each has to be planned again."""
        jobs: list[Job] = []
        while self._due and self._due[0][0] <= now:
            jobs.append(heapq.heappop(self._due)[2])
        return jobs

    def next_time(self) -> float | None:
        """When the next job is due; None without any."""
        return self._due[0][0] if self._due else None


class Maintenance:
    """Runs the jobs of one node until it is stopped."""

    def __init__(self, runtime: Runtime, scope: TaskScope) -> None:
        self._runtime = runtime
        self._scope = scope
        self._timetable = Timetable(runtime.rng)
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = 0.0  # when it does, which is no later than the first job is due
        self._beat_timer: asyncio.TimerHandle | None = None
        self._is_stopped = False

    def every(self, name: str, period_s: float, run: Callable[[], Awaitable[None]]) -> None:
        """Run a job about every `period_s`, for the first time after one period."""
        self._timetable.plan(Job(name, period_s, run), self._runtime.now())
        self._set_timer()

    def beat(self, period_s: float, run: Callable[[], None]) -> None:
        """Call something quick every `period_s`, to the moment, for it measures time. It raises nothing."""
        self._beat_timer = asyncio.get_running_loop().call_later(period_s, self._on_beat, period_s, run)

    def stop(self) -> None:
        """Start nothing more. What runs belongs to the scope."""
        self._is_stopped = True
        for timer in (self._timer, self._beat_timer):
            if timer is not None:
                timer.cancel()

    def _set_timer(self) -> None:
        when = self._timetable.next_time()
        if when is None or self._is_stopped or (self._timer is not None and self._rings_at <= when):
            return  # mostly another job comes before the one that was planned
        if self._timer is not None:
            self._timer.cancel()
        self._rings_at = when
        self._timer = asyncio.get_running_loop().call_later(max(0.0, when - self._runtime.now()), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        now = self._runtime.now()
        for due in self._timetable.take_due(now):
            self._scope.spawn(self._run(due), name=due.name)
        self._set_timer()

    def _on_beat(self, period_s: float, run: Callable[[], None]) -> None:
        self.beat(period_s, run)
        run()

    async def _run(self, job: Job) -> None:
        try:
            await job.run()
        finally:
            if not self._is_stopped:
                self._timetable.plan(job, self._runtime.now())
                self._set_timer()
