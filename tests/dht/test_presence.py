"""What a node tells of itself: each loss, stall, sleep and wrong clock once, and nothing that did not happen."""

from __future__ import annotations

import logging
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.config import HealthConfig, RecordConfig, RoutingConfig
from dht.contact import Contact
from dht.events import (
    Disconnected,
    EventFeed,
    Events,
    NodeEvent,
    PeerJoined,
    PeerLeft,
    PeerSuspected,
    Reconnected,
    RecordExpired,
    RecordStored,
)
from dht.presence import Loss, Presence
from dht.routing import RoutingTable
from dht.store import MemoryRecordStore
from dht.stored_record import StoredRecord
from synapse_p2p.runtime import Runtime

CONFIG = HealthConfig()
OWN_ID = bytes(32)
UNIX_S = 1_800_000_000.0


class Place:
    """A presence whose clocks are set by hand. Its listener was there from the beginning."""

    def __init__(self, config: HealthConfig = CONFIG) -> None:
        self.now_s, self.unix_s = 1000.0, UNIX_S
        runtime = Runtime(lambda: self.now_s, lambda: self.unix_s, random.Random(1), bytes)
        events = Events()
        self.feed = events.feed()
        self.losses: list[Loss] = []
        self.table = RoutingTable(OWN_ID, RoutingConfig(), on_changed=lambda *change: self.presence.on_changed(*change))
        self.presence = Presence(runtime, self.table, config, events=events, on_back=self.losses.append)
        self.presence.start()

    def pass_time(self, seconds: float, *, wall_s: float | None = None) -> None:
        self.now_s += seconds
        self.unix_s += seconds if wall_s is None else wall_s

    def beat_on(self, seconds: int) -> None:
        for _ in range(seconds):
            self.pass_time(1.0)
            assert self.presence.beat() is None

    def told(self) -> list[NodeEvent]:
        return waiting_in(self.feed)


def waiting_in(feed: EventFeed) -> list[NodeEvent]:
    events = list(feed._waiting)
    feed._waiting.clear()
    return events


def contact(number: int) -> Contact:
    return Contact(number.to_bytes(32, "big"), (f"10.0.0.{number}:9000",))


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


# Our network


def test_a_loss_holds_evictions_and_the_first_word_of_anybody_ends_it(caplog: pytest.LogCaptureFixture):
    place = Place()
    for number in range(1, 9):
        place.table.observe(contact(number), place.now_s)
    place.told()
    place.beat_on(10)

    counts = [place.presence.on_silence(contact(number).id, place.now_s - 1) for number in range(1, 6)]
    is_lost = place.presence.is_network_lost
    evicted = [place.table.on_failure(contact(1).id, place.now_s) for _ in range(9)]
    place.beat_on(60)
    place.presence.on_heard()
    place.presence.on_heard()

    assert counts == [True] * 5
    assert is_lost
    assert evicted == [None] * 9
    assert not place.presence.is_network_lost
    assert place.told() == [Disconnected(), PeerSuspected(contact(1)), Reconnected()]
    assert place.losses == [Loss(60.0, tuple(contact(number).id for number in range(1, 6)))]
    assert place.table.on_failure(contact(1).id, place.now_s) == contact(1)  # evictions go on
    assert len(warnings_in(caplog)) == 1


def test_losses_in_a_row_cost_one_warning_a_minute_with_their_count(caplog: pytest.LogCaptureFixture):
    place = Place()
    for _ in range(7):
        place.beat_on(10)
        for number in range(1, 6):
            place.presence.on_silence(contact(number).id, place.now_s - 1)
        place.presence.on_heard()

    assert len(place.losses) == 7
    assert [message.count("5 more times") for message in warnings_in(caplog)] == [0, 1]


# Our loop


@pytest.mark.parametrize(("blocked_s", "is_told", "is_long"), [
    (0.1, False, False), (1.0, True, False), (10.0, True, False), (30.0, True, True), (60.0, True, True),
])  # fmt: skip
def test_a_stall_is_told_of_and_what_was_asked_before_its_end_is_no_evidence(
    blocked_s: float, is_told: bool, is_long: bool, caplog: pytest.LogCaptureFixture
):
    place = Place()
    place.beat_on(10)
    asked_at = place.now_s + 0.5
    place.pass_time(CONFIG.beat_s + blocked_s)

    before_the_beat = place.presence.on_silence(contact(1).id, asked_at)
    pause = place.presence.beat()
    after_it = place.presence.on_silence(contact(1).id, asked_at)
    place.pass_time(0.5)

    assert before_the_beat is after_it is not is_told
    assert (pause is not None) is is_told
    assert pause is None or place.presence.was_given_up(pause) is is_long
    assert place.presence.on_silence(contact(1).id, place.now_s - 0.1)
    assert len(warnings_in(caplog)) == is_told
    assert all(f"{blocked_s:.1f} s" in message for message in warnings_in(caplog))


def test_a_sleep_is_long_and_nobody_is_warned_of_it(caplog: pytest.LogCaptureFixture):
    place = Place()
    place.pass_time(1.0, wall_s=7201.0)

    assert not place.presence.on_silence(contact(1).id, place.now_s - 0.5)
    pause = place.presence.beat()

    assert pause is not None
    assert pause.slept_s == 7200.0
    assert place.presence.was_given_up(pause)
    assert warnings_in(caplog) == []


@given(stalls_s=st.lists(st.integers(2, 100), max_size=12))
def test_whatever_the_stalls_there_is_one_warning_a_minute_at_most(stalls_s: list[int]):
    place, written = Place(), []
    logger = logging.getLogger("dht.presence")
    handler = logging.Handler()
    handler.emit = lambda record: written.append(place.now_s)  # type: ignore[method-assign]
    logger.addHandler(handler)
    try:
        for stall_s in stalls_s:
            place.pass_time(1.0 + stall_s)
            assert place.presence.beat() is not None
    finally:
        logger.removeHandler(handler)

    assert (len(written) > 0) is (len(stalls_s) > 0)
    assert all(later - earlier >= 60 for earlier, later in pairwise(written))


def test_while_it_does_not_run_it_knows_of_no_pauses():
    place = Place()
    place.presence.stop()
    place.pass_time(1000.0)

    assert place.presence.on_silence(contact(1).id, place.now_s - 2)
    assert place.presence.beat() is None


# Our clock


def test_a_clock_that_is_wrong_is_told_of_once_and_says_by_how_much(caplog: pytest.LogCaptureFixture):
    place = Place()
    place.unix_s += 120.0
    place.presence.beat()
    place.beat_on(1)
    for number in range(5):
        asked_at = place.now_s
        place.pass_time(0.2)
        place.presence.note_clock(str(number), round((place.unix_s - 0.1 - 120.0) * 1000), asked_at)
        assert place.presence.is_clock_wrong is (number == 4)

    assert place.presence.clock_ahead_s == pytest.approx(120.0, abs=0.001)
    assert ["120 s ahead of" in message for message in warnings_in(caplog)] == [True]


def test_an_answer_that_waited_while_we_stood_still_says_nothing_of_clocks():
    place = Place(HealthConfig(min_clock_parties=1))
    asked_at = place.now_s
    place.pass_time(300.0)
    place.presence.note_clock("a", round(UNIX_S * 1000), asked_at)

    assert place.presence.clock_ahead_s is None


# Of others


def test_listeners_are_told_who_comes_is_suspected_and_leaves():
    place = Place()

    place.table.observe(contact(1), place.now_s)
    place.table.on_failure(contact(1).id, place.now_s)
    place.table.on_failure(contact(1).id, place.now_s)

    assert place.told() == [PeerJoined(contact(1)), PeerSuspected(contact(1)), PeerLeft(contact(1))]


def test_listeners_are_told_of_records_that_come_and_expire():
    place = Place()
    store = MemoryRecordStore(RecordConfig())
    place.presence.watch(store)

    store.put(bytes(32), StoredRecord(b"r", contact(1).id, 1, 10.0), 0.0)
    store.expire(10.0)

    assert place.told() == [RecordStored(bytes(32), contact(1).id), RecordExpired(bytes(32), contact(1).id)]
