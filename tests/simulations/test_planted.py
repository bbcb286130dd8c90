"""Bugs that were planted: some seed finds each by the rule that it breaks, and what is printed then finds it again."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from simulations.report import run_scenario
from simulations.scenarios import SCENARIOS, Settings
from simulations.world import Start

ROOT = Path(__file__).parents[2]
SEEDS = range(1, 31)
PLANTED = {
    "planted-lost-wakeup": "S5",
    "planted-stale-read": "S2",
    "planted-slot-leak": "S4",
    "planted-double-run": "S6",
}


def test_every_planted_bug_is_looked_for_here():
    assert [name for name in SCENARIOS if name.startswith("planted-")] == list(PLANTED)


@pytest.mark.parametrize(("name", "rule"), PLANTED.items())
def test_a_planted_bug_is_found_by_its_rule_and_the_printed_command_finds_it_again(name: str, rule: str):
    reports = (run_scenario(SCENARIOS[name], Settings(seed=seed)) for seed in SEEDS)

    found = next(report for report in reports if not report.figures["passed"])

    assert found.figures["error"].startswith(f"Violation: {rule} broken at ")
    assert found.events
    assert found.failure is not None
    command = found.failure.splitlines()[-1].removeprefix("to see the same again: ")
    again = replay(command)
    assert again.returncode == 1
    assert command in again.stderr
    figures = json.loads(again.stdout)
    assert (figures["error"], figures["digest"]) == (found.figures["error"], found.figures["digest"])


def test_the_fault_that_shows_a_bug_is_in_its_trace():
    report = next(
        report
        for seed in SEEDS
        if not (report := run_scenario(SCENARIOS["planted-double-run"], Settings(seed=seed))).figures["passed"]
    )

    assert any("fault: pause" in event for event in report.events)


@pytest.mark.parametrize("settings", [Settings(wire=True), Settings(start=Start.ORACLE)])
def test_a_world_without_nodes_refuses_what_is_said_of_nodes(settings: Settings):
    figures = run_scenario(SCENARIOS["planted-stale-read"], settings).figures

    assert figures["error"].startswith("ConfigError: planted-stale-read has no nodes")


def replay(command: str) -> subprocess.CompletedProcess[str]:
    program, *arguments = shlex.split(command)
    assert program == "python"
    return subprocess.run(
        [sys.executable, *arguments, "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "5"},
        cwd=ROOT,
    )
