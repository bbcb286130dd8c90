from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synapse_p2p.exceptions import ConfigError
from synapse_p2p.transport.base import (
    MAX_ADDRESS_CHARS,
    format_address,
    is_literal_address,
    is_loopback,
    parse_address,
)

PORTS = st.integers(min_value=0, max_value=65_535)
ADDRESS_LIKE = st.text(alphabet="0123456789abcdef.:[]%-+ \t\n٣", max_size=50)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("10.0.0.5:9999", "10.0.0.5", 9999),
        ("example.org:1", "example.org", 1),
        ("localhost:0", "localhost", 0),
        ("[::1]:65535", "::1", 65_535),
        ("[fe80::1%eth0]:80", "fe80::1%eth0", 80),
        ("10.0.0.5:00080", "10.0.0.5", 80),
    ],
)
def test_an_address_is_a_host_and_a_port(text: str, host: str, port: int):
    assert parse_address(text) == (host, port)


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", ":80", "10.0.0.5", "10.0.0.5:", "10.0.0.5:x", "10.0.0.5:-1", "10.0.0.5:+1", "10.0.0.5: 1"),
        *("10.0.0.5:1_0", "10.0.0.5:65536", "10.0.0.5:999999999999", "10.0.0.5:٣", "10.0.0.5:²"),
        *("::1:80", "::1", "[::1]", "[]:80"),
    ],
)
def test_what_is_no_address_is_refused_with_what_was_written(text: str):
    with pytest.raises(ConfigError) as raised:
        parse_address(text)

    assert repr(text) in str(raised.value)


def test_an_ipv6_host_without_brackets_is_told_of_brackets():
    with pytest.raises(ConfigError, match="brackets"):
        parse_address("::1:9999")


def test_a_huge_port_is_refused_without_being_computed():
    with pytest.raises(ConfigError, match="0 to 65535"):
        parse_address("host:" + "9" * 5_000)


@given(host=st.ip_addresses(), port=PORTS)
def test_a_formatted_address_is_read_back(host: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int):
    assert parse_address(format_address(str(host), port)) == (str(host), port)


def test_a_zone_means_nothing_to_others_and_is_left_out():
    assert format_address("fe80::1%eth0", 80) == "[fe80::1]:80"


@given(text=ADDRESS_LIKE)
def test_reading_an_address_raises_nothing_but_config_error(text: str):
    try:
        host, port = parse_address(text)
    except ConfigError:
        return

    assert host
    assert 0 <= port <= 65_535


@given(host=st.ip_addresses(), port=st.integers(min_value=1, max_value=65_535))
def test_every_ip_literal_with_a_port_is_one(host: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int):
    assert is_literal_address(format_address(str(host), port))


@given(text=ADDRESS_LIKE | st.from_regex(r"[0-9]{1,3}(\.[0-9]{1,3}){3}:[0-9]{1,6}", fullmatch=True))
def test_a_literal_is_what_the_parser_and_ipaddress_both_accept(text: str):
    """The fast way in says yes to nothing that the slow one refuses."""
    try:
        host, port = parse_address(text)
        version = ipaddress.ip_address(host).version
        expected = port > 0 and "%" not in text and (version == 6) == text.startswith("[")
    except (ConfigError, ValueError):
        expected = False

    assert is_literal_address(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("example.org:80", "localhost:80", "10.0.0.5:0", "10.0.0.5:65536", "[fe80::1%eth0]:80", "[10.0.0.5]:80"),
        *("::1:80", "010.0.0.5:80", "256.0.0.1:80", "10.0.0.5:80\n", "1.2.3:80", " 10.0.0.5:80", "x" * 65),
    ],
)
def test_names_zones_and_port_0_are_no_literals(text: str):
    assert not is_literal_address(text)


def test_the_longest_literal_fits():
    longest = "[ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255]:65535"

    assert is_literal_address(longest)
    assert len(longest) <= MAX_ADDRESS_CHARS


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1", "127.255.0.9", "::1", "::ffff:127.0.0.1", "::ffff:127.8.8.8", "::1%lo"]
)
def test_this_machine_alone_is_loopback(host: str):
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["", "0.0.0.0", "::", "10.0.0.5", "128.0.0.1", "::2", "::ffff:10.0.0.5", "example.org", "localhost.example"]
)
def test_everything_else_is_not(host: str):
    assert not is_loopback(host)
