"""Both ends that `abuse.py` measures, each a process of its own: the node that is attacked, and an honest client of it.

    python -m benchmarks.abuse_ends victim CONFIG     CONFIG: fields of ServerConfig as JSON; prints where it listens
        look              prints its CPU seconds, its resident bytes, and their peak since `begin`
        begin             forgets the peak
        descriptors N     may open so many from now on
    python -m benchmarks.abuse_ends client PLACE      calls at a steady pace, and connects anew now and then
        next              prints what it saw since the last time

All of it as JSON, a line for each line read. The node exempts no address from anything.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from synapse_p2p import Client, Server
from synapse_p2p.config import MIB, PoolConfig, ServerConfig, SessionConfig
from synapse_p2p.exceptions import SynapseError
from synapse_p2p.trust import TrustConfig

DESCRIPTORS = 4096  # that the node may open, but where it is to run out of them
PACE_S = 0.002  # between two calls: the client is no load of its own
CALLS_A_CONNECT = 25
PAYLOAD = b"x" * 32
TIMEOUT_S = 10.0
STATUS_BYTES = 8192
FORGET_PEAK = b"5"  # what Linux takes for it, in `clear_refs`


async def victim(said: str) -> None:
    """Serve, and tell what it costs."""
    descriptors(str(DESCRIPTORS))
    server = Server(port=0, config=config_of(json.loads(said)))

    @server.endpoint()
    async def echo(value: Any) -> Any:
        return value

    @server.endpoint()
    async def large() -> bytes:
        return b"x" * MIB  # made anew each time, and touched, so that it is memory

    # Opened now: later there may be no descriptor to look with.
    status = os.open("/proc/self/status", os.O_RDONLY)
    peak = os.open("/proc/self/clear_refs", os.O_WRONLY)

    def look() -> dict[str, Any]:
        fields = dict(line.split(":", 1) for line in os.pread(status, STATUS_BYTES, 0).decode().splitlines())
        return {
            "cpu_s": time.process_time(),
            "rss_bytes": int(fields["VmRSS"].split()[0]) * 1024,
            "peak_bytes": int(fields["VmHWM"].split()[0]) * 1024,
        }

    def begin() -> dict[str, Any]:
        os.write(peak, FORGET_PEAK)
        return look()

    await server.start()
    _say({"place": server.listening_addresses[0]})
    await _answer({"look": look, "begin": begin, "descriptors": descriptors})
    await server.stop(grace=0)


def config_of(fields: Mapping[str, Any]) -> ServerConfig:
    """That of a node which exempts nobody, with these `fields` and otherwise as it comes."""
    others = dict(fields)
    session = SessionConfig(**others.pop("session", {}))
    pool = PoolConfig(trust=TrustConfig(loopback=False, private=False))
    return ServerConfig(session=session, pool=pool, **others)


def descriptors(count: str) -> dict[str, Any]:
    """May open so many from now on; those that are open stay so."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(int(count), most), most))
    return {}


class HonestClient:
    """Calls over one session, and connects anew after some of them."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._seen = self._nothing()

    async def run(self) -> None:
        """Until it is cancelled."""
        async with Client(self._place, timeout=TIMEOUT_S) as client:
            while True:
                cpu_s = time.process_time()
                for _ in range(CALLS_A_CONNECT):
                    await self._timed("calls_s", client)
                    await asyncio.sleep(PACE_S)
                self._seen["cpu_us"].append((time.process_time() - cpu_s) / CALLS_A_CONNECT * 1e6)
                async with Client(self._place, timeout=TIMEOUT_S) as newcomer:
                    await self._timed("connects_s", newcomer)

    def next(self) -> dict[str, Any]:
        """What was seen since then: seconds of calls and of connects, CPU of a call in each batch, failures."""
        seen, self._seen = self._seen, self._nothing()
        return seen

    async def _timed(self, kind: str, client: Client) -> None:
        began_at = time.perf_counter()
        try:
            if await client.call("echo", PAYLOAD) != PAYLOAD:
                raise RuntimeError("an echo came back changed")
        except SynapseError as error:
            self._seen["failures"].append(f"{kind}: {error}")
        else:
            self._seen[kind].append(time.perf_counter() - began_at)

    @staticmethod
    def _nothing() -> dict[str, Any]:
        return {"calls_s": [], "connects_s": [], "cpu_us": [], "failures": []}


async def client(place: str) -> None:
    """Call, and tell how that went."""
    honest = HonestClient(place)
    calling = asyncio.ensure_future(honest.run())
    _say({})
    await _answer({"next": honest.next})
    calling.cancel()
    await asyncio.gather(calling, return_exceptions=True)


async def _answer(answers: dict[str, Callable[..., dict[str, Any]]]) -> None:
    """Answer line by line until the input ends."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := (await reader.readline()).decode().split():
        _say(answers[line[0]](*line[1:]))


def _say(said: dict[str, Any]) -> None:
    print(json.dumps(said), flush=True)


if __name__ == "__main__":
    asyncio.run({"victim": victim, "client": client}[sys.argv[1]](sys.argv[2]))
