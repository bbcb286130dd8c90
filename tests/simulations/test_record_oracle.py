"""Records from global knowledge: they are where their providers' own rules and the storers' would have them."""

from __future__ import annotations

import asyncio
from typing import cast

from dht.agents.index import capability_key
from dht.agents.placement import depths_for
from dht.lookup import LookupMode
from simulations.population import Population
from simulations.record_oracle import RecordOracle
from simulations.scenarios.agents import Provider, agents_config, search
from simulations.virtual_loop import VirtualLoop, run
from simulations.world import World

SKILL = "code-review"
CAP = 32


async def placed(count: int) -> tuple[Population, list[Provider]]:
    world = World(cast("VirtualLoop", asyncio.get_running_loop()), seed=1)
    config = agents_config(CAP)
    population = Population(world, config)
    await population.start_residents(count)
    population.acquaint()
    oracle = RecordOracle(population, SKILL, config, world.rng)
    providers = []
    for resident in population.residents:
        assert resident.node is not None
        providers.append(Provider(resident.host, resident.node, config, SKILL))
        oracle.add(resident, providers[-1].sealed_of_late)
    oracle.renew_all()
    oracle.renew_all()
    oracle.tell_nodes()
    return population, providers


def test_a_placed_crowd_is_under_its_own_keys_within_the_cap_and_is_found():
    async def main() -> None:
        population, providers = await placed(60)
        try:
            owners = {provider.id for provider in providers}
            held = [
                (key, stored)
                for resident in population.residents
                if resident.node is not None
                for key, stored in resident.node.store.items(0.0)
            ]
            found = await search(providers[0].node, SKILL, mode=LookupMode.STRICT)

            network_id = providers[0].host.network_id
            assert all(key == capability_key(network_id, SKILL, stored.owner, stored.depth) for key, stored in held)
            assert {stored.owner for _, stored in held} == owners
            assert {stored.depth for _, stored in held} <= {*depths_for(45, CAP), *depths_for(75, CAP)}
            assert all(
                len(resident.node.store.get(key, 0.0)) <= CAP
                for resident in population.residents
                if resident.node is not None
                for key in resident.node.store.held_keys()
            )
            assert len(owners.intersection(found.ids())) >= 0.9 * len(owners)
        finally:
            await population.stop()

    run(main())


def test_a_node_whose_record_was_placed_renews_it_where_it_is():
    async def main() -> None:
        population, providers = await placed(40)
        try:
            for provider in providers[:10]:
                await provider.publish()

            reports = [provider.last[SKILL] for provider in providers[:10]]
            assert all(report.is_kept for report in reports)
            assert sum(report.lookups for report in reports) <= 15, "or nobody was known"
        finally:
            await population.stop()

    run(main())
