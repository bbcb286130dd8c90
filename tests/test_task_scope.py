from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import pytest

from simulations.virtual_loop import run
from synapse_p2p.background import TaskScope, let_go, wait_at_most
from synapse_p2p.spare_task import SPARE


async def for_ever() -> None:
    await asyncio.Event().wait()


async def fail() -> None:
    raise RuntimeError("boom")


async def ends_after(seconds: float, ended: list[float]) -> None:
    await asyncio.sleep(seconds)
    ended.append(seconds)


def now() -> float:
    return asyncio.get_running_loop().time()


# TaskScope


async def test_leaving_a_scope_cancels_what_runs_and_waits_until_it_has_ended():
    cleaned_up: list[int] = []

    async def wait(number: int) -> None:
        try:
            await for_ever()
        finally:
            await asyncio.sleep(0)
            cleaned_up.append(number)

    async with TaskScope() as scope:
        tasks = [scope.spawn(wait(number)) for number in range(3)]
        await asyncio.sleep(0)

    assert all(task.cancelled() for task in tasks)
    assert sorted(cleaned_up) == [0, 1, 2]


async def test_a_task_that_never_began_is_ended_too():
    async with TaskScope() as scope:
        task = scope.spawn(for_ever())

    assert task.cancelled()


async def test_a_scope_forgets_tasks_that_ended():
    async with TaskScope() as scope:
        await asyncio.gather(scope.spawn(asyncio.sleep(0)), scope.spawn_awaited(asyncio.sleep(0)))
        await asyncio.sleep(0)

        assert len(scope) == 0


async def test_one_failure_is_logged_once_and_leaves_the_siblings_alone(caplog: pytest.LogCaptureFixture):
    async with TaskScope("the scope") as scope:
        sibling = scope.spawn(for_ever())
        failing = scope.spawn(fail(), name="the task")
        await asyncio.wait([failing])
        await asyncio.sleep(0)
        was_running = not sibling.done()

    assert was_running
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "the task of the scope failed" in caplog.text
    assert "boom" in caplog.text


async def test_the_failure_of_an_awaited_task_reaches_who_awaits_it_and_no_log(caplog: pytest.LogCaptureFixture):
    async with TaskScope() as scope:
        with pytest.raises(RuntimeError, match="boom"):
            await scope.spawn_awaited(fail())

    assert caplog.records == []


async def test_an_exception_in_the_body_passes_through_and_ends_the_tasks():
    tasks: list[asyncio.Task[None]] = []

    async def fail_in_a_scope() -> None:
        async with TaskScope() as scope:
            tasks.append(scope.spawn(for_ever()))
            await fail()

    with pytest.raises(RuntimeError, match="boom"):
        await fail_in_a_scope()

    assert tasks[0].cancelled()


async def test_a_failure_while_being_cancelled_does_not_keep_the_others_running(caplog: pytest.LogCaptureFixture):
    async def fail_at_the_end() -> None:
        try:
            await for_ever()
        finally:
            await fail()

    async with TaskScope() as scope:
        scope.spawn(fail_at_the_end())
        other = scope.spawn(for_ever())
        await asyncio.sleep(0)

    assert other.cancelled()
    assert len(caplog.records) == 1


@pytest.mark.parametrize("spawn", [TaskScope.spawn, TaskScope.spawn_awaited])
async def test_a_closed_scope_says_so_and_starts_nothing(spawn: Callable[..., object]):
    scope = TaskScope("the scope")
    was_closed = scope.is_closed
    await scope.close()
    await scope.close()

    with pytest.raises(RuntimeError, match="the scope is closed"):
        spawn(scope, for_ever())

    assert (was_closed, scope.is_closed) == (False, True)
    assert len(scope) == 0


async def test_a_task_that_spawns_while_it_is_cancelled_is_refused():
    refused: list[RuntimeError] = []
    scope = TaskScope()

    async def spawn_at_the_end() -> None:
        try:
            await for_ever()
        finally:
            try:
                scope.spawn(for_ever())
            except RuntimeError as error:
                refused.append(error)

    async with scope:
        scope.spawn(spawn_at_the_end())
        await asyncio.sleep(0)

    assert len(refused) == 1


async def test_a_task_may_close_its_own_scope():
    scope = TaskScope()
    ended: list[str] = []

    async def close() -> None:
        await scope.close()
        ended.append("closed")

    other = scope.spawn(for_ever())
    await scope.spawn(close())

    assert ended == ["closed"]
    assert other.cancelled()


def test_a_close_waits_for_a_task_that_ignores_it_and_can_be_given_up():
    async def main() -> tuple[float, float]:
        async def stubborn() -> None:
            while now() < 100:
                try:
                    await asyncio.sleep(10)
                except asyncio.CancelledError:
                    continue

        scope = TaskScope()
        scope.spawn(stubborn())
        await asyncio.sleep(1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await scope.close()
        given_up_at = now()
        assert len(scope) == 1
        await scope.close()
        return given_up_at, now()

    given_up_at, closed_at = run(main())

    assert given_up_at == 6
    assert closed_at >= 100


def test_draining_waits_for_what_runs_and_for_what_that_spawns():
    ended: list[float] = []

    async def main() -> float:
        async with TaskScope() as scope:

            async def spawn_another() -> None:
                await ends_after(2, ended)
                scope.spawn(ends_after(5, ended))

            scope.spawn(ends_after(3, ended))
            scope.spawn(spawn_another())
            scope.spawn(ends_after(1, ended))
            await scope.drain()
            return now()

    assert run(main()) == 7
    assert ended == [1, 2, 3, 5]


def test_draining_that_is_given_up_leaves_the_tasks_running():
    async def main() -> bool:
        async with TaskScope() as scope:
            task = scope.spawn(for_ever())
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await scope.drain()
            return task.done()

    assert run(main()) is False


async def test_draining_passes_over_failures(caplog: pytest.LogCaptureFixture):
    async with TaskScope() as scope:
        scope.spawn(fail())
        await scope.drain()

    assert len(caplog.records) == 1


# wait_at_most


def test_waiting_ends_with_the_future_or_with_the_time():
    async def main() -> list[tuple[bool, float]]:
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        loop.call_later(3, future.set_result, None)
        outcomes = []
        for timeout_s in (1, 5, 5):
            outcomes.append((await wait_at_most(future, timeout_s), now()))
        return outcomes

    assert run(main()) == [(False, 1), (True, 3), (True, 3)]


async def test_the_time_running_out_leaves_the_future_alone():
    future = asyncio.get_running_loop().create_future()

    assert not await wait_at_most(future, 0)
    assert not future.done()


async def test_a_failed_or_cancelled_future_is_done_and_its_failure_is_for_others():
    loop = asyncio.get_running_loop()
    failed, cancelled = loop.create_future(), loop.create_future()
    loop.call_soon(failed.set_exception, RuntimeError("boom"))
    loop.call_soon(cancelled.cancel)

    assert await wait_at_most(failed, 5)
    assert await wait_at_most(cancelled, 5)
    assert isinstance(failed.exception(), RuntimeError)


async def test_being_cancelled_while_waiting_cancels_nothing_else():
    future = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(wait_at_most(future, 60))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])

    assert waiting.cancelled()
    assert not future.done()


# let_go


async def test_a_failure_that_is_let_go_is_not_complained_of():
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))

    ended = [asyncio.ensure_future(fail()), asyncio.ensure_future(for_ever()), asyncio.ensure_future(asyncio.sleep(0))]
    for task in ended:
        task.add_done_callback(let_go)
    await asyncio.sleep(0)
    ended[1].cancel()
    await asyncio.wait(ended)
    await asyncio.sleep(0)
    del task
    ended.clear()
    gc.collect()
    assert complaints == []


# TaskScope.begin: what mostly ends in its first step


WHOSE: contextvars.ContextVar[Any] = contextvars.ContextVar("whose", default="nobody")


class Begun:
    """Begins coroutines in a scope, outside of every task, and keeps what each said, in order."""

    def __init__(self, scope: TaskScope) -> None:
        self.scope = scope
        self.said: list[Any] = []
        self.lost: list[Any] = []

    async def begin(self, *works: Work) -> int:
        """Begin them all in a callback of the loop; how many have said something by the end of it."""
        said = asyncio.get_running_loop().create_future()

        def begin() -> None:
            before = len(self.said)
            self.begin_now(*works)
            said.set_result(len(self.said) - before)

        asyncio.get_running_loop().call_soon(begin)
        return await said

    def begin_now(self, *works: Work) -> None:
        left = list(works)
        self.scope.begin(self._run, left, context=contextvars.Context(), on_lost=self.lost.append)
        assert left == []

    async def _run(self, work: Work, task: asyncio.Task[Any]) -> None:
        assert asyncio.current_task() is task
        assert WHOSE.get() == "nobody"
        WHOSE.set(work)
        try:
            self.said.append(await work(task))
        finally:
            assert WHOSE.get() is work


Work: TypeAlias = Callable[[asyncio.Task[Any]], Awaitable[Any]]


async def end_at_once(task: asyncio.Task[Any]) -> asyncio.Task[Any]:
    return task


async def wait_a_moment(task: asyncio.Task[Any]) -> asyncio.Task[Any]:
    for _ in range(3):
        await asyncio.sleep(0)
        assert asyncio.current_task() is task and not task.cancelling()
    return task


@pytest.fixture
async def begun() -> AsyncIterator[Begun]:
    """With a spare task at hand."""
    async with TaskScope("a scope") as scope:
        begun = Begun(scope)
        assert await begun.begin(end_at_once) == 0
        await asyncio.sleep(0)
        assert len(scope) == 1
        begun.said.clear()
        yield begun
    assert len(scope) == 0
    assert begun.lost == []


async def test_what_ends_in_its_first_step_ends_before_begin_returns_and_all_of_it_in_one_task(begun: Begun):
    assert await begun.begin(end_at_once, end_at_once) == 2
    assert await begun.begin(end_at_once) == 1
    assert len(set(begun.said)) == 1
    [spare] = set(begun.said)
    assert spare.get_name() == SPARE and not spare.done()


async def test_what_waits_keeps_its_task_and_holds_up_nobody(begun: Begun):
    assert await begun.begin(end_at_once, wait_a_moment, end_at_once, wait_a_moment) == 1
    for _ in range(10):
        await asyncio.sleep(0)
    spare, *others = begun.said
    assert len(others) == 3
    assert spare in others and len(set(others)) == 3
    assert await begun.begin(end_at_once) == 1  # there is a spare one again
    assert len(begun.scope) == 1


@pytest.mark.parametrize("is_done", [False, True], ids=["that comes", "that has come by then"])
async def test_what_waits_may_wait_for_the_same_as_others_that_come_to_it_in_the_same_turn(begun: Begun, is_done: bool):
    shared: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def wait(_: object = None) -> str:
        return await shared

    def begin() -> None:
        begun.begin_now(wait)
        others.append(asyncio.ensure_future(wait()))
        if is_done:
            shared.set_result("told")

    others = [asyncio.ensure_future(wait())]
    asyncio.get_running_loop().call_soon(begin)
    others.append(asyncio.ensure_future(wait()))  # whose first step comes right after
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    if not is_done:
        shared.set_result("told")

    assert await asyncio.gather(*others) == ["told"] * 3
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert begun.said == ["told"]


async def test_inside_of_a_task_all_begins_in_the_next_turn(begun: Begun):
    begun.begin_now(end_at_once, wait_a_moment)
    assert begun.said == []
    await asyncio.sleep(0)
    assert len(begun.said) == 1
    assert await begun.begin(end_at_once) == 1


async def test_a_failure_is_logged_once_wherever_it_happens_and_the_others_run(
    begun: Begun, caplog: pytest.LogCaptureFixture
):
    async def fails_at_once(task: asyncio.Task[Any]) -> None:
        task.set_name("at once")
        raise ValueError("broken")

    async def fails_later(task: asyncio.Task[Any]) -> None:
        task.set_name("later")
        await asyncio.sleep(0)
        raise ValueError("broken")

    async def cancelled_from_within(task: asyncio.Task[Any]) -> None:
        raise asyncio.CancelledError

    assert await begun.begin(fails_at_once, cancelled_from_within, end_at_once, fails_later) == 1
    for _ in range(5):
        await asyncio.sleep(0)

    logged = [record.getMessage() for record in caplog.records]
    assert logged == ["task at once of a scope failed", "task later of a scope failed"]
    assert all(record.exc_info and "broken" in str(record.exc_info[1]) for record in caplog.records)
    assert len(begun.scope) == 0


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_what_ends_the_program_does_and_takes_nothing_else_along(error: type[BaseException]):
    async def exits(task: asyncio.Task[Any]) -> None:
        raise error

    async def begin_them() -> None:
        assert await begun.begin(exits, end_at_once) == 1

    loop = asyncio.new_event_loop()
    with contextlib.closing(loop):
        begun = Begun(TaskScope())
        loop.run_until_complete(begun.begin(end_at_once))
        loop.run_until_complete(asyncio.sleep(0))
        beginning = loop.create_task(begin_them())

        running = loop.create_task(for_ever())
        with pytest.raises(error):
            loop.run_until_complete(running)
        running.cancel()

        loop.run_until_complete(asyncio.gather(beginning, running, return_exceptions=True))
        beginning.result()
        loop.run_until_complete(begun.scope.close())


async def test_who_cancels_the_task_it_was_lent_and_ends_cancels_nobody_else(begun: Begun):
    async def cancels(task: asyncio.Task[Any]) -> asyncio.Task[Any]:
        task.cancel()
        return task

    await begun.begin(cancels, wait_a_moment, end_at_once)
    for _ in range(10):
        await asyncio.sleep(0)

    cancelled, *others = begun.said
    assert cancelled.cancelled() and len(others) == 2 and cancelled not in others


@pytest.mark.parametrize("by", ["itself", "another in the same turn"])
@pytest.mark.parametrize("on", ["a future", "a task", "the loop"])
async def test_a_cancel_before_the_task_comes_to_wait_reaches_what_it_waits_for(begun: Begun, by: str, on: str):
    ends: list[str] = []
    future = asyncio.get_running_loop().create_future()
    other_task = asyncio.ensure_future(for_ever())
    kept: list[asyncio.Task[Any]] = []

    async def waits(task: asyncio.Task[Any]) -> None:
        kept.append(task)
        if by == "itself":
            task.cancel()
        try:
            await (asyncio.sleep(0) if on == "the loop" else {"a future": future, "a task": other_task}[on])
        except asyncio.CancelledError:
            ends.append("cancelled")
            raise

    def begin_and_cancel() -> None:
        begun.begin_now(waits)
        if by != "itself":
            kept[0].cancel()

    asyncio.get_running_loop().call_soon(begin_and_cancel)
    for _ in range(6):
        await asyncio.sleep(0)

    assert ends == ["cancelled"]
    assert kept[0].cancelled()
    assert (future.cancelled(), other_task.cancelled()) == (on == "a future", on == "a task")
    other_task.cancel()


async def test_what_was_cancelled_before_it_began_is_told_of_and_so_is_what_comes_to_a_closed_scope():
    async with TaskScope() as scope:
        begun = Begun(scope)
        begun.begin_now(end_at_once)
        [task] = asyncio.all_tasks() - {asyncio.current_task()}
        task.cancel()
        await asyncio.sleep(0)
        assert begun.lost == []
        await asyncio.sleep(0)
        assert begun.lost == [end_at_once] and len(scope) == 0
    begun.begin_now(end_at_once, wait_a_moment)
    assert begun.lost == [end_at_once, end_at_once, wait_a_moment] and begun.said == []


async def test_a_scope_ends_its_spare_task_and_does_not_wait_for_it_to_end_by_itself(begun: Begun):
    await begun.begin(end_at_once)
    async with asyncio.timeout(1):
        await begun.scope.drain()
    await begun.scope.close()
    assert begun.said[0].cancelled() and len(begun.scope) == 0


async def test_a_scope_that_drains_waits_for_nobody_to_become_the_spare_task_and_has_one_again_afterwards():
    async with TaskScope() as scope:
        begun = Begun(scope)
        begun.begin_now(end_at_once, wait_a_moment)
        async with asyncio.timeout(1):
            await scope.drain()
        assert len(begun.said) == 2 and len(scope) == 0
        await begun.begin(end_at_once)
        await asyncio.sleep(0)
        assert await begun.begin(end_at_once) == 1


async def test_a_scope_that_is_closed_by_what_it_runs_in_its_spare_task_closes(begun: Begun):
    async def closes(task: asyncio.Task[Any]) -> str:
        await begun.scope.close()
        return "closed"

    assert await begun.begin(closes, wait_a_moment) == 1
    for _ in range(5):
        await asyncio.sleep(0)
    assert begun.said == ["closed"]
    assert begun.lost == [wait_a_moment]
    begun.lost.clear()
