"""Lines of `find` that are read without typer: read as typer reads them, or left to it."""

from __future__ import annotations

import os
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synapse_p2p.apps.cli.quick_find import typed_find
from tests.cli.typing_commands import typed

WORDS = st.sampled_from(["python", "parser>=2,<3", "nlp/", "5", "1.5", "a b", "x=é", "", "-", "--", "-5", "0", "0.05"])
WITH_VALUES = [
    "-w",
    "--where",
    "-n",
    "--limit",
    "--max-age",
    "-s",
    "--seed",
    "--network",
    "--network-key-file",
    "--data-dir",
    "--timeout",
]
FLAGS = ["--probe", "--no-probe", "--explain", "--json", "--jsonl"]
OTHERS = [
    "--help",
    "-h",
    "--nonsense",
    "--limit=5",
    "--where=tier=gold",
    "--network=",
    "-n=5",
    "-n5",
    "--js",
    "--json=1",
]
OPTIONS = st.sampled_from([*WITH_VALUES, *FLAGS, *OTHERS])
LINES = st.lists(st.one_of(st.just("python"), WORDS, OPTIONS), max_size=5)
ENVIRONMENTS = st.dictionaries(
    st.sampled_from(["SEED", "NETWORK", "NETWORK_KEY_FILE", "DATA_DIR", "TIMEOUT", "LISTEN"]).map("SYNAPSE_{}".format),
    st.sampled_from(["", " ", "lab", "127.0.0.1:1 127.0.0.1:2", "5", "0.01", "1.5", "soon"]),
    max_size=3,
)
NOT_SAID: dict[str, Any] = {
    "where": None,
    "limit": None,
    "max_age": None,
    "probe": True,
    "explain": False,
    "seed": None,
    "network": None,
    "network_key_file": None,
    "data_dir": None,
    "timeout": None,
    "json": False,
    "jsonl": False,
}


def read_by_typer(arguments: list[str], environment: dict[str, str]) -> dict[str, Any] | None:
    """What the command `find` is given; None where typer does not come to it."""
    read: list[dict[str, Any]] = []

    def note(_: object, capabilities: list[str], **said: Any) -> None:
        read.append({"capabilities": capabilities, **said})

    clean = {name: value for name, value in os.environ.items() if not name.startswith("SYNAPSE_")}
    with (
        mock.patch.dict(os.environ, clean | environment, clear=True),
        mock.patch("synapse_p2p.apps.cli.searching.find_as_said", note),
        mock.patch("synapse_p2p.apps.cli.entry.typed_find", return_value=None),
    ):
        typed(*arguments)
    return read[0] if read else None


@settings(max_examples=100, deadline=None)
@given(LINES, ENVIRONMENTS)
def test_what_is_read_without_typer_typer_reads_alike(line: list[str], environment: dict[str, str]):
    said = typed_find(["find", *line], environment)

    if said is not None:
        assert NOT_SAID | said == read_by_typer(["find", *line], environment)


@pytest.mark.parametrize(
    "line",
    [
        "find python",
        "find python review --json",
        "find python --limit=3 --where=tier=gold --where=price<5 --timeout=2",
        "find python -w price<5 --where tier=gold -n 3 --max-age 60 --no-probe --explain",
        "find --seed 127.0.0.1:1 -s 127.0.0.1:2 --network lab --network-key-file key --data-dir d --timeout 2.5 x",
    ],
)
def test_common_lines_are_read_without_typer(line: str):
    arguments = line.split()

    said = typed_find(arguments, {"HOME": "/root"})

    assert said is not None
    assert NOT_SAID | said == read_by_typer(arguments, {})


def test_settings_in_the_environment_are_read_and_a_flag_goes_over_them():
    environment = {"SYNAPSE_SEED": "127.0.0.1:1 127.0.0.1:2", "SYNAPSE_NETWORK": "lab", "SYNAPSE_TIMEOUT": "2"}

    said = typed_find(["find", "x", "--network", "home"], environment)

    assert said is not None
    assert (said["seed"], said["network"], said["timeout"]) == (["127.0.0.1:1", "127.0.0.1:2"], "home", 2)
    assert NOT_SAID | said == read_by_typer(["find", "x", "--network", "home"], environment)


@pytest.mark.parametrize(
    "line", ["", "find", "peers", "find --help", "find x -n5", "find x --limit 0", "find x -n 1 -n 2", "find x*"]
)
def test_help_errors_and_rare_forms_are_left_to_typer(line: str):
    assert typed_find(line.split(), {}) is None


def test_a_shell_that_completes_is_left_to_typer():
    assert typed_find(["find", "x"], {"_SYNAPSE_COMPLETE": "complete_bash"}) is None
