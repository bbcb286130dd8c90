"""Whose address counts against whom: which hosts limits of place do not apply to, and which addresses are one party.

Pure. A limit per address stops a stranger who has few of them. It must not stop the many nodes of one machine or of one
office: those addresses are exempt, and what is exempt is said here and nowhere else.
"""

from __future__ import annotations

import functools
import ipaddress
from dataclasses import dataclass
from typing import TypeAlias

from synapse_p2p.exceptions import ConfigError

IPAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

GROUP_BITS = {4: 24, 6: 48}
"""What one party has at least, by version of IP: addresses that share so many bits count as one (BEP 42, BEP 45)."""
WIDE_GROUP_BITS = {4: 16, 6: 32}
"""What one provider has: whoever rents many small networks mostly gets them from few of these."""
HOST_BITS = {4: 32, 6: 64}
"""What one machine has: a provider gives each line a /64 at the least, and all of it is free to its owner."""
PRIVATE_NETWORKS: tuple[IPNetwork, ...] = tuple(
    ipaddress.ip_network(network)
    # RFC 1918; RFC 6598, which overlay networks of companies use too; RFC 4193.
    for network in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")
)
MAX_PARSED_HOSTS = 1024  # kept parsed, for every accepted connection asks


@dataclass(frozen=True, slots=True)
class TrustConfig:
    """Which hosts the limits per address do not count: all of them within one's own reach, by default.

    `networks` are more of them, as text (`"203.0.113.0/24"`). Whoever listens to the internet behind a proxy of his own
    sets `private=False`: there the proxy's address is everybody's.
    """

    loopback: bool = True
    private: bool = True
    networks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for network in self.networks:
            _parsed_network(network)

    @classmethod
    def everybody(cls) -> TrustConfig:
        """All hosts are exempt: for a network with a key, where nobody is a stranger."""
        return cls(networks=("0.0.0.0/0", "::/0"))

    def is_exempt(self, host: str) -> bool:
        """Whether limits per address leave this host alone; a name that is no literal never is, but `localhost`."""
        return _is_exempt(self, host)

    def group_of(self, host: str) -> str:
        """The party an address belongs to: its /24, in IPv6 its /48; an exempt address is one of its own.

        Two hosts are of one party exactly when this is the same text. What is no literal is a party by itself.
        """
        return _grouped(self, host, GROUP_BITS)

    def wide_group_of(self, host: str) -> str:
        """As `group_of`, by the /16, in IPv6 by the /32."""
        return _grouped(self, host, WIDE_GROUP_BITS)


def machine_of(host: str) -> str:
    """What stands for one machine: an IPv4 address, or the /64 of one in IPv6. What is no literal stands for itself."""
    address = _parsed(host)
    return host if address is None else _prefix(address, HOST_BITS)


def is_private(host: str) -> bool:
    """Whether a host is in one of the private networks. All of them are one range: who is in one may be in two."""
    address = _parsed(host)
    return address is not None and _is_private(address)


@functools.lru_cache(maxsize=MAX_PARSED_HOSTS)
def _parsed(host: str) -> IPAddress | None:
    if host == "localhost":
        return ipaddress.IPv4Address("127.0.0.1")
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


@functools.lru_cache(maxsize=MAX_PARSED_HOSTS)
def _parsed_network(text: str) -> IPNetwork:
    try:
        return ipaddress.ip_network(text)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"TrustConfig.networks has {text!r}; a network is written as in '203.0.113.0/24'") from error


def _is_private(address: IPAddress) -> bool:
    return any(_contains(network, address) for network in PRIVATE_NETWORKS)


def _contains(network: IPNetwork, address: IPAddress) -> bool:
    return network.version == address.version and address in network


@functools.lru_cache(maxsize=MAX_PARSED_HOSTS)
def _is_exempt(trust: TrustConfig, host: str) -> bool:
    address = _parsed(host)
    if address is None:
        return False
    if trust.loopback and address.is_loopback:
        return True
    if trust.private and _is_private(address):
        return True
    return any(_contains(_parsed_network(network), address) for network in trust.networks)


def _grouped(trust: TrustConfig, host: str, bits: dict[int, int]) -> str:
    address = _parsed(host)
    if address is None or trust.is_exempt(host):
        return str(address or host)
    return _prefix(address, bits)


def _prefix(address: IPAddress, bits: dict[int, int]) -> str:
    # By hand: a network object takes four times as long, and routing tables ask for every newcomer.
    free_bits = address.max_prefixlen - bits[address.version]
    return f"{type(address)(int(address) >> free_bits << free_bits)}/{bits[address.version]}"
