"""One timer of one connection, whatever it is for at the moment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

NEVER = float("inf")


class Alarm:
    """At most one callback is due; setting another takes its place. Times are those of `now`, in seconds."""

    __slots__ = ("_loop", "_now", "_timer", "due_at")

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self.due_at = NEVER  # when it rings, at the latest

    def set(self, delay_s: float, callback: Callable[[], None]) -> None:
        """Call back in `delay_s` seconds."""
        self.cancel()
        self.due_at = self._now() + delay_s
        self._timer = self._loop.call_later(delay_s, self._ring, callback)

    def set_no_later(self, when: float, callback: Callable[[], None]) -> None:
        """Call back at `when`, or earlier if it is set for earlier: who is called looks at the time, and sets it anew.

        So a deadline of each call costs a comparison, and a timer only where it comes before all others.
        """
        if when < self.due_at:
            self.set(max(0.0, when - self._now()), callback)

    def cancel(self) -> None:
        """Call back no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self.due_at = NEVER

    def _ring(self, callback: Callable[[], None]) -> None:
        self._timer = None
        self.due_at = NEVER
        callback()
