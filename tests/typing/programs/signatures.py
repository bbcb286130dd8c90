"""A user's program: decorators keep the types of functions, and results and errors have types of their own."""

import asyncio
from typing import Any, Literal, assert_type

import dht
import synapse_p2p
from dht import Answer, Attempt, AttemptEnd, FindResult, FoundAgent, JoinFailed, NoAgentFound, Swarm, SwarmStatus
from synapse_p2p import (
    AgentCapability,
    AgentNode,
    CallContext,
    Client,
    PeerUnavailable,
    RemoteError,
    RPCRequest,
    RPCResponse,
    Server,
    SynapseError,
    Timeout,
)
from synapse_p2p.framing import encode_frame, read_frame
from synapse_p2p.serializers import MessagePackRPCSerializer
from synapse_p2p.types import Node

app = Server(port=0)
agent = AgentNode(name="Rita", role="reviewer", capabilities=["python", AgentCapability("code-review")], port=0)


@app.endpoint("sum", publish=False, description="Adds.")
async def add(a: int, b: int = 0) -> int:
    return a + b


@app.endpoint()
def join_texts(*texts: str, separator: str = " ") -> str:
    return separator.join(texts)


@app.endpoint()
async def who(rpc: RPCRequest, node: Node, caller: CallContext) -> dict[str, str]:
    return {"endpoint": rpc.endpoint, "ip": node.ip, "address": caller.address}


@app.background(5)
async def tick() -> None: ...


@agent.task_handler
async def handle(task: str, context: dict[str, Any]) -> list[str]:
    return [task, *context]


async def what_decorated_functions_return() -> None:
    assert_type(await add(1, b=2), int)
    assert_type(join_texts("a", "b", separator="-"), str)
    assert_type(await tick(), None)
    assert_type(await handle("task", {}), list[str])


async def what_the_rpc_layer_returns(client: Client, request: RPCRequest) -> None:
    await app.start()
    assert_type(app.port, int)
    assert_type(client.with_options(timeout_s=None), Client)
    assert_type(agent.capability("pytest", input_schema={"type": "object"}), AgentCapability)
    languages: list[str] = ["de", "en"]
    attributes = {"lang": languages}
    assert_type(agent.capability("pytest", version="8.2", attributes=attributes), AgentCapability)
    assert_type(await agent.set_capabilities(["python", AgentCapability("review", attributes={"price": 1})]), None)
    assert_type(MessagePackRPCSerializer.deserialize(b""), RPCRequest | RPCResponse)
    assert_type(encode_frame(b""), bytes)
    assert_type(await read_frame(asyncio.StreamReader(), 1024), bytes)
    assert_type(request.type, Literal["request"])
    assert_type(synapse_p2p.__version__, str)
    await app.stop()


async def what_a_swarm_returns(swarm: Swarm) -> None:
    found = await swarm.find("python", limit=5)
    assert_type(found, FindResult)
    assert_type(found[0], FoundAgent)
    assert_type([agent.name for agent in found], list[str])
    answer = await swarm.ask("python", "task", context={"diff": ""})
    assert_type(answer, Answer)
    assert_type(answer.agent, FoundAgent)
    assert_type(answer.attempts, tuple[Attempt, ...])
    assert_type(answer.attempts[0].end, AttemptEnd)
    assert_type(swarm.status(), SwarmStatus)


async def what_errors_carry(client: Client) -> None:
    try:
        await client.call("add", 1)
    except RemoteError as error:
        assert_type(error.code, str)
        assert_type(error.reason, str | None)
        assert_type(error.details, dict[str, Any])
    except PeerUnavailable as error:
        assert_type(error.may_have_started, bool)
    except (Timeout, NoAgentFound, JoinFailed) as error:
        root: SynapseError = error
        print(root)


def takes_the_swarm_of_the_overlay(swarm: dht.Swarm) -> None: ...


async def the_lazy_names_are_typed() -> None:
    takes_the_swarm_of_the_overlay(synapse_p2p.Swarm())
    assert_type(synapse_p2p.Swarm(), dht.Swarm)
