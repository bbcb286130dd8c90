"""The virtual event loop: order, time, asyncio's own tools, and the ways in which a simulation goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import itertools
import logging
import math
import os
import random
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulations.virtual_loop import (
    MIN_CANCELLED_TO_COMPACT,
    OWNER,
    Deadlock,
    Livelock,
    NotSimulated,
    VirtualLoop,
    run,
)
from synapse_p2p.background import BackgroundTaskHandler
from synapse_p2p.context import CallContext
from synapse_p2p.endpoints import EndpointDirectory
from synapse_p2p.exceptions import CallError
from synapse_p2p.messages import Answer, RPCRequest
from synapse_p2p.types import BackgroundTask


@pytest.fixture
def loop():
    loop = VirtualLoop()
    yield loop
    loop.close()


def drain(loop):
    """Run what is scheduled, until nothing is left."""
    with pytest.raises(Deadlock):
        loop.run_forever()


# Time and order.


def test_clock_jumps_to_the_next_event_exactly(loop):
    seen = []
    for delay in (3600.0, 0.1, 0.000_001):
        loop.call_later(delay, lambda: seen.append((loop.time(), loop.now_us)))

    drain(loop)

    assert seen == [(0.000_001, 1), (0.1, 100_000), (3600.0, 3_600_000_000)]


def test_ten_thousand_small_steps_add_up_without_drift(loop):
    def step(left):
        if left:
            loop.call_later(0.1, step, left - 1)

    step(10_000)
    drain(loop)

    assert loop.time() == 1000.0


@given(
    st.lists(
        st.tuples(st.integers(min_value=0, max_value=5), st.booleans(), st.booleans()),
        max_size=40,
    )
)
def test_callbacks_run_by_due_time_and_then_in_the_order_they_were_scheduled(plan):
    loop = VirtualLoop()
    ran = []
    handles = []
    for number, (delay_us, is_absolute, _) in enumerate(plan):
        schedule = loop.call_at if is_absolute else loop.call_later
        handles.append(schedule(delay_us / 1e6, ran.append, number))
    for handle, (_, _, is_cancelled) in zip(handles, plan, strict=True):
        if is_cancelled:
            handle.cancel()

    drain(loop)
    loop.close()

    live = [number for number, (_, _, is_cancelled) in enumerate(plan) if not is_cancelled]
    assert ran == sorted(live, key=lambda number: plan[number][0])


def test_callback_scheduled_for_now_runs_after_the_timers_of_this_instant(loop):
    ran = []
    loop.call_later(1.0, lambda: (ran.append("first"), loop.call_soon(ran.append, "third")))
    loop.call_later(1.0, ran.append, "second")

    drain(loop)

    assert ran == ["first", "second", "third"]


def test_past_time_means_now(loop):
    ran = []
    loop.call_later(-1.0, ran.append, "before")
    loop.call_at(-1.0, ran.append, "past")
    loop.call_soon(ran.append, "now")

    drain(loop)

    assert ran == ["before", "past", "now"]
    assert loop.time() == 0.0


def test_waiting_for_a_point_in_time_reaches_it_whatever_rounding_leaves_over():
    async def main():
        loop = asyncio.get_running_loop()
        await asyncio.sleep(0.3)
        until = 0.1 + 0.2  # one bit above 0.3
        turns = 0
        while loop.time() < until:
            await asyncio.sleep(until - loop.time())
            turns += 1
        return loop.time(), turns

    assert run(main()) == (0.300_001, 1)


def test_infinite_delay_never_ends(loop):
    handle = loop.call_later(math.inf, pytest.fail)

    drain(loop)

    assert handle.when() == math.inf
    assert loop.time() == 0.0


def test_point_in_time_that_is_no_number_is_refused(loop):
    for use in (loop.call_later, loop.call_at):
        with pytest.raises(ValueError, match="NaN"):
            use(math.nan, print)


def test_timer_says_when_it_is_due_and_whether_it_was_cancelled(loop):
    handle = loop.call_later(2.5, print)

    assert (handle.when(), handle.cancelled()) == (2.5, False)

    handle.cancel()
    handle.cancel()

    assert handle.cancelled()


def test_callbacks_of_a_held_owner_wait_in_order_and_cancelled_ones_never_run(loop):
    own = contextvars.copy_context()
    own.run(OWNER.set, "own")
    seen = []

    def see(what):
        seen.append((loop.time(), what))

    loop.hold("own")
    for at_s, what in [(2.0, "second"), (1.0, "first"), (3.0, "cancelled"), (9.0, "later")]:
        timer = loop.call_at(at_s, see, what, context=own)
        if what == "cancelled":
            loop.call_at(4.0, timer.cancel)
    loop.call_at(1.0, see, "of somebody else")
    loop.call_at(5.0, lambda: (loop.hold_back("own", see, "held back"), loop.hold_back("nobody", see, "lost")))
    loop.call_at(6.0, loop.release, "own")
    loop.call_at(10.0, loop.stop)
    loop.run_forever()

    assert seen == [(1.0, "of somebody else"), (6.0, "first"), (6.0, "second"), (6.0, "held back"), (9.0, "later")]


def test_callback_runs_in_the_context_it_was_scheduled_in(loop):
    name = contextvars.ContextVar("name", default="none")
    seen = []
    own = contextvars.copy_context()
    own.run(name.set, "own")
    own.run(loop.call_soon, lambda: seen.append(name.get()))
    loop.call_later(1.0, lambda: seen.append(name.get()), context=own)
    loop.call_soon(lambda: seen.append(name.get()))

    drain(loop)

    assert seen == ["own", "none", "own"]


def test_cancelled_deadlines_do_not_accumulate(loop):
    kept = [loop.call_later(1000.0 + number, print) for number in range(10)]

    for _ in range(50_000):
        loop.call_later(60.0, print).cancel()

    assert len(loop._heap) <= 2 * MIN_CANCELLED_TO_COMPACT
    assert sum(not entry[2].cancelled() for entry in loop._heap) == len(kept)


@given(st.integers(), st.floats(min_value=0, max_value=1))
def test_compaction_loses_no_callback_and_keeps_their_order(seed, cancelled_share):
    rng = random.Random(seed)
    plan = [(rng.randint(1, 500), rng.random() < cancelled_share) for _ in range(400)]
    loop = VirtualLoop()
    ran = []
    for number, (delay_us, is_cancelled) in enumerate(plan):
        handle = loop.call_later(delay_us / 1e6, ran.append, number)
        if is_cancelled:
            handle.cancel()

    drain(loop)
    loop.close()

    assert ran == sorted((n for n, (_, gone) in enumerate(plan) if not gone), key=lambda n: plan[n][0])
    assert loop._cancelled_count == 0


def test_cancelled_callback_holds_on_to_nothing(loop):
    class Load:
        pass

    load = Load()
    holders = len(gc.get_referrers(load))
    handle = loop.call_later(60.0, print, load)

    handle.cancel()

    assert len(gc.get_referrers(load)) == holders


# asyncio's own tools.


def test_sleep_takes_virtual_time_only():
    async def main():
        await asyncio.sleep(86_400.0)
        return asyncio.get_running_loop().time()

    assert run(main()) == 86_400.0


def test_timeout_and_wait_for_expire_at_their_instant():
    async def main():
        loop = asyncio.get_running_loop()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.5):
                await asyncio.sleep(10)
        first = loop.time()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.sleep(10), 0.25)
        return first, loop.time()

    assert run(main()) == (1.5, 1.75)


def test_gather_wait_and_shield_work():
    async def after(delay_s, value):
        await asyncio.sleep(delay_s)
        return value

    async def main():
        gathered = await asyncio.gather(after(2, "a"), after(1, "b"))
        done, pending = await asyncio.wait(
            [asyncio.create_task(after(1, "c")), asyncio.create_task(after(5, "d"))],
            return_when=asyncio.FIRST_COMPLETED,
        )
        inner = asyncio.create_task(after(1, "e"))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(inner), 0.5)
        return gathered, [task.result() for task in done], len(pending), await inner

    assert run(main()) == (["a", "b"], ["c"], 1, "e")


def test_task_group_cancels_its_tasks_when_one_fails():
    ended = []

    async def wait_long():
        try:
            await asyncio.sleep(100)
        finally:
            ended.append(asyncio.get_running_loop().time())

    async def fail():
        await asyncio.sleep(1)
        raise ValueError("one of them")

    async def main():
        async with asyncio.TaskGroup() as group:
            group.create_task(wait_long())
            group.create_task(fail())

    with pytest.raises(ExceptionGroup):
        run(main())

    assert ended == [1.0]


def test_queue_event_lock_and_semaphore_work():
    async def main():
        queue, event, lock, places = asyncio.Queue(1), asyncio.Event(), asyncio.Lock(), asyncio.Semaphore(2)
        seen = []

        async def produce():
            for number in range(3):
                await queue.put(number)
            event.set()

        async def use(name):
            async with places, lock:
                await asyncio.sleep(1)
                seen.append((name, asyncio.get_running_loop().time()))

        async with asyncio.TaskGroup() as group:
            group.create_task(produce())
            for name in "abc":
                group.create_task(use(name))
            seen.extend([await queue.get() for _ in range(3)])
            await event.wait()
        return seen

    assert run(main()) == [0, 1, 2, ("a", 1.0), ("b", 2.0), ("c", 3.0)]


def test_wait_for_the_first_leaves_the_others_running():
    async def after(delay_s, error=None):
        await asyncio.sleep(delay_s)
        if error is not None:
            raise error
        return delay_s

    async def main():
        loop = asyncio.get_running_loop()
        tasks = [asyncio.create_task(after(delay_s)) for delay_s in (3, 1, 2)]
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        first = loop.time(), done == {tasks[1]}, pending == {tasks[0], tasks[2]}
        late, _ = await asyncio.wait(pending, timeout=0.5)
        done, _ = await asyncio.wait(
            [tasks[0], asyncio.create_task(after(0.25, ValueError("mine")))], return_when=asyncio.FIRST_EXCEPTION
        )
        failed = loop.time(), [str(task.exception()) for task in done]
        done, pending = await asyncio.wait(tasks)
        return first, late, failed, loop.time(), len(done), len(pending)

    assert run(main()) == ((1.0, True, True), set(), (1.75, ["mine"]), 3.0, 3, 0)


def test_as_completed_gives_results_in_the_order_of_their_ends():
    async def main():
        return [await result for result in asyncio.as_completed([asyncio.sleep(n, n) for n in (3, 1, 2)], timeout=5)]

    assert run(main()) == [1, 2, 3]


def test_failure_in_gather_leaves_the_others_running_and_a_cancelled_gather_does_not():
    async def fail():
        raise ValueError("mine")

    async def main():
        other = asyncio.create_task(asyncio.sleep(1, "slept"))
        with pytest.raises(ValueError, match="mine"):
            await asyncio.gather(other, fail())
        kept = await asyncio.gather(asyncio.sleep(1, "fine"), fail(), return_exceptions=True)
        left = asyncio.create_task(asyncio.sleep(9))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2):
                await asyncio.gather(left, asyncio.sleep(8))
        return await other, kept[0], str(kept[1]), left.cancelled(), asyncio.get_running_loop().time()

    assert run(main()) == ("slept", "fine", "mine", True, 3.0)


def test_cancelled_task_ends_at_this_instant_and_may_refuse():
    async def refuse():
        for _ in range(2):
            try:
                await asyncio.sleep(10)
            except asyncio.CancelledError:
                asyncio.current_task().uncancel()
        return "done"

    async def main():
        task, stubborn = asyncio.create_task(asyncio.sleep(10)), asyncio.create_task(refuse())
        await asyncio.sleep(1)
        task.cancel("enough")
        stubborn.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return asyncio.get_running_loop().time(), await stubborn, asyncio.get_running_loop().time()

    assert run(main()) == (1.0, "done", 11.0)


def test_condition_wakes_those_that_wait_in_their_order():
    async def main():
        condition, seen = asyncio.Condition(), []

        async def wait(name):
            async with condition:
                await condition.wait()
                seen.append(name)

        waiters = [asyncio.create_task(wait(name)) for name in "abc"]
        await asyncio.sleep(1)
        async with condition:
            condition.notify(2)
        await asyncio.sleep(1)
        half = list(seen)
        async with condition:
            condition.notify_all()
        await asyncio.gather(*waiters)
        return half, seen

    assert run(main()) == (["a", "b"], ["a", "b", "c"])


def test_generator_is_left_early_and_closed_by_aclosing():
    closed = []

    async def ticks():
        try:
            while True:
                await asyncio.sleep(1)
                yield asyncio.get_running_loop().time()
        finally:
            await asyncio.sleep(0.5)
            closed.append(asyncio.get_running_loop().time())

    async def main():
        async with contextlib.aclosing(ticks()) as numbers:
            async for number in numbers:
                if number == 3:
                    break
        return list(closed)

    assert run(main()) == [3.5]


def test_plain_endpoint_runs_without_a_thread_and_without_time():
    endpoints = EndpointDirectory(token_bytes=bytes)
    ran_in = []

    def work(number):
        ran_in.append(threading.get_ident())
        return number + 1

    def fail():
        raise CallError("no", "mine")

    endpoints.register("work", work)
    endpoints.register("fail", fail)

    async def serve(name, *args):
        request = RPCRequest(endpoint=name, id="1", args=list(args), kwargs={})
        return await endpoints.serve(request, CallContext(peer=None, address="127.0.0.1:80"))

    async def main():
        outcomes = await asyncio.gather(serve("work", 1), serve("work", 2), serve("fail"))
        return outcomes, asyncio.get_running_loop().time()

    (one, two, failed), now = run(main())
    endpoints.close()

    assert (one, two, failed.message) == (Answer(2), Answer(3), "mine")
    assert ran_in == [threading.get_ident()] * 2
    assert now == 0.0


def test_plain_endpoint_is_not_run_when_its_call_was_cancelled_before_its_turn():
    endpoints = EndpointDirectory(token_bytes=bytes)
    ran = []
    endpoints.register("work", lambda: ran.append(True))

    async def main():
        request = RPCRequest(endpoint="work", id="1", args=[], kwargs={})
        call = asyncio.create_task(endpoints.serve(request, CallContext(peer=None, address="127.0.0.1:80")))
        asyncio.get_running_loop().call_soon(call.cancel)
        with pytest.raises(asyncio.CancelledError):
            await call

    run(main())

    assert ran == []


def test_plain_periodic_function_runs_at_its_instants():
    ran_at = []

    async def main():
        loop = asyncio.get_running_loop()
        tasks = BackgroundTaskHandler()
        tasks.add_task(BackgroundTask(name="tick", callable=lambda: ran_at.append(loop.time()), period=60))
        tasks.start()
        await asyncio.sleep(150)
        await tasks.stop()

    run(main())

    assert ran_at == [0.0, 60.0, 120.0]


def test_runner_of_asyncio_takes_the_loop():
    async def main():
        await asyncio.sleep(5)
        return asyncio.get_running_loop().time()

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        assert runner.run(main()) == 5.0
        assert runner.run(main()) == 10.0


def test_abandoned_generator_is_closed_before_the_loop():
    closed = []

    async def numbers(name):
        try:
            for number in range(10):
                yield number
        finally:
            await asyncio.sleep(1)
            closed.append(name)

    async def main():
        kept = [numbers("a"), numbers("b"), numbers("c")]
        for generator in kept:
            await anext(generator)
        asyncio.get_running_loop().kept = kept  # alive until the loop ends

    run(main())

    assert closed == ["a", "b", "c"]


def test_generator_that_nobody_holds_is_closed_at_once():
    closed = []

    async def numbers():
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(0)
            closed.append(True)

    async def main():
        async for _ in numbers():
            break
        gc.collect()
        await asyncio.sleep(1)
        return list(closed)

    assert run(main()) == [True]


def test_generator_that_fails_while_closing_is_reported(caplog):
    async def numbers():
        try:
            yield 1
        finally:
            raise ValueError("no end")

    async def main():
        generator = numbers()
        await anext(generator)
        asyncio.get_running_loop().kept = generator

    run(main())

    assert "closing" in caplog.text
    assert "no end" in caplog.text


# What goes wrong.


def test_waiting_for_what_nobody_will_do_is_a_deadlock_that_names_the_tasks():
    async def wait_for_ever():
        await asyncio.Event().wait()

    async def main():
        tasks = [asyncio.create_task(wait_for_ever(), name=name) for name in ("zoe", "adam")]
        await asyncio.sleep(7)
        await tasks[0]

    with pytest.raises(Deadlock, match=r"still waiting: .*main.*, zoe .*wait_for_ever.*, adam") as caught:
        run(main())

    assert caught.value.at_s == 7.0
    assert len(caught.value.tasks) == 3


def test_spinning_at_one_instant_is_a_livelock_that_names_the_task():
    async def spin():
        for _ in itertools.count():
            await asyncio.sleep(0)

    async def main():
        spinner = asyncio.create_task(spin(), name="top")
        await asyncio.sleep(1)
        await spinner

    with pytest.raises(Livelock, match=r"top .*spin") as caught:
        run(main(), max_callbacks_per_instant=1000)

    assert caught.value.at_s == 0.0
    assert len(caught.value.tasks) == 1


def test_many_callbacks_over_many_instants_are_no_livelock():
    async def main():
        for _ in range(500):
            await asyncio.sleep(0.001)
        return "done"

    assert run(main(), max_callbacks_per_instant=20) == "done"


def test_long_list_of_names_is_cut():
    async def main():
        tasks = [asyncio.create_task(asyncio.Event().wait()) for _ in range(50)]
        await tasks[0]

    with pytest.raises(Deadlock, match="and 41 more"):
        run(main())


def names_of_loop_calls():
    return sorted(
        name
        for name, value in vars(VirtualLoop).items()
        if getattr(value, "__qualname__", "").endswith("refusal.<locals>.refuse") and not name.startswith("_")
    )


def test_every_call_of_a_loop_is_simulated_or_refused(loop):
    calls = {name for name in vars(asyncio.AbstractEventLoop) if not name.startswith("_")}

    assert calls <= vars(VirtualLoop).keys()
    assert {"create_connection", "getaddrinfo", "add_signal_handler", "subprocess_exec"} <= set(names_of_loop_calls())


@pytest.mark.parametrize("name", names_of_loop_calls())
def test_refusal_names_the_call_and_what_to_do(loop, name):
    with pytest.raises(NotSimulated, match=rf"loop\.{name}\(\) reaches outside .*: \w+") as caught:
        getattr(loop, name)()

    assert isinstance(caught.value, NotImplementedError)


@pytest.mark.parametrize(
    "reach_out",
    [
        lambda: asyncio.open_connection("127.0.0.1", 1),
        lambda: asyncio.to_thread(os.getpid),
        lambda: asyncio.create_subprocess_exec("true"),
        lambda: asyncio.get_running_loop().sock_connect(None, socket.AF_INET),
    ],
)
def test_reaching_the_real_world_through_asyncio_is_refused(reach_out):
    async def main():
        with pytest.raises(NotSimulated):
            await reach_out()

    run(main())


def test_callback_from_another_thread_is_refused(loop):
    caught = []

    def call():
        try:
            loop.call_soon_threadsafe(print)
        except NotSimulated as error:
            caught.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()

    assert len(caught) == 1


def test_failing_callback_is_reported_and_the_rest_runs(loop):
    reports, ran = [], []

    def fail():
        raise ValueError("mine")

    loop.set_exception_handler(lambda _, context: reports.append(context))
    loop.call_soon(fail)
    loop.call_soon(ran.append, 1)

    drain(loop)

    assert ran == [1]
    assert str(reports[0]["exception"]) == "mine"
    assert "fail" in reports[0]["message"]


def test_failing_callback_is_logged_where_no_handler_is_set(loop, caplog):
    loop.call_soon(lambda: 1 // 0)

    drain(loop)

    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "ZeroDivisionError" in caplog.text


def test_exception_handler_that_fails_stops_nothing(loop, caplog):
    def fail(*_):
        raise ValueError("the handler's own")

    loop.set_exception_handler(fail)
    loop.call_soon(lambda: 1 // 0)

    drain(loop)

    assert loop.get_exception_handler() is fail
    assert "the handler's own" in caplog.text


def test_interrupt_leaves_the_loop_usable(loop):
    def interrupt():
        raise KeyboardInterrupt

    ran = []
    loop.call_soon(interrupt)
    loop.call_soon(ran.append, 1)

    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()
    drain(loop)

    assert ran == [1]


def test_task_that_exits_does_not_stop_the_clean_up():
    ended = []

    async def clean_up():
        try:
            await asyncio.sleep(100)
        finally:
            await asyncio.sleep(1)
            ended.append(True)

    async def main():
        task = asyncio.create_task(clean_up())
        await asyncio.sleep(1)
        assert not task.done()
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        run(main())

    assert ended == [True]


# The life of a loop.


def test_leftover_tasks_are_cancelled_in_the_order_they_were_created():
    ended = []

    async def wait_long(number):
        try:
            await asyncio.sleep(1000)
        finally:
            ended.append(number)

    async def main():
        asyncio.get_running_loop().kept = [asyncio.create_task(wait_long(number)) for number in range(50)]
        await asyncio.sleep(1)

    run(main())

    assert ended == list(range(50))


def test_leftover_task_that_fails_while_cancelled_is_reported(caplog):
    async def fail_late():
        try:
            await asyncio.sleep(1000)
        finally:
            raise ValueError("while leaving")

    async def main():
        asyncio.get_running_loop().kept = asyncio.create_task(fail_late(), name="leaver")
        await asyncio.sleep(1)

    run(main())

    assert "leaver" in caplog.text
    assert "while leaving" in caplog.text


def test_ended_tasks_are_forgotten(loop):
    async def main():
        for _ in range(100):
            await asyncio.create_task(asyncio.sleep(0.001))
        return len(loop._tasks)

    assert loop.run_until_complete(main()) <= 2


def test_error_of_the_main_coroutine_is_raised():
    async def main():
        raise LookupError("nobody")

    with pytest.raises(LookupError, match="nobody"):
        run(main())


def test_stop_ends_after_the_callbacks_that_are_ready(loop):
    ran = []
    loop.call_soon(loop.stop)
    loop.call_soon(lambda: (ran.append("ready"), loop.call_soon(ran.append, "later")))

    loop.run_forever()

    assert ran == ["ready"]
    assert not loop.is_running()


def test_stopping_before_the_future_is_done_is_an_error(loop):
    future = loop.create_future()
    loop.call_later(1.0, loop.stop)

    with pytest.raises(RuntimeError, match="stopped before"):
        loop.run_until_complete(future)


def test_future_that_is_done_is_returned_without_time_passing(loop):
    future = loop.create_future()
    future.set_result("ready")
    loop.call_later(5.0, print)

    assert loop.run_until_complete(future) == "ready"
    assert loop.time() == 0.0


def test_loop_in_a_loop_is_refused(loop):
    async def main():
        with pytest.raises(RuntimeError, match="await instead"):
            run(asyncio.sleep(0))
        with pytest.raises(RuntimeError, match="running"):
            loop.run_forever()
        with pytest.raises(RuntimeError, match="running"):
            loop.close()

    loop.run_until_complete(main())


def test_closed_loop_takes_nothing(loop):
    loop.close()
    loop.close()
    coroutine = asyncio.sleep(0)

    for use in (
        lambda: loop.call_soon(print),
        lambda: loop.call_later(1, print),
        lambda: loop.create_task(coroutine),
        loop.run_forever,
    ):
        with pytest.raises(RuntimeError, match="closed"):
            use()
    coroutine.close()

    assert loop.is_closed()


def test_debug_mode_can_be_switched(loop):
    loop.set_debug(True)
    assert loop.get_debug()

    loop.set_debug(False)
    assert not loop.get_debug()


TRACE = """
import asyncio, random
from simulations.virtual_loop import run

async def main():
    loop, rng, trace = asyncio.get_running_loop(), random.Random(7), []
    async def node(name):
        for _ in range(20):
            await asyncio.sleep(rng.choice((0, 0.001, rng.random())))
            trace.append((loop.now_us, name))
    await asyncio.gather(*(node(name) for name in sorted({"a", "b", "c", "d"})))
    return trace

print(run(main()))
"""


def test_same_program_gives_the_same_trace_in_another_process_with_another_hash_seed():
    root = Path(__file__).parents[2]
    traces = [
        subprocess.run(
            [sys.executable, "-c", TRACE],
            cwd=root,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    ]

    assert traces[0] == traces[1]
    assert len(traces[0]) > 1000
