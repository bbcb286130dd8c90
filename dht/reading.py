"""From bytes to records of any kind: what a storer takes apart before it decides, and what a reader believes.

Pure. Storers and strangers are trusted for nothing: a record is proved by its owner's signature, or by its own hash.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from dht.agents.record import AgentRecord, decode_agent_record
from dht.config import RecordConfig
from dht.exceptions import RecordRefused
from dht.keyspace import Key, content_key
from dht.records import (
    Envelope,
    RecordKind,
    Refusal,
    Verdicts,
    decode_map,
    field_of,
    open_envelope,
)
from dht.values import ImmutableRecord, MutableRecord, decode_immutable, decode_mutable
from synapse_p2p.identity import NodeID

Record: TypeAlias = ImmutableRecord | MutableRecord | AgentRecord

MAX_VALUES_PER_ANSWER = 1
"""Looked at in an answer for the key of a value, under which an honest storer holds one. Each may cost a signature."""

_DECODERS = {
    RecordKind.IMMUTABLE: decode_immutable,
    RecordKind.MUTABLE: decode_mutable,
    RecordKind.AGENT: decode_agent_record,
}


@dataclass(frozen=True, slots=True)
class RecordReader:
    """Takes records of one network apart, and remembers which signatures are good."""

    network_id: bytes
    config: RecordConfig
    verdicts: Verdicts

    def decode(self, data: bytes, unix_ms: int) -> tuple[Envelope, Record]:
        """A record of any kind, checked but for its signature. Raises RecordRefused as the kind's own reader does."""
        envelope = open_envelope(data)
        decode = _DECODERS[envelope.kind]
        return envelope, decode(envelope, network_id=self.network_id, unix_ms=unix_ms, config=self.config)

    def read(self, data: bytes, unix_ms: int) -> Record:
        """A record of any kind, checked in full. Raises RecordRefused."""
        envelope, record = self.decode(data, unix_ms)
        self.verdicts.check(envelope, record.public_key)
        return record


class ValueReading:
    """What storers say of the key of a value: the newest version that is proved, and who holds an older one.

    The first proved immutable value ends the search, for there is no other. Of a mutable one the largest `seq` counts,
    and a tombstone is a version too.
    """

    def __init__(self, key: Key, reader: RecordReader) -> None:
        self._key = key
        self._reader = reader
        self._seqs: dict[NodeID, int] = {}  # of those who answered; 0 where nothing was proved
        self._value: bytes | None = None
        self.newest: MutableRecord | None = None
        self.newest_data = b""

    @property
    def is_found(self) -> bool:
        """Whether anything was proved, a tombstone included."""
        return self.newest is not None or self._value is not None

    @property
    def value(self) -> bytes | None:
        """What is stored under the key, as far as is known; None where it was deleted, too."""
        if self._value is not None or self.newest is None or self.newest.gone is not None:
            return self._value
        return self.newest.value

    def take(self, sender: NodeID, records: Sequence[bytes], unix_ms: int) -> bool:
        """An answer. Whether it holds what is sought; what does not belong under the key is as if it were not there."""
        self._seqs[sender] = 0
        for data in records[:MAX_VALUES_PER_ANSWER]:
            try:
                self._seqs[sender] = self._read(data, unix_ms)
            except RecordRefused:
                return False
            return True
        return False

    def seq_of(self, sender: NodeID) -> int:
        """The version that this storer sent; 0 where it sent none, or a value that has no versions."""
        return self._seqs.get(sender, 0)

    def behind(self) -> list[NodeID]:
        """Who answered without the newest version, in the order of their answers: they are to be given it."""
        newest = 0 if self.newest is None else self.newest.seq
        return [sender for sender, seq in self._seqs.items() if seq < newest]

    def _read(self, data: bytes, unix_ms: int) -> int:
        envelope = open_envelope(data)
        if envelope.kind is RecordKind.IMMUTABLE:
            value = _value_of(envelope)
            if content_key(value) != self._key:
                raise RecordRefused(Refusal.WRONG_KEY)
            self._value = value  # a value is what it is, whoever signed it for whatever time: no signature is checked
            return 0
        reader = self._reader
        if envelope.kind is not RecordKind.MUTABLE:
            raise RecordRefused(Refusal.WRONG_KEY)
        record = decode_mutable(envelope, network_id=reader.network_id, unix_ms=unix_ms, config=reader.config)
        if record.key != self._key:
            raise RecordRefused(Refusal.WRONG_KEY)
        reader.verdicts.check(envelope, record.public_key)
        if self.newest is None or record.seq > self.newest.seq:
            self.newest, self.newest_data = record, data
        return record.seq


def _value_of(envelope: Envelope) -> bytes:
    return field_of(decode_map(envelope), "value", bytes)
