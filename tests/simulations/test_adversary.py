"""Hosts that break the rules: what each says to a node that asks, and that it comes from the seed alone."""

from __future__ import annotations

import asyncio
import random

import pytest

from dht.contact import Contact
from dht.keyspace import distance
from dht.messages import (
    Exchange,
    ExchangeAnswer,
    FindNode,
    FindNodeAnswer,
    FindValue,
    FindValueAnswer,
    Store,
    StoreAnswer,
)
from dht.region import SPACE
from simulations import values, virtual_loop
from simulations.adversary import (
    Colluding,
    Conduct,
    Flooder,
    IdentityMill,
    Liar,
    Poisoner,
    Ring,
    Silent,
    settle,
)
from simulations.network import VirtualHost
from simulations.places import HOSTILE_OCTETS, Places
from simulations.population import Population, contacts_of
from simulations.world import World
from synapse_p2p.background import TaskScope
from synapse_p2p.exceptions import Timeout

KEY = bytes(range(32))


def contacts(count: int, seed: int = 1) -> list[Contact]:
    rng = random.Random(seed)
    return [Contact(rng.randbytes(32), (f"101.0.0.{number + 1}:9000",)) for number in range(count)]


async def ask(world: World, conduct: Conduct, endpoint: str, request: dict, *, timeout_s: float = 2.0):
    hostile, asker = world.network.host(), world.network.host()
    settle(hostile, conduct)
    contact = Contact(hostile.id, hostile.advertised_addresses)
    return await asker.peers.call(contact, endpoint, request, timeout_s=timeout_s)


def in_world(play):
    """What a coroutine makes of a new world."""

    async def live():
        world = World(asyncio.get_running_loop(), seed=3)
        try:
            return await play(world)
        finally:
            await world.stop()

    return virtual_loop.run(live())


@pytest.mark.parametrize("endpoint", ["_dht.ping", "_dht.find_node", "_dht.store"])
def test_a_silent_host_takes_the_session_and_lets_the_time_run_out(endpoint: str):
    async def play(world: World) -> float:
        with pytest.raises(Timeout):
            await ask(world, Silent(), endpoint, FindNode(KEY).to_map(), timeout_s=1.25)
        return world.network.loop.time()

    assert in_world(play) == pytest.approx(1.25)


def test_a_colluder_names_the_nearest_of_its_ring_denies_the_value_and_says_it_stored():
    ring = contacts(200)
    conduct = Colluding(Ring(ring), random.Random(1))

    async def play(world: World):
        value = FindValueAnswer.from_map(await ask(world, conduct, "_dht.find_value", FindValue(KEY).to_map()))
        named = FindNodeAnswer.from_map(await ask(world, conduct, "_dht.find_node", FindNode(KEY).to_map()))
        stored = StoreAnswer.from_map(await ask(world, conduct, "_dht.store", Store(b"x").to_map()))
        return value, named, stored

    value, named, stored = in_world(play)

    nearest = sorted(ring, key=lambda contact: distance(contact.id, KEY))[:20]
    assert list(named.contacts) == list(value.contacts) == nearest
    assert (value.records, value.count, stored.stored) == ((), 0, True)


def test_a_liar_names_nobody_who_is_where_it_says_and_gives_garbage_for_a_value():
    honest = contacts(30)
    places = Places(octets=(90, 91))
    conduct = Liar(honest, places.next_ip, random.Random(1))

    async def play(world: World) -> FindValueAnswer:
        return FindValueAnswer.from_map(await ask(world, conduct, "_dht.find_value", FindValue(KEY).to_map()))

    answer = in_world(play)

    addresses = {contact.id: contact.addresses for contact in honest}
    assert len(answer.contacts) == 20
    assert all(addresses.get(contact.id) != contact.addresses for contact in answer.contacts)
    invented = [contact for contact in answer.contacts if contact.id not in addresses]
    assert len(invented) == 10
    assert all(distance(contact.id, KEY) < SPACE >> 24 for contact in invented)
    assert len(answer.records) == 1


def test_a_poisoner_exchanges_what_it_was_given_and_nothing_else():
    poison = contacts(1000 // 4)
    conduct = Poisoner(poison, random.Random(1))

    async def play(world: World) -> ExchangeAnswer:
        return ExchangeAnswer.from_map(await ask(world, conduct, "_dht.exchange", Exchange(20).to_map()))

    named = in_world(play).contacts

    assert len(set(named)) == 20
    assert set(named) <= set(poison)


def test_ground_ids_are_real_keys_nearer_than_the_nearest_of_as_many_as_they_were_ground_for():
    rng = random.Random(5)
    mill = IdentityMill(rng, 2000)

    ground = mill.nearest(KEY, 20)

    assert len({identity.node_id for identity in ground}) == 20
    distances = [distance(identity.node_id, KEY) for identity in ground]
    assert distances == sorted(distances)
    assert distances[-1] < SPACE // 100 * 3  # of 100 honest ids the nearest is at a hundredth of the space
    assert not {identity.node_id for identity in mill.nearest(KEY, 20)} & {identity.node_id for identity in ground}


def test_thinly_spread_ids_are_as_dense_as_honest_ones_would_be():
    mill = IdentityMill(random.Random(5), 2000)
    radius = SPACE // 5

    spread = [distance(identity.node_id, KEY) for identity in mill.spread(KEY, 20, radius)]

    assert spread == sorted(spread)
    for part in (0.25, 0.5, 0.75):
        assert sum(each <= radius * part for each in spread) == pytest.approx(20 * part, abs=3)


def test_one_seed_grinds_the_same_ids():
    first, again = (IdentityMill(random.Random(2), 50).nearest(KEY, 5) for _ in range(2))

    assert [each.node_id for each in first] == [each.node_id for each in again]


def test_a_flooded_node_still_stores_and_answers_others_and_keeps_no_garbage():
    async def play(world: World):
        population = Population(world, values.config())
        await population.start_residents(12)
        population.acquaint()
        flooding = population.add_hostile(Places(octets=HOSTILE_OCTETS))
        settle(flooding, Colluding(Ring(), world.rng))
        flooder = Flooder(flooding, population.contacts(), world.rng, records=[{"record": bytes(100)}])
        async with TaskScope("flood") as scope:
            scope.spawn(flooder.run())
            await asyncio.sleep(5.0)
            value = await values.put(population.residents[0], 1)
            found = [value is not None and await values.get(each, value) for each in population.residents[1:]]
        held = [key for each in population.residents if each.node for key in each.node.store.held_keys()]
        await population.stop()
        return flooder.asked, found, set(held)

    asked, found, held = in_world(play)

    assert asked > 500
    assert all(found)
    assert held == {values.key_of(1)}


def test_contacts_of_a_hostile_host_are_where_it_lives():
    async def play(world: World) -> tuple[VirtualHost, list[Contact]]:
        host = Population(world, values.config()).add_hostile(Places(2, octets=HOSTILE_OCTETS))
        return host, contacts_of([host])

    host, (contact,) = in_world(play)

    assert (contact.id, contact.addresses) == (host.id, ("101.0.0.1:9000",))
