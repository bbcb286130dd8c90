"""Persistent sessions by node id: the PeerCaller of the real network.

Owns which session is used for whom. How one is opened is in `dialing.py`, how many stay open in `open_connections.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from synapse_p2p.background import TaskScope, let_go, wait_at_most
from synapse_p2p.config import PoolConfig, SessionConfig
from synapse_p2p.exceptions import (
    ConfigError,
    HandshakeFailed,
    PeerUnavailable,
    RemoteError,
    SynapseError,
    Timeout,
)
from synapse_p2p.identity import Identity, NodeID
from synapse_p2p.metrics import Metrics
from synapse_p2p.peers import KnownPeer, ProvedPeer
from synapse_p2p.protocol.handshake import INSTANCE_SIZE_BYTES, Parameters
from synapse_p2p.protocol.pool_policy import DialBackoff, SessionFacts, Survivor, choose_survivor
from synapse_p2p.protocol.session import NODE_IS_STOPPING
from synapse_p2p.runtime import Runtime
from synapse_p2p.transport.asked_stream import AskedStream
from synapse_p2p.transport.base import ByteStream, Transport, is_literal_address, parse_address
from synapse_p2p.transport.connection import SessionConnection
from synapse_p2p.transport.descriptors import is_out_of_descriptors
from synapse_p2p.transport.dialing import SessionDialer, time_limit
from synapse_p2p.transport.open_connections import OpenConnections
from synapse_p2p.transport.serving import CallServer
from synapse_p2p.uploads import Uploads

logger = logging.getLogger(__name__)

T = TypeVar("T")


class SessionPool:
    """Dials once when many ask at once, keeps one session per peer and instance, and retries what certainly never left.

    `listen_port()` is announced to peers; 0 makes us a client to them. `drop_stranger` is that of OpenConnections.
    State belongs to the loop that is running when the first session opens; `stop()` ends it, and `open()` makes a
    stopped pool usable again.
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
        network_key: bytes | None = None,
        drop_stranger: Callable[[], bool] = lambda: False,
        config: PoolConfig | None = None,
        session_config: SessionConfig | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._own_id = identity.node_id
        self._runtime = runtime
        self._config = config = config or PoolConfig()
        self._dialer = SessionDialer(
            identity,
            network=network,
            network_key=network_key,
            server=server,
            transport=transport,
            runtime=runtime,
            agent=agent,
            listen_port=listen_port,
            dial_timeout_s=config.dial_timeout_s,
            session_config=session_config or SessionConfig(),
            metrics=metrics,
        )
        self._backoff = DialBackoff(
            pause_s=config.redial_pause_s,
            max_pause_s=config.max_redial_pause_s,
            max_remembered=config.max_remembered_failures,
        )
        self._connections = OpenConnections(self._dialer, runtime=runtime, config=config, drop_stranger=drop_stranger)
        self._by_id: dict[NodeID, list[SessionConnection]] = {}  # established, oldest first
        self._dials: dict[tuple[str, NodeID | None], asyncio.Task[SessionConnection]] = {}
        self._scope: TaskScope | None = None
        self._is_stopped = False
        self.dialed_at: float | None = None
        self._outer = contextvars.copy_context()

    def __len__(self) -> int:
        """How many connections there are, proved or not."""
        return len(self._connections)

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
        async with time_limit(timeout_s, f"{peer.addresses[0]} was not proved within {timeout_s:g} s"):
            check = self._spawn(self._check(peer.addresses[0], peer.id), name=f"check {peer.addresses[0]}")
            check.add_done_callback(let_go)  # who waits may be cancelled just when it fails
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

    def retire_sessions(self) -> None:
        for sessions in list(self._by_id.values()):
            for connection in list(sessions):
                if connection.is_open:
                    connection.retire("closing", "this node was away")
        self._backoff.forget()

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
        left_s = timeout_s
        for is_last_try in (False, True):
            connection = self._open_session(peer.id)
            if connection is None or is_last_try:  # mostly it is there, and no time has gone by
                connection = connection or await self._ready(peer, deadline)
                left_s = self._left_s(deadline)
            try:
                return await connection.call(endpoint, args, kwargs, timeout_s=left_s, options=options)
            except PeerUnavailable as error:
                if error.may_have_started or is_last_try:
                    raise
        raise AssertionError("unreachable")

    async def call_uploading(
        self,
        peer: KnownPeer,
        endpoint: str,
        args: list[Any],
        kwargs: dict[str, Any],
        *,
        uploads: Uploads,
        timeout_s: float | None,
    ) -> Any:
        """The same for a call with uploads, of which none is read before there is a session. It is never sent twice."""
        connection, left_s = await self._ready_within(peer, timeout_s)
        return await connection.call_uploading(endpoint, args, kwargs, uploads=uploads, timeout_s=left_s)

    async def open_stream(
        self,
        peer: KnownPeer,
        endpoint: str,
        args: list[Any],
        kwargs: dict[str, Any],
        *,
        timeout_s: float | None,
        uploads: Uploads | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> AskedStream:
        """A call whose result is a stream, which has to be closed. It leaves within `timeout_s`; it has no deadline."""
        connection, left_s = await self._ready_within(peer, timeout_s)
        return await connection.open_stream(
            endpoint, args, kwargs, uploads=uploads or {}, timeout_s=left_s, options=options
        )

    async def _ready_within(self, peer: KnownPeer, timeout_s: float | None) -> tuple[SessionConnection, float | None]:
        """A session, and the seconds that are left then."""
        deadline = None if timeout_s is None else self._runtime.now() + timeout_s
        return await self._ready(peer, deadline), self._left_s(deadline)

    async def _ready(self, peer: KnownPeer, deadline: float | None) -> SessionConnection:
        connection = self._open_session(peer.id)
        if connection is None:
            too_late = f"no session with {peer.id.hex()[:16]} in the time given; the call was not started"
            async with time_limit(self._left_s(deadline), too_late):
                connection = await self._session_with(peer)
        return connection

    def accept(self, stream: ByteStream, data: bytes) -> None:
        """Take over an accepted stream whose first bytes are `data`."""
        if self._is_stopped:
            stream.abort()
            return
        self._connections.accept(
            stream, data, scope=self._tasks(), on_established=self._on_established, on_closed=self._on_closed
        )

    def make_room(self) -> bool:
        """Close the oldest connection of somebody who has proved nothing, as the process can open nothing more.

        False when there is none. The descriptor is free in the next turn of the loop; the log says so at times.
        """
        return self._connections.make_room()

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
        self._outer = contextvars.copy_context()

    async def stop(self, grace: float = 5.0) -> None:
        """Refuse new calls, let those that run finish for `grace` seconds, say goodbye, close. Bounded in time.

        It stays so until `open()`: a search of the user's that still runs must not dial behind our back.
        """
        self._is_stopped = True
        try:
            await self._connections.finish_calls(grace)
            await self._end_tasks()
            await self._connections.close()
        finally:
            self._connections.abort()  # of connections something is left only when the stop itself is cancelled

    async def _end_tasks(self) -> None:
        scope, self._scope = self._scope, None
        if scope is None:
            return
        try:
            async with asyncio.timeout(self._config.stop_timeout_s):
                await scope.close()
        except TimeoutError:
            if len(scope):  # the last may have ended in this very turn
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
            dialing = self._dial(address, expected_id, on_established=self._on_established)
            dial = self._spawn(dialing, name=f"dial {address}")
            self._dials[key] = dial
            dial.add_done_callback(lambda done: self._on_dialed(key, done))
        return await _result_of(dial)

    async def _check(self, address: str, expected_id: NodeID) -> None:
        # To the peer a client of another instance: no duplicate of a session that is open, and nobody's candidate.
        # Here it is kept aside, for the peer's own instance is the same as ever: no call goes over it.
        instance = self._runtime.token_bytes(INSTANCE_SIZE_BYTES)
        parameters = replace(self._dialer.parameters(), mode="client", port=0, instance=instance)
        connection = await self._dial(address, expected_id, parameters, on_established=self._connections.add)
        try:
            # An answer that is a refusal (a busy peer's) proves as much.
            with contextlib.suppress(RemoteError):
                await connection.call("_synapse.ping", [], {}, timeout_s=self._config.check_dial_timeout_s)
        finally:
            connection.close("checked")

    async def _dial(
        self,
        address: str,
        expected_id: NodeID | None,
        parameters: Parameters | None = None,
        *,
        on_established: Callable[[SessionConnection], None],
    ) -> SessionConnection:
        for has_made_room in (False, True):
            try:
                return await self._dialer.dial(
                    address,
                    expected_id,
                    scope=self._tasks(),
                    on_established=on_established,
                    on_closed=self._on_closed,
                    parameters=parameters,
                )
            except PeerUnavailable as error:
                if not is_out_of_descriptors(error.__cause__):
                    raise
                if has_made_room or not self.make_room():
                    raise PeerUnavailable(
                        f"{address} was not dialed: too much is open here", was_tried=False
                    ) from error
            await asyncio.sleep(0)  # what was closed gives its descriptor back in the next turn
        raise AssertionError("unreachable")

    def _on_dialed(self, key: tuple[str, NodeID | None], dial: asyncio.Task[SessionConnection]) -> None:
        self._dials.pop(key, None)
        if dial.cancelled():
            return
        error = dial.exception()
        if isinstance(error, HandshakeFailed) and error.reason in ("identity", "self"):
            return  # somebody answers there, it is not the address's fault
        if isinstance(error, PeerUnavailable) and not error.was_tried:
            return
        if error is not None:
            self._backoff.on_failure(key[0], self._runtime.now())
        else:
            self._backoff.on_success(key[0])

    def _on_established(self, connection: SessionConnection) -> None:
        self._connections.add(connection)
        if self._is_stopped:
            connection.close("stopping")
            return
        sessions = self._by_id.setdefault(connection.peer.node_id, [])
        if not connection.is_dialer and (connection.listen_address or sessions):
            self.dialed_at = self._runtime.now()
        self._retire_duplicates(connection, sessions)
        sessions.append(connection)
        self._connections.enforce_limits()

    def _retire_duplicates(self, newer: SessionConnection, sessions: list[SessionConnection]) -> None:
        """Retire the duplicates that lose, of those that we dialed.

        Who dialed the loser retires it, and nobody else. A survivor that the other end dialed is open there already
        when we have accepted it, so calls that we refuse on the loser find their way. The other end knows no such
        thing: it would refuse calls of ours while the survivor's last handshake message is still on its way to us.
        """
        for older in list(sessions):
            if not older.is_open:
                continue
            match choose_survivor(self._own_id, newer.peer.node_id, _facts(older), _facts(newer)):
                case Survivor.OLDER:
                    loser = newer
                case Survivor.NEWER:
                    loser = older
                case Survivor.BOTH:
                    continue
            if loser.is_dialer:
                loser.retire("duplicate")

    def _on_closed(self, connection: SessionConnection) -> None:
        self._connections.remove(connection)
        if connection.is_established:
            peer_id = connection.peer.node_id
            sessions = self._by_id.get(peer_id, [])
            if connection in sessions:
                sessions.remove(connection)
            if not sessions:
                self._by_id.pop(peer_id, None)

    def _left_s(self, deadline: float | None) -> float | None:
        return None if deadline is None else deadline - self._runtime.now()

    def _spawn(self, coroutine: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        if self._is_stopped:
            coroutine.close()
            raise PeerUnavailable(NODE_IS_STOPPING)
        # Not in the caller's context: what arrives over the session later is no part of what the caller does.
        return self._tasks().spawn_awaited(coroutine, name=name, context=self._outer.copy())

    def _tasks(self) -> TaskScope:
        if self._scope is None:
            self._scope = TaskScope("the session pool")
        return self._scope


def _facts(connection: SessionConnection) -> SessionFacts:
    return SessionFacts(connection.peer.parameters.instance, connection.is_dialer)


def _proved(connection: SessionConnection) -> ProvedPeer:
    parameters = connection.peer.parameters
    addresses = (connection.address,) if connection.is_dialer else ()
    return ProvedPeer(connection.peer.node_id, addresses, parameters.seen, parameters.unix_ms)


async def _result_of(task: asyncio.Task[T]) -> T:
    """The result of a task of ours, which runs on when the one who waits is cancelled."""
    await wait_at_most(task, None)
    if task.cancelled():
        raise PeerUnavailable(NODE_IS_STOPPING)
    return task.result()
