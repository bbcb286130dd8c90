"""A task kept for work that mostly ends at once: it runs the first step of a coroutine without a turn of the loop.

A task for each such coroutine costs more than many of them do: it has to be made, and the loop has to come round before
it begins. The two calls that make a task the current one are those that Python's documentation of asyncio names under
"Extending".
"""

from __future__ import annotations

import asyncio
import contextvars
import types
from asyncio.tasks import _enter_task, _leave_task
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeAlias, TypeVar

from synapse_p2p.prompt_future import end_program

SPARE = "spare task"

ArgumentT = TypeVar("ArgumentT")
Begun: TypeAlias = Callable[[ArgumentT, asyncio.Task[Any]], Coroutine[Any, Any, None]]
"""Makes the coroutine that does something with an argument, in this task."""


class SpareTask:
    """A task that waits to be lent: to one coroutine after another, until one keeps it because it has to wait.

    It is named SPARE until then, for whoever looks at all tasks. `serve()` is awaited in the task itself.
    """

    __slots__ = ("_called", "_is_retired", "_loop", "_rest", "_task")

    def __init__(self, task: asyncio.Task[Any]) -> None:
        task.set_name(SPARE)
        self._task = task
        self._loop = task.get_loop()
        self._called: asyncio.Future[None] = self._loop.create_future()
        self._rest: tuple[Coroutine[Any, Any, None], Any, contextvars.Context] | None = None
        self._is_retired = False

    @property
    def is_free(self) -> bool:
        """Whether it can be lent: nobody has kept it, and nobody has cancelled it."""
        return not self._called.done()

    def begin(
        self,
        run: Begun[ArgumentT],
        arguments: list[ArgumentT],
        context: contextvars.Context,
        on_failure: Callable[[str, BaseException], None],
    ) -> None:
        """Take one argument after another from the list, and run the first step of what `run` makes of it now: each in
        a copy of the context, and with this task as the current one. The first that has not ended then keeps the task,
        and goes on in the next turn of the loop; what is left of the list is for others. So it is inside of another
        task, where nothing is begun.

        A step that fails is told of, with the name that it gave the task.
        """
        task, called = self._task, self._called
        try:
            _enter_task(self._loop, task)
        except RuntimeError:
            return
        try:
            while arguments and not called.done() and not self._is_retired:
                coroutine = run(arguments.pop(0), task)
                own = context.copy()
                try:
                    awaited = own.run(coroutine.send, None)
                except StopIteration:
                    continue
                except (SystemExit, KeyboardInterrupt) as error:
                    end_program(self._loop, error)
                    continue
                except asyncio.CancelledError:
                    continue  # as a task that ends so
                except BaseException as error:
                    on_failure(task.get_name(), error)
                    continue
                if asyncio.isfuture(awaited):
                    # What a future says to the task that it is handed to. That is a turn of the loop away, and another
                    # may come to await the same one before: `_go_on` says it again.
                    awaited._asyncio_future_blocking = False
                self._rest = coroutine, awaited, own
                if not called.done():
                    called.set_result(None)
                break
        finally:
            _leave_task(self._loop, task)
            if self._rest is None:
                task.set_name(SPARE)
                if self._is_retired:
                    called.cancel()

    def retire(self) -> None:
        """Be lent no more, and end unless somebody keeps the task; be it one whose first step this is."""
        self._is_retired = True
        if asyncio.current_task() is not self._task:
            self._called.cancel()

    async def serve(self) -> None:
        """Wait until a coroutine keeps the task, and return when it ends. Raises what it raises."""
        cancelled = None
        try:
            await self._called
        except asyncio.CancelledError as error:
            if self._rest is None:
                raise
            cancelled = error
        rest, self._rest = self._rest, None
        assert rest is not None, "nobody is called for nothing"
        await _go_on(*rest, cancelled)


async def waits(running: Coroutine[Any, Any, None], context: contextvars.Context) -> bool:
    """Run a coroutine to its end, in this context; whether it had to wait for anything. Raises what it raises."""
    try:
        awaited = context.run(running.send, None)
    except StopIteration:
        return False
    await _go_on(running, awaited, context)
    return True


@types.coroutine
def _go_on(
    running: Coroutine[Any, Any, None],
    awaited: Any,
    context: contextvars.Context,
    cancelled: asyncio.CancelledError | None = None,
) -> Generator[Any, Any, None]:
    """The rest of a coroutine that waits for something, in the task that awaits this.

    Where the task was `cancelled` before it came to wait, so is what it would have waited for, as asyncio does.
    """
    try:
        if cancelled is not None and not (asyncio.isfuture(awaited) and awaited.cancel()):
            awaited = context.run(running.throw, cancelled)
        if asyncio.isfuture(awaited):
            awaited._asyncio_future_blocking = True
        while True:
            try:
                value = yield awaited
            except BaseException as error:
                awaited = context.run(running.throw, error)
            else:
                awaited = context.run(running.send, value)
    except StopIteration:
        return
