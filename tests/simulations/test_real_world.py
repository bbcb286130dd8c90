"""What is kept out of a simulation, and what stays as it was: other threads, other people's replacements, the rest."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import queue
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from random import choice
from time import sleep

import pytest

from simulations import real_world
from simulations.real_world import KeptOut, NotRepeatableWarning, NotSimulated
from simulations.virtual_loop import VirtualLoop, run

HERE = Path(__file__)


def in_simulation(function):
    """The result of a plain function that a coroutine of a simulation calls."""

    async def main():
        return function()

    return run(main())


def as_they_are():
    """Every function that a run replaces, and the names that this module has for two of them."""
    return [*(getattr(patch.owner, patch.name) for patch in real_world._patches._all), sleep, choice]


def bound_socket():
    with socket.socket() as endpoint:
        endpoint.bind(("127.0.0.1", 0))


def connected_socket():
    with socket.socket() as endpoint:
        endpoint.connect(("127.0.0.1", 9))


def sent_datagram():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as endpoint:
        endpoint.sendto(b"", ("127.0.0.1", 9))


def work_in_pool():
    with ThreadPoolExecutor(1) as pool:
        pool.submit(os.getpid)


def work_in_processes():
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(os.getpid)


REFUSED = [
    (lambda: time.sleep(0), "time.sleep", "asyncio.sleep"),
    (lambda: sleep(0), "time.sleep", "asyncio.sleep"),
    (lambda: asyncio.to_thread(os.getpid), "asyncio.to_thread", "call the function directly"),
    (lambda: threading.Thread(target=print).start(), "threading.Thread.start", "call the function directly"),
    (lambda: threading.Timer(0, print).start(), "threading.Thread.start", "call the function directly"),
    (work_in_pool, "ThreadPoolExecutor.submit", "call the function directly"),
    (lambda: multiprocessing.Process(target=print).start(), "BaseProcess.start", "leave processes"),
    (lambda: subprocess.Popen(["true"]), "subprocess.Popen", "leave processes"),
    (lambda: subprocess.run(["true"], check=True), "subprocess.Popen", "leave processes"),
    (lambda: os.system("true"), "system", "leave processes"),
    (lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL), "signal.signal", "let the scenario stop"),
    (connected_socket, "socket.socket.connect", "simulations.network"),
    (bound_socket, "socket.socket.bind", "simulations.network"),
    (sent_datagram, "socket.socket.sendto", "simulations.network"),
    (lambda: socket.create_connection(("127.0.0.1", 9)), "socket.getaddrinfo", "simulations.network"),
    (lambda: socket.gethostbyname("localhost"), "socket.gethostbyname", "simulations.network"),
]
if hasattr(os, "fork"):
    REFUSED.append((lambda: os.fork(), "fork", "leave processes"))


@pytest.mark.parametrize(("reach_out", "what", "fix"), REFUSED)
def test_reaching_out_without_the_loop_is_refused_with_the_call_and_the_fix(reach_out, what, fix):
    with pytest.raises(NotSimulated) as caught:
        in_simulation(reach_out)

    assert caught.value.what.endswith(f"{what}()")
    assert caught.value.fix.startswith(fix) or fix in caught.value.fix
    assert str(caught.value) == f"{caught.value.what} reaches outside of the simulation: {caught.value.fix}"


def test_pool_of_processes_starts_nothing():
    with pytest.raises(NotSimulated):
        in_simulation(work_in_processes)


def test_pool_that_has_idle_threads_already_takes_no_work():
    with ThreadPoolExecutor(1) as pool:
        pool.submit(os.getpid).result()

        with pytest.raises(NotSimulated, match="submit"):
            in_simulation(lambda: pool.submit(os.getpid))


@pytest.mark.parametrize("pool", [None, ThreadPoolExecutor(1)], ids=["default pool", "own pool"])
def test_thread_for_a_function_of_the_user_is_refused(pool):
    async def main():
        with pytest.raises(NotSimulated, match=r"run_in_executor\(\) .*call the function directly"):
            await asyncio.get_running_loop().run_in_executor(pool, os.getpid)

    run(main())


# What a run leaves behind.


def fails():
    raise ZeroDivisionError


def exits():
    raise SystemExit(1)


@pytest.mark.parametrize("body", [lambda: None, fails, exits, lambda: asyncio.get_running_loop().stop()])
def test_after_a_run_everything_is_as_it_was_however_the_run_ended(body):
    before, during = as_they_are(), []

    with contextlib.suppress(ZeroDivisionError, SystemExit, RuntimeError):
        in_simulation(lambda: (during.extend(as_they_are()), body()))

    assert as_they_are() == before
    assert not any(new is old for new, old in zip(during, before, strict=True))
    assert "connect" not in vars(socket.socket)
    sleep(0)


def test_runs_may_lie_in_each_other_and_the_outer_one_stays_closed():
    before = as_they_are()

    with KeptOut():
        with KeptOut(), pytest.raises(NotSimulated):
            sleep(0)
        with pytest.raises(NotSimulated):
            sleep(0)

    sleep(0)
    assert as_they_are() == before


def test_another_thread_reaches_the_real_world_during_a_run():
    asked, answers = queue.SimpleQueue(), queue.SimpleQueue()

    def work():
        asked.get()
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                answers.put((time.sleep(0), sleep(0), time.time() > 0, choice([7]), os.system("true")))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        answer = in_simulation(lambda: (asked.put(None), answers.get(timeout=30))[1])
    finally:
        asked.put(None)
        thread.join()

    assert answer == (None, None, True, 7, 0)


def test_two_threads_may_simulate_at_once_and_the_last_to_end_clears_up():
    before = as_they_are()
    is_in, may_end = threading.Event(), threading.Event()
    refused = []

    def simulate():
        def body():
            is_in.set()
            may_end.wait(30)
            with pytest.raises(NotSimulated):
                sleep(0)
            refused.append(True)

        in_simulation(body)

    thread = threading.Thread(target=simulate)
    thread.start()
    is_in.wait(30)

    in_simulation(lambda: None)
    sleep(0)
    may_end.set()
    thread.join()

    assert refused == [True]
    assert as_they_are() == before


def test_what_somebody_has_replaced_before_stays_theirs(monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1234.5)

    assert in_simulation(lambda: time.time()) == 1234.5
    assert time.time() == 1234.5


def test_what_somebody_replaces_during_a_run_stays_theirs(monkeypatch):
    def own(seconds):
        return "own"

    in_simulation(lambda: monkeypatch.setattr(time, "sleep", own))

    assert time.sleep is own

    monkeypatch.undo()  # puts back what it found, which was the replacement: it lets everything through
    time.sleep(0)
    time.sleep = sleep


def test_replacement_that_was_kept_does_its_work_after_the_run():
    kept = in_simulation(lambda: time.time)

    assert kept() == pytest.approx(time.time(), abs=60)


# What is told of.


def draw_again_and_again():
    return [random.random() for _ in range(20)]


CLOCKS_AND_CHANCE = [
    (lambda: time.time(), "time.time", "loop"),
    (lambda: time.time_ns(), "time.time_ns", "loop"),
    (lambda: time.monotonic(), "time.monotonic", "loop"),
    (lambda: time.perf_counter(), "time.perf_counter", "loop"),
    (lambda: time.perf_counter_ns(), "time.perf_counter_ns", "loop"),
    (lambda: date.today(), "time.time", "loop"),
    (lambda: datetime.today(), "time.time", "loop"),
    (draw_again_and_again, "random.random", "Random(seed)"),
    (lambda: random.shuffle([1, 2]), "random.shuffle", "Random(seed)"),
    (lambda: choice([1, 2]), "random.choice", "Random(seed)"),
    (lambda: sorted([2, 1], key=lambda _: random.getrandbits(8)), "random.getrandbits", "Random(seed)"),
    (lambda: uuid.uuid4(), "uuid.uuid4", "UUID"),
]


@pytest.mark.parametrize(("read", "what", "fix"), CLOCKS_AND_CHANCE)
def test_clock_and_chance_of_the_process_get_one_warning_at_the_line_that_used_them(read, what, fix):
    with pytest.warns(NotRepeatableWarning) as told:
        in_simulation(read)

    (warning,) = told
    assert str(warning.message).startswith(f"{what}() ")
    assert fix in str(warning.message)
    assert Path(warning.filename) == HERE
    assert warning.lineno >= read.__code__.co_firstlineno


def test_what_the_guide_says_in_place_of_datetime_now_repeats_and_is_not_told_of():
    async def main():
        await asyncio.sleep(90)
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=asyncio.get_running_loop().time())

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, again = run(main()), run(main())

    assert first == again == datetime(2026, 1, 1, 0, 1, 30, tzinfo=UTC)
    guide = Path(real_world.__file__).parents[1] / "docs" / "how-to" / "simulate.md"
    cure = "`datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=asyncio.get_running_loop().time())`"
    assert cure in guide.read_text(encoding="utf-8")


def test_each_run_tells_once_and_each_call_for_itself():
    loop = VirtualLoop()

    async def main():
        for _ in range(3):
            time.time()
            random.random()
            await asyncio.sleep(1)

    with pytest.warns(NotRepeatableWarning) as told:
        loop.run_until_complete(main())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop.run_until_complete(main())
    with pytest.warns(NotRepeatableWarning) as told_again:
        run(main())
    loop.close()

    assert len(told) == len(told_again) == 2


def test_warning_that_is_an_error_is_raised_in_the_handler():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(NotRepeatableWarning, match=r"time\.time\(\)"):
            in_simulation(lambda: time.time())


def test_seeded_generators_and_libraries_are_not_told_of():
    def body():
        own = random.Random(7)
        random.seed(7)
        logging.getLogger(__name__).warning("its record has the real time")
        return own.random(), own.choice([1])

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        in_simulation(body)


def test_nothing_is_told_outside_of_a_run():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        time.time()
        random.random()


def test_program_given_on_the_command_line_is_the_users():
    program = (
        "import asyncio\nfrom time import time, sleep\nfrom simulations.virtual_loop import run\n"
        "async def main():\n    time()\n    sleep(1)\n"
        "run(main())"
    )

    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=HERE.parents[2])

    assert "<string>:5: NotRepeatableWarning: time.time()" in ended.stderr
    assert "NotSimulated: time.sleep()" in ended.stderr
