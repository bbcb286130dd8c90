"""The Client of this release, which keeps one encrypted session."""

from __future__ import annotations

from typing import Any

from session import TIMEOUT_S, serve  # noqa: F401  # pyrefly: ignore[missing-import]

from synapse_p2p import Client


async def connect(place: str) -> tuple[Any, Any]:
    client = Client(port=int(place.rpartition(":")[2]), timeout=TIMEOUT_S)

    async def call(value: bytes) -> Any:
        return await client.call("echo", value)

    return call, client.close
