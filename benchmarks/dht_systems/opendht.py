"""`opendht`: C++ with a thread for each node, plaintext UDP; 8 replicas. Through its asyncio wrapper.

Requests are those that each node counts itself as sent (`getNodeMessageStats`, which starts anew at each reading). Its
limits of requests a second, in all and for each address, are lifted: here all nodes share one address.

What a node says of itself is asked for only while it has nothing under way. The binding holds Python's lock while it
waits for the node's, and a node's thread that calls back waits for Python's: together they would wait for ever.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Sequence
from typing import Any

import opendht  # pyrefly: ignore[missing-import]
from opendht.aio import DhtRunner  # pyrefly: ignore[missing-import]

from benchmarks.dht_worker import until

HOST = "127.0.0.1"
LET_GO_S = 0.001  # in which a thread that waits for Python's lock gets it
NO_LIMIT = 1_000_000  # requests a second


class Node:
    """One runner."""

    def __init__(self) -> None:
        config = opendht.DhtConfig()
        config.setRateLimit(NO_LIMIT, NO_LIMIT)
        self.runner: Any = DhtRunner(config=config)
        self.runner.run(ipv4=HOST, port=0)
        self._requests = 0
        self._storage_log = ""

    @property
    def port(self) -> int:
        return self.runner.getBound().getPort()

    def has_contacts(self) -> bool:
        return "Node" in self.runner.getRoutingTablesLog(socket.AF_INET)

    async def put(self, value: bytes) -> Any:
        key = opendht.InfoHash.get(value.hex())
        return str(key) if await self.runner.put(key, opendht.Value(value)) else None

    async def get(self, key: str) -> bytes | None:
        try:
            value = await self.runner.getFirst(opendht.InfoHash(key.encode()))
        except RuntimeError:  # how its wrapper says that nobody answered
            return None
        return value.data if value is not None else None

    def holds(self, key: str) -> bool:
        return key in self._storage_log

    async def requests_sent(self) -> int:
        await asyncio.sleep(LET_GO_S)
        self._requests += sum(self.runner.getNodeMessageStats())
        self._storage_log = self.runner.getStorageLog()
        return self._requests

    async def kill(self) -> None:
        await self.runner.join()  # without shutdown(), which would announce what it stores


class System:
    """A swarm of them."""

    async def start(self, others: Sequence[Node]) -> Node:
        node = Node()
        await until(lambda: node.port > 0, what="listening")
        if others:
            node.runner.bootstrap(HOST, str(others[0].port))
            await until(node.has_contacts, what="a join")
        return node

    def missing_key(self, rng: random.Random) -> str:
        return rng.randbytes(20).hex()
