"""Pools to test with: nodes of one pool each, on a network in memory and mostly in virtual time."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from simulations.virtual_loop import VirtualLoop, run
from synapse_p2p.config import PoolConfig, SessionConfig
from synapse_p2p.context import CallContext
from synapse_p2p.exceptions import RemoteError
from synapse_p2p.identity import Identity, NodeID
from synapse_p2p.messages import Code, Refusal
from synapse_p2p.protocol.wire import Call
from synapse_p2p.runtime import Runtime
from synapse_p2p.transport.base import ByteStream, Receiver, format_address, parse_address
from synapse_p2p.transport.memory import MemoryStream, MemoryTransport
from synapse_p2p.transport.pool import SessionPool

HOST = "10.0.0.1"


@dataclass(frozen=True)
class Peer:
    id: NodeID
    addresses: tuple[str, ...]


class Network(MemoryTransport):
    """Streams in memory, with a note of every dial, addresses that swallow them, and a latency of each stream's own."""

    def __init__(self, *, delay_s: float = 0.0, latency: Callable[[], float] | None = None) -> None:
        super().__init__(delay_s=delay_s)
        self.dialed: list[str] = []
        self.silent: set[str] = set()
        self._latency = latency

    async def connect(self, host: str, port: int, receiver: Receiver) -> ByteStream:
        address = f"{host}:{port}"
        self.dialed.append(address)
        if address in self.silent:
            await asyncio.Event().wait()
        if self._latency is not None:
            self.delay_s = self._latency()
        return await super().connect(host, port, receiver)


class Place:
    """A host in a network: what dials from here is seen as coming from it."""

    def __init__(self, network: Network, host: str) -> None:
        self._network = network
        self._host = host
        self._ports = itertools.count(1024)
        self.listen = network.listen

    async def connect(self, host: str, port: int, receiver: Receiver) -> ByteStream:
        loop = asyncio.get_running_loop()
        address, source = format_address(host, port), format_address(self._host, next(self._ports))
        ours, theirs = MemoryStream(loop, source, address, 0.0), MemoryStream(loop, address, source, 0.0)
        theirs.attach(self._network.listeners[address](), ours)
        ours.attach(receiver, theirs)
        return ours


class Handlers:
    """A CallServer of coroutine functions; it counts what it ran."""

    def __init__(self, **functions: Callable[..., Any]) -> None:
        self._functions: dict[str, Callable[..., Any]] = {"_synapse.ping": pong, "echo": echo, **functions}
        self.ran: Counter[Any] = Counter()

    def mounted(self, endpoint: str) -> None:
        return None

    def refusal_of(self, error: Exception, name: str) -> Refusal:
        return Refusal(Code.INTERNAL_ERROR, f"the result of {name} cannot be sent")

    async def serve_session_call(self, call: Call, context: CallContext) -> Any:
        if (function := self._functions.get(call.endpoint)) is None:
            raise RemoteError("not_found", call.endpoint)
        self.ran[call.endpoint, *call.args] += 1
        return await function(*call.args, **call.kwargs)


class Door:
    """What a listener does with a new stream before it belongs to the pool."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._stream: ByteStream

    def connection_made(self, stream: ByteStream) -> None:
        self._stream = stream

    def data_received(self, data: bytes) -> None:
        self._node.accepted_count += 1
        self._node.pool.accept(self._stream, data)

    def eof_received(self) -> bool | None: ...

    def connection_lost(self, exc: Exception | None) -> None: ...

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...


class Deaf(Door):
    """Takes a connection and says nothing."""

    def __init__(self) -> None: ...

    def data_received(self, data: bytes) -> None: ...

    @property
    def is_hung_up_on(self) -> bool:
        return self._stream.is_closing()


class Node:
    """A pool with a listener, or without one until `listen()`."""

    def __init__(
        self,
        network: Network,
        number: int,
        *,
        handlers: Handlers | None = None,
        config: PoolConfig | None = None,
        session_config: SessionConfig | None = None,
        instance: int = 0,
        host: str = "",
        **pool_options: Any,
    ) -> None:
        loop, rng = asyncio.get_running_loop(), random.Random(1000 * number + instance)
        self.id = Identity.from_seed(bytes([number]) * 32).node_id
        self.handlers = handlers or Handlers()
        self.network = network
        self.address = ""
        self.accepted_count = 0
        self.pool = SessionPool(
            Identity.from_seed(bytes([number]) * 32),
            network="test",
            server=self.handlers,
            transport=Place(network, host) if host else network,
            runtime=Runtime(now=loop.time, unix_now=loop.time, rng=rng, token_bytes=rng.randbytes),
            listen_port=lambda: parse_address(self.address)[1] if self.address else 0,
            agent="test",
            config=config,
            session_config=session_config,
            **pool_options,
        )

    async def listen(self, port: int = 0) -> Node:
        self.pool.open()
        self._door = await self.network.listen(HOST, port, lambda: Door(self))
        self.address = self._door.addresses[0]
        return self

    @property
    def peer(self) -> Peer:
        return Peer(self.id, (self.address,) if self.address else ())

    async def echo(self, other: Node, value: Any = "hello", *, timeout_s: float | None = 5) -> Any:
        return await self.pool.call_with(other.peer, "echo", [value], {}, timeout_s=timeout_s)

    async def call(self, other: Node, endpoint: str, *args: Any, timeout_s: float | None = None) -> Any:
        return await self.pool.call_with(other.peer, endpoint, list(args), {}, timeout_s=timeout_s)

    async def stop(self, grace: float = 0.0) -> None:
        if self.address:
            self._door.close()
        await self.pool.stop(grace)

    async def crash(self) -> None:
        """Every connection breaks at once; nobody says goodbye."""
        self._door.close()
        for connection in list(self.pool._connections):
            connection.abort()
        await self.pool.stop(0)


def virtually(main: Coroutine[Any, Any, Any]) -> Any:
    """Run in virtual time; at the end no task is left."""

    async def checked() -> Any:
        result = await main
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        assert loop.pending_tasks() == [asyncio.current_task()]
        return result

    return run(checked())


def now() -> float:
    return asyncio.get_running_loop().time()


async def echo(value: Any = None) -> Any:
    return value


async def pong() -> str:
    return "pong"


async def for_ever() -> None:
    await asyncio.Event().wait()


async def two_nodes(network: Network | None = None, **options: Any) -> tuple[Node, Node]:
    network = network or Network(delay_s=0.01)
    return await Node(network, 1, **options).listen(), await Node(network, 2).listen()
