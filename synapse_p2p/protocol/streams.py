"""The two ends of one stream of items within a call: what has arrived and was not taken, and what may still be sent.

Pure. The reader gives credit, in bytes of items, as its user takes them, and the writer sends while it has any: so a
slow reader slows the writer, and holds a bounded number of bytes. A reader that had taken all there was since it last
gave credit is faster than the writer, or than the way between: its window doubles.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from synapse_p2p.config import KIB, MIB
from synapse_p2p.exceptions import ProtocolViolation
from synapse_p2p.protocol.wire import MAX_CREDIT_BYTES

FIRST_CREDIT_BYTES = 64 * KIB  # of every stream, without a word
MAX_ITEM_BYTES = MIB + KIB  # of one ITEM message: 1 MiB of the user's, and what wraps it
MIN_ITEM_COST_BYTES = 64  # what the shortest item counts for: in memory an empty one takes about that


def cost_of(size_bytes: int) -> int:
    """What an ITEM message of so many bytes takes of a stream's credit."""
    return max(size_bytes, MIN_ITEM_COST_BYTES)


class StreamReader:
    """The end that items arrive at. Invariant: of what is granted, each byte is on its way, unread, or to be granted
    again; one item may have gone beyond.
    """

    __slots__ = (
        "_credit_bytes",
        "_has_given",
        "_items",
        "_taken_bytes",
        "_was_empty",
        "call_id",
        "is_ended",
        "is_open",
        "part",
        "unread_bytes",
        "window_bytes",
    )

    def __init__(self, call_id: int, part: int) -> None:
        self.call_id = call_id
        self.part = part
        self.is_open = True  # the writer may send
        self.is_ended = False  # the writer said that this was all
        self.unread_bytes = 0
        self.window_bytes = FIRST_CREDIT_BYTES
        self._credit_bytes = FIRST_CREDIT_BYTES  # that the writer has, as far as we know
        self._taken_bytes = 0  # since credit was given
        self._was_empty = False  # since then
        self._has_given = False
        self._items: deque[tuple[Any, int]] = deque()

    def __len__(self) -> int:
        return len(self._items)

    def on_item(self, value: Any, size_bytes: int) -> None:
        """An item arrived. Raises ProtocolViolation for one that is too long, too many, or after the last."""
        if self.is_ended or self._credit_bytes <= 0:
            raise ProtocolViolation(f"an item of call {self.call_id} for which there was no credit")
        if size_bytes > MAX_ITEM_BYTES:
            raise ProtocolViolation(f"an item of {size_bytes} bytes")
        cost = cost_of(size_bytes)
        self._credit_bytes -= cost
        self.unread_bytes += cost
        self._items.append((value, cost))

    def take(self) -> Any:
        """The next item, of which there has to be one."""
        value, cost = self._items.popleft()
        self.unread_bytes -= cost
        self._taken_bytes += cost
        if not self._items:
            self._was_empty = True
        return value

    def credit_to_give(self, may_grow_bytes: int) -> int:
        """What the writer is to be granted now: its bytes, or 0 while that is not worth a message.

        The window may grow by `may_grow_bytes`.
        """
        if self._taken_bytes * 2 < self.window_bytes or self.is_ended or not self.is_open:
            return 0
        growth = 0
        if self._was_empty and self._has_given:  # at first every reader has to wait
            growth = max(0, min(self.window_bytes, MAX_CREDIT_BYTES - self.window_bytes, may_grow_bytes))
        given = self._taken_bytes + growth
        self.window_bytes += growth
        self._credit_bytes += given
        self._taken_bytes = 0
        self._was_empty = False
        self._has_given = True
        return given

    def drop(self) -> None:
        """Nobody reads any more."""
        self._items.clear()
        self.unread_bytes = 0
        self.is_open = False

    def check_invariants(self) -> None:
        """Assert what must always hold; for tests."""
        assert self.unread_bytes == sum(cost for _, cost in self._items)
        assert FIRST_CREDIT_BYTES <= self.window_bytes <= MAX_CREDIT_BYTES
        if self.is_open:
            assert self._credit_bytes + self.unread_bytes + self._taken_bytes == self.window_bytes
        assert self.unread_bytes < self.window_bytes + MAX_ITEM_BYTES


class StreamWriter:
    """The end that sends items."""

    __slots__ = ("credit_bytes", "is_blocked", "is_ended")

    def __init__(self) -> None:
        self.credit_bytes = FIRST_CREDIT_BYTES
        self.is_ended = False
        self.is_blocked = False  # somebody waits for credit

    def may_send(self) -> bool:
        """Whether one more item may be sent, whatever its size."""
        return self.credit_bytes > 0

    def on_credit(self, size_bytes: int) -> bool:
        """The reader grants more; whether that lets one who waits go on. Raises ProtocolViolation for too much."""
        if self.credit_bytes + size_bytes > MAX_CREDIT_BYTES:
            raise ProtocolViolation(f"credit for {self.credit_bytes + size_bytes} bytes of items")
        self.credit_bytes += size_bytes
        is_freed = self.is_blocked and self.credit_bytes > 0
        if is_freed:
            self.is_blocked = False
        return is_freed
