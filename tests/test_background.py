from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import random
import re
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from simulations.virtual_loop import run
from synapse_p2p.background import MAX_REMEMBERED_FAILURES, BackgroundTaskHandler, TaskScope
from synapse_p2p.exceptions import ConfigError
from synapse_p2p.runtime import Runtime
from synapse_p2p.types import BackgroundTask


def handler_of(
    function: Callable[..., Any], period: float, *, jitter: float = 0, seed: int | None = None
) -> BackgroundTaskHandler:
    handler = BackgroundTaskHandler(runtime=None if seed is None else virtual_runtime(seed))
    handler.add_task(BackgroundTask(name="task", callable=function, period=period, jitter=jitter))
    return handler


def virtual_runtime(seed: int) -> Runtime:
    loop, rng = asyncio.get_running_loop(), random.Random(seed)
    return Runtime(now=loop.time, unix_now=loop.time, rng=rng, token_bytes=rng.randbytes)


def runs_within(
    seconds: float, function: Callable[[], Awaitable[None]], period: float, *, jitter: float = 0, seed: int = 0
) -> list[float]:
    """When the runs of a task began in so many seconds of virtual time."""
    started: list[float] = []

    async def noted() -> None:
        started.append(asyncio.get_running_loop().time())
        await function()

    async def main() -> list[float]:
        handler = handler_of(noted, period, jitter=jitter, seed=seed)
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


def test_a_run_of_a_plain_function_is_not_overlapped_after_a_restart():
    async def main() -> int:
        loop, has_begun, gate = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
        begun_count = 0

        def blocking() -> None:
            nonlocal begun_count
            begun_count += 1
            loop.call_soon_threadsafe(has_begun.set)
            gate.wait(10)

        handler = handler_of(blocking, period=999)
        handler.start()
        await has_begun.wait()
        await handler.stop()
        handler.start()
        _, pending = await asyncio.wait(handler._running, timeout=5)
        gate.set()
        await handler.stop()
        assert not pending, "the run that fell out ends at once"
        return begun_count

    assert asyncio.run(main()) == 1


def test_a_run_that_outlives_a_stop_is_not_overlapped_after_a_restart():
    async def main() -> list[tuple[str, float]]:
        now = asyncio.get_running_loop().time
        runs: list[tuple[str, float]] = []

        async def stubborn() -> None:
            runs.append(("begin", now()))
            until = now() + 25
            while now() < until:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(until - now())
            runs.append(("end", now()))

        handler = handler_of(stubborn, period=10)
        handler.start()
        await asyncio.sleep(1)
        await handler.stop()
        handler.start()
        await asyncio.sleep(31)
        await handler.stop()
        await asyncio.sleep(100)
        return runs

    began_and_ended = run(main())

    assert [what for what, _ in began_and_ended] == ["begin", "end", "begin", "end"]
    assert began_and_ended[1][1] == 25


def test_jitter_spreads_the_runs_around_the_period_and_a_seed_repeats_them():
    def starts(seed: int) -> list[float]:
        return runs_within(1000, nothing, period=10, jitter=4, seed=seed)

    pauses = [later - earlier for earlier, later in itertools.pairwise(starts(seed=1))]

    assert starts(seed=1) == starts(seed=1)
    assert starts(seed=1) != starts(seed=2)
    assert starts(seed=1)[0] == 0
    assert 6 <= min(pauses) < 7
    assert 13 < max(pauses) <= 14


@pytest.mark.parametrize("jitter", [-1, 10, math.nan])
def test_a_jitter_that_is_not_below_the_period_is_refused(jitter: float):
    with pytest.raises(ConfigError, match=r"jitter .* below the period, 10"):
        handler_of(nothing, period=10, jitter=jitter)


def test_a_failure_is_logged_with_its_traceback_and_does_not_stop_later_runs(caplog: pytest.LogCaptureFixture):
    async def broken() -> None:
        raise RuntimeError("boom")

    assert runs_within(25, broken, period=10) == [0, 10, 20]
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "boom" in caplog.text
    assert "Traceback" in caplog.text


def test_the_same_failure_is_told_once_a_minute_at_most_and_as_a_count(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)

    async def broken() -> None:
        raise RuntimeError(f"at {asyncio.get_running_loop().time()}")

    runs_within(149, broken, period=10)

    first, *later = caplog.records
    assert (first.levelno, first.getMessage()) == (logging.ERROR, "background task task failed")
    assert [record.levelno for record in later] == [logging.INFO] * 3
    assert all(record.exc_info is None and "RuntimeError at " in record.getMessage() for record in later)
    # At 60 s, at 120 s, and what was left at the stop: 15 runs in all.
    assert [re.findall(r"again, (\d+) times \((\d+) in all\)", record.getMessage())[0] for record in later] == [
        ("6", "7"),
        ("6", "13"),
        ("2", "15"),
    ]


def test_another_failure_of_the_same_task_gets_its_own_traceback(caplog: pytest.LogCaptureFixture):
    errors = itertools.cycle([ValueError("one"), LookupError("two")])

    async def broken() -> None:
        raise next(errors)

    runs_within(55, broken, period=10)

    told = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.exc_info[0] for record in told if record.exc_info] == [ValueError, LookupError]


def test_a_success_between_does_not_make_a_failure_new(caplog: pytest.LogCaptureFixture):
    turns = itertools.count()

    async def flaky() -> None:
        if next(turns) % 2:
            raise ValueError("every other time")

    runs_within(55, flaky, period=10)

    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def test_failures_that_are_all_different_are_remembered_up_to_the_bound():
    async def main() -> BackgroundTaskHandler:
        turns = itertools.count()

        async def inventive() -> None:
            raise type(f"Error{next(turns)}", (Exception,), {})

        handler = handler_of(inventive, period=1)
        handler.start()
        await asyncio.sleep(3 * MAX_REMEMBERED_FAILURES)
        await handler.stop()
        return handler

    handler = run(main())

    assert len(handler._periodic[0].failures._repeats) == MAX_REMEMBERED_FAILURES


async def test_a_plain_function_that_raises_stop_iteration_has_its_later_runs(caplog: pytest.LogCaptureFixture):
    handler = BackgroundTaskHandler()

    def exhausted() -> None:
        next(iter(()))

    handler.add_task(BackgroundTask("exhausted", exhausted, 999))
    handler.start()

    _, pending = await asyncio.wait(handler._running, timeout=5)
    await handler.stop()

    assert not pending
    assert "raised StopIteration" in caplog.text


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
