"""The programs under docs/examples, run as their README says, on free ports."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
PORTS = ("9996", "9997", "9998")
# In development mode asyncio would write what it does beside what the programs print.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDEVMODE"}


def printed_by_the_readme() -> dict[str, list[str]]:
    """The lines that the README shows for each program it runs, by the program's path."""
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```console\n\$ python (\S+)\n(.*?)```", text, re.DOTALL)
    return {program: output.splitlines() for program, output in blocks}


def with_free_ports(folder: Path, target: Path) -> Path:
    """A copy of the examples in a folder, with ports that nobody has here."""
    copy = shutil.copytree(folder, target / folder.name)
    with ExitStack() as held:
        probes = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in PORTS]
        ports = {port: str(probe.getsockname()[1]) for port, probe in zip(PORTS, probes, strict=True)}
    for program in copy.glob("*.py"):
        text = program.read_text(encoding="utf-8")
        program.write_text(re.sub("|".join(PORTS), lambda found: ports[found[0]], text), encoding="utf-8")
    return copy


@contextmanager
def running(program: Path) -> Iterator[None]:
    """A server in a process of its own, from when it listens on; ended by a signal, with exit code 0."""
    command = [sys.executable, "-W", "error", "-u", str(program)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("Listening on 127.0.0.1:")
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=20)
    if sys.platform != "win32":  # where the signal is the end of the process at once
        assert process.returncode == 0


def lines_of(program: Path) -> list[str]:
    command = [sys.executable, "-W", "error", str(program)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=ENVIRONMENT)
    assert result.stderr == ""
    return result.stdout.splitlines()


@pytest.mark.parametrize(
    ("folder", "servers", "clients"),
    [
        ("rpc", ["server.py"], ["client.py", "blocking_client.py"]),
        ("agent", ["reviewer.py", "lead.py"], ["ask.py"]),
    ],
)
def test_the_programs_print_what_the_readme_shows(
    folder: str, servers: Sequence[str], clients: Sequence[str], tmp_path: Path
):
    programs, shown = with_free_ports(EXAMPLES / folder, tmp_path), printed_by_the_readme()

    with ExitStack() as served:
        for server in servers:
            served.enter_context(running(programs / server))
        printed = {f"{folder}/{client}": lines_of(programs / client) for client in clients}

    assert printed == {program: shown[program] for program in printed}
    assert {path.name for path in programs.glob("*.py")} == {*servers, *clients}


@pytest.mark.parametrize("folder", ["coding_team", "research", "sensors", "chat", "llm_agent"])
def test_a_program_that_starts_all_it_needs_prints_what_the_readme_shows(folder: str, tmp_path: Path):
    copy = shutil.copytree(EXAMPLES / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))

    assert lines_of(copy / "main.py") == printed_by_the_readme()[f"{folder}/main.py"]


def test_the_readme_links_every_example():
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    linked = {link for link in re.findall(r"\]\(([^)]*)\)", text) if not link.startswith(("..", "#"))}

    files = {path for pattern in ("*/*.py", "*/*.ipynb") for path in EXAMPLES.glob(pattern)}

    assert files
    assert linked == {path.relative_to(EXAMPLES).as_posix() for path in files}
