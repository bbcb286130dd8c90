"""Every deadline of a virtual network, in one heap with one timer of the loop.

Nearly all deadlines are never reached: an answer comes first. A timer of its own for each, made and cancelled, costs a
run more than the messages do; an entry here that nobody waits for any more costs nothing when its time comes. But it
keeps what waited in memory till then, and a large swarm makes so much in those seconds that it is out of every cache
when it is freed: so who is done says so.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar

from simulations.virtual_loop import OWNER, VirtualLoop


class Waiter(Protocol):
    """What a deadline is for; an asyncio.Future is one."""

    def done(self) -> bool:
        """Whether the deadline is of no use any more."""
        ...


W = TypeVar("W", bound=Waiter)
Entry: TypeAlias = tuple[Any, Callable[[Any, str], object], str, object]
"""Who waits, what is done then, the text for it, and whose the deadline is (OWNER): it waits while that is held."""


class Deadlines:
    """Who is told when time is up. Invariant: the timer is set for the first of the times, if there is any."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._context = contextvars.Context()  # the timer is nobody's
        self._times_us: list[int] = []  # a heap; those in `_due`, and some of which all were dropped
        self._due: dict[int, list[Entry]] = {}  # by time, in order of adding
        self._timer: asyncio.TimerHandle | None = None
        self._timer_us = 0

    def add(self, at_us: int, waiter: W, expire: Callable[[W, str], object], text: str = "") -> None:
        """Call `expire(waiter, text)` at this microsecond of the loop, unless the waiter is done by then."""
        entry = (waiter, expire, text, OWNER.get())
        due = self._due.get(at_us)
        if due is not None:
            due.append(entry)
            return
        self._due[at_us] = [entry]
        heapq.heappush(self._times_us, at_us)
        if self._timer is None or at_us < self._timer_us:
            self._set_timer()

    def drop(self, at_us: int, waiter: Waiter) -> None:
        """Forget what was added for a waiter that is done; nothing happens when its time has been."""
        due = self._due.get(at_us)
        if due is None:
            return
        if len(due) == 1 and due[0][0] is waiter:
            del self._due[at_us]
        else:
            self._due[at_us] = [entry for entry in due if entry[0] is not waiter]

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_us = self._times_us[0]
        self._timer = self._loop.call_at_us(self._timer_us, self._on_time, context=self._context)

    def _on_time(self) -> None:
        self._timer = None
        for waiter, expire, text, owner in self._take_first():
            if not waiter.done() and not self._loop.hold_back(owner, _expire_late, waiter, expire, text):
                expire(waiter, text)
        # Times that nobody waits for any more are not worth a turn of the loop.
        while self._times_us and not _is_anybody_waiting(self._due.get(self._times_us[0], ())):
            self._take_first()
        if self._times_us and (self._timer is None or self._times_us[0] < self._timer_us):
            self._set_timer()

    def _take_first(self) -> list[Entry]:
        return self._due.pop(heapq.heappop(self._times_us), [])


def _expire_late(waiter: Waiter, expire: Callable[[Any, str], object], text: str) -> None:
    if not waiter.done():
        expire(waiter, text)


def _is_anybody_waiting(entries: Sequence[Entry]) -> bool:
    for waiter, _, _, _ in entries:  # noqa: SIM110 - a generator takes twice as long, and this sees every deadline
        if not waiter.done():
            return True
    return False
