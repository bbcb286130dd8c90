"""One end of a session between two virtual hosts: calls out, answers in, and how it closes.

No message costs a task: all is futures and callbacks. The encryption of the real session is left out; its messages
are the real ones. Left out too is the message that tells a peer that nobody waits for its answer any more: a handler
here answers at once, so there is nothing to end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Protocol

from simulations.delivery import Delivery, HostState, Receive
from simulations.links import Nat
from synapse_p2p.config import ServerConfig
from synapse_p2p.context import CallContext, MountedHandler
from synapse_p2p.endpoints import EndpointDirectory
from synapse_p2p.exceptions import (
    ConfigError,
    FrameTooLarge,
    InvalidMessageError,
    PeerUnavailable,
    RemoteError,
    Timeout,
)
from synapse_p2p.identity import Identity, NodeID, network_id_of
from synapse_p2p.peers import ProvedPeer
from synapse_p2p.protocol.code import Code
from synapse_p2p.protocol.pool_policy import SessionFacts
from synapse_p2p.protocol.session import CONTROL_PREFIX, NODE_IS_STOPPING
from synapse_p2p.protocol.wire import (
    Call,
    Fail,
    FrameKind,
    Result,
    decode_message,
    encode_call,
    encode_message,
    encode_result,
)
from synapse_p2p.runtime import Runtime

logger = logging.getLogger(__name__)

PING_ENDPOINT = "_synapse.ping"
WITHHELD = object()
"""What a handler returns that gives no answer: the caller waits until its time is up. Only hostile hosts do so."""

# What the digest says of messages that belong to no call.
CONFIRM = "confirm"
GOODBYE = "goodbye"
RESET = "reset"

# Asked for at every message; in Python 3.11 finding a member in its class takes ten times as long as reading a name.
_UP = HostState.UP
_CONTROL, _TASK = FrameKind.CONTROL, FrameKind.TASK


class SessionOwner(Protocol):
    """Who is told what becomes of a host's sessions."""

    def on_established(self, session: VirtualSession) -> None:
        """A session that a peer dialed is open."""
        ...

    def has_place(self) -> bool:
        """Whether one more session can be accepted."""
        ...

    def next_number(self) -> int:
        """The place in line of one more session."""
        ...

    def on_used(self, session: VirtualSession) -> None:
        """A call goes over it, either way, or the answer to one of ours."""
        ...

    def on_busy(self, session: VirtualSession) -> None:
        """It was idle, and has a call of ours in flight now."""
        ...

    def on_idle(self, session: VirtualSession) -> None:
        """The last call of ours over it has ended."""
        ...

    def on_retired(self, session: VirtualSession) -> None:
        """It takes no new calls any more, and is still open."""
        ...

    def on_closed(self, session: VirtualSession) -> None:
        """It is closed. Told more than once where it ends more than once."""
        ...


class Station:
    """A host as sessions see it: who it is, where, whether it lives, and what it answers."""

    sessions: SessionOwner

    def __init__(
        self,
        delivery: Delivery,
        config: ServerConfig,
        identity: Identity,
        runtime: Runtime,
        source_address: str,
        address: str,
        network_name: str,
    ) -> None:
        self.delivery = delivery
        self.config = config
        self.identity = identity
        self.id: NodeID = identity.node_id
        self.runtime = runtime
        self.source_address = source_address
        self.address = address
        self.network_name = network_name
        self.network_id = network_id_of(network_name)
        # What others' handlers may know of it: over a session that it opened, and over one that they did. Kept here,
        # for sessions are too many to have one each.
        listen_address = address or None
        self.as_caller = CallContext(self.id, source_address, listen_address, network_name)
        self.as_listener = CallContext(self.id, address, listen_address, network_name)
        self.state = HostState.UP
        self.nat = Nat.OPEN
        self.incarnation = 0  # grows with every end of its process; what an earlier one knew is lost
        self.endpoints = self._new_endpoints()

    @property
    def is_up(self) -> bool:
        """Whether a node can live here now."""
        return self.state is _UP

    def mounted(self, endpoint: str) -> MountedHandler | None:
        """The handler of an endpoint. It raises RemoteError and nothing else."""
        return self.endpoints.mounted(endpoint)

    def _new_endpoints(self) -> EndpointDirectory:
        endpoints = EndpointDirectory(token_bytes=self.runtime.token_bytes)
        endpoints.mount("_synapse.", {PING_ENDPOINT: lambda request, context: "pong"})
        return endpoints


class VirtualSession:
    """One end of a session, and the flow of messages that leaves it.

    open        retire -> retiring;  the peer refuses a call -> refused;  close, goodbye, reset -> closed
    retiring    takes no new call of ours, refuses the peer's; its last call has ended -> goodbye, closed
    refused     takes no new call of ours, answers the peer's; close, goodbye, reset -> closed

    It belongs to one life of its host: after a crash it is closed, though nobody said so.
    """

    __slots__ = (
        "_calls",
        "_host",
        "_incarnation",
        "_is_open",
        "_is_refused",
        "_is_retiring",
        "_next_id",
        "_remote",
        "_remote_incarnation",
        "_unix_ms",
        "arrives_us",
        "is_check",
        "is_dialer",
        "is_idle",
        "is_settled",
        "last_used_us",
        "number",
        "other",
        "peer_id",
    )

    def __init__(
        self,
        host: Station,
        remote: Station,
        *,
        is_dialer: bool,
        is_check: bool,
        lives: tuple[int, int],
        unix_ms: int,
        number: int = 0,
    ) -> None:
        """`lives` are the incarnations of the two that shook hands, ours first; `unix_ms` is the peer's clock, and
        `number` the place in line, which a dialer gets later.

        The session of a check dial (`is_check`) carries its ping and is nobody's way to anybody.
        """
        self._host = host
        self._remote = remote
        self._incarnation, self._remote_incarnation = lives
        self._unix_ms = unix_ms
        self._calls: dict[int, asyncio.Future[Any]] = _NO_CALLS
        self.is_idle = True  # no call of ours is in flight; a plain attribute, for limits ask it of many sessions
        self._next_id = 2 if is_dialer else 1  # as on the real wire
        self._is_open = is_dialer
        self._is_retiring = False
        self._is_refused = False  # the peer takes no new calls here
        self.arrives_us = 0
        self.is_dialer = is_dialer
        self.is_check = is_check
        self.peer_id = remote.id
        # The owner's, kept here because limits ask for them.
        self.number = number
        self.last_used_us = 0
        self.is_settled = False
        self.other: VirtualSession | None = None  # once the two are joined, and until one says goodbye

    @property
    def is_open(self) -> bool:
        """Whether a message that arrives here is taken."""
        return self._is_open and self._incarnation == self._host.incarnation

    @property
    def takes_calls(self) -> bool:
        """Whether a new call of ours can go over it."""
        # `is_open` written out: this is asked of every session that a call could take.
        return (
            self._is_open
            and self._incarnation == self._host.incarnation
            and not self._is_retiring
            and not self._is_refused
        )

    @property
    def is_stale(self) -> bool:
        """Whether the peer's process that shook hands has ended, as an onlooker knows."""
        return self._remote_incarnation != self._remote.incarnation

    @property
    def context(self) -> CallContext:
        """What our handlers may know of the peer."""
        return self._remote.as_listener if self.is_dialer else self._remote.as_caller

    def facts(self) -> SessionFacts:
        """What decides between this session and another with the same peer."""
        return SessionFacts(self._remote_incarnation.to_bytes(8, "big"), self.is_dialer)

    def proved(self) -> ProvedPeer:
        """The peer, as the handshake showed it."""
        return ProvedPeer(self.peer_id, self.proved_addresses(), self._host.source_address, self._unix_ms)

    def proved_addresses(self) -> tuple[str, ...]:
        """Where a dial of ours reached the peer; empty where the peer dialed us."""
        return (self._remote.address,) if self.is_dialer else ()

    async def call(self, endpoint: str, request: Mapping[str, Any], deadline_us: int) -> Any:
        """The peer's answer. Raises RemoteError, Timeout at `deadline_us`, PeerUnavailable, ConfigError."""
        if not self.takes_calls:
            raise PeerUnavailable(f"the session with {self.context.address} is closed")
        network = self._host.delivery
        call_id = self._next_id
        left_ms = max(1, round((deadline_us - network.loop.now_us) / 1000))
        try:
            body = encode_call(call_id, endpoint, [], dict(request), {"deadline_ms": left_ms})
            self._check_size(endpoint, body)
        except (FrameTooLarge, TypeError, ValueError, OverflowError) as error:
            raise ConfigError(f"the arguments of {endpoint} cannot be sent: {error}") from error
        self._next_id += 2
        answer: asyncio.Future[Any] = network.loop.create_future()
        if self._calls is _NO_CALLS:
            self._calls = {}
        self._calls[call_id] = answer
        owner = self._host.sessions
        owner.on_used(self)
        if self.is_idle:
            owner.on_busy(self)
            self.is_idle = False
        other = self.other
        assert other is not None, "an open session has two ends"
        self._send(endpoint, body, other._receive_call)
        network.deadlines.add(deadline_us, answer, expire, self.context.address)
        try:
            return await answer
        except (asyncio.CancelledError, Timeout):
            owner.on_used(self)  # in the real session the peer is told
            raise
        finally:
            network.deadlines.drop(deadline_us, answer)
            if call_id in self._calls:
                self._end_call(call_id)

    def confirm(self) -> None:
        """Tell the listener that the handshake is over, which opens its end."""
        if self.other is not None:
            self._send(CONFIRM, b"", self.other._receive_confirm)

    def retire(self) -> None:
        """Take no new call of ours; say goodbye when those in flight have ended."""
        self._is_retiring = True
        self._host.sessions.on_retired(self)
        if self.is_idle:
            self.say_goodbye()

    def say_goodbye(self) -> None:
        """Close, and tell the peer. Whatever still comes over it is not answered."""
        if self.other is not None:
            self._send(GOODBYE, b"", self.other._receive_goodbye)
            self.other = None  # two ends that hold each other are work for the garbage collector
        self.close("this node closed the session", may_have_started=True)

    def close(self, why: str, *, may_have_started: bool) -> None:
        """End every call of ours that is in flight. A second time nothing happens."""
        self._is_open = False
        for answer in self._calls.values():
            if not answer.done():
                text = f"{self.context.address}: {why}"
                answer.set_exception(PeerUnavailable(text, may_have_started=may_have_started))
        self._host.sessions.on_closed(self)

    def _end_call(self, call_id: int) -> None:
        del self._calls[call_id]
        if not self._calls:
            self._calls = _NO_CALLS
            self.is_idle = True
            self._host.sessions.on_idle(self)
            if self._is_retiring and self.is_open:
                self.say_goodbye()

    def _send(self, endpoint: str, body: bytes, receive: Receive) -> None:
        self._host.delivery.send(self._host, self._remote, endpoint, body, receive, flow=self)

    def _receive_confirm(self, _endpoint: str, _body: bytes) -> None:
        if self._incarnation == self._host.incarnation:
            self._is_open = True
            self._host.sessions.on_established(self)

    def _receive_goodbye(self, _endpoint: str, _body: bytes) -> None:
        self.other = None
        if self.is_open:
            # Whoever says goodbye has answered all that it had taken.
            self.close("the peer closed the session", may_have_started=False)

    def _receive_reset(self, _endpoint: str, _body: bytes) -> None:
        if self.is_open:
            self.close("the peer has lost the session", may_have_started=True)

    def _receive_call(self, endpoint: str, body: bytes) -> None:
        if not self.is_open:
            self._reset()
            return
        try:
            call = decode_message(body, _frame_kind(endpoint))
        except InvalidMessageError:
            self._break_off()
            return
        assert isinstance(call, Call), "what calls is a session like this one"
        other = self.other
        assert other is not None, "an open session has two ends"
        if self._is_retiring:
            details = {"may_have_started": False}
            body = encode_message(Fail(call.id, Code.UNAVAILABLE, NODE_IS_STOPPING, details))
        else:
            self._host.sessions.on_used(self)
            answer = self._answer(call)
            if answer is None:
                return
            body = answer
        self._send(endpoint, body, other._receive_answer)

    def _answer(self, call: Call) -> bytes | None:
        """The answer, or the failure; None where the handler withholds it."""
        handler = self._host.mounted(call.endpoint)
        if handler is None:
            text = f"Unregistered endpoint called: {call.endpoint}"
            return encode_message(Fail(call.id, Code.NOT_FOUND, text))
        try:
            result = handler(call.kwargs, self.context)
            if result is WITHHELD:
                return None
            body = encode_result(call.id, result)
            self._check_size(call.endpoint, body)
        except RemoteError as error:
            return encode_message(Fail(call.id, error.code, error.message, error.details))
        except FrameTooLarge as error:
            return encode_message(Fail(call.id, Code.TOO_LARGE, f"the result of {call.endpoint}: {error}"))
        except (TypeError, ValueError, OverflowError):
            logger.exception("the result of %s cannot be sent", call.endpoint)
            text = f"the result of {call.endpoint} cannot be sent"
            return encode_message(Fail(call.id, Code.INTERNAL_ERROR, text))
        return body

    def _receive_answer(self, endpoint: str, body: bytes) -> None:
        try:
            message = decode_message(body, _frame_kind(endpoint))
        except InvalidMessageError:
            self._break_off()
            return
        assert isinstance(message, (Result, Fail)), "what answers is a session like this one"
        answer = self._calls.get(message.id)
        if answer is None or answer.done():
            return  # too late, or nobody waits any more
        self._host.sessions.on_used(self)
        self._end_call(message.id)
        if isinstance(message, Result):
            answer.set_result(message.value)
        elif message.code == Code.UNAVAILABLE:
            self._is_refused = True
            self._host.sessions.on_retired(self)
            answer.set_exception(PeerUnavailable(f"{self.context.address}: {message.message}"))
        else:
            answer.set_exception(_error_of(message))

    def _break_off(self) -> None:
        """The peer broke the rules: it holds more than one message may, or is none."""
        self._reset()
        self.close("the peer broke the rules of the wire", may_have_started=True)

    def _reset(self) -> None:
        if self.other is not None:
            self._send(RESET, b"", self.other._receive_reset)

    def _check_size(self, endpoint: str, body: bytes) -> None:
        session = self._host.config.session
        is_control = endpoint.startswith(CONTROL_PREFIX)
        limit_bytes = session.max_control_frame_bytes if is_control else session.max_task_frame_bytes
        if len(body) > limit_bytes:
            raise FrameTooLarge(limit_bytes=limit_bytes, actual_bytes=len(body))


_NO_CALLS: dict[int, asyncio.Future[Any]] = {}  # of all idle sessions, of which there are many; never written to


def expire(waiter: asyncio.Future[Any], address: str) -> None:
    """The time is up for somebody who waits for `address`."""
    waiter.set_exception(Timeout(f"{address} did not answer in the time given"))


def _frame_kind(endpoint: str) -> FrameKind:
    return _CONTROL if endpoint.startswith(CONTROL_PREFIX) else _TASK


def _error_of(failure: Fail) -> RemoteError:
    details = dict(failure.details or {})
    reason, reference = details.pop("reason", None), details.pop("reference", None)
    return RemoteError(failure.code, failure.message, reason=reason, reference=reference, details=details)
