from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from synapse_p2p.background import TaskScope
from synapse_p2p.prompt_future import PromptFuture

WHOSE: contextvars.ContextVar[str] = contextvars.ContextVar("whose", default="nobody's")


class Waiting:
    """A task that waits for a future, and what it saw when it went on."""

    def __init__(self) -> None:
        self.future = PromptFuture(loop=asyncio.get_running_loop())
        self.saw: list[Any] = []
        self.task = asyncio.ensure_future(self._wait())

    async def _wait(self) -> None:
        WHOSE.set("the task's")
        try:
            self.saw.append(await self.future)
        except BaseException as error:
            self.saw.append(type(error))
            raise
        self.saw.append(WHOSE.get())
        self.saw.append(asyncio.current_task() is self.task)


SEEN = ["a value", "the task's", True]


async def outside_of_tasks(function: Callable[[], Any]) -> Any:
    """What a function returns that the loop calls."""
    returned = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(lambda: returned.set_result(function()))
    return await returned


async def waiting() -> Waiting:
    waiting = Waiting()
    await asyncio.sleep(0)
    return waiting


async def test_who_waits_goes_on_before_set_result_returns():
    one = await waiting()

    def end() -> list[Any]:
        one.future.set_result("a value")
        return list(one.saw)

    assert await outside_of_tasks(end) == SEEN
    assert one.task.done() and one.task.exception() is None


async def test_inside_of_another_task_it_goes_on_in_the_next_turn():
    one = await waiting()
    one.future.set_result("a value")
    assert one.saw == []
    await one.task
    assert one.saw == SEEN


async def test_a_result_that_is_there_before_anybody_waits_is_waited_for_by_nobody():
    one = Waiting()

    def end() -> list[Any]:
        one.future.set_result("a value")
        return list(one.saw)

    assert await outside_of_tasks(end) in ([], SEEN)
    await one.task
    assert one.saw == SEEN


async def test_an_error_and_a_cancel_take_the_way_through_the_loop():
    failing, cancelled, stopped = [await waiting() for _ in range(3)]

    def end() -> list[Any]:
        failing.future.set_exception(ValueError("broken"))
        assert cancelled.future.cancel()
        assert not cancelled.future.cancel()
        assert stopped.task.cancel()
        return failing.saw + cancelled.saw + stopped.saw

    assert await outside_of_tasks(end) == []
    assert [type(end) for end in await asyncio.gather(failing.task, return_exceptions=True)] == [ValueError]
    await asyncio.wait([cancelled.task, stopped.task])
    assert cancelled.task.cancelled() and stopped.task.cancelled() and stopped.future.cancelled()
    assert (failing.saw, cancelled.saw, stopped.saw) == (
        [ValueError],
        [asyncio.CancelledError],
        [asyncio.CancelledError],
    )


async def test_a_task_that_is_cancelled_after_its_result_came_has_it_or_is_cancelled():
    one = await waiting()
    one.future.set_result("a value")
    one.task.cancel()
    await asyncio.wait([one.task])
    assert one.saw == [asyncio.CancelledError]


async def test_a_time_limit_ends_the_wait():
    future = PromptFuture(loop=asyncio.get_running_loop())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await future
    assert future.cancelled()


async def test_what_goes_on_may_raise_and_nobody_else_feels_it():
    async def raises() -> None:
        await future
        raise ValueError("broken")

    future = PromptFuture(loop=asyncio.get_running_loop())
    task = asyncio.ensure_future(raises())
    await asyncio.sleep(0)
    await outside_of_tasks(lambda: future.set_result(None))
    assert isinstance(task.exception(), ValueError)


@pytest.mark.parametrize("end", ["set_result", "set_exception", "cancel"])
async def test_one_that_ends_between_a_first_step_and_its_task_ends_the_wait(end: str):
    """The first step of a coroutine may be run before the task, as that of a handler, which is told a turn later."""
    loop = asyncio.get_running_loop()
    future = PromptFuture(loop=loop)
    scope = TaskScope("first steps")
    seen: list[Any] = []

    async def nothing() -> None:
        """Its task is spare from then on."""

    async def wait() -> None:
        try:
            seen.append(await future)
        except BaseException as error:
            seen.append(type(error))

    def begin(coroutine: Callable[[], Coroutine[Any, Any, None]]) -> None:
        scope.begin(lambda _, task: coroutine(), [1], context=contextvars.copy_context(), on_lost=seen.append)

    loop.call_soon(begin, nothing)
    await asyncio.sleep(0.01)
    loop.call_soon(begin, wait)
    arguments = {"set_result": ["a value"], "set_exception": [ValueError()], "cancel": []}[end]
    loop.call_soon(getattr(future, end), *arguments)
    async with asyncio.timeout(5):
        while not seen:  # noqa: ASYNC110 - there is nothing to wait for but time
            await asyncio.sleep(0.001)
    await scope.close()

    assert seen == [{"set_result": "a value", "set_exception": ValueError, "cancel": asyncio.CancelledError}[end]]
