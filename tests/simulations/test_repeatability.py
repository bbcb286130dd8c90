"""One seed is one digest: in another process, with another hash seed, on another version of Python.

The other versions are those whose environments lie beside this one; `make test-all` makes all of them, in turn.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
VERSIONS = ("3.11", "3.12", "3.13")
OWN_VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
COMMAND = "-m simulations run lookups --nodes 30 --lookups 30 --seed 7 --json"
OF_THE_MACHINE = {"messages_per_s", "wall_s", "cpu_s", "peak_rss_bytes", "python"}


@functools.cache
def figures(python: str, hash_seed: str) -> dict[str, Any]:
    """What a run reports, but for what the machine takes."""
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    ended = subprocess.run(
        [python, *COMMAND.split()], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return {name: value for name, value in json.loads(ended.stdout).items() if name not in OF_THE_MACHINE}


def python_of(version: str) -> str | None:
    """The interpreter of an environment of this project that is complete; None where there is none."""
    for settings in ROOT.glob(".venv*/pyvenv.cfg"):
        python = settings.parent / "bin" / "python"
        if f"version = {version}." in settings.read_text() and (settings.parent / ".dev").exists() and python.exists():
            return str(python)
    return None


def test_digest_is_the_same_in_processes_with_other_hash_seeds():
    first, second = (figures(sys.executable, hash_seed) for hash_seed in ("1", "2"))

    assert len(bytes.fromhex(first["digest"])) == 32
    assert first == second


@pytest.mark.parametrize("version", [version for version in VERSIONS if version != OWN_VERSION])
def test_digest_is_the_same_on_other_versions_of_python(version: str):
    python = python_of(version)
    if python is None:
        pytest.skip(f"there is no environment of Python {version} here; `make test-{version}` makes one")

    assert figures(python, "3") == figures(sys.executable, "1")
