"""Deadlines in one heap: who is told, when, and in which order."""

from __future__ import annotations

import asyncio
import weakref

from hypothesis import given
from hypothesis import strategies as st

from simulations.deadlines import Deadlines
from simulations.virtual_loop import run

SECOND_US = 1_000_000


class Somebody:
    """Waits until it is told that its time is up, or is done before."""

    def __init__(self, told):
        self.told = told
        self.is_done = False

    def done(self):
        return self.is_done

    def expire(self, text):
        self.told.append((asyncio.get_running_loop().now_us, text))


def make_deadlines():
    return Deadlines(asyncio.get_running_loop()), []


def test_waiters_are_told_at_their_time_and_in_order():
    async def main():
        deadlines, told = make_deadlines()
        for at_us, text in [(3, "late"), (1, "first"), (3, "later"), (2, "second")]:
            deadlines.add(at_us * SECOND_US, Somebody(told), Somebody.expire, text)
        await asyncio.sleep(10)
        return told

    assert run(main()) == [
        (1 * SECOND_US, "first"),
        (2 * SECOND_US, "second"),
        (3 * SECOND_US, "late"),
        (3 * SECOND_US, "later"),
    ]


def test_waiter_that_is_done_is_not_told():
    async def main():
        deadlines, told = make_deadlines()
        waiters = [Somebody(told) for _ in range(3)]
        for number, waiter in enumerate(waiters):
            deadlines.add((1 + number) * SECOND_US, waiter, Somebody.expire, str(number))
        waiters[0].is_done = waiters[1].is_done = True
        await asyncio.sleep(10)
        return told

    assert run(main()) == [(3 * SECOND_US, "2")]


def test_deadline_of_now_is_told_in_this_instant():
    async def main():
        deadlines, told = make_deadlines()
        await asyncio.sleep(1)
        deadlines.add(SECOND_US, Somebody(told), Somebody.expire)
        await asyncio.sleep(0)
        return told

    assert run(main()) == [(SECOND_US, "")]


def test_who_is_told_may_set_a_new_deadline():
    async def main():
        deadlines, told = make_deadlines()
        waiter = Somebody(told)

        def again(waiter, text):
            waiter.expire(text)
            deadlines.add(asyncio.get_running_loop().now_us + SECOND_US, waiter, Somebody.expire, "second")

        deadlines.add(SECOND_US, waiter, again, "first")
        deadlines.add(9 * SECOND_US, Somebody(told), Somebody.expire, "last")
        await asyncio.sleep(10)
        return told

    assert run(main()) == [(1 * SECOND_US, "first"), (2 * SECOND_US, "second"), (9 * SECOND_US, "last")]


@given(st.lists(st.tuples(st.integers(1, 50), st.booleans()), max_size=60))
def test_all_who_still_wait_are_told_in_the_order_of_time_and_adding(entries):
    async def main():
        deadlines, told = make_deadlines()
        for number, (at_us, is_done) in enumerate(entries):
            waiter = Somebody(told)
            waiter.is_done = is_done
            deadlines.add(at_us, waiter, Somebody.expire, str(number))
        await asyncio.sleep(1)
        return told

    expected = sorted((at_us, number) for number, (at_us, is_done) in enumerate(entries) if not is_done)

    assert run(main()) == [(at_us, str(number)) for at_us, number in expected]


@given(st.lists(st.tuples(st.integers(1, 9), st.booleans()), max_size=60))
def test_those_dropped_are_kept_no_longer_and_change_nothing_for_others(entries):
    async def main():
        deadlines, told = make_deadlines()
        dropped, waiter = [], None
        for number, (at_us, is_done) in enumerate(entries):
            waiter = Somebody(told)
            deadlines.add(at_us, waiter, Somebody.expire, str(number))
            if is_done:
                waiter.is_done = True
                deadlines.drop(at_us, waiter)
                dropped.append(weakref.ref(waiter))
        waiter = None  # the last of them, else held here
        assert not any(each() for each in dropped)
        await asyncio.sleep(1)
        return told

    expected = sorted((at_us, number) for number, (at_us, is_done) in enumerate(entries) if not is_done)

    assert run(main()) == [(at_us, str(number)) for at_us, number in expected]


def test_time_that_was_dropped_may_be_asked_for_again():
    async def main():
        deadlines, told = make_deadlines()
        waiter = Somebody(told)
        deadlines.add(SECOND_US, waiter, Somebody.expire, "dropped")
        deadlines.drop(SECOND_US, waiter)
        deadlines.drop(SECOND_US, waiter)
        deadlines.add(SECOND_US, waiter, Somebody.expire, "again")
        await asyncio.sleep(2)
        return told

    assert run(main()) == [(SECOND_US, "again")]
