"""`make demo`, to its end."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time


def test_the_demo_shows_each_step_and_survives_two_kills():
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDEVMODE"}  # it logs more
    command = [sys.executable, "-m", "synapse_p2p.apps.demo"]
    started_at = time.monotonic()

    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, env=environment)

    took_s = time.monotonic() - started_at
    assert (ended.returncode, ended.stderr) == (0, "")
    assert re.findall(r"^(\d)\. ", ended.stdout, re.MULTILINE) == list("12345678")
    assert "8 agents in 6 processes" in ended.stdout
    assert ended.stdout.count(" is dead (process ") == 2
    assert ended.stdout.count("answered in ") == 2
    assert "'the tests are green' is kept by 8 others" in ended.stdout
    assert re.search(r"found in \d+ ms: 'the tests are green'", ended.stdout)
    assert "A stranger without the network's key is turned away" in ended.stdout
    assert took_s < 5 * 10, f"it takes under 10 s on a quiet machine; here {took_s:.1f} s"
