"""The programs of how-to and tutorial pages that need nothing around them, run as a reader would type them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PROGRAM = re.compile(r"```python\n# (\S+\.py)\n(.*?)```\n+```text\n(.*?)```", re.DOTALL)
# In development mode asyncio would write what it does beside what the programs print.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDEVMODE"}


@pytest.mark.parametrize(
    ("page", "program"),
    [
        ("how-to/access.md", "doors.py"),
        ("how-to/access.md", "busy.py"),
        ("how-to/values.md", "values.py"),
        ("how-to/observe.md", "numbers.py"),
        ("how-to/observe.md", "traces.py"),
        ("how-to/find.md", "market.py"),
        ("how-to/nat.md", "client_only.py"),
        ("how-to/persistence.md", "twice.py"),
        ("tutorial/first_swarm.md", "alone.py"),
        ("tutorial/first_swarm.md", "cook.py"),
        ("tutorial/first_swarm.md", "nobody.py"),
        ("tutorial/ten_agents.md", "ten.py"),
        ("how-to/streaming.md", "tail.py"),
        ("how-to/streaming.md", "upload.py"),
        ("how-to/streaming.md", "progress.py"),
    ],
)
def test_program_prints_what_the_page_says(tmp_path: Path, page: str, program: str):
    text = (DOCS / page).read_text(encoding="utf-8")
    programs = {name: (source, output) for name, source, output in PROGRAM.findall(text)}
    source, promised = programs[program]
    (tmp_path / program).write_text(source, encoding="utf-8")

    ended = subprocess.run(
        [sys.executable, "-W", "error", str(tmp_path / program)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env=ENVIRONMENT,
    )

    assert (ended.stdout, ended.stderr) == (promised, "")
