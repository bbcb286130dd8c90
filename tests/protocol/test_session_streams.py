"""Streams of a session: two honest ends against a model, a dishonest one, and every index of a short stream."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from synapse_p2p.config import KIB, MIB, SessionConfig
from synapse_p2p.exceptions import FrameTooLarge, ProtocolViolation
from synapse_p2p.protocol.code import Code
from synapse_p2p.protocol.events import (
    CallAnswered,
    CallArrived,
    CallExpired,
    CallFailed,
    CallWithdrawn,
    CreditArrived,
    Event,
    ItemsArrived,
    StreamEnded,
)
from synapse_p2p.protocol.outbox import MAX_UNFINISHED, MAX_UNFINISHED_BYTES
from synapse_p2p.protocol.session import Session
from synapse_p2p.protocol.streams import FIRST_CREDIT_BYTES, MAX_ITEM_BYTES, StreamReader
from synapse_p2p.protocol.wire import (
    MAX_CREDIT_BYTES,
    MAX_UPLOADS,
    MAX_WHOLE_BYTES,
    Call,
    Cancel,
    Credit,
    End,
    Fail,
    FrameKind,
    FrameReader,
    Item,
    Message,
    PartFlag,
    Result,
    Unknown,
    decode_message,
    decode_part,
    encode_frame,
    encode_message,
    encode_part,
)

SMALL = SessionConfig(max_calls_served=2, max_calls_queued=3)
ENDS = (CallAnswered, CallFailed, CallExpired, StreamEnded)


def pair(config: SessionConfig | None = None) -> tuple[Session, Session]:
    """The dialer and the listener of one session, opened at 0."""
    config = config or SessionConfig()
    return Session(is_dialer=True, now=0.0, config=config), Session(is_dialer=False, now=0.0, config=config)


def pump(one: Session, other: Session, now: float = 0.0) -> None:
    """Bring what both have to say to the other until neither has more."""
    while one.has_data_to_send() or other.has_data_to_send():
        for speaker, hearer in ((one, other), (other, one)):
            hearer.receive_data(speaker.outbox.take(), now)
            hearer.check_invariants()
            speaker.check_invariants()


def say(session: Session, *messages: Message, kind: FrameKind | None = None) -> None:
    """Let the peer of `session` say this."""
    for message in messages:
        control = isinstance(message, (Cancel, Credit))
        frame_kind = (FrameKind.CONTROL if control else FrameKind.TASK) if kind is None else kind
        session.receive_data(encode_frame(frame_kind, encode_message(message)), 0.0)


def frames_in(data: bytes) -> list[tuple[FrameKind, bytes]]:
    return list(FrameReader(max_control_frame_bytes=2**24, max_task_frame_bytes=2**24).feed(data))


def messages_in(data: bytes) -> list[Message]:
    return [decode_message(body, kind) for kind, body in frames_in(data)]


def take_all(session: Session, reader: StreamReader) -> list[Any]:
    items = []
    while reader:
        items.append(session.take_item(reader))
    return items


# Two honest ends, and a model of what has to come of it


@dataclass
class Flow:
    """One stream, as the model knows it. `writer` is the side that sends."""

    writer: int
    call_id: int
    part: int
    sent: list[Any] = field(default_factory=list)
    is_ended: bool = False  # by its writer
    reader: StreamReader | None = None
    taken: list[Any] = field(default_factory=list)


@dataclass
class OpenCall:
    """One call of `caller`'s."""

    caller: int
    has_items: bool
    uploads: list[Flow]
    result: Flow | None
    is_given_up: bool = False  # cancelled by its caller
    caller_ends: int = 0
    is_running: bool = False
    server_ends: int = 0
    answer: str = ""  # how the server ended it


class StreamsOfTwo(RuleBasedStateMachine):
    """A pipe that delays and splits and loses nothing: items come in order, and every call ends once on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.sessions = pair(SMALL)
        self.wires = [b"", b""]  # from each side, written and not yet read
        self.calls: dict[int, OpenCall] = {}
        self.is_lost = False

    @rule(side=st.integers(0, 1), has_items=st.booleans(), uploads=st.integers(0, 2), size=st.sampled_from([0, 40_000]))
    def call(self, side: int, has_items: bool, uploads: int, size: int) -> None:
        if self.sessions[side].is_closing:
            return
        args = [None] * uploads + [bytes(size)]
        call_id = self.sessions[side].call("mix", args, {}, now=0.0, has_items=has_items, uploads=list(range(uploads)))
        flows = [Flow(side, call_id, part) for part in range(uploads)]
        result = Flow(1 - side, call_id, 0) if has_items else None
        if result is not None:
            result.reader = self.sessions[side].streams.readers(call_id)[0]
        self.calls[call_id] = OpenCall(side, has_items, flows, result)

    @rule(pick=st.integers(0, 99), size=st.sampled_from([1, 100, 30_000, 70_000, 200_000]), count=st.integers(1, 5))
    def send(self, pick: int, size: int, count: int) -> None:
        for flow in self.pick_writable(pick):
            session = self.sessions[flow.writer]
            for _ in range(count):
                if session.may_send_item(flow.call_id, flow.part):
                    item = [len(flow.sent), bytes(size)]
                    session.send_item(flow.call_id, item, flow.part)
                    flow.sent.append(item)

    @rule(pick=st.integers(0, 99))
    def end_a_flow(self, pick: int) -> None:
        for flow in self.pick_writable(pick):
            call = self.calls[flow.call_id]
            self.sessions[flow.writer].end_items(flow.call_id, flow.part)
            flow.is_ended = True
            if flow is call.result:
                self.end_at_server(call, "end")

    @rule(pick=st.integers(0, 99), returns=st.booleans())
    def end_what_runs(self, pick: int, returns: bool) -> None:
        running = [(call_id, call) for call_id, call in self.calls.items() if call.is_running]
        if running:
            call_id, call = running[pick % len(running)]
            server = self.sessions[1 - call.caller]
            if returns and not call.has_items:
                server.answer(call_id, "done")
                self.end_at_server(call, "result")
            else:
                server.fail(call_id, Code.FAILED, "no")
                self.end_at_server(call, "fail")

    @rule(pick=st.integers(0, 99), count=st.integers(1, 20))
    def take(self, pick: int, count: int) -> None:
        flows = [flow for flow in self.flows() if flow.reader is not None]
        if flows:
            self.take_from(flows[pick % len(flows)], count)

    @rule(pick=st.integers(0, 99))
    def give_up(self, pick: int) -> None:
        if self.calls:
            call_id = list(self.calls)[pick % len(self.calls)]
            call = self.calls[call_id]
            session = self.sessions[call.caller]
            if call.result is not None and call.result.reader is not None:
                session.streams.drop(call.result.reader)
                call.result.reader = None
            if not call.caller_ends:
                call.is_given_up = True
                call.caller_ends += 1
                session.cancel(call_id)

    @rule(side=st.integers(0, 1))
    def flush(self, side: int) -> None:
        self.wires[side] += self.sessions[side].outbox.take()

    @rule(side=st.integers(0, 1), size_bytes=st.sampled_from([1, 5, 1000, 50_000, 500_000]))
    def deliver(self, side: int, size_bytes: int) -> None:
        """To `side`, the next bytes of the other's."""
        if not self.is_lost:
            data, self.wires[1 - side] = self.wires[1 - side][:size_bytes], self.wires[1 - side][size_bytes:]
            self.sessions[side].receive_data(data, 0.0)

    @precondition(lambda self: len(self.calls) > 3)
    @rule(side=st.integers(0, 1))
    def say_goodbye(self, side: int) -> None:
        self.sessions[side].goodbye("closing")

    @precondition(lambda self: len(self.calls) > 3)
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
        for flow in self.flows():
            assert flow.taken == flow.sent[: len(flow.taken)]
            if flow.reader is not None:
                assert flow.reader.unread_bytes < MAX_CREDIT_BYTES + MAX_ITEM_BYTES

    def note(self, side: int, event: Event) -> None:
        match event:
            case CallArrived() as call:
                known = self.calls[call.id]
                assert known.caller != side
                assert not known.is_running and not known.server_ends
                known.is_running = True
                if self.sessions[side].streams.readers(
                    call.id
                ):  # else it has ended since, and the event of that follows
                    for flow in known.uploads:
                        flow.reader = self.sessions[side].streams.readers(call.id)[flow.part]
            case CallWithdrawn(id):
                assert self.calls[id].is_running
                self.end_at_server(self.calls[id], "withdrawn")
            case CallAnswered() | CallFailed() | CallExpired() | StreamEnded():
                known = self.calls[event.id]
                assert known.caller == side
                known.caller_ends += 1
                assert known.caller_ends == 1
                if isinstance(event, StreamEnded):
                    assert known.answer == "end"
                if isinstance(event, CallAnswered):
                    assert known.answer == "result"
            case ItemsArrived(id, part):
                known = self.calls[id]
                flow = known.result if known.caller == side else known.uploads[part]
                assert flow is not None
            case CreditArrived(id, part):
                assert self.sessions[side].may_send_item(id, part)

    def end_at_server(self, call: OpenCall, how: str) -> None:
        call.is_running = False
        call.server_ends += 1
        assert call.server_ends == 1
        call.answer = how
        for flow in call.uploads:
            flow.reader = None

    def flows(self) -> list[Flow]:
        return [
            flow
            for call in self.calls.values()
            for flow in (*call.uploads, *([call.result] if call.result is not None else []))
        ]

    def pick_writable(self, pick: int) -> list[Flow]:
        flows = [
            flow
            for flow in self.flows()
            if not flow.is_ended and not self.sessions[flow.writer].is_closing and self.is_open_at_writer(flow)
        ]
        return [flows[pick % len(flows)]] if flows else []

    def is_open_at_writer(self, flow: Flow) -> bool:
        call = self.calls[flow.call_id]
        return not call.caller_ends if flow.writer == call.caller else call.is_running

    def take_from(self, flow: Flow, count: int) -> None:
        assert flow.reader is not None
        session = self.sessions[1 - flow.writer]
        while flow.reader and count:
            flow.taken.append(session.take_item(flow.reader))
            count -= 1

    def teardown(self) -> None:
        """Let everything arrive, every handler answer and every reader read."""
        self.everything_that_happened_was_due()
        for _ in range(300):
            for side in (0, 1):
                self.flush(side)
                self.deliver(1 - side, len(self.wires[side]))
                self.everything_that_happened_was_due()
            for flow in self.flows():
                if flow.reader is not None:
                    self.take_from(flow, 10**6)
            is_quiet = not any(self.wires) and not any(session.has_data_to_send() for session in self.sessions)
            if is_quiet and any(call.is_running for call in self.calls.values()):
                self.end_what_runs(0, True)
            elif is_quiet:
                break
        is_whole = not any(session.is_closing for session in self.sessions)
        for call in self.calls.values():
            if is_whole:
                assert call.caller_ends == 1
            if is_whole and call.result is not None and not call.is_given_up:
                assert call.result.taken == call.result.sent
        self.lose_the_connection()
        self.everything_that_happened_was_due()
        assert all(call.caller_ends == 1 for call in self.calls.values())
        assert all(call.server_ends == 1 or not call.is_running for call in self.calls.values())
        for flow in self.flows():
            if flow.reader is not None:
                self.take_from(flow, 10**6)
        assert [session.held_bytes for session in self.sessions] == [0, 0]


StreamsOfTwo.TestCase.settings = settings(max_examples=60, stateful_step_count=35, deadline=None)
TestStreamsOfTwoHonestSessions = StreamsOfTwo.TestCase


# Each index of a short stream


def served(length: int, *, uploads: int = 0) -> tuple[Session, Session, int]:
    """A stream of which `length` items have arrived at the dialer, unread."""
    dialer, listener = pair()
    call_id = dialer.call("tail", [None] * uploads, {}, now=0.0, has_items=True, uploads=list(range(uploads)))
    pump(dialer, listener)
    listener.events()
    for number in range(length):
        listener.send_item(call_id, number)
    pump(dialer, listener)
    return dialer, listener, call_id


@pytest.mark.parametrize("index", range(6))
@pytest.mark.parametrize("end", ["end", "fail", "cancel", "lost", "goodbye", "goodbye of the caller"])
def test_a_stream_ends_once_on_both_sides_wherever_it_ends(end: str, index: int):
    dialer, listener, call_id = served(index)
    reader = dialer.streams.readers(call_id)[0]
    match end:
        case "end":
            listener.end_items(call_id)
        case "fail":
            listener.fail(call_id, Code.FAILED, "no")
        case "cancel":
            dialer.cancel(call_id)
        case "lost":
            listener.connection_lost()
            dialer.connection_lost()
        case "goodbye":
            listener.goodbye("stopping")
        case "goodbye of the caller":
            dialer.goodbye("closing")

    for _ in range(2):
        pump(dialer, listener)
        dialer.cancel(call_id)
        listener.end_items(call_id)
        listener.fail(call_id, Code.FAILED, "again")
        listener.send_item(call_id, "late")

    at_caller = [event for event in dialer.events() if isinstance(event, ENDS)]
    at_server = [event for event in listener.events() if isinstance(event, CallWithdrawn)]
    assert len(at_caller) == (end != "cancel")
    assert len(at_server) == (end not in ("end", "fail"))
    assert take_all(dialer, reader) == list(range(index))
    assert dialer.calls_in_flight == listener.calls_served == 0
    assert dialer.held_bytes == listener.held_bytes == 0


@pytest.mark.parametrize("index", range(5))
@pytest.mark.parametrize("end", ["answer", "cancel", "lost"])
def test_an_upload_ends_with_its_call_wherever_it_is(end: str, index: int):
    dialer, listener = pair()
    call_id = dialer.call("total", [None], {}, now=0.0, uploads=[0])
    for number in range(index):
        dialer.send_item(call_id, number)
    pump(dialer, listener)
    reader = listener.streams.readers(call_id)[0]
    assert take_all(listener, reader) == list(range(index))
    match end:
        case "answer":
            listener.answer(call_id, "enough")
        case "cancel":
            dialer.cancel(call_id)
        case "lost":
            dialer.connection_lost()
            listener.connection_lost()
    dialer.send_item(call_id, "crosses the end")
    pump(dialer, listener)
    dialer.send_item(call_id, "late")
    dialer.end_items(call_id)
    pump(dialer, listener)

    assert not reader and not reader.is_open
    assert dialer.calls_in_flight == listener.calls_served == 0
    assert dialer.held_bytes == listener.held_bytes == 0


def test_the_items_before_a_failure_come_before_it():
    dialer, listener, call_id = served(0)
    for number in range(10):
        listener.send_item(call_id, number)
    listener.fail(call_id, Code.FAILED, "after ten")

    pump(dialer, listener)

    reader_events = [type(event) for event in dialer.events()]
    assert reader_events == [ItemsArrived, CallFailed]


# Credit


def test_a_reader_that_takes_nothing_is_sent_no_more_than_the_first_credit():
    dialer, listener, call_id = served(0)
    reader = dialer.streams.readers(call_id)[0]
    count = 0
    while listener.may_send_item(call_id):
        listener.send_item(call_id, bytes(1000))
        count += 1
    pump(dialer, listener)

    assert reader.unread_bytes < FIRST_CREDIT_BYTES + 1100
    assert not listener.may_send_item(call_id)
    listener.events()
    take_all(dialer, reader)
    pump(dialer, listener)
    assert listener.events() == [CreditArrived(call_id, 0)]
    assert listener.may_send_item(call_id)


@pytest.mark.parametrize(
    ("way_s", "window_bytes"), [(0.0, FIRST_CREDIT_BYTES), (0.001, FIRST_CREDIT_BYTES), (0.02, MAX_CREDIT_BYTES)]
)
def test_a_reader_that_keeps_up_is_sent_up_to_a_mebibyte_over_a_long_way(way_s: float, window_bytes: int):
    dialer, listener, call_id = served(0)
    reader = dialer.streams.readers(call_id)[0]
    for number in range(60):
        while listener.may_send_item(call_id):
            listener.send_item(call_id, bytes(10_000))
        pump(dialer, listener, number * way_s)
        take_all(dialer, reader)
        listener.receive_data(dialer.data_to_send(), number * way_s)

    assert reader.window_bytes == window_bytes
    assert listener.streams.writer(call_id)._credit_bytes <= MAX_CREDIT_BYTES


@given(st.lists(st.integers(100, 15_000), min_size=1, max_size=40))
@settings(max_examples=20, deadline=None)
def test_a_slow_reader_never_holds_more_than_the_first_window(sizes: list[int]):
    dialer, listener, call_id = served(0)
    reader = dialer.streams.readers(call_id)[0]
    for size in sizes * 3:
        while listener.may_send_item(call_id):
            listener.send_item(call_id, bytes(size))
        pump(dialer, listener)
        dialer.take_item(reader)  # one, while more have come
        assert reader.unread_bytes < FIRST_CREDIT_BYTES + 20_100
    assert reader.window_bytes == FIRST_CREDIT_BYTES


def test_an_item_of_a_mebibyte_passes_and_a_longer_one_is_refused_where_it_is_made():
    dialer, listener, call_id = served(0)
    reader = dialer.streams.readers(call_id)[0]

    listener.send_item(call_id, bytes(MIB))
    pump(dialer, listener)
    assert take_all(dialer, reader) == [bytes(MIB)]
    pump(dialer, listener)

    with pytest.raises(FrameTooLarge):
        listener.send_item(call_id, bytes(MAX_ITEM_BYTES))
    with pytest.raises(ValueError, match="would not read"):
        listener.send_item(call_id, {1: "a key that is no text"})


def test_the_windows_of_all_streams_together_do_not_grow_past_the_budget():
    config = SessionConfig(max_unread_bytes=512 * KIB, max_calls_served=64)
    dialer, listener = pair(config)
    ids = [dialer.call("tail", [], {}, now=0.0, has_items=True) for _ in range(6)]
    pump(dialer, listener)
    for number in range(30):
        for call_id in ids:
            while listener.may_send_item(call_id):
                listener.send_item(call_id, bytes(20_000))
        pump(dialer, listener, number * 0.02)
        for call_id in ids:
            take_all(dialer, dialer.streams.readers(call_id)[0])
        listener.receive_data(dialer.data_to_send(), number * 0.02)

    assert sum(dialer.streams.readers(call_id)[0].window_bytes for call_id in ids) == 512 * KIB


def test_uploads_of_calls_that_wait_count_against_the_bytes_that_may_wait():
    dialer, listener = pair(
        SessionConfig(max_calls_served=1, max_calls_queued=256, max_waiting_bytes=4 * FIRST_CREDIT_BYTES)
    )
    for _ in range(6):
        dialer.call("total", [None], {}, now=0.0, uploads=[0])
    pump(dialer, listener)

    refused = [event for event in dialer.events() if isinstance(event, CallFailed)]
    assert [event.code for event in refused] == [Code.BUSY] * 2


# A peer that does not keep to it


def stream_open() -> tuple[Session, int]:
    """A dialer whose call 2 is a stream."""
    dialer, _ = pair()
    call_id = dialer.call("tail", [], {}, now=0.0, has_items=True)
    dialer.data_to_send()
    return dialer, call_id


def upload_open() -> tuple[Session, int]:
    """A listener that runs call 2, which has an upload."""
    _, listener = pair()
    say(listener, Call(2, "total", [None], {}, {"uploads": [0]}))
    return listener, 2


def test_items_without_credit_are_a_violation():
    dialer, call_id = stream_open()
    say(dialer, Item(call_id, bytes(FIRST_CREDIT_BYTES)))

    with pytest.raises(ProtocolViolation, match="no credit"):
        say(dialer, Item(call_id, 1))


def test_ten_thousand_empty_items_are_beyond_the_first_credit():
    """In memory the shortest item takes more than its five bytes, so it counts for more."""
    dialer, call_id = stream_open()
    frame = encode_frame(FrameKind.TASK, encode_message(Item(call_id, None)))

    with pytest.raises(ProtocolViolation, match="no credit"):
        dialer.receive_data(frame * 10_000, 0.0)
    assert len(dialer.streams.readers(call_id)[0]) == 1024


@pytest.mark.parametrize("grants", [[MAX_CREDIT_BYTES], [10**6] * 2, [2**62]])
def test_credit_past_its_bound_is_a_violation(grants: list[int]):
    _, listener = pair()
    say(listener, Call(2, "tail", [], {}, {"stream": True}))

    with pytest.raises(ProtocolViolation, match="credit"):
        say(listener, *(Credit(2, grant) for grant in grants))


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (Item(2, 1, 1), "no such stream"),
        (End(2, 1), "no such stream"),
        (Credit(2, 1, 0), "no such stream"),
        (Item(4, 1), "never was"),
        (End(4), "never was"),
        (Credit(4, 1), "never was"),
        (Item(1, 1), "never was"),
        (Credit(3, 1), "never was"),
    ],
)
def test_a_stream_that_never_was_is_a_violation(message: Message, why: str):
    listener, _ = upload_open()

    with pytest.raises(ProtocolViolation, match=why):
        say(listener, message)


@pytest.mark.parametrize("message", [Item(2, 1), End(2), Credit(2, 1)])
def test_streams_of_a_call_without_any_are_a_violation(message: Message):
    for session in pair():
        if session._next_id == 2:
            session.call("echo", [], {}, now=0.0)
        else:
            say(session, Call(2, "echo", [], {}))
        with pytest.raises(ProtocolViolation, match="no such stream"):
            say(session, message)


@pytest.mark.parametrize("late", [End(2), Item(2, 1)])
def test_what_comes_after_the_end_of_an_upload_is_a_violation(late: Message):
    listener, _ = upload_open()
    say(listener, End(2))

    with pytest.raises(ProtocolViolation):
        say(listener, late)


def test_what_comes_after_the_end_of_the_call_is_late_and_no_violation():
    dialer, call_id = stream_open()
    say(dialer, End(call_id))
    say(dialer, Item(call_id, 1), End(call_id), Result(call_id, 1), Fail(call_id, "failed", ""))
    listener, _ = upload_open()
    say(listener, Cancel(2), Item(2, 1), End(2), Credit(2, 5), Cancel(2))

    assert [type(event) for event in dialer.events()] == [StreamEnded]
    assert dialer.held_bytes == listener.held_bytes == 0


@pytest.mark.parametrize(
    "uploads", [1, "rows", [5], ["rows"], [0, 0], [None], [True], [-1], [[0]], list(range(MAX_UPLOADS + 1))]
)
def test_uploads_that_name_no_arguments_are_refused(uploads: Any):
    _, listener = pair()

    say(listener, Call(2, "total", [None], {}, {"uploads": uploads}))

    assert listener.events() == []
    [refusal] = messages_in(listener.data_to_send())
    assert isinstance(refusal, Fail) and refusal.code == Code.BAD_REQUEST
    say(listener, Item(2, 1), End(2))  # on their way, and late


@pytest.mark.parametrize("options", [{"stream": True}, {"uploads": [0]}])
def test_the_overlay_has_no_streams(options: dict[str, Any]):
    _, listener = pair()

    say(listener, Call(2, "_dht.ping", [None], {}, options), kind=FrameKind.CONTROL)

    [refusal] = messages_in(listener.data_to_send())
    assert isinstance(refusal, Fail) and refusal.code == Code.BAD_REQUEST


def test_an_answer_of_one_value_to_a_call_for_a_stream_ends_it():
    dialer, call_id = stream_open()

    say(dialer, Result(call_id, 7))

    assert dialer.events() == [CallAnswered(call_id, 7)]


# Parts


def test_a_long_message_travels_in_parts_and_arrives_whole():
    dialer, listener = pair()
    call_id = dialer.call("echo", [bytes(MIB)], {}, now=0.0)
    data = dialer.data_to_send()

    kinds = [kind for kind, _ in frames_in(data)]
    parts = [decode_part(body) for _, body in frames_in(data)]
    listener.receive_data(data, 0.0)

    assert set(kinds) == {FrameKind.PART}
    assert max(len(body) for _, body in frames_in(data)) <= MAX_WHOLE_BYTES + 9
    assert [part.is_first for part in parts] == [True] + [False] * (len(parts) - 1)
    assert [part.is_last for part in parts] == [False] * (len(parts) - 1) + [True]
    [arrived] = listener.events()
    assert isinstance(arrived, CallArrived) and arrived.args == [bytes(MIB)] and arrived.id == call_id


@given(st.lists(st.integers(0, 100_000), min_size=1, max_size=8), st.integers(1000, 100_000))
@settings(deadline=None, max_examples=25)
def test_calls_of_any_sizes_arrive_whole_however_the_bytes_are_split(sizes: list[int], piece: int):
    dialer, listener = pair()
    ids = {dialer.call("echo", [bytes(size)], {}, now=0.0): size for size in sizes}
    arrived: dict[int, int] = {}
    while dialer.has_data_to_send():
        data = dialer.outbox.take()
        dialer.check_invariants()
        assert len(data) <= 3 * MAX_WHOLE_BYTES
        for start in range(0, len(data), piece):
            listener.receive_data(data[start : start + piece], 0.0)
            listener.check_invariants()
            arrived |= {event.id: len(event.args[0]) for event in listener.events()}

    assert arrived == ids


def test_control_frames_and_short_calls_do_not_wait_for_a_long_one():
    dialer, _ = pair()
    dialer.call("long", [bytes(2 * MIB)], {}, now=0.0)
    dialer.outbox.take()
    dialer.call("short", [], {}, now=0.0)
    dialer.call("_dht.ping", [], {}, now=0.0)

    block = frames_in(dialer.outbox.take())

    assert [kind for kind, _ in block][:2] == [FrameKind.CONTROL, FrameKind.TASK]
    assert {kind for kind, _ in block[2:]} == {FrameKind.PART}


def test_long_messages_take_turns():
    dialer, _ = pair()
    ids = [dialer.call("long", [bytes(5 * MAX_WHOLE_BYTES)], {}, now=0.0) for _ in range(3)]

    parts = [decode_part(body).id for _, body in frames_in(dialer.data_to_send())]

    assert parts[:9] == ids * 3


def test_what_the_other_end_has_to_put_together_is_bounded():
    config = SessionConfig(max_calls_served=64)
    dialer, listener = pair(config)
    for _ in range(30):
        dialer.call("long", [bytes(MIB)], {}, now=0.0)
    held = 0
    while dialer.has_data_to_send():
        listener.receive_data(dialer.outbox.take(), 0.0)
        listener.check_invariants()
        dialer.check_invariants()
        held = max(held, listener.held_bytes)

    assert 4 * MIB < held <= MAX_UNFINISHED_BYTES
    assert len([event for event in listener.events() if isinstance(event, CallArrived)]) == 30


def part(call_id: int, data: bytes, *, first: bool = False, last: bool = False) -> bytes:
    return encode_part(call_id, PartFlag.FIRST * first | PartFlag.LAST * last, data)


def a_call(call_id: int, size: int = 0) -> bytes:
    return encode_message(Call(call_id, "echo", [bytes(size)], {}))


@pytest.mark.parametrize(
    "data",
    [
        part(2, b"", first=True),
        encode_part(2, 3, a_call(2)),
        encode_part(2, 4, a_call(2)),
        encode_part(0, 2, a_call(2)),
        encode_part(2**63, 2, a_call(2)),
        part(1, a_call(1), first=True),
        part(3, b"more"),
        part(2, b"more"),
        part(2, a_call(2), first=True) * 2,
        part(2, a_call(2)[:5], first=True) + part(2, a_call(2)[5:-1], last=True),
        part(2, a_call(4)[:5], first=True) + part(2, a_call(4)[5:], last=True),
        part(4, a_call(4), first=True) + part(2, a_call(2), first=True),
        b"".join(part(2 * n, a_call(2 * n), first=True) for n in range(1, MAX_UNFINISHED + 2)),
        part(2, bytes(MAX_WHOLE_BYTES + 1), first=True),
    ],
)
def test_parts_that_break_the_rules_are_a_violation(data: bytes):
    _, listener = pair()

    with pytest.raises(ProtocolViolation):
        listener.receive_data(data, 0.0)
    listener.check_invariants()


def test_a_message_in_parts_has_the_limit_of_a_frame():
    _, listener = pair(SessionConfig(max_task_frame_bytes=100_000))
    listener.receive_data(part(2, a_call(2, MAX_WHOLE_BYTES)[:MAX_WHOLE_BYTES], first=True), 0.0)
    rest = part(2, bytes(MAX_WHOLE_BYTES)) * 4

    with pytest.raises(FrameTooLarge):
        listener.receive_data(rest, 0.0)


def test_unfinished_messages_have_a_limit_together():
    _, listener = pair()
    head = [part(call_id, a_call(call_id, 4 * MIB)[:MAX_WHOLE_BYTES], first=True) for call_id in (2, 4, 6)]
    more = [part(call_id, bytes(MAX_WHOLE_BYTES)) for call_id in (2, 4, 6)] * 100

    with pytest.raises(FrameTooLarge):
        listener.receive_data(b"".join((*head, *more)), 0.0)
    assert listener.held_bytes <= MAX_UNFINISHED_BYTES + MAX_WHOLE_BYTES


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_a_long_call_that_is_cancelled_takes_its_parts_with_it(blocks: int):
    dialer, listener = pair()
    call_id = dialer.call("echo", [bytes(MIB)], {}, now=0.0)
    for _ in range(blocks):
        listener.receive_data(dialer.outbox.take(), 0.0)

    dialer.cancel(call_id)
    data = dialer.data_to_send()
    listener.receive_data(data, 0.0)

    assert len(data) < 20
    assert (data == b"") == (blocks == 0)
    assert listener.held_bytes == 0
    assert listener.events() == []
    dialer.call("echo", [bytes(100_000)], {}, now=0.0)
    pump(dialer, listener)
    assert len(listener.events()) == 1


def test_a_long_answer_for_which_nobody_waits_any_more_stays_where_it_is():
    dialer, listener = pair()
    call_id = dialer.call("echo", [], {}, now=0.0)
    pump(dialer, listener)
    listener.answer(call_id, bytes(2 * MIB))
    dialer.receive_data(listener.outbox.take(), 0.0)
    assert dialer.held_bytes > 0

    dialer.cancel(call_id)
    listener.receive_data(dialer.data_to_send(), 0.0)

    assert listener.outbox.queued_bytes == 0
    assert dialer.held_bytes == 0


def test_parts_of_an_item_that_cross_the_end_of_the_call_are_late():
    dialer, listener = pair()
    call_id = dialer.call("total", [None], {}, now=0.0, uploads=[0])
    pump(dialer, listener)
    dialer.send_item(call_id, bytes(500_000))
    first, rest = dialer.outbox.take(), dialer.data_to_send()
    listener.receive_data(first, 0.0)
    listener.answer(call_id, "enough")

    listener.receive_data(rest, 0.0)

    listener.check_invariants()
    assert listener.held_bytes == 0


@pytest.mark.parametrize("is_running", [False, True], ids=["fresh", "running"])
def test_a_long_unknown_message_of_a_call_is_answered_not_found_once(is_running: bool):
    _, listener = pair()
    if is_running:
        say(listener, Call(2, "echo", [], {}))
    head, rest = encode_message(Unknown(200, 2)), bytes(MAX_WHOLE_BYTES)
    longer = b"\x93" + head[1:] + b"\xc5" + len(rest).to_bytes(2, "big")  # an array of three, the last of them bytes

    for _ in range(2):
        listener.receive_data(part(2, longer, first=True) + part(2, rest, last=True), 0.0)

    [answer] = messages_in(listener.data_to_send())
    assert isinstance(answer, Fail)
    assert (answer.id, answer.code) == (2, "not_found")
    assert listener.calls_served == listener.held_bytes == 0
    listener.check_invariants()


def test_parts_whose_first_comes_after_the_end_of_their_call_are_late():
    """They look like those of a new call only where they begin like one."""
    dialer, listener = pair()
    call_id = dialer.call("total", [None], {}, now=0.0, uploads=[0])
    pump(dialer, listener)
    dialer.send_item(call_id, bytes(500_000))
    listener.answer(call_id, "enough")

    listener.receive_data(dialer.data_to_send(), 0.0)

    listener.check_invariants()
    assert listener.held_bytes == 0


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3), st.binary(min_size=1, max_size=40)), max_size=20))
def test_any_parts_are_taken_or_a_violation(parts: list[tuple[int, int, bytes]]):
    listener, _ = upload_open()

    with contextlib.suppress(ProtocolViolation):
        for call_id, flags, data in parts:
            listener.receive_data(encode_part(call_id, flags, data), 0.0)
            listener.check_invariants()
    listener.connection_lost()
    assert listener.held_bytes == 0
