"""A thread that looks what the event loop's thread runs when the loop does not come round.

The loop cannot say which function blocked it: until that returns nothing else runs, and then it is gone. A second
thread sees it at work. While all is well that costs a look at the clock, four times a second.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from types import FrameType

from synapse_p2p.whose_code import is_library, is_own

LOOK_S = 0.25


class LoopWitness:
    """Watches the thread that makes it, until it is stopped. `on_beat` says that the loop came round, and is due every
    `beat_s`; a beat that is late by half a second or more has the witness look.
    """

    def __init__(self, beat_s: float) -> None:
        self._late_after_s = beat_s + 2 * LOOK_S
        self._loop_thread = threading.get_ident()
        self._beat_at = time.monotonic()
        self._seen: str | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="synapse loop witness", daemon=True)
        self._thread.start()

    def on_beat(self) -> str | None:
        """Which function was at work while the last beat was overdue, as `name (file:line)`; None for none."""
        self._beat_at = time.monotonic()
        seen, self._seen = self._seen, None
        return seen

    def stop(self) -> None:
        """Look no more. The thread ends within a moment."""
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        looked_at = time.monotonic()
        while not self._stopped.wait(LOOK_S):
            last_looked_at, looked_at = looked_at, time.monotonic()
            # A witness that is late itself was stopped with the process, and what it sees now is innocent.
            was_there = looked_at - last_looked_at < 3 * LOOK_S
            if was_there and looked_at - self._beat_at > self._late_after_s:
                frame = sys._current_frames().get(self._loop_thread)
                self._seen = function_at_work(frame) or self._seen


def function_at_work(frame: FrameType | None) -> str | None:
    """The function that keeps a thread which is at `frame`: the innermost that is the user's, else the innermost of
    ours, as `name (file:line)`. None for a thread that waits for events, as one of a process that was stopped.
    """
    ours: FrameType | None = None
    if frame is not None and frame.f_code.co_filename.endswith(("selectors.py", "proactor_events.py")):
        return None
    while frame is not None:
        if not is_library(frame.f_code.co_filename):
            return _described(frame)
        if ours is None and is_own(frame.f_code.co_filename):
            ours = frame
        frame = frame.f_back
    return None if ours is None else _described(ours)


def _described(frame: FrameType) -> str:
    code = frame.f_code
    return f"{code.co_qualname} ({Path(code.co_filename).name}:{frame.f_lineno})"
