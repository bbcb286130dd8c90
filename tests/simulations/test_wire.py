"""A wire world against a plain one: the same nodes find, hold and admit the same, in the same time.

A hundred nodes that join by protocol over the wire take 20 s of a core, so they are a gate (`make gates`). Each time
fewer join, who may keep so few sessions that they always have to close some and refuse others.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean

import pytest

from dht.agents.record import AgentRecord, CapabilityClaim, Reach
from dht.contact import Contact
from dht.keyspace import Key
from dht.lookup import LookupMode
from dht.node import DHTNode
from simulations.latency import ConstantLatency, CoordinateLatency, Latency
from simulations.network import VirtualHost
from simulations.virtual_loop import run
from simulations.world import Start, World
from synapse_p2p.config import PoolConfig, ServerConfig
from synapse_p2p.identity import NodeID

LEASE_MS = 600_000
FEW_SESSIONS = PoolConfig(max_sessions=16, reserved_sessions=4, max_idle_sessions=6)
SOME_SESSIONS = PoolConfig(max_sessions=24, reserved_sessions=4, max_idle_sessions=12)  # at first they are enough


@dataclass(frozen=True, slots=True)
class Life:
    """What a world came to."""

    admitted: list[list[Contact]]
    found: list[list[NodeID]]
    held: list[dict[Key, list[bytes]]]
    hops: list[int | None]
    lookups_took_s: list[float]
    message_count: int
    digest: str


def sealed_record(host: VirtualHost, capability: str) -> tuple[bytes, AgentRecord]:
    unix_ms = round(host.runtime.unix_now() * 1000)
    record = AgentRecord(
        public_key=host.identity.public_key,
        seq=unix_ms,
        issued_ms=unix_ms,
        expires_ms=unix_ms + LEASE_MS,
        network_id=host.network_id,
        addresses=host.advertised_addresses,
        reach=Reach.DIRECT,
        name="somebody",
        role="worker",
        description="",
        capabilities=(CapabilityClaim(capability),),
    )
    return record.seal(host.identity), record


def held_by(node: DHTNode, now: float) -> dict[Key, list[bytes]]:
    held: dict[Key, list[bytes]] = {}
    for key, stored in node.store.items(now):
        held.setdefault(key, []).append(stored.record)
    return {key: sorted(held[key]) for key in sorted(held)}


@dataclass(frozen=True, slots=True)
class Recipe:
    """What both worlds are made of. Without `pool` sessions are as many as ever; `latency` is made for each world."""

    nodes: int
    start: Start
    seed: int
    pool: PoolConfig | None = None
    latency: Callable[[], Latency] = ConstantLatency
    lookups: int = 20
    records: int = 4


async def lived(recipe: Recipe, *, wire: bool) -> Life:
    loop = asyncio.get_running_loop()
    world = World(loop, seed=recipe.seed, start=recipe.start, wire=wire, latency=recipe.latency())
    if recipe.pool is not None:
        world.network.config = ServerConfig(pool=recipe.pool)
    rng = random.Random(recipe.seed)  # of its own: what the test draws is the same in both worlds
    await world.grow(recipe.nodes, lambda: None)
    await asyncio.sleep(60)
    admitted = [list(node.routing_table) for node in world.nodes]
    for number in range(recipe.records):
        owner = rng.randrange(recipe.nodes)
        capability = f"skill/{number}"
        await world.nodes[owner].publish(*sealed_record(world.hosts[owner], capability), capability)
    found: list[list[NodeID]] = []
    hops: list[int | None] = []
    took_s: list[float] = []
    for _ in range(recipe.lookups):
        began_at = loop.time()
        outcome = await rng.choice(world.nodes).lookup(rng.randbytes(32), LookupMode.STRICT)
        found.append([contact.id for contact in outcome.closest])
        hops.append(outcome.hops)
        took_s.append(loop.time() - began_at)
    held = [held_by(node, loop.time()) for node in world.nodes]
    await world.stop()
    return Life(admitted, found, held, hops, took_s, world.digest.message_count, world.digest.hexdigest())


def assert_the_same(recipe: Recipe) -> None:
    plain, wire = (run(lived(recipe, wire=wire)) for wire in (False, True))

    for ours, theirs in zip(wire.admitted, plain.admitted, strict=True):
        assert sorted(ours, key=lambda contact: contact.id) == sorted(theirs, key=lambda contact: contact.id)
    assert wire.found == plain.found
    assert wire.held == plain.held
    assert sum(map(len, wire.held)) >= recipe.records
    assert mean(hops or 0 for hops in wire.hops) == pytest.approx(mean(hops or 0 for hops in plain.hops), rel=0.05)
    assert mean(wire.lookups_took_s) == pytest.approx(mean(plain.lookups_took_s), rel=0.05)
    assert wire.digest != plain.digest


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.gates)])
@pytest.mark.parametrize(("start", "nodes", "pool"), [(Start.PROTOCOL, 15, FEW_SESSIONS), (Start.ORACLE, 30, None)])
def test_over_the_wire_the_same_is_found_held_and_admitted_in_the_same_time(
    start: Start, nodes: int, pool: PoolConfig | None, seed: int
):
    assert_the_same(Recipe(nodes, start, seed, pool))


@pytest.mark.gates
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_of_a_hundred_nodes_the_same_is_found_held_and_admitted_over_the_wire(seed: int):
    assert_the_same(Recipe(100, Start.ORACLE, seed))


@pytest.mark.parametrize(
    ("nodes", "pool", "seed"),
    [(24, SOME_SESSIONS, 1), *(pytest.param(100, None, seed, marks=pytest.mark.gates) for seed in (1, 2, 3, 4))],
)
def test_far_and_near_all_is_the_same_to_the_microsecond(nodes: int, pool: PoolConfig | None, seed: int):
    """With latencies that all differ. Where they are all the same, many things happen at one instant, and the order of
    those is the order of turns of the loop, of which the wire takes more.
    """
    recipe = Recipe(nodes, Start.PROTOCOL, seed, pool, latency=lambda: CoordinateLatency(seed, jitter=0))

    plain, wire = (run(lived(recipe, wire=wire)) for wire in (False, True))

    assert dataclasses.replace(wire, message_count=0, digest="") == dataclasses.replace(
        plain, message_count=0, digest=""
    )


def test_over_the_wire_one_seed_is_one_digest_in_every_process():
    script = (
        "import asyncio; from simulations.virtual_loop import run; from simulations.world import World\n"
        "async def main():\n"
        "    world = World(asyncio.get_running_loop(), seed=3, wire=True)\n"
        "    await world.grow(5, lambda: None)\n"
        "    await world.stop()\n"
        "    print(world.digest.message_count, world.digest.hexdigest())\n"
        "run(main())"
    )

    def printed(hash_seed: str) -> str:
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        return subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
        ).stdout

    first, second = printed("1"), printed("2")

    assert first == second
    assert int(first.split()[0]) > 100
