"""A contact: who and where. Its shape on the wire is `[id, [address, ...]]`.

Pure. Owns what an address between nodes may look like; whether one is dialed is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from synapse_p2p.exceptions import InvalidMessageError
from synapse_p2p.identity import NODE_ID_SIZE_BYTES, NodeID
from synapse_p2p.transport.base import is_literal_address

MAX_ADDRESSES = 4
MAX_SHARED = 16_384
"""Contacts that are remembered to be shared: 10 MiB at most, with four addresses each."""


@dataclass(frozen=True, slots=True)
class Contact:
    """A node that others can reach. Addresses are `host:port` or `[v6]:port`, IP literals only.

    `point` is the id as a number, kept because routing and lookups order contacts by its XOR with a target
    all the time.
    """

    id: NodeID
    addresses: tuple[str, ...]
    point: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "point", int.from_bytes(self.id, "big"))


@lru_cache(maxsize=MAX_SHARED)
def shared_contact(node_id: NodeID, addresses: tuple[str, ...]) -> Contact:
    """The contact of this id and these addresses: mostly one that exists already.

    A node hears of the same few contacts in every answer. Finding one takes a tenth of the time of making it, and a
    process with many nodes keeps each once.
    """
    return Contact(node_id, addresses)


def encode_contact(contact: Contact) -> list[Any]:
    """`[id, [address, ...]]`."""
    return [contact.id, list(contact.addresses)]


def encode_contacts(contacts: Iterable[Contact]) -> list[list[Any]]:
    """Each as `encode_contact` has it."""
    return [[contact.id, [*contact.addresses]] for contact in contacts]  # every answer has twenty: no call for each


def decode_contacts(value: Any, *, max_count: int, max_addresses: int = MAX_ADDRESSES) -> list[Contact]:
    """The contacts that a peer names, in its order. Elements of a contact after the known two are ignored.

    Raises InvalidMessageError for more than `max_count` and for everything malformed: one malformed contact
    spoils the list, for its sender is no node of ours.
    """
    if type(value) is not list or len(value) > max_count:
        raise InvalidMessageError(f"contacts are an array of at most {max_count}")
    return [_decode_contact(item, max_addresses) for item in value]


def _decode_contact(value: Any, max_addresses: int) -> Contact:
    if type(value) is not list or len(value) < 2:
        raise InvalidMessageError("a contact is an array that starts with an id and addresses")
    node_id, addresses = value[0], value[1]
    if type(node_id) is not bytes or len(node_id) != NODE_ID_SIZE_BYTES:
        raise InvalidMessageError(f"a contact's id is {NODE_ID_SIZE_BYTES} bytes")
    if type(addresses) is not list or len(addresses) > max_addresses:
        raise InvalidMessageError(f"a contact's addresses are an array of at most {max_addresses}")
    for address in addresses:
        if type(address) is not str:
            raise InvalidMessageError(_NO_ADDRESS)
    return _checked_contact(node_id, *addresses)


@lru_cache(maxsize=MAX_SHARED)
def _checked_contact(node_id: NodeID, *addresses: str) -> Contact:
    # Remembered with the verdict, and by its parts: most have one address, and no tuple is made to find them.
    if not all(map(is_literal_address, addresses)):
        raise InvalidMessageError(_NO_ADDRESS)
    return shared_contact(node_id, addresses)


_NO_ADDRESS = "a contact's address is an IP literal with a port"
