"""What a node does that may have been away: it looks for somebody while nobody answers, and comes back afterwards.

Away is who had no network, stood still or slept. To come back means: no call over a session that peers may have given
up, to be known to our neighbours again, to put anew what is ours, and to ask everybody we know whether they live.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence

from dht.bootstrap import Bootstrap
from dht.contact import Contact
from dht.presence import Presence
from dht.requester import UNREACHABLE, Requester
from dht.routing import RoutingTable
from synapse_p2p.background import TaskScope
from synapse_p2p.exceptions import InvalidMessageError, RemoteError
from synapse_p2p.identity import NodeID
from synapse_p2p.peers import Host

logger = logging.getLogger(__name__)

ASKED_WHILE_LOST = 3
"""Contacts asked each time: one of them may be dead, and all would be a flood when the network is slow and not gone."""
ASKED_AT_ONCE = 4
"""Of those who are asked whether they live."""


class Recovery:
    """One node's ways back.

    `on_resumed` is for owners of records: each is called, at the same time as the others, when the node may have been
    given up by everybody. `knock` tries the seeds.
    """

    def __init__(
        self,
        host: Host,
        table: RoutingTable,
        requester: Requester,
        bootstrap: Bootstrap,
        presence: Presence,
        *,
        look_s: float,
        knock: Callable[[], Awaitable[None]],
    ) -> None:
        self.on_resumed: list[Callable[[], Awaitable[None]]] = []
        self._host = host
        self._table = table
        self._requester = requester
        self._bootstrap = bootstrap
        self._presence = presence
        self._look_s = look_s
        self._knock = knock
        self._coming_back: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._looks_at = 0.0

    def begin_looking(self, scope: TaskScope) -> None:
        """To be called again and again while our network is the suspect: every `look_s` some contacts are asked, and
        the seeds, in a task of `scope`.
        """
        now = self._host.runtime.now()
        if (self._looking is None or self._looking.done()) and now >= self._looks_at:
            self._looks_at = now + self._look_s
            self._looking = scope.spawn(self._look_for_somebody(), name="look for somebody")

    def begin(self, scope: TaskScope) -> None:
        """Come back, in a task of `scope`. One that is under way begins anew: we were away again."""
        if self._coming_back is not None:
            self._coming_back.cancel()
        self._coming_back = scope.spawn(self._come_back(), name="come back")

    def begin_announcing(self, scope: TaskScope) -> None:
        """Have our neighbours hear that we live, in a task of `scope`; nothing more while a way back is under way."""
        if self._coming_back is None or self._coming_back.done():
            self._coming_back = scope.spawn(self._bootstrap.announce(), name="announce")

    def begin_asking(self, scope: TaskScope, silent: Sequence[NodeID]) -> None:
        """Ask those who were silent, for they were forgiven and may be gone; in a task of `scope`."""
        if self._coming_back is None or self._coming_back.done():
            contacts = [contact for node_id in silent if (contact := self._table.get(node_id)) is not None]
            self._coming_back = scope.spawn(self.ask(contacts), name="ask the silent")

    async def ask(self, contacts: Sequence[Contact]) -> None:
        """Ask each whether it lives, some at a time; the requester tells the table."""
        waiting = list(reversed(contacts))

        async def work() -> None:
            while waiting:
                contact = waiting.pop()
                with contextlib.suppress(*UNREACHABLE, RemoteError, InvalidMessageError):
                    await self._requester.ping(contact)

        async with TaskScope("ask whether they live") as scope:
            workers = [scope.spawn_awaited(work()) for _ in range(min(ASKED_AT_ONCE, len(contacts)))]
            for worker in workers:
                await worker

    async def _look_for_somebody(self) -> None:
        contacts = list(self._table)
        await self.ask(self._host.runtime.rng.sample(contacts, min(ASKED_WHILE_LOST, len(contacts))))
        if self._presence.is_network_lost:
            await self._knock()

    async def _come_back(self) -> None:
        self._host.peers.retire_sessions()
        async with TaskScope("come back") as scope:
            tasks = [scope.spawn_awaited(self._bootstrap.announce(), name="announce")]
            tasks += [scope.spawn_awaited(_call(hook), name="put anew") for hook in self.on_resumed]
            tasks.append(scope.spawn_awaited(self.ask(list(self._table)), name="revalidate"))
            for task in tasks:
                await task


async def _call(hook: Callable[[], Awaitable[None]]) -> None:
    try:
        await hook()
    except Exception:
        # The owner of records tries again by its own schedule; the others have their turn all the same.
        logger.exception("putting anew what is ours failed")
