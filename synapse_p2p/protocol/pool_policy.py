"""Who stays connected: which of two sessions with one peer survives, which idle ones go, which addresses rest.

Pure. `transport/pool.py` acts on it, and the simulator follows the same rules.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

from synapse_p2p.identity import NodeID

S = TypeVar("S")


class Survivor(Enum):
    """Which of two sessions takes new calls; the other finishes what runs and says goodbye."""

    OLDER = "older"
    NEWER = "newer"
    BOTH = "both"


@dataclass(frozen=True, slots=True)
class SessionFacts:
    """What decides between two sessions with one peer."""

    instance: bytes  # of the peer's pool
    is_dialed_by_us: bool


def choose_survivor(own_id: NodeID, peer_id: NodeID, older: SessionFacts, newer: SessionFacts) -> Survivor:
    """Both ends come to the same answer: of two between the same pools, the one dialed by the smaller id survives.

    Of two dialed by one side the newer does, and the side that dialed them sees to it: the other end may have seen them
    open in another order. Different instances are different processes, or a check dial, and never merge.
    """
    if older.instance != newer.instance:
        return Survivor.BOTH
    if older.is_dialed_by_us == newer.is_dialed_by_us:
        return Survivor.NEWER if newer.is_dialed_by_us else Survivor.BOTH
    smaller_is_us = own_id < peer_id
    return Survivor.NEWER if newer.is_dialed_by_us == smaller_is_us else Survivor.OLDER


@dataclass(frozen=True, slots=True)
class SessionUse(Generic[S]):
    """One open session, as the limits see it."""

    session: S
    last_used: float
    is_idle: bool


def sessions_to_close(open_sessions: Iterable[SessionUse[S]], *, max_sessions: int, max_idle: int) -> list[S]:
    """The idle sessions that are too many, least recently used first. A session with a call in flight is never among
    them.
    """
    uses = list(open_sessions)
    idle = sorted((use for use in uses if use.is_idle), key=lambda use: use.last_used)
    surplus = max(len(idle) - max_idle, len(uses) - max_sessions, 0)
    return [use.session for use in idle[:surplus]]


class DialBackoff:
    """Which addresses rest after failed dials. Invariant: at most `max_remembered` addresses, the oldest failure goes
    first.
    """

    def __init__(self, *, pause_s: float, max_pause_s: float, max_remembered: int) -> None:
        self._pause_s = pause_s
        self._max_pause_s = max_pause_s
        self._max_remembered = max_remembered
        self._rests: OrderedDict[str, tuple[float, float]] = OrderedDict()  # address: (until, pause)

    def on_failure(self, address: str, now: float) -> None:
        """A dial failed: the address rests, twice as long as the last time."""
        _, last_pause = self._rests.pop(address, (0.0, self._pause_s / 2))
        pause = min(last_pause * 2, self._max_pause_s)
        self._rests[address] = (now + pause, pause)
        if len(self._rests) > self._max_remembered:
            self._rests.popitem(last=False)

    def on_success(self, address: str) -> None:
        """The address answers."""
        self._rests.pop(address, None)

    def is_resting(self, address: str, now: float) -> bool:
        """Whether to answer `unavailable` without a dial."""
        until, _ = self._rests.get(address, (now, 0.0))
        return now < until

    def __len__(self) -> int:
        return len(self._rests)
