"""A world of many nodes: how it grows, what its onlooker knows, that one seed is one world; and the user's agents."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from dht.exceptions import JoinFailed
from dht.keyspace import distance
from dht.lookup import LookupMode
from dht.results import SwarmMode
from simulations.virtual_loop import run
from simulations.world import JOIN_PAUSE_S, Start, World
from synapse_p2p import AgentNode, CallContext, ConfigError, Identity, RemoteError


async def grown(count: int, *, seed: int = 1, **options: Any) -> World:
    world = World(asyncio.get_running_loop(), seed=seed, **options)
    await world.grow(count, lambda: None)
    return world


def echo_agent(**options: Any) -> AgentNode:
    agent = AgentNode(name="Edda", role="echo", capabilities=["echo"], **options)

    @agent.task_handler
    async def echo(task: str, context: dict[str, Any], *, caller: CallContext) -> list[str]:
        assert caller.peer is not None
        return [task, caller.peer.hex()]

    return agent


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


# Started by an oracle


@pytest.mark.parametrize("wire", [False, True])
def test_by_oracle_a_world_stands_at_once_and_finds_everybody(wire: bool):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        joined: list[float] = []
        world = World(loop, seed=1, start=Start.ORACLE, wire=wire)

        await world.grow(60, lambda: joined.append(loop.time()))

        assert joined == [0.0] * 60
        assert world.digest.message_count == 0
        for node in world.nodes:
            node.routing_table.check_invariants()
        for searcher in world.nodes[:5]:
            target = world.random_key()
            outcome = await searcher.lookup(target, LookupMode.STRICT)
            assert outcome.closest[0].id == world.closest_other(target, searcher).id
        await world.stop()

    run(main())


def test_by_oracle_those_who_were_there_know_those_who_come():
    async def main() -> None:
        world = await grown(3, start=Start.ORACLE)

        await world.grow(3, lambda: None)

        assert [len(node.routing_table) for node in world.nodes] == [5] * 6
        await world.stop()

    run(main())


# Over the wire


def test_a_wire_world_has_the_hosts_of_a_plain_one():
    async def ids(wire: bool) -> list[tuple[bytes, str]]:
        world = await grown(4, wire=wire)
        await world.stop()
        return [(host.id, host.address) for host in world.hosts]

    assert run(ids(True)) == run(ids(False))


def test_a_stopped_wire_world_leaves_no_task():
    async def main() -> None:
        world = await grown(4, wire=True)
        await world.agent(echo_agent())

        await world.stop()
        await asyncio.sleep(10)

        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(main())


# The user's agents


def test_an_agent_is_found_among_the_nodes_and_does_its_task():
    async def main() -> None:
        world = await grown(8, wire=True)
        await world.agent(echo_agent())
        client = world.swarm()
        async with client:
            found = await client.find("echo")
            answer = await client.ask("echo", "hello")

            assert [agent.name for agent in found] == ["Edda"]
            assert answer.result == ["hello", client.status().id.hex()]
            assert client.status().mode is SwarmMode.CLIENT
        await world.stop()

    run(main())


def test_agents_alone_are_a_swarm_and_the_first_one_starts_it():
    async def main() -> None:
        world = World(asyncio.get_running_loop(), seed=1, wire=True)
        first = await world.agent(AgentNode(name="Fay", role="first", capabilities=["first"]))
        second = await world.agent(echo_agent())

        answer = await first.ask("echo", "hello")

        assert answer.agent.name == "Edda"
        assert (first.status().seeds_tried, second.status().seeds_joined) == (0, 1)
        assert first.status().advertised[0].startswith("10.0.0.1:")
        await world.stop()

    run(main())


def test_a_plain_function_serves_too():
    async def main() -> None:
        world = World(asyncio.get_running_loop(), seed=1, wire=True)
        agent = AgentNode(name="Paul", role="plain", capabilities=["count"])

        @agent.task_handler
        def count(task: str, context: dict[str, Any]) -> int:
            return len(task)

        await world.agent(agent)
        async with world.swarm() as client:
            assert (await client.ask("count", "four")).result == 4
        await world.stop()

    run(main())


def test_periodic_functions_of_an_agent_run_in_virtual_time_with_jitter_from_the_seed():
    def beats(seed: int) -> list[float]:
        async def main() -> list[float]:
            loop = asyncio.get_running_loop()
            times: list[float] = []
            agent = AgentNode(name="Tick", role="clock")

            @agent.background(60, jitter=20)
            async def beat() -> None:
                times.append(loop.time())

            world = World(loop, seed=seed, wire=True)
            await world.agent(agent)
            await asyncio.sleep(3600)
            await world.stop()
            return times

        return run(main())

    first = beats(1)

    assert 50 < len(first) < 80
    assert first == beats(1)
    assert first != beats(2)


def test_one_seed_is_one_world_with_agents_that_fail_too():
    def digest(seed: int) -> str:
        async def main() -> str:
            world = World(asyncio.get_running_loop(), seed=seed, wire=True)
            agent = AgentNode(name="Frank", role="failure", capabilities=["fail"])

            @agent.task_handler
            async def fail(task: str, context: dict[str, Any]) -> None:
                raise ZeroDivisionError(task)

            await world.agent(agent)
            async with world.swarm() as client:
                with pytest.raises(RemoteError) as caught:
                    await client.ask("fail", "now")
            await world.stop()
            assert caught.value.reference  # drawn from the seed: it travels
            return world.digest.hexdigest()

        return run(main())

    assert digest(1) == digest(1)
    assert digest(1) != digest(2)


def test_an_agent_that_was_given_its_key_keeps_it_and_another_gets_one_from_the_seed():
    own = Identity.from_seed(b"k" * 32)

    async def ids(seed: int) -> list[bytes]:
        world = World(asyncio.get_running_loop(), seed=seed, wire=True)
        swarms = [await world.agent(echo_agent(identity=own)), await world.agent(echo_agent()), world.swarm()]
        await swarms[-1].start()
        ids_seen = [swarm.status().id for swarm in swarms]
        await world.stop()
        return ids_seen

    first, again, other = run(ids(1)), run(ids(1)), run(ids(2))

    assert first == again
    assert first[0] == other[0] == own.node_id
    assert not set(first[1:]) & set(other[1:])


def test_no_key_is_written_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))

    async def main() -> None:
        world = World(asyncio.get_running_loop(), seed=1, wire=True)
        swarm = await world.agent(echo_agent())

        assert swarm.data_dir is None
        await world.stop()

    run(main())

    assert list(tmp_path.iterdir()) == []


def test_an_agent_with_other_seeds_joins_those_and_fails_where_they_are_not_there():
    async def main() -> None:
        world = await grown(3, wire=True)
        joined = await world.agent(echo_agent(), bootstrap=[world.hosts[2].address])

        with pytest.raises(JoinFailed):
            await world.agent(echo_agent(), bootstrap=["10.9.9.9:9000"])

        assert (joined.status().seeds_joined, joined.status().seeds_tried) == (1, 1)
        await world.stop()

    run(main())


def test_a_crashed_host_of_an_agent_answers_nobody():
    async def main() -> None:
        world = World(asyncio.get_running_loop(), seed=1, wire=True)
        swarm = await world.agent(echo_agent())
        client = await world.agent(AgentNode(name="Cleo", role="caller"))
        await client.ask("echo", "hello")
        host = world.network.at(swarm.status().advertised[0])
        assert host is not None

        host.crash()

        assert len(await client.find("echo")) == 0
        await world.stop()

    run(main())


def test_an_agent_lives_in_one_world_after_the_other():
    async def main() -> None:
        agent, loop = echo_agent(), asyncio.get_running_loop()
        first, second = World(loop, seed=1, wire=True), World(loop, seed=2, wire=True)
        here = (await first.agent(agent)).status().id
        with pytest.raises(ConfigError):
            second.swarm(agent)
        await first.stop()

        there = (await second.agent(agent)).status().id

        assert there != here
        async with second.swarm() as client:
            assert (await client.ask("echo", "hello")).agent.id == there
        await second.stop()

    run(main())


def test_in_a_plain_world_no_agent_can_live():
    async def main() -> None:
        world = World(asyncio.get_running_loop(), seed=1)

        with pytest.raises(ConfigError, match="wire=True"):
            world.swarm(echo_agent())

    run(main())
