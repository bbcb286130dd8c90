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
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from dht.contact import Contact
from dht.lookup import LookupMode, LookupOutcome
from dht.messages import FindValue
from dht.node import DHTNode
from synapse_p2p import Server

HALF = 6
KEY = b"\x5a" * 32
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


async def seek(node: DHTNode) -> tuple[float, LookupOutcome]:
    """Look for a value under a key that nobody has: the seconds it took, and how it ended."""
    requester = node._requester

    async def ask(contact: Contact) -> tuple[Sequence[Contact], bool]:
        answer = await requester.find_value(contact, FindValue(KEY))
        return answer.contacts, bool(answer.records)

    started_at = time.monotonic()
    outcome = await requester.lookup(KEY, LookupMode.FAST, ask=ask)
    return time.monotonic() - started_at, outcome


@pytest.mark.linux
@pytest.mark.parametrize(("blow", "first_limit_s"), [(signal.SIGKILL, 1.0), (signal.SIGSTOP, 3.0)])
async def test_a_missing_key_costs_no_wait_for_the_dead_and_none_at_all_the_second_time(
    blow: signal.Signals, first_limit_s: float
):
    async with two_halves() as (searcher, other):
        _, whole = await seek(searcher)
        os.kill(other.pid, blow)

        first_s, first = await seek(searcher)
        second_s, second = await seek(searcher)

    assert (whole.found, whole.complete, len(whole.closest)) == (False, True, 2 * HALF - 1)
    assert first.failed == HALF
    assert len(first.closest) == len(second.closest) == HALF - 1
    assert not first.complete  # half of those that have to be there said nothing
    assert second.failed == 0
    assert first_s < first_limit_s * SLACK
    assert second_s < 0.1 * SLACK
