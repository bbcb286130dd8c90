"""`synapse demo`, to its end, what it leaves running when it is told to, and how it ends when it is told to."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from synapse_p2p.apps import demo
from synapse_p2p.apps.cli.exit_codes import CommandError, ExitCode
from synapse_p2p.apps.cli.screen import Screen
from synapse_p2p.apps.demo_worker import PROCESSES, Worker
from tests.cli.typing_commands import PATIENCE_S, ROOT, typed
from tests.docs.test_command_line_page import keys_on_the_page

ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDEVMODE"}  # it logs more


def test_the_demo_shows_each_step_survives_eight_kills_and_can_be_explored():
    command = [sys.executable, "-m", "synapse_p2p", "demo", "--keep", "--json"]
    started_at = time.monotonic()

    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()  # the story, some 5 KB, has room in its pipe meanwhile
        took_s = time.monotonic() - started_at
        measured = json.loads(line or "null")
        if measured is not None:
            here = ["--data-dir", measured["data_dir"]]
            coders = typed("find", "coding", *here, "--json").found["agents"]
            answer = typed("ask", "design", "a clock", *here, "--json").found
            watched = typed("watch", *here, "--seconds", "0.1", "--jsonl").lines
            process.send_signal(signal.SIGTERM)
        rest, said = process.communicate(timeout=PATIENCE_S)

    assert (process.returncode, rest) == (0, ""), said
    assert re.findall(r"^(\d)\. ", said, re.MULTILINE) == list("12345678")
    assert "24 agents in 6 processes" in said
    assert said.count(" are dead (process ") == 2
    assert said.count("architect: split 'a calculator' in 3") == 2
    assert said.count(" of 3 parts are done") == 6
    assert said.count("reviewer: read it") == said.count("tester: ran it") == 6
    assert re.search(r"'the tests are green' is kept by [12]\d others", said)
    assert re.search(r"found in \d+ ms: 'the tests are green'", said)
    assert "A stranger without the key is turned away: the peer refused" in said
    assert f"\n  python -m synapse_p2p watch --data-dir {measured['data_dir']}\n" in said
    assert said.endswith(f"All processes have ended. The whole demo took {measured['took_s']:.1f} s.\n")
    assert set(measured) == keys_on_the_page("demo")
    assert (measured["agents"], measured["processes"], measured["killed"]) == (24, 6, 8)
    assert (measured["found"], measured["found_again"]) == (6, 4)
    assert all(measured[name] > 0 for name in ("joined_ms", "found_ms", "asked_ms", "asked_again_ms", "value_ms"))
    assert sorted(agent["name"] for agent in coders) == ["Chen", "Cleo", "Cora", "Curt"]
    assert (answer["agent"]["name"], len(answer["result"]["parts"])) == ("Alan", 3)
    assert watched[0]["event"] == "watching"
    assert not Path(measured["data_dir"]).exists()
    assert took_s < 5 * 30, f"it takes under 30 s; here {took_s:.1f} s"


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
def test_ctrl_c_ends_the_demo_with_all_its_processes_and_it_needs_the_core_alone():
    core = "import runpy, sys; sys.modules['typer'] = sys.modules['rich'] = None; "
    command = [sys.executable, "-c", core + "runpy.run_module('synapse_p2p.apps.demo', run_name='__main__')"]

    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        cwd=ROOT,
        start_new_session=True,  # a terminal sends its Ctrl-C to all of a group
    ) as process:
        assert process.stdout is not None
        while not process.stdout.readline().startswith("2. "):
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE_S)  # it is read to its end, which comes with the last worker's

    assert (process.returncode, errors) == (130, "")


def test_what_is_typed_next_is_for_the_interpreter_that_was_called(monkeypatch: pytest.MonkeyPatch):
    programs: list[str] = []

    async def play(screen: Screen, **_: bool) -> None:
        programs.append(screen.program)

    monkeypatch.setattr(demo, "demo", play)
    monkeypatch.setattr(sys, "argv", ["/src/synapse_p2p/apps/demo.py"])
    monkeypatch.setattr(sys, "orig_argv", [".venv/bin/python", "-m", "synapse_p2p.apps.demo"])

    assert demo.main() == ExitCode.OK
    assert programs == [".venv/bin/python -m synapse_p2p"]


async def test_a_process_that_does_not_come_up_is_an_error_with_its_own_words_above(capfd: pytest.CaptureFixture[str]):
    worker = await Worker.start(PROCESSES[0], ["no address"], bytes(32))

    with pytest.raises(CommandError, match="the process of Ada ended before it had joined") as error:
        await worker.reports()

    await worker.stop()
    assert (error.value.code, error.value.next_commands) == (ExitCode.FAILED, ("demo",))
    assert "ConfigError: address 'no address' is not host:port" in capfd.readouterr().err
