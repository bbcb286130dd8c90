"""Whether this node is there itself: what it hears, what it does not hear, and whether it is to blame for that.

Owns the machines of `health.py` while a node runs, and what listeners are told of them. It holds the evictions of the
routing table while our own network is the suspect. What is done about a loss or a pause is in `recovery.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from dht.config import HealthConfig
from dht.contact import Contact
from dht.events import (
    Disconnected,
    Events,
    PeerJoined,
    PeerLeft,
    PeerSuspected,
    Reconnected,
    RecordExpired,
    RecordStored,
)
from dht.health import ClockWatch, LoopWatch, OwnNetwork, Pause
from dht.routing import Change, RoutingTable
from dht.store import RecordStore
from synapse_p2p.identity import NodeID
from synapse_p2p.loop_witness import LoopWitness
from synapse_p2p.runtime import Runtime

logger = logging.getLogger(__name__)

REPEATS_WARNED_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class Stall:
    """Nothing ran in this process for so long, until `ended_at` (the runtime's clock). `blocked_by` names what the loop
    ran meanwhile; empty where nobody saw it.
    """

    stalled_s: float
    ended_at: float
    blocked_by: str


@dataclass(frozen=True, slots=True)
class Loss:
    """Our network was gone for so long, and these peers were silent meanwhile, by no fault of theirs."""

    lasted_s: float
    silent: tuple[NodeID, ...]


class Presence:
    """What one node knows of its own being there. `on_back` is told of every loss that is over.

    Pauses are noticed between `start` and `stop` alone, while `beat` is called.
    """

    def __init__(
        self,
        runtime: Runtime,
        table: RoutingTable,
        config: HealthConfig,
        *,
        events: Events | None = None,
        on_back: Callable[[Loss], None] | None = None,
    ) -> None:
        self._runtime = runtime
        self._table = table
        self._config = config
        self._events = events or Events()
        self._on_back = on_back or _do_nothing
        self._network = OwnNetwork(config, runtime.now())
        self._lost_at = 0.0
        self._loop_watch: LoopWatch | None = None
        self._witness: LoopWitness | None = None
        self._clock = ClockWatch(config)
        self.last_stall: Stall | None = None
        self._stall_warnings = _Warnings()
        self._loss_warnings = _Warnings()
        self._clock_warnings = _Warnings()

    def start(self) -> None:
        """Watch for pauses from now on."""
        runtime = self._runtime
        self._network = OwnNetwork(self._config, runtime.now())
        self._loop_watch = LoopWatch(self._config, runtime.now(), runtime.unix_now())
        if runtime.watch_loop is not None and self._witness is None:
            self._witness = runtime.watch_loop(self._config.beat_s)

    def stop(self) -> None:
        """Watch no more, and believe failures again."""
        self._loop_watch = None
        witness, self._witness = self._witness, None
        if witness is not None:
            witness.stop()
        self._table.resume_evictions()

    # Our network

    @property
    def is_network_lost(self) -> bool:
        """Whether our own network is the suspect, for nearly nobody answers."""
        return self._network.is_lost

    def on_heard(self) -> None:
        """Somebody answered us or asked us, whatever was said."""
        now = self._runtime.now()
        if not self._network.is_lost:
            self._network.on_heard(now)
            return
        silent = tuple(self._network.silent_peers())
        self._network.on_heard(now)
        self._table.resume_evictions()
        logger.info("somebody answers again, after %.0f s", now - self._lost_at)
        self._events.tell(Reconnected())
        self._on_back(Loss(now - self._lost_at, silent))

    def on_silence(self, peer: NodeID, began: float) -> bool:
        """A request that began then was not answered. Whether that is evidence against the peer."""
        runtime, now = self._runtime, self._runtime.now()
        watch = self._loop_watch
        if watch is not None and watch.was_paused_since(began, now, runtime.unix_now()):
            return False
        if self._network.on_silence(peer, len(self._table), now):
            self._lost_at = now
            self._table.hold_evictions()
            if (count := self._loss_warnings.note(now)) is not None:
                logger.warning(
                    "none of %d peers asked in a row answers: is this machine's network down? No contact is given up "
                    "meanwhile%s",
                    len(self._network.silent_peers()),
                    _times(count),
                )
            self._events.tell(Disconnected())
        return True

    # Our loop

    def beat(self) -> Pause | None:
        """Due every `beat_s`. The pause that has just ended, if there was one."""
        if self._loop_watch is None:
            return None
        now = self._runtime.now()
        at_work = None if self._witness is None else self._witness.on_beat()
        pause = self._loop_watch.beat(now, self._runtime.unix_now())
        if pause is None:
            return None
        if pause.slept_s:
            logger.info("this machine slept for %.0f s", pause.slept_s)
            return pause
        self.last_stall = Stall(pause.stalled_s, now, at_work or "")
        if (count := self._stall_warnings.note(now)) is not None:
            logger.warning(
                "nothing ran here for %.1f s: %s. Peers take a node that is silent for dead%s",
                pause.stalled_s,
                "this process was stopped, or something blocked the event loop, and was gone before it could be seen"
                if at_work is None
                else f"{at_work} blocked the event loop. Let it await what it waits for, or make it a plain function "
                "where that is a handler: those run in threads",
                _times(count),
            )
        return pause

    def was_missed(self, pause: Pause) -> bool:
        """Whether peers may take us for dead, for the moment."""
        return pause.stalled_s >= self._config.announce_after_s

    def was_given_up(self, pause: Pause) -> bool:
        """Whether peers may have closed our sessions, and forgotten us."""
        return bool(pause.slept_s) or pause.stalled_s > self._config.drop_sessions_after_s

    # Our clock

    @property
    def clock_ahead_s(self) -> float | None:
        """Seconds that our wall clock is ahead of the median of others'; None as long as too few have said."""
        return self._clock.ahead_s

    @property
    def is_clock_wrong(self) -> bool:
        """Whether our wall clock is further off than records bear for long."""
        return self._clock.is_wrong

    def note_clock(self, party: str, unix_ms: int, asked_at: float) -> None:
        """What this party's clock showed when it answered, just now, a question that was asked at `asked_at`. Answers
        take half of the time between.
        """
        now, unix_now = self._runtime.now(), self._runtime.unix_now()
        watch = self._loop_watch
        if watch is not None and watch.was_paused_since(asked_at, now, unix_now):
            return
        was_wrong = self._clock.is_wrong
        self._clock.note(party, unix_now - (now - asked_at) / 2 - unix_ms / 1000)
        if self._clock.is_wrong and not was_wrong and (count := self._clock_warnings.note(now)) is not None:
            ahead_s = self._clock.ahead_s or 0.0
            logger.warning(
                "this machine's clock is %.0f s %s those of other nodes: records signed here are refused or expire "
                "early; set it right, as by NTP%s",
                abs(ahead_s),
                "ahead of" if ahead_s > 0 else "behind",
                _times(count),
            )

    # What listeners hear of others

    def on_changed(self, contact: Contact, change: Change) -> None:
        """The routing table changed."""
        if self._events.is_anybody_listening:
            match change:
                case Change.JOINED:
                    self._events.tell(PeerJoined(contact))
                case Change.SUSPECTED:
                    self._events.tell(PeerSuspected(contact))
                case Change.LEFT:
                    self._events.tell(PeerLeft(contact))

    def watch(self, store: RecordStore) -> None:
        """Tell listeners of what this store takes and gives up."""
        store.watch(
            lambda key, owner: self._events.tell(RecordStored(key, owner)),
            lambda key, owner: self._events.tell(RecordExpired(key, owner)),
        )


class _Warnings:
    """Which of many like warnings are written: one a minute at most."""

    def __init__(self) -> None:
        self._written_at = float("-inf")
        self._left_out = 0

    def note(self, now: float) -> int | None:
        """How many were left out since the last, where this one is written."""
        if now < self._written_at + REPEATS_WARNED_EVERY_S:
            self._left_out += 1
            return None
        count, self._left_out = self._left_out, 0
        self._written_at = now
        return count


def _times(left_out: int) -> str:
    return f" ({left_out} more times since this was last said)" if left_out else ""


def _do_nothing(loss: Loss) -> None:
    pass
