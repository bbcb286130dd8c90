"""One session between two virtual hosts: how it is opened, and what goes over it.

No message costs a task: all is futures and callbacks. The encryption of the real session is left out; its messages
are the real ones.

A dial, each arrow one latency:   connect ->   <- connect   hello ->   <- hello   confirm ->
The dialer's end is open after the fourth arrow, so a first call takes three round trips and each later one takes
one. The listener's end opens with `confirm`, which no call can overtake.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from synapse_p2p.context import CallContext
from synapse_p2p.exceptions import (
    ConfigError,
    FrameTooLarge,
    HandshakeFailed,
    InvalidMessageError,
    PeerUnavailable,
    RemoteError,
    SynapseError,
    Timeout,
)
from synapse_p2p.identity import NodeID
from synapse_p2p.peers import ProvedPeer
from synapse_p2p.protocol.pool_policy import SessionFacts
from synapse_p2p.protocol.session import CONTROL_PREFIX, Code
from synapse_p2p.protocol.wire import Call, Fail, FrameKind, Message, Result, decode_message, encode_message

if TYPE_CHECKING:
    from simulations.network import Receive, VirtualHost

logger = logging.getLogger(__name__)

PING_ENDPOINT = "_synapse.ping"

# What the digest says of messages that belong to no call.
CONNECT = "connect"
HELLO = "hello"
REFUSE = "refuse"
CONFIRM = "confirm"
GOODBYE = "goodbye"
RESET = "reset"


class Dial:
    """One attempt to open a session. It ends once, with the same for all who wait: our end of it, or an error.

    connecting -> (accepted) shaking hands -> (proved) open
    From the first two also: refused, out of time, our own host down -> failed.
    """

    def __init__(
        self,
        host: VirtualHost,
        address: str,
        expected_id: NodeID | None,
        *,
        is_check: bool = False,
        on_end: Callable[[Dial, VirtualSession | SynapseError], None] | None = None,
    ) -> None:
        """Dial now; `on_end` hears of the end before those who wait."""
        self.address = address
        self.expected_id = expected_id
        self._host = host
        self._network = host.network
        self._incarnation = host.incarnation
        self._is_check = is_check
        self._on_end = on_end
        self._waiters: list[asyncio.Future[VirtualSession]] = []
        self._is_over = False
        self._target = self._network.at(address)
        self._target_incarnation = 0
        self._target_unix_ms = 0
        limit_s = self._network.config.pool.dial_timeout_s
        late = Timeout(f"a dial of {address} took longer than {limit_s:g} s")
        self._timer = self._network.loop.call_later(limit_s, self.fail, late)
        self._to_target(CONNECT, self._at_target_connect)

    def waiter(self) -> asyncio.Future[VirtualSession]:
        """A future of one's own, which can be cancelled without ending the dial for others."""
        waiter = self._network.loop.create_future()
        self._waiters.append(waiter)
        return waiter

    def fail(self, error: SynapseError) -> None:
        """End without a session."""
        if self._end(error):
            for waiter in self._waiters:
                if not waiter.done():
                    waiter.set_exception(error)

    def _at_target_connect(self, _endpoint: str, _body: bytes) -> None:
        assert self._target is not None
        if self._target.is_up:
            self._target_incarnation = self._target.incarnation
            self._to_us(CONNECT, self._on_connected)
        else:
            self._to_us(REFUSE, self._on_refused)

    def _on_refused(self, _endpoint: str, _body: bytes) -> None:
        self.fail(PeerUnavailable(f"{self.address} cannot be reached: connection refused"))

    def _on_connected(self, _endpoint: str, _body: bytes) -> None:
        if self._is_over:
            return
        self._timer.cancel()
        late = HandshakeFailed("timeout", f"{self.address} did not finish the handshake in time")
        limit_s = self._network.config.session.handshake_timeout_s
        self._timer = self._network.loop.call_later(limit_s, self.fail, late)
        self._to_target(HELLO, self._at_target_hello)

    def _at_target_hello(self, _endpoint: str, _body: bytes) -> None:
        assert self._target is not None
        if not self._target.is_up or self._target.incarnation != self._target_incarnation:
            self._to_us(REFUSE, self._on_closed)
        elif self._target.network_id != self._host.network_id:
            self._to_us(REFUSE, self._on_other_network)
        else:
            self._target_unix_ms = round(self._target.runtime.unix_now() * 1000)
            self._to_us(HELLO, self._on_proved)

    def _on_closed(self, _endpoint: str, _body: bytes) -> None:
        self.fail(HandshakeFailed("closed", f"{self.address} closed the connection during the handshake"))

    def _on_other_network(self, _endpoint: str, _body: bytes) -> None:
        text = f"{self.address} belongs to another network"
        self.fail(HandshakeFailed("refused", text, refusal="network"))

    def _on_proved(self, _endpoint: str, _body: bytes) -> None:
        assert self._target is not None
        if self._incarnation != self._host.incarnation:
            self.fail(PeerUnavailable("this host is down"))
        elif self.expected_id is not None and self.expected_id != self._target.id:
            self.fail(HandshakeFailed("identity", f"{self.address} is not {self.expected_id.hex()[:16]}"))
        elif not self._is_over:
            self._open(self._target)

    def _open(self, target: VirtualHost) -> None:
        lives = (self._incarnation, self._target_incarnation)
        ours = VirtualSession(
            self._host,
            target,
            is_dialer=True,
            is_check=self._is_check,
            lives=lives,
            unix_ms=self._target_unix_ms,
        )
        ours.other = VirtualSession(
            target,
            self._host,
            is_dialer=False,
            is_check=self._is_check,
            lives=lives[::-1],
            unix_ms=round(self._host.runtime.unix_now() * 1000),
        )
        ours.other.other = ours
        ours.confirm()
        if self._end(ours):
            for waiter in self._waiters:
                if not waiter.done():
                    waiter.set_result(ours)

    def _end(self, result: VirtualSession | SynapseError) -> bool:
        if self._is_over:
            return False
        self._is_over = True
        self._timer.cancel()
        if self._on_end is not None:
            self._on_end(self, result)
        return True

    def _to_target(self, endpoint: str, receive: Receive) -> None:
        # Nobody at the address: the message is lost, and time runs out.
        if self._target is not None:
            self._network.send(self._host, self._target, endpoint, b"", receive)

    def _to_us(self, endpoint: str, receive: Receive) -> None:
        assert self._target is not None
        self._network.send(self._target, self._host, endpoint, b"", receive)


class VirtualSession:
    """One end of a session. Messages of one direction keep their order.

    It belongs to one life of its host: after a crash it is closed, though nobody said so.
    """

    __slots__ = (
        "_arrives_at",
        "_calls",
        "_host",
        "_incarnation",
        "_is_open",
        "_next_id",
        "_remote",
        "_remote_incarnation",
        "_unix_ms",
        "is_check",
        "is_dialer",
        "other",
        "peer_id",
    )

    def __init__(
        self,
        host: VirtualHost,
        remote: VirtualHost,
        *,
        is_dialer: bool,
        is_check: bool,
        lives: tuple[int, int],
        unix_ms: int,
    ) -> None:
        """`lives` are the incarnations of the two that shook hands, ours first; `unix_ms` is the peer's clock.

        The session of a check dial (`is_check`) carries its ping and is nobody's way to anybody.
        """
        self._host = host
        self._remote = remote
        self._incarnation, self._remote_incarnation = lives
        self._unix_ms = unix_ms
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._next_id = 2 if is_dialer else 1  # as on the real wire
        self._arrives_at = 0.0  # when the last message sent from here does
        self._is_open = is_dialer
        self.is_dialer = is_dialer
        self.is_check = is_check
        self.peer_id = remote.id
        self.other: VirtualSession = self  # until the two ends are joined

    @property
    def is_open(self) -> bool:
        """Whether a message that arrives here is taken."""
        return self._is_open and self._incarnation == self._host.incarnation

    @property
    def is_idle(self) -> bool:
        """Whether no call of ours is in flight."""
        return not self._calls

    @property
    def context(self) -> CallContext:
        """What our handlers may know of the peer. Its host keeps it: sessions are too many to have one each."""
        return self._remote.as_listener if self.is_dialer else self._remote.as_caller

    def facts(self) -> SessionFacts:
        """What decides between this session and another with the same peer."""
        return SessionFacts(self._remote_incarnation.to_bytes(8, "big"), self.is_dialer)

    def proved(self) -> ProvedPeer:
        """The peer, as the handshake showed it."""
        addresses = (self._remote.address,) if self.is_dialer else ()
        return ProvedPeer(self.peer_id, addresses, self._host.source_address, self._unix_ms)

    async def call(self, endpoint: str, request: Mapping[str, Any], deadline: float) -> Any:
        """The peer's answer. Raises RemoteError, Timeout at `deadline`, PeerUnavailable, ConfigError."""
        if not self.is_open:
            raise PeerUnavailable(f"the session with {self.context.address} is closed")
        loop = self._host.network.loop
        call_id = self._next_id
        options = {"deadline_ms": max(1, round((deadline - loop.time()) * 1000))}
        try:
            body = self._encode(endpoint, Call(call_id, endpoint, [], dict(request), options))
        except (FrameTooLarge, TypeError, ValueError, OverflowError) as error:
            raise ConfigError(f"the arguments of {endpoint} cannot be sent: {error}") from error
        self._next_id += 2
        answer = loop.create_future()
        self._calls[call_id] = answer
        self._host.peers.on_used(self)
        self._send(endpoint, body, self.other._receive_call)
        timer = loop.call_at(deadline, expire, answer, self.context.address)
        try:
            return await answer
        finally:
            timer.cancel()
            self._calls.pop(call_id, None)

    def confirm(self) -> None:
        """Tell the listener that the handshake is over, which opens its end."""
        self._send(CONFIRM, b"", self.other._receive_confirm)

    def say_goodbye(self) -> None:
        """Close, and tell the peer."""
        self._send(GOODBYE, b"", self.other._receive_goodbye)
        self.close("this node closed the session", may_have_started=True)

    def close(self, why: str, *, may_have_started: bool) -> None:
        """End every call of ours that is in flight. A second time nothing happens."""
        self._is_open = False
        calls, self._calls = self._calls, {}
        for answer in calls.values():
            if not answer.done():
                text = f"{self.context.address}: {why}"
                answer.set_exception(PeerUnavailable(text, may_have_started=may_have_started))
        self._host.peers.on_closed(self)

    def _send(self, endpoint: str, body: bytes, receive: Receive) -> None:
        self._arrives_at = self._host.network.send(
            self._host, self._remote, endpoint, body, receive, not_before=self._arrives_at
        )

    def _receive_confirm(self, _endpoint: str, _body: bytes) -> None:
        if self._incarnation == self._host.incarnation:
            self._is_open = True
            if not self.is_check:
                self._host.peers.on_established(self)

    def _receive_goodbye(self, _endpoint: str, _body: bytes) -> None:
        if self.is_open:
            # Whoever says goodbye has answered all that it had taken.
            self.close("the peer closed the session", may_have_started=False)

    def _receive_reset(self, _endpoint: str, _body: bytes) -> None:
        if self.is_open:
            self.close("the peer has lost the session", may_have_started=True)

    def _receive_call(self, endpoint: str, body: bytes) -> None:
        if not self.is_open:
            self._send(RESET, b"", self.other._receive_reset)
            return
        self._host.peers.on_used(self)
        try:
            call = decode_message(body, _frame_kind(endpoint))
        except InvalidMessageError:
            self._break_off()
            return
        assert isinstance(call, Call), "what calls is a session like this one"
        self._send(endpoint, self._answer(call), self.other._receive_answer)

    def _answer(self, call: Call) -> bytes:
        handler = self._host.mounted(call.endpoint)
        if handler is None:
            text = f"Unregistered endpoint called: {call.endpoint}"
            return encode_message(Fail(call.id, Code.NOT_FOUND, text))
        try:
            return self._encode(call.endpoint, Result(call.id, handler(call.kwargs, self.context)))
        except RemoteError as error:
            return encode_message(Fail(call.id, error.code, error.message, error.details))
        except FrameTooLarge as error:
            return encode_message(Fail(call.id, Code.TOO_LARGE, f"the result of {call.endpoint}: {error}"))
        except (TypeError, ValueError, OverflowError):
            logger.exception("the result of %s cannot be sent", call.endpoint)
            text = f"the result of {call.endpoint} cannot be sent"
            return encode_message(Fail(call.id, Code.INTERNAL_ERROR, text))

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
        if isinstance(message, Result):
            answer.set_result(message.value)
        else:
            answer.set_exception(_error_of(message))

    def _break_off(self) -> None:
        """The peer broke the rules: it holds more than one message may, or is none."""
        self._send(RESET, b"", self.other._receive_reset)
        self.close("the peer broke the rules of the wire", may_have_started=True)

    def _encode(self, endpoint: str, message: Message) -> bytes:
        body = encode_message(message)
        limit_bytes = self._host.network.max_frame_bytes[_frame_kind(endpoint)]
        if len(body) > limit_bytes:
            raise FrameTooLarge(limit_bytes=limit_bytes, actual_bytes=len(body))
        return body


def _frame_kind(endpoint: str) -> FrameKind:
    return FrameKind.CONTROL if endpoint.startswith(CONTROL_PREFIX) else FrameKind.TASK


def _error_of(failure: Fail) -> RemoteError:
    details = dict(failure.details or {})
    reason, reference = details.pop("reason", None), details.pop("reference", None)
    return RemoteError(failure.code, failure.message, reason=reason, reference=reference, details=details)


def expire(waiter: asyncio.Future[Any], address: str) -> None:
    """The time is up for somebody who waits for `address`."""
    if not waiter.done():
        waiter.set_exception(Timeout(f"{address} did not answer in the time given"))
