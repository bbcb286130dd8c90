"""Ours: a DHTNode on a Server, encrypted TCP; about 20 replicas.

Requests are the calls that an operation made, and whatever it set off at its node; what nodes do of their own accord,
such as looking through the key space after a join, is left out. A handshake is an encrypted connection that some node
accepted. A killed node's connections break without a goodbye, and its port closes.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

from dht import DHTNode
from synapse_p2p import Server

KEY_SIZE_BYTES = 32
WARM_HANDSHAKES = 10
HANDSHAKES = 50  # whose CPU is measured
NEEDED = ("put", "get", "put_mutable")

T = TypeVar("T")
_IS_OPERATION: ContextVar[bool] = ContextVar("is_operation", default=False)


async def _operation(awaitable: Awaitable[T]) -> T:
    """Let requests be counted, of this task and of those that it begins."""
    token = _IS_OPERATION.set(True)
    try:
        return await awaitable
    finally:
        _IS_OPERATION.reset(token)


class Records:
    """What this benchmark asks of a node, in one place."""

    def __init__(self, node: Any) -> None:
        self._node = node

    async def put(self, value: bytes) -> bytes | None:
        report = await self._node.put(value)
        return report.key if report.stored else None

    async def put_mutable(self, value: bytes) -> bytes | None:
        report = await self._node.put_mutable(value)
        return report.key if report.stored else None

    async def get(self, key: bytes) -> bytes | None:
        return await self._node.get(key)

    def holds(self, key: bytes) -> bool:
        return key in set(self._node.store.held_keys())


class Node:
    """One server with its node."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._requests = 0
        self.server = Server(port=0)
        self._count(self.server.sessions)
        self.node = DHTNode(self.server)
        self._records = Records(self.node)

    async def start(self, seed: Node | None) -> None:
        await self.server.start()
        await self.node.start()
        if seed is not None:
            report = await self.node.join([seed.server.listening_addresses[0]])
            if not report.joined:
                raise RuntimeError(str(report))

    async def put(self, value: bytes) -> bytes | None:
        return await _operation(self._records.put(value))

    async def put_fresh(self, value: bytes) -> bytes | None:
        return await _operation(self._records.put_mutable(value))

    async def get(self, key: bytes) -> bytes | None:
        return await _operation(self._records.get(key))

    def holds(self, key: bytes) -> bool:
        return self._records.holds(key)

    async def requests_sent(self) -> int:
        return self._requests

    async def kill(self) -> None:
        # A stop alone would say goodbye on each session, which a process that was killed does not.
        self.server.sessions._connections.abort()
        await self.server.stop(grace=0)
        await self.node.stop()

    def _count(self, sessions: Any) -> None:
        call, accept = sessions.call, sessions.accept

        async def counted_call(*args: Any, **kwargs: Any) -> Any:
            self._requests += _IS_OPERATION.get()
            return await call(*args, **kwargs)

        def counted_accept(*args: Any) -> None:
            self._system.accepted += 1
            accept(*args)

        sessions.call, sessions.accept = counted_call, counted_accept


class System:
    """A swarm of them. Raises RuntimeError while a node lacks what is measured."""

    def __init__(self) -> None:
        self.accepted = 0
        missing = [name for name in NEEDED if not hasattr(DHTNode, name)]
        if missing:
            raise RuntimeError(f"dht.DHTNode has no {' and no '.join(missing)} yet, and this benchmark measures them")

    async def start(self, others: Sequence[Node]) -> Node:
        node = Node(self)
        await node.start(others[0] if others else None)
        return node

    def missing_key(self, rng: random.Random) -> bytes:
        return rng.randbytes(KEY_SIZE_BYTES)

    def handshakes(self) -> int:
        """How many have begun so far."""
        return self.accepted

    async def handshake_cpu_s(self) -> float:
        """CPU of one, both ends together, from the connect on."""
        listener = Server(port=0)
        await listener.start()
        address = listener.listening_addresses[0]
        dialers = [Server(port=0).sessions for _ in range(WARM_HANDSHAKES + HANDSHAKES)]
        cpu_s = 0.0
        for index, dialer in enumerate(dialers):
            if index == WARM_HANDSHAKES:
                cpu_s = time.process_time()
            await dialer.connect_address(address)
        cpu_s = time.process_time() - cpu_s
        for dialer in dialers:
            await dialer.stop(grace=0)
        await listener.stop(grace=0)
        return cpu_s / HANDSHAKES
