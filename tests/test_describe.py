from __future__ import annotations

import contextlib
import enum
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired, TypedDict

import pydantic
import pytest
from jsonschema import Draft202012Validator

from synapse_p2p import AgentCapability, AgentNode, CallContext, Client, RemoteError, Server
from synapse_p2p.messages import Code, Refusal, RPCRequest
from synapse_p2p.transport.memory import MemoryTransport

if TYPE_CHECKING:
    from nowhere import Unknown

CONTRACT_KEYS = {"name", "publish", "description", "parameters", "order", "rest", "returns", "async", "streams"}


class Size(enum.Enum):
    SMALL = 1
    LARGE = 2


@dataclass
class Part:
    name: str
    parts: list[Part]


class Order(TypedDict):
    part: Part
    note: NotRequired[str]


class Receipt(pydantic.BaseModel):
    number: int
    paid: bool = False


@dataclass
class Diff:
    text: str
    language: str = "python"


@contextlib.asynccontextmanager
async def serving(server: Server) -> AsyncIterator[Client]:
    await server.start()
    try:
        yield Client(server.address, server.port, transport=server._transport)
    finally:
        await server.stop(grace=0)


def make_server() -> Server:
    return Server(port=0, transport=MemoryTransport())


def make_agent(**options: Any) -> AgentNode:
    return AgentNode(name="Reviewer", role="reviewer", port=0, transport=MemoryTransport(), **options)


async def test_an_endpoint_tells_its_whole_contract():
    server = make_server()

    @server.endpoint("shop.order")
    async def order(
        rpc: Any,
        order: Order,
        size: Size = Size.SMALL,
        /,
        count: Annotated[int, "how many"] = 1,
        *notes: str,
        speed: Literal["slow", "fast"] | None = None,
        context: CallContext,
        **more: dict[str, float],
    ) -> Receipt:
        """Order some parts."""
        return Receipt(number=count)

    async with serving(server) as client:
        contract = await client.call("_synapse.describe", "shop.order")

    Draft202012Validator.check_schema(contract["parameters"])
    Draft202012Validator.check_schema(contract["returns"])
    assert contract == {
        "name": "shop.order",
        "publish": True,
        "description": "Order some parts.",
        "parameters": {
            "type": "object",
            "properties": {
                "order": {"$ref": "#/$defs/Order", "x-positional-only": True},
                "size": {"enum": [1, 2], "default": 1, "x-positional-only": True},
                "count": {"type": "integer", "description": "how many", "default": 1},
                "speed": {"anyOf": [{"enum": ["slow", "fast"]}, {"type": "null"}], "default": None},
            },
            "required": ["order"],
            "additionalProperties": {"type": "object", "additionalProperties": {"type": "number"}},
            "$defs": {
                "Order": {
                    "type": "object",
                    "properties": {"part": {"$ref": "#/$defs/Part"}, "note": {"type": "string"}},
                    "required": ["part"],
                    "additionalProperties": False,
                },
                "Part": {
                    "type": "object",
                    "properties": {
                        "name": {"type": "string"},
                        "parts": {"type": "array", "items": {"$ref": "#/$defs/Part"}},
                    },
                    "required": ["name", "parts"],
                    "additionalProperties": False,
                },
            },
        },
        "order": ["order", "size", "count"],
        "rest": {"type": "string"},
        "returns": {
            "$ref": "#/$defs/Receipt",
            "$defs": {
                "Receipt": {
                    "title": "Receipt",
                    "type": "object",
                    "properties": {
                        "number": {"title": "Number", "type": "integer"},
                        "paid": {"title": "Paid", "type": "boolean", "default": False},
                    },
                    "required": ["number"],
                }
            },
        },
        "async": True,
        "streams": False,
    }


async def test_a_function_without_hints_is_described_as_open():
    server = make_server()

    @server.endpoint()
    def anything(a, b: Unknown, c=b"raw"):
        return a

    async with serving(server) as client:
        contract = await client.call("_synapse.describe", name="anything")

    assert contract["parameters"] == {
        "type": "object",
        "properties": {"a": {}, "b": {"x-python": "Unknown"}, "c": {}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    assert (contract["returns"], contract["rest"], contract["async"]) == ({}, None, False)


async def test_every_endpoint_of_an_agent_is_described_in_valid_schemas():
    agent = make_agent()
    agent.mount("_dht.", {"_dht.ping": lambda request, context: "pong"})

    async with serving(agent) as client:
        for name in [*agent.endpoint_directory, "_dht.ping"]:
            contract = await client.call("_synapse.describe", name)

            Draft202012Validator.check_schema(contract["parameters"])
            Draft202012Validator.check_schema(contract["returns"])
            assert set(contract) >= CONTRACT_KEYS
            assert contract["name"] == name
        methods = await client.call("_synapse.methods")

    assert methods == []


async def test_methods_keeps_its_three_keys():
    server = make_server()

    @server.endpoint(description="words")
    async def shown(size: Size) -> Size:
        return size

    async with serving(server) as client:
        assert await client.call("_synapse.methods") == [{"name": "shown", "publish": True, "description": "words"}]


async def test_an_unpublished_endpoint_is_described_to_whoever_knows_its_name():
    server = make_server()

    @server.endpoint(publish=False)
    async def secret(a: int) -> None: ...

    async with serving(server) as client:
        assert (await client.call("_synapse.describe", "secret"))["publish"] is False
        with pytest.raises(RemoteError) as caught:
            await client.call("_synapse.describe", "secre")

    assert "secret" not in str(caught.value)


async def test_an_unknown_name_is_not_found_with_the_nearest_one():
    server = make_server()

    @server.endpoint()
    async def summarize(text: str) -> str:
        return text

    outcome = await server.endpoints.serve(
        RPCRequest(endpoint="_synapse.describe", args=["summarise"]), CallContext(peer=None, address="127.0.0.1:80")
    )

    assert outcome == Refusal(Code.NOT_FOUND, "no endpoint is named 'summarise'", {"nearest": "summarize"})


@pytest.mark.parametrize(("name", "complaint"), [(7, "parameter 'name' is text"), ("x" * 10_000, "no endpoint")])
async def test_a_name_that_cannot_be_one_is_a_bad_request(name: Any, complaint: str):
    async with serving(make_server()) as client:
        with pytest.raises(RemoteError, match=complaint) as caught:
            await client.call("_synapse.describe", name)

    assert caught.value.code in ("bad_request", "not_found")
    assert len(str(caught.value)) < 200


async def test_classes_travel_both_ways():
    server = make_server()

    @server.endpoint()
    async def buy(order: Order, size: Size) -> dict[str, Receipt | Size | Part]:
        return {"receipt": Receipt(number=1), "size": size, "part": order["part"]}

    part = {"name": "wheel", "parts": []}
    async with serving(server) as client:
        assert await client.call("buy", {"part": part}, 2) == {
            "receipt": {"number": 1, "paid": False},
            "size": 2,
            "part": part,
        }
        with pytest.raises(RemoteError, match=r"parameter 'order.part.name' has to be text, not an integer") as caught:
            await client.call("buy", {"part": {"name": 1, "parts": []}}, 2)

    assert caught.value.code == "bad_request"


async def test_classes_travel_over_a_session_too():
    server = make_server()
    caller = Server(port=0, transport=server._transport)

    @server.endpoint()
    async def grow(part: Part) -> list[Part]:
        return [part, Part("nut", [part])]

    async with serving(server):
        peer = await caller.sessions.connect_address(server.listening_addresses[0])
        contract = await caller.sessions.call(peer, "_synapse.describe", {"name": "grow"}, timeout_s=10)
        answer = await caller.sessions.call(peer, "grow", {"part": {"name": "bolt", "parts": []}}, timeout_s=10)
        await caller.stop(grace=0)

    bolt = {"name": "bolt", "parts": []}
    assert contract["returns"]["items"] == {"$ref": "#/$defs/Part"}
    assert answer == [bolt, {"name": "nut", "parts": [bolt]}]


# Agents


def described(name: str, **said: Any) -> dict[str, Any]:
    empty = {"description": "", "input_schema": {}, "output_schema": {}, "version": "", "attributes": {}}
    return {"name": name, **empty, **said}


async def test_an_ask_is_described_with_what_the_task_handler_takes_and_with_the_capabilities():
    agent = make_agent(capabilities=["python"])
    agent.capability("code-review", description="Reviews code", input_schema={"type": "object"})

    @agent.task_handler
    async def handle(job: str, diff: Diff) -> list[str]:
        return [job, diff.language]

    async with serving(agent) as client:
        contracts = [await client.call("_synapse.describe", prefix + "ask") for prefix in ("_agent.", "_node.")]
        answer = await client.call("_agent.ask", "review", context={"text": "x"})
        with pytest.raises(RemoteError, match=r"parameter 'diff.text' is missing"):
            await client.call("_agent.ask", "review")

    for contract in contracts:
        assert contract["parameters"]["properties"] == {"task": {"type": "string"}, "context": {"$ref": "#/$defs/Diff"}}
        assert contract["order"] == ["task", "context"]
        assert contract["returns"] == {"type": "array", "items": {"type": "string"}}
        assert contract["capabilities"] == [
            described("python"),
            described("code-review", description="Reviews code", input_schema={"type": "object"}),
        ]
    assert answer == ["review", "python"]


async def test_an_agent_without_a_task_handler_describes_an_open_ask():
    async with serving(make_agent()) as client:
        contract = await client.call("_synapse.describe", "_agent.ask")
        other = await client.call("_synapse.describe", "_agent.info")

    assert contract["parameters"]["required"] == ["task"]
    assert contract["capabilities"] == []
    assert "capabilities" not in other
    assert other["description"] == "Who this agent is."


def test_a_task_handler_may_take_any_number_of_arguments():
    agent = make_agent(capabilities=[AgentCapability("echo")])

    @agent.task_handler
    async def handle(*args: Any) -> Any:
        return args

    assert agent._contract_of("_agent.ask")["parameters"]["properties"] == {"task": {}, "context": {}}
