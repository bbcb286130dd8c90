"""Renewals from their owner to all storers: who is asked for what, what it saves, and who needs the whole record."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.agents.index import capability_key
from dht.agents.record import AgentRecord, CapabilityClaim, Reach
from dht.agents.renewal import Renewal, with_renewal
from dht.announcing import PublishReport
from dht.config import DHTConfig, LookupConfig, RoutingConfig
from dht.contact import Contact
from dht.keyspace import distance
from dht.messages import MAX_RENEWED_PLACES, RecordPlace
from dht.node import DHTNode
from dht.renewing import WATCHERS, HeldPlace, batches_of
from simulations.network import ConstantLatency, Digest, VirtualHost, VirtualNetwork
from simulations.oracle import introduce_everybody
from simulations.virtual_loop import run
from synapse_p2p.identity import Identity, NodeID, network_id_of

NETWORK_ID = network_id_of("")
LEASE_S = 300.0
SKILLS = tuple(f"skill-{number:02}" for number in range(16))


class Ledger(Digest):
    """Counts what arrives, by endpoint, of messages that one host sent or gets: messages, and bytes of their bodies."""

    def __init__(self) -> None:
        super().__init__()
        self.of: NodeID = b""
        self.messages: Counter[str] = Counter()
        self.size_bytes: Counter[str] = Counter()

    def add_message(self, at_us: int, source: NodeID, target: NodeID, endpoint: str, body: bytes) -> None:
        super().add_message(at_us, source, target, endpoint, body)
        if self.of in (source, target):
            self.messages[endpoint] += 1
            self.size_bytes[endpoint] += len(body)

    def begin(self, of: NodeID) -> None:
        self.of = of
        self.messages.clear()
        self.size_bytes.clear()


class Swarm:
    """Nodes that know each other, the first of which owns a record with 16 capabilities."""

    def __init__(self, count: int, *, k: int = 20, skills: Sequence[str] = SKILLS) -> None:
        self.rng = random.Random(11)
        self.ledger = Ledger()
        self.network = VirtualNetwork(asyncio.get_running_loop(), self.rng, ConstantLatency(), self.ledger)
        self._k = k
        self._config = DHTConfig(lookup=LookupConfig(k=k), routing=RoutingConfig(k=k))
        self.hosts = [self.network.host() for _ in range(count)]
        self.nodes = {host.id: DHTNode(host, config=self._config) for host in self.hosts}
        self.owner = self.hosts[0]
        self.node = self.nodes[self.owner.id]
        self._skills = skills
        self.record = self._sign(1)
        self.sealed = self.record.seal(self.owner.identity)

    async def __aenter__(self) -> Swarm:
        for node in self.nodes.values():
            await node.start()
        contacts = [Contact(host.id, host.advertised_addresses) for host in self.hosts]
        introduce_everybody(list(self.nodes.values()), contacts, k=self._k, rng=self.rng, now=0.0)
        return self

    async def __aexit__(self, *_: object) -> None:
        for node in self.nodes.values():
            await node.stop()

    def _sign(self, seq: int) -> AgentRecord:
        now_ms = round(self.owner.runtime.unix_now() * 1000)
        return AgentRecord(
            public_key=self.owner.identity.public_key,
            seq=seq,
            issued_ms=now_ms,
            expires_ms=now_ms + round(LEASE_S * 1000),
            network_id=NETWORK_ID,
            addresses=self.owner.advertised_addresses,
            reach=Reach.DIRECT,
            name="Reviewer",
            role="reviewer",
            description="Reviews Python code, and what is written about it.",
            capabilities=tuple(CapabilityClaim(name, "1.0.0") for name in self._skills),
        )

    async def publish(self, seq: int = 1) -> list[PublishReport]:
        """The whole record, as it was before there were renewals."""
        self.record = self._sign(seq)
        self.sealed = self.record.seal(self.owner.identity)
        return [await self.node.publish(self.sealed, self.record, name) for name in self.record.indexed_names()]

    async def renew(self, seq: int) -> list[PublishReport]:
        signed = self._sign(seq)
        times = {"seq": seq, "issued_ms": signed.issued_ms, "expires_ms": signed.expires_ms}
        renewal = Renewal.of(self.sealed, **times).seal(self.owner.identity)
        self.record = replace(self.record, **times)
        return await self.node.renew(renewal, with_renewal(self.sealed, renewal), self.record)

    def key(self, name: str) -> bytes:
        return capability_key(NETWORK_ID, name, self.owner.id, 0)

    def storers(self, name: str, *, seq: int | None = None) -> list[VirtualHost]:
        """The others who keep the record under a name, in this version, nearest first."""
        now, key = self.owner.runtime.now(), self.key(name)
        hosts = [
            host
            for host in self.hosts
            if host is not self.owner
            and any(
                stored.owner == self.owner.id and seq in (None, stored.seq)
                for stored in self.nodes[host.id].store.get(key, now)
            )
        ]
        return sorted(hosts, key=lambda host: distance(host.id, key))

    async def newcomer_nearer_to(self, key: bytes, node_id: NodeID) -> VirtualHost:
        """Somebody who joins, nearer to a key than this node."""
        identity = Identity.from_seed(self.rng.randbytes(32))
        while distance(identity.node_id, key) >= distance(node_id, key):
            identity = Identity.from_seed(self.rng.randbytes(32))
        host = self.network.host(identity=identity)
        self.hosts.append(host)
        node = self.nodes[host.id] = DHTNode(host, config=self._config)
        await node.start()
        await node.join([self.hosts[1].advertised_addresses[0]])
        return host

    async def kill(self, host: VirtualHost) -> None:
        host.crash()
        self.hosts.remove(host)
        await self.nodes.pop(host.id).stop()


# Who is asked for what


@given(
    st.lists(st.lists(st.integers(0, 9), max_size=8, unique=True), max_size=80),
)
def test_every_storer_has_each_of_its_places_in_one_request_and_watches_where_it_is_near(storers: list[list[int]]):
    contacts = [Contact(bytes([number]) * 32, (f"10.0.0.{number + 1}:9000",)) for number in range(10)]
    held = [
        HeldPlace(RecordPlace(f"skill-{number}", number % 3), tuple(contacts[each] for each in ids))
        for number, ids in enumerate(storers)
    ]

    batches = batches_of(held)

    asked = [(batch.storer, place) for batch in batches for place in batch.places]
    watched = [(batch.storer, place) for batch in batches for place in batch.places[: batch.watched]]
    assert Counter(asked) == Counter((storer, each.place) for each in held for storer in each.storers)
    assert Counter(watched) == Counter((storer, each.place) for each in held for storer in each.storers[:WATCHERS])
    assert all(0 < len(batch.places) <= MAX_RENEWED_PLACES for batch in batches)
    per_storer = Counter(batch.storer for batch in batches)
    places = Counter(storer for storer, _ in asked)
    assert all(count == -(-places[storer] // MAX_RENEWED_PLACES) for storer, count in per_storer.items())


# What it saves


@pytest.mark.parametrize(
    ("count", "fewer_messages", "fewer_bytes"),
    [
        pytest.param(30, 10, 9, id="30 nodes, each of which keeps most of its places"),
        pytest.param(70, 4, 7, id="70 nodes, most of which keep a few", marks=pytest.mark.gates),
    ],
)
def test_a_lease_of_renewals_costs_an_agent_with_16_capabilities_a_part_of_what_it_did(
    count: int, fewer_messages: float, fewer_bytes: float
):
    async def main() -> None:
        async with Swarm(count) as swarm:
            await swarm.publish()
            spent: dict[str, tuple[int, int]] = {}
            seq = 1
            for what, renew in (("whole records", swarm.publish), ("renewals", swarm.renew)):
                await asyncio.sleep(1)
                swarm.ledger.begin(swarm.owner.id)
                for _ in range(2):  # a lease has two halves
                    await asyncio.sleep(LEASE_S / 2)
                    seq += 1
                    reports = await renew(seq)
                    assert all(report.is_kept and not report.lookups for report in reports)
                    assert sum(report.stored for report in reports) >= 16 * 20
                endpoints = ("_dht.store", "_dht.renew", "_dht.find_node", "_dht.find_value")
                messages = sum(swarm.ledger.messages[name] for name in endpoints)
                size_bytes = sum(swarm.ledger.size_bytes[name] for name in endpoints)
                spent[what] = messages, size_bytes
                print(f"{count} nodes, {what}: {messages} messages and {size_bytes / 1000:.0f} kB a lease")
            assert all(len(swarm.storers(name, seq=seq)) >= 19 for name in SKILLS)
            (messages, size_bytes), (fewer, smaller) = spent["whole records"], spent["renewals"]
            print(f"{count} nodes: {messages / fewer:.1f} times fewer messages, {size_bytes / smaller:.1f} fewer bytes")
            assert messages >= fewer_messages * fewer
            assert size_bytes >= fewer_bytes * smaller

    run(main())


# Who lacks it


def test_who_lost_the_record_or_has_another_version_gets_the_whole():
    async def main() -> None:
        async with Swarm(30, skills=SKILLS[:3]) as swarm:
            await swarm.publish()
            forgetful, behind = swarm.storers(SKILLS[0])[:2]
            store = swarm.nodes[forgetful.id].store
            assert store.remove(swarm.key(SKILLS[0]), swarm.owner.id) is not None
            key = swarm.key(SKILLS[1])
            held = swarm.nodes[behind.id].store.find(key, swarm.owner.id)
            await swarm.publish(2)
            if held is not None:  # it was cut off, and comes back with what it had
                swarm.nodes[behind.id].store.remove(key, swarm.owner.id)
                swarm.nodes[behind.id].store.put(key, held, swarm.owner.runtime.now())
            store.remove(swarm.key(SKILLS[0]), swarm.owner.id)
            before = {name: [host.id for host in swarm.storers(name)] for name in SKILLS[:3]}
            swarm.ledger.begin(swarm.owner.id)

            reports = await swarm.renew(3)

            assert held is not None
            assert swarm.ledger.messages["_dht.store"] == 2 * 2  # two requests, and their answers
            assert [report.refusals for report in reports] == [(), (), ()]
            for name in SKILLS[:3]:
                assert {host.id for host in swarm.storers(name, seq=3)} >= {*before[name]}
            assert forgetful in swarm.storers(SKILLS[0], seq=3)

    run(main())


def test_a_storer_of_an_earlier_release_gets_whole_records_and_stays_a_contact():
    async def main() -> None:
        async with Swarm(25, skills=SKILLS[:2]) as swarm:
            await swarm.publish()
            old = swarm.storers(SKILLS[0])[0]
            del old.endpoints._mounted["_dht.renew"]

            for seq in range(2, 6):
                await asyncio.sleep(LEASE_S / 2)
                reports = await swarm.renew(seq)

            assert [report.refusals for report in reports] == [(), ()]
            assert old in swarm.storers(SKILLS[0], seq=5)
            assert swarm.node.routing_table.get(old.id) is not None
            assert swarm.node.routing_table.suspect_count() == 0

    run(main())


def test_storers_who_died_are_replaced_where_they_were_too_many_or_the_nearest():
    async def main() -> None:
        async with Swarm(60, k=8, skills=SKILLS[:1]) as swarm:
            await swarm.publish()
            nearest = swarm.storers(SKILLS[0])[:WATCHERS]
            for host in nearest:
                await swarm.kill(host)

            reports = await swarm.renew(2)

            assert [report.lookups for report in reports] == [1]
            assert len(swarm.storers(SKILLS[0], seq=2)) >= 7

    run(main())


def test_a_newcomer_at_the_key_is_heard_of_and_gets_the_record():
    async def main() -> None:
        async with Swarm(60, k=8, skills=SKILLS[:1]) as swarm:
            await swarm.publish()
            key = swarm.key(SKILLS[0])
            storers = swarm.storers(SKILLS[0])
            newcomer = await swarm.newcomer_nearer_to(key, storers[0].id)

            reports = await swarm.renew(2)

            assert [report.lookups for report in reports] == [1]
            assert newcomer in swarm.storers(SKILLS[0], seq=2)

    run(main())


def test_a_renewal_of_what_was_never_published_brings_the_whole_record():
    async def main() -> None:
        async with Swarm(25, skills=SKILLS[:2]) as swarm:
            reports = await swarm.renew(2)

            assert all(report.is_kept for report in reports)
            assert len(swarm.storers(SKILLS[0], seq=2)) >= 19

    run(main())


# Copies


def test_a_newcomer_is_offered_the_renewed_record_and_the_next_renewal_is_good_there():
    async def main() -> None:
        async with Swarm(60, k=8, skills=SKILLS[:1]) as swarm:
            await swarm.publish()
            await asyncio.sleep(LEASE_S / 2)
            await swarm.renew(2)
            key = swarm.key(SKILLS[0])
            newcomer = await swarm.newcomer_nearer_to(key, swarm.storers(SKILLS[0])[0].id)
            await asyncio.sleep(LEASE_S * 0.75)  # the lease of what was signed at first is over

            assert newcomer in swarm.storers(SKILLS[0], seq=2)

            await swarm.renew(3)  # finds the newcomer
            swarm.ledger.begin(newcomer.id)
            await swarm.renew(4)

            assert newcomer in swarm.storers(SKILLS[0], seq=4)
            assert swarm.ledger.messages["_dht.renew"] == 2
            assert swarm.ledger.messages["_dht.store"] == 0

    run(main())


def test_who_holds_an_older_renewal_is_brought_the_newer_one_by_the_other_storers():
    async def main() -> None:
        async with Swarm(30, skills=SKILLS[:1]) as swarm:
            await swarm.publish()
            await swarm.renew(2)
            behind, key = swarm.storers(SKILLS[0])[3], swarm.key(SKILLS[0])
            store = swarm.nodes[behind.id].store
            old = store.find(key, swarm.owner.id)
            assert old is not None
            await swarm.renew(3)
            store.remove(key, swarm.owner.id)
            store.put(key, old, swarm.owner.runtime.now())
            other = swarm.storers(SKILLS[0])[0]
            contact = Contact(behind.id, behind.advertised_addresses)

            await swarm.nodes[other.id]._replication.offer_to(contact)

            assert behind in swarm.storers(SKILLS[0], seq=3)

    run(main())
