"""On a real machine: agents as processes, their introduction, signals, and addresses learned from peers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dht import Swarm, SwarmConfig
from synapse_p2p import AgentNode

ROOT = Path(__file__).parents[2]
PATIENCE_S = 20  # for a loaded machine; a process is up within a second
PROGRAM = """
import sys
from synapse_p2p import AgentNode
from dht import Swarm

name, capability, *seeds = sys.argv[1:]
agent = AgentNode(name=name, role="worker", capabilities=[capability])

@agent.task_handler
async def handle(task: str, context: dict):
    return task

Swarm(agent, bootstrap=seeds, network="it's a test").run()
"""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")


class Process:
    """An agent in a process of its own; what it said so far is in `text`."""

    def __init__(self, *arguments: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        self.popen = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            cwd=ROOT,
        )
        self.text = ""
        self.watchdog = threading.Timer(2 * PATIENCE_S, self.popen.kill)  # a reader of a silent process waits for ever
        self.watchdog.start()

    def read_until(self, pattern: str) -> str:
        """The first group of the pattern, once the process has said it."""
        assert self.popen.stdout is not None
        while (found := re.search(pattern, self.text)) is None:
            line = self.popen.stdout.readline()
            assert line, f"it ended before it said {pattern!r}:\n{self.text}"
            self.text += line
        return found[1]

    def end(self, number: signal.Signals) -> tuple[int, float]:
        """The exit code, and how long the end took."""
        started_at = time.monotonic()
        self.popen.send_signal(number)
        rest, _ = self.popen.communicate(timeout=PATIENCE_S)
        self.text += rest
        return self.popen.returncode, time.monotonic() - started_at


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[Process]:
    process = Process(*arguments)
    try:
        yield process
    finally:
        process.watchdog.cancel()
        if process.popen.poll() is None:
            process.popen.kill()
            process.popen.communicate()


def test_two_agents_meet_are_found_by_the_printed_command_and_end_cleanly_on_a_signal():
    with running("Reviewer", "code-review") as first:
        seed = first.read_until(r"listening   (\S+)")
        with running("Painter", "painting", seed) as second:
            joined = second.read_until(r"joined      (.+)")
            commands = [process.read_until(r"  (python -c .+)") for process in (first, second)]
            found = [run_command(command) for command in commands]
            ends = [second.end(signal.SIGTERM), first.end(signal.SIGINT)]

    assert joined == "1 of 1 seeds"
    assert first.read_until(r"joined      (.+)") == "no seeds: a first node"
    assert re.fullmatch(r"[0-9a-f]{64}", first.read_until(r"id          (\S+)"))
    assert "Reviewer (worker)" in found[0]
    assert "Painter (worker)" in found[1]
    for process, (code, took_s) in zip((second, first), ends, strict=True):
        assert code == 0, process.text
        assert took_s < 8  # the grace of 5 s is for calls that run, and none does
        assert "Traceback" not in process.text
        assert "open swarm" not in process.text


def run_command(command: str) -> str:
    """What the line prints when it is typed into a shell where `python` is this one."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = command.replace("python ", shlex.quote(sys.executable) + " ", 1)
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, timeout=PATIENCE_S, env=environment, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_run_inside_a_loop_names_what_to_await_instead():
    async def main() -> None:
        Swarm().run()

    with pytest.raises(ValueError, match=r"await swarm\.start\(\)"):
        asyncio.run(main())


async def test_a_node_on_all_addresses_advertises_what_its_first_peer_says_and_is_found_from_then_on():
    agent = AgentNode(name="Reviewer", role="reviewer", capabilities=["python"])
    config = SwarmConfig(watch_address_s=0.05)
    async with Swarm(agent, listen="0.0.0.0:0", config=config) as swarm:
        port = agent.port
        before = swarm.status()

        async with Swarm(bootstrap=[f"127.0.0.1:{port}"]) as client:
            async with asyncio.timeout(PATIENCE_S):
                while not (found := await client.find("python")):
                    continue

        assert before.advertised == ()
        assert before.listening == (f"0.0.0.0:{port}",)
        assert [agent.addresses for agent in found] == [(f"127.0.0.1:{port}",)]


def test_a_signal_is_heard_while_it_still_joins():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        program = f"""
import threading, os, signal, time
from dht import Swarm
from synapse_p2p import AgentNode
threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
began = time.monotonic()
Swarm(AgentNode(name="a", role="r"), bootstrap=["127.0.0.1:{port}"]).run()
print(time.monotonic() - began)
"""
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)

    assert float(ended.stdout.strip().splitlines()[-1]) < 3.5, "a join that nobody answers takes 5 s"
