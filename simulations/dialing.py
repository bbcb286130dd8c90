"""How a session between two virtual hosts is opened.

A dial, each arrow one latency:   connect ->   <- connect   hello ->   <- hello   confirm ->
The dialer's end is open after the fourth arrow, so a first call takes three round trips and each later one takes
one. The listener's end opens with `confirm`, which no call can overtake.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from simulations.connection import Station, VirtualSession
from simulations.delivery import Receive
from simulations.links import Nat
from simulations.virtual_loop import MICROSECONDS
from synapse_p2p.exceptions import HandshakeFailed, PeerUnavailable, SynapseError, Timeout
from synapse_p2p.identity import NodeID

# What the digest says of messages that open a session.
CONNECT = "connect"
HELLO = "hello"
REFUSE = "refuse"


class Dial:
    """One attempt to open a session. It ends once, with the same for all who wait: our end of it, or an error.

    connecting -> (accepted) shaking hands -> (proved) open
    From the first two also: refused, out of time, our own host down -> failed.
    """

    __slots__ = (
        "_dial_limit_us",
        "_handshake_limit_us",
        "_host",
        "_incarnation",
        "_is_check",
        "_is_connected",
        "_is_over",
        "_network",
        "_on_end",
        "_target",
        "_target_incarnation",
        "_target_number",
        "_target_unix_ms",
        "_waiters",
        "address",
        "expected_id",
    )

    def __init__(
        self,
        host: Station,
        address: str,
        target: Station | None,
        expected_id: NodeID | None,
        *,
        is_check: bool = False,
        on_end: Callable[[Dial, VirtualSession | SynapseError], None],
    ) -> None:
        """Dial now; `target` is who has the address, and `on_end` hears of the end before those who wait."""
        self.address = address
        self.expected_id = expected_id
        self._host = host
        self._network = host.delivery
        self._incarnation = host.incarnation
        self._is_check = is_check
        self._on_end = on_end
        self._waiters: list[asyncio.Future[VirtualSession]] = []
        self._is_over = False
        self._target = target
        self._target_incarnation = 0
        self._target_number = 0
        self._target_unix_ms = 0
        self._is_connected = False
        self._handshake_limit_us = 0
        self._dial_limit_us = self._network.loop.now_us + round(host.config.pool.dial_timeout_s * MICROSECONDS)
        self._network.deadlines.add(self._dial_limit_us, self, Dial._on_dial_time_up)
        self._to_target(CONNECT, self._at_target_connect)

    def waiter(self) -> asyncio.Future[VirtualSession]:
        """A future of one's own, which can be cancelled without ending the dial for others."""
        waiter: asyncio.Future[VirtualSession] = self._network.loop.create_future()
        self._waiters.append(waiter)
        return waiter

    def done(self) -> bool:
        """Whether it has ended."""
        return self._is_over

    def fail(self, error: SynapseError) -> None:
        """End without a session."""
        if self._end(error):
            for waiter in self._waiters:
                if not waiter.done():
                    waiter.set_exception(error)

    def _on_dial_time_up(self, _text: str) -> None:
        if not self._is_connected:
            limit_s = self._host.config.pool.dial_timeout_s
            self.fail(Timeout(f"a dial of {self.address} took longer than {limit_s:g} s"))

    def _on_handshake_time_up(self, _text: str) -> None:
        self.fail(HandshakeFailed("timeout", f"{self.address} did not finish the handshake in time"))

    def _at_target_connect(self, _endpoint: str, _body: bytes) -> None:
        assert self._target is not None
        if self._target.nat is Nat.DROPS:
            return
        if self._target.is_up and self._target.nat is Nat.OPEN:
            self._target_incarnation = self._target.incarnation
            self._to_us(CONNECT, self._on_connected)
        else:
            self._to_us(REFUSE, self._on_refused)

    def _on_refused(self, _endpoint: str, _body: bytes) -> None:
        self.fail(PeerUnavailable(f"{self.address} cannot be reached: connection refused"))

    def _on_connected(self, _endpoint: str, _body: bytes) -> None:
        if self._is_over:
            return
        self._is_connected = True
        limit_s = self._host.config.session.handshake_timeout_s
        self._handshake_limit_us = self._network.loop.now_us + round(limit_s * MICROSECONDS)
        self._network.deadlines.add(self._handshake_limit_us, self, Dial._on_handshake_time_up)
        self._to_target(HELLO, self._at_target_hello)

    def _at_target_hello(self, _endpoint: str, _body: bytes) -> None:
        assert self._target is not None
        if not self._target.is_up or self._target.incarnation != self._target_incarnation:
            self._to_us(REFUSE, self._on_closed)
        elif self._target.network_id != self._host.network_id:
            self._to_us(REFUSE, self._on_other_network)
        elif not self._target.sessions.has_place():
            self._to_us(REFUSE, self._on_busy)
        else:
            self._target_number = self._target.sessions.next_number()
            self._target_unix_ms = round(self._target.runtime.unix_now() * 1000)
            self._to_us(HELLO, self._on_proved)

    def _on_closed(self, _endpoint: str, _body: bytes) -> None:
        self.fail(HandshakeFailed("closed", f"{self.address} closed the connection during the handshake"))

    def _on_other_network(self, _endpoint: str, _body: bytes) -> None:
        text = f"{self.address} belongs to another network"
        self.fail(HandshakeFailed("refused", text, refusal="network"))

    def _on_busy(self, _endpoint: str, _body: bytes) -> None:
        self.fail(HandshakeFailed("refused", f"{self.address} is busy", refusal="busy"))

    def _on_proved(self, _endpoint: str, _body: bytes) -> None:
        assert self._target is not None
        if self._incarnation != self._host.incarnation:
            self.fail(PeerUnavailable("this host is down"))
        elif self.expected_id is not None and self.expected_id != self._target.id:
            self.fail(HandshakeFailed("identity", f"{self.address} is not {self.expected_id.hex()[:16]}"))
        elif not self._is_over:
            self._open(self._target)

    def _open(self, target: Station) -> None:
        lives = (self._incarnation, self._target_incarnation)
        ours = VirtualSession(
            self._host, target, is_dialer=True, is_check=self._is_check, lives=lives, unix_ms=self._target_unix_ms
        )
        unix_ms = round(self._host.runtime.unix_now() * 1000)
        theirs = VirtualSession(
            target,
            self._host,
            is_dialer=False,
            is_check=self._is_check,
            lives=lives[::-1],
            unix_ms=unix_ms,
            number=self._target_number,
        )
        ours.other, theirs.other = theirs, ours
        ours.confirm()
        if self._end(ours):
            for waiter in self._waiters:
                if not waiter.done():
                    waiter.set_result(ours)

    def _end(self, result: VirtualSession | SynapseError) -> bool:
        if self._is_over:
            return False
        self._is_over = True
        self._network.deadlines.drop(self._dial_limit_us, self)
        self._network.deadlines.drop(self._handshake_limit_us, self)
        self._on_end(self, result)
        return True

    def _to_target(self, endpoint: str, receive: Receive) -> None:
        # Nobody at the address: the message is lost, and time runs out.
        if self._target is not None:
            self._network.send(self._host, self._target, endpoint, b"", receive)

    def _to_us(self, endpoint: str, receive: Receive) -> None:
        assert self._target is not None
        self._network.send(self._target, self._host, endpoint, b"", receive)
