"""Routing tables from global knowledge: a swarm that stands at once, as if everybody had met everybody.

Each k-bucket gets k random members of its part of the key space, or all that there are: what a long-lived node comes
to have. It goes in through `RoutingTable.observe`, as every contact does; that an onlooker knows who is where takes the
place of the proof.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence

from dht.contact import Contact
from dht.keyspace import ID_BITS
from dht.node import DHTNode
from dht.routing import RoutingTable
from synapse_p2p.identity import NodeID

RARE_FACTOR = 4
"""Where so many times as many are there as are drawn, one is seldom drawn twice."""
SIZE_POINTS = 8
"""Random keys that an estimate of the swarm's size rests on: what refreshes of an hour give."""


def fill_tables(
    tables: Iterable[tuple[NodeID, RoutingTable]],
    members: Iterable[Contact],
    *,
    k: int,
    rng: random.Random,
    now: float,
    weight_of: Callable[[Contact], float] | None = None,
) -> None:
    """Let every table know the members, at most k of a k-bucket; no k-bucket is due for a refresh then.

    The tables come with the ids of their nodes, which may be members or not. A member of weight 4 is four times as
    likely to be drawn next as one of weight 1, which all have by default. Cost: O(n k log n), with weights a few times
    that.
    """
    in_order = sorted(members, key=lambda member: member.point)
    points = [member.point for member in in_order]
    weights = [1.0 if weight_of is None else weight_of(member) for member in in_order]
    heaviest = max(weights, default=1.0)
    for own_id, table in tables:
        for index, start, stop in _kbucket_ranges(points, int.from_bytes(own_id, "big")):
            positions = range(start, stop)
            if weight_of is None:
                drawn = rng.sample(positions, min(k, len(positions)))
            else:
                drawn = _draw(positions, k, weights, heaviest, rng)
            for position in drawn:
                table.observe(in_order[position], now)
            table.mark_refreshed(index, now)


def introduce_everybody(
    nodes: Sequence[DHTNode],
    members: Sequence[Contact],
    *,
    k: int,
    rng: random.Random,
    now: float,
    weight_of: Callable[[Contact], float] | None = None,
) -> None:
    """Let every node have a full table, and know how large the swarm is, as if it had long been there.

    `weight_of` is as in `fill_tables`.
    """
    tables = ((node.id, node.routing_table) for node in nodes)
    fill_tables(tables, members, k=k, rng=rng, now=now, weight_of=weight_of)
    _tell_sizes(nodes, members, k=k, rng=rng)


def offer(tables: Iterable[RoutingTable], newcomers: Sequence[Contact], *, rng: random.Random, now: float) -> None:
    """Show every table all newcomers, each in an order of its own; it takes those for whom it has room."""
    for table in tables:
        for newcomer in rng.sample(newcomers, len(newcomers)):
            table.observe(newcomer, now)


def nearest_points(points: Sequence[int], target: int, count: int) -> list[int]:
    """The `count` of `points`, which ascend, that are nearest to `target` by XOR, nearest first; fewer if there are.

    Cost: O(log n + count log count) with n random points.
    """
    start, stop, prefix = 0, len(points), 0
    bit = 1 << (ID_BITS - 1)
    while bit and stop - start > count:
        middle = bisect_left(points, prefix | bit, start, stop)
        near = (middle, stop) if target & bit else (start, middle)
        if near[1] - near[0] < count:
            break
        start, stop = near
        prefix |= target & bit
        bit >>= 1
    return sorted(points[start:stop], key=lambda point: point ^ target)[:count]


def _tell_sizes(nodes: Iterable[DHTNode], members: Sequence[Contact], *, k: int, rng: random.Random) -> None:
    """As lookups of its own id and of random keys would tell a node. Each has keys of its own: not all err alike.

    Cost: 0.3 ms for each node.
    """
    by_point = {member.point: member for member in members}
    points = sorted(by_point)
    for node in nodes:
        node.estimate.note(node.id, node.routing_table.closest(node.id, k))
        for _ in range(SIZE_POINTS):
            target = rng.randbytes(ID_BITS // 8)
            near = [by_point[point] for point in nearest_points(points, int.from_bytes(target, "big"), k + 1)]
            node.estimate.note(target, [contact for contact in near if contact.id != node.id][:k])


def nearest_point(points: Sequence[int], target: int, *, apart_from: int) -> int:
    """The one of `points`, which ascend, that is nearest to `target` by XOR and is not `apart_from`.

    Raises ValueError where there is none. Cost: O(log n) with n random points.
    """
    start, stop, prefix = 0, len(points), 0
    bit = 1 << (ID_BITS - 1)
    # Whoever shares the next bit with the target is nearer than all who do not.
    while stop - start > 2 and bit:
        middle = bisect_left(points, prefix | bit, start, stop)
        near = (middle, stop) if target & bit else (start, middle)
        near_count = near[1] - near[0]
        if near_count == 0 or (near_count == 1 and points[near[0]] == apart_from):
            near = (start, middle) if target & bit else (middle, stop)
        start, stop = near
        if start == middle:
            prefix |= bit
        bit >>= 1
    return min((point for point in points[start:stop] if point != apart_from), key=lambda point: point ^ target)


def _kbucket_ranges(points: Sequence[int], own_point: int) -> Iterator[tuple[int, int, int]]:
    """For each k-bucket from the far half of the space to the last that can have members: its index, and where its
    members stand in `points`, which ascend.
    """
    start, stop = 0, len(points)  # of those that share `index` leading bits with us
    for index in range(ID_BITS):
        if stop - start <= (points[start : start + 1] == [own_point]):
            return  # nobody is left but ourselves
        bit = 1 << (ID_BITS - 1 - index)
        prefix = own_point & ~(2 * bit - 1)
        middle = bisect_left(points, prefix | bit, start, stop)
        if own_point & bit:
            yield index, start, middle
            start = middle
        else:
            yield index, middle, stop
            stop = middle


def _draw(positions: range, count: int, weights: Sequence[float], heaviest: float, rng: random.Random) -> list[int]:
    """A weighted sample without replacement, in the order of drawing."""
    if len(positions) > RARE_FACTOR * count:
        # Of many it is quicker to draw any, and to take it as often as its weight says.
        drawn: dict[int, None] = {}
        while len(drawn) < count:
            position = rng.choice(positions)
            if rng.random() * heaviest < weights[position]:
                drawn[position] = None
        return list(drawn)
    # Efraimidis and Spirakis (2006): the largest u^(1/weight) are such a sample, in order.
    keys = {position: rng.random() ** (1 / weights[position]) for position in positions}
    return sorted(positions, key=keys.__getitem__, reverse=True)[:count]
