"""`make demo`, to its end, and what it leaves running when it is told to."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

from dht.blocking import Swarm


def test_the_demo_shows_each_step_survives_eight_kills_and_can_be_explored():
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDEVMODE"}  # it logs more
    command = [sys.executable, "-u", "-m", "synapse_p2p.apps.demo", "--keep"]
    started_at = time.monotonic()

    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        said = ""
        while "Its key: " not in said:
            line = process.stdout.readline()
            assert line, said
            said += line
        took_s = time.monotonic() - started_at
        key = bytes.fromhex(re.findall(r"Its key: (\w+)", said)[0])
        members = re.findall(r"Members: (.*)", said)[0].split()
        with Swarm(bootstrap=members, network_key=key) as swarm:
            coders = swarm.find("coding")
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)

    assert (process.returncode, errors) == (0, "")
    assert re.findall(r"^(\d)\. ", said, re.MULTILINE) == list("12345678")
    assert "24 agents in 6 processes" in said
    assert said.count(" are dead (process ") == 2
    assert said.count("architect: split 'a calculator' in 3") == 2
    assert said.count(" of 3 parts are done") == 6
    assert said.count("reviewer: read it") == said.count("tester: ran it") == 6
    assert re.search(r"'the tests are green' is kept by [12]\d others", said)
    assert re.search(r"found in \d+ ms: 'the tests are green'", said)
    assert "A stranger without the network's key is turned away" in said
    assert len(members) == 4
    assert sorted(agent.name for agent in coders) == ["Chen", "Cleo", "Cora", "Curt"]
    assert took_s < 5 * 30, f"it takes under 30 s; here {took_s:.1f} s"
