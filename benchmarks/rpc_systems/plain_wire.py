"""The plain wire, of this release and of earlier ones: a connection for each call."""

from __future__ import annotations

from typing import Any

import synapse_p2p
from synapse_p2p.serializers import MessagePackRPCSerializer

TIMEOUT_S = 30.0
MAX_BYTES = 4 * 2**20


async def serve() -> str:
    package: Any = synapse_p2p
    if hasattr(package, "Server"):
        server = package.Server(port=0, max_upload_size=MAX_BYTES)
    else:  # release 2
        server = package.Node(bind="127.0.0.1", heartbeat_interval=None)

    async def echo(value: Any) -> Any:
        return value

    server.endpoint("echo")(echo)
    listener = await server.start()
    return str(listener.sockets[0].getsockname()[1])


async def connect(place: str) -> tuple[Any, Any]:
    # A serializer of one's own travels on the plain wire alone, in every release.
    own = type("OwnSerializer", (MessagePackRPCSerializer,), {})
    client: Any = synapse_p2p.Client(port=int(place), timeout=TIMEOUT_S, serializer_class=own)

    async def call(value: bytes) -> Any:
        return await client.call("echo", value)

    async def close() -> None:
        pass

    return call, close
