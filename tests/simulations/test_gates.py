"""The gates in their short forms: each holds, and without the defence that it is about it does not.

What the full ones compare is tested here with figures of our own; playing them takes an hour (`make gates`).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from simulations import gates
from simulations.gates import GATES, Gate, Limit, put_together
from simulations.report import run_scenario
from simulations.scenarios import SCENARIOS, Settings
from simulations.scenarios.base import Start
from simulations.statistics import wilson_low

SHORT = [gate for gate in GATES if gate.short is not None]
QUICK = {
    "hops and requests, started by protocol",
    "hops and requests, started by oracle",
    "churn as in BitTorrent, for a day",
    "30 % killed at once",
    "partition of 10 min, healed",
    "50 % collude",
    "30 % collude, tables poisoned 4x",
    "50 % collude, tables poisoned 4x",
    "2 % flood, and fill what they can",
    "60 ids in as many /24s, honest first",
    "20 ids in two /24s, Sybils first",
    "restart with one of three seeds hostile",
    "rolling restart, nothing but keys left",
}
"""Those that are always played, with their sabotages: 30 s of a core. All take two minutes; the others are marked. Of
two with the same short limit the harder is played: 30 % that collude with poisoned tables, not 20 %, with or without.
"""


def params(gates: list[Gate]) -> list[Any]:
    assert {gate.name for gate in SHORT} >= QUICK
    return [pytest.param(gate, id=gate.name, marks=[] if gate.name in QUICK else pytest.mark.gates) for gate in gates]


def played_short(gate: Gate, *, sabotage: str = "") -> dict[str, Any]:
    assert gate.short is not None
    figures = run_scenario(SCENARIOS[gate.scenario], replace(gate.short, sabotage=sabotage)).figures
    assert figures["error"] is None
    return put_together([figures])


@pytest.mark.parametrize("gate", params(SHORT))
def test_the_overlay_stands_what_a_gate_does_to_it(gate: Gate):
    figures = played_short(gate)

    assert [f"{limit}, not {figures.get(limit.figure)}" for limit in gate.missed(figures, short=True)] == []


@pytest.mark.parametrize("gate", params([gate for gate in SHORT if gate.sabotage and gate.is_short_sabotaged]))
def test_without_its_defence_a_gate_is_missed(gate: Gate):
    assert gate.missed(played_short(gate, sabotage=gate.sabotage), short=True) != []


def test_every_gate_and_every_sabotage_is_one_that_its_scenario_has():
    for gate in GATES:
        scenario = SCENARIOS[gate.scenario]
        for settings in (*gate.cells(), gate.sabotaged_cell(), gate.short):
            if settings is not None:
                scenario.check(settings)
    assert len({gate.name for gate in GATES}) == len(GATES)


def test_what_misses_without_its_defence_has_failed_and_was_not_too_short():
    for gate in GATES:
        pairs = [(gate.sabotaged_cell(), gate.limits), (gate.short if gate.sabotage else None, gate.short_limits)]
        for settings, limits in pairs:
            for limit in limits if settings is not None else ():
                if limit.figure.endswith("_low"):
                    # Half of the lookups for hops are early.
                    lookups = settings.lookups // 2 if limit.figure == "early_nearest_low" else settings.lookups
                    assert wilson_low(lookups, lookups) >= limit.bound, f"{gate.name}: {lookups} lookups and {limit}"


def test_every_defence_that_can_be_taken_away_is_the_affair_of_some_gate():
    assert {gate.sabotage for gate in GATES} >= {
        "no-replication",
        "no-offers",
        "no-density",
        "no-diversity",
        "crowded",
        "narrow",
        "patient",
        "forgetful",
        "trust-all",
        "small-buckets",
        "no-quotas",
    }
    assert [gate.name for gate in GATES if gate.limits and not gate.sabotage] == []


def test_runs_are_put_together_as_if_they_were_one():
    first = {"gets": 300, "gets_found": 300, "get_messages_mean": 4.0, "fewest_storers": 9, "get_success_low": 0.987}
    second = {"gets": 100, "gets_found": 90, "get_messages_mean": 8.0, "fewest_storers": 3, "get_success_low": 0.826}

    together = put_together([first, second])

    assert together == {
        "gets": 400,
        "gets_found": 390,
        "get_messages_mean": 5.0,
        "fewest_storers": 3,
        "get_success_low": pytest.approx(0.9545, abs=1e-4),
    }


@pytest.mark.parametrize(
    ("limit", "is_met"),
    [
        (Limit("get_success_low", ">=", 0.99), True),
        (Limit("get_success_low", ">=", 0.995), False),
        (Limit("values_lost", "<=", 0), True),
        (Limit("get_messages_mean", "<=", "strict_messages_mean"), False),
        (Limit("fewest_storers", ">=", 0), False),  # nothing was measured
        (Limit("get_messages_mean", "<=", "nothing"), False),
    ],
)
def test_a_limit_is_a_number_or_another_figure_and_is_not_met_by_nothing(limit: Limit, is_met: bool):
    figures = {"get_success_low": 0.993, "values_lost": 0, "get_messages_mean": 22.0, "strict_messages_mean": 21.0}

    assert limit.is_met(figures) is is_met


SMALL = Settings(4, 3, 1, None, Start.ORACLE)
GATE = Gate("tiny", "tiny", SMALL, None, (Limit("gets_found", ">=", 3),), (), budget_s=5.0, seeds=2, sabotage="lame")


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One gate whose scenario finds one value less where it is lame; its workers import it from a file."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "tiny_scenario.py").write_text(TINY, encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    import tiny_scenario  # type: ignore[import-not-found]

    monkeypatch.setitem(SCENARIOS, "tiny", tiny_scenario.TINY)
    monkeypatch.setattr(gates, "GATES", (GATE,))
    return tmp_path


TINY = """
from simulations.scenarios import Outcome, Scenario

async def _play(world, settings, progress):
    found = 1 if settings.sabotage else 2
    return Outcome(2, found, (), figures={"gets": 2, "gets_found": found})

TINY = Scenario("tiny", "a gate's own test", _play, sabotages=("lame",))
"""


def test_full_gates_are_played_once_judged_and_written_to_the_page(tiny: Path, capsys: pytest.CaptureFixture[str]):
    command = ["--out", str(tiny / "cells"), "--page", str(tiny / "page.md"), "--workers", "2"]

    assert gates.main(command) == 0
    assert gates.main(command) == 0

    out, err = capsys.readouterr()
    assert out.count("passed   tiny: gets_found >= 3: 4") == 2
    assert err.count("kept of 5 s") == 2
    assert err.count("kept of 60 s") == 1  # the one that only has to miss
    page = (tiny / "page.md").read_text(encoding="utf-8")
    assert "| tiny | `gets_found >= 3` | 4 | passed | lame: missed | 2 x 5 s | 0 s |" in page
    assert "python -m simulations run tiny --nodes 4" in page


def test_a_gate_that_holds_without_its_defence_too_proves_nothing(tiny: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gates, "GATES", (replace(GATE, limits=(Limit("gets_found", ">=", 1),), seeds=1),))

    assert gates.main(["--out", str(tiny / "cells"), "--workers", "2"]) == 1


def test_a_missed_gate_says_what_it_saw(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(gates, "GATES", (replace(GATE, limits=(Limit("gets_found", ">=", 5),), seeds=1, sabotage=""),))

    assert gates.main(["--out", str(tiny / "cells"), "--workers", "2"]) == 1
    assert capsys.readouterr().out.startswith("MISSED   tiny: gets_found >= 5: 2")


def test_the_list_has_the_budget_of_every_cell_and_of_all(capsys: pytest.CaptureFixture[str]):
    assert gates.main(["--list"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(GATES) + 1
    assert lines[-1].startswith("in all ")
