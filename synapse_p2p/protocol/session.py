"""The calls of one session: what is asked, what is served, and how each ends exactly once.

Pure: plaintext of the channel and `now` go in; events, plaintext to send and the next deadline come out. Both ends
call, whoever dialed. Layout: docs/spec/wire.md.

A call of ours:      asked -> answered | failed | expired (its deadline) | dropped (cancelled by us, or the session
ended). A call of theirs:    arrived -> waiting (all places taken) -> running -> answered | failed | withdrawn
(cancelled, expired). The session itself:  open -> closing (we said or heard GOODBYE, or the connection is gone).
Nothing starts after that.

A call may have streams: the items of its result, which end with END in the place of RESULT, and its uploads, items that
the caller sends after the CALL, each with an END of its own. They end with their call at the latest.

Ids of one side grow within each kind of frame: control frames overtake task frames, so over both kinds they need not.
A message for an id that was in use and is no more is late, not wrong: our cancel and the peer's answer may cross on the
wire, for any number of calls at once. An id that was never in use is a violation.
"""

from __future__ import annotations

import heapq
import itertools
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Any

from synapse_p2p.config import SessionConfig
from synapse_p2p.exceptions import FrameTooLarge, ProtocolViolation
from synapse_p2p.protocol.code import Code
from synapse_p2p.protocol.counts import Ends, SessionCounts
from synapse_p2p.protocol.events import (
    CallExpired,
    CallFailed,
    CallWithdrawn,
    CreditArrived,
    Event,
    ItemsArrived,
    PeerClosed,
    PeerSilent,
    StreamEnded,
)
from synapse_p2p.protocol.outbox import Outbox, Taken
from synapse_p2p.protocol.parts import PartJoiner
from synapse_p2p.protocol.streams import FIRST_CREDIT_BYTES, MAX_ITEM_BYTES, StreamReader, StreamTable
from synapse_p2p.protocol.wire import (
    MAX_UPLOADS,
    PLAIN_TYPES,
    Call,
    Cancel,
    Credit,
    End,
    Fail,
    FrameKind,
    FrameReader,
    Goodbye,
    Item,
    Message,
    Part,
    Ping,
    Pong,
    Result,
    Unknown,
    begins_call,
    check_readable,
    decode_message,
    decode_part,
    encode_call,
    encode_item,
    encode_message,
    encode_result,
)

CONTROL_PREFIX = "_dht."  # calls to these endpoints travel as control frames
QUESTION_PREFIX = "_synapse."  # calls to these take no place from a user's functions
QUESTIONS = frozenset({"_agent.load", "_node.load"})  # nor do these: how busy it is, is asked of a busy agent
# Read for every call; in Python 3.11 finding a member in its class takes ten times as long as reading a name.
_CONTROL, _TASK, _PART = FrameKind.CONTROL, FrameKind.TASK, FrameKind.PART
NODE_IS_STOPPING = "the node is stopping"
MIN_KEPT_DEADLINES = 64  # of calls that may have ended, before they are looked through
MIN_SILENCE_S = 1.0  # with not one byte for so long, a call that expires makes us ask whether the peer is there
MAX_DEADLINE_MS = 10 * 365 * 86_400 * 1000


class Place(IntEnum):  # of ints, for they are keys: to hash a member of another Enum is a call of Python's, six a call
    """What a call of theirs runs beside. The first two are short, and never wait behind a user's functions: a node
    with long asks running is not dead, and says so when it is probed.
    """

    OVERLAY = 0
    QUESTION = 1
    TASK = 2


_OVERLAY, _QUESTION, _TASK_PLACE = Place  # as above


def _place_of(endpoint: str) -> Place:
    if endpoint.startswith(CONTROL_PREFIX):
        return _OVERLAY
    return _QUESTION if endpoint.startswith(QUESTION_PREFIX) or endpoint in QUESTIONS else _TASK_PLACE


class Session:
    """The state of one session. Feed it, then take `events()` and `data_to_send()`; ask `next_deadline()`, then `poll`.

    Invariant: every id in `_ours` will get exactly one CallAnswered, StreamEnded, CallFailed or CallExpired unless
    `cancel` takes it out.
    """

    __slots__ = (
        "_arrived_bytes",
        "_arriving",
        "_config",
        "_counts",
        "_deadlines",
        "_free_places",
        "_last_peer_ids",
        "_last_received",
        "_max_deadlines",
        "_max_task_frame_bytes",
        "_next_id",
        "_ours",
        "_parts",
        "_pinged_at",
        "_reader",
        "_waiting",
        "_waiting_bytes",
        "happened",
        "has_earlier_deadline",
        "is_behind",
        "is_closing",
        "is_draining",
        "is_refusing",
        "may_let_wait",
        "outbox",
        "running",
        "streams",
    )

    def __init__(
        self, *, is_dialer: bool, now: float, config: SessionConfig, counts: SessionCounts | None = None
    ) -> None:
        """`counts` are added to, as calls end; they may be those of other sessions, too."""
        self._config = config
        self._counts = counts or SessionCounts()
        self._next_id = 2 if is_dialer else 1  # even for the dialer, odd for the listener; 0 belongs to no call
        self._last_peer_ids = [0] * len(FrameKind)
        self._ours: dict[int, Ends] = {}  # and where the end of each is counted
        self.running: dict[int, Place] = {}  # calls of theirs, by id
        self._free_places = self._all_places()
        self._waiting: OrderedDict[int, tuple[Call, int]] = OrderedDict()  # with the bytes of their messages
        self._waiting_bytes = 0
        self._arrived_bytes = 0  # of the message that is looked at
        self.streams = StreamTable(max_window_bytes=config.max_unread_bytes)
        self._deadlines: list[tuple[float, int]] = []
        self.has_earlier_deadline = False  # than when `next_deadline` was asked last
        self._max_deadlines = MIN_KEPT_DEADLINES
        self._max_task_frame_bytes = config.max_task_frame_bytes
        self._parts = PartJoiner(config.max_task_frame_bytes)
        self._reader = FrameReader(
            max_control_frame_bytes=config.max_control_frame_bytes, max_task_frame_bytes=config.max_task_frame_bytes
        )
        self._arriving: Iterator[tuple[FrameKind, bytes]] = _NOTHING  # what has still to be looked at
        self.is_behind = False  # something that arrived may have to be looked at yet
        self.outbox = Outbox()  # its `queued_bytes` say how much waits to be written
        self.happened: list[Event] = []  # of which `events()` has not told
        self._last_received = now
        self._pinged_at: float | None = None
        self.is_closing = False
        self.may_let_wait = True  # else calls without a place are refused: this process holds too much already
        self.is_draining = False  # what runs may finish, what arrives is refused
        self.is_refusing = False  # the peer takes no new calls of ours, or has broken the rules

    @property
    def takes_calls(self) -> bool:
        """Whether calls of ours can be begun now."""
        return not (self.is_closing or self.is_draining or self.is_refusing)

    # What we do

    def call(
        self,
        endpoint: str,
        args: list[Any],
        kwargs: dict[str, Any],
        *,
        now: float,
        deadline: float | None = None,
        options: Mapping[str, Any] | None = None,
        has_items: bool = False,
        uploads: Sequence[str | int] = (),
    ) -> int:
        """Ask the peer; the id of the call. `deadline` travels as the time that is left.

        Its result is a stream where it `has_items`; `uploads` are the arguments, by name or position, that are sent as
        items after it, at most MAX_UPLOADS.

        Raises what `wire.pack` raises for a value that cannot travel and FrameTooLarge for one too large; nothing is
        sent then.
        """
        assert not self.is_closing, "a closing session takes no calls"
        travelling = dict(options) if options else {}
        if deadline is not None:
            left_ms = int((deadline - now) * 1000)
            travelling["deadline_ms"] = left_ms if left_ms > 1 else 1  # noqa: FURB136 - a fifth of what `max` costs
        if has_items:
            travelling["stream"] = True
        if uploads:
            travelling["uploads"] = list(uploads)
        call_id = self._next_id
        body = encode_call(call_id, endpoint, args, kwargs, travelling)
        if endpoint.startswith(CONTROL_PREFIX):
            self._put_control(body)
            self._ours[call_id] = self._counts.overlay_asked
        else:
            # As of most calls: one argument, of a plain type.
            if kwargs or len(args) != 1 or type(args[0]) not in PLAIN_TYPES or len(body) > self._max_task_frame_bytes:
                self._check_task(body, (*args, *kwargs.values()) if kwargs else args)
            self.outbox.put_call(call_id, body)
            self._ours[call_id] = self._counts.asked
        self._next_id = call_id + 2
        if has_items or uploads:
            self.streams.open(call_id, readers=int(has_items), writers=len(uploads))
        if deadline is not None:
            self._watch(deadline, call_id)
        return call_id

    def cancel(self, call_id: int) -> None:
        """We want no answer to our call any more. A call that is not in flight is left alone."""
        if call_id in self._ours:
            self._end_ours(call_id).note(Code.CANCELLED)
            self._withdraw_from_peer(call_id)

    def answer(self, call_id: int, value: Any) -> None:
        """The peer's call returned. Raises as `call` does; then say `fail`. A withdrawn call is left alone."""
        place = self.running.get(call_id)
        if place is None:
            return
        body = encode_result(call_id, value)
        if place is _OVERLAY:
            self._put_control(body)
            self._counts.overlay_served.ok += 1
        else:
            if type(value) not in PLAIN_TYPES or len(body) > self._max_task_frame_bytes:
                self._check_task(body, (value,))
            self.outbox.put_task(call_id, body)
            self._counts.served.ok += 1
        self._end_theirs(call_id)

    def fail(self, call_id: int, code: Code, message: str, details: Mapping[str, Any] | None = None) -> None:
        """The peer's call did not return. Words that cannot travel are left out. A withdrawn call is left alone."""
        if call_id in self.running:
            self._refuse(call_id, code, message, details)

    def take_item(self, reader: StreamReader) -> Any:
        """The next item, of which there has to be one; the peer may be granted more by that."""
        item, given = self.streams.take(reader, self._last_received)
        if given:
            self.outbox.put_control(encode_message(Credit(reader.call_id, given, reader.part)))
        return item

    def may_send_item(self, call_id: int, part: int = 0) -> bool:
        """Whether there is credit for one more item; if not, CreditArrived says when. Yes for a call that has ended."""
        return call_id not in self.streams or self.streams.writer(call_id, part).may_send()

    def send_item(self, call_id: int, value: Any, part: int = 0) -> None:
        """Send the next item of their call's result, or of an upload of ours. After the call has ended nothing happens.

        Raises as `call` does, for an item that cannot travel or is above 1 MiB; nothing is sent then.
        """
        if call_id not in self.streams:
            return
        body = encode_item(call_id, value, part)
        _check_size(body, min(MAX_ITEM_BYTES, self._max_task_frame_bytes))
        check_readable((value,), body)
        self.streams.writer(call_id, part).spend(len(body))
        self.outbox.put_task(call_id, body)

    def end_items(self, call_id: int, part: int = 0) -> None:
        """That was the last item. It ends their call, where it is the result that ends."""
        if call_id in self.streams:
            self.streams.writer(call_id, part).is_ended = True
            self.outbox.put_task(call_id, encode_message(End(call_id, part)))
            if call_id in self.running:
                self._counts.served.ok += 1
                self._end_theirs(call_id)

    def goodbye(self, code: str, text: str = "") -> None:
        """End the session in good order: what runs is refused, calls of ours end as unavailable, the peer is told."""
        if self.is_closing:
            return
        for call_id in list(self._waiting):
            self._refuse(call_id, Code.UNAVAILABLE, NODE_IS_STOPPING, {"may_have_started": False})
        for call_id in list(self.running):
            self.happened.append(CallWithdrawn(call_id))
            self._refuse(call_id, Code.UNAVAILABLE, NODE_IS_STOPPING, {"may_have_started": True})
        self.outbox.put_goodbye(encode_message(Goodbye(code, text)))
        self._close("we closed the session")

    def connection_lost(self) -> None:
        """The connection is gone without a goodbye: everything in flight ends."""
        self._close("the connection was lost")

    # What happens

    def receive_data(self, plaintext: bytes, now: float, *, max_messages: int = sys.maxsize) -> None:
        """Bytes of the channel. Raises ProtocolViolation where the peer broke the rules; events before that stand.

        So many messages are looked at; the session `is_behind` where that may leave others, and looks at these when it
        is next given bytes, be it none. What arrives once the session is closing is not read any more.
        """
        if self.is_closing:
            return
        self._last_received = now
        self._pinged_at = None
        if not self.is_behind:
            arriving = self._reader.feed(plaintext)
        else:
            arriving, self._arriving, self.is_behind = self._arriving, _NOTHING, False
            if plaintext:  # else it would be a link more for each look, and every message comes through all of them
                arriving = itertools.chain(arriving, self._reader.feed(plaintext))
        left = max_messages
        for kind, body in arriving:
            if kind is _PART:
                message = self._join(body)
            else:
                self._arrived_bytes = len(body)
                message = decode_message(body, kind)
            # The two that every call takes are told apart by hand, as where they are decoded.
            if type(message) is Result:
                if message.id in self._ours:
                    self._end_ours(message.id).ok += 1
                    self.happened.append(message)
                else:
                    self._check_late_answer(message.id)
            elif type(message) is Call:
                self._on_call(message, kind, now)
            elif message is not None:
                self._on_rarer(message, kind)
            left -= 1
            if self.is_closing:
                return
            if not left:
                self._arriving, self.is_behind = arriving, True
                return

    def poll(self, now: float) -> None:
        """Let time pass: deadlines, and silence."""
        while self._deadlines and (self._deadlines[0][0] <= now or not self._is_open(self._deadlines[0][1])):
            _, call_id = heapq.heappop(self._deadlines)
            if call_id in self._ours and now >= self._last_received + MIN_SILENCE_S:
                self.ping(now)  # no answer, and nothing else either: is it there at all?
            self._expire(call_id)  # where it has not ended in time
        if self.is_closing or now < self._silence_at():
            return
        if self._pinged_at is None:
            self.ping(now)
        else:
            self.happened.append(PeerSilent())
            self._close("the peer is silent")

    def ping(self, now: float) -> None:
        """Ask whether the peer is there; it has `ping_timeout_s` to say anything at all."""
        if not self.is_closing and self._pinged_at is None:
            self._pinged_at = now
            self.has_earlier_deadline = True
            self.outbox.put_control(encode_message(Ping()))

    def excuse_silence(self, now: float) -> None:
        """Whoever feeds this session has not read on: that nothing came says nothing of the peer."""
        self._last_received = now
        self._pinged_at = None

    def next_deadline(self) -> float | None:
        """When to call `poll` next; None once the session is closing.

        That may be too early, where the call it was for has ended: to look for those after each call costs more than a
        needless poll now and then.
        """
        self.has_earlier_deadline = False
        if self.is_closing:
            return None
        silence_at = self._silence_at()
        deadlines = self._deadlines
        return deadlines[0][0] if deadlines and deadlines[0][0] < silence_at else silence_at

    def events(self) -> list[Event]:
        """What happened since the last time, in order."""
        events, self.happened = self.happened, []
        return events

    def data_to_send(self) -> bytes:
        """All frames there are to seal and write, control frames first; empty when there are none."""
        data = self.outbox.take()
        return data if self.outbox.is_empty else data + b"".join(iter(self.outbox.take, b""))

    def has_data_to_send(self) -> bool:
        """Whether anything waits to be written."""
        return not self.outbox.is_empty

    @property
    def held_bytes(self) -> int:
        """Of what has arrived: items that nobody has taken, calls that wait, and messages that are not whole."""
        return self.streams.unread_bytes + self._waiting_bytes + self._parts.held_bytes

    @property
    def has_unfinished(self) -> bool:
        """Whether a part of a message has arrived, and the rest of it not."""
        return self._parts.held_bytes > 0

    @property
    def calls_in_flight(self) -> int:
        """Calls of ours that have not ended."""
        return len(self._ours)

    @property
    def calls_served(self) -> int:
        """Calls of theirs that have not ended."""
        return len(self.running) + len(self._waiting)

    @property
    def calls_waiting(self) -> int:
        """Of these, those that have no place yet."""
        return len(self._waiting)

    @property
    def overlay_calls_in_flight(self) -> int:
        """Of the calls of ours that have not ended, those of the overlay."""
        return list(self._ours.values()).count(self._counts.overlay_asked)

    def check_invariants(self) -> None:
        """Assert what must always hold; for tests."""
        assert not (self.running.keys() & self._waiting.keys())
        places = list(self.running.values())
        assert all(free >= 0 for free in self._free_places)
        assert self._free_places == [
            free - places.count(place) for place, free in zip(Place, self._all_places(), strict=True)
        ]
        assert len(self._waiting) <= self._config.max_calls_queued
        sizes = [size_bytes for _, size_bytes in self._waiting.values()]
        assert self._waiting_bytes == sum(sizes) <= self._config.max_waiting_bytes
        assert not (self._waiting and self._free_places[Place.TASK])
        assert all(call_id % 2 == self._next_id % 2 for call_id in self._ours)
        assert all(call_id % 2 != self._next_id % 2 for call_id in (*self.running, *self._waiting))
        assert not (self.is_closing and (self._ours or self.running or self._waiting))
        assert not any(call.endpoint.startswith(CONTROL_PREFIX) for call, _ in self._waiting.values())
        assert all(self._is_open(call_id) for call_id in self.streams)
        for checked in (self.streams, self._parts, self.outbox):
            checked.check_invariants()

    def _silence_at(self) -> float:
        """When silence has lasted too long. One sum for `poll` and `next_deadline`: were they rounded apart, a caller
        that wakes at the deadline could be told the same deadline again, for ever.
        """
        if self._pinged_at is not None:
            return self._pinged_at + self._config.ping_timeout_s
        return self._last_received + self._config.idle_ping_s

    def _on_rarer(self, message: Message, kind: FrameKind) -> None:
        match message:
            case Fail(id):
                if id in self._ours:
                    failed = _failed(message)
                    self._end_ours(id).note(failed.code)
                    self.happened.append(failed)
                else:
                    self._check_late_answer(id)
            case Item(id, value, part):
                self._on_item(id, value, part)
            case Cancel(id):
                self._on_cancel(id)
            case End(id, part):
                self._on_end(id, part)
            case Credit(id, size_bytes, part):
                if self._has_streams(id) and self.streams.on_credit(id, part, size_bytes):
                    self.happened.append(CreditArrived(id, part))
            case Ping():
                self.outbox.put_control(encode_message(Pong()))
            case Pong():
                pass  # that anything arrived was noted already
            case Goodbye(code, text):
                self.happened.append(PeerClosed(code, text))
                self._close(f"the peer closed the session ({code})", may_have_started=False)
            case Unknown(_, id):
                self._on_unknown(id, kind)

    def _on_call(self, call: Call, kind: FrameKind, now: float) -> None:
        call_id, options = call.id, call.options
        place = _TASK_PLACE if call.endpoint[:1] != "_" else _place_of(call.endpoint)
        is_control = place is _OVERLAY
        # That of a call in parts was noted at the first of them.
        is_used = kind is not _PART and call_id <= self._last_peer_ids[kind]
        # By hand, as are the two questions of place below: a call of Python's takes as long as each of them.
        if is_used or call_id % 2 == self._next_id % 2 or call_id in self.running or call_id in self._waiting:
            raise ProtocolViolation(f"call id {call_id} is not a fresh one of the caller's")
        if is_control is not (kind is _CONTROL):
            # Or a peer would get the places of the overlay's short calls for its long ones.
            raise ProtocolViolation(f"a call to {call.endpoint[:64]!r} in a frame of kind {kind.name}")
        if kind is not _PART:
            self._last_peer_ids[kind] = call_id
        left_ms = options.get("deadline_ms")
        if type(left_ms) is int and 0 <= left_ms <= MAX_DEADLINE_MS:
            call.deadline = deadline = now + left_ms / 1000
            self._watch(deadline, call_id)
        if self.is_draining:
            self._refuse(call_id, Code.UNAVAILABLE, NODE_IS_STOPPING, {"may_have_started": False}, kind=kind)
            return
        uploads = _uploads_of(call) if "uploads" in options else _NO_UPLOADS
        has_items = "stream" in options and call.wants_items  # mostly it is not there, and nothing is called
        if uploads is None or (is_control and (uploads or has_items)):
            text = f"a call has at most {MAX_UPLOADS} uploads, named by text or position, and one of the overlay none"
            self._refuse(call_id, Code.BAD_REQUEST, text, kind=kind)
            return
        if self._free_places[place]:
            self._run(call, place)
        elif place is _TASK_PLACE and self._may_wait(
            size_bytes := self._arrived_bytes + len(uploads) * FIRST_CREDIT_BYTES
        ):
            self._waiting[call_id] = (call, size_bytes)
            self._waiting_bytes += size_bytes
        else:
            self._refuse(
                call_id, Code.BUSY, "too many calls of yours are waiting here", {"may_have_started": False}, kind=kind
            )
            return
        if uploads or has_items:
            self.streams.open(call_id, readers=len(uploads), writers=int(has_items))

    def _on_cancel(self, call_id: int) -> None:
        if self._is_own(call_id) or call_id > max(self._last_peer_ids):
            raise ProtocolViolation(f"a cancel for call {call_id}, which never came")
        if call_id in self.running:
            self.happened.append(CallWithdrawn(call_id))
        if self._is_open(call_id):
            self._served(self._kind_of(call_id)).note(Code.CANCELLED)
        self._end_theirs(call_id)
        self.outbox.take_back(call_id)  # an answer that is still here is for nobody

    def _join(self, body: bytes) -> Message | None:
        """The message of which this was the last part; None where it was not, or nobody wants it."""
        part = decode_part(body)
        if part.id not in self._parts and not self._is_wanted(part):
            return None
        message_body = self._parts.join(part)
        if message_body is None:
            return None
        self._arrived_bytes = len(message_body)
        message = decode_message(message_body, _PART)
        if getattr(message, "id", 0) != part.id:
            raise ProtocolViolation(f"a message of another call in the parts of {part.id}")
        return message

    def _is_wanted(self, part: Part) -> bool:
        """Whether a part of which none was before it is looked at. Late ones are not, strays raise."""
        if self._is_open(part.id):
            return True
        is_new = not self._is_own(part.id) and part.is_first
        if is_new and (begins_call(part.data) or part.id > max(self._last_peer_ids)):
            if part.id <= self._last_peer_ids[_PART]:
                raise ProtocolViolation(f"call id {part.id} is not a fresh one of the caller's")
            self._last_peer_ids[_PART] = part.id
            return True
        self._check_late(part.id)
        return False

    def _on_item(self, call_id: int, value: Any, part: int) -> None:
        if self._has_streams(call_id) and self.streams.on_item(
            call_id, part, value, self._arrived_bytes, self._last_received
        ):
            self.happened.append(ItemsArrived(call_id, part))

    def _on_end(self, call_id: int, part: int) -> None:
        if not self._has_streams(call_id):
            return
        has_unread = self.streams.on_end(call_id, part)
        if self._is_own(call_id):
            self._end_ours(call_id).ok += 1
            self.happened.append(StreamEnded(call_id))
        elif not has_unread:
            self.happened.append(ItemsArrived(call_id, part))

    def _has_streams(self, call_id: int) -> bool:
        """Whether a call that a message speaks of has streams; not where it is over. Raises for one without any."""
        if call_id in self.streams:
            return True
        if self._is_open(call_id):
            raise ProtocolViolation(f"call {call_id} has no such stream")
        self._check_late(call_id)
        return False

    def _check_late(self, call_id: int) -> None:
        """Raise for an id that was never in use."""
        is_used = call_id < self._next_id if self._is_own(call_id) else call_id <= max(self._last_peer_ids)
        if not is_used:
            raise ProtocolViolation(f"a message of call {call_id}, which never was")

    def _on_unknown(self, call_id: int, kind: FrameKind) -> None:
        """The rules of evolution: with a fresh or open id of the peer's it wants an answer, else it wants none."""
        is_fresh = kind is _PART or call_id > self._last_peer_ids[kind]  # the first part was looked at as to that
        if call_id == 0 or self._is_own(call_id) or not (is_fresh or self._is_open(call_id)):
            return
        if call_id in self.running:
            self.happened.append(CallWithdrawn(call_id))
        answered_in = self._kind_of(call_id) if self._is_open(call_id) else kind
        self._last_peer_ids[kind] = max(self._last_peer_ids[kind], call_id)
        self._refuse(call_id, Code.NOT_FOUND, "a message of a type that this release does not serve", kind=answered_in)

    def _check_late_answer(self, call_id: int) -> None:
        """Raise for an answer to a call that never was; one that comes late is ignored."""
        if not self._is_own(call_id) or call_id >= self._next_id:
            raise ProtocolViolation(f"an answer to call {call_id}, which was never made")

    def _expire(self, call_id: int) -> None:
        if call_id in self._ours:
            self._end_ours(call_id).note(Code.DEADLINE_EXCEEDED)
            self._withdraw_from_peer(call_id)
            self.happened.append(CallExpired(call_id))
        elif call_id in self.running or call_id in self._waiting:
            if call_id in self.running:
                self.happened.append(CallWithdrawn(call_id))
            self._refuse(call_id, Code.DEADLINE_EXCEEDED, "the caller's deadline passed")

    def _close(self, why: str, *, may_have_started: bool = True) -> None:
        if self.is_closing:
            return
        self.is_closing = True
        self._arriving, self.is_behind = _NOTHING, False
        for call_id in list(self._ours):
            never_left = self.outbox.take_back(call_id) is Taken.WHOLE
            self._end_ours(call_id).note(Code.UNAVAILABLE)
            started = may_have_started and not never_left
            self.happened.append(CallFailed(call_id, Code.UNAVAILABLE, why, {}, started))
        self.happened.extend(CallWithdrawn(call_id) for call_id in self.running)
        for call_id in (*self.running, *self._waiting):
            self._served(self._kind_of(call_id)).note(Code.UNAVAILABLE)
        for call_id in list(self.streams):
            self.streams.drop_call(call_id)
        self._parts.clear()
        self.running.clear()
        self._free_places = self._all_places()
        self._waiting.clear()
        self._waiting_bytes = 0
        self._deadlines.clear()

    def _withdraw_from_peer(self, call_id: int) -> None:
        # A call that has not left needs no cancel: a cancel must never overtake its call.
        if self.outbox.take_back(call_id) is Taken.REST and not self.is_closing:
            self.outbox.put_control(encode_message(Cancel(call_id)))

    def _refuse(
        self,
        call_id: int,
        code: Code,
        message: str,
        details: Mapping[str, Any] | None = None,
        *,
        kind: FrameKind | None = None,
    ) -> None:
        """End a call of theirs, in whatever state, with a failure; `kind` is that of one that never ran or waited."""
        kind = self._kind_of(call_id) if kind is None else kind
        try:
            self._queue(
                kind, call_id, encode_message(Fail(call_id, code, message, details or None)), (details or None,)
            )
        except (FrameTooLarge, TypeError, ValueError, OverflowError):
            # The handler's own words cannot travel; that its call failed has to.
            fail = Fail(call_id, code, "what the handler said of it cannot be sent")
            self._queue(kind, call_id, encode_message(fail), ())
        self._served(kind).note(code)
        self._end_theirs(call_id)

    def _may_wait(self, size_bytes: int) -> bool:
        has_place = self.may_let_wait and len(self._waiting) < self._config.max_calls_queued
        return has_place and self._waiting_bytes + size_bytes <= self._config.max_waiting_bytes

    def _end_ours(self, call_id: int) -> Ends:
        """The call is over; where how it ended is to be counted."""
        ends = self._ours.pop(call_id)
        if self.streams.open_calls:
            self.streams.close_call(call_id)
        if self._parts.held_bytes:
            self._parts.drop(call_id)
        return ends

    def _leave_queue(self, call_id: int) -> None:
        if (waiting := self._waiting.pop(call_id, None)) is not None:
            self._waiting_bytes -= waiting[1]

    def _all_places(self) -> list[int]:
        config = self._config
        return [config.max_calls_queued, config.max_calls_served, config.max_calls_served]  # by Place

    def _run(self, call: Call, place: Place) -> None:
        self.running[call.id] = place
        self._free_places[place] -= 1
        self.happened.append(call)

    def _end_theirs(self, call_id: int) -> None:
        if (place := self.running.pop(call_id, None)) is not None:
            self._free_places[place] += 1
        else:
            self._leave_queue(call_id)
        if self.streams.open_calls:
            self.streams.drop_call(call_id)
        if self._parts.held_bytes:
            self._parts.drop(call_id)
        while self._waiting and self._free_places[_TASK_PLACE] and not self.is_closing:
            call, _ = next(iter(self._waiting.values()))
            self._leave_queue(call.id)
            self._run(call, _TASK_PLACE)

    def _watch(self, deadline: float, call_id: int) -> None:
        # Calls mostly end long before their deadline: without this the heap would hold every call of the last minutes.
        if len(self._deadlines) > self._max_deadlines:
            open_ids = {*self._ours, *self.running, *self._waiting}
            self._deadlines = [entry for entry in self._deadlines if entry[1] in open_ids]
            heapq.heapify(self._deadlines)
            self._max_deadlines = MIN_KEPT_DEADLINES + 2 * len(self._deadlines)
        heapq.heappush(self._deadlines, (deadline, call_id))
        if self._deadlines[0][1] == call_id:
            self.has_earlier_deadline = True

    def _queue(self, kind: FrameKind, call_id: int, body: bytes, values: Sequence[Any]) -> None:
        """Let the end of a call of theirs leave; `values` are those of the user's in it."""
        if kind is _CONTROL:
            self._put_control(body)
        else:
            self._check_task(body, values)
            self.outbox.put_task(call_id, body)

    def _put_control(self, body: bytes) -> None:
        _check_size(body, self._config.max_control_frame_bytes)
        self.outbox.put_control(body)

    def _check_task(self, body: bytes, values: Sequence[Any]) -> None:
        _check_size(body, self._max_task_frame_bytes)
        check_readable(values, body)

    def _served(self, kind: FrameKind) -> Ends:
        """Where the end of a call of theirs is counted."""
        return self._counts.overlay_served if kind is _CONTROL else self._counts.served

    def _kind_of(self, call_id: int) -> FrameKind:
        # None but task calls wait.
        return _CONTROL if self.running.get(call_id) is _OVERLAY else _TASK

    def _is_own(self, call_id: int) -> bool:
        return call_id % 2 == self._next_id % 2

    def _is_open(self, call_id: int) -> bool:
        return call_id in self._ours or call_id in self.running or call_id in self._waiting


def check_call(endpoint: str, args: list[Any], kwargs: dict[str, Any], config: SessionConfig) -> None:
    """Raise what `Session.call` raises for a call that cannot travel; where there is no session yet."""
    body = encode_call(1, endpoint, args, kwargs, {})
    if endpoint.startswith(CONTROL_PREFIX):
        _check_size(body, config.max_control_frame_bytes)
    else:
        _check_size(body, config.max_task_frame_bytes)
        check_readable((*args, *kwargs.values()), body)


def _check_size(body: bytes, max_bytes: int) -> None:
    if len(body) > max_bytes:
        raise FrameTooLarge(limit_bytes=max_bytes, actual_bytes=len(body))


def _uploads_of(call: Call) -> list[str | int] | None:
    """The arguments that arrive as items; None for what is no such list."""
    uploads = call.options["uploads"]
    if type(uploads) is not list or len(uploads) > MAX_UPLOADS or len(set(map(repr, uploads))) != len(uploads):
        return None
    is_each_an_argument = all(
        (type(place) is int and 0 <= place < len(call.args)) or (type(place) is str and place in call.kwargs)
        for place in uploads
    )
    return uploads if is_each_an_argument else None


_NO_UPLOADS: list[str | int] = []
_NOTHING: Iterator[tuple[FrameKind, bytes]] = iter(())


def _failed(message: Fail) -> CallFailed:
    code = Code.read(message.code)
    details = message.details or {}
    may_have_started = details.get("may_have_started") is not False
    return CallFailed(message.id, code, message.message, details, may_have_started)
