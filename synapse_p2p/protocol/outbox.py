"""What a session has to say and has not said: which frame leaves next, and how a long message is cut.

Pure. Control frames leave before all else. A task message above 32 KiB leaves as parts, in turns with the others that
do, so that neither the overlay nor a short call waits for it. Messages of one call keep their order.
"""

from __future__ import annotations

from collections import deque
from enum import Enum

from synapse_p2p.config import MIB
from synapse_p2p.protocol.wire import (
    HEADER,
    MAX_WHOLE_BYTES,
    WHOLE_TASK,
    FrameKind,
    PartFlag,
    encode_frame,
    encode_part,
)

MAX_UNFINISHED_BYTES = 8 * MIB  # of messages that travel in parts at one time; a longer one travels alone
MAX_UNFINISHED = 64  # of such messages
PART_BYTES = MAX_WHOLE_BYTES - 64  # so that two parts, with their headers, fill one record, and none is left over
MAX_BLOCK_BYTES = 2 * PART_BYTES  # of task frames taken at once, or a little more: what a late control frame waits for

# Read for every call; in Python 3.11 finding a member in its class takes ten times as long as reading a name.
_CONTROL = FrameKind.CONTROL


class Taken(Enum):
    """What had become of a call's messages when what was left of them was taken back."""

    WHOLE = "its call has not left at all"
    REST = "some of it has left"


class Outbox:
    """Frames by call. Invariants: `queued_bytes` is the size of the task messages in it that have not left; it
    `is_empty` where there is nothing to take.
    """

    __slots__ = (
        "_calls",
        "_control",
        "_goodbye",
        "_long",
        "_others",
        "is_empty",
        "queued_bytes",
    )

    def __init__(self) -> None:
        self.queued_bytes = 0
        self.is_empty = True
        self._control: list[bytes] = []
        # Frames of short calls of ours, one each, which is the first word of its id.
        self._calls: dict[int, bytes | list[bytes]] = {}
        self._others: dict[int, bytes | list[bytes]] = {}  # whatever else is short; by far the most are one frame
        self._long: dict[int, _Long] = {}  # in the order in which they take turns
        self._goodbye = b""

    def put_control(self, body: bytes) -> None:
        """Queue a control message."""
        self._control.append(encode_frame(_CONTROL, body))
        self.is_empty = False

    def put_call(self, call_id: int, body: bytes) -> None:
        """Queue a task CALL of ours, of a new id."""
        self.is_empty = False
        size_bytes = len(body)
        self.queued_bytes += size_bytes
        if size_bytes <= MAX_WHOLE_BYTES:
            self._calls[call_id] = HEADER.pack(WHOLE_TASK | size_bytes) + body
        else:
            self._long[call_id] = _Long(body, is_call=True)

    def put_task(self, call_id: int, body: bytes) -> None:
        """Queue any other task message."""
        self.is_empty = False
        size_bytes = len(body)
        self.queued_bytes += size_bytes
        if self._long and (long := self._long.get(call_id)) is not None:
            long.following.append(body)
        elif size_bytes > MAX_WHOLE_BYTES:
            self._long[call_id] = _Long(body, is_call=False)
        else:
            frame = HEADER.pack(WHOLE_TASK | size_bytes) + body
            before = self._others.setdefault(call_id, frame)
            if before is frame:
                pass  # it is the first
            elif isinstance(before, list):
                before.append(frame)
            else:
                self._others[call_id] = [before, frame]

    def put_goodbye(self, body: bytes) -> None:
        """The last word: it leaves when nothing else is left."""
        self._goodbye = encode_frame(_CONTROL, body)
        self.is_empty = False

    def take_back(self, call_id: int) -> Taken:
        """Forget what is queued for a call."""
        call, others = self._calls.pop(call_id, b""), self._others.pop(call_id, b"")
        self.queued_bytes -= _size_of(call) + _size_of(others)
        is_whole = bool(call)
        if (long := self._long.pop(call_id, None)) is not None:  # that of a call, or of an upload behind one
            self.queued_bytes -= long.left_bytes
            is_whole = is_whole or (long.is_call and not long.position)
        self._note_whether_empty()
        return Taken.WHOLE if is_whole else Taken.REST

    def has_control(self) -> bool:
        """Whether something waits that nothing holds up."""
        return bool(self._control)

    def call_bytes(self) -> int:
        """Bytes of calls of ours that have not left. Cost: a step for each of them."""
        long_bytes = sum(len(long.body) - long.position for long in self._long.values() if long.is_call)
        return sum(map(_size_of, self._calls.values())) + long_bytes

    def take(self) -> bytes:
        """The frames to send next, 64 KiB of task messages or a little more; empty when there is nothing."""
        if self._long or self.queued_bytes > MAX_BLOCK_BYTES:
            return self._take_some()
        frames: list[bytes] = self._control
        self._control = []
        if self._calls:
            frames += self._calls.values()  # type: ignore[arg-type] - one frame each
            self._calls.clear()
        if self._others:
            for queued in self._others.values():
                if type(queued) is bytes:
                    frames.append(queued)
                else:
                    frames += queued  # type: ignore[arg-type]
            self._others.clear()
        if self._goodbye:
            frames.append(self._goodbye)
            self._goodbye = b""
        self.queued_bytes = 0
        self.is_empty = True
        return b"".join(frames)

    def take_control(self) -> bytes:
        """The control frames alone."""
        frames, self._control = self._control, []
        self._note_whether_empty()
        return b"".join(frames)

    def check_invariants(self) -> None:
        """Assert what must always hold; for tests."""
        short = sum(map(_size_of, (*self._calls.values(), *self._others.values())))
        assert self.queued_bytes == short + sum(long.left_bytes for long in self._long.values())
        assert self.is_empty == (not (self._control or self.queued_bytes or self._goodbye))
        assert all(long.position < len(long.body) for long in self._long.values())
        started = [long for long in self._long.values() if long.position]
        assert len(started) <= MAX_UNFINISHED
        assert len(started) <= 1 or sum(len(long.body) for long in started) <= MAX_UNFINISHED_BYTES

    def _take_some(self) -> bytes:
        frames = self._control
        self._control = []
        left_bytes = MAX_BLOCK_BYTES - (MAX_WHOLE_BYTES if self._long else 0)
        for queue in (self._calls, self._others):
            while queue and left_bytes > 0:
                call_id = next(iter(queue))
                left_bytes -= self._move(queue, call_id, frames, left_bytes)
        left_bytes += MAX_WHOLE_BYTES if self._long else 0
        while left_bytes > 0 and (call_id := self._whose_turn()) is not None:
            left_bytes -= self._take_part(call_id, frames)
        if self._goodbye and not (self._calls or self._others or self._long):
            frames.append(self._goodbye)
            self._goodbye = b""
        self._note_whether_empty()
        return b"".join(frames)

    def _note_whether_empty(self) -> None:
        self.is_empty = not (self._control or self._calls or self._others or self._long or self._goodbye)

    def _move(self, queue: dict[int, bytes | list[bytes]], call_id: int, frames: list[bytes], max_bytes: int) -> int:
        """Move the frames of a call, as many as there is room for and at least one; their bytes."""
        queued = queue.pop(call_id)
        moved = [queued] if isinstance(queued, bytes) else queued
        size_bytes = _size_of(queued)
        if size_bytes > max_bytes and isinstance(queued, list):
            count = _fitting(queued, max_bytes)
            moved, rest = queued[:count], queued[count:]
            if rest:
                queue[call_id] = rest
            size_bytes = _size_of(moved)
        frames += moved
        self.queued_bytes -= size_bytes
        return size_bytes

    def _take_part(self, call_id: int, frames: list[bytes]) -> int:
        """Move the next part of a call's long message; its bytes."""
        long = self._long.pop(call_id)
        end = min(len(long.body), long.position + PART_BYTES)
        flags = (0 if long.position else PartFlag.FIRST) | (PartFlag.LAST if end == len(long.body) else 0)
        frames.append(encode_part(call_id, flags, long.body[long.position : end]))
        size_bytes = end - long.position
        self.queued_bytes -= size_bytes
        long.position = end
        if end < len(long.body):
            self._long[call_id] = long  # behind all others
        else:
            self._go_on(call_id, long.following)
        return size_bytes

    def _whose_turn(self) -> int | None:
        """The first in line that has begun or may begin; None where all have to wait.

        The other end holds all that is unfinished, so that is bounded. Short messages of the same call are before it.
        """
        started = [long for long in self._long.values() if long.position]
        unfinished_bytes = sum(len(long.body) for long in started)
        for call_id, long in self._long.items():
            if long.position:
                return call_id
            is_room = len(started) < MAX_UNFINISHED and unfinished_bytes + len(long.body) <= MAX_UNFINISHED_BYTES
            if (not started or is_room) and call_id not in self._calls and call_id not in self._others:
                return call_id
        return None

    def _go_on(self, call_id: int, following: deque[bytes]) -> None:
        """What came after a long message of the same call is next in line as if it came now."""
        while following:
            body = following.popleft()
            self.queued_bytes -= len(body)
            self.put_task(call_id, body)
            if call_id in self._long:
                # They were counted when they were put.
                self._long[call_id].following = following
                return


class _Long:
    """A message that leaves in parts, and those of its call that come after it."""

    __slots__ = ("body", "following", "is_call", "position")

    def __init__(self, body: bytes, *, is_call: bool) -> None:
        self.body = memoryview(body)
        self.is_call = is_call
        self.position = 0  # of the first byte that has not left
        self.following: deque[bytes] = deque()

    @property
    def left_bytes(self) -> int:
        return len(self.body) - self.position + sum(map(len, self.following))


def _size_of(frames: bytes | list[bytes]) -> int:
    """Bytes of the messages in some frames."""
    if isinstance(frames, bytes):
        return max(0, len(frames) - _HEADER_BYTES)
    return sum(map(len, frames)) - _HEADER_BYTES * len(frames)


def _fitting(frames: list[bytes], max_bytes: int) -> int:
    """How many of some frames fit, at least one."""
    count = size_bytes = 0
    for frame in frames:
        size_bytes += len(frame) - _HEADER_BYTES
        if size_bytes > max_bytes and count:
            break
        count += 1
    return count


_HEADER_BYTES = 4
