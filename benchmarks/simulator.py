"""What a simulation costs: callbacks of the virtual loop, and messages of whole runs, beside those of a bare heap.

    python -m benchmarks.simulator [--rounds 7] [--callbacks 200000] [--nodes 100] [--lookups 200] [--json]
    python -m benchmarks.simulator --swarms

The bare loop is the least that an order by (when, seq) can cost: no handles, no cancelling, no contexts, no look-out
for livelocks, and nothing is done in a callback. A whole run is the scenario `lookups`: all that nodes do with a
message, and that they join first, is in its time; the bare loop has one callback for each message that it delivered.
All take turns on one core within every round; times are CPU time, a ratio is the median of the ratios of the rounds.

With `--swarms` whole runs of 1,000 and 10,000 nodes follow, each in a process of its own, with limits on what they may
take; the exit status is 1 when one is missed. That takes a quarter of an hour.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from simulations.real_world import KeptOut
from simulations.report import run_scenario
from simulations.scenarios import SCENARIOS, Settings
from simulations.virtual_loop import VirtualLoop

IN_FLIGHT = 1000  # timers in the heap at any time: a swarm that waits for as many answers
DELAYS_S = tuple(((number * 7919) % 1000 + 1) / 10_000 for number in range(1009))  # 0.1 to 100 ms, in no order
ENTRIES = 200  # into a run, to know what keeping the real world out costs

LOOKUPS = 10_000
SWARMS = ((1_000, 60.0, 0.5), (10_000, 600.0, 2.0))
"""Nodes, and the wall seconds and GiB that a run may take in which they join by protocol and make `LOOKUPS` lookups."""
_GIB = 1 << 30

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
    """All in turn, in callbacks per CPU second, and a whole run."""

    bare_per_s: float
    timers_per_s: float
    soon_per_s: float
    run: WholeRun


@dataclass(frozen=True, slots=True)
class WholeRun:
    """How many messages a run delivered, in messages per CPU second, and a bare loop with as many callbacks."""

    messages: int
    per_s: float
    bare_per_s: float


def main() -> int:
    """Measure, and print the medians. The exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulator", description="What a simulation costs.")
    parser.add_argument("--rounds", type=int, default=7, help="how often both loops take their turn (default 7)")
    parser.add_argument("--callbacks", type=int, default=200_000, help="in each turn (default 200000)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    parser.add_argument("--nodes", type=int, default=100, help="of a whole run (default 100)")
    parser.add_argument("--lookups", type=int, default=200, help="of a whole run (default 200)")
    parser.add_argument("--swarms", action="store_true", help="play 1,000 and 10,000 nodes as well, within limits")
    options = parser.parse_args()
    settings = Settings(nodes=options.nodes, lookups=options.lookups)
    measure(options.callbacks // 10, Settings(nodes=10, lookups=10))  # warms up
    rounds = [measure(options.callbacks, settings) for _ in range(options.rounds)]
    figures = {
        "bare_callbacks_per_s": round(median(each.bare_per_s for each in rounds)),
        "timers_per_s": round(median(each.timers_per_s for each in rounds)),
        "timers_to_bare": round(median(each.timers_per_s / each.bare_per_s for each in rounds), 3),
        "call_soon_per_s": round(median(each.soon_per_s for each in rounds)),
        "call_soon_to_bare": round(median(each.soon_per_s / each.bare_per_s for each in rounds), 3),
        "run_messages": rounds[0].run.messages,
        "run_messages_per_s": round(median(each.run.per_s for each in rounds)),
        "bare_to_run": round(median(each.run.bare_per_s / each.run.per_s for each in rounds), 1),
        "entry_us": round(entry_s() * 1e6, 1),
        "python": platform.python_version(),
    }
    if options.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:22} {value}")
    missed = sum(not play_swarm(*swarm) for swarm in SWARMS) if options.swarms else 0
    return 1 if missed else 0


def play_swarm(nodes: int, max_s: float, max_gib: float) -> bool:
    """Whether one run keeps within its limits; a line is printed."""
    command = ["-m", "simulations", "run", "lookups", "--nodes", str(nodes), "--lookups", str(LOOKUPS), "--json"]
    done = subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, text=True, check=False)
    figures = json.loads(done.stdout)
    wall_s, gib = figures["wall_s"], figures["peak_rss_bytes"] / _GIB
    is_kept = figures["passed"] and wall_s <= max_s and gib <= max_gib
    print(
        f"{'pass' if is_kept else 'MISS'}: {nodes} nodes, {LOOKUPS} lookups, {figures['messages']} messages: "
        f"{wall_s:.1f} s, wanted at most {max_s:g} s; {gib:.2f} GiB, at most {max_gib:g} GiB"
    )
    return is_kept


def measure(callbacks: int, settings: Settings) -> Round:
    """One round."""
    bare, timers, soon = BareLoop(), VirtualLoop(), VirtualLoop(max_callbacks_per_instant=2 * callbacks)
    load(bare.call_later, callbacks, lambda: None)
    load(timers.call_later, callbacks, timers.stop)
    load(lambda _, callback: soon.call_soon(callback), callbacks, soon.stop)
    bare_s, timers_s, soon_s = (cpu_s(run) for run in (bare.run, timers.run_forever, soon.run_forever))
    timers.close()
    soon.close()
    return Round(callbacks / bare_s, callbacks / timers_s, callbacks / soon_s, measure_run(settings))


def measure_run(settings: Settings) -> WholeRun:
    """A whole run, and the bare loop after it."""
    messages = 0

    def play() -> None:
        nonlocal messages
        figures = run_scenario(SCENARIOS["lookups"], settings).figures
        assert figures["passed"], figures["error"]
        messages = figures["messages"]

    took_s = cpu_s(play)
    bare = BareLoop()
    load(bare.call_later, messages, lambda: None)
    return WholeRun(messages, messages / took_s, messages / cpu_s(bare.run))


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
    sys.exit(main())
