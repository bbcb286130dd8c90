"""An agent that does the work: it reviews a diff, and says exactly what it needs and gives."""

from typing import Any

from synapse_p2p import AgentCapability, AgentNode, CallError

reviewer = AgentNode(
    name="Rita",
    role="reviewer",
    description="Finds what was left in a diff by mistake.",
    capabilities=[
        "python",  # a name is enough; a descriptor says more
        AgentCapability(
            "code-review",
            description="Reviews the added lines of a unified diff.",
            input_schema={
                "type": "object",
                "properties": {"diff": {"type": "string"}, "asked_by": {"type": "string"}},
                "required": ["diff"],
            },
            output_schema={
                "type": "object",
                "properties": {"findings": {"type": "array", "items": {"type": "string"}}},
                "required": ["findings"],
            },
        ),
    ],
    port=9997,
)


@reviewer.task_handler
async def review(task: str, context: dict[str, Any]) -> dict[str, Any]:
    if "diff" not in context:
        raise CallError("no_diff", "put the diff into the context, as {'diff': ...}")
    added = [line[1:].strip() for line in context["diff"].splitlines() if line.startswith("+")]
    print(f"{task!r} for {context.get('asked_by', 'somebody')}: {len(added)} lines")
    return {"findings": [f"left in: {line}" for line in added if line.startswith(("print(", "breakpoint("))]}


reviewer.run()
