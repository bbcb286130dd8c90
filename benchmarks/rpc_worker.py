"""One end of a measured exchange: a server or a client, of one system, in a process of its own.

Run by the interpreter in whose environment that system is installed, so it imports nothing of this repository but the
module of the system, from `rpc_systems/`: `serve()` returns the place where it listens, `connect(place)` a function
that calls and one that closes; `loop_factory` makes its event loop, where that is not asyncio's own; `loop` has the
methods of `AsyncioLoop`, where it lives on another loop than asyncio's.

    rpc_worker.py server SYSTEM CORE          prints where it listens; then for each line read what it asks for:
        cpu_s                                 CPU seconds so far
        rss_bytes                             memory, after a collection of garbage, whose time is no call's
    rpc_worker.py client SYSTEM CORE PLACE    for each line read does as it says, and prints the seconds that took, and
                                              of them its CPU seconds:
        call IN_FLIGHT COUNT BYTES            so many calls of `echo`, over one connection
        dial COUNT BYTES                      so many calls, each over a new connection
        hold COUNT                            open so many connections, make a call over each, and keep them
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
import resource
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).with_name("rpc_systems")))


class AsyncioLoop:
    """All that a worker asks of a loop."""

    def __init__(self, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None) -> None:
        self._loop_factory = loop_factory

    def run(self, main: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        """Until `main` ends."""
        with asyncio.Runner(loop_factory=self._loop_factory) as runner:
            runner.run(main(*args))

    async def in_thread(self, function: Callable[[], Any]) -> Any:
        """What a function returns that may block."""
        return await asyncio.get_running_loop().run_in_executor(None, function)

    async def at_once(self, count: int, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        """Let so many tasks do the same."""
        await asyncio.gather(*(function(*args) for _ in range(count)))


async def run_server(system: Any, loop: Any) -> None:
    print(await system.serve(), flush=True)
    while line := await loop.in_thread(sys.stdin.readline):
        if line == "rss_bytes\n":
            gc.collect()
            print(_rss_bytes(), flush=True)
        else:
            beside_s = system.beside_cpu_s() if hasattr(system, "beside_cpu_s") else 0.0
            print(time.process_time() + beside_s, flush=True)
    if hasattr(system, "end"):
        system.end()


async def run_client(system: Any, loop: Any, place: str) -> None:
    client = _Client(system, loop, place)
    while line := await loop.in_thread(sys.stdin.readline):
        action, *numbers = line.split()
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        await getattr(client, action)(*map(int, numbers))
        print(time.perf_counter() - wall_s, time.process_time() - cpu_s, flush=True)


class _Client:
    """Does what a line says. The connection that calls share is opened by the first of them."""

    def __init__(self, system: Any, loop: Any, place: str) -> None:
        self._system = system
        self._loop = loop
        self._place = place
        self._call: Any = None
        self._held: list[Any] = []

    async def call(self, in_flight: int, count: int, size_bytes: int) -> None:
        if self._call is None:
            self._call, _ = await self._system.connect(self._place)
        await self._loop.at_once(in_flight, _call_in_turn, self._call, _payload(size_bytes), count // in_flight)

    async def dial(self, count: int, size_bytes: int) -> None:
        payload = _payload(size_bytes)
        for _ in range(count):
            call, close = await self._system.connect(self._place)
            await _call_in_turn(call, payload, 1)
            await close()

    async def hold(self, count: int) -> None:
        for _ in range(count):
            self._held.append(await self._system.connect(self._place))
            await _call_in_turn(self._held[-1][0], b"x", 1)


async def _call_in_turn(call: Any, payload: bytes, count: int) -> None:
    for _ in range(count):
        if await call(payload) != payload:
            raise RuntimeError("an echo came back changed")


def _payload(size_bytes: int) -> bytes:
    return b"0123456789abcdef" * (size_bytes // 16) or b"x" * size_bytes


def _rss_bytes() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * resource.getpagesize()


def main() -> None:
    role, name, core, *place = sys.argv[1:]
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core)})
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    system = importlib.import_module(name)
    loop = getattr(system, "loop", None) or AsyncioLoop(getattr(system, "loop_factory", None))
    loop.run(run_server if role == "server" else run_client, system, loop, *place)


if __name__ == "__main__":
    main()
