"""Which ask of an agent runs, which waits, and which is refused.

Pure: who asks goes in, what to do comes out. Invariants: at most `max_tasks` run, at most `per_caller` of one caller,
at most `queue_size` wait; nobody waits who could run.

    arrived   a place is free, for the caller too: running. Else the queue has room: waiting. Else it takes the place of
              another that waits, as below: waiting. Else: refused.
    waiting   it is its turn: running. A caller with fewer asks displaces it, it is withdrawn: ended.
    running   done, failed, withdrawn: ended. One that waits gets its turn: of those whose caller has fewest running
              the one that came first.

A newcomer that finds the queue full displaces the newest ask of the caller with most waiting, if that caller has at
least two more waiting than the newcomer would have: with one more the two would displace each other in turn.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TypeAlias

from synapse_p2p.exceptions import ConfigError

Caller: TypeAlias = bytes | str
"""A node id, or the host of callers that are anonymous."""


@dataclass(frozen=True, slots=True)
class Run:
    """It has its place."""

    ticket: int


@dataclass(frozen=True, slots=True)
class Wait:
    """It waits for its turn, perhaps in the place of another, which ends as refused."""

    ticket: int
    displaced: int | None = None


@dataclass(frozen=True, slots=True)
class Refuse:
    """No place, and none in the queue."""


class TaskQueue:
    """The places of one agent. Every ask that is not refused has a ticket, from `on_asked` to `on_ended`.

    Cost of each step: O(waiting).
    """

    def __init__(self, *, max_tasks: int, queue_size: int, per_caller: int) -> None:
        """Raises ConfigError for bounds that would let nothing run."""
        for name, value, least in (
            ("max_tasks", max_tasks, 1),
            ("queue", queue_size, 0),
            ("per_caller", per_caller, 1),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"{name} is {value!r:.40}; it has to be a whole number, {least} or more")
        self.max_tasks = max_tasks
        self.queue_size = queue_size
        self.per_caller = per_caller
        self._last_ticket = 0
        self._running: dict[int, Caller | int] = {}
        self._waiting: dict[int, Caller | int] = {}  # first come, first in it
        self._running_of: Counter[Caller | int] = Counter()  # by caller; no zeros stay

    def on_asked(self, caller: Caller | None) -> Run | Wait | Refuse:
        """An ask arrived. Those of `None` cannot be told apart: each counts as a caller of its own."""
        self._last_ticket += 1
        ticket = self._last_ticket
        # A number is nobody's id and nobody's host.
        key = ticket if caller is None else caller
        if len(self._running) < self.max_tasks and self._running_of[key] < self.per_caller:
            self._run(ticket, key)
            return Run(ticket)
        displaced = None
        if len(self._waiting) >= self.queue_size:
            displaced = self._displaced_by(key)
            if displaced is None:
                return Refuse()
            del self._waiting[displaced]
        self._waiting[ticket] = key
        return Wait(ticket, displaced)

    def on_ended(self, ticket: int) -> int | None:
        """An ask is over, run or not; the ticket of the one whose turn it is now. Said again it changes nothing."""
        if ticket not in self._running:
            self._waiting.pop(ticket, None)
            return None
        caller = self._running.pop(ticket)
        self._running_of[caller] -= 1
        if not self._running_of[caller]:
            del self._running_of[caller]
        following = self._next()
        if following is not None:
            self._run(following, self._waiting.pop(following))
        return following

    @property
    def running_count(self) -> int:
        """How many run."""
        return len(self._running)

    @property
    def waiting_count(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def check_invariants(self) -> None:
        """Assert what must always hold; for tests."""
        assert len(self._running) <= self.max_tasks
        assert len(self._waiting) <= self.queue_size
        assert not self._running.keys() & self._waiting.keys()
        assert dict(self._running_of) == dict(Counter(self._running.values()))
        assert max(self._running_of.values(), default=0) <= self.per_caller
        assert list(self._waiting) == sorted(self._waiting)
        if len(self._running) < self.max_tasks:
            assert all(self._running_of[caller] >= self.per_caller for caller in set(self._waiting.values()))

    def _run(self, ticket: int, caller: Caller | int) -> None:
        self._running[ticket] = caller
        self._running_of[caller] += 1

    def _next(self) -> int | None:
        """Whose turn it is. One end frees a place for one: those that wait for a place of their own caller's go on."""
        least, following = self.per_caller, None
        for ticket, caller in self._waiting.items():
            if (running := self._running_of.get(caller, 0)) < least:
                least, following = running, ticket
        return following

    def _displaced_by(self, caller: Caller | int) -> int | None:
        waiting_of = Counter(self._waiting.values())
        most = max(waiting_of.values(), default=0)
        if most < waiting_of[caller] + 1 + 2:
            return None
        return next(ticket for ticket in reversed(self._waiting) if waiting_of[self._waiting[ticket]] == most)
