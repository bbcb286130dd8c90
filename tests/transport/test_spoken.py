from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synapse_p2p.transport.spoken import (
    MAX_SPOKEN_ADDRESSES,
    SPOKEN,
    SpokenAddresses,
    note_encrypted,
    spoke_encrypted,
)


@pytest.mark.parametrize(
    ("noted", "asked"),
    [
        ("peer.example.org:9999", "PEER.Example.org:9999"),
        ("peer.example.org:9999", "peer.example.org.:9999"),
        ("10.0.0.5:9999", "10.0.0.5:09999"),
        ("10.0.0.5:9999", "[::ffff:10.0.0.5]:9999"),
        ("[::1]:9999", "[0:0:0:0:0:0:0:1]:9999"),
        ("[2001:DB8::1]:9999", "[2001:db8::1]:9999"),
        ("[fe80::1%eth0]:9999", "[fe80::1]:9999"),
        ("no address", "no address"),
    ],
)
def test_another_spelling_of_an_address_is_no_way_round(noted: str, asked: str):
    for one, other in ((noted, asked), (asked, noted)):
        spoken = SpokenAddresses()
        spoken.note(one)

        assert other in spoken


@pytest.mark.parametrize("other", ["10.0.0.5:9998", "10.0.0.6:9999", "localhost:9999", "[::1]:9999"])
def test_another_address_is_not_known_by_it(other: str):
    spoken = SpokenAddresses()
    spoken.note("10.0.0.5:9999")

    assert other not in spoken


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 8)), max_size=60))
def test_the_one_not_used_for_longest_is_forgotten_first(steps: list[tuple[bool, int]]):
    spoken = SpokenAddresses(max_addresses=4)
    model: list[int] = []  # the latest last
    for is_note, port in steps:
        if is_note:
            spoken.note(f"10.0.0.1:{port}")
        else:
            assert (f"10.0.0.1:{port}" in spoken) == (port in model)
        if is_note or port in model:
            model = [*(held for held in model if held != port), port][-4:]

        assert len(spoken) == len(model)


def test_threads_that_note_at_once_keep_the_bound():
    spoken = SpokenAddresses(max_addresses=50)

    def note(host: int) -> None:
        for port in range(1, 500):
            spoken.note(f"10.0.0.{host}:{port}")
            assert f"10.0.0.{host}:0" not in spoken

    threads = [threading.Thread(target=note, args=(host,)) for host in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(spoken) == 50


def test_the_record_of_the_process_is_bounded():
    for number in range(MAX_SPOKEN_ADDRESSES + 10):
        note_encrypted(f"name-{number}.invalid:1")

    assert len(SPOKEN) == MAX_SPOKEN_ADDRESSES
    assert spoke_encrypted("name-10.invalid:1")
    assert not spoke_encrypted("name-9.invalid:1")
    SPOKEN.clear()
    assert not spoke_encrypted("name-10.invalid:1")
