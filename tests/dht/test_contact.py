import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.contact import Contact, decode_contacts, encode_contact
from synapse_p2p.exceptions import InvalidMessageError
from synapse_p2p.protocol.wire import CONTROL_LIMITS, pack, unpack
from synapse_p2p.transport.base import is_literal_address

IDS = st.binary(min_size=32, max_size=32)
PORTS = st.integers(1, 65535)
ADDRESSES = st.one_of(
    st.builds("{}:{}".format, st.ip_addresses(v=4), PORTS),
    st.builds("[{}]:{}".format, st.ip_addresses(v=6), PORTS),
)
CONTACTS = st.builds(Contact, IDS, st.lists(ADDRESSES, max_size=4).map(tuple))


@given(st.lists(CONTACTS, max_size=20))
def test_contacts_survive_the_wire(contacts: list[Contact]):
    wire = unpack(pack([encode_contact(contact) for contact in contacts]), CONTROL_LIMITS)

    assert decode_contacts(wire, max_count=20) == contacts


@given(IDS)
def test_point_is_the_id_as_a_number_and_plays_no_part_in_equality(node_id: bytes):
    contact = Contact(node_id, ("10.0.0.1:1",))

    assert contact.point == int(node_id.hex(), 16)
    assert contact == Contact(node_id, ("10.0.0.1:1",))
    assert contact != Contact(node_id, ("10.0.0.1:2",))


@given(ADDRESSES)
def test_every_ip_literal_with_a_port_is_an_address(address: str):
    assert is_literal_address(address)


@given(st.from_regex(r"[0-9]{1,3}(\.[0-9]{1,3}){2,4}:[0-9]{1,6}", fullmatch=True))
def test_what_looks_like_ipv4_is_an_address_exactly_if_ipaddress_says_so(text: str):
    host, _, port = text.partition(":")
    try:
        ipaddress.IPv4Address(host)
        expected = len(port) <= 5 and 1 <= int(port) <= 65535
    except ValueError:
        expected = False

    assert is_literal_address(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "example.org:80",
        "localhost:80",
        "10.0.0.1",
        "10.0.0.1:0",
        "10.0.0.1:65536",
        "10.0.0.1:-1",
        "10.0.0.1: 80",
        "10.0.0.1:80\n",
        "10.0.0.1:\uff18\uff10",
        "[10.0.0.1]:80",
        "::1:80",
        "[::1]",
        "[fe80::1%eth0]:80",
        "256.0.0.1:80",
        "01.0.0.1:80",
        "[" + "0" * 64 + "::1]:80",
    ],
)
def test_everything_else_is_no_address(text: str):
    assert not is_literal_address(text)


def test_elements_from_the_future_are_ignored():
    wire = [[bytes(32), ["10.0.0.1:9000"], {"relay": True}, 7]]

    assert decode_contacts(wire, max_count=1) == [Contact(bytes(32), ("10.0.0.1:9000",))]


@pytest.mark.parametrize(
    "wire",
    [
        None,
        {},
        "contacts",
        [None],
        [[bytes(32)]],
        [[bytes(31), []]],
        [[bytes(33), []]],
        [["i" * 32, []]],
        [[bytes(32), "10.0.0.1:9000"]],
        [[bytes(32), [b"10.0.0.1:9000"]]],
        [[bytes(32), ["example.org:80"]]],
        [[bytes(32), ["10.0.0.1:9000"] * 5]],
        [[bytes(32), {"10.0.0.1:9000": None}]],
        [[bytes(32), [["10.0.0.1:9000"]]]],
        [[bytes(32), [{}]]],
        [[bytes(32), [None]]],
        [[bytes(32), [1.5]]],
        [[[], []]],
        [[bytes(32), []]] * 3,
    ],
)
def test_malformed_or_too_many_contacts_are_no_message(wire: object):
    with pytest.raises(InvalidMessageError):
        decode_contacts(wire, max_count=2)
