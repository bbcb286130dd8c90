"""Nodes that run as processes, and commands that are typed beside them.

A command runs in this process, for a new one spends a second on imports alone; what a process of its own adds is in
test_entry.py.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from synapse_p2p.apps.cli.entry import main

ROOT = Path(__file__).parents[2]
PATIENCE_S = 30  # for a loaded machine; a node is up within a second
AGENTS = '''
import time
from dataclasses import dataclass
from synapse_p2p import AgentCapability, AgentNode, CallError

review = AgentCapability("code-review", "Reads a diff.", version="2.1", attributes={"price": 3, "lang": ["de", "fr"]},
                         input_schema={"type": "object"})
rita = AgentNode(name="Rita", role="reviewer", description="Reviews code.", capabilities=["python", review])
other = 5

@rita.task_handler
async def handle(task: str, context: dict):
    if task == "fail":
        raise CallError("tired", "not today")
    return {"task": task, "context": context}

@rita.endpoint()
async def add(a: int, b: int) -> int:
    """The sum of two numbers."""
    return a + b

@rita.endpoint(publish=False, allow="operators")
async def reset() -> str:
    return "as new"

def olga():
    agent = AgentNode(name="Olga\\x1b[31m", role="coder", capabilities=["coding"])

    @agent.task_handler
    async def handle(task: str, context: dict):
        yield "thinking"
        yield f"coded {task}"

    return agent
'''


@dataclass(frozen=True, slots=True)
class Typed:
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def found(self) -> Any:
        """What `--json` printed."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        """What `--jsonl` printed."""
        return [json.loads(line) for line in self.out.splitlines()]


def typed(*arguments: str, program: str = "synapse", standard_input: str = "") -> Typed:
    """Type a command, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", [f"/usr/bin/{program}", *arguments]),
        mock.patch.object(sys, "stdin", io.StringIO(standard_input)),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
    return Typed(code, out.getvalue(), err.getvalue())


class Up:
    """A node in a process of its own; `text` is what it said so far."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDEVMODE"}
        environment |= {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        (folder / "agents.py").write_text(AGENTS, encoding="utf-8")
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "synapse_p2p", "up", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            cwd=folder,
        )
        self.text = ""
        self.watchdog = threading.Timer(4 * PATIENCE_S, self.popen.kill)  # a reader of a silent process waits for ever
        self.watchdog.start()

    @property
    def seed(self) -> str:
        """Through which others join it."""
        return self.read_until(r"--seed (\S+)")

    @property
    def data_dir(self) -> str:
        """Where its key is."""
        return self.read_until(r"key kept in (.+)")

    def read_until(self, pattern: str) -> str:
        """The first group of the pattern, once the process has said it."""
        assert self.popen.stdout is not None
        while (found := re.search(pattern, self.text)) is None:
            line = self.popen.stdout.readline()
            assert line, f"it ended before it said {pattern!r}:\n{self.text}"
            self.text += line
        return found[1]

    def kill(self) -> None:
        """No goodbye, no clean-up."""
        self.popen.kill()
        self.popen.communicate()

    def end(self, number: signal.Signals) -> int:
        """The exit code."""
        self.popen.send_signal(number)
        rest, _ = self.popen.communicate(timeout=PATIENCE_S)
        self.text += rest
        return self.popen.returncode


@contextlib.contextmanager
def up(folder: Path, *arguments: str) -> Iterator[Up]:
    """A node until the end of `with`, where it is killed if it has not ended by itself."""
    process = Up(folder, *arguments)
    try:
        yield process
    finally:
        process.watchdog.cancel()
        if process.popen.poll() is None:
            process.kill()
