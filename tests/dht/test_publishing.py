"""When a record is published anew."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dht.agents.record import CapabilityClaim
from dht.publishing import Offer, Publishing

HERE = Offer(("10.0.0.1:9000",), (CapabilityClaim("x"),))
THERE = Offer(("10.0.0.2:9000",), (CapabilityClaim("x"),))
WITH_MORE = Offer(("10.0.0.1:9000",), (CapabilityClaim("x"), CapabilityClaim("y")))


def make_publishing() -> Publishing:
    return Publishing(retry_min_s=1, retry_max_s=60)


def publish(publishing: Publishing, offer: Offer, *, is_kept: bool, now: float) -> None:
    publishing.begin(offer)
    publishing.end(offer, is_kept=is_kept, now=now)


def test_nothing_published_is_due():
    assert make_publishing().is_due(HERE, now=0)


def test_what_is_kept_is_not_due_until_it_changes():
    publishing = make_publishing()

    publish(publishing, HERE, is_kept=True, now=0)

    assert not publishing.is_due(HERE, now=10**9)
    assert publishing.is_due(THERE, now=0)
    assert publishing.is_due(WITH_MORE, now=0)


def test_what_is_under_way_is_not_due_however_long_it_takes():
    publishing = make_publishing()

    publishing.begin(HERE)

    assert not publishing.is_due(HERE, now=10**9)
    assert publishing.is_due(THERE, now=0)


def test_what_nobody_keeps_is_tried_again_soon_then_more_and_more_rarely():
    publishing = make_publishing()
    now = 0.0
    pauses = []
    for _ in range(9):
        publish(publishing, HERE, is_kept=False, now=now)
        due_at = next(now + pause for pause in range(1, 100) if publishing.is_due(HERE, now + pause))
        pauses.append(due_at - now)
        now = due_at

    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_a_new_offer_begins_with_short_pauses_again():
    publishing = make_publishing()
    for _ in range(9):
        publish(publishing, HERE, is_kept=False, now=0)

    publish(publishing, THERE, is_kept=False, now=0)

    assert publishing.is_due(THERE, now=1)


def test_the_end_of_an_older_publication_says_nothing_of_a_newer_one():
    publishing = make_publishing()
    publishing.begin(HERE)
    publishing.begin(THERE)

    publishing.end(HERE, is_kept=True, now=0)
    publishing.end(THERE, is_kept=False, now=0)

    assert publishing.is_due(THERE, now=1)


@given(st.lists(st.tuples(st.sampled_from([HERE, THERE, WITH_MORE]), st.booleans(), st.integers(0, 100))))
def test_it_is_due_within_a_minute_exactly_where_the_last_one_failed(steps: list[tuple[Offer, bool, int]]):
    publishing = make_publishing()
    now = 0
    for offer, is_kept, pause in steps:
        now += pause
        publish(publishing, offer, is_kept=is_kept, now=now)

        assert publishing.is_due(offer, now + 60) is not is_kept
        assert not publishing.is_due(offer, now + 0.5)
