"""What is wrong with ourselves, told apart from what is wrong with others: our network, our loop, our clock.

Pure. A node that cannot tell them apart blames everybody it knows for its own bad moment and forgets them. The three
machines here decide; who asks them acts. After Lifeguard (Dadgar et al. 2018), which scales suspicion by one's own
health.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from dht.config import HealthConfig
from synapse_p2p.identity import NodeID

MAX_SILENT_PEERS = 256
"""Remembered since somebody was last heard; it takes a few to know."""
MAX_CLOCK_GROUPS = 32
"""Parties whose clock is remembered, the latest of each; more say nothing new."""


class OwnNetwork:
    """Whether it is our own network that fails: several peers in a row are silent, and nobody at all is heard.

    connected   enough peers were silent since anybody was heard, which is a while ago   -> lost
    lost        anybody is heard                                                         -> connected
    """

    def __init__(self, config: HealthConfig, now: float) -> None:
        self._config = config
        self._heard_at = now
        self._silent: dict[NodeID, None] = {}
        self.is_lost = False

    def on_heard(self, now: float) -> bool:
        """Somebody answered us or asked us. True where that ends a loss."""
        self._heard_at = now
        if self._silent:
            self._silent.clear()
        was_lost, self.is_lost = self.is_lost, False
        return was_lost

    def on_silence(self, peer: NodeID, contacts: int, now: float) -> bool:
        """A request was not answered; we know so many contacts. True where that makes our network the suspect.

        Whoever knows fewer contacts than it takes needs the silence of them all, of two at the least.
        """
        if len(self._silent) < MAX_SILENT_PEERS:
            self._silent[peer] = None
        enough = max(2, min(self._config.lost_after_silent_peers, contacts))
        if self.is_lost or len(self._silent) < enough or now - self._heard_at < self._config.lost_after_s:
            return False
        self.is_lost = True
        return True

    def silent_peers(self) -> list[NodeID]:
        """Who was silent since anybody was heard, in that order: nothing is proved against them."""
        return list(self._silent)


@dataclass(frozen=True, slots=True)
class Pause:
    """We did not run for a while: the loop was blocked or the process stopped, and the machine slept."""

    stalled_s: float
    slept_s: float


class LoopWatch:
    """Whether we were there. It is told the time again and again; a beat that is late tells of a pause.

    Two clocks come in: one that stands while the machine sleeps, and that of the wall, which goes on.
    """

    def __init__(self, config: HealthConfig, now: float, unix_now: float) -> None:
        self._config = config
        self._beat_at = now
        self._beat_unix = unix_now
        self._paused_until = now - 1.0  # no request began before it

    def beat(self, now: float, unix_now: float) -> Pause | None:
        """It is due every `beat_s`. The pause that has ended, if there was one."""
        pause = self._pause_by(now, unix_now)
        self._beat_at, self._beat_unix = now, unix_now
        if pause is not None:
            self._paused_until = now
        return pause

    def was_paused_since(self, began: float, now: float, unix_now: float) -> bool:
        """Whether a request that began then says nothing of its peer: part of the time we were not there to hear.

        A timer of before the pause may come before the beat that is late, so both are looked at.
        """
        return began <= self._paused_until or self._pause_by(now, unix_now) is not None

    def _pause_by(self, now: float, unix_now: float) -> Pause | None:
        passed_s = now - self._beat_at
        stalled_s = passed_s - self._config.beat_s
        slept_s = (unix_now - self._beat_unix) - passed_s
        if stalled_s < self._config.min_stall_s and slept_s < self._config.min_sleep_s:
            return None
        return Pause(max(0.0, stalled_s), max(0.0, slept_s) if slept_s >= self._config.min_sleep_s else 0.0)


class ClockWatch:
    """How far our wall clock is from those of our peers. We say so and correct nothing: a majority may lie."""

    def __init__(self, config: HealthConfig) -> None:
        self._config = config
        self._ahead_s: OrderedDict[str, float] = OrderedDict()  # by party, the latest last
        self.is_wrong = False  # further off than records can bear for long; kept, for every answer asks for it

    def note(self, party: str, ahead_s: float) -> None:
        """By so much was our clock ahead of this party's."""
        self._ahead_s.pop(party, None)
        self._ahead_s[party] = ahead_s
        if len(self._ahead_s) > MAX_CLOCK_GROUPS:
            self._ahead_s.popitem(last=False)
        median_s = self.ahead_s
        self.is_wrong = median_s is not None and abs(median_s) > self._config.max_clock_error_s

    @property
    def ahead_s(self) -> float | None:
        """Seconds that our clock is ahead of the median of the others; None as long as too few have said."""
        if len(self._ahead_s) < self._config.min_clock_parties:
            return None
        from statistics import median  # here: it brings fractions and decimals, and a client never comes to it

        return median(self._ahead_s.values())
