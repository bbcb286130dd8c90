from __future__ import annotations

import ast
import asyncio
import gc
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import synapse_p2p
from synapse_p2p import AgentNode, HandshakeFailed, Metrics, PeerUnavailable, Server, Timeout
from synapse_p2p.loop_beat import BEAT_S, LoopBeat
from synapse_p2p.messages import Code
from synapse_p2p.metrics import DIAL_REASONS, HANDSHAKE_REASONS, LAG_WINDOW_S, LoopLag
from synapse_p2p.protocol.counts import EndpointEnds
from synapse_p2p.protocol.handshake import Refusal
from synapse_p2p.protocol.wire import TASK_LIMITS, pack, unpack


def words_of_handshakes() -> Iterator[str]:
    """The first argument of every HandshakeFailed that the package makes."""
    for path in Path(synapse_p2p.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "HandshakeFailed":
                first = node.args[0]
                if isinstance(first, ast.Constant):
                    yield first.value


class Busy:
    """A session with calls in flight."""

    def __init__(self, *, is_dialer: bool, asked: int = 0, overlay: int = 0, served: int = 0, waiting: int = 0) -> None:
        self.is_dialer = is_dialer
        self.calls_asked = asked + overlay
        self.overlay_calls_asked = overlay
        self.calls_served = served
        self.calls_waiting = waiting


def zeros(*, but: dict[str, int]) -> dict[str, int]:
    return dict.fromkeys(HANDSHAKE_REASONS, 0) | but


def test_every_word_of_a_handshake_that_fails_is_a_reason():
    words = {*words_of_handshakes(), *(code.name.lower() for code in Refusal)}

    assert {"preamble", "identity", "busy"} <= words
    assert words <= set(HANDSHAKE_REASONS)
    assert set(HANDSHAKE_REASONS) < set(DIAL_REASONS)


def test_what_has_counted_nothing_has_a_zero_for_every_reason_and_code():
    snapshot = Metrics().snapshot()

    assert snapshot.handshakes_refused == zeros(but={})
    assert snapshot.calls_in.failed == {code.value: 0 for code in Code}
    assert (snapshot.calls_in.ok, snapshot.received_bytes, snapshot.sessions.idle) == (0, 0, 0)
    assert (snapshot.endpoints, snapshot.loop_lag, snapshot.tasks) == ({}, None, None)


def test_a_snapshot_travels_as_it_is_and_does_not_change():
    server = Server()
    before = server.metrics.snapshot()

    server.metrics.counts.served.note(Code.BUSY)
    server.metrics.counts.served.note(None)

    assert (before.calls_in.ok, before.calls_in.failed["busy"]) == (0, 0)
    travelled = unpack(pack(asdict(server.metrics.snapshot())), TASK_LIMITS)
    assert travelled == asdict(server.metrics.snapshot())
    assert (travelled["calls_in"]["ok"], travelled["calls_in"]["failed"]["busy"]) == (1, 1)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (HandshakeFailed("crypto", "no"), "crypto"),
        (HandshakeFailed("preamble", "no", refusal="suite"), "suite"),
        (HandshakeFailed("a word to come", "no"), "other"),
        (HandshakeFailed("refused", "no", refusal="x" * 9999), "other"),
        (Timeout("late"), "timeout"),
        (PeerUnavailable("gone"), "unreachable"),
        (asyncio.CancelledError(), "cancelled"),
        (OSError("strange"), "other"),
    ],
)
def test_a_dial_that_fails_is_counted_by_a_word_of_ours(error: BaseException, reason: str):
    metrics = Metrics()

    metrics.on_dial_failed(error)

    counted = metrics.snapshot().dials_failed
    assert tuple(counted) == DIAL_REASONS
    assert {word: count for word, count in counted.items() if count} == {reason: 1}


def test_sessions_are_asked_what_they_do_when_somebody_looks():
    metrics = Metrics()
    dialed, accepted = Busy(is_dialer=True, asked=3, overlay=2), Busy(is_dialer=False, served=4, waiting=1)
    idle = Busy(is_dialer=False)
    for session in (dialed, accepted, idle):
        metrics.on_session_opened(session)
    snapshot = metrics.snapshot()

    assert asdict(snapshot.sessions) == {
        "dialed": 1,
        "accepted": 2,
        "idle": 1,
        "dialed_ever": 1,
        "accepted_ever": 2,
    }
    in_flight = [each.in_flight for each in (snapshot.calls_out, snapshot.overlay_out, snapshot.calls_in)]
    assert (in_flight, snapshot.calls_waiting) == ([3, 2, 4], 1)

    metrics.on_session_closed(accepted)
    metrics.on_session_closed(accepted)
    accepted.calls_served = 9
    assert metrics.snapshot().calls_in.in_flight == 0
    assert metrics.snapshot().sessions.accepted_ever == 2


def test_a_session_whose_loop_is_gone_is_not_counted_for_ever():
    metrics = Metrics()
    metrics.on_session_opened(Busy(is_dialer=True, asked=1))
    gc.collect()

    assert metrics.snapshot().sessions.dialed == metrics.snapshot().calls_out.in_flight == 0


async def test_another_thread_may_look_while_the_loop_counts():
    metrics, is_over = Metrics(), threading.Event()

    def look() -> int:
        count = 0
        while not is_over.is_set():
            count += len(metrics.prometheus()) > 0
        return count

    looking = asyncio.ensure_future(asyncio.to_thread(look))
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        sessions = [Busy(is_dialer=True, asked=1) for _ in range(20)]
        for session in sessions:
            metrics.on_session_opened(session)
        metrics.endpoints[f"endpoint {len(metrics.endpoints)}"] = EndpointEnds()
        await asyncio.sleep(0)
        for session in sessions:
            metrics.on_session_closed(session)
    is_over.set()

    assert await looking > 0
    assert metrics.snapshot().sessions.dialed == 0


def test_agents_that_share_their_metrics_are_added_up():
    metrics = Metrics()
    for max_tasks in (1, 2):
        AgentNode(name="Ann", role="worker", max_tasks=max_tasks, queue=5, metrics=metrics)

    assert asdict(metrics.snapshot())["tasks"] == {"running": 0, "waiting": 0, "max_tasks": 3, "queue": 10}


# The lateness of the loop


@given(st.lists(st.tuples(st.floats(0, 200), st.floats(0, 5)), min_size=1))
def test_the_longest_lag_is_that_of_the_last_minute_or_two(beats: list[tuple[float, float]]):
    lag, now, noted = LoopLag(), 1000.0, []
    for pause_s, late_s in beats:
        now += pause_s
        lag.note(late_s, now)
        noted.append((now, late_s))
        stats = lag.stats()
        assert stats is not None
        assert stats.last_s == late_s
        assert stats.count == len(noted)
        assert stats.sum_s == pytest.approx(sum(late_s for _, late_s in noted))
        lately = [late_s for at, late_s in noted if now - at < LAG_WINDOW_S]
        not_long_ago = [late_s for at, late_s in noted if now - at <= 2 * LAG_WINDOW_S]
        assert max(lately) <= stats.max_s <= max(not_long_ago)


async def test_a_loop_that_is_blocked_is_late_by_that():
    lag = LoopLag()
    beat = LoopBeat(lag, time.monotonic)

    beat.start()
    assert lag.stats() is None
    time.sleep(BEAT_S + 0.3)  # noqa: ASYNC251 - this is what is measured
    await asyncio.sleep(0.01)
    beat.stop()
    stats = lag.stats()

    assert stats is not None
    assert 0.3 <= stats.last_s == stats.max_s == stats.sum_s < 30
    assert stats.count == 1


async def test_a_beat_that_was_stopped_leaves_no_timer():
    lag = LoopLag()
    beat = LoopBeat(lag, time.monotonic)

    beat.start()
    beat.start()
    beat.stop()
    beat.stop()
    await asyncio.sleep(BEAT_S * 1.5)

    assert lag.stats() is None


# As text


SAMPLE = re.compile(r'(?P<name>[a-z_]+)(?:\{(?P<labels>(?:[a-z]+="(?:[^"\\\n]|\\[\\"n])*",?)+)\})? (?P<value>\S+)')
LABEL = re.compile(r'([a-z]+)="((?:[^"\\\n]|\\[\\"n])*)"')
ESCAPES = {r"\\": "\\", r"\"": '"', r"\n": "\n"}


def read(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """The samples of an exposition, each of a family that was introduced, none twice."""
    samples: dict[Any, float] = {}
    family = kind = ""
    assert text.endswith("\n")
    for line in text[:-1].split("\n"):
        if line.startswith("# HELP "):
            family = line.split(" ")[2]
        elif line.startswith("# TYPE "):
            assert line.split(" ")[2] == family
            kind = line.split(" ")[3]
            assert kind in ("counter", "gauge")
            assert family.endswith("_total") == (kind == "counter")
        else:
            found = SAMPLE.fullmatch(line)
            assert found is not None, line
            assert found["name"] == family
            labels = LABEL.findall(found["labels"] or "")
            plain = tuple((name, re.sub(r"\\.", lambda each: ESCAPES[each[0]], value)) for name, value in labels)
            assert (family, plain) not in samples
            samples[family, plain] = float(found["value"])
    return samples


@given(st.dictionaries(st.text(min_size=1), st.integers(0, 2**53)))
def test_the_text_says_of_any_endpoint_what_was_counted(counts: dict[str, int]):
    metrics = Metrics()
    for name, count in counts.items():
        ends = metrics.endpoints[name] = EndpointEnds()
        ends.ok, ends.took_s = count, count / 7
        ends.note(Code.FAILED)

    samples = read(metrics.prometheus())

    for name, count in counts.items():
        of_it = (("endpoint", name),)
        assert samples["synapse_endpoint_calls_total", (*of_it, ("outcome", "ok"))] == count
        assert samples["synapse_endpoint_calls_total", (*of_it, ("outcome", "failed"))] == 1
        assert samples["synapse_endpoint_seconds_total", of_it] == count / 7


def test_the_text_has_all_of_an_agent_that_runs():
    agent = AgentNode(name="Ann", role="worker", max_tasks=3)
    agent.metrics.loop_lag.note(0.25, now=5.0)
    agent.metrics.counts.received_bytes = 12
    agent.metrics.counts.overlay_asked.note(None)
    agent.metrics.on_handshake_refused(HandshakeFailed("preamble", "no", refusal="network"))
    agent.metrics.on_session_opened(Busy(is_dialer=True, asked=2))

    samples = read(agent.metrics.prometheus())

    assert samples["synapse_tasks_limit", (("state", "running"),)] == 3
    assert samples["synapse_loop_lag_max_seconds", ()] == samples["synapse_loop_lag_seconds_total", ()] == 0.25
    assert samples["synapse_bytes_total", (("direction", "in"),)] == 12
    assert samples["synapse_handshakes_refused_total", (("reason", "network"),)] == 1
    assert samples["synapse_calls_total", (("direction", "out"), ("kind", "overlay"), ("outcome", "ok"))] == 1
    of_ask = [labels for family, labels in samples if ("endpoint", "_agent.ask") in labels and "calls" in family]
    assert of_ask == [(("endpoint", "_agent.ask"), ("outcome", "ok"))]
