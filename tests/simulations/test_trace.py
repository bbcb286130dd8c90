"""The newest events of a world, and that keeping them changes nothing."""

from __future__ import annotations

import pytest

from simulations.network import Digest
from simulations.trace import TracingDigest

ANN, BOB = b"\xaa" * 32, b"\xbb" * 32


def fill(digest: Digest, count: int) -> None:
    for number in range(count):
        digest.add_message(number * 500_000, ANN, BOB, "_dht.ping", b"x" * number)
    digest.add_fault(9_000_001, BOB, "crash")


def test_keeping_events_does_not_change_the_digest():
    plain, tracing = Digest(), TracingDigest()

    fill(plain, 5)
    fill(tracing, 5)

    assert (tracing.hexdigest(), tracing.message_count) == (plain.hexdigest(), plain.message_count)


def test_events_are_lines_for_people_oldest_first():
    digest = TracingDigest()

    fill(digest, 2)

    assert list(digest.lines()) == [
        "      0.000000 aaaaaaaa -> bbbbbbbb _dht.ping 0",
        "      0.500000 aaaaaaaa -> bbbbbbbb _dht.ping 1",
        "      9.000001 bbbbbbbb fault: crash",
    ]


def test_only_the_newest_events_are_kept():
    digest = TracingDigest(max_events=3)

    fill(digest, 1000)

    assert [line.split()[-1] for line in digest.lines()] == ["998", "999", "crash"]


def test_messages_are_counted_by_target_for_a_bounded_number_of_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("simulations.delivery.MAX_COUNTED_TARGETS", 1)
    digest = TracingDigest()

    fill(digest, 5)
    digest.add_message(0, BOB, ANN, "_dht.ping", b"")
    fill(digest, 1)

    assert digest.arrivals == {BOB: 6}


def test_every_fault_is_told_with_its_second():
    told: list[tuple[float, str]] = []
    digest = TracingDigest()
    digest.on_fault = lambda at_s, fault: told.append((at_s, fault))

    fill(digest, 1)

    assert told == [(9.000001, "crash")]
