"""A world of many nodes: how it grows, what its onlooker knows, and that one seed is one world."""

from __future__ import annotations

import asyncio

import pytest

from dht.keyspace import distance
from dht.lookup import LookupMode
from simulations.virtual_loop import run
from simulations.world import JOIN_PAUSE_S, World


async def grown(count: int, *, seed: int = 1) -> World:
    world = World(asyncio.get_running_loop(), seed=seed)
    await world.grow(count, lambda: None)
    return world


def test_every_node_joins_by_protocol_one_after_the_other():
    async def main() -> None:
        joined: list[float] = []
        loop = asyncio.get_running_loop()
        world = World(loop, seed=1)

        await world.grow(12, lambda: joined.append(loop.time()))

        assert len(world.hosts) == len(world.nodes) == len(joined) == 12
        assert loop.time() >= 12 * JOIN_PAUSE_S
        for host, node in zip(world.hosts, world.nodes, strict=True):
            assert node.id == host.id
            assert len(node.routing_table) >= 10
        await world.stop()

    run(main())


def test_the_onlooker_knows_the_nearest_other_node():
    async def main() -> None:
        world = await grown(10)
        for searcher in world.nodes:
            target = world.random_key()

            nearest = world.closest_other(target, searcher)

            others = [host for host in world.hosts if host.id != searcher.id]
            expected = min(others, key=lambda host: distance(host.id, target))
            assert (nearest.id, nearest.addresses) == (expected.id, (expected.address,))
            assert world.closest_other(searcher.id, searcher).id != searcher.id
        await world.stop()

    run(main())


def test_a_stopped_world_leaves_no_task():
    async def main() -> None:
        world = await grown(5)

        await world.stop()
        await asyncio.sleep(10)

        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(main())


def test_one_seed_is_one_world_and_another_seed_another():
    async def digest(count: int, seed: int) -> str:
        world = await grown(count, seed=seed)
        await world.nodes[0].lookup(world.random_key(), LookupMode.STRICT)
        await world.stop()
        return world.digest.hexdigest()

    first, again = run(digest(6, 1)), run(digest(6, 1))

    assert first == again
    assert len({first, run(digest(6, 2)), run(digest(7, 1))}) == 3


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_smallest_worlds_know_each_other(count: int):
    async def main() -> None:
        world = await grown(count)
        await asyncio.sleep(2)

        assert [len(node.routing_table) for node in world.nodes] == [count - 1] * count
        await world.stop()

    run(main())
