"""A contact: who and where. Its shape on the wire is `[id, [address, ...]]`.

Pure. Owns what an address between nodes may look like; whether one is dialed is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NoReturn

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


def decode_contacts(value: Any, *, max_count: int) -> list[Contact]:
    """The contacts that a peer names, in its order. Elements of a contact after the known two are ignored.

    Raises InvalidMessageError for more than `max_count` and for everything malformed: one malformed contact
    spoils the list, for its sender is no node of ours.
    """
    if type(value) is not list or len(value) > max_count:
        raise InvalidMessageError(f"contacts are an array of at most {max_count}")
    # Every answer has twenty, nearly all of them met before: what is remembered was checked, and no call checks again.
    try:
        return [
            _checked_contact(item[0], *item[1])
            if type(item) is list and len(item) > 1 and type(item[1]) is list and type(item[0]) is bytes
            else _refuse_contact(item)
            for item in value
        ]
    except TypeError as error:  # a list where an address belongs cannot be looked up
        raise InvalidMessageError(_NO_ADDRESSES) from error


@lru_cache(maxsize=MAX_SHARED)
def _checked_contact(node_id: NodeID, *addresses: Any) -> Contact:
    # Remembered with the verdict, and by its parts: most have one address, and no tuple is made to find them.
    if len(node_id) != NODE_ID_SIZE_BYTES:
        raise InvalidMessageError(_NO_ID)
    if len(addresses) > MAX_ADDRESSES:
        raise InvalidMessageError(_NO_ADDRESSES)
    if not all(type(address) is str and is_literal_address(address) for address in addresses):
        raise InvalidMessageError("a contact's address is an IP literal with a port")
    return shared_contact(node_id, addresses)


def _refuse_contact(value: Any) -> NoReturn:
    if type(value) is not list or len(value) < 2:
        raise InvalidMessageError("a contact is an array that starts with an id and addresses")
    raise InvalidMessageError(_NO_ID if type(value[0]) is not bytes else _NO_ADDRESSES)


_NO_ID = f"a contact's id is {NODE_ID_SIZE_BYTES} bytes"
_NO_ADDRESSES = f"a contact's addresses are an array of at most {MAX_ADDRESSES}"
