"""Who owns a task: scopes that cancel in creation order, and the periodic tasks of a server.

Owns the rule that no task is left behind. `asyncio.TaskGroup` is not used because it cancels in the order of a set,
which differs between runs; a simulation that repeats needs an order.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, TypeVar

from synapse_p2p.exceptions import ConfigError
from synapse_p2p.types import BackgroundTask

logger = logging.getLogger(__name__)

STOP_TIMEOUT_S = 0.5  # for periodic functions to end once they are cancelled

T = TypeVar("T")


class TaskScope:
    """The owner of some tasks: on exit, or on `close()`, those still running are cancelled, oldest first, and awaited.

    A task's failure never brings its siblings down. Of a task from `spawn` it is logged, here, once; of one from
    `spawn_awaited` it reaches whoever awaits the task.
    """

    def __init__(self, name: str = "scope") -> None:
        self.name = name
        self._tasks: dict[asyncio.Task[Any], None] = {}  # a dict keeps the order of creation
        self._is_closed = False

    def spawn(self, coroutine: Coroutine[Any, Any, T], *, name: str | None = None) -> asyncio.Task[T]:
        """Run a coroutine as a task that nobody awaits. After `close()` RuntimeError is raised and nothing runs."""
        task = self.spawn_awaited(coroutine, name=name)
        task.add_done_callback(self._log_failure)
        return task

    def spawn_awaited(self, coroutine: Coroutine[Any, Any, T], *, name: str | None = None) -> asyncio.Task[T]:
        """Run a coroutine as a task whose result or failure the caller takes."""
        if self._is_closed:
            coroutine.close()
            raise RuntimeError(f"{self.name} is closed; it starts no task")
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks[task] = None
        task.add_done_callback(self._forget)
        return task

    def __len__(self) -> int:
        return len(self._tasks)

    async def close(self) -> None:
        """Cancel what runs, in creation order, and wait until all of it has ended. A second call does nothing more."""
        self._is_closed = True
        own = asyncio.current_task()
        while running := [task for task in self._tasks if task is not own]:
            for task in running:
                task.cancel()
            for task in running:
                await _ended(task)
                # Its done callback may be a loop turn away still.
                self._tasks.pop(task, None)

    async def drain(self) -> None:
        """Wait until every task has ended by itself; bound it with a timeout of your own."""
        own = asyncio.current_task()
        while running := [task for task in self._tasks if task is not own]:
            await _ended(running[0])
            self._tasks.pop(running[0], None)

    async def __aenter__(self) -> TaskScope:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)

    def _log_failure(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("task %s of %s failed", task.get_name(), self.name, exc_info=error)


class BackgroundTaskHandler:
    """Runs functions again and again, each on its own period; the name is that of release 1.3.

    The first run is at the start, the next one period later. A run that still goes on when the next is due makes that
    one fall out: a function slower than its period must not pile up.
    """

    def __init__(self) -> None:
        self.tasks: list[BackgroundTask] = []
        self._scope: TaskScope | None = None
        # Both by position in `tasks`.
        self._latest_runs: dict[int, asyncio.Task[None]] = {}
        self._timers: dict[int, asyncio.TimerHandle] = {}

    @property
    def _running(self) -> set[asyncio.Task[None]]:
        return {run for run in self._latest_runs.values() if not run.done()}

    def add_task(self, task: BackgroundTask) -> None:
        """Take a task; if the others run already, it starts now. Raises ConfigError for a period of 0 or less."""
        if task.period <= 0:
            raise ConfigError(f"background task {task.name!r} has period {task.period}; it has to be above 0 seconds")
        self.tasks.append(task)
        if self._scope is not None:
            self._beat(len(self.tasks) - 1)

    def start(self) -> None:
        """Run every task once, and again each period. A second call does nothing more."""
        if self._scope is not None:
            return
        self._scope = TaskScope("background tasks")
        for index in range(len(self.tasks)):
            self._beat(index)

    async def stop(self) -> None:
        """Cancel what runs and wait a moment for its end; nothing runs again until the next start. Bounded in time."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        scope, self._scope = self._scope, None
        if scope is not None:
            try:
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await scope.close()
            except TimeoutError:
                logger.warning("%d background tasks ignore that they were cancelled; stopping without them", len(scope))
        self._latest_runs.clear()

    def _beat(self, index: int) -> None:
        task = self.tasks[index]
        if self._scope is None:
            return
        self._timers[index] = asyncio.get_running_loop().call_later(task.period, self._beat, index)
        latest = self._latest_runs.get(index)
        if latest is not None and not latest.done():
            logger.debug("background task %s is still running; this run of it falls out", task.name)
            return
        self._latest_runs[index] = self._scope.spawn(_run_once(task), name=task.name)


async def _run_once(task: BackgroundTask) -> None:
    try:
        if inspect.iscoroutinefunction(task.callable):
            await task.callable()
            return
        # A plain function may block, so it gets a thread; what it returns may still be something to wait for.
        result = await asyncio.to_thread(task.callable)
        if inspect.isawaitable(result):
            await result
    except Exception as error:
        # The end of a run: the next one is due all the same.
        logger.error("background task %s failed", task.name, exc_info=error)


async def _ended(task: asyncio.Task[Any]) -> None:
    """Return when `task` has ended, however it did; being cancelled ourselves does not end the wait for it early."""
    if not task.done():
        waiter = asyncio.get_running_loop().create_future()

        def wake(_: asyncio.Task[Any]) -> None:
            if not waiter.done():
                waiter.set_result(None)

        task.add_done_callback(wake)
        try:
            await waiter
        finally:
            task.remove_done_callback(wake)


async def wait_at_most(future: asyncio.Future[Any], timeout_s: float) -> bool:
    """Whether `future` was done within `timeout_s` seconds. It is neither cancelled nor asked how it ended."""
    if future.done():
        return True
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()

    def wake(_: object = None) -> None:
        if not waiter.done():
            waiter.set_result(None)

    future.add_done_callback(wake)
    timer = loop.call_later(timeout_s, wake)
    try:
        await waiter
    finally:
        timer.cancel()
        future.remove_done_callback(wake)
    return future.done()
