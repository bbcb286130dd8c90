"""To whom copies are offered: in a small swarm on virtual time, whose owners renew nothing."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from dht.keyspace import Key, distance
from dht.messages import Store
from simulations import values
from simulations.population import Population, Resident
from simulations.virtual_loop import run
from simulations.world import World

COUNT = 12
"""All keep everything."""
VALUES = 10
SETTLED_S = 40.0
"""After a restart: the join is over, and no copy is due for long."""


class Swarm:
    """Some residents who know each other, and values that all of them keep."""

    def __init__(self, *, offering_storers: int = 3) -> None:
        world = World(asyncio.get_running_loop(), seed=7)
        config = replace(values.config(), offering_storers=offering_storers, replicate_s=values.NEVER_S)
        self.population = Population(world, config)
        self.keys: list[Key] = []

    async def stand(self) -> None:
        await self.population.start_residents(COUNT)
        self.population.acquaint()
        for number in range(VALUES):
            value = await values.put(self.population.residents[0], number)
            assert value is not None
            self.keys.append(value.key)

    async def restart(self, resident: Resident) -> None:
        """Without what it kept, and before anybody has forgotten it."""
        resident.die()
        await asyncio.sleep(1.0)
        resident.host.restart()
        resident.begin(self.population.seeds())
        await asyncio.sleep(SETTLED_S)

    async def stop(self) -> None:
        await self.population.stop()
        await self.population.world.stop()


@pytest.mark.parametrize(("offering_storers", "held"), [(3, VALUES), (0, 0)])
def test_who_comes_back_without_what_it_kept_is_offered_it_again(offering_storers: int, held: int):
    async def main() -> None:
        swarm = Swarm(offering_storers=offering_storers)
        await swarm.stand()
        resident = swarm.population.residents[5]
        assert resident.node is not None
        assert set(resident.node.store.held_keys()) == set(swarm.keys)

        await swarm.restart(resident)

        assert resident.node is not None
        assert len(list(resident.node.store.held_keys())) == held
        await swarm.stop()

    run(main())


def test_who_comes_back_all_the_time_is_offered_records_less_and_less_often(monkeypatch: pytest.MonkeyPatch):
    async def main() -> int:
        swarm = Swarm()
        await swarm.stand()
        resident = swarm.population.residents[5]
        assert resident.node is not None
        offered_at: list[float] = []
        asked = swarm.population.residents[6].host.peers
        call = type(asked).call

        async def noted(peers, peer, endpoint, request, *, timeout_s):  # type: ignore[no-untyped-def]
            if peer.id == resident.host.id and endpoint == "_dht.store" and Store.from_map(request).offers:
                offered_at.append(asyncio.get_running_loop().time())
            return await call(peers, peer, endpoint, request, timeout_s=timeout_s)

        monkeypatch.setattr(type(asked), "call", noted)
        for _ in range(60):
            await resident.node.find_node(resident.host.id)
            await asyncio.sleep(20.0)

        await swarm.stop()
        return len(offered_at)

    # Each of ten records is offered by three in turns of a minute, two, four and eight: 20 minutes have five of them.
    assert 3 <= run(main()) <= 5 * (COUNT - 1)


@pytest.mark.parametrize(("bringer_rank", "holders"), [(COUNT - 1, COUNT), (2, 2)])
def test_what_one_brings_whom_many_nearer_have_outrun_is_passed_on_to_all(bringer_rank: int, holders: int):
    """As in a crowd of newcomers: who has a record is far from it by now, and those near it have not heard of it."""

    async def main() -> None:
        swarm = Swarm()
        await swarm.stand()
        key = swarm.keys[0]
        residents = sorted(swarm.population.residents, key=lambda each: distance(each.host.id, key))
        bringer, receiver = residents[bringer_rank], residents[5]
        for resident in residents:
            if resident is not bringer:
                (held,) = resident.node.store.get(key, 0.0)
                resident.node.store.remove(key, held.slot)

        contact = bringer.node.routing_table.get(receiver.host.id)
        answer = await bringer.node._requester.store(contact, Store(held.record))
        await asyncio.sleep(5.0)

        assert answer.stored
        assert sum(bool(resident.node.store.get(key, 0.0)) for resident in residents) == holders
        await swarm.stop()

    run(main())
