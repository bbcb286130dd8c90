import contextlib
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from synapse_p2p.config import SessionConfig
from synapse_p2p.exceptions import FrameTooLarge, InvalidMessageError, ProtocolViolation
from synapse_p2p.protocol.channel import SecureChannel
from synapse_p2p.protocol.code import Code
from synapse_p2p.protocol.counts import Ends, SessionCounts
from synapse_p2p.protocol.events import (
    CallAnswered,
    CallArrived,
    CallExpired,
    CallFailed,
    CallWithdrawn,
    Event,
    PeerClosed,
    PeerSilent,
)
from synapse_p2p.protocol.noise import CipherState
from synapse_p2p.protocol.session import Session
from synapse_p2p.protocol.wire import (
    Call,
    Cancel,
    Fail,
    FrameKind,
    FrameReader,
    Goodbye,
    Message,
    Ping,
    Pong,
    Result,
    Unknown,
    decode_message,
    encode_frame,
    encode_message,
)

SMALL = SessionConfig(max_calls_served=2, max_calls_queued=2, idle_ping_s=10.0, ping_timeout_s=5.0)


def pair(
    config: SessionConfig = SMALL, counts: Sequence[SessionCounts | None] = (None, None)
) -> tuple[Session, Session]:
    """The dialer and the listener of one session, opened at 0."""
    return (
        Session(is_dialer=True, now=0.0, config=config, counts=counts[0]),
        Session(is_dialer=False, now=0.0, config=config, counts=counts[1]),
    )


def pump(one: Session, other: Session, now: float = 0.0) -> None:
    """Bring what both have to say to the other until neither has more."""
    while one.has_data_to_send() or other.has_data_to_send():
        to_other, to_one = one.data_to_send(), other.data_to_send()
        other.receive_data(to_other, now)
        one.receive_data(to_one, now)
        one.check_invariants()
        other.check_invariants()


def frames_in(data: bytes) -> list[tuple[FrameKind, Message]]:
    reader = FrameReader(max_control_frame_bytes=2**24, max_task_frame_bytes=2**24)
    return [(kind, decode_message(body, kind)) for kind, body in reader.feed(data)]


def say(session: Session, *messages: Message, kind: FrameKind = FrameKind.TASK, now: float = 0.0) -> None:
    """Let the peer of `session` say this."""
    session.receive_data(b"".join(encode_frame(kind, encode_message(message)) for message in messages), now)


def arrived_ids(session: Session) -> list[int]:
    return [event.id for event in session.events() if isinstance(event, CallArrived)]


class TwoSessions(RuleBasedStateMachine):
    """Two honest ends, a wire that delays and splits, and time: whatever happens, every call ends once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.wires = [b"", b""]  # from each side, written and not yet read
        self.open: list[dict[int, float | None]] = [{}, {}]  # calls of each side that must still end: deadline
        self.asked: list[dict[int, list[Any]]] = [{}, {}]
        self.running: list[dict[int, str]] = [{}, {}]
        self.arrived: list[set[int]] = [set(), set()]
        self.asked_ends: list[Counter[str]] = [Counter(), Counter()]  # of calls of each side, as its events tell
        self.served_ends: list[Counter[str]] = [Counter(), Counter()]  # of calls to each side, as its handlers end
        self.counts = [SessionCounts(), SessionCounts()]
        self.sessions = pair(counts=self.counts)
        self.is_lost = False

    @initialize(is_started=st.booleans())
    def start_somewhere(self, is_started: bool) -> None:
        if is_started:
            self.now = 3.0

    @rule(side=st.integers(0, 1), is_control=st.booleans(), left_s=st.none() | st.floats(0.0, 8.0))
    def call(self, side: int, is_control: bool, left_s: float | None) -> None:
        session = self.sessions[side]
        if session.is_closing:
            return
        deadline = None if left_s is None else self.now + left_s
        args = [side, len(self.asked[side])]
        call_id = session.call("_dht.ping" if is_control else "echo", args, {}, now=self.now, deadline=deadline)
        self.open[side][call_id] = deadline
        self.asked[side][call_id] = args

    @rule(side=st.integers(0, 1), count=st.integers(1, 6))
    def call_often(self, side: int, count: int) -> None:
        for _ in range(count):
            self.call(side, False, None)

    @rule(side=st.integers(0, 1), pick=st.integers(0, 50), returns=st.booleans())
    def end_what_runs(self, side: int, pick: int, returns: bool) -> None:
        if self.running[side]:
            call_id = list(self.running[side])[pick % len(self.running[side])]
            del self.running[side][call_id]
            self.served_ends[side]["ok" if returns else "failed"] += 1
            if returns:
                self.sessions[side].answer(call_id, self.asked[1 - side][call_id])
            else:
                self.sessions[side].fail(call_id, Code.FAILED, "no", {"reason": "none"})

    @rule(side=st.integers(0, 1), pick=st.integers(0, 50))
    def cancel(self, side: int, pick: int) -> None:
        if self.asked[side]:
            call_id = list(self.asked[side])[pick % len(self.asked[side])]
            if call_id in self.open[side]:
                del self.open[side][call_id]
                self.asked_ends[side]["cancelled"] += 1
            self.sessions[side].cancel(call_id)

    @rule(side=st.integers(0, 1))
    def flush(self, side: int) -> None:
        self.wires[side] += self.sessions[side].data_to_send()

    @rule(side=st.integers(0, 1), size_bytes=st.integers(0, 200))
    def deliver(self, side: int, size_bytes: int) -> None:
        """To `side`, the next bytes of the other's."""
        if not self.is_lost:
            data, self.wires[1 - side] = self.wires[1 - side][:size_bytes], self.wires[1 - side][size_bytes:]
            self.sessions[side].receive_data(data, self.now)

    @rule(passed_s=st.floats(0.0, 6.0))
    def let_time_pass(self, passed_s: float) -> None:
        self.now += passed_s
        for session in self.sessions:
            session.poll(self.now)
            deadline = session.next_deadline()
            assert deadline is None or deadline > self.now

    @rule(side=st.integers(0, 1))
    def ping(self, side: int) -> None:
        self.sessions[side].ping(self.now)

    @rule(side=st.integers(0, 1))
    def drain(self, side: int) -> None:
        self.sessions[side].is_draining = True

    @precondition(lambda self: len(self.asked[0]) + len(self.asked[1]) > 5)
    @rule(side=st.integers(0, 1))
    def say_goodbye(self, side: int) -> None:
        self.sessions[side].goodbye("closing", "enough")

    @precondition(lambda self: len(self.asked[0]) + len(self.asked[1]) > 5)
    @rule()
    def lose_the_connection(self) -> None:
        self.is_lost = True
        for session in self.sessions:
            session.connection_lost()

    @invariant()
    def everything_that_happened_was_due(self) -> None:
        for side, session in enumerate(self.sessions):
            session.check_invariants()
            for event in session.events():
                self.note(side, event)
            assert session.calls_in_flight == len(self.open[side])
            tasks = [endpoint for endpoint in self.running[side].values() if not endpoint.startswith("_dht.")]
            assert len(tasks) <= SMALL.max_calls_served
            assert session.calls_served >= len(self.running[side])
            counts = self.counts[side]
            assert all_ends(counts.asked, counts.overlay_asked) == self.asked_ends[side]
            served = all_ends(counts.served, counts.overlay_served)
            assert all(served[end] == self.served_ends[side][end] for end in ("ok", "failed"))
            count = served.total() + session.calls_served
            assert len(self.arrived[side]) <= count <= len(self.asked[1 - side])

    def note(self, side: int, event: Event) -> None:
        match event:
            case CallArrived() as call:
                assert call.id not in self.arrived[side], "arrived twice"
                assert call.args == self.asked[1 - side][call.id]
                assert (call.deadline is None) == ("deadline_ms" not in call.options)
                self.arrived[side].add(call.id)
                self.running[side][call.id] = call.endpoint
            case CallWithdrawn(id):
                del self.running[side][id]  # a KeyError: it had ended, or never ran
            case CallAnswered(id, value):
                del self.open[side][id]
                self.asked_ends[side]["ok"] += 1
                assert value == self.asked[side][id]
                assert id in self.arrived[1 - side]
            case CallFailed(id, code, _, _, may_have_started):
                del self.open[side][id]
                self.asked_ends[side][code] += 1
                assert code in (Code.FAILED, Code.BUSY, Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED)
                assert may_have_started or id not in self.arrived[1 - side]
            case CallExpired(id):
                deadline = self.open[side].pop(id)
                self.asked_ends[side]["deadline_exceeded"] += 1
                assert deadline is not None
                assert deadline <= self.now
            case PeerClosed() | PeerSilent():
                assert session_is_over(self.sessions[side])

    def teardown(self) -> None:
        """Let everything reach the other end and every handler answer: what is open then was lost."""
        self.everything_that_happened_was_due()
        for _ in range(200):
            before = [(len(self.open[side]), len(self.arrived[side])) for side in (0, 1)]
            for side in (0, 1):
                self.flush(side)
                self.deliver(1 - side, len(self.wires[side]))
                self.everything_that_happened_was_due()
                while self.running[side]:
                    self.end_what_runs(side, 0, True)
                    self.everything_that_happened_was_due()
            if before == [(len(self.open[side]), len(self.arrived[side])) for side in (0, 1)] and not any(
                session.has_data_to_send() for session in self.sessions
            ):
                break
        if not any(session_is_over(session) for session in self.sessions):
            assert self.open == [{}, {}]
        self.lose_the_connection()
        self.everything_that_happened_was_due()
        assert self.open == [{}, {}]
        assert self.running == [{}, {}]
        assert [session.calls_served for session in self.sessions] == [0, 0]


def all_ends(*kinds: Ends) -> Counter[str]:
    """How many ended in which way; only the ways that there were."""
    ends = Counter[str]()
    for kind in kinds:
        ends.update({"ok": kind.ok} if kind.ok else {})
        ends.update(kind.failed)
    return ends


def session_is_over(session: Session) -> bool:
    return session.is_closing


TwoSessions.TestCase.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
TestTwoHonestSessions = TwoSessions.TestCase


# Both ends joined by channels, and a pipe that loses or changes what comes after some byte


STEPS = st.lists(
    st.sampled_from(["call", "call", "overlay call", "late call", "cancel", "ping", "flush", "flush"]), max_size=25
)
CUTS = st.lists(st.integers(0, 3000), max_size=12)


def channel_pair() -> tuple[SecureChannel, SecureChannel]:
    def channel(send: int, receive: int) -> SecureChannel:
        keys = CipherState("AESGCM", bytes([send]) * 32), CipherState("AESGCM", bytes([receive]) * 32)
        return SecureChannel(*keys, records_per_key=1000)

    return channel(1, 2), channel(2, 1)


def say_steps(steps: list[str], *, ends: bool) -> tuple[Session, bytes]:
    """A dialer that did this, and all that it wrote: a record for each flush."""
    dialer, _ = pair()
    channel, _ = channel_pair()
    ids, written = [], b""
    for step in steps:
        match step:
            case "call":
                ids.append(dialer.call("echo", [len(ids), "x" * len(ids)], {"k": [1]}, now=0.0))
            case "overlay call":
                ids.append(dialer.call("_dht.ping", [len(ids)], {}, now=0.0))
            case "late call":
                ids.append(dialer.call("echo", [len(ids)], {}, now=0.0, deadline=2.5))
            case "cancel" if ids:
                dialer.cancel(ids[len(steps) % len(ids)])
            case "ping":
                dialer.ping(0.0)
            case "flush":
                written += channel.seal(dialer.data_to_send())
    if ends:
        dialer.goodbye("closing")
    return dialer, written + channel.seal(dialer.data_to_send())


def hear(data: bytes, cuts: list[int]) -> tuple[Session, list[Event], bytes]:
    """A listener that was told this in these pieces, up to the first fault; what happened to it, and what it says."""
    _, listener = pair()
    _, channel = channel_pair()
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    with contextlib.suppress(ProtocolViolation):
        for start, end in pairwise(edges):
            listener.receive_data(channel.open(data[start:end]), 1.0)
            listener.check_invariants()
    return listener, listener.events(), listener.data_to_send()


@given(STEPS, st.booleans(), CUTS)
def test_any_split_of_the_bytes_makes_the_same_happen(steps: list[str], ends: bool, cuts: list[int]):
    _, written = say_steps(steps, ends=ends)

    _, events, answers = hear(written, cuts)

    assert (events, answers) == hear(written, [])[1:]


@given(STEPS, CUTS, st.integers(0, 3000), st.sampled_from(["lost", "changed", "repeated"]))
def test_what_happens_before_a_fault_is_the_beginning_of_what_was_said(
    steps: list[str], cuts: list[int], fault_at: int, fault: str
):
    dialer, written = say_steps(steps, ends=False)
    fault_at = min(fault_at, max(0, len(written) - 1))
    rest = {
        "lost": b"",
        "changed": bytes(byte ^ 1 for byte in written[fault_at : fault_at + 1]) + written[fault_at + 1 :],
        "repeated": written[:fault_at] + written,
    }[fault]
    whole = hear(written, [])[1]

    listener, events, _ = hear(written[:fault_at] + rest, cuts)

    assert events == whole[: len(events)]
    in_flight = dialer.calls_in_flight
    running = {event.id for event in events if isinstance(event, CallArrived)}
    running -= {event.id for event in events if isinstance(event, CallWithdrawn)}
    for session in (dialer, listener):
        session.connection_lost()
        session.connection_lost()
    assert sorted(event.id for event in listener.events() if isinstance(event, CallWithdrawn)) == sorted(running)
    ended = [event.id for event in dialer.events() if isinstance(event, CallFailed)]
    assert len(ended) == len(set(ended)) == in_flight
    assert dialer.calls_in_flight == listener.calls_served == 0


# Calls and their ends


def test_both_ends_call_and_ids_never_meet():
    dialer, listener = pair()

    ids = [session.call("echo", [], {}, now=0.0) for session in (dialer, dialer, listener, listener)]

    assert ids == [2, 4, 1, 3]


def test_an_answer_reaches_the_call_it_answers():
    dialer, listener = pair()
    first, second = (dialer.call("echo", [text], {"n": 1}, now=0.0, options={"trace": "t"}) for text in "ab")
    pump(dialer, listener)
    arrived = [event for event in listener.events() if isinstance(event, CallArrived)]

    listener.answer(second, "B")
    listener.answer(first, "A")
    pump(dialer, listener)

    assert arrived == [Call(first, "echo", ["a"], {"n": 1}, {"trace": "t"}), *arrived[1:]]
    assert dialer.events() == [CallAnswered(second, "B"), CallAnswered(first, "A")]
    assert dialer.calls_in_flight == listener.calls_served == 0


def test_a_failure_arrives_with_its_code_and_its_words():
    dialer, listener = pair()
    call_id = dialer.call("echo", [], {}, now=0.0)
    pump(dialer, listener)

    listener.fail(call_id, Code.FAILED, "no money", {"reason": "out_of_budget"})
    pump(dialer, listener)

    assert dialer.events() == [CallFailed(call_id, Code.FAILED, "no money", {"reason": "out_of_budget"})]


def test_a_code_of_a_later_release_reads_as_internal_error():
    dialer, _ = pair()
    call_id = dialer.call("echo", [], {}, now=0.0)
    dialer.data_to_send()

    say(dialer, Fail(call_id, "over_the_moon", "text"))

    assert dialer.events() == [CallFailed(call_id, Code.INTERNAL_ERROR, "text", {})]


@pytest.mark.parametrize(("details", "may_have_started"), [(None, True), ({"may_have_started": False}, False)])
def test_unavailable_says_whether_the_call_may_have_started(details: dict[str, Any] | None, may_have_started: bool):
    dialer, _ = pair()
    call_id = dialer.call("echo", [], {}, now=0.0)
    dialer.data_to_send()

    say(dialer, Fail(call_id, "unavailable", "", details))

    [event] = dialer.events()
    assert isinstance(event, CallFailed)
    assert event.may_have_started is may_have_started


@pytest.mark.parametrize(
    ("message", "details"),
    [
        ("text", {"reason": object()}),
        ("text", {"blob": bytes(5000)}),
        ("a lone surrogate: \ud800", None),
        ("text", {"huge": 2**70}),
    ],
    ids=["not MsgPack", "too large", "not UTF-8", "too large a number"],
)
def test_a_failure_whose_words_cannot_travel_still_ends_its_call(message: str, details: dict[str, Any] | None):
    dialer, listener = pair(replace(SMALL, max_task_frame_bytes=4096))
    call_id = dialer.call("echo", [], {}, now=0.0)
    pump(dialer, listener)

    listener.fail(call_id, Code.FAILED, message, details)
    pump(dialer, listener)

    [event] = dialer.events()
    assert isinstance(event, CallFailed)
    assert (event.id, event.code) == (call_id, Code.FAILED)
    assert listener.calls_served == 0


@pytest.mark.parametrize(
    ("args", "error"), [([object()], TypeError), ([2**64], OverflowError), ([bytes(5000)], FrameTooLarge)]
)
def test_a_call_that_cannot_travel_leaves_nothing_behind(args: list[Any], error: type[Exception]):
    dialer, listener = pair(replace(SMALL, max_task_frame_bytes=4096))

    with pytest.raises(error):
        dialer.call("echo", args, {}, now=0.0, deadline=1.0)

    assert dialer.calls_in_flight == 0
    assert not dialer.has_data_to_send()
    assert dialer.next_deadline() == SMALL.idle_ping_s
    assert dialer.call("echo", [], {}, now=0.0) == 2
    pump(dialer, listener)
    assert arrived_ids(listener) == [2]


def test_an_answer_that_cannot_travel_leaves_its_call_open_for_a_failure():
    dialer, listener = pair(replace(SMALL, max_task_frame_bytes=4096))
    call_id = dialer.call("echo", [], {}, now=0.0)
    pump(dialer, listener)

    with pytest.raises(FrameTooLarge):
        listener.answer(call_id, bytes(5000))
    with pytest.raises(TypeError):
        listener.answer(call_id, object())
    listener.fail(call_id, Code.TOO_LARGE, "too large")
    pump(dialer, listener)

    assert dialer.events() == [CallFailed(call_id, Code.TOO_LARGE, "too large", {})]


def test_a_second_answer_is_left_alone():
    dialer, listener = pair()
    call_id = dialer.call("echo", [], {}, now=0.0)
    pump(dialer, listener)
    listener.answer(call_id, 1)

    listener.answer(call_id, 2)
    listener.fail(call_id, Code.FAILED, "")
    pump(dialer, listener)

    assert dialer.events() == [CallAnswered(call_id, 1)]


# Control frames and order


@pytest.mark.parametrize(
    ("endpoint", "kind"),
    [("_dht.ping", FrameKind.CONTROL), ("_dht_not", FrameKind.TASK), ("echo", FrameKind.TASK)],
)
def test_calls_of_the_overlay_and_their_answers_are_control_frames(endpoint: str, kind: FrameKind):
    dialer, listener = pair()
    answered, failed = (dialer.call(endpoint, [], {}, now=0.0) for _ in range(2))

    asked = dialer.data_to_send()
    listener.receive_data(asked, 0.0)
    listener.answer(answered, None)
    listener.fail(failed, Code.FAILED, "")

    assert [each for each, _ in frames_in(asked)] == [kind, kind]
    assert [each for each, _ in frames_in(listener.data_to_send())] == [kind, kind]


def test_control_frames_go_first():
    dialer, _ = pair()
    dialer.call("echo", [bytes(1000)], {}, now=0.0)
    dialer.call("_dht.ping", [], {}, now=0.0)
    dialer.ping(0.0)

    kinds = [kind for kind, _ in frames_in(dialer.data_to_send())]

    assert kinds == [FrameKind.CONTROL, FrameKind.CONTROL, FrameKind.TASK]


def test_a_call_of_the_overlay_may_overtake_an_earlier_task():
    dialer, listener = pair()
    task = dialer.call("echo", [], {}, now=0.0)
    overlay = dialer.call("_dht.ping", [], {}, now=0.0)

    pump(dialer, listener)

    assert arrived_ids(listener) == [overlay, task]


@pytest.mark.parametrize("endpoint", ["echo", "_dht.ping"])
@pytest.mark.parametrize("is_flushed", [True, False])
def test_a_cancel_never_overtakes_its_call(endpoint: str, is_flushed: bool):
    dialer, listener = pair()
    call_id = dialer.call(endpoint, [], {}, now=0.0)
    sent = dialer.data_to_send() if is_flushed else b""

    dialer.cancel(call_id)
    sent += dialer.data_to_send()
    listener.receive_data(sent, 0.0)

    said = [message for _, message in frames_in(sent)]
    assert said in ([], [Call(call_id, endpoint, [], {}), Cancel(call_id)])
    events = listener.events()
    assert [type(event) for event in events] == [CallArrived, CallWithdrawn][: len(said)]
    assert listener.calls_served == 0
    assert dialer.events() == []


def test_a_task_cancelled_before_it_left_is_never_sent():
    dialer, _ = pair()

    dialer.cancel(dialer.call("echo", [], {}, now=0.0))

    assert dialer.data_to_send() == b""


# Late and stray messages


@pytest.mark.parametrize("late", [Result(2, 1), Fail(2, "failed", "")])
def test_an_answer_to_a_call_that_ended_is_ignored(late: Message):
    dialer, _ = pair()
    dialer.call("echo", [], {}, now=0.0)
    dialer.data_to_send()
    dialer.cancel(2)

    say(dialer, late)

    assert dialer.events() == []


def test_a_cancel_for_a_call_that_ended_is_ignored():
    _, listener = pair()
    say(listener, Call(2, "echo", [], {}))
    listener.answer(2, None)
    listener.events()

    say(listener, Cancel(2), kind=FrameKind.CONTROL)

    assert listener.events() == []


@pytest.mark.parametrize("endpoint", ["echo", "_dht.ping"])
def test_cancelling_thousands_of_calls_at_once_is_no_fault_of_anybody(endpoint: str):
    """The cancels cross as many answers `busy` on the wire, far more than any memory of ended calls would hold."""
    dialer, listener = pair()
    ids = [dialer.call(endpoint, [], {}, now=0.0) for _ in range(5000)]
    calls = dialer.data_to_send()

    for call_id in ids:
        dialer.cancel(call_id)
    cancels = dialer.data_to_send()
    listener.receive_data(calls, 0.0)
    answers = listener.data_to_send()
    listener.receive_data(cancels, 0.0)
    dialer.receive_data(answers, 0.0)

    assert dialer.events() == []
    assert listener.calls_served == dialer.calls_in_flight == 0


@pytest.mark.parametrize(
    "stray",
    [
        Result(4, 1),
        Fail(4, "failed", ""),
        Result(1, 1),
        Fail(1, "failed", ""),
        Cancel(2),
        Cancel(4),
        Cancel(1),
        Call(2, "echo", [], {}),
        Call(4, "echo", [], {}),
    ],
    ids=lambda message: f"{type(message).__name__} {message.id}",
)
def test_a_message_for_an_id_never_used_or_of_the_wrong_side_is_a_violation(stray: Message):
    dialer, _ = pair()
    dialer.call("echo", [], {}, now=0.0)
    dialer.data_to_send()

    with pytest.raises(ProtocolViolation):
        say(dialer, stray)


@pytest.mark.parametrize("call_id", [4, 2, 3])
@pytest.mark.parametrize("is_answered", [True, False])
def test_a_callers_ids_only_grow(call_id: int, is_answered: bool):
    _, listener = pair()
    say(listener, Call(2, "echo", [], {}), Call(4, "echo", [], {}))
    if is_answered:
        listener.answer(4, None)

    with pytest.raises(ProtocolViolation, match="fresh"):
        say(listener, Call(call_id, "echo", [], {}))


def test_an_id_in_use_is_not_fresh_in_another_kind_of_frame():
    _, listener = pair()
    say(listener, Call(2, "echo", [], {}))

    with pytest.raises(ProtocolViolation, match="fresh"):
        say(listener, Call(2, "_dht.ping", [], {}), kind=FrameKind.CONTROL)


def test_events_before_a_violation_stand():
    _, listener = pair()

    with pytest.raises(ProtocolViolation):
        say(listener, Call(2, "echo", [], {}), Result(7, None))

    assert arrived_ids(listener) == [2]


def test_what_is_left_of_a_reading_is_looked_at_without_another(monkeypatch: pytest.MonkeyPatch):
    _, listener = pair()
    readings: list[int] = []
    feed = FrameReader.feed

    def feed_and_note(reader: FrameReader, data: bytes) -> Iterator[tuple[FrameKind, bytes]]:
        readings.append(len(data))
        return feed(reader, data)

    monkeypatch.setattr(FrameReader, "feed", feed_and_note)
    data = encode_frame(FrameKind.CONTROL, encode_message(Ping())) * 9

    listener.receive_data(data, 0.0, max_messages=2)
    while listener.is_behind:
        listener.receive_data(b"", 0.0, max_messages=2)

    assert len(frames_in(listener.data_to_send())) == 9
    assert readings[0] == len(data)
    assert len(readings) == 2  # the second is that of the test


def test_bytes_that_are_no_message_are_a_violation():
    _, listener = pair()

    with pytest.raises(InvalidMessageError):
        listener.receive_data(encode_frame(FrameKind.CONTROL, b"\xc1"), 0.0)


# Messages of releases to come


@pytest.mark.parametrize("state", ["fresh", "running", "waiting"])
def test_an_unknown_message_of_a_call_is_answered_not_found(state: str):
    dialer, listener = pair()
    call_ids = {"fresh": 8, "running": 2, "waiting": 6}
    say(listener, *(Call(call_id, "echo", [], {}) for call_id in (2, 4, 6)))
    listener.events()

    say(listener, Unknown(200, call_ids[state]))

    [(_, answer)] = frames_in(listener.data_to_send())
    assert isinstance(answer, Fail)
    assert (answer.id, answer.code) == (call_ids[state], "not_found")
    withdrawn = [event for event in listener.events() if isinstance(event, CallWithdrawn)]
    assert withdrawn == ([CallWithdrawn(2)] if state == "running" else [])
    listener.check_invariants()
    assert dialer.calls_in_flight == 0


def test_more_unknown_messages_of_the_same_call_get_no_more_answers():
    _, listener = pair()

    answers = []
    for _ in range(3):
        say(listener, Unknown(200, 2))
        answers += frames_in(listener.data_to_send())

    assert len(answers) == 1


@pytest.mark.parametrize("unknown", [Unknown(200, 0), Unknown(200, 1)], ids=["no id", "an id of ours"])
def test_an_unknown_message_that_wants_no_answer_is_skipped(unknown: Unknown):
    _, listener = pair()

    say(listener, unknown)

    assert listener.events() == []
    assert not listener.has_data_to_send()


# Too many calls


def test_calls_beyond_those_served_wait_their_turn_in_order_and_beyond_those_waiting_are_refused_busy():
    dialer, listener = pair()
    ids = [dialer.call("echo", [], {}, now=0.0) for _ in range(6)]
    pump(dialer, listener)

    assert arrived_ids(listener) == ids[:2]
    assert [(event.id, event.code) for event in dialer.events() if isinstance(event, CallFailed)] == [
        (ids[4], Code.BUSY),
        (ids[5], Code.BUSY),
    ]
    listener.answer(ids[1], None)
    assert arrived_ids(listener) == [ids[2]]
    listener.fail(ids[0], Code.FAILED, "")
    assert arrived_ids(listener) == [ids[3]]


def test_a_cancelled_call_makes_room_and_a_waiting_one_never_starts():
    dialer, listener = pair()
    ids = [dialer.call("echo", [], {}, now=0.0) for _ in range(4)]
    pump(dialer, listener)
    listener.events()

    dialer.cancel(ids[2])
    dialer.cancel(ids[0])
    pump(dialer, listener)

    events = listener.events()
    assert CallWithdrawn(ids[0]) in events
    assert [event.id for event in events if isinstance(event, CallArrived)] == [ids[3]]


# Time


def test_a_deadline_travels_as_the_time_that_is_left():
    dialer, _ = pair()
    listener = Session(is_dialer=False, now=5000.0, config=SMALL)  # each has a clock of its own
    dialer.call("echo", [], {}, now=100.0, deadline=101.5)

    listener.receive_data(dialer.data_to_send(), 5000.0)

    [event] = listener.events()
    assert isinstance(event, CallArrived)
    assert event.options == {"deadline_ms": 1500}
    assert event.deadline == 5001.5


def test_our_call_expires_at_its_deadline_and_the_peer_is_told():
    dialer, listener = pair()
    call_id = dialer.call("echo", [], {}, now=0.0, deadline=2.0)
    listener.receive_data(dialer.data_to_send(), 0.0)

    dialer.poll(1.999)
    assert dialer.events() == []
    assert dialer.next_deadline() == 2.0
    dialer.poll(2.0)

    assert dialer.events() == [CallExpired(call_id)]
    # Not one byte came in two seconds: is it there at all?
    assert frames_in(dialer.data_to_send()) == [(FrameKind.CONTROL, Ping()), (FrameKind.CONTROL, Cancel(call_id))]


def test_a_call_that_expires_beside_others_that_are_answered_causes_no_ping():
    dialer, listener = pair()
    call_id = dialer.call("slow", [], {}, now=0.0, deadline=2.0)
    answered = dialer.call("echo", [], {}, now=0.0)
    listener.receive_data(dialer.data_to_send(), 0.0)
    listener.answer(answered, None)
    dialer.receive_data(listener.data_to_send(), 1.5)

    dialer.poll(2.0)

    assert frames_in(dialer.data_to_send()) == [(FrameKind.CONTROL, Cancel(call_id))]


def test_a_peer_that_went_away_in_silence_is_given_up_soon_after_a_call_expired():
    dialer, _ = pair()
    dialer.call("echo", [], {}, now=0.0, deadline=2.0)

    dialer.poll(2.0)
    dialer.poll(2.0 + SMALL.ping_timeout_s)

    assert PeerSilent() in dialer.events()


@pytest.mark.parametrize("kwargs", [{}, {f"k{number}": number for number in range(70_000)}])
def test_more_plain_arguments_than_a_reader_takes_are_refused_here(kwargs: dict[str, Any]):
    dialer, _ = pair(SessionConfig())
    args = [] if kwargs else list(range(270_000))

    with pytest.raises(ValueError, match="would not read"):
        dialer.call("echo", args, kwargs, now=0.0)

    assert dialer.data_to_send() == b""


def test_their_call_is_withdrawn_at_its_deadline_and_they_are_told():
    dialer, listener = pair()
    call_id = dialer.call("echo", [], {}, now=0.0, deadline=2.0)
    listener.receive_data(dialer.data_to_send(), 0.0)
    listener.events()

    assert listener.next_deadline() == 2.0
    listener.poll(2.0)

    assert listener.events() == [CallWithdrawn(call_id)]
    [(_, answer)] = frames_in(listener.data_to_send())
    assert isinstance(answer, Fail)
    assert answer.code == "deadline_exceeded"
    listener.answer(call_id, "too late")
    assert not listener.has_data_to_send()


def test_a_waiting_call_expires_without_ever_starting():
    _, listener = pair()
    say(listener, *(Call(call_id, "echo", [], {}) for call_id in (2, 4)))
    say(listener, Call(6, "echo", [], {}, {"deadline_ms": 1000}))
    listener.events()

    listener.poll(1.0)

    assert listener.events() == []
    assert [message.id for _, message in frames_in(listener.data_to_send()) if isinstance(message, Fail)] == [6]


@pytest.mark.parametrize("wrong", [-1, 2**62, "1000", 1.5, None, [1]])
def test_a_deadline_that_is_none_is_no_deadline(wrong: Any):
    _, listener = pair()

    say(listener, Call(2, "echo", [], {}, {"deadline_ms": wrong}))

    [event] = listener.events()
    assert isinstance(event, CallArrived)
    assert event.deadline is None


def test_calls_that_ended_in_time_leave_no_deadlines_behind():
    dialer, listener = pair()

    for number in range(500):
        call_id = dialer.call("echo", [], {}, now=0.0, deadline=1000.0 + number)
        pump(dialer, listener)
        listener.answer(call_id, None)
        pump(dialer, listener)

        assert max(len(session._deadlines) for session in (dialer, listener)) < 70

    for session in (dialer, listener):
        session.poll(1.0)
        assert session.next_deadline() == SMALL.idle_ping_s


def test_a_silent_peer_is_pinged_and_then_given_up():
    dialer, _ = pair()
    call_id = dialer.call("echo", [], {}, now=0.0)
    dialer.data_to_send()

    assert dialer.next_deadline() == 10.0
    dialer.poll(9.999)
    assert not dialer.has_data_to_send()
    dialer.poll(10.0)
    assert frames_in(dialer.data_to_send()) == [(FrameKind.CONTROL, Ping())]
    assert dialer.next_deadline() == 15.0
    dialer.poll(14.999)
    assert dialer.events() == []
    dialer.poll(15.0)

    assert dialer.events() == [
        PeerSilent(),
        CallFailed(call_id, Code.UNAVAILABLE, "the peer is silent", {}, may_have_started=True),
    ]
    assert dialer.is_closing
    assert dialer.next_deadline() is None


@pytest.mark.parametrize("data", [b"", b"\x01", encode_frame(FrameKind.CONTROL, encode_message(Pong()))])
def test_whatever_arrives_shows_that_the_peer_is_there(data: bytes):
    dialer, _ = pair()
    dialer.poll(10.0)

    dialer.receive_data(data, 14.0)
    dialer.poll(15.0)

    assert dialer.events() == []
    assert dialer.next_deadline() == 24.0


@pytest.mark.parametrize("opened_at", [3.0, 11.919659633628186, 1e6 + 1 / 3, 1e9 + 0.1])
def test_what_is_polled_at_its_deadline_has_a_later_one(opened_at: float):
    """Whatever the rounding: else a timer would fire again at once, for ever."""
    session = Session(is_dialer=True, now=opened_at, config=SMALL)
    session.call("echo", [], {}, now=opened_at, deadline=opened_at + 1 / 3)

    deadlines = []
    while (deadline := session.next_deadline()) is not None and len(deadlines) < 10:
        deadlines.append(deadline)
        session.poll(deadline)

    assert len(deadlines) == len(set(deadlines)) == 3  # the call's, the ping's, the end


def test_a_ping_is_answered_and_only_one_is_under_way():
    dialer, listener = pair()

    dialer.ping(0.0)
    dialer.ping(1.0)
    asked = dialer.data_to_send()
    listener.receive_data(asked, 1.0)
    answered = listener.data_to_send()
    dialer.receive_data(answered, 1.0)

    assert frames_in(asked) == [(FrameKind.CONTROL, Ping())]
    assert frames_in(answered) == [(FrameKind.CONTROL, Pong())]
    assert dialer.events() == listener.events() == []
    assert not dialer.has_data_to_send()


# The end of a session


def test_a_draining_session_lets_what_runs_finish_and_refuses_what_arrives():
    dialer, listener = pair()
    running = dialer.call("echo", [], {}, now=0.0)
    pump(dialer, listener)
    listener.events()

    listener.is_draining = True
    refused = dialer.call("echo", [], {}, now=0.0)
    pump(dialer, listener)
    listener.answer(running, "done")
    pump(dialer, listener)

    assert arrived_ids(listener) == []
    failed, answered = dialer.events()
    assert isinstance(failed, CallFailed)
    assert (failed.id, failed.code, failed.may_have_started) == (refused, Code.UNAVAILABLE, False)
    assert answered == CallAnswered(running, "done")


def test_a_goodbye_ends_every_call_on_both_sides_and_is_the_last_word():
    dialer, listener = pair()
    ours = [listener.call(endpoint, [], {}, now=0.0) for endpoint in ("echo", "_dht.ping")]
    theirs = [dialer.call(endpoint, [], {}, now=0.0) for endpoint in ("echo", "_dht.ping", "echo", "echo")]
    pump(dialer, listener)
    listener.events()
    dialer.events()
    never_left = listener.call("echo", [], {}, now=0.0)

    listener.goodbye("closing", "enough")
    said = listener.data_to_send()
    dialer.receive_data(said, 0.0)

    assert frames_in(said)[-1] == (FrameKind.CONTROL, Goodbye("closing", "enough"))
    failures = {event.id: event for event in listener.events() if isinstance(event, CallFailed)}
    assert {call_id: event.may_have_started for call_id, event in failures.items()} == {
        **dict.fromkeys(ours, True),
        never_left: False,
    }
    at_dialer = dialer.events()
    assert PeerClosed("closing", "enough") in at_dialer
    ends = {event.id: event.may_have_started for event in at_dialer if isinstance(event, CallFailed)}
    assert ends == {theirs[0]: True, theirs[1]: True, theirs[2]: True, theirs[3]: False}
    assert {event.id for event in at_dialer if isinstance(event, CallWithdrawn)} == set(ours)
    assert dialer.is_closing
    assert listener.is_closing


def test_overlay_calls_do_not_wait_behind_tasks():
    dialer, listener = pair()
    for _ in range(SMALL.max_calls_served + 1):
        dialer.call("echo", [], {}, now=0.0)
    ping = dialer.call("_dht.ping", [], {}, now=0.0)

    pump(dialer, listener)

    arrived = [event.id for event in listener.events() if isinstance(event, CallArrived)]
    assert ping in arrived
    assert len(arrived) == SMALL.max_calls_served + 1


@pytest.mark.parametrize(("kind", "endpoint"), [(FrameKind.CONTROL, "echo"), (FrameKind.TASK, "_dht.ping")])
def test_a_call_in_a_frame_of_the_other_kind_is_a_violation(kind: FrameKind, endpoint: str):
    _, listener = pair()
    frame = encode_frame(kind, encode_message(Call(2, endpoint, [], {}, {})))

    with pytest.raises(ProtocolViolation, match="in a frame of kind"):
        listener.receive_data(frame, 0.0)


DEEP: Any = []
for _ in range(40):
    DEEP = [DEEP]


@pytest.mark.parametrize("value", [{1: 2}, DEEP, [0] * 300_000, {"a": [{2.5: 1}]}])
def test_what_the_other_end_would_not_read_is_not_sent(value: Any):
    dialer, listener = pair()
    running = dialer.call("echo", [], {}, now=0.0)
    pump(dialer, listener)

    with pytest.raises(ValueError, match="would not read it"):
        dialer.call("echo", [value], {}, now=0.0)
    with pytest.raises(ValueError, match="would not read it"):
        listener.answer(running, value)
    listener.answer(running, "fine")
    pump(dialer, listener)

    assert dialer.events() == [CallAnswered(running, "fine")]


def test_overlay_calls_that_nobody_answers_are_bounded_too():
    dialer, listener = pair()
    for _ in range(SMALL.max_calls_queued + 1):
        dialer.call("_dht.ping", [], {}, now=0.0)

    pump(dialer, listener)
    pump(listener, dialer)

    assert listener.calls_served == SMALL.max_calls_queued
    assert [event.code for event in dialer.events() if isinstance(event, CallFailed)] == [Code.BUSY]


def test_a_call_that_met_a_goodbye_on_its_way_never_started():
    dialer, listener = pair()
    listener.goodbye("closing")
    call_id = dialer.call("echo", [], {}, now=0.0)
    dialer.data_to_send()

    dialer.receive_data(listener.data_to_send(), 0.0)

    [_, failed] = dialer.events()
    assert isinstance(failed, CallFailed)
    assert (failed.id, failed.code, failed.may_have_started) == (call_id, Code.UNAVAILABLE, False)


@pytest.mark.parametrize("size_bytes", range(1, 40, 3))
def test_what_arrives_after_the_end_is_not_read_however_it_is_split(size_bytes: int):
    _, listener = pair()
    listener.goodbye("closing")
    data = encode_frame(FrameKind.TASK, encode_message(Call(2, "echo", ["text"], {}))) * 2

    for start in range(0, len(data), size_bytes):
        listener.receive_data(data[start : start + size_bytes], 0.0)

    assert listener.events() == []


def test_nothing_happens_after_the_end():
    dialer, listener = pair()
    call_id = dialer.call("echo", [], {}, now=0.0)
    pump(dialer, listener)
    listener.goodbye("closing")
    listener.data_to_send()
    listener.events()

    say(listener, Call(4, "echo", [], {}), Ping(), Result(9, 1))
    listener.answer(call_id, "late")
    listener.fail(call_id, Code.FAILED, "late")
    listener.cancel(1)
    listener.ping(0.0)
    listener.goodbye("again")
    listener.connection_lost()
    listener.poll(1e9)

    assert listener.events() == []
    assert not listener.has_data_to_send()
    assert listener.next_deadline() is None
    with pytest.raises(AssertionError):
        listener.call("echo", [], {}, now=0.0)


def test_a_lost_connection_ends_every_call_as_unavailable():
    dialer, listener = pair()
    left = dialer.call("echo", [], {}, now=0.0)
    theirs = listener.call("echo", [], {}, now=0.0)
    pump(dialer, listener)
    dialer.events()
    never_left = dialer.call("echo", [], {}, now=0.0)

    dialer.connection_lost()

    assert dialer.events() == [
        CallFailed(left, Code.UNAVAILABLE, "the connection was lost", {}, may_have_started=True),
        CallFailed(never_left, Code.UNAVAILABLE, "the connection was lost", {}, may_have_started=False),
        CallWithdrawn(theirs),
    ]


def test_codes_are_for_ever():
    assert " ".join(Code) == (
        "bad_request not_found forbidden busy too_large deadline_exceeded cancelled unavailable failed internal_error "
        "loop exhausted"
    )


def test_a_question_never_waits_behind_tasks():
    asking, answering = pair()
    tasks = [asking.call("slow", [], {}, now=0.0) for _ in range(SMALL.max_calls_served + 1)]

    probe = asking.call("_synapse.ping", [], {}, now=0.0)
    pump(asking, answering)

    assert arrived_ids(answering) == [*tasks[:-1], probe]
    answering.check_invariants()


def test_calls_that_wait_hold_no_more_than_their_bytes():
    config = replace(SMALL, max_waiting_bytes=1000)
    asking, answering = pair(config)
    for _ in range(config.max_calls_served):
        asking.call("slow", [], {}, now=0.0)

    small, large = (asking.call("slow", [bytes(size)], {}, now=0.0) for size in (600, 600))
    pump(asking, answering)
    answering.check_invariants()
    asking.cancel(small)
    third = asking.call("slow", [bytes(600)], {}, now=0.0)
    pump(asking, answering)

    refused = {event.id: event.code for event in asking.events() if isinstance(event, CallFailed)}
    assert refused == {large: Code.BUSY}
    assert third not in refused
    answering.check_invariants()


@given(st.lists(st.integers(1, 50), min_size=1, max_size=200), st.randoms(use_true_random=False))
def test_whoever_asks_anew_at_every_earlier_deadline_alone_is_never_late(limits: list[int], rng: random.Random):
    dialer, _ = pair()
    alarm_at = dialer.next_deadline()
    assert alarm_at is not None
    open_ids: list[int] = []
    for limit in limits:
        open_ids.append(dialer.call("echo", [], {}, now=0.0, deadline=float(limit)))
        if rng.random() < 0.5:
            dialer.cancel(open_ids.pop(rng.randrange(len(open_ids))))
        if dialer.has_earlier_deadline:
            asked = dialer.next_deadline()
            assert asked is not None
            alarm_at = min(alarm_at, asked)

        now = dialer.next_deadline()
        assert now is not None and alarm_at <= now
