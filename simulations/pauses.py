"""Processes that stand still: what arrives at one waits, and nothing of its own runs until it goes on.

A process is what runs in the `context` of its host: tasks that were begun there, with all that these begin, and what
becomes of messages that arrive. So the host's timers and deadlines wait too. When it goes on, all this happens at that
instant: first what has arrived, in order, then what came due, as an event loop does that looks at its sockets first.

Not simulated: the kernel of a real host goes on under a frozen process, so a dial of it would be connected, and would
wait for the handshake instead; and a timer of a machine that slept would still have all the time to go that it had.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import Generic, TypeVar

from simulations.virtual_loop import MICROSECONDS, OWNER, VirtualLoop
from synapse_p2p.identity import NodeID

M = TypeVar("M")


class Pauses(Generic[M]):
    """Who stands still now, until when, and the messages that wait for them.

    Invariant: who is in `waiting` is held by the loop, and a timer is set for the end.
    """

    def __init__(self, loop: VirtualLoop, deliver: Callable[[list[M]], None]) -> None:
        self.waiting: dict[NodeID, list[M]] = {}  # asked for every message that arrives
        self.contexts: dict[NodeID, contextvars.Context] = {}  # the same
        self._loop = loop
        self._context = contextvars.copy_context()
        self._deliver = deliver
        self._begun_us: dict[NodeID, int] = {}
        self._until_us: dict[NodeID, int] = {}
        self._stood_us: dict[NodeID, int] = {}  # in pauses that are over

    def context_of(self, host: NodeID) -> contextvars.Context:
        """Where the tasks of this host's process are to be begun."""
        context = self.contexts.get(host)
        if context is None:
            context = self.contexts[host] = contextvars.copy_context()
            context.run(OWNER.set, host)
        return context

    def pause(self, host: NodeID, duration_s: float) -> None:
        """Let it stand still from now on; a longer pause that is under way stays."""
        until_us = self._loop.now_us + round(duration_s * MICROSECONDS)
        if until_us <= self._until_us.get(host, self._loop.now_us):
            return
        if host not in self.waiting:
            self.waiting[host] = []
            self._begun_us[host] = self._loop.now_us
            self._loop.hold(host)
        self._until_us[host] = until_us
        self._loop.call_at(until_us / MICROSECONDS, self._on_time, host, until_us, context=self._context)

    def end(self, host: NodeID) -> None:
        """Let it go on at once; nothing happens to one that does not stand still."""
        messages = self.waiting.pop(host, None)
        if messages is None:
            return
        del self._until_us[host]
        self._stood_us[host] = self._stood_us.get(host, 0) + self._loop.now_us - self._begun_us.pop(host)
        self._deliver(messages)
        self._loop.release(host)

    def awake_s(self, host: NodeID) -> float:
        """Seconds of the loop in which it did not stand still: what its deadlines are counted in."""
        stood_us = self._stood_us.get(host, 0)
        if host in self._begun_us:
            stood_us += self._loop.now_us - self._begun_us[host]
        return (self._loop.now_us - stood_us) / MICROSECONDS

    def _on_time(self, host: NodeID, until_us: int) -> None:
        if self._until_us.get(host) == until_us:  # else it was made longer, or has ended
            self.end(host)
