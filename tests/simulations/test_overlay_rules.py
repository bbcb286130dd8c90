"""The rules over values: clean runs keep them, and what a node could do wrong is found by the rule that it breaks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from dht.config import RecordConfig
from dht.quotas import Quotas
from dht.records import LABELS, RecordKind, Signed
from dht.store import MemoryRecordStore
from dht.stored_record import StoredRecord
from simulations import values
from simulations.pool import VirtualPool
from simulations.report import Report, replay_command, run_scenario
from simulations.scenarios import SCENARIOS, Settings
from simulations.watched import WatchedStore
from simulations.world import Start

FAULTS = Settings(nodes=8, lookups=20, hours=0.04)
MASSACRE = Settings(nodes=40, lookups=20, start=Start.ORACLE)
SEEDS = range(1, 6)


def first_failure(name: str, settings: Settings) -> Report:
    """Of some seeds."""
    reports = (run_scenario(SCENARIOS[name], replace(settings, seed=seed)) for seed in SEEDS)
    return next(report for report in reports if not report.figures["passed"])


def assert_is_found(rule: str, name: str, settings: Settings) -> str:
    """What is said of the first seed that fails."""
    report = first_failure(name, settings)

    assert report.figures["error"].startswith(f"Violation: {rule} broken at ")
    assert report.events
    assert report.failure is not None
    command = replay_command(name, replace(settings, seed=report.figures["seed"]))
    assert report.failure.splitlines()[-1] == f"to see the same again: {command}"
    return report.figures["error"]


def test_faults_over_values_break_no_rule_and_all_are_read_afterwards():
    figures = run_scenario(SCENARIOS["overlay-faults"], replace(FAULTS, seed=1)).figures

    assert (figures["error"], figures["passed"]) == (None, True)
    assert (figures["lookups"], figures["lookup_success"]) == (20, 1.0)
    assert figures["reads_disturbed"] > 100
    assert figures["values"] > 10


def test_faults_over_values_repeat():
    settings = Settings(nodes=5, lookups=3, seed=3, hours=0.02)

    first, again = (run_scenario(SCENARIOS["overlay-faults"], settings).figures for _ in range(2))

    assert (first["passed"], first["digest"]) == (True, again["digest"])


def test_a_storer_that_checks_no_signature_of_a_value_is_found(monkeypatch: pytest.MonkeyPatch):
    check = Signed.check
    is_agent = LABELS[RecordKind.AGENT].__eq__
    monkeypatch.setattr(Signed, "check", lambda self, key: check(self, key) if is_agent(self.label) else None)

    assert "did not sign it" in assert_is_found("S1", "overlay-faults", FAULTS)


def test_storers_that_keep_the_version_that_they_have_let_readers_go_back_who_remember_none(
    monkeypatch: pytest.MonkeyPatch,
):
    put = WatchedStore.put

    def keep_the_first(self: WatchedStore, key: bytes, new: StoredRecord, now: float, **expected: Any) -> Any:
        is_lagging = self._storer.id[0] % 2 and new.kind is RecordKind.MUTABLE and self.find(key, new.slot)
        return None if is_lagging else put(self, key, new, now, **expected)

    monkeypatch.setattr(WatchedStore, "put", keep_the_first)
    monkeypatch.setattr("dht.getting.MAX_SEEN", 0)

    assert "after version" in assert_is_found("S2", "overlay-faults", FAULTS)


def forget_early(monkeypatch: pytest.MonkeyPatch) -> None:
    expire = MemoryRecordStore.expire
    monkeypatch.setattr(MemoryRecordStore, "expire", lambda self, now: expire(self, now + values.LIFE_S))


def put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new version is taken, and at once the one before is there again."""
    put = MemoryRecordStore.put

    def put_and_restore(self: MemoryRecordStore, key: bytes, new: StoredRecord, now: float, **expected: Any) -> Any:
        held = self.find(key, new.slot)
        refusal = put(self, key, new, now, **expected)
        if refusal is None and held is not None and held.kind is RecordKind.MUTABLE and held.seq < new.seq:
            self.remove(key, new.slot)
            put(self, key, held, now)
        return refusal

    monkeypatch.setattr(MemoryRecordStore, "put", put_and_restore)


@pytest.mark.parametrize(
    ("name", "settings", "harm"),
    [
        ("overlay-massacre", MASSACRE, forget_early),
        ("overlay-churn", replace(MASSACRE, hours=0.02), forget_early),
        ("overlay-faults", FAULTS, put_back),
    ],
)
def test_storers_that_lose_a_value_are_found(
    name: str, settings: Settings, harm: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
):
    harm(monkeypatch)

    assert "nobody holds version" in assert_is_found("S3", name, settings)


def test_a_store_that_passes_its_cap_is_found(monkeypatch: pytest.MonkeyPatch):
    small = replace(values.config(), records=RecordConfig(max_records_per_owner=1))
    monkeypatch.setattr(values, "config", lambda: small)
    monkeypatch.setattr(Quotas, "refusal_of", lambda self, new, old: None)

    assert "records of one owner" in assert_is_found("S4", "overlay-massacre", MASSACRE)


def test_requests_that_go_on_after_their_time_are_found(monkeypatch: pytest.MonkeyPatch):
    call = VirtualPool.call

    def call_patiently(self: VirtualPool, peer: Any, endpoint: str, request: Any, *, timeout_s: float) -> Any:
        return call(self, peer, endpoint, request, timeout_s=10 * timeout_s)

    monkeypatch.setattr(VirtualPool, "call", call_patiently)

    assert "_dht." in assert_is_found("S5", "overlay-hostile", replace(MASSACRE, variant="silent-20"))
