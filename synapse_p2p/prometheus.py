"""The numbers of a node as text for Prometheus: whoever has an HTTP server in the program lets it serve this.

Pure. Source: the text exposition format, version 0.0.4 (Content-Type `text/plain; version=0.0.4`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, TypeAlias

from synapse_p2p.metrics_snapshot import CallStats, MetricsSnapshot

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Sample: TypeAlias = tuple[Mapping[str, str], float]
"""Labels and value."""


def exposition(snapshot: MetricsSnapshot) -> str:
    """All of a snapshot, a family of samples after the other."""
    families = (
        *_session_families(snapshot),
        *_call_families(snapshot),
        *_endpoint_families(snapshot),
        *_process_families(snapshot),
    )
    return "".join(families)


def _session_families(snapshot: MetricsSnapshot) -> Iterator[str]:
    sessions = snapshot.sessions
    yield _family("sessions", "gauge", "Open sessions.", _by("dialer", we=sessions.dialed, peer=sessions.accepted))
    yield _family("sessions_idle", "gauge", "Open sessions without a call in flight.", [({}, sessions.idle)])
    ever = _by("dialer", we=sessions.dialed_ever, peer=sessions.accepted_ever)
    yield _family("sessions_opened_total", "counter", "Handshakes that succeeded.", ever)
    refused = _by("reason", **snapshot.handshakes_refused)
    yield _family("handshakes_refused_total", "counter", "Accepted connections that did not become sessions.", refused)
    failed = _by("reason", **snapshot.dials_failed)
    yield _family("dials_failed_total", "counter", "Dials that came to nothing.", failed)


def _call_families(snapshot: MetricsSnapshot) -> Iterator[str]:
    kinds: list[tuple[dict[str, str], CallStats]] = [
        ({"direction": "in", "kind": "call"}, snapshot.calls_in),
        ({"direction": "out", "kind": "call"}, snapshot.calls_out),
        ({"direction": "in", "kind": "overlay"}, snapshot.overlay_in),
        ({"direction": "out", "kind": "overlay"}, snapshot.overlay_out),
    ]
    yield _family(
        "calls_total",
        "counter",
        "Calls that ended, by how.",
        [
            ({**labels, "outcome": outcome}, count)
            for labels, stats in kinds
            for outcome, count in {"ok": stats.ok, **stats.failed}.items()
        ],
    )
    yield _family(
        "calls_in_flight", "gauge", "Calls under way.", [(labels, stats.in_flight) for labels, stats in kinds]
    )
    yield _family("calls_waiting", "gauge", "Calls of peers without a place yet.", [({}, snapshot.calls_waiting)])


def _endpoint_families(snapshot: MetricsSnapshot) -> Iterator[str]:
    yield _family(
        "endpoint_calls_total",
        "counter",
        "Calls of an endpoint that ended, by how.",
        [
            ({"endpoint": name, "outcome": outcome}, count)
            for name, stats in snapshot.endpoints.items()
            for outcome, count in {"ok": stats.ok, **stats.failed}.items()
        ],
    )
    yield _family(
        "endpoint_seconds_total",
        "counter",
        "How long they took, all together.",
        [({"endpoint": name}, stats.took_s) for name, stats in snapshot.endpoints.items()],
    )


def _process_families(snapshot: MetricsSnapshot) -> Iterator[str]:
    lag, tasks = snapshot.loop_lag, snapshot.tasks
    sizes = _by("direction", **{"in": snapshot.received_bytes, "out": snapshot.sent_bytes})
    yield _family("bytes_total", "counter", "Bytes of all connections.", sizes)
    if lag is not None:
        yield _family("loop_beats_total", "counter", "Looks at how late the event loop is.", [({}, lag.count)])
        yield _family("loop_lag_seconds_total", "counter", "How late it was, all together.", [({}, lag.sum_s)])
        yield _family("loop_lag_max_seconds", "gauge", "How late, at most, in the last minutes.", [({}, lag.max_s)])
    if tasks is not None:
        yield _family("tasks", "gauge", "Tasks of agents.", _by("state", running=tasks.running, waiting=tasks.waiting))
        limits = _by("state", running=tasks.max_tasks, waiting=tasks.queue)
        yield _family("tasks_limit", "gauge", "How many there may be.", limits)


def _by(label: str, /, **counts: float) -> list[Sample]:
    return [({label: value}, count) for value, count in counts.items()]


def _family(name: str, kind: Literal["counter", "gauge"], text: str, samples: Iterable[Sample]) -> str:
    lines = [f"# HELP synapse_{name} {text}", f"# TYPE synapse_{name} {kind}"]
    for labels, value in samples:
        inner = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
        lines.append(f"synapse_{name}{{{inner}}} {value!r}" if inner else f"synapse_{name} {value!r}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
