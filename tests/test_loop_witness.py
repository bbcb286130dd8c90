import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from synapse_p2p.loop_witness import LOOK_S, LoopWitness, function_at_work

BEAT_S = 0.1


class Handlers:
    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def call_a_library(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            json.loads("[" + "1," * 10_000 + "1]")


@pytest.fixture
def witness():
    witness = LoopWitness(BEAT_S)
    yield witness
    witness.stop()


@pytest.mark.parametrize("name", ["sleep", "call_a_library"])
def test_the_function_that_blocked_is_named_with_its_line(witness: LoopWitness, name: str):
    getattr(Handlers(), name)(BEAT_S + 4 * LOOK_S)

    seen = witness.on_beat()

    assert seen is not None
    assert seen.startswith(f"Handlers.{name} (test_loop_witness.py:")
    assert witness.on_beat() is None  # it is told once


def test_while_the_loop_comes_round_nothing_is_seen(witness: LoopWitness):
    for _ in range(20):
        time.sleep(BEAT_S / 2)
        assert witness.on_beat() is None


def test_a_stopped_witness_leaves_no_thread():
    before = threading.active_count()
    witness = LoopWitness(BEAT_S)
    assert threading.active_count() == before + 1

    witness.stop()

    assert threading.active_count() == before


def test_a_thread_that_waits_for_events_is_at_work_at_nothing():
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        assert thread.ident is not None
        until = time.monotonic() + 10
        while (frame := sys._current_frames()[thread.ident]).f_code.co_name != "select":
            assert time.monotonic() < until
        at_work = function_at_work(frame)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

    assert at_work is None


def test_a_process_that_was_stopped_accuses_nobody():
    program = (
        "import asyncio\n"
        "from synapse_p2p.loop_witness import LoopWitness\n"
        "async def main():\n"
        "    witness = LoopWitness(0.1)\n"
        "    print('ready', flush=True)\n"
        "    for _ in range(15):\n"
        "        await asyncio.sleep(0.1)\n"
        "        if seen := witness.on_beat(): print(seen)\n"
        "    witness.stop()\n"
        "asyncio.run(main())"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(1.5)
        os.kill(process.pid, signal.SIGCONT)
        said, _ = process.communicate(timeout=30)

    assert (process.returncode, said) == (0, "")
