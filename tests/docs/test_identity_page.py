"""The programs of docs/how-to/identity.md, run as a reader would type them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "identity.md"
PROGRAM = re.compile(r"```python\n# (\S+\.py)\n(.*?)```\n+```text\n(.*?)```", re.DOTALL)
# In development mode asyncio would write what it does beside what the programs print.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDEVMODE"}


@pytest.mark.parametrize("program", ["same_agent.py", "own_key.py", "checked_seed.py", "closed_swarm.py", "revoked.py"])
def test_program_prints_what_the_page_says(tmp_path: Path, program: str):
    programs = {name: (source, output) for name, source, output in PROGRAM.findall(PAGE.read_text(encoding="utf-8"))}
    source, promised = programs[program]
    (tmp_path / program).write_text(source, encoding="utf-8")
    environment = {**ENVIRONMENT, "XDG_STATE_HOME": str(tmp_path / "state"), "TMPDIR": str(tmp_path)}

    ended = subprocess.run(
        [sys.executable, "-W", "error", str(tmp_path / program)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env=environment,
    )

    assert ended.stdout == promised
    assert ("expected 00" in ended.stderr) == (program == "checked_seed.py")
