"""Agents one after the other, as they are found and have answered."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any

from dht.results import FoundAgent
from synapse_p2p.background import TaskScope

OnFound = Callable[[FoundAgent], None]


class FindStream:
    """An async iterator of agents. When it has ended, `complete` says whether these were all, and `reason` why not.

    Leave it early with `aclose()`, or by `async with`: what it was doing ends at once.
    """

    def __init__(
        self,
        search: Callable[[OnFound], Coroutine[Any, Any, str]],
        probe: Callable[[FoundAgent], Awaitable[bool]] | None,
        *,
        limit: int | None,
        timeout_s: float | None,
        max_probes: int,
    ) -> None:
        """`search` tells of each agent as it is found and returns why some may be missing; `probe` says whether one is
        there, of whom `max_probes` are asked at a time.
        """
        self.complete = False
        self.reason = "the search is not over"
        self._search = search
        self._probe = probe
        self._limit = limit
        self._timeout_s = timeout_s
        self._max_probes = max_probes
        self._agents = self._run()

    def __aiter__(self) -> FindStream:
        return self

    async def __anext__(self) -> FoundAgent:
        return await self._agents.__anext__()

    async def aclose(self) -> None:
        """End it."""
        await self._agents.aclose()

    async def __aenter__(self) -> FindStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _run(self) -> AsyncGenerator[FoundAgent]:
        events: asyncio.Queue[FoundAgent | None] = asyncio.Queue()  # those who are there; None when there is news
        waiting: deque[FoundAgent] = deque()
        asked: set[asyncio.Task[None]] = set()
        loop = asyncio.get_running_loop()
        count = 0

        def on_found(agent: FoundAgent) -> None:
            if self._probe is None:
                events.put_nowait(agent)
            else:
                waiting.append(agent)
                events.put_nowait(None)

        async def ask(agent: FoundAgent, probe: Callable[[FoundAgent], Awaitable[bool]]) -> None:
            if await probe(agent):
                events.put_nowait(agent)

        def on_asked(task: asyncio.Task[None]) -> None:
            asked.discard(task)
            events.put_nowait(None)

        async with TaskScope("find") as scope:
            searching = scope.spawn_awaited(self._search(on_found))
            searching.add_done_callback(lambda _: events.put_nowait(None))
            deadline = None if self._timeout_s is None else loop.time() + self._timeout_s
            while True:
                while self._probe is not None and waiting and len(asked) < self._max_probes:
                    task = scope.spawn_awaited(ask(waiting.popleft(), self._probe))
                    asked.add(task)
                    task.add_done_callback(on_asked)
                if searching.done() and not asked and not waiting and events.empty():
                    break
                try:
                    async with asyncio.timeout_at(deadline):
                        agent = await events.get()
                except TimeoutError:
                    self.reason = f"not over after {self._timeout_s:g} s"
                    return
                if agent is None:
                    continue
                count += 1
                yield agent
                if count == self._limit:
                    self.reason = f"limit {self._limit}"
                    return
            self.reason = searching.result()
            self.complete = not self.reason
