"""Who owns a task: scopes that cancel in creation order, and the periodic tasks of a server.

Owns the rule that no task is left behind. `asyncio.TaskGroup` is not used because it cancels in the order of a set,
which differs between runs; a simulation that repeats needs an order.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import logging
import threading
import traceback
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, TypeVar

from synapse_p2p.exceptions import ConfigError
from synapse_p2p.prompt_future import PromptFuture
from synapse_p2p.runtime import Runtime, system_runtime
from synapse_p2p.spare_task import ArgumentT, Begun, SpareTask, waits
from synapse_p2p.types import BackgroundTask

logger = logging.getLogger(__name__)

STOP_TIMEOUT_S = 0.5  # for periodic functions to end once they are cancelled
MAX_BACKGROUND_THREADS = 8  # for plain periodic functions of one server; more of them wait for a free one
MAX_REMEMBERED_FAILURES = 16  # different ones of one periodic function; past it the one not seen longest is new again
REPEATS_LOGGED_EVERY_S = 60.0  # how often the log tells that a known failure goes on

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
        self._loop: asyncio.AbstractEventLoop | None = None  # that of all its tasks
        self._spare: SpareTask | None = None  # one of them, that has nothing to do
        self._keeps_spare = True

    def spawn(
        self,
        coroutine: Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[T]:
        """Run a coroutine as a task that nobody awaits. After `close()` RuntimeError is raised and nothing runs.

        It runs in `context`, by default a copy of the one that spawns it.
        """
        return self._start(coroutine, name, self._forget_and_log, context)

    def spawn_awaited(
        self,
        coroutine: Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[T]:
        """Run a coroutine as a task whose result or failure the caller takes. `context` as for `spawn`."""
        return self._start(coroutine, name, self._forget, context)

    def begin(
        self,
        run: Begun[ArgumentT],
        arguments: list[ArgumentT],
        *,
        context: contextvars.Context,
        on_lost: Callable[[ArgumentT], None],
    ) -> None:
        """Take all arguments from a list, and run what `run` makes of each: coroutines that mostly end in their first
        step, and that nobody awaits. Each is given its task, and runs in a copy of the context.

        Their first steps are run now, in a task kept from one that ended so; one that has to wait keeps it as its own.
        Where there is none, and inside of another task, each gets a task that begins in the next turn of the loop; if
        that is cancelled before, or the scope is closed, `on_lost` is called instead.
        """
        if self._spare is not None:
            self._spare.begin(run, arguments, context, self._log)
        while arguments:
            argument = arguments.pop(0)
            if self._is_closed:
                on_lost(argument)
                continue
            lost = functools.partial(self._on_lost, on_lost, argument)
            self._start(self._run_first(run, argument, context.copy(), lost), None, lost, context)

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def is_closed(self) -> bool:
        """Whether it starts nothing any more."""
        return self._is_closed

    async def close(self) -> None:
        """Cancel what runs, in creation order, and wait until all of it has ended. A second call does nothing more.

        A task that ignores being cancelled is waited for all the same: bound it with a timeout of your own.
        """
        self._is_closed = True
        self._retire_spare()
        own = asyncio.current_task()
        while running := [task for task in self._tasks if task is not own]:
            for task in running:
                task.cancel()
            for task in running:
                await wait_at_most(task, None)
                # Its done callback may be a loop turn away still.
                self._tasks.pop(task, None)

    async def drain(self) -> None:
        """Wait until every task has ended by itself; bound it with a timeout of your own."""
        self._retire_spare()
        own = asyncio.current_task()
        try:
            while running := [task for task in self._tasks if task is not own]:
                await wait_at_most(running[0], None)
                self._tasks.pop(running[0], None)
        finally:
            self._keeps_spare = not self._is_closed

    async def __aenter__(self) -> TaskScope:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def _start(
        self,
        coroutine: Coroutine[Any, Any, T],
        name: str | None,
        on_end: Callable[[asyncio.Task[Any]], None] | None,
        context: contextvars.Context | None,
    ) -> asyncio.Task[T]:
        if self._is_closed:
            coroutine.close()
            raise RuntimeError(f"{self.name} is closed; it starts no task")
        if self._loop is None:
            self._loop = asyncio.get_running_loop()  # once: on 3.11 each such question is a call of the system
        task = self._loop.create_task(coroutine, name=name, context=context)
        self._tasks[task] = None
        if on_end is not None:
            task.add_done_callback(on_end)
        return task

    async def _run_first(
        self,
        run: Begun[ArgumentT],
        argument: ArgumentT,
        context: contextvars.Context,
        lost: Callable[[asyncio.Task[Any]], None],
    ) -> None:
        own = asyncio.current_task(self._loop)
        assert own is not None, "a coroutine of the scope's runs in a task"
        own.remove_done_callback(lost)
        try:
            if not await waits(run(argument, own), context) and not own.cancelling() and self._wants_spare():
                self._spare = SpareTask(own)
                await self._spare.serve()
        except BaseException:
            own.add_done_callback(self._forget_and_log)
            raise
        # By itself: to be told by a task that it is done takes a turn of the loop.
        self._forget(own)

    def _wants_spare(self) -> bool:
        return self._keeps_spare and (self._spare is None or not self._spare.is_free)

    def _retire_spare(self) -> None:
        """There is none from here on; whoever waits for all tasks would wait for it for ever."""
        self._keeps_spare = False
        if self._spare is not None:
            self._spare.retire()

    def _on_lost(self, tell: Callable[[ArgumentT], None], argument: ArgumentT, task: asyncio.Task[Any]) -> None:
        self._forget(task)
        tell(argument)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)

    def _forget_and_log(self, task: asyncio.Task[Any]) -> None:
        self._forget(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log(task.get_name(), error)

    def _log(self, name: str, error: BaseException) -> None:
        logger.error("task %s of %s failed", name, self.name, exc_info=error)


class BackgroundTaskHandler:
    """Runs functions again and again, each on its own period; the name is that of release 1.3.

    The first run is at the start, the next one period later, give or take the task's jitter. A run that still goes on
    when the next is due makes that one fall out: a function slower than its period must not pile up.
    """

    def __init__(self, *, runtime: Runtime | None = None) -> None:
        self._runtime = runtime or system_runtime()
        self._periodic: list[_Periodic] = []
        self._scope: TaskScope | None = None
        self._threads: ThreadPoolExecutor | None = None

    @property
    def tasks(self) -> list[BackgroundTask]:
        """What was added, in that order; a copy."""
        return [periodic.task for periodic in self._periodic]

    @property
    def _running(self) -> set[asyncio.Task[None]]:
        return {periodic.run for periodic in self._periodic if periodic.run is not None and not periodic.run.done()}

    def add_task(self, task: BackgroundTask) -> None:
        """Take a task; if the others run already, it starts now.

        Raises ConfigError for a period of 0 or less, and for a jitter that is negative or not below the period.
        """
        if not task.period > 0:  # so put, it refuses NaN as well
            raise ConfigError(f"background task {task.name!r} has period {task.period}; it has to be above 0 seconds")
        if not 0 <= task.jitter < task.period:
            raise ConfigError(
                f"background task {task.name!r} has jitter {task.jitter}; it has to be at least 0 and below the "
                f"period, {task.period} seconds"
            )
        periodic = _Periodic(task, _FailureLog(task.name, self._runtime.now))
        self._periodic.append(periodic)
        if self._scope is not None:
            self._beat(periodic)

    def start(self) -> None:
        """Run every task once, and again each period. A second call does nothing more."""
        if self._scope is not None:
            return
        self._scope = TaskScope("background tasks")
        # Threads of our own: functions that block must not take those in which asyncio resolves names.
        self._threads = ThreadPoolExecutor(MAX_BACKGROUND_THREADS, thread_name_prefix="synapse-background")
        for periodic in self._periodic:
            self._beat(periodic)

    async def stop(self) -> None:
        """Cancel what runs and wait a moment for its end; nothing runs again until the next start. Bounded in time.

        A plain function that blocks its thread cannot be cancelled: nobody waits for it here.
        """
        for periodic in self._periodic:
            if periodic.timer is not None:
                periodic.timer.cancel()
        scope, self._scope = self._scope, None
        threads, self._threads = self._threads, None
        if scope is not None:
            try:
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await scope.close()
            except TimeoutError:
                logger.warning("%d background tasks ignore that they were cancelled; stopping without them", len(scope))
        if threads is not None:
            threads.shutdown(wait=False, cancel_futures=True)
        for periodic in self._periodic:
            periodic.failures.flush()

    def _beat(self, periodic: _Periodic) -> None:
        """Run a task unless its last run still goes on, and come back when the next run is due."""
        if self._scope is None or self._threads is None:
            return
        task = periodic.task
        pause_s = task.period
        if task.jitter:
            pause_s += self._runtime.rng.uniform(-task.jitter, task.jitter)
        periodic.timer = asyncio.get_running_loop().call_later(pause_s, self._beat, periodic)
        if periodic.is_running():
            logger.debug("background task %s is still running; this run of it falls out", task.name)
            return
        periodic.run = self._scope.spawn(periodic.run_once(self._threads), name=task.name)


class _Periodic:
    """One task and its runs.

    Invariant: no two runs overlap, whatever was stopped and started again between them.
    """

    def __init__(self, task: BackgroundTask, failures: _FailureLog) -> None:
        self.task = task
        self.failures = failures
        self.run: asyncio.Task[None] | None = None  # the latest
        self.timer: asyncio.TimerHandle | None = None
        self._in_thread = threading.Lock()

    def is_running(self) -> bool:
        """Whether the latest run has not ended."""
        return self.run is not None and not self.run.done()

    async def run_once(self, threads: ThreadPoolExecutor) -> None:
        """Run the function to its end; what it raises ends here, in the log."""
        try:
            if inspect.iscoroutinefunction(self.task.callable):
                await self.task.callable()
                return
            # A plain function may block, so it gets a thread; what it returns may still be something to wait for.
            call = functools.partial(contextvars.copy_context().run, self._call_alone)
            result = await asyncio.get_running_loop().run_in_executor(threads, call)
            if inspect.isawaitable(result):
                await result
        except Exception as error:
            # The end of a run: the next one is due all the same.
            self.failures.add(error)

    def _call_alone(self) -> Any:
        # A stop gives up on a function that blocks, but its thread goes on: after a new start it may still be there.
        if not self._in_thread.acquire(blocking=False):
            logger.debug("background task %s still blocks a thread; this run of it falls out", self.task.name)
            return None
        try:
            return self.task.callable()
        except StopIteration as error:
            # A Future of Python 3.11 cannot carry this one: the run would never end, and so be the last.
            raise RuntimeError("the background task raised StopIteration") from error
        finally:
            self._in_thread.release()


class _FailureLog:
    """Tells of the failures of one task: a new one at once with its traceback, the same again as a count.

    Failures are the same if the same class of error was raised in the same line; their texts may differ, for they hold
    times and counts of their own.
    """

    def __init__(self, task_name: str, now: Callable[[], float]) -> None:
        self._task_name = task_name
        self._now = now
        self._repeats: dict[str, _Repeats] = {}  # by what names the failure; the one seen last is at the end

    def add(self, error: Exception) -> None:
        """Log a failure, or count it if the log has told of it within the minute."""
        failure = _name_of(error)
        repeats = self._repeats.pop(failure, None)
        if repeats is None:
            logger.error("background task %s failed", self._task_name, exc_info=error)
            self._forget_oldest()
            repeats = _Repeats(logged_at=self._now())
        else:
            repeats.count += 1
            repeats.unlogged_count += 1
        self._repeats[failure] = repeats
        if repeats.unlogged_count and self._now() - repeats.logged_at >= REPEATS_LOGGED_EVERY_S:
            self._log(failure, repeats)

    def flush(self) -> None:
        """Log the repeats that no line has told of yet."""
        for failure, repeats in self._repeats.items():
            if repeats.unlogged_count:
                self._log(failure, repeats)

    def _forget_oldest(self) -> None:
        if len(self._repeats) < MAX_REMEMBERED_FAILURES:
            return
        failure = next(iter(self._repeats))
        repeats = self._repeats.pop(failure)
        if repeats.unlogged_count:
            self._log(failure, repeats)

    def _log(self, failure: str, repeats: _Repeats) -> None:
        # Below WARNING: that the task is broken was said as an ERROR, and this is how often.
        logger.info(
            "background task %s failed again, %d times (%d in all): %s",
            self._task_name,
            repeats.unlogged_count,
            repeats.count,
            failure,
        )
        repeats.unlogged_count = 0
        repeats.logged_at = self._now()


@dataclass(slots=True)
class _Repeats:
    """How often one failure was seen, and when the log last told of it, in seconds of `Runtime.now`."""

    logged_at: float
    count: int = 1
    unlogged_count: int = 0


def _name_of(error: Exception) -> str:
    """The class of an error and the line that raised it."""
    name = type(error).__qualname__
    frames = list(traceback.walk_tb(error.__traceback__))
    if not frames:
        return name
    frame, line = frames[-1]
    return f"{name} at {frame.f_code.co_filename}:{line}"


def let_go(task: asyncio.Task[Any]) -> None:
    """A done callback for a task whose failure nobody may be left to be told of; else asyncio logs it."""
    if not task.cancelled():
        task.exception()


class Awaited(Protocol):
    """What can be waited for: a Future or a Task, or what is done as one of them is."""

    def done(self) -> bool: ...

    def add_done_callback(self, callback: Callable[[Any], object], /) -> object: ...

    def remove_done_callback(self, callback: Callable[[Any], object], /) -> object: ...


async def wait_at_most(future: Awaited, timeout_s: float | None) -> bool:
    """Whether `future` was done within `timeout_s` seconds; None waits for as long as it takes.

    It is neither cancelled nor asked how it ended; being cancelled ends the wait and leaves it alone.
    """
    if future.done():
        return True
    loop = asyncio.get_running_loop()
    waiter = PromptFuture(loop=loop)

    def wake(_: object = None) -> None:
        if not waiter.done():
            waiter.set_result(None)

    future.add_done_callback(wake)
    timer = None if timeout_s is None else loop.call_later(timeout_s, wake)
    try:
        await waiter
    finally:
        if timer is not None:
            timer.cancel()
        future.remove_done_callback(wake)
    return future.done()
