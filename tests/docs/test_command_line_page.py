"""The commands of docs/how-to/command_line.md, typed as a reader would, beside a node that runs; and its tables."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from synapse_p2p.apps.cli.settings import settle
from tests.cli.typing_commands import Typed, typed, up

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "command_line.md").read_text(encoding="utf-8")
PROGRAM = re.compile(r"```python\n# (\S+\.py)\n(.*?)```", re.DOTALL)
CONSOLE = re.compile(r"```console\n(.*?)```", re.DOTALL)
COMMAND = re.compile(r"^\$ synapse (.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)
DIFFERS = [
    (re.compile(r"[0-9a-f]{64}"), "ID"),
    (re.compile(r"\b[0-9a-f]{16}\b"), "ID"),
    (re.compile(r"127\.0\.0\.1:\d+"), "ADDRESS"),
    (re.compile(r"\b\d+ (ms|s|min)\b"), r"N \1"),
    (re.compile(r"key kept in .*"), "key kept in FOLDER"),
    (re.compile(r"python -m synapse_p2p"), "synapse"),
    (re.compile(r" +"), " "),
]


def lasting(printed: str) -> list[str]:
    """What is printed without what differs from run to run."""
    for pattern, stands_for in DIFFERS:
        printed = pattern.sub(stands_for, printed)
    return printed.strip().splitlines()


def on_screen(shown: Typed) -> list[list[str]]:
    """What a terminal has of it: both outputs, in either order."""
    return [lasting(shown.err + shown.out), lasting(shown.out + shown.err)]


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
def test_every_command_prints_what_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    programs = dict(PROGRAM.findall(PAGE))
    (tmp_path / "reviewer.py").write_text(programs["reviewer.py"], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (first, *others) = [COMMAND.findall(block) for block in CONSOLE.findall(PAGE)]
    (begin, promised) = first[0]

    with up(tmp_path, *shlex.split(begin)[1:]) as node:
        node.read_until("(leaves the swarm)")
        shown = [(command, said, typed(*shlex.split(command))) for block in others for command, said in block]

    assert lasting(node.text) == lasting(promised)
    assert len(shown) >= 7
    for command, said, printed in shown:
        assert lasting(said) in on_screen(printed), command


def test_the_page_has_every_command_and_every_setting():
    listed = re.findall(r"^  (\S+)  ", typed("--help").out.partition("Commands:\n")[2], re.MULTILINE)
    rows = re.findall(r"^\| `([a-z]+)", PAGE, re.MULTILINE)
    variables = set(re.findall(r"SYNAPSE_[A-Z_]+", PAGE))
    shown = "".join(typed(command, "--help").out for command in listed if command != "simulate")
    settings = re.findall(r"^\| `--([a-z-]+)` \| `SYNAPSE", PAGE, re.MULTILINE)

    assert set(listed) <= set(rows)
    assert variables == set(re.findall(r"SYNAPSE_[A-Z_]+", shown)) | {"SYNAPSE_CONFIG"}
    assert len(settings) == 7
    for name in settings:
        value = ["a:1"] if name == "seed" else 3 if name == "timeout" else "x"
        assert settle({name: value}, {}) != settle({}, {}), name
