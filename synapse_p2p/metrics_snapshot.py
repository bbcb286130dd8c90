"""The numbers of a node at one moment, as `Metrics` gives them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CallStats:
    """Calls of one kind: those under way, those that returned, and those that did not, by code of the wire."""

    in_flight: int
    ok: int
    failed: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class EndpointStats:
    """Calls of one endpoint that came to an end, and how long they took, all together. `failed` has only codes that
    there were: there may be many endpoints.
    """

    ok: int
    failed: Mapping[str, int]
    took_s: float


@dataclass(frozen=True, slots=True)
class SessionStats:
    """Sessions that are open, by who dialed; of these, those without a call in flight; and all there ever were."""

    dialed: int
    accepted: int
    idle: int
    dialed_ever: int
    accepted_ever: int


@dataclass(frozen=True, slots=True)
class LagStats:
    """How late the event loop came to what was due: the last time, at most in the last minute or two, and in all."""

    last_s: float
    max_s: float
    sum_s: float
    count: int


@dataclass(frozen=True, slots=True)
class TaskStats:
    """Tasks of an agent that run and wait, and how many of each may."""

    running: int
    waiting: int
    max_tasks: int
    queue: int


@dataclass(frozen=True, slots=True)
class MetricsSnapshot:
    """The numbers of one moment. Counts are since the Metrics was made; every reason there is has its count, if only 0.

    `calls_in` are those of peers, on any wire, of which `calls_waiting` have no place yet; `calls_out` are ours, over
    sessions. Those of the overlay are apart. `endpoints` has those that are registered. `loop_lag` is None where
    nobody measures it: before a server has started, and on a virtual clock. `tasks` is None without an agent.
    """

    sessions: SessionStats
    handshakes_refused: Mapping[str, int]
    dials_failed: Mapping[str, int]
    calls_in: CallStats
    calls_out: CallStats
    overlay_in: CallStats
    overlay_out: CallStats
    calls_waiting: int
    endpoints: Mapping[str, EndpointStats]
    received_bytes: int
    sent_bytes: int
    loop_lag: LagStats | None
    tasks: TaskStats | None
