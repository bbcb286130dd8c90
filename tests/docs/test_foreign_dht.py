"""Beside a foreign `dht.py` and `simulations/`, what needs no swarm works, and the rest says why it does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("PYTHONDEVMODE", "PYTHONSAFEPATH")}

RPC_AND_AGENT = """
import asyncio

from synapse_p2p import AgentNode, Client, RemoteError, Server, Timeout, __version__

agent = AgentNode(name="Rhea", role="reviewer", port=0)


@agent.endpoint()
async def add(a: int, b: int) -> int:
    return a + b


@agent.task_handler
async def handle(task: str, context: dict[str, str]) -> str:
    return f"did {task}"


async def main() -> None:
    await agent.start()
    client = Client(port=agent.port)
    print(await client.call("add", 2, 3), await client.call("_agent.ask", "it"))
    await agent.stop()


asyncio.run(main())
"""


@pytest.fixture
def foreign_folder(tmp_path: Path) -> Path:
    """Both names are taken, by files that must never run."""
    (tmp_path / "dht.py").write_text("raise RuntimeError('the foreign dht ran')\n", encoding="utf-8")
    (tmp_path / "simulations").mkdir()
    (tmp_path / "simulations" / "__init__.py").write_text(
        "raise RuntimeError('the foreign simulations ran')\n", encoding="utf-8"
    )
    return tmp_path


def run(folder: Path, program: str, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "program.py").write_text(program, encoding="utf-8")
    return subprocess.run(
        [sys.executable, *options, "program.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=ENVIRONMENT,
    )


def test_rpc_and_agents_work_beside_a_foreign_dht(foreign_folder: Path):
    ended = run(foreign_folder, RPC_AND_AGENT)

    assert ended.stderr == ""
    assert ended.stdout == "5 did it\n"


@pytest.mark.parametrize("name", ["Swarm", "DHTNode"])
def test_import_of_a_swarm_names_the_foreign_file_and_the_cure(foreign_folder: Path, name: str):
    ended = run(foreign_folder, f"from synapse_p2p import {name}")

    message = ended.stderr.splitlines()[-1]
    assert ended.returncode == 1
    assert message.startswith(f"ImportError: {name} ")
    assert str(foreign_folder / "dht.py") in message
    assert "python -P" in message
    assert "another folder" in message


def test_foreign_dht_that_is_imported_already_is_named_too(tmp_path: Path):
    (tmp_path / "dht").mkdir()
    (tmp_path / "dht" / "__init__.py").write_text("", encoding="utf-8")

    ended = run(tmp_path, "import dht\nfrom synapse_p2p import Swarm")

    assert str(tmp_path / "dht" / "__init__.py") in ended.stderr.splitlines()[-1]


def test_foreign_dht_does_not_run_when_a_swarm_is_named(foreign_folder: Path):
    (foreign_folder / "dht.py").write_text("print('the foreign dht ran')\n", encoding="utf-8")

    ended = run(foreign_folder, "try:\n    from synapse_p2p import Swarm\nexcept ImportError:\n    print('refused')")

    assert ended.stdout == "refused\n"


def test_cure_cures(foreign_folder: Path):
    ended = run(foreign_folder, "from synapse_p2p import DHTNode, Swarm\nprint(Swarm.__module__)", "-P")

    assert ended.stderr == ""
    assert ended.stdout == "dht.swarm\n"
