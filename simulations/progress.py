"""How far a run is: what it tells while it goes, how it is asked to end early, and the line on a terminal.

A run knows a Watch and nothing of screens and signals; a screen knows Steps and nothing of worlds.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO

PAUSE_S = 0.2
"""Between two updates of the line; more often than an eye follows costs the run time."""
BAR_WIDTH = 10  # so that all that matters fits in 80 columns


@dataclass(frozen=True, slots=True)
class Step:
    """How far a run is: `done` of `of` in its phase. `success` is the share of lookups so far; None before the first.

    `events` counts the messages that have arrived, for they are what happens in a simulation.
    """

    phase: str
    done: int
    of: int
    virtual_s: float
    events: int
    success: float | None = None


class Watch:
    """Somebody who looks on while a run goes, and may end it early.

    `interrupt` may be called by a signal handler: it does nothing but keep the wish and call what was given to
    `on_interrupt`, which has to be as quick.
    """

    def __init__(self, show: Callable[[Step], None] | None = None) -> None:
        self.is_interrupted = False
        self._show = show
        self._stop: Callable[[], None] | None = None

    def tell(self, step: Step) -> None:
        """Called by the run, as often as it likes."""
        if self._show is not None:
            self._show(step)

    def interrupt(self) -> None:
        """Ask the run to end as soon as it can, with the figures it has by then."""
        self.is_interrupted = True
        if self._stop is not None:
            self._stop()

    def on_interrupt(self, stop: Callable[[], None]) -> None:
        """Call `stop` when the run is to end; at once, if that is already wished."""
        self._stop = stop
        if self.is_interrupted:
            stop()


class ProgressLine:
    """One line that is written over, on a terminal alone. It reads the real clock, for events per second are real."""

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._is_shown = stream.isatty()
        self._clock = clock
        self._shown_at = -PAUSE_S
        self._counted_at = clock()
        self._counted_events = 0

    def show(self, step: Step) -> None:
        """Show a step of a run, unless one was shown just now."""
        now = self._clock()
        if not self._is_shown or (step.done < step.of and now - self._shown_at < PAUSE_S):
            return
        elapsed_s = now - self._counted_at
        rate = (step.events - self._counted_events) / elapsed_s if elapsed_s > 0 else 0.0
        self._counted_at, self._counted_events = now, step.events
        self._shown_at = now
        success = "" if step.success is None else f", {step.success:.2%} found"
        clocks = f"virtual {step.virtual_s:,.0f} s{success}, {rate:,.0f} events/s"
        self._write(f"{step.phase} {_bar(step.done, step.of)} {clocks}")

    def show_cells(self, done: int, of: int, failed: int) -> None:
        """Show how far a sweep is."""
        if self._is_shown:
            self._write(f"cells {_bar(done, of)} {failed} failed")

    def end(self) -> None:
        """Leave a clean line."""
        if self._is_shown:
            self._write("")

    def _write(self, text: str) -> None:
        # A line that wraps is not written over: it would fill the screen.
        columns = shutil.get_terminal_size().columns
        self._stream.write(f"\r{text[: columns - 1]}\033[K")
        self._stream.flush()


def _bar(done: int, of: int) -> str:
    filled = BAR_WIDTH * done // of if of else BAR_WIDTH
    return f"[{'#' * filled}{'.' * (BAR_WIDTH - filled)}] {done:,}/{of:,}"
