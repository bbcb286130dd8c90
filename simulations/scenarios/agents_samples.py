"""Whether samples of a crowd are fair: the pure rules alone, with whole tables in the place of a network.

One searcher draws again and again one provider of a crowd that has grown by its own placements (see `crowd.py`). The
draws are counted in 50 groups each by rank, which is by shard, by age, and by id, and every count is held against what
chance brings. Every provider is a party of its own, for others share what theirs gets. Storers without counts say of
every shard that as many are there as in any other.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dht.agents.search import Ended as SearchEnded
from dht.agents.search import Read, ShardSearch, Take
from dht.agents.shards import Shard, ShardReport, median_report, sampled
from dht.finding import MAX_HEARD, NONCE_SIZE_BYTES
from simulations.crowd import LEASE_S, Crowd, Held
from simulations.scenarios.base import Outcome, Progress, Settings
from simulations.scenarios.overlay import Figures, OverlayScenario
from simulations.statistics import chi_square_p, pearson
from simulations.world import World

CAP = 1000
STORERS = 1
"""Of each shard: with nothing lost more of them would hold, and say, the same."""
GROUPS = 50
LOW_P = 0.01
GROWN_WITHIN_S = LEASE_S / 2
SETTLED_S = LEASE_S
NO_COUNTS = "no-counts"
CHECKED = 200
"""Draws that are held against the storer's own sample."""
TOLD_EVERY = 1000


@dataclass(slots=True)
class _Table:
    """What the storers of one shard hold and say, which stays as it is while draws are made."""

    report: ShardReport
    held: list[Held]


async def _play(world: World, settings: Settings, progress: Progress) -> Outcome:
    crowd = _grown(settings)
    draws = _Draws(crowd, has_counts=settings.sabotage != NO_COUNTS)
    for made in range(1, settings.lookups + 1):
        draws.draw()
        if made % TOLD_EVERY == 0:
            await asyncio.sleep(0)  # whoever wants to end the run is heard now
            progress("draws", made, settings.lookups)
    for owner, count in draws.counts.items():
        world.network.digest.add_fault(0, owner, f"drawn {count}")
    return Outcome(settings.lookups, sum(draws.counts.values()), (), (), 1.0, draws.figures())


def _grown(settings: Settings) -> Crowd:
    """A crowd where its placements have it, after everybody has renewed twice."""
    crowd = Crowd(CAP, seed=settings.seed, storers=STORERS)
    for _ in range(settings.nodes):
        crowd.run_until(crowd.now + GROWN_WITHIN_S / settings.nodes)
        crowd.add()
    crowd.run_until(crowd.now + SETTLED_S)
    return crowd


class _Draws:
    """One searcher, who remembers how many there are as a node does, and whom it drew."""

    def __init__(self, crowd: Crowd, *, has_counts: bool) -> None:
        self.counts = dict.fromkeys(crowd.providers, 0)
        self._crowd = crowd
        self._has_counts = has_counts
        self._tables: dict[Shard, _Table] = {}
        self._estimate: float | None = None
        self._heard_count = 1
        self._reads = 0
        self._checked = 0

    def draw(self) -> None:
        """One search for one."""
        search = ShardSearch(
            CAP, self._crowd.rng, limit=1, estimate=self._estimate, heard_count=min(self._heard_count, MAX_HEARD)
        )
        while not isinstance(step := search.poll(), SearchEnded):
            if isinstance(step, Read):
                search.on_read(step.shard, self._table(step.shard).report, is_whole=True)
            elif isinstance(step, Take):
                search.on_taken(self._take(self._table(step.shard).held))
        self._reads += len(search.reports)
        self._estimate, self._heard_count = search.estimate, search.heard_count

    def _take(self, held: Sequence[Held]) -> int:
        """Count the first of a storer's sample; how many that are, 0 of nobody.

        Where all are parties of their own it is the one of the least digest: to sort all of them, which at first is
        done to see that it is so, takes twice as long.
        """
        if not held:
            return 0
        nonce = self._crowd.rng.randbytes(NONCE_SIZE_BYTES)
        _, first = min([(hashlib.sha256(nonce + each.owner).digest(), each.owner) for each in held])
        if self._checked < CHECKED:
            self._checked += 1
            assert sampled(held, nonce)[0].owner == first
        self.counts[first] += 1
        return 1

    def figures(self) -> Figures:
        """The chance of each of the three counts, and how many of those are low."""
        owners = list(self.counts)
        by_rank = sorted(owners, key=lambda owner: self._crowd.providers[owner].rank)
        p = {"shard": self._p(by_rank), "age": self._p(owners), "id": self._p(sorted(owners))}
        drawn = sum(self.counts.values())
        return {
            "providers": len(owners),
            "draws": drawn,
            "draw_reads_mean": round(self._reads / max(1, drawn), 4),
            **{f"{name}_p": round(value, 6) for name, value in p.items()},
            **{f"{name}_low_p_mean": float(value < LOW_P) for name, value in p.items()},
        }

    def _p(self, in_order: Sequence[bytes]) -> float:
        counts, sizes = [0] * GROUPS, [0] * GROUPS
        for place, owner in enumerate(in_order):
            group = place * GROUPS // len(in_order)
            counts[group] += self.counts[owner]
            sizes[group] += 1
        drawn = sum(counts)
        return chi_square_p(pearson(counts, [drawn * size / len(in_order) for size in sizes]), GROUPS - 1)

    def _table(self, shard: Shard) -> _Table:
        if shard not in self._tables:
            storers = self._crowd.storers(shard)
            report = median_report([storer.report(shard) for storer in storers])
            if not self._has_counts and shard.depth:
                report = replace(report, count=len(self.counts) >> shard.depth)
            held = {each.owner: each for storer in storers for each in storer.held.values() if shard.holds(each.rank)}
            self._tables[shard] = _Table(report, list(held.values()))
        return self._tables[shard]


SAMPLES = OverlayScenario(
    "agents-samples",
    "draws of single agents from a crowd of several shards, by the rules alone; a lookup is a draw",
    _play,
    sabotages=(NO_COUNTS,),
)
