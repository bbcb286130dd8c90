"""The routing table's benchmark keeps its limits with five times their slack, and its oracle is none of the table's."""

from __future__ import annotations

import random

from benchmarks.routing import (
    COUNT,
    MAX_CLOSEST_US,
    MAX_INSERT_US,
    Costs,
    brute_force,
    measure,
    some_contact,
)

SLACK = 5


def test_a_table_is_exact_and_within_five_times_its_limits():
    costs = measure(rounds=3, queries=10_000)

    assert costs.exact == costs.queries >= 10_000
    assert costs.insert_us <= SLACK * MAX_INSERT_US
    assert costs.closest_us <= SLACK * MAX_CLOSEST_US


def test_a_missed_limit_is_said():
    good = Costs(insert_us=10.0, closest_us=12.0, exact=5, queries=5)

    assert good.is_within_limits
    assert not Costs(10.1, 12.0, 5, 5).is_within_limits
    assert not Costs(10.0, 12.1, 5, 5).is_within_limits
    assert not Costs(10.0, 12.0, 4, 5).is_within_limits


def test_the_oracle_finds_the_nearest_by_xor():
    rng = random.Random(2)
    contacts = [some_contact(number, rng) for number in range(200)]
    key = rng.randbytes(32)

    distances = [contact.point ^ int.from_bytes(key, "big") for contact in brute_force(contacts, key)]

    assert distances == sorted(contact.point ^ int.from_bytes(key, "big") for contact in contacts)[:COUNT]
