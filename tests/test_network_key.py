"""Network keys in files."""

from __future__ import annotations

import os
import re
import secrets
import stat
import sys
from pathlib import Path

import pytest

from synapse_p2p.keyfile import KeyFault, KeyFileError
from synapse_p2p.network_key import create_network_key, fingerprint_of, read_network_key

posix = pytest.mark.skipif(os.name != "posix", reason="elsewhere these bits say nothing")


def test_a_new_key_is_private_and_read_back(tmp_path: Path):
    path = tmp_path / "folder" / "lab.key"

    key = create_network_key(path, token_bytes=secrets.token_bytes)

    assert read_network_key(path) == key
    assert path.read_text(encoding="ascii") == key.hex() + "\n"
    assert sys.platform == "win32" or stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        create_network_key(path, token_bytes=secrets.token_bytes)
    assert read_network_key(path) == key


def test_what_people_write_by_hand_is_read(tmp_path: Path):
    path = tmp_path / "lab.key"
    key = secrets.token_bytes(32)
    path.write_text(f"  {key.hex().upper()}\r\n\n", encoding="ascii")
    path.chmod(0o600)

    assert read_network_key(path) == key


@pytest.mark.parametrize("content", [b"", b"a passphrase", b"ab" * 31, b"ab" * 33, b"ab" * 32 + b" x", b" " * 300])
def test_what_is_no_key_is_refused_and_not_shown(tmp_path: Path, content: bytes):
    path = tmp_path / "lab.key"
    path.write_bytes(content)
    path.chmod(0o600)

    with pytest.raises(KeyFileError, match="holds 64 hexadecimal digits and nothing else") as error:
        read_network_key(path)

    assert error.value.fault is KeyFault.FOREIGN
    assert not content.strip() or content.decode() not in str(error.value)


@posix
def test_a_key_that_others_can_read_is_refused_with_what_to_type(tmp_path: Path):
    path = tmp_path / "lab.key"
    create_network_key(path, token_bytes=secrets.token_bytes)
    path.chmod(0o640)

    with pytest.raises(
        KeyFileError, match=re.escape(f"can join this network. If nobody took it, type: chmod 600 {path}")
    ):
        read_network_key(path)


@posix
def test_a_folder_and_a_pipe_are_no_keys_and_nothing_waits_for_them(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe", 0o600)
    for place in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(KeyFileError) as error:
            read_network_key(place)
        assert error.value.fault is KeyFault.FOREIGN


def test_a_fingerprint_tells_keys_apart_and_is_not_the_key():
    key = bytes(32)

    assert re.fullmatch("[0-9a-f]{16}", fingerprint_of(key))
    assert fingerprint_of(key) != fingerprint_of(bytes(31) + b"\x01")
    assert fingerprint_of(key) not in key.hex()
