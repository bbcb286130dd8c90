"""What a node has done and is doing, in numbers: calls, sessions, handshakes, bytes, tasks, the lateness of its loop.

Pure. Owns the counters; what they look like from outside is in `metrics_snapshot.py`, how that is written for
Prometheus in `prometheus.py`. Counters only grow. What is now (sessions, calls in flight, tasks) is not counted up and
down but asked of those that have it, when somebody looks: so it costs nothing in between, and cannot drift. Nothing
here grows by what a peer says: reasons are words of our own, endpoints those that are registered.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from synapse_p2p.exceptions import HandshakeFailed, PeerUnavailable, Timeout
from synapse_p2p.messages import Code
from synapse_p2p.metrics_snapshot import CallStats, EndpointStats, LagStats, MetricsSnapshot, SessionStats, TaskStats
from synapse_p2p.prometheus import exposition
from synapse_p2p.protocol.counts import EndpointEnds, Ends, SessionCounts

HANDSHAKE_REASONS = (
    *("busy", "version", "suite", "network"),  # what a listener tells a dialer
    *("preamble", "message", "crypto", "proof", "self", "identity", "timeout", "closed"),
    *("refused", "plain", "downgrade"),  # by one of a later release; by one of an earlier; by one that was not, before
    "other",  # a word that is new here
)
"""Why a connection did not become a session: the words of HandshakeFailed."""
DIAL_REASONS = (*HANDSHAKE_REASONS, "unreachable", "cancelled")
"""Why a dial of ours came to nothing."""
LAG_WINDOW_S = 60.0
"""The longest lag is that of the last one to two of these."""


class OpenSession(Protocol):
    """An established connection, as it is now."""

    is_dialer: bool

    @property
    def calls_asked(self) -> int:
        """Calls of ours in flight."""
        ...

    @property
    def overlay_calls_asked(self) -> int:
        """Those of the overlay among them."""
        ...

    @property
    def calls_served(self) -> int:
        """Calls of the peer that run or wait here."""
        ...

    @property
    def calls_waiting(self) -> int:
        """Those that wait among them."""
        ...


class LoopLag:
    """How late beats of the event loop are. Nothing before the first."""

    def __init__(self) -> None:
        self._last_s = self._sum_s = 0.0
        self._count = 0
        self._window_max_s = self._former_max_s = 0.0
        self._window = 0  # counted from the beginning of the clock

    def note(self, late_s: float, now: float) -> None:
        """A beat came, late by so much."""
        window = int(now // LAG_WINDOW_S)
        if window != self._window:
            self._former_max_s = self._window_max_s if window == self._window + 1 else 0.0
            self._window_max_s, self._window = 0.0, window
        self._last_s = late_s
        self._window_max_s = max(self._window_max_s, late_s)
        self._sum_s += late_s
        self._count += 1

    def stats(self) -> LagStats | None:
        """None while nothing was noted."""
        if not self._count:
            return None
        return LagStats(self._last_s, max(self._window_max_s, self._former_max_s), self._sum_s, self._count)


class Metrics:
    """The numbers of one node. A server has one; give it to the clients of the same program, and they count there too:
    `Client(metrics=server.metrics)`. Those that count run on one event loop; any thread may look.
    """

    def __init__(self) -> None:
        self.counts = SessionCounts()
        self.endpoints: dict[str, EndpointEnds] = {}  # by registered name
        self.loop_lag = LoopLag()
        self.plain_calls_running = 0
        # Weak, for a loop may end and leave its own behind; by `id`.
        self._sessions: weakref.WeakValueDictionary[int, OpenSession] = weakref.WeakValueDictionary()
        self._dialed_ever = self._accepted_ever = 0
        self._handshakes_refused = dict.fromkeys(HANDSHAKE_REASONS, 0)
        self._dials_failed = dict.fromkeys(DIAL_REASONS, 0)
        self._loads: list[Callable[[], Mapping[str, int]]] = []

    def snapshot(self) -> MetricsSnapshot:
        """The numbers of now. Cost: O(sessions + endpoints)."""
        # In one step of the interpreter, as all that is listed here: the loop goes on meanwhile in its thread.
        refs = self._sessions.valuerefs()
        open_sessions = [session for ref in refs if (session := ref()) is not None]
        asked = sum(session.calls_asked for session in open_sessions)
        overlay_asked = sum(session.overlay_calls_asked for session in open_sessions)
        served = sum(session.calls_served for session in open_sessions) + self.plain_calls_running
        counts = self.counts
        # Not a list of items: a tuple for each may start a collection, and in that the other thread runs.
        endpoints = self.endpoints.copy()
        return MetricsSnapshot(
            sessions=self._session_stats(open_sessions),
            handshakes_refused=dict(self._handshakes_refused),
            dials_failed=dict(self._dials_failed),
            calls_in=_call_stats(counts.served, served),
            calls_out=_call_stats(counts.asked, asked - overlay_asked),
            overlay_in=_call_stats(counts.overlay_served, 0),  # they take no time
            overlay_out=_call_stats(counts.overlay_asked, overlay_asked),
            calls_waiting=sum(session.calls_waiting for session in open_sessions),
            endpoints={name: _endpoint_stats(ends) for name, ends in endpoints.items()},
            received_bytes=counts.received_bytes,
            sent_bytes=counts.sent_bytes,
            loop_lag=self.loop_lag.stats(),
            tasks=_task_stats([load() for load in self._loads]),
        )

    def prometheus(self) -> str:
        """The same as text, in the exposition format of Prometheus."""
        return exposition(self.snapshot())

    # For those that are counted

    def on_session_opened(self, session: OpenSession) -> None:
        """A handshake succeeded; from now to `on_session_closed` it is asked what it does."""
        self._sessions[id(session)] = session
        if session.is_dialer:
            self._dialed_ever += 1
        else:
            self._accepted_ever += 1

    def on_session_closed(self, session: OpenSession) -> None:
        """Its connection is gone."""
        self._sessions.pop(id(session), None)

    def on_handshake_refused(self, error: Exception | None) -> None:
        """An accepted connection ended before it was a session, or for want of a place for one."""
        _count(self._handshakes_refused, _reason_of(error))

    def on_dial_failed(self, error: BaseException) -> None:
        """A dial of ours ended without a session."""
        _count(self._dials_failed, _reason_of(error))

    def watch_tasks(self, load: Callable[[], Mapping[str, int]]) -> None:
        """Ask this for `running`, `waiting`, `max_tasks` and `queue`. Agents that share these metrics are added up."""
        self._loads.append(load)

    def _session_stats(self, open_sessions: list[OpenSession]) -> SessionStats:
        dialed = sum(session.is_dialer for session in open_sessions)
        return SessionStats(
            dialed=dialed,
            accepted=len(open_sessions) - dialed,
            idle=sum(not session.calls_asked and not session.calls_served for session in open_sessions),
            dialed_ever=self._dialed_ever,
            accepted_ever=self._accepted_ever,
        )


def _call_stats(ends: Ends, in_flight: int) -> CallStats:
    return CallStats(in_flight, ends.ok, _by_code(ends))


def _endpoint_stats(ends: EndpointEnds) -> EndpointStats:
    failed = {code: count for code, count in _by_code(ends).items() if count}
    return EndpointStats(ends.ok, failed, ends.took_s)


def _by_code(ends: Ends) -> dict[str, int]:
    """A count for every code there is. As plain text, so that it can travel."""
    return {code.value: ends.failed.get(code, 0) for code in Code}


def _task_stats(loads: Sequence[Mapping[str, int]]) -> TaskStats | None:
    names = ("running", "waiting", "max_tasks", "queue")
    return TaskStats(*(sum(load[name] for load in loads) for name in names)) if loads else None


def _reason_of(error: BaseException | None) -> str:
    match error:
        case HandshakeFailed():
            return error.refusal or error.reason
        case Timeout():
            return "timeout"
        case PeerUnavailable():
            return "unreachable"
        case None:
            return "closed"  # by ourselves, without a fault
        case Exception():
            return "other"
        case _:
            return "cancelled"


def _count(counts: dict[str, int], reason: str) -> None:
    counts[reason if reason in counts else "other"] += 1
