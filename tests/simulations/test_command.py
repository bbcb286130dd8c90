"""`python -m simulations`, as a user types it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from simulations.__main__ import main
from simulations.scenarios import SCENARIOS, Outcome, Scenario, Settings
from simulations.sweep import CellEnd, sweep

ROOT = Path(__file__).parents[2]
RUN = ("run", "lookups", "--nodes", "10", "--lookups", "5", "--json")


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are drawn in the tests of pictures/, for it takes seconds; here is what a command does besides."""
    monkeypatch.setattr("simulations.__main__._draw", lambda folder, write_page: None)


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
        "messages_per_s",
        "virtual_s",
        "wall_s",
        "cpu_s",
        "peak_rss_bytes",
    }
    assert (figures["nodes"], figures["lookups"], figures["lookup_success"]) == (10, 5, 1.0)


def test_without_json_the_figures_are_lines_for_people(capsys: pytest.CaptureFixture[str]):
    code = main(["run", "lookups", "--nodes", "3", "--lookups", "2"])

    lines = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert code == 0
    assert lines["lookup_success"] == "1.0"
    assert len(lines["digest"]) == 64
    assert lines.keys().isdisjoint({"settings", "notes", "error"})


def test_list_names_every_scenario_with_what_it_does(capsys: pytest.CaptureFixture[str]):
    code = main(["list"])

    lines = capsys.readouterr().out.splitlines()
    assert code == 0
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == list(SCENARIOS)
    assert "then lookups of random keys" in lines[0]
    assert main(["list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["scenarios"]
    assert [each["name"] for each in listed] == list(SCENARIOS)
    assert (list(listed[0]["variants"]), listed[0]["sabotages"]) == (["early", "strict"], [])


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
        (("run", "lookups", "--seed", "-1"), "--seed is -1"),
        (("run", "lookups", "--hours", "0"), "--hours is 0"),
        (("run", "lookups", "--start", "somehow"), "'somehow' is not protocol or oracle"),
        (("run", "lookups", "--nodes", "3", "--out", __file__), "--out"),
        (("sweep",), "scenario"),
        (("sweep", "lookups"), "--out"),
        (("sweep", "lookups", "--out", "nowhere", "--seeds", "1-"), "'1-' is not a list"),
        (("sweep", "lookups", "--out", "nowhere", "--seeds", "5-1"), "'5-1' is not a list"),
        (("sweep", "lookups", "--out", "nowhere", "--seeds", "1,,2"), "'1,,2' is not a list"),
        (("sweep", "lookups", "--out", "nowhere", "--seeds", f"1-{10**30}"), "at most"),
        (("sweep", "lookups", "--out", "nowhere", "--hours", "1,soon"), "'1,soon' is not a list"),
        (("sweep", "lookups", "--out", "nowhere", "--start", "protocol,somehow"), "'somehow' is not"),
        (("sweep", "lookups", "--out", "nowhere", "--nodes", "1,100"), "--nodes is 1"),
        (("sweep", "lookups", "--out", "nowhere", "--workers", "0"), "--workers is 0"),
        (("sweep", "lookups", "--nodes", "3", "--out", __file__), "--out"),
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
    assert "python -m simulations run lookups --nodes 3 --lookups 2 --seed 9\n" in said.err


def test_a_run_that_breaks_still_prints_its_figures_and_keeps_its_trace_where_it_is_told_to(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    async def breaks(world: Any, settings: Settings, progress: Any) -> Outcome:
        await world.grow(settings.nodes, lambda: None)
        raise ZeroDivisionError("no swarm")

    monkeypatch.setitem(SCENARIOS, "lookups", Scenario("lookups", "", breaks))

    code = main(["run", "lookups", "--nodes", "3", "--seed", "9", "--json", "--out", str(tmp_path / "a" / "b")])

    said = capsys.readouterr()
    files = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "a" / "b").iterdir()}
    assert code == 1
    assert said.err.count("\n") == 1
    assert said.err.startswith("ZeroDivisionError: no swarm; to see the same again: python -m simulations run lookups")
    assert json.loads(files["lookups-n3-s9.json"]) == json.loads(said.out)
    assert "Traceback" in files["lookups-n3-s9.trace.txt"]
    assert len(files) == 2


def test_out_keeps_the_figures_that_are_printed(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    figures = figures_of(capsys, *RUN, "--seed", "3", "--out", str(tmp_path))

    (path,) = tmp_path.iterdir()
    assert path.name == "lookups-n10-l5-s3.json"
    assert json.loads(path.read_text(encoding="utf-8")) == figures


def test_ctrl_c_ends_a_run_with_the_figures_so_far_and_exit_code_130(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    async def interrupted(world: Any, settings: Settings, progress: Any) -> Outcome:
        for count in range(1, 1000):
            await asyncio.sleep(1)
            progress("lookups", count, 1000, Outcome(count, count, [1] * count))
            if count == 20:
                signal.raise_signal(signal.SIGINT)
        raise AssertionError

    monkeypatch.setitem(SCENARIOS, "lookups", Scenario("lookups", "", interrupted))
    handler = signal.getsignal(signal.SIGINT)

    code = main(["run", "lookups", "--nodes", "3", "--json", "--out", str(tmp_path)])

    said = capsys.readouterr()
    figures = json.loads(said.out)
    assert code == 130
    assert said.err == ""
    assert (figures["interrupted"], figures["passed"]) == (True, False)
    assert (figures["lookups"], figures["lookup_success"], figures["virtual_s"]) == (20, 1.0, 20.0)
    assert [path.name for path in tmp_path.iterdir()] == ["lookups-n3-s1.json"]
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_second_ctrl_c_ends_the_program(monkeypatch: pytest.MonkeyPatch):
    async def stubborn(world: Any, settings: Settings, progress: Any) -> Outcome:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError

    monkeypatch.setitem(SCENARIOS, "lookups", Scenario("lookups", "", stubborn))

    with pytest.raises(KeyboardInterrupt):
        main(["run", "lookups", "--nodes", "3"])


def test_sweep_prints_one_line_of_json_with_every_cell_in_order(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    arguments = ("--nodes", "4,3", "--lookups", "2", "--seeds", "1-2", "--workers", "2", "--out", str(tmp_path))

    report = figures_of(capsys, "sweep", "lookups", *arguments, "--json")

    assert (report["scenario"], report["failed"], report["remaining"]) == ("lookups", 0, 0)
    assert [(cell["nodes"], cell["seed"]) for cell in report["cells"]] == [(4, 1), (4, 2), (3, 1), (3, 2)]
    assert all(cell.keys() >= {"digest", "lookup_success", "wall_s", "peak_rss_bytes"} for cell in report["cells"])
    assert len(list(tmp_path.iterdir())) == 4


def test_sweep_prints_a_table_and_goes_on_where_it_was(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    arguments = ("sweep", "lookups", "--nodes", "3", "--lookups", "2", "--out", str(tmp_path), "--seeds")
    assert main([*arguments, "2"]) == 0
    capsys.readouterr()

    code = main([*arguments, "1,2"])

    head, first, second = capsys.readouterr().out.splitlines()
    assert code == 0
    assert head.split() == ["settings", "found", "hops", "messages", "virtual", "wall", "peak", "end"]
    assert first.startswith("--nodes 3 --lookups 2 --seed 1 ")
    assert "100.00%" in first
    assert first.endswith("  passed")
    assert second.endswith("  passed, kept")


def test_a_sweep_with_failures_exits_with_1_and_says_how_to_see_each_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    reason = "its worker was killed by SIGKILL"

    def two_fail(*_: Any, **__: Any) -> Generator[CellEnd, None, None]:
        yield CellEnd(Settings(3, 2, 3), None, reason)
        yield CellEnd(Settings(3, 2, 1), {"passed": True, "error": None, "wall_s": 0.5, "peak_rss_bytes": None})
        yield CellEnd(Settings(3, 2, 2), {"passed": False, "error": None, "lookup_success": 0.5})

    monkeypatch.setattr("simulations.__main__.sweep", two_fail)
    arguments = ["sweep", "lookups", "--nodes", "3", "--lookups", "2", "--seeds", "1-3", "--out", str(tmp_path)]

    code = main(arguments)
    said = capsys.readouterr()
    json_code = main([*arguments, "--json"])

    report = json.loads(capsys.readouterr().out)
    assert code == json_code == 1
    assert [line.split("  ")[-1] for line in said.out.splitlines()[1:]] == ["passed", "FAILED", "FAILED"]
    assert said.err.splitlines() == [
        "lookups failed; to see the same again: python -m simulations run lookups --nodes 3 --lookups 2 --seed 2",
        f"{reason}; to see the same again: python -m simulations run lookups --nodes 3 --lookups 2 --seed 3",
    ]
    assert (report["failed"], report["remaining"]) == (2, 0)
    assert report["cells"][2]["error"] == reason
    assert report["cells"][2]["settings"]["seed"] == 3


def test_ctrl_c_ends_a_sweep_with_what_is_finished_and_says_how_much_remains(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def interrupted(*arguments: Any, **options: Any) -> Generator[CellEnd, None, None]:
        with closing(sweep(*arguments, **options)) as ends:
            yield next(ends)
            raise KeyboardInterrupt

    monkeypatch.setattr("simulations.__main__.sweep", interrupted)

    arguments = ["--nodes", "3", "--lookups", "2", "--seeds", "1-30", "--workers", "1", "--out", str(tmp_path)]

    code = main(["sweep", "lookups", *arguments, "--json"])

    said = capsys.readouterr()
    report = json.loads(said.out)
    assert code == 130
    assert said.err == "29 of 30 cells remain; the same command goes on\n"
    assert (report["failed"], report["remaining"], len(report["cells"])) == (0, 29, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["lookups-n3-l2-s1.json"]
