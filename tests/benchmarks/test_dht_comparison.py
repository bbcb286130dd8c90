from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import dht
from benchmarks.dht import Comparison, SwarmFailed, report, run_swarm

FIGURES = {"join_cpu_s": 1.0, "get_mean_ms": 1.0, "get_requests": 3.0}


@pytest.fixture(autouse=True)
def nothing_is_installed_or_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dht, "python_of", lambda release, name: Path(sys.executable))
    monkeypatch.setattr(dht, "run_swarm", lambda python, name, nodes, seed: {"nodes": nodes, **FIGURES})


def test_systems_take_turns_within_each_round(monkeypatch: pytest.MonkeyPatch):
    ran = []
    monkeypatch.setattr(dht, "run_swarm", lambda python, name, nodes, seed: ran.append((name, nodes)) or FIGURES)

    Comparison(["synapse", "kademlia"], [5, 10]).measure(2)

    assert ran == 2 * [("synapse", 5), ("kademlia", 5), ("synapse", 10), ("kademlia", 10)]


def test_rounds_that_would_not_fit_the_time_are_not_begun(monkeypatch: pytest.MonkeyPatch):
    now = 0.0

    def take_ten_seconds(python: Path, name: str, nodes: int, seed: int) -> Any:
        nonlocal now
        now += 10
        return {"nodes": nodes, **FIGURES}

    monkeypatch.setattr(dht, "run_swarm", take_ten_seconds)
    monkeypatch.setattr(dht.time, "monotonic", lambda: now)

    counts = []
    for within_s in (5, 29, 30, 1000):
        comparison = Comparison(["kademlia"], [50])
        comparison.measure(4, within_s=within_s)
        counts.append(len(comparison.rounds[50]["kademlia"]))

    assert counts == [1, 2, 3, 4]


def test_what_pip_cannot_install_is_absent_and_the_others_are_measured(monkeypatch: pytest.MonkeyPatch):
    def only_kademlia(release: str, name: str) -> Path:
        if name != "kademlia":
            raise subprocess.CalledProcessError(1, "pip")
        return Path(sys.executable)

    monkeypatch.setattr(dht, "python_of", only_kademlia)

    comparison = Comparison(["synapse", "kademlia", "opendht"], [100])
    comparison.measure(1)

    assert [len(rounds) for rounds in comparison.rounds[100].values()] == [1, 1, 0]
    assert "opendht: not measured: not installed: Command 'pip' returned" in report(comparison)


def test_a_system_that_fails_once_is_out_of_every_round_and_its_limits_unmet(monkeypatch: pytest.MonkeyPatch):
    def fail_in_the_second_round(python: Path, name: str, nodes: int, seed: int) -> Any:
        if name == "synapse" and seed != dht.SEED:
            raise SwarmFailed("RuntimeError: it broke")
        return {"nodes": nodes, **FIGURES}

    monkeypatch.setattr(dht, "run_swarm", fail_in_the_second_round)

    comparison = Comparison(["synapse", "kademlia"], [50])
    comparison.measure(3)

    assert [len(rounds) for rounds in comparison.rounds[50].values()] == [0, 3]
    assert "synapse: not measured: failed with 50 nodes: RuntimeError: it broke" in report(comparison)
    assert {verdict.outcome for verdict in comparison.verdicts()} == {dht.Outcome.NOT_MEASURED}


@pytest.mark.parametrize(
    ("name", "failure", "tries"),
    [("libtorrent", "MemoryError", 2), ("libtorrent", "RuntimeError: it broke", 1), ("synapse", "MemoryError", 1)],
)
def test_what_only_the_bindings_of_libtorrent_do_is_tried_once_more_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, name: str, failure: str, tries: int
):
    ran: list[str] = []

    def fail(python: Path, name: str, nodes: int, seed: int) -> Any:
        ran.append(name)
        raise SwarmFailed(failure)

    monkeypatch.setattr(dht, "run_swarm", fail)

    Comparison([name], [50]).measure(1)

    assert ran == [name] * tries


def test_the_exit_status_is_1_when_a_limit_was_not_met(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["dht", "--nodes", "50", "--rounds", "1", "--systems", "synapse"])

    assert dht.main() == 1


def test_a_worker_that_ends_without_figures_says_why():
    with pytest.raises(SwarmFailed, match="no such system: chord; one of synapse, kademlia"):
        run_swarm(Path(sys.executable), "chord", 3, 1)
