"""Which storers a record had when it was last copied, and which records have lost too many of them since.

Pure. Copies come by the clock; where half the swarm leaves within minutes the clock is too slow, and this tells first.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from math import ceil
from typing import TypeAlias

from synapse_p2p.identity import NodeID

Held: TypeAlias = Hashable
"""What is kept by a region: a key and a slot under it."""


class RegionMemory:
    """The storers of everything held here, at most `max_storers` of each, as of its last copy.

    Invariant: the index by storer and the storers of each are the same pairs.
    """

    def __init__(self, *, lost_part: float, max_storers: int) -> None:
        self._lost_part = lost_part
        self._max_storers = max_storers
        self._storers: dict[Held, dict[NodeID, None]] = {}  # those that are not known to be gone
        self._bearable: dict[Held, int] = {}  # how many more may go
        self._by_storer: dict[NodeID, dict[Held, None]] = {}
        self._urgent: dict[Held, None] = {}

    def remember(self, held: Held, storers: Sequence[NodeID]) -> None:
        """It was just seen to that these have it."""
        self.forget(held)
        members = dict.fromkeys(storers[: self._max_storers])
        self._storers[held] = members
        self._bearable[held] = max(0, ceil(self._lost_part * len(members)) - 1)
        for storer in members:
            self._by_storer.setdefault(storer, {})[held] = None

    def forget(self, held: Held) -> None:
        """It is not held any more."""
        self._urgent.pop(held, None)
        self._bearable.pop(held, None)
        for storer in self._storers.pop(held, ()):
            self._forget_pair(storer, held)

    def on_gone(self, storer: NodeID) -> None:
        """This node is gone. Cost: in proportion to what it kept with us."""
        for held in self._by_storer.pop(storer, {}):
            del self._storers[held][storer]
            self._bearable[held] -= 1
            if self._bearable[held] < 0:
                self._urgent[held] = None

    def knows(self, held: Held) -> bool:
        """Whether its storers are remembered."""
        return held in self._storers

    def remembered(self) -> list[Held]:
        """Everything whose storers are."""
        return list(self._storers)

    def urgent(self) -> list[Held]:
        """What has lost so many that it is to be copied now, the longest waiting first."""
        return list(self._urgent)

    def __len__(self) -> int:
        return len(self._storers)

    def check_invariants(self) -> None:
        """Assert what the class promises; for tests."""
        pairs = {(storer, held) for held, storers in self._storers.items() for storer in storers}
        assert pairs == {(storer, held) for storer, by_held in self._by_storer.items() for held in by_held}
        assert self._storers.keys() == self._bearable.keys()
        assert self._urgent.keys() == {held for held, bearable in self._bearable.items() if bearable < 0}
        assert all(len(storers) <= self._max_storers for storers in self._storers.values())

    def _forget_pair(self, storer: NodeID, held: Held) -> None:
        by_held = self._by_storer[storer]
        del by_held[held]
        if not by_held:
            del self._by_storer[storer]
