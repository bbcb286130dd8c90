"""How `run` ends: real processes, real signals."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from synapse_p2p.blocking import Client
from synapse_p2p.exceptions import ConfigError, Timeout
from synapse_p2p.server import STOP_GRACE_S
from synapse_p2p.signals import run_program

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no such signals")

SIGNALS = [signal.SIGINT, signal.SIGTERM]
PROGRAM = textwrap.dedent("""
    import asyncio, signal, time
    from synapse_p2p import Server

    app = Server(port=0)

    @app.background(999)
    async def watch():
        try:
            await asyncio.Event().wait()
        finally:
            print("stopping", flush=True)

    @app.endpoint()
    async def patient(seconds):
        print("begun", flush=True)
        await asyncio.sleep(seconds)
        return "answered"

    @app.endpoint()
    async def stubborn(seconds):
        print("begun", flush=True)
        while True:
            try:
                await asyncio.sleep(seconds)
            except asyncio.CancelledError:
                pass

    @app.endpoint()
    def blocking(seconds):
        print("begun", flush=True)
        time.sleep(seconds)

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    app.run()
    print("signals are as before:", before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)])
""")


@dataclass
class Serving:
    """A server in a process of its own."""

    process: subprocess.Popen[str]
    caller: ThreadPoolExecutor
    port: int = 0

    def wait_for(self, wanted: str) -> re.Match[str]:
        """The next line that matches; the server prints it sooner or later."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if found := re.fullmatch(wanted, line.rstrip()):
                return found
        raise AssertionError(f"the server ended and did not print {wanted}")

    def begin_call(self, endpoint: str, *args: object) -> Future[object]:
        """Call in a thread, and return once the handler runs."""
        answer = self.caller.submit(Client(port=self.port).call, endpoint, *args)
        self.wait_for("begun")
        return answer

    def signal_first(self, number: signal.Signals) -> None:
        """Send a signal, and return when the server acts on it."""
        self.process.send_signal(number)
        self.wait_for("stopping")


@contextlib.contextmanager
def serving() -> Iterator[Serving]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDEVMODE"}  # it logs more
    arguments = [sys.executable, "-W", "error", "-u", "-c", PROGRAM]
    with (
        ThreadPoolExecutor(1) as caller,
        subprocess.Popen(
            arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        ) as process,
    ):
        try:
            running = Serving(process, caller)
            running.port = int(running.wait_for(r"Listening on 127\.0\.0\.1:(\d+)")[1])
            yield running
        finally:
            process.kill()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_call_that_runs_is_answered_after_a_signal_and_then_run_returns(number: signal.Signals):
    with serving() as server:
        answer = server.begin_call("patient", 0.3)

        server.signal_first(number)
        out, errors = server.process.communicate(timeout=STOP_GRACE_S)

    assert answer.result(10) == "answered"
    assert out.splitlines()[-1] == "signals are as before: True"
    assert (server.process.returncode, errors) == (0, "")


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("endpoint", ["patient", "stubborn", "blocking"])
def test_a_second_signal_ends_at_once(endpoint: str, number: signal.Signals):
    with serving() as server:
        server.begin_call(endpoint, 600)

        server.signal_first(number)
        server.process.send_signal(number)
        _, errors = server.process.communicate(timeout=STOP_GRACE_S / 2)

    assert (server.process.returncode, errors) == (-number, "")


@pytest.mark.parametrize(("is_installed", "module"), [(True, "uvloop"), (False, "asyncio.unix_events")])
def test_run_takes_the_loop_of_uvloop_where_it_is_installed(is_installed: bool, module: str):
    program = textwrap.dedent("""
        import asyncio, os, signal, sys
        if sys.argv[1] == "False":
            sys.modules["uvloop"] = None  # as if it were not there
        from synapse_p2p import Server

        app = Server(port=0)

        @app.background(999)
        async def tell():
            print("LOOP", type(asyncio.get_running_loop()).__module__, flush=True)
            os.kill(os.getpid(), signal.SIGTERM)

        app.run()
    """)

    ended = subprocess.run(
        [sys.executable, "-c", program, str(is_installed)], capture_output=True, text=True, timeout=60, check=True
    )

    assert f"LOOP {module}\n" in ended.stdout


@pytest.mark.parametrize(
    "error", [OSError(errno.EADDRINUSE, "it is taken"), ConfigError("it is taken"), Timeout("it is taken")]
)
def test_a_mistake_of_the_user_s_ends_the_program_with_a_sentence_alone(error: Exception):
    async def fail(_: asyncio.Event) -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        run_program(fail, instead="")

    assert ended.value.code == "Error: it is taken"
    assert ended.value.__cause__ is error


def test_what_nobody_foresaw_keeps_its_traceback():
    async def fail(_: asyncio.Event) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_program(fail, instead="")


def test_in_a_thread_a_mistake_is_raised_for_nobody_would_see_the_end_of_it():
    async def fail(_: asyncio.Event) -> None:
        raise ConfigError("it is taken")

    with ThreadPoolExecutor(1) as thread:
        assert isinstance(thread.submit(run_program, fail, instead="").exception(), ConfigError)


async def test_in_a_running_loop_a_mistake_is_raised():
    async def never(_: asyncio.Event) -> None:
        raise AssertionError("it was started")

    with pytest.raises(ConfigError, match="in a running one use await x"):
        run_program(never, instead="await x")
