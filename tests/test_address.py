"""One spelling for where a peer is and who it has to be."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synapse_p2p.address import PeerAddress
from synapse_p2p.exceptions import ConfigError

ID = bytes(range(32))
HOSTS = st.one_of(
    st.ip_addresses().map(str),
    st.from_regex(r"[a-z]([a-z0-9-]{0,10}[a-z0-9])?(\.[a-z]{2,5})?", fullmatch=True),
    st.just("fe80::1%eth0"),
)


@given(HOSTS, st.integers(1, 65_535), st.none() | st.binary(min_size=32, max_size=32))
def test_what_is_written_reads_back_the_same(host: str, port: int, node_id: bytes | None):
    address = PeerAddress(host, port, node_id)

    assert PeerAddress.parse(address.text) == address
    assert PeerAddress.parse(address.address) == PeerAddress(host, port)
    assert str(address) == address.text


@pytest.mark.parametrize(
    ("text", "host", "port", "node_id"),
    [
        ("10.0.0.5:9999", "10.0.0.5", 9999, None),
        ("[::1]:9999", "::1", 9999, None),
        (f"{ID.hex()}@seed.example:1", "seed.example", 1, ID),
        (f"{ID.hex().upper()}@[2001:db8::5]:1", "2001:db8::5", 1, ID),
    ],
)
def test_an_address_has_a_host_a_port_and_perhaps_an_id(text: str, host: str, port: int, node_id: bytes | None):
    assert PeerAddress.parse(text) == PeerAddress(host, port, node_id)


@given(st.text(alphabet="abc0123456789:@[].% \n", max_size=90))
def test_any_text_is_an_address_or_a_config_error(text: str):
    try:
        address = PeerAddress.parse(text)
    except ConfigError:
        return
    assert PeerAddress.parse(address.text) == address


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("10.0.0.5", "not host:port"),
        (":9999", "not host:port"),
        ("http://10.0.0.5:9999", "leave out all that a URL adds"),
        ("10.0.0.5:9999/", "leave out all that a URL adds"),
        ("::1:9999", "brackets"),
        ("10.0.0.5:0", "port 0"),
        ("@10.0.0.5:9999", "64 hexadecimal digits, and '' has 0 characters"),
        ("abc@10.0.0.5:9999", "'abc' has 3 characters"),
        ("ab " * 32 + "@10.0.0.5:9999", "64 hexadecimal"),
        ("g" * 64 + "@10.0.0.5:9999", "others among its 64"),
    ],
)
def test_text_that_is_none_is_refused_with_the_form_wanted(text: str, hint: str):
    with pytest.raises(ConfigError, match=hint):
        PeerAddress.parse(text)


def test_an_ipv6_host_is_written_in_brackets():
    host = str(ipaddress.ip_address("2001:db8::1"))

    assert PeerAddress(host, 7).text == "[2001:db8::1]:7"
