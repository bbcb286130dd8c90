"""Sends the items of streams over one session: those of our results, and those of our uploads.

Owns the waiting: a stream goes on while its reader gives credit and the peer reads what is written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from synapse_p2p.protocol.session import Session
from synapse_p2p.transport.outflow import Outflow

ITEMS_A_TURN = 64  # of a stream that never waits, before the loop has its turn


class ItemSender:
    """`on_queued` is told when an item was queued, so that it is sent.

    Streams that wait for room stand in line: who has had its turn, which ends when there is no room again, goes behind
    all others.
    """

    __slots__ = (
        "_in_a_row",
        "_line",
        "_loop",
        "_on_queued",
        "_outflow",
        "_session",
        "_turn",
        "_waiting",
    )

    def __init__(self, session: Session, outflow: Outflow, *, on_queued: Callable[[], None]) -> None:
        self._session = session
        self._outflow = outflow
        self._on_queued = on_queued
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[tuple[int, int], asyncio.Future[None]] = {}
        self._in_a_row = 0
        self._line: list[asyncio.Future[None]] = []
        self._turn: tuple[int, int] | None = None  # whose it was last

    async def send(self, call_id: int, value: Any, part: int = 0) -> None:
        """Send one item, once it may be. Raises what `Session.send_item` raises."""
        self._in_a_row += 1
        if self._in_a_row >= ITEMS_A_TURN:
            self._in_a_row = 0
            await asyncio.sleep(0)
        place = call_id, part
        while True:
            if not self._session.may_send_item(call_id, part):
                await self._wait_for_credit(place)
            elif self._outflow.is_full or (self._line and self._turn != place):
                await self._wait_for_turn(place)
            else:
                break
            self._in_a_row = 0
        self._session.send_item(call_id, value, part)
        self._on_queued()

    def end(self, call_id: int, part: int = 0) -> None:
        """Say that this was the last item."""
        self._session.end_items(call_id, part)
        self._on_queued()

    def on_credit(self, call_id: int, part: int) -> None:
        """There is credit again."""
        waiting = self._waiting.get((call_id, part))
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    async def _wait_for_credit(self, place: tuple[int, int]) -> None:
        waiting = self._waiting[place] = self._loop.create_future()
        try:
            await waiting
        finally:
            del self._waiting[place]

    async def _wait_for_turn(self, place: tuple[int, int]) -> None:
        first = self._loop.create_future()
        self._line.append(first)
        try:
            if self._line[0] is not first:
                await first
            while self._outflow.is_full:
                await self._outflow.wait_for_room()
            self._turn = place
        finally:
            was_first = self._line[0] is first
            self._line.remove(first)
            if was_first and self._line and not self._line[0].done():
                self._line[0].set_result(None)  # it finds no room as long as we go on without a pause
