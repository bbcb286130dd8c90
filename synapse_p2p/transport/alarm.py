"""One timer of one connection, whatever it is for at the moment."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable

NEVER = float("inf")


class Alarm:
    """At most one callback is due; setting another takes its place. Times are those of `now`, in seconds.

    A timer that would ring too early is left to it, and is set anew then: cancelled ones lie in the loop for as long as
    they would have run. Callbacks run in the context in which the alarm was made, not in that of whatever call was
    being handled when it was set.
    """

    __slots__ = ("_callback", "_context", "_loop", "_now", "_rings_at", "_timer", "due_at")

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = NEVER  # when the timer does, which is no later than the callback is due
        self._callback: Callable[[], None] | None = None
        self.due_at = NEVER  # when it is called, at the latest

    def set(self, delay_s: float, callback: Callable[[], None]) -> None:
        """Call back in `delay_s` seconds."""
        self._set(self._now() + delay_s, callback)

    def set_no_later(self, when: float, callback: Callable[[], None]) -> None:
        """Call back at `when`, or earlier if it is set for earlier: who is called looks at the time, and sets it anew.

        So a deadline of each call costs a comparison, and a timer only where it comes before all others.
        """
        if when < self.due_at:
            self._set(when, callback)

    def cancel(self) -> None:
        """Call back no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._callback = None
        self._rings_at = self.due_at = NEVER

    def _set(self, when: float, callback: Callable[[], None]) -> None:
        self._callback = callback
        self.due_at = when
        if when < self._rings_at:
            if self._timer is not None:
                self._timer.cancel()
            self._start_timer()

    def _start_timer(self) -> None:
        self._rings_at = self.due_at
        delay_s = max(0.0, self.due_at - self._now())
        self._timer = self._loop.call_later(delay_s, self._ring, context=self._context)

    def _ring(self) -> None:
        self._timer = None
        if self._rings_at < self.due_at:
            self._start_timer()
            return
        callback = self._callback
        self.cancel()
        assert callback is not None, "nobody rings for nothing"
        callback()
