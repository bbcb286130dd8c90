"""TCP on asyncio's Protocol interface: half the cost of its streams, and the receiver is the protocol itself."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, cast

from synapse_p2p.transport.base import ByteStream, Receiver, format_address

LISTEN_BACKLOG = 1024


class TcpStream:
    """A ByteStream over an asyncio transport."""

    __slots__ = (
        "_transport",
        "abort",
        "close",
        "is_closing",
        "pause_reading",
        "resume_reading",
        "unsent_bytes",
        "write",
    )

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        # Bound once: these are called for every message.
        self.write: Callable[[bytes], None] = transport.write
        self.close: Callable[[], None] = transport.close
        self.abort: Callable[[], None] = transport.abort
        self.is_closing: Callable[[], bool] = transport.is_closing
        self.pause_reading: Callable[[], None] = transport.pause_reading
        self.resume_reading: Callable[[], None] = transport.resume_reading
        self.unsent_bytes: Callable[[], int] = transport.get_write_buffer_size

    @property
    def local_address(self) -> str:
        return _address(self._transport.get_extra_info("sockname"))

    @property
    def peer_address(self) -> str:
        return _address(self._transport.get_extra_info("peername"))

    def set_receiver(self, receiver: Receiver) -> None:
        self._transport.set_protocol(cast(asyncio.BaseProtocol, _Bridge(receiver)))


class _Bridge(asyncio.Protocol):
    """What asyncio calls. The methods of the receiver stand in for its own, so data takes no extra step."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self.data_received = receiver.data_received
        self.eof_received = receiver.eof_received
        self.connection_lost = receiver.connection_lost
        self.pause_writing = receiver.pause_writing
        self.resume_writing = receiver.resume_writing
        self.stream: TcpStream | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.stream = TcpStream(cast(asyncio.Transport, transport))
        self._receiver.connection_made(self.stream)


class TcpListener:
    """An open TCP port. `server` is the asyncio server, for those who want to wait on it."""

    def __init__(self, server: asyncio.Server) -> None:
        self.server = server
        self._addresses = tuple(_address(listening.getsockname()) for listening in server.sockets)

    @property
    def addresses(self) -> tuple[str, ...]:
        return self._addresses

    def close(self) -> None:
        self.server.close()


class TcpTransport:
    """The real network."""

    async def connect(self, host: str, port: int, receiver: Receiver) -> ByteStream:
        transport, bridge = await asyncio.get_running_loop().create_connection(lambda: _Bridge(receiver), host, port)
        _send_small_writes_at_once(transport)
        return cast(TcpStream, bridge.stream)

    async def listen(self, host: str, port: int, accept: Callable[[], Receiver]) -> TcpListener:
        server = await asyncio.get_running_loop().create_server(
            lambda: _Bridge(accept()), host, port, backlog=LISTEN_BACKLOG
        )
        return TcpListener(server)


def _send_small_writes_at_once(transport: asyncio.BaseTransport) -> None:
    # asyncio sets this itself on stock loops since 3.6; uvloop does too. It is repeated because a call's latency rests
    # on it.
    connected: Any = transport.get_extra_info("socket")
    if connected is not None:
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _address(name: Any) -> str:
    # A peer that is already gone has no name.
    return format_address(name[0], name[1]) if name else "unknown:0"
