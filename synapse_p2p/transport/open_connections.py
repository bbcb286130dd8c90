"""The encrypted connections of one node that are not closed, whoever they are with, and how many there may be.

Owns the door: who is let in, and who goes for a newcomer. The rules are in `protocol/pool_policy.py`. Which session is
used for whom is the affair of `pool.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator

from synapse_p2p.background import TaskScope
from synapse_p2p.config import PoolConfig
from synapse_p2p.exceptions import HandshakeFailed
from synapse_p2p.protocol.pool_policy import (
    AcceptedConnections,
    SessionLimits,
    SessionUse,
    has_place,
    sessions_to_close,
)
from synapse_p2p.runtime import Runtime
from synapse_p2p.transport.base import ByteStream, counted_host
from synapse_p2p.transport.connection import SessionConnection
from synapse_p2p.transport.descriptors import DescriptorShortage, descriptor_limit
from synapse_p2p.transport.dialing import SessionDialer

SETTLE_S = 1.0  # how long a session that we dialed counts as used though no call is in flight yet


class OpenConnections:
    """Accepted connections, from their first byte, and established ones, in that order.

    `drop_stranger()` closes the oldest connection that has not even begun to be a session, where the process has no
    descriptor left; false when there is none. Bounded: what is accepted by the config and by the descriptors of the
    process; what we dial, only while it is idle.
    """

    def __init__(
        self, dialer: SessionDialer, *, runtime: Runtime, config: PoolConfig, drop_stranger: Callable[[], bool]
    ) -> None:
        self._dialer = dialer
        self._now = runtime.now
        self._trust = config.trust
        self._limits = SessionLimits.of(
            config.max_sessions, config.reserved_sessions, config.max_idle_sessions, descriptor_limit()
        )
        self._accepted: AcceptedConnections[SessionConnection] = AcceptedConnections(
            max_unproved=config.max_handshakes,
            max_unproved_per_host=config.max_handshakes_per_address,
            max_sessions_per_host=config.max_sessions_per_address,
        )
        self._drop_stranger = drop_stranger
        self._shortage = DescriptorShortage(self._drop_oldest_unproved, runtime.now)
        self._held: dict[SessionConnection, None] = {}
        self._limits_timer: asyncio.TimerHandle | None = None

    def __iter__(self) -> Iterator[SessionConnection]:
        return iter(list(self._held))

    def __len__(self) -> int:
        return len(self._held)

    def accept(
        self,
        stream: ByteStream,
        data: bytes,
        *,
        scope: TaskScope,
        on_established: Callable[[SessionConnection], None],
        on_closed: Callable[[SessionConnection], None],
    ) -> None:
        """Take over a stream whose first bytes are `data`; who finds no place is told so."""

        def on_proved(connection: SessionConnection) -> None:
            # Asked again: others may have proved themselves since it came.
            if self._accepted.on_proved(connection) and self._has_place(but=connection):
                on_established(connection)
            else:
                full = HandshakeFailed("refused", "too many sessions", refusal="busy")
                self._dialer.metrics.on_handshake_refused(full)
                connection.close("busy", str(full))

        host = counted_host(stream.peer_address, self._trust)
        if self._accepted.is_host_full(host) or not self._has_place():
            connection = self._dialer.refused(stream, scope=scope, on_closed=on_closed)
        else:
            connection = self._dialer.accepted(stream, scope=scope, on_established=on_proved, on_closed=on_closed)
            surplus = self._accepted.add(connection, host)
            if surplus is not None:
                surplus.make_way()
        self._held[connection] = None
        connection.data_received(data)

    def add(self, connection: SessionConnection) -> None:
        """Hold an established one."""
        self._held[connection] = None

    def remove(self, connection: SessionConnection) -> None:
        """It is closed."""
        self._held.pop(connection, None)
        self._accepted.remove(connection)

    def enforce_limits(self) -> None:
        """Close the idle sessions that are too many."""
        now = self._now()
        if len(self._held) > self._limits.fewest:
            for connection in sessions_to_close(self._uses(), self._limits):
                connection.part("idle")
        # Set where there are few as well: the simulator's pool looks at the same moments.
        if self._limits_timer is None and any(_is_fresh(connection, now) for connection in self._held):
            self._limits_timer = asyncio.get_running_loop().call_later(SETTLE_S, self._on_settled)

    def make_room(self) -> bool:
        """The process can open nothing more: close the oldest connection of somebody who has proved nothing.

        False when there is none. The descriptor is free in the next turn of the loop; the log says so at times.
        """
        return self._shortage.make_room()

    async def finish_calls(self, grace: float) -> None:
        """Refuse new calls of the peers, and wait up to `grace` seconds for those that run."""
        for connection in self._held:
            connection.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                for connection in self._others():
                    await connection.wait_idle()

    async def close(self) -> None:
        """Say goodbye on all of them, and wait until they are gone. Bounded in time by what each close may take.

        The tasks of calls have ended. One on which a handler asked for this, by stopping its own node, says goodbye
        once that handler has answered.
        """
        others = self._others()
        for connection in list(self._held):
            if connection.serves_current_task:
                connection.end_other_calls()
            connection.retire("stopping")
        for connection in others:
            connection.close("stopping")
        for connection in others:
            await connection.wait_closed()

    def abort(self) -> None:
        """Close at once what is left, and look at nothing again later."""
        for connection in self._others():
            connection.abort()
        if self._limits_timer is not None:
            self._limits_timer.cancel()
            self._limits_timer = None

    def _others(self) -> list[SessionConnection]:
        """All but one on which the task that asks is a call: to wait for that one would be to wait for ourselves."""
        return [connection for connection in self._held if not connection.serves_current_task]

    def _has_place(self, *, but: SessionConnection | None = None) -> bool:
        # With room for all of them nobody has to be looked at, and mostly there is: strangers at the door are cheap.
        if len(self._held) - self._accepted.unproved_count < self._limits.max_accepted:
            return True
        return has_place(self._uses(but=but), self._limits)

    def _drop_oldest_unproved(self) -> bool:
        if self._drop_stranger():
            return True
        oldest = self._accepted.take_oldest_unproved()
        if oldest is not None:
            oldest.make_way()
        return oldest is not None

    def _uses(self, *, but: SessionConnection | None = None) -> list[SessionUse[SessionConnection]]:
        """The sessions, without one that has just come; one that takes no more calls has its place all the same. What
        we dialed just now is for a call that comes in a moment: it is no idle one.
        """
        now = self._now()
        return [
            SessionUse(
                connection,
                connection.last_used,
                is_idle=not connection.calls_in_flight and not (connection.is_dialer and _is_fresh(connection, now)),
                is_accepted=not connection.is_dialer,
                is_settled=not _is_fresh(connection, now),
            )
            for connection in self._held
            if connection.takes_place and connection is not but
        ]

    def _on_settled(self) -> None:
        self._limits_timer = None
        self.enforce_limits()


def _is_fresh(connection: SessionConnection, now: float) -> bool:
    """Whether it was opened just now, so that its first call is on the way; it is looked at again later."""
    return connection.is_open and now < connection.established_at + SETTLE_S
