"""The sessions of a virtual host: the `PeerCaller` of a simulation.

Follows the rules of the real pool (`synapse_p2p/transport/pool.py`): one session per peer, one dial for all who
ask at once, the least recently used idle session goes first, a failed address rests, and a call that certainly
never started is tried once more. Left out are the limits on connections that have proved nothing yet, and those per
address: here everybody has an address of his own, and proves at once who he is.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
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

REQUESTS: ContextVar[list[str] | None] = ContextVar("requests", default=None)
"""Where an onlooker has set it, every request of that task and of those that it began puts its endpoint in here."""


class VirtualPool:
    """The sessions of one host, and how it reaches others. `at` says who has an address.

    Invariants: the sessions in `_sessions` take calls, one per peer, least recently used first; of them
    `_surplus_count` more than the limit are idle and settled. All others that are open are in `_aside`: duplicates,
    those of check dials, and those that only finish what runs.
    """

    def __init__(self, host: Station, at: Callable[[str], Station | None]) -> None:
        self._host = host
        self._at = at
        self._delivery = host.delivery
        self._loop = host.delivery.loop
        self._config = host.config.pool
        self._sessions: OrderedDict[NodeID, VirtualSession] = OrderedDict()
        self._aside: dict[VirtualSession, None] = {}  # oldest first
        self._fresh: dict[
            VirtualSession, float
        ] = {}  # those that take calls, until when they are not settled; in order
        self._session_count = 0  # all there ever were: their number is their place in line
        self._limits_timer: asyncio.TimerHandle | None = None
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
        self._surplus_count = -self._limits.max_idle
        self.dialed_at: float | None = None

    async def connect(self, peer: KnownPeer) -> ProvedPeer:
        session = self._open_session(peer.id) or await self._dial(peer, None)
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
        if (requests := REQUESTS.get()) is not None:
            requests.append(endpoint)
        for is_last_try in (False, True):
            session = self._open_session(peer.id) or await self._dial(peer, deadline_us)
            if self._loop.now_us >= deadline_us:
                raise Timeout(f"no session with {peer.id.hex()[:16]} in the time given; the call was not started")
            try:
                return await session.call(endpoint, request, deadline_us)
            except PeerUnavailable as error:
                if error.may_have_started or is_last_try:
                    raise
        raise AssertionError("unreachable")

    def is_connected(self, node_id: NodeID) -> bool:
        return self._open_session(node_id) is not None

    def proved_addresses(self, node_id: NodeID) -> tuple[str, ...]:
        session = self._sessions.get(node_id)
        if session is not None and (session.is_dialer or not self._aside):
            return session.proved_addresses()  # so it mostly is, and no other has to be looked at
        for session in reversed(self._open_sessions(node_id)):
            if session.is_dialer:
                return session.proved_addresses()
        return ()

    def retire_sessions(self) -> None:
        """As the real pool has it."""
        for session in [*self._sessions.values(), *self._aside]:
            if session.takes_calls:
                session.retire()
        self._backoff.forget()

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
        if self._limits_timer is not None:
            self._limits_timer.cancel()
            self._limits_timer = None
        self.dialed_at = None

    # What sessions tell their owner

    def has_place(self) -> bool:
        """Whether one more session can be accepted, where need be in the place of idle ones."""
        if len(self._sessions) + len(self._aside) < self._limits.max_accepted:
            return True  # so it mostly is, and nobody has to be looked at
        return has_place(self._uses(), self._limits)

    def next_number(self) -> int:
        """The place in line of one more session."""
        self._session_count += 1
        return self._session_count

    def on_established(self, session: VirtualSession) -> None:
        """A session is open. Of two with one peer that are duplicates, who dialed the loser retires it."""
        if session.is_dialer:
            session.number = self.next_number()
        elif not self.has_place():  # asked again: others may have opened theirs since it came
            session.say_goodbye()
            return
        elif session.is_check or session.context.listen_address:
            self.dialed_at = self._loop.time()
        self._fresh[session] = self._loop.time() + SETTLE_S
        session.last_used_us = self._loop.now_us
        if not session.is_check:
            self._take_up(session)
        else:
            self._aside[session] = None
            if session.is_dialer:
                return  # nobody else gets to know of it
        self._enforce_limits()

    def on_used(self, session: VirtualSession) -> None:
        """A call goes over it, either way, or the answer to one of ours."""
        session.last_used_us = self._loop.now_us
        if self._sessions.get(session.peer_id) is session:
            self._sessions.move_to_end(session.peer_id)

    def on_busy(self, session: VirtualSession) -> None:
        """It was idle, and has a call of ours in flight now."""
        if session.is_settled and self._sessions.get(session.peer_id) is session:
            self._surplus_count -= 1

    def on_idle(self, session: VirtualSession) -> None:
        """The last call of ours over it has ended."""
        if session.is_settled and self._sessions.get(session.peer_id) is session:
            self._surplus_count += 1

    def on_retired(self, session: VirtualSession) -> None:
        """It takes no new calls any more, and is still open."""
        self._fresh.pop(session, None)
        if self._sessions.get(session.peer_id) is session:
            self._replace(session)
            self._aside[session] = None

    def on_closed(self, session: VirtualSession) -> None:
        """It is closed. A second time nothing happens."""
        self._fresh.pop(session, None)
        self._aside.pop(session, None)
        if self._sessions.get(session.peer_id) is session:
            self._replace(session)

    # Sessions

    def _open_session(self, node_id: NodeID) -> VirtualSession | None:
        """The newest that takes calls; that of a peer's check dial, where there is no other."""
        session = self._sessions.get(node_id)
        if session is None and self._aside:
            session = next(reversed(self._open_sessions(node_id)), None)
        return session

    def _open_sessions(self, node_id: NodeID) -> list[VirtualSession]:
        """All that take calls, oldest first. Over those of our own check dials none goes."""
        session = self._sessions.get(node_id)
        older = [
            each
            for each in self._aside
            if each.peer_id == node_id and each.takes_calls and not (each.is_check and each.is_dialer)
        ]
        return older if session is None else [*older, session]

    def _take_up(self, newer: VirtualSession) -> None:
        """Calls go over it from now on, unless it is a duplicate of ours that loses."""
        peer_id = newer.peer_id
        older_ones = self._open_sessions(peer_id) if peer_id in self._sessions or self._aside else []
        for older in older_ones:
            survivor = choose_survivor(self._host.id, peer_id, older.facts(), newer.facts())
            loser = newer if survivor is Survivor.OLDER else older
            if loser.is_dialer and survivor is not Survivor.BOTH:
                loser.retire()
            elif older.is_stale and older.is_idle:
                # The real pool learns it from a ping.
                older.close("the peer has restarted", may_have_started=True)
        if newer.takes_calls:
            current = self._sessions.get(peer_id)
            if current is not None:
                self._forget(current)
                self._aside[current] = None
            self._keep(newer)

    def _replace(self, session: VirtualSession) -> None:
        """Calls do not go over it any more, but over the newest other one, if there is any."""
        self._forget(session)
        if self._aside:
            for other in reversed(self._open_sessions(session.peer_id)):
                if not other.is_check:
                    del self._aside[other]
                    self._keep(other)
                    for later in [each for each in self._sessions.values() if each.last_used_us > other.last_used_us]:
                        self._sessions.move_to_end(later.peer_id)
                    break

    def _keep(self, session: VirtualSession) -> None:
        self._sessions[session.peer_id] = session
        self._surplus_count += session.is_settled and session.is_idle

    def _forget(self, session: VirtualSession) -> None:
        del self._sessions[session.peer_id]
        self._surplus_count -= session.is_settled and session.is_idle

    # Dials

    async def _dial(self, peer: KnownPeer, deadline_us: int | None) -> VirtualSession:
        """A new session with this peer, at the first of its addresses where it answers."""
        error: SynapseError = PeerUnavailable(f"{peer.id.hex()[:16]} has no address and no session")
        for address in peer.addresses:
            try:
                dialed = await self._wait_for(self._shared_dial(address, peer.id), deadline_us)
                # Where both sides dialed at once, this one may be the duplicate that closes; then the other is open.
                return self._open_session(peer.id) or dialed
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
        if deadline_us is None:
            return await waiter
        deadlines = self._delivery.deadlines
        deadlines.add(deadline_us, waiter, expire, dial.address)
        try:
            return await waiter
        finally:
            deadlines.drop(deadline_us, waiter)

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
            self.on_established(result)

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
        self._settle()
        for session in self._surplus_sessions():
            session.say_goodbye()
        if self._fresh and self._limits_timer is None:
            self._limits_timer = self._loop.call_later(SETTLE_S, self._on_settled)

    def _surplus_sessions(self) -> list[VirtualSession]:
        has_places = len(self._sessions) + len(self._aside) <= self._limits.max_accepted
        if not has_places or any(session.is_settled for session in self._aside):
            return sessions_to_close(self._uses(), self._limits)
        return self._least_recently_used(self._surplus_count) if self._surplus_count > 0 else []

    def _on_settled(self) -> None:
        self._limits_timer = None
        self._enforce_limits()

    def _settle(self) -> None:
        now = self._loop.time()
        settled = []
        for session, settles_at in self._fresh.items():
            if now < settles_at:
                break
            settled.append(session)
        for session in settled:
            del self._fresh[session]
            session.is_settled = True
            if self._sessions.get(session.peer_id) is session:
                self._surplus_count += session.is_idle

    def _least_recently_used(self, count: int) -> list[VirtualSession]:
        """So many idle sessions; of those used at one instant the first in line."""
        chosen: list[VirtualSession] = []
        for session in self._sessions.values():
            if session.is_idle and session.is_settled:
                if len(chosen) >= count and session.last_used_us > chosen[-1].last_used_us:
                    break
                chosen.append(session)
        chosen.sort(key=lambda session: (session.last_used_us, session.number))
        return chosen[:count]

    def _uses(self) -> Iterator[SessionUse[VirtualSession]]:
        """The sessions as the pure policy wants to see them, in line."""
        self._settle()
        for session in sorted((*self._sessions.values(), *self._aside), key=lambda session: session.number):
            if session.takes_calls:
                yield SessionUse(
                    session,
                    session.last_used_us,
                    is_idle=session.is_idle and not (session.is_dialer and not session.is_settled),
                    is_accepted=not session.is_dialer,
                    is_settled=session.is_settled,
                )
