"""Routing tables from global knowledge: a swarm that stands at once, as if everybody had met everybody.

Each k-bucket gets k random members of its part of the key space, or all that there are: what a long-lived node comes
to have. It goes in through `RoutingTable.observe`, as every contact does; that an onlooker knows who is where takes the
place of the proof.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

from dht.contact import Contact
from dht.keyspace import ID_BITS
from dht.routing import RoutingTable
from synapse_p2p.identity import NodeID


def fill_tables(
    tables: Iterable[tuple[NodeID, RoutingTable]],
    members: Iterable[Contact],
    *,
    k: int,
    rng: random.Random,
    now: float,
) -> None:
    """Let every table know the members, at most k of a k-bucket; no k-bucket is due for a refresh then.

    The tables come with the ids of their nodes, which may be members or not. Cost: O(n k log n).
    """
    in_order = sorted(members, key=lambda member: member.point)
    points = [member.point for member in in_order]
    for own_id, table in tables:
        for index, start, stop in _kbucket_ranges(points, int.from_bytes(own_id, "big")):
            positions = range(start, stop)
            for position in rng.sample(positions, min(k, len(positions))):
                table.observe(in_order[position], now)
            table.mark_refreshed(index, now)


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
