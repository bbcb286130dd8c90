"""Sweeps: which cells there are, which are kept, and what becomes of a worker that fails or dies.

Workers are real processes, so the scenarios that fail stand in a module that those can import.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from simulations import sweep as sweep_module
from simulations.report import file_stem, run_scenario, write_report
from simulations.scenarios import Scenario, Settings
from simulations.scenarios.base import Start
from simulations.scenarios.lookups import LOOKUPS
from simulations.sweep import MAX_CELLS, Cell, Grid, sweep
from synapse_p2p.exceptions import ConfigError

ODD_SCENARIOS = """
import os
import signal

from simulations.scenarios import Outcome, Scenario


async def _play(world, settings, progress):
    match settings.seed:
        case 1:
            raise ZeroDivisionError("no swarm")
        case 2:
            os.kill(os.getpid(), signal.SIGKILL)
        case 3:
            os._exit(3)
        case 4:
            return Outcome(2, 1, [1], ["one found nobody"])
        case 5:
            os.kill(os.getpid(), signal.SIGINT)
    return Outcome(2, 2, [1, 1])


ODD = Scenario("odd", "fails in many ways", _play)
"""
VOLATILE = {"wall_s", "cpu_s", "messages_per_s", "peak_rss_bytes"}


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scenario:
    if not hasattr(signal, "SIGKILL"):
        pytest.skip("this system has no signals to die of")
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "odd_scenarios.py").write_text(ODD_SCENARIOS, encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    return importlib.import_module("odd_scenarios").ODD


def cells(count: int, *, nodes: int = 3) -> list[Settings]:
    return [Settings(nodes, 4, seed) for seed in range(1, count + 1)]


def lasting(figures: dict[str, Any] | None) -> dict[str, Any]:
    assert figures is not None
    return {key: value for key, value in figures.items() if key not in VOLATILE}


def test_a_cell_is_every_value_with_every_other_and_each_once():
    grid = Grid(nodes=[10, 20, 10], seeds=[1, 2], lookups=[5], hours=[None, 2.0])

    settings = grid.cells()

    assert [(each.nodes, each.hours, each.seed) for each in settings] == [
        (10, None, 1),
        (10, None, 2),
        (10, 2.0, 1),
        (10, 2.0, 2),
        (20, None, 1),
        (20, None, 2),
        (20, 2.0, 1),
        (20, 2.0, 2),
    ]
    assert {each.lookups for each in settings} == {5}


@pytest.mark.parametrize(
    ("grid", "text"),
    [
        (Grid([10, 1], [1], [5]), "--nodes is 1"),
        (Grid([10] * 400, range(400), [5]), f"160000 runs is more than {MAX_CELLS}"),
    ],
)
def test_a_grid_with_a_cell_that_cannot_be_is_refused_as_a_whole(grid: Grid, text: str):
    with pytest.raises(ConfigError, match=text):
        grid.cells()


def test_cells_are_what_plain_runs_of_the_same_settings_are_with_any_number_of_workers(tmp_path: Path):
    settings = cells(2, nodes=6)

    one = {end.settings: end.figures for end in sweep(LOOKUPS, settings, tmp_path / "one", workers=1)}
    two = {end.settings: end.figures for end in sweep(LOOKUPS, settings, tmp_path / "two", workers=2)}

    for each in settings:
        plain = run_scenario(LOOKUPS, each).figures
        assert lasting(one[each]) == lasting(two[each]) == lasting(plain)


def test_a_failed_cell_stops_no_other_and_each_says_how_it_ended(tmp_path: Path, odd: Scenario):
    ends = {end.settings.seed: end for end in sweep(odd, cells(6), tmp_path / "out", workers=2)}

    reasons = {seed: end.reason for seed, end in ends.items() if end.figures is None}
    assert reasons == {
        2: "its worker was killed by SIGKILL",
        3: "its worker ended with code 3 and left no figures",
    }
    assert {seed: end.is_passed for seed, end in ends.items()} == {
        1: False,
        2: False,
        3: False,
        4: False,
        5: True,  # Ctrl-C is for whoever started the workers
        6: True,
    }
    assert lasting(ends[1].figures)["error"] == "ZeroDivisionError: no swarm"
    assert lasting(ends[4].figures)["lookup_success"] == 0.5
    trace = (tmp_path / "out" / "odd-n3-l4-s1.trace.txt").read_text(encoding="utf-8")
    assert "ZeroDivisionError" in trace


def test_finished_cells_are_kept_also_failed_ones_but_not_those_whose_worker_died(tmp_path: Path, odd: Scenario):
    first = {end.settings.seed: end for end in sweep(odd, [*cells(2), Settings(3, 4, 6)], tmp_path, workers=2)}

    again = {end.settings.seed: end for end in sweep(odd, [*cells(2), Settings(3, 4, 6)], tmp_path, workers=2)}

    assert {seed: end.was_kept for seed, end in first.items()} == {1: False, 2: False, 6: False}
    assert {seed: end.was_kept for seed, end in again.items()} == {1: True, 2: False, 6: True}
    assert again[1].figures == first[1].figures
    assert again[2].reason == first[2].reason != ""


@pytest.fixture
def played_again(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """The settings of cells that a sweep would start a worker for, which is left out."""
    played: list[Settings] = []

    def noted(cell: Cell, *_: object) -> Any:
        played.append(cell.settings)
        raise ProcessLookupError

    monkeypatch.setattr(sweep_module, "_start", noted)
    return played


@pytest.mark.parametrize(
    ("name", "value"),
    [("code", "0" * 16), ("scenario", "walks"), ("interrupted", True), ("settings", {"nodes": 3})],
)
def test_figures_of_another_run_are_not_kept(tmp_path: Path, name: str, value: object, played_again: list[Settings]):
    (settings,) = cells(1)
    report = run_scenario(LOOKUPS, settings)
    write_report(report, tmp_path, file_stem(LOOKUPS.name, settings))
    (path,) = tmp_path.iterdir()
    (kept,) = sweep(LOOKUPS, [settings], tmp_path, workers=1)
    path.write_text(json.dumps({**report.figures, name: value}), encoding="utf-8")

    with pytest.raises(ProcessLookupError):
        next(sweep(LOOKUPS, [settings], tmp_path, workers=1))

    assert (kept.was_kept, kept.figures) == (True, report.figures)
    assert played_again == [settings]


def test_a_file_without_sense_is_played_again(tmp_path: Path):
    (settings,) = cells(1)
    (tmp_path / "lookups-n3-l4-s1.json").write_bytes(b"{")

    (end,) = sweep(LOOKUPS, [settings], tmp_path, workers=1)

    assert (end.was_kept, end.is_passed) == (False, True)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff"])
def test_whatever_a_file_without_sense_holds_its_cell_is_not_kept(
    tmp_path: Path, content: bytes, played_again: list[Settings]
):
    (settings,) = cells(1)
    (tmp_path / "lookups-n3-l4-s1.json").write_bytes(content)

    with pytest.raises(ProcessLookupError):
        next(sweep(LOOKUPS, [settings], tmp_path, workers=1))

    assert played_again == [settings]


def test_whoever_stops_asking_ends_the_workers_and_keeps_what_was_finished(tmp_path: Path):
    settings = [Settings(3, 4, 1), Settings(2000, 1000, 1)]

    with closing(sweep(LOOKUPS, settings, tmp_path, workers=2)) as ends:
        first = next(ends)
        assert len(multiprocessing.active_children()) == 1

    assert first.settings == settings[0]
    assert multiprocessing.active_children() == []
    assert [path.name for path in tmp_path.iterdir()] == ["lookups-n3-l4-s1.json"]


@pytest.mark.skipif(not Path("/proc").exists(), reason="how a process is known to have ended")
def test_a_sweep_that_is_killed_leaves_no_worker_behind(tmp_path: Path):
    """Its run would go on for an hour and be nobody's."""
    command = ["-m", "simulations", "sweep", "overlay-churn", "--nodes", "40", "--hours", "100", "--start", "oracle"]
    sweeping = subprocess.Popen(
        [sys.executable, *command, "--seeds", "1", "--workers", "1", "--out", str(tmp_path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    worker = ended_by(60, lambda: workers_of(sweeping.pid))[0]

    sweeping.kill()
    sweeping.wait()

    ended_by(60, lambda: [worker] if has_ended(worker) else [])


def workers_of(pid: int) -> list[int]:
    """Its children that have begun to work: by then they watch over their parent."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    workers = [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
    return [worker for worker in workers if len(list(Path(f"/proc/{worker}/task").iterdir())) > 1]


def has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def ended_by(timeout_s: float, found: Callable[[], list[int]]) -> list[int]:
    deadline = time.monotonic() + timeout_s
    while not (result := found()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return result


def test_a_sweep_has_at_most_so_many_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    counts: list[int] = []
    start = sweep_module._start

    def counted(*arguments: Any) -> Any:
        process = start(*arguments)
        counts.append(len(multiprocessing.active_children()))
        return process

    monkeypatch.setattr(sweep_module, "_start", counted)

    ends = list(sweep(LOOKUPS, cells(3), tmp_path, workers=2))

    assert len(ends) == len(counts) == 3
    assert max(counts) <= 2


def test_a_sweep_without_workers_or_over_a_file_is_refused(tmp_path: Path):
    file = tmp_path / "file"
    file.touch()

    with pytest.raises(ConfigError, match="--workers is 0"):
        next(sweep(LOOKUPS, cells(1), tmp_path, workers=0))
    with pytest.raises(FileExistsError):
        next(sweep(LOOKUPS, cells(1), file, workers=1))


def test_settings_travel_to_workers_whole(tmp_path: Path):
    settings = Settings(3, 2, 5, 0.25, Start.PROTOCOL)

    (end,) = sweep(LOOKUPS, [settings], tmp_path, workers=1)

    figures = lasting(end.figures)
    assert figures["settings"] == settings.as_map()
    assert figures["virtual_s"] >= 900
