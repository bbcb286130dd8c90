"""What a node tells: in order, bounded, and to an end."""

from __future__ import annotations

import asyncio
import gc

import pytest

from dht.contact import Contact
from dht.events import MAX_WAITING_EVENTS, Disconnected, Dropped, Events, NodeEvent, PeerJoined, Reconnected


def joined(number: int) -> PeerJoined:
    return PeerJoined(Contact(number.to_bytes(32, "big"), ()))


async def test_events_come_in_order_to_every_listener_from_when_it_came():
    events = Events()
    first = events.feed()
    events.tell(Disconnected())
    second = events.feed()

    events.tell(Reconnected())
    events.close()

    assert [event async for event in first] == [Disconnected(), Reconnected()]
    assert [event async for event in second] == [Reconnected()]


async def test_a_listener_that_waits_is_woken():
    events = Events()
    feed = events.feed()
    waiting = asyncio.create_task(anext(feed))
    await asyncio.sleep(0)

    events.tell(joined(1))
    events.tell(joined(2))

    assert await waiting == joined(1)
    assert await anext(feed) == joined(2)


async def test_the_end_of_the_node_ends_a_listener_that_waits():
    events = Events()
    feed = events.feed()
    waiting = asyncio.create_task(collect(feed))
    await asyncio.sleep(0)

    events.close()

    assert await asyncio.wait_for(waiting, 1) == []


async def collect(feed: object) -> list[NodeEvent]:
    return [event async for event in feed]  # type: ignore[attr-defined]


async def test_a_slow_listener_loses_the_oldest_and_is_told_once_how_many():
    events = Events()
    feed = events.feed()

    for number in range(MAX_WAITING_EVENTS + 7):
        events.tell(joined(number))
    events.close()

    got = [event async for event in feed]
    assert got == [Dropped(7), *(joined(number) for number in range(7, MAX_WAITING_EVENTS + 7))]


async def test_a_cancelled_wait_loses_nothing():
    events = Events()
    feed = events.feed()
    waiting = asyncio.create_task(anext(feed))
    await asyncio.sleep(0)

    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    events.tell(joined(1))

    assert await anext(feed) == joined(1)


async def test_a_feed_that_nobody_holds_is_forgotten():
    events = Events()
    feed = events.feed()
    assert events.is_anybody_listening

    del feed
    gc.collect()

    assert not events.is_anybody_listening


def test_what_waits_can_be_taken_at_once_with_the_count_of_what_was_lost():
    events = Events()
    feed = events.feed()
    assert feed.take() == []

    for _ in range(MAX_WAITING_EVENTS + 2):
        events.tell(Reconnected())

    assert feed.take() == [Dropped(2), *[Reconnected()] * MAX_WAITING_EVENTS]
    assert feed.take() == []
