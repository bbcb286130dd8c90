"""An agent that thinks with a model, and uses other agents as its tools: whoever is in the swarm and offers one."""

import json
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any

from dht import Swarm
from model import Message, Model, ModelError, Tool, Use
from synapse_p2p import AgentNode, CallError, SynapseError

MAX_TURNS = 6  # a model that goes on and on is stopped
MAX_TOOLS = 16  # shown to a model at once
TOOL_TIMEOUT_S = 30.0
INSTRUCTIONS = "Answer in one sentence. Use a tool where it knows better than you do."


def assistant(name: str, model: Model) -> AgentNode:
    """An agent for questions in plain words. It says which tools it uses; the last item is the answer."""
    agent = AgentNode(name=name, role="assistant", description="Answers questions.", capabilities=["assistant"])

    @agent.task_handler
    async def answer(task: str, context: dict[str, Any]) -> AsyncIterator[str]:
        swarm: Swarm = agent.swarm
        tools, capability_of = await tools_in(swarm)
        messages = [Message("system", INSTRUCTIONS), Message("user", task)]
        for _ in range(MAX_TURNS):
            try:
                reply = await model.reply(messages, tools)
            except ModelError as error:
                # Our words: where the model is, and what it said, is nobody's business.
                raise CallError("no_model", "the model does not answer") from error
            if not reply.uses:
                yield reply.text
                return
            messages.append(reply)
            for use in reply.uses:
                yield f"uses {use.tool}"
                messages.append(Message("tool", await result_of(swarm, capability_of, use), of=use.id))
        raise CallError("no_answer", f"the model has not come to an end in {MAX_TURNS} turns")

    return agent


async def tools_in(swarm: Swarm) -> tuple[list[Tool], Mapping[str, str]]:
    """What is offered under `tool` now, and the capability of each name: a model has no slashes in its names."""
    tools: dict[str, Tool] = {}
    capability_of: dict[str, str] = {}
    for found in await swarm.find("tool", limit=MAX_TOOLS):
        try:
            described = await found.describe()  # the schemas, checked against what the agent has signed
        except SynapseError:
            continue  # gone meanwhile, or it says something else than it signed
        for capability in described:
            name = re.sub(r"[^a-zA-Z0-9_-]", "_", capability.name)
            tools.setdefault(name, Tool(name, capability.description, capability.input_schema))
            capability_of.setdefault(name, capability.name)
    return [tools[name] for name in sorted(tools)][:MAX_TOOLS], capability_of


async def result_of(swarm: Swarm, capability_of: Mapping[str, str], use: Use) -> str:
    """What a tool says, as text for the model; that it failed is something that a model can go on with too."""
    if use.tool not in capability_of:
        return f"there is no tool {use.tool}"
    try:
        done = await swarm.ask(capability_of[use.tool], use.tool, context=use.arguments, timeout=TOOL_TIMEOUT_S)
    except SynapseError as error:
        return f"failed: {error}"
    return done.result if isinstance(done.result, str) else json.dumps(done.result, default=repr)
