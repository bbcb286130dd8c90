"""Where hosts live: addresses as the Internet deals them out, for scenarios in which it matters who shares a network.

Pure. The addresses that a virtual network gives by itself are private, and limits of place leave those alone.
"""

from __future__ import annotations

from synapse_p2p.exceptions import ConfigError

HONEST_OCTETS = (11, 100)
"""The first octets of honest hosts: public addresses all, before 100.64/10, which is private."""
HOSTILE_OCTETS = (101, 127)
"""Those of hostile hosts who live by themselves, before 127/8, which is loopback."""
MAX_HOSTS_PER_NETWORK = 254
WIDE_NETWORKS_PER_OCTET = 256


class Places:
    """Addresses, each once. With `networks` all are in so many /24s, in turn; without, each is in a /24 of its own.

    /24s are in /16s of their own too, as long as there are any: who shares one by chance is not to be held for one
    party by limits that are not what a scenario is about.
    """

    def __init__(self, networks: int | None = None, *, octets: tuple[int, int] = HONEST_OCTETS) -> None:
        self._networks = networks
        self._first_octet, last = octets
        self._wide_count = (last - self._first_octet) * WIDE_NETWORKS_PER_OCTET
        self._count = 0

    def next_ip(self) -> str:
        """The next address. Raises ConfigError when all are taken."""
        number, self._count = self._count, self._count + 1
        network, host = (number, 0) if self._networks is None else (number % self._networks, number // self._networks)
        third, wide = divmod(network, self._wide_count)
        if third > 255 or host >= MAX_HOSTS_PER_NETWORK:
            raise ConfigError(f"there is no room for more than {number} hosts in these networks")
        a, b = divmod(wide, WIDE_NETWORKS_PER_OCTET)
        return f"{self._first_octet + a}.{b}.{third}.{host + 1}"
