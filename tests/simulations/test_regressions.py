"""Seeds that ever failed are played again, and pass: `regressions.json` has their settings, and why they are there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from simulations.report import run_scenario
from simulations.scenarios import SCENARIOS, Settings

ENTRIES: list[dict[str, Any]] = json.loads(Path(__file__).with_name("regressions.json").read_text(encoding="utf-8"))
NOT_SETTINGS = {"scenario", "why"}


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry['scenario']}-{entry['seed']}")
def test_a_seed_that_once_failed_passes_now(entry: dict[str, Any]):
    settings = Settings(**{name: value for name, value in entry.items() if name not in NOT_SETTINGS})

    figures = run_scenario(SCENARIOS[entry["scenario"]], settings).figures

    assert figures["passed"], figures["error"]


def test_every_entry_says_why_it_is_there():
    assert all(entry["why"] for entry in ENTRIES)
