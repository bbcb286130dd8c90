"""Asks others: single requests, and whole lookups; every answer and every silence is told to the routing table.

It runs what `lookup.py` decides. A node reaches others through a PeerCaller alone, so this file does not know whether
it runs on TCP or in a simulation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from dht.config import DHTConfig
from dht.contact import Contact
from dht.keyspace import Key
from dht.lookup import Ask, Finished, Lookup, LookupMode, LookupOutcome, Wait
from dht.messages import (
    Exchange,
    ExchangeAnswer,
    FindNode,
    FindNodeAnswer,
    FindValue,
    FindValueAnswer,
    PingAnswer,
    Store,
    StoreAnswer,
)
from dht.routing import Observation, RoutingTable
from synapse_p2p.background import TaskScope
from synapse_p2p.exceptions import (
    HandshakeFailed,
    InvalidMessageError,
    PeerUnavailable,
    RemoteError,
    SynapseError,
    Timeout,
)
from synapse_p2p.peers import Host, ProvedPeer

UNREACHABLE = (PeerUnavailable, Timeout, HandshakeFailed)
"""What a request raises when nobody with that id answered: evidence against the contact."""


class Requester:
    """One node's questions to others.

    `on_added` is told of every contact that enters the routing table, `on_candidate` of one that answered over a
    session that it dialed itself: where it listens is still to be proved.
    """

    def __init__(
        self,
        host: Host,
        table: RoutingTable,
        config: DHTConfig,
        *,
        on_added: Callable[[Contact], None],
        on_candidate: Callable[[Contact], None],
    ) -> None:
        self._host = host
        self._table = table
        self._config = config
        self._on_added = on_added
        self._on_candidate = on_candidate

    async def ping(self, contact: Contact) -> PingAnswer:
        """Raises as every request here: an error of `UNREACHABLE`, RemoteError, or InvalidMessageError for a bad
        answer.
        """
        return PingAnswer.from_map(await self._request(contact, "_dht.ping", {}))

    async def find_node(self, contact: Contact, target: Key) -> FindNodeAnswer:
        """Whom `contact` knows near `target`."""
        return FindNodeAnswer.from_map(await self._request(contact, "_dht.find_node", FindNode(target).to_map()))

    async def find_value(self, contact: Contact, request: FindValue) -> FindValueAnswer:
        """What `contact` holds under a key, and whom it knows near it."""
        return FindValueAnswer.from_map(await self._request(contact, "_dht.find_value", request.to_map()))

    async def store(self, contact: Contact, request: Store) -> StoreAnswer:
        """Ask `contact` to keep a record."""
        return StoreAnswer.from_map(await self._request(contact, "_dht.store", request.to_map()))

    async def exchange(self, contact: Contact, count: int) -> ExchangeAnswer:
        """Some peers that `contact` knows, at random."""
        return ExchangeAnswer.from_map(await self._request(contact, "_dht.exchange", Exchange(count).to_map()))

    async def connect_seed(self, address: str, expected_id: bytes | None) -> ProvedPeer:
        """A session with whoever listens there; it enters the routing table."""
        peer = await self._host.peers.connect_address(address, expected_id)
        if peer.addresses:
            self._observe(Contact(peer.id, peer.addresses))
        return peer

    async def check_dial(self, contact: Contact) -> None:
        """Prove that `contact` listens where it says, and let it into the routing table if so."""
        try:
            await self._host.peers.check_dial(contact)
        except SynapseError:
            return
        self._observe(contact)

    async def lookup(
        self,
        target: Key,
        mode: LookupMode,
        *,
        seeds: Iterable[Contact] = (),
        ask: Callable[[Contact], Awaitable[tuple[Sequence[Contact], bool]]] | None = None,
    ) -> LookupOutcome:
        """Search for the contacts nearest to `target`, from the routing table and `seeds`.

        `ask` sends the request to one contact and returns the contacts it named and whether its answer was what is
        sought; by default it asks `_dht.find_node`. Cost: about 20 requests on a small network.
        """
        config = self._config.lookup
        lookup = Lookup(
            target,
            own_id=self._host.identity.node_id,
            seeds=[*seeds, *self._table.closest(target, config.k)],
            mode=mode,
            config=config,
        )

        async def find_node(contact: Contact) -> tuple[Sequence[Contact], bool]:
            return (await self.find_node(contact, target)).contacts, False

        async with TaskScope("lookup") as scope:
            return await _Run(lookup, ask or find_node, scope, self._host.runtime.now).outcome()

    async def _request(self, contact: Contact, endpoint: str, request: dict[str, Any]) -> Any:
        try:
            answer = await self._host.peers.call(
                contact, endpoint, request, timeout_s=self._config.lookup.request_timeout_s
            )
        except UNREACHABLE:
            self._table.on_failure(contact.id, self._host.runtime.now())
            raise
        addresses = self._host.peers.proved_addresses(contact.id)
        if addresses:
            self._observe(Contact(contact.id, addresses))
        elif contact.addresses:
            self._on_candidate(contact)
        return answer

    def _observe(self, contact: Contact) -> None:
        if self._table.observe(contact, self._host.runtime.now()) is Observation.ADDED:
            self._on_added(contact)


class _Run:
    """One lookup under way: polls the machine, sends what it says, wakes when something came back."""

    def __init__(
        self,
        lookup: Lookup,
        ask: Callable[[Contact], Awaitable[tuple[Sequence[Contact], bool]]],
        scope: TaskScope,
        now: Callable[[], float],
    ) -> None:
        self._lookup = lookup
        self._ask = ask
        self._scope = scope
        self._now = now
        self._loop = asyncio.get_running_loop()
        self._happened = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    async def outcome(self) -> LookupOutcome:
        try:
            while True:
                match self._lookup.poll(self._now()):
                    case Ask(contacts):
                        for contact in contacts:
                            self._scope.spawn(self._ask_one(contact))
                    case Wait(until):
                        await self._wait(until)
                    case Finished(outcome):
                        return outcome
        finally:
            if self._timer is not None:
                self._timer.cancel()

    async def _ask_one(self, contact: Contact) -> None:
        try:
            closer, is_found = await self._ask(contact)
        except (*UNREACHABLE, RemoteError, InvalidMessageError):
            self._lookup.on_failure(contact.id, self._now())
        else:
            if is_found:
                self._lookup.on_found(contact.id, closer, self._now())
            else:
                self._lookup.on_reply(contact.id, closer, self._now())
        self._happened.set()

    async def _wait(self, until: float) -> None:
        # Deadlines only grow, so one timer at a time is enough: when it fires, the machine says the next.
        if self._timer is None:
            self._timer = self._loop.call_later(max(0.0, until - self._now()), self._on_timer)
        await self._happened.wait()
        self._happened.clear()

    def _on_timer(self) -> None:
        self._timer = None
        self._happened.set()
