"""TCP on asyncio's Protocol interface: half the cost of its streams, and the receiver is the protocol itself.

Small writes leave at once: asyncio sets TCP_NODELAY on every connection, opened or accepted.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable
from typing import Any, cast

from synapse_p2p.transport.base import HIGH_WATER_BYTES, ByteStream, Receiver, format_address
from synapse_p2p.transport.listening import ListeningSocket, MakeRoom, bound_sockets

LISTEN_BACKLOG = 1024
RESET_AT_CLOSE = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)  # what the system holds of ours is dropped


MAX_NOT_SENT_BYTES = 128 * 1024
"""Held by the system beyond what is on its way. What waits there is overtaken by nothing, be it a ping or a call, and
without a limit that is megabytes: a second of a slow link. Linux and macOS."""


class TcpStream:
    """A ByteStream over an asyncio transport."""

    __slots__ = ("_transport", "is_closing", "is_lost", "peer_address", "write")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.is_lost = False  # the receiver was told of its end
        self.is_closing = transport.is_closing  # asked three times for every call: without a step between
        self.write = transport.write
        self.peer_address = _address(transport.get_extra_info("peername"))
        transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            with contextlib.suppress(OSError):  # it is gone already
                connected = transport.get_extra_info("socket")
                connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, MAX_NOT_SENT_BYTES)

    @property
    def local_address(self) -> str:
        return _address(self._transport.get_extra_info("sockname"))

    def unsent_bytes(self) -> int:
        return self._transport.get_write_buffer_size()

    def close(self) -> None:
        self._transport.close()

    def abort(self) -> None:
        if self.is_lost:
            return  # asyncio fails then, where the last bytes left after `close`
        if self.unsent_bytes():
            # Else the system would go on to offer what it has taken from us, megabytes, to a peer that does not read.
            with contextlib.suppress(OSError):  # closed already
                self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
        self._transport.abort()

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def set_receiver(self, receiver: Receiver) -> None:
        bridge = _Bridge(receiver)
        bridge.stream = self
        self._transport.set_protocol(cast(asyncio.BaseProtocol, bridge))


class _Bridge(asyncio.Protocol):
    """What asyncio calls. One method of the receiver stands in for its own, so data takes no extra step; each that does
    takes 64 bytes of every connection that is held.
    """

    __slots__ = ("_receiver", "data_received", "stream")

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self.data_received = receiver.data_received
        self.stream: TcpStream | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.stream = TcpStream(cast(asyncio.Transport, transport))
        self._receiver.connection_made(self.stream)

    def eof_received(self) -> bool | None:
        return self._receiver.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.stream is not None:
            self.stream.is_lost = True
        self._receiver.connection_lost(exc)

    def pause_writing(self) -> None:
        self._receiver.pause_writing()

    def resume_writing(self) -> None:
        self._receiver.resume_writing()

    def see_that_it_is_lost(self) -> None:
        """A dial was cancelled when the connection was there already. The loop has closed it, and asyncio's has told
        the receiver by now; uvloop's never does.
        """
        if self.stream is not None and not self.stream.is_lost:
            self.connection_lost(None)


class TcpListener:
    """An open TCP port. `server` is the asyncio server, for those who want to wait on it.

    A name that stands for several addresses has a server for each; `server` is then that of the first.
    """

    def __init__(self, servers: list[asyncio.Server]) -> None:
        self.server = servers[0]
        self._servers = servers
        self._addresses = tuple(_address(listening.getsockname()) for server in servers for listening in server.sockets)

    @property
    def addresses(self) -> tuple[str, ...]:
        return self._addresses

    def close(self) -> None:
        for server in self._servers:
            server.close()


class TcpTransport:
    """The real network.

    `make_room` is asked when a connection cannot be accepted because the process has too much open. It frees a
    descriptor by the next turn of the loop, or returns false; then who wants to connect is turned away.
    """

    def __init__(self, make_room: MakeRoom = lambda: False) -> None:
        self._make_room = make_room

    async def connect(self, host: str, port: int, receiver: Receiver) -> ByteStream:
        loop = asyncio.get_running_loop()
        bridge = _Bridge(receiver)
        try:
            await loop.create_connection(lambda: bridge, host, port)
        except UnicodeError as error:
            # A name with an empty or too long label, of which no resolver is even asked.
            raise OSError(errno.EINVAL, f"{host!r:.80} is not the name of a host") from error
        except asyncio.CancelledError:
            if bridge.stream is not None:
                loop.call_soon(bridge.see_that_it_is_lost)
            raise
        return cast(TcpStream, bridge.stream)

    async def listen(self, host: str, port: int, accept: Callable[[], Receiver]) -> TcpListener:
        sockets = await bound_sockets(host, port, self._make_room)
        servers: list[asyncio.Server] = []
        try:
            for bound in sockets:
                servers.append(await _server_of(bound, accept))
                await servers[-1].start_serving()
        except BaseException:
            for server in servers:
                server.close()
            for bound in sockets[len(servers) :]:
                bound.close()
            raise
        return TcpListener(servers)


async def _server_of(bound: ListeningSocket, accept: Callable[[], Receiver]) -> asyncio.Server:
    """An asyncio server that does not serve yet: cancelled while it starts, it must be there to be closed."""

    def make_bridge() -> _Bridge:
        if bound.is_closed:
            raise ConnectionAbortedError("the port was closed while this connection came in")
        return _Bridge(accept())

    loop = asyncio.get_running_loop()
    return await loop.create_server(make_bridge, sock=bound, backlog=LISTEN_BACKLOG, start_serving=False)


def _address(name: Any) -> str:
    # A peer that is already gone has no name.
    return format_address(name[0], name[1]) if name else "unknown:0"
