"""The scenarios with faults and churn: they pass, repeat, and find what is broken in a node."""

from __future__ import annotations

from typing import Any

import pytest

from dht.records import Envelope
from dht.store import MemoryRecordStore
from simulations.report import run_scenario
from simulations.scenarios import SCENARIOS, Settings

SHORT = Settings(nodes=8, lookups=5, seed=1, hours=0.05)


def figures_of(name: str, settings: Settings = SHORT) -> dict[str, Any]:
    return run_scenario(SCENARIOS[name], settings).figures


def test_a_short_run_with_faults_ends_with_everybody_finding_everybody():
    figures = figures_of("faults")

    assert (figures["error"], figures["passed"]) == (None, True)
    assert (figures["lookups"], figures["lookup_success"]) == (5, 1.0)
    assert figures["faults"] > 0
    assert figures["finds_disturbed"] > 50


def test_a_short_run_with_churn_finds_nearly_everybody():
    figures = figures_of("churn", Settings(nodes=12, lookups=40, seed=1, hours=0.2))

    assert (figures["error"], figures["passed"]) == (None, True)
    assert figures["lookups"] > 20
    assert figures["sessions_ended"] > 0


@pytest.mark.parametrize("name", ["faults", "churn"])
def test_a_run_repeats_with_all_its_faults(name: str):
    settings = Settings(nodes=6, lookups=5, seed=3, hours=0.05)

    first, again = figures_of(name, settings), figures_of(name, settings)

    assert first["digest"] == again["digest"]
    assert first["messages"] == again["messages"]


def test_a_storer_that_does_not_check_signatures_is_found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Envelope, "check_signature", lambda self, public_key: None)

    assert figures_of("faults")["error"].startswith("Violation: S1 broken at ")


def test_a_storer_that_forgets_records_is_found(monkeypatch: pytest.MonkeyPatch):
    expire = MemoryRecordStore.expire
    monkeypatch.setattr(MemoryRecordStore, "expire", lambda self, now: expire(self, now + 600.0 if now > 100 else now))

    assert figures_of("faults")["error"].startswith("Violation: S3 broken at ")
