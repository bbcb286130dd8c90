import copy
import hashlib
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synapse_p2p.exceptions import ConfigError
from synapse_p2p.identity import (
    Identity,
    checked_network_key,
    distance,
    network_id_of,
    node_id_of,
    parse_node_id,
    verify,
)

SEEDS = st.binary(min_size=32, max_size=32)

# RFC 8032 section 7.1, tests 1 to 3: secret key, public key, message, signature.
RFC_8032 = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        (
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
            "d25bf5f0595bbe24655141438e7a100b"
        ),
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        (
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c"
            "387b2eaeb4302aeeb00d291612bb0c00"
        ),
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        (
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc659"
            "4a7c15e9716ed28dc027beceea1ec40a"
        ),
    ),
]


@pytest.mark.parametrize(("secret", "public", "message", "signature"), RFC_8032, ids=["test 1", "test 2", "test 3"])
def test_keys_and_signatures_are_those_of_rfc_8032(secret: str, public: str, message: str, signature: str):
    identity = Identity.from_seed(bytes.fromhex(secret))

    assert identity.public_key.hex() == public
    assert identity.sign(b"", bytes.fromhex(message)).hex() == signature
    assert verify(identity.public_key, b"", bytes.fromhex(message), bytes.fromhex(signature))


@given(SEEDS, st.binary(max_size=64), st.binary(max_size=64))
def test_a_signature_verifies_under_its_own_label_alone(seed: bytes, message: bytes, other_message: bytes):
    identity = Identity.from_seed(seed)
    signature = identity.sign(b"one:v1:", message)

    assert verify(identity.public_key, b"one:v1:", message, signature)
    assert not verify(identity.public_key, b"two:v1:", message, signature)
    assert verify(identity.public_key, b"one:v1:", other_message, signature) == (message == other_message)


def test_a_signature_does_not_verify_under_another_key():
    signature = Identity.from_seed(bytes(32)).sign(b"label:", b"message")

    assert not verify(Identity.from_seed(bytes([1] * 32)).public_key, b"label:", b"message", signature)


@pytest.mark.parametrize("bit", range(0, 512, 7))
def test_a_signature_with_one_bit_changed_does_not_verify(bit: int):
    identity = Identity.from_seed(bytes(32))
    signature = bytearray(identity.sign(b"label:", b"message"))

    signature[bit // 8] ^= 1 << bit % 8

    assert not verify(identity.public_key, b"label:", b"message", bytes(signature))


@given(st.binary(max_size=40), st.binary(max_size=70))
def test_verify_says_no_to_any_bytes_and_raises_nothing(public_key: bytes, signature: bytes):
    assert verify(public_key, b"label:", b"message", signature) is False


@pytest.mark.parametrize("size_bytes", [0, 31, 33, 64])
def test_a_seed_of_another_length_is_refused_with_both_lengths(size_bytes: int):
    with pytest.raises(ConfigError, match=f"32 random bytes, not {size_bytes}"):
        Identity.from_seed(bytes(size_bytes))


def test_a_node_id_is_the_hash_of_the_public_key():
    identity = Identity.from_seed(bytes(32))

    assert identity.node_id == node_id_of(identity.public_key) == hashlib.sha256(identity.public_key).digest()


def test_a_network_id_is_the_first_half_of_the_hash_of_its_name():
    assert network_id_of("").hex() == "e3b0c44298fc1c149afbf4c8996fb924"
    assert network_id_of("lab") == hashlib.sha256(b"lab").digest()[:16]


@given(st.binary(min_size=32, max_size=32))
def test_a_node_id_is_read_from_its_64_digits_in_either_case(node_id: bytes):
    assert parse_node_id(node_id.hex()) == parse_node_id(node_id.hex().upper()) == node_id


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "'' has 0 characters"),
        ("ab" * 31, "has 62 characters"),
        ("0x" + "ab" * 32, "has 66 characters"),
        ("ab" * 32 + "\n", "has 65 characters"),
        ("ab " * 21 + "a", "others among its 64"),
        ("\u0661" * 64, "others among its 64"),
    ],
)
def test_text_that_is_no_node_id_is_refused_with_what_is_wrong(text: str, hint: str):
    with pytest.raises(ConfigError, match=f"64 hexadecimal digits.*{hint}"):
        parse_node_id(text)


def test_a_refused_node_id_of_any_length_makes_a_short_message():
    with pytest.raises(ConfigError) as refused:
        parse_node_id("a" * 1_000_000)

    assert len(str(refused.value)) < 300


@given(SEEDS, SEEDS, SEEDS)
def test_distance_is_a_metric_that_no_two_points_share(a: bytes, b: bytes, c: bytes):
    differing_bits = [x ^ y for x, y in zip(a, b, strict=True)]

    assert distance(a, b) == distance(b, a) == int(bytes(differing_bits).hex(), 16)
    assert (distance(a, b) == 0) == (a == b)
    assert distance(a, c) <= distance(a, b) + distance(b, c)
    assert (distance(a, b) == distance(a, c)) == (b == c)


@pytest.mark.parametrize("key", [b"", b"secret", bytes(31), bytes(33), "a" * 32, 32])
def test_a_network_key_that_is_not_32_bytes_is_refused_with_how_to_draw_one(key):
    with pytest.raises(ConfigError, match=r"32 random bytes.*secrets\.token_bytes\(32\)"):
        checked_network_key(key)


def test_a_network_key_of_32_bytes_or_none_is_taken():
    assert checked_network_key(bytes(32)) == bytes(32)
    assert checked_network_key(None) is None


@given(SEEDS, SEEDS)
def test_identities_are_equal_when_their_keys_are(seed: bytes, other_seed: bytes):
    identity, other = Identity.from_seed(seed), Identity.from_seed(other_seed)

    assert (identity == other) == (seed == other_seed)
    assert identity == Identity.from_seed(seed)
    assert hash(identity) == hash(Identity.from_seed(seed))
    assert identity != seed


def test_the_secret_shows_in_no_text():
    seed = bytes(range(32))
    identity = Identity.from_seed(seed)

    assert repr(identity) == str(identity) == f"Identity({identity.node_id.hex()[:16]})"
    assert seed.hex() not in f"{identity} {identity!r}"


@pytest.mark.parametrize("copying", [pickle.dumps, copy.copy, copy.deepcopy])
def test_an_identity_is_neither_pickled_nor_copied(copying):
    with pytest.raises(TypeError, match="private key"):
        copying(Identity.from_seed(bytes(32)))
