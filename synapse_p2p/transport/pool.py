"""Persistent sessions by node id: the PeerCaller of the real network.

Owns every encrypted connection of a process' node, opened and accepted. What stays is decided in
`protocol/pool_policy.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from synapse_p2p.background import TaskScope
from synapse_p2p.config import PoolConfig, SessionConfig
from synapse_p2p.exceptions import (
    ConfigError,
    HandshakeFailed,
    PeerUnavailable,
    RemoteError,
    SynapseError,
    Timeout,
)
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
from synapse_p2p.protocol.session import NODE_IS_STOPPING
from synapse_p2p.runtime import Runtime
from synapse_p2p.transport.base import ByteStream, Transport, is_literal_address, parse_address
from synapse_p2p.transport.connection import SessionConnection
from synapse_p2p.transport.serving import CallServer

logger = logging.getLogger(__name__)

T = TypeVar("T")

SETTLE_S = 1.0  # how long a session that we dialed counts as used though no call is in flight yet


class SessionPool:
    """Dials once when many ask at once, keeps one session per peer and instance, and retries what certainly never left.

    `listen_port()` is announced to peers; 0 makes us a client to them. State belongs to the loop that is running when
    the first session opens; `stop()` ends it, and `open()` makes a stopped pool usable again.
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
        self._limits_timer: asyncio.TimerHandle | None = None
        self._is_stopped = False

    # The PeerCaller

    async def connect(self, peer: KnownPeer) -> ProvedPeer:
        return _proved(await self._session_with(peer))

    async def connect_address(self, address: str, expected_id: NodeID | None = None) -> ProvedPeer:
        connection = await self._dial_shared(address, expected_id)
        return _proved(connection)

    async def check_dial(self, peer: KnownPeer) -> None:
        if not peer.addresses:
            raise PeerUnavailable(f"{peer.id.hex()[:16]} has no address to check")
        timeout_s = self._config.check_dial_timeout_s
        async with _time_limit(timeout_s, f"{peer.addresses[0]} was not proved within {timeout_s:g} s"):
            check = self._spawn(self._check(peer.addresses[0], peer.id), name=f"check {peer.addresses[0]}")
            try:
                await _result_of(check)
            finally:
                check.cancel()

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
        deadline = None if timeout_s is None else self._runtime.now() + timeout_s
        for is_last_try in (False, True):
            connection = self._open_session(peer.id)
            if connection is None:
                too_late = f"no session with {peer.id.hex()[:16]} in the time given; the call was not started"
                async with _time_limit(self._left_s(deadline), too_late):
                    connection = await self._session_with(peer)
            left_s = self._left_s(deadline)
            try:
                return await connection.call(endpoint, args, kwargs, timeout_s=left_s, options=options)
            except PeerUnavailable as error:
                if error.may_have_started or is_last_try:
                    raise
        raise AssertionError("unreachable")

    def accept(self, stream: ByteStream, data: bytes) -> None:
        """Take over an accepted stream whose first bytes are `data`."""
        if self._is_stopped:
            stream.abort()
            return
        proving = [held for held in self._connections if held.is_proving and not held.is_dialer]
        if len(proving) >= self._config.max_handshakes:
            # Who connects and proves nothing must keep nobody out.
            proving[0].abort()
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

    def open(self) -> None:
        """Dial and accept again after a stop."""
        self._is_stopped = False

    async def stop(self, grace: float = 5.0) -> None:
        """Refuse new calls, let those that run finish for `grace` seconds, say goodbye, close. Bounded in time.

        It stays so until `open()`: a search of the user's that still runs must not dial behind our back.
        """
        self._is_stopped = True
        try:
            await self._finish_calls(grace)
            await self._end_tasks()
            connections = list(self._connections)
            for connection in connections:
                connection.close("stopping")
            for connection in connections:
                await connection.wait_closed()
        finally:
            for connection in list(self._connections):
                connection.abort()  # only when the stop itself is cancelled
            if self._limits_timer is not None:
                self._limits_timer.cancel()
                self._limits_timer = None

    async def _finish_calls(self, grace: float) -> None:
        connections = list(self._connections)
        for connection in connections:
            connection.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                for connection in connections:
                    await connection.wait_idle()

    async def _end_tasks(self) -> None:
        scope, self._scope = self._scope, None
        if scope is None:
            return
        try:
            async with asyncio.timeout(self._config.stop_timeout_s):
                await scope.close()
        except TimeoutError:
            logger.warning("%d handlers ignore that they were cancelled; stopping without them", len(scope))

    # Sessions

    def _open_session(self, node_id: NodeID) -> SessionConnection | None:
        """The newest open session, one with a peer that listens before a client's: a check dial is a client's."""
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
                connection = await self._dial_shared(address, peer.id)
                # Where both sides dialed at once, this one may be the duplicate that closes; then the other is open.
                return self._open_session(peer.id) or connection
            except (PeerUnavailable, Timeout, HandshakeFailed, ConfigError) as failure:
                error = failure
        if isinstance(error, PeerUnavailable):
            raise error
        raise PeerUnavailable(str(error)) from error

    async def _dial_shared(self, address: str, expected_id: NodeID | None) -> SessionConnection:
        """One dial for all who ask for the same at once. Being cancelled leaves the dial to the others."""
        if self._is_stopped:
            raise PeerUnavailable(NODE_IS_STOPPING)
        if self._backoff.is_resting(address, self._runtime.now()):
            raise PeerUnavailable(f"{address} did not answer a moment ago", was_tried=False)
        key = (address, expected_id)
        dial = self._dials.get(key)
        if dial is None:
            dialing = self._dial(address, expected_id, self._parameters(), on_established=self._on_established)
            dial = self._spawn(dialing, name=f"dial {address}")
            self._dials[key] = dial
            dial.add_done_callback(lambda done: self._on_dialed(key, done))
        return await _result_of(dial)

    async def _check(self, address: str, expected_id: NodeID) -> None:
        # To the peer a client of another instance: no duplicate of a session that is open, and nobody's candidate.
        # Here it is kept aside, for the peer's own instance is the same as ever.
        parameters = replace(self._parameters(), mode="client", port=0)
        parameters = replace(parameters, instance=self._runtime.token_bytes(INSTANCE_SIZE_BYTES))
        connection = await self._dial(address, expected_id, parameters, on_established=_keep_aside)
        try:
            # An answer that is a refusal (a busy peer's) proves as much.
            with contextlib.suppress(RemoteError):
                await connection.call("_synapse.ping", [], {}, timeout_s=self._config.check_dial_timeout_s)
        finally:
            connection.close("checked")

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
            timeout_s = self._config.dial_timeout_s
            async with _time_limit(timeout_s, f"{address} took no connection within {timeout_s:g} s"):
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
        if self._is_stopped:
            connection.close("stopping")
            return
        sessions = self._by_id.setdefault(connection.peer.node_id, [])
        self._retire_duplicates(connection, sessions)
        sessions.append(connection)
        self._enforce_limits()

    def _retire_duplicates(self, newer: SessionConnection, sessions: list[SessionConnection]) -> None:
        """Retire the duplicates that lose, of those that we dialed.

        Who dialed the loser retires it, and nobody else. A survivor that the other end dialed is open there already
        when we have accepted it, so calls that we refuse on the loser find their way. The other end knows no such
        thing: it would refuse calls of ours while the survivor's last handshake message is still on its way to us.
        """
        for older in list(sessions):
            if not older.is_open:
                continue
            match choose_survivor(self._identity.node_id, newer.peer.node_id, _facts(older), _facts(newer)):
                case Survivor.OLDER:
                    loser = newer
                case Survivor.NEWER:
                    loser = older
                case Survivor.BOTH:
                    continue
            if loser.is_dialer:
                loser.retire("duplicate")

    def _on_closed(self, connection: SessionConnection) -> None:
        self._connections.pop(connection, None)
        if connection.is_established:
            peer_id = connection.peer.node_id
            sessions = self._by_id.get(peer_id, [])
            if connection in sessions:
                sessions.remove(connection)
            if not sessions:
                self._by_id.pop(peer_id, None)

    def _enforce_limits(self) -> None:
        # What we dialed just now is for a call that comes in a moment: it is no idle one, and looked at again later.
        now = self._runtime.now()
        open_connections = [connection for connection in self._connections if connection.is_open]
        fresh = {c for c in open_connections if c.is_dialer and now < c.established_at + SETTLE_S}
        if fresh and self._limits_timer is None:
            self._limits_timer = asyncio.get_running_loop().call_later(SETTLE_S, self._on_settled)
        uses = [
            SessionUse(connection, connection.last_used, not connection.calls_in_flight and connection not in fresh)
            for connection in open_connections
        ]
        surplus = sessions_to_close(
            uses, max_sessions=self._config.max_sessions, max_idle=self._config.max_idle_sessions
        )
        for connection in surplus:
            connection.close("idle")

    def _on_settled(self) -> None:
        self._limits_timer = None
        self._enforce_limits()

    def _left_s(self, deadline: float | None) -> float | None:
        return None if deadline is None else deadline - self._runtime.now()

    def _spawn(self, coroutine: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        if self._is_stopped:
            coroutine.close()
            raise PeerUnavailable(NODE_IS_STOPPING)
        return self._tasks().spawn_awaited(coroutine, name=name)

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


async def _result_of(task: asyncio.Task[T]) -> T:
    """The result of a task of ours, which runs on when the one who waits is cancelled."""
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        own = asyncio.current_task()
        if task.cancelled() and own is not None and not own.cancelling():
            raise PeerUnavailable(NODE_IS_STOPPING) from None
        raise


class _time_limit:  # noqa: N801 - reads as the statement it is
    """`asyncio.timeout` that ends in our Timeout, with this text. None is no limit."""

    def __init__(self, seconds: float | None, text: str) -> None:
        self._text = text
        self._timeout = asyncio.timeout(seconds)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, kind: Any, error: Any, traceback: Any) -> None:
        try:
            await self._timeout.__aexit__(kind, error, traceback)
        except TimeoutError:
            raise Timeout(self._text) from None
