"""py-libp2p's own request and response, which opens a stream for each call, over one connection."""

from __future__ import annotations

from typing import Any

from libp2p.request_response import (  # pyrefly: ignore[missing-import]
    BytesCodec,
    RequestResponse,
    RequestResponseConfig,
)
from libp2p_host import (  # noqa: F401  # pyrefly: ignore[missing-import]
    MAX_MESSAGE_BYTES,
    PROTOCOL,
    TIMEOUT_S,
    connected,
    disconnect,
    listening,
    loop,
)

CODEC = BytesCodec()
CONFIG = RequestResponseConfig(timeout=TIMEOUT_S, max_request_size=MAX_MESSAGE_BYTES)


async def serve() -> str:
    async def echo(value: bytes, context: Any) -> bytes:
        return value

    host, place = await listening()
    RequestResponse(host).set_handler(PROTOCOL, echo, CODEC, CONFIG)
    return place


async def connect(place: str) -> tuple[Any, Any]:
    host, peer_id = await connected(place)
    requests = RequestResponse(host)

    async def call(value: bytes) -> bytes:
        return await requests.send_request(peer_id, [PROTOCOL], value, CODEC, CONFIG)

    async def close() -> None:
        await disconnect(host, peer_id)

    return call, close
