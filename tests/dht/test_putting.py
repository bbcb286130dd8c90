"""Values in a swarm: put, found, renewed, replaced, taken back, and kept while storers come and go."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import pytest

from dht.config import DHTConfig, LookupConfig, RecordConfig, RoutingConfig
from dht.contact import Contact
from dht.keyspace import content_key, distance
from dht.node import DHTNode
from dht.replication import Replication
from simulations import virtual_loop
from simulations.world import Start, World
from synapse_p2p.exceptions import ConfigError

SMALL_K = DHTConfig(lookup=LookupConfig(k=5), routing=RoutingConfig(k=5))


def run(main: Coroutine[Any, Any, None]) -> None:
    virtual_loop.run(main)


async def grown(
    count: int, *, config: DHTConfig | None = None, seed: int = 1, start: Start = Start.PROTOCOL, settle_s: float = 90.0
) -> World:
    world = World(asyncio.get_running_loop(), seed=seed, config=config, start=start)  # type: ignore[arg-type]
    await world.grow(count, lambda: None)
    await asyncio.sleep(settle_s)
    return world


def holders(world: World, key: bytes) -> list[DHTNode]:
    now = world.network.loop.time()
    return [node for node in world.nodes if node.store.get(key, now)]


async def crash(world: World, node: DHTNode) -> None:
    await node.stop()
    world.hosts[world.nodes.index(node)].crash()


def test_a_value_is_kept_by_those_nearest_to_its_key_and_found_from_everywhere():
    async def main() -> None:
        world = await grown(40)
        value = b"a value that somebody wants to keep"

        report = await world.nodes[3].put(value)

        assert report.key == content_key(value)
        nearest = sorted(world.nodes, key=lambda node: distance(node.id, report.key))
        assert set(nearest[:18]) <= set(holders(world, report.key))
        assert report.stored == len(holders(world, report.key)) == report.asked
        assert report.refused == ()
        assert [await node.get(report.key) for node in world.nodes] == [value] * 40
        await world.stop()

    run(main())


def test_what_nobody_has_is_asked_for_once():
    async def main() -> None:
        world = await grown(30)
        reader, key = world.nodes[5], content_key(b"to come")

        assert await reader.get(key) is None
        messages = world.digest.message_count
        assert await reader.get(key) is None
        assert world.digest.message_count == messages

        await reader.put(b"to come")
        assert await reader.get(key) == b"to come"
        await world.stop()

    run(main())


def test_a_search_in_which_nobody_answered_is_made_again():
    async def main() -> None:
        world = await grown(14, config=SMALL_K)
        key = (await world.nodes[0].put(b"there")).key
        reader = next(node for node in world.nodes if node not in holders(world, key))
        cut = world.network.links.cut([reader.id])

        assert await reader.get(key) is None
        world.network.links.heal(cut)
        assert await reader.get(key) == b"there"
        await world.stop()

    run(main())


def test_the_newest_version_is_read_and_those_who_lag_behind_are_given_it():
    async def main() -> None:
        world = await grown(40, config=SMALL_K)
        owner, reader = world.nodes[2], world.nodes[30]
        key = (await owner.put_mutable(b"first", salt=b"s")).key
        late = next(node for node in holders(world, key) if node is not owner)
        old = late.store.get(key, world.network.loop.time())[0]

        await owner.put_mutable(b"second", salt=b"s")
        late.store.remove(key, old.slot)
        late.store.put(key, old, world.network.loop.time())

        assert await reader.get(key) == b"second"
        await asyncio.sleep(5)
        for _ in range(10):
            assert await reader.get(key) == b"second"
        await world.stop()

    run(main())


def test_who_has_read_a_version_is_shown_no_older_one_and_finds_the_next():
    async def main() -> None:
        world = await grown(40, config=SMALL_K)
        owner, reader, stranger = world.nodes[2], world.nodes[30], world.nodes[31]
        key = (await owner.put_mutable(b"first", salt=b"s")).key
        old = {node: node.store.get(key, world.network.loop.time())[0] for node in holders(world, key)}
        await owner.put_mutable(b"second", salt=b"s")
        assert await reader.get(key) == b"second"

        for node in holders(world, key):  # as if those had been cut off who were given the second
            held = node.store.get(key, world.network.loop.time())[0]
            node.store.remove(key, held.slot)
            if node in old:
                node.store.put(key, old[node], world.network.loop.time())

        assert await stranger.get(key) == b"first", "who knows no better"
        for _ in range(3):
            assert await reader.get(key) is None
            assert await reader.get_mutable(key) is None
        await owner.put_mutable(b"third", salt=b"s")
        assert await reader.get(key) == b"third"
        await world.stop()

    run(main())


def test_of_how_many_values_the_newest_version_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dht.getting.MAX_SEEN", 3)

    async def main() -> None:
        world = await grown(12)
        owner, reader = world.nodes[2], world.nodes[5]
        for number in range(6):
            key = (await owner.put_mutable(b"v", salt=bytes([number]))).key
            assert await reader.get(key) == b"v"
            assert len(reader._getting._newest_seen) <= 3
        assert key in reader._getting._newest_seen
        await world.stop()

    run(main())


def test_a_value_is_replaced_only_where_the_expected_version_is_held():
    async def main() -> None:
        world = await grown(25)
        owner, reader = world.nodes[2], world.nodes[20]
        report = await owner.put_mutable(b"first")
        first = await reader.get_mutable(report.key)
        assert first is not None

        refused = await owner.put_mutable(b"wrong", expected_seq=first.seq - 1)
        assert (refused.stored, set(refused.refused)) == (0, {"seq_mismatch"})
        assert await reader.get(report.key) == b"first"

        assert (await owner.put_mutable(b"second", expected_seq=first.seq)).refused == ()
        assert await reader.get(report.key) == b"second"
        await world.stop()

    run(main())


def test_an_owner_who_lost_count_goes_past_the_version_that_storers_hold():
    async def main() -> None:
        world = await grown(25)
        owner = world.nodes[2]
        host = world.hosts[2]
        real_time = host.runtime.unix_now
        host.runtime = replace(host.runtime, unix_now=lambda: real_time() + 200)
        key = (await owner.put_mutable(b"from the future")).key
        host.runtime = replace(host.runtime, unix_now=real_time)
        owner._own_values.owned.forget(key)  # as a process does that starts anew

        report = await owner.put_mutable(b"now")

        assert report.stored == report.asked
        assert await world.nodes[9].get(key) == b"now"
        await world.stop()

    run(main())


def test_a_deleted_value_is_gone_for_everybody_and_stays_so():
    async def main() -> None:
        world = await grown(25)
        owner, reader = world.nodes[2], world.nodes[20]
        key = (await owner.put_mutable(b"a slip")).key
        assert await reader.get(key) == b"a slip"

        await owner.delete(key)

        assert await reader.get(key) is None
        seen = await reader.get_mutable(key)
        assert seen is not None
        assert seen.value is None
        with pytest.raises(ConfigError, match="only who put a value can delete it"):
            await reader.delete(key)
        await world.stop()

    run(main())


def test_values_are_renewed_before_their_time_is_over():
    async def main() -> None:
        config = replace(SMALL_K, records=RecordConfig(ttl_s=1200.0))
        world = await grown(20, config=config)
        owner = world.nodes[1]
        immutable = (await owner.put(b"kept")).key
        mutable = (await owner.put_mutable(b"kept too")).key
        ended = (await owner.put(b"ended")).key
        await owner.delete(ended)

        await asyncio.sleep(3 * 1200)

        reader = world.nodes[15]
        assert await reader.get(immutable) == b"kept"
        assert await reader.get(mutable) == b"kept too"
        assert await reader.get(ended) is None
        await world.stop()

    run(main())


@pytest.mark.parametrize("is_replicating", [True, False])
def test_values_outlive_their_storers_as_long_as_copies_are_made(is_replicating: bool, monkeypatch: pytest.MonkeyPatch):
    async def offer_nothing(_: Replication, __: Contact) -> None:
        pass

    if not is_replicating:
        monkeypatch.setattr(Replication, "offer_to", offer_nothing)  # newcomers to a table are offered copies as well

    async def main() -> None:
        period_s = 600.0 if is_replicating else 10 * 86_400.0
        config = replace(SMALL_K, replicate_s=period_s, replicate_look_s=30.0 if is_replicating else period_s)
        world = await grown(40, config=config)
        owner, alive = world.nodes[0], world.nodes[1:]
        reports = await owner.put_many([b"value %d" % number for number in range(60)])
        doomed = min((holders(world, report.key) for report in reports), key=len)
        await crash(world, owner)
        for left in (3, 2, 1):
            # After the third time every first storer of one value is dead. What all that hold a value take with them at
            # once is beyond any copy, so some of those are spared.
            surely = [node for node in doomed if node in alive]
            surely = surely[: -(-len(surely) // left)]
            others = [node for node in alive if node not in surely]
            if is_replicating:
                spared = [next(node for node in holders(world, report.key) if node in others) for report in reports]
                others = [node for node in others if node not in spared]
            for node in surely + world.rng.sample(others, min(len(others), len(alive) * 3 // 10 - len(surely))):
                alive.remove(node)
                await crash(world, node)
            await asyncio.sleep(1500)

        reader = alive[0]
        found = [await reader.get(report.key) for report in reports]
        assert found.count(None) == 0 if is_replicating else found.count(None) > 0
        await world.stop()

    run(main())


@pytest.mark.parametrize(
    ("nodes", "count", "lookup_requests"),
    # The more records, the more of them share a lookup: at most 0.1 of one for each of 10,000, of some 22 requests.
    [(80, 200, 1.5), pytest.param(1000, 10_000, 2.2, marks=pytest.mark.gates)],
)
def test_many_values_are_swept_through_the_key_space(nodes: int, count: int, lookup_requests: float):
    async def main() -> None:
        world = await grown(nodes, start=Start.ORACLE, settle_s=1.0)
        owner = world.nodes[7]
        requests = count_requests(owner)

        reports = await owner.put_many([b"%d" % number for number in range(count)])

        lookups, asked = requests["find_node"], sum(requests.values())
        assert all(report.stored >= 18 for report in reports)
        assert asked / count <= 25
        assert lookups / count <= lookup_requests
        for number in range(0, count, 37):
            assert await world.nodes[number % nodes].get(reports[number].key) == b"%d" % number
        print(f"{nodes} nodes, {count} records: {lookups / count:.2f} of {asked / count:.2f} requests a record look")
        await world.stop()

    run(main())


def count_requests(node: DHTNode) -> dict[str, int]:
    counts: dict[str, int] = {"find_node": 0, "store": 0}
    requester = node._requester
    for name in counts:
        original = getattr(requester, name)

        async def counted(*args: Any, _name: str = name, _original: Any = original) -> Any:
            counts[_name] += 1
            return await _original(*args)

        setattr(requester, name, counted)
    return counts
