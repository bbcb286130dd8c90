"""The commands of docs/how-to/command_line.md, typed as a reader would, beside a node that runs; and its tables."""

from __future__ import annotations

import json
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


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
def test_every_key_that_programs_get_is_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "reviewer.py").write_text(dict(PROGRAM.findall(PAGE))["reviewer.py"], encoding="utf-8")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    typed_of = {
        "find": ["find", "python", "--explain"],
        "describe": ["describe", "python"],
        "ask": ["ask", "python", "Review this"],
        "call": ["call", "here", "add", "2", "3"],
        "doctor": ["doctor"],
        "trace": ["trace", "python"],
        "id": ["id"],
    }

    with up(tmp_path, "--agent", "reviewer:agent", "--json") as node:
        found = {"up": json.loads(node.read_until(r"(?m)^(\{.*\})$"))}
        found |= {command: typed(*arguments, "--json").found for command, arguments in typed_of.items()}
        status = typed("status", "--json").found

    for command, told in found.items():
        listed = [value[0] for name, value in told.items() if name in ("agents", "described", "checks", "keys")]
        assert {*told, *(key for each in listed for key in each)} <= keys_on_the_page(command), command
    assert {"pid", "data_dir"} <= set(status) & keys_on_the_page("status")


def keys_on_the_page(command: str) -> set[str]:
    """What stands beside a command in the table of keys."""
    (row,) = re.findall(rf"^\| `{command}[` ][^|]*\| (.*) \|$", PAGE.partition("| command | keys |")[2], re.MULTILINE)
    return set(re.findall(r"`([a-z_]+)`", row))
