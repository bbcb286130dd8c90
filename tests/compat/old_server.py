"""A server of an earlier release, run by the interpreter of that release's environment.

Prints its port and serves until its standard input ends.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import synapse_p2p

DESCRIPTION = {"name": "Reviewer", "role": "reviewer", "description": "Reviews code.", "capabilities": ["python"]}


def make_server() -> Any:
    if hasattr(synapse_p2p, "AgentNode"):  # release 1
        server = synapse_p2p.AgentNode(**DESCRIPTION)
        server.port = 0
        takes_tasks = server.task_handler
    else:  # release 2
        server = synapse_p2p.Node(bind="127.0.0.1", heartbeat_interval=None, **DESCRIPTION)
        takes_tasks = server.ask

    @takes_tasks
    async def work(task: str, context: dict[str, Any]) -> dict[str, Any]:
        return {"task": task, "context": context}

    return server


def offer_endpoints(server: Any) -> None:
    @server.endpoint("sum", description="Adds.")
    async def add(a: int, b: int, scale: int = 1) -> int:
        return (a + b) * scale

    @server.endpoint("echo")
    async def echo(*args: Any, **kwargs: Any) -> Any:
        return [args, kwargs]

    @server.endpoint("zeros", publish=False)
    async def zeros(count: int) -> bytes:
        return bytes(count)

    @server.endpoint("boom", publish=False)
    async def boom() -> None:
        raise ValueError("the reason")

    @server.endpoint("hang", publish=False)
    async def hang() -> None:
        await asyncio.Event().wait()


async def main() -> None:
    server = make_server()
    offer_endpoints(server)
    listener = await server.start()
    print(listener.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


asyncio.run(main())
