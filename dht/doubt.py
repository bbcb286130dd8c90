"""Whether some may have been hidden from a lookup, judged by how densely those lie that answered.

Pure. Liars who name each other alone cannot make themselves as many as the honest are, at ids as near to every key: so
where fewer answered than live round a target, a lookup goes on by other ways. Source: Castro et al., "Secure routing
for structured peer-to-peer overlay networks" (2002), the routing failure test of section 4.3.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from dht.region import Region

DOUBTED_COVERAGE = 0.8
"""Where those that answered lie thinner than this part of what is expected, some may have been hidden. Among honest
nodes one neighbourhood in six is so thin; where half of all collude and name each other alone, all but one in thirty.
"""
THIN_COVERAGE = 0.7
"""Thinner than this, and silence does not mean that nobody has it. Among honest nodes one in twenty is so thin, among
such colluders all but one in ten."""
MAX_DOUBTS = 2
"""How often a lookup goes on because too few answered: where one in five of our contacts is honest, and 16 more are
asked, all but one lookup in forty have met somebody honest."""


class Answers:
    """How near to a target those are that answered. Cost: O(n log n) of them.

    `distances` may come in any order; those are left out that lie too densely for the region.
    """

    def __init__(self, region: Region, distances: Iterable[int]) -> None:
        self._region = region
        floors = region.floors
        self._kept: list[int] = []  # ascending
        for distance in sorted(distances):
            if len(self._kept) == len(floors):
                break
            if distance > floors[len(self._kept)]:
                self._kept.append(distance)

    @property
    def are_thin(self) -> bool:
        """Whether they cannot be all that are there."""
        return self._region.coverage(self._kept) < THIN_COVERAGE

    def are_doubted(self, doubts: int) -> bool:
        """Whether some may have been hidden from us, after we have looked for them so many times."""
        if doubts >= MAX_DOUBTS:
            return False
        return self.are_thin if doubts else self._region.coverage(self._kept) < DOUBTED_COVERAGE

    def contradict(self, holders: int) -> bool:
        """Whether so many have a value, and others inside the region deny it."""
        return 0 < holders < bisect_right(self._kept, self._region.radius)
