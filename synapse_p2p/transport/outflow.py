"""How the bytes of one stream leave: who has to wait before more is made, and when a peer reads nothing at all.

Owns the stall timer and the gate. What is written, and what a stall means, is decided by the connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from synapse_p2p.protocol.counts import SessionCounts
from synapse_p2p.transport.base import ByteStream

MUCH_BYTES = 64 * 1024  # that are queued, before they are written at once: about one record
LOOKS_A_STALL = 4  # in each stall's time: who stops reading just after a look has a quarter of it more, not all of it


class Outflow:
    """The writing side of a stream.

    `on_stall` is called once if, with too much queued, not one byte leaves for `stall_s` seconds. A slow peer is
    none that stalls: what counts is progress.
    """

    __slots__ = (
        "_counts",
        "_held",
        "_loop",
        "_on_stall",
        "_room",
        "_stall_s",
        "_stream",
        "_timer",
        "_written_bytes",
        "is_full",
    )

    def __init__(
        self,
        stream: ByteStream,
        *,
        stall_s: float,
        on_stall: Callable[[], None],
        counts: SessionCounts | None = None,
    ) -> None:
        self.is_full = False
        self._stream = stream
        self._stall_s = stall_s
        self._on_stall = on_stall
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._room: asyncio.Future[None] | None = None  # for all who wait now
        self._written_bytes = 0
        self._counts = counts or SessionCounts()
        self._held = b""

    def hold(self, data: bytes) -> None:
        """Have these bytes leave with what is written next, in one packet, or at `release`."""
        self._held += data

    def release(self) -> None:
        """Write what is held, where nothing has taken it along."""
        if self._held and not self._stream.is_closing():
            self.write(b"")

    def write(self, data: bytes) -> None:
        """Queue bytes on the stream."""
        if self._held:
            data, self._held = self._held + data, b""
        # Counted first: the write itself may find the queue full and look at the count.
        size_bytes = len(data)
        self._written_bytes += size_bytes
        self._counts.sent_bytes += size_bytes
        self._stream.write(data)

    async def wait_for_room(self) -> None:
        """Return when the queue has room, or the stream has ended. One woken has to ask again: another may be first."""
        if self.is_full:
            if self._room is None:
                self._room = self._loop.create_future()
            await asyncio.shield(self._room)

    def pause(self) -> None:
        """The stream has too much queued."""
        self.is_full = True
        self._watch(self._sent_bytes(), LOOKS_A_STALL)

    def resume(self) -> None:
        """The stream's queue drained, or there is no stream any more."""
        self.is_full = False
        if self._timer is not None:
            self._timer.cancel()
        if self._room is not None:
            self._room.set_result(None)
            self._room = None

    def _sent_bytes(self) -> int:
        return self._written_bytes - self._stream.unsent_bytes()

    def _watch(self, sent_bytes: int, looks_left: int) -> None:
        self._timer = self._loop.call_later(self._stall_s / LOOKS_A_STALL, self._look, sent_bytes, looks_left - 1)

    def _look(self, sent_before_bytes: int, looks_left: int) -> None:
        sent_bytes = self._sent_bytes()
        if sent_bytes > sent_before_bytes:
            self._watch(sent_bytes, LOOKS_A_STALL)
        elif looks_left:
            self._watch(sent_bytes, looks_left)
        else:
            self._on_stall()
