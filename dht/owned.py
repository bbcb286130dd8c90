"""What this node has put into the swarm and looks after: what to sign anew, when, and with which number.

Pure. An owner extends the life of its records, and nobody else does; copies between storers are another matter. It
holds values in memory, and signs; who is asked to keep them is not its business.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from dht.config import RecordConfig
from dht.keyspace import Key, content_key, mutable_key
from dht.records import LAST_SEQ, MAX_INT, Gone, RecordKind, next_seq
from dht.values import ImmutableRecord, MutableRecord
from synapse_p2p.exceptions import ConfigError
from synapse_p2p.identity import Identity


@dataclass(frozen=True, slots=True)
class PutReport:
    """What became of a record: how many nodes were asked, how many keep it, and a word for each that does not.

    `region_size` is how many nodes should keep it, as far as was found out. The words are those of
    `dht.records.Refusal`, and `unreachable`, `bad_answer`, and `clock`: it is too old or from the future for them, and
    our clock is wrong.
    """

    key: Key
    asked: int
    stored: int
    refused: tuple[str, ...]
    region_size: int

    @property
    def is_stored(self) -> bool:
        """Whether anybody keeps it."""
        return self.stored > 0


@dataclass(frozen=True, slots=True)
class MutableValue:
    """A version of a mutable value as found.

    `value` is None where it was deleted, and `is_final` says that this is for good.
    """

    key: Key
    value: bytes | None
    seq: int
    is_final: bool = False

    @classmethod
    def of(cls, record: MutableRecord) -> MutableValue:
        value = None if record.gone is not None else record.value
        return cls(record.key, value, record.seq, record.gone is Gone.FINAL)


@dataclass(frozen=True, slots=True)
class Owned:
    """A record of ours in its newest version; `renew_at` is when it is to be signed and stored again, monotonic.

    `replaced_seq` is of the version before, 0 where there was none: what a renewal expects to replace.
    """

    key: Key
    kind: RecordKind
    value: bytes
    salt: bytes
    ttl_s: float
    seq: int
    replaced_seq: int
    gone: Gone | None
    record: bytes
    ends_at: float
    renew_at: float


class OwnedRecords:
    """The records of one identity, by key, bounded by `config`.

    Invariant: a version handed out has a larger `seq` than any before under its key.
    """

    def __init__(self, identity: Identity, network_id: bytes, config: RecordConfig, *, renew_fraction: float) -> None:
        self._identity = identity
        self._network_id = network_id
        self._config = config
        self._renew_fraction = renew_fraction
        self._owned: dict[Key, Owned] = {}
        self._size_bytes = 0

    def put(self, value: bytes, now: float, unix_ms: int, *, ttl_s: float | None = None) -> Owned:
        """An immutable value, signed to be kept for `ttl_s`. Raises ConfigError for one that is too large, for a time
        out of range, and where `max_owned_records` or `max_owned_bytes` is reached.
        """
        return self._sign(content_key(value), RecordKind.IMMUTABLE, value, b"", ttl_s, now, unix_ms)

    def put_mutable(
        self,
        value: bytes,
        now: float,
        unix_ms: int,
        *,
        salt: bytes = b"",
        ttl_s: float | None = None,
        last_seq: int = 0,
    ) -> Owned:
        """The next version of a mutable value, numbered above `last_seq` too: that of the version which storers said is
        newer. Raises ConfigError as `put` does, and for a key that was revoked.
        """
        key = mutable_key(self._identity.public_key, salt)
        return self._sign(key, RecordKind.MUTABLE, value, salt, ttl_s, now, unix_ms, last_seq=last_seq)

    def delete(self, now: float, unix_ms: int, *, salt: bytes = b"", last_seq: int = 0) -> Owned:
        """A tombstone in the place of a mutable value. It lives as long as any version before it can: not renewed."""
        key = mutable_key(self._identity.public_key, salt)
        ttl_s = self._config.max_ttl_s
        return self._sign(key, RecordKind.MUTABLE, b"", salt, ttl_s, now, unix_ms, last_seq=last_seq, gone=Gone.NOW)

    def revoke(self, now: float, unix_ms: int, *, salt: bytes = b"") -> Owned:
        """The final tombstone: nothing is ever stored under this key again. It is put again as long as we live."""
        key = mutable_key(self._identity.public_key, salt)
        ttl_s = self._config.max_ttl_s
        return self._sign(key, RecordKind.MUTABLE, b"", salt, ttl_s, now, unix_ms, gone=Gone.FINAL)

    def get(self, key: Key) -> Owned | None:
        """What we look after under a key."""
        return self._owned.get(key)

    def forget(self, key: Key) -> Owned | None:
        """Renew it no more. A value that was put then lives out its time."""
        owned = self._owned.pop(key, None)
        self._size_bytes -= 0 if owned is None else len(owned.value)
        return owned

    def due(self, now: float, *, ahead_s: float = 0.0) -> list[Owned]:
        """What is to be renewed by `ahead_s` from now, in order of keys: neighbours go to the same storers.

        Tombstones whose time is over are forgotten here.
        """
        for owned in [owned for owned in self._owned.values() if owned.ends_at <= now and owned.gone is Gone.NOW]:
            self.forget(owned.key)
        return sorted(
            (owned for owned in self._owned.values() if owned.renew_at <= now + ahead_s), key=lambda owned: owned.key
        )

    def renew(self, key: Key, now: float, unix_ms: int) -> Owned:
        """The same again, signed to live on. Raises KeyError for what is not ours to renew."""
        owned = self._owned[key]
        return self._sign(
            key, owned.kind, owned.value, owned.salt, owned.ttl_s, now, unix_ms, last_seq=owned.seq, gone=owned.gone
        )

    def retry_at(self, key: Key, when: float) -> None:
        """Too few kept it: renew it at this time already."""
        owned = self._owned.get(key)
        if owned is not None:
            self._owned[key] = replace(owned, renew_at=min(when, owned.renew_at))

    def on_newer(self, newer: MutableRecord, record: bytes, now: float, unix_ms: int) -> bool:
        """A storer holds a proved version of ours. Whether it replaces what we look after: another of our processes
        signed it, or we lost our state. From then on it is the one that is renewed; a final one ends it.
        """
        owned = self._owned.get(newer.key)
        if owned is None or newer.seq <= owned.seq:
            return False
        self.forget(newer.key)
        life_s = min(self._config.max_ttl_s, max(0, newer.expires_ms - unix_ms) / 1000)
        self._keep(
            replace(
                owned,
                value=newer.value,
                seq=newer.seq,
                replaced_seq=owned.seq,
                gone=newer.gone,
                record=record,
                ends_at=now + life_s,
                renew_at=now + self._renew_after_s(life_s, newer.gone),
            )
        )
        return True

    def __len__(self) -> int:
        return len(self._owned)

    def check_invariants(self) -> None:
        """Assert what the class promises; for tests."""
        assert self._size_bytes == sum(len(owned.value) for owned in self._owned.values())
        assert len(self._owned) <= self._config.max_owned_records
        assert self._size_bytes <= self._config.max_owned_bytes
        assert all(owned.key == key for key, owned in self._owned.items())

    def _sign(
        self,
        key: Key,
        kind: RecordKind,
        value: bytes,
        salt: bytes,
        ttl_s: float | None,
        now: float,
        unix_ms: int,
        *,
        last_seq: int = 0,
        gone: Gone | None = None,
    ) -> Owned:
        held = self._owned.get(key)
        ttl_s = self._checked_ttl(ttl_s)
        self._check_room(value, held)
        last_seq = max(last_seq, 0 if held is None else held.seq)
        if last_seq == LAST_SEQ and gone is not Gone.FINAL:
            raise ConfigError("this key was revoked for good: choose another salt")
        expires_ms = MAX_INT if gone is Gone.FINAL else unix_ms + round(ttl_s * 1000)
        if kind is RecordKind.IMMUTABLE:
            unsigned = ImmutableRecord(self._identity.public_key, unix_ms, expires_ms, self._network_id, value)
        else:
            seq = LAST_SEQ if gone is Gone.FINAL else next_seq(last_seq, unix_ms)
            unsigned = MutableRecord(
                self._identity.public_key, salt, seq, unix_ms, expires_ms, self._network_id, value, gone
            )
        # A final tombstone is one record for ever: whoever holds it takes the same bytes again, and no others.
        is_again = held is not None and held.gone is Gone.FINAL and gone is Gone.FINAL
        owned = Owned(
            key=key,
            kind=kind,
            value=value,
            salt=salt,
            ttl_s=ttl_s,
            seq=unsigned.seq,
            replaced_seq=0 if held is None else held.seq,
            gone=gone,
            record=held.record if is_again and held is not None else unsigned.seal(self._identity),
            ends_at=now + ttl_s,
            renew_at=now + self._renew_after_s(ttl_s, gone),
        )
        self.forget(key)
        self._keep(owned)
        return owned

    def _keep(self, owned: Owned) -> None:
        self._owned[owned.key] = owned
        self._size_bytes += len(owned.value)

    def _renew_after_s(self, life_s: float, gone: Gone | None) -> float:
        return float("inf") if gone is Gone.NOW else life_s * self._renew_fraction

    def _checked_ttl(self, ttl_s: float | None) -> float:
        if ttl_s is None:
            return self._config.ttl_s
        if not 0 < ttl_s <= self._config.max_ttl_s:
            raise ConfigError(f"ttl_s is {ttl_s}; storers keep a value for at most {self._config.max_ttl_s:g} seconds")
        return ttl_s

    def _check_room(self, value: bytes, held: Owned | None) -> None:
        config = self._config
        if held is None and len(self._owned) >= config.max_owned_records:
            raise ConfigError(
                f"this node looks after {len(self._owned)} records already: raise RecordConfig.max_owned_records"
            )
        if self._size_bytes + len(value) - (0 if held is None else len(held.value)) > config.max_owned_bytes:
            raise ConfigError(
                f"this node looks after {self._size_bytes} bytes of values already: raise RecordConfig.max_owned_bytes"
            )
