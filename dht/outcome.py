"""What a lookup is for, what it tells its runner to do, and what it found: the words between `lookup.py` and others.

Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, TypeAlias

from dht.contact import Contact
from dht.keyspace import Key
from synapse_p2p.identity import NodeID


class LookupMode(Enum):
    """When a lookup has seen enough."""

    STRICT = "strict"
    EARLY = "early"
    FAST = "fast"
    FRESH = "fresh"
    GUARDED = "guarded"

    @property
    def seeks_value(self) -> bool:
        """Whether it ends at a value, and goes on without one."""
        return self is LookupMode.FAST or self is LookupMode.FRESH


class TraceEvent(Enum):
    """What happened to a candidate."""

    ASKED = "asked"
    SLOW = "slow"
    ANSWERED = "answered"
    FAILED = "failed"


class Why(Enum):
    """Why a candidate was chosen."""

    NEAREST = "nearest"
    INSIDE = "inside"  # the region, where the least-asked group, an open session and a fast answer go before distance
    BRANCH = "branch"  # beside one that is slow
    SKIPPED = "skipped"  # by density or diversity, and too few others answered
    RESTING = "resting"  # it failed a moment ago, and nobody else answered


class TraceStep(NamedTuple):
    """One event of a lookup: when (seconds, the runner's clock), to whom, its depth, and on which path; of one asked
    also why, and who one hop before named it: nobody of a contact of our own, or where five or more had named it.
    """

    at: float
    event: TraceEvent
    contact_id: NodeID
    depth: int
    path: int = 0
    why: Why | None = None
    named_by: NodeID | None = None


@dataclass(frozen=True, slots=True)
class LookupOutcome:
    """What a lookup found.

    `closest` are those that answered, nearest first, at most k; where density or diversity speaks against some, others
    go before them. `region` are those inside the region, at most 3k, of which `closest` may hold a part. `hops` is the
    depth at which the nearest of all was asked: a seed has depth 1, a contact first named by one asked at depth h has
    h + 1; None if nobody answered.

    `complete` is False where the search cannot speak for the network: requests ran out, everyone asked failed, or a
    value was not found and those that answered lie too thinly to be all that are there (`is_thin`). `newest` is the
    largest version that `on_found` told of, and `stale` are those inside the region that hold an older one, or none.
    `slow` counts those whose short time passed.
    """

    target: Key
    closest: tuple[Contact, ...]
    hops: int | None
    asked: int
    failed: int
    found: bool
    complete: bool
    trace: tuple[TraceStep, ...]
    region: tuple[Contact, ...] = ()
    stale: tuple[Contact, ...] = ()
    newest: int | None = None
    slow: int = 0
    paths: int = 1
    is_thin: bool = False


@dataclass(frozen=True, slots=True)
class Ask:
    """Send a request to each of these now; they count as in flight."""

    contacts: tuple[Contact, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do before a reply, a failure, or this time (seconds, the runner's clock)."""

    until: float


@dataclass(frozen=True, slots=True)
class Widen:
    """Nothing is in flight. Call `on_widen` with our own contacts nearest to the target, at least `count` if we know as
    many, once no other lookup of this key is widened.
    """

    count: int


@dataclass(frozen=True, slots=True)
class Finished:
    """It is over. Whatever is still in flight is of no use any more."""

    outcome: LookupOutcome


Step: TypeAlias = Ask | Wait | Widen | Finished
