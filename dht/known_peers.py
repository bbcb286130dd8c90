"""Peers remembered from one run to the next, so that a node comes back when all its seeds are gone.

On disk is one file of text: `synapse-peers-1 CHECK` (the first 16 hexadecimal digits of the SHA-256 of the rest), then
a line for each peer, best first: its id as 64 hexadecimal digits, and its addresses. Nothing in it is secret.
`encoded_peers` and `decoded_peers` are pure.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Sequence
from enum import StrEnum

from dht.contact import MAX_ADDRESSES, Contact, decode_contacts
from dht.routing import RoutingTable
from synapse_p2p.exceptions import InvalidMessageError, SynapseError
from synapse_p2p.kept_file import read_file, replace_file

logger = logging.getLogger(__name__)

FILE_NAME = "known.peers"
FORMAT = 1
MAX_PEERS = 16
"""Enough that some of them live after a night, and few enough to be asked all at once."""
MAX_FILE_BYTES = 8192
"""16 peers with 4 addresses of the longest kind take 5.3 KiB; nothing past this is read."""
CHECK_HEX_DIGITS = 16

_HEAD = re.compile(rb"synapse-peers-([0-9]{1,9}) ")


class PeersFault(StrEnum):
    """What is wrong with a file of peers."""

    DAMAGED = "it does not fit its checksum"
    MALFORMED = "it fits its checksum, and is no list of peers"
    FOREIGN = f"it does not begin with `synapse-peers-{FORMAT}`"
    NEWER = f"it was written by a later release, and this one reads format {FORMAT} alone"
    TOO_LARGE = f"it has more than {MAX_FILE_BYTES} bytes"


class PeersUnreadable(SynapseError):
    """A file of peers that is not believed. `fault` says why."""

    def __init__(self, fault: PeersFault) -> None:
        super().__init__(str(fault))
        self.fault = fault


def best(table: RoutingTable) -> list[Contact]:
    """Whom to remember of a routing table: at most 16, who have answered longest first.

    How long a node has been there is the best sign that it will be there tomorrow; and its place was not to be had by
    whoever came yesterday. The limits of the table on places hold for these as well.
    """
    return table.longest_lived(MAX_PEERS)


def load(path: str | os.PathLike[str]) -> list[Contact]:
    """The peers in a file, best first; none, after one warning that says why, where it cannot be used.

    Their addresses were proved by dials of an earlier run. Without a file there are none, and no warning.
    """
    try:
        return decoded_peers(read_file(path, max_bytes=MAX_FILE_BYTES))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
    except PeersUnreadable as error:
        reason = error
    logger.warning(
        "the peers remembered in %s are not used: %s. The node goes on without them and writes that file anew",
        os.fspath(path),
        reason,
    )
    return []


def save(path: str | os.PathLike[str], contacts: Sequence[Contact]) -> bool:
    """Keep the first 16 of these in place of those in the file; whether that went well. If not, one warning says why.

    Without any the file stays as it is: a node that lost everybody needs its old peers most. One process at a time
    writes a file. Cost: it waits for the disk, some milliseconds.
    """
    if not contacts:
        return True
    try:
        replace_file(path, encoded_peers(contacts))
    except (OSError, ValueError) as error:
        logger.warning(
            "peers are not remembered in %s: %s. Make room there, or let this user write in its folder",
            os.fspath(path),
            getattr(error, "strerror", None) or error,
        )
        return False
    return True


def encoded_peers(contacts: Sequence[Contact]) -> bytes:
    """The content of a file with the first 16 of these; contacts without an address are left out."""
    lines = [
        " ".join((contact.id.hex(), *contact.addresses[:MAX_ADDRESSES])) + "\n"
        for contact in contacts
        if contact.addresses
    ]
    body = "".join(lines[:MAX_PEERS]).encode()
    return b"synapse-peers-%d %s\n%s" % (FORMAT, _check_of(body), body)


def decoded_peers(content: bytes) -> list[Contact]:
    """The contacts in the content of a file. Raises PeersUnreadable."""
    if len(content) > MAX_FILE_BYTES:
        raise PeersUnreadable(PeersFault.TOO_LARGE)
    head = _HEAD.match(content)
    if head is None:
        raise PeersUnreadable(PeersFault.FOREIGN)
    if int(head[1]) > FORMAT:
        raise PeersUnreadable(PeersFault.NEWER)
    check, newline, body = content[head.end() :].partition(b"\n")
    if content[: head.end()] != b"synapse-peers-%d " % FORMAT or not newline or check != _check_of(body):
        raise PeersUnreadable(PeersFault.DAMAGED)
    try:
        rows = [line.split(" ") for line in body.decode("ascii").splitlines()]
        contacts = decode_contacts(
            [[bytes.fromhex(node_id), addresses] for node_id, *addresses in rows], max_count=MAX_PEERS
        )
    except (ValueError, InvalidMessageError) as error:
        raise PeersUnreadable(PeersFault.MALFORMED) from error
    return [contact for contact in contacts if contact.addresses]


def _check_of(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest()[:CHECK_HEX_DIGITS].encode()
