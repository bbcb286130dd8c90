from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from synapse_p2p import AgentCapability, AgentNode, CallContext, CallError, Client, ConfigError, RemoteError


def make_agent(**options: Any) -> AgentNode:
    return AgentNode(name="Reviewer", role="reviewer", port=0, **options)


@contextlib.asynccontextmanager
async def serving(agent: AgentNode) -> AsyncIterator[Client]:
    await agent.start()
    try:
        yield Client(port=agent.port, timeout=10)
    finally:
        await agent.stop(grace=0)


@pytest.mark.parametrize("prefix", ["_agent.", "_node."])
async def test_an_agent_says_who_it_is_and_what_it_can_do(prefix: str):
    described = AgentCapability("code-review", description="Reviews code", input_schema={"type": "object"})
    agent = make_agent(description="Reviews Python code", capabilities=["python", described])

    async with serving(agent) as client:
        assert await client.call(prefix + "info") == {
            "name": "Reviewer",
            "role": "reviewer",
            "description": "Reviews Python code",
            "capabilities": ["python", "code-review"],
        }
        assert await client.call(prefix + "capabilities") == [
            {"name": "python", "description": "", "input_schema": {}, "output_schema": {}},
            {
                "name": "code-review",
                "description": "Reviews code",
                "input_schema": {"type": "object"},
                "output_schema": {},
            },
        ]


def test_a_capability_can_be_added_later():
    agent = make_agent(capabilities=["python"])

    added = agent.capability("code-review", description="Reviews code")

    assert agent.capabilities == [AgentCapability("python"), added]


@pytest.mark.parametrize("prefix", ["_agent.", "_node."])
async def test_a_task_goes_to_the_handler_with_its_context(prefix: str):
    agent = make_agent()

    @agent.task_handler
    async def handle(task: str, context: dict[str, Any]) -> Any:
        return {"task": task, "language": context.get("language")}

    async with serving(agent) as client:
        answer = await client.call(prefix + "ask", "write a test", context={"language": "python"})
        bare = await client.call(prefix + "ask", "write a test")

    assert answer == {"task": "write a test", "language": "python"}
    assert bare == {"task": "write a test", "language": None}


async def test_a_plain_function_may_do_the_work_and_learn_who_asks():
    agent = make_agent()

    @agent.task_handler
    def handle(task: str, context: dict[str, Any], asker: CallContext) -> Any:
        return [task, asker.peer, asker.address.partition(":")[0]]

    async with serving(agent) as client:
        assert await client.call("_agent.ask", "go") == ["go", None, "127.0.0.1"]


async def test_a_handler_may_name_its_parameters_as_it_likes():
    agent = make_agent()

    @agent.task_handler
    async def handle(rpc: str, node: dict[str, Any]) -> Any:
        return [rpc, node]

    async with serving(agent) as client:
        assert await client.call("_agent.ask", "go", {"a": 1}) == ["go", {"a": 1}]


async def test_an_agent_without_a_handler_says_so():
    async with serving(make_agent()) as client:
        with pytest.raises(RemoteError, match="agent has no task handler"):
            await client.call("_agent.ask", "anything")


async def test_a_handlers_refusal_reaches_the_asker_in_its_words():
    agent = make_agent()

    @agent.task_handler
    async def handle(task: str, context: dict[str, Any]) -> Any:
        raise CallError("out_of_budget", "come back tomorrow")

    async with serving(agent) as client:
        with pytest.raises(RemoteError, match="out_of_budget: come back tomorrow"):
            await client.call("_agent.ask", "anything")


async def test_a_context_that_is_no_map_is_a_bad_request():
    agent = make_agent()

    @agent.task_handler
    async def handle(task: str, context: dict[str, Any]) -> Any:
        return "never"

    async with serving(agent) as client:
        with pytest.raises(RemoteError, match="'context' is a map") as caught:
            await client.call("_agent.ask", "go", context=[1])

    assert caught.value.code == "bad_request"


def test_a_function_that_cannot_take_a_task_is_refused_when_it_is_given():
    agent = make_agent()

    with pytest.raises(ConfigError, match=r"handler\(task, context\)"):

        @agent.task_handler
        async def handle(task: str) -> Any:
            return task


async def test_agents_own_endpoints_are_not_published():
    agent = make_agent()

    @agent.endpoint("public.tool", description="A public tool")
    async def public_tool() -> str:
        return "ok"

    async with serving(agent) as client:
        methods = await client.call("_synapse.methods")

    assert methods == [{"name": "public.tool", "publish": True, "description": "A public tool"}]


def test_an_agent_without_a_swarm_says_so():
    with pytest.raises(ConfigError, match=r"Swarm\(agent"):
        _ = make_agent().swarm


def test_an_agent_knows_the_swarm_that_was_mounted():
    agent, swarm = make_agent(), object()

    agent._swarm = swarm

    assert agent.swarm is swarm


def test_it_is_remembered_whether_the_user_chose_the_bind():
    assert make_agent().bind_given
    assert AgentNode(name="a", role="b", address="0.0.0.0").bind_given
    assert not AgentNode(name="a", role="b").bind_given
