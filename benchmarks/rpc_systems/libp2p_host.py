"""Hosts of py-libp2p with its defaults, which are TCP, Noise and yamux, and the loop of trio that they live on.

Each host identifies itself to the other end after the handshake, as it does where it is used.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio  # pyrefly: ignore[missing-import]
from libp2p import new_host  # pyrefly: ignore[missing-import]
from libp2p.peer.peerinfo import info_from_p2p_addr  # pyrefly: ignore[missing-import]
from multiaddr import Multiaddr  # pyrefly: ignore[missing-import]

PROTOCOL = "/echo/1.0.0"
MAX_MESSAGE_BYTES = 4 * 2**20
TIMEOUT_S = 30.0


class TrioLoop:
    """What the worker asks of a loop; and the nursery in which hosts run until the worker ends."""

    def __init__(self) -> None:
        self.lasting: Any = None

    def run(self, main: Callable[..., Awaitable[None]], *args: Any) -> None:
        async def main_and_hosts() -> None:
            async with trio.open_nursery() as self.lasting:
                await main(*args)
                self.lasting.cancel_scope.cancel()

        trio.run(main_and_hosts)

    async def in_thread(self, function: Callable[[], Any]) -> Any:
        return await trio.to_thread.run_sync(function)

    async def at_once(self, count: int, function: Callable[..., Awaitable[None]], *args: Any) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(function, *args)


loop = TrioLoop()


async def listening() -> tuple[Any, str]:
    """A new host that others can dial, and where."""
    host = await loop.lasting.start(_run_host, [Multiaddr("/ip4/127.0.0.1/tcp/0")])
    return host, str(host.get_addrs()[0])


async def connected(place: str) -> tuple[Any, Any]:
    """A host with a new connection, and the peer at its other end: a host is made once and dials often."""
    host = _idle.pop() if _idle else await loop.lasting.start(_run_host, [])
    peer = info_from_p2p_addr(Multiaddr(place))
    await host.connect(peer)
    return host, peer.peer_id


async def disconnect(host: Any, peer_id: Any) -> None:
    """Close what `connected` gave."""
    await host.disconnect(peer_id)
    _idle.append(host)


_idle: list[Any] = []


async def _run_host(addresses: list[Any], task_status: Any) -> None:
    host = new_host()
    async with host.run(listen_addrs=addresses):
        task_status.started(host)
        await trio.sleep_forever()
