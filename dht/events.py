"""What a node tells whoever wants to know: who came and went, what it stores, whether it has a network at all.

A listener that does not keep up loses the oldest events and is told how many; it never holds the node up.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TypeAlias

from dht.contact import Contact
from dht.keyspace import Key
from synapse_p2p.identity import NodeID

MAX_WAITING_EVENTS = 1_000
"""Events that wait for one listener; past it the oldest go."""


@dataclass(frozen=True, slots=True)
class PeerJoined:
    """A contact entered the routing table."""

    contact: Contact


@dataclass(frozen=True, slots=True)
class PeerSuspected:
    """A contact failed to answer; it is named to nobody until it does."""

    contact: Contact


@dataclass(frozen=True, slots=True)
class PeerLeft:
    """A contact left the routing table: it said so, or failed too often."""

    contact: Contact


@dataclass(frozen=True, slots=True)
class RecordStored:
    """A record of `owner` is kept here, new or in a newer version."""

    key: Key
    owner: NodeID


@dataclass(frozen=True, slots=True)
class RecordExpired:
    """A record of `owner` has reached its end and is not kept any more."""

    key: Key
    owner: NodeID


@dataclass(frozen=True, slots=True)
class Disconnected:
    """Nearly nobody answers: our own network is the suspect, and no contact is given up for it."""


@dataclass(frozen=True, slots=True)
class Reconnected:
    """Somebody answers again."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """So many events were lost here, because this listener was slow."""

    count: int


NodeEvent: TypeAlias = (
    PeerJoined | PeerSuspected | PeerLeft | RecordStored | RecordExpired | Disconnected | Reconnected | Dropped
)


class EventFeed(AsyncIterator[NodeEvent]):
    """The events for one listener, from when it was made until the node stops. One task at a time reads it."""

    def __init__(self) -> None:
        self._waiting: deque[NodeEvent] = deque()
        self._dropped_count = 0
        self._is_closed = False
        self._wake: asyncio.Future[None] | None = None

    async def __anext__(self) -> NodeEvent:
        while True:
            if self._dropped_count:
                dropped, self._dropped_count = Dropped(self._dropped_count), 0
                return dropped
            if self._waiting:
                return self._waiting.popleft()
            if self._is_closed:
                raise StopAsyncIteration
            self._wake = asyncio.get_running_loop().create_future()
            try:
                await self._wake
            finally:
                self._wake = None

    def take(self) -> list[NodeEvent]:
        """What waits, without waiting for more. For a listener that looks now and then instead of iterating."""
        dropped = [Dropped(self._dropped_count)] if self._dropped_count else []
        taken = [*dropped, *self._waiting]
        self._dropped_count = 0
        self._waiting.clear()
        return taken

    def _put(self, event: NodeEvent) -> None:
        if len(self._waiting) == MAX_WAITING_EVENTS:
            self._waiting.popleft()
            self._dropped_count += 1
        self._waiting.append(event)
        self._rouse()

    def _close(self) -> None:
        self._is_closed = True
        self._rouse()

    def _rouse(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


class Events:
    """The node's side: what it tells, and to whom. A feed that its listener has dropped costs nothing more."""

    def __init__(self) -> None:
        self._feeds: weakref.WeakKeyDictionary[EventFeed, None] = weakref.WeakKeyDictionary()

    @property
    def is_anybody_listening(self) -> bool:
        """Whether it is worth making an event."""
        return bool(self._feeds)

    def feed(self) -> EventFeed:
        """A feed of what happens from now on."""
        feed = EventFeed()
        self._feeds[feed] = None
        return feed

    def tell(self, event: NodeEvent) -> None:
        """It happened."""
        for feed in list(self._feeds):
            feed._put(event)

    def close(self) -> None:
        """No more events: every feed ends once it is read to its end."""
        for feed in list(self._feeds):
            feed._close()
        self._feeds.clear()
