"""The programs of README.md, run as a reader would type them, on free ports."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDEVMODE"}


def read_programs(folder: Path) -> None:
    """Write each program of the README to `folder` under the name in its first line, with ports that are free here."""
    text = README.read_text(encoding="utf-8")
    for port in ("9999", "9998"):
        text = text.replace(port, str(free_port()))
    programs = re.findall(r"```python\n# (\S+\.py)\n(.*?)```", text, re.DOTALL)
    assert [name for name, _ in programs] == ["first.py", "second.py", "ask.py", "server.py", "client.py"]
    for name, program in programs:
        (folder / name).write_text(program, encoding="utf-8")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running(program: Path, *, until: str):
    """A program in a process of its own, from when it printed `until` on; ended by SIGTERM, with exit code 0."""
    with subprocess.Popen(
        [sys.executable, "-u", str(program)], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as process:
        assert process.stdout is not None
        seen = ""
        while until not in seen:
            line = process.stdout.readline()
            assert line, f"{program.name} ended after {seen!r}"
            seen += line
        try:
            yield seen
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=20)
    assert process.returncode == 0


def output_of(program: Path) -> str:
    return subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, timeout=60, check=True, env=ENVIRONMENT
    ).stdout


def test_two_agents_and_a_question(tmp_path: Path):
    read_programs(tmp_path)

    with running(tmp_path / "first.py", until="joined"):
        with running(tmp_path / "second.py", until="joined      1 of 1 seeds"):
            with_both = output_of(tmp_path / "ask.py")
        with_one = output_of(tmp_path / "ask.py")

    assert sorted(with_both.splitlines()[:2]) == [
        "found Rita ('python', 'code-review')",
        "found Rolf ('code-review',)",
    ]
    assert with_both.splitlines()[2] in (
        "Rita answered: Reviewed: Review this diff",
        "Rolf answered: Looked at: Review this diff",
    )
    assert with_one.splitlines() == [
        "found Rita ('python', 'code-review')",
        "Rita answered: Reviewed: Review this diff",
    ]


def test_functions_over_tcp(tmp_path: Path):
    read_programs(tmp_path)

    with running(tmp_path / "server.py", until="- add") as startup:
        output = output_of(tmp_path / "client.py")

    assert startup.startswith("Listening on 127.0.0.1:")
    assert output.splitlines() == ["5", "['add']"]
