"""The example under docs/examples/testing: two hundred seeds find its race, the command they print shows it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "PYTHONDEV"))} | {
    "PYTHONPATH": str(ROOT)
}
RACE = "testing/test_race.py::test_every_job_is_done_once"
ENDED = re.compile(r"(?:(\d+) failed)?(?:, )?(?:(\d+) passed)? in ")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The examples, as somebody has them who copied the folder."""
    folder = tmp_path_factory.mktemp("examples")
    shutil.copytree(EXAMPLES / "testing", folder / "testing", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(
    scope="module", params=[pytest.param(RACE, id="race"), pytest.param("testing", id="all", marks=pytest.mark.gates)]
)
def found(folder: Path, request: pytest.FixtureRequest) -> tuple[str, int]:
    """What 200 seeds print, as on the page, and how many tests have to pass. The one with the race ends with the first
    seed that fails; the other plays all, for 15 s of a core, and is played with one seed in any case.
    """
    return pytest_says(folder, f"{request.param} --seeds 200"), int(request.param == "testing")


def pytest_says(folder: Path, arguments: str) -> str:
    """What `pytest arguments` prints."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:asyncio", *shlex.split(arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=folder, env=ENVIRONMENT, timeout=300
    ).stdout


def outcomes(printed: str) -> tuple[int, int]:
    """How many tests failed and how many passed."""
    ended = ENDED.search(printed.splitlines()[-1])
    assert ended is not None, printed
    return int(ended[1] or 0), int(ended[2] or 0)


def test_with_one_seed_nothing_is_found(folder: Path):
    assert outcomes(pytest_says(folder, "testing")) == (0, 2)


def test_many_seeds_find_the_race_and_the_printed_command_shows_it_again(folder: Path, found: tuple[str, int]):
    printed, passed = found
    command = re.search(
        r"^pytest (testing/test_race\.py::test_every_job_is_done_once --seed \d+)$", printed, re.MULTILINE
    )
    assert command is not None, printed
    again = pytest_says(folder, command[1])

    assert outcomes(printed) == (1, passed)
    assert f"FAILED {RACE} -" in printed
    assert outcomes(again) == (1, 0)
    assert errors(again) == errors(printed) != []


def test_the_page_shows_what_is_printed_but_for_the_seed(found: tuple[str, int]):
    printed, passed = found
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")

    shown = page.partition("$ pytest testing --seeds 200\n")[2].partition("```")[0].splitlines()

    assert len(shown) == 4
    assert set(map(without_seed, shown[1:3])) <= set(map(without_seed, printed.splitlines()))
    assert outcomes(shown[3] + " in 1 s") == (1, 1)
    assert outcomes(printed) == (1, passed)


def without_seed(line: str) -> str:
    return re.sub(r"seed \d+", "seed N", line)


def errors(printed: str) -> list[str]:
    return [line for line in printed.splitlines() if line.startswith("E  ")]
