"""How large the network is, which nodes are near enough to a key to store it, and which lists to distrust.

Pure. A node estimates the size of the network from how near the nodes are that answered its own lookups. The estimate
gives the radius within which k nodes are to be expected, and how densely nodes may lie: who grinds ids to surround a
key makes its neighbourhood far denser than the rest, and is thinned out of every list.

Sources: the estimate is the maximum-likelihood one for a Poisson process of nodes; storing on a region and judging it
by density follow the censorship of IPFS records (CVE-2023-26248).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import inf, sqrt
from operator import gt
from typing import TypeAlias

from dht.config import LookupConfig
from dht.contact import Contact
from dht.keyspace import ID_BITS, Key
from dht.memo import remembered
from synapse_p2p.exceptions import ConfigError
from synapse_p2p.identity import NodeID
from synapse_p2p.transport.base import parse_address
from synapse_p2p.trust import TrustConfig

SPACE = 1 << ID_BITS
REGION_FACTOR = 3
"""No list of a region holds more than this many times k: where an estimate is stale and low, a region is crowded."""
ACCEPT_FACTOR = 2
"""A storer accepts within so many radii of its own, or with fewer than so many times k nodes nearer. Two estimates of
4 points differ so much that at 1.0 a third of the outer storers would refuse; at 2 none does."""
DENSITY_DEVIATIONS = LookupConfig().density_deviations
MAX_POINTS = 16  # random keys and our own id; the estimate's spread is 5 % then, and more change nothing
GROWTH = 2  # a neighbourhood so many times as dense is no chance: its k-th distance has a deviation of 22 %
FAILED_PART = 0.25  # of the contacts gone since the estimate was made, and it is made anew
MAX_GROUPS = 16_384  # addresses whose group is remembered, over all nodes of the process

GroupOf: TypeAlias = Callable[[tuple[str, ...]], str | None]
"""The party that a contact's addresses belong to; None for one that is a party by itself."""


@lru_cache(maxsize=16)
def groups_of(trust: TrustConfig) -> GroupOf:
    """Who counts as one party under `trust`."""

    # Shared by all nodes of a process, and called for every contact of every answer.
    @remembered(MAX_GROUPS)
    def group_of(addresses: tuple[str, ...]) -> str | None:
        try:
            host = parse_address(addresses[0])[0] if addresses else ""
        except ConfigError:
            return None
        return None if not host or trust.is_exempt(host) else trust.group_of(host)

    return group_of


def every_one_alone(_: tuple[str, ...]) -> str | None:
    """The groups of a network in which diversity of addresses says nothing."""
    return None


@dataclass(frozen=True, slots=True)
class Region:
    """How far a region reaches around any key, and how dense it may be.

    `radius` is a distance, inclusive; -1 while the size of the network is unknown. `expected` is how many other nodes
    lie within it on average. The density rule lets a list that holds c contacts take only what is farther than
    `floors[c]`. `spread` is how far off the radius is, as a part of it, while it rests on few points, and 0 after that.
    """

    radius: int
    expected: int
    floors: tuple[int, ...]
    spread: float = 0.0

    @classmethod
    def unknown(cls, k: int) -> Region:
        """Nobody is known to be inside, and every density is believed."""
        return cls(-1, 0, (-1,) * _list_length(k))

    @classmethod
    def everything(cls, size: int, k: int) -> Region:
        """The region where at most k others exist: all are inside, and there is no density to compare with."""
        return cls(SPACE, size, (-1,) * _list_length(k))

    @classmethod
    def of_radius(cls, radius: int, k: int, deviations: float = DENSITY_DEVIATIONS) -> Region:
        """The region within which k nodes are expected; see `LookupConfig.density_deviations`."""
        return cls(
            radius, k, tuple([part if part < 0 else part * radius >> 64 for part in _floor_parts(k, deviations)])
        )

    def without_radius(self) -> Region:
        """The same density, for a lookup of nodes alone: it needs nobody beyond the k nearest."""
        return Region(-1, 0, self.floors)

    def coverage(self, distances: Sequence[int]) -> float:
        """How densely nodes lie round a key that have these distances to it, ascending: 1 is as densely as expected, or
        as densely as it may be where the radius rests on few points.

        The distance of the k-th tells most, for a lookup asks so many in any case: it says twice as surely as a count
        within the radius whether half of them are missing.
        """
        if not self.expected:
            return 1.0
        if len(distances) < self.expected or self.radius >= SPACE:
            return (1 + self.spread) * len(distances) / self.expected
        return (1 + self.spread) * self.radius / max(1, distances[self.expected - 1])

    def is_inside(self, contact: Contact, key: Key) -> bool:
        """Whether this node is near enough to the key to store it."""
        return contact.point ^ int.from_bytes(key, "big") <= self.radius


def thin(
    contacts: Sequence[Contact], target: Key, region: Region, group_of: GroupOf, *, max_per_group: int
) -> tuple[list[Contact], list[Contact]]:
    """Those of a list, nearest to `target` first, that density and diversity let into it, and those they do not.

    Cost: where all are let in, as among honest nodes, 0.2 us each.
    """
    point = int.from_bytes(target, "big")
    distances = [contact.point ^ point for contact in contacts]
    groups = [] if group_of is every_one_alone else list(map(group_of, [contact.addresses for contact in contacts]))
    floors = region.floors
    # What is longer than the floors can be no honest list; the loop below tells.
    if len(distances) <= len(floors) and all(map(gt, distances, floors)) and not _is_crowded(groups, max_per_group):
        return list(contacts), []
    kept: list[Contact] = []
    skipped: list[Contact] = []
    taken: dict[str, int] = {}
    for contact, distance, group in zip(contacts, distances, groups or [None] * len(contacts), strict=True):
        if len(kept) >= len(floors) or distance <= floors[len(kept)]:
            skipped.append(contact)
            continue
        if group is not None:
            if taken.get(group, 0) >= max_per_group:
                skipped.append(contact)
                continue
            taken[group] = taken.get(group, 0) + 1
        kept.append(contact)
    return kept, skipped


def fill(kept: Sequence[Contact], skipped: Sequence[Contact], target: Key, count: int) -> list[Contact]:
    """`kept`, and of the nearest `skipped` as many as `count` places are free: nothing is shortened by a rule.

    Nearest first.
    """
    free = count - len(kept)
    if free <= 0 or not skipped:
        return list(kept)
    point = int.from_bytes(target, "big")
    return sorted([*kept, *skipped[:free]], key=lambda contact: contact.point ^ point)


Closest: TypeAlias = Callable[[int], list[Contact]]
"""Up to so many known contacts, nearest to some target first."""


def seeds(
    closest: Closest, target: Key, count: int, region: Region, group_of: GroupOf, *, max_per_group: int
) -> list[Contact]:
    """The `count` known contacts that a lookup of `target` begins with; those that crowd it come last."""
    known = closest(count)
    kept, skipped = thin(known, target, region, group_of, max_per_group=max_per_group)
    if skipped and len(known) == count:
        # Somebody crowds the target: look farther for those who do not. Rare, so honest lookups do not pay for it.
        kept, skipped = thin(closest(2 * count + len(skipped)), target, region, group_of, max_per_group=max_per_group)
    return fill(kept[:count], skipped, target, count)


def answer(
    closest: Closest,
    target: Key,
    radius: int,
    region: Region,
    group_of: GroupOf,
    *,
    k: int,
    max_count: int,
    max_per_group: int,
) -> list[Contact]:
    """Whom we name to one who asks: all that we know within `radius`, at most twice our own, and k in any case.

    No answer is crowded, and none has more than `max_count`.
    """
    point = int.from_bytes(target, "big")
    reach = min(radius, ACCEPT_FACTOR * region.radius)
    near = closest(k)
    kept, skipped = thin(near, target, region, group_of, max_per_group=max_per_group)
    # Mostly the k nearest are all there is to say, and nobody crowds the target: more are looked at only then.
    if skipped or (len(near) == k and near[-1].point ^ point <= reach):
        kept, skipped = thin(closest(max_count), target, region, group_of, max_per_group=max_per_group)
        kept = kept[: max(k, sum(contact.point ^ point <= reach for contact in kept))]
    return fill(kept, skipped, target, k)


class RegionEstimate:
    """What one node believes about the size of its network. It has at most `MAX_POINTS` distances to remember.

    `region` is what follows from it by now. Our own neighbourhood is known at any time and for nothing, so it shows at
    once that the network has grown; but it is also what an attacker would surround, so it is believed alone only until
    random keys are measured again.

    Invariant: before the first point nothing is known, and no region is assumed.
    """

    def __init__(self, own_id: NodeID, config: LookupConfig) -> None:
        self._own_id = own_id
        self._own_point = int.from_bytes(own_id, "big")
        self._config = config
        self._k = config.k
        self._own_distance: int | None = None  # of the k-th node from our own id
        self._measured_distance: int | None = None  # the same when the random keys were measured
        self._distances: deque[int] = deque(maxlen=MAX_POINTS - 1)  # of the k-th node from each of the last random keys
        self._count: int | None = None  # of all other nodes, where they are at most k
        self._lost = 0  # contacts gone since the estimate was made
        self.region = Region.unknown(self._k)

    @property
    def size(self) -> float | None:
        """How many other nodes there are, about; None before the first point."""
        if self._count is not None:
            return float(self._count)
        points = self._points()
        return max(1, len(points) * self._k - 1) * SPACE / sum(points) if points else None

    @property
    def is_sure(self) -> bool:
        """Whether it is good enough to judge what we store for others."""
        return self._count is not None or len(self._points()) >= self._config.min_points

    def note(self, target: Key, closest: Sequence[Contact]) -> None:
        """A complete strict or guarded lookup of our own id, or of a random key, ended with these who answered.

        Nobody else's choice of a key may get here: he would choose one that he has surrounded.
        """
        if len(closest) < self._k:
            self.forget()
            self._count = len(closest)
        else:
            self._count = None
            distance = closest[self._k - 1].point ^ int.from_bytes(target, "big")
            if target == self._own_id:
                self._own_distance = distance
            else:
                self._distances.append(distance)
                self._measured_distance = self._own_distance
        self.region = self._region()

    def on_neighbours(self, nearest: Sequence[Contact]) -> None:
        """These are the contacts nearest to ourselves by now, nearest first. Cheap where nothing has changed."""
        if len(nearest) < self._k:
            if self._count is not None and self._count < len(nearest):
                self._count = len(nearest)
                self.region = self._region()
            return
        distance = nearest[self._k - 1].point ^ self._own_point
        if distance == self._own_distance or (self._own_distance is None and self._count is None):
            return
        self._count = None
        self._own_distance = distance
        self.region = self._region()

    def on_lost(self) -> None:
        """A contact failed for good."""
        self._lost += 1

    def is_outdated(self, contact_count: int) -> bool:
        """Whether the network may have another size than when it was measured: a quarter of the contacts failed, of
        whom `contact_count` are left, or our neighbourhood is twice as dense.

        Measure again from the start then: `forget` and `note`.
        """
        return self._has_grown() or self._lost > FAILED_PART * (contact_count + self._lost)

    def forget(self) -> None:
        """Drop every random key: they are of a network that was."""
        self._distances.clear()
        self._count = None
        self._lost = 0

    def accepts(self, key: Key, nearer: Sequence[Contact], group_of: GroupOf) -> bool:
        """Whether we are near enough to store under a key. `nearer` are unsuspected contacts nearer to it than we are,
        nearest first, at least 3k of them if there are.

        The count lets us serve after a crash of half the network, when the radius is that of yesterday.
        """
        own_distance = int.from_bytes(self._own_id, "big") ^ int.from_bytes(key, "big")
        if self.is_sure and own_distance <= ACCEPT_FACTOR * self.region.radius:
            return True
        limit = ACCEPT_FACTOR * self._k
        if len(nearer) < limit:
            return True
        kept, _ = thin(nearer, key, self.region, group_of, max_per_group=len(nearer))
        return len(kept) < limit

    def check_invariants(self) -> None:
        """Assert what the class promises; for tests."""
        points = self._points()
        assert len(points) <= MAX_POINTS
        assert all(0 < point < SPACE for point in points)
        assert len(self.region.floors) == _list_length(self._k)
        assert list(self.region.floors) == sorted(self.region.floors)

    def _points(self) -> list[int]:
        own = [] if self._own_distance is None else [self._own_distance]
        return own if self._has_grown() else own + list(self._distances)

    def _has_grown(self) -> bool:
        then, now = self._measured_distance, self._own_distance
        return bool(self._distances) and then is not None and now is not None and GROWTH * now < then

    def _region(self) -> Region:
        if self._count is not None:
            return Region.everything(self._count, self._k)
        points = self._points()
        if not points:
            return Region.unknown(self._k)
        radius = self._k * sum(points) // max(1, len(points) * self._k - 1)
        if radius >= SPACE:
            return Region.everything(self._k, self._k)
        region = Region.of_radius(radius, self._k, self._config.density_deviations)
        return region if self.is_sure else replace(region, spread=1 / sqrt(len(points) * self._k))


def _list_length(k: int) -> int:
    return max(REGION_FACTOR * k, 64)  # a region's list, and the longest answer


@lru_cache(maxsize=16)
def _floor_parts(k: int, deviations: float) -> tuple[int, ...]:
    """By how many contacts a list holds: the floor in parts of the radius, 2^64 in all of it; -1 where there is none.

    The same for all radii, and nodes estimate theirs all the time.
    """
    return tuple([_floor_part(count, k, deviations) for count in range(_list_length(k))])


def _floor_part(count: int, k: int, deviations: float) -> int:
    if count < 3 or deviations == inf:
        return -1
    # 3 + x^2 + d x > count, solved for x = sqrt(lambda): d deviations above what chance brings, and three.
    density = ((sqrt(deviations**2 + 4 * (count - 3)) - deviations) / 2) ** 2
    return int(density / k * (1 << 64))


def _is_crowded(groups: Sequence[str | None], max_per_group: int) -> bool:
    if not any(groups):
        return False
    named = [group for group in groups if group is not None]
    if len(set(named)) == len(named):
        return False
    return any(named.count(group) > max_per_group for group in named)
