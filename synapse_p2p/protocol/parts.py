"""Long task messages, put together again from the parts they travel in.

Pure. Owns the bound on what is unfinished; which parts are looked at is decided by the session.
"""

from __future__ import annotations

from synapse_p2p.exceptions import FrameTooLarge, ProtocolViolation
from synapse_p2p.protocol.outbox import MAX_UNFINISHED, MAX_UNFINISHED_BYTES
from synapse_p2p.protocol.wire import Part

LONG_PIECE_BYTES = 4096  # of which what keeps it takes a small part


class PartJoiner:
    """Unfinished messages by call. Invariant: `held_bytes` is their size, and within its bound."""

    __slots__ = ("_max_message_bytes", "_unfinished", "held_bytes")

    def __init__(self, max_message_bytes: int) -> None:
        self._max_message_bytes = max_message_bytes
        self._unfinished: dict[int, _Unfinished] = {}
        self.held_bytes = 0

    def __contains__(self, call_id: int) -> bool:
        return call_id in self._unfinished

    def join(self, part: Part) -> bytes | None:
        """The message, once it is whole. Raises ProtocolViolation for a part out of turn and FrameTooLarge."""
        message = self._unfinished.get(part.id)
        if (message is None) != part.is_first:
            raise ProtocolViolation(f"a part of call {part.id} out of turn")
        if message is None:
            if len(self._unfinished) >= MAX_UNFINISHED:
                raise ProtocolViolation(f"more than {MAX_UNFINISHED} messages are unfinished")
            message = self._unfinished[part.id] = _Unfinished()
        message.add(part.data)
        self.held_bytes += len(part.data)
        if message.size_bytes > self._max_message_bytes:
            raise FrameTooLarge(limit_bytes=self._max_message_bytes, actual_bytes=message.size_bytes)
        if self.held_bytes > MAX_UNFINISHED_BYTES and len(self._unfinished) > 1:
            raise FrameTooLarge(limit_bytes=MAX_UNFINISHED_BYTES, actual_bytes=self.held_bytes)
        if not part.is_last:
            return None
        self.drop(part.id)
        return b"".join(message.pieces)

    def drop(self, call_id: int) -> None:
        """No more comes of this call's message."""
        if (message := self._unfinished.pop(call_id, None)) is not None:
            self.held_bytes -= message.size_bytes

    def clear(self) -> None:
        """Nothing more comes of anything."""
        self._unfinished.clear()
        self.held_bytes = 0

    def check_invariants(self) -> None:
        """Assert what must always hold; for tests."""
        for message in self._unfinished.values():
            assert message.size_bytes == sum(map(len, message.pieces))
        assert self.held_bytes == sum(message.size_bytes for message in self._unfinished.values())
        assert len(self._unfinished) <= MAX_UNFINISHED
        assert self.held_bytes <= MAX_UNFINISHED_BYTES or len(self._unfinished) == 1


class _Unfinished:
    """The pieces of one message, joined when the last is there: to add each to what came before copies all of that
    again and again.

    A part may hold a single byte, and a piece of its own takes a hundred: short ones are joined as they come.
    """

    __slots__ = ("pieces", "size_bytes")

    def __init__(self) -> None:
        self.pieces: list[bytes | memoryview | bytearray] = []
        self.size_bytes = 0

    def add(self, data: bytes | memoryview) -> None:
        self.size_bytes += len(data)
        if len(data) >= LONG_PIECE_BYTES:
            self.pieces.append(data)
        elif self.pieces and isinstance(last := self.pieces[-1], bytearray):
            last += data
        else:
            self.pieces.append(bytearray(data))
