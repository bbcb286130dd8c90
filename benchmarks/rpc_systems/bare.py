"""The limit: a bare asyncio Protocol, MsgPack, and a Task for each request. No errors, no deadlines, no bounds."""

from __future__ import annotations

import asyncio
from typing import Any

import msgpack


async def echo(value: Any) -> Any:
    """What it serves."""
    return value


class BareEnd(asyncio.Protocol):
    """Four bytes of length and `[id, value]`, in both directions. Frames of one turn of the loop leave in one write."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.buffer = bytearray()
        self.outgoing: list[Any] = []
        self.loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        position = 0
        while len(self.buffer) - position >= 4:
            end = position + 4 + int.from_bytes(self.buffer[position : position + 4], "big")
            if len(self.buffer) < end:
                break
            self.receive(*msgpack.unpackb(self.buffer[position + 4 : end]))
            position = end
        del self.buffer[:position]

    def send(self, call_id: int, value: Any) -> None:
        payload: Any = msgpack.packb([call_id, value])
        if not self.outgoing:
            self.loop.call_soon(self.flush)
        self.outgoing += [len(payload).to_bytes(4, "big"), payload]

    def flush(self) -> None:
        self.transport.write(b"".join(self.outgoing))
        self.outgoing.clear()

    def receive(self, call_id: int, value: Any) -> None:
        raise NotImplementedError


class BareServerEnd(BareEnd):
    """Answers each request in a Task."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks: set[asyncio.Task[None]] = set()

    def receive(self, call_id: int, value: Any) -> None:
        task = self.loop.create_task(self.answer(call_id, value))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def answer(self, call_id: int, value: Any) -> None:
        self.send(call_id, await echo(value))


class BareClientEnd(BareEnd):
    """Hands each answer to the Future that waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: dict[int, asyncio.Future[Any]] = {}
        self.last_id = 0

    async def call(self, value: bytes) -> Any:
        self.last_id += 1
        future = self.waiting[self.last_id] = self.loop.create_future()
        self.send(self.last_id, value)
        return await future

    def receive(self, call_id: int, value: Any) -> None:
        self.waiting.pop(call_id).set_result(value)


async def serve() -> str:
    server = await asyncio.get_running_loop().create_server(BareServerEnd, "127.0.0.1", 0, backlog=1024)
    return str(server.sockets[0].getsockname()[1])


async def connect(place: str) -> tuple[Any, Any]:
    _, end = await asyncio.get_running_loop().create_connection(BareClientEnd, "127.0.0.1", int(place))

    async def close() -> None:
        end.transport.abort()

    return end.call, close
