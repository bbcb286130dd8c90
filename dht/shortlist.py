"""What one path of a lookup has heard of, nearest first, and whom of it the lookup may ask.

Pure. A lookup has one path, or several that share nobody whom they ask: what a liar names on one path is no candidate
of another. Sources: Kademlia section 2.3; Baumgart and Mies, "S/Kademlia" (2007), for disjoint paths.
"""

from __future__ import annotations

from bisect import bisect_left
from enum import Enum

from dht.contact import Contact
from dht.keyspace import ID_BITS
from dht.region import Region

MAX_MISLED = 3
"""Of those whom a contact named so many more failed than answered, and the others that it named come last: it may have
invented them, nearer than anybody, to have us spend our requests."""
MAX_INFORMERS = 4
"""Remembered of a candidate: it is believed as long as one of them is."""
_BEYOND = 1 << ID_BITS  # farther than everybody


class State(Enum):
    """Where a candidate stands."""

    UNASKED = "unasked"
    IN_FLIGHT = "in flight"
    ANSWERED = "answered"
    FAILED = "failed"
    RESTING = "resting"  # failed another lookup a moment ago


# In Python 3.11 finding a member in its class takes ten times as long as reading a name, and lookups do little else.
UNASKED, IN_FLIGHT, ANSWERED, FAILED, RESTING = State


class Candidate:
    """A contact on its way through the lookup. Its place in a shortlist is its distance."""

    __slots__ = (
        "contact",
        "depth",
        "distance",
        "fails_at",
        "group",
        "has_value",
        "informers",
        "is_forced",
        "misled",
        "path",
        "paths",
        "slow_at",
        "state",
        "version",
    )

    def __init__(self, contact: Contact, distance: int, depth: int, group: str | None) -> None:
        self.contact = contact
        self.informers: list[Candidate] = []  # the first who named it; nobody, of one of our own
        self.misled = 0  # of those that it named: how many more failed than answered
        self.group = group
        self.distance = distance
        self.depth = depth
        self.state = UNASKED
        self.paths = 0  # bits of the paths that heard of it
        self.path = 0  # which asked it
        self.slow_at = self.fails_at = 0.0  # of one in flight
        self.is_forced = False  # asked in spite of the rules, for want of others
        self.has_value = False
        self.version = 0

    @property
    def is_doubtful(self) -> bool:
        """Whether all who named it have misled us."""
        # A loop, for this is asked of everybody in every answer, and a generator takes three times as long.
        for informer in self.informers:
            if informer.misled < MAX_MISLED:
                return False
        return bool(self.informers)


class Path:
    """The candidates of one path by distance, and the eligible ones among them.

    Eligible are those that have not failed and that density and diversity let into a list: the first `wanted`, and all
    inside the region, at most `max_eligible`; the first of its `seeds` that lives, whoever is nearer, for a path that
    is opened late knows those that have answered others; and those `forced`. `unasked` are those of the eligible that
    were not asked when that was worked out.
    """

    __slots__ = (
        "_is_outdated",
        "_reach",
        "alone",
        "alpha",
        "bit",
        "candidates",
        "distances",
        "eligible",
        "forced",
        "in_flight_count",
        "index",
        "seeds",
        "skipped",
        "slow_count",
        "unasked",
    )

    def __init__(self, index: int, alpha: int) -> None:
        self.index = index
        self.bit = 1 << index
        self.alpha = alpha
        self.alone: Candidate | None = None  # beside whom nobody is asked until it is slow
        self.in_flight_count = 0
        self.slow_count = 0  # of those in flight
        # Two lists, for `bisect` compares numbers ten times as fast as it asks candidates for theirs, and a few hundred
        # are moved at once.
        self.candidates: list[Candidate] = []
        self.distances: list[int] = []
        self.seeds: list[Candidate] = []  # nearest first
        self.forced: list[Candidate] = []  # to be asked though others are nearer
        self.eligible: list[Candidate] = []
        self.skipped: list[Candidate] = []  # nearer than the last eligible, and not let in
        self.unasked: list[Candidate] = []
        self._reach = _BEYOND  # nothing farther changes who is eligible
        self._is_outdated = True

    def insert(self, candidate: Candidate) -> None:
        """Put a candidate in that this path hears of for the first time."""
        distance = candidate.distance
        candidate.paths |= self.bit
        place = bisect_left(self.distances, distance)
        self.distances.insert(place, distance)
        self.candidates.insert(place, candidate)
        if distance < self._reach:
            self._is_outdated = True

    def drop_farthest_unasked(self) -> Candidate | None:
        """Take the farthest candidate out that was not asked; None if all were."""
        for place in range(len(self.candidates) - 1, -1, -1):
            candidate = self.candidates[place]
            if candidate.state is UNASKED:
                del self.candidates[place], self.distances[place]
                candidate.paths &= ~self.bit
                for places in (self.seeds, self.forced):
                    if candidate in places:
                        places.remove(candidate)
                self._is_outdated = True
                return candidate
        return None

    def outdate(self) -> None:
        """Somebody in here failed or came back."""
        self._is_outdated = True

    def update(self, wanted: int, max_eligible: int, region: Region, max_per_group: int) -> None:
        """Work out who is eligible, if that can have changed. Cost: 0.1 us for each candidate as near as those."""
        if not self._is_outdated:
            return
        eligible: list[Candidate] = []
        skipped: list[Candidate] = []
        floors = region.floors
        radius = region.radius
        groups: dict[str, int] = {}
        self._reach = _BEYOND
        count = 0
        for candidate in self.candidates:
            if count >= wanted and (candidate.distance > radius or count >= max_eligible):
                self._reach = candidate.distance
                break
            state = candidate.state
            if state is FAILED or state is RESTING:
                continue
            if candidate.is_forced:
                eligible.append(candidate)
                continue
            if state is UNASKED and candidate.is_doubtful:
                skipped.append(candidate)
                continue
            if candidate.distance <= floors[count]:
                skipped.append(candidate)
                continue
            group = candidate.group
            if group is not None:
                if groups.get(group, 0) >= max_per_group:
                    skipped.append(candidate)
                    continue
                groups[group] = groups.get(group, 0) + 1
            eligible.append(candidate)
            count += 1
        for seed in self.seeds:
            if seed.state not in (FAILED, RESTING) and seed not in skipped:
                if seed.state is UNASKED and seed not in eligible:
                    eligible.append(seed)
                break
        eligible += [candidate for candidate in self.forced if candidate.state is UNASKED and candidate not in eligible]
        self.eligible = eligible
        self.skipped = skipped
        self.unasked = [candidate for candidate in eligible if candidate.state is UNASKED]
        self._is_outdated = False
