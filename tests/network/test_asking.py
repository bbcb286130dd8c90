"""Asks over encrypted TCP on loopback: whom they go to, what becomes of them when a provider dies or is slow, and what
travels with a task through the handlers of users.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from dht import Answer, AttemptEnd, DelegationExhausted, NoAgentFound, Swarm
from dht.agents.delegation import MAX_BUDGET, MAX_HOPS
from dht.agents.selection import MIN_TIMES, Why
from dht.contact import Contact
from synapse_p2p import AgentNode, CallContext, Client, Identity, PeerUnavailable, RemoteError
from synapse_p2p.exceptions import Timeout

Handler = Callable[..., Any]
LONG_S = 30.0


@contextlib.asynccontextmanager
async def swarms(*agents: AgentNode) -> AsyncIterator[Swarm]:
    """All of them in one swarm; a client of it. The first is the seed of all."""
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(Swarm(agents[0]))
        seed = agents[0].listening_addresses[0]
        for agent in agents[1:]:
            await stack.enter_async_context(Swarm(agent, bootstrap=[seed]))
        yield await stack.enter_async_context(Swarm(bootstrap=[seed]))


def somebody_new() -> Identity:
    """A kept one would have its records of other tests."""
    return Identity.from_seed(os.urandom(32))


class Worker(AgentNode):
    """Its tasks take `takes_s` seconds; `tasks` holds how each ended, or that it has begun."""

    def __init__(self, name: str, *capabilities: str, **options: Any) -> None:
        super().__init__(name=name, role="worker", capabilities=list(capabilities), identity=somebody_new(), **options)
        self.takes_s = 0.0
        self.tasks: list[str] = []
        self.task_handler(self._work)

    async def _work(self, task: str, context: dict[str, Any]) -> str:
        number = len(self.tasks)
        self.tasks.append("begun")
        try:
            await asyncio.sleep(self.takes_s)
        except asyncio.CancelledError:
            self.tasks[number] = "cancelled"
            raise
        self.tasks[number] = "done"
        return f"{self.name}: {task}"


def working(name: str, *capabilities: str, reentrant: bool = False) -> Callable[[Handler], AgentNode]:
    """Decorator: an agent of its own, with this task handler."""

    def decorate(handler: Handler) -> AgentNode:
        agent = AgentNode(name=name, role="worker", capabilities=list(capabilities), identity=somebody_new())
        agent.task_handler(reentrant=reentrant)(handler)
        return agent

    return decorate


def contact_of(agent: AgentNode) -> Contact:
    return Contact(agent.identity.node_id, agent.listening_addresses)


def ends(answer: Answer) -> list[tuple[str, AttemptEnd]]:
    return [(attempt.agent.name, attempt.end) for attempt in answer.attempts]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.005)


# Whom it goes to


async def test_one_that_is_busy_is_passed_over_for_one_that_is_not():
    busy, idle = Worker("busy", "x", max_tasks=1), Worker("idle", "x", max_tasks=1)
    async with swarms(busy, idle) as client:
        busy.takes_s = LONG_S
        found = {agent.name: agent for agent in await client.find("x")}
        running = asyncio.ensure_future(found["busy"].ask("long"))
        await until(lambda: busy.tasks == ["begun"])

        answers = [await client.ask("x", "short") for _ in range(8)]

        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert {answer.agent.name for answer in answers} == {"idle"}
    assert {answer.attempts[0].why for answer in answers} <= {Why.LIGHTER, Why.FIRST}
    assert busy.tasks == ["cancelled"]


async def test_an_agent_that_does_not_say_how_busy_it_is_is_asked_all_the_same():
    old = Worker("old", "x")
    del old.endpoints._mounted["_agent.load"]
    async with swarms(old) as client:
        answer = await client.ask("x", "hello")

    assert answer.result == "old: hello"


# Providers that die, or are slow


async def cut_off(agent: AgentNode) -> None:
    """It is gone, as when its process is killed: nobody is told."""
    agent.sessions._connections.abort()
    await agent.stop(grace=0)


@pytest.mark.parametrize("idempotent", [False, True])
async def test_when_a_provider_dies_at_work_another_is_asked_if_the_caller_allows_it(idempotent: bool):
    one, two = Worker("one", "x"), Worker("two", "x")
    seed = Worker("seed")
    async with swarms(seed, one, two) as client:
        one.takes_s = two.takes_s = LONG_S
        asking = asyncio.ensure_future(client.ask("x", "work", idempotent=idempotent, timeout=20))
        await until(lambda: one.tasks + two.tasks == ["begun"])
        dying, other = (one, two) if one.tasks else (two, one)
        other.takes_s = 0.0

        await cut_off(dying)

        if idempotent:
            answer = await asking
            assert ends(answer) == [(dying.name, AttemptEnd.UNREACHABLE), (other.name, AttemptEnd.ANSWERED)]
            return
        with pytest.raises(PeerUnavailable) as died:
            await asking
        assert died.value.may_have_started
        assert other.tasks == []


async def used_to(client: Swarm, took_s: float) -> None:
    now = client._server.runtime.now()
    for _ in range(MIN_TIMES):
        client._asks.experience.on_took(b"z" * 32, "x", took_s, now)


async def test_a_slow_provider_is_told_to_stop_when_another_that_was_asked_too_has_answered():
    one, two = Worker("one", "x"), Worker("two", "x")
    async with swarms(Worker("seed"), one, two) as client:
        one.takes_s = LONG_S
        await used_to(client, 0.1)
        for _ in range(20):  # until the slow one is the first to be asked
            answer = await client.ask("x", "work", idempotent=True, timeout=20)
            assert answer.result == "two: work"
            if len(answer.attempts) == 2:
                break
        slow, quick = answer.attempts
        await until(lambda: one.tasks[-1] == "cancelled")

    assert (slow.agent.name, slow.end, quick.end) == ("one", AttemptEnd.WITHDRAWN, AttemptEnd.ANSWERED)
    assert quick.why == Why.SECOND
    assert slow.took_s < 5
    assert one.tasks.count("done") == 0


# What travels with a task


async def test_a_task_that_goes_in_a_circle_is_refused_before_work_starts():
    first = Worker("first", "one")

    @working("second", "two")
    async def second(task: str, context: dict[str, Any], call: CallContext) -> str:
        with pytest.raises(NoAgentFound, match="passed on by this very agent") as refused:
            await call.swarm.ask("one", task)
        return str(refused.value.reason)

    async with swarms(first, second):
        answer = await first.swarm.ask("two", "round and round")

    assert answer.result.startswith("first: ")
    assert first.tasks == []


async def test_an_agent_that_is_found_is_refused_the_same_way_when_it_is_asked_directly():
    first = Worker("first", "one")

    @working("second", "two")
    async def second(task: str, context: dict[str, Any], call: CallContext) -> str:
        found = await call.swarm.find("one")
        with pytest.raises(RemoteError) as refused:
            await found[0].ask(task)
        return refused.value.code

    async with swarms(first, second):
        assert (await first.swarm.ask("two", "round")).result == "loop"
    assert first.tasks == []


async def test_a_reentrant_handler_is_asked_back():
    @working("first", "one", reentrant=True)
    async def first(task: str, context: dict[str, Any], call: CallContext) -> str:
        if task == "which colour?":
            return "blue"
        return (await call.swarm.ask("two", task)).result

    @working("second", "two")
    async def second(task: str, context: dict[str, Any], call: CallContext) -> str:
        return f"{task} in {(await call.swarm.ask('one', 'which colour?')).result}"

    async with swarms(first, second) as client:
        assert (await client.ask("one", "paint")).result == "paint in blue"


@pytest.mark.parametrize(("budget", "end", "count"), [(MAX_BUDGET, "no_hops", MAX_HOPS), (None, "no_budget", 6)])
async def test_two_that_ask_each_other_for_ever_come_to_an_end_whatever_the_first_caller_says(
    budget: int | None, end: str, count: int
):
    tasks: list[str] = []

    def passes_on_to(other: str) -> Handler:
        async def handle(task: str, context: dict[str, Any], call: CallContext) -> Any:
            tasks.append(other)
            try:
                return (await call.swarm.ask(other, task, budget=budget)).result
            except DelegationExhausted as error:
                return error.reason

        return handle

    first = working("first", "one", reentrant=True)(passes_on_to("two"))
    second = working("second", "two", reentrant=True)(passes_on_to("one"))
    async with swarms(first, second) as client:
        answer = await client._server.sessions.call_with(
            contact_of(first),
            "_agent.ask",
            ["on and on", {}],
            {},
            timeout_s=10,
            options={"delegation": {"hops": 10**9, "path": [client.status().id], "budget": 10**9}},
        )

    assert (answer, len(tasks)) == (end, count)


LIES: list[tuple[dict[str, Any], str]] = [
    ({"hops": 0}, "exhausted"),
    ({"hops": -(10**9)}, "exhausted"),
    ({"budget": 0}, "exhausted"),
    ({"budget": -1}, "exhausted"),
    ({"hops": "8"}, "bad_request"),
    ({"budget": 2.5}, "bad_request"),
    ({"path": []}, "bad_request"),
    ({"path": [b"x" * 32]}, "bad_request"),
    ({"path": [b"x" * 32] * 10_000}, "bad_request"),
    ({"path": "me"}, "bad_request"),
]


@pytest.mark.parametrize(("lie", "code"), LIES, ids=[f"{next(iter(lie))} {code}" for lie, code in LIES])
async def test_a_caller_that_lies_about_a_task_starts_nothing(lie: dict[str, Any], code: str):
    agent = Worker("honest", "x")
    async with swarms(agent) as client:
        honest = {"hops": 8, "path": [client.status().id], "budget": 5}
        with pytest.raises(RemoteError) as refused:
            await client._server.sessions.call_with(
                contact_of(agent),
                "_agent.ask",
                ["work", {}],
                {},
                timeout_s=10,
                options={"delegation": honest | lie},
            )

    assert refused.value.code == code
    assert agent.tasks == []


@pytest.mark.parametrize("lie", [{"hops": 10**9, "budget": 10**9}, None])
async def test_figures_beyond_all_bounds_and_none_at_all_mean_the_same(lie: dict[str, int] | None):
    @working("agent", "x")
    async def agent(task: str, context: dict[str, Any], call: CallContext) -> list[Any]:
        assert call.swarm is agent.swarm
        return [call.delegation.hops, call.delegation.budget, len(call.delegation.path)]

    async with swarms(agent) as client:
        options = {} if lie is None else {"delegation": {"path": [client.status().id], **lie}}
        told = await client._server.sessions.call_with(
            contact_of(agent), "_agent.ask", ["work", {}], {}, timeout_s=10, options=options
        )

    assert told == [MAX_HOPS - 1, MAX_BUDGET - 1, 2]


@pytest.mark.parametrize("deadline_s", [1.0, 10 * 365 * 86_400.0, None])
async def test_an_ask_made_for_a_task_has_no_more_time_than_the_task(deadline_s: float | None):
    @working("last", "two")
    async def last(task: str, context: dict[str, Any], call: CallContext) -> float:
        assert call.deadline is not None
        return call.deadline - last.runtime.now()

    @working("first", "one")
    async def first(task: str, context: dict[str, Any], call: CallContext) -> float:
        return (await call.swarm.ask("two", task)).result

    async with swarms(first, last) as client:
        left_s = await client._server.sessions.call_with(
            contact_of(first), "_agent.ask", ["work", {}], {}, timeout_s=deadline_s
        )

    assert 0 < left_s <= min(deadline_s or 600, 600)


async def test_a_task_whose_time_is_over_may_ask_nobody():
    @working("agent", "x")
    async def agent(task: str, context: dict[str, Any], call: CallContext) -> str:
        raise AssertionError("not asked")

    late: list[str] = []

    @working("late", "one")
    async def ignores_its_deadline(task: str, context: dict[str, Any], call: CallContext) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(LONG_S)
        with pytest.raises(Timeout, match="no time left"):
            await call.swarm.ask("x", task)
        late.append(task)

    async with swarms(agent, ignores_its_deadline) as client:
        with pytest.raises(Timeout):
            await client.ask("one", "work", timeout=0.3)
        await until(lambda: late == ["work"])


async def test_it_travels_through_the_thread_of_a_plain_function_and_through_tasks_of_its_own():
    paths: list[int] = []

    @working("last", "three")
    async def last(task: str, context: dict[str, Any], call: CallContext) -> str:
        paths.append(len(call.delegation.path))
        return task

    @working("second", "two")
    async def second(task: str, context: dict[str, Any], call: CallContext) -> list[str]:
        asks = [asyncio.ensure_future(call.swarm.ask("three", f"{task} {number}")) for number in range(3)]
        return [answer.result for answer in await asyncio.gather(*asks)]

    loop = asyncio.get_running_loop()

    @working("first", "one")
    def first(task: str, context: dict[str, Any], call: CallContext) -> list[str]:
        asking: Any = call.swarm.ask("two", task)
        answer: Answer = asyncio.run_coroutine_threadsafe(asking, loop).result(timeout=10)
        return answer.result

    async with swarms(first, second, last) as client:
        answer = await client.ask("one", "part")

    assert answer.result == ["part 0", "part 1", "part 2"]
    assert paths == [4, 4, 4]  # the client, the first, the second, and the last


async def test_the_trace_of_the_first_call_reaches_the_last_handler():
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    @working("last", "two")
    async def last(task: str, context: dict[str, Any], call: CallContext) -> str | None:
        return call.traceparent

    @working("first", "one")
    async def first(task: str, context: dict[str, Any], call: CallContext) -> str:
        return (await call.swarm.ask("two", task)).result

    async with swarms(first, last), Client(first.listening_addresses[0]) as client:
        reached = await client.with_options(traceparent=trace).call("_agent.ask", "work")

    assert reached is not None
    assert reached.split("-")[1] == trace.split("-")[1]
    assert reached.split("-")[2] != trace.split("-")[2]  # the one of who asked last


async def test_the_budget_holds_over_parallel_asks_and_the_caller_is_told_before_anybody_is_asked():
    asked: list[str] = []

    @working("last", "two")
    async def last(task: str, context: dict[str, Any], call: CallContext) -> str:
        asked.append(task)
        return task

    @working("first", "one")
    async def first(task: str, context: dict[str, Any], call: CallContext) -> list[str]:
        asks = (call.swarm.ask("two", str(number)) for number in range(9))
        ends = await asyncio.gather(*asks, return_exceptions=True)
        return [end.reason if isinstance(end, DelegationExhausted) else end.result for end in ends]  # type: ignore[union-attr]

    async with swarms(first, last) as client:
        answer = await client.ask("one", "work", budget=5)

    assert sorted(answer.result) == sorted([*asked, *["no_budget"] * 5])
    assert len(asked) == 4
