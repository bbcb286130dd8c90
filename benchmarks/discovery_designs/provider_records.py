"""A single key for a capability, not sharded: provider records at the k nodes closest to its SHA-256, as libp2p has it.

Who offers a capability looks for the k closest and tells each of them; who searches looks for them too, and asks them,
ALPHA at a time, until it knows of enough providers. Written after py-libp2p (`kad_dht/provider_store.py`): record life,
republication, ALPHA, and 20 records a search or an answer are its figures. Kinder than its models in three points: of
many providers an answer has a random sample, where py-libp2p sends the oldest; a storer has room for 1,000, where
rust-libp2p keeps 20; and one that offers the capability itself asks others all the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from benchmarks.discovery_designs.agent import CAPABILITY, DesignAgent, Held, Times
from dht.contact import Contact
from dht.keyspace import KEY_SIZE_BYTES, Key
from dht.lookup import LookupMode
from dht.node import DHTNode
from dht.requester import UNREACHABLE
from simulations.network import VirtualHost
from synapse_p2p.background import TaskScope
from synapse_p2p.context import CallContext
from synapse_p2p.exceptions import InvalidMessageError, RemoteError
from synapse_p2p.identity import NodeID
from synapse_p2p.transport.base import is_literal_address

LIBP2P_TIMES = Times(life_s=48 * 3600.0, renew_s=22 * 3600.0)
"""libp2p's specification of its DHT since 2022 (libp2p/specs#451): 48 h of life, published again after 22 h."""
K = 20
ALPHA = 10
"""Requests in flight; py-libp2p and go-libp2p."""
MAX_PER_ANSWER = 20
"""py-libp2p looks for 20 (`count=20`), and rust-libp2p keeps no more of a key."""
MAX_PER_KEY = 1000
"""Providers that a storer keeps of one key; as many as ours does."""
MAX_KEYS = 1024
"""Keys that a storer keeps anything of; rust-libp2p's `max_provided_keys`."""
REQUEST_TIMEOUT_S = 2.0
MAX_ADDRESS_CHARS = 64
PREFIX = "_swarm."
ADD, GET = "_swarm.add_provider", "_swarm.get_providers"

CAPABILITY_KEY: Key = hashlib.sha256(CAPABILITY.encode()).digest()


@dataclass(frozen=True, slots=True)
class ProviderRecord:
    """Somebody said of itself that it has what a key stands for."""

    provider: NodeID
    address: str
    expires_at: float

    @property
    def size_bytes(self) -> int:
        return len(self.provider) + len(self.address)


class ProviderStore:
    """Provider records by key. Pure.

    Invariant: at most `MAX_KEYS` keys, at most `max_per_key` records of each. A key that has as many takes no new
    provider and still renews those that it has.
    """

    def __init__(self, *, max_per_key: int = MAX_PER_KEY) -> None:
        self._max_per_key = max_per_key
        self._by_key: dict[Key, dict[NodeID, ProviderRecord]] = {}

    def add(self, key: Key, record: ProviderRecord, now: float) -> bool:
        """Whether the record is kept now, in the place of an earlier one of its provider."""
        if not self._has_room(key, record.provider):
            self.expire(now)
            if not self._has_room(key, record.provider):
                return False
        self._by_key.setdefault(key, {})[record.provider] = record
        return True

    def sample(self, key: Key, count: int, now: float, rng: Random) -> list[ProviderRecord]:
        """At most `count` records of a key, at random."""
        live = [record for record in self._by_key.get(key, {}).values() if record.expires_at > now]
        return rng.sample(live, min(count, len(live)))

    def expire(self, now: float) -> None:
        """Forget what is over. Cost: O(n)."""
        for key, records in list(self._by_key.items()):
            for provider in [each.provider for each in records.values() if each.expires_at <= now]:
                del records[provider]
            if not records:
                del self._by_key[key]

    def held(self, now: float) -> Held:
        """All that is not over."""
        live = [each for records in self._by_key.values() for each in records.values() if each.expires_at > now]
        return Held(len(live), sum(each.size_bytes for each in live))

    def _has_room(self, key: Key, provider: NodeID) -> bool:
        records = self._by_key.get(key)
        if records is None:
            return len(self._by_key) < MAX_KEYS
        return provider in records or len(records) < self._max_per_key

    def check_invariants(self) -> None:
        """Assert what the class promises; for tests."""
        assert len(self._by_key) <= MAX_KEYS
        for records in self._by_key.values():
            assert 0 < len(records) <= self._max_per_key
            assert all(record.provider == provider for provider, record in records.items())


class ProviderAgent(DesignAgent):
    """An agent that tells the k closest of itself, and is a storer where it is one of them."""

    def __init__(self, host: VirtualHost, node: DHTNode, times: Times, *, max_per_answer: int = MAX_PER_ANSWER) -> None:
        super().__init__(host, node, times)
        self._store = ProviderStore()
        self._max_per_answer = max_per_answer
        host.mount(PREFIX, {ADD: self._on_add, GET: self._on_get})

    async def announce(self) -> None:
        """See DesignAgent. Cost: a strict lookup and k requests."""
        request = {"key": CAPABILITY_KEY, "address": self.host.address}
        await self._ask_all((await self._closest())[:K], ADD, request)

    async def find(self, limit: int | None) -> list[NodeID]:
        """See DesignAgent. Cost: a strict lookup, and of the k closest as many requests as it takes."""
        found: dict[NodeID, None] = {}
        storers = (await self._closest())[:K]
        for first in range(0, len(storers), ALPHA):
            if limit is not None and len(found) >= limit:
                break
            for answer in await self._ask_all(storers[first : first + ALPHA], GET, {"key": CAPABILITY_KEY}):
                found |= dict.fromkeys(provider for provider, _ in read_providers(answer))
        return list(found)[:limit]

    def held(self) -> Held:
        """See DesignAgent."""
        return self._store.held(self.host.runtime.now())

    async def _closest(self) -> Sequence[Contact]:
        return (await self.node.lookup(CAPABILITY_KEY, LookupMode.STRICT)).closest

    async def _ask_all(self, storers: Sequence[Contact], endpoint: str, request: Mapping[str, Any]) -> list[Any]:
        """The answers of those who answer."""

        async def ask(storer: Contact) -> Any:
            try:
                return await self.host.peers.call(storer, endpoint, request, timeout_s=REQUEST_TIMEOUT_S)
            except (*UNREACHABLE, RemoteError):
                return None

        async with TaskScope("providers") as scope:
            tasks = [scope.spawn_awaited(ask(storer)) for storer in storers]
            return [answer for task in tasks if (answer := await task) is not None]

    def _on_add(self, request: Mapping[str, Any], context: CallContext) -> bool:
        """Who calls is the provider: nobody speaks for another."""
        match request:
            case {"key": bytes(key), "address": str(address)}:
                pass
            case _:
                raise InvalidMessageError("a provider names a key and its address")
        if len(key) != KEY_SIZE_BYTES or len(address) > MAX_ADDRESS_CHARS or not is_literal_address(address):
            raise InvalidMessageError("a provider names a key and its address")
        if context.peer is None:
            return False
        now = self.host.runtime.now()
        return self._store.add(key, ProviderRecord(context.peer, address, now + self.times.life_s), now)

    def _on_get(self, request: Mapping[str, Any], _context: CallContext) -> list[list[Any]]:
        match request:
            case {"key": bytes(key)}:
                runtime = self.host.runtime
                sample = self._store.sample(key, self._max_per_answer, runtime.now(), runtime.rng)
                return [[record.provider, record.address] for record in sample]
            case _:
                raise InvalidMessageError("a searcher names a key")


def read_providers(answer: Any) -> list[tuple[NodeID, str]]:
    """What a storer named that has the form of a provider; nothing that it says ends a search."""
    named = answer if isinstance(answer, list) else []
    return [
        (each[0], each[1])
        for each in named[:MAX_PER_KEY]
        if isinstance(each, list)
        and len(each) == 2
        and isinstance(each[0], bytes)
        and len(each[0]) == KEY_SIZE_BYTES
        and isinstance(each[1], str)
    ]
