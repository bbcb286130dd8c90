"""`python -m simulations`, as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from simulations.__main__ import main
from simulations.scenarios import SCENARIOS, Outcome, Scenario, Settings

ROOT = Path(__file__).parents[2]
RUN = ("run", "lookups", "--nodes", "10", "--lookups", "5", "--json")


def command(*arguments: str, hash_seed: str = "0") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "simulations", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        cwd=ROOT,
    )


def figures_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(arguments) == 0
    return json.loads(capsys.readouterr().out)


def test_one_seed_has_one_digest_in_processes_with_different_hash_seeds():
    runs = [command(*RUN, "--seed", "7", hash_seed=hash_seed) for hash_seed in ("1", "2")]

    first, second = (json.loads(done.stdout) for done in runs)
    for done in runs:
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.count("\n") == 1
    assert first["digest"] == second["digest"]
    assert first["messages"] == second["messages"]


def test_another_seed_or_one_more_node_has_another_digest(capsys: pytest.CaptureFixture[str]):
    digests = {
        figures_of(capsys, *RUN, "--seed", "7")["digest"],
        figures_of(capsys, *RUN, "--seed", "8")["digest"],
        figures_of(capsys, *RUN, "--seed", "7", "--nodes", "11")["digest"],
    }

    assert len(digests) == 3


def test_json_has_what_others_compare(capsys: pytest.CaptureFixture[str]):
    figures = figures_of(capsys, *RUN)

    assert figures.keys() >= {
        "digest",
        "lookups",
        "lookup_success",
        "mean_hops",
        "messages",
        "virtual_s",
        "wall_s",
        "peak_rss_bytes",
    }
    assert (figures["nodes"], figures["lookups"], figures["lookup_success"]) == (10, 5, 1.0)


def test_without_json_the_figures_are_lines_for_people(capsys: pytest.CaptureFixture[str]):
    code = main(["run", "lookups", "--nodes", "3", "--lookups", "2"])

    lines = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert code == 0
    assert lines["lookup_success"] == "1.0"
    assert len(lines["digest"]) == 64


def test_list_names_every_scenario_with_what_it_does(capsys: pytest.CaptureFixture[str]):
    code = main(["list"])

    lines = capsys.readouterr().out.splitlines()
    assert code == 0
    assert [line.split()[0] for line in lines] == list(SCENARIOS)
    assert "strict lookups" in lines[0]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "command"),
        (("walk",), "walk"),
        (("run",), "scenario"),
        (("run", "nothing"), "nothing"),
        (("run", "lookups", "--nodes", "many"), "--nodes"),
        (("run", "lookups", "--nodes", "1"), "--nodes is 1"),
        (("run", "lookups", "--nodes", "99999999"), "--nodes is 99999999"),
        (("run", "lookups", "--lookups", "0"), "--lookups is 0"),
        (("run", "lookups", "--seed"), "--seed"),
        (("run", "lookups", "--colour", "red"), "--colour"),
    ],
)
def test_a_wrong_command_is_one_clear_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], text: str
):
    with pytest.raises(SystemExit) as ended:
        main(arguments)

    said = capsys.readouterr()
    assert ended.value.code == 2
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert said.err.startswith("error: ")
    assert text in said.err


def test_a_run_whose_lookups_fail_exits_with_1_and_says_how_to_see_it_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    async def fail(world: Any, settings: Settings, progress: Any) -> Outcome:
        return Outcome(settings.lookups, 0, [])

    monkeypatch.setitem(SCENARIOS, "lookups", Scenario("lookups", "", fail))

    code = main(["run", "lookups", "--nodes", "3", "--lookups", "2", "--seed", "9", "--json"])

    said = capsys.readouterr()
    assert code == 1
    assert json.loads(said.out)["mean_hops"] is None
    assert "python -m simulations run lookups --nodes 3 --lookups 2 --seed 9" in said.err
