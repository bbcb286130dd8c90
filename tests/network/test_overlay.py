"""A whole overlay in one process, over encrypted TCP on loopback: joined, filled, robbed of its seed, and decimated."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import pytest

from dht import DHTConfig, DHTNode, LookupConfig, RoutingConfig
from dht.contact import Contact
from dht.lookup import LookupMode
from dht.replication import Replication
from synapse_p2p import Server

SHORT_S = 1.0
"""What stands for half an hour between two copies."""
QUICK = DHTConfig(
    lookup=LookupConfig(k=5),
    routing=RoutingConfig(k=5),
    liveness_s=0.5,
    replicate_s=SHORT_S,
    replicate_look_s=0.5,
)
NEVER_S = 10 * 86_400.0
ENOUGH_STORERS = 3
"""Of the k = 5 that are wanted: so many are there when the next crash comes."""


@dataclass(frozen=True, slots=True)
class Member:
    """A node and the server that it stands on."""

    node: DHTNode
    server: Server

    @property
    def address(self) -> str:
        return self.server.listening_addresses[0]

    async def stop(self) -> None:
        await self.node.stop()
        await self.server.stop(grace=0)

    async def kill(self) -> None:
        """As a process ends that is killed: every connection at once, and nobody is told."""
        self.server.sessions._connections.abort()
        await self.server.stop(grace=0)
        await self.node.stop()


class Swarm:
    """The members that are alive."""

    def __init__(self, config: DHTConfig | None) -> None:
        self.config = config
        self.members: list[Member] = []

    async def add(self, *seeds: str) -> Member:
        server = Server("127.0.0.1", 0)
        await server.start()
        member = Member(DHTNode(server, config=self.config), server)
        self.members.append(member)
        await member.node.start()
        if seeds:
            report = await member.node.join(seeds)
            assert report.joined, str(report)
        return member

    def storers_of(self, key: bytes) -> list[Member]:
        return [member for member in self.members if member.node.store.get(key, member.server.runtime.now())]

    async def kill(self, members: Sequence[Member]) -> None:
        for member in members:
            self.members.remove(member)
        await asyncio.gather(*(member.kill() for member in members))


@asynccontextmanager
async def swarm_of(count: int, config: DHTConfig | None = None) -> AsyncGenerator[Swarm]:
    """All of them joined, through the first."""
    swarm = Swarm(config)
    try:
        seed = await swarm.add()
        for _ in range(count - 1):
            await swarm.add(seed.address)
        yield swarm
    finally:
        await asyncio.gather(*(member.stop() for member in swarm.members))


@pytest.mark.parametrize(("size", "value_count"), [(24, 20), pytest.param(60, 200, marks=pytest.mark.gates)])
async def test_all_find_each_other_and_every_value_after_the_seed_and_a_third_are_gone(size: int, value_count: int):
    rng = random.Random(60)
    async with swarm_of(size) as swarm:
        unknown = []
        for searcher in swarm.members:
            for wanted in swarm.members:
                if wanted is searcher:
                    continue
                outcome = await searcher.node.lookup(wanted.node.id, LookupMode.EARLY)
                if wanted.node.id not in [contact.id for contact in outcome.closest]:
                    unknown.append((searcher, wanted))
        assert unknown == []

        values = [b"value %d" % number for number in range(value_count)]
        reports = [await rng.choice(swarm.members).node.put(value) for value in values]
        assert all(report.stored >= 20 for report in reports)  # where a region has fewer than k, the k nearest keep it
        assert await read_all(swarm, rng, [report.key for report in reports]) == values

        seed = swarm.members.pop(0)
        await seed.stop()
        for _ in range(3):
            await swarm.add(rng.choice(swarm.members).address)

        await swarm.kill(rng.sample(swarm.members, len(swarm.members) * 3 // 10))
        assert await read_all(swarm, rng, [report.key for report in reports]) == values


@pytest.mark.parametrize("size", [6, pytest.param(20, marks=pytest.mark.gates)])
async def test_two_swarms_that_share_a_late_seed_become_one(size: int):
    config = DHTConfig(liveness_s=0.5, refresh_s=3600.0)
    late = Server("127.0.0.1", 0)
    await late.start()
    address = late.listening_addresses[0]
    await late.stop(grace=0)
    async with swarm_of(size, config) as left, swarm_of(size, config) as right:
        for swarm in (left, right):
            for member in swarm.members:
                await member.node.join([address])  # nobody is there yet
        key = (await left.members[3].node.put(b"from the left")).key
        assert await right.members[4].node.get(key) is None

        bridge = Server("127.0.0.1", late.port)
        await bridge.start()
        node = DHTNode(bridge, config=config)
        await node.start()
        try:
            async with asyncio.timeout(60):
                for member in right.members:
                    while await member.node.get(key) is None:
                        member.node._getting.on_stored(key)  # or the miss of a moment ago is remembered
                        await asyncio.sleep(0.2)
        finally:
            await node.stop()
            await bridge.stop(grace=0)


@pytest.mark.parametrize("is_replicating", [True, False])
@pytest.mark.parametrize(("size", "value_count"), [(30, 40), pytest.param(60, 200, marks=pytest.mark.gates)])
async def test_values_outlive_three_crashes_as_long_as_copies_are_made(
    is_replicating: bool, size: int, value_count: int, monkeypatch: pytest.MonkeyPatch
):
    rng = random.Random(7)
    if not is_replicating:
        monkeypatch.setattr(Replication, "offer_to", offer_nothing)  # newcomers to a table are offered copies as well
    config = QUICK if is_replicating else replace(QUICK, replicate_s=NEVER_S, replicate_look_s=NEVER_S)
    async with swarm_of(size, config) as swarm:
        owners = swarm.members[1:6]
        keys = [(await rng.choice(owners).node.put(b"value %d" % number)).key for number in range(value_count)]
        doomed = min((swarm.storers_of(key) for key in keys), key=len)
        for left in (3, 2, 1):
            surely = []  # after the third time, every owner and every first storer of one value is dead
            for group in (doomed, owners):
                alive = [member for member in group if member in swarm.members and member not in surely]
                surely += alive[: -(-len(alive) // left)]
            await swarm.kill(draw_victims(swarm, surely, keys if is_replicating else [], rng))
            if is_replicating:
                await wait_for_copies(swarm, keys)
        found = await read_all(swarm, rng, keys)

    assert found.count(None) == 0 if is_replicating else found.count(None) > 0


async def wait_for_copies(swarm: Swarm, keys: Sequence[bytes]) -> None:
    for _ in range(600):
        if all(len(swarm.storers_of(key)) >= ENOUGH_STORERS for key in keys):
            return
        await asyncio.sleep(0.1)
    pytest.fail("no copies were made within a minute")


async def offer_nothing(_: Replication, __: Contact) -> None:
    pass


def draw_victims(swarm: Swarm, surely: list[Member], keys: Sequence[bytes], rng: random.Random) -> list[Member]:
    """`surely` and others up to 30 %, that leave a storer of each key: what all held at once is beyond any copy."""
    others = [member for member in swarm.members if member not in surely]
    storers = [swarm.storers_of(key) for key in keys]
    for _ in range(10_000):
        victims = surely + rng.sample(others, max(0, len(swarm.members) * 3 // 10 - len(surely)))
        if all(any(storer not in victims for storer in group) for group in storers):
            return victims
    pytest.fail(f"{len(swarm.members)} members have no 30 % without all storers of a value")


async def read_all(swarm: Swarm, rng: random.Random, keys: Sequence[bytes]) -> list[bytes | None]:
    """Each from a member of its own choice that does not hold it, if there is one."""
    found = []
    for key in keys:
        readers = [member for member in swarm.members if not member.node.store.held_keys().count(key)]
        found.append(await rng.choice(readers or swarm.members).node.get(key))
    return found
