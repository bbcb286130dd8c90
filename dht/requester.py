"""Asks others: single requests, and whole lookups; every answer and every silence is told to the routing table.

It runs what `lookup.py` decides. A node reaches others through a PeerCaller alone, so this file does not know whether
it runs on TCP or in a simulation.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from dht.config import DHTConfig
from dht.contact import Contact, shared_contact
from dht.dial_policy import DialDecision, DialPolicy
from dht.keyspace import KEY_SIZE_BYTES, Key
from dht.lookup import Ask, Finished, Lookup, LookupMode, LookupOutcome, TraceEvent, Wait, Widen
from dht.messages import (
    Exchange,
    ExchangeAnswer,
    FindNode,
    FindNodeAnswer,
    FindValue,
    FindValueAnswer,
    Ping,
    PingAnswer,
    Renew,
    RenewAnswer,
    Store,
    StoreAnswer,
)
from dht.presence import Presence
from dht.region import SPACE, GroupOf, Region, RegionEstimate, every_one_alone, seeds
from dht.round_trips import Pauses, RoundTrips, dead_contacts
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
from synapse_p2p.protocol.code import Code

T = TypeVar("T")
Naming = TypeVar("Naming", FindNodeAnswer, FindValueAnswer, StoreAnswer, ExchangeAnswer)  # answers that name contacts

Answer = tuple[Sequence[Contact], bool] | tuple[Sequence[Contact], bool, int]
"""Of one contact in a lookup: whom it named, whether it holds what is sought, and which version of it."""
AskOne = Callable[[Contact], Awaitable[Answer]]

UNREACHABLE = (PeerUnavailable, Timeout, HandshakeFailed)
"""What a request raises when nobody with that id answered: evidence against the contact."""
LATER_ENDPOINTS = frozenset({"_dht.renew"})
"""Which a good node of an earlier release does not know."""


class Requester:
    """One node's questions to others.

    `on_added` is told of every contact that enters the routing table, `on_gone` of every one that failed too often and
    left it, `on_candidate` of one that answered over a session that it dialed itself: where it listens is still to be
    proved. `estimate` is read for every lookup and told of contacts that are gone. `presence` is told of answers and
    silences, and decides whether a silence counts.
    """

    def __init__(
        self,
        host: Host,
        table: RoutingTable,
        config: DHTConfig,
        dial_policy: DialPolicy,
        *,
        on_added: Callable[[Contact], None],
        on_gone: Callable[[Contact], None],
        on_candidate: Callable[[Contact], None],
        presence: Presence | None = None,
        estimate: RegionEstimate | None = None,
        group_of: GroupOf = every_one_alone,
    ) -> None:
        self._host = host
        self._table = table
        self._config = config
        self._dial_policy = dial_policy
        self._on_added = on_added
        self._on_gone = on_gone
        self._on_candidate = on_candidate
        self._presence = presence or Presence(host.runtime, table, config.health)
        self._estimate = estimate or RegionEstimate(host.identity.node_id, config.lookup)
        self._group_of = group_of
        self._round_trips = RoundTrips(config.lookup)
        self._dead = dead_contacts(config.lookup)
        self._standing = _Standing(host, table, self._round_trips, self._dead, group_of)
        self._turns: dict[Key, _Turn] = {}  # of keys with a guarded lookup under way

    async def ping(self, contact: Contact, *, prove: bool = False) -> PingAnswer:
        """Whether it lives; with `prove` it is asked to dial us. Raises as every request here: an error of
        `UNREACHABLE`, RemoteError, or InvalidMessageError for a bad answer.
        """
        asked_at = self._host.runtime.now()
        answer = await self._request(contact, "_dht.ping", Ping(prove=prove).to_map(), PingAnswer.from_map)
        self._presence.note_clock(self.party_of(contact), answer.unix_ms, asked_at)
        return answer

    async def say_farewell(self, contact: Contact) -> None:
        """Tell `contact` that we go. Raises as every request here."""
        await self._request(contact, "_dht.ping", Ping(leaving=True).to_map(), PingAnswer.from_map)

    def party_of(self, contact: Contact) -> str:
        """Whom it speaks for: the group of its address, and itself alone where addresses are not counted."""
        return self._group_of(contact.addresses) or contact.id.hex()

    async def find_node(self, contact: Contact, target: Key, radius: Key | None = None) -> FindNodeAnswer:
        """Whom `contact` knows near `target`: all within `radius`, a distance, and some more. Of any answer only
        those come back who may be dialed on its word.
        """
        request = FindNode(target, radius).to_map()
        answer = await self._request(contact, "_dht.find_node", request, FindNodeAnswer.from_map)
        return self._usable(answer, contact)

    async def find_value(self, contact: Contact, request: FindValue) -> FindValueAnswer:
        """What `contact` holds under a key, and whom it knows near it."""
        answer = await self._request(contact, "_dht.find_value", request.to_map(), FindValueAnswer.from_map)
        return self._usable(answer, contact)

    async def store(self, contact: Contact, request: Store) -> StoreAnswer:
        """Ask `contact` to keep a record."""
        answer = await self._request(contact, "_dht.store", request.to_map(), StoreAnswer.from_map)
        return self._usable(answer, contact)

    async def renew(self, contact: Contact, request: Renew) -> RenewAnswer:
        """Have `contact` let a record live on that it keeps. What it says is for as many places as were asked for."""
        answer = await self._request(contact, "_dht.renew", request.to_map(), RenewAnswer.from_map)
        if len(answer.places) != len(request.places):
            self._on_failure(contact)
            raise InvalidMessageError("an answer to a renewal is for all of its places")
        return RenewAnswer(tuple(self._usable(place, contact) for place in answer.places))

    async def exchange(self, contact: Contact, count: int) -> ExchangeAnswer:
        """Some peers that `contact` knows, at random."""
        answer = await self._request(contact, "_dht.exchange", Exchange(count).to_map(), ExchangeAnswer.from_map)
        return self._usable(answer, contact, max_addresses=self._config.dial.max_exchange_addresses)

    async def connect_seed(self, address: str, expected_id: bytes | None) -> ProvedPeer:
        """A session with whoever listens there. Whether that is a member of a swarm is still to be asked."""
        peer = await self._host.peers.connect_address(address, expected_id)
        self._presence.on_heard()
        return peer

    def admit(self, contact: Contact) -> None:
        """Let a contact into the routing table that answered a dial of ours at this address, and a request."""
        self._observe(contact)

    async def check_dial(self, contact: Contact) -> None:
        """Prove that `contact` listens where it says, and let it into the routing table if so."""
        try:
            await self._host.peers.check_dial(contact)
        except SynapseError:
            return
        self._presence.on_heard()
        self._observe(contact)

    def on_heard_from(self, contact: Contact) -> None:
        """A contact called us: it lives, whatever it failed to answer."""
        self._dead.remove(contact)

    def on_left(self, contact: Contact) -> None:
        """A contact went in good order: lookups that hear of it from others leave it alone for a while."""
        self._dead.add(contact, self._host.runtime.now())
        self._estimate.on_lost()

    def forgive(self, silent: Iterable[NodeID]) -> None:
        """That these did not answer was not their fault: lookups ask them again, and others are told of them."""
        for node_id in silent:
            self._table.forgive(node_id)
            if (contact := self._table.get(node_id)) is not None:
                self._dead.remove(contact)

    def look_at_neighbours(self) -> None:
        """Let the estimate know who is nearest to us by now."""
        k = self._config.lookup.k
        self._estimate.on_neighbours(self._table.closest_unsuspected(self._host.identity.node_id, k))

    async def lookup(
        self,
        target: Key,
        mode: LookupMode,
        *,
        seeds: Iterable[Contact] = (),
        ask: AskOne | None = None,
        region: Region | None = None,
    ) -> LookupOutcome:
        """Search for the contacts nearest to `target`, from the routing table and `seeds`.

        `ask` sends the request to one contact. By default it is `_dht.find_node`, and the k nearest are all there is to
        find; who gives an `ask`, or a `region` other than ours, wants all of the region. Of two guarded lookups of one
        key the second waits for the first. Cost: about 22 requests on a small network.
        """
        config = self._config.lookup
        self.look_at_neighbours()
        if region is None:
            region = self._estimate.region if ask is not None else self._estimate.region.without_radius()
        async with AsyncExitStack() as turn:
            if mode is LookupMode.GUARDED:
                await turn.enter_async_context(self._turn(target))
            lookup = Lookup(
                target,
                own_id=self._host.identity.node_id,
                seeds=self._seeds(target, mode, seeds, region),
                mode=mode,
                config=config,
                region=region,
                peers=self._standing,
            )
            has_turn = mode is LookupMode.GUARDED
            scope = await turn.enter_async_context(TaskScope("lookup"))
            run = _Run(lookup, ask or self._find_node_near(target, region), scope, self._host, self._on_silence)
            while isinstance(stop := await run.next_stop(), Widen):
                if not has_turn:
                    await turn.enter_async_context(self._turn(target))
                    has_turn = True
                lookup.on_widen(self._nearest(target, stop.count, region), self._host.runtime.now())
            return stop

    def _find_node_near(self, target: Key, region: Region) -> AskOne:
        radius = min(region.radius, SPACE - 1).to_bytes(KEY_SIZE_BYTES, "big") if region.radius >= 0 else None

        async def find_node(contact: Contact) -> Answer:
            return (await self.find_node(contact, target, radius)).contacts, False

        return find_node

    def _seeds(self, target: Key, mode: LookupMode, named: Iterable[Contact], region: Region) -> list[Contact]:
        """Whom a lookup begins with: our nearest, and those that others have just named."""
        config = self._config.lookup
        count = config.paths * config.path_seeds if mode is LookupMode.GUARDED else config.k
        first = {contact.id: contact for contact in (*named, *self._nearest(target, count, region))}
        point = int.from_bytes(target, "big")
        return sorted(first.values(), key=lambda contact: contact.point ^ point)

    def _nearest(self, target: Key, count: int, region: Region) -> list[Contact]:
        max_per_group = self._config.lookup.max_per_group
        closest = partial(self._table.closest, target)
        group_of = self._group_of if self._table.counts_places else every_one_alone
        return seeds(closest, target, count, region, group_of, max_per_group=max_per_group)

    @asynccontextmanager
    async def _turn(self, key: Key) -> AsyncGenerator[None]:
        turn = self._turns.get(key)
        if turn is None:
            turn = self._turns[key] = _Turn()
        turn.users += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.users -= 1
            if not turn.users:
                del self._turns[key]

    def _usable(self, answer: Naming, contact: Contact, *, max_addresses: int | None = None) -> Naming:
        informer = self._table.get(contact.id) or contact
        address = informer.addresses[0] if informer.addresses else ""
        now = self._host.runtime.now()
        usable = self._dial_policy.usable(answer.contacts, address, now, max_addresses=max_addresses)
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
        peers, now = self._host.peers, self._host.runtime.now
        was_connected = peers.is_connected(contact.id)
        proved = self._table.get(contact.id)
        is_hearsay = proved is None and not was_connected
        contact = self._dialable(contact) if is_hearsay else proved or contact
        _, timeout_s = self._round_trips.timeouts_s(contact.id, is_connected=was_connected)
        asked_at = now()
        try:
            answer = read(await peers.call(contact, endpoint, request, timeout_s=timeout_s))
        except UNREACHABLE as error:
            if _was_tried(error):
                self._on_silence(contact, was_connected, asked_at)
            raise
        except InvalidMessageError:
            self._presence.on_heard()
            self._on_failure(contact)
            raise
        except RemoteError as error:
            self._presence.on_heard()
            if not _is_no_fault(error, endpoint):
                self._on_failure(contact)
            raise
        finally:
            if is_hearsay:
                self._give_back(contact)
        self._presence.on_heard()
        self._round_trips.on_answer(contact.id, now() - asked_at, was_connected=was_connected)
        addresses = peers.proved_addresses(contact.id)
        if addresses:
            self._observe(contact if contact.addresses == addresses else shared_contact(contact.id, addresses))
        elif contact.addresses:
            self._on_candidate(contact)
        return answer

    def _on_silence(self, contact: Contact, was_connected: bool, asked_at: float) -> None:
        # A dial that succeeded and took all the time there was: slow it is, and no evidence that nobody is there.
        is_gone = was_connected or not self._host.peers.is_connected(contact.id)
        if is_gone and self._presence.on_silence(contact.id, asked_at):
            self._on_failure(contact)

    def _on_failure(self, contact: Contact) -> None:
        now = self._host.runtime.now()
        self._dead.add(contact, now)
        if (evicted := self._table.on_failure(contact.id, now)) is not None:
            self._estimate.on_lost()
            self._on_gone(evicted)

    def _observe(self, contact: Contact) -> None:
        self._dead.remove(contact)
        if self._table.observe(contact, self._host.runtime.now()) is Observation.ADDED:
            self._on_added(contact)


def _was_tried(error: Exception) -> bool:
    """Whether a request that failed so was sent, or a dial at least made."""
    return not isinstance(error, PeerUnavailable) or error.was_tried


def _is_no_fault(error: RemoteError, endpoint: str) -> bool:
    """Whether a good contact may say so: one that has much to do, or is of an earlier release."""
    return error.code == Code.BUSY or (error.code == Code.NOT_FOUND and endpoint in LATER_ENDPOINTS)


class _Turn:
    """Who may make a guarded lookup of one key, and how many want to."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0


class _Standing:
    """What this node knows of others: the `lookup.Peers` of its lookups."""

    def __init__(
        self, host: Host, table: RoutingTable, round_trips: RoundTrips, dead: Pauses[Contact], group_of: GroupOf
    ) -> None:
        self._host = host
        self._table = table
        self._round_trips = round_trips
        self._dead = dead
        self.group_of = group_of

    def timeouts_s(self, contact: Contact) -> tuple[float, float]:
        return self._round_trips.timeouts_s(contact.id, is_connected=self._host.peers.is_connected(contact.id))

    def is_connected(self, contact: Contact) -> bool:
        return self._host.peers.is_connected(contact.id)

    def rtt_s(self, contact: Contact) -> float:
        return self._round_trips.rtt_s(contact.id)

    def is_resting(self, contact: Contact) -> bool:
        if not len(self._dead):
            return False
        # Where a request would go: the address that we proved, if there is one.
        return self._dead.is_paused(self._table.get(contact.id) or contact, self._host.runtime.now())


class _Run:
    """One lookup under way: polls the machine, sends what it says, and polls again when something came back."""

    def __init__(
        self,
        lookup: Lookup,
        ask: AskOne,
        scope: TaskScope,
        host: Host,
        on_silence: Callable[[Contact, bool, float], None],
    ) -> None:
        self._lookup = lookup
        self._ask = ask
        self._scope = scope
        self._now = host.runtime.now
        self._is_connected = host.peers.is_connected
        self._on_silence = on_silence
        # Whose answers are awaited, who was connected then, and since when.
        self._asked: dict[NodeID, tuple[Contact, bool, float]] = {}
        self._loop = asyncio.get_running_loop()
        self._stop: asyncio.Future[Widen | LookupOutcome]  # of each `next_stop`, which makes it
        self._timer: asyncio.TimerHandle | None = None
        self._wakes_at = 0.0

    async def next_stop(self) -> Widen | LookupOutcome:
        """Run until the machine is at its end, or wants to widen."""
        self._stop = self._loop.create_future()
        try:
            self._go_on()
            return await self._stop
        finally:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _go_on(self) -> None:
        """Act on what has come in. Whoever brings it calls this: no task waits for it to happen, of which there would
        be one more for every answer.
        """
        try:
            self._act()
        except Exception as error:
            # An error of our own, and here it would end an asked contact's task, or a timer: whoever waits has to know.
            self._stop.set_exception(error)

    def _act(self) -> None:
        """Do what the machine says until it has to wait."""
        while not self._stop.done():
            match self._lookup.poll(self._now()):
                case Ask(contacts):
                    for contact in contacts:
                        self._scope.spawn(self._ask_one(contact))
                case Wait(until):
                    self._wake_at(until)
                    return
                case Widen() as widen:
                    self._stop.set_result(widen)
                case Finished(outcome):
                    self._report_silent(outcome)
                    self._stop.set_result(outcome)

    def _report_silent(self, outcome: LookupOutcome) -> None:
        """Tell of those that the machine gave up on and whose requests end now, before their own time is up."""
        if not self._asked:
            return
        given_up = {step.contact_id for step in outcome.trace if step.event is TraceEvent.FAILED}
        for contact, was_connected, asked_at in self._asked.values():
            if contact.id in given_up:
                self._on_silence(contact, was_connected, asked_at)

    async def _ask_one(self, contact: Contact) -> None:
        self._asked[contact.id] = contact, self._is_connected(contact.id), self._now()
        try:
            closer, is_found, *version = await self._ask(contact)
        except (*UNREACHABLE, RemoteError, InvalidMessageError) as error:
            del self._asked[contact.id]
            self._lookup.on_failure(contact.id, self._now(), was_tried=_was_tried(error))
        else:
            del self._asked[contact.id]
            if is_found:
                self._lookup.on_found(contact.id, closer, self._now(), version=version[0] if version else 0)
            else:
                self._lookup.on_reply(contact.id, closer, self._now())
        self._go_on()

    def _wake_at(self, until: float) -> None:
        # A timer that is early only has the machine say again when; one that is late must not be.
        if self._timer is not None and self._wakes_at > until:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._wakes_at = until
            self._timer = self._loop.call_later(max(0.0, until - self._now()), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._go_on()
