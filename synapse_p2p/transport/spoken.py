"""Which addresses proved to this process that they speak the encrypted protocol: they are never dialed plain again.

Owns the one record per process, which is a stated exception to "no global state": a client that is made anew for every
call must remember what another client learned, or whoever stands on the way could talk it down to the plain wire. It is
kept in memory alone, and bounded.
"""

from __future__ import annotations

import functools
import ipaddress
import threading

from synapse_p2p.exceptions import ConfigError
from synapse_p2p.transport.base import format_address, parse_address

MAX_SPOKEN_ADDRESSES = 4096
"""Past it the address that was neither noted nor asked for longest is forgotten."""


class SpokenAddresses:
    """Addresses in order of use, the latest last. Safe to use from several threads: each may run a loop of its own."""

    def __init__(self, max_addresses: int = MAX_SPOKEN_ADDRESSES) -> None:
        self._max_addresses = max_addresses
        self._addresses: dict[str, None] = {}
        self._lock = threading.Lock()

    def note(self, address: str) -> None:
        """Remember `host:port`; one spelling of a host stands for all of them."""
        address = _canonical(address)
        with self._lock:
            self._addresses.pop(address, None)
            self._addresses[address] = None
            if len(self._addresses) > self._max_addresses:
                del self._addresses[next(iter(self._addresses))]

    def __contains__(self, address: str) -> bool:
        address = _canonical(address)
        with self._lock:
            if address not in self._addresses:
                return False
            self._addresses[address] = self._addresses.pop(address)
            return True

    def __len__(self) -> int:
        return len(self._addresses)

    def clear(self) -> None:
        """Forget all of them; for tests, which share one process."""
        with self._lock:
            self._addresses.clear()


SPOKEN = SpokenAddresses()
"""The record of this process."""


def note_encrypted(address: str) -> None:
    """Remember that a handshake with whoever answers at `host:port` succeeded."""
    SPOKEN.note(address)


def spoke_encrypted(address: str) -> bool:
    """Whether `host:port`, a name or a literal, ever completed a handshake with this process.

    A name and the address behind it are two: ask for both where both are known.
    """
    return address in SPOKEN


@functools.lru_cache(maxsize=256)  # who dials often dials few
def _canonical(address: str) -> str:
    try:
        host, port = parse_address(address)
    except ConfigError:
        return address
    host = host.partition("%")[0].lower()
    try:
        literal = ipaddress.ip_address(host)
    except ValueError:
        return format_address(host.removesuffix("."), port)
    return format_address(str(getattr(literal, "ipv4_mapped", None) or literal), port)
