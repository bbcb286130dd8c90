"""Byte streams over the virtual network, with the contract of TCP: what complete encrypted sessions run on.

Owns ports, the opening of a stream and its end. How long bytes take and whether a host still answers is the affair of
`network.py`; each write goes there as one message, so the digest has all the bytes of the wire.

Between two hosts, each arrow one latency:   open ->   <- opened   data ->   <- data   end ->
Somebody who has no such stream, or no listener there, answers `reset` or `refuse`. That bytes were read is known to the
writer at once and without a message: what real acknowledgements take is left out.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
from collections.abc import Callable

from simulations.delivery import Receive
from simulations.links import Nat
from simulations.network import VirtualHost, VirtualNetwork
from synapse_p2p.transport.base import (
    HIGH_WATER_BYTES,
    ByteStream,
    Receiver,
    format_address,
    is_loopback,
    parse_address,
)

FREE_PORTS = range(49_152, 65_536)  # the dynamic range of RFC 6335
WILDCARDS = ("0.0.0.0", "::", "")  # noqa: S104 - compared with, never bound here

# What the digest says of each message.
OPEN = "stream.open"
OPENED = "stream.opened"
REFUSE = "stream.refuse"
DATA = "stream.data"
END = "stream.end"
RESET = "stream.reset"


class VirtualStreams:
    """The streams of one virtual network. Its hosts are known by their IP, whatever the port."""

    def __init__(self, network: VirtualNetwork) -> None:
        self.network = network
        self._transports: dict[str, VirtualTransport] = {}

    def transport(self, host: VirtualHost) -> VirtualTransport:
        """How this host opens streams and takes them; the same one each time."""
        ip = parse_address(host.source_address)[0]
        transport = self._transports.get(ip)
        if transport is None:
            transport = self._transports[ip] = VirtualTransport(self, host, ip)
        return transport

    def at(self, ip: str) -> VirtualTransport | None:
        """Whoever has this address; None where it leads nowhere."""
        return self._transports.get(ip)


class VirtualTransport:
    """One host's way to others: a `synapse_p2p.transport.base.Transport`.

    Listeners belong to one life of the host: after a crash its ports are free.
    """

    def __init__(self, streams: VirtualStreams, host: VirtualHost, ip: str) -> None:
        self.host = host
        self.ip = ip
        self._streams = streams
        self._listeners: dict[int, VirtualListener] = {}
        self._last_port = FREE_PORTS.start

    async def connect(self, host: str, port: int, receiver: Receiver) -> ByteStream:
        """Waits for ever where nobody has the address, as on a network that drops what it cannot deliver."""
        opening: asyncio.Future[VirtualStream] = asyncio.get_running_loop().create_future()
        target = self._streams.at(self._ip_of(host))
        if not self.host.is_up:
            raise OSError(errno.ENETDOWN, "this host is down")
        if target is not None:
            _Opening(self, target, format_address(host, port), self._source(host), receiver, opening)
        try:
            return await opening
        except asyncio.CancelledError:
            if opening.done() and not opening.cancelled():
                opening.result().abort()  # it opened in the very turn in which nobody wanted it any more
            raise

    async def listen(self, host: str, port: int, accept: Callable[[], Receiver]) -> VirtualListener:
        """A port is one listener's, whichever of the host's addresses it is bound to."""
        if host not in WILDCARDS and self._ip_of(host) != self.ip:
            raise OSError(errno.EADDRNOTAVAIL, f"{host} is no address of this host, which has {self.ip}")
        port = port or self._take_port()
        if self.listener_at(port) is not None:
            raise OSError(errno.EADDRINUSE, f"address already in use: {format_address(host, port)}")
        listener = self._listeners[port] = VirtualListener(self, host, port, accept)
        return listener

    def listener_at(self, port: int) -> VirtualListener | None:
        """Who listens there in this life of the host."""
        listener = self._listeners.get(port)
        return listener if listener is not None and listener.incarnation == self.host.incarnation else None

    def close_port(self, listener: VirtualListener) -> None:
        """Nobody listens there any more. A second time nothing happens."""
        if self._listeners.get(listener.port) is listener:
            del self._listeners[listener.port]

    def _ip_of(self, host: str) -> str:
        if is_loopback(host):
            return self.ip
        try:
            return str(ipaddress.ip_address(host))
        except ValueError:
            raise OSError(errno.EINVAL, f"{host!r} is no address; a virtual network has no names") from None

    def _source(self, host: str) -> str:
        return format_address("127.0.0.1" if is_loopback(host) else self.ip, self._take_port())

    def _take_port(self) -> int:
        """The next port that nobody listens on, round and round as a kernel does it. Raises OSError when none is."""
        for _ in FREE_PORTS:
            self._last_port = self._last_port + 1 if self._last_port + 1 in FREE_PORTS else FREE_PORTS.start
            if self.listener_at(self._last_port) is None:
                return self._last_port
        raise OSError(errno.EADDRNOTAVAIL, f"no port is free at {self.ip}")


class VirtualListener:
    """An open port of a virtual host."""

    def __init__(self, transport: VirtualTransport, host: str, port: int, accept: Callable[[], Receiver]) -> None:
        self.accept = accept
        self.port = port
        self.incarnation = transport.host.incarnation
        self._transport = transport
        self._host = host

    @property
    def addresses(self) -> tuple[str, ...]:
        return (format_address(self._host, self.port),)

    def close(self) -> None:
        self._transport.close_port(self)

    def takes(self, host: str) -> bool:
        """Whether somebody who dials this host gets here: a listener on loopback is for this machine alone."""
        return is_loopback(host) or not is_loopback(self._host)


class _Opening:
    """One attempt to open a stream: there and back again."""

    def __init__(
        self,
        ours: VirtualTransport,
        target: VirtualTransport,
        address: str,
        source: str,
        receiver: Receiver,
        opening: asyncio.Future[VirtualStream],
    ) -> None:
        self._ours = ours
        self._target = target
        self._address = address
        self._source = source
        self._receiver = receiver
        self._opening = opening
        self._stream = VirtualStream(ours.host, target.host, source, address)
        ours.host.network.send(ours.host, target.host, OPEN, b"", self._at_target)

    def _at_target(self, _what: str, _data: bytes) -> None:
        target = self._target
        nat = Nat.OPEN if target is self._ours else target.host.nat
        if nat is Nat.DROPS:
            return
        host, port = parse_address(self._address)
        listener = target.listener_at(port) if target.host.is_up and nat is Nat.OPEN else None
        if listener is None or not listener.takes(host):
            target.host.network.send(target.host, self._ours.host, REFUSE, b"", self._on_refused)
            return
        theirs = VirtualStream(target.host, self._ours.host, self._address, self._source)
        theirs.join(self._stream)
        self._stream.join(theirs)
        # Said before the listener's end is made: what that writes at once comes after it.
        theirs.send(OPENED, b"", self._on_opened)
        theirs.open(listener.accept())

    def _on_refused(self, _what: str, _data: bytes) -> None:
        if not self._opening.done():
            self._opening.set_exception(ConnectionRefusedError(errno.ECONNREFUSED, "connection refused"))

    def _on_opened(self, _what: str, _data: bytes) -> None:
        if self._opening.done():
            self._stream.refuse()
        elif self._stream.is_here():
            # In this order, for the receiver may end the task that waits for the stream.
            self._opening.set_result(self._stream)
            self._stream.open(self._receiver)
        else:
            self._stream.refuse()
            self._opening.set_exception(ConnectionAbortedError(errno.ECONNABORTED, "this host is down"))


class VirtualStream:
    """One end of a stream: a ByteStream. It belongs to one life of its host; a later one knows nothing of it.

    open      close, or the peer's end with a receiver that keeps no half  -> closing
    closing   everything written was read                                  -> lost, the peer is sent our end
    any       abort, a reset, our host down                                -> lost
    """

    def __init__(self, host: VirtualHost, remote: VirtualHost, local_address: str, peer_address: str) -> None:
        self._host = host
        self._remote = remote
        self._incarnation = host.incarnation
        self._local_address = local_address
        self._peer_address = peer_address
        self._other: VirtualStream = self  # until the two ends are joined
        self._receiver: Receiver | None = None
        self.arrives_us = 0  # when the last message sent from here does: this end is a Flow
        self._held: list[bytes] = []  # arrived, not read yet; no more than the peer's bounds let it write
        self._unsent_bytes = 0  # written, and not read by the peer
        self._is_reading = True
        self._is_closing = False
        self._is_lost = False
        self._is_writing_paused = False
        self._has_ended = False  # the peer sends no more; told once everything held was read

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
        if not self.is_here():
            self._fail(ConnectionAbortedError(errno.ECONNABORTED, "this host is down"))
            return
        self._unsent_bytes += len(data)
        if self._unsent_bytes > HIGH_WATER_BYTES and not self._is_writing_paused and self._receiver is not None:
            self._is_writing_paused = True
            self._receiver.pause_writing()
        self.send(DATA, bytes(data), self._other._receive_data)

    def unsent_bytes(self) -> int:
        return self._unsent_bytes

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            self._finish_if_sent()

    def abort(self) -> None:
        if not self._is_lost:
            self._fail(None)
            self._refuse_if_here()

    def is_closing(self) -> bool:
        return self._is_closing

    def pause_reading(self) -> None:
        self._is_reading = False

    def resume_reading(self) -> None:
        if not self._is_reading:
            self._is_reading = True
            self._soon(self._deliver)

    # What the opening needs

    def join(self, other: VirtualStream) -> None:
        """This is the other end."""
        self._other = other

    def open(self, receiver: Receiver) -> None:
        """Tell the receiver that the stream is there."""
        self._receiver = receiver
        receiver.connection_made(self)

    def is_here(self) -> bool:
        """Whether the process that opened this end still lives."""
        return self._host.is_up and self._host.incarnation == self._incarnation

    def send(self, what: str, data: bytes, receive: Receive) -> None:
        """One message to the other host, after all that was sent on this stream before."""
        self._host.network.send(self._host, self._remote, what, data, receive, flow=self)

    def refuse(self) -> None:
        """Tell the other end that there is no stream here."""
        self.send(RESET, b"", self._other._receive_reset)

    # What arrives

    def _receive_data(self, _what: str, data: bytes) -> None:
        if not self._is_there():
            return
        if self._is_closing:
            self._other._on_read(len(data))  # we read no more, and what nobody reads must not hold the peer up
        else:
            self._held.append(data)
            self._deliver()

    def _receive_end(self, _what: str, _data: bytes) -> None:
        if self._is_there():
            self._has_ended = True
            self._deliver()

    def _receive_reset(self, _what: str, _data: bytes) -> None:
        if self.is_here():
            self._lose(ConnectionResetError(errno.ECONNRESET, "the other end is gone"))

    def _is_there(self) -> bool:
        """Whether something that arrived has somebody to take it. Who has not says so."""
        if self._is_lost or not self.is_here():
            self.refuse()
            return False
        return True

    def _deliver(self) -> None:
        while self._held and self._is_reading and not self._is_closing:
            data = self._held.pop(0)
            if self._receiver is not None:
                self._receiver.data_received(data)
            self._other._on_read(len(data))
        if self._has_ended and not self._held and self._is_reading and not self._is_closing:
            self._has_ended = False
            keeps_open = self._receiver.eof_received() if self._receiver is not None else False
            if not keeps_open:
                self.close()

    def _on_read(self, size_bytes: int) -> None:
        """The peer has read this much."""
        self._unsent_bytes -= size_bytes
        if self._is_writing_paused and self._unsent_bytes <= HIGH_WATER_BYTES // 4:
            self._is_writing_paused = False
            if self._receiver is not None and not self._is_lost:
                self._receiver.resume_writing()
        self._finish_if_sent()

    # Its end

    def _finish_if_sent(self) -> None:
        if self._is_closing and not self._unsent_bytes:
            self._soon(self._finish)

    def _finish(self) -> None:
        if not self._is_lost:
            if self.is_here():
                self.send(END, b"", self._other._receive_end)
            self._lose(None)

    def _fail(self, error: Exception | None) -> None:
        self._is_closing = True
        self._soon(self._lose, error)

    def _lose(self, error: Exception | None) -> None:
        if self._is_lost:
            return
        self._is_lost = self._is_closing = True
        if self._held:
            self._held.clear()
            self._refuse_if_here()  # the peer has to learn that its bytes were not read
        if self._receiver is not None:
            self._receiver.connection_lost(error)

    def _refuse_if_here(self) -> None:
        if self.is_here():
            self.refuse()

    def _soon(self, callback: Callable[..., object], *args: object) -> None:
        self._host.network.loop.call_soon(callback, *args)
