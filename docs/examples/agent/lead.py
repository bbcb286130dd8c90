"""An agent that delegates: it hands the review to another one, with the context that this one needs."""

from typing import Any

from synapse_p2p import AgentNode, CallError, Client, PeerUnavailable

lead = AgentNode(name="Lena", role="lead", description="Decides whether a change goes in.", port=9996)
lead.capability(
    "release-decision",
    description="Merge or not, and why.",
    input_schema={"type": "object", "properties": {"diff": {"type": "string"}}, "required": ["diff"]},
)


@lead.task_handler
async def decide(task: str, context: dict[str, Any]) -> dict[str, Any]:
    reviewer = Client(port=9997, timeout=20)
    try:
        who = await reviewer.call("_agent.info")
        # The context travels on, and says more than it did: who asks.
        review = await reviewer.call("_agent.ask", f"Review: {task}", {**context, "asked_by": lead.name})
    except PeerUnavailable as error:
        raise CallError("no_reviewer", "start reviewer.py first") from error
    return {"merge": not review["findings"], "findings": review["findings"], "reviewed_by": who["name"]}


lead.run()
