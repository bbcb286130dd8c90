"""Long task messages, put together again from the parts they travel in.

Pure. Owns the bound on what is unfinished; which parts are looked at is decided by the session.
"""

from __future__ import annotations

from synapse_p2p.exceptions import FrameTooLarge, ProtocolViolation
from synapse_p2p.protocol.outbox import MAX_UNFINISHED, MAX_UNFINISHED_BYTES
from synapse_p2p.protocol.wire import Part


class PartJoiner:
    """Unfinished messages by call. Invariant: `held_bytes` is their size, and within its bound."""

    __slots__ = ("_max_message_bytes", "_unfinished", "held_bytes")

    def __init__(self, max_message_bytes: int) -> None:
        self._max_message_bytes = max_message_bytes
        self._unfinished: dict[int, bytearray] = {}
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
            message = self._unfinished[part.id] = bytearray()
        message += part.data
        self.held_bytes += len(part.data)
        if len(message) > self._max_message_bytes:
            raise FrameTooLarge(limit_bytes=self._max_message_bytes, actual_bytes=len(message))
        if self.held_bytes > MAX_UNFINISHED_BYTES and len(self._unfinished) > 1:
            raise FrameTooLarge(limit_bytes=MAX_UNFINISHED_BYTES, actual_bytes=self.held_bytes)
        if not part.is_last:
            return None
        self.drop(part.id)
        return bytes(message)

    def drop(self, call_id: int) -> None:
        """No more comes of this call's message."""
        if (message := self._unfinished.pop(call_id, None)) is not None:
            self.held_bytes -= len(message)

    def clear(self) -> None:
        """Nothing more comes of anything."""
        self._unfinished.clear()
        self.held_bytes = 0

    def check_invariants(self) -> None:
        """Assert what must always hold; for tests."""
        assert self.held_bytes == sum(map(len, self._unfinished.values()))
        assert len(self._unfinished) <= MAX_UNFINISHED
        assert self.held_bytes <= MAX_UNFINISHED_BYTES or len(self._unfinished) == 1
