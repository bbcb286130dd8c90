from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from simulations.virtual_loop import run
from synapse_p2p.background import BackgroundTaskHandler, TaskScope
from synapse_p2p.exceptions import ConfigError
from synapse_p2p.types import BackgroundTask


def handler_of(function: Callable[..., Any], period: float, name: str = "task") -> BackgroundTaskHandler:
    handler = BackgroundTaskHandler()
    handler.add_task(BackgroundTask(name=name, callable=function, period=period))
    return handler


def runs_within(seconds: float, function: Callable[[], Awaitable[None]], period: float) -> list[float]:
    """When the runs of a task began in so many seconds of virtual time."""
    started: list[float] = []

    async def noted() -> None:
        started.append(asyncio.get_running_loop().time())
        await function()

    async def main() -> list[float]:
        handler = handler_of(noted, period)
        handler.start()
        await asyncio.sleep(seconds)
        await handler.stop()
        await asyncio.sleep(seconds)
        return started

    return run(main())


async def nothing() -> None:
    pass


def test_a_task_runs_at_the_start_and_once_a_period_until_the_stop():
    assert runs_within(35, nothing, period=10) == [0, 10, 20, 30]


def test_a_run_that_is_still_going_makes_the_next_one_fall_out():
    async def slow() -> None:
        await asyncio.sleep(15)

    assert runs_within(45, slow, period=10) == [0, 20, 40]


def test_an_exception_is_logged_and_does_not_stop_later_runs(caplog: pytest.LogCaptureFixture):
    async def broken() -> None:
        raise RuntimeError("boom")

    assert runs_within(25, broken, period=10) == [0, 10, 20]
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 3
    assert "boom" in caplog.text


def test_a_second_start_does_nothing_more():
    async def main() -> int:
        count = 0

        async def tick() -> None:
            nonlocal count
            count += 1

        handler = handler_of(tick, period=10)
        handler.start()
        handler.start()
        await asyncio.sleep(5)
        await handler.stop()
        return count

    assert run(main()) == 1


def test_a_stopped_task_can_be_started_again():
    async def main() -> list[float]:
        started: list[float] = []

        async def tick() -> None:
            started.append(asyncio.get_running_loop().time())

        handler = handler_of(tick, period=10)
        for _ in range(2):
            handler.start()
            await asyncio.sleep(15)
            await handler.stop()
        return started

    assert run(main()) == [0, 10, 15, 25]


def test_a_task_that_is_added_while_others_run_starts_at_once():
    async def main() -> list[float]:
        started: list[float] = []

        async def tick() -> None:
            started.append(asyncio.get_running_loop().time())

        handler = BackgroundTaskHandler()
        handler.start()
        await asyncio.sleep(3)
        handler.add_task(BackgroundTask("late", tick, 10))
        await asyncio.sleep(12)
        await handler.stop()
        return started

    assert run(main()) == [3, 13]


async def test_what_runs_is_known_and_ends_with_the_stop():
    started, was_cancelled = asyncio.Event(), asyncio.Event()

    async def gated() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            was_cancelled.set()

    handler = handler_of(gated, period=999)
    handler.start()
    await started.wait()
    assert len(handler._running) == 1

    await handler.stop()

    assert was_cancelled.is_set()
    assert handler._running == set()


async def test_a_plain_function_runs_off_the_loop():
    loop = asyncio.get_running_loop()
    has_run: asyncio.Future[bool] = loop.create_future()

    def plain() -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            loop.call_soon_threadsafe(has_run.set_result, True)

    handler = handler_of(plain, period=999)
    handler.start()

    assert await has_run
    await handler.stop()


def test_a_run_that_ignores_its_cancellation_does_not_hold_up_the_stop(caplog: pytest.LogCaptureFixture):
    async def main() -> float:
        async def stubborn() -> None:
            while asyncio.get_running_loop().time() < 100:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(10)

        handler = handler_of(stubborn, period=999)
        handler.start()
        await asyncio.sleep(1)
        await handler.stop()
        stopped_at = asyncio.get_running_loop().time()
        await asyncio.sleep(200)
        return stopped_at

    assert run(main()) < 2
    assert "1 background tasks ignore" in caplog.text


@pytest.mark.parametrize("period", [0, -1])
def test_a_period_that_never_passes_is_refused(period: float):
    with pytest.raises(ConfigError, match="above 0"):
        handler_of(nothing, period=period)


async def test_a_scope_cancels_its_tasks_oldest_first():
    ended: list[int] = []

    async def wait(number: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(number)

    async with TaskScope() as scope:
        for number in range(10):
            scope.spawn(wait(number))
        await asyncio.sleep(0)

    assert ended == list(range(10))
    assert len(scope) == 0


async def test_a_closed_scope_starts_nothing():
    scope = TaskScope()
    await scope.close()

    with pytest.raises(RuntimeError, match="closed"):
        scope.spawn(nothing())
