"""Cancels an operation at every place where it waits, one place after another, and looks at what is left each time.

An operation waits at a suspension: there its task can be cancelled before that for which it waits has come, and also
after, in the moment between the coming and the task's next step, when a result can get lost. And while it waits, the
tasks and the connections that work for it go on: so it is cancelled after every turn of the loop as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Awaitable, Callable, Generator, Iterator
from enum import Enum
from typing import Any

from synapse_p2p.spare_task import SPARE

MAX_SUSPENSIONS = 60
MAX_TURNS = 100  # beyond, an operation waits for time to pass, and one turn is as good as another
SETTLE_S = 3.0  # for what a cancelled operation leaves behind to end by itself
END_S = 3.0  # for a cancelled operation to end


class Moment(Enum):
    """When the task is cancelled."""

    WAITING = "suspension {}, while it waits"
    WOKEN = "suspension {}, when what it waits for is there and before it goes on"
    TURN = "turn {} of the loop"


async def cancelled_at_every_await(
    make: Callable[[], Awaitable[Any]],
    *,
    settle: Callable[[], Awaitable[Any]],
    arrange: Callable[[], Awaitable[Any]] | None = None,
    max_suspensions: int = MAX_SUSPENSIONS,
    settle_s: float = SETTLE_S,
    may_stay: str | None = None,
) -> int:
    """Run `make()` again and again, cancelled at its first suspension, its second, until it ends before; that number.

    That is done for each Moment. `arrange` makes ready for each run. After each, `settle` uses the same objects, which
    have to work, and brings them to where they were. Asserts that the operation ended as cancelled, or with a result
    where that was there already, and that neither a task nor a descriptor is left; tasks whose names begin with
    `may_stay` may be until `settle`.
    """
    arrange = arrange or _nothing
    tasks_before = asyncio.all_tasks()
    await arrange()
    await settle()
    descriptors_before = open_descriptors()
    reached = 0
    for moment in Moment:
        for number in _numbers(moment, max_suspensions):
            await arrange()
            operation = _Counted(make(), number, moment)
            await _run_to_its_end(operation, settle_s, may_stay)
            try:
                await settle()
            except Exception as error:
                raise AssertionError(f"{operation.place}: it does not work any more") from error
            left = await _left_after(settle_s, lambda: _new_tasks(tasks_before, None))
            assert not left, f"{operation.place}: tasks are left in the end: {left}"
            more = await _left_after(settle_s, lambda: range(max(0, open_descriptors() - descriptors_before)))
            assert not more, f"{operation.place}: {len(more)} more descriptors are open"
            if not operation.was_cancelled:
                break
            if moment is not Moment.TURN:
                reached = max(reached, number)
        else:
            assert moment is Moment.TURN, f"after {max_suspensions} suspensions it still goes on"
    return reached


def _numbers(moment: Moment, max_suspensions: int) -> Iterator[int]:
    if moment is not Moment.TURN:
        yield from range(1, max_suspensions + 1)
        return
    turn = 1
    while turn <= MAX_TURNS:
        yield turn
        turn += 1 + turn // 8  # what happens in few turns happens in the first


async def _run_to_its_end(operation: _Counted, settle_s: float, may_stay: str | None) -> None:
    tasks_before = asyncio.all_tasks()
    task = asyncio.ensure_future(_run(operation))
    if operation.moment is Moment.TURN:
        for _ in range(operation.cancel_at):
            await asyncio.sleep(0)
        operation.was_cancelled = task.cancel()
    await asyncio.wait((task,), timeout=END_S)
    assert task.done(), f"{operation.place}: it goes on"
    if _is_cancelled(task, operation):
        left = await _left_after(settle_s, lambda: _new_tasks(tasks_before, may_stay))
        assert not left, f"{operation.place}: tasks are left: {left}"


def _new_tasks(tasks_before: set[asyncio.Task[Any]], may_stay: str | None) -> list[asyncio.Task[Any]]:
    new = [task for task in asyncio.all_tasks() - tasks_before if task.get_name() != SPARE]  # which a node may keep
    return [task for task in new if may_stay is None or not task.get_name().startswith(may_stay)]


def _is_cancelled(task: asyncio.Task[Any], operation: _Counted) -> bool:
    if task.cancelled():
        assert operation.was_cancelled, f"{operation.place}: cancelled, and not by us"
        return True
    if (error := task.exception()) is not None:
        raise AssertionError(f"{operation.place}: it ended in an error instead") from error
    # While it still waited, no result was there that could excuse it.
    took_no_notice = operation.was_cancelled and operation.moment is Moment.WAITING
    assert not took_no_notice, f"{operation.place}: it took no notice"
    return False


async def _left_after(settle_s: float, find: Callable[[], Any]) -> Any:
    """What is still found when things had time to end; ends as soon as nothing is."""
    with contextlib.suppress(TimeoutError):
        await until(lambda: not find(), within_s=settle_s)
    return find()


async def until(condition: Callable[[], Any], *, within_s: float = END_S) -> None:
    """Return when something holds that nobody tells of. Raises TimeoutError."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - there is nothing to wait for but time
            await asyncio.sleep(0)


def open_descriptors() -> int:
    """How many descriptors this process has open; 0 where the system does not tell."""
    return len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0


class _Counted:
    """An awaitable that counts the suspensions of another, and cancels the task that runs it at one of them."""

    def __init__(self, awaited: Awaitable[Any], cancel_at: int, moment: Moment) -> None:
        self.was_cancelled = False
        self.moment = moment
        self.cancel_at = cancel_at
        self.place = "cancelled at " + moment.value.format(cancel_at)
        self._awaited = awaited

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self._awaited.__await__()
        error: BaseException | None = None
        suspensions = 0
        while True:
            try:
                waits_for = next(steps) if error is None else steps.throw(error)  # type: ignore[attr-defined]
            except StopIteration as end:
                return end.value
            suspensions += 1
            if suspensions == self.cancel_at and self.moment is not Moment.TURN:
                self._cancel(waits_for)
            try:
                yield waits_for
                error = None
            except BaseException as thrown:
                error = thrown

    def _cancel(self, waits_for: Any) -> None:
        task = asyncio.current_task()
        assert task is not None

        def cancel(_: object = None) -> None:
            self.was_cancelled = task.cancel()

        if self.moment is Moment.WOKEN and asyncio.isfuture(waits_for):
            # Before the task's own callback, which is added when it is handed what it waits for.
            waits_for.add_done_callback(cancel)
        else:
            cancel()  # it takes effect as soon as the task waits


async def _run(operation: _Counted) -> Any:
    return await operation


async def _nothing() -> None:
    pass
