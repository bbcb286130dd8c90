"""An agent: a server that says what it can do and takes tasks.

Owns its description and its task handler. Whether a task fits what the agent can do is decided in `task_checks.py`; how
agents find each other is the business of a swarm, which is told of an agent, not the other way round.
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
from synapse_p2p.schema import object_schema, schema_of
from synapse_p2p.server import Server
from synapse_p2p.shapes import ANYTHING, Direction, Member
from synapse_p2p.task_checks import TaskChecks, check_answer

PREFIXES = ("_agent.", "_node.")  # the second for callers of release 2

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
        self._task_checks = TaskChecks(self.capabilities)
        for prefix in PREFIXES:
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
        """Add a capability, and return it.

        Tasks and answers have to fit its schemas, as `TaskChecks` has it. Raises ConfigError for a schema that is none,
        where the extra `schema` is installed.
        """
        capability = AgentCapability(name, description, input_schema or {}, output_schema or {})
        self._task_checks = TaskChecks([*self.capabilities, capability])
        self.capabilities.append(capability)
        return capability

    def task_handler(self, function: TaskHandlerT) -> TaskHandlerT:
        """Decorator: the function that does the work, called with the task and a context map; the latest one counts.

        A plain function runs in a thread. A parameter annotated `CallContext` tells who asks; a context annotated with
        a class, such as a dataclass, is built from the map. Raises ConfigError for a function that cannot be called
        with those two.
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
        context = context or {}
        if not self._task_checks.are_of(self.capabilities):
            self._task_checks = TaskChecks(self.capabilities)
        output_checks = self._task_checks.check_task(task, context)
        answer = await self.endpoints.run(self._task_endpoint, [task, context], {}, request=rpc, context=call_context)
        return check_answer(answer, output_checks) if output_checks else answer

    def _contract_of(self, name: str) -> dict[str, Any]:
        """As for any server; that of `ask` speaks of what the task handler takes, and of the capabilities."""
        contract = super()._contract_of(name)
        if name not in {prefix + "ask" for prefix in PREFIXES}:
            return contract
        if self._task_endpoint is not None:
            contract |= _contract_of_task(self._task_endpoint)
        return {**contract, "capabilities": [asdict(capability) for capability in self.capabilities]}


def _contract_of_task(endpoint: Endpoint) -> dict[str, Any]:
    """The part of an ask's contract that the task handler has a say in; callers name its arguments task and context."""
    shapes = [endpoint.parameters.shapes[name] for name in endpoint.parameters.positional[:2]]
    task, context = [*shapes, ANYTHING, ANYTHING][:2]
    return {
        "parameters": object_schema({"task": Member(task), "context": Member(context, is_required=False)}),
        "returns": schema_of(endpoint.parameters.returns, Direction.OUT),
        "async": endpoint.is_async,
    }


def _as_capability(capability: str | AgentCapability) -> AgentCapability:
    return AgentCapability(capability) if isinstance(capability, str) else capability
