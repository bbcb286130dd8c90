"""Measures how late the event loop is: a beat is due twice a second, and comes when the loop comes to it.

Which function made it late is seen by `loop_witness.py`, where a node of the overlay runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from synapse_p2p.metrics import LoopLag

BEAT_S = 0.5


class LoopBeat:
    """Beats from `start` to `stop`, and notes each. `now` is the clock of the loop."""

    def __init__(self, lag: LoopLag, now: Callable[[], float]) -> None:
        self._lag = lag
        self._now = now
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0

    def start(self) -> None:
        """Beat on the running loop. Started already, it begins anew."""
        self.stop()
        self._due = self._now() + BEAT_S
        self._timer = asyncio.get_running_loop().call_later(BEAT_S, self._beat)

    def stop(self) -> None:
        """Beat no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _beat(self) -> None:
        now = self._now()
        self._lag.note(max(0.0, now - self._due), now)
        self.start()
