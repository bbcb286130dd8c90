"""Two agents that are tools. What a model has to know of them is in their capabilities: what for, and with what."""

from typing import Any

from synapse_p2p import AgentCapability, AgentNode

NUMBER = {"type": "number"}


def converter() -> AgentNode:
    """Degrees."""
    capability = AgentCapability(
        "tool/fahrenheit",
        description="Converts degrees Celsius to Fahrenheit.",
        input_schema={"type": "object", "properties": {"celsius": NUMBER}, "required": ["celsius"]},
    )
    agent = AgentNode(name="Gabriel", role="tool", capabilities=[capability])

    @agent.task_handler
    async def convert(task: str, context: dict[str, Any]) -> str:
        return f"{context['celsius'] * 9 / 5 + 32:.1f} degrees Fahrenheit"

    return agent


def surveyor() -> AgentNode:
    """Areas."""
    capability = AgentCapability(
        "tool/area",
        description="Calculates the area of a rectangle in square meters.",
        input_schema={
            "type": "object",
            "properties": {"length": NUMBER, "width": NUMBER},
            "required": ["length", "width"],
        },
    )
    agent = AgentNode(name="Thea", role="tool", capabilities=[capability])

    @agent.task_handler
    async def measure(task: str, context: dict[str, Any]) -> str:
        return f"{context['length'] * context['width']:g} square meters"

    return agent
