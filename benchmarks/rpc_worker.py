"""One end of a measured exchange: a server or a client, of one system, in a process of its own.

Run by the interpreter of the release that it measures, so it imports nothing of this repository by path.

    rpc_worker.py server SYSTEM CORE          prints where it listens; then for each line read, its CPU seconds so far
    rpc_worker.py client SYSTEM CORE PLACE    for each line `IN_FLIGHT COUNT` makes that many calls of `echo` and prints
                                              the seconds that took, and of them its CPU seconds
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgpack

import synapse_p2p
from synapse_p2p.serializers import MessagePackRPCSerializer

PAYLOAD = b"0123456789abcdef0123456789abcdef"
TIMEOUT_S = 30.0

Echo = Callable[[bytes], Awaitable[Any]]


async def echo(value: Any) -> Any:
    """What every system serves."""
    return value


# The plain wire, of this release and of earlier ones


async def serve_plain() -> str:
    package: Any = synapse_p2p
    if hasattr(package, "Server"):
        server = package.Server(port=0)
    else:  # release 2
        server = package.Node(bind="127.0.0.1", heartbeat_interval=None)
    server.endpoint("echo")(echo)
    listener = await server.start()
    return str(listener.sockets[0].getsockname()[1])


async def plain_caller(place: str) -> Echo:
    # A serializer of one's own travels on the plain wire alone, in every release.
    own = type("OwnSerializer", (MessagePackRPCSerializer,), {})
    return _client_caller(synapse_p2p.Client(port=int(place), timeout=TIMEOUT_S, serializer_class=own))


def _client_caller(client: Any) -> Echo:
    async def call(value: bytes) -> Any:
        return await client.call("echo", value)

    return call


# One encrypted session


async def serve_session() -> str:
    server = synapse_p2p.Server(port=0)
    server.endpoint("echo")(echo)
    await server.start()
    return server.listening_addresses[0]


async def session_caller(place: str) -> Echo:
    sessions = synapse_p2p.Server(port=0).sessions  # never started: a client to its peer
    peer = await sessions.connect_address(place)

    async def call(value: bytes) -> Any:
        return await sessions.call_with(peer, "echo", [value], {}, timeout_s=TIMEOUT_S)

    return call


async def client_caller(place: str) -> Echo:
    return _client_caller(synapse_p2p.Client(port=int(place.rpartition(":")[2]), timeout=TIMEOUT_S))


# The limit: a bare Protocol, MsgPack and a Task for each request; no errors, no deadlines, no bounds


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


async def serve_bare() -> str:
    server = await asyncio.get_running_loop().create_server(BareServerEnd, "127.0.0.1", 0, backlog=1024)
    return str(server.sockets[0].getsockname()[1])


async def bare_caller(place: str) -> Echo:
    return (await _bare_connection(place)).call


async def bare_dialing_caller(place: str) -> Echo:
    async def call(value: bytes) -> Any:
        end = await _bare_connection(place)
        try:
            return await end.call(value)
        finally:
            end.transport.abort()

    return call


async def _bare_connection(place: str) -> BareClientEnd:
    _, end = await asyncio.get_running_loop().create_connection(BareClientEnd, "127.0.0.1", int(place))
    return end


SERVERS = {
    "plain": serve_plain,
    "session": serve_session,
    "client": serve_session,
    "bare": serve_bare,
    "bare-dialing": serve_bare,
}
CALLERS = {
    "plain": plain_caller,
    "session": session_caller,
    "client": client_caller,
    "bare": bare_caller,
    "bare-dialing": bare_dialing_caller,
}


async def run_server(system: str) -> None:
    print(await SERVERS[system](), flush=True)
    while await _next_line():
        print(time.process_time(), flush=True)


async def run_client(system: str, place: str) -> None:
    call = await CALLERS[system](place)
    while line := await _next_line():
        in_flight, count = map(int, line.split())
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        await asyncio.gather(*(_call_in_turn(call, count // in_flight) for _ in range(in_flight)))
        print(time.perf_counter() - wall_s, time.process_time() - cpu_s, flush=True)


async def _call_in_turn(call: Echo, count: int) -> None:
    for _ in range(count):
        if await call(PAYLOAD) != PAYLOAD:
            raise RuntimeError("an echo came back changed")


async def _next_line() -> str:
    return await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)


def main() -> None:
    role, system, core, *place = sys.argv[1:]
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core)})
    asyncio.run(run_server(system) if role == "server" else run_client(system, *place))


if __name__ == "__main__":
    main()
