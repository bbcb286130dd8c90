"""One ask: who is tried, who next, and when it is over. Providers are functions here, on virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from dht.agents.record import Reach
from dht.asking import Asking
from dht.exceptions import NoAgentFound
from dht.lookup import LookupMode
from dht.results import Answer, AttemptEnd, FindResult, FoundAgent
from simulations.virtual_loop import run
from synapse_p2p.exceptions import PeerUnavailable, RemoteError, Timeout

Behaviour = Callable[[str, float], Coroutine[Any, Any, Any]]


async def works(task: str, timeout_s: float) -> str:
    await asyncio.sleep(1)
    return f"done: {task}"


def fails(error: Exception) -> Behaviour:
    async def fail(task: str, timeout_s: float) -> Any:
        await asyncio.sleep(0.1)
        raise error

    return fail


async def is_slow(task: str, timeout_s: float) -> Any:
    await asyncio.sleep(timeout_s)
    raise Timeout("no answer in the time given")


class World:
    """Some providers by name: what each does with a task, whether it answers a probe, and how soon."""

    def __init__(self, **behaviours: Behaviour) -> None:
        self.behaviours = behaviours
        self.silent: set[str] = set()
        self.probe_s: dict[str, float] = {}
        self.asked: list[str] = []
        self.probed: list[str] = []
        self.modes: list[LookupMode] = []
        self.known: dict[LookupMode, list[str]] = {mode: list(behaviours) for mode in LookupMode}
        self.find_s = 0.5
        self.complete = True
        self.reason = ""
        self.agents = {
            name: FoundAgent(
                id=bytes([number]) * 32,
                name=name,
                role="worker",
                description="",
                capabilities=("x",),
                addresses=("10.0.0.1:9000",),
                reach=Reach.DIRECT,
                age_s=0.0,
                _caller=self,
            )
            for number, name in enumerate(behaviours, start=1)
        }

    async def find(self, mode: LookupMode) -> FindResult:
        self.modes.append(mode)
        await asyncio.sleep(self.find_s)
        return FindResult(tuple(self.agents[name] for name in self.known[mode]), self.complete, self.reason)

    async def is_answering(self, agent: FoundAgent) -> bool:
        self.probed.append(agent.name)
        await asyncio.sleep(self.probe_s.get(agent.name, 0.1))
        return agent.name not in self.silent

    async def call_agent(self, contact: Any, endpoint: str, args: list[Any], kwargs: Any, *, timeout_s: Any) -> Any:
        assert (endpoint, kwargs) == ("_agent.ask", {})
        name = next(name for name, agent in self.agents.items() if agent.id == contact.id)
        self.asked.append(name)
        return await self.behaviours[name](args[0], timeout_s)

    async def ask(self, task: str = "task", *, timeout_s: float = 60, idempotent: bool = False) -> Answer:
        asking = Asking(
            "x",
            find=self.find,
            is_answering=self.is_answering,
            now=asyncio.get_running_loop().time,
            timeout_s=timeout_s,
        )
        try:
            return await asking.run(task, {}, idempotent=idempotent)
        finally:
            assert asyncio.all_tasks() == {asyncio.current_task()}


def ends(answer: Answer) -> list[tuple[str, AttemptEnd]]:
    return [(attempt.agent.name, attempt.end) for attempt in answer.attempts]


def test_the_first_storer_that_knows_anybody_is_enough_when_that_one_works():
    world = World(one=works)

    answer = run(world.ask("hello"))

    assert (answer.result, answer.agent.name) == ("done: hello", "one")
    assert ends(answer) == [("one", AttemptEnd.ANSWERED)]
    assert answer.attempts[0].took_s == pytest.approx(1)
    assert world.modes == [LookupMode.FAST]


def test_of_two_that_are_probed_the_one_that_answers_first_is_asked():
    world = World(slow=works, quick=works, third=works)
    world.probe_s = {"slow": 0.9, "quick": 0.2, "third": 0.0}

    answer = run(world.ask())

    assert answer.agent.name == "quick"
    assert world.probed == ["slow", "quick"]


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (PeerUnavailable("it is gone"), AttemptEnd.UNREACHABLE),
        (RemoteError("busy", "too much to do"), AttemptEnd.BUSY),
    ],
)
def test_another_is_tried_where_nothing_was_done(error: Exception, end: AttemptEnd):
    world = World(one=fails(error), two=works)
    world.probe_s = {"two": 0.5}

    answer = run(world.ask())

    assert ends(answer) == [("one", end), ("two", AttemptEnd.ANSWERED)]
    assert answer.attempts[0].text == str(error)


def test_a_providers_own_failure_is_an_answer():
    error = RemoteError("failed", "not today", reason="not_today")
    world = World(one=fails(error), two=works)
    world.probe_s = {"two": 0.5}

    with pytest.raises(RemoteError) as raised:
        run(world.ask(idempotent=True))

    assert raised.value is error
    assert error.answer.agent.name == "one"
    assert ends(error.answer) == [("one", AttemptEnd.FAILED)]
    assert world.asked == ["one"]


def test_a_call_that_may_have_started_is_not_repeated():
    error = PeerUnavailable("it went away in the middle", may_have_started=True)
    world = World(one=fails(error), two=works)
    world.probe_s = {"two": 0.5}

    with pytest.raises(PeerUnavailable, match="in the middle"):
        run(world.ask())

    assert world.asked == ["one"]


def test_a_call_that_may_have_started_is_repeated_when_the_caller_said_it_may_be():
    world = World(one=fails(PeerUnavailable("in the middle", may_have_started=True)), two=works)
    world.probe_s = {"two": 0.5}

    answer = run(world.ask(idempotent=True))

    assert ends(answer) == [("one", AttemptEnd.UNREACHABLE), ("two", AttemptEnd.ANSWERED)]


def test_whoever_does_not_answer_a_probe_is_not_asked():
    world = World(one=works, two=works, three=works)
    world.silent = {"one", "two"}

    answer = run(world.ask())

    assert ends(answer) == [
        ("one", AttemptEnd.UNREACHABLE),
        ("two", AttemptEnd.UNREACHABLE),
        ("three", AttemptEnd.ANSWERED),
    ]
    assert world.asked == ["three"]


def test_all_storers_are_read_when_those_of_the_first_failed_and_nobody_is_tried_twice():
    world = World(one=fails(RemoteError("busy", "later")), two=works)
    world.known[LookupMode.FAST] = ["one"]

    answer = run(world.ask())

    assert world.modes == [LookupMode.FAST, LookupMode.STRICT]
    assert world.asked == ["one", "two"]
    assert answer.agent.name == "two"


def test_when_nobody_is_left_the_error_names_everybody_and_why():
    world = World(one=fails(RemoteError("busy", "later")), two=fails(PeerUnavailable("it is gone")), three=works)
    world.silent = {"three"}

    with pytest.raises(NoAgentFound) as raised:
        run(world.ask())

    error = raised.value
    assert (error.capability, error.complete) == ("x", True)
    assert str(error).startswith("no agent found for 'x': ")
    for text in ("one: later", "two: it is gone", "three: did not answer a probe"):
        assert text in error.reason


@pytest.mark.parametrize(("complete", "reason"), [(True, ""), (False, "this node has joined nobody yet")])
def test_where_nobody_has_it_the_error_says_whether_that_is_certain(complete: bool, reason: str):
    world = World()
    world.complete, world.reason = complete, reason

    with pytest.raises(NoAgentFound) as raised:
        run(world.ask())

    assert raised.value.complete is complete
    assert raised.value.reason == (reason or "nobody in the network has it")
    assert world.modes == [LookupMode.FAST, LookupMode.STRICT]


async def time_of(asking: Coroutine[Any, Any, Answer]) -> float:
    loop = asyncio.get_running_loop()
    started_at = loop.time()
    with pytest.raises(Timeout):
        await asking
    return loop.time() - started_at


def test_the_time_given_covers_finding():
    world = World(one=works)
    world.find_s = 3600

    assert run(time_of(world.ask(timeout_s=2))) == pytest.approx(2)


def test_the_time_given_covers_probing():
    world = World(one=works)
    world.probe_s = {"one": 3600}

    assert run(time_of(world.ask(timeout_s=2))) == pytest.approx(2)
    assert world.asked == []


def test_the_time_given_covers_the_call_and_no_other_is_asked_after_it():
    world = World(one=is_slow, two=works)
    world.probe_s = {"two": 0.5}

    assert run(time_of(world.ask(timeout_s=10, idempotent=True))) == pytest.approx(10)
    assert world.asked == ["one"]


def test_a_provider_is_given_what_is_left_of_the_time():
    seen: list[float] = []

    async def note(task: str, timeout_s: float) -> None:
        seen.append(timeout_s)

    world = World(one=note)

    run(world.ask(timeout_s=10))

    assert seen == [pytest.approx(10 - 0.5 - 0.1)]


@pytest.mark.parametrize("at_s", [0.0, 0.2, 0.55, 0.7, 1.5])
def test_an_ask_that_is_cancelled_leaves_no_task(at_s: float):
    async def main() -> None:
        world = World(one=works, two=works)
        asking = asyncio.ensure_future(world.find(LookupMode.FAST))
        await asking
        asking = asyncio.ensure_future(
            Asking(
                "x",
                find=world.find,
                is_answering=world.is_answering,
                now=asyncio.get_running_loop().time,
                timeout_s=60,
            ).run("task", {}, idempotent=False)
        )
        await asyncio.sleep(at_s)

        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(main())


def test_a_find_result_is_a_sequence_of_agents_that_says_whether_it_is_complete():
    world = World(one=works, two=works, three=works)
    agents = tuple(world.agents.values())

    found = FindResult(agents, complete=False, reason="limit 3")

    assert len(found) == 3
    assert list(found) == list(agents)
    assert found[0] is agents[0]
    assert found[-1] is agents[2]
    assert found[1:] == agents[1:]
    assert agents[1] in found
    assert found
    assert not FindResult((), complete=True)
    assert (found.complete, found.reason) == (False, "limit 3")


def test_a_found_agent_shows_who_and_where_it_is():
    agent = World(one=works).agents["one"]

    assert str(agent) == "one (worker) at 10.0.0.1:9000, id 0101010101010101: x"
    assert "_caller" not in repr(agent)
