"""Finds values: the first storer that proves one is enough, unless there may be a newer version.

A storer that lags behind is given the newest. What nobody has is remembered for a while, so that asking again is free.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from dht.config import DHTConfig
from dht.contact import Contact
from dht.keyspace import Key
from dht.lookup import LookupMode
from dht.messages import FindValue, Store
from dht.putting import Putting
from dht.reading import RecordReader, ValueReading
from dht.requester import Requester
from dht.round_trips import missed_keys
from dht.store import RecordStore
from synapse_p2p.background import TaskScope
from synapse_p2p.peers import Host

MAX_SEEN = 4096
"""Keys of values that change, whose newest version is remembered: 0.2 KiB each."""
MAX_REPAIRS_AT_ONCE = 60  # storers given a newer version after one search: a whole region, as large as one can be


class Getting:
    """One node's way to values. Invariants: a key under which something was stored here is no known miss; of a value
    that changes no older version is handed out than one that was, of the `MAX_SEEN` read last.
    """

    def __init__(
        self, host: Host, config: DHTConfig, requester: Requester, putting: Putting, store: RecordStore
    ) -> None:
        self._host = host
        self._requester = requester
        self._putting = putting
        self._store = store
        self._misses = missed_keys(config.lookup)
        self._newest_seen: OrderedDict[Key, int] = OrderedDict()  # of values that change

    async def read(self, key: Key, reader: RecordReader, scope: TaskScope | None) -> ValueReading:
        """What is stored under a key. Repairs of storers that lag behind run in `scope`, if there is one.

        Cost: about 4 requests, one over an open session; nothing for a miss of a moment ago.
        """
        runtime = self._host.runtime
        reading = ValueReading(key, reader)
        own_id = self._host.identity.node_id
        held = [stored.record for stored in self._store.get(key, runtime.now())]
        is_held = bool(held) and reading.take(own_id, held, self._unix_ms())
        if (is_held and reading.newest is None) or self._misses.is_paused(key, runtime.now()):
            self._leave_out_replaced(key, reading)
            return reading

        async def ask(contact: Contact) -> tuple[Sequence[Contact], bool, int]:
            answer = await self._requester.find_value(contact, FindValue(key))
            is_found = reading.take(contact.id, answer.records, self._unix_ms())
            return answer.contacts, is_found, reading.seq_of(contact.id)

        outcome = await self._requester.lookup(key, LookupMode.FAST, ask=ask)
        if not reading.is_found and outcome.complete and outcome.asked:
            self._misses.add(key, runtime.now())
        self._leave_out_replaced(key, reading)
        if reading.newest is not None and scope is not None and not scope.is_closed:
            behind = set(reading.behind())
            storers = [storer for storer in outcome.region if storer.id in behind]
            if storers:
                scope.spawn(self._repair(storers[:MAX_REPAIRS_AT_ONCE], reading.newest_data), name="repair storers")
        return reading

    def _leave_out_replaced(self, key: Key, reading: ValueReading) -> None:
        """Storers that were cut off for a while send what they hold; who has seen a newer version knows better."""
        if reading.newest is None:
            return
        seq = reading.newest.seq
        seen = self._newest_seen.pop(key, seq)
        self._newest_seen[key] = max(seq, seen)
        if len(self._newest_seen) > MAX_SEEN:
            self._newest_seen.popitem(last=False)
        if seq < seen:
            reading.newest = None

    def on_stored(self, key: Key) -> None:
        """Something is stored under this key now, as we know."""
        self._misses.remove(key)

    async def _repair(self, storers: Sequence[Contact], record: bytes) -> None:
        for storer in storers:
            await self._putting.bring(storer, Store(record))

    def _unix_ms(self) -> int:
        return round(self._host.runtime.unix_now() * 1000)
