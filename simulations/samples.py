"""What a run leaves for its pictures: how lookups went over time, how long they took, one of them whole, what failed.

Pure. All of it is bounded, however long a run is, and always kept: a run is the same whether anybody looks or not. So
what is drawn from chance here is from a chance of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from heapq import nsmallest
from typing import TYPE_CHECKING

from dht.outcome import LookupOutcome
from synapse_p2p.identity import NodeID

if TYPE_CHECKING:
    from random import Random

MAX_BINS = 128
"""Of a timeline: more are narrower than a picture shows."""
FIRST_BIN_S = 0.125
"""Of a timeline that begins. Doubled, it always is a number that a float has exactly."""
MAX_SECONDS = 10_000
"""Durations that are kept of one kind of lookup, at random of all: a quantile of 1 % of them is still of a hundred."""
MAX_MEMBERS = 1_000
"""Ids that are kept of a swarm beside one lookup: what a circle shows of it."""
FOUND, MISSED = "found", "missed"
FAULT_NAMES = {
    "crash": "crash",
    "fall": "silence",
    "stop": "departure",
    "restart": "restart",
    "pause": "standstill",
    "cut": "cut off",
    "heal": "cut healed",
    "loss": "loss set",
    "nat": "NAT set",
    "ClockSkew": "wrong clock",
}
"""What is shown of a fault, by the first word that the digest has of it. A fault of a timetable that the network does
to a host is in the digest twice, and shown by what is done."""


class Timeline:
    """How often things happened, by time: at most MAX_BINS bins from 0 on, whose width doubles when time outgrows them.

    `counts` has MAX_BINS numbers for each thing that ever happened, of which there are few.
    """

    def __init__(self) -> None:
        self.width_s = FIRST_BIN_S
        self.counts: dict[str, list[int]] = {}

    def add(self, at_s: float, what: str) -> None:
        """It happened at this second, 0 or later."""
        while at_s >= self.width_s * MAX_BINS:
            self._widen()
        counts = self.counts.setdefault(what, [0] * MAX_BINS)
        counts[int(at_s / self.width_s)] += 1

    def _widen(self) -> None:
        self.width_s *= 2
        for counts in self.counts.values():
            counts[:] = [sum(counts[first : first + 2]) for first in range(0, MAX_BINS, 2)] + [0] * (MAX_BINS // 2)


class Reservoir:
    """`values` are a random choice of all that were added, each as likely: all of them as long as there is room.

    Source: Vitter, "Random Sampling with a Reservoir" (1985), algorithm R.
    """

    def __init__(self, rng: Random, size: int = MAX_SECONDS) -> None:
        self.count = 0
        self.values: list[float] = []
        self._rng = rng
        self._size = size

    def add(self, value: float) -> None:
        """One more."""
        self.count += 1
        if len(self.values) < self._size:
            self.values.append(value)
        elif (place := self._rng.randrange(self.count)) < self._size:
            self.values[place] = value


@dataclass(frozen=True, slots=True)
class TracedLookup:
    """One lookup whole, and the swarm in which it was made.

    `nearest` are the k members nearest to the target when it ended, nearest first, the searcher aside; `members` are
    some of all `member_count`, at most MAX_MEMBERS, evenly chosen.
    """

    searcher: NodeID
    outcome: LookupOutcome
    is_success: bool | None  # None where nobody judged
    member_count: int
    members: tuple[NodeID, ...]
    nearest: tuple[NodeID, ...]


class Samples:
    """All that is kept. `arrivals` has for each host how many messages it was given."""

    def __init__(self, rng: Random) -> None:
        self.timeline = Timeline()
        self.seconds: dict[str, Reservoir] = {}  # of lookups, by their kind
        self.traced: TracedLookup | None = None
        self.arrivals: Mapping[NodeID, int] = {}
        self._rng = rng
        self._traced_rank = (False, -1, -1)

    def add_lookup(self, kind: str, began_at_s: float, took_s: float, *, is_success: bool) -> None:
        """A lookup, or what a scenario calls one, has ended."""
        self.add_seconds(kind, took_s)
        self.timeline.add(began_at_s, FOUND if is_success else MISSED)

    def add_seconds(self, kind: str, took_s: float) -> None:
        """The same of one that is not asked whether it succeeded."""
        if kind not in self.seconds:
            self.seconds[kind] = Reservoir(self._rng)
        self.seconds[kind].add(took_s)

    def add_fault(self, at_s: float, fault: str) -> None:
        """Something was done to a host, in the words of the digest."""
        name = FAULT_NAMES.get(fault.split("(", 1)[0].split(" ", 1)[0])
        if name is not None:
            self.timeline.add(at_s, name)

    def is_wanted(self, outcome: LookupOutcome, *, is_success: bool | None) -> bool:
        """Whether this lookup shows more than the one that is kept: a miss more than a find, then more hops, then more
        requests that failed. Of equals the first is kept.
        """
        return self._rank(outcome, is_success=is_success) > self._traced_rank

    def keep_trace(
        self, searcher: NodeID, outcome: LookupOutcome, members: Iterable[NodeID], *, k: int, is_success: bool | None
    ) -> None:
        """Keep this lookup in place of the other; `members` are all that were there. Cost: O(members)."""
        points = {node_id: int.from_bytes(node_id, "big") for node_id in members if node_id != searcher}
        target = int.from_bytes(outcome.target, "big")
        nearest = nsmallest(k, points, key=lambda node_id: points[node_id] ^ target)
        in_order = sorted(points)
        count = min(MAX_MEMBERS, len(in_order))
        some = [in_order[number * len(in_order) // count] for number in range(count)]
        self.traced = TracedLookup(searcher, outcome, is_success, len(points) + 1, tuple(some), tuple(nearest))
        self._traced_rank = self._rank(outcome, is_success=is_success)

    def _rank(self, outcome: LookupOutcome, *, is_success: bool | None) -> tuple[bool, int, int]:
        return is_success is False, outcome.hops or 0, outcome.failed
