"""What users write passes mypy --strict and pyright, against the wheel as they install it.

`make types` runs this file alone: it builds the wheel and a virtual environment that holds the wheel and nothing of
this checkout, so that a file or a marker that the wheel lacks is found.
"""

from __future__ import annotations

import re
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(__file__).with_name("programs")
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINE_OF_ERROR = re.compile(r"\.py:(\d+)(?::\d+)?(?::| -) error")
CHECKERS = {
    "mypy": [
        "mypy",
        "--strict",
        "--no-error-summary",
        "--no-color-output",
        "--cache-dir=.mypy_cache",
        "--python-executable",
    ],
    "pyright": ["pyright", "--pythonpath"],
}


@dataclass(frozen=True, slots=True)
class Installed:
    """A virtual environment with the wheel in it, and an empty folder to check programs in."""

    python: Path
    folder: Path

    def complaints(self, checker: str, programs: Path) -> list[str]:
        """The lines in which a checker complains about the programs in a folder; none if it is content."""
        command = [sys.executable, "-m", *CHECKERS[checker], str(self.python), str(programs)]
        # Not in the checkout, whose own packages would be found first.
        ended = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=300, check=False)
        complaints = [line.strip() for line in ended.stdout.splitlines() if LINE_OF_ERROR.search(line)]
        assert ended.returncode == bool(complaints), ended.stdout + ended.stderr
        return complaints


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    # Neither step asks an index: the build backend is in the dev extra, and the checkers need no dependency's code.
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run([*pip, *build], check=True, timeout=300)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    subprocess.run([*pip, "--python", python, "install", "--no-deps", "--no-index", wheel], check=True, timeout=300)
    (folder / "empty").mkdir()
    return Installed(python, folder / "empty")


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with each Python block of README.md and docs/ as a file of its own, named after its page."""
    folder = tmp_path_factory.mktemp("blocks")
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        name = re.sub(r"\W", "_", page.relative_to(ROOT).with_suffix("").as_posix())
        for index, block in enumerate(BLOCK.findall(page.read_text(encoding="utf-8"))):
            (folder / f"{name}_{index}.py").write_text(block, encoding="utf-8")
    return folder


@pytest.mark.parametrize("checker", CHECKERS)
def test_every_block_of_the_pages_has_sound_types(installed: Installed, blocks: Path, checker: str):
    assert len(list(blocks.iterdir())) > 5

    assert installed.complaints(checker, blocks) == []


@pytest.mark.parametrize("checker", CHECKERS)
def test_decorators_keep_signatures_and_results_have_types(installed: Installed, tmp_path: Path, checker: str):
    program = tmp_path / "signatures.py"
    program.write_bytes((PROGRAMS / "signatures.py").read_bytes())

    assert installed.complaints(checker, program) == []


@pytest.mark.parametrize("checker", CHECKERS)
def test_mistakes_of_users_are_found(installed: Installed, tmp_path: Path, checker: str):
    program = tmp_path / "mistakes.py"
    program.write_bytes((PROGRAMS / "mistakes.py").read_bytes())
    lines = program.read_text(encoding="utf-8").splitlines()
    mistakes = [number for number, line in enumerate(lines, start=1) if line.endswith("# mistake")]

    complaints = installed.complaints(checker, program)

    found = {int(number) for complaint in complaints for number in LINE_OF_ERROR.findall(complaint)}
    assert sorted(found) == mistakes
