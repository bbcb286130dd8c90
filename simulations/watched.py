"""What a node stands on, with an onlooker: its requests and what it stores are noted in a History."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dht.config import RecordConfig
from dht.keyspace import Key
from dht.records import Refusal
from dht.store import MemoryRecordStore
from dht.stored_record import StoredRecord
from simulations.history import Accepted, History
from simulations.network import VirtualHost
from synapse_p2p.config import ServerConfig
from synapse_p2p.context import CallContext
from synapse_p2p.identity import Identity, NodeID
from synapse_p2p.peers import Host, KnownPeer, PeerCaller, ProvedPeer
from synapse_p2p.runtime import Runtime
from synapse_p2p.trust import TrustConfig


class WatchedStore(MemoryRecordStore):
    """A store that notes what it takes."""

    def __init__(self, config: RecordConfig, storer: VirtualHost, history: History) -> None:
        super().__init__(config)
        self._storer = storer
        self._history = history

    def put(self, key: Key, new: StoredRecord, now: float, *, expected_seq: int | None = None) -> Refusal | None:
        refusal = super().put(key, new, now, expected_seq=expected_seq)
        if refusal is None:
            self._history.note_accepted(Accepted(self._storer.id, self._storer.incarnation, key, new))
        return refusal


class WatchedHost:
    """A host whose requests are noted: a `synapse_p2p.peers.Host`."""

    def __init__(self, host: Host, config: ServerConfig, history: History) -> None:
        self._host = host
        self.peers: PeerCaller = WatchedCaller(host, config, history)

    @property
    def identity(self) -> Identity:
        return self._host.identity

    @property
    def network_id(self) -> bytes:
        return self._host.network_id

    @property
    def runtime(self) -> Runtime:
        return self._host.runtime

    @property
    def advertised_addresses(self) -> tuple[str, ...]:
        return self._host.advertised_addresses

    @property
    def trust(self) -> TrustConfig:
        return self._host.trust

    def mount(self, prefix: str, endpoints: Mapping[str, Callable[[Mapping[str, Any], CallContext], Any]]) -> None:
        self._host.mount(prefix, endpoints)


class WatchedCaller:
    """Notes every request with the time that it is given: a `synapse_p2p.peers.PeerCaller`."""

    def __init__(self, host: Host, config: ServerConfig, history: History) -> None:
        self._id = host.identity.node_id
        self._peers = host.peers
        self._history = history
        self._connect_timeout_s = config.pool.dial_timeout_s + config.session.handshake_timeout_s
        self._check_dial_timeout_s = config.pool.check_dial_timeout_s

    async def connect(self, peer: KnownPeer) -> ProvedPeer:
        with self._history.request(self._id, "connect", max(1, len(peer.addresses)) * self._connect_timeout_s):
            return await self._peers.connect(peer)

    async def connect_address(self, address: str, expected_id: NodeID | None = None) -> ProvedPeer:
        with self._history.request(self._id, f"connect to {address}", self._connect_timeout_s):
            return await self._peers.connect_address(address, expected_id)

    async def check_dial(self, peer: KnownPeer) -> None:
        with self._history.request(self._id, "check dial", self._check_dial_timeout_s):
            await self._peers.check_dial(peer)

    async def call(self, peer: KnownPeer, endpoint: str, request: Mapping[str, Any], *, timeout_s: float) -> Any:
        noted = self._history.begin(self._id, endpoint, timeout_s)
        try:
            return await self._peers.call(peer, endpoint, request, timeout_s=timeout_s)
        finally:
            self._history.end(noted)

    @property
    def dialed_at(self) -> float | None:
        return self._peers.dialed_at

    def retire_sessions(self) -> None:
        self._peers.retire_sessions()

    def is_connected(self, node_id: NodeID) -> bool:
        return self._peers.is_connected(node_id)

    def proved_addresses(self, node_id: NodeID) -> tuple[str, ...]:
        return self._peers.proved_addresses(node_id)
