"""What a storer keeps of a capability's shard, and what it says of it: counts, a depth, an estimate.

Pure. Owns which record goes when a key has too many, and which is sent first. What publishers say of load, rank or
freshness is nowhere believed: a rank follows from an id, a party from an address that was seen, and a depth is only
where a record's owner put it.

A provider's **rank** is the first 64 bits of H(root, provider): the shard of d bits that it belongs to is the first d
bits of that. A **party** counts for at most a part of a shard, so that many keys of one /24 make no crowd.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Protocol, TypeVar

from dht.agents.index import MAX_SHARD_DEPTH, provider_prefix
from dht.keyspace import Key
from synapse_p2p.identity import NodeID

RANK_BITS = MAX_SHARD_DEPTH
FULL_PART_OF_LEASE = 0.6
"""A key is full for this part of a lease after a record was dropped: longer than any two renewals lie apart."""
MAX_ESTIMATE = 2**53
"""Providers in all, whoever named which depth: every number up to it is exact in every language."""
WELL_FILLED = 4
"""A shard that holds a 1 in so many of what it can is not empty by chance."""


class Ranked(Protocol):
    """A record as its shard sees it."""

    @property
    def owner(self) -> NodeID: ...
    @property
    def rank(self) -> int: ...
    @property
    def depth(self) -> int: ...
    @property
    def group(self) -> str | None: ...


R = TypeVar("R", bound=Ranked)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Shard:
    """The providers whose ranks begin with `prefix`, a number of `depth` bits."""

    depth: int = 0
    prefix: int = 0

    def holds(self, rank: int) -> bool:
        """Whether a provider of this rank belongs to it."""
        return rank >> (RANK_BITS - self.depth) == self.prefix

    def stem(self) -> Shard:
        """The same without the zeros at its end: all shards of one stem are kept under one key."""
        depth, prefix = self.depth, self.prefix
        while depth and not prefix & 1:
            depth, prefix = depth - 1, prefix >> 1
        return Shard(depth, prefix)

    def deepened(self, depth: int) -> Shard:
        """The first of its parts of this depth: that whose remaining bits are zero."""
        return Shard(depth, self.prefix << (depth - self.depth))

    def halves(self) -> tuple[Shard, Shard]:
        """Its two parts, one bit deeper."""
        return Shard(self.depth + 1, self.prefix << 1), Shard(self.depth + 1, self.prefix << 1 | 1)

    def parent(self) -> Shard:
        """The shard of which it is a half. The root has none."""
        return Shard(self.depth - 1, self.prefix >> 1)


ROOT_SHARD = Shard()


@dataclass(frozen=True, slots=True)
class ShardReport:
    """What one storer says of a shard.

    `count` is how many providers it holds there, of one party at most a part; `depth` the median depth that the records
    under the key name; `is_full` whether one was dropped lately for want of room; `estimate` how many providers there
    are in all.
    """

    count: int
    depth: int
    is_full: bool
    estimate: int


def rank_of(root: Key, provider: NodeID) -> int:
    """The rank of a provider under a capability's root key."""
    return provider_prefix(root, provider, RANK_BITS)


def report_on(held: Sequence[Ranked], shard: Shard, *, is_full: bool, cap: int, max_per_party: int) -> ShardReport:
    """What is said of `shard` by one who holds these records under its key.

    The all-zero part of a key's stem is a sample of all providers that nobody joins without an id of that many zero
    bits, so its count times 2^depth is an estimate of them. Where the key overflows, deeper parts are asked as well,
    for as long as they are filled well enough to say something. Cost: O(n) for n records, 0.2 ms for a thousand: every
    store and every search asks for it.
    """
    stem = shard.stem()
    depths = sorted([record.depth for record in held])
    depth = max(stem.depth, depths[(len(depths) - 1) // 2]) if depths else stem.depth

    def count(part: Shard) -> int:
        shift, prefix = RANK_BITS - part.depth, part.prefix  # what `holds` does, without a call for each record
        return _counted([record.group for record in held if record.rank >> shift == prefix], max_per_party)

    estimate = count(stem.deepened(depth)) << depth
    deeper = depth + 1
    while is_full and deeper <= RANK_BITS and WELL_FILLED * (found := count(stem.deepened(deeper))) >= cap:
        estimate = max(estimate, found << deeper)
        deeper += 1
    return ShardReport(count(shard), depth, is_full, min(estimate, MAX_ESTIMATE))


def first_to_go(held: Sequence[R]) -> R:
    """Whose record is dropped where there is one too many: of the largest party the one with the largest rank.

    Of parties of one size it is the largest rank of all. So crowds go before others, and among those of one shard
    those that a deeper shard takes.
    """
    sizes = Counter(record.group for record in held)
    return max(held, key=lambda record: (sizes[record.group], record.rank, record.owner))


def sampled(held: Iterable[R], nonce: bytes) -> list[R]:
    """All of them, in an order that the nonce decides: one of each party, then a second of each, and so on.

    A digest and not a shuffle: nobody but who chose the nonce decides who comes first, and a simulation repeats.
    """
    in_order = sorted(held, key=lambda record: hashlib.sha256(nonce + record.owner).digest())
    return in_turns(in_order, lambda record: record.group)


def in_turns(items: Iterable[T], party_of: Callable[[T], Hashable]) -> list[T]:
    """All of them, one of each party, then a second of each, and so on; those of one party stay in their order."""
    by_party: dict[Hashable, list[T]] = {}
    for item in items:
        by_party.setdefault(party_of(item), []).append(item)
    rounds = zip_longest(*by_party.values())
    return [item for item in chain.from_iterable(rounds) if item is not None]


def median_report(reports: Sequence[ShardReport]) -> ShardReport:
    """What most storers say: of each figure the median, the lower of two. Raises ValueError for no report."""
    if not reports:
        raise ValueError("nobody has said anything")
    middle = (len(reports) - 1) // 2
    return ShardReport(
        count=sorted(report.count for report in reports)[middle],
        depth=sorted(report.depth for report in reports)[middle],
        is_full=2 * sum(report.is_full for report in reports) > len(reports),
        estimate=sorted(report.estimate for report in reports)[middle],
    )


def believed_report(reports: Sequence[ShardReport], *, answered: int, is_proved: bool) -> ShardReport | None:
    """What a searcher holds for true of a shard: `reports` are of those near its key who say that they hold something,
    of `answered` in all. None where it is empty.

    `is_proved` says that one of them sent a record. Where none did, a minority is not believed: at a deep shard that
    nobody uses, those who lie are the only ones with anything to say.
    """
    if not reports or (not is_proved and 2 * len(reports) <= answered):
        return None
    return median_report(reports)


def _counted(groups: Sequence[str | None], max_per_party: int) -> int:
    sizes = Counter(groups).values()
    if not groups or max(sizes) <= max_per_party:
        return len(groups)
    return sum([min(size, max_per_party) for size in sizes])
