"""What a lookup costs and what it withstands, among 1,000 nodes of a model: figures that the rules were chosen by.

Each is a mean of some hundred lookups, so the tolerances are wide; the large counts belong to the gates.
"""

from __future__ import annotations

from functools import cache
from random import Random

import pytest

from dht.config import LookupConfig
from dht.contact import Contact
from dht.keyspace import Key
from dht.lookup import LookupMode, LookupOutcome, Strangers
from dht.region import SPACE, Region
from tests.dht.lookup_model import MAX_SAME, Model

SIZE = 1000
COUNT = 100


@cache
def honest_network() -> Model:
    return Model.grow(SIZE, Random(1))


class Connected(Strangers):
    """Everybody has a session with everybody."""

    def is_connected(self, contact: Contact) -> bool:
        return True


def mean_asked(
    model: Model, mode: LookupMode, *, has_holders: bool = False, region: Region | None = None
) -> tuple[float, list[LookupOutcome]]:
    """Requests of a lookup on the average, in which a node that holds the value asks nobody."""
    outcomes: list[LookupOutcome] = []
    for _ in range(COUNT):
        asker, target = model.honest(), model.rng.randbytes(32)
        if has_holders:
            model.holders[target] = {contact.id for contact in model.storers(target)}
            if asker.id in model.holders[target]:
                continue
        outcomes.append(model.lookup(asker, target, mode, region=region))
    return sum(outcome.asked for outcome in outcomes) / COUNT, outcomes


@pytest.mark.parametrize(
    ("mode", "requests"), [(LookupMode.STRICT, 21.5), (LookupMode.EARLY, 5.7), (LookupMode.GUARDED, 22.4)]
)
def test_a_lookup_of_nodes_costs_what_the_model_says(mode: LookupMode, requests: float):
    model = honest_network()

    asked, outcomes = mean_asked(model, mode, region=Region.unknown(20))

    assert asked == pytest.approx(requests, rel=0.05)
    assert all(outcome.complete for outcome in outcomes)


def test_the_closest_node_is_found_early_as_well():
    model = honest_network()

    for outcome in mean_asked(model, LookupMode.EARLY)[1]:
        point = int.from_bytes(outcome.target, "big")
        nearest = sorted(model.nodes, key=lambda contact: contact.point ^ point)[:2]
        assert outcome.closest[0] in nearest  # the second where the searcher is the nearest itself


# A fresh one took 6.35 in the model, which asks three more at once where one is missing.
@pytest.mark.parametrize(("mode", "requests"), [(LookupMode.FAST, 3.9), (LookupMode.FRESH, 4.55)])
def test_a_value_is_found_at_the_cost_that_the_model_says(mode: LookupMode, requests: float):
    asked, outcomes = mean_asked(honest_network(), mode, has_holders=True)

    assert asked == pytest.approx(requests, rel=0.1)
    assert all(outcome.found and outcome.complete for outcome in outcomes)


def test_over_open_sessions_a_value_costs_a_third():
    model = honest_network()
    model.peers = Connected(model.config)
    try:
        asked, outcomes = mean_asked(model, LookupMode.FAST, has_holders=True)
    finally:
        model.peers = None

    assert 1.0 < asked < 1.45
    assert all(outcome.found for outcome in outcomes)


def test_an_honest_miss_and_an_honest_put_are_bounded():
    model = honest_network()

    misses, outcomes = mean_asked(model, LookupMode.FAST)
    puts = [model.put(model.honest(), model.rng.randbytes(32)) for _ in range(COUNT)]

    assert 25 < misses < 32
    assert sum(outcome.complete for outcome in outcomes) > 0.75 * COUNT
    assert 24 < sum(puts) / COUNT < 30


@pytest.mark.parametrize(
    ("liar_part", "liar_weight", "fast", "four", "eight"),
    [(0.2, 1.0, 0.97, 0.99, 0.99), (0.2, 4.0, 0.90, 0.975, 0.99), (0.5, 1.0, 0.82, 0.96, 0.98)],
)
def test_disjoint_paths_find_what_colluders_deny(
    liar_part: float, liar_weight: float, fast: float, four: float, eight: float
):
    model = Model.grow(SIZE, Random(2), liar_part=liar_part, liar_weight=liar_weight)
    found_by: dict[int, int] = {1: 0, 5: 0, 13: 0}  # by the number of paths in all
    count = 150
    for _ in range(count):
        asker, target = model.honest(), model.rng.randbytes(32)
        model.holders[target] = {contact.id for contact in model.storers(target)} - model.liars.keys()
        outcome = model.lookup(asker, target, LookupMode.FAST)
        for paths in found_by:
            found_by[paths] += outcome.found and outcome.paths <= paths

    assert found_by[1] <= found_by[5] <= found_by[13]
    assert found_by[1] >= fast * count
    assert found_by[5] >= four * count
    assert found_by[13] >= eight * count


# Ids ground near a key


def grind(model: Model, key: Key, count: int) -> None:
    """Add liars nearer to the key than anybody honest, who come first to every table."""
    point = int.from_bytes(key, "big")
    sybils = [Contact((point ^ model.rng.getrandbits(220)).to_bytes(32, "big"), ()) for _ in range(count)]
    model.liars = {contact.id: contact for contact in sybils}
    model.nodes += sybils
    model.fill(lambda contact: model.rng.random() + (contact.id in model.liars), max_same=MAX_SAME)


@pytest.mark.parametrize(("has_rule", "found"), [(True, 1.0), (False, 0.0)])
def test_ids_ground_near_a_key_hide_it_only_without_the_density_rule(has_rule: bool, found: float):
    key = bytes(range(32))
    config = LookupConfig() if has_rule else LookupConfig(paths=1, max_paths=1, path_seeds=1)
    model = Model.grow(400, Random(3), config=config)
    for contact in model.nodes:
        if not has_rule:
            model.regions[contact.id] = Region.unknown(20)
    grind(model, key, 20)

    requests = model.put(model.honest(), key)
    outcomes = [model.lookup(model.honest(), key, LookupMode.FAST) for _ in range(40)]
    searchers = [outcome for outcome in outcomes if outcome.asked]

    assert requests < 100
    assert sum(outcome.found for outcome in searchers) == found * len(searchers)


def test_the_region_of_a_put_under_attack_holds_honest_storers():
    key = bytes(range(32))
    model = Model.grow(400, Random(4))
    grind(model, key, 200)

    model.put(model.honest(), key)

    point = int.from_bytes(key, "big")
    radius = 20 * SPACE // 400
    inside = [contact for contact in model.nodes if contact.point ^ point <= radius and contact.id not in model.liars]
    assert len(model.holders[key] & {contact.id for contact in inside}) >= 0.8 * len(inside)
