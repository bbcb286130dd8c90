"""Who stays connected: which of two sessions with one peer survives, who is let in, which idle ones go, which addresses
rest.

Pure. `transport/pool.py` acts on it, and the simulator follows the same rules.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

from synapse_p2p.identity import NodeID

S = TypeVar("S", bound=Hashable)


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
    is_accepted: bool = False
    is_settled: bool = True  # false of one just opened to us: its first call is on the way


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """How many sessions there may be. Only what is idle ever goes for them: they bound strangers, not our own calls."""

    max_sessions: int
    max_accepted: int  # of these; the other places are kept for sessions that we dial
    max_idle: int

    @property
    def fewest(self) -> int:
        """So many sessions are never too many, whatever they are."""
        return min(self.max_sessions, self.max_accepted, self.max_idle)

    @classmethod
    def of(cls, max_sessions: int, reserved: int, max_idle: int, max_descriptors: int | None) -> SessionLimits:
        """Those of a process that may have `max_descriptors` files open (None: unknown): sessions take a quarter.

        At most half of the places are reserved, so that a small limit leaves room for both.
        """
        if max_descriptors is not None:
            max_sessions = max(1, min(max_sessions, max_descriptors // 4))
        return cls(max_sessions, max_sessions - min(reserved, max_sessions // 2), max_idle)


def has_place(open_sessions: Iterable[SessionUse[S]], limits: SessionLimits) -> bool:
    """Whether one more session can be accepted, where need be in the place of idle ones."""
    uses = list(open_sessions)
    in_use = sum(not use.is_idle for use in uses)
    accepted_in_use = sum(use.is_accepted and not use.is_idle for use in uses)
    return in_use < limits.max_sessions and accepted_in_use < limits.max_accepted


def sessions_to_close(open_sessions: Iterable[SessionUse[S]], limits: SessionLimits) -> list[S]:
    """The idle sessions that are too many, least recently used first. A session with a call in flight is never among
    them, and one that is not settled only where the places themselves are taken.
    """
    uses = list(open_sessions)
    idle = sorted((use for use in uses if use.is_idle), key=lambda use: use.last_used)
    accepted_surplus = max(sum(use.is_accepted for use in uses) - limits.max_accepted, 0)
    closed = [use for use in idle if use.is_accepted][:accepted_surplus]
    kept = [use for use in idle if use not in closed] if closed else idle
    settled = [use for use in kept if use.is_settled]
    chosen = settled[: max(len(settled) - limits.max_idle, 0)]
    missing_places = len(uses) - len(closed) - limits.max_sessions - len(chosen)
    if missing_places > 0:
        chosen += [use for use in kept if use not in chosen][:missing_places]
    closed += chosen
    return [use.session for use in sorted(closed, key=lambda use: use.last_used)]


class AcceptedConnections(Generic[S]):
    """Accepted connections by the host they came from: who is still to be proved, and how many sessions a host has.

    Who connects and proves nothing must keep nobody out, so of the unproved the oldest goes for a newcomer; a session
    was proved, so there the newcomer is refused. A host of None is one that is not counted. Invariant: at most
    `max_unproved` unproved, and per counted host `max_unproved_per_host` and `max_sessions_per_host`.
    """

    def __init__(self, *, max_unproved: int, max_unproved_per_host: int, max_sessions_per_host: int) -> None:
        self._max_unproved = max_unproved
        self._max_unproved_per_host = max_unproved_per_host
        self._max_sessions_per_host = max_sessions_per_host
        self._unproved: dict[S, str | None] = {}  # with its host, oldest first
        self._sessions: dict[S, str | None] = {}
        self._unproved_counts: Counter[str] = Counter()
        self._session_counts: Counter[str] = Counter()

    @property
    def unproved_count(self) -> int:
        """How many have still to prove who they are."""
        return len(self._unproved)

    def is_host_full(self, host: str | None) -> bool:
        """Whether a host has as many sessions as one may."""
        return host is not None and self._session_counts[host] >= self._max_sessions_per_host

    def add(self, connection: S, host: str | None) -> S | None:
        """A newcomer. The result is whom to close for it; that one is forgotten."""
        surplus = None
        if host is not None and self._unproved_counts[host] >= self._max_unproved_per_host:
            # Bounded by what is unproved, and only a host at its limit pays for the search.
            surplus = next(held for held, its_host in self._unproved.items() if its_host == host)
        elif len(self._unproved) >= self._max_unproved:
            surplus = next(iter(self._unproved))
        if surplus is not None:
            self.remove(surplus)
        self._unproved[connection] = host
        if host is not None:
            self._unproved_counts[host] += 1
        return surplus

    def on_proved(self, connection: S) -> bool:
        """It proved who it is: whether its host has a place left. Where not, it is forgotten.

        One that had to go for another has none.
        """
        if connection not in self._unproved:
            return False
        host = self._unproved[connection]
        self.remove(connection)
        if self.is_host_full(host):
            return False
        self._sessions[connection] = host
        if host is not None:
            self._session_counts[host] += 1
        return True

    def remove(self, connection: S) -> None:
        """It has ended. One that is not known is none of them."""
        for held, counts in ((self._unproved, self._unproved_counts), (self._sessions, self._session_counts)):
            host = held.pop(connection, None)
            if host is not None:
                counts[host] -= 1
                if not counts[host]:
                    del counts[host]

    def take_oldest_unproved(self) -> S | None:
        """The one that has proved nothing for longest, forgotten here; None when there is none."""
        oldest = next(iter(self._unproved), None)
        if oldest is not None:
            self.remove(oldest)
        return oldest

    def check_invariants(self) -> None:
        """Assert the bounds and that the counts are those of what is held; for tests."""
        assert len(self._unproved) <= self._max_unproved
        assert not self._unproved.keys() & self._sessions.keys()
        for held, counts, limit in (
            (self._unproved, self._unproved_counts, self._max_unproved_per_host),
            (self._sessions, self._session_counts, self._max_sessions_per_host),
        ):
            assert counts == Counter(host for host in held.values() if host is not None)
            assert all(count <= limit for count in counts.values())


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

    def forget(self) -> None:
        """Failures prove nothing any more: no address rests."""
        self._rests.clear()

    def is_resting(self, address: str, now: float) -> bool:
        """Whether to answer `unavailable` without a dial."""
        until, _ = self._rests.get(address, (now, 0.0))
        return now < until

    def __len__(self) -> int:
        return len(self._rests)
