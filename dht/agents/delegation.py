"""What travels with a task from agent to agent: hops, path, budget, deadline. No tree of asks is endless.

Owns the one ContextVar by which it gets from the ask that came in, through a user's handler, to the asks that the
handler makes; the stated exception to "no global state". Else pure. Layout: docs/spec/wire.md, section 7.

A task that arrives:   received -> refused (a loop, nothing left, or no envelope at all) | within (its handler runs).
Each ask that is made within takes its share of the budget before it is sent, and nothing of it comes back: an answer
that told how much is left would be the word of a stranger. An ask outside any handler begins a tree of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from dht.exceptions import DelegationExhausted
from synapse_p2p.exceptions import Timeout
from synapse_p2p.identity import NODE_ID_SIZE_BYTES, NodeID
from synapse_p2p.messages import Code, Refusal

MAX_HOPS = 8
"""How often a task is passed on, whatever a caller says."""
MAX_BUDGET = 1024
"""Asks in one tree, whatever a caller says."""
BUDGET_PARTS = 4
"""One ask gets so large a part of what is left, at least 1. From a full budget a handler makes 22 asks, or a chain is
5 long; halves would make that 11 and 10, eighths 42 and 4."""

_NOTHING_STARTED = {"may_have_started": False}


@dataclass(frozen=True, slots=True)
class NextAsk:
    """What one ask carries. `hops` and `budget` count that ask too; `path` ends with who makes it."""

    hops: int
    path: tuple[NodeID, ...]
    budget: int

    def options(self) -> dict[str, Any]:
        """The options of its call; deadline and trace travel with every call."""
        return {"delegation": {"hops": self.hops, "path": list(self.path), "budget": self.budget}}


class Delegation:
    """Where one task stands in its tree of asks. Invariant: the budget is never below 0, and with all that was given
    away never more than at first.

    `hops`: how often it may still be passed on. `path`: who passed it on so far, first the one that began the tree,
    last the one that works on it; all but the two last are hearsay. `deadline`: on the clock of the runtime.
    """

    __slots__ = ("_budget", "deadline", "hops", "path")

    def __init__(
        self,
        *,
        hops: int = MAX_HOPS,
        path: tuple[NodeID, ...] = (),
        budget: int = MAX_BUDGET,
        deadline: float | None = None,
    ) -> None:
        """Without arguments, a tree that begins."""
        self.hops = hops
        self.path = path
        self.deadline = deadline
        self._budget = budget

    @classmethod
    def received(
        cls,
        envelope: Any,
        *,
        peer: NodeID | None,
        own_id: NodeID,
        now: float,
        deadline: float | None = None,
        is_reentrant: bool = False,
    ) -> Delegation | Refusal:
        """What a caller's `delegation` means for us, or what it is told. None begins a tree, as older peers do.

        `peer` is who the session proved. Whatever the envelope says, nobody gets more than who begins a tree: figures
        above the bounds count as the bounds, and hops agree with the length of the path.
        """
        if deadline is not None and deadline <= now:
            return Refusal(Code.DEADLINE_EXCEEDED, "the time of this task was over when it came", _NOTHING_STARTED)
        carried = _read(envelope, peer)
        if isinstance(carried, str):
            return Refusal(Code.BAD_REQUEST, carried)
        for what, left in (("hops", carried.hops), ("budget", carried.budget)):
            if left < 1:
                details = {**_NOTHING_STARTED, "what": what}
                return Refusal(Code.EXHAUSTED, f"this task came with no {what} left, and was not started", details)
        if own_id in carried.path and not is_reentrant:
            text = "this task was passed on by this very agent, so it would go in circles; it takes no question back"
            return Refusal(Code.LOOP, text, _NOTHING_STARTED)
        return cls(
            hops=carried.hops - 1,
            path=(*carried.path, own_id),
            budget=carried.budget - 1,
            deadline=deadline,
        )

    @property
    def budget(self) -> int:
        """Further asks in the whole tree below this task."""
        return self._budget

    def for_next_ask(self, own_id: NodeID, *, budget: int | None = None) -> NextAsk:
        """What an ask of ours carries; its share is gone from the budget.

        `budget` is how many asks it may come to at most, itself included; None: a quarter of what is left. Raises
        DelegationExhausted.
        """
        self.check_may_ask(own_id)
        share = -(-self._budget // BUDGET_PARTS) if budget is None else min(budget, self._budget)
        self._budget -= share
        return NextAsk(self._hops_from(own_id), self._path_from(own_id), share)

    def check_may_ask(self, own_id: NodeID) -> None:
        """Raise what `for_next_ask` would, and take nothing."""
        if self._hops_from(own_id) < 1:
            raise DelegationExhausted(
                "no_hops",
                f"this task was passed on {MAX_HOPS} times and may not be passed on again: do it here, or answer that "
                "it cannot be done",
            )
        if self._budget < 1:
            raise DelegationExhausted(
                "no_budget",
                "this task may ask nobody else, for all the asks that it was given are spent: ask fewer agents, or "
                "give each ask less, as in ask(..., budget=1)",
            )

    def take_back(self, ask: NextAsk) -> None:
        """The share of an ask with which nothing was begun. Who says so and lies gains what it has anyway: it may begin
        a tree itself.
        """
        self._budget += ask.budget

    def shortened_s(self, timeout_s: float, now: float) -> float:
        """So long may an ask of ours take that was given `timeout_s`: never longer than our own caller waits. Raises
        Timeout when that time is over.
        """
        if self.deadline is None:
            return timeout_s
        if self.deadline <= now:
            raise Timeout("the task that this ask is a part of has no time left; nobody was asked")
        return min(timeout_s, self.deadline - now)

    def _path_from(self, own_id: NodeID) -> tuple[NodeID, ...]:
        # A handler may ask through another swarm than the one that it was asked through.
        return self.path if self.path[-1:] == (own_id,) else (*self.path, own_id)

    def _hops_from(self, own_id: NodeID) -> int:
        return min(self.hops, MAX_HOPS + 1 - len(self._path_from(own_id)))

    def __repr__(self) -> str:
        path = " > ".join(node_id.hex()[:8] for node_id in self.path)
        return f"Delegation(hops={self.hops}, budget={self._budget}, path={path})"


_CURRENT: ContextVar[Delegation | None] = ContextVar("the task that runs", default=None)


def current_delegation() -> Delegation | None:
    """That of the task whose handler runs, in its tasks and threads too; None outside of handlers.

    What a handler starts and leaves behind stays a part of its task, and so has its deadline and its budget.
    """
    return _CURRENT.get()


@contextlib.contextmanager
def within(delegation: Delegation) -> Iterator[None]:
    """Until it is left, asks that are made are part of this task."""
    token = _CURRENT.set(delegation)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def _read(envelope: Any, peer: NodeID | None) -> NextAsk | str:
    """What came, within bounds; text for the caller where it cannot be read."""
    if envelope is None:
        return NextAsk(MAX_HOPS, () if peer is None else (peer,), MAX_BUDGET)
    if not isinstance(envelope, dict):
        return "delegation is a map"
    hops, path, budget = (envelope.get(name) for name in ("hops", "path", "budget"))
    if type(hops) is not int or type(budget) is not int:
        return "hops and budget of a delegation are whole numbers"
    if not isinstance(path, list) or not 0 < len(path) <= MAX_HOPS:
        return f"the path of a delegation is a list of 1 to {MAX_HOPS} ids"
    if not all(isinstance(each, bytes) and len(each) == NODE_ID_SIZE_BYTES for each in path):
        return f"an id in the path of a delegation is {NODE_ID_SIZE_BYTES} bytes"
    if path[-1] != peer:
        return "the path of a delegation ends with the id of its caller"
    return NextAsk(min(hops, MAX_HOPS + 1 - len(path)), tuple(path), min(budget, MAX_BUDGET))
