"""One `ask` under way: what `Selection` decides is done here, and the tasks of it end here.

An answer ends it, and so does a provider's own failure. Another provider is tried where the last one was not there, was
busy, takes no task from us, or has passed this very task on itself: then nothing was done. A call that may have started
is repeated elsewhere only when the caller said it may be; then one that takes long is given to a second provider too,
whoever answers first has answered, and the other is told to stop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from dht.agents.delegation import Delegation, NextAsk
from dht.agents.selection import (
    BUSY_MEMORY_S,
    FAILURE_MEMORY_S,
    Ask,
    Experience,
    Finished,
    Load,
    Probe,
    Search,
    Selection,
    Wait,
    Why,
)
from dht.exceptions import DelegationExhausted, NoAgentFound
from dht.lookup import LookupMode
from dht.results import Answer, Attempt, AttemptEnd, FindResult, FoundAgent
from synapse_p2p.background import TaskScope, wait_at_most
from synapse_p2p.exceptions import PeerUnavailable, RemoteError, Timeout
from synapse_p2p.identity import NodeID
from synapse_p2p.messages import Code

logger = logging.getLogger(__name__)

MODES = (LookupMode.FAST, LookupMode.STRICT)
"""The first storer that knows anybody is enough to begin with; all of them are read when those failed."""
NOBODY_HAS_IT = "nobody in the network has it; is the agent running, and joined to this network?"
MIN_PAUSE_S = 0.001  # a clock that counts microseconds never reaches a time between two of them

_NOT_TAKEN = {Code.BUSY: AttemptEnd.BUSY, Code.FORBIDDEN: AttemptEnd.FORBIDDEN, Code.LOOP: AttemptEnd.LOOP}
"""Refusals of those that have done nothing: another may have room, or let us in."""
_AVOIDED_S = {
    AttemptEnd.UNREACHABLE: FAILURE_MEMORY_S,
    AttemptEnd.TIMEOUT: FAILURE_MEMORY_S,
    AttemptEnd.FORBIDDEN: FAILURE_MEMORY_S,
    AttemptEnd.BUSY: BUSY_MEMORY_S,
}


@dataclass(frozen=True, slots=True)
class Probed:
    """An agent that answered a probe, and how busy it says it is; None where it does not say."""

    load: Load | None


class Asking:
    """One ask, from the search to its one end.

    `find(mode)` gives providers in random order; `probe` gives None for one that is silent; `send` gives it the task,
    with what it carries and the seconds that are left. `experience` lives longer than one ask. `delegation` is the task
    of which this ask is a part, `own_id` is who asks, and `budget` as in `Delegation.for_next_ask`.
    """

    def __init__(
        self,
        capability: str,
        *,
        find: Callable[[LookupMode], Coroutine[Any, Any, FindResult]],
        probe: Callable[[FoundAgent], Coroutine[Any, Any, Probed | None]],
        send: Callable[[FoundAgent, NextAsk, float], Coroutine[Any, Any, Any]],
        experience: Experience,
        delegation: Delegation,
        own_id: NodeID,
        now: Callable[[], float],
        timeout_s: float,
        budget: int | None = None,
        is_idempotent: bool = False,
    ) -> None:
        self._capability = capability
        self._find = find
        self._probe = probe
        self._send = send
        self._experience = experience
        self._delegation = delegation
        self._own_id = own_id
        self._now = now
        self._deadline = now() + timeout_s
        self._budget = budget
        self._is_idempotent = is_idempotent
        self._selection = Selection(
            capability, experience, is_repeatable=is_idempotent, unlikely=frozenset(delegation.path)
        )
        self._modes = list(MODES)
        self._found = FindResult((), complete=True)
        self._agents: dict[NodeID, FoundAgent] = {}
        self._attempts: list[Attempt] = []
        self._ends: dict[NodeID, _End] = {}
        self._woken: asyncio.Future[None] | None = None

    async def run(self) -> Answer:
        """The answer. Raises RemoteError (with `.answer`), PeerUnavailable, Timeout, NoAgentFound; DelegationExhausted
        before anybody is searched for.
        """
        self._delegation.check_may_ask(self._own_id)
        async with TaskScope("ask") as scope:
            finishing = scope.spawn_awaited(self._run())
            if not await wait_at_most(finishing, self._left_s()):
                raise self._late()
            finished = finishing.result()
        return self._conclude(finished)

    async def _run(self) -> Finished:
        """Do what the selection says until it is over; who still has the task then is told to stop."""
        async with TaskScope("ask") as scope, _Probes() as probes:
            while not isinstance(step := self._selection.poll(self._now()), Finished):
                match step:
                    case Search():
                        await self._search()
                    case Probe(ids):
                        for agent_id in ids:
                            probes.spawn(self._run_probe(self._agents[agent_id]))
                    case Ask(agent_id, why):
                        await probes.end()  # of two, the other may be silent still
                        scope.spawn(self._try(self._agents[agent_id], why))
                    case Wait(until):
                        await self._wait(until)
            return step

    async def _search(self) -> None:
        found = await self._find(self._modes.pop(0))
        self._found = FindResult(found.agents, found.complete, found.reason or self._found.reason)
        self._agents.update({agent.id: agent for agent in found if agent.id not in self._agents})
        self._selection.add((agent.id for agent in found), is_last=not self._modes)

    async def _run_probe(self, agent: FoundAgent) -> None:
        started_at = self._now()
        probed = None
        try:
            probed = await self._probe(agent)
        except Exception:  # a fault of ours, and no reason to wait for this one
            logger.exception("a probe of %s failed", agent.id.hex()[:16])
        now = self._now()
        if probed is not None:
            self._selection.on_probe(agent.id, probed.load, now - started_at, now)
        else:
            self._selection.on_silence(agent.id, now)
            text = "did not answer a probe"
            self._attempts.append(Attempt(agent, AttemptEnd.UNREACHABLE, text, 0.0, Why.PROBED))
        self._wake()

    async def _try(self, agent: FoundAgent, why: Why) -> None:
        """Give the task to one provider, and note how that ended: once, however it ended."""
        started_at = self._now()
        self._experience.on_asked(agent.id, self._capability)
        end = _End(AttemptEnd.WITHDRAWN, "another one answered first")
        try:
            end = await self._end_of(agent)
        finally:
            self._experience.on_ended(agent.id)
            self._note(agent, end, why, started_at)
        self._wake()

    async def _end_of(self, agent: FoundAgent) -> _End:
        try:
            carried = self._delegation.for_next_ask(self._own_id, budget=self._budget)
        except DelegationExhausted as error:
            # Of a second ask beside a first that runs it is not the end.
            return _End(AttemptEnd.EXHAUSTED, str(error), error=None if self._selection.asked_count > 1 else error)
        try:
            return _End(AttemptEnd.ANSWERED, "", await self._send(agent, carried, self._left_s()))
        except RemoteError as error:
            code = Code.read(error.code)
            if code in _NOT_TAKEN:
                self._delegation.take_back(carried)
                return _End(_NOT_TAKEN[code], error.message)
            is_exhausted = code is Code.EXHAUSTED
            return _End(AttemptEnd.EXHAUSTED if is_exhausted else AttemptEnd.FAILED, error.message, error=error)
        except PeerUnavailable as error:
            if not error.may_have_started:
                self._delegation.take_back(carried)
            is_final = error.may_have_started and not self._is_idempotent
            return _End(AttemptEnd.UNREACHABLE, str(error), error=error if is_final else None)
        except Timeout as error:
            return _End(AttemptEnd.TIMEOUT, str(error), error=error)
        except Exception as error:  # whoever asks has to know of it: arguments that cannot travel, a fault of ours
            return _End(AttemptEnd.FAILED, str(error), error=error)

    def _note(self, agent: FoundAgent, end: _End, why: Why, started_at: float) -> None:
        now = self._now()
        took_s = now - started_at
        if end.end is AttemptEnd.ANSWERED or (end.end is AttemptEnd.WITHDRAWN and self._selection.is_finished):
            self._experience.on_took(agent.id, self._capability, took_s, now)
        elif end.end in _AVOIDED_S:
            self._experience.on_failed(agent.id, now, for_s=_AVOIDED_S[end.end])
        elif end.end is AttemptEnd.WITHDRAWN and now >= self._deadline:
            self._experience.on_failed(agent.id, now)
        elif isinstance(end.error, RemoteError) and end.error.code == Code.INTERNAL_ERROR:
            self._experience.on_failed(agent.id, now)  # its handler is broken, and quick at that
        self._attempts.append(Attempt(agent, end.end, end.text, took_s, why))
        self._ends[agent.id] = end
        self._selection.on_end(agent.id, is_final=end.is_final)

    def _conclude(self, finished: Finished) -> Answer:
        """The answer of the one that ended it, or its error, or that nobody is left."""
        if finished.by is None:
            reason = self._found.reason or NOBODY_HAS_IT
            if self._attempts:
                reason = "; ".join(f"{attempt.agent.name}: {attempt.text}" for attempt in self._attempts)
            tried = len({attempt.agent.id for attempt in self._attempts})
            raise NoAgentFound(self._capability, complete=self._found.complete, reason=reason, found=tried)
        agent, end = self._agents[finished.by], self._ends.pop(finished.by)
        # The last one is the one that counts, whoever was still told to stop after it.
        attempts = sorted(self._attempts, key=lambda attempt: attempt.agent.id == finished.by)
        answer = Answer(end.result, agent, tuple(attempts))
        if end.error is None:
            return answer
        if isinstance(end.error, RemoteError):
            end.error.answer = answer
        raise end.error

    async def _wait(self, until: float | None) -> None:
        self._woken = asyncio.get_running_loop().create_future()
        await wait_at_most(self._woken, None if until is None else max(until - self._now(), MIN_PAUSE_S))

    def _wake(self) -> None:
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)

    def _left_s(self) -> float:
        left_s = self._deadline - self._now()
        if left_s <= 0:
            raise self._late()
        return left_s

    def _late(self) -> Timeout:
        return Timeout(f"no provider of {self._capability!r} answered in the time given")


@dataclass(frozen=True, slots=True)
class _End:
    """How one provider ended. With a result or an error it is the end of the ask, else another is tried."""

    end: AttemptEnd
    text: str
    result: Any = None
    error: Exception | None = None

    @property
    def is_final(self) -> bool:
        return self.end is AttemptEnd.ANSWERED or self.error is not None


class _Probes:
    """The probes that are under way, to be ended together."""

    def __init__(self) -> None:
        self._scope = TaskScope("probe")

    def spawn(self, probe: Coroutine[Any, Any, None]) -> None:
        self._scope.spawn(probe)

    async def end(self) -> None:
        scope, self._scope = self._scope, TaskScope("probe")
        await scope.close()

    async def __aenter__(self) -> _Probes:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._scope.close()
