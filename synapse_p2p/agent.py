"""An agent: a server that says what it can do and takes tasks.

Owns its description and its task handler, and lets asks wait for their turn. Whether a task fits what the agent can do
is decided in `task_checks.py`, whose turn it is in `task_queue.py`; how agents find each other is the business of a
swarm, which is told of an agent, not the other way round.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from typing import Any, TypeVar, overload

from synapse_p2p.access import PACKAGE_PREFIXES
from synapse_p2p.capability import AgentCapability, Attributes
from synapse_p2p.context import CallContext
from synapse_p2p.endpoints import Endpoint, EndpointMetadata, RefusedError
from synapse_p2p.exceptions import CallError, ConfigError, InvalidMessageError
from synapse_p2p.messages import Code, Items, Refusal, RPCRequest
from synapse_p2p.protocol.session import NODE_IS_STOPPING
from synapse_p2p.protocol.wire import Call
from synapse_p2p.schema import object_schema, schema_of
from synapse_p2p.server import Server
from synapse_p2p.shapes import ANYTHING, Direction, Member
from synapse_p2p.task_checks import TaskChecks, check_answer
from synapse_p2p.task_queue import Caller, Refuse, TaskQueue, Wait
from synapse_p2p.transport.base import is_loopback, parse_address

PREFIXES = ("_agent.", "_node.")  # the second for callers of release 2
LONG = 3.0  # times the usual time: tasks that run for so long make the agent look as slow as it is
SERVICE_MEMORY = 64  # tasks that the estimate of a task's time looks back on, or so; of fewer it is a matter of luck

BUSY = Refusal(
    Code.BUSY,
    "this agent has as many tasks as it takes; ask another, or try again later",
    {"may_have_started": False},
)
NO_TASK_HANDLER = "agent has no task handler; in its program a function with @agent.task_handler is missing"
STOPPING = Refusal(Code.UNAVAILABLE, NODE_IS_STOPPING, {"may_have_started": False})

TaskHandlerT = TypeVar("TaskHandlerT", bound=Callable[..., Any])

__all__ = ["AgentCapability", "AgentNode"]


class AgentNode(Server):
    """A server that answers `_agent.info`, `_agent.capabilities`, `_agent.load` and `_agent.ask`.

    It answers the same under `_node.`, the names that callers of release 2 know.
    """

    def __init__(
        self,
        *,
        name: str,
        role: str,
        description: str = "",
        capabilities: Sequence[str | AgentCapability] | None = None,
        max_tasks: int = 8,
        queue: int = 32,
        per_caller: int = 4,
        **server_options: Any,
    ) -> None:
        """At most `max_tasks` tasks run at once, and `per_caller` of one caller; `queue` more wait for their turn, and
        beyond it callers are told `busy`. `server_options` are those of Server; their `allow=` holds for asks too.
        Raises ConfigError for a setting that cannot be.
        """
        super().__init__(**server_options)
        self.name = name
        self.role = role
        self.description = description
        self.capabilities = _as_capabilities(capabilities or ())
        # A swarm chooses a port by itself where the user did not.
        self.bind_given = "address" in server_options or "port" in server_options
        self._swarm: Any = None
        self._task_endpoint: Endpoint | None = None
        self._is_reentrant = False
        self._begun_at: dict[int, float] = {}  # of the tasks that run, by ticket
        self._tasks_done = 0
        self._service_s: float | None = None  # how long a task takes once it runs, smoothed
        self._task_checks = TaskChecks(self.capabilities)
        self._turns = _Turns(TaskQueue(max_tasks=max_tasks, queue_size=queue, per_caller=per_caller))
        self.metrics.watch_tasks(self._turns.load)
        self._register_reserved({"_agent.stream_ask": self._answer_stream_ask})
        for prefix in PREFIXES:
            self._register_reserved(
                {
                    prefix + "info": self._answer_info,
                    prefix + "capabilities": self._answer_capabilities,
                    prefix + "ask": self._answer_ask,
                }
            )
            # Mounted, so that it is answered at once, however much runs here.
            self.mount(prefix, {prefix + "load": self._answer_load})

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
        version: str = "",
        attributes: Attributes | None = None,
    ) -> AgentCapability:
        """Add a capability, and return it.

        Tasks and answers have to fit its schemas, as `TaskChecks` has it. Raises ConfigError for a schema that is none,
        where the extra `schema` is installed.
        """
        capability = AgentCapability(
            name, description, input_schema or {}, output_schema or {}, version, attributes or {}
        )
        self._task_checks = TaskChecks([*self.capabilities, capability])
        self.capabilities.append(capability)
        return capability

    async def set_capabilities(self, capabilities: Sequence[str | AgentCapability]) -> None:
        """From now on this agent can do these things and no others.

        Tasks are checked by them at once; those that run go on as they began. In a swarm it returns when others find
        the agent by them. Raises ConfigError as the constructor does, and for what the swarm cannot tell others of;
        then nothing has changed.
        """
        before = self.capabilities, self._task_checks
        new = _as_capabilities(capabilities)
        self._task_checks = TaskChecks(new)
        self.capabilities = new
        if self._swarm is None:
            return
        try:
            await self._swarm.on_capabilities_changed()
        except ConfigError:
            if self.capabilities is new:  # else they were set again meanwhile
                self.capabilities, self._task_checks = before
            raise

    async def serve_session_call(self, call: Call, context: CallContext) -> Any:
        """As of any server; in a swarm what an endpoint of the user's asks others is a part of the call that it serves.

        It takes calls back, as `reentrant` task handlers do: what goes in circles here ends with its hops.
        """
        if self._swarm is None or call.endpoint.startswith(PACKAGE_PREFIXES):
            return await super().serve_session_call(call, context)
        try:
            with contextlib.ExitStack() as taken_up:
                own_context = taken_up.enter_context(self._swarm.taking_up(context, is_reentrant=True))
                value = await super().serve_session_call(call, own_context)
                # A stream goes on when this has returned.
                return Items(_within(taken_up.pop_all(), value.values)) if type(value) is Items else value
        except RefusedError as refused:
            raise refused.refusal.as_error() from refused

    def _context_of_plain_call(self, address: str) -> CallContext:
        # Who calls so has said nothing of a task that the call is a part of.
        return replace(super()._context_of_plain_call(address), swarm=self._swarm)

    @overload
    def task_handler(self, function: TaskHandlerT) -> TaskHandlerT: ...
    @overload
    def task_handler(self, *, reentrant: bool = False) -> Callable[[TaskHandlerT], TaskHandlerT]: ...
    def task_handler(self, function: Any = None, *, reentrant: bool = False) -> Any:
        """Decorator: the function that does the work, called with the task and a context map; the latest one counts.

        A plain function runs in a thread. An asynchronous generator tells how it gets on: those who `stream_ask` see
        all that it yields, and the last item is the answer, which is all that others get. A parameter annotated
        `CallContext` tells who asks; a context annotated with
        a class, such as a dataclass, is built from the map. In a swarm a task that this agent itself has passed on is
        refused when it comes back, unless `reentrant`: then those who work for it may ask it a question. Raises
        ConfigError for a function that cannot be called with those two.
        """
        if function is None:
            return lambda handler: self._take_handler(handler, reentrant)
        return self._take_handler(function, reentrant)

    def _take_handler(self, function: TaskHandlerT, reentrant: bool) -> TaskHandlerT:
        endpoint = Endpoint.of(function, EndpointMetadata("the task handler", publish=False), injects_names=False)
        try:
            endpoint.parameters.check(["a task", {}], {})
        except InvalidMessageError as error:
            raise ConfigError(f"a task handler is called as handler(task, context): {error}") from error
        self._task_endpoint, self._is_reentrant = endpoint, reentrant
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
        handler = self._checked_handler(context)
        answer = None
        with self._taking_up(call_context) as own_context:
            items = self._do_task(handler, task, context or {}, rpc, own_context)
            async with contextlib.aclosing(items):
                async for item in items:
                    answer = item
        return answer

    async def _answer_stream_ask(
        self, task: Any, context: dict[str, Any] | None = None, *, rpc: RPCRequest, call_context: CallContext
    ) -> AsyncIterator[Any]:
        """Do a task, and send what its handler yields meanwhile; the last item is the answer."""
        handler = self._checked_handler(context)
        with self._taking_up(call_context) as own_context:
            items = self._do_task(handler, task, context or {}, rpc, own_context)
            async with contextlib.aclosing(items):
                async for item in items:
                    yield item

    def _checked_handler(self, context: Any) -> Endpoint:
        if context is not None and not isinstance(context, dict):
            raise InvalidMessageError("parameter 'context' is a map")
        if self._task_endpoint is None:
            raise CallError("no_task_handler", NO_TASK_HANDLER)
        return self._task_endpoint

    def _taking_up(self, call_context: CallContext) -> AbstractContextManager[CallContext]:
        """Within it the task's handler runs. Raises RefusedError for a task that has gone round, or too far."""
        if self._swarm is None:
            return contextlib.nullcontext(call_context)
        return self._swarm.taking_up(call_context, is_reentrant=self._is_reentrant)

    async def _do_task(
        self, endpoint: Endpoint, task: Any, context: dict[str, Any], rpc: RPCRequest, call_context: CallContext
    ) -> AsyncGenerator[Any, None]:
        """What the handler yields, or the one value that it returns. The last item is the answer, which is checked."""
        if not self._task_checks.are_of(self.capabilities):
            self._task_checks = TaskChecks(self.capabilities)
        output_checks = self._task_checks.check_task(task, context)
        answer: Any = None
        async with self._turns.turn_of(_caller_of(call_context)) as ticket:
            begun_at = self._begun_at[ticket] = self.runtime.now()
            try:
                if endpoint.is_stream:
                    items = self.endpoints.run_stream(endpoint, [task, context], {}, request=rpc, context=call_context)
                    async with contextlib.aclosing(items):
                        async for answer in items:
                            yield answer
                else:
                    answer = await self.endpoints.run(endpoint, [task, context], {}, request=rpc, context=call_context)
            finally:
                del self._begun_at[ticket]
            self._note_service(self.runtime.now() - begun_at)
        if output_checks:
            answer = check_answer(answer, output_checks)
        if not endpoint.is_stream:
            yield answer

    def load(self) -> dict[str, Any]:
        """How busy this agent is: what `_agent.load` answers."""
        return {**self._turns.load(), "service_s": self._service_s_now()}

    def _answer_load(self, _: Mapping[str, Any], __: CallContext) -> dict[str, Any]:
        """How busy this agent is."""
        return self.load()

    def _service_s_now(self) -> float | None:
        """How long a task takes; of those that run, when they have taken far longer than those before."""
        if self._service_s is None or not self._begun_at:
            return self._service_s
        age_s = self.runtime.now() - sum(self._begun_at.values()) / len(self._begun_at)
        return age_s if age_s > LONG * self._service_s else self._service_s

    def _note_service(self, took_s: float) -> None:
        # Of those that returned alone: one that fails at once, or is cancelled, is not quick.
        self._tasks_done += 1
        known_s = self._service_s or 0.0
        self._service_s = known_s + (took_s - known_s) / min(self._tasks_done, SERVICE_MEMORY)

    def _on_start(self) -> None:
        self._turns.open()

    def _on_stop(self) -> None:
        self._turns.close()

    def _contract_of(self, name: str) -> dict[str, Any]:
        """As for any server; that of `ask` speaks of what the task handler takes, and of the capabilities."""
        contract = super()._contract_of(name)
        if name not in {prefix + "ask" for prefix in PREFIXES}:
            return contract
        if self._task_endpoint is not None:
            contract |= _contract_of_task(self._task_endpoint)
        return {**contract, "capabilities": [asdict(capability) for capability in self.capabilities]}


async def _within(taken_up: contextlib.ExitStack, values: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
    with taken_up:
        async with contextlib.aclosing(values):
            async for value in values:
                yield value


class _Turns:
    """Asks that wait for their turn, each in a task of its own. Invariant: `_waiting` holds those not told yet."""

    def __init__(self, queue: TaskQueue) -> None:
        self._queue = queue
        self._waiting: dict[int, asyncio.Future[Refusal | None]] = {}
        self._is_closed = False

    @contextlib.asynccontextmanager
    async def turn_of(self, caller: Caller | None) -> AsyncIterator[int]:
        """Within it the caller's task may run; its ticket. Raises RefusedError where it will not come to that."""
        if self._is_closed:
            raise RefusedError(STOPPING)
        step = self._queue.on_asked(caller)
        if isinstance(step, Refuse):
            raise RefusedError(BUSY)
        try:
            if isinstance(step, Wait):
                await self._wait(step)
            yield step.ticket
        finally:
            # Cancelled in the very turn of the loop in which it got its place, it passes the place on.
            following = self._queue.on_ended(step.ticket)
            if following is not None:
                self._tell(following, None)

    def load(self) -> dict[str, int]:
        """How many run and wait, and how many may."""
        queue = self._queue
        return {
            "running": queue.running_count,
            "waiting": queue.waiting_count,
            "max_tasks": queue.max_tasks,
            "queue": queue.queue_size,
        }

    def open(self) -> None:
        """Take asks, again."""
        self._is_closed = False

    def close(self) -> None:
        """Take no more, and end those that wait. Those that run go on."""
        self._is_closed = True
        for ticket in list(self._waiting):
            self._queue.on_ended(ticket)
            self._tell(ticket, STOPPING)

    async def _wait(self, step: Wait) -> None:
        if step.displaced is not None:
            self._tell(step.displaced, BUSY)
        told = self._waiting[step.ticket] = asyncio.get_running_loop().create_future()
        try:
            refusal = await told
        finally:
            self._waiting.pop(step.ticket, None)
        if refusal is not None:
            raise RefusedError(refusal)

    def _tell(self, ticket: int, refusal: Refusal | None) -> None:
        told = self._waiting.pop(ticket)
        if not told.done():  # else its task is being cancelled
            told.set_result(refusal)


def _caller_of(context: CallContext) -> Caller | None:
    """Whose share of the places an ask takes; None where that cannot be told: plain callers on this machine."""
    if context.peer is not None:
        return context.peer
    host = parse_address(context.address)[0]
    return None if is_loopback(host) else host


def _contract_of_task(endpoint: Endpoint) -> dict[str, Any]:
    """The part of an ask's contract that the task handler has a say in; callers name its arguments task and context."""
    shapes = [endpoint.parameters.shapes[name] for name in endpoint.parameters.positional[:2]]
    task, context = [*shapes, ANYTHING, ANYTHING][:2]
    return {
        "parameters": object_schema({"task": Member(task), "context": Member(context, is_required=False)}),
        "returns": schema_of(endpoint.returns, Direction.OUT),
        "async": endpoint.is_async,
    }


def _as_capabilities(capabilities: Sequence[str | AgentCapability]) -> list[AgentCapability]:
    if isinstance(capabilities, str):
        raise ConfigError(f"capabilities are a list: write [{capabilities!r}]")
    return [AgentCapability(each) if isinstance(each, str) else each for each in capabilities]
