"""Routing tables from global knowledge: as full as they can be, and of nobody that is not there."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.config import RoutingConfig
from dht.contact import Contact
from dht.keyspace import ID_BITS
from dht.routing import RoutingTable
from simulations.oracle import fill_tables, nearest_point, nearest_points, offer

K = 4


def contact(number: int) -> Contact:
    return Contact(number.to_bytes(32, "big"), (f"10.0.{number % 200}.{number % 251}:9000",))


def shared_bits(a: Contact, b: Contact) -> int:
    return ID_BITS - (a.point ^ b.point).bit_length()


def filled(own: Contact, members: list[Contact], *, seed: int = 1) -> RoutingTable:
    table = RoutingTable(own.id, RoutingConfig(k=K))
    fill_tables([(own.id, table)], members, k=K, rng=random.Random(seed), now=5.0)
    return table


POINTS = st.one_of(st.integers(0, 2**ID_BITS - 1), st.integers(0, 63))
"""Far apart, and so near that only the last bits differ."""


@given(points=st.lists(POINTS, min_size=1, max_size=40, unique=True), is_member=st.booleans())
def test_every_kbucket_holds_k_members_or_all_that_there_are(points: list[int], is_member: bool):
    own, *others = map(contact, points)

    table = filled(own, [own, *others] if is_member else others)

    table.check_invariants()
    by_kbucket: dict[int, int] = {}
    for other in others:
        index = shared_bits(own, other)
        by_kbucket[index] = by_kbucket.get(index, 0) + 1
    held: dict[int, int] = {}
    for known in table:
        assert known in others
        index = shared_bits(own, known)
        held[index] = held.get(index, 0) + 1
    assert held == {index: min(K, count) for index, count in by_kbucket.items()}


def test_no_kbucket_is_due_for_a_refresh():
    rng = random.Random(7)
    own, *others = (contact(rng.getrandbits(ID_BITS)) for _ in range(50))

    table = filled(own, [own, *others])

    assert table.stale_buckets(6.0, age_s=10.0) == []


@pytest.mark.parametrize("count", [0, 1])
def test_one_who_is_alone_knows_nobody(count: int):
    own = contact(77)

    assert len(filled(own, [own][:count])) == 0


def test_one_seed_is_one_choice():
    rng = random.Random(7)
    own, *others = (contact(rng.getrandbits(ID_BITS)) for _ in range(100))

    first, again, other = (list(filled(own, others, seed=seed)) for seed in (1, 1, 2))

    assert first == again
    assert set(first) != set(other)


@given(points=st.lists(POINTS, min_size=2, max_size=40, unique=True), target=POINTS, number=st.integers(0, 39))
def test_the_nearest_point_is_the_one_that_looking_at_all_would_find(points: list[int], target: int, number: int):
    own = points[number % len(points)]

    found = nearest_point(sorted(points), target, apart_from=own)

    assert found == min((point for point in points if point != own), key=lambda point: point ^ target)


@given(points=st.lists(POINTS, min_size=1, max_size=40, unique=True), target=POINTS)
def test_the_nearest_point_to_a_stranger_may_be_any(points: list[int], target: int):
    stranger = next(point for point in range(100) if point not in points)

    assert nearest_point(sorted(points), target, apart_from=stranger) == min(points, key=lambda point: point ^ target)


@given(
    points=st.lists(POINTS, max_size=60, unique=True),
    target=POINTS,
    count=st.integers(1, 25),
)
def test_the_nearest_points_are_those_of_a_sort(points: list[int], target: int, count: int):
    assert nearest_points(sorted(points), target, count) == sorted(points, key=lambda point: point ^ target)[:count]


def test_who_weighs_four_times_as_much_is_in_a_far_kbucket_four_times_as_often():
    rng = random.Random(7)
    own, *others = (contact(rng.getrandbits(ID_BITS)) for _ in range(2001))
    heavy = {other.point for other in others[:400]}
    held = {True: 0, False: 0}

    for seed in range(200):
        table = RoutingTable(own.id, RoutingConfig(k=20))
        fill_tables(
            [(own.id, table)],
            others,
            k=20,
            rng=random.Random(seed),
            now=0.0,
            weight_of=lambda each: 4.0 if each.point in heavy else 1.0,
        )
        for known in table:
            if shared_bits(own, known) < 4:  # farther in there is room for all
                held[known.point in heavy] += 1

    assert held[True] / held[False] == pytest.approx(4 * 400 / 1600, rel=0.15)


def test_whom_a_table_was_offered_first_is_in_it():
    rng = random.Random(7)
    own, *others = (contact(rng.getrandbits(ID_BITS)) for _ in range(41))
    table = RoutingTable(own.id, RoutingConfig(k=2))

    offer([table], others[:20], rng=rng, now=0.0)
    first = set(table)
    offer([table], others[20:], rng=rng, now=0.0)

    assert first <= set(table)
