"""Remembered peers: what is written is read again, and nothing that a disk, a crash or a stranger left is believed."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.config import RoutingConfig
from dht.contact import Contact
from dht.known_peers import (
    MAX_FILE_BYTES,
    MAX_PEERS,
    PeersFault,
    PeersUnreadable,
    best,
    decoded_peers,
    encoded_peers,
    load,
    save,
)
from dht.routing import RoutingTable

V4 = st.tuples(st.ip_addresses(v=4), st.integers(1, 65_535)).map(lambda each: f"{each[0]}:{each[1]}")
V6 = st.tuples(st.ip_addresses(v=6), st.integers(1, 65_535)).map(lambda each: f"[{each[0]}]:{each[1]}")
CONTACTS = st.builds(Contact, st.binary(min_size=32, max_size=32), st.lists(V4 | V6, min_size=1, max_size=4).map(tuple))


def peer(number: int) -> Contact:
    return Contact(number.to_bytes(32, "big"), (f"10.0.0.{number + 1}:9000",))


PEERS = [peer(number) for number in range(MAX_PEERS)]
CONTENT = encoded_peers(PEERS)


def fault_of(content: bytes) -> PeersFault:
    with pytest.raises(PeersUnreadable) as caught:
        decoded_peers(content)
    return caught.value.fault


@given(st.lists(CONTACTS, max_size=30))
def test_what_is_written_is_read_again_up_to_sixteen_in_their_order(contacts: list[Contact]):
    content = encoded_peers(contacts)

    assert len(content) <= MAX_FILE_BYTES
    assert decoded_peers(content) == contacts[:MAX_PEERS]


def test_the_longest_addresses_fit_the_bound():
    address = "[1111:2222:3333:4444:5555:6666:7777:8888]:65535"

    assert len(encoded_peers([Contact(bytes(32), (address,) * 4)] * MAX_PEERS)) <= MAX_FILE_BYTES


def test_contacts_without_an_address_are_not_remembered():
    assert decoded_peers(encoded_peers([Contact(bytes(32), ()), peer(1)])) == [peer(1)]


def test_a_file_cut_anywhere_is_refused():
    for length in range(len(CONTENT)):
        assert fault_of(CONTENT[:length]) in (PeersFault.DAMAGED, PeersFault.FOREIGN)


def test_a_file_with_any_bit_flipped_is_refused():
    for place in range(len(CONTENT)):
        for bit in range(8):
            flipped = bytearray(CONTENT)
            flipped[place] ^= 1 << bit
            assert fault_of(bytes(flipped)) in (PeersFault.DAMAGED, PeersFault.FOREIGN, PeersFault.NEWER)


@given(st.binary(max_size=300))
def test_any_bytes_behind_the_head_are_refused_or_are_peers(body: bytes):
    head = CONTENT.partition(b" ")[0]

    for content in (head + b" " + body, body):
        with contextlib.suppress(PeersUnreadable):
            assert all(isinstance(peer, Contact) for peer in decoded_peers(content))


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", PeersFault.FOREIGN),
        (b"\x00" * 100, PeersFault.FOREIGN),
        (b"synapse-key-1 0 0\n", PeersFault.FOREIGN),
        (CONTENT.replace(b"peers-1", b"peers-2", 1), PeersFault.NEWER),
        (CONTENT.replace(b"peers-1", b"peers-999999999", 1), PeersFault.NEWER),
        (CONTENT.replace(b"peers-1", b"peers-0", 1), PeersFault.DAMAGED),
        (CONTENT.replace(b"peers-1", b"peers-01", 1), PeersFault.DAMAGED),
        (CONTENT + b"\n", PeersFault.DAMAGED),
        (CONTENT + b"x" * MAX_FILE_BYTES, PeersFault.TOO_LARGE),
    ],
)
def test_what_is_refused_says_why(content: bytes, fault: PeersFault):
    assert fault_of(content) is fault


@pytest.mark.parametrize(
    "line",
    [
        "",
        "zz",
        "00" * 31 + " 10.0.0.1:9000",
        "00" * 32 + " example.org:9000",
        "00" * 32 + " 10.0.0.1:0",
        "00" * 32 + " 10.0.0.1:9000" * 5,
        "00" * 32 + "  10.0.0.1:9000",
    ],
)
def test_a_list_that_fits_its_checksum_and_is_none_is_refused(line: str):
    good = encoded_peers([peer(1)])
    body = f"{line}\n".encode()
    # What no release of ours writes, with the checksum that it would have.
    forged = encoded_peers([]).partition(b" ")[0] + b" " + _check_line(body) + body

    assert decoded_peers(good) == [peer(1)]
    assert fault_of(forged) is PeersFault.MALFORMED


def _check_line(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest()[:16].encode() + b"\n"


def test_without_a_file_there_are_no_peers_and_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    assert load(tmp_path / "known.peers") == []
    assert caplog.records == []


def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path: Path):
    path = tmp_path / "known.peers"

    assert save(path, PEERS)
    assert save(path, PEERS[:3])

    assert load(path) == PEERS[:3]
    assert [each.name for each in tmp_path.iterdir()] == ["known.peers"]


def test_a_node_that_lost_everybody_keeps_its_old_peers(tmp_path: Path):
    path = tmp_path / "known.peers"
    save(path, PEERS)

    assert save(path, [])

    assert load(path) == PEERS


@pytest.mark.parametrize("damage", ["flip", "cut", "future", "other"])
def test_a_file_that_is_refused_costs_one_warning_and_is_written_anew(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    path = tmp_path / "known.peers"
    contents = {
        "flip": CONTENT[:-2] + b"9" + CONTENT[-1:],
        "cut": CONTENT[:-5],
        "future": CONTENT.replace(b"peers-1", b"peers-7", 1),
        "other": b"\x89PNG",
    }
    path.write_bytes(contents[damage])

    assert load(path) == []

    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(path) in record.getMessage()
    assert save(path, PEERS)
    assert load(path) == PEERS


def test_a_file_of_a_gigabyte_is_refused_without_being_read(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "known.peers"
    with path.open("wb") as file:
        file.write(CONTENT)
        file.truncate(2**30)

    assert load(path) == []
    assert PeersFault.TOO_LARGE in caplog.text


@pytest.mark.skipif(os.name != "posix", reason="needs pipes and folders as files")
@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_no_file_is_refused_and_not_waited_for(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "known.peers"
    path.mkdir() if kind == "folder" else os.mkfifo(path)

    assert load(path) == []
    assert "it is no regular file" in caplog.text
    assert not save(path, PEERS) if kind == "folder" else True


def test_a_folder_that_cannot_be_written_costs_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    assert not save(tmp_path / "missing" / "known.peers", PEERS)

    (record,) = caplog.records
    assert "not remembered" in record.getMessage()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "known.peers"
    save(path, PEERS[:2])
    path.with_name("known.peers.new").symlink_to("/dev/full")

    assert not save(path, PEERS)

    assert "No space left" in caplog.text
    assert load(path) == PEERS[:2]
    assert [each.name for each in tmp_path.iterdir()] == ["known.peers"]


WRITER = """
import sys
from dht.contact import Contact
from dht.known_peers import save
print("ready", flush=True)
count = 0
while True:
    count += 1
    save(sys.argv[1], [Contact(bytes([count % 250]) * 32, ("10.0.0.1:9000",))] * 16)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_process_killed_while_it_writes_leaves_a_whole_file(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "known.peers"
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        while not path.exists():
            pass
        process.kill()
        process.wait()
        process.stdout.close()

        assert len(load(path)) == MAX_PEERS

    assert caplog.records == []
    assert save(path, PEERS)


def test_best_are_the_sixteen_who_have_answered_longest():
    table = RoutingTable(bytes([255]) * 32, RoutingConfig())
    contacts = [peer(number) for number in range(20)]
    for number, contact in enumerate(contacts):
        table.observe(contact, float(number))
    for contact in reversed(contacts[4:]):
        table.observe(contact, 100.0)

    assert best(table) == contacts[4:]
