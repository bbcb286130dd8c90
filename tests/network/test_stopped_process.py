"""A real process that is stopped by a signal: it says so once, and blames nobody for what it did not hear."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from dht import Swarm
from synapse_p2p import AgentNode, Client, Identity

STOPPED_S = 3.0

PROGRAM = textwrap.dedent(
    """
    import asyncio, logging
    from dht import DHTConfig, DHTNode
    from dht.config import HealthConfig
    from dht.events import PeerLeft, PeerSuspected
    from synapse_p2p import Server

    async def main():
        logging.basicConfig(level=logging.WARNING, format="LOG %(message)s")
        config = DHTConfig(health=HealthConfig(beat_s=0.2, drop_sessions_after_s=1.0))
        servers = [Server(port=0) for _ in range(4)]
        nodes = []
        for server in servers:
            await server.start()
            nodes.append(DHTNode(server, config=config))
            await nodes[-1].start()
            await nodes[-1].join([f"127.0.0.1:{servers[0].port}"])
        resumed = asyncio.Event()

        async def note():
            resumed.set()

        nodes[0].on_resumed.append(note)
        feed = nodes[0].events()
        print("READY", flush=True)
        await asyncio.wait_for(resumed.wait(), 30)
        await asyncio.sleep(1)
        found = [len(await node.find_node(nodes[0].id)) for node in nodes[1:]]
        print("FOUND", found, len(nodes[0].routing_table), flush=True)
        for node in nodes:
            await node.stop()
        told = [event async for event in feed]
        print("BLAMED", sum(isinstance(event, (PeerSuspected, PeerLeft)) for event in told), flush=True)
        for server in servers:
            await server.stop(grace=0)

    asyncio.run(main())
    """
)


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="processes are not stopped here")
def test_a_process_that_was_stopped_says_so_blames_nobody_and_comes_back():
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "READY\n"
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(STOPPED_S)
        os.kill(process.pid, signal.SIGCONT)
        said, logged = process.communicate(timeout=40)
    finally:
        process.kill()
        process.wait()

    assert said.splitlines() == ["FOUND [3, 3, 3] 3", "BLAMED 0"]
    # One warning of each of its nodes: each has a beat of its own.
    warnings = [line for line in logged.splitlines() if line.startswith("LOG nothing ran here for ")]
    assert len(warnings) == 4, logged
    assert all(2.0 < float(line.split()[5]) < 20.0 for line in warnings)


async def test_a_handler_that_blocks_the_loop_costs_one_warning_with_its_name(caplog: pytest.LogCaptureFixture):
    agent = AgentNode(name="slow", role="tester", capabilities=["waiting"], identity=Identity.from_seed(bytes(32)))

    @agent.task_handler
    async def wait_without_await(task: str, context: dict[str, str]) -> str:
        time.sleep(2.5)  # noqa: ASYNC251 - what nobody should do
        return "done"

    async with Swarm(agent, listen="127.0.0.1:0") as swarm:
        await asyncio.sleep(0.1)
        answer = await Client(port=agent.port).call("_agent.ask", "wait")
        await asyncio.sleep(1.5)  # the beat after it
        assert swarm.status().id == agent.identity.node_id

    assert answer == "done"
    told = [record.getMessage() for record in caplog.records if "nothing ran here" in record.getMessage()]
    assert len(told) == 1
    assert "wait_without_await (test_stopped_process.py:" in told[0]
