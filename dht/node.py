"""A node of the overlay: wires the routing table, the store, those who ask and those who answer. It decides nothing
itself.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable

from dht.admission import Candidates
from dht.agents.index import capability_key
from dht.agents.query import Query, parse_query
from dht.agents.record import AgentRecord, is_news
from dht.announcing import Announcing, PublishReport
from dht.bootstrap import Bootstrap, JoinReport, SeedAddress, SeedState
from dht.config import DHTConfig
from dht.contact import Contact
from dht.dial_policy import DialDecision, DialPolicy
from dht.events import EventFeed, Events
from dht.exceptions import RecordRefused
from dht.finding import Finding, ProvidersFound
from dht.getting import Getting
from dht.keyspace import Key
from dht.lookup import LookupMode, LookupOutcome
from dht.maintenance import Maintenance
from dht.node_memory import NodeMemory
from dht.own_values import OwnValues
from dht.owned import MutableValue, PutReport
from dht.presence import Loss, Presence, Stall
from dht.putting import Putting
from dht.reach_watch import ReachWatch
from dht.records import RecordKind
from dht.recovery import Recovery
from dht.region import SPACE, RegionEstimate, groups_of
from dht.replication import Replication
from dht.requester import UNREACHABLE, Requester
from dht.responder import Responder
from dht.results import SwarmMode
from dht.routing import Change, RoutingTable
from dht.status import NodeStatus
from dht.store import RecordStore
from dht.stored_record import StoredRecord
from synapse_p2p.background import TaskScope
from synapse_p2p.exceptions import InvalidMessageError, RemoteError
from synapse_p2p.identity import NodeID
from synapse_p2p.peers import Host
from synapse_p2p.transport.base import parse_address

MAX_CHECK_DIALS_AT_ONCE = 4
CLOCK_SAMPLE = 4
"""Contacts looked at for each party whose clock is wanted: some are of one party."""
MAX_FAREWELLS = 64
"""Contacts told that we go: our neighbours, and as many with a session as there are idle ones at most."""


class DHTNode:
    """Joins, looks up, publishes and serves. Mount it on a host, then `await start()`.

    A host without an address that others can dial makes a client: it asks, stores for nobody and enters no routing
    table.
    """

    def __init__(
        self,
        host: Host,
        *,
        config: DHTConfig | None = None,
        store: RecordStore | None = None,
        data_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        """With `data_dir`, a folder that no other node uses, records and the best peers outlive the process; where a
        `store` is given, that one holds the records, and whoever gave it closes it. Without both they are in memory.
        """
        self._host = host
        self._config = config or DHTConfig()
        self.routing_table = RoutingTable(
            host.identity.node_id, self._config.routing, host.trust, on_changed=self._on_changed
        )
        self._memory = NodeMemory(self._config, host.runtime, store, data_dir)
        self.store: RecordStore = self._memory.store
        self._events = Events()
        self._presence = Presence(
            host.runtime, self.routing_table, self._config.health, events=self._events, on_back=self._on_back
        )
        self._presence.watch(self.store)
        self._dial_policy = DialPolicy(self._config.dial, host.trust, own_addresses=lambda: host.advertised_addresses)
        self._candidates = Candidates(
            pause_s=self._config.check_dial_pause_s,
            source_pause_s=self._config.check_dial_source_pause_s,
            trust=host.trust,
        )
        group_of = groups_of(host.trust)
        self.estimate = RegionEstimate(host.identity.node_id, self._config.lookup)
        self._requester = Requester(
            host,
            self.routing_table,
            self._config,
            self._dial_policy,
            on_added=self._on_added,
            on_gone=self._on_gone,
            on_candidate=self._on_heard,
            presence=self._presence,
            estimate=self.estimate,
            group_of=group_of,
        )
        self._responder = Responder(
            host,
            self.routing_table,
            self.store,
            self._config,
            on_candidate=self._on_candidate,
            on_prove=self._on_prove,
            on_heard=self._presence.on_heard,
            on_leaving=self._on_leaving,
            on_returning=self._on_returning,
            on_kept=self._on_kept,
            trust=host.trust,
            estimate=self.estimate,
            group_of=group_of,
        )
        self._reach = ReachWatch(host, self._config, self.routing_table, self._requester, self._presence)
        self._putting = Putting(
            host, self._config, self._requester, self.estimate, is_node=lambda: bool(self._reach.addresses)
        )
        self._finding = Finding(host, self._config, self._requester, self._responder)
        self._announcing = Announcing(self._config, self._requester, self._putting, self._responder)
        self._getting = Getting(host, self._config, self._requester, self._putting, self.store)
        self._own_values = OwnValues(
            host,
            self._config,
            putting=self._putting,
            responder=self._responder,
            reader=self._responder.reader,
            is_clock_wrong=lambda: self._presence.is_clock_wrong,
        )
        self._replication = Replication(
            host,
            self._config,
            table=self.routing_table,
            estimate=self.estimate,
            store=self.store,
            requester=self._requester,
            names_under=self._capabilities_under,
        )
        self._bootstrap = Bootstrap(host, self.routing_table, self._requester, self._config, self.estimate)
        self._recovery = Recovery(
            host,
            self.routing_table,
            self._requester,
            self._bootstrap,
            self._presence,
            look_s=self._config.health.look_s,
            knock=self._knock,
        )
        self._recovery.on_resumed.append(self._own_values.renew_all)
        self._seeds: tuple[SeedAddress, ...] = ()
        self._check_dials = 0
        self._compare_clocks_at = 0.0
        self._knocking: asyncio.Task[None] | None = None
        self._scope: TaskScope | None = None
        self._maintenance: Maintenance | None = None
        host.mount("_dht.", self._responder.endpoints())

    @property
    def id(self) -> NodeID:
        """Who this node is."""
        return self._host.identity.node_id

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where others dial it; empty for a client, as a node becomes that nobody can dial."""
        return self._reach.addresses

    @property
    def port(self) -> int:
        """The port of the first of these; 0 for a client."""
        addresses = self.addresses
        return parse_address(addresses[0])[1] if addresses else 0

    @property
    def is_out_of_reach(self) -> bool:
        """Whether nobody can dial it, though it listens."""
        return bool(self._host.advertised_addresses) and not self.addresses

    @property
    def maintenance(self) -> Maintenance:
        """The node's scheduler; others may give it jobs."""
        assert self._maintenance is not None, "the node is not started"
        return self._maintenance

    async def start(self) -> None:
        """Begin to look after the routing table and the store. A second call does nothing."""
        if self._scope is None:
            self._check_dials = 0
            self._scope = TaskScope(f"node {self.id.hex()[:8]}")
            self._maintenance = Maintenance(self._host.runtime, self._scope)
            self._maintenance.every("refresh", self._config.refresh_s / 4, self._refresh)
            self._maintenance.every("liveness", self._config.liveness_s, self._ping_stale)
            self._maintenance.every("seeds", self._config.liveness_s, self._knock_while_few)
            self._maintenance.every("expire", self._config.expire_s, self._expire)
            self._maintenance.every("measure", self._config.liveness_s, self._bootstrap.measure)
            self._maintenance.every("replicate", self._config.replicate_look_s, self._replication.copy_due)
            self._maintenance.every("renew", self._config.renew_look_s, self._own_values.renew_due)
            self._presence.start()
            self._maintenance.beat(self._config.health.beat_s, self._beat)
            self._maintenance.every("address", self._config.liveness_s, self._watch_address)
            self._maintenance.every("clock", self._config.liveness_s, self._compare_clocks)
            self._maintenance.every("remember", self._config.remember_s, self._remember)

    async def stop(self) -> None:
        """End every task of the node, and with them the events. The table and the store stay as they are; what is
        kept in `data_dir` is saved for the last time.
        """
        self._presence.stop()
        self._events.close()
        maintenance, self._maintenance = self._maintenance, None
        scope, self._scope = self._scope, None
        if maintenance is not None:
            maintenance.stop()
        try:
            if scope is not None:
                await scope.close()
        finally:
            if scope is not None:
                self._memory.remember(self.routing_table)
            self._memory.close()

    async def leave(self) -> None:
        """Stop, and before that tell our neighbours that we go, so that nobody waits for us in vain.

        It takes no more than `leave_timeout_s` longer than `stop`. Stopped already, it does nothing.
        """
        if self._scope is None:
            return
        try:
            if self._host.advertised_addresses:  # a client is in nobody's table
                await self._say_farewell()
        finally:
            await self.stop()

    async def _say_farewell(self) -> None:
        peers, own_id = self._host.peers, self.id
        connected = [contact for contact in self.routing_table if peers.is_connected(contact.id)]
        nearest = self.routing_table.closest(own_id, self._config.lookup.k)
        # The nearest come first: they are asked for our keys.
        told = {contact.id: contact for contact in (*nearest, *connected)}
        async with TaskScope("farewell") as scope:
            tasks = [
                scope.spawn_awaited(self._requester.say_farewell(contact))
                for contact in list(told.values())[:MAX_FAREWELLS]
            ]
            if tasks:
                await asyncio.wait(tasks, timeout=self._config.leave_timeout_s)
            for task in tasks:
                if task.done() and not task.cancelled():
                    task.exception()  # who does not answer finds out by itself

    def status(self) -> NodeStatus:
        """A look at this node, without asking anybody. Cost: some microseconds for each contact."""
        return NodeStatus(
            id=self.id,
            mode=SwarmMode.NODE if self.addresses else SwarmMode.CLIENT,
            contacts=len(self.routing_table),
            suspects=self.routing_table.suspect_count(),
            size_estimate=self.estimate.size,
            region_share=min(1.0, max(0, self.estimate.region.radius + 1) / SPACE),
            records_held=len(self.store),
            own_records=len(self._own_values.owned),
            is_connected=not self._is_alone,
            clock_ahead_s=self._presence.clock_ahead_s,
            seeds=tuple(seed.text for seed in self._seeds),
            join=self.join_report(),
        )

    @property
    def is_clock_wrong(self) -> bool:
        """Whether our wall clock is so far from those of others that records suffer; there is one warning then."""
        return self._presence.is_clock_wrong

    @property
    def last_stall(self) -> Stall | None:
        """The latest time in which nothing ran in this process; None before the first, and the machine's sleep is
        none.
        """
        return self._presence.last_stall

    def events(self) -> EventFeed:
        """What happens from now on until the node stops, for one listener: an async iterator of `dht.events`."""
        return self._events.feed()

    @property
    def on_resumed(self) -> list[Callable[[], Awaitable[None]]]:
        """What is called when others may have given this node up: owners of records put theirs anew."""
        return self._recovery.on_resumed

    async def join(self, seeds: Iterable[str]) -> JoinReport:
        """Enter the swarm through these addresses, `host:port` or `id@host:port`, beside those given before.

        The report is on these. Raises ConfigError for text that is no address, never for a seed that fails.
        """
        asked = tuple(dict.fromkeys(SeedAddress.parse(seed) for seed in seeds))
        self._seeds = tuple(dict.fromkeys((*self._seeds, *asked)))
        return await self._bootstrap.join(asked, () if len(self.routing_table) else self._memory.peers)

    @property
    def has_joined(self) -> bool:
        """Whether anybody ever let us in."""
        report = self.join_report()
        return report.joined + report.remembered > 0

    def join_report(self) -> JoinReport:
        """How every seed given so far took it, as of now."""
        return self._bootstrap.report(self._seeds)

    async def find_node(self, node_id: NodeID) -> list[Contact]:
        """The live contacts nearest to an id, nearest first, at most k."""
        return list((await self.lookup(node_id, LookupMode.STRICT)).closest)

    async def lookup(self, target: Key, mode: LookupMode) -> LookupOutcome:
        """One iterative search, with its trace."""
        await self._knock_if_alone()
        return await self._requester.lookup(target, mode)

    async def find_providers(
        self, capability: str, mode: LookupMode = LookupMode.STRICT, *, limit: int | None = None
    ) -> ProvidersFound:
        """Who has a normalised capability. Strict asks all k storers and joins what they say, fresh until three had
        nobody to add; fast ends at the first that knows anybody.
        """
        return await self.find_matching(parse_query([capability]), mode, limit=limit)

    async def find_matching(
        self,
        query: Query,
        mode: LookupMode = LookupMode.FRESH,
        *,
        limit: int | None = None,
        fits: Callable[[AgentRecord], bool] | None = None,
        on_taken: Callable[[AgentRecord], None] | None = None,
    ) -> ProvidersFound:
        """Who matches a query, and fits; about `limit` of them, at random, or all. `on_taken` is told of each at once,
        in the first version that was heard of.
        """
        await self._knock_if_alone()
        return await self._finding.providers(query, mode, limit=limit, fits=fits, on_taken=on_taken)

    def agents_held(self) -> list[AgentRecord]:
        """The agents whose records are in the store, each in its newest version, ours left out. Cost: O(n)."""
        newest: dict[NodeID, AgentRecord] = {}
        for _, stored in self.store.items(self._host.runtime.now()):
            is_others = stored.kind is RecordKind.AGENT and stored.owner != self.id
            if is_others and is_news(newest, stored.owner, stored.seq):
                try:
                    newest[stored.owner] = self._responder.read(stored.record)
                except RecordRefused:
                    continue  # it expired by its owner's clock
        return [record for record in newest.values() if record.gone is None]

    async def publish(self, envelope: bytes, record: AgentRecord, capability: str) -> PublishReport:
        """Store an agent's record under one of its capabilities, on all nodes of the key's region and on k in any case;
        maybe on ourselves too. Published again, it goes where it was.

        Inside the region the request of the lookup is the store itself: about 26 requests instead of 46.
        """
        return await self._announcing.publish(envelope, record, capability)

    async def renew(self, renewal: bytes, envelope: bytes, record: AgentRecord) -> list[PublishReport]:
        """Have an agent's record that `publish` brought to its storers live on by a renewal (`dht.agents.renewal`);
        `envelope` is the record with it. The body goes only where it is missing. Cost: a request to each storer.
        """
        return await self._announcing.renew(renewal, envelope, record)

    async def withdraw(self, envelope: bytes, record: AgentRecord, capability: str) -> None:
        """Have a tombstone of an agent take the place of its record under a capability, where `publish` brought it."""
        await self._announcing.withdraw(envelope, record, capability)

    # Values

    async def put(self, value: bytes, *, ttl_s: float | None = None) -> PutReport:
        """Have a value of at most 16 KiB kept by the nodes nearest to its key, which follows from the value. It lives
        for `ttl_s`, a day without, and is renewed until `delete` or `stop`.

        Raises ConfigError for a value or a time out of bounds. Cost: about 26 requests.
        """
        return (await self.put_many([value], ttl_s=ttl_s))[0]

    async def put_many(self, values: Iterable[bytes], *, ttl_s: float | None = None) -> list[PutReport]:
        """The same for many at once: one search for all that lie together, so about 22 requests each."""
        await self._knock_if_alone()
        return self._on_put(*await self._own_values.put(values, ttl_s=ttl_s))

    async def put_mutable(
        self, value: bytes, *, salt: bytes = b"", ttl_s: float | None = None, expected_seq: int | None = None
    ) -> PutReport:
        """Have the next version of a value kept, under a key that follows from our own and `salt`.

        With `expected_seq` it replaces that version and no other (0: none). Raises ConfigError as `put`, and for a key
        that was revoked.
        """
        await self._knock_if_alone()
        report = await self._own_values.put_mutable(value, salt=salt, ttl_s=ttl_s, expected_seq=expected_seq)
        return self._on_put(report)[0]

    async def delete(self, key: Key) -> PutReport:
        """Take back a value that this node put. A tombstone takes the place of a mutable one; an immutable one is
        renewed no more, and ends with its time. Raises ConfigError for others' values.
        """
        await self._knock_if_alone()
        return await self._own_values.delete(key)

    async def get(self, key: Key) -> bytes | None:
        """The value under a key; None where there is none, or it was deleted. Of a mutable one the newest version that
        three parties among its storers hold, and none that is older than one that this node has read before.
        Cost: about 4 requests, and 1 over an open session.
        """
        await self._knock_if_alone()
        return (await self._getting.read(key, self._responder.reader, self._scope)).value

    async def get_mutable(self, key: Key) -> MutableValue | None:
        """The same with its version, deleted ones included; None where none was found, or the value has no versions."""
        await self._knock_if_alone()
        newest = (await self._getting.read(key, self._responder.reader, self._scope)).newest
        return None if newest is None else MutableValue.of(newest)

    def _on_put(self, *reports: PutReport) -> list[PutReport]:
        for report in reports:
            self._getting.on_stored(report.key)
        return list(reports)

    # What a newcomer brings about

    def _on_heard(self, contact: Contact) -> None:
        """Somebody answered over a session that no dial of ours opened. Where we know it to listen, it lives there.

        Where others say that it listens proves nothing and is not dialed: it is a candidate when it asks us something.
        """
        known = self.routing_table.get(contact.id)
        if known is not None and known.addresses[:1] == contact.addresses[:1]:
            self._requester.on_heard_from(known)
            self.routing_table.observe(known, self._host.runtime.now())

    def _on_candidate(self, contact: Contact) -> None:
        """Somebody asked us something who listens where it was seen, as it says. A check dial has to prove that."""
        now = self._host.runtime.now()
        known = self.routing_table.get(contact.id)
        if known is not None and known.addresses[:1] == contact.addresses[:1]:
            self._requester.on_heard_from(known)
            self.routing_table.observe(known, now)
        elif self._scope is not None and (known is not None or self.routing_table.has_room(contact)):
            self._candidates.offer(contact, now)
            self._begin_check_dials(self._scope)

    def _on_prove(self, contact: Contact) -> bool:
        """Somebody wants to know whether we can dial it where it was seen. Whether that is done now."""
        if self._scope is None or not self._is_allowed(contact):
            return False
        is_next = self._candidates.offer(contact, self._host.runtime.now(), has_asked=True)
        self._begin_check_dials(self._scope)
        return is_next

    def _begin_check_dials(self, scope: TaskScope) -> None:
        if len(self._candidates) > self._check_dials and self._check_dials < MAX_CHECK_DIALS_AT_ONCE:
            self._check_dials += 1
            scope.spawn(self._check_candidates(), name="check dials")

    def _is_wanted(self, contact: Contact) -> bool:
        """Whether a candidate is dialed now that it is its turn: others may have come in meanwhile."""
        if not self.routing_table.has_room(contact) and contact.id not in self.routing_table:
            return False
        return self._is_allowed(contact)

    def _is_allowed(self, contact: Contact) -> bool:
        address = contact.addresses[0]
        return self._dial_policy.judge(address, informer=address) is DialDecision.DIAL

    async def _check_candidates(self) -> None:
        try:
            while (candidate := self._candidates.take(self._host.runtime.now())) is not None:
                contact, has_asked = candidate
                if has_asked or self._is_wanted(contact):
                    await self._requester.check_dial(contact)
        finally:
            self._check_dials -= 1

    def _on_added(self, contact: Contact) -> None:
        if self._scope is not None and len(self.store):
            self._scope.spawn(self._replication.offer_to(contact), name="offer records to a newcomer")

    def _on_gone(self, contact: Contact) -> None:
        self._candidates.forget(contact, self._host.runtime.now())
        self._replication.on_gone(contact)

    def _on_leaving(self, node_id: NodeID) -> None:
        contact = self.routing_table.remove(node_id, self._host.runtime.now())
        if contact is not None:
            self._requester.on_left(contact)
            self._on_gone(contact)

    def _on_returning(self, node_id: NodeID) -> None:
        contact = self.routing_table.get(node_id)
        if contact is None or self._scope is None or not len(self.store):
            return
        if self._replication.is_offered_again(contact):
            self._scope.spawn(self._replication.offer_to(contact), name="offer records to one that is back")

    def _on_kept(self, key: Key, stored: StoredRecord, bringer: NodeID | None) -> None:
        self._getting.on_stored(key)
        if self._replication.on_kept(key, stored, bringer) and self._scope is not None:
            self._scope.spawn(self._replication.pass_on(), name="pass records on")

    def _capabilities_under(self, key: Key, stored: StoredRecord) -> list[str | None]:
        """For which capabilities a record is kept under a key; a value is for none, and that is one way to store it."""
        if stored.kind is not RecordKind.AGENT:
            return [None]
        try:
            record = self._responder.read(stored.record)
        except RecordRefused:
            return []  # it expired by its owner's clock
        return [
            name
            for name in record.indexed_names()
            if capability_key(record.network_id, name, record.owner, stored.depth) == key
        ]

    # What becomes of ourselves

    def _on_changed(self, contact: Contact, change: Change) -> None:
        self._presence.on_changed(contact, change)

    def _on_back(self, loss: Loss) -> None:
        self._requester.forgive(loss.silent)
        if self._scope is None:
            return
        if loss.lasted_s > self._config.health.drop_sessions_after_s:
            self._recovery.begin(self._scope)
        else:
            self._recovery.begin_asking(self._scope, loss.silent)

    def _beat(self) -> None:
        pause = self._presence.beat()
        if self._scope is None:
            return
        if pause is not None and self._presence.was_given_up(pause):
            self._recovery.begin(self._scope)
        elif pause is not None and self._presence.was_missed(pause):
            self._recovery.begin_announcing(self._scope)
        elif self._presence.is_network_lost:
            self._recovery.begin_looking(self._scope)

    # What is done again and again

    async def _refresh(self) -> None:
        await self._knock()
        await self._bootstrap.refresh()

    async def _knock_while_few(self) -> None:
        # In a large swarm everybody would knock at the same few seeds; there the rare refresh is enough.
        if len(self.routing_table) < self._config.lookup.k:
            await self._knock()

    async def _knock_if_alone(self) -> None:
        """Before a search that would ask nobody: the seeds may be back. Many searches at once knock once."""
        if not self._is_alone or not (self._seeds or self._memory.peers) or self._scope is None:
            return
        if self._knocking is None or self._knocking.done():
            self._knocking = self._scope.spawn_awaited(self._knock(), name="knock at the seeds")
        await asyncio.wait((self._knocking,))

    async def _knock(self) -> None:
        """Try the seeds again with which we have no session: one came up late, or came back and knows nobody."""
        peers = self._host.peers
        missing = tuple(
            seed
            for seed, report in zip(self._seeds, self.join_report().seeds, strict=True)
            if report.state is not SeedState.OURSELVES
            and (report.node_id is None or not peers.is_connected(report.node_id))
        )
        remembered = self._memory.peers if self._is_alone else ()
        if missing or remembered:
            await self._bootstrap.join(missing, remembered)

    @property
    def _is_alone(self) -> bool:
        return not len(self.routing_table) or self._presence.is_network_lost

    async def _ping_stale(self) -> None:
        for contact in self.routing_table.stale_contacts(self._host.runtime.now()):
            try:
                await self._requester.ping(contact)
            except (*UNREACHABLE, RemoteError, InvalidMessageError):
                pass  # the requester told the table

    async def _expire(self) -> None:
        if self.store.expire(self._host.runtime.now()):
            self._replication.forget_expired()
        self.store.flush()

    async def _watch_address(self) -> None:
        """Have our neighbours prove where we are once that has changed; owners of records see to theirs."""
        if self._reach.has_moved() or await self._reach.look():
            await self._bootstrap.announce()

    async def _compare_clocks(self) -> None:
        """Ask some parties for their time, every hour, and until enough of them have said."""
        now, health = self._host.runtime.now(), self._config.health
        if self._presence.clock_ahead_s is not None and now < self._compare_clocks_at:
            return
        self._compare_clocks_at = now + health.clock_s
        sample = self.routing_table.sample(CLOCK_SAMPLE * health.min_clock_parties, self._host.runtime.rng)
        by_party = {self._requester.party_of(contact): contact for contact in sample}
        if len(by_party) >= health.min_clock_parties:
            await self._recovery.ask(list(by_party.values())[: health.min_clock_parties])

    async def _remember(self) -> None:
        self._memory.remember(self.routing_table)
