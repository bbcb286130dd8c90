"""Whole swarms in one process, over encrypted TCP on loopback."""

from __future__ import annotations

import asyncio
import random
import secrets
from typing import Any

import pytest

from dht import IdentityRevoked, NoAgentFound, Swarm
from synapse_p2p import AgentNode, CallContext, CallError, Client, Identity, RemoteError

CAPABILITIES = [f"skill-{number}" for number in range(12)]


def make_agent(name: str, capabilities: list[str], **options: Any) -> AgentNode:
    agent = AgentNode(name=name, role="worker", description="For tests.", capabilities=capabilities, **options)

    @agent.task_handler
    async def handle(task: str, context: dict) -> dict:
        if task == "refuse":
            raise CallError("not_today", "come back tomorrow")
        return {"by": name, "task": task, "context": context}

    return agent


async def start_swarm(*agents: AgentNode) -> list[Swarm]:
    """The first agent is the seed of all others."""
    first = Swarm(agents[0])
    await first.start()
    seed = agents[0].listening_addresses[0]
    swarms = [first]
    for agent in agents[1:]:
        swarm = Swarm(agent, bootstrap=[seed])
        await swarm.start()
        swarms.append(swarm)
    return swarms


async def stop_all(swarms: list[Swarm]) -> None:
    await asyncio.gather(*(swarm.stop(grace=0) for swarm in swarms))


@pytest.mark.parametrize(
    "count", [8, *(pytest.param(more_than_k, marks=pytest.mark.gates) for more_than_k in (22, 40))]
)
async def test_every_find_from_every_agent_is_exact(count: int):
    rng = random.Random(count)
    offered = {f"agent-{number}": rng.sample(CAPABILITIES, 3) for number in range(count)}
    # New ones: those that another test has kept under the same names would be found by what they offered there.
    keys = [Identity.from_seed(secrets.token_bytes(32)) for _ in offered]
    swarms = await start_swarm(
        *(make_agent(name, offered[name], identity=key) for name, key in zip(offered, keys, strict=True))
    )

    wrong = []
    for searcher, swarm in zip(offered, swarms, strict=True):
        for capability in CAPABILITIES:
            found = await swarm.find(capability)
            expected = {name for name, skills in offered.items() if capability in skills} - {searcher}
            if sorted(agent.name for agent in found) != sorted(expected) or not found.complete:
                wrong.append((searcher, capability, found))
    await stop_all(swarms)

    assert wrong == []


async def test_a_revoked_agent_is_found_by_nobody_and_its_key_starts_no_swarm():
    identity = Identity.from_seed(secrets.token_bytes(32))
    doomed = make_agent("doomed", ["code-review", "nlp/summary"], identity=identity)
    swarms = await start_swarm(make_agent("seed", []), doomed, make_agent("two", ["code-review"]))
    seed = swarms[0].status().listening[0]

    await swarms[1].revoke()

    async with Swarm(bootstrap=[seed]) as client:
        assert [agent.name for agent in await client.find("code-review", probe=False)] == ["two"]
        assert list(await client.find("nlp", probe=False)) == []
        assert (await client.ask("code-review", "hello")).agent.name == "two"
    await swarms[1].stop()
    again = make_agent("doomed", ["nlp/summary", "new"], identity=identity)
    with pytest.raises(IdentityRevoked, match="revoked for good"):
        await Swarm(again, bootstrap=[seed]).start()
    assert again.listening_addresses == ()
    assert [list(await swarms[0].find(name, probe=False)) for name in ("nlp", "new")] == [[], []]
    await stop_all(swarms)


async def test_a_plain_caller_reaches_an_endpoint_that_asks_others():
    boss, worker = make_agent("boss", []), make_agent("worker", ["work"])

    @boss.endpoint()
    async def passed_on(caller: CallContext) -> dict:
        return (await caller.swarm.ask("work", "dig")).result

    swarms = await start_swarm(boss, worker)

    async with Client("legacy://127.0.0.1", boss.port) as plain:
        answer = await plain.call("passed_on")
    await stop_all(swarms)

    assert (answer["by"], answer["task"]) == ("worker", "dig")


async def test_a_client_finds_and_asks_and_another_provider_answers_when_the_first_is_gone():
    swarms = await start_swarm(
        make_agent("seed", []), make_agent("one", ["code-review"]), make_agent("two", ["code-review"])
    )
    seed = swarms[0].status().listening[0]

    async with Swarm(bootstrap=[seed]) as client:
        first = await client.ask("code-review", "hello", context={"n": 1})
        await swarms[1 if first.agent.name == "one" else 2].stop(grace=0)
        second = await client.ask("code-review", "hello again")
        left = await client.find("code-review")
    await stop_all(swarms)

    assert first.result == {"by": first.agent.name, "task": "hello", "context": {"n": 1}}
    assert second.agent.name != first.agent.name
    assert [agent.name for agent in left] == [second.agent.name]


async def test_a_providers_own_refusal_is_an_answer_and_is_not_tried_elsewhere():
    swarms = await start_swarm(make_agent("one", ["x"]), make_agent("two", ["x"]), make_agent("three", []))

    with pytest.raises(RemoteError) as refused:
        await swarms[2].ask("x", "refuse")
    await stop_all(swarms)

    assert refused.value.code == "failed"
    assert refused.value.reason == "not_today"
    assert len(refused.value.answer.attempts) == 1


async def test_asking_for_what_nobody_can_do_says_so():
    swarms = await start_swarm(make_agent("one", ["x"]))

    with pytest.raises(NoAgentFound, match="'cooking'"):
        await swarms[0].ask("cooking", "dinner")
    await stop_all(swarms)
