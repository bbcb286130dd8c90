"""A contact: who and where. Its shape on the wire is `[id, [address, ...]]`.

Pure. Owns what an address between nodes may look like; whether one is dialed is decided elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from synapse_p2p.exceptions import InvalidMessageError
from synapse_p2p.identity import NODE_ID_SIZE_BYTES, NodeID
from synapse_p2p.transport.base import is_literal_address

MAX_ADDRESSES = 4


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


def encode_contact(contact: Contact) -> list[Any]:
    """`[id, [address, ...]]`."""
    return [contact.id, list(contact.addresses)]


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
        if type(address) is not str or not is_literal_address(address):
            raise InvalidMessageError("a contact's address is an IP literal with a port")
    return Contact(node_id, tuple(addresses))
