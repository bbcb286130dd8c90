"""Asks others: single requests, and whole lookups; every answer and every silence is told to the routing table.

It runs what `lookup.py` decides. A node reaches others through a PeerCaller alone, so this file does not know whether
it runs on TCP or in a simulation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from dht.config import DHTConfig
from dht.contact import Contact, shared_contact
from dht.dial_policy import DialDecision, DialPolicy
from dht.keyspace import Key
from dht.lookup import Ask, Finished, Lookup, LookupMode, LookupOutcome, TraceEvent, Wait
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
from synapse_p2p.identity import NodeID
from synapse_p2p.peers import Host, ProvedPeer
from synapse_p2p.protocol.session import Code

T = TypeVar("T")
Naming = TypeVar("Naming", FindNodeAnswer, FindValueAnswer, StoreAnswer, ExchangeAnswer)  # answers that name contacts

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
        dial_policy: DialPolicy,
        *,
        on_added: Callable[[Contact], None],
        on_candidate: Callable[[Contact], None],
    ) -> None:
        self._host = host
        self._table = table
        self._config = config
        self._dial_policy = dial_policy
        self._on_added = on_added
        self._on_candidate = on_candidate

    async def ping(self, contact: Contact) -> PingAnswer:
        """Raises as every request here: an error of `UNREACHABLE`, RemoteError, or InvalidMessageError for a bad
        answer.
        """
        return await self._request(contact, "_dht.ping", {}, PingAnswer.from_map)

    async def find_node(self, contact: Contact, target: Key) -> FindNodeAnswer:
        """Whom `contact` knows near `target`, of those that may be dialed on its word; so it is for every answer."""
        answer = await self._request(contact, "_dht.find_node", FindNode(target).to_map(), FindNodeAnswer.from_map)
        return self._usable(answer, contact)

    async def find_value(self, contact: Contact, request: FindValue) -> FindValueAnswer:
        """What `contact` holds under a key, and whom it knows near it."""
        answer = await self._request(contact, "_dht.find_value", request.to_map(), FindValueAnswer.from_map)
        return self._usable(answer, contact)

    async def store(self, contact: Contact, request: Store) -> StoreAnswer:
        """Ask `contact` to keep a record."""
        answer = await self._request(contact, "_dht.store", request.to_map(), StoreAnswer.from_map)
        return self._usable(answer, contact)

    async def exchange(self, contact: Contact, count: int) -> ExchangeAnswer:
        """Some peers that `contact` knows, at random."""
        answer = await self._request(contact, "_dht.exchange", Exchange(count).to_map(), ExchangeAnswer.from_map)
        return self._usable(answer, contact, max_addresses=self._config.dial.max_exchange_addresses)

    async def connect_seed(self, address: str, expected_id: bytes | None) -> ProvedPeer:
        """A session with whoever listens there. Whether that is a member of a swarm is still to be asked."""
        return await self._host.peers.connect_address(address, expected_id)

    def admit(self, contact: Contact) -> None:
        """Let a contact into the routing table that answered a dial of ours at this address, and a request."""
        self._observe(contact)

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
            run = _Run(lookup, ask or find_node, scope, self._host.runtime.now, on_silence=self._on_failure)
            return await run.outcome()

    def _usable(self, answer: Naming, contact: Contact, *, max_addresses: int | None = None) -> Naming:
        informer = self._table.get(contact.id) or contact
        address = informer.addresses[0] if informer.addresses else ""
        usable = self._dial_policy.usable(answer.contacts, address, max_addresses=max_addresses)
        return answer if usable is answer.contacts else replace(answer, contacts=tuple(usable))

    def _dialable(self, contact: Contact) -> Contact:
        """A contact with the addresses that may be dialed now. Raises PeerUnavailable when none may."""
        now = self._host.runtime.now()
        decisions = [(address, self._dial_policy.may_dial(address, now)) for address in contact.addresses]
        addresses = tuple(address for address, decision in decisions if decision is DialDecision.DIAL)
        if addresses == contact.addresses:
            return contact
        if not addresses:
            reasons = "; ".join(f"{address}: {decision.value}" for address, decision in decisions)
            raise PeerUnavailable(f"not dialed, {reasons}", was_tried=False)
        return shared_contact(contact.id, addresses)

    def _give_back(self, contact: Contact) -> None:
        """A dial was welcome: the shares of the address that answered, and of those behind it, which were not tried."""
        proved = self._host.peers.proved_addresses(contact.id)[:1]
        if proved and proved[0] in contact.addresses:
            for address in contact.addresses[contact.addresses.index(proved[0]) :]:
                self._dial_policy.on_proved(address)

    async def _request(self, contact: Contact, endpoint: str, request: dict[str, Any], read: Callable[[Any], T]) -> T:
        # The address that we proved goes before one that somebody named: else a liar could have us fail to reach a
        # good contact where it never was, and evict it.
        proved = self._table.get(contact.id)
        is_hearsay = proved is None and not self._host.peers.is_connected(contact.id)
        contact = self._dialable(contact) if is_hearsay else proved or contact
        try:
            answer = read(
                await self._host.peers.call(contact, endpoint, request, timeout_s=self._config.lookup.request_timeout_s)
            )
        except (*UNREACHABLE, InvalidMessageError) as error:
            if not isinstance(error, PeerUnavailable) or error.was_tried:
                self._on_failure(contact)
            raise
        except RemoteError as error:
            if error.code != Code.BUSY:  # one that has much to do is a good contact all the same
                self._on_failure(contact)
            raise
        finally:
            if is_hearsay:
                self._give_back(contact)
        addresses = self._host.peers.proved_addresses(contact.id)
        if addresses:
            self._observe(contact if contact.addresses == addresses else shared_contact(contact.id, addresses))
        elif contact.addresses:
            self._on_candidate(contact)
        return answer

    def _on_failure(self, contact: Contact) -> None:
        self._table.on_failure(contact.id, self._host.runtime.now())

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
        *,
        on_silence: Callable[[Contact], None],
    ) -> None:
        self._lookup = lookup
        self._ask = ask
        self._scope = scope
        self._now = now
        self._on_silence = on_silence
        self._asked: dict[NodeID, Contact] = {}  # whose answers are awaited
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
                        self._report_silent(outcome)
                        return outcome
        finally:
            if self._timer is not None:
                self._timer.cancel()

    def _report_silent(self, outcome: LookupOutcome) -> None:
        """Tell of those that the machine gave up on and whose requests end now, before their own time is up."""
        given_up = {step.contact_id for step in outcome.trace if step.event is TraceEvent.FAILED}
        for contact in self._asked.values():
            if contact.id in given_up:
                self._on_silence(contact)

    async def _ask_one(self, contact: Contact) -> None:
        self._asked[contact.id] = contact
        try:
            closer, is_found = await self._ask(contact)
        except (*UNREACHABLE, RemoteError, InvalidMessageError):
            del self._asked[contact.id]
            self._lookup.on_failure(contact.id, self._now())
        else:
            del self._asked[contact.id]
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
