"""The streams of items within calls: at each end, what has arrived and was not taken, and what may still be sent.

Pure. The reader gives credit, in bytes of items, as its user takes them, and the writer sends while it has any: so a
slow reader slows the writer, and holds a bounded number of bytes. Where the writer had no credit left, and what it sent
with the next came late, the way between is long: the window of a reader that keeps up doubles. Nowhere else, for what
is on its way is what a call on the same session waits behind.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, TypeVar

from synapse_p2p.config import KIB, MIB
from synapse_p2p.exceptions import ProtocolViolation
from synapse_p2p.protocol.wire import MAX_CREDIT_BYTES

FIRST_CREDIT_BYTES = 64 * KIB  # of every stream, without a word
MAX_ITEM_BYTES = MIB + KIB  # of one ITEM message: 1 MiB of the user's, and what wraps it
FAR_S = 0.01  # from new credit to the next item: more than a busy neighbour takes, less than another continent
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
        "_given_at",
        "_is_far",
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
        self._given_at: float | None = None  # when a writer without any was given credit, until its next item
        self._is_far = False
        self._items: deque[tuple[Any, int]] = deque()

    def __len__(self) -> int:
        return len(self._items)

    def on_item(self, value: Any, size_bytes: int, now: float) -> None:
        """An item arrived. Raises ProtocolViolation for one that is too long, too many, or after the last."""
        if self.is_ended or self._credit_bytes <= 0:
            raise ProtocolViolation(f"an item of call {self.call_id} for which there was no credit")
        if size_bytes > MAX_ITEM_BYTES:
            raise ProtocolViolation(f"an item of {size_bytes} bytes")
        if self._given_at is not None:
            self._is_far = now - self._given_at >= FAR_S
            self._given_at = None
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

    def credit_to_give(self, may_grow_bytes: int, now: float) -> int:
        """What the writer is to be granted now: its bytes, or 0 while that is not worth a message.

        The window may grow by `may_grow_bytes`.
        """
        if self._taken_bytes * 2 < self.window_bytes or self.is_ended or not self.is_open:
            return 0
        growth = 0
        if self._was_empty and self._is_far:
            growth = max(0, min(self.window_bytes, MAX_CREDIT_BYTES - self.window_bytes, may_grow_bytes))
        if self._credit_bytes <= 0:
            self._given_at = now
        given = self._taken_bytes + growth
        self.window_bytes += growth
        self._credit_bytes += given
        self._taken_bytes = 0
        self._was_empty = False
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

    __slots__ = ("_credit_bytes", "_is_blocked", "is_ended")

    def __init__(self) -> None:
        self.is_ended = False
        self._credit_bytes = FIRST_CREDIT_BYTES
        self._is_blocked = False  # somebody waits for credit

    def may_send(self) -> bool:
        """Whether one more item may be sent, whatever its size; if not, `on_credit` says when."""
        self._is_blocked = self._credit_bytes <= 0
        return not self._is_blocked

    def spend(self, size_bytes: int) -> None:
        """An ITEM message of so many bytes is sent."""
        assert self._credit_bytes > 0 and not self.is_ended, "an item needs credit"
        self._credit_bytes -= cost_of(size_bytes)

    def on_credit(self, size_bytes: int) -> bool:
        """The reader grants more; whether that lets one who waits go on. Raises ProtocolViolation for too much."""
        if self._credit_bytes + size_bytes > MAX_CREDIT_BYTES:
            raise ProtocolViolation(f"credit for {self._credit_bytes + size_bytes} bytes of items")
        self._credit_bytes += size_bytes
        is_freed = self._is_blocked and self._credit_bytes > 0
        if is_freed:
            self._is_blocked = False
        return is_freed


class StreamTable:
    """The streams of a session's open calls, by call and number. Read as a collection it is the ids of these calls.

    Invariants: `unread_bytes` are those that all readers hold, also those whose calls are over; the windows of open
    readers grow to `max_window_bytes` together.
    """

    __slots__ = (
        "_max_window_bytes",
        "_window_bytes",
        "_writers",
        "open_calls",
        "unread_bytes",
    )

    def __init__(self, *, max_window_bytes: int) -> None:
        self.unread_bytes = 0
        self._max_window_bytes = max_window_bytes
        self._window_bytes = 0
        self.open_calls: dict[
            int, list[StreamReader]
        ] = {}  # read at every end of a call, which `len` would take long for
        self._writers: dict[int, list[StreamWriter]] = {}

    def __contains__(self, call_id: int) -> bool:
        return call_id in self.open_calls

    def __iter__(self) -> Iterator[int]:
        return iter(self.open_calls)

    def __len__(self) -> int:
        return len(self.open_calls)

    def open(self, call_id: int, *, readers: int, writers: int) -> None:
        """Begin so many streams each way."""
        self.open_calls[call_id] = [StreamReader(call_id, part) for part in range(readers)]
        self._writers[call_id] = [StreamWriter() for _ in range(writers)]
        self._window_bytes += readers * FIRST_CREDIT_BYTES

    def readers(self, call_id: int) -> list[StreamReader]:
        """Where items of a call arrive: those of our result, or of their uploads; none once it is over."""
        return self.open_calls.get(call_id, [])

    def writer(self, call_id: int, part: int = 0) -> StreamWriter:
        """Where items of an open call leave."""
        return self._writers[call_id][part]

    def on_item(self, call_id: int, part: int, value: Any, size_bytes: int, now: float) -> bool:
        """An item of an open call arrived; whether there was none before it. Raises ProtocolViolation."""
        reader = _numbered(self.open_calls[call_id], part, call_id)
        if not reader.is_open:
            return False  # nobody reads it any more
        was_empty, unread_bytes = not reader, reader.unread_bytes
        reader.on_item(value, size_bytes, now)
        self.unread_bytes += reader.unread_bytes - unread_bytes
        return was_empty

    def on_end(self, call_id: int, part: int) -> bool:
        """A stream of an open call has ended; whether some of it is unread. Raises ProtocolViolation."""
        reader = _numbered(self.open_calls[call_id], part, call_id)
        if reader.is_ended:
            raise ProtocolViolation(f"a second end of a stream of call {call_id}")
        reader.is_ended = True
        return bool(reader)

    def on_credit(self, call_id: int, part: int, size_bytes: int) -> bool:
        """As StreamWriter has it, for an open call."""
        return _numbered(self._writers[call_id], part, call_id).on_credit(size_bytes)

    def take(self, reader: StreamReader, now: float) -> tuple[Any, int]:
        """The next item, of which there has to be one, and the bytes that are to be granted."""
        unread_bytes, window_bytes = reader.unread_bytes, reader.window_bytes
        item = reader.take()
        self.unread_bytes += reader.unread_bytes - unread_bytes
        given = reader.credit_to_give(self._max_window_bytes - self._window_bytes, now)
        self._window_bytes += reader.window_bytes - window_bytes
        return item, given

    def drop(self, reader: StreamReader) -> None:
        """Nobody reads this stream any more. What still comes of it is dropped, and no more is granted."""
        self.unread_bytes -= reader.unread_bytes
        reader.drop()

    def close_call(self, call_id: int) -> None:
        """A call is over; what has arrived can still be read."""
        for reader in self._forget(call_id):
            reader.is_open = False

    def drop_call(self, call_id: int) -> None:
        """A call is over, and with it whoever read its streams."""
        for reader in self._forget(call_id):
            self.drop(reader)

    def check_invariants(self) -> None:
        """Assert what must always hold; for tests."""
        assert self.open_calls.keys() == self._writers.keys()
        readers = [reader for readers in self.open_calls.values() for reader in readers]
        assert self._window_bytes == sum(reader.window_bytes for reader in readers)
        assert self._window_bytes <= max(self._max_window_bytes, len(readers) * FIRST_CREDIT_BYTES)
        assert self.unread_bytes >= sum(reader.unread_bytes for reader in readers)
        for reader in readers:
            reader.check_invariants()

    def _forget(self, call_id: int) -> list[StreamReader]:
        self._writers.pop(call_id, None)
        readers = self.open_calls.pop(call_id, [])
        self._window_bytes -= sum(reader.window_bytes for reader in readers)
        return readers


EndT = TypeVar("EndT", StreamReader, StreamWriter)


def _numbered(ends: list[EndT], part: int, call_id: int) -> EndT:
    if part >= len(ends):
        raise ProtocolViolation(f"call {call_id} has no such stream")
    return ends[part]
