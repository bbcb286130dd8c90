"""The exchange of release 1.x, seen from the listener: one request, one response, and the connection ends.

Owns the order of that exchange, its limits and deadlines, and how our failures read on a wire that knows two.
Pure: bytes and the time come in; `poll` says what to do. Layout: docs/spec/wire.md.

    READING   a whole request: Serve, then SERVING. A caller we do not serve, a length over the limit,
              bytes that are no request, an end halfway: Reply that says so, then ENDED. The deadline, or an
              end before the first byte: GiveUp, then ENDED.
    SERVING   the response is ready: Reply, then ENDED. Bytes and their end change nothing.
    ENDED     nothing changes anything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from synapse_p2p.exceptions import FrameTooLarge, InvalidMessageError
from synapse_p2p.messages import Answer, Code, Outcome, Refusal, RPCError, RPCRequest, RPCResponse
from synapse_p2p.serializers import BaseRPCSerializer

HEADER_SIZE_BYTES = 4
MAX_FRAME_BYTES = 2**32 - 1

# What the caller can mend is a bad request to a peer of 1.x; all else is our trouble.
_CALLERS_FAULTS = frozenset({Code.BAD_REQUEST, Code.NOT_FOUND, Code.FORBIDDEN, Code.TOO_LARGE})


@dataclass(frozen=True, slots=True)
class PlainLimits:
    """How much of a request is read, and for how long."""

    max_request_bytes: int
    header_timeout_s: float  # from connect to the whole length
    body_grace_s: float  # for the body this long ...
    min_body_bytes_per_s: int  # ... and on top of it what this rate needs


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do until bytes, or this time, come."""

    until: float


@dataclass(frozen=True, slots=True)
class Serve:
    """Run this, and hand its response to `on_response`."""

    request: RPCRequest


@dataclass(frozen=True, slots=True)
class Reply:
    """Send this frame and close. `is_early`: the caller may be sending still, and must get to read it.

    `fault` is what was wrong with the request, for the log; empty when it was served.
    """

    frame: bytes
    is_early: bool
    fault: str = ""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Close without a word."""

    reason: str


class FrameReader:
    """Gathers one frame. What follows it is dropped: a connection carries one call.

    Invariant: a length over the limit is refused before anything of its body is asked for.
    """

    __slots__ = ("_buffer", "_max_bytes", "size_bytes")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._buffer = bytearray()
        self.size_bytes: int | None = None  # what the header announced, once it is whole

    def buffered_bytes(self) -> int:
        """How much is held."""
        return len(self._buffer)

    def receive_data(self, data: bytes) -> bytes | None:
        """The payload, once it is whole. Raises FrameTooLarge as soon as the length is known."""
        self._buffer += data
        if self.size_bytes is None:
            if len(self._buffer) < HEADER_SIZE_BYTES:
                return None
            self.size_bytes = int.from_bytes(self._buffer[:HEADER_SIZE_BYTES], "big")
            if self.size_bytes > self._max_bytes:
                raise FrameTooLarge(limit_bytes=self._max_bytes, actual_bytes=self.size_bytes)
        end = HEADER_SIZE_BYTES + self.size_bytes
        if len(self._buffer) < end:
            return None
        with memoryview(self._buffer) as whole:
            payload = bytes(whole[HEADER_SIZE_BYTES:end])
        # The payload is a copy: the bytes it came in are not to lie here for as long as a handler runs.
        self._buffer = bytearray()
        return payload


class PlainExchange:
    """The listener's half of one exchange, as the table above has it. `now` is monotonic seconds.

    `refusal` is the answer to whatever this caller asks; None for a caller that is served.
    """

    def __init__(
        self,
        serializer: type[BaseRPCSerializer],
        limits: PlainLimits,
        *,
        opened_at: float,
        refusal: Refusal | None = None,
    ) -> None:
        self._serializer = serializer
        self._limits = limits
        self._refusal = refusal
        self._reader = FrameReader(limits.max_request_bytes)
        self._deadline = opened_at + limits.header_timeout_s
        self._state = _State.READING
        self._next: Serve | Reply | GiveUp | None = None

    def buffered_bytes(self) -> int:
        """How much of an unfinished request is held."""
        return self._reader.buffered_bytes() if self._state is _State.READING else 0

    def receive_data(self, data: bytes, now: float) -> None:
        """Some bytes, split anywhere."""
        if self._state is not _State.READING:
            return
        if self._refusal is not None:
            self.refuse(self._refusal)
            return
        was_header_known = self._reader.size_bytes is not None
        try:
            payload = self._reader.receive_data(data)
        except FrameTooLarge as error:
            self.refuse(Refusal(Code.TOO_LARGE, str(error)))
            return
        if payload is not None:
            self._receive_request(payload)
        elif not was_header_known and self._reader.size_bytes is not None:
            body_s = self._reader.size_bytes / self._limits.min_body_bytes_per_s
            self._deadline = now + self._limits.body_grace_s + body_s

    def receive_eof(self) -> None:
        """The caller sends no more. One that sent nothing gets nothing: it was a look at the port."""
        if self._state is not _State.READING:
            return
        if self._reader.buffered_bytes():
            self._end(self._reply_to_unread("incomplete frame"))
        else:
            self._end(GiveUp("closed without a request"))

    def refuse(self, refusal: Refusal) -> None:
        """Answer without waiting for the rest of the request."""
        if self._state is _State.READING:
            self._end(Reply(self._frame(refusal), is_early=True, fault=refusal.message))

    def on_response(self, frame: bytes) -> None:
        """The request that was served has its response, framed."""
        if self._state is _State.SERVING:
            self._end(Reply(frame, is_early=False))

    def poll(self, now: float) -> Wait | Serve | Reply | GiveUp:
        """The one thing to do next. Serve, Reply and GiveUp are each said once."""
        if self._state is _State.READING and now >= self._deadline:
            self._end(GiveUp("the request took too long"))
        if self._next is not None:
            step, self._next = self._next, None
            return step
        return Wait(self._deadline if self._state is _State.READING else math.inf)

    def _receive_request(self, payload: bytes) -> None:
        try:
            message = self._serializer.deserialize(payload)
        except InvalidMessageError as error:
            self._end(self._reply_to_unread(str(error)))
            return
        if not isinstance(message, RPCRequest):
            self._end(self._reply_to_unread("expected request message"))
            return
        self._state = _State.SERVING
        self._next = Serve(message)

    def _reply_to_unread(self, message: str) -> Reply:
        return Reply(self._frame(Refusal(Code.BAD_REQUEST, message)), is_early=False, fault=message)

    def _frame(self, refusal: Refusal) -> bytes:
        return encode_frame(self._serializer.serialize(plain_response("", refusal)))

    def _end(self, step: Reply | GiveUp) -> None:
        self._state = _State.ENDED
        self._next = step
        self._reader = FrameReader(self._limits.max_request_bytes)  # what was gathered is of no more use


class _State(Enum):
    READING = "reading"
    SERVING = "serving"
    ENDED = "ended"


def encode_frame(payload: bytes) -> bytes:
    """A payload behind its length. Raises FrameTooLarge where four bytes cannot hold that length."""
    if len(payload) > MAX_FRAME_BYTES:
        raise FrameTooLarge(limit_bytes=MAX_FRAME_BYTES, actual_bytes=len(payload))
    return len(payload).to_bytes(HEADER_SIZE_BYTES, "big") + payload


def plain_response(request_id: str, outcome: Outcome) -> RPCResponse:
    """How an outcome reads on the plain wire, which has two codes and no room for details."""
    if isinstance(outcome, Answer):
        return RPCResponse(id=request_id, ok=True, result=outcome.value)
    code = Code.BAD_REQUEST if outcome.code in _CALLERS_FAULTS else Code.INTERNAL_ERROR
    # The values, not the members: a serializer of the user's may know plain text alone.
    return RPCResponse(id=request_id, ok=False, error=RPCError(code.value, _plain_message(outcome)))


def _plain_message(refusal: Refusal) -> str:
    reason = refusal.details.get("reason") if refusal.code is Code.FAILED else None
    if reason is None:
        return refusal.message
    return f"{reason}: {refusal.message}" if refusal.message else str(reason)
