"""What a storer keeps of one record: the envelope as it came, and what the store has to know of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from dht.records import RecordKind
from synapse_p2p.identity import NodeID

RECORD_OVERHEAD_BYTES = 1024
"""What a record takes beside its own bytes, counted with them; measured, in memory: 920."""
ANY_OWNER = b""
"""The slot of an immutable value: whoever signs it, it is the same."""

Slot: TypeAlias = bytes


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """An envelope as received, who signed it, its place among the versions, and when it ends.

    `group` is the party whose share it takes, None where its owner was not seen at an address of its own. `is_gone`
    marks a tombstone. Of an agent's record `rank` says to which shards of the capability it belongs, and `depth` at
    which of them its owner put it.
    """

    record: bytes
    owner: NodeID
    seq: int
    expires_at: float
    kind: RecordKind = RecordKind.AGENT
    group: str | None = None
    is_gone: bool = False
    rank: int = 0
    depth: int = 0

    @property
    def slot(self) -> Slot:
        """Its place under a key: its owner's, but for an immutable value, of which there is one for all."""
        return ANY_OWNER if self.kind is RecordKind.IMMUTABLE else self.owner

    @property
    def size_bytes(self) -> int:
        """What it counts for."""
        return len(self.record) + RECORD_OVERHEAD_BYTES
