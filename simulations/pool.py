"""The sessions of a virtual host: the `PeerCaller` of a simulation.

Follows the rules of the real pool (`synapse_p2p/transport/pool.py`): one session per peer, one dial for all who
ask at once, the least recently used idle session goes first, a failed address rests, and a call that certainly
never started is tried once more.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

from simulations.connection import PING_ENDPOINT, Station, VirtualSession, expire
from simulations.dialing import Dial
from simulations.virtual_loop import MICROSECONDS
from synapse_p2p.exceptions import HandshakeFailed, PeerUnavailable, SynapseError, Timeout
from synapse_p2p.identity import NodeID
from synapse_p2p.peers import KnownPeer, ProvedPeer
from synapse_p2p.protocol.pool_policy import (
    DialBackoff,
    SessionLimits,
    SessionUse,
    Survivor,
    choose_survivor,
    has_place,
    sessions_to_close,
)
from synapse_p2p.transport.open_connections import SETTLE_S

SETTLE_US = round(SETTLE_S * MICROSECONDS)


class VirtualPool:
    """The sessions of one host, and how it reaches others. `at` says who has an address.

    Invariants: the sessions in `_sessions` are open, one per peer, least recently used first; `_busy_count` of them
    have a call of ours in flight.
    """

    def __init__(self, host: Station, at: Callable[[str], Station | None]) -> None:
        self._host = host
        self._at = at
        self._delivery = host.delivery
        self._loop = host.delivery.loop
        self._config = host.config.pool
        self._sessions: OrderedDict[NodeID, VirtualSession] = OrderedDict()
        self._busy_count = 0
        self._settles_us: dict[NodeID, int] = {}  # until when a session that we dialed counts as used
        self._looks_again_us = 0
        self._aside: dict[VirtualSession, None] = {}  # open, and no way to anybody: duplicates and check dials
        self._dials: dict[tuple[str, NodeID | None], Dial] = {}
        self._checks: dict[Dial, None] = {}
        # Descriptors are not simulated: there are always enough.
        pool = self._config
        self._limits = SessionLimits.of(pool.max_sessions, pool.reserved_sessions, pool.max_idle_sessions, None)
        self._backoff = DialBackoff(
            pause_s=self._config.redial_pause_s,
            max_pause_s=self._config.max_redial_pause_s,
            max_remembered=self._config.max_remembered_failures,
        )

    async def connect(self, peer: KnownPeer) -> ProvedPeer:
        session = self._sessions.get(peer.id) or await self._dial(peer, None)
        return session.proved()

    async def connect_address(self, address: str, expected_id: NodeID | None = None) -> ProvedPeer:
        return (await self._wait_for(self._shared_dial(address, expected_id), None)).proved()

    async def check_dial(self, peer: KnownPeer) -> None:
        if not peer.addresses:
            raise PeerUnavailable(f"{peer.id.hex()[:16]} has no address to check")
        address = peer.addresses[0]
        self._check_dialable(address)
        deadline_us = self._loop.now_us + round(self._config.check_dial_timeout_s * MICROSECONDS)
        dial = Dial(self._host, address, self._at(address), peer.id, is_check=True, on_end=self._on_checked)
        self._checks[dial] = None
        session = await self._wait_for(dial, deadline_us)
        try:
            await session.call(PING_ENDPOINT, {}, deadline_us)
        finally:
            session.say_goodbye()

    async def call(self, peer: KnownPeer, endpoint: str, request: Mapping[str, Any], *, timeout_s: float) -> Any:
        deadline_us = self._loop.now_us + round(timeout_s * MICROSECONDS)
        for is_last_try in (False, True):
            session = self._sessions.get(peer.id) or await self._dial(peer, deadline_us)
            if self._loop.now_us >= deadline_us:
                raise Timeout(f"no session with {peer.id.hex()[:16]} in the time given; the call was not started")
            try:
                return await session.call(endpoint, request, deadline_us)
            except PeerUnavailable as error:
                if error.may_have_started or is_last_try:
                    raise
        raise AssertionError("unreachable")

    def is_connected(self, node_id: NodeID) -> bool:
        return node_id in self._sessions

    def proved_addresses(self, node_id: NodeID) -> tuple[str, ...]:
        session = self._sessions.get(node_id)
        return session.proved_addresses() if session is not None else ()

    def peer_ids(self) -> list[NodeID]:
        """Who has a session with this host, least recently used first."""
        return list(self._sessions)

    def say_goodbye(self) -> None:
        """Close every session in good order."""
        for session in [*self._sessions.values(), *self._aside]:
            session.say_goodbye()

    def lose_everything(self) -> None:
        """The host is down: what its node waits for fails now, and nobody is told."""
        for session in [*self._sessions.values(), *self._aside]:
            session.close("this host is down", may_have_started=True)
        for dial in [*self._dials.values(), *self._checks]:
            dial.fail(PeerUnavailable("this host is down"))

    # What sessions tell their owner

    def has_place(self) -> bool:
        """Whether one more session can be accepted, where need be in the place of idle ones."""
        if self._busy_count < self._limits.max_accepted:
            return True  # hardly a host ever has so many calls in flight, and nobody has to be looked at
        return has_place(self._uses(), self._limits)

    def on_established(self, session: VirtualSession) -> None:
        """A session is open; of two with one peer that are duplicates, who dialed the loser retires it."""
        older = self._sessions.get(session.peer_id)
        if older is not None:
            survivor = choose_survivor(self._host.id, session.peer_id, older.facts(), session.facts())
            if survivor is Survivor.OLDER:
                self._set_aside(session, survivor)
                return
            self._forget(older)
            self._set_aside(older, survivor)
        self._sessions[session.peer_id] = session
        self._busy_count += not session.is_idle
        if session.is_dialer:
            self._settles_us[session.peer_id] = self._loop.now_us + SETTLE_US
        self._enforce_limits()

    def on_used(self, session: VirtualSession, *, is_first_call: bool = False) -> None:
        """A call goes over it, either way; `is_first_call` says that it is ours and the only one in flight."""
        if self._sessions.get(session.peer_id) is session:
            self._busy_count += is_first_call
            self._sessions.move_to_end(session.peer_id)

    def on_idle(self, session: VirtualSession) -> None:
        """The last call of ours over it has ended."""
        if self._sessions.get(session.peer_id) is session:
            self._busy_count -= 1

    def on_closed(self, session: VirtualSession) -> None:
        """It takes no calls any more."""
        self._aside.pop(session, None)
        if self._sessions.get(session.peer_id) is session:
            self._forget(session)

    def _forget(self, session: VirtualSession) -> None:
        del self._sessions[session.peer_id]
        self._settles_us.pop(session.peer_id, None)
        self._busy_count -= not session.is_idle

    def _set_aside(self, duplicate: VirtualSession, survivor: Survivor) -> None:
        """Take no new calls over it. The end that dialed it says goodbye: the other knows less, as in the real pool."""
        self._aside[duplicate] = None
        if duplicate.is_dialer and survivor is not Survivor.BOTH:
            duplicate.retire()
        elif duplicate.is_stale and duplicate.is_idle:
            duplicate.close("the peer has restarted", may_have_started=True)

    # Dials

    async def _dial(self, peer: KnownPeer, deadline_us: int | None) -> VirtualSession:
        """A new session with this peer, at the first of its addresses where it answers."""
        error: SynapseError = PeerUnavailable(f"{peer.id.hex()[:16]} has no address and no session")
        for address in peer.addresses:
            try:
                dialed = await self._wait_for(self._shared_dial(address, peer.id), deadline_us)
                # Where both sides dialed at once, this one may be the duplicate that closes; then the other is open.
                return self._sessions.get(peer.id, dialed)
            except (PeerUnavailable, Timeout, HandshakeFailed) as failure:
                if deadline_us is not None and self._loop.now_us >= deadline_us:
                    raise Timeout(f"{address} did not answer in the time given") from failure
                error = failure
        if isinstance(error, PeerUnavailable):
            raise error
        raise PeerUnavailable(str(error)) from error

    def _shared_dial(self, address: str, expected_id: NodeID | None) -> Dial:
        """One dial for all who ask for the same at once."""
        self._check_dialable(address)
        if self._backoff.is_resting(address, self._loop.time()):
            raise PeerUnavailable(f"{address} did not answer a moment ago", was_tried=False)
        key = (address, expected_id)
        dial = self._dials.get(key)
        if dial is None:
            dial = Dial(self._host, address, self._at(address), expected_id, on_end=self._on_dialed)
            self._dials[key] = dial
        return dial

    async def _wait_for(self, dial: Dial, deadline_us: int | None) -> VirtualSession:
        waiter = dial.waiter()
        if deadline_us is not None:
            self._delivery.deadlines.add(deadline_us, waiter, expire, dial.address)
        return await waiter

    def _on_dialed(self, dial: Dial, result: VirtualSession | SynapseError) -> None:
        del self._dials[dial.address, dial.expected_id]
        if isinstance(result, VirtualSession):
            self._backoff.on_success(dial.address)
            self.on_established(result)
        # Somebody else answered there: that is not the address's fault.
        elif not (isinstance(result, HandshakeFailed) and result.reason == "identity"):
            self._backoff.on_failure(dial.address, self._loop.time())

    def _on_checked(self, dial: Dial, result: VirtualSession | SynapseError) -> None:
        del self._checks[dial]
        if isinstance(result, VirtualSession):
            self._aside[result] = None  # it carries a ping, and no call of the node's

    def _check_dialable(self, address: str) -> None:
        if not self._host.is_up:
            raise PeerUnavailable("this host is down")
        if address == self._host.address:
            raise HandshakeFailed("self", f"{address} is this very node")

    # Limits

    def _enforce_limits(self) -> None:
        """Close the idle sessions that are too many: the rule of `pool_policy.sessions_to_close`.

        What it would find by looking at all of them is counted here as it changes, for this runs at every dial.
        """
        session_count = len(self._sessions)
        if session_count > self._limits.max_accepted:
            surplus_sessions = sessions_to_close(self._uses(), self._limits)
        else:
            surplus = session_count - self._busy_count - self._fresh_idle_count() - self._limits.max_idle
            surplus_sessions = self._oldest_idle(surplus) if surplus > 0 else []
        for session in surplus_sessions:
            session.say_goodbye()
        now_us = self._loop.now_us
        if self._settles_us and self._looks_again_us <= now_us:
            self._looks_again_us = now_us + SETTLE_US
            self._delivery.deadlines.add(self._looks_again_us, self, VirtualPool._on_settled)

    def done(self) -> bool:
        """Never: when it asked to look at its limits again, it wants to."""
        return False

    def _on_settled(self, _text: str) -> None:
        self._enforce_limits()

    def _fresh_idle_count(self) -> int:
        """How many idle sessions do not count as such yet, since we dialed them for a call that comes in a moment."""
        now_us = self._loop.now_us
        settled = []
        idle_count = 0
        for peer_id, settles_us in self._settles_us.items():
            if settles_us <= now_us:
                settled.append(peer_id)
            else:
                idle_count += self._sessions[peer_id].is_idle
        for peer_id in settled:
            del self._settles_us[peer_id]
        return idle_count

    def _oldest_idle(self, count: int) -> list[VirtualSession]:
        settled_idle = (
            session
            for peer_id, session in self._sessions.items()
            if session.is_idle and peer_id not in self._settles_us
        )
        return list(islice(settled_idle, count))

    def _uses(self) -> list[SessionUse[VirtualSession]]:
        """The sessions as the pure policy wants to see them; their order stands for when they were used."""
        now_us = self._loop.now_us
        return [
            SessionUse(
                session,
                order,
                is_idle=session.is_idle and self._settles_us.get(session.peer_id, 0) <= now_us,
                is_accepted=not session.is_dialer,
            )
            for order, session in enumerate(self._sessions.values())
        ]
