"""A search for what nobody has, over real sockets, when half of the network is dead or frozen.

That half is a process of its own, which is killed or stopped: what is frozen still accepts connections, as the kernel
does that for it, and never answers.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from dht.node import DHTNode
from synapse_p2p import Server

HALF = 6
KEY, OTHER_KEY = b"\x5a" * 32, b"\xa5" * 32
SLACK = 5.0  # for a machine that does other things as well
START_S = 30.0

OTHER_HALF = f"""
import asyncio, sys
from dht.node import DHTNode
from synapse_p2p import Server

async def main():
    for _ in range({HALF}):
        server = Server("127.0.0.1", 0)
        await server.start()
        node = DHTNode(server)
        await node.start()
        await node.join([sys.argv[1]])
        nodes.append(node)
    print("ready", flush=True)
    await asyncio.Event().wait()

nodes = []
asyncio.run(main())
"""


@asynccontextmanager
async def two_halves() -> AsyncGenerator[tuple[DHTNode, asyncio.subprocess.Process]]:
    """A searcher among six nodes of this process, all of which know the six of the other."""
    servers = [Server("127.0.0.1", 0) for _ in range(HALF)]
    nodes: list[DHTNode] = []
    other = None
    try:
        for server in servers:
            await server.start()
            node = DHTNode(server)
            await node.start()
            nodes.append(node)
            if len(nodes) > 1:
                await node.join([servers[0].listening_addresses[0]])
        command = [sys.executable, "-c", OTHER_HALF, servers[0].listening_addresses[0]]
        root = Path(__file__).parents[2]
        other = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, cwd=root)
        assert other.stdout is not None
        async with asyncio.timeout(START_S):
            assert await other.stdout.readline() == b"ready\n"
            while len(nodes[1].routing_table) < 2 * HALF - 1:
                await nodes[1].find_node(nodes[1].id)
        yield nodes[1], other
    finally:
        if other is not None:
            if other.returncode is None:
                other.kill()
            await other.wait()
        for node in nodes:
            await node.stop()
        for server in servers:
            await server.stop(grace=0)


async def seek(node: DHTNode, key: bytes) -> float:
    """Ask for what nobody has: the seconds it took to find that out."""
    started_at = time.monotonic()
    assert await node.get(key) is None
    return time.monotonic() - started_at


@pytest.mark.linux
@pytest.mark.parametrize(("blow", "first_limit_s"), [(signal.SIGKILL, 1.0), (signal.SIGSTOP, 3.0)])
async def test_a_missing_key_costs_no_wait_for_the_dead_and_none_at_all_the_second_time(
    blow: signal.Signals, first_limit_s: float
):
    async with two_halves() as (searcher, other):
        await seek(searcher, OTHER_KEY)  # opens sessions with all of them, as in use
        os.kill(other.pid, blow)

        first_s = await seek(searcher, KEY)
        second_s = await seek(searcher, KEY)

        assert len(searcher.routing_table) == 2 * HALF - 1
        assert searcher.status().suspects == HALF  # who were asked and said nothing; half of the answers is no proof
        assert first_s < first_limit_s * SLACK
        assert second_s < 0.1 * SLACK
