"""The scenarios with faults and churn: they pass, repeat, and find what is broken in a node."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dht.records import Signed
from dht.store import MemoryRecordStore
from simulations.fault_player import FaultPlayer
from simulations.faults import Crash, PlannedFault, Restart
from simulations.report import run_scenario
from simulations.scenarios import SCENARIOS, Outcome, Scenario, Settings
from simulations.scenarios.base import Progress
from simulations.scenarios.faults import CONFIG, disturb
from simulations.scenarios.inspected import grow, inspect_members
from simulations.world import Start, World

SHORT = Settings(nodes=8, lookups=5, seed=1, hours=0.05)
TWO_WORLDS = [(Start.PROTOCOL, False), (Start.ORACLE, True)]


def figures_of(name: str, settings: Settings = SHORT) -> dict[str, Any]:
    return run_scenario(SCENARIOS[name], settings).figures


@pytest.mark.parametrize(("start", "wire"), TWO_WORLDS)
def test_a_short_run_with_faults_ends_with_everybody_finding_everybody(start: Start, wire: bool):
    figures = figures_of("faults", replace(SHORT, start=start, wire=wire))

    assert (figures["error"], figures["passed"]) == (None, True)
    assert (figures["lookups"], figures["lookup_success"]) == (5, 1.0)
    assert figures["faults"] > 0
    assert figures["finds_disturbed"] > 50


@pytest.mark.parametrize(("start", "wire"), TWO_WORLDS)
def test_a_short_run_with_churn_finds_nearly_everybody(start: Start, wire: bool):
    figures = figures_of("churn", Settings(nodes=8, lookups=24, seed=1, hours=0.15, start=start, wire=wire))

    assert (figures["error"], figures["passed"]) == (None, True)
    assert figures["lookups"] > 12
    assert figures["sessions_ended"] > 0


@pytest.mark.parametrize(("name", "wire"), [("faults", False), ("churn", False), ("churn", True)])
def test_a_run_repeats_with_all_its_faults(name: str, wire: bool):
    settings = Settings(nodes=6, lookups=5, seed=3, hours=0.05, wire=wire)

    first, again = figures_of(name, settings), figures_of(name, settings)

    assert first["passed"]
    assert first["digest"] == again["digest"]
    assert first["messages"] == again["messages"]


def test_who_is_down_at_the_end_of_a_timetable_comes_back_at_that_moment():
    async def play(world: World, settings: Settings, progress: Progress) -> Outcome:
        inspected = inspect_members(world, CONFIG)
        down = [PlannedFault(4.0, Crash(number)) for number in (1, 2)]
        planned = [*down, *(PlannedFault(10.0, Restart(number, with_state=True)) for number in (1, 2))]
        try:
            await grow(inspected, settings, progress)
            await disturb(inspected, FaultPlayer(inspected.members), planned, 10.0, [], progress)
            return Outcome(3, len(inspected.members.alive()), ())
        finally:
            await inspected.members.stop()

    figures = run_scenario(Scenario("down", "some are down", play), Settings(nodes=3)).figures

    assert (figures["error"], figures["lookup_success"]) == (None, 1.0)


def test_a_storer_that_does_not_check_signatures_is_found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Signed, "check", lambda self, public_key: None)

    assert figures_of("faults")["error"].startswith("Violation: S1 broken at ")


def test_a_storer_that_forgets_records_is_found(monkeypatch: pytest.MonkeyPatch):
    expire = MemoryRecordStore.expire
    monkeypatch.setattr(MemoryRecordStore, "expire", lambda self, now: expire(self, now + 600.0 if now > 100 else now))

    assert figures_of("faults")["error"].startswith("Violation: S3 broken at ")
