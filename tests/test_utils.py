from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from synapse_p2p.types import Node, build_node_from_peer_name
from synapse_p2p.utils import random_hash, sort_nodes_by_xor_distance, xor_distance

HEX = st.text("0123456789abcdef", min_size=8, max_size=8)


def test_a_random_hash_is_64_hex_digits_and_another_each_time():
    first, second = random_hash(), random_hash()

    assert re.fullmatch("[0-9a-f]{64}", first)
    assert first != second


@given(HEX)
def test_the_distance_to_oneself_is_zero(identifier: str):
    assert xor_distance(int(identifier, 16), identifier) == 0


@given(st.integers(0, 2**32 - 1), st.lists(HEX, max_size=12))
def test_sorted_nodes_come_nearest_first_or_last(source: int, identifiers: list[str]):
    nodes = [Node(identifier, "127.0.0.1", 1) for identifier in identifiers]

    distances = [xor_distance(source, node.identifier) for node in sort_nodes_by_xor_distance(source, nodes)]
    reverse = [xor_distance(source, n.identifier) for n in sort_nodes_by_xor_distance(source, nodes, reverse=True)]

    assert distances == sorted(source ^ int(identifier, 16) for identifier in identifiers)
    assert reverse == distances[::-1]


def test_a_node_is_made_of_ipv4_and_ipv6_peer_names():
    assert build_node_from_peer_name(("127.0.0.1", 80)) == Node("11c2281c", "127.0.0.1", 80)
    assert build_node_from_peer_name(("::1", 80, 0, 0)).ip == "::1"
