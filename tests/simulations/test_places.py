"""Where hosts live: every address once, in as many networks as was said."""

from __future__ import annotations

import ipaddress

import pytest

from dht.dial_policy import AddressKind, kind_of
from simulations.places import HONEST_OCTETS, HOSTILE_OCTETS, MAX_HOSTS_PER_NETWORK, Places
from synapse_p2p.exceptions import ConfigError
from synapse_p2p.trust import TrustConfig


@pytest.mark.parametrize("octets", [HONEST_OCTETS, HOSTILE_OCTETS])
def test_every_host_has_a_public_address_in_a_network_of_its_own_narrow_and_wide(octets: tuple[int, int]):
    places = Places(octets=octets)

    ips = [places.next_ip() for _ in range(3000)]

    assert len({ip.rpartition(".")[0] for ip in ips}) == len({ip.rsplit(".", 2)[0] for ip in ips}) == 3000
    assert {kind_of(f"{ip}:9000") for ip in ips} == {AddressKind.PUBLIC}
    assert not any(TrustConfig().is_exempt(ip) for ip in ips)


@pytest.mark.parametrize("networks", [1, 2, 20])
def test_hosts_share_as_many_networks_as_was_said_evenly(networks: int):
    places = Places(networks)

    ips = [places.next_ip() for _ in range(networks * MAX_HOSTS_PER_NETWORK)]

    counts: dict[str, int] = {}
    for ip in ips:
        network = str(ipaddress.ip_network(f"{ip}/24", strict=False))
        counts[network] = counts.get(network, 0) + 1
    assert len(set(ips)) == len(ips)
    assert list(counts.values()) == [MAX_HOSTS_PER_NETWORK] * networks
    with pytest.raises(ConfigError, match="no room"):
        places.next_ip()
