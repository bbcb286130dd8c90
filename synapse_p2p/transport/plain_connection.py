"""Accepted connections until it is known what they are, and the plain ones to their end.

Owns their timers, the set of them and its bounds. The first byte decides: a session goes to whoever takes
sessions, all else is a plain exchange, which `protocol/plain.py` leads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from synapse_p2p.background import TaskScope
from synapse_p2p.config import ServerConfig
from synapse_p2p.messages import Code, Refusal, RPCRequest
from synapse_p2p.protocol.counts import SessionCounts
from synapse_p2p.protocol.plain import GiveUp, PlainExchange, Reply, Serve, Wait
from synapse_p2p.runtime import Runtime
from synapse_p2p.transport.base import ByteStream, counted_host, format_address

logger = logging.getLogger(__name__)

SESSION_FIRST_BYTE = 0xA5
READ_SIZE_BYTES = 64 * 1024
MAX_LOGGED_CHARS = 120  # of what was wrong with a request, which may name what the caller sent

MakeExchange: TypeAlias = Callable[[str], PlainExchange]
"""A new exchange with the caller at an address."""
Respond: TypeAlias = Callable[[RPCRequest, str], Awaitable[bytes]]
"""The framed response to a request from an address. Raises CancelledError alone."""
RefusalFor: TypeAlias = Callable[[str], Refusal | None]
"""What a plain caller at an address is told instead of an answer; None for one that is served. Asked when it has sent
something: who merely connects is no caller.
"""
TakeSession: TypeAlias = Callable[[ByteStream, bytes], bool]
"""Take over a stream that began with these bytes; false when sessions are not served here."""


class PlainConnections:
    """The connections of one listener that are no sessions, oldest first.

    Invariant: at most `max_plain_connections` of them. A newcomer beyond takes the place of the oldest that has not
    sent its request yet, so that callers who connect and say nothing keep nobody out; where there is none, of the
    oldest that has still to read its answer. One host crowds out itself alone: with as many as it may have, the oldest
    of them that has not sent its request goes.
    """

    def __init__(
        self,
        *,
        make_exchange: MakeExchange,
        respond: Respond,
        refusal_for: RefusalFor,
        take_session: TakeSession,
        runtime: Runtime,
        config: ServerConfig,
        counts: SessionCounts | None = None,
    ) -> None:
        self.counts = counts or SessionCounts()
        self.make_exchange = make_exchange
        self.respond = respond
        self.refusal_for = refusal_for
        self.take_session = take_session
        self.now = runtime.now
        self.config = config
        self.scope = TaskScope("plain calls")
        self.buffered_bytes = 0
        self._connections: dict[PlainConnection, str | None] = {}  # with its host; None: one that is not counted
        self._of_host: dict[str, dict[PlainConnection, None]] = {}
        self._is_draining = False
        self._has_changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._connections)

    def accept(self) -> PlainConnection:
        """The receiver of a new connection."""
        return PlainConnection(self)

    def admit(self, connection: PlainConnection, address: str) -> bool:
        """Whether a new connection from there may stay."""
        if self._is_draining:
            return False
        host = counted_host(address, self.config.trust)
        if host is not None:
            siblings = self._of_host.get(host, {})
            if len(siblings) >= self.config.max_plain_connections_per_address:
                self._drop(next((held for held in siblings if not held.is_serving), None))
        if len(self._connections) >= self.config.max_plain_connections and not self.drop_oldest():
            return False
        self._connections[connection] = host
        if host is not None:
            self._of_host.setdefault(host, {})[connection] = None
        return True

    def drop_oldest(self) -> bool:
        """Close the oldest connection without a handler at work for it; false when there is none."""
        oldest = next((held for held in self._connections if not held.is_serving), None)
        if oldest is None:
            oldest = next((held for held in self._connections if held.has_replied), None)
        return self._drop(oldest)

    def forget(self, connection: PlainConnection) -> None:
        """It is closed, or has become a session."""
        host = self._connections.pop(connection, None)
        if host is not None:
            siblings = self._of_host[host]
            del siblings[connection]
            if not siblings:
                del self._of_host[host]
        self._has_changed.set()

    def drain(self) -> None:
        """Take no new calls: whoever has not sent a whole request is cut off. Calls that run go on."""
        self._is_draining = True
        for connection in self._others():
            if not connection.is_serving:
                connection.abort("the server stops")

    async def close(self, grace: float) -> None:
        """Let calls that run finish for `grace` seconds, then end all that is left. Bounded in time.

        A handler that stops its own server is left to answer its caller.
        """
        self.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self.scope.drain()
                await self._wait_until_empty()
        for connection in self._others():
            connection.abort("the server stops")
        try:
            async with asyncio.timeout(self.config.stop_timeout_s):
                await self.scope.close()
                await self._wait_until_empty()
        except TimeoutError:
            logger.warning("%d handlers ignore that they were cancelled; stopping without them", len(self.scope))

    def _drop(self, connection: PlainConnection | None) -> bool:
        if connection is None:
            return False
        self.forget(connection)
        connection.abort("made room for a newer connection")
        return True

    async def _wait_until_empty(self) -> None:
        while self._others():
            self._has_changed.clear()
            await self._has_changed.wait()

    def _others(self) -> list[PlainConnection]:
        own = asyncio.current_task()
        return [connection for connection in self._connections if connection.task is not own]


class PlainConnection:
    """A Receiver: one accepted connection."""

    def __init__(self, owner: PlainConnections) -> None:
        self.task: asyncio.Task[None] | None = None  # runs the handler
        self.has_replied = False  # and has perhaps still to send the answer
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._stream: ByteStream | None = None
        self._exchange: PlainExchange | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._counted_bytes = 0
        self._is_lost = False

    @property
    def is_serving(self) -> bool:
        """Whether a handler works for this caller, or its answer is on the way."""
        return self.task is not None

    def abort(self, reason: str) -> None:
        """Close at once."""
        if self._stream is not None:
            logger.debug("plain connection from %s closed: %s", self._stream.peer_address, reason)
            self._stream.abort()

    def connection_made(self, stream: ByteStream) -> None:
        self._stream = stream
        if not self._owner.admit(self, stream.peer_address):
            self.abort("no room for another connection")
            return
        self._exchange = self._owner.make_exchange(stream.peer_address)
        self._step()

    def data_received(self, data: bytes) -> None:
        stream, exchange = self._stream, self._exchange
        if stream is None or exchange is None:
            return
        is_first = self._counted_bytes == 0 and not self.is_serving and not self.has_replied
        if is_first and data[0] == SESSION_FIRST_BYTE and self._owner.take_session(stream, data):
            self._leave()
            return
        self._owner.counts.received_bytes += len(data)
        if is_first and (refusal := self._owner.refusal_for(stream.peer_address)) is not None:
            exchange.refuse(refusal)
        self._refuse_if_much_is_held(exchange)  # a request that comes in one piece as well, for its answer may be large
        exchange.receive_data(data, self._owner.now())
        self._count()
        self._refuse_if_much_is_held(exchange)
        self._step()

    def eof_received(self) -> bool | None:
        if self._exchange is None or self.has_replied:
            return False
        self._exchange.receive_eof()
        self._step()
        # A caller may close its half once it has asked; the answer still goes out.
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        if self.task is not None:
            self.task.cancel()  # nobody is left to answer

    def pause_writing(self) -> None:
        """One answer is written and nothing follows it: there is nothing to hold back."""

    def resume_writing(self) -> None:
        """See `pause_writing`."""

    def _step(self) -> None:
        """Do the one thing that the exchange says is next."""
        assert self._exchange is not None
        match self._exchange.poll(self._owner.now()):
            case Wait(until):
                if not self.has_replied:
                    self._set_timer(until - self._owner.now(), self._step)
            case Serve(request):
                self._set_timer(math.inf, self._step)
                self.task = self._owner.scope.spawn(self._serve(request), name=f"plain {request.endpoint[:64]}")
            case Reply(frame, is_early, fault):
                self._reply(frame, is_early, fault)
            case GiveUp(reason):
                self.abort(reason)
        self._count()

    async def _serve(self, request: RPCRequest) -> None:
        assert self._exchange is not None
        assert self._stream is not None
        try:
            frame = await self._owner.respond(request, self._stream.peer_address)
        except asyncio.CancelledError:
            if not self._is_lost:
                self.abort("its handler was cancelled")
            raise
        # Lost all the same when the handler ignored that it was cancelled.
        if not self._is_lost:
            self._exchange.on_response(frame)
            self._step()

    def _reply(self, frame: bytes, is_early: bool, fault: str) -> None:
        assert self._stream is not None
        if fault:
            logger.debug("plain request from %s refused: %.*s", self._stream.peer_address, MAX_LOGGED_CHARS, fault)
        self.has_replied = True
        self._owner.counts.sent_bytes += len(frame)
        self._stream.write(frame)
        if is_early:
            # Closing on unread bytes resets the connection, and the caller may lose the answer with it.
            self._set_timer(self._owner.config.linger_s, self._finish)
        else:
            self._finish()

    def _finish(self) -> None:
        """Close once all has left, or when nothing leaves any more."""
        assert self._stream is not None
        self._stream.close()
        unsent_bytes = self._stream.unsent_bytes()
        if unsent_bytes == 0:
            self._set_timer(math.inf, self._step)
            return

        def check_progress() -> None:
            assert self._stream is not None
            self._count()
            if 0 < unsent_bytes <= self._stream.unsent_bytes():
                self.abort("the caller reads nothing")
            else:
                self._finish()

        self._set_timer(self._owner.config.write_stall_s, check_progress)

    def _set_timer(self, delay_s: float, callback: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if delay_s == math.inf else self._loop.call_later(max(0.0, delay_s), callback)

    def _refuse_if_much_is_held(self, exchange: PlainExchange) -> None:
        if self._owner.buffered_bytes > self._owner.config.max_plain_buffered_bytes:
            exchange.refuse(Refusal(Code.BUSY, "too much is held for plain callers; try again later"))

    def _count(self) -> None:
        """Note what is held for this caller: of its request, or of its answer."""
        held_bytes = 0
        if not self._is_lost and self._exchange is not None and self._stream is not None:
            held_bytes = self._exchange.buffered_bytes() + (self._stream.unsent_bytes() if self.has_replied else 0)
        self._owner.buffered_bytes += held_bytes - self._counted_bytes
        self._counted_bytes = held_bytes

    def _leave(self) -> None:
        self._set_timer(math.inf, self._step)
        self._is_lost = True
        self._count()
        self._owner.forget(self)


async def serve_streams(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    *,
    make_exchange: MakeExchange,
    respond: Respond,
    refusal_for: RefusalFor,
    runtime: Runtime,
    config: ServerConfig,
) -> None:
    """One plain exchange over asyncio streams, for programs of release 1.3 that accept connections themselves."""
    peer_name = writer.get_extra_info("peername")
    address = format_address(*peer_name[:2]) if peer_name else "unknown:0"
    exchange = make_exchange(address)
    try:
        while True:
            match exchange.poll(runtime.now()):
                case Wait(until):
                    data = await _read_until(until, reader, runtime)
                    if data == b"":
                        exchange.receive_eof()
                    elif data is not None and (refusal := refusal_for(address)) is not None:
                        exchange.refuse(refusal)
                    elif data is not None:
                        exchange.receive_data(data, runtime.now())
                case Serve(request):
                    exchange.on_response(await respond(request, address))
                case Reply(frame):
                    writer.write(frame)
                    async with asyncio.timeout(config.write_stall_s):
                        await writer.drain()
                    return
                case GiveUp():
                    return
    except (ConnectionError, TimeoutError) as error:
        logger.debug("plain connection from %s ended: %s", address, error)
        writer.transport.abort()
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def _read_until(until: float, reader: asyncio.StreamReader, runtime: Runtime) -> bytes | None:
    """Some bytes, none at their end; None where nothing came in time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(until - runtime.now()):
            return await reader.read(READ_SIZE_BYTES)
    return None
