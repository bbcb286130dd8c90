"""py-libp2p with streams that are kept: messages after their lengths, and a stream for each call that is in flight."""

from __future__ import annotations

from typing import Any

from libp2p.io.exceptions import IncompleteReadError  # pyrefly: ignore[missing-import]
from libp2p.io.msgio import VarIntLengthMsgReadWriter  # pyrefly: ignore[missing-import]
from libp2p.network.stream.exceptions import StreamError  # pyrefly: ignore[missing-import]
from libp2p_host import (  # noqa: F401  # pyrefly: ignore[missing-import]
    MAX_MESSAGE_BYTES,
    PROTOCOL,
    connected,
    disconnect,
    listening,
    loop,
)


async def serve() -> str:
    async def echo(stream: Any) -> None:
        messages = VarIntLengthMsgReadWriter(stream, MAX_MESSAGE_BYTES)
        try:
            while True:
                await messages.write_msg(await messages.read_msg())
        except (IncompleteReadError, StreamError):
            await stream.close()  # the caller has gone

    host, place = await listening()
    host.set_stream_handler(PROTOCOL, echo)
    return place


async def connect(place: str) -> tuple[Any, Any]:
    host, peer_id = await connected(place)
    idle: list[Any] = []

    async def call(value: bytes) -> bytes:
        if idle:
            messages = idle.pop()
        else:
            messages = VarIntLengthMsgReadWriter(await host.new_stream(peer_id, [PROTOCOL]), MAX_MESSAGE_BYTES)
        await messages.write_msg(value)
        answer = await messages.read_msg()
        idle.append(messages)
        return answer

    async def close() -> None:
        await disconnect(host, peer_id)

    return call, close
