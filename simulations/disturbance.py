"""What faults do to messages and clocks: a latency that holds, loses and cuts, and a clock that can be wrong.

Every effect is a delay, as it is for whoever sits above TCP: what is lost is sent again, and what meets a partition or
a frozen process gets through once that is over, unless its sender has stopped waiting.

Not simulated: what was on its way when a pause began still arrives, and the timers of a frozen, stalled or sleeping
process go on, though what it sends is held. So a stall looks from outside as a freeze does.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from simulations.latency import ConstantLatency, Latency
from simulations.network import EPOCH_S, VirtualHost
from simulations.virtual_loop import VirtualLoop
from synapse_p2p.identity import NodeID

RETRANSMIT_AFTER_S = 0.2
"""Until a lost message is sent again, doubling each time: the least that Linux takes for TCP."""
MAX_RETRANSMISSIONS = 8  # the last is 51 s after the first; by then everybody here has stopped waiting
CREEP = 0.001
"""How fast the monotonic clock of a sleeping machine goes. Were it 0, a timer that is due in a moment would be set
again and again, and virtual time would not move."""


@dataclass(frozen=True, slots=True)
class _Cut:
    """A partition that is under way, with ids and the second at which it ends."""

    inside: frozenset[NodeID]  # asked for membership alone, never iterated
    one_way: bool
    until_s: float

    def stops(self, source: NodeID, target: NodeID) -> bool:
        leaves = source in self.inside and target not in self.inside
        enters = target in self.inside and source not in self.inside
        return leaves or (enters and not self.one_way)


class Disturbance:
    """A Latency with faults in it. Nothing is wrong until somebody says so, and everything ends by itself."""

    def __init__(self, loop: VirtualLoop, rng: random.Random, base: Latency | None = None) -> None:
        self._loop = loop
        self._rng = rng
        self._base = base or ConstantLatency()
        self._paused_until_s: dict[NodeID, float] = {}
        self._cuts: list[_Cut] = []
        self._losses: list[tuple[float, float]] = []  # share, and the second at which it ends

    def __call__(self, source: NodeID, target: NodeID) -> float:
        """Seconds until the next message from `source` to `target` arrives."""
        delay_s = self._base(source, target)
        if not (self._paused_until_s or self._cuts or self._losses):
            return delay_s
        now_s = self._loop.time()
        self._forget_what_is_over(now_s)
        leaves_at_s = max(now_s, self._paused_until_s.get(source, 0.0)) + self._retransmission_s()
        for cut in self._cuts:
            if leaves_at_s < cut.until_s and cut.stops(source, target):
                leaves_at_s = cut.until_s
        arrives_at_s = max(leaves_at_s + delay_s, self._paused_until_s.get(target, 0.0))
        return arrives_at_s - now_s

    def pause(self, node_id: NodeID, duration_s: float) -> None:
        """Hold what this host sends and what arrives there; a longer pause that is under way stays."""
        until_s = self._loop.time() + duration_s
        self._paused_until_s[node_id] = max(until_s, self._paused_until_s.get(node_id, 0.0))

    def cut(self, node_ids: frozenset[NodeID], *, one_way: bool, duration_s: float) -> None:
        """Let nothing out to the others, and nothing in unless `one_way`. Cuts that overlap all hold."""
        self._cuts.append(_Cut(node_ids, one_way, self._loop.time() + duration_s))

    def lose(self, share: float, duration_s: float) -> None:
        """Lose this share of all messages, 0 to 1; the largest of those under way counts."""
        self._losses.append((share, self._loop.time() + duration_s))

    def _forget_what_is_over(self, now_s: float) -> None:
        self._cuts = [cut for cut in self._cuts if cut.until_s > now_s]
        self._losses = [loss for loss in self._losses if loss[1] > now_s]
        for node_id in [node_id for node_id, until_s in self._paused_until_s.items() if until_s <= now_s]:
            del self._paused_until_s[node_id]

    def _retransmission_s(self) -> float:
        share = max((share for share, _ in self._losses), default=0.0)
        waited_s, pause_s = 0.0, RETRANSMIT_AFTER_S
        for _ in range(MAX_RETRANSMISSIONS if share else 0):
            if self._rng.random() >= share:
                break
            waited_s += pause_s
            pause_s *= 2
        return waited_s


class HostClock:
    """The clocks of one host, which can be wrong. The wall clock never stands still; the monotonic one never goes back.

    `skew_s` is how far the wall clock is ahead.
    """

    def __init__(self, loop: VirtualLoop, host: VirtualHost) -> None:
        self.skew_s = 0.0
        self._loop = loop
        self._sleeps: list[tuple[float, float]] = []  # (from, until), in seconds of the loop; not over yet
        self._slept_s = 0.0  # in those that are
        host.runtime = replace(host.runtime, now=self.now, unix_now=self.unix_now)

    def now(self) -> float:
        """Monotonic seconds: those of the loop, without the time that the machine slept."""
        now_s = self._loop.time()
        lost_s = self._slept_s
        for from_s, until_s in self._sleeps:
            lost_s += max(0.0, min(now_s, until_s) - from_s) * (1 - CREEP)
        return now_s - lost_s

    def unix_now(self) -> float:
        """Wall seconds."""
        return EPOCH_S + self._loop.time() + self.skew_s

    def sleep(self, duration_s: float) -> None:
        """Let the monotonic clock stand from now on; what it sleeps already is not counted twice."""
        now_s = self._loop.time()
        over = [(from_s, until_s) for from_s, until_s in self._sleeps if until_s <= now_s]
        self._slept_s += sum((until_s - from_s) * (1 - CREEP) for from_s, until_s in over)
        self._sleeps = [sleep for sleep in self._sleeps if sleep[1] > now_s]
        begins_s = max([now_s, *(until_s for _, until_s in self._sleeps)])
        if now_s + duration_s > begins_s:
            self._sleeps.append((begins_s, now_s + duration_s))
