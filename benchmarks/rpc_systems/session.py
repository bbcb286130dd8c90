"""One encrypted session of this release, without the Client before it."""

from __future__ import annotations

from typing import Any

from synapse_p2p import Server
from synapse_p2p.config import PoolConfig, ServerConfig

TIMEOUT_S = 30.0
MAX_SESSIONS = 4096  # of the measurement of a thousand


async def serve() -> str:
    server = Server(
        port=0, config=ServerConfig(pool=PoolConfig(max_sessions=MAX_SESSIONS, max_idle_sessions=MAX_SESSIONS))
    )

    @server.endpoint("echo")
    async def echo(value: Any) -> Any:
        return value

    await server.start()
    return server.listening_addresses[0]


async def connect(place: str) -> tuple[Any, Any]:
    server = Server(port=0)  # never started: a client to its peer
    sessions = server.sessions
    peer = await sessions.connect_address(place)

    async def call(value: bytes) -> Any:
        return await sessions.call_with(peer, "echo", [value], {}, timeout_s=TIMEOUT_S)

    return call, server.stop
