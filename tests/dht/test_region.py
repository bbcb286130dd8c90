"""The estimate of the network's size, the density rule, diversity, what a storer accepts."""

from __future__ import annotations

from math import sqrt
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dht.config import LookupConfig
from dht.contact import Contact
from dht.region import (
    MAX_POINTS,
    SPACE,
    Region,
    RegionEstimate,
    answer,
    every_one_alone,
    fill,
    groups_of,
    seeds,
    thin,
)
from synapse_p2p.trust import TrustConfig

CONFIG = LookupConfig()
KEY = bytes(32)
OWN_ID = b"\xff" * 32
OPEN = TrustConfig(loopback=False, private=False)


def contact_at(number: int, host: str = "") -> Contact:
    return Contact(number.to_bytes(32, "big"), (f"{host}:9000",) if host else ())


def nodes(size: int, rng: Random) -> list[Contact]:
    return [Contact(rng.randbytes(32), ()) for _ in range(size)]


def nearest(contacts: list[Contact], key: bytes, count: int = 20) -> list[Contact]:
    point = int.from_bytes(key, "big")
    return sorted(contacts, key=lambda contact: contact.point ^ point)[:count]


def measured(size: int, points: int, rng: Random) -> RegionEstimate:
    """The estimate after a lookup of our own id and of random keys."""
    others = nodes(size, rng)
    estimate = RegionEstimate(OWN_ID, CONFIG)
    for key in [OWN_ID, *(rng.randbytes(32) for _ in range(points - 1))]:
        estimate.note(key, nearest(others, key))
        estimate.check_invariants()
    return estimate


# The size


def test_before_the_first_lookup_nothing_is_known_and_nobody_is_inside():
    estimate = RegionEstimate(OWN_ID, CONFIG)

    assert (estimate.size, estimate.is_sure) == (None, False)
    assert not estimate.region.is_inside(contact_at(0), KEY)


@pytest.mark.parametrize(("points", "max_spread"), [(4, 0.15), (8, 0.11), (16, 0.075)])
def test_the_estimate_is_unbiased_and_as_narrow_as_its_points_allow(points: int, max_spread: float):
    rng = Random(points)
    sizes = [measured(1000, points, rng).size or 0.0 for _ in range(40)]

    mean = sum(sizes) / len(sizes)
    spread = sqrt(sum((size - mean) ** 2 for size in sizes) / len(sizes)) / mean
    assert abs(mean / 1000 - 1) < 3 * max_spread / sqrt(40) + 0.01
    assert spread < max_spread


def test_at_most_k_nodes_are_counted_and_all_are_inside():
    estimate = RegionEstimate(OWN_ID, CONFIG)

    estimate.note(OWN_ID, [contact_at(number) for number in range(1, 8)])

    assert (estimate.size, estimate.is_sure, estimate.region.expected) == (7.0, True, 7)
    assert estimate.region.is_inside(contact_at(SPACE - 1), KEY)
    assert (
        thin([contact_at(number) for number in range(60)], KEY, estimate.region, every_one_alone, max_per_group=2)[1]
        == []
    )


def test_four_points_make_it_sure():
    assert [measured(500, points, Random(1)).is_sure for points in (1, 2, 3, 4, 9)] == [False, False, False, True, True]


def test_the_oldest_random_keys_are_forgotten():
    rng = Random(3)
    estimate = measured(100, 4, rng)
    more = nodes(2000, rng)

    for _ in range(2 * MAX_POINTS):
        key = rng.randbytes(32)
        estimate.note(key, nearest(more, key))
        estimate.check_invariants()

    assert estimate.size is not None
    assert 700 < estimate.size < 2600  # our own point is of the small network still, and weighs as ten of the others


def test_a_network_that_outgrows_the_count_is_estimated_at_once():
    rng = Random(4)
    estimate = RegionEstimate(OWN_ID, CONFIG)
    estimate.note(OWN_ID, nodes(10, rng))

    estimate.on_neighbours(nearest(nodes(400, rng), OWN_ID))

    assert estimate.size is not None
    assert 200 < estimate.size < 800
    assert not estimate.is_sure


def test_a_count_grows_with_those_we_come_to_know():
    estimate = RegionEstimate(OWN_ID, CONFIG)
    estimate.note(OWN_ID, [contact_at(1)])

    estimate.on_neighbours([contact_at(number) for number in range(1, 12)])
    estimate.on_neighbours([contact_at(number) for number in range(1, 5)])

    assert (estimate.size, estimate.region.expected) == (11.0, 11)


@pytest.mark.parametrize(
    ("answered", "coverage"),
    [
        ([5 * number for number in range(1, 21)], 1.0),  # the 20th is where it is expected
        ([10 * number for number in range(1, 21)], 0.5),
        (list(range(1, 21)), 5.0),
        ([5 * number for number in range(1, 16)], 0.75),  # nobody else answered
        ([5 * number for number in range(1, 31)], 1.0),  # farther ones say nothing of the region
        ([], 0.0),
    ],
)
def test_coverage_is_how_densely_those_lie_that_answered(answered: list[int], coverage: float):
    assert Region.of_radius(100, 20).coverage(answered) == pytest.approx(coverage)


@pytest.mark.parametrize(("points", "spread"), [(1, 20**-0.5), (2, 40**-0.5), (3, 60**-0.5), (4, 0.0), (9, 0.0)])
def test_an_estimate_of_few_points_doubts_nobody_for_its_own_error(points: int, spread: float):
    region = measured(500, points, Random(1)).region
    answered = [2 * region.radius * number // 20 for number in range(1, 21)]  # half as dense as expected

    assert region.spread == pytest.approx(spread)
    assert region.coverage(answered) == pytest.approx(0.5 * (1 + spread))
    assert region.coverage(answered[:10]) == pytest.approx(0.5 * (1 + spread))


def test_where_all_are_inside_coverage_is_the_part_that_answered():
    assert Region.everything(12, 20).coverage([1, 2, 3]) == 0.25
    assert Region.unknown(20).coverage([]) == 1.0


def test_a_neighbourhood_twice_as_dense_is_believed_alone_until_random_keys_are_measured_again():
    rng = Random(5)
    estimate = measured(100, 8, rng)
    assert not estimate.is_outdated(60)
    grown = nodes(1600, rng)

    estimate.on_neighbours(nearest(grown, OWN_ID))

    assert estimate.is_outdated(60)
    assert estimate.size is not None
    assert 800 < estimate.size < 3200
    estimate.forget()
    for _ in range(3):
        key = rng.randbytes(32)
        estimate.note(key, nearest(grown, key))
    assert not estimate.is_outdated(60)
    assert estimate.is_sure


def test_an_attacker_around_our_own_id_changes_a_measured_size_by_one_point():
    rng = Random(6)
    others = nodes(1000, rng)
    ground = [Contact((int.from_bytes(OWN_ID, "big") ^ number).to_bytes(32, "big"), ()) for number in range(1, 21)]
    estimate = measured(1000, 8, rng)

    estimate.on_neighbours(ground)
    estimate.forget()
    for _ in range(7):
        key = rng.randbytes(32)
        estimate.note(key, nearest(others, key))

    assert estimate.size is not None
    assert estimate.size < 1500


def test_a_quarter_of_the_contacts_lost_makes_it_outdated():
    estimate = measured(500, 5, Random(7))

    for _ in range(20):
        assert not estimate.is_outdated(60)
        estimate.on_lost()
    estimate.on_lost()

    assert estimate.is_outdated(60)
    estimate.forget()
    assert not estimate.is_outdated(60)


# Density and diversity


@given(st.lists(st.integers(0, 10_000), unique=True, max_size=90), st.integers(1, 20_000))
def test_thinning_is_the_rule_as_it_is_written(places: list[int], radius: int):
    contacts = [contact_at(place) for place in sorted(places)]
    region = Region.of_radius(radius << 64, 20)
    expected: list[Contact] = []
    for contact in contacts:
        expected_nearer = 20 * contact.point / (radius << 64)
        if len(expected) < 3 + expected_nearer + 3 * sqrt(expected_nearer):
            expected.append(contact)

    # All in the lowest part of a wide space: mostly dense.
    kept, skipped = thin(contacts, KEY, region, every_one_alone, max_per_group=2)

    assert kept == expected[: len(region.floors)]
    assert sorted([*kept, *skipped], key=lambda contact: contact.point) == contacts


@settings(max_examples=30)
@given(st.integers(30, 500), st.integers())
def test_honest_density_is_hardly_ever_thinned(size: int, seed: int):
    rng = Random(seed)
    others = nodes(size, rng)
    region = Region.of_radius(20 * SPACE // size, 20)
    skipped_count = 0

    for _ in range(20):
        key = rng.randbytes(32)
        skipped_count += len(thin(nearest(others, key), key, region, every_one_alone, max_per_group=2)[1])

    assert skipped_count <= 0.05 * 20 * 20


def test_of_one_group_two_are_let_in_and_exempt_addresses_are_a_group_each():
    contacts = [contact_at(number, f"198.51.100.{number}") for number in range(1, 5)]
    private = [contact_at(number, f"10.0.0.{number}") for number in range(5, 9)]
    unknown = Region.unknown(20)

    kept, skipped = thin([*contacts, *private], KEY, unknown, groups_of(TrustConfig()), max_per_group=2)
    closed, _ = thin(contacts, KEY, unknown, groups_of(TrustConfig.everybody()), max_per_group=2)
    strict, _ = thin(private, KEY, unknown, groups_of(OPEN), max_per_group=2)

    assert (kept, skipped) == ([*contacts[:2], *private], contacts[2:])
    assert closed == contacts
    assert strict == private[:2]


def test_what_was_skipped_fills_free_places_nearest_first():
    kept, skipped = [contact_at(1), contact_at(9)], [contact_at(2), contact_at(3)]

    assert fill(kept, skipped, KEY, 3) == [contact_at(1), contact_at(2), contact_at(9)]
    assert fill(kept, skipped, KEY, 2) == kept


# Answers and seeds


def lists(contacts: list[Contact], region: Region, radius: int = -1) -> list[Contact]:
    return answer(
        lambda count: contacts[:count], KEY, radius, region, every_one_alone, k=20, max_count=64, max_per_group=2
    )


@pytest.mark.parametrize(
    ("radius", "count"), [(0, 20), (10, 20), (24, 25), (39, 40), (80, 41), (2**256 - 1, 41), (-1, 20)]
)
def test_an_answer_holds_all_within_the_radius_at_most_twice_our_own_and_k_in_any_case(radius: int, count: int):
    contacts = [contact_at(number) for number in range(100)]
    region = Region(20, 20, Region.unknown(20).floors)

    assert lists(contacts, region, radius) == contacts[:count]


def test_an_answer_has_at_most_as_many_as_a_message_takes():
    contacts = [contact_at(number) for number in range(100)]

    assert lists(contacts, Region.everything(20, 20), SPACE) == contacts[:64]


def test_an_answer_is_not_crowded_where_others_are_known():
    ground = [contact_at(number) for number in range(1, 21)]
    honest = [contact_at(SPACE // 50 * number) for number in range(1, 50)]

    named = lists([*ground, *honest], Region.of_radius(SPACE // 50 * 20, 20))

    assert sum(contact in ground for contact in named) == 4
    assert len(named) >= 20


def test_a_lookup_begins_with_those_who_do_not_crowd_its_target():
    ground = [contact_at(number) for number in range(1, 21)]
    honest = [contact_at(SPACE // 50 * number) for number in range(1, 50)]
    known = [*ground, *honest]
    region = Region.of_radius(SPACE // 50 * 20, 20)

    def begin(contacts: list[Contact]) -> list[Contact]:
        return seeds(lambda count: contacts[:count], KEY, 20, region, every_one_alone, max_per_group=2)

    assert begin(known) == [*ground[:4], *honest[:16]]
    assert begin(ground) == ground  # better these than nobody


# What a storer accepts


def test_a_storer_accepts_within_twice_its_radius_once_it_is_sure():
    estimate = measured(1000, 8, Random(8))
    radius = estimate.region.radius
    nearer = [contact_at(SPACE - 1 - SPACE // 2000 * number) for number in range(60)]

    def accepts(distance: int) -> bool:
        return estimate.accepts((int.from_bytes(OWN_ID, "big") ^ distance).to_bytes(32, "big"), nearer, every_one_alone)

    assert accepts(0)
    assert accepts(2 * radius)
    assert not accepts(2 * radius + 1)


def test_a_storer_that_is_not_sure_accepts_while_few_are_nearer():
    rng = Random(9)
    others = nodes(300, rng)
    estimate = RegionEstimate(OWN_ID, CONFIG)
    estimate.note(OWN_ID, nearest(others, OWN_ID))

    key = rng.randbytes(32)
    near = nearest(others, key, 60)

    assert estimate.accepts(key, near[:39], every_one_alone)
    assert not estimate.accepts(key, near, every_one_alone)


def test_ids_ground_near_a_key_do_not_make_its_storers_refuse():
    rng = Random(10)
    estimate = measured(1000, 8, rng)
    far = (int.from_bytes(OWN_ID, "big") ^ 3 * estimate.region.radius).to_bytes(32, "big")
    ground = [Contact((int.from_bytes(far, "big") ^ number).to_bytes(32, "big"), ()) for number in range(1, 61)]

    assert estimate.accepts(far, ground, every_one_alone)


def test_a_crash_of_half_the_network_makes_no_storer_refuse():
    rng = Random(11)
    before = nodes(1000, rng)
    after = before[:500]
    refused = asked = 0
    for node in after[:60]:
        estimate = RegionEstimate(node.id, CONFIG)
        for key in [node.id, *(rng.randbytes(32) for _ in range(7))]:
            others = [other for other in before if other is not node]
            estimate.note(key, nearest(others, key))
        for _ in range(10):
            key = rng.randbytes(32)
            near = nearest(after, key, 60)
            if node in near[:20]:
                asked += 1
                refused += not estimate.accepts(key, near[: near.index(node)], every_one_alone)

    assert asked > 10
    assert refused == 0
