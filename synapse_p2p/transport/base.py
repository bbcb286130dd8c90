"""The seam between protocol code and the bytes it moves: streams, receivers, transports, and addresses as text.

A Receiver has the shape of `asyncio.Protocol`, so that a TCP stream costs no layer of its own; `tcp.py` and `memory.py`
implement the same contract and one test file runs on both.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Callable
from typing import Protocol

from synapse_p2p.exceptions import ConfigError
from synapse_p2p.trust import TrustConfig, machine_of

HIGH_WATER_BYTES = 256 * 1024
"""More unsent bytes than this on one stream, and its receiver is told to pause; to resume at a quarter of it."""

MAX_ADDRESS_CHARS = 64
"""The longest literal, an IPv6 with an embedded IPv4, brackets and port, has 53."""

_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_PLAIN_IPV4 = re.compile(rf"(?:{_OCTET}\.){{3}}{_OCTET}:(?:[1-5][0-9]{{4}}|[1-9][0-9]{{0,3}})")
"""Most addresses: IPv4 and a port below 60000. It only says yes, and sooner; `ipaddress` has the rest."""


class ByteStream(Protocol):
    """One open, ordered, two-way flow of bytes."""

    @property
    def local_address(self) -> str:
        """Our end as `host:port`."""
        ...

    @property
    def peer_address(self) -> str:
        """The other end as we see it, as `host:port`."""
        ...

    def write(self, data: bytes) -> None:
        """Queue bytes; never waits. The receiver's `pause_writing` says when too many are queued."""
        ...

    def unsent_bytes(self) -> int:
        """How many queued bytes have not left."""
        ...

    def close(self) -> None:
        """Send what is queued, then close; nothing is received any more. `connection_lost` follows once all was sent.

        A peer that reads nothing can put that off for ever: bound the wait, and abort.
        """
        ...

    def abort(self) -> None:
        """Close at once and drop what is queued. `connection_lost` follows."""
        ...

    def is_closing(self) -> bool:
        """Whether close or abort was called, the peer's end made us close, or the connection is gone."""
        ...

    def pause_reading(self) -> None:
        """Stop reading: the peer feels it as back-pressure."""
        ...

    def resume_reading(self) -> None:
        """Read again."""
        ...

    def set_receiver(self, receiver: Receiver) -> None:
        """From now on another receiver is told. It is not told `connection_made`."""
        ...


class Receiver(Protocol):
    """Who is told what happens on a stream. Every method returns at once."""

    def connection_made(self, stream: ByteStream) -> None:
        """The stream is open; called once, first."""
        ...

    def data_received(self, data: bytes) -> None:
        """Some bytes, split anywhere."""
        ...

    def eof_received(self) -> bool | None:
        """The peer sends no more. A false answer closes our half too."""
        ...

    def connection_lost(self, exc: Exception | None) -> None:
        """The stream is gone; called once, last."""
        ...

    def pause_writing(self) -> None:
        """Too much is queued."""
        ...

    def resume_writing(self) -> None:
        """The queue drained."""
        ...


class Listener(Protocol):
    """An open door."""

    @property
    def addresses(self) -> tuple[str, ...]:
        """The bound addresses, with real ports."""
        ...

    def close(self) -> None:
        """Accept no more; streams that are open stay open."""
        ...


class Transport(Protocol):
    """A way to reach addresses and be reached."""

    async def connect(self, host: str, port: int, receiver: Receiver) -> ByteStream:
        """An open stream to `host:port`. Raises OSError when there is none to be had, for a name that is none too.

        Never times out by itself.
        """
        ...

    async def listen(self, host: str, port: int, accept: Callable[[], Receiver]) -> Listener:
        """Take connections at `host:port` (port 0: any free one), a new receiver for each. Raises OSError."""
        ...


def format_address(host: str, port: int) -> str:
    """`host:port`, with brackets round an IPv6 host and without its zone."""
    host = host.partition("%")[0]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of `host:port` or `[v6]:port`. Raises ConfigError that shows the form wanted."""
    if "/" in text:
        raise ConfigError(f"address {text!r:.160} is not host:port, as in 10.0.0.5:9999; leave out all that a URL adds")
    host, colon, port_text = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ConfigError(f"address {text!r} is not host:port; an IPv6 host goes in brackets, as in [::1]:9999")
    if not colon or not host or not port_text.isascii() or not port_text.isdigit():
        raise ConfigError(f"address {text!r} is not host:port, as in 10.0.0.5:9999 or [::1]:9999")
    port = int(port_text) if len(port_text) <= 5 else 65_536
    if not 0 <= port <= 65_535:
        raise ConfigError(f"address {text!r} has port {port_text}; ports are 0 to 65535")
    return host, port


def is_literal_address(text: str) -> bool:
    """Whether `text` is an IP literal with a port of 1 to 65535, in at most 64 characters.

    A zone (`fe80::1%eth0`) is refused: it means something on one host only.
    """
    if _PLAIN_IPV4.fullmatch(text):
        return True
    if len(text) > MAX_ADDRESS_CHARS or "%" in text or not text.isascii():
        return False
    try:
        host, port = parse_address(text)
        version = ipaddress.ip_address(host).version
    except (ConfigError, ValueError):
        return False
    return port > 0 and (version == 6) == text.startswith("[")


def counted_host(address: str, trust: TrustConfig) -> str | None:
    """The host that a connection from there counts against; None for one whose connections are not counted."""
    host = parse_address(address)[0]
    return None if trust.is_exempt(host) else machine_of(host)


@functools.lru_cache(maxsize=256)  # asked for every plain connection, about few hosts
def is_loopback(host: str) -> bool:
    """Whether a host names this machine alone: `localhost`, 127.0.0.0/8, ::1, or the last two as an IPv4-mapped
    IPv6.
    """
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
