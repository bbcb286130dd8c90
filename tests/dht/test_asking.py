"""One ask: who is tried, who next, and when it is over. Providers are functions here, on virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from dht.agents.delegation import MAX_BUDGET, Delegation, NextAsk
from dht.agents.record import Reach
from dht.agents.selection import HEDGE_SHARE, MIN_TIMES, Experience, Load, Why
from dht.asking import Asking, Probed
from dht.exceptions import DelegationExhausted, NoAgentFound
from dht.lookup import LookupMode
from dht.results import Answer, AttemptEnd, FindResult, FoundAgent
from simulations.virtual_loop import run
from synapse_p2p.exceptions import ConfigError, PeerUnavailable, RemoteError, Timeout

US = b"u" * 32
IDLE = Load(0, 0, 8, 32)

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
        self.told_to_stop: list[str] = []
        self.carried: list[NextAsk] = []
        self.loads: dict[str, Load | None] = {}
        self.experience = Experience()
        self.delegation = Delegation()
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

    async def probe(self, agent: FoundAgent) -> Probed | None:
        self.probed.append(agent.name)
        await asyncio.sleep(self.probe_s.get(agent.name, 0.1))
        return None if agent.name in self.silent else Probed(self.loads.get(agent.name, IDLE))

    def asking(
        self, task: str = "task", *, timeout_s: float = 60, idempotent: bool = False, budget: int | None = None
    ) -> Asking:
        async def send(agent: FoundAgent, carried: NextAsk, left_s: float) -> Any:
            self.asked.append(agent.name)
            self.carried.append(carried)
            try:
                return await self.behaviours[agent.name](task, left_s)
            except asyncio.CancelledError:
                self.told_to_stop.append(agent.name)
                raise

        return Asking(
            "x",
            find=self.find,
            probe=self.probe,
            send=send,
            experience=self.experience,
            delegation=self.delegation,
            own_id=US,
            now=asyncio.get_running_loop().time,
            timeout_s=timeout_s,
            budget=budget,
            is_idempotent=idempotent,
        )

    async def ask(self, task: str = "task", **options: Any) -> Answer:
        try:
            return await self.asking(task, **options).run()
        finally:
            assert asyncio.all_tasks() == {asyncio.current_task()}
            assert all(not known.asked for known in self.experience._providers.values())
            self.experience.check_invariants()

    async def get_used_to(self, took_s: float = 1.0, count: int = MIN_TIMES) -> None:
        """So many tasks have taken so long, by providers that are not there any more."""
        now = asyncio.get_running_loop().time()
        for _ in range(count):
            self.experience.on_took(b"z" * 32, "x", took_s, now)


def ends(answer: Answer) -> list[tuple[str, AttemptEnd]]:
    return [(attempt.agent.name, attempt.end) for attempt in answer.attempts]


def test_the_first_storer_that_knows_anybody_is_enough_when_that_one_works():
    world = World(one=works)

    answer = run(world.ask("hello"))

    assert (answer.result, answer.agent.name) == ("done: hello", "one")
    assert ends(answer) == [("one", AttemptEnd.ANSWERED)]
    assert answer.attempts[0].took_s == pytest.approx(1)
    assert world.modes == [LookupMode.FAST]


def test_of_two_that_have_nothing_to_do_the_one_that_answers_first_is_asked():
    world = World(slow=works, quick=works, third=works)
    world.probe_s = {"slow": 0.9, "quick": 0.2, "third": 0.0}

    answer = run(world.ask())

    assert answer.agent.name == "quick"
    assert answer.attempts[0].why == Why.FIRST
    assert world.probed == ["slow", "quick"]


def test_of_two_that_are_probed_the_lighter_one_is_asked():
    world = World(heavy=works, light=works, third=works)
    world.probe_s = {"heavy": 0.1, "light": 0.4}
    world.loads = {"heavy": Load(8, 4, 8, 32, 1.0), "light": Load(2, 0, 8, 32, 1.0)}

    answer = run(world.ask())

    assert answer.agent.name == "light"
    assert answer.attempts[0].why == Why.LIGHTER
    assert world.probed == ["heavy", "light"]


def test_one_that_does_not_say_how_busy_it_is_is_alive():
    world = World(old=works)
    world.loads = {"old": None}

    assert run(world.ask()).agent.name == "old"


def test_the_second_of_two_is_asked_when_the_first_fails_over():
    world = World(one=fails(RemoteError("busy", "later")), two=works)
    world.probe_s = {"two": 0.5}

    answer = run(world.ask())

    assert [attempt.why for attempt in answer.attempts] == [Why.FIRST, Why.ALONE]


def test_who_failed_a_moment_ago_is_passed_over_by_the_next_ask_and_found_again_later():
    async def main() -> list[list[str]]:
        world = World(gone=fails(PeerUnavailable("it is gone")), here=works, there=works)
        world.probe_s = {"here": 0.5, "there": 0.5}
        asked = []
        for pause_s in (0, 1, 60):
            await asyncio.sleep(pause_s)
            world.asked.clear()
            await world.ask()
            asked.append(list(world.asked))
        return asked

    assert run(main()) == [["gone", "here"], ["here"], ["gone", "here"]]


def test_one_that_kept_a_task_until_its_time_was_over_is_passed_over_too():
    async def main() -> list[str]:
        world = World(hangs=is_slow, works=works)
        world.probe_s = {"works": 0.5}
        await time_of(world.ask(timeout_s=10))
        await world.ask()
        return world.asked

    assert run(main()) == ["hangs", "works"]


def test_a_probe_that_breaks_is_logged_and_another_provider_is_asked(caplog: pytest.LogCaptureFixture):
    world = World(one=works, two=works)
    probe = world.probe

    async def breaks_for_one(agent: FoundAgent) -> Probed | None:
        if agent.name == "one":
            raise ValueError("oh")
        return await probe(agent)

    world.probe = breaks_for_one  # type: ignore[method-assign]

    assert run(world.ask()).agent.name == "two"
    assert "ValueError: oh" in caplog.text


# A second provider beside a slow one


async def takes_long(task: str, timeout_s: float) -> str:
    await asyncio.sleep(20)
    return "late"


async def ask_after_getting_used(world: World, **options: Any) -> Answer:
    await world.get_used_to(took_s=2.0)
    return await world.ask(**options)


def test_past_the_usual_time_a_second_provider_is_asked_and_the_first_is_told_to_stop():
    world = World(slow=takes_long, quick=works, third=works)
    world.probe_s = {"quick": 0.3, "third": 0.9}

    answer = run(ask_after_getting_used(world, idempotent=True))

    assert (answer.result, answer.agent.name) == ("done: task", "quick")
    assert ends(answer) == [("slow", AttemptEnd.WITHDRAWN), ("quick", AttemptEnd.ANSWERED)]
    assert [attempt.why for attempt in answer.attempts] == [Why.FIRST, Why.SECOND]
    assert answer.attempts[0].took_s == pytest.approx(2.0 + 0.3 + 0.3 + 1.0)
    assert world.told_to_stop == ["slow"]
    assert world.asked == ["slow", "quick"]


def test_the_first_may_still_be_the_first_to_answer():
    async def takes_a_bit_longer(task: str, timeout_s: float) -> str:
        await asyncio.sleep(3)
        return "here"

    world = World(slow=takes_a_bit_longer, slower=takes_long)
    world.probe_s = {"slower": 0.3}

    answer = run(ask_after_getting_used(world, idempotent=True))

    assert (answer.result, answer.agent.name) == ("here", "slow")
    assert ends(answer) == [("slower", AttemptEnd.WITHDRAWN), ("slow", AttemptEnd.ANSWERED)]
    assert world.told_to_stop == ["slower"]


@pytest.mark.parametrize("case", ["not idempotent", "not used to it", "nobody else", "the other failed", "quick"])
def test_no_second_provider_is_asked_where(case: str):
    world = World(slow=works if case == "quick" else takes_long)
    if case != "nobody else":
        world = World(slow=works if case == "quick" else takes_long, other=works)
    world.probe_s = {"other": 0.5}

    async def main() -> Answer:
        await world.get_used_to(2.0, MIN_TIMES - (case == "not used to it"))
        if case == "the other failed":
            world.experience.on_failed(world.agents["other"].id, asyncio.get_running_loop().time())
        return await world.ask(idempotent=case != "not idempotent")

    answer = run(main())

    assert ends(answer) == [("slow", AttemptEnd.ANSWERED)]


def test_a_second_one_that_fails_over_leaves_the_first_to_answer():
    world = World(slow=takes_long, busy=fails(RemoteError("busy", "later")))
    world.probe_s = {"busy": 0.5}

    answer = run(ask_after_getting_used(world, idempotent=True))

    assert answer.result == "late"
    assert ends(answer) == [("busy", AttemptEnd.BUSY), ("slow", AttemptEnd.ANSWERED)]


def test_a_first_one_that_dies_leaves_the_second_to_answer():
    async def dies(task: str, timeout_s: float) -> None:
        await asyncio.sleep(2.5)
        raise PeerUnavailable("it died", may_have_started=True)

    world = World(dies=dies, other=takes_long)
    world.probe_s = {"other": 0.3}

    answer = run(ask_after_getting_used(world, idempotent=True))

    assert ends(answer) == [("dies", AttemptEnd.UNREACHABLE), ("other", AttemptEnd.ANSWERED)]
    assert world.told_to_stop == []


def test_a_failure_of_the_second_ones_handler_is_an_answer_too():
    world = World(slow=takes_long, fails=fails(RemoteError("failed", "not today")))
    world.probe_s = {"fails": 0.5}

    with pytest.raises(RemoteError, match="not today") as raised:
        run(ask_after_getting_used(world, idempotent=True))

    assert ends(raised.value.answer) == [("slow", AttemptEnd.WITHDRAWN), ("fails", AttemptEnd.FAILED)]
    assert world.told_to_stop == ["slow"]


def test_the_deadline_ends_both():
    world = World(slow=is_slow, slower=is_slow)
    world.probe_s = {"slower": 0.5}

    async def main() -> float:
        await world.get_used_to(2.0)
        return await time_of(world.ask(timeout_s=10, idempotent=True))

    assert run(main()) == pytest.approx(10)
    assert world.asked == ["slow", "slower"]


def test_when_everybody_is_slow_few_tasks_are_given_to_two():
    async def main() -> int:
        world = World(one=takes_long, two=takes_long)
        await world.get_used_to()
        for _ in range(200):
            world.delegation = Delegation()
            await world.ask(idempotent=True)
            world.experience.on_took(b"z" * 32, "x", 0.001, asyncio.get_running_loop().time())
        return len(world.asked) - 200

    second_asks = run(main())

    assert 0 < second_asks <= 1 + 200 * HEDGE_SHARE * 1.2


# The task of which an ask is a part


def test_an_ask_carries_who_we_are_and_its_share_of_the_budget():
    world = World(one=works)

    run(world.ask())

    assert world.carried == [NextAsk(8, (US,), MAX_BUDGET // 4)]
    assert world.delegation.budget == MAX_BUDGET - MAX_BUDGET // 4


def test_an_ask_may_be_given_less():
    world = World(one=works)

    run(world.ask(budget=3))

    assert world.carried[0].budget == 3
    assert world.delegation.budget == MAX_BUDGET - 3


def test_what_was_given_to_those_who_did_nothing_is_there_for_the_next():
    world = World(
        busy=fails(RemoteError("busy", "later")),
        gone=fails(PeerUnavailable("gone")),
        loops=fails(RemoteError("loop", "in circles")),
        works=works,
    )
    world.delegation = Delegation(budget=1)
    world.probe_s = {"gone": 0.2, "loops": 0.3, "works": 0.4}

    assert run(world.ask()).agent.name == "works"
    assert world.delegation.budget == 0


def test_a_call_that_may_have_started_has_had_its_share():
    world = World(dies=fails(PeerUnavailable("gone", may_have_started=True)), other=works)
    world.delegation = Delegation(budget=1)
    world.probe_s = {"other": 0.4}

    with pytest.raises(DelegationExhausted, match="all the asks that it was given are spent"):
        run(world.ask(idempotent=True))

    assert world.asked == ["dies"]


def test_a_second_ask_for_which_nothing_is_left_leaves_the_first_to_answer():
    world = World(slow=takes_long, other=works)
    world.delegation = Delegation(budget=1)
    world.probe_s = {"other": 0.4}

    answer = run(ask_after_getting_used(world, idempotent=True))

    assert answer.result == "late"
    assert ends(answer) == [("other", AttemptEnd.EXHAUSTED), ("slow", AttemptEnd.ANSWERED)]
    assert world.asked == ["slow"]


@pytest.mark.parametrize(
    ("delegation", "reason"), [(Delegation(hops=0), "no_hops"), (Delegation(budget=0), "no_budget")]
)
def test_nobody_is_searched_for_where_a_task_may_not_be_passed_on(delegation: Delegation, reason: str):
    world = World(one=works)
    world.delegation = delegation

    with pytest.raises(DelegationExhausted) as raised:
        run(world.ask())

    assert raised.value.reason == reason
    assert world.modes == []


def test_who_passed_the_task_on_already_is_asked_after_all_others():
    world = World(before=works, other=works, third=fails(RemoteError("busy", "later")))
    world.delegation = Delegation(path=(world.agents["before"].id,))
    world.probe_s = {"other": 0.5}

    answer = run(world.ask())

    assert ends(answer) == [("third", AttemptEnd.BUSY), ("other", AttemptEnd.ANSWERED)]


def test_that_nothing_is_left_of_it_elsewhere_is_the_end():
    error = RemoteError("exhausted", "no hops left")
    world = World(one=fails(error), two=works)
    world.probe_s = {"two": 0.5}

    with pytest.raises(RemoteError) as raised:
        run(world.ask(idempotent=True))

    assert raised.value is error
    assert ends(error.answer) == [("one", AttemptEnd.EXHAUSTED)]


def test_arguments_that_cannot_travel_are_the_callers_to_know():
    world = World(one=fails(ConfigError("argument 'x' is a lambda")), two=works)

    with pytest.raises(ConfigError, match="a lambda"):
        run(world.ask(idempotent=True))


def test_a_broken_handler_is_asked_after_all_others_and_one_that_refuses_is_not():
    async def main() -> list[str]:
        world = World(broken=fails(RemoteError("internal_error", "oh")), other=fails(RemoteError("failed", "no")))
        world.probe_s = {"other": 0.5}
        for _ in range(3):
            with pytest.raises(RemoteError):
                await world.ask()
        return world.asked

    assert run(main()) == ["broken", "other", "other"]


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (PeerUnavailable("it is gone"), AttemptEnd.UNREACHABLE),
        (RemoteError("busy", "too much to do"), AttemptEnd.BUSY),
        (RemoteError("forbidden", "not for you"), AttemptEnd.FORBIDDEN),
        (RemoteError("loop", "in circles"), AttemptEnd.LOOP),
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
    assert error.found == 3
    assert str(error).startswith("nobody took the task for 'x', of 3 found: ")
    for text in ("one: later", "two: it is gone", "three: did not answer a probe"):
        assert text in error.reason


@pytest.mark.parametrize(("complete", "reason"), [(True, ""), (False, "this node has joined nobody yet")])
def test_where_nobody_has_it_the_error_says_whether_that_is_certain(complete: bool, reason: str):
    world = World()
    world.complete, world.reason = complete, reason

    with pytest.raises(NoAgentFound) as raised:
        run(world.ask())

    assert raised.value.complete is complete
    assert raised.value.reason.startswith(reason or "nobody in the network has it")
    assert str(raised.value).startswith("no agent found for 'x': ")
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


def test_an_ask_that_is_cancelled_at_any_moment_leaves_no_task_and_nobody_with_one():
    """`one` is full, `two` too slow, so `three` is asked beside it; at each instant at which something happens, in each
    turn of the loop.
    """

    async def ask_cancelled_at(at_s: float, turns: int) -> list[str]:
        world = World(one=fails(RemoteError("busy", "later")), two=is_slow, three=works, four=works)
        world.silent = {"four"}
        world.probe_s = {"one": 0.01, "two": 0.05, "three": 0.2}
        await world.get_used_to()
        loop = asyncio.get_running_loop()
        begun_at = loop.time()
        asking = asyncio.ensure_future(world.asking(idempotent=True).run())
        await asyncio.sleep(at_s)
        for _ in range(turns):
            await asyncio.sleep(0)

        assert asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert not any(known.asked for known in world.experience._providers.values())
        assert loop.time() - begun_at == pytest.approx(at_s), "nothing takes time to end"
        return world.asked

    async def main() -> list[list[str]]:
        moments = [
            (at_s, turns)
            for at_s in (0, 0.3, 0.5, 0.51, 0.52, 0.62, 0.67, 0.72, 1.72, 1.82, 1.92, 2.9)
            for turns in range(12)
        ]
        return [await ask_cancelled_at(at_s, turns) for at_s, turns in moments]

    asked = run(main())

    assert asked[0] == []
    assert asked[-1] == ["one", "two", "three"]


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
