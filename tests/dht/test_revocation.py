"""The end of an agent's key: who still finds the agent, what its next start is told, and what a false word does not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from dht import DHTConfig, IdentityRevoked, RecordConfig, Swarm
from dht.agents.index import capability_root
from dht.agents.record import AgentRecord, CapabilityClaim, Reach
from dht.messages import Store
from dht.records import LAST_SEQ
from simulations.network import EPOCH_S
from simulations.virtual_loop import run
from simulations.world import World
from synapse_p2p import AgentNode, ConfigError, PeerUnavailable
from synapse_p2p.identity import Identity, network_id_of

OWNER, OTHER = Identity.from_seed(b"o" * 32), Identity.from_seed(b"x" * 32)
NAMES = ("code-review", "nlp", "nlp/summary")
LEASE_S = 900.0
KEPT_S = 1800.0
"""How long a storer of these tests keeps a tombstone that nobody brings again."""


def reviewer(*capabilities: str, **options: Any) -> AgentNode:
    names = list(capabilities or ("code-review", "nlp/summary"))
    return AgentNode(name="Reviewer", role="reviewer", capabilities=names, **{"identity": OWNER, **options})


async def world_of(count: int) -> World:
    records = RecordConfig(ttl_s=KEPT_S, max_ttl_s=KEPT_S)
    world = World(asyncio.get_running_loop(), seed=5, wire=True, config=DHTConfig(records=records))
    await world.grow(count, lambda: None)
    return world


async def found_by(swarm: Swarm, *names: str) -> list[list[bytes]]:
    """Under each name the ids of those whose records are there, whether they answer or not."""
    return [sorted(agent.id for agent in await swarm.find(name, probe=False)) for name in names]


def tombstones(world: World, name: str) -> int:
    """How many nodes keep a final one under a name."""
    key = capability_root(network_id_of(""), name)
    stored = [record for node in world.nodes for record in node.store.get(key, world.network.loop.time())]
    return sum(record.seq == LAST_SEQ for record in stored)


def record_of(identity: Identity, *capabilities: str) -> AgentRecord:
    now_ms = round((EPOCH_S + asyncio.get_running_loop().time()) * 1000)
    return AgentRecord(
        public_key=identity.public_key,
        seq=now_ms,
        issued_ms=now_ms,
        expires_ms=now_ms + 900_000,
        network_id=network_id_of(""),
        addresses=(),
        reach=Reach.NONE,
        name="",
        role="",
        description="",
        capabilities=tuple(CapabilityClaim(name) for name in capabilities),
    )


def answering_stores_with(answer: Mapping[str, Any]) -> dict[str, Callable[..., Any]]:
    return {"_dht.store": lambda request, context: {"newer": None, "contacts": [], **answer}}


def test_after_a_revocation_nobody_finds_the_agent_by_any_of_its_names_however_long_it_runs():
    async def main() -> None:
        world = await world_of(5)
        owner = await world.agent(reviewer())
        await world.agent(reviewer(identity=OTHER))
        async with world.swarm() as searcher:
            before = await found_by(searcher, *NAMES)

            await owner.revoke()

            both, other = sorted([OWNER.node_id, OTHER.node_id]), [OTHER.node_id]
            assert before == [both] * 3
            assert await found_by(searcher, *NAMES) == [other] * 3
            assert [agent.id for swarm in world.swarms for agent in swarm.agents()].count(OWNER.node_id) == 0
            assert [tombstones(world, name) for name in NAMES] == [5] * 3
            await owner.revoke()  # does no harm
            await asyncio.sleep(1.5 * KEPT_S)  # its renewals were due
            assert await found_by(searcher, *NAMES) == [other] * 3
            assert [tombstones(world, name) for name in NAMES] == [5] * 3
            await owner.stop()
            await asyncio.sleep(1.1 * KEPT_S)
            assert [tombstones(world, name) for name in NAMES] == [0] * 3
        await world.stop()

    run(main())


def test_who_has_met_a_revocation_believes_nothing_else_of_that_key():
    async def main() -> None:
        world = await world_of(4)
        owner = await world.agent(reviewer())
        elsewhere = record_of(OWNER, "rust").seal(OWNER)  # as a thief would publish
        async with world.swarm() as searcher, world.swarm() as other:
            for node in world.nodes:
                node._responder.keep_agent(elsewhere, record_of(OWNER, "rust"), "rust", 0)
            await owner.revoke()

            assert await found_by(searcher, "code-review", "rust") == [[], []]
            assert await found_by(other, "rust") == [[OWNER.node_id]]
        await world.stop()

    run(main())


def test_a_revoked_key_starts_no_swarm_and_another_key_does():
    async def main() -> None:
        world = await world_of(5)
        owner = await world.agent(reviewer())
        await owner.revoke()
        await owner.stop()
        again = world.swarm(reviewer("nlp/summary", "rust"))

        with pytest.raises(IdentityRevoked) as refused:
            await again.start()
        with pytest.raises(IdentityRevoked):
            await again.start()  # without asking anybody
        with pytest.raises(ConfigError, match="not started"):
            again.status()
        await world.agent(reviewer(identity=OTHER))

        assert refused.value.node_id == OWNER.node_id
        async with world.swarm() as searcher:
            assert await found_by(searcher, "rust", "nlp") == [[], [OTHER.node_id]]
        await world.stop()

    run(main())


def test_a_revoked_agent_can_do_nothing_else_either():
    async def main() -> None:
        world = await world_of(4)
        agent = reviewer()
        owner = await world.agent(agent)
        await owner.revoke()

        with pytest.raises(IdentityRevoked):
            await agent.set_capabilities(["rust"])
        agent.capability("go")
        await asyncio.sleep(LEASE_S)

        assert [each.name for each in agent.capabilities] == ["code-review", "nlp/summary", "go"]
        async with world.swarm() as searcher:
            assert await found_by(searcher, "rust", "go", *NAMES) == [[]] * 5
        await world.stop()

    run(main())


def test_who_revokes_what_nobody_else_keeps_is_told_to_do_it_again():
    async def main() -> None:
        world = await world_of(1)
        owner = await world.agent(reviewer())
        [seed] = world._servers[:1]
        store = seed.mounted("_dht.store")
        assert store is not None
        seed.mount("_dht.", answering_stores_with({"stored": False, "refusal": "full"}))

        with pytest.raises(PeerUnavailable, match=r"under code-review, nlp, nlp/summary yet: call revoke\(\) again"):
            await owner.revoke()
        await asyncio.sleep(5)
        seed.mount("_dht.", {"_dht.store": store})
        await owner.revoke()

        assert [tombstones(world, name) for name in NAMES] == [1] * 3
        await world.stop()

    run(main())


def test_a_running_agent_whose_key_somebody_else_revoked_says_so_once_and_publishes_no_more(
    caplog: pytest.LogCaptureFixture,
):
    async def main() -> None:
        world = await world_of(3)
        owner = await world.agent(reviewer())
        tombstone = record_of(OWNER, "code-review", "nlp/summary").revoked(issued_ms=round(EPOCH_S * 1000))
        envelope = tombstone.seal(OWNER)
        async with world.swarm() as thief:
            assert thief._node is not None
            for node in world.nodes:
                for name in NAMES:
                    contact = await thief.reach(node.id)
                    await thief._node._requester.store(contact, Store(envelope, name))

            await asyncio.sleep(3 * LEASE_S)

            assert await found_by(thief, *NAMES) == [[]] * 3
        warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        assert warnings == [
            "the key of agent 'Reviewer' was revoked for good: nobody finds it any more. Start it anew with another key"
        ]
        await owner.revoke()  # there is nothing left to do
        await owner.stop()
        await world.stop()

    run(main())


def of_a_stranger() -> bytes:
    return record_of(OTHER, "code-review").revoked(issued_ms=0).seal(OTHER)


def in_its_name() -> bytes:
    """A final tombstone of the owner, with a signature of somebody else."""
    good, wrong = (record_of(OWNER, "code-review").revoked(issued_ms=0).seal(OWNER) for _ in range(2))
    return good[:-1] + bytes([wrong[-1] ^ 1])


def not_final() -> bytes:
    record = record_of(OWNER, "code-review")
    return record.withdrawn(seq=record.seq + 10**9, issued_ms=record.issued_ms).seal(OWNER)


@pytest.mark.parametrize("make_newer", [of_a_stranger, in_its_name, not_final, lambda: b"", lambda: b"\x93" * 40])
def test_a_storer_that_only_says_so_revokes_nothing(make_newer: Callable[[], bytes]):
    async def main() -> None:
        world = await world_of(1)
        [liar] = world._servers[:1]
        answer = {"stored": False, "refusal": "stale", "newer": make_newer()}
        store = liar.mounted("_dht.store")
        assert store is not None
        liar.mount("_dht.", answering_stores_with(answer))

        owner = await world.agent(reviewer())
        liar.mount("_dht.", {"_dht.store": store})
        await asyncio.sleep(60)

        assert owner.status().seeds_joined == 1
        async with world.swarm() as searcher:
            assert await found_by(searcher, *NAMES) == [[OWNER.node_id]] * 3
        await world.stop()

    run(main())


def test_there_has_to_be_something_to_revoke():
    async def main() -> None:
        world = await world_of(1)
        client = world.swarm()
        with pytest.raises(ConfigError, match="not started"):
            await client.revoke()
        await client.start()
        idle = AgentNode(name="Idle", role="none", identity=OWNER)
        offers_nothing = await world.agent(idle)

        with pytest.raises(ConfigError, match="has no agent"):
            await client.revoke()
        with pytest.raises(ConfigError, match="offers nothing"):
            await offers_nothing.revoke()
        await idle.set_capabilities(["python"])

        assert await found_by(client, "python") == [[OWNER.node_id]]
        await world.stop()

    run(main())
