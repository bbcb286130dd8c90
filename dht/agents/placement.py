"""At which depths a provider keeps its record, as its capability grows and shrinks.

Pure. A depth is right where its shards are neither crowded nor nearly empty, so a provider is at one or two depths, and
searchers, whose estimate may be a little off, find it all the same.

    new        read the root          -> it holds all: to be written at depth 0; else at those its estimate names
    writing    all depths are written -> judged by what the storers of the shallowest say
    judged     they say more          -> more depths to write, up to MAX_ROUNDS
    judged     they hold next to nothing, and it is no root -> all storers of the root are asked, once
    judged     otherwise              -> placed
    placed     it is time to renew    -> writing, at the depths where it is

What is at a depth that is left just lapses. Source of the figures: a model of 10^6 providers, see docs/adr.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from dht.agents.index import MAX_SHARD_DEPTH
from dht.agents.shards import ShardReport, median_report

ENTER_PART = 0.8
"""A depth is entered where its shards are filled to this part of their cap at most: there is room until a renewal."""
SEARCH_PART = 0.65
"""And searched where they are filled to no more than this: providers whose estimate is a fifth too large, and who have
left a crowded depth, are still there.
"""
LEAVE_PART = 1 / 4
"""And left where they would hold no more than this: the band is wider than a doubling, so there is no gap."""
PROVES_NOTHING_PART = 1 / 8
"""Of its cap a shard holds less than this only after a collapse, or because somebody lies about the rest."""
MAX_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class ReadRoot:
    """Ask storers of the root what they hold: all of them, or three."""

    all_storers: bool


@dataclass(frozen=True, slots=True)
class Write:
    """Have the record kept at this depth."""

    depth: int


@dataclass(frozen=True, slots=True)
class Placed:
    """The record is where it has to be."""

    depths: tuple[int, ...]


Step: TypeAlias = ReadRoot | Write | Placed


def depths_for(providers: float, cap: int, current: Mapping[int, bool] | None = None) -> tuple[int, ...]:
    """The depths for a capability of so many providers; `current` has of each depth where the record is whether its key
    is full. Shallowest first; never empty.
    """
    current = current or {}
    depths = []
    for depth in range(MAX_SHARD_DEPTH + 1):
        in_shard = providers / 2**depth
        if depth and in_shard <= LEAVE_PART * cap:
            break
        if in_shard <= ENTER_PART * cap or not current.get(depth, True):
            depths.append(depth)
    return tuple(depths) or (0,)


def search_depth(providers: float, cap: int) -> int:
    """The shallowest depth whose shards are not nearly crowded: there everybody is."""
    depth = 0
    while depth < MAX_SHARD_DEPTH and providers / 2**depth > SEARCH_PART * cap:
        depth += 1
    return depth


class Placement:
    """One provider's record under one capability. `depths` are those where it is kept, by the last that was heard.

    Invariant: of one action (from `renew`, or the beginning, to `Placed`) the estimate only rises, but where the root
    was asked anew, and at most MAX_ROUNDS rounds of writing are made.
    """

    def __init__(self, cap: int) -> None:
        self._cap = cap
        self._is_full: dict[int, bool] = {}  # of each depth where the record is
        self._estimate = 0.0
        self._to_write: list[int] = []
        self._reports: dict[int, Sequence[ShardReport]] = {}  # of the depths written in this action
        self._rounds = 0
        self._is_root_due = True
        self._was_root_asked = False  # all of its storers, in this action

    @property
    def depths(self) -> tuple[int, ...]:
        """Where the record is kept."""
        return tuple(sorted(self._is_full))

    def poll(self) -> Step:
        """What to do next. The answer to it is to be told before this is asked again."""
        if self._is_root_due:
            return ReadRoot(all_storers=bool(self._reports))
        if self._to_write:
            return Write(self._to_write[0])
        return Placed(self.depths)

    def on_root(self, reports: Sequence[ShardReport]) -> None:
        """What storers of the root say; nobody said anything: there is no root yet, or no network."""
        is_asked_anew = bool(self._reports)
        self._is_root_due = False
        self._was_root_asked |= is_asked_anew
        root = median_report(reports) if reports else ShardReport(0, 0, is_full=False, estimate=0)
        holds_all = root.depth == 0 and not root.is_full
        self._estimate = float(min(root.estimate, self._cap * ENTER_PART) if holds_all else root.estimate)
        if is_asked_anew:
            self._judge()
        else:
            self._plan()

    def on_written(self, depth: int, reports: Sequence[ShardReport]) -> None:
        """What the storers said who were asked to keep the record at this depth; empty where nobody answered."""
        self._to_write.remove(depth)
        self._reports[depth] = reports
        self._is_full[depth] = _is_full(reports)
        if not self._to_write:
            self._rounds += 1
            self._hear()
            self._judge()

    def renew(self) -> None:
        """Begin anew: the record is to be written where it is."""
        self._to_write = list(self.depths)
        self._is_root_due = not self._to_write
        self._reports = {}
        self._rounds = 0
        self._was_root_asked = False
        self._estimate = 0.0

    def _hear(self) -> None:
        """Let the estimate rise to what the storers of any depth hold.

        The shallowest has the largest sample; but where it was crowded some have left it, and all are at the next. Were
        it believed alone, who stays would think that few are there, go where even fewer are, and the root with them.
        """
        said = {depth: median_report(self._reports[depth]) for depth in self._is_full if self._reports.get(depth)}
        for depth, report in said.items():
            if not depth or report.count >= PROVES_NOTHING_PART * self._cap:
                self._estimate = max(self._estimate, float(report.count << depth))
        if said and said[min(said)].is_full:
            self._estimate = max(self._estimate, float(said[min(said)].estimate))

    def _judge(self) -> None:
        shallowest = min(self._is_full)
        reports = self._reports.get(shallowest)
        held = median_report(reports).count if reports else 0
        proves_nothing = shallowest > 0 and held < PROVES_NOTHING_PART * self._cap
        if proves_nothing and not self._was_root_asked:
            self._is_root_due = True
        else:
            self._plan()

    def _plan(self) -> None:
        """Leave the depths that are wrong, and write those that are missing."""
        wanted = depths_for(self._estimate, self._cap, self._is_full)
        missing = [depth for depth in wanted if depth not in self._reports]
        if missing and self._rounds >= MAX_ROUNDS:
            return  # the next renewal goes on from here
        # One that was written in this action and left again is still there.
        written = {depth: _is_full(reports) for depth, reports in self._reports.items()}
        self._is_full = {depth: is_full for depth, is_full in (written | self._is_full).items() if depth in wanted}
        self._to_write = missing


def _is_full(reports: Sequence[ShardReport]) -> bool:
    return bool(reports) and median_report(reports).is_full
