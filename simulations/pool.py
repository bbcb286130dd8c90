"""The sessions of a virtual host: the `PeerCaller` of a simulation.

Follows the rules of the real pool (`synapse_p2p/transport/pool.py`): one session per peer, one dial for all who
ask at once, the least recently used idle session goes first, a failed address rests, and a call that certainly
never started is tried once more.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from simulations.connection import PING_ENDPOINT, Dial, VirtualSession, expire
from synapse_p2p.exceptions import HandshakeFailed, PeerUnavailable, SynapseError, Timeout
from synapse_p2p.identity import NodeID
from synapse_p2p.peers import KnownPeer, ProvedPeer
from synapse_p2p.protocol.pool_policy import DialBackoff, Survivor, choose_survivor

if TYPE_CHECKING:
    from simulations.network import VirtualHost


class VirtualPool:
    """The sessions of one host, and how it reaches others.

    Invariant: the sessions in `_sessions` are open, one per peer, least recently used first.
    """

    def __init__(self, host: VirtualHost) -> None:
        self._host = host
        self._loop = host.network.loop
        self._config = host.network.config.pool
        self._sessions: OrderedDict[NodeID, VirtualSession] = OrderedDict()
        self._dials: dict[tuple[str, NodeID | None], Dial] = {}
        self._backoff = DialBackoff(
            pause_s=self._config.redial_pause_s,
            max_pause_s=self._config.max_redial_pause_s,
            max_remembered=self._config.max_remembered_failures,
        )

    async def connect(self, peer: KnownPeer) -> ProvedPeer:
        return (await self._session_with(peer, None)).proved()

    async def connect_address(self, address: str, expected_id: NodeID | None = None) -> ProvedPeer:
        return (await self._dial_shared(address, expected_id, None)).proved()

    async def check_dial(self, peer: KnownPeer) -> None:
        if not peer.addresses:
            raise PeerUnavailable(f"{peer.id.hex()[:16]} has no address to check")
        self._check_dialable(peer.addresses[0])
        deadline = self._loop.time() + self._config.check_dial_timeout_s
        dial = Dial(self._host, peer.addresses[0], peer.id, is_check=True)
        session = await self._wait_for(dial, deadline)
        try:
            await session.call(PING_ENDPOINT, {}, deadline)
        finally:
            session.say_goodbye()

    async def call(self, peer: KnownPeer, endpoint: str, request: Mapping[str, Any], *, timeout_s: float) -> Any:
        deadline = self._loop.time() + timeout_s
        for is_last_try in (False, True):
            session = self._sessions.get(peer.id) or await self._session_with(peer, deadline)
            if self._loop.time() >= deadline:
                raise Timeout(f"no session with {peer.id.hex()[:16]} in the time given; the call was not started")
            try:
                return await session.call(endpoint, request, deadline)
            except PeerUnavailable as error:
                if error.may_have_started or is_last_try:
                    raise
        raise AssertionError("unreachable")

    def is_connected(self, node_id: NodeID) -> bool:
        return node_id in self._sessions

    def proved_addresses(self, node_id: NodeID) -> tuple[str, ...]:
        session = self._sessions.get(node_id)
        return session.proved().addresses if session is not None else ()

    def peer_ids(self) -> list[NodeID]:
        """Who has a session with this host, least recently used first."""
        return list(self._sessions)

    def say_goodbye(self) -> None:
        """Close every session in good order."""
        for session in list(self._sessions.values()):
            session.say_goodbye()

    def lose_everything(self) -> None:
        """The host is down: what its node waits for fails now, and nobody is told."""
        for session in list(self._sessions.values()):
            session.close("this host is down", may_have_started=True)
        for dial in list(self._dials.values()):
            dial.fail(PeerUnavailable("this host is down"))

    # What sessions tell their owner

    def on_established(self, session: VirtualSession) -> None:
        """A session is open; the older one with this peer may stay in its place."""
        older = self._sessions.get(session.peer_id)
        if older is not None:
            survivor = choose_survivor(self._host.id, session.peer_id, older.facts(), session.facts())
            if survivor is Survivor.OLDER:
                return  # what the peer asks over the newer is answered still; it takes no calls of ours
        self._sessions[session.peer_id] = session
        self.on_used(session)
        self._enforce_limits()

    def on_used(self, session: VirtualSession) -> None:
        """A call went over it, either way."""
        if session.peer_id in self._sessions:
            self._sessions.move_to_end(session.peer_id)

    def on_closed(self, session: VirtualSession) -> None:
        """It takes no calls any more."""
        if self._sessions.get(session.peer_id) is session:
            del self._sessions[session.peer_id]

    # Dials

    async def _session_with(self, peer: KnownPeer, deadline: float | None) -> VirtualSession:
        if (session := self._sessions.get(peer.id)) is not None:
            return session
        error: SynapseError = PeerUnavailable(f"{peer.id.hex()[:16]} has no address and no session")
        for address in peer.addresses:
            try:
                return await self._dial_shared(address, peer.id, deadline)
            except (PeerUnavailable, Timeout, HandshakeFailed) as failure:
                if deadline is not None and self._loop.time() >= deadline:
                    raise Timeout(f"{address} did not answer in the time given") from failure
                error = failure
        if isinstance(error, PeerUnavailable):
            raise error
        raise PeerUnavailable(str(error)) from error

    async def _dial_shared(self, address: str, expected_id: NodeID | None, deadline: float | None) -> VirtualSession:
        self._check_dialable(address)
        if self._backoff.is_resting(address, self._loop.time()):
            raise PeerUnavailable(f"{address} did not answer a moment ago", was_tried=False)
        key = (address, expected_id)
        dial = self._dials.get(key)
        if dial is None:
            dial = self._dials[key] = Dial(self._host, address, expected_id, on_end=self._on_dial_ended)
        return await self._wait_for(dial, deadline)

    async def _wait_for(self, dial: Dial, deadline: float | None) -> VirtualSession:
        waiter = dial.waiter()
        if deadline is None:
            return await waiter
        timer = self._loop.call_at(deadline, expire, waiter, dial.address)
        try:
            return await waiter
        finally:
            timer.cancel()

    def _on_dial_ended(self, dial: Dial, result: VirtualSession | SynapseError) -> None:
        del self._dials[dial.address, dial.expected_id]
        if isinstance(result, VirtualSession):
            self._backoff.on_success(dial.address)
            self.on_established(result)
        # Somebody else answered there: that is not the address's fault.
        elif not (isinstance(result, HandshakeFailed) and result.reason == "identity"):
            self._backoff.on_failure(dial.address, self._loop.time())

    def _check_dialable(self, address: str) -> None:
        if not self._host.is_up:
            raise PeerUnavailable("this host is down")
        if address == self._host.address:
            raise HandshakeFailed("self", f"{address} is this very node")

    def _enforce_limits(self) -> None:
        session_count = len(self._sessions)
        if session_count <= self._config.max_idle_sessions and session_count <= self._config.max_sessions:
            return
        # The rule of `pool_policy.sessions_to_close`; they are in order already, and this runs for every dial.
        idle = [session for session in self._sessions.values() if session.is_idle]
        surplus = max(len(idle) - self._config.max_idle_sessions, session_count - self._config.max_sessions, 0)
        for session in idle[:surplus]:
            session.say_goodbye()
