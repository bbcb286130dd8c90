"""The values that this node has put: signs them, has them kept, renews them in time, takes them back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from dht.config import DHTConfig
from dht.exceptions import RecordRefused
from dht.keyspace import Key
from dht.messages import Store
from dht.owned import Owned, OwnedRecords, PutReport
from dht.putting import Parcel, Placing, Putting
from dht.reading import RecordReader
from dht.records import RecordKind, Refusal
from dht.responder import Responder
from dht.values import MutableRecord
from synapse_p2p.exceptions import ConfigError
from synapse_p2p.peers import Host

FOR_EVER_S = float("inf")
CLOCK = "clock"
"""What a report says of a refusal that is our own clock's fault."""
_REFUSALS_OF_TIME = (Refusal.EXPIRED, Refusal.FROM_THE_FUTURE)


class OwnValues:
    """One node's values. What it puts it renews until it is deleted, for as long as the node lives."""

    def __init__(
        self,
        host: Host,
        config: DHTConfig,
        *,
        putting: Putting,
        responder: Responder,
        reader: RecordReader,
        is_clock_wrong: Callable[[], bool],
    ) -> None:
        self._host = host
        self._config = config
        self._putting = putting
        self._responder = responder
        self._reader = reader
        self._is_clock_wrong = is_clock_wrong
        self.owned = OwnedRecords(host.identity, host.network_id, config.records, renew_fraction=config.renew_fraction)

    async def put(self, values: Iterable[bytes], *, ttl_s: float | None) -> list[PutReport]:
        """Have immutable values kept; a report for each, in their order. Raises ConfigError before anything is sent."""
        now, unix_ms = self._now()
        owned = [self.owned.put(value, now, unix_ms, ttl_s=ttl_s) for value in values]
        return await self._place(owned)

    async def put_mutable(
        self, value: bytes, *, salt: bytes, ttl_s: float | None, expected_seq: int | None
    ) -> PutReport:
        """Have the next version kept. A node that lost count of its versions goes past the newest that storers hold."""
        now, unix_ms = self._now()
        owned = self.owned.put_mutable(value, now, unix_ms, salt=salt, ttl_s=ttl_s)
        placing = await self._place_one(owned, expected_seq)
        newest = self._newest_of(owned.key, placing)
        if expected_seq is None and newest is not None and newest.seq > owned.seq:
            now, unix_ms = self._now()
            owned = self.owned.put_mutable(value, now, unix_ms, salt=salt, ttl_s=ttl_s, last_seq=newest.seq)
            placing = await self._place_one(owned, None)
        if not placing.stored and expected_seq is not None:
            self.owned.forget(owned.key)  # another version stands, and the caller knows that it may: not ours to renew
        return self._report(owned, placing)

    async def delete(self, key: Key) -> PutReport:
        """Take a value back. Raises ConfigError for one that this node did not put."""
        owned = self.owned.get(key)
        if owned is None:
            raise ConfigError(f"this node has put nothing under {key.hex()}; only who put a value can delete it")
        if owned.kind is RecordKind.IMMUTABLE:
            self.owned.forget(key)
            return PutReport(key, 0, 0, (), 0)
        now, unix_ms = self._now()
        return (await self._place([self.owned.delete(now, unix_ms, salt=owned.salt, last_seq=owned.seq)]))[0]

    async def renew_due(self) -> None:
        """Sign and store anew what is due, and what is nearly due beside it."""
        now, unix_ms = self._now()
        due = self.owned.due(now, ahead_s=self._config.renew_ahead_s)
        await self._renew([self.owned.renew(owned.key, now, unix_ms) for owned in due])

    async def renew_all(self) -> None:
        """The same for everything: after a sleep, or at a new address, nobody knows what storers have dropped."""
        now, unix_ms = self._now()
        await self._renew(
            [self.owned.renew(owned.key, now, unix_ms) for owned in self.owned.due(now, ahead_s=FOR_EVER_S)]
        )

    async def _place(self, owned: Sequence[Owned]) -> list[PutReport]:
        placings = await self._putting.place_many(self._parcel(each, None) for each in owned)
        return [self._report(each, placings[each.key]) for each in owned]

    async def _renew(self, owned: Sequence[Owned]) -> None:
        """As `_place`, but never in the place of a version that another process with our key has put meanwhile."""
        placings = await self._putting.place_many(self._parcel(each, each.replaced_seq) for each in owned)
        behind = []
        for each in owned:
            self._report(each, placings[each.key])
            if Refusal.SEQ_MISMATCH in placings[each.key].refusals and self.owned.get(each.key) is each:
                behind.append(each)  # some missed the version before, and nobody has another: they may have this one
        await self._place(behind)

    async def _place_one(self, owned: Owned, expected_seq: int | None) -> Placing:
        return await self._putting.place(self._parcel(owned, expected_seq))

    def _parcel(self, owned: Owned, expected_seq: int | None) -> Parcel:
        expected_seq = expected_seq if owned.kind is RecordKind.MUTABLE else None
        request = Store(owned.record, expected_seq=expected_seq)
        return Parcel(owned.key, request, lambda: self._responder.keep_value(owned.record, expected_seq))

    def _report(self, owned: Owned, placing: Placing) -> PutReport:
        now, unix_ms = self._now()
        newest = self._newest_of(owned.key, placing)
        if newest is not None:
            self.owned.on_newer(newest, next(iter(placing.newer)), now, unix_ms)
        if not placing.stored:
            self.owned.retry_at(owned.key, now + self._config.join_retry_max_s)
        refusals = placing.refusals
        if self._is_clock_wrong():
            refusals = tuple(CLOCK if refusal in _REFUSALS_OF_TIME else refusal for refusal in refusals)
        return PutReport(owned.key, placing.asked, placing.stored, refusals, placing.region_size)

    def _newest_of(self, key: Key, placing: Placing) -> MutableRecord | None:
        """The newest version of ours that storers were proved to hold; it goes first in `placing.newer` then."""
        newest: MutableRecord | None = None
        newest_data = b""
        for data in placing.newer:
            try:
                record = self._reader.read(data, self._now()[1])
            except RecordRefused:
                continue
            if isinstance(record, MutableRecord) and record.key == key and (newest is None or record.seq > newest.seq):
                newest, newest_data = record, data
        if newest is not None:
            placing.newer = {newest_data: None, **placing.newer}
        return newest

    def _now(self) -> tuple[float, int]:
        runtime = self._host.runtime
        return runtime.now(), round(runtime.unix_now() * 1000)
