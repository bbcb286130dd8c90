"""An agent: a server that says what it can do and takes tasks.

Owns its description and its task handler. How agents find each other is the business of a swarm, which is told of an
agent, not the other way round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from synapse_p2p.capability import AgentCapability
from synapse_p2p.context import CallContext
from synapse_p2p.endpoints import Endpoint, EndpointMetadata
from synapse_p2p.exceptions import CallError, ConfigError, InvalidMessageError
from synapse_p2p.messages import RPCRequest
from synapse_p2p.server import Server

TaskHandlerT = TypeVar("TaskHandlerT", bound=Callable[..., Any])

__all__ = ["AgentCapability", "AgentNode"]


class AgentNode(Server):
    """A server that answers `_agent.info`, `_agent.capabilities` and `_agent.ask`.

    It answers the same under `_node.`, the names that callers of release 2 know.
    """

    def __init__(
        self,
        *,
        name: str,
        role: str,
        description: str = "",
        capabilities: Sequence[str | AgentCapability] | None = None,
        **server_options: Any,
    ) -> None:
        """`server_options` are those of Server."""
        super().__init__(**server_options)
        self.name = name
        self.role = role
        self.description = description
        self.capabilities = [_as_capability(capability) for capability in capabilities or ()]
        # A swarm chooses a port by itself where the user did not.
        self.bind_given = "address" in server_options or "port" in server_options
        self._swarm: Any = None
        self._task_endpoint: Endpoint | None = None
        for prefix in ("_agent.", "_node."):
            self._register_reserved(
                {
                    prefix + "info": self._answer_info,
                    prefix + "capabilities": self._answer_capabilities,
                    prefix + "ask": self._answer_ask,
                }
            )

    @property
    def swarm(self) -> Any:
        """The swarm this agent is a member of. Raises ConfigError before there is one."""
        if self._swarm is None:
            raise ConfigError(f"agent {self.name!r} is in no swarm yet; start one with Swarm(agent, ...)")
        return self._swarm

    def capability(
        self,
        name: str,
        *,
        description: str = "",
        input_schema: dict[str, Any] | None = None,
        output_schema: dict[str, Any] | None = None,
    ) -> AgentCapability:
        """Add a capability, and return it."""
        capability = AgentCapability(name, description, input_schema or {}, output_schema or {})
        self.capabilities.append(capability)
        return capability

    def task_handler(self, function: TaskHandlerT) -> TaskHandlerT:
        """Decorator: the function that does the work, called with the task and a context map; the latest one counts.

        A plain function runs in a thread. A parameter annotated `CallContext` tells who asks. Raises ConfigError for a
        function that cannot be called with those two.
        """
        endpoint = Endpoint.of(function, EndpointMetadata("the task handler", publish=False), injects_names=False)
        try:
            endpoint.parameters.check(["a task", {}], {})
        except InvalidMessageError as error:
            raise ConfigError(f"a task handler is called as handler(task, context): {error}") from error
        self._task_endpoint = endpoint
        return function

    async def _answer_info(self) -> dict[str, Any]:
        """Who this agent is."""
        return {
            "name": self.name,
            "role": self.role,
            "description": self.description,
            "capabilities": [capability.name for capability in self.capabilities],
        }

    async def _answer_capabilities(self) -> list[dict[str, Any]]:
        """What this agent can do, in full."""
        return [asdict(capability) for capability in self.capabilities]

    async def _answer_ask(
        self, task: Any, context: dict[str, Any] | None = None, *, rpc: RPCRequest, call_context: CallContext
    ) -> Any:
        """Do a task."""
        if context is not None and not isinstance(context, dict):
            raise InvalidMessageError("parameter 'context' is a map")
        if self._task_endpoint is None:
            raise CallError("no_task_handler", "agent has no task handler")
        return await self.endpoints.run(
            self._task_endpoint, [task, context or {}], {}, request=rpc, context=call_context
        )


def _as_capability(capability: str | AgentCapability) -> AgentCapability:
    return AgentCapability(capability) if isinstance(capability, str) else capability
