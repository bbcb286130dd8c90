"""One seed is one digest: in another process, time zone and folder, beside others, on another version of Python.

The other versions are those whose environments lie beside this one; `make test-all` makes all of them, in turn.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from simulations.__main__ import main
from simulations.report import run_scenario
from simulations.scenarios import SCENARIOS, Settings

ROOT = Path(__file__).parents[2]
VERSIONS = ("3.11", "3.12", "3.13")
OWN_VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
SEED = 7
RUNS = {
    "lookups": Settings(nodes=10, lookups=10, seed=SEED),
    "faults": Settings(nodes=4, lookups=2, seed=SEED, hours=0.04),
    "churn": Settings(nodes=4, lookups=3, seed=SEED, hours=0.2, wire=True),
}
OF_THE_MACHINE = {"messages_per_s", "wall_s", "cpu_s", "peak_rss_bytes", "python"}

every_run = pytest.mark.parametrize("name", RUNS)


def lasting(figures: dict[str, Any]) -> dict[str, Any]:
    """Figures, but for what the machine has a part in."""
    return {name: value for name, value in figures.items() if name not in OF_THE_MACHINE}


def typed(name: str, python: str = sys.executable, folder: Path = ROOT, **environment: str) -> dict[str, Any]:
    """What a run reports that is typed in a shell of its own."""
    command = [python, "-m", "simulations", "run", name, *RUNS[name].arguments().split(), "--json"]
    shell = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "1", "TZ": "UTC0", **environment}
    shell.pop("PYTHONDEVMODE", None)  # it takes twice the time
    ended = subprocess.run(command, cwd=folder, env=shell, capture_output=True, text=True, check=True, timeout=120)
    return lasting(json.loads(ended.stdout))


@functools.cache
def plain(name: str) -> dict[str, Any]:
    """The run that others are compared with."""
    return typed(name)


def python_of(version: str) -> str | None:
    """The interpreter of an environment of this project that is complete; None where there is none."""
    for settings in ROOT.glob(".venv*/pyvenv.cfg"):
        python = settings.parent / "bin" / "python"
        if f"version = {version}." in settings.read_text() and (settings.parent / ".dev").exists() and python.exists():
            return str(python)
    return None


@every_run
def test_digest_is_the_same_with_another_hash_seed_in_another_time_zone_and_folder(name: str, tmp_path: Path):
    elsewhere = typed(name, folder=tmp_path, PYTHONHASHSEED="2", TZ="XXX-14")

    assert len(bytes.fromhex(elsewhere["digest"])) == 32
    assert elsewhere == plain(name)


@every_run
def test_digest_is_the_same_beside_another_worker_and_another_seed_has_another(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = RUNS[name].arguments().replace(f"--seed {SEED}", f"--seeds {SEED},{SEED + 1}").split()

    assert main(["sweep", name, *words, "--workers", "2", "--out", str(tmp_path), "--json"]) == 0

    same, other = json.loads(capsys.readouterr().out)["cells"]
    assert lasting(same) == plain(name)
    assert other["digest"] != same["digest"]


@every_run
def test_one_more_node_has_another_digest(name: str):
    settings = RUNS[name]

    figures = run_scenario(SCENARIOS[name], replace(settings, nodes=settings.nodes + 1)).figures

    assert figures["passed"]
    assert figures["digest"] != plain(name)["digest"]


@every_run
@pytest.mark.parametrize("version", [version for version in VERSIONS if version != OWN_VERSION])
def test_digest_is_the_same_on_other_versions_of_python(version: str, name: str):
    python = python_of(version)
    if python is None:
        pytest.skip(f"there is no environment of Python {version} here; `make test-{version}` makes one")

    assert typed(name, python, PYTHONHASHSEED="3") == plain(name)
