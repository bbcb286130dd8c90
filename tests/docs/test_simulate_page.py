"""The commands of docs/how-to/simulate.md, run as a reader would type them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from simulations.trace import MAX_TRACED_EVENTS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "simulate.md"
COMMAND = re.compile(r"```console\n\$ python (.*)\n((?:.*\n)*?)```")
# In development mode asyncio would write what it does beside what the commands print.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDEVMODE"} | {"PYTHONPATH": str(ROOT)}
COMMANDS = dict(COMMAND.findall(PAGE.read_text(encoding="utf-8")))
DIFFERS = re.compile(r"^(wall_s|cpu_s|messages_per_s|peak_rss_bytes|python|version|code)( +).*", re.MULTILINE)
# Every change of what nodes say to each other changes these. So of them the page shows an example.
CHANGES = re.compile(r"^(digest|mean_hops|hops|messages|virtual_s)( +).*", re.MULTILINE)
TAKEN = re.compile(r"[\d.,]+ (?:s|MiB)\b|(?<=  )[\d.,]+(?= )")


def lasting(printed: str) -> list[str]:
    """What is printed without what differs from machine to machine, and from one state of the code to the next."""
    without_values = CHANGES.sub(r"\1", DIFFERS.sub(r"\1", printed))
    return [" ".join(TAKEN.sub("", line).split()) for line in without_values.splitlines()]


def test_the_page_shows_each_command():
    assert [command.split()[2] for command in COMMANDS] == ["run", "sweep"]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.split()[2])
def test_command_prints_what_the_page_says(tmp_path: Path, command: str):
    ended = subprocess.run(
        [sys.executable, "-W", "error", *shlex.split(command)],
        capture_output=True,
        text=True,
        timeout=120,
        env=ENVIRONMENT,
        cwd=tmp_path,
    )

    assert (ended.returncode, ended.stderr) == (0, "")
    assert lasting(ended.stdout) == lasting(COMMANDS[command])


def test_the_picture_of_the_page_is_small():
    picture = PAGE.with_name("simulate_circle.png")

    assert f"]({picture.name})" in PAGE.read_text(encoding="utf-8")
    assert picture.stat().st_size < 150 * 1024


def test_the_page_has_the_number_of_events_in_a_trace():
    assert f"last\n{MAX_TRACED_EVENTS:,} events" in PAGE.read_text(encoding="utf-8")
