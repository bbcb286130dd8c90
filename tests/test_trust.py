from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synapse_p2p.exceptions import ConfigError
from synapse_p2p.trust import TrustConfig, is_private, machine_of

NOBODY = TrustConfig(loopback=False, private=False)

V4 = st.ip_addresses(v=4).map(str)
V6 = st.ip_addresses(v=6).map(str)


@pytest.mark.parametrize(
    ("host", "is_loopback", "is_in_private_range"),
    [
        ("127.0.0.1", True, False),
        ("127.200.3.4", True, False),
        ("::1", True, False),
        ("localhost", True, False),
        ("::ffff:127.0.0.1", True, False),
        ("10.0.0.0", False, True),
        ("10.255.255.255", False, True),
        ("172.16.0.0", False, True),
        ("172.31.255.255", False, True),
        ("192.168.0.1", False, True),
        ("100.64.0.0", False, True),
        ("100.127.255.255", False, True),
        ("fc00::", False, True),
        ("fdff:ffff::1", False, True),
        ("::ffff:10.1.2.3", False, True),
        ("fd00::1%eth0", False, True),
        ("9.255.255.255", False, False),
        ("11.0.0.0", False, False),
        ("172.15.255.255", False, False),
        ("172.32.0.0", False, False),
        ("192.167.255.255", False, False),
        ("192.169.0.0", False, False),
        ("100.63.255.255", False, False),
        ("100.128.0.0", False, False),
        ("126.255.255.255", False, False),
        ("128.0.0.0", False, False),
        ("169.254.0.1", False, False),
        ("fbff::1", False, False),
        ("fe80::1", False, False),
        ("2001:db8::1", False, False),
        ("example.org", False, False),
        ("unknown", False, False),
        ("", False, False),
    ],
)
def test_each_kind_of_host_is_exempt_by_its_own_switch(host: str, is_loopback: bool, is_in_private_range: bool):
    assert TrustConfig().is_exempt(host) == (is_loopback or is_in_private_range)
    assert TrustConfig(private=False).is_exempt(host) == is_loopback
    assert TrustConfig(loopback=False).is_exempt(host) == is_in_private_range
    assert not NOBODY.is_exempt(host)
    assert is_private(host) == is_in_private_range


def test_networks_of_the_users_are_exempt_as_well():
    trust = TrustConfig(loopback=False, private=False, networks=("203.0.113.0/24", "2001:db8::/32"))

    exempt = [host for host in ("203.0.113.7", "2001:db8:1::1", "203.0.114.7", "2001:db9::1") if trust.is_exempt(host)]

    assert exempt == ["203.0.113.7", "2001:db8:1::1"]


@pytest.mark.parametrize("network", ["203.0.113.7/24", "everybody", "", "10.0.0.0/33"])
def test_a_network_that_is_none_is_refused_with_the_form_that_is_wanted(network: str):
    with pytest.raises(ConfigError, match=r"203\.0\.113\.0/24"):
        TrustConfig(networks=(network,))


@given(V4, V4)
def test_two_ipv4_hosts_are_one_party_when_they_share_24_bits(one: str, other: str):
    shares = one.split(".")[:3] == other.split(".")[:3]

    assert (NOBODY.group_of(one) == NOBODY.group_of(other)) == shares


@given(V6, st.integers(0, 127))
def test_two_ipv6_hosts_are_one_party_when_they_share_48_bits_and_one_machine_when_they_share_64(one: str, bit: int):
    other = str(ipaddress.IPv6Address(int(ipaddress.IPv6Address(one)) ^ (1 << (127 - bit))))
    if any(getattr(ipaddress.ip_address(host), "ipv4_mapped", None) for host in (one, other)):
        return

    assert (NOBODY.group_of(one) == NOBODY.group_of(other)) == (bit >= 48)
    assert (machine_of(one) == machine_of(other)) == (bit >= 64)


@given(V4, V4)
def test_two_ipv4_hosts_have_one_provider_when_they_share_16_bits(one: str, other: str):
    shares = one.split(".")[:2] == other.split(".")[:2]

    assert (NOBODY.wide_group_of(one) == NOBODY.wide_group_of(other)) == shares
    assert NOBODY.group_of(one) != NOBODY.wide_group_of(one), "the two are counted in one place"


@given(V6, st.integers(0, 127))
def test_two_ipv6_hosts_have_one_provider_when_they_share_32_bits(one: str, bit: int):
    other = str(ipaddress.IPv6Address(int(ipaddress.IPv6Address(one)) ^ (1 << (127 - bit))))
    if any(getattr(ipaddress.ip_address(host), "ipv4_mapped", None) for host in (one, other)):
        return

    assert (NOBODY.wide_group_of(one) == NOBODY.wide_group_of(other)) == (bit >= 32)


@given(V4 | V6)
def test_groups_are_networks_as_they_are_written(host: str):
    address = ipaddress.ip_address(host)
    address = getattr(address, "ipv4_mapped", None) or address
    narrow, wide = (24, 16) if address.version == 4 else (48, 32)

    assert NOBODY.group_of(host) == str(ipaddress.ip_network(f"{address}/{narrow}", strict=False))
    assert NOBODY.wide_group_of(host) == str(ipaddress.ip_network(f"{address}/{wide}", strict=False))


@given(V4 | V6)
def test_everybody_is_everybody(host: str):
    assert TrustConfig.everybody().is_exempt(host)
    assert TrustConfig.everybody() == TrustConfig.everybody()


@given(V4, V4)
def test_an_ipv4_address_is_one_machine_however_it_is_written(one: str, other: str):
    assert machine_of(one) == machine_of(f"::ffff:{one}")
    assert (machine_of(one) == machine_of(other)) == (one == other)


@pytest.mark.parametrize(
    ("one", "other"), [("127.0.0.1", "127.0.0.2"), ("10.1.1.1", "10.1.1.2"), ("fd00::1", "fd00::2")]
)
def test_an_exempt_address_is_a_party_of_its_own(one: str, other: str):
    assert TrustConfig().group_of(one) != TrustConfig().group_of(other)
    assert NOBODY.group_of(one) == NOBODY.group_of(other)


def test_what_is_no_literal_is_a_party_and_a_machine_by_itself():
    assert NOBODY.group_of("example.org") == machine_of("example.org") == "example.org"
