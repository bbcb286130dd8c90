"""An asyncio event loop whose clock jumps to the next event: hours of a swarm's life in seconds, repeatable.

Owns the clock, whole microseconds inside, and the order of callbacks: by when they are due, then by when they
were scheduled. It reads no real clock, draws no random number and does no I/O: what needs the operating
system raises NotSimulated, also where code does not ask the loop for it (real_world.py).

Time passes only when nothing is left to do at this instant. So code that spins would stop time for ever, and
a wait for what nobody will do would never end. Both are found and raised, as Livelock and Deadlock.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import logging
import math
import sys
import threading
import weakref
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from concurrent.futures import Executor
from typing import Any, NoReturn, TypeAlias, TypeVar, cast

from simulations.real_world import (
    CALL_DIRECTLY,
    LEAVE_OUT_PROCESSES,
    LEAVE_OUT_SIGNALS,
    USE_VIRTUAL_NETWORK,
    KeptOut,
    NotSimulated,
)
from synapse_p2p.exceptions import SynapseError
from synapse_p2p.whose_code import is_own

logger = logging.getLogger(__name__)

T = TypeVar("T")
ExceptionHandler: TypeAlias = Callable[[asyncio.AbstractEventLoop, dict[str, Any]], object]

MICROSECONDS = 1_000_000  # in a second
MAX_CALLBACKS_PER_INSTANT = 1_000_000  # 100,000 nodes that all start at once need fewer
MIN_CANCELLED_TO_COMPACT = 64  # below it a walk over the heap saves nothing
MAX_NAMES_IN_ERROR = 10
OWNER: contextvars.ContextVar[object] = contextvars.ContextVar("owner", default=None)
"""Whose the callbacks of a context are, where they can be held together. Tasks and timers hand it on."""

_FIXES = {
    "add_signal_handler": LEAVE_OUT_SIGNALS,
    "remove_signal_handler": LEAVE_OUT_SIGNALS,
    "set_default_executor": CALL_DIRECTLY,
    "subprocess_exec": LEAVE_OUT_PROCESSES,
    "subprocess_shell": LEAVE_OUT_PROCESSES,
    "connect_read_pipe": LEAVE_OUT_PROCESSES,
    "connect_write_pipe": LEAVE_OUT_PROCESSES,
    "set_task_factory": "use plain tasks; eager ones run in an order that differs by Python version",
}


class Deadlock(SynapseError, RuntimeError):
    """Nothing is left to run and the result is not there. `tasks` names those that wait, oldest first."""

    def __init__(self, at_s: float, tasks: tuple[str, ...]) -> None:
        super().__init__(f"at {at_s:.6f} s nothing is left to run; still waiting: {_enumerate(tasks)}")
        self.at_s = at_s
        self.tasks = tasks


class Livelock(SynapseError, RuntimeError):
    """Callbacks schedule callbacks and no time passes. `tasks` names those that were next, each once."""

    def __init__(self, at_s: float, limit: int, tasks: tuple[str, ...]) -> None:
        super().__init__(f"at {at_s:.6f} s time stands still after {limit} callbacks; next: {_enumerate(tasks)}")
        self.at_s = at_s
        self.limit = limit
        self.tasks = tasks


def _refuse_the_rest(loop_class: type[T]) -> type[T]:
    """Refuse every call of an event loop that `loop_class` does not define, in this Python or a later one."""

    def refusal(name: str) -> Callable[..., NoReturn]:
        def refuse(*_: Any, **__: Any) -> NoReturn:
            raise NotSimulated(f"loop.{name}()", _FIXES.get(name, USE_VIRTUAL_NETWORK))

        return refuse

    for name in vars(asyncio.AbstractEventLoop):
        if not name.startswith("_") and name not in vars(loop_class):
            setattr(loop_class, name, refusal(name))
    return loop_class


@_refuse_the_rest
class VirtualLoop(asyncio.AbstractEventLoop):
    """The loop. Invariant: what is due now is in `_ready`, in the order it was scheduled; all else is later.

    A positive delay takes at least a microsecond, so code that waits until `time()` has reached a point gets
    there, whatever rounding left over.
    """

    def __init__(self, *, max_callbacks_per_instant: int = MAX_CALLBACKS_PER_INSTANT) -> None:
        # The same as `time()` in whole microseconds: what goes into a trace that has to be equal to the bit. For others
        # to read; an attribute, for every message asks twice.
        self.now_us = 0
        self._ready: deque[_Callback] = deque()
        self._heap: list[tuple[float, int, _Callback]] = []
        self._scheduled_count = 0  # callbacks ever put in the heap: the second key of its order
        self._cancelled_count = 0  # callbacks in the heap that will not run
        self._max_callbacks_per_instant = max_callbacks_per_instant
        self._tasks: dict[asyncio.Task[Any], None] = {}  # those that have not ended, oldest first
        self._held: dict[object, list[_Callback]] = {}  # by owner: what came due while its callbacks are held
        self._generators: weakref.WeakKeyDictionary[AsyncGenerator[Any, Any], None] = weakref.WeakKeyDictionary()
        self._exception_handler: ExceptionHandler | None = None
        self._thread = threading.get_ident()
        self._is_running = False
        self._is_stopping = False
        self._is_closed = False
        # Not as other loops do in development mode: where a task came from costs more than all that it does here.
        self._debug = False
        self._kept_out = KeptOut()

    def __repr__(self) -> str:
        return f"<VirtualLoop at {self.time():.6f} s, {len(self._tasks)} tasks>"

    def time(self) -> float:
        """Seconds since this loop was made."""
        return self.now_us / MICROSECONDS

    def call_soon(
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """Run `callback` at this instant, after what is scheduled for it already."""
        # Not by `_schedule`: this is asked four times for each request, by futures and tasks.
        if self._is_closed:
            self._check_open()
        context = contextvars.copy_context() if context is None else context  # one that is empty is false
        scheduled = _Callback(self.now_us, callback, args, context, self)
        self._ready.append(scheduled)
        return scheduled

    def call_later(
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """Run `callback` `delay` seconds from now, to the microsecond; an infinite delay never ends."""
        delay_us = 0 if delay <= 0 else max(1, _microseconds(delay))
        return self._schedule(self.now_us + delay_us, callback, args, context)

    def call_at(
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """Run `callback` at the instant `when`, in seconds on the clock of `time()`; now, if that is past."""
        is_due = when <= self.time()
        when_us = self.now_us if is_due else max(self.now_us + 1, _microseconds(when))
        return self._schedule(when_us, callback, args, context)

    def call_at_us(
        self, when_us: int, callback: Callable[..., object], *args: Any, context: contextvars.Context
    ) -> asyncio.TimerHandle:
        """`call_at` for who counts in the microseconds of `now_us`."""
        return self._schedule(when_us, callback, args, context)

    def hold(self, owner: object) -> None:
        """Run no callback of this OWNER until it is released; what comes due waits, in order."""
        self._held.setdefault(owner, [])

    def hold_back(self, owner: object, callback: Callable[..., object], *args: Any) -> bool:
        """Whether this owner is held; then the callback waits among its others."""
        held = self._held.get(owner)
        if held is None:
            return False
        held.append(_Callback(self.now_us, callback, args, contextvars.Context(), self))
        return True

    def release(self, owner: object) -> None:
        """Run at this instant what was held; nothing happens to an owner that is not held."""
        self._ready.extend(self._held.pop(owner, ()))

    def call_soon_threadsafe(
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """`call_soon`, for signal handlers and finalizers. Another thread would come at a random moment."""
        if threading.get_ident() != self._thread:
            raise NotSimulated("loop.call_soon_threadsafe() from another thread", CALL_DIRECTLY)
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(self, executor: Executor | None, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """Run the plain function of an endpoint or of a periodic task in a turn of its own, at this instant.

        Our packages put these in threads, because they may block; here nothing blocks, and a thread would come back
        at a random moment. To anybody else it raises NotSimulated.
        """
        if not is_own(sys._getframe(1).f_code.co_filename):
            raise NotSimulated("loop.run_in_executor()", CALL_DIRECTLY)
        result: asyncio.Future[T] = self.create_future()
        self.call_soon(_run_into, result, func, args)
        return result

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
        **options: Any,
    ) -> asyncio.Task[T]:
        """A task that runs `coro`; `options` are those that newer Pythons give to asyncio.Task."""
        self._check_open()
        task: asyncio.Task[T] = asyncio.Task(coro, loop=self, name=name, context=context, **options)
        if not task.done():
            self._tasks[task] = None
            task.add_done_callback(self._tasks.pop)
        return task

    def get_task_factory(self) -> None:
        return None

    def pending_tasks(self) -> list[asyncio.Task[Any]]:
        """The tasks that have not ended, oldest first. asyncio.all_tasks() has them in random order."""
        return [task for task in self._tasks if not task.done()]

    def run_until_complete(self, future: Generator[Any, None, T] | Awaitable[T]) -> T:
        """The result of `future`. Raises Deadlock if it cannot come, Livelock if time stops before it."""
        is_given_future = asyncio.isfuture(future)
        awaited: asyncio.Future[T] = asyncio.ensure_future(cast("Awaitable[T]", future), loop=self)
        awaited.add_done_callback(self._stop_after)
        try:
            self.run_forever()
        except BaseException:
            if not is_given_future and awaited.done() and not awaited.cancelled():
                awaited.exception()  # it is this error or came with it: not to be reported as never retrieved
            raise
        finally:
            awaited.remove_done_callback(self._stop_after)
        if not awaited.done():
            raise RuntimeError("the event loop was stopped before the future was done")
        return awaited.result()

    def run_forever(self) -> None:
        """Run until `stop()`. Raises Deadlock when nothing is left that could call it, and Livelock."""
        self._check_open()
        if self._is_running or asyncio._get_running_loop() is not None:
            raise RuntimeError("an event loop is running in this thread already")
        hooks = sys.get_asyncgen_hooks()
        self._thread = threading.get_ident()
        self._is_running = True
        try:
            sys.set_asyncgen_hooks(firstiter=self._remember_generator, finalizer=self._finish_generator)
            asyncio._set_running_loop(self)
            with self._kept_out:
                self._run()
        finally:
            self._is_running = self._is_stopping = False
            asyncio._set_running_loop(None)
            sys.set_asyncgen_hooks(*hooks)

    def stop(self) -> None:
        """End `run_forever` after the callbacks that are ready now."""
        self._is_stopping = True

    def is_running(self) -> bool:
        return self._is_running

    def is_closed(self) -> bool:
        return self._is_closed

    def close(self) -> None:
        """Forget all that is scheduled, for good. A second call does nothing."""
        if self._is_running:
            raise RuntimeError("a running event loop cannot be closed")
        self._is_closed = True
        self._ready.clear()
        self._heap.clear()
        self._held.clear()
        self._tasks.clear()

    async def shutdown_asyncgens(self) -> None:
        """Close the asynchronous generators that were left half-way, oldest first."""
        for generator in list(self._generators):
            try:
                await generator.aclose()
            except Exception as error:
                message = f"closing {generator!r} failed"
                self.call_exception_handler({"message": message, "exception": error, "asyncgen": generator})

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Nothing to do: there is none."""

    def get_exception_handler(self) -> ExceptionHandler | None:
        return self._exception_handler

    def set_exception_handler(self, handler: ExceptionHandler | None) -> None:
        self._exception_handler = handler

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Report an error that nobody awaits. A handler that fails itself is logged and stops nothing."""
        if self._exception_handler is None:
            self.default_exception_handler(context)
            return
        try:
            self._exception_handler(self, context)
        except Exception:
            logger.exception("the exception handler failed at: %s", context.get("message"))

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        """One line at ERROR, with the traceback."""
        logger.error("%s", context.get("message"), exc_info=context.get("exception"))

    def get_debug(self) -> bool:
        return self._debug

    def set_debug(self, enabled: bool) -> None:
        self._debug = enabled

    def _check_open(self) -> None:
        if self._is_closed:
            raise RuntimeError("the event loop is closed")

    def _schedule(
        self,
        when_us: float,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        context: contextvars.Context | None,
    ) -> _Callback:
        if self._is_closed:
            self._check_open()
        scheduled = _Callback(when_us, callback, args, contextvars.copy_context() if context is None else context, self)
        if when_us <= self.now_us:
            self._ready.append(scheduled)
        else:
            scheduled._scheduled = True
            self._scheduled_count += 1
            heapq.heappush(self._heap, (when_us, self._scheduled_count, scheduled))
        return scheduled

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """A callback in the heap was cancelled. Deadlines that are hardly ever reached must not fill it."""
        self._cancelled_count += 1
        if self._cancelled_count >= MIN_CANCELLED_TO_COMPACT and 2 * self._cancelled_count > len(self._heap):
            self._heap[:] = [entry for entry in self._heap if not entry[2]._cancelled]
            heapq.heapify(self._heap)
            self._cancelled_count = 0

    def _run(self) -> None:
        ready, held = self._ready, self._held
        ran_count = 0  # since the clock last moved
        while True:
            if not ready and not self._is_stopping:
                self._jump()
                ran_count = 0
            batch_size = len(ready)
            ran_count += batch_size
            if ran_count > self._max_callbacks_per_instant:
                names = tuple(dict.fromkeys(callback.name() for callback in ready if not callback._cancelled))
                raise Livelock(self.time(), self._max_callbacks_per_instant, names)
            for _ in range(batch_size):
                callback = ready.popleft()
                if callback._cancelled:
                    continue
                if held and (waiting := held.get(callback._context.get(OWNER))) is not None:
                    waiting.append(callback)
                    continue
                try:
                    callback._context.run(callback._callback, *callback._args)
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException as error:
                    message = f"exception in callback {callback.name()}"
                    self.call_exception_handler({"message": message, "exception": error, "handle": callback})
            if self._is_stopping:
                return

    def _jump(self) -> None:
        """Set the clock to the next instant at which something is due; all of it becomes ready, in order."""
        heap = self._heap
        while heap and heap[0][2]._cancelled:
            heapq.heappop(heap)
            self._cancelled_count -= 1
        if not heap or heap[0][0] == math.inf:
            raise Deadlock(self.time(), tuple(_task_name(task) for task in self.pending_tasks()))
        when_us = heap[0][0]
        self.now_us = int(when_us)
        while heap and heap[0][0] == when_us:
            callback = heapq.heappop(heap)[2]
            callback._scheduled = False
            if callback._cancelled:
                self._cancelled_count -= 1
            else:
                self._ready.append(callback)

    def _stop_after(self, future: asyncio.Future[Any]) -> None:
        # These two have left run_forever already; stopping now would end the clean-up that follows.
        if future.cancelled() or not isinstance(future.exception(), (SystemExit, KeyboardInterrupt)):
            self._is_stopping = True

    def _remember_generator(self, generator: AsyncGenerator[Any, Any]) -> None:
        self._generators[generator] = None

    def _finish_generator(self, generator: AsyncGenerator[Any, Any]) -> None:
        self._generators.pop(generator, None)
        if not self._is_closed:
            self.call_soon_threadsafe(self.create_task, generator.aclose())


class _Callback(asyncio.TimerHandle):
    """What is scheduled, for now or later. `_when` is in microseconds; `_scheduled` means in the heap.

    The constructor of asyncio's handle is not called: it asks for debug tracebacks, and doubles the cost.
    """

    __slots__ = ()
    _context: contextvars.Context
    _callback: Callable[..., object]
    _loop: VirtualLoop

    def __init__(
        self,
        when_us: float,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        context: contextvars.Context,
        loop: VirtualLoop,
    ) -> None:
        self._when = when_us
        self._callback = callback
        self._args = args
        self._context = context
        self._loop = loop
        self._cancelled = False
        self._scheduled = False

    def when(self) -> float:
        return self._when / MICROSECONDS

    def cancel(self) -> None:
        if self._cancelled:
            return
        self._cancelled = True
        # It may lie in the heap until it is due; what it would have touched is free at once.
        self._callback, self._args = _nothing, ()
        if self._scheduled:
            self._loop._timer_handle_cancelled(self)

    def name(self) -> str:
        """The task that it would continue, or else its function."""
        owner = getattr(self._callback, "__self__", None)
        if isinstance(owner, asyncio.Task):
            return _task_name(owner)
        return getattr(self._callback, "__qualname__", type(self._callback).__name__)

    def __repr__(self) -> str:
        return f"<{'cancelled' if self._cancelled else self.name()} at {self.when():.6f} s>"


def run(main: Coroutine[Any, Any, T], *, max_callbacks_per_instant: int = MAX_CALLBACKS_PER_INSTANT) -> T:
    """The result of `main` on a loop of its own, whose clock starts at 0.

    Tasks that it leaves behind are cancelled, oldest first, and awaited; then the loop is closed. Raises what
    `main` raises, Deadlock and Livelock.
    """
    if asyncio._get_running_loop() is not None:
        main.close()
        raise RuntimeError("run() starts an event loop, and this thread is running one: await instead")
    loop = VirtualLoop(max_callbacks_per_instant=max_callbacks_per_instant)
    try:
        return loop.run_until_complete(main)
    finally:
        try:
            _end_tasks(loop)
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            loop.close()


def _end_tasks(loop: VirtualLoop) -> None:
    leftovers = loop.pending_tasks()
    if not leftovers:
        return
    for task in leftovers:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*leftovers, return_exceptions=True))
    for task in leftovers:
        if not task.cancelled() and (error := task.exception()) is not None:
            message = f"{_task_name(task)} failed while it was cancelled"
            loop.call_exception_handler({"message": message, "exception": error, "task": task})


def _run_into(result: asyncio.Future[T], func: Callable[..., T], args: tuple[Any, ...]) -> None:
    if result.cancelled():
        return  # as in a pool of threads: what was cancelled before its turn does not run
    try:
        result.set_result(func(*args))
    except KeyboardInterrupt:
        raise  # the user's, who watches the simulation
    except BaseException as error:
        result.set_exception(error)


def _microseconds(seconds: float) -> float:
    """The nearest whole number, or infinity. Nearest: 0.1 + 0.2 is a little more than 0.3 and means 0.3."""
    return math.inf if seconds == math.inf else round(seconds * MICROSECONDS)


def _nothing() -> None:
    """What a cancelled callback would run."""


def _task_name(task: asyncio.Task[Any]) -> str:
    coroutine = task.get_coro()
    return f"{task.get_name()} ({getattr(coroutine, '__qualname__', type(coroutine).__name__)})"


def _enumerate(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - MAX_NAMES_IN_ERROR} more" if len(names) > MAX_NAMES_IN_ERROR else ""
    return (", ".join(names[:MAX_NAMES_IN_ERROR]) or "no task") + more
