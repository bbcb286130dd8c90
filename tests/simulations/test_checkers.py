"""Each rule: what breaks it is found, and what only looks like it is not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from dht.agents.record import AgentRecord, Reach
from dht.agents.renewal import Renewal, with_renewal
from dht.config import RecordConfig
from dht.keyspace import content_key
from dht.records import RENEWAL_LABEL, Gone, RecordKind
from dht.store import MemoryRecordStore
from dht.stored_record import StoredRecord
from dht.values import MutableRecord
from simulations.checkers import (
    GRACE_S,
    AtMostOnce,
    Caps,
    Checker,
    Deadlines,
    Durability,
    Inspector,
    MonotonicReads,
    Rule,
    Signatures,
    Violation,
)
from simulations.history import Accepted, Acknowledged, History, Read
from simulations.virtual_loop import run
from synapse_p2p.identity import Identity
from synapse_p2p.protocol.wire import CONTROL_LIMITS, pack, unpack

KEY = b"k" * 32
OWNER, CLIENT, OTHER = b"o" * 32, b"c" * 32, b"x" * 32


@dataclass
class FakeStorer:
    id: bytes
    store: MemoryRecordStore
    life: int = 0
    is_alive: bool = True


def storer(*seqs: int) -> FakeStorer:
    store = MemoryRecordStore(RecordConfig())
    for seq in seqs:
        assert store.put(KEY, StoredRecord(b"record", OWNER, seq, 900.0), 0.0) is None
    return FakeStorer(b"s" * 32, store)


def history(at_s: float = 0.0) -> History:
    return History(lambda who: at_s)


def acknowledged_by(*storers: FakeStorer, seq: int = 5) -> Durability:
    notes = history()
    notes.note_accepted(Accepted(OTHER, 0, KEY, StoredRecord(b"record", OWNER, seq, 900.0)))
    notes.acknowledged.append(Acknowledged(KEY, OWNER, seq, 900.0))
    checker = Durability(notes, lambda: [storer for storer in storers if storer.is_alive])
    checker.on_step(0.5)
    return checker


def broken(rule: Rule, checker: Checker, at_s: float) -> str:
    with pytest.raises(Violation) as caught:
        checker.on_step(at_s)
    assert caught.value.rule is rule
    assert caught.value.at_s == at_s
    assert str(caught.value).startswith(f"{rule} broken at {at_s:.6f} s: ")
    return caught.value.what


def test_a_record_that_is_no_record_is_not_to_be_taken():
    notes = history()
    notes.note_accepted(Accepted(OTHER, 0, KEY, StoredRecord(b"anything", OWNER, 5, 900.0)))

    what = broken(Rule.SIGNATURE, Signatures(notes, RecordConfig()), 3.0)

    assert OWNER.hex()[:16] in what


def test_a_record_that_was_renewed_has_the_number_of_its_renewal_and_both_are_signed():
    owner, stranger = Identity.from_seed(bytes(32)), Identity.from_seed(b"\1" * 32)
    record = AgentRecord(owner.public_key, 5, 1, 2, bytes(16), (), Reach.NONE, "", "", "", ()).seal(owner)
    renewal = Renewal.of(record, seq=6, issued_ms=2, expires_ms=3)
    renewed = with_renewal(record, renewal.seal(owner))
    _, _, _, body, _ = unpack(renewed, CONTROL_LIMITS)
    forged = with_renewal(record, pack([body, stranger.sign(RENEWAL_LABEL, body)]))
    notes = history()
    checker = Signatures(notes, RecordConfig())

    for seq, envelope in ((5, record), (6, renewed)):
        notes.note_accepted(Accepted(OTHER, 0, KEY, StoredRecord(envelope, owner.node_id, seq, 900.0)))
        checker.on_step(1.0)
    for seq, envelope in ((6, forged), (7, with_renewal(record, replace(renewal, expires_ms=4).seal(owner)))):
        notes.note_accepted(Accepted(OTHER, 0, KEY, StoredRecord(envelope, owner.node_id, seq, 900.0)))
        broken(Rule.SIGNATURE, checker, 2.0)


VALUE_KEY = content_key(b"value")


@pytest.mark.parametrize(
    ("key", "value", "is_broken"),
    [(VALUE_KEY, b"value", False), (VALUE_KEY, b"other", True), (KEY, b"value", True), (VALUE_KEY, None, True)],
)
def test_an_immutable_value_that_is_read_is_what_its_key_says(key: bytes, value: bytes | None, is_broken: bool):
    notes = history()
    notes.note_value((CLIENT, 0), key, 0, value)

    if is_broken:
        assert "nobody signed" in broken(Rule.SIGNATURE, Signatures(notes, RecordConfig()), 1.0)
    else:
        Signatures(notes, RecordConfig()).on_step(1.0)
        assert notes.values_read == []


@pytest.mark.parametrize(
    ("seq", "value", "is_broken"),
    [(5, b"five", False), (6, None, False), (5, b"six", True), (5, None, True), (6, b"five", True), (7, b"five", True)],
)
def test_a_version_that_is_read_is_one_that_its_owner_signed(seq: int, value: bytes | None, is_broken: bool):
    owner = Identity.from_seed(bytes(32))
    five = MutableRecord(owner.public_key, b"", 5, 1, 2, bytes(16), b"five")
    notes = history()
    for record in (five, replace(five, seq=6, value=b"", gone=Gone.NOW)):
        stored = StoredRecord(record.seal(owner), owner.node_id, record.seq, 900.0, RecordKind.MUTABLE)
        notes.note_accepted(Accepted(OTHER, 0, five.key, stored))
    notes.note_value((CLIENT, 0), five.key, seq, value)

    if is_broken:
        broken(Rule.SIGNATURE, Signatures(notes, RecordConfig()), 1.0)
    else:
        Signatures(notes, RecordConfig()).on_step(1.0)


def test_a_value_under_the_key_of_another_is_not_to_be_taken():
    owner = Identity.from_seed(bytes(32))
    record = MutableRecord(owner.public_key, b"", 5, 1, 2, bytes(16), b"five")
    notes = history()
    stored = StoredRecord(record.seal(owner), owner.node_id, 5, 900.0, RecordKind.MUTABLE)
    notes.note_accepted(Accepted(OTHER, 0, KEY, stored))

    broken(Rule.SIGNATURE, Signatures(notes, RecordConfig()), 1.0)


@pytest.mark.parametrize(("reads", "is_broken"), [((1, 2, 2, 9), False), ((1, 3, 2), True)])
def test_whoever_has_seen_a_version_never_gets_an_older_one(reads: tuple[int, ...], is_broken: bool):
    notes = history()
    checker = MonotonicReads(notes)
    for seq in reads[:-1]:
        notes.reads.append(Read((CLIENT, 0), OWNER, seq))
        checker.on_step(1.0)
    notes.reads.append(Read((CLIENT, 0), OWNER, reads[-1]))

    if is_broken:
        broken(Rule.MONOTONIC_READS, checker, 2.0)
    else:
        checker.on_step(2.0)
        assert notes.reads == []


def test_a_client_that_restarted_and_another_owners_record_are_another_matter():
    notes = history()
    notes.reads += [Read((CLIENT, 0), OWNER, 9), Read((CLIENT, 1), OWNER, 2), Read((CLIENT, 0), OTHER, 1)]

    MonotonicReads(notes).on_step(1.0)

    assert notes.reads == []


def test_a_live_storer_that_loses_the_last_copy_breaks_durability():
    only = storer(5)
    checker = acknowledged_by(only)
    checker.on_step(1.0)

    only.store.remove(KEY, OWNER)

    assert only.id.hex()[:16] in broken(Rule.DURABILITY, checker, 1.5)


def test_one_copy_is_enough_and_a_newer_version_is_one():
    first, second = storer(5), storer(5, 6)
    checker = acknowledged_by(first, second)

    first.store.remove(KEY, OWNER)
    checker.on_step(1.0)

    second.store.remove(KEY, OWNER)
    broken(Rule.DURABILITY, checker, 1.5)


def test_a_record_whose_holders_all_died_is_excused_and_counted():
    first, second = storer(5), storer(5)
    checker = acknowledged_by(first, second)

    first.is_alive = False
    checker.on_step(1.0)
    second.life += 1
    second.store.remove(KEY, OWNER)
    checker.on_step(1.5)

    assert checker.all_holders_died == 1


def test_a_copy_handed_on_counts_when_the_first_holder_is_dead():
    first, newcomer = storer(5), storer()
    checker = acknowledged_by(first, newcomer)
    newcomer.store.put(KEY, StoredRecord(b"record", OWNER, 5, 900.0), 0.0)
    first.is_alive = False
    checker.on_step(1.0)

    newcomer.store.remove(KEY, OWNER)

    broken(Rule.DURABILITY, checker, 1.5)


def test_who_took_a_record_and_has_lost_it_before_the_first_look_is_found():
    only = storer()
    notes = history()
    notes.note_accepted(Accepted(only.id, 0, KEY, StoredRecord(b"record", OWNER, 5, 900.0)))
    notes.acknowledged.append(Acknowledged(KEY, OWNER, 5, 900.0))

    assert only.id.hex()[:16] in broken(Rule.DURABILITY, Durability(notes, lambda: [only]), 0.5)


def test_an_older_version_in_the_place_of_the_last_copy_breaks_durability():
    only = storer(5)
    checker = acknowledged_by(only)

    only.store.remove(KEY, OWNER)
    only.store.put(KEY, StoredRecord(b"older", OWNER, 4, 900.0), 0.0)

    broken(Rule.DURABILITY, checker, 1.0)


def test_an_expired_record_may_be_forgotten():
    only = storer(5)
    checker = acknowledged_by(only)

    only.store.remove(KEY, OWNER)
    checker.on_step(900.0)

    assert checker.all_holders_died == 0


def test_an_acknowledged_record_that_nobody_took_is_found():
    notes = history()
    notes.acknowledged.append(Acknowledged(KEY, OWNER, 5, 900.0))

    broken(Rule.DURABILITY, Durability(notes, list), 1.0)


def test_a_cap_may_be_reached_and_not_passed():
    amounts = [("sessions", OWNER, 8, 8)]
    checker = Caps(lambda: amounts)
    checker.on_step(1.0)

    amounts.append(("records", OTHER, 9, 8))

    assert "9 records" in broken(Rule.CAPS, checker, 1.5)


@pytest.mark.parametrize(("late_s", "is_broken"), [(GRACE_S, False), (GRACE_S + 0.1, True)])
@pytest.mark.parametrize("is_ended", [False, True])
def test_a_request_that_is_over_its_time_by_more_than_a_second_is_found(late_s: float, is_broken: bool, is_ended: bool):
    clock = [10.0]
    notes = History(lambda who: clock[0])
    request = notes.request(OWNER, "find", 2.0)
    request.__enter__()
    clock[0] = 12.0 + late_s
    if is_ended:
        request.__exit__(None, None, None)

    if is_broken:
        assert "find" in broken(Rule.DEADLINES, Deadlines(notes), clock[0])
    else:
        Deadlines(notes).on_step(clock[0])
        assert len(notes.open_requests) == (not is_ended)


def test_a_task_done_twice_is_found_and_two_tasks_are_not():
    notes = history()
    checker = AtMostOnce(notes)
    notes.note_execution("a")
    notes.note_execution("b")
    checker.on_step(1.0)

    notes.note_execution("a")

    assert "a was done 2 times" in broken(Rule.AT_MOST_ONCE, checker, 1.5)


def live(main: Callable[[Inspector, list[float]], object]) -> list[float]:
    looks: list[float] = []

    class Look:
        def on_step(self, at_s: float) -> None:
            looks.append(at_s)

        def after_faults(self, at_s: float) -> None:
            looks.append(-at_s)

    async def body() -> None:
        await main(Inspector([Look()]), looks)  # type: ignore[misc]

    run(body())
    return looks


def test_an_inspector_looks_at_every_step_and_once_more_after_the_faults():
    async def main(inspector: Inspector, looks: list[float]) -> None:
        await inspector.watch(1.2)
        inspector.look_after_faults()

    assert live(main) == pytest.approx([0.5, 1.0, 1.2, 1.2, -1.2])


def test_a_task_that_fails_ends_the_watch_with_its_error():
    async def fail() -> None:
        await asyncio.sleep(3)
        raise ZeroDivisionError

    async def main(inspector: Inspector, looks: list[float]) -> None:
        failing = asyncio.ensure_future(fail())
        with pytest.raises(ZeroDivisionError):
            await inspector.watch(100.0, [failing])

    assert live(main)[-1] < 4
