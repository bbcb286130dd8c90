"""The programs of docs/how-to/mistakes.md, each in a process of its own beside the agents that the page speaks of."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import sys
import textwrap
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from dht import Swarm
from synapse_p2p import AgentNode, Client, Identity
from synapse_p2p.data_dir import DataDir
from synapse_p2p.runtime import system_runtime

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "mistakes.md").read_text(encoding="utf-8")
MISTAKE = re.compile(r"^### (.+)\n\n((?:    .*\n|\n)+)```text\n(.+)\n```$", re.MULTILINE)
MISTAKES = {title: (textwrap.dedent(program), line) for title, program, line in MISTAKE.findall(PAGE)}
IMPORTS = """\
import asyncio
from dht import Swarm
from synapse_p2p import AgentNode, Client, Server
from synapse_p2p.serializers import MessagePackRPCSerializer
"""
WITHOUT_EXTRA = "import sys; sys.modules['jsonschema'] = None\n"  # as if it were not there
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDEVMODE"}
# One process imports the packages, and each program is a child of it: twenty imports would take ten seconds.
FORKING = """
import os, runpy, sys
from dht import *
from synapse_p2p import *

for folder in sys.argv[1:]:
    if child := os.fork():
        os.waitpid(child, 0)
        continue
    os.chdir(folder)
    screen = os.open("printed", os.O_WRONLY | os.O_CREAT)
    os.dup2(screen, 1)
    os.dup2(screen, 2)
    runpy.run_path("program.py", run_name="__main__")
    sys.exit()
"""
KEY_FILE = "The key file is open to others"
PATIENCE_S = 90
BUSY_S = 3600


def agent(number: int, name: str, capability: str, port: int = 0, **options: int) -> AgentNode:
    identity = Identity.from_seed(bytes([number]) * 32)
    return AgentNode(name=name, role="agent", capabilities=[capability], identity=identity, port=port, **options)


@asynccontextmanager
async def agents_of_the_page() -> AsyncIterator[int]:
    """The port of the first; the others are in its swarm."""
    rita, nils = agent(1, "Rita", "python", plain="off"), agent(2, "Nils", "design")
    bea, is_busy = agent(3, "Bea", "testing", max_tasks=1, queue=0), asyncio.Event()

    @rita.endpoint()
    async def add(a: int, b: int) -> int:
        return a + b

    @bea.task_handler
    async def work(task: str, context: dict[str, str]) -> None:
        is_busy.set()
        await asyncio.sleep(BUSY_S)

    async with AsyncExitStack() as stack:
        seeds: list[str] = []
        for each in (rita, nils, bea):
            swarm = Swarm(each, bootstrap=seeds)
            await swarm.start(wait_joined=True)
            stack.push_async_callback(swarm.stop, grace=0)
            seeds = seeds or list(swarm.status().listening)
        client = await stack.enter_async_context(Client(port=bea.port))
        occupying = asyncio.ensure_future(client.call("_agent.ask", "for hours"))
        await is_busy.wait()
        yield rita.port
        occupying.cancel()


async def run_all(folders: Sequence[Path]) -> None:
    """Run `program.py` in each folder as a program of its own; what it prints is in `printed` there."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-u", "-c", FORKING, *folders, env=ENVIRONMENT)
    try:
        assert await asyncio.wait_for(process.wait(), PATIENCE_S) == 0
    finally:
        if process.returncode is None:
            process.kill()


def whole(program: str) -> str:
    """The program with what the page leaves out."""
    if "await" in program and "def main" not in program:
        program = f"async def main() -> None:\n{textwrap.indent(program, '    ')}\nasyncio.run(main())\n"
    return IMPORTS + program


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each program of the page printed, with the ports, the ids and the folder that the page has."""
    folders = {title: tmp_path_factory.mktemp("mistake") for title in MISTAKES}
    with socket.create_server(("127.0.0.1", 0)) as probe:
        closed_port = probe.getsockname()[1]

    async def main() -> int:
        async with agents_of_the_page() as port:
            for title, (program, _) in MISTAKES.items():
                text = whole(program).replace("9999", str(port)).replace("9998", str(closed_port))
                before = WITHOUT_EXTRA if "extra" in title else ""
                (folders[title] / "program.py").write_text(before + text, encoding="utf-8")
            DataDir.open(folders[KEY_FILE] / "rita", token_bytes=system_runtime().token_bytes).close()
            (folders[KEY_FILE] / "rita" / "node.key").chmod(0o644)
            await run_all(list(folders.values()))
            return port

    port = asyncio.run(main())
    texts = {title: (folder / "printed").read_text(encoding="utf-8") for title, folder in folders.items()}
    for title, text in texts.items():
        text = text.replace(f":{port}", ":9999").replace(f":{closed_port}", ":9998")
        texts[title] = re.sub("[0-9a-f]{64}", "ID", text.replace(str(folders[title]), "/home/you"))
    return texts


def test_the_page_has_twenty_mistakes():
    assert len(MISTAKES) == PAGE.count("\n### ") == 20


@pytest.mark.skipif(sys.platform == "win32", reason="no fork, other modes of files, and other words of the system")
@pytest.mark.parametrize("title", MISTAKES)
def test_the_last_line_is_the_one_on_the_page(title: str, printed: dict[str, str]):
    _, promised = MISTAKES[title]

    assert printed[title].splitlines()[-1] == promised
    assert ("Traceback" in printed[title]) is not promised.startswith("Error: ")
