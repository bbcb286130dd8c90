"""What the virtual loop costs: its callbacks beside those of a bare heap that does nothing else.

    python -m benchmarks.simulator [--rounds 7] [--callbacks 200000] [--json]

The bare loop is the least that an order by (when, seq) can cost: no handles, no cancelling, no contexts, no look-out
for livelocks. Both loops take turns on one core within every round; times are CPU time, and a ratio is the median of
the ratios of the rounds.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from simulations.real_world import KeptOut
from simulations.virtual_loop import VirtualLoop

IN_FLIGHT = 1000  # timers in the heap at any time: a swarm that waits for as many answers
DELAYS_S = tuple(((number * 7919) % 1000 + 1) / 10_000 for number in range(1009))  # 0.1 to 100 ms, in no order
ENTRIES = 200  # into a run, to know what keeping the real world out costs

CallLater = Callable[[float, Callable[..., object]], object]


class BareLoop:
    """A heap of (when, seq, callback) and a clock that jumps."""

    def __init__(self) -> None:
        self._now = 0.0
        self._heap: list[tuple[float, int, Callable[..., object]]] = []
        self._seq = itertools.count()

    def call_later(self, delay_s: float, callback: Callable[..., object]) -> None:
        """Run `callback` in `delay_s` seconds."""
        heapq.heappush(self._heap, (self._now + delay_s, next(self._seq), callback))

    def run(self) -> None:
        """Run until nothing is left."""
        heap = self._heap
        while heap:
            self._now, _, callback = heapq.heappop(heap)
            callback()


@dataclass(frozen=True, slots=True)
class Round:
    """Both loops in turn, in callbacks per CPU second."""

    bare_per_s: float
    timers_per_s: float
    soon_per_s: float


def main() -> None:
    """Measure, and print the medians."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulator", description="What the virtual loop costs.")
    parser.add_argument("--rounds", type=int, default=7, help="how often both loops take their turn (default 7)")
    parser.add_argument("--callbacks", type=int, default=200_000, help="in each turn (default 200000)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    options = parser.parse_args()
    measure(options.callbacks // 10)  # warms up
    rounds = [measure(options.callbacks) for _ in range(options.rounds)]
    figures = {
        "bare_callbacks_per_s": round(median(each.bare_per_s for each in rounds)),
        "timers_per_s": round(median(each.timers_per_s for each in rounds)),
        "timers_to_bare": round(median(each.timers_per_s / each.bare_per_s for each in rounds), 3),
        "call_soon_per_s": round(median(each.soon_per_s for each in rounds)),
        "call_soon_to_bare": round(median(each.soon_per_s / each.bare_per_s for each in rounds), 3),
        "entry_us": round(entry_s() * 1e6, 1),
        "python": platform.python_version(),
    }
    if options.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:22} {value}")


def measure(callbacks: int) -> Round:
    """One round."""
    bare, timers, soon = BareLoop(), VirtualLoop(), VirtualLoop(max_callbacks_per_instant=2 * callbacks)
    load(bare.call_later, callbacks, lambda: None)
    load(timers.call_later, callbacks, timers.stop)
    load(lambda _, callback: soon.call_soon(callback), callbacks, soon.stop)
    took_s = [cpu_s(run) for run in (bare.run, timers.run_forever, soon.run_forever)]
    timers.close()
    soon.close()
    return Round(*(callbacks / each for each in took_s))


def load(call_later: CallLater, callbacks: int, on_end: Callable[[], None]) -> None:
    """Schedule `IN_FLIGHT` callbacks, each of which schedules the next, until `callbacks` have run."""
    delays = itertools.cycle(DELAYS_S)
    left = callbacks

    def step() -> None:
        nonlocal left
        left -= 1
        if left >= IN_FLIGHT:
            call_later(next(delays), step)
        elif left == 0:
            on_end()

    for _ in range(min(IN_FLIGHT, callbacks)):
        call_later(next(delays), step)


def cpu_s(run: Callable[[], object]) -> float:
    """CPU seconds that a function takes."""
    started_at = time.process_time()
    run()
    return time.process_time() - started_at


def entry_s() -> float:
    """Seconds to enter a run and to leave it: replacing what reaches the real world, and putting it back."""
    kept_out = KeptOut()
    samples = []
    for _ in range(ENTRIES):
        started_at = time.perf_counter()
        with kept_out:
            pass
        samples.append(time.perf_counter() - started_at)
    return median(samples)


if __name__ == "__main__":
    main()
