"""Whether others can dial us: the pure machine, by examples and against what may never happen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.reachability import MAX_PROVERS, MIN_PROVERS, Finding, Reachability

PROVE_S, PAUSE_S = 20.0, 660.0


def asked(*willing: bool, at: float = 60.0) -> Reachability:
    """Nobody has dialed us, and these said then whether they do."""
    reach = Reachability(prove_s=PROVE_S, pause_s=PAUSE_S)
    assert reach.is_due(None, at)
    reach.on_asking(at)
    for each in willing:
        reach.on_answer(is_willing=each)
    return reach


@pytest.mark.parametrize(
    "willing", [(True,), (True, True), (True, True, True, False, False), (True,) * MAX_PROVERS], ids=str
)
def test_where_enough_dial_us_and_nobody_comes_we_are_out_of_reach(willing: tuple[bool, ...]):
    reach = asked(*willing)

    assert reach.look(None, 60 + PROVE_S - 1) is Finding.NOTHING
    assert reach.is_dialable(None)
    assert reach.look(None, 60 + PROVE_S) is Finding.OUT_OF_REACH
    assert not reach.is_dialable(None)
    assert not reach.is_dialable(59.0)


@pytest.mark.parametrize("willing", [(), (False,), (True, False), (True, True, False, False, False)], ids=str)
def test_where_too_few_do_nothing_is_known_and_others_are_asked_later(willing: tuple[bool, ...]):
    reach = asked(*willing)

    assert reach.look(None, 60 + PROVE_S) is Finding.NOTHING
    assert reach.is_dialable(None)
    assert not reach.is_due(None, 60 + PROVE_S + PAUSE_S - 1)
    assert reach.is_due(None, 60 + PROVE_S + PAUSE_S)


def test_whom_somebody_has_dialed_asks_nobody_and_is_never_out_of_reach():
    reach = Reachability(prove_s=PROVE_S, pause_s=PAUSE_S)

    for minute in range(1, 100):
        assert not reach.is_due(30.0, 60.0 * minute)
        assert reach.look(30.0, 60.0 * minute) is Finding.NOTHING
        assert reach.is_dialable(30.0)


def test_who_is_dialed_while_he_waits_is_in_reach():
    reach = asked(True, True, True)

    assert reach.look(61.0, 60 + PROVE_S) is Finding.NOTHING
    assert reach.is_dialable(61.0)


def test_one_dial_brings_us_back_at_once_and_is_told_once():
    reach = asked(True, True, True)
    reach.look(None, 60 + PROVE_S)

    assert reach.is_dialable(200.0), "before anybody looks"
    assert reach.look(200.0, 240.0) is Finding.REACHED
    assert reach.look(200.0, 300.0) is Finding.NOTHING
    assert reach.is_dialable(200.0)
    assert not reach.is_due(200.0, 10_000.0)


def test_out_of_reach_we_go_on_asking_and_say_so_once():
    reach = asked(True, True, True)
    assert reach.look(None, 60 + PROVE_S) is Finding.OUT_OF_REACH

    now = 60 + PROVE_S + PAUSE_S
    for _ in range(5):
        assert reach.is_due(None, now)
        reach.on_asking(now)
        reach.on_answer(is_willing=True)
        assert reach.look(None, now + PROVE_S) is Finding.NOTHING
        assert not reach.is_dialable(None)
        now += PROVE_S + PAUSE_S


def test_at_another_address_what_was_proved_of_the_last_counts_no_more():
    reach = Reachability(prove_s=PROVE_S, pause_s=PAUSE_S)
    assert not reach.is_due(30.0, 60.0)

    reach.on_moved(100.0)

    assert reach.is_dialable(30.0), "nothing is known yet"
    assert not reach.is_due(30.0, 100.0 + PROVE_S - 1), "neighbours were told, and come"
    assert reach.is_due(30.0, 100.0 + PROVE_S)
    reach.on_asking(100.0 + PROVE_S)
    reach.on_answer(is_willing=True)
    assert reach.look(30.0, 100.0 + 2 * PROVE_S) is Finding.OUT_OF_REACH
    assert not reach.is_dialable(30.0)
    assert reach.is_dialable(150.0)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["look", "dialed", "moved", "ask"]),
        st.floats(0.1, 700.0),
        st.lists(st.booleans(), max_size=MAX_PROVERS),
    ),
    max_size=40,
)


@given(STEPS)
def test_nobody_is_out_of_reach_without_enough_who_tried_since_he_was_dialed_last(steps):
    reach, now, dialed_at = Reachability(prove_s=PROVE_S, pause_s=PAUSE_S), 0.0, None
    tried: list[float] = []  # when enough said that they dial us

    for what, pause_s, willing in steps:
        now += pause_s
        if what == "dialed":
            dialed_at = now
            tried.clear()
            assert reach.is_dialable(dialed_at)
        elif what == "moved":
            reach.on_moved(now)
        elif what == "ask" and reach.is_due(dialed_at, now):
            reach.on_asking(now)
            for each in willing:
                reach.on_answer(is_willing=each)
            if sum(willing) >= max(1, min(MIN_PROVERS, len(willing))):
                tried.append(now)
        found = reach.look(dialed_at, now)
        if found is Finding.OUT_OF_REACH or not reach.is_dialable(dialed_at):
            assert any(now - at >= PROVE_S for at in tried)
