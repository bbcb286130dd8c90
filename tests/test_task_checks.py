from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from synapse_p2p import AgentCapability, AgentNode, Client, ConfigError, RemoteError
from synapse_p2p.task_checks import TaskChecks
from synapse_p2p.transport.memory import MemoryTransport

DIFF = {"type": "object", "properties": {"diff": {"type": "string"}}, "required": ["diff"]}
URL = {"type": "object", "properties": {"url": {"type": "string"}}, "required": ["url"]}


def make_agent(*capabilities: str | AgentCapability) -> AgentNode:
    agent = AgentNode(name="Reviewer", role="reviewer", port=0, transport=MemoryTransport(), capabilities=capabilities)

    @agent.task_handler
    async def handle(task: Any, context: dict[str, Any]) -> Any:
        return context.get("answer", "done")

    return agent


@contextlib.asynccontextmanager
async def serving(agent: AgentNode) -> AsyncIterator[Client]:
    await agent.start()
    try:
        yield Client(agent.address, agent.port, transport=agent._transport)
    finally:
        await agent.stop(grace=0)


async def complaint_of(client: Client, task: Any, context: dict[str, Any]) -> tuple[str, str]:
    with pytest.raises(RemoteError) as caught:
        await client.call("_agent.ask", task, context)
    return caught.value.code, caught.value.message


async def test_the_context_has_to_fit_the_input_schema_of_the_only_capability():
    async with serving(make_agent(AgentCapability("review", input_schema=DIFF))) as client:
        assert await client.call("_agent.ask", "go", {"diff": "+"}) == "done"
        assert await complaint_of(client, "go", {"diff": 1}) == (
            "bad_request",
            "parameter 'context.diff' does not fit its schema: type 'string'",
        )
        assert await complaint_of(client, "go", {}) == (
            "bad_request",
            "parameter 'context' does not fit its schema: required ['diff']",
        )


async def test_a_schema_that_is_of_no_map_speaks_of_the_task():
    async with serving(make_agent(AgentCapability("review", input_schema={"type": "string"}))) as client:
        assert await client.call("_agent.ask", "go", {"any": 1}) == "done"
        assert await complaint_of(client, 7, {}) == (
            "bad_request",
            "parameter 'task' does not fit its schema: type 'string'",
        )


async def test_with_several_capabilities_a_task_has_to_fit_one_of_them():
    agent = make_agent(AgentCapability("review", input_schema=DIFF), AgentCapability("fetch", input_schema=URL))

    async with serving(agent) as client:
        assert await client.call("_agent.ask", "go", {"diff": "+"}) == "done"
        assert await client.call("_agent.ask", "go", {"url": "x"}) == "done"
        assert await complaint_of(client, "go", {}) == (
            "bad_request",
            "the task fits the input schema of no capability here",
        )


async def test_a_capability_without_a_schema_takes_everything():
    agent = make_agent("python", AgentCapability("review", input_schema=DIFF, output_schema={"type": "integer"}))

    async with serving(agent) as client:
        assert await client.call("_agent.ask", "go", {}) == "done"
        assert await client.call("_agent.ask", "go", {"diff": "+"}) == "done"


async def test_an_answer_that_does_not_fit_is_the_agents_own_fault(caplog: pytest.LogCaptureFixture):
    agent = make_agent(
        AgentCapability("review", input_schema=DIFF, output_schema={"type": "integer"}),
        AgentCapability("count", input_schema=DIFF, output_schema={"type": "null"}),
        AgentCapability("fetch", input_schema=URL, output_schema={"type": "string"}),
    )

    async with serving(agent) as client:
        assert await client.call("_agent.ask", "go", {"diff": "+", "answer": 7}) == 7
        assert await client.call("_agent.ask", "go", {"diff": "+", "answer": None}) is None
        assert await client.call("_agent.ask", "go", {"url": "x"}) == "done"
        assert caplog.records == []
        code, message = await complaint_of(client, "go", {"diff": "+"})

    assert code == "internal_error"
    assert "integer" not in message
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "answer does not fit its schema: type 'integer'" in caplog.text


async def test_capabilities_may_change_while_the_agent_runs():
    agent = make_agent()

    async with serving(agent) as client:
        assert await client.call("_agent.ask", "go", {}) == "done"
        agent.capabilities.append(AgentCapability("review", input_schema={"type": "object"}))
        assert await client.call("_agent.ask", "go", {}) == "done"
        agent.capabilities[0].input_schema["required"] = ["diff"]
        assert (await complaint_of(client, "go", {}))[0] == "bad_request"
        agent.capability("anything")
        assert await client.call("_agent.ask", "go", {}) == "done"


def test_a_schema_that_is_none_is_refused_when_it_is_given():
    agent = make_agent()

    with pytest.raises(ConfigError, match=r"capability 'review' \(input\) is no valid JSON Schema"):
        agent.capability("review", input_schema={"type": "text"})
    with pytest.raises(ConfigError, match=r"capability 'review' \(output\) is no valid JSON Schema"):
        make_agent(AgentCapability("review", output_schema={"type": "text"}))
    assert agent.capabilities == []


async def test_nothing_is_checked_where_the_library_is_not_installed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("synapse_p2p.task_checks.can_check", lambda: False)
    agent = make_agent(AgentCapability("review", input_schema=DIFF, output_schema={"type": "text"}))

    async with serving(agent) as client:
        assert await client.call("_agent.ask", "go", {}) == "done"


def test_checks_are_made_anew_only_where_a_schema_changed():
    capabilities = [AgentCapability("review", input_schema={"type": "object"})]
    checks = TaskChecks(capabilities)

    assert checks.are_of([AgentCapability("other", input_schema={"type": "object"})])
    capabilities[0].input_schema["required"] = ["diff"]
    assert not checks.are_of(capabilities)
