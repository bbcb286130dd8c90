"""What an agent says while it works: the items of one streaming ask, and who sends them."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import replace
from types import TracebackType
from typing import Any, Protocol

from dht.results import Answer
from synapse_p2p.exceptions import RemoteError, SynapseError

MAX_PROGRESS = 100
"""Items that an answer remembers before its result, the newest."""


class OpenedStream(Protocol):
    """Items that come from one agent."""

    def has_item(self) -> bool: ...

    def take(self) -> Any: ...

    async def wait(self, timeout_s: float | None) -> bool: ...

    def close(self) -> None: ...


class OneItem:
    """The answer of an agent of a release that sends no items, as a stream of one."""

    def __init__(self, item: Any) -> None:
        self._items = [item]

    def has_item(self) -> bool:
        return bool(self._items)

    def take(self) -> Any:
        return self._items.pop()

    async def wait(self, timeout_s: float | None) -> bool:
        return bool(self._items)

    def close(self) -> None:
        self._items.clear()


class AskStream:
    """Items of one task as they come: `async for item in swarm.stream_ask(...)`.

    Leaving the loop early tells the agent to stop, at once within `async with`, else when the garbage collector comes
    by.
    """

    def __init__(self, start: Callable[[], Awaitable[Answer]], *, timeout_s: float) -> None:
        self._start = start
        self._timeout_s = timeout_s
        self._progress: deque[Any] = deque(maxlen=MAX_PROGRESS)
        self._items = self._run()
        self._answer: Answer | None = None

    @property
    def answer(self) -> Answer:
        """Who does the work, and who was tried before; `result` is the newest item, and `progress` those before it, at
        most 100. Raises SynapseError before the first item is there.
        """
        if self._answer is None:
            raise SynapseError("nobody has answered yet: there is an answer as soon as the first item is read")
        return self._answer

    def __aiter__(self) -> AskStream:
        return self

    async def __anext__(self) -> Any:
        return await anext(self._items)

    async def __aenter__(self) -> AskStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Want no more. Closed already, it does nothing."""
        await self._items.aclose()

    async def _run(self) -> AsyncGenerator[Any, None]:
        started = await self._start()
        stream: OpenedStream = started.result
        self._answer = answer = replace(started, result=None)
        try:
            is_first = True
            while await stream.wait(self._timeout_s):
                item = stream.take()
                if not is_first:
                    self._progress.append(answer.result)
                is_first = False
                self._answer = answer = replace(answer, result=item, progress=tuple(self._progress))
                yield item
        except RemoteError as error:
            error.answer = answer
            raise
        finally:
            stream.close()
