"""A future whose waiting task can go on at once, and not when the loop has come round.

For a short call that turn of the loop, with its call of the system, is a tenth of all it costs.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from typing import Any


class PromptFuture(asyncio.Future[Any]):
    """To be awaited by one task, whose next step is run within `set_result`, and to have no other callbacks."""

    __slots__ = ("_waiter",)

    def add_done_callback(
        self, callback: Callable[[PromptFuture], object], /, *, context: contextvars.Context | None = None
    ) -> None:
        """Where a task awaits a future, the callback is its next step.

        It may be done by then: what the first step of a coroutine awaits is handed to its task in the next turn.
        """
        if self.done():
            super().add_done_callback(callback, context=context)
        else:
            self._waiter = callback, context or contextvars.copy_context()

    def set_result(self, result: Any, /) -> None:
        """As of any future; then the task that waits goes on. Inside of another task that is left to the loop."""
        _set_result(self, result)
        if asyncio.current_task(self._loop) is not None:
            self._leave_to_loop()
            return
        try:
            step, context = self._waiter
        except AttributeError:
            return  # nobody waits yet
        try:
            context.run(step, self)
        except (SystemExit, KeyboardInterrupt) as error:
            end_program(self._loop, error)

    def set_exception(self, exception: type | BaseException, /) -> None:
        """As of any future."""
        self._leave_to_loop()
        super().set_exception(exception)

    def cancel(self, msg: Any | None = None) -> bool:
        """As of any future."""
        self._leave_to_loop()
        return super().cancel(msg)

    def _leave_to_loop(self) -> None:
        if hasattr(self, "_waiter"):
            step, context = self._waiter
            del self._waiter
            super().add_done_callback(step, context=context)


def end_program(loop: asyncio.AbstractEventLoop, error: BaseException) -> None:
    """Raise SystemExit or KeyboardInterrupt out of the loop, as one does that a task raises in its own turn.

    Not at once: whoever handed us the bytes of a peer has no part in it. A transport of uvloop's would take it for a
    fault of its connection, and what else the bytes held would be lost.
    """
    loop.call_soon(_raise, error)


def _raise(error: BaseException) -> None:
    raise error


_set_result = asyncio.Future.set_result  # by name, for `super()` costs as much as it does
