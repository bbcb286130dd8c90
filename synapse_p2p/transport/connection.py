"""Pumps one session: bytes of a stream through handshake, channel and session, and the calls of tasks through it.

Owns the order in which things happen on one connection; decides nothing that `protocol/` decides. The calls themselves
are in `asking.py` and `serving.py`. A connection ends once, and with it every call in flight on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from synapse_p2p.background import TaskScope, wait_at_most
from synapse_p2p.config import SessionConfig
from synapse_p2p.context import CallContext
from synapse_p2p.exceptions import HandshakeFailed, PeerUnavailable, ProtocolViolation
from synapse_p2p.metrics import Metrics
from synapse_p2p.protocol.channel import SecureChannel
from synapse_p2p.protocol.code import Code
from synapse_p2p.protocol.events import (
    CallAnswered,
    CallArrived,
    CallExpired,
    CallFailed,
    CallWithdrawn,
    CreditArrived,
    Event,
    ItemsArrived,
    PeerClosed,
    PeerSilent,
    StreamEnded,
)
from synapse_p2p.protocol.handshake import Established, Handshake, PeerProof
from synapse_p2p.protocol.session import Session
from synapse_p2p.runtime import Runtime
from synapse_p2p.transport import byte_budget
from synapse_p2p.transport.alarm import Alarm
from synapse_p2p.transport.asked_stream import AskedStream
from synapse_p2p.transport.asking import AskedCalls
from synapse_p2p.transport.base import ByteStream, format_address, parse_address
from synapse_p2p.transport.failures import error_of
from synapse_p2p.transport.large_blocks import keep_large_blocks
from synapse_p2p.transport.outflow import MUCH_BYTES, Outflow
from synapse_p2p.transport.sending import ItemSender
from synapse_p2p.transport.serving import CallServer, ServedCalls
from synapse_p2p.uploads import Uploads

logger = logging.getLogger(__name__)

# Messages of one peer that are looked at before the loop has its turn, and with it all others: a call for each of its
# 64 places and a few more, for answers to these share records and writes. What is left then is a flood: fewer of it are
# looked at, and of what is read next as well, until a reading holds no more than that.
MESSAGES_A_TURN = 80
MESSAGES_A_TURN_BEHIND = 4


class SessionConnection:
    """A Receiver: one encrypted connection to one proved peer.

    `on_established` and `on_closed` are called once each, in that order; a connection whose handshake fails is only
    closed.
    """

    __slots__ = (
        "__weakref__",
        "_alarm",
        "_asked",
        "_channel",
        "_closed",
        "_config",
        "_established",
        "_goodbye_when_idle",
        "_had_many_events",
        "_handshake",
        "_idle",
        "_is_counted",
        "_is_ending",
        "_is_flood",
        "_is_pump_due",
        "_is_reading_paused",
        "_loop",
        "_make_handshake",
        "_metrics",
        "_network",
        "_on_closed",
        "_on_established",
        "_outflow",
        "_peer",
        "_received_at",
        "_runtime",
        "_scope",
        "_sender",
        "_served",
        "_server",
        "_session",
        "_stream",
        "address",
        "established_at",
        "failure",
        "is_dialer",
        "last_used",
        "listen_address",
    )

    def __init__(
        self,
        make_handshake: Callable[[str], Handshake],
        *,
        is_dialer: bool,
        server: CallServer,
        scope: TaskScope,
        runtime: Runtime,
        config: SessionConfig,
        network: str,
        on_established: Callable[[SessionConnection], None],
        on_closed: Callable[[SessionConnection], None],
        metrics: Metrics | None = None,
    ) -> None:
        self.is_dialer = is_dialer
        self.address = ""
        self.listen_address: str | None = None
        self.failure: Exception | None = None  # why it ended, where that was a fault
        self.last_used = runtime.now()
        self.established_at = 0.0
        self._received_at = 0.0
        self._make_handshake = make_handshake
        self._server = server
        self._scope = scope
        self._runtime = runtime
        self._config = config
        self._network = network
        self._metrics = metrics or Metrics()
        self._on_established = on_established
        self._on_closed = on_closed
        self._loop = asyncio.get_running_loop()
        self._stream: ByteStream | None = None
        self._outflow: Outflow | None = None
        self._handshake: Handshake | None = None
        self._channel: SecureChannel | None = None
        self._session: Session | None = None
        self._peer: PeerProof | None = None
        self._asked: AskedCalls | None = None
        self._served: ServedCalls | None = None
        self._sender: ItemSender | None = None
        self._is_reading_paused = False
        self._is_counted = False  # in the byte budget of the process
        self._alarm = Alarm(runtime.now)
        self._is_flood = False
        self._is_pump_due = False  # later in this turn of the loop, or it goes on
        self._had_many_events = False  # at the last look: of many answers come many calls
        self._goodbye_when_idle: tuple[str, str] | None = None
        self._is_ending = False  # the stream was told to close
        # Made for whoever waits.
        self._established: asyncio.Future[None] | None = None
        self._idle: asyncio.Future[None] | None = None
        self._closed: asyncio.Future[None] = self._loop.create_future()

    # What the owner sees

    @property
    def peer(self) -> PeerProof:
        """The proved peer; only after the handshake."""
        assert self._peer is not None, "the handshake is not over"
        return self._peer

    @property
    def is_open(self) -> bool:
        """Whether calls can be made now."""
        session, stream = self._session, self._stream
        if session is None or stream is None or not session.takes_calls:
            return False
        # A stream that closes under us says so a turn of the loop before connection_lost does.
        return not stream.is_closing()

    @property
    def takes_place(self) -> bool:
        """Whether it is a session that nobody has begun to close, be it one on which the peer refuses our calls."""
        session, stream = self._session, self._stream
        return session is not None and stream is not None and not session.is_closing and not stream.is_closing()

    @property
    def is_established(self) -> bool:
        """Whether the handshake succeeded, ever."""
        return self._peer is not None

    @property
    def calls_in_flight(self) -> int:
        """Calls in both directions that have not ended."""
        return self.calls_asked + self.calls_served

    @property
    def calls_asked(self) -> int:
        """Calls of ours in flight."""
        return 0 if self._session is None else self._session.calls_in_flight

    @property
    def overlay_calls_asked(self) -> int:
        """Those of the overlay among them."""
        return 0 if self._session is None else self._session.overlay_calls_in_flight

    @property
    def calls_served(self) -> int:
        """Calls of the peer that run or wait here."""
        return 0 if self._session is None else self._session.calls_served

    @property
    def calls_waiting(self) -> int:
        """Those that wait among them."""
        return 0 if self._session is None else self._session.calls_waiting

    @property
    def serves_current_task(self) -> bool:
        """Whether the task that asks is a call of this peer's."""
        return self._served is not None and self._served.is_run_by_current_task()

    def call(
        self,
        endpoint: str,
        args: list[Any],
        kwargs: dict[str, Any],
        *,
        timeout_s: float | None,
        options: Mapping[str, Any] | None = None,
    ) -> Coroutine[Any, Any, Any]:
        """The peer's answer, to be awaited. Raises RemoteError, Timeout, PeerUnavailable; ConfigError for arguments
        that cannot travel.
        """
        if self._asked is None:
            raise PeerUnavailable(f"there is no session with {self.address} yet")
        return self._asked.call(endpoint, args, kwargs, timeout_s=timeout_s, options=options)

    async def call_uploading(
        self,
        endpoint: str,
        args: list[Any],
        kwargs: dict[str, Any],
        *,
        uploads: Uploads,
        timeout_s: float | None,
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        """The same for a call of which some arguments are streams. Raises what these raise, too."""
        if self._asked is None:
            raise PeerUnavailable(f"there is no session with {self.address} yet")
        return await self._asked.call_uploading(
            endpoint, args, kwargs, uploads=uploads, timeout_s=timeout_s, options=options
        )

    async def open_stream(
        self,
        endpoint: str,
        args: list[Any],
        kwargs: dict[str, Any],
        *,
        uploads: Uploads,
        timeout_s: float | None,
        options: Mapping[str, Any] | None = None,
    ) -> AskedStream:
        """A call whose result is a stream, which has to be closed. It leaves within `timeout_s`, and has no deadline.

        Raises as `call` does.
        """
        if self._asked is None:
            raise PeerUnavailable(f"there is no session with {self.address} yet")
        return await self._asked.open_stream(
            endpoint, args, kwargs, uploads=uploads, timeout_s=timeout_s, options=options
        )

    def drain(self) -> None:
        """Refuse new calls of the peer; those that run go on."""
        if self._session is not None:
            self._session.is_draining = True

    def retire(self, code: str, text: str = "") -> None:
        """Start no new call, in either direction; close with this goodbye once those in flight have ended."""
        self.drain()
        self._goodbye_when_idle = (code, text)
        self._tell_if_idle()

    def end_other_calls(self) -> None:
        """End the calls of the peer's but the one whose task asks; their tasks have been cancelled."""
        if self._served is not None:
            self._served.end_others()
            self._pump()

    def close(self, code: str = "closing", text: str = "") -> None:
        """Say goodbye and close once that has left. Calls in flight end; `wait_closed` waits for the rest."""
        if self._session is not None and not self._session.is_closing:
            self._session.goodbye(code, text)
            self._pump()
        self._close_stream()

    def part(self, code: str, text: str = "") -> None:
        """Say goodbye, and close once the peer has, or after `goodbye_timeout_s`.

        What the peer sent meanwhile is not met by a reset, which could overtake our goodbye: so it knows that nothing
        of it started.
        """
        if self._session is None or self._session.is_closing:
            self.close(code, text)
            return
        self._session.goodbye(code, text)
        self._pump()
        self._alarm.set(self._config.goodbye_timeout_s, self._close_stream)

    def make_way(self) -> None:
        """Close at once, unproved as it is: its place is needed."""
        if self.failure is None:
            self.failure = HandshakeFailed("refused", "another connection needed the place", refusal="busy")
        self.abort()

    def abort(self) -> None:
        """Close at once."""
        if self._stream is not None:
            self._stream.abort()

    async def wait_established(self) -> None:
        """Return when the peer is proved. Raises HandshakeFailed or PeerUnavailable when it will not be."""
        if not self.is_established:
            if self.failure is not None:
                raise self.failure
            self._established = self._loop.create_future()
            await self._established

    async def wait_idle(self) -> None:
        """Return when no call is in flight, in either direction; at the latest when the connection ends."""
        while self.calls_in_flight:
            if self._idle is None:
                self._idle = self._loop.create_future()
            await asyncio.shield(self._idle)

    async def wait_closed(self, timeout_s: float | None = None) -> None:
        """Return when the stream is gone, or after so many seconds."""
        await wait_at_most(self._closed, timeout_s)

    # What the stream tells us

    def connection_made(self, stream: ByteStream) -> None:
        self._stream = stream
        stall_s = self._config.write_stall_s
        self._outflow = Outflow(stream, stall_s=stall_s, on_stall=self._on_write_stall, counts=self._metrics.counts)
        self.address = stream.peer_address
        self._handshake = self._make_handshake(self.address)
        del self._make_handshake  # it holds the keys of this one handshake
        self._handshake.start()
        self._outflow.hold(self._handshake.data_to_send())
        self._outflow.release()
        self._alarm.set(self._config.handshake_timeout_s, self._on_handshake_timeout)

    def data_received(self, data: bytes) -> None:
        self._metrics.counts.received_bytes += len(data)
        try:
            if self._channel is None:
                data = self._shake_hands(data)
            if data:
                self._receive(data)
        except ProtocolViolation as error:
            self._fail(error)

    def eof_received(self) -> bool | None:
        # An end without a goodbye is a truncation. We do not wait for connection_lost: it comes only once our own
        # bytes have left, and a peer that reads none of them would keep the socket for ever.
        self._on_end_of_stream()
        self._close_stream()
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_end_of_stream()
        self._is_ending = True
        self._alarm.cancel()
        if self._is_counted:
            byte_budget.PROCESS.note(self, 0)
        if not self._closed.done():
            self._count_end()
            self._closed.set_result(None)
            self._on_closed(self)

    def _count_end(self) -> None:
        if self.is_established:
            self._metrics.on_session_closed(self)
        elif not self.is_dialer:  # a dial of ours is counted where it was begun, for not each comes as far as this
            self._metrics.on_handshake_refused(self.failure)

    def pause_writing(self) -> None:
        assert self._outflow is not None
        self._outflow.pause()
        self._note_held()

    def resume_writing(self) -> None:
        assert self._outflow is not None and self._stream is not None
        self._outflow.resume()
        if self._session is not None and self._served is not None:
            self._flush()
            if self._served.arrived:
                self._served.begin_arrived()
                self._pump()  # places are free again, and perhaps nothing is in flight any more
            self._note_held()
            self._read_on()

    # The handshake

    def _shake_hands(self, data: bytes) -> bytes:
        """Go on with the handshake; what came after its end."""
        handshake, outflow = self._handshake, self._outflow
        assert handshake is not None and outflow is not None
        try:
            established = handshake.receive_data(data)
        except HandshakeFailed:
            outflow.hold(handshake.data_to_send())  # a refusal, where there is one to be told
            outflow.release()
            raise
        outflow.hold(handshake.data_to_send())
        if established is not None:
            self._begin_session(established)  # a call that waits for just this leaves with our last message
        outflow.release()
        return b"" if established is None else established.surplus

    def _begin_session(self, established: Established) -> None:
        self._handshake = None
        self._peer = established.peer
        self._channel = SecureChannel(established.send, established.receive)
        now = self.last_used = self.established_at = self._runtime.now()
        self._session = Session(is_dialer=self.is_dialer, now=now, config=self._config, counts=self._metrics.counts)
        self._metrics.on_session_opened(self)
        parameters = established.peer.parameters
        if parameters.mode == "node" and parameters.port:
            self.listen_address = format_address(parse_address(self.address)[0], parameters.port)
        context = CallContext(
            peer=established.peer.node_id,
            address=self.address,
            listen_address=self.listen_address,
            network=self._network,
        )
        assert self._outflow is not None
        self._sender = ItemSender(self._session, self._outflow, on_queued=self._pump_when_due)
        self._asked = AskedCalls(
            self._session,
            self._outflow,
            address=self.address,
            now=self._runtime.now,
            max_control_calls=self._config.max_control_calls,
            max_calls=self._config.max_calls_served + self._config.max_calls_queued,
            on_asked=self._on_asked,
            sender=self._sender,
            on_taken=self._on_item_taken,
            scope=self._scope,
        )
        self._served = ServedCalls(
            self._session,
            self._outflow,
            server=self._server,
            scope=self._scope,
            runtime=self._runtime,
            context=context,
            on_answered=self._on_served,
            sender=self._sender,
            on_taken=self._on_item_taken,
        )
        self._alarm.set(self._config.idle_ping_s, self._on_time)  # in the place of the handshake's time
        self._on_established(self)
        del self._on_established  # some bytes less for each session that is held
        if self._established is not None and not self._established.done():
            self._established.set_result(None)

    def _give_up_waiting(self) -> None:
        if self._established is not None and not self._established.done() and self.failure is not None:
            self._established.set_exception(self.failure)

    def _on_handshake_timeout(self) -> None:
        self._fail(HandshakeFailed("timeout", f"{self.address} did not finish the handshake in time"))

    # The session

    def _receive(self, data: bytes) -> None:
        assert self._channel is not None and self._session is not None
        session = self._session
        now = self._received_at = self._runtime.now()
        session.may_let_wait = not byte_budget.PROCESS.is_over
        is_flood = self._is_flood or session.is_behind
        max_messages = MESSAGES_A_TURN_BEHIND if is_flood else MESSAGES_A_TURN
        try:
            session.receive_data(self._channel.open(data), now, max_messages=max_messages)
        except ProtocolViolation:
            session.is_refusing = True  # whoever is told, below, of an answer that came before it must not call again
            raise
        finally:
            if data:
                self._is_flood = session.is_behind
            if session.happened:
                self.last_used = now
            # What came before a fault stands; what it caused is sent after all of it was looked at.
            self._pump()
            if session.has_earlier_deadline:
                self._watch_the_time()
            if session.is_behind:
                self._loop.call_soon(self._catch_up)
            if session.is_behind or session.held_bytes or (self._outflow is not None and self._outflow.is_full):
                self._pause_if_much_is_held()

    def _catch_up(self) -> None:
        """Look at more of what has arrived; nothing new is read before all of it was."""
        assert self._session is not None
        if self._session.is_behind:
            try:
                self._receive(b"")
            except ProtocolViolation as error:
                self._fail(error)

    def _pump(self) -> None:
        """Tell what happened, then send what there is to send."""
        session, served = self._session, self._served
        assert session is not None and served is not None
        if session.happened:
            # What is told of goes on with its task at once, and what that task has to send leaves with the rest.
            was_due, self._is_pump_due = self._is_pump_due, True
            while session.happened:
                self._dispatch(session.events())
                if served.arrived:
                    served.begin_arrived()
            self._is_pump_due = was_due
        self._flush()
        if self._is_counted or self._is_reading_paused:
            # A call that has ended takes along what was held for it, whether anybody had read it or not.
            self._note_held()
            self._read_on()
        if self._idle is not None or self._goodbye_when_idle is not None:
            self._tell_if_idle()

    def _pump_soon(self) -> None:
        """Once for all that this turn of the loop brings: 64 calls in flight share one record, and one write."""
        if not self._is_pump_due:
            self._is_pump_due = True
            self._loop.call_soon(self._pump_at_last)

    def _pump_at_last(self) -> None:
        assert self._session is not None
        self._is_pump_due = False
        self._pump()
        if self._session.has_earlier_deadline:  # mostly not: of calls with like limits the first is due first
            self._watch_the_time()

    def _flush(self) -> None:
        session, outflow, stream = self._session, self._outflow, self._stream
        assert session is not None and self._channel is not None and stream is not None and outflow is not None
        # Left in its queue when the stream closes, a request counts as one that never left.
        outbox = session.outbox
        if outbox.is_empty or stream.is_closing():
            return
        # What the peer is too slow for waits in the session, where control frames overtake it; but a goodbye is the
        # last that is said, so all that is before it has to leave now.
        while not outflow.is_full or session.is_closing:
            outflow.write(self._channel.seal(outbox.take()))
            if outbox.is_empty:
                return
        if outbox.has_control():
            outflow.write(self._channel.seal(outbox.take_control()))

    def _pause_if_much_is_held(self) -> None:
        """Stop reading while the peer reads too little of what its messages cause, nobody here takes its items, or not
        all of its messages were looked at.

        The stall timer bounds the first, its own patience the second. What is not whole may wait for bytes of the
        process that others hold who wait as well: that has a limit, too.
        """
        assert self._stream is not None and self._session is not None
        self._note_held()
        if self._holds_too_much():
            self._is_reading_paused = True
            self._stream.pause_reading()
            self._watch_the_rest(self._received_at)

    def _read_on(self) -> None:
        assert self._stream is not None
        if self._is_reading_paused and not self._holds_too_much():
            self._is_reading_paused = False
            self._stream.resume_reading()

    def _holds_too_much(self) -> bool:
        assert self._stream is not None and self._session is not None
        if self._session.is_behind:
            return True
        unsent_bytes = self._stream.unsent_bytes() + self._session.outbox.queued_bytes
        config = self._config
        if unsent_bytes > config.max_unsent_bytes or self._session.streams.unread_bytes > config.max_unread_bytes:
            return True
        return self._is_counted and byte_budget.PROCESS.has_to_wait(self, SessionConnection._read_on_soon)

    def _read_on_soon(self) -> None:
        with contextlib.suppress(RuntimeError):  # its loop is closed
            self._loop.call_soon_threadsafe(self._read_on)

    def _note_held(self) -> None:
        if self._session is None or self._stream is None:
            return
        held_bytes = self._session.held_bytes + self._session.outbox.queued_bytes + self._stream.unsent_bytes()
        if self._is_counted or held_bytes > byte_budget.FREE_BYTES:
            keep_large_blocks()
            self._is_counted = held_bytes > byte_budget.FREE_BYTES
            byte_budget.PROCESS.note(self, held_bytes)

    def _dispatch(self, events: list[Event]) -> None:
        session, asked, served = self._session, self._asked, self._served
        assert session is not None and asked is not None and served is not None
        self._had_many_events = len(events) > 1
        for event in events:
            # The two that every call takes are told apart by hand, as in the session.
            if type(event) is CallAnswered:
                asked.end(event.id, event.value)
                continue
            if type(event) is CallArrived:
                served.serve(event)
                continue
            match event:
                case CallWithdrawn(id):
                    served.withdraw(id)
                case CallFailed(id, Code.DEADLINE_EXCEEDED):
                    asked.expire(id)  # their clock was first
                case CallFailed(id):
                    if event.code is Code.UNAVAILABLE and not event.may_have_started:
                        session.is_refusing = True
                    asked.fail(id, error_of(event, self.address))
                case CallExpired(id):
                    self.last_used = self._runtime.now()
                    asked.expire(id)
                case StreamEnded(id):
                    asked.end_stream(id)
                case ItemsArrived(id, part):
                    asked.on_items(id)
                    served.on_items(id, part)
                case CreditArrived(id, part):
                    assert self._sender is not None
                    self._sender.on_credit(id, part)
                case PeerClosed(code, text):
                    logger.debug("session with %s closed by the peer: %.64r %.128r", self.address, code, text)
                    self._close_stream()
                case PeerSilent():
                    self._fail(PeerUnavailable(f"{self.address} is silent"))

    def _on_asked(self, is_alone: bool) -> None:
        assert self._session is not None
        self.last_used = self._runtime.now()
        if self._is_pump_due and self._session.outbox.queued_bytes <= MUCH_BYTES:
            return
        # A call that is alone gains nothing from waiting for others to share its record.
        if is_alone and not self._had_many_events:
            self._flush()
            if self._session.has_earlier_deadline:
                self._watch_the_time()
        else:
            self._pump_when_due()

    def _on_served(self) -> None:
        assert self._session is not None and self._outflow is not None
        if self._session.is_closing:
            return
        if self._session.calls_served == 0:
            self._pump()
        else:
            self._pump_when_due()
        if self._outflow.is_full:
            self._note_held()

    def _on_item_taken(self) -> None:
        assert self._session is not None
        if self._session.has_data_to_send():
            self._pump_soon()
        if self._is_counted:
            self._note_held()
        if self._is_reading_paused:
            self._read_on()

    def _pump_when_due(self) -> None:
        """At the end of this turn of the loop; at once when much is queued, for whoever is next has to see how much."""
        assert self._session is not None and self._outflow is not None
        if self._session.outbox.queued_bytes > MUCH_BYTES and not self._outflow.is_full:
            self._pump()
        else:
            self._pump_soon()

    # The end

    def _fail(self, error: Exception) -> None:
        if self.failure is None:
            self.failure = error
            logger.debug("connection with %s ended: %s", self.address, error)
        self._end_waiting()
        self._close_stream()

    def _on_end_of_stream(self) -> None:
        if self.failure is None and not self.is_established:
            self.failure = HandshakeFailed("closed", f"{self.address} closed the connection during the handshake")
        if self._session is not None and self._session.is_behind:
            with contextlib.suppress(ProtocolViolation):
                self._session.receive_data(b"", self._runtime.now())  # an answer that is here already is one
        self._end_waiting()

    def _end_waiting(self) -> None:
        """Nobody waits for this connection any more: not for its handshake, nor for room, nor for an answer."""
        self._give_up_waiting()
        if self._outflow is not None:
            self._outflow.resume()
        if self._session is not None:
            self._session.connection_lost()
            self._dispatch(self._session.events())
        self._tell_if_idle()

    def _tell_if_idle(self) -> None:
        if (self._idle is None and self._goodbye_when_idle is None) or self.calls_in_flight:
            return
        if self._idle is not None:
            self._idle.set_result(None)
            self._idle = None
        if self._goodbye_when_idle is not None:
            code, text = self._goodbye_when_idle
            self._goodbye_when_idle = None
            self.part(code, text)

    def _close_stream(self) -> None:
        # Not abort: a refusal or an answer may be on its way. With nothing unsent `connection_lost` is about to come;
        # else the timer sees to it that the wait is short.
        if self._stream is not None and not self._is_ending:
            self._is_ending = True
            self._stream.close()
            if self._stream.unsent_bytes():
                self._alarm.set(self._config.goodbye_timeout_s, self.abort)

    def _on_write_stall(self) -> None:
        self._fail(PeerUnavailable(f"{self.address} reads nothing"))
        self.abort()

    # Time

    def _watch_the_time(self) -> None:
        assert self._session is not None
        deadline = self._session.next_deadline()
        if deadline is not None:
            self._alarm.set_no_later(deadline, self._on_time)

    def _on_time(self) -> None:
        assert self._session is not None
        now = self._runtime.now()
        if self._is_reading_paused:
            if self._waits_in_vain(now):
                self.part("busy", "too much is held here for the rest of a message")
                return
            self._session.excuse_silence(now)
        self._session.poll(now)
        self._pump()
        self._watch_the_time()
        self._watch_the_rest(now)

    def _watch_the_rest(self, now: float) -> None:
        assert self._session is not None
        if self._is_reading_paused and self._session.has_unfinished:
            self._alarm.set_no_later(now + self._config.write_stall_s, self._on_time)

    def _waits_in_vain(self, now: float) -> bool:
        """Whether the rest of a message has waited for the byte budget of the process for as long as a peer waits that
        is not read. Where items or answers are held as well, it may be these that have to go first.
        """
        assert self._session is not None and self._outflow is not None
        if not self._session.has_unfinished or self._session.streams.unread_bytes or self._outflow.is_full:
            return False
        return byte_budget.PROCESS.is_over and now >= self._received_at + self._config.write_stall_s
