"""Persistent sessions by node id: the PeerCaller of the real network.

Owns every encrypted connection of a process' node, opened and accepted. What stays is decided in
`protocol/pool_policy.py`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from synapse_p2p.background import TaskScope
from synapse_p2p.config import PoolConfig, SessionConfig
from synapse_p2p.exceptions import ConfigError, HandshakeFailed, PeerUnavailable, SynapseError, Timeout
from synapse_p2p.identity import Identity, NodeID, network_id_of
from synapse_p2p.peers import KnownPeer, ProvedPeer
from synapse_p2p.protocol.handshake import INSTANCE_SIZE_BYTES, Handshake, HandshakeKeys, Mode, Parameters, Role
from synapse_p2p.protocol.noise import KEY_SIZE_BYTES
from synapse_p2p.protocol.pool_policy import (
    DialBackoff,
    SessionFacts,
    SessionUse,
    Survivor,
    choose_survivor,
    sessions_to_close,
)
from synapse_p2p.runtime import Runtime
from synapse_p2p.transport.base import ByteStream, Transport, is_literal_address, parse_address
from synapse_p2p.transport.connection import CallServer, SessionConnection

logger = logging.getLogger(__name__)


class SessionPool:
    """Dials once when many ask at once, keeps one session per peer and instance, and retries what certainly never left.

    `listen_port()` is announced to peers; 0 makes us a client to them. State belongs to the loop that is running when
    the first session opens; `stop()` ends it, and a stopped pool can be used again.
    """

    def __init__(
        self,
        identity: Identity,
        *,
        network: str,
        server: CallServer,
        transport: Transport,
        runtime: Runtime,
        listen_port: Callable[[], int],
        agent: str,
        config: PoolConfig | None = None,
        session_config: SessionConfig | None = None,
    ) -> None:
        self._identity = identity
        self._network = network
        self._network_id = network_id_of(network)
        self._server = server
        self._transport = transport
        self._runtime = runtime
        self._listen_port = listen_port
        self._agent = agent
        self._config = config or PoolConfig()
        self._session_config = session_config or SessionConfig()
        self._static = runtime.token_bytes(KEY_SIZE_BYTES)
        self._instance = runtime.token_bytes(INSTANCE_SIZE_BYTES)
        self._backoff = DialBackoff(
            pause_s=self._config.redial_pause_s,
            max_pause_s=self._config.max_redial_pause_s,
            max_remembered=self._config.max_remembered_failures,
        )
        self._connections: dict[SessionConnection, None] = {}  # every one that is not closed, in order of opening
        self._by_id: dict[NodeID, list[SessionConnection]] = {}  # established, oldest first
        self._dials: dict[tuple[str, NodeID | None], asyncio.Task[SessionConnection]] = {}
        self._scope: TaskScope | None = None

    # The PeerCaller

    async def connect(self, peer: KnownPeer) -> ProvedPeer:
        return _proved(await self._session_with(peer))

    async def connect_address(self, address: str, expected_id: NodeID | None = None) -> ProvedPeer:
        connection = await self._dial_shared(address, expected_id)
        return _proved(connection)

    async def check_dial(self, peer: KnownPeer) -> None:
        # To the peer a client of another instance: no duplicate of a session that is open, and nobody's candidate. Here it
        # is kept aside, for the peer's own instance is the same as ever.
        parameters = replace(self._parameters(), mode="client", port=0)
        parameters = replace(parameters, instance=self._runtime.token_bytes(INSTANCE_SIZE_BYTES))
        async with _time_limit(self._config.check_dial_timeout_s, "the check dial"):
            connection = await self._dial(peer.addresses[0], peer.id, parameters, on_established=_keep_aside)
            try:
                await connection.call("_synapse.ping", [], {}, timeout_s=self._config.check_dial_timeout_s)
            finally:
                connection.close("checked")

    async def call(self, peer: KnownPeer, endpoint: str, request: Mapping[str, Any], *, timeout_s: float) -> Any:
        return await self.call_with(peer, endpoint, [], dict(request), timeout_s=timeout_s)

    def is_connected(self, node_id: NodeID) -> bool:
        return self._open_session(node_id) is not None

    def proved_addresses(self, node_id: NodeID) -> tuple[str, ...]:
        for connection in reversed(self._by_id.get(node_id, [])):
            if connection.is_dialer and connection.is_open:
                return (connection.address,)
        return ()

    # What else a node's owner needs

    async def call_with(
        self,
        peer: KnownPeer,
        endpoint: str,
        args: list[Any],
        kwargs: dict[str, Any],
        *,
        timeout_s: float | None,
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        """A call with positional arguments and options. A request that certainly never started is tried once more."""
        started_at = self._runtime.now()
        for is_last_try in (False, True):
            connection = await self._session_with(peer)
            left_s = None if timeout_s is None else timeout_s - (self._runtime.now() - started_at)
            if left_s is not None and left_s <= 0:
                raise Timeout(f"no session with {peer.id.hex()[:16]} in the time given; the call was not started")
            try:
                return await connection.call(endpoint, args, kwargs, timeout_s=left_s, options=options)
            except PeerUnavailable as error:
                if error.may_have_started or is_last_try:
                    raise
        raise AssertionError("unreachable")

    def accept(self, stream: ByteStream, data: bytes) -> None:
        """Take over an accepted stream whose first bytes are `data`."""
        connection = self._connection(Role.LISTENER, None, self._parameters(), self._on_established)
        stream.set_receiver(connection)
        connection.connection_made(stream)
        connection.data_received(data)

    def seen_hosts(self) -> Counter[str]:
        """Our own host as the connected peers see it, with the number of peers that say so."""
        hosts: Counter[str] = Counter()
        for sessions in self._by_id.values():
            seen = sessions[-1].peer.parameters.seen
            if is_literal_address(seen):
                hosts[parse_address(seen)[0]] += 1
        return hosts

    def peer_ids(self) -> list[NodeID]:
        """Who is connected now, oldest session first."""
        return [node_id for node_id in self._by_id if self.is_connected(node_id)]

    async def stop(self, grace: float = 5.0) -> None:
        """Refuse new calls, let those that run finish for `grace` seconds, say goodbye, close. Bounded in time."""
        for connection in self._connections:
            connection.drain()
        deadline = self._runtime.now() + grace
        while self._runtime.now() < deadline and any(c.calls_in_flight for c in self._connections):
            await asyncio.sleep(0.02)
        if self._scope is not None:
            await self._scope.close()
            self._scope = None
        for connection in list(self._connections):
            connection.close("stopping")
        while self._connections:
            await next(iter(self._connections)).wait_closed()

    # Sessions

    def _open_session(self, node_id: NodeID) -> SessionConnection | None:
        """The newest open session; one with a peer that listens before a client's, for a check dial is on its way
        out.
        """
        found = None
        for connection in self._by_id.get(node_id, ()):
            if connection.is_open and (found is None or connection.listen_address or not found.listen_address):
                found = connection
        return found

    async def _session_with(self, peer: KnownPeer) -> SessionConnection:
        if (connection := self._open_session(peer.id)) is not None:
            return connection
        error: SynapseError = PeerUnavailable(f"{peer.id.hex()[:16]} has no address and no session")
        for address in peer.addresses:
            try:
                return await self._dial_shared(address, peer.id)
            except (PeerUnavailable, Timeout, HandshakeFailed, ConfigError) as failure:
                error = failure
        if isinstance(error, PeerUnavailable):
            raise error
        raise PeerUnavailable(str(error)) from error

    async def _dial_shared(self, address: str, expected_id: NodeID | None) -> SessionConnection:
        """One dial for all who ask for the same at once. Being cancelled leaves the dial to the others."""
        if self._backoff.is_resting(address, self._runtime.now()):
            raise PeerUnavailable(f"{address} did not answer a moment ago")
        key = (address, expected_id)
        dial = self._dials.get(key)
        if dial is None:
            dial = self._tasks().spawn_awaited(
                self._dial(address, expected_id, self._parameters(), on_established=self._on_established),
                name=f"dial {address}",
            )
            self._dials[key] = dial
            dial.add_done_callback(lambda done: self._on_dialed(key, done))
        try:
            return await asyncio.shield(dial)
        except asyncio.CancelledError:
            if dial.cancelled():
                raise PeerUnavailable("the node is stopping") from None
            raise

    def _on_dialed(self, key: tuple[str, NodeID | None], dial: asyncio.Task[SessionConnection]) -> None:
        self._dials.pop(key, None)
        if dial.cancelled():
            return
        error = dial.exception()
        if isinstance(error, HandshakeFailed) and error.reason in ("identity", "self"):
            return  # somebody answers there, it is not the address's fault
        if error is not None:
            self._backoff.on_failure(key[0], self._runtime.now())
        else:
            self._backoff.on_success(key[0])

    async def _dial(
        self,
        address: str,
        expected_id: NodeID | None,
        parameters: Parameters,
        *,
        on_established: Callable[[SessionConnection], None],
    ) -> SessionConnection:
        host, port = parse_address(address)
        connection = self._connection(Role.DIALER, expected_id, parameters, on_established)
        try:
            async with _time_limit(self._config.dial_timeout_s, f"a dial of {address}"):
                await self._transport.connect(host, port, connection)
        except OSError as error:
            if isinstance(error, Timeout):
                raise
            raise PeerUnavailable(f"{address} cannot be reached: {error.strerror or error}") from error
        finally:
            if not connection.address:
                self._connections.pop(connection, None)
        try:
            await connection.wait_established()
        except asyncio.CancelledError:
            connection.abort()
            raise
        return connection

    def _connection(
        self,
        role: Role,
        expected_id: NodeID | None,
        parameters: Parameters,
        on_established: Callable[[SessionConnection], None],
    ) -> SessionConnection:
        keys = HandshakeKeys(self._static, self._runtime.token_bytes(KEY_SIZE_BYTES))

        def make_handshake(peer_address: str) -> Handshake:
            return Handshake(
                role,
                identity=self._identity,
                network_id=self._network_id,
                keys=keys,
                parameters=replace(parameters, seen=peer_address),
                expected_id=expected_id,
            )

        connection = SessionConnection(
            make_handshake,
            is_dialer=role is Role.DIALER,
            server=self._server,
            scope=self._tasks(),
            runtime=self._runtime,
            config=self._session_config,
            network=self._network,
            on_established=on_established,
            on_closed=self._on_closed,
        )
        self._connections[connection] = None
        return connection

    def _parameters(self) -> Parameters:
        port = self._listen_port()
        mode: Mode = "node" if port else "client"
        return Parameters(mode, port, self._instance, self._agent, round(self._runtime.unix_now() * 1000))

    def _on_established(self, connection: SessionConnection) -> None:
        peer_id = connection.peer.node_id
        sessions = self._by_id.setdefault(peer_id, [])
        for older in list(sessions):
            if older.is_open:
                match choose_survivor(self._identity.node_id, peer_id, _facts(older), _facts(connection)):
                    case Survivor.OLDER:
                        self._retire(connection)
                    case Survivor.NEWER:
                        self._retire(older)
                    case Survivor.BOTH:
                        pass
        sessions.append(connection)
        self._enforce_limits()

    def _on_closed(self, connection: SessionConnection) -> None:
        self._connections.pop(connection, None)
        if connection.is_established:
            peer_id = connection.peer.node_id
            sessions = self._by_id.get(peer_id, [])
            if connection in sessions:
                sessions.remove(connection)
            if not sessions:
                self._by_id.pop(peer_id, None)

    def _retire(self, connection: SessionConnection) -> None:
        """A duplicate: no new calls; goodbye when those in flight are done."""
        connection.drain()
        self._tasks().spawn(self._close_when_idle(connection), name="retire a duplicate session")

    async def _close_when_idle(self, connection: SessionConnection) -> None:
        while connection.calls_in_flight:
            await asyncio.sleep(0.05)
        connection.close("duplicate")

    def _enforce_limits(self) -> None:
        uses = [
            SessionUse(connection, connection.last_used, not connection.calls_in_flight)
            for connection in self._connections
            if connection.is_open
        ]
        surplus = sessions_to_close(
            uses, max_sessions=self._config.max_sessions, max_idle=self._config.max_idle_sessions
        )
        for connection in surplus:
            connection.close("idle")

    def _tasks(self) -> TaskScope:
        if self._scope is None:
            self._scope = TaskScope("the session pool")
        return self._scope


def _facts(connection: SessionConnection) -> SessionFacts:
    return SessionFacts(connection.peer.parameters.instance, connection.is_dialer)


def _keep_aside(connection: SessionConnection) -> None:
    """What is done with a check dial: nothing, so no call goes over it."""


def _proved(connection: SessionConnection) -> ProvedPeer:
    parameters = connection.peer.parameters
    addresses = (connection.address,) if connection.is_dialer else ()
    return ProvedPeer(connection.peer.node_id, addresses, parameters.seen, parameters.unix_ms)


class _time_limit:  # noqa: N801 - reads as the statement it is
    """`asyncio.timeout` that ends in our Timeout."""

    def __init__(self, seconds: float, what: str) -> None:
        self._seconds = seconds
        self._what = what
        self._timeout = asyncio.timeout(seconds)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, kind: Any, error: Any, traceback: Any) -> None:
        try:
            await self._timeout.__aexit__(kind, error, traceback)
        except TimeoutError:
            raise Timeout(f"{self._what} took longer than {self._seconds:g} s") from None
