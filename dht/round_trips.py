"""How long an answer may take, who did not answer lately, and what nobody has.

Pure. Three memories of a node, each bounded: round trips decide when a lookup asks somebody else beside a slow peer and
when it gives it up; the dead are not waited for again by the next lookup; a key that nobody has is not searched for
again at once. Sources: RFC 6298 (Jacobson and Karels) for the smoothed round trip, Maymounkov and Mazieres section 4.1
for the doubling pause.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

from dht.config import LookupConfig
from dht.contact import Contact
from dht.keyspace import Key
from synapse_p2p.identity import NodeID

FIRST_TIMEOUT_S = 1.0
"""Before anybody answered; RFC 6298 section 2.1."""
SLOW_FACTOR = 4
"""A peer is given up after so many times the wait after which it counts as slow: by then others have been asked."""
MAX_ROUND_TRIPS = 128
"""Peers whose round trip is remembered: twice the idle sessions kept, and 17 kB in each node of a simulation."""
MAX_DEAD = 1024
MAX_MISSES = 1024

T = TypeVar("T", bound=Hashable)


class Estimator:
    """A smoothed round trip and its mean deviation, in seconds."""

    __slots__ = ("_deviation_s", "_smoothed_s")

    def __init__(self) -> None:
        self._smoothed_s = -1.0
        self._deviation_s = 0.0

    def add(self, sample_s: float) -> None:
        """One more round trip was measured."""
        self._smoothed_s, self._deviation_s = _smooth(self._smoothed_s, self._deviation_s, sample_s)

    @property
    def timeout_s(self) -> float:
        """Smoothed and four deviations; what RFC 6298 says at first, while nothing was measured."""
        return FIRST_TIMEOUT_S if self._smoothed_s < 0 else self._smoothed_s + 4 * self._deviation_s


class RoundTrips:
    """How fast each peer answers. One never asked is taken to be as the others are."""

    def __init__(self, config: LookupConfig) -> None:
        self._config = config
        self._peers: dict[NodeID, tuple[float, float]] = {}  # smoothed, deviation; the one measured longest ago first
        self._answers = Estimator()  # of all peers with whom a session was open
        self._dials = Estimator()  # of a dial and the first answer after it

    def on_answer(self, node_id: NodeID, taken_s: float, *, was_connected: bool) -> None:
        """A peer answered after `taken_s`; without an open session a dial is in that."""
        if not was_connected:
            self._dials.add(taken_s)
            return
        self._answers.add(taken_s)
        peers = self._peers
        smoothed_s, deviation_s = peers.pop(node_id, (-1.0, 0.0))
        peers[node_id] = _smooth(smoothed_s, deviation_s, taken_s)
        if len(peers) > MAX_ROUND_TRIPS:
            del peers[next(iter(peers))]

    def rtt_s(self, node_id: NodeID) -> float:
        """The smoothed round trip; of one never measured, what is waited for anybody."""
        known = self._peers.get(node_id)
        return self._answers.timeout_s if known is None else known[0]

    def timeouts_s(self, node_id: NodeID, *, is_connected: bool) -> tuple[float, float]:
        """After how long a request counts as slow, and after how long it failed. A dial is part of it where one is
        needed, and has its own patience.
        """
        config = self._config
        if not is_connected:
            slow_s = min(max(self._dials.timeout_s, config.min_timeout_s), config.dial_timeout_s)
            return slow_s, config.dial_timeout_s
        known = self._peers.get(node_id)
        wait_s = self._answers.timeout_s if known is None else known[0] + 4 * known[1]
        slow_s = min(max(wait_s, config.min_timeout_s), config.max_timeout_s)
        return slow_s, max(config.request_timeout_s, min(SLOW_FACTOR * slow_s, config.max_timeout_s))

    def check_invariants(self) -> None:
        """Assert the bounds; for tests."""
        assert len(self._peers) <= MAX_ROUND_TRIPS


class Pauses(Generic[T]):
    """Things left alone for a while: twice as long each time they fail again, up to a limit.

    Bounded: of more than `max_count` the one that failed longest ago is forgotten.
    """

    def __init__(self, *, pause_s: float, max_pause_s: float, max_count: int) -> None:
        self._pause_s = pause_s
        self._max_pause_s = max_pause_s
        self._max_count = max_count
        self._paused: OrderedDict[T, tuple[float, float]] = OrderedDict()  # until when, and how long that was

    def add(self, thing: T, now: float) -> None:
        """It failed. Once more within its pause changes nothing: those were asked at the same time."""
        until, pause_s = self._paused.get(thing, (now, 0.0))
        if now < until:
            return
        # Only who fails soon after its pause has not changed since.
        is_again = pause_s and now < until + self._max_pause_s
        pause_s = min(2 * pause_s, self._max_pause_s) if is_again else self._pause_s
        self._paused[thing] = now + pause_s, pause_s
        self._paused.move_to_end(thing)
        if len(self._paused) > self._max_count:
            self._paused.popitem(last=False)

    def remove(self, thing: T) -> None:
        """It is well again."""
        if self._paused:
            self._paused.pop(thing, None)

    def __contains__(self, thing: T) -> bool:
        """Whether anything is remembered of it, its pause over or not."""
        return thing in self._paused

    def is_paused(self, thing: T, now: float) -> bool:
        """Whether it is to be left alone now."""
        paused = self._paused.get(thing) if self._paused else None
        return paused is not None and now < paused[0]

    def __len__(self) -> int:
        return len(self._paused)

    def check_invariants(self) -> None:
        """Assert the bounds; for tests."""
        assert len(self._paused) <= self._max_count
        assert all(self._pause_s <= pause_s <= self._max_pause_s for _, pause_s in self._paused.values())


def dead_contacts(config: LookupConfig) -> Pauses[Contact]:
    """Contacts that did not answer lately: id and addresses, for who names a wrong address must not silence the id."""
    return Pauses(pause_s=config.dead_pause_s, max_pause_s=config.max_dead_pause_s, max_count=MAX_DEAD)


def missed_keys(config: LookupConfig) -> Pauses[Key]:
    """Keys of values that a complete lookup found nowhere. A capability is never here: the agent may start now."""
    return Pauses(pause_s=config.miss_pause_s, max_pause_s=config.max_miss_pause_s, max_count=MAX_MISSES)


def _smooth(smoothed_s: float, deviation_s: float, sample_s: float) -> tuple[float, float]:
    """RFC 6298 section 2: gains of 1/8 and 1/4."""
    if smoothed_s < 0:
        return sample_s, sample_s / 2
    deviation_s += (abs(smoothed_s - sample_s) - deviation_s) / 4
    return smoothed_s + (sample_s - smoothed_s) / 8, deviation_s
