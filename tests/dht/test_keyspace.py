import hashlib
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.keyspace import ID_BITS, common_prefix_length, content_key, distance, mutable_key, random_key_in_bucket

POINTS = st.binary(min_size=32, max_size=32)


@given(POINTS, POINTS)
def test_distance_is_the_number_whose_bits_differ(a: bytes, b: bytes):
    by_bytes = bytes(x ^ y for x, y in zip(a, b, strict=True))

    assert distance(a, b) == distance(b, a) == int(by_bytes.hex(), 16)


@given(POINTS, POINTS, POINTS)
def test_distance_obeys_the_triangle_inequality(a: bytes, b: bytes, c: bytes):
    assert distance(a, c) <= distance(a, b) + distance(b, c)


@given(POINTS, POINTS)
def test_common_prefix_length_counts_equal_leading_bits(a: bytes, b: bytes):
    bits_a, bits_b = (f"{int.from_bytes(point, 'big'):0256b}" for point in (a, b))
    expected = next((i for i in range(ID_BITS) if bits_a[i] != bits_b[i]), ID_BITS)

    assert common_prefix_length(a, b) == expected


@given(POINTS, st.integers(0, 255), st.integers())
def test_random_key_shares_exactly_the_prefix_of_its_bucket(own_id: bytes, index: int, seed: int):
    key = random_key_in_bucket(own_id, index, Random(seed))

    assert len(key) == 32
    assert common_prefix_length(own_id, key) == index


def test_random_keys_of_one_bucket_fill_it():
    rng = Random(1)

    keys = {random_key_in_bucket(bytes(32), 253, rng) for _ in range(200)}

    assert {key[-1] for key in keys} == {4, 5, 6, 7}


@pytest.mark.parametrize("index", [-1, 256])
def test_no_key_lies_in_a_bucket_that_cannot_be(index: int):
    with pytest.raises(ValueError, match="0 to 255"):
        random_key_in_bucket(bytes(32), index, Random(1))


def test_content_key_is_the_sha256_of_a_label_and_the_value():
    assert content_key(b"value") == hashlib.sha256(b"synapse-value:v1:value").digest()


def test_mutable_key_is_the_sha256_of_a_label_the_public_key_and_the_salt():
    public_key = bytes(range(32))

    assert mutable_key(public_key, b"salt") == hashlib.sha256(b"synapse-mutable:v1:" + public_key + b"salt").digest()
