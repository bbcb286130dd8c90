"""The figures of a run, and the files that keep them."""

from __future__ import annotations

import gc
import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from simulations.progress import Step, Watch
from simulations.report import Report, code_version, file_stem, replay_command, run_scenario, write_report
from simulations.scenarios import SCENARIOS, Outcome, Scenario, Settings
from simulations.scenarios.base import Ended, Start
from simulations.world import World

SETTINGS = Settings(12, 10, 1)


class Arithmetic:
    """A scenario with an engine of its own: no world, no loop, a million nodes."""

    name = "arithmetic"
    summary = "hops by formula"

    def run(self, settings: Settings, watch: Watch) -> Ended:
        hops = [round(0.38 + 0.149 * math.log2(settings.nodes))] * settings.lookups
        outcome = Outcome(settings.lookups, settings.lookups, hops, figures={"table_bytes": 4 * settings.nodes})
        watch.tell(Step("lookups", settings.lookups, settings.lookups, 1.5, 0, outcome.success))
        return Ended(outcome, digest="00" * 32, messages=20_000_000, virtual_s=1.5)


def failing(error: Exception | None = None) -> Scenario:
    async def fail(world: World, settings: Settings, progress: Any) -> Outcome:
        await world.grow(3, lambda: None)
        if error is not None:
            raise error
        return Outcome(settings.lookups, 1, [3], ["the third lookup found nobody"])

    return Scenario("fails", "", fail)


@pytest.fixture
def collector() -> Iterator[tuple[int, int, int]]:
    thresholds = (701, 11, 12)
    before = gc.get_threshold()
    gc.set_threshold(*thresholds)
    yield thresholds
    gc.set_threshold(*before)
    gc.freeze()  # as the tests before and after have it


def test_what_nodes_warn_of_is_not_said_in_a_run_and_is_after_it(caplog: pytest.LogCaptureFixture):
    nodes = logging.getLogger("dht.presence")

    async def warn(world: World, settings: Settings, progress: Any) -> Outcome:
        nodes.warning("is this machine's network down?")
        nodes.error("the store is gone")
        return Outcome(1, 1, [1])

    run_scenario(Scenario("warns", "", warn), SETTINGS)
    nodes.warning("and later")

    assert [record.message for record in caplog.records] == ["the store is gone", "and later"]


def test_figures_say_what_ran_and_what_it_took():
    figures = run_scenario(SCENARIOS["lookups"], SETTINGS).figures

    assert (figures["scenario"], figures["nodes"], figures["seed"], figures["start"]) == ("lookups", 12, 1, "protocol")
    assert (figures["passed"], figures["interrupted"], figures["error"]) == (True, False, None)
    assert len(bytes.fromhex(figures["digest"])) == 32
    assert figures["messages"] > 12 * 10
    assert figures["virtual_s"] >= 6
    assert figures["wall_s"] > 0
    assert figures["messages_per_s"] == pytest.approx(figures["messages"] / figures["wall_s"], rel=0.05)
    assert figures["peak_rss_bytes"] is None or figures["peak_rss_bytes"] > 10_000_000
    assert figures["settings"] == SETTINGS.as_map()
    assert json.loads(json.dumps(figures)) == figures


def test_lookups_that_fail_are_counted_and_have_no_hops():
    report = run_scenario(failing(), Settings(3, 4, 1))

    figures = report.figures
    assert (figures["lookup_success"], figures["mean_hops"], figures["hops"]) == (0.25, 3.0, {"3": 1})
    assert (figures["passed"], figures["error"]) == (False, None)
    assert "the third lookup found nobody" in (report.failure or "")


def test_a_failure_says_how_to_see_it_again_and_where_it_was_raised():
    report = run_scenario(failing(ValueError("two\nlines")), Settings(3, 4, 8))

    assert report.figures["error"] == "ValueError: two lines"
    assert report.figures["lookup_success"] is None
    assert report.failure is not None
    again = "to see the same again: python -m simulations run fails --nodes 3 --lookups 4 --seed 8"
    assert report.failure.splitlines()[-1] == again
    assert "in fail\n" in report.failure
    assert len(report.events) > 3


def test_a_scenario_may_have_an_engine_without_a_world():
    steps: list[Step] = []

    report = run_scenario(Arithmetic(), Settings(1_000_000, 5, 1), Watch(steps.append))

    assert (report.figures["nodes"], report.figures["lookup_success"], report.figures["mean_hops"]) == (10**6, 1.0, 3.0)
    assert (report.figures["messages"], report.figures["table_bytes"]) == (20_000_000, 4_000_000)
    assert [step.done for step in steps] == [5]
    assert report.failure is None


def test_the_garbage_collector_is_left_as_it_was_also_by_a_scenario_that_breaks(collector: tuple[int, int, int]):
    during: list[tuple[int, int, int]] = []

    async def breaks(world: World, settings: Settings, progress: Any) -> Outcome:
        during.append(gc.get_threshold())
        raise ValueError

    gc.unfreeze()
    run_scenario(Scenario("breaks", "", breaks), SETTINGS)

    assert during[0][0] > collector[0]
    assert gc.get_threshold() == collector
    assert gc.get_freeze_count() == 0


def test_what_was_frozen_before_a_run_still_is_after_it():
    gc.freeze()

    run_scenario(SCENARIOS["lookups"], SETTINGS)

    assert gc.get_freeze_count() > 0


def test_files_of_a_run_are_named_by_what_is_not_as_usual():
    stems = {
        file_stem("lookups", settings)
        for settings in (
            Settings(300, seed=7),
            Settings(300, 50, 7),
            Settings(300, 50, 7, 0.5),
            Settings(300, 50, 7, 0.5, Start.ORACLE),
            Settings(300, 50, 7, 0.5, Start.ORACLE, wire=True),
        )
    }

    assert stems == {
        "lookups-n300-s7",
        "lookups-n300-l50-s7",
        "lookups-n300-l50-h0.5-s7",
        "lookups-n300-l50-h0.5-oracle-s7",
        "lookups-n300-l50-h0.5-oracle-wire-s7",
    }


def test_replay_command_names_every_setting():
    command = replay_command("lookups", Settings(300, 50, 7, 0.5, Start.ORACLE, wire=True))

    arguments = "--nodes 300 --lookups 50 --seed 7 --hours 0.5 --start oracle --wire"
    assert command == f"python -m simulations run lookups {arguments}"


def test_a_failure_is_kept_with_its_trace_and_a_later_success_without(tmp_path: Path):
    failed = Report({"passed": False}, failure="it failed\n", events=["one", "two"])

    path = write_report(failed, tmp_path, "run")
    kept = {file.name: file.read_text(encoding="utf-8") for file in tmp_path.iterdir()}
    write_report(Report({"passed": True}), tmp_path, "run")

    assert path == tmp_path / "run.json"
    assert json.loads(kept["run.json"]) == {"passed": False}
    assert kept["run.trace.txt"].startswith("it failed\n")
    assert kept["run.trace.txt"].endswith("the last 2 events: virtual seconds, from, to, what, bytes\none\ntwo\n")
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]
    assert json.loads(path.read_text(encoding="utf-8")) == {"passed": True}


def test_a_report_that_cannot_be_written_leaves_the_one_before_and_no_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = write_report(Report({"passed": True}), tmp_path, "run")

    def fail(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        write_report(Report({"passed": False}), tmp_path, "run")

    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]
    assert json.loads(path.read_text(encoding="utf-8")) == {"passed": True}


def test_code_version_stands_for_every_source_file(monkeypatch: pytest.MonkeyPatch):
    read_bytes = Path.read_bytes

    def edited(self: Path) -> bytes:
        return read_bytes(self) + (b"#" if self.name == "routing.py" else b"")

    version = code_version.__wrapped__()
    monkeypatch.setattr(Path, "read_bytes", edited)

    assert len(bytes.fromhex(version)) == 8
    assert code_version.__wrapped__() != version
