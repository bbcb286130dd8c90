"""The programs of README.md, docs/how-to/rpc.md and the tutorial's two terminals, run as a reader would, on free ports.

What a program prints is compared with the text block that follows it on the page.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README, RPC_PAGE = ROOT / "README.md", ROOT / "docs" / "how-to" / "rpc.md"
TUTORIAL = ROOT / "docs" / "tutorial" / "first_swarm.md"
FIXED_PORTS = ("9999", "9998", "9997")
PROGRAM = re.compile(r"```python\n# (\S+\.py)\n(.*?)```", re.DOTALL)
OUTPUT = re.compile(r"```text\n(.*?)```", re.DOTALL)
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDEVMODE"}


def write_programs(page: Path, folder: Path) -> list[str]:
    """Write each program of a page to `folder` under the name in its first line, with ports that are free here."""
    text = page.read_text(encoding="utf-8")
    for port in FIXED_PORTS:
        text = text.replace(port, str(free_port()))
    programs = PROGRAM.findall(text)
    for name, program in programs:
        (folder / name).write_text(program, encoding="utf-8")
    return [name for name, _ in programs]


def promised_output(page: Path, program: str) -> list[str]:
    """The lines that a page says a program prints: those of the text block between it and the next program."""
    text = page.read_text(encoding="utf-8")
    start = next(match.end() for match in PROGRAM.finditer(text) if match.group(1) == program)
    following = PROGRAM.search(text, start)
    output = OUTPUT.search(text, start, following.start() if following else len(text))
    assert output is not None, f"{page.name} does not say what {program} prints"
    return output.group(1).splitlines()


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


def output_of(program: Path) -> list[str]:
    ended = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, timeout=60, check=True, env=ENVIRONMENT
    )
    assert ended.stderr == ""
    return ended.stdout.splitlines()


def test_two_agents_and_a_question(tmp_path: Path):
    write_programs(README, tmp_path)

    with running(tmp_path / "first.py", until="joined"):
        with running(tmp_path / "second.py", until="joined      1 of 1 seeds"):
            with_both = output_of(tmp_path / "ask.py")
        with_one = output_of(tmp_path / "ask.py")

    promised = promised_output(README, "ask.py")
    assert sorted(with_both[:2]) == sorted(promised[:2])
    assert with_both[2:] in ([promised[2]], ["Rita answered: Reviewed: Review this diff"])
    assert with_one == [
        "found Rita ('python', 'code-review')",
        "Rita answered: Reviewed: Review this diff",
    ]


def test_two_terminals_of_the_tutorial(tmp_path: Path):
    write_programs(TUTORIAL, tmp_path)

    with running(tmp_path / "kitchen.py", until="joined"):
        output = output_of(tmp_path / "table.py")

    assert output == promised_output(TUTORIAL, "table.py")


def test_functions_over_tcp(tmp_path: Path):
    write_programs(README, tmp_path)

    with running(tmp_path / "server.py", until="still here") as startup:
        output = output_of(tmp_path / "client.py")

    assert startup.startswith("Listening on 127.0.0.1:")
    assert "- add\n- text.shout\n- admin.reset\n" in startup
    assert "Background Tasks:\n- heartbeat (5s)\n" in startup
    assert output == promised_output(README, "client.py")


def test_an_agent_without_a_swarm(tmp_path: Path):
    write_programs(README, tmp_path)

    with running(tmp_path / "reviewer.py", until="- _agent.ask"):
        output = output_of(tmp_path / "delegate.py")

    assert output == promised_output(README, "delegate.py")


@pytest.mark.parametrize(
    ("page", "program"),
    [
        (README, "lifecycle.py"),
        (RPC_PAGE, "who.py"),
        (RPC_PAGE, "failures.py"),
        (RPC_PAGE, "ticks.py"),
        (RPC_PAGE, "json_wire.py"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.stem,
)
def test_program_prints_what_the_page_says(tmp_path: Path, page: Path, program: str):
    write_programs(page, tmp_path)

    output = output_of(tmp_path / program)

    assert output == promised_output(page, program)


def test_swarm_is_the_same_class_under_both_imports():
    import dht
    import synapse_p2p

    assert synapse_p2p.Swarm is dht.Swarm
    assert synapse_p2p.DHTNode is dht.DHTNode
