"""Who comes, goes and keeps what: populations of the overlay scenarios, and the onlooker of their values."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from simulations import values, virtual_loop
from simulations.churn import Exponential
from simulations.custody import Custody
from simulations.population import Population
from simulations.world import World
from synapse_p2p.background import TaskScope

T = TypeVar("T")


def among(count: int, play: Callable[[Population, Custody], Awaitable[T]]) -> T:
    """What a coroutine makes of so many residents who know each other."""

    async def live() -> T:
        world = World(asyncio.get_running_loop(), seed=11)
        population = Population(world, values.config())
        try:
            await population.start_residents(count)
            population.acquaint()
            return await play(population, Custody(population))
        finally:
            await population.stop()
            await world.stop()

    return virtual_loop.run(live())


def test_churn_keeps_the_number_and_replaces_who_was_there():
    async def play(population: Population, _: Custody) -> tuple[set[int], list[int]]:
        first = {resident.number for resident in population.residents}
        async with TaskScope("churn") as scope:
            scope.spawn(population.churn(Exponential(60.0)))
            await asyncio.sleep(240.0)
        return first, [resident.number for resident in population.residents]

    first, left = among(20, play)

    assert len(left) == len(first) == 20
    assert len(first & set(left)) < 8  # a sixteenth of them is expected


def test_one_who_joins_later_is_known_and_reads_what_was_put_before():
    async def play(population: Population, _: Custody) -> bool:
        value = await values.put(population.residents[0], 1)
        newcomer = population.arrive()
        assert newcomer.joining is not None
        await newcomer.joining
        assert value is not None
        return newcomer.has_joined and await values.get(newcomer, value)

    assert among(8, play)


def test_custody_counts_living_storers_alone_and_tells_when_the_last_is_gone():
    async def play(population: Population, custody: Custody) -> list[tuple[int, int, bool]]:
        value = await values.put(population.residents[0], 1)
        assert value is not None
        custody.add(value)
        custody.begin_window()
        seen = []
        for resident in list(population.residents):
            figures = custody.figures()
            seen.append((int(figures["fewest_storers"]), int(figures["values_lost"]), custody.is_lost(value)))
            resident.die()
        seen.append((int(custody.figures()["fewest_storers"]), int(custody.figures()["values_lost"]), True))
        return seen

    seen = among(6, play)

    assert seen == [*((left, 0, False) for left in (6, 5, 4, 3, 2, 1)), (0, 1, True)]


def test_a_value_that_nobody_honest_keeps_is_lost_from_the_first():
    async def play(population: Population, custody: Custody) -> tuple[object, bool]:
        value = values.Value(7, values.key_of(7))
        custody.add(value)
        custody.begin_window()
        return custody.figures()["fewest_storers"], custody.is_lost(value)

    assert among(3, play) == (0, True)


@pytest.mark.parametrize("is_kept", [True, False])
def test_who_restarts_has_the_store_that_it_is_given(is_kept: bool):
    async def play(population: Population, custody: Custody) -> tuple[bool, bool]:
        value = await values.put(population.residents[0], 1)
        assert value is not None
        custody.add(value)
        resident = population.residents[3]
        store = resident.node.store if resident.node is not None and is_kept else None
        resident.leave()
        custody.recount()
        held_while_down = custody.holds(resident, value)
        resident.host.restart()
        node = resident.make_node(store)
        return held_while_down, bool(node.store.held_keys())

    assert among(6, play) == (False, is_kept)
