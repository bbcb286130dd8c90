"""Streams in one process, with the contract of TCP: ordered bytes, back-pressure, half-close, loss at any moment.

For tests and simulations; nothing here opens a socket. `delay_s` gives each write a one-way latency on the loop's
clock.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable

from synapse_p2p.transport.base import HIGH_WATER_BYTES, ByteStream, Receiver, format_address

FREE_PORTS = range(49_152, 65_536)  # the dynamic range of RFC 6335


class MemoryStream:
    """One end of a pair. What is written here is received there, one loop turn or `delay_s` later.

    `unsent_bytes` counts until the peer has read: there is no other buffer on the way.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, local_address: str, peer_address: str, delay_s: float) -> None:
        self._loop = loop
        self._local_address = local_address
        self._peer_address = peer_address
        self._delay_s = delay_s
        self._receiver: Receiver | None = None
        self._peer: MemoryStream | None = None
        self._held: list[bytes] = []  # received while reading is paused
        self._unsent_bytes = 0
        self._is_reading = True
        self._is_closing = False
        self._is_lost = False
        self._is_writing_paused = False
        self._eof_held = False

    @property
    def local_address(self) -> str:
        return self._local_address

    @property
    def peer_address(self) -> str:
        return self._peer_address

    def set_receiver(self, receiver: Receiver) -> None:
        self._receiver = receiver

    def write(self, data: bytes) -> None:
        if self._is_closing or not data:
            return
        self._unsent_bytes += len(data)
        if self._unsent_bytes > HIGH_WATER_BYTES and not self._is_writing_paused and self._receiver is not None:
            self._is_writing_paused = True
            self._receiver.pause_writing()
        self._later(self._arrive, bytes(data))

    def unsent_bytes(self) -> int:
        return self._unsent_bytes

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            if not self._unsent_bytes:
                self._later(self._finish)

    def abort(self) -> None:
        self._is_closing = True
        self._loop.call_soon(self._lose, None)
        if self._peer is not None:
            self._later(self._peer._lose, ConnectionResetError("the other end aborted"))

    def is_closing(self) -> bool:
        return self._is_closing

    def pause_reading(self) -> None:
        self._is_reading = False

    def resume_reading(self) -> None:
        if not self._is_reading:
            self._is_reading = True
            self._loop.call_soon(self._deliver_held)

    def attach(self, receiver: Receiver, peer: MemoryStream) -> None:
        """Join this end to its peer and tell the receiver."""
        self._receiver = receiver
        self._peer = peer
        receiver.connection_made(self)

    def _later(self, callback: Callable[..., None], *args: object) -> None:
        if self._delay_s:
            self._loop.call_later(self._delay_s, callback, *args)
        else:
            self._loop.call_soon(callback, *args)

    def _arrive(self, data: bytes) -> None:
        """Runs at the sender; hands the bytes to the peer and frees our queue once it took them."""
        peer = self._peer
        if peer is None or peer._is_lost:
            self._lose(ConnectionResetError("the other end is gone"))
            return
        if peer._is_closing:
            self._sent(len(data))  # it reads no more
            return
        peer._held.append(data)
        peer._deliver_held()

    def _deliver_held(self) -> None:
        while self._held and self._is_reading and not self._is_closing:
            data = self._held.pop(0)
            if self._receiver is not None:
                self._receiver.data_received(data)
            if self._peer is not None:
                self._peer._sent(len(data))
        if self._eof_held and not self._held and self._is_reading and not self._is_closing:
            self._eof_held = False
            self._take_eof()

    def _sent(self, count: int) -> None:
        self._unsent_bytes -= count
        if self._is_writing_paused and self._unsent_bytes <= HIGH_WATER_BYTES // 4:
            self._is_writing_paused = False
            if self._receiver is not None and not self._is_lost:
                self._receiver.resume_writing()
        if self._is_closing and not self._unsent_bytes:
            self._loop.call_soon(self._finish)

    def _finish(self) -> None:
        """Runs after everything written was read: the peer sees the end, and our own side is over."""
        peer = self._peer
        if not self._is_lost and peer is not None and not peer._is_lost:
            peer._eof_held = True
            peer._deliver_held()
        self._lose(None)

    def _take_eof(self) -> None:
        keeps_open = self._receiver.eof_received() if self._receiver is not None else False
        if not keeps_open:
            self.close()

    def _lose(self, error: Exception | None) -> None:
        if self._is_lost:
            return
        self._is_lost = self._is_closing = True
        if self._held and self._peer is not None:
            self._later(self._peer._lose, ConnectionResetError("the other end left bytes unread"))
            self._held.clear()
        if self._receiver is not None:
            self._receiver.connection_lost(error)


class MemoryListener:
    """A name in a MemoryTransport that answers."""

    def __init__(self, transport: MemoryTransport, address: str) -> None:
        self._transport = transport
        self._address = address

    @property
    def addresses(self) -> tuple[str, ...]:
        return (self._address,)

    def close(self) -> None:
        self._transport.listeners.pop(self._address, None)


class MemoryTransport:
    """A network of its own: those who share the object can reach each other."""

    def __init__(self, *, delay_s: float = 0.0) -> None:
        self.listeners: dict[str, Callable[[], Receiver]] = {}
        self.delay_s = delay_s  # of the streams that open from now on
        self._last_port = FREE_PORTS.start

    async def connect(self, host: str, port: int, receiver: Receiver) -> ByteStream:
        address = format_address(host, port)
        delay_s = self.delay_s
        if delay_s:
            await asyncio.sleep(2 * delay_s)
        accept = self.listeners.get(address)
        if accept is None:
            raise ConnectionRefusedError(f"nobody listens at {address}")
        loop = asyncio.get_running_loop()
        source = format_address(host, self._take_port(host))
        ours = MemoryStream(loop, source, address, delay_s)
        theirs = MemoryStream(loop, address, source, delay_s)
        theirs.attach(accept(), ours)
        ours.attach(receiver, theirs)
        return ours

    async def listen(self, host: str, port: int, accept: Callable[[], Receiver]) -> MemoryListener:
        address = format_address(host, port or self._take_port(host))
        if address in self.listeners:
            raise OSError(errno.EADDRINUSE, f"address already in use: {address}")
        self.listeners[address] = accept
        return MemoryListener(self, address)

    def _take_port(self, host: str) -> int:
        """The next port nobody listens on, round and round as a kernel does it. Raises OSError when there is none."""
        for _ in FREE_PORTS:
            self._last_port = self._last_port + 1 if self._last_port + 1 in FREE_PORTS else FREE_PORTS.start
            if format_address(host, self._last_port) not in self.listeners:
                return self._last_port
        raise OSError(errno.EADDRNOTAVAIL, f"no port is free at {host}")
