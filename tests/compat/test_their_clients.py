"""Clients of earlier releases call our server, and write the golden messages."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from synapse_p2p import AgentNode, CallError
from tests.cli.typing_commands import up
from tests.compat.conftest import Release

VECTORS = Path(__file__).parents[1] / "vectors" / "plain_messages.json"
VALUES = [None, True, 0, -1, 2**63, -(2**63), 0.5, "", "grüße, 世界", b"", b"\x00\xff", [], {}, [[1], {"a": {"b": 2}}]]


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """The port of an agent of ours."""
    agent = AgentNode(name="Reviewer", role="reviewer", description="Reviews code.", capabilities=["python"], port=0)
    offer_endpoints(agent)
    await agent.start()
    yield agent.port
    await agent.stop()


def offer_endpoints(agent: AgentNode) -> None:
    @agent.task_handler
    async def work(task: str, context: dict[str, Any]) -> dict[str, Any]:
        return {"task": task, "context": context}

    @agent.endpoint("sum", description="Adds.")
    async def add(a: int, b: int, scale: int = 1) -> int:
        return (a + b) * scale

    @agent.endpoint("echo", publish=False)
    async def echo(*args: Any, **kwargs: Any) -> Any:
        return [args, kwargs]

    @agent.endpoint("zeros", publish=False)
    def zeros(count: int) -> bytes:
        return bytes(count)

    @agent.endpoint("boom", publish=False)
    async def boom() -> None:
        raise ValueError("the reason")

    @agent.endpoint("refuse", publish=False)
    async def refuse() -> None:
        raise CallError("out_of_budget", "come back tomorrow")

    @agent.endpoint("returns_a_set", publish=False)
    async def returns_a_set() -> Any:
        return {1, 2}


INFO = {"name": "Reviewer", "role": "reviewer", "description": "Reviews code.", "capabilities": ["python"]}
CAPABILITIES = [
    {"name": "python", "description": "", "input_schema": {}, "output_schema": {}, "version": "", "attributes": {}}
]
RETURNED = [
    (("sum", 2, 3), {}, 5),
    (("sum", 2), {"b": 3, "scale": 2}, 10),
    (("echo", *VALUES), {"key": VALUES}, [VALUES, {"key": VALUES}]),
    (("zeros", 3900), {}, bytes(3900)),  # with its envelope just below what release 1.3.1 takes
    (("_synapse.ping",), {}, "pong"),
    (("_synapse.methods",), {}, [{"name": "sum", "publish": True, "description": "Adds."}]),
    (("_agent.info",), {}, INFO),
    (("_agent.capabilities",), {}, CAPABILITIES),
    (("_agent.ask", "Review this"), {}, {"task": "Review this", "context": {}}),
    (("_agent.ask", "Review this"), {"context": {"diff": "+1"}}, {"task": "Review this", "context": {"diff": "+1"}}),
    (("_node.info",), {}, INFO),
    (("_node.capabilities",), {}, CAPABILITIES),
    (("_node.ask",), {"task": "Review this"}, {"task": "Review this", "context": {}}),
    (("_node.ask", "Review this", {"diff": "+1"}), {}, {"task": "Review this", "context": {"diff": "+1"}}),
]
RAISED = {
    "an unknown endpoint": (("missing",), {}, "Unregistered endpoint called: missing"),
    "an exception": (("boom",), {}, r"internal error \(reference [0-9a-f]{8}\)"),
    "a refusal": (("refuse",), {}, "out_of_budget: come back tomorrow"),
    "a result that cannot travel": (("returns_a_set",), {}, r"internal error \(reference [0-9a-f]{8}\)"),
    "a missing argument": (("sum", 2), {}, r"parameter 'b' is missing; .*"),
    "an unknown argument": (("sum", 2, 3), {"colour": 1}, r"unknown parameter 'colour'; .*"),
    "a request over our limit": (("echo", bytes(2**20)), {}, r"frame too large: 10486\d\d > 1048576"),
}


@pytest.mark.parametrize(("args", "kwargs", "value"), RETURNED, ids=[args[0] for args, _, _ in RETURNED])
async def test_their_call_returns_what_our_handler_returns(
    release: Release, port: int, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any
):
    assert await release.call(port, *args, **kwargs) == ("returned", value)


async def test_an_agent_that_the_command_up_runs_takes_their_tasks(
    release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with up(tmp_path, "--agent", "agents:rita") as node:
        port = int(node.seed.rpartition(":")[2])

        assert await release.call(port, "add", 2, b=3) == ("returned", 5)
        answer = await release.call(port, "_node.ask", "Review this", {"diff": "+1"})

    assert answer == ("returned", {"task": "Review this", "context": {"diff": "+1"}})


@pytest.mark.parametrize(("args", "kwargs", "text"), RAISED.values(), ids=RAISED.keys())
async def test_what_fails_here_is_the_runtime_error_that_they_know(
    release: Release, port: int, args: tuple[Any, ...], kwargs: dict[str, Any], text: str
):
    kind, error, message = await release.call(port, *args, **kwargs)

    assert (kind, error) == ("raised", "RuntimeError")
    assert re.fullmatch(text, message)


async def test_an_answer_over_their_limit_is_refused_there(release: Release, port: int):
    size_bytes = 5000 if release.name.startswith("1.") else 5 * 2**20

    kind, error, message = await release.call(port, "zeros", size_bytes)

    assert (kind, error) == ("raised", "InvalidMessageError")
    assert message.startswith("frame too large: ")
    assert await release.call(port, "_synapse.ping") == ("returned", "pong")


async def test_many_of_their_calls_in_turn_are_all_answered(release: Release, port: int):
    calls = [("sum", [number, 1], {}) for number in range(100)]

    outcomes = await release.run("old_client.py", calls, str(port))

    assert outcomes == [("returned", number + 1) for number in range(100)]


async def test_the_golden_messages_are_theirs_to_the_byte(release: Release):
    entries = [with_values(entry) for entry in json.loads(VECTORS.read_text(encoding="utf-8"))["messages"]]

    frames = await release.run("old_vectors.py", [entry["fields"] for entry in entries])

    assert frames == [entry["frame"] for entry in entries]


def with_values(value: Any) -> Any:
    """A value of the file, with bytes and large integers as what they stand for."""
    match value:
        case str() if value.startswith("hex:"):
            return bytes.fromhex(value.removeprefix("hex:"))
        case str() if value.startswith("int:"):
            return int(value.removeprefix("int:"))
        case list():
            return [with_values(item) for item in value]
        case dict():
            return {key: with_values(item) for key, item in value.items()}
    return value
