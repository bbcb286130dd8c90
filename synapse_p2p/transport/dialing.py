"""Opens one session: connect, handshake, limits of time. And takes one that somebody opened to us.

Owns the static key and the instance of this process' end, and what it says of itself. It keeps no session: who keeps
them, and how many, is the affair of whoever asks (`pool.py`, or a client for the length of a call).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from synapse_p2p.background import TaskScope
from synapse_p2p.config import SessionConfig
from synapse_p2p.exceptions import HandshakeFailed, PeerUnavailable, Timeout
from synapse_p2p.identity import Identity, NodeID, network_id_of
from synapse_p2p.metrics import Metrics
from synapse_p2p.protocol.handshake import INSTANCE_SIZE_BYTES, Handshake, HandshakeKeys, Mode, Parameters, Role
from synapse_p2p.protocol.noise import KEY_SIZE_BYTES
from synapse_p2p.runtime import Runtime
from synapse_p2p.transport.base import ByteStream, Transport, parse_address
from synapse_p2p.transport.connection import SessionConnection
from synapse_p2p.transport.reasons import why_unreachable
from synapse_p2p.transport.serving import CallServer
from synapse_p2p.transport.spoken import note_encrypted, spoke_encrypted

MAX_UNIX_MS = 2**63 - 1


class SessionDialer:
    """One end of sessions, opened and accepted: what is the same for all of them.

    `listen_port()` is announced to peers; 0 makes us a client to them. `network_key` is 32 bytes that all nodes of the
    network have, or None. Without `dial_timeout_s` connecting takes as long as the system lets it.
    """

    def __init__(
        self,
        identity: Identity,
        *,
        network: str,
        network_key: bytes | None = None,
        server: CallServer,
        transport: Transport,
        runtime: Runtime,
        agent: str,
        listen_port: Callable[[], int] = lambda: 0,
        dial_timeout_s: float | None,
        session_config: SessionConfig,
        metrics: Metrics | None = None,
    ) -> None:
        self._identity = identity
        self._network = network
        self._network_id = network_id_of(network)
        self._network_key = network_key
        self._server = server
        self._transport = transport
        self._runtime = runtime
        self._agent = agent
        self._listen_port = listen_port
        self._dial_timeout_s = dial_timeout_s
        self._session_config = session_config
        self.metrics = metrics or Metrics()
        self._static = X25519PrivateKey.from_private_bytes(runtime.token_bytes(KEY_SIZE_BYTES))
        self._instance = runtime.token_bytes(INSTANCE_SIZE_BYTES)

    def parameters(self) -> Parameters:
        """What we say of ourselves in a handshake now."""
        port = self._listen_port()
        mode: Mode = "node" if port else "client"
        unix_ms = round(self._runtime.unix_now() * 1000)
        # A clock that is wrong by ages is told as far as a peer can read it.
        return Parameters(mode, port, self._instance, self._agent, min(max(0, unix_ms), MAX_UNIX_MS))

    async def dial(
        self,
        address: str,
        expected_id: NodeID | None,
        *,
        scope: TaskScope,
        on_established: Callable[[SessionConnection], None],
        on_closed: Callable[[SessionConnection], None],
        parameters: Parameters | None = None,
    ) -> SessionConnection:
        """An open session with whoever answers at `address`, who has to be `expected_id` unless that is None.

        Calls of the peer run in `scope`. `on_closed` is called once when the connection has ended, also for one whose
        handshake failed; `on_established` before this returns. Raises PeerUnavailable and Timeout when nobody answers,
        HandshakeFailed, and ConfigError for an address that is none. A dial that fails or is cancelled leaves nothing.
        """
        host, port = parse_address(address)
        own = parameters or self.parameters()
        connection = self._connection(Role.DIALER, expected_id, own, scope, on_established, on_closed)
        try:
            await self._connect(host, port, address, connection)
            await connection.wait_established()
        except (Exception, asyncio.CancelledError) as error:
            self.metrics.on_dial_failed(error)
            if connection.address:  # else there is no stream, and nothing to wait for
                connection.abort()
                await connection.wait_closed()
            if isinstance(error, HandshakeFailed) and error.reason == "plain":
                _refuse_downgrade(address, connection.address, error)
            raise
        # The name and what it stands for now: a later dial may use either.
        note_encrypted(address)
        if connection.address != address:
            note_encrypted(connection.address)
        return connection

    def accepted(
        self,
        stream: ByteStream,
        *,
        scope: TaskScope,
        on_established: Callable[[SessionConnection], None],
        on_closed: Callable[[SessionConnection], None],
    ) -> SessionConnection:
        """The listener's end of a stream that somebody opened. Hand it the bytes that came so far: `data_received`."""
        connection = self._connection(Role.LISTENER, None, self.parameters(), scope, on_established, on_closed)
        return _attached(stream, connection)

    def refused(
        self, stream: ByteStream, *, scope: TaskScope, on_closed: Callable[[SessionConnection], None]
    ) -> SessionConnection:
        """The same for a stream there is no room for: the dialer is told `busy`, and the bytes handed to it end it."""
        own = self.parameters()
        connection = self._connection(Role.LISTENER, None, own, scope, _never_established, on_closed, is_busy=True)
        return _attached(stream, connection)

    async def _connect(self, host: str, port: int, address: str, connection: SessionConnection) -> None:
        try:
            limit = "" if self._dial_timeout_s is None else f" within {self._dial_timeout_s:g} s"
            async with time_limit(self._dial_timeout_s, f"{address} took no connection{limit}"):
                await self._transport.connect(host, port, connection)
        except OSError as error:
            if isinstance(error, Timeout):
                raise
            raise PeerUnavailable(f"{address} cannot be reached: {why_unreachable(error)}") from error

    def _connection(
        self,
        role: Role,
        expected_id: NodeID | None,
        parameters: Parameters,
        scope: TaskScope,
        on_established: Callable[[SessionConnection], None],
        on_closed: Callable[[SessionConnection], None],
        *,
        is_busy: bool = False,
    ) -> SessionConnection:
        keys = HandshakeKeys(self._static, self._runtime.token_bytes(KEY_SIZE_BYTES))

        def make_handshake(peer_address: str) -> Handshake:
            handshake = Handshake(
                role,
                identity=self._identity,
                network_id=self._network_id,
                keys=keys,
                parameters=parameters.for_peer_at(peer_address),
                expected_id=expected_id,
                network_key=self._network_key,
            )
            if is_busy:
                handshake.refuse_busy()
            return handshake

        return SessionConnection(
            make_handshake,
            is_dialer=role is Role.DIALER,
            server=self._server,
            scope=scope,
            runtime=self._runtime,
            config=self._session_config,
            network=self._network,
            on_established=on_established,
            on_closed=on_closed,
            metrics=self.metrics,
        )


class time_limit:  # noqa: N801 - reads as the statement it is
    """`asyncio.timeout` that ends in our Timeout, with this text. None is no limit."""

    def __init__(self, seconds: float | None, text: str) -> None:
        self._text = text
        self._timeout = None if seconds is None else asyncio.timeout(seconds)

    async def __aenter__(self) -> None:
        if self._timeout is not None:
            await self._timeout.__aenter__()

    async def __aexit__(self, kind: Any, error: Any, traceback: Any) -> None:
        try:
            if self._timeout is not None:
                await self._timeout.__aexit__(kind, error, traceback)
        except TimeoutError:
            raise Timeout(self._text) from None


def _refuse_downgrade(address: str, seen_address: str, error: HandshakeFailed) -> None:
    """Nobody goes back to the plain wire by himself: raise, where this address spoke the encrypted one before."""
    if spoke_encrypted(address) or spoke_encrypted(seen_address):
        raise HandshakeFailed(
            "downgrade",
            f"{address} speaks only the plain wire of releases 1 and 2, but it spoke the encrypted one to this process "
            "before: somebody may be in between. Was it really set back to an old release, start this process anew",
        ) from error


def _attached(stream: ByteStream, connection: SessionConnection) -> SessionConnection:
    stream.set_receiver(connection)
    connection.connection_made(stream)
    return connection


def _never_established(connection: SessionConnection) -> None:
    raise AssertionError("a refused connection was established")
