"""One `ask` under way: which provider is tried, which next, and when it is over.

An answer ends it, and so does a provider's own failure. Another provider is tried where the last one was not there, was
busy, or takes no task from us: then nothing was done. A call that may have started is repeated elsewhere only when the
caller said it may be.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from dht.exceptions import NoAgentFound
from dht.lookup import LookupMode
from dht.results import Answer, Attempt, AttemptEnd, FindResult, FoundAgent
from synapse_p2p.background import TaskScope, wait_at_most
from synapse_p2p.exceptions import PeerUnavailable, RemoteError, Timeout
from synapse_p2p.messages import Code


class Asking:
    """Looks for providers, chooses among two that live, and fails over.

    `find(mode)` gives providers in random order; `is_answering` probes one.
    """

    def __init__(
        self,
        capability: str,
        *,
        find: Callable[[LookupMode], Coroutine[Any, Any, FindResult]],
        is_answering: Callable[[FoundAgent], Coroutine[Any, Any, bool]],
        now: Callable[[], float],
        timeout_s: float,
    ) -> None:
        self._capability = capability
        self._find = find
        self._is_answering = is_answering
        self._now = now
        self._deadline = now() + timeout_s
        self._attempts: list[Attempt] = []

    async def run(self, task: str, context: dict[str, Any], *, idempotent: bool) -> Answer:
        """The answer. Raises RemoteError (with `.answer`), PeerUnavailable, Timeout, NoAgentFound."""
        async with TaskScope("ask") as scope:
            answering = scope.spawn_awaited(self._run(task, context, idempotent=idempotent))
            if not await wait_at_most(answering, self._left_s()):
                raise self._late()
            return answering.result()

    async def _run(self, task: str, context: dict[str, Any], *, idempotent: bool) -> Answer:
        complete = True
        reason = "nobody in the network has it"
        # The first storer that knows anybody is enough to begin with; all of them are read when those failed.
        for mode in (LookupMode.FAST, LookupMode.STRICT):
            found = await self._find(mode)
            complete = found.complete
            reason = found.reason or reason
            tried = {attempt.agent.id for attempt in self._attempts}
            untried = [agent for agent in found if agent.id not in tried]
            while (agent := await self._choose(untried)) is not None:
                answer = await self._try(agent, task, context, idempotent=idempotent)
                if answer is not None:
                    return answer
        if self._attempts:
            reason = "; ".join(f"{attempt.agent.name}: {attempt.text}" for attempt in self._attempts)
        raise NoAgentFound(self._capability, complete=complete, reason=reason)

    async def _choose(self, untried: list[FoundAgent]) -> FoundAgent | None:
        """Two are probed and the one that answers first is taken out; both are, when neither answers. None: nobody is
        left.
        """
        while untried:
            pair = untried[:2]
            async with TaskScope("choose") as scope:
                probes = {scope.spawn_awaited(self._is_answering(agent)): agent for agent in pair}
                chosen = await _first_true(list(probes))
            if chosen is not None:
                untried.remove(probes[chosen])
                return probes[chosen]
            for agent in pair:
                untried.remove(agent)
                self._attempts.append(Attempt(agent, AttemptEnd.UNREACHABLE, "did not answer a probe", 0.0))
        return None

    async def _try(self, agent: FoundAgent, task: str, context: dict[str, Any], *, idempotent: bool) -> Answer | None:
        """The answer; None where another provider may be tried."""
        started_at = self._now()

        def note(end: AttemptEnd, text: str) -> None:
            self._attempts.append(Attempt(agent, end, text, self._now() - started_at))

        try:
            result = await agent.ask(task, context, timeout=self._left_s())
        except RemoteError as error:
            if error.code in (Code.BUSY, Code.FORBIDDEN):  # nothing was done, and another may have room, or let us in
                note(AttemptEnd.BUSY if error.code == Code.BUSY else AttemptEnd.FORBIDDEN, error.message)
                return None
            note(AttemptEnd.FAILED, error.message)
            error.answer = Answer(None, agent, tuple(self._attempts))
            raise
        except PeerUnavailable as error:
            note(AttemptEnd.UNREACHABLE, str(error))
            if error.may_have_started and not idempotent:
                raise
            return None
        except Timeout as error:
            note(AttemptEnd.TIMEOUT, str(error))
            raise
        note(AttemptEnd.ANSWERED, "")
        return Answer(result, agent, tuple(self._attempts))

    def _left_s(self) -> float:
        left_s = self._deadline - self._now()
        if left_s <= 0:
            raise self._late()
        return left_s

    def _late(self) -> Timeout:
        return Timeout(f"no provider of {self._capability!r} answered in the time given")


async def _first_true(tasks: list[asyncio.Task[bool]]) -> asyncio.Task[bool] | None:
    """The first task to end with True; None when none does."""
    ended: asyncio.Queue[asyncio.Task[bool]] = asyncio.Queue()
    for task in tasks:
        task.add_done_callback(ended.put_nowait)
    for _ in tasks:
        task = await ended.get()
        if task.result():
            return task
    return None
