import hashlib
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.agents.index import capability_key, capability_root, check_belongs, provider_prefix, shard_key
from dht.agents.record import AgentRecord, CapabilityClaim, Reach
from dht.exceptions import RecordRefused
from dht.records import Refusal
from synapse_p2p.identity import Identity, network_id_of

NETWORK_ID = network_id_of("test")
OWNER = Identity.from_seed(bytes(32))
IDS = st.binary(min_size=32, max_size=32)


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def key_by_hand(network_id: bytes, name: str, provider: bytes, depth: int) -> bytes:
    """The key as the specification words it, over a string of bits."""
    root = sha256(b"synapse-capability:v1:" + network_id + name.encode())
    bits = "".join(f"{byte:08b}" for byte in sha256(root + provider))[:depth].rstrip("0")
    if not bits:
        return root
    padded = bits + "0" * (-len(bits) % 8)
    return sha256(root + bytes([len(bits)]) + bytes(int(padded[i : i + 8], 2) for i in range(0, len(padded), 8)))


def record_of(*names: str) -> AgentRecord:
    return AgentRecord(
        public_key=OWNER.public_key,
        seq=1,
        issued_ms=1_000,
        expires_ms=2_000,
        network_id=NETWORK_ID,
        addresses=("10.0.0.1:9000",),
        reach=Reach.DIRECT,
        name="Reviewer",
        role="reviewer",
        description="",
        capabilities=tuple(CapabilityClaim(name) for name in names),
    )


def refusal_of(record: AgentRecord, capability: str, depth: int, key: bytes) -> str | None:
    try:
        check_belongs(record, capability, depth, key)
    except RecordRefused as refused:
        return refused.reason
    return None


@given(IDS, st.integers(0, 64))
def test_key_is_the_one_of_the_specification(provider: bytes, depth: int):
    assert capability_key(NETWORK_ID, "python", provider, depth) == key_by_hand(NETWORK_ID, "python", provider, depth)


def test_golden_keys():
    root = capability_root(NETWORK_ID, "python")

    assert root.hex() == "bb2622566743c1f2fd88cec5a4e1fd60ada9fb75d5a5b2ccfb86bf6d9eda38a8"
    assert provider_prefix(root, bytes(32), 8) == 249
    assert shard_key(root, 0b101, 3).hex() == "e757a65a0b815c9848539342ebcd185d4c0d94200557c73f62a2109007bdad30"
    assert shard_key(root, 0b100000001, 9).hex() == "c5a98e69c1d9ce7ee723eeec8348ead591db07c2a56b618bb9efb58024d3f4bf"


@given(IDS, st.integers(0, 10), st.data())
def test_trailing_zeros_do_not_change_the_key(root: bytes, depth: int, data: st.DataObject):
    prefix = data.draw(st.integers(0, 2**depth - 1))

    assert shard_key(root, prefix << 1, depth + 1) == shard_key(root, prefix, depth)
    assert shard_key(root, 0, depth) == root


@given(IDS)
def test_the_shards_of_one_depth_have_distinct_keys(root: bytes):
    assert len({shard_key(root, prefix, 6) for prefix in range(64)}) == 64


@given(IDS, IDS, st.integers(0, 63))
def test_a_deeper_prefix_extends_the_shallower(root: bytes, provider: bytes, depth: int):
    assert provider_prefix(root, provider, depth + 1) >> 1 == provider_prefix(root, provider, depth)
    assert 0 <= Fraction(provider_prefix(root, provider, depth), 2**depth) < 1


def test_networks_and_names_have_roots_of_their_own():
    roots = {capability_root(network, name) for network in (bytes(16), NETWORK_ID) for name in ("a", "a/b", "b")}

    assert len(roots) == 6


@pytest.mark.parametrize(("prefix", "depth"), [(0, -1), (0, 65), (1, 0), (8, 3), (-1, 3)])
def test_a_prefix_that_does_not_fit_has_no_key(prefix: int, depth: int):
    with pytest.raises(ValueError, match=r"depth|bits"):
        shard_key(bytes(32), prefix, depth)


@pytest.mark.parametrize("capability", ["python", "nlp", "nlp/en", "nlp/en/summary"])
@pytest.mark.parametrize("depth", [0, 1, 7])
def test_record_belongs_under_its_capabilities_and_their_ancestors(capability: str, depth: int):
    record = record_of("python", "nlp/en/summary")

    assert refusal_of(record, capability, depth, capability_key(NETWORK_ID, capability, OWNER.node_id, depth)) is None


@pytest.mark.parametrize("capability", ["rust", "nlp/e", "nlp/en/summary/short", "py", "", "python/"])
def test_record_does_not_belong_under_what_it_does_not_list(capability: str):
    key = capability_key(NETWORK_ID, capability, OWNER.node_id, 0)

    assert refusal_of(record_of("python", "nlp/en/summary"), capability, 0, key) == Refusal.NOT_LISTED


def test_record_belongs_to_its_signers_shard_alone():
    depth = next(
        depth
        for depth in range(1, 20)
        if key_by_hand(NETWORK_ID, "python", OWNER.node_id, depth)
        != key_by_hand(NETWORK_ID, "python", OWNER.node_id, depth - 1)
    )
    right = capability_key(NETWORK_ID, "python", OWNER.node_id, depth)
    of_another_network = capability_key(bytes(16), "python", OWNER.node_id, depth)

    assert refusal_of(record_of("python"), "python", depth, right) is None
    assert refusal_of(record_of("python"), "python", depth - 1, right) == Refusal.WRONG_KEY
    assert refusal_of(record_of("python"), "python", depth, of_another_network) == Refusal.WRONG_KEY
    assert refusal_of(record_of("python"), "python", 65, right) == Refusal.WRONG_KEY
    assert refusal_of(record_of("python"), "python", -1, right) == Refusal.WRONG_KEY
