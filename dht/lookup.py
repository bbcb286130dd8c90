"""The iterative lookup: which contact is asked next, and when the search is over.

Pure: no clock, no socket, no task. A runner polls it, sends what it is told to send, and says what came back;
it cancels what is still in flight when `Finished` comes. Source: Kademlia section 2.3.

A candidate's life, told by events:

    (unknown)   a seed, or named in a reply        -> unasked
    unasked     picked by `poll`                   -> in flight
    in flight   replied                            -> answered
    in flight   failed, or its deadline passed     -> failed, and out of the shortlist for good

The lookup itself ends once:

    strict      the k closest of the shortlist have answered and nothing is in flight
    early       the 3 closest of the shortlist have answered, whoever else is in flight (to find one node by its id)
    fast        a value was found; until then as strict
    any         `max_requests` are spent and nothing is in flight: then it is incomplete
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from dht.config import LookupConfig
from dht.contact import Contact
from dht.keyspace import Key
from synapse_p2p.identity import NodeID

SHORTLIST_FACTOR = 20
"""The shortlist holds at most this many times k candidates; an honest network fills a quarter of it."""
EARLY_COUNT = 3
"""Closest candidates that must have answered before an early lookup ends; it asks no others."""


class LookupMode(Enum):
    """When a lookup has seen enough."""

    STRICT = "strict"
    EARLY = "early"
    FAST = "fast"


class TraceEvent(Enum):
    """What happened to a candidate."""

    ASKED = "asked"
    ANSWERED = "answered"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class TraceStep:
    """One event of a lookup: when (seconds, the runner's clock), to whom, and its depth."""

    at: float
    event: TraceEvent
    contact_id: NodeID
    depth: int


@dataclass(frozen=True, slots=True)
class LookupOutcome:
    """What a lookup found.

    `closest` are those that answered, nearest first, at most k. `hops` is the depth at which the nearest of
    them was asked: a seed has depth 1, a contact first named by one asked at depth h has h + 1; None if
    nobody answered. `complete` is False where the search cannot speak for the network: requests ran out, or
    everyone asked failed.
    """

    target: Key
    closest: tuple[Contact, ...]
    hops: int | None
    asked: int
    failed: int
    found: bool
    complete: bool
    trace: tuple[TraceStep, ...]


@dataclass(frozen=True, slots=True)
class Ask:
    """Send a request to each of these now; they count as in flight."""

    contacts: tuple[Contact, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do before a reply, a failure, or this time (seconds, the runner's clock)."""

    until: float


@dataclass(frozen=True, slots=True)
class Finished:
    """It is over. Whatever is still in flight is of no use any more."""

    outcome: LookupOutcome


Step: TypeAlias = Ask | Wait | Finished


class _State(Enum):
    UNASKED = "unasked"
    IN_FLIGHT = "in flight"
    ANSWERED = "answered"
    FAILED = "failed"


class _Candidate:
    """A contact on its way through the lookup. Its place in the shortlist is its distance."""

    __slots__ = ("contact", "depth", "distance", "state")

    def __init__(self, contact: Contact, distance: int, depth: int) -> None:
        self.contact = contact
        self.distance = distance
        self.depth = depth
        self.state = _State.UNASKED


class Lookup:
    """One search for the nodes closest to `target`, or for a value they hold.

    Invariants: at most `alpha` in flight, at most `max_requests` asked, nobody asked twice, never our own id.
    """

    def __init__(
        self, target: Key, *, own_id: NodeID, seeds: Iterable[Contact], mode: LookupMode, config: LookupConfig
    ) -> None:
        self._target = target
        self._target_point = int.from_bytes(target, "big")
        self._own_id = own_id
        self._mode = mode
        self._config = config
        # An early lookup asks nobody but the few it waits for: a third fewer requests for the same time.
        self._wanted = min(EARLY_COUNT, config.k) if mode is LookupMode.EARLY else config.k
        self._max_shortlist = SHORTLIST_FACTOR * config.k
        self._candidates: dict[NodeID, _Candidate] = {}  # the shortlist's, and those that failed
        # The shortlist, nearest first and without the failed, and the distances of those in it. Two lists, for `bisect`
        # compares numbers ten times as fast as it asks candidates for theirs, and a few hundred are moved at once.
        self._shortlist: list[_Candidate] = []
        self._distances: list[int] = []
        self._deadlines: dict[NodeID, float] = {}  # of those in flight; ascending, as all get the same time
        self._asked = 0
        self._failed = 0
        self._found = False
        self._trace: list[TraceStep] = []
        self._outcome: LookupOutcome | None = None
        self._add(seeds, depth=1)

    def poll(self, now: float) -> Step:
        """What to do now. Poll again at once after `Ask`, and after `Wait` when something happened."""
        if self._outcome is None:
            self._fail_overdue(now)
            step = self._next_step(now)
            if not isinstance(step, Finished):
                return step
            self._outcome = step.outcome
        return Finished(self._outcome)

    def on_reply(self, sender: NodeID, closer: Sequence[Contact], now: float) -> None:
        """`sender` answered and named these contacts. Ignored unless it is in flight."""
        if self._outcome is not None or sender not in self._deadlines:
            return
        del self._deadlines[sender]
        candidate = self._candidates[sender]
        candidate.state = _State.ANSWERED
        self._record(TraceEvent.ANSWERED, candidate, now)
        self._add(closer, depth=candidate.depth + 1)

    def on_found(self, sender: NodeID, closer: Sequence[Contact], now: float) -> None:
        """As `on_reply`, and the reply carried a value that the runner checked. Ends a fast lookup."""
        if self._outcome is not None or sender not in self._deadlines:
            return
        self._found = True
        self.on_reply(sender, closer, now)

    def on_failure(self, sender: NodeID, now: float) -> None:
        """The request to `sender` failed. Ignored unless it is in flight."""
        if self._outcome is not None or sender not in self._deadlines:
            return
        del self._deadlines[sender]
        candidate = self._candidates[sender]
        candidate.state = _State.FAILED
        self._drop(candidate)
        self._failed += 1
        self._record(TraceEvent.FAILED, candidate, now)

    def _next_step(self, now: float) -> Step:
        if self._found and self._mode is LookupMode.FAST:
            return Finished(self._conclude(complete=True))
        eligible = self._shortlist[: self._wanted]
        unasked = [candidate for candidate in eligible if candidate.state is _State.UNASKED]
        if self._mode is LookupMode.EARLY and _all_answered(eligible):
            return Finished(self._conclude(complete=True))
        places = min(self._config.alpha - len(self._deadlines), self._config.max_requests - self._asked)
        if unasked and places > 0:
            return self._ask(unasked[:places], now)
        if self._deadlines:
            return Wait(next(iter(self._deadlines.values())))
        return Finished(self._conclude(complete=not unasked))

    def _ask(self, candidates: list[_Candidate], now: float) -> Ask:
        for candidate in candidates:
            candidate.state = _State.IN_FLIGHT
            self._deadlines[candidate.contact.id] = now + self._config.request_timeout_s
            self._record(TraceEvent.ASKED, candidate, now)
        self._asked += len(candidates)
        return Ask(tuple(candidate.contact for candidate in candidates))

    def _fail_overdue(self, now: float) -> None:
        overdue = [sender for sender, deadline in self._deadlines.items() if deadline <= now]
        for sender in overdue:
            self.on_failure(sender, now)

    def _add(self, contacts: Iterable[Contact], *, depth: int) -> None:
        candidates, distances, shortlist = self._candidates, self._distances, self._shortlist
        for contact in contacts:
            known = candidates.get(contact.id)
            if known is not None:
                # The first addresses stay: whoever names a node later must not redirect us.
                if depth < known.depth and known.state is _State.UNASKED:
                    known.depth = depth
                continue
            if contact.id == self._own_id:
                continue
            distance = contact.point ^ self._target_point
            candidates[contact.id] = candidate = _Candidate(contact, distance, depth)
            place = bisect_left(distances, distance)
            distances.insert(place, distance)
            shortlist.insert(place, candidate)
            if len(shortlist) > self._max_shortlist:
                self._drop_farthest_unasked()

    def _drop(self, candidate: _Candidate) -> None:
        place = bisect_left(self._distances, candidate.distance)
        del self._distances[place], self._shortlist[place]

    def _drop_farthest_unasked(self) -> None:
        for candidate in reversed(self._shortlist):
            if candidate.state is _State.UNASKED:
                self._drop(candidate)
                del self._candidates[candidate.contact.id]
                return

    def _conclude(self, *, complete: bool) -> LookupOutcome:
        answered = [candidate for candidate in self._shortlist if candidate.state is _State.ANSWERED]
        return LookupOutcome(
            target=self._target,
            closest=tuple(candidate.contact for candidate in answered[: self._config.k]),
            hops=answered[0].depth if answered else None,
            asked=self._asked,
            failed=self._failed,
            found=self._found,
            complete=complete and (bool(answered) or self._asked == 0),
            trace=tuple(self._trace),
        )

    def _record(self, event: TraceEvent, candidate: _Candidate, now: float) -> None:
        self._trace.append(TraceStep(now, event, candidate.contact.id, candidate.depth))


def _all_answered(candidates: list[_Candidate]) -> bool:
    return all(candidate.state is _State.ANSWERED for candidate in candidates)
