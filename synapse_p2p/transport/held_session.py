"""One encrypted session with one address, opened when a call needs it and closed when none has come for a while.

Owns the session of a `Client`. All of it belongs to the loop that runs: used from another loop, it starts afresh there.
A pool keeps sessions with many peers (`pool.py`); this keeps one, and knows no peers.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from synapse_p2p.background import TaskScope, let_go, wait_at_most
from synapse_p2p.config import SessionConfig
from synapse_p2p.context import CallContext, MountedHandler
from synapse_p2p.exceptions import FrameTooLarge, HandshakeFailed, PeerUnavailable, RemoteError, Timeout
from synapse_p2p.identity import NodeID
from synapse_p2p.messages import Code, Refusal
from synapse_p2p.protocol.session import check_call
from synapse_p2p.protocol.wire import MAX_ENDPOINT_CHARS, Call
from synapse_p2p.runtime import Runtime
from synapse_p2p.transport.asked_stream import AskedStream
from synapse_p2p.transport.connection import SessionConnection
from synapse_p2p.transport.dialing import SessionDialer
from synapse_p2p.transport.failures import no_endpoint, unsendable
from synapse_p2p.uploads import Uploads

CLOSED = "the client was closed"


class HeldSession:
    """Dials once when many call at once, and again when the session has ended. Invariant: at most one session a loop.

    A session on which nothing happens for `idle_s` seconds is closed. So is one that is open when its loop is ended by
    `asyncio.run` or `asyncio.Runner`: they cancel what is left, and a task is left for that.
    """

    def __init__(
        self,
        dialer: SessionDialer,
        address: str,
        expected_id: NodeID | None,
        *,
        runtime: Runtime,
        session_config: SessionConfig,
        idle_s: float,
    ) -> None:
        self._dialer = dialer
        self._address = address
        self._expected_id = expected_id
        self._runtime = runtime
        self._session_config = session_config
        self._idle_s = idle_s
        self.peer_id: NodeID | None = None  # of who answered last
        self._by_loop: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _OnLoop] = weakref.WeakKeyDictionary()

    async def call(
        self,
        endpoint: str,
        args: list[Any],
        kwargs: dict[str, Any],
        *,
        deadline: float | None,
        idempotent: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        """The peer's answer, by `deadline` on the clock of the runtime.

        A request that certainly never left is sent once more on a new session, and so is an `idempotent` one whose
        session broke. Raises what SessionDialer.dial and SessionConnection.call raise.
        """
        here = self._here()
        was_sent = False
        for is_last_try in (False, True):
            connection = here.connection
            if connection is None or not connection.is_open:
                self._check_arguments(endpoint, args, kwargs)
                try:
                    connection = await self._open(here, deadline, endpoint)
                except PeerUnavailable as error:
                    error.may_have_started = was_sent  # a first try of an idempotent call was sent
                    raise
                except HandshakeFailed as error:
                    if error.reason != "closed":
                        raise
                    if is_last_try:
                        raise PeerUnavailable(str(error), may_have_started=was_sent) from error
                    continue  # nothing was sent on it
            left_s = None if deadline is None else deadline - self._runtime.now()  # as `_left_s`, a step less a call
            try:
                return await connection.call(endpoint, args, kwargs, timeout_s=left_s, options=options)
            except PeerUnavailable as error:
                was_sent = was_sent or error.may_have_started
                error.may_have_started = was_sent
                if is_last_try or (was_sent and not idempotent):
                    raise
        raise AssertionError("unreachable")

    async def call_uploading(
        self,
        endpoint: str,
        args: list[Any],
        kwargs: dict[str, Any],
        *,
        uploads: Uploads,
        deadline: float | None,
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        """The same for a call with uploads, of which none is read before there is a session. It is never sent twice."""
        connection = await self._ready(endpoint, args, kwargs, deadline)
        return await connection.call_uploading(
            endpoint, args, kwargs, uploads=uploads, timeout_s=self._left_s(deadline), options=options
        )

    async def open_stream(
        self,
        endpoint: str,
        args: list[Any],
        kwargs: dict[str, Any],
        *,
        uploads: Uploads,
        deadline: float | None,
        options: Mapping[str, Any] | None = None,
    ) -> AskedStream:
        """A call whose result is a stream, on its way by `deadline`; the stream has to be closed."""
        connection = await self._ready(endpoint, args, kwargs, deadline)
        return await connection.open_stream(
            endpoint, args, kwargs, uploads=uploads, timeout_s=self._left_s(deadline), options=options
        )

    async def _ready(
        self, endpoint: str, args: list[Any], kwargs: dict[str, Any], deadline: float | None
    ) -> SessionConnection:
        """The session that is open, or a new one; a dial that is closed on during the handshake is made once more."""
        here = self._here()
        for is_last_try in (False, True):
            if here.connection is not None and here.connection.is_open:
                return here.connection
            self._check_arguments(endpoint, args, kwargs)
            try:
                return await self._open(here, deadline, endpoint)
            except HandshakeFailed as error:
                if error.reason != "closed":
                    raise
                if is_last_try:
                    raise PeerUnavailable(str(error)) from error
        raise AssertionError("unreachable")

    def _left_s(self, deadline: float | None) -> float | None:
        return None if deadline is None else deadline - self._runtime.now()

    async def close(self) -> None:
        """Say goodbye to the running loop's session and wait until its socket is gone. Calls in flight end."""
        here = self._by_loop.pop(asyncio.get_running_loop(), None)
        if here is not None:
            await here.close()

    def _here(self) -> _OnLoop:
        loop = asyncio.get_running_loop()
        here = self._by_loop.get(loop)
        if here is None:
            # What a closed loop has left refers to that loop, so that the weak reference alone would keep it. In one
            # step of the interpreter, for loops of other threads do this too.
            for reference in self._by_loop.keyrefs():
                if (other := reference()) is not None and other.is_closed():
                    self._by_loop.pop(other, None)
            here = self._by_loop[loop] = _OnLoop()
        return here

    def _check_arguments(self, endpoint: str, args: list[Any], kwargs: dict[str, Any]) -> None:
        """Raise ConfigError for arguments that cannot travel, before anybody is dialed for them."""
        if type(endpoint) is not str or not 0 < len(endpoint) <= MAX_ENDPOINT_CHARS:
            raise no_endpoint(endpoint)
        try:
            check_call(endpoint, args, kwargs, self._session_config)
        except (FrameTooLarge, TypeError, ValueError, OverflowError) as error:
            raise unsendable(endpoint, args, kwargs, error) from error

    async def _open(self, here: _OnLoop, deadline: float | None, endpoint: str) -> SessionConnection:
        """One dial for all who call at once. It goes on until nobody waits for it."""
        if here.scope.is_closed:
            raise PeerUnavailable(CLOSED)
        dial = here.dial
        if dial is None or dial.done():
            dial = here.dial = _Dial()
            dial.follow(here.scope.spawn_awaited(self._dial(here, dial), name=f"dial {self._address}"))
        try:
            is_over = await wait_at_most(dial, self._left_s(deadline))
        finally:
            if here.dial is dial and not dial.is_awaited:
                here.dial = None  # whoever comes while it ends dials anew
                dial.task.cancel()
        if not is_over:
            raise Timeout(f"{self._address} took no connection in the time given; {endpoint} was not started")
        if dial.connection is not None:
            return dial.connection
        if dial.task.cancelled():
            raise PeerUnavailable(CLOSED)
        error = dial.task.exception()
        assert error is not None, "a dial ends with a session or a failure"
        if isinstance(error, PeerUnavailable):  # to each its own: whether the call may have started differs
            raise PeerUnavailable(str(error), was_tried=error.was_tried) from error.__cause__
        raise error

    async def _dial(self, here: _OnLoop, dial: _Dial) -> None:
        def on_established(connection: SessionConnection) -> None:
            if here.dial is not dial:
                connection.close("closing")  # nobody waits any more: the dial is being cancelled
                return
            here.connection = connection
            here.dial = None
            self.peer_id = connection.peer.node_id
            here.scope.spawn(self._keep(connection), name=f"session with {self._address}")
            dial.on_established(connection)

        def on_closed(connection: SessionConnection) -> None:
            if here.connection is connection:
                here.connection = None

        await self._dialer.dial(
            self._address, self._expected_id, scope=here.scope, on_established=on_established, on_closed=on_closed
        )

    async def _keep(self, connection: SessionConnection) -> None:
        """Until the session ends: close it when it has been idle, and when the loop is about to end."""
        try:
            while connection.is_open:
                idle_at = connection.last_used + self._idle_s
                pause_s = idle_at - self._runtime.now() if not connection.calls_in_flight else self._idle_s
                if pause_s <= 0:
                    break
                await connection.wait_closed(pause_s)
            await connection.wait_idle()  # of one that takes no new calls, those in flight go on
        finally:
            connection.close("idle")
            await connection.wait_closed()


class _OnLoop:
    """What one event loop has of a HeldSession."""

    def __init__(self) -> None:
        self.scope = TaskScope("a client's session")
        self.connection: SessionConnection | None = None
        self.dial: _Dial | None = None

    async def close(self) -> None:
        connection, self.dial = self.connection, None
        if connection is not None:
            connection.close("closing")
        try:
            await self.scope.close()
        finally:
            if connection is not None:
                connection.abort()  # only when the close itself is cancelled


class _Dial:
    """A dial under way. To the calls that wait for it, it is done as soon as there is a session: they go on at once."""

    def __init__(self) -> None:
        self.connection: SessionConnection | None = None
        self._callbacks: list[Callable[[object], object]] = []

    def follow(self, task: asyncio.Task[None]) -> None:
        """The task that dials; without a session, its end is that of the dial."""
        self.task = task
        task.add_done_callback(let_go)
        task.add_done_callback(self._tell)

    def on_established(self, connection: SessionConnection) -> None:
        self.connection = connection
        self._tell(self)

    @property
    def is_awaited(self) -> bool:
        return bool(self._callbacks)

    def done(self) -> bool:
        return self.connection is not None or self.task.done()

    def add_done_callback(self, callback: Callable[[object], object]) -> None:
        self._callbacks.append(callback)

    def remove_done_callback(self, callback: Callable[[object], object]) -> None:
        if callback in self._callbacks:
            self._callbacks.remove(callback)

    def _tell(self, _: object) -> None:
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self)


class ServesNothing:
    """What a client answers a server that calls back."""

    def mounted(self, endpoint: str) -> MountedHandler | None:
        return None

    def refusal_of(self, error: Exception, name: str) -> Refusal:
        return Refusal(Code.INTERNAL_ERROR, "")  # of no result: there are none

    async def serve_session_call(self, call: Call, context: CallContext) -> Any:
        raise RemoteError(Code.NOT_FOUND, "a client offers no functions")
