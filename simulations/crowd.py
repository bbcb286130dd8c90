"""Providers, storers and searchers of one capability without a network between them: the rules alone, on a clock.

Each key has some storers of its own, which never go. A storer may lie about what it holds, a provider about its depth.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field

from dht.agents.placement import Placed, Placement, ReadRoot, Write
from dht.agents.search import Ended, Read, ShardSearch, Take
from dht.agents.shards import (
    FULL_PART_OF_LEASE,
    ROOT_SHARD,
    Shard,
    ShardReport,
    first_to_go,
    median_report,
    rank_of,
    report_on,
    sampled,
)

ROOT = b"capability".ljust(32, b"\0")
LEASE_S = 900.0


@dataclass(frozen=True, slots=True)
class Held:
    owner: bytes
    rank: int
    depth: int
    group: str | None
    expires_at: float


@dataclass(slots=True)
class Storer:
    """What one node keeps under one key."""

    crowd: Crowd
    held: dict[bytes, Held] = field(default_factory=dict)
    dropped_at: float = -1e9
    lie: ShardReport | None = None
    stores: int = 0

    def put(self, new: Held) -> None:
        self.stores += 1
        self.expire()
        if new.owner not in self.held and len(self.held) >= self.crowd.cap:
            self.dropped_at = self.crowd.now
            gone = first_to_go([*self.held.values(), new])
            if gone is new:
                return
            del self.held[gone.owner]
        self.held[new.owner] = new

    def expire(self) -> None:
        for owner in [owner for owner, held in self.held.items() if held.expires_at <= self.crowd.now]:
            del self.held[owner]

    def report(self, shard: Shard) -> ShardReport:
        self.expire()
        if self.lie is not None:
            return self.lie
        return report_on(
            list(self.held.values()),
            shard,
            is_full=self.crowd.now - self.dropped_at < FULL_PART_OF_LEASE * LEASE_S,
            cap=self.crowd.cap,
            max_per_party=max(1, self.crowd.cap // 16),
        )


@dataclass(slots=True)
class Provider:
    id: bytes
    group: str
    placement: Placement
    rank: int
    wrong_depth: int | None = None  # where a liar says that it belongs, for ever
    is_alive: bool = True


class Crowd:
    def __init__(self, cap: int, *, seed: int = 1, storers: int = 5, lying: float = 0.0) -> None:
        self.cap = cap
        self.now = 0.0
        self.rng = random.Random(seed)
        self.providers: dict[bytes, Provider] = {}
        self.lookups: list[int] = []  # of each registration
        self.renewal_lookups = 0
        self._storers_per_key = storers
        self._lying = lying
        self._storers: dict[Shard, list[Storer]] = {}
        self._due: list[tuple[float, bytes]] = []

    # What happens

    def add(self, *, group: str | None = None, wrong_depth: int | None = None) -> Provider:
        owner = self.rng.randbytes(32)
        provider = Provider(owner, group or owner.hex(), Placement(self.cap), rank_of(ROOT, owner), wrong_depth)
        self.providers[owner] = provider
        self.lookups.append(self.publish(provider))
        heapq.heappush(self._due, (self.now + self._pause_s(), owner))
        return provider

    def kill(self, provider: Provider) -> None:
        provider.is_alive = False
        del self.providers[provider.id]

    def run_until(self, time: float) -> None:
        while self._due and self._due[0][0] <= time:
            self.now, owner = heapq.heappop(self._due)
            if (provider := self.providers.get(owner)) is not None:
                provider.placement.renew()
                self.renewal_lookups += self.publish(provider)
                heapq.heappush(self._due, (self.now + self._pause_s(), owner))
        self.now = time

    def publish(self, provider: Provider) -> int:
        """How many lookups it took; a renewal where it was takes none."""
        if provider.wrong_depth is not None:
            self._write(provider, provider.wrong_depth)
            return 1
        were, lookups = provider.placement.depths, 0
        placement, rounds = provider.placement, 0
        root_was_read = False
        while not isinstance(step := placement.poll(), Placed):
            rounds += 1
            assert rounds < 60, "a publication does not end"
            match step:
                case ReadRoot(all_storers):
                    said = [storer.report(ROOT_SHARD) for storer in self.storers(ROOT_SHARD)]
                    placement.on_root(said if all_storers else self.rng.sample(said, min(3, len(said))))
                    lookups, root_was_read = lookups + 1, True
                case Write(depth):
                    is_known = depth in were or (root_was_read and depth == 0)
                    lookups += not is_known
                    placement.on_written(depth, self._write(provider, depth))
        return lookups

    def search(self, limit: int | None = None, estimate: float | None = None) -> tuple[list[bytes], Ended, ShardSearch]:
        """Whom a search finds, how it ended, and the search. Of a shard taken for a limit a sample of that size."""
        search = ShardSearch(self.cap, self.rng, limit=limit, estimate=estimate)
        found: dict[bytes, None] = {}
        reads: dict[Shard, list[bytes]] = {}
        while not isinstance(step := search.poll(), Ended):
            if isinstance(step, Read):
                storers = self.rng.sample(self.storers(step.shard), min(3, self._storers_per_key))
                reports = [storer.report(step.shard) for storer in storers]
                all_held = {held.owner: held for storer in storers for held in storer.held.values()}
                asked = [held for held in all_held.values() if step.shard.holds(held.rank)]
                reads[step.shard] = [held.owner for held in sampled(asked, self.rng.randbytes(8))]
                said = [report for report in reports if report.count or report.is_full]
                stem_depth = step.shard.stem().depth
                report = median_report(said) if said else ShardReport(0, stem_depth, is_full=False, estimate=0)
                search.on_read(step.shard, report, is_whole=True)
            elif isinstance(step, Take):
                for owner in reads[step.shard]:
                    if limit is None or len(found) < limit:
                        found[owner] = None
                search.on_taken(len(found))
            search.check_invariants()
        return list(found), step, search

    def storers(self, shard: Shard) -> list[Storer]:
        stem = shard.stem()
        if stem not in self._storers:
            storers = [Storer(self) for _ in range(self._storers_per_key)]
            for storer in storers:
                if self.rng.random() < self._lying:
                    storer.lie = ShardReport(self.cap, 40, is_full=True, estimate=10**9)
            self._storers[stem] = storers
        return self._storers[stem]

    def all_storers(self) -> list[Storer]:
        return [storer for storers in self._storers.values() for storer in storers]

    def _write(self, provider: Provider, depth: int) -> list[ShardReport]:
        shard = Shard(depth, provider.rank >> (64 - depth))
        storers = self.storers(shard)
        for storer in storers:
            storer.put(Held(provider.id, provider.rank, depth, provider.group, self.now + LEASE_S))
        return [storer.report(shard) for storer in storers]

    def _pause_s(self) -> float:
        return LEASE_S / 2 * self.rng.uniform(0.9, 1.1)
