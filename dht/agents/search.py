"""Which shards of a capability a search reads, and whose providers it takes.

Pure. A search that knows nothing reads the root: mostly that is everybody. Otherwise it draws shards at random, and
takes one with a probability that grows with its size, so that in the end every provider has the same chance.

    cold       the root holds all                  -> it is taken; ended, complete
    cold       it is spread over shards            -> doubting
    doubting   a shard holds next to nothing       -> doubting, at half the depth: there are fewer than was heard
    doubting   a shard is filled, or of depth 1    -> drawing, or widening where all are wanted
    drawing    a shard was read and is accepted    -> it is taken; widening
    drawing    it is not                           -> drawing; after MAX_DRAWS the last is accepted
    widening   one was read and was not accepted   -> it is taken; widening
    widening   one taken is deeper, or sparse      -> its halves, or its parent, are to be read as well, last
    drawing, widening   at a depth of more shards than are read, MAX_EMPTY in a row hold next to nothing
                                                   -> doubting, at half the depth: what was heard was a lie
    widening   enough were taken, nothing is left, or MAX_READS were read -> ended

Rejection sampling: a provider's shard is drawn with 2^-d, and accepted in proportion to its size, of which a sample of
one size is taken. Measured in a model of 10^6 providers; what was measured is in the decision on shards, docs/adr.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from dht.agents.placement import LEAVE_PART, PROVES_NOTHING_PART, search_depth
from dht.agents.shards import RANK_BITS, ROOT_SHARD, Shard, ShardReport

if TYPE_CHECKING:
    from random import Random

MAX_DRAWS = 6
"""Shards drawn for one sample. Nearly all are accepted at once, so more are drawn only where storers lie."""
MAX_READS = 64
"""Shards that one search reads: what is beyond them it does not find."""
FULLEST_SD = 2.3
"""The fullest shard is taken to have so many standard deviations more than the mean; those of a mean of n vary by
sqrt(n). Of a hundred one is fuller still, and drawn a little too seldom; a larger margin rejects more.
"""
MAX_MARGIN = 0.25
"""Of the mean: small shards vary more than that, and a search of them is to stay cheap."""
MAX_EMPTY = 2
"""Shards of the depth at which a search draws that hold next to nothing, one after the other: there chance leaves none
empty, so whoever said that it is spread so far has lied. Asked only where not all shards of that depth can be read:
where they can, the search ends with all of them, and providers who move meanwhile leave some of them empty for a time.
"""
SPARSE_PART = 1 / 2
"""A shard with less than this part of what was to be expected may be one that providers have left for its parent."""


@dataclass(frozen=True, slots=True)
class Read:
    """Read this shard at its storers."""

    shard: Shard


@dataclass(frozen=True, slots=True)
class Take:
    """The providers of this shard, which was read, are part of the result."""

    shard: Shard


@dataclass(frozen=True, slots=True)
class Ended:
    """It is over; `reason` says why it may have missed somebody, where it is not `complete`."""

    complete: bool
    reason: str = ""


Step: TypeAlias = Read | Take | Ended


def margin_of_fullest(mean: float) -> float:
    """By what part of it the fullest shard is taken to have more than the mean."""
    return min(MAX_MARGIN, FULLEST_SD / max(1.0, mean) ** 0.5)


class ShardSearch:
    """One search. Invariant: no shard is read twice, none is taken twice, and at most MAX_READS are read."""

    def __init__(
        self, cap: int, rng: Random, *, limit: int | None = None, estimate: float | None = None, heard_count: int = 1
    ) -> None:
        """`limit` is how many providers are wanted, None for all; `estimate` how many there are, if that was heard of
        lately, as the mean of so many reads.
        """
        self._cap = cap
        self._rng = rng
        self._limit = limit
        self._heard = [] if estimate is None else [estimate] * heard_count
        self._expected: float | None = None  # the estimate before the last shard was read
        self.reports: dict[Shard, ShardReport | None] = {}  # what was read
        self._pending: list[Shard] = []  # to be read, the last one first
        self._to_take: list[Shard] = []
        self._taken: dict[Shard, None] = {}
        self._depth = 0  # at which shards are drawn; 0 while the root is all that is known of
        self._is_doubted = True  # whether anybody is there at all
        self._empty_count = 0  # shards of that depth, in a row, with next to nothing
        self._drawn: Shard | None = None  # of which nothing is decided yet
        self._draw_count = 0
        self._has_sample = False
        self._end: Ended | None = None
        if estimate is not None and search_depth(estimate, cap):
            self._spread(0)

    @property
    def estimate(self) -> float | None:
        """How many providers there are by what was heard; None before that."""
        return sum(self._heard) / len(self._heard) if self._heard else None

    @property
    def heard_count(self) -> int:
        """Of how many reads that is the mean."""
        return len(self._heard)

    def poll(self) -> Step:
        """What to do next; it is to be told of by `on_read` or `on_taken` before this is asked again."""
        if self._to_take:
            return Take(self._to_take[-1])
        if self._end is not None:
            return self._end
        if not self._depth:
            return Read(ROOT_SHARD)
        if self._is_doubted:
            return self._read_or_end(self._pending[-1])
        while not self._has_sample:
            self._drawn = self._drawn or Shard(self._depth, self._rng.randrange(1 << self._depth))
            if self._drawn not in self.reports:
                return self._read_or_end(self._drawn)
            self._decide(self._drawn)
            if self._to_take:
                return Take(self._to_take[-1])
        if self._pending and (rejected := self._rejected()):
            self._take(rejected[0])
            return Take(rejected[0])
        return self._read_or_end(self._pending[-1]) if self._pending else self._at_end(_SPREAD)

    def on_read(self, shard: Shard, report: ShardReport | None, *, is_whole: bool) -> None:
        """A shard was read. `report` is what most of its storers say, None where nobody answered; `is_whole` whether
        they sent all that they hold.
        """
        self.reports[shard] = report
        if not self._depth:
            self._on_cold_root(report, is_whole=is_whole)
            return
        if shard in self._pending:
            self._pending.remove(shard)
        count = 0 if report is None else report.count
        if shard.depth == self._depth:
            self._empty_count = self._empty_count + 1 if count < PROVES_NOTHING_PART * self._cap else 0
        if self._is_too_empty():
            self._heard.clear()
            self._is_doubted, self._empty_count, self._drawn = True, 0, None
            self._spread(self._depth // 2)
            return
        is_first, self._is_doubted = self._is_doubted, False
        has_fallen, self._expected = not self._heard, self.estimate
        if report is not None:
            self._heard.append(float(count << shard.depth))
        if has_fallen:
            self._spread(0)
        elif self._has_sample:
            self._take(shard)
        elif is_first:
            self._drawn = shard

    def on_taken(self, count: int) -> None:
        """The providers of a shard were taken; `count` that fit have been by now, in all."""
        self._to_take.pop()
        if self._limit is not None and count >= self._limit and self._end is None:
            self._end = Ended(complete=False, reason=f"limit {self._limit}")

    def check_invariants(self) -> None:
        """Assert what the class promises; for tests."""
        assert len(self.reports) <= MAX_READS
        assert not self._pending or not self.reports.keys() & set(self._pending)
        assert self._taken.keys() <= self.reports.keys()

    def _on_cold_root(self, report: ShardReport | None, *, is_whole: bool) -> None:
        if report is not None:
            self._heard.append(float(report.estimate))
        if report is None or (report.depth == 0 and not report.is_full):
            reason = "nobody answered who keeps it" if report is None else "" if is_whole else _MORE_HELD
            self._end = Ended(not reason, reason)
            self._take(ROOT_SHARD)
        else:
            self._spread(report.depth)

    def _is_too_empty(self) -> bool:
        """Whether there are fewer than was heard."""
        if self._is_doubted:
            return self._depth > 1 and self._empty_count > 0
        return 1 << self._depth > MAX_READS and self._empty_count >= MAX_EMPTY

    def _spread(self, least_depth: int) -> None:
        """It is spread over shards, of which all of one depth are to be read, in random order."""
        self._depth = max(1, min(least_depth, RANK_BITS), search_depth(self.estimate or 0.0, self._cap))
        count = 1 << self._depth
        prefixes = self._rng.sample(range(count), min(count, MAX_READS))
        self._pending = [shard for prefix in prefixes if (shard := Shard(self._depth, prefix)) not in self.reports]
        self._has_sample = self._limit is None

    def _decide(self, shard: Shard) -> None:
        """Whether a shard that was drawn, and read, is the sample.

        It is judged by what was heard before it: were it a part of the mean, small ones would be taken too often.
        """
        self._drawn = None
        self._draw_count += 1
        report = self.reports[shard]
        count = 0 if report is None else report.count
        expected = (self._expected or self.estimate or 1.0) / 2**shard.depth
        chance = count / (expected * (1 + margin_of_fullest(expected)))
        if self._rng.random() < chance or self._draw_count >= MAX_DRAWS:
            self._has_sample = True
            self._take(shard)

    def _take(self, shard: Shard) -> None:
        self._taken[shard] = None
        self._to_take.append(shard)
        report = self.reports[shard]
        if report is None or not self._depth:
            return
        # A key may be full of what is in other parts of it: who is in one that is not well filled goes no deeper.
        is_crowded = report.is_full and report.count > LEAVE_PART * self._cap
        if (report.depth > shard.depth or is_crowded) and shard.depth < RANK_BITS:
            self._add(*shard.halves())
        expected = SPARSE_PART * (self.estimate or 0.0) / 2**shard.depth
        if shard.depth and report.count < max(expected, PROVES_NOTHING_PART * self._cap):
            self._add(shard.parent())

    def _rejected(self) -> list[Shard]:
        """Those of the right depth that were read and are no sample: where that is not enough, they cost nothing."""
        return [shard for shard in self.reports if shard.depth == self._depth and shard not in self._taken]

    def _add(self, *shards: Shard) -> None:
        new = [each for each in shards if each not in self.reports and each not in self._pending]
        self._pending[:0] = reversed(new)  # after those of the depth where everybody should be

    def _read_or_end(self, shard: Shard) -> Step:
        return (
            Read(shard) if len(self.reports) < MAX_READS else self._at_end(f"{MAX_READS} shards were read: {_SPREAD}")
        )

    def _at_end(self, reason: str) -> Step:
        """Those that were read and rejected are better than nothing."""
        self._end = Ended(complete=False, reason=reason)
        self._has_sample = True
        self._to_take = [shard for shard in self.reports if shard not in self._taken]
        self._taken |= dict.fromkeys(self._to_take)
        return Take(self._to_take[-1]) if self._to_take else self._end


_SPREAD = "it has more providers than one storer keeps, so some may be missing"
_MORE_HELD = "storers hold more than they sent"
