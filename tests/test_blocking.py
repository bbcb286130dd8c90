from __future__ import annotations

import _thread
import asyncio
import concurrent.futures
import contextvars
import inspect
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import synapse_p2p
from synapse_p2p import ConfigError, PeerUnavailable, RemoteError, Server, SynapseError, Timeout
from synapse_p2p.blocking import Client, LoopThread

HERE = "write something else"


@pytest.fixture
def server() -> Iterator[Server]:
    """A server in a loop and a thread of its own."""
    server = Server(port=0)

    @server.endpoint("sum")
    async def add(a: int, b: int, scale: int = 1) -> int:
        return (a + b) * scale

    hanging: list[int] = []

    @server.endpoint()
    async def hang() -> None:
        hanging.append(1)
        await asyncio.Event().wait()

    @server.endpoint()
    async def hanging_count() -> int:
        return len(hanging)

    with LoopThread() as host:
        host.run(server.start, instead=HERE)
        yield server
        host.run(lambda: server.stop(grace=0), instead=HERE)


def run_program(program: str, server: Server) -> subprocess.CompletedProcess[str]:
    """Run it as its author would while developing: every warning is an error, and shown."""
    start = f"""
import os, threading
from synapse_p2p import SynapseError
from synapse_p2p.blocking import Client
client = Client(port={server.port})
"""
    # Python 3.12 and newer warn of every fork in a process with threads.
    options = ["-X", "dev", "-W", "error", "-W", "ignore:This process:DeprecationWarning"]
    arguments = [sys.executable, *options, "-c", start + textwrap.dedent(program)]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)


def test_a_call_returns_what_the_remote_function_returns(server: Server):
    with Client(port=server.port) as client:
        assert client.call("sum", 2, 3, scale=2) == 10

    assert client.call("_synapse.ping") == "pong"


def test_failures_are_those_of_the_async_client(server: Server):
    client = Client(port=server.port)

    with pytest.raises(RemoteError, match="Unregistered endpoint called: nope"):
        client.call("nope")
    with pytest.raises(Timeout, match=r"did not answer hang in the time given"):
        client.with_options(timeout_s=0.05).call("hang")
    with pytest.raises(ConfigError, match="set"):
        client.call("sum", {1}, 2)
    with pytest.raises(ConfigError, match="above 0"):
        client.with_options(timeout_s=0)
    with pytest.raises(PeerUnavailable, match="cannot be reached"):
        Client(port=1).call("_synapse.ping")


def test_every_method_of_the_async_client_is_here_with_the_same_parameters():
    twin = synapse_p2p.Client
    public = {name for name, member in vars(twin).items() if inspect.isfunction(member) and name[0] != "_"}

    def parameters(function: Any) -> Any:
        return inspect.signature(function).parameters

    assert public == {"call", "close", "stream", "with_options"}
    assert all(parameters(getattr(Client, name)) == parameters(getattr(twin, name)) for name in public)
    assert parameters(Client) == parameters(twin)


def test_a_setting_made_where_it_has_no_effect_is_an_error():
    client = Client()

    with pytest.raises(AttributeError):
        client.timeout = 5  # type: ignore[attr-defined]


async def test_a_call_inside_a_running_loop_names_the_async_twin():
    with pytest.raises(ConfigError, match=r"await synapse_p2p\.Client\(\.\.\.\)\.call"):
        Client().call("_synapse.ping")


def test_threads_and_clients_share_one_loop_thread(server: Server):
    Client(port=server.port).call("_synapse.ping")
    before = set(threading.enumerate())

    with concurrent.futures.ThreadPoolExecutor(8, thread_name_prefix="caller") as pool:
        clients = [Client(port=server.port) for _ in range(8)]
        sums = list(pool.map(lambda index: clients[index % 8].call("sum", index, index), range(64)))
        started = set(threading.enumerate()) - before

    assert sums == [2 * index for index in range(64)]
    assert started
    assert all(thread.name.startswith("caller") for thread in started)


def test_a_plain_handler_may_make_blocking_calls(server: Server):
    @server.endpoint()
    def twice(a: int) -> int:
        return Client(port=server.port).call("sum", a, a)

    assert Client(port=server.port).call("twice", 21) == 42


def test_what_runs_sees_the_context_variables_of_its_caller():
    depth: contextvars.ContextVar[int] = contextvars.ContextVar("depth", default=0)

    async def read() -> int:
        return depth.get()

    with LoopThread() as loop_thread:
        depth.set(3)

        assert loop_thread.run(read, instead=HERE) == 3


def test_a_loop_thread_leaves_the_current_loop_of_its_callers_alone(monkeypatch: pytest.MonkeyPatch):
    made_current: list[object] = []
    monkeypatch.setattr(asyncio.events, "set_event_loop", made_current.append)

    with LoopThread() as loop_thread:
        loop_thread.run(lambda: asyncio.sleep(0), instead=HERE)

    assert made_current == []


@pytest.fixture
def interruptible():
    """As in a terminal: who is started in the background is not, and would wait here for ever."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_cancels_what_it_interrupts():
    was_cancelled = threading.Event()
    caller = threading.get_ident()

    async def wait() -> None:
        while sys._current_frames()[caller].f_code.co_name != "wait":  # noqa: ASYNC110 - no event tells it
            await asyncio.sleep(0)
        _thread.interrupt_main()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            was_cancelled.set()
            raise

    with LoopThread() as loop_thread:
        with pytest.raises(KeyboardInterrupt):
            loop_thread.run(wait, instead=HERE)

        assert was_cancelled.wait(10)


def test_closing_ends_the_calls_that_run_and_refuses_new_ones():
    loop_thread, has_begun = LoopThread(), threading.Event()

    async def wait() -> None:
        has_begun.set()
        await asyncio.Event().wait()

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(loop_thread.run, wait, instead=HERE)
        assert has_begun.wait(10)
        loop_thread.close()
        with pytest.raises(SynapseError, match="was closed while this one ran"):
            waiting.result(10)

    with pytest.raises(ConfigError, match="are over"):
        loop_thread.run(wait, instead=HERE)
    loop_thread.close()


def test_one_that_never_ran_closes_without_a_thread():
    before = threading.active_count()

    with LoopThread():
        assert threading.active_count() == before


def test_the_interpreter_ends_in_silence_after_calls(server: Server):
    result = run_program("print(client.call('_synapse.ping'))", server)

    assert (result.returncode, result.stdout, result.stderr) == (0, "pong\n", "")


def test_the_interpreter_ends_in_silence_while_a_daemon_thread_calls(server: Server):
    program = """
        def hang():
            try:
                client.call("hang")
            except SynapseError:
                pass

        threading.Thread(target=hang, daemon=True).start()
        while not client.call("hanging_count"):
            pass
    """

    result = run_program(program, server)

    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_a_call_at_the_very_end_of_the_interpreter_says_that_it_is_too_late(server: Server):
    program = """
        import atexit

        @atexit.register  # before the first call, so it runs when the thread has ended
        def call_late():
            try:
                client.call("_synapse.ping")
            except SynapseError as error:
                print(error)

        client.call("_synapse.ping")
    """

    result = run_program(program, server)

    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.endswith("or the interpreter is at its end\n")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_is_told_to_make_its_own_client(server: Server):
    program = f"""
        client.call("_synapse.ping")
        child = os.fork()
        if child == 0:
            try:
                client.call("_synapse.ping")
            except SynapseError as error:
                print(error)
            print(Client(port={server.port}).call("_synapse.ping"), "in the child", flush=True)
            raise SystemExit
        status = os.waitpid(child, 0)[1]
        print(client.call("_synapse.ping"), "in the parent,", status)
    """

    result = run_program(program, server)

    assert (result.returncode, result.stderr) == (0, "")
    first, *later = result.stdout.splitlines()
    assert first.endswith("make a new synapse_p2p.blocking.Client after the fork")
    assert later == ["pong in the child", "pong in the parent, 0"]
