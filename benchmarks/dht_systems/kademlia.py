"""`kademlia`: pure Python, asyncio, plaintext UDP; 20 replicas.

Requests are counted where datagrams leave: those that begin with the byte of a request.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from kademlia.network import Server  # pyrefly: ignore[missing-import]
from kademlia.utils import digest  # pyrefly: ignore[missing-import]

REQUEST = b"\x00"
HOST = "127.0.0.1"


class Node:
    """One server."""

    def __init__(self) -> None:
        self.server: Any = Server()
        self._requests = 0

    async def start(self) -> None:
        await self.server.listen(0, interface=HOST)
        transport = self.server.protocol.transport
        sendto = transport.sendto

        def counted(data: bytes, address: tuple[str, int]) -> None:
            self._requests += data[:1] == REQUEST
            sendto(data, address)

        transport.sendto = counted

    @property
    def port(self) -> int:
        return self.server.transport.get_extra_info("sockname")[1]

    async def put(self, value: bytes) -> str | None:
        key = value.hex()
        return key if await self.server.set(key, value) else None

    async def get(self, key: str) -> bytes | None:
        return await self.server.get(key)

    def holds(self, key: str) -> bool:
        return self.server.storage.get(digest(key)) is not None

    async def requests_sent(self) -> int:
        return self._requests

    async def kill(self) -> None:
        self.server.stop()  # closes the socket; it says no goodbye


class System:
    """A swarm of them."""

    async def start(self, others: Sequence[Node]) -> Node:
        node = Node()
        await node.start()
        if others:
            await node.server.bootstrap([(HOST, others[0].port)])
        return node

    def missing_key(self, rng: random.Random) -> str:
        return rng.randbytes(20).hex()
