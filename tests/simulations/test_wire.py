"""A wire world against a plain one: the same nodes find, hold and admit the same, in the same time.

A hundred nodes that join by protocol over the wire take 25 s of a core, so here a hundred start by oracle, and fewer
join by protocol.
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from dataclasses import dataclass

import pytest

from dht.agents.record import AgentRecord, CapabilityClaim, Reach
from dht.keyspace import Key
from dht.lookup import LookupMode
from dht.node import DHTNode
from simulations.network import VirtualHost
from simulations.virtual_loop import run
from simulations.world import Start, World
from synapse_p2p.identity import NodeID

LEASE_MS = 600_000


@dataclass(frozen=True, slots=True)
class Life:
    """What a world came to."""

    admitted: list[list[NodeID]]
    found: list[list[NodeID]]
    held: list[dict[Key, list[bytes]]]
    lookups_took_s: float
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


async def lived(*, nodes: int, start: Start, wire: bool, lookups: int, records: int) -> Life:
    loop = asyncio.get_running_loop()
    world = World(loop, seed=1, start=start, wire=wire)
    rng = random.Random(2)  # of its own: what the test draws is the same in both worlds
    await world.grow(nodes, lambda: None)
    await asyncio.sleep(60)
    admitted = [sorted(contact.id for contact in node.routing_table) for node in world.nodes]
    for number in range(records):
        owner = rng.randrange(nodes)
        capability = f"skill/{number}"
        await world.nodes[owner].publish(*sealed_record(world.hosts[owner], capability), capability)
    found: list[list[NodeID]] = []
    began_at = loop.time()
    for _ in range(lookups):
        outcome = await rng.choice(world.nodes).lookup(rng.randbytes(32), LookupMode.STRICT)
        found.append([contact.id for contact in outcome.closest])
    took_s = loop.time() - began_at
    held = [held_by(node, loop.time()) for node in world.nodes]
    await world.stop()
    return Life(admitted, found, held, took_s, world.digest.message_count, world.digest.hexdigest())


@pytest.mark.parametrize(
    ("start", "nodes", "lookups", "records"), [(Start.PROTOCOL, 24, 20, 4), (Start.ORACLE, 100, 20, 4)]
)
def test_over_the_wire_the_same_is_found_held_and_admitted_in_the_same_time(
    start: Start, nodes: int, lookups: int, records: int
):
    plain, wire = (
        run(lived(nodes=nodes, start=start, wire=wire, lookups=lookups, records=records)) for wire in (False, True)
    )

    assert wire.admitted == plain.admitted
    assert wire.found == plain.found
    assert wire.held == plain.held
    assert sum(map(len, wire.held)) >= records
    assert wire.lookups_took_s == pytest.approx(plain.lookups_took_s, rel=0.05)
    assert wire.digest != plain.digest


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
