from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest

from simulations.virtual_loop import run
from synapse_p2p.background import TaskScope, wait_at_most


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


async def test_a_task_that_leaves_by_itself_is_gone_at_once_and_one_that_fails_is_told_of(
    caplog: pytest.LogCaptureFixture,
):
    async def leave() -> None:
        scope.leave(own())

    async def fail() -> None:
        scope.leave_failing(own())
        raise ValueError("broken")

    def own() -> asyncio.Task[Any]:
        task = asyncio.current_task()
        assert task is not None
        return task

    async with TaskScope("a scope") as scope:
        scope.spawn_leaving(leave())
        scope.spawn_leaving(fail(), name="failing")
        assert len(scope) == 2

        await asyncio.sleep(0)

        assert len(scope) == 1
        await scope.drain()
        await asyncio.sleep(0)
        assert [record.getMessage() for record in caplog.records] == ["task failing of a scope failed"]


async def test_a_scope_cancels_tasks_that_would_have_left_by_themselves():
    scope = TaskScope()
    begun = scope.spawn_leaving(asyncio.sleep(60))
    await asyncio.sleep(0)
    never_begun = scope.spawn_leaving(asyncio.sleep(60))

    await scope.close()

    assert begun.cancelled() and never_begun.cancelled()
    assert len(scope) == 0
