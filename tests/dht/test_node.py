"""Whole nodes on a virtual network: who knows whom, who is found, and what becomes of records when others leave."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from dht.agents.index import capability_root
from dht.agents.record import AgentRecord, CapabilityClaim, Reach
from dht.announcing import PublishReport
from dht.config import DHTConfig, LookupConfig, RecordConfig, RoutingConfig
from dht.contact import Contact
from dht.keyspace import Key, distance
from dht.lookup import LookupMode
from dht.messages import FindValueAnswer
from dht.node import DHTNode
from simulations.network import LISTEN_PORT, ConstantLatency, Digest, VirtualHost, VirtualNetwork
from simulations.virtual_loop import run
from synapse_p2p.identity import Identity, network_id_of

SKILL = "code-review"
ROOT = capability_root(network_id_of(""), SKILL)


class Swarm:
    """Nodes that joined one after the other, each through a random member; the test is the onlooker."""

    def __init__(self, *, seed: int = 1, config: DHTConfig | None = None) -> None:
        self.rng = random.Random(seed)
        self.network = VirtualNetwork(asyncio.get_running_loop(), self.rng, ConstantLatency(), Digest())
        self.config = config
        self.members: list[tuple[VirtualHost, DHTNode]] = []

    async def __aenter__(self) -> Swarm:
        return self

    async def __aexit__(self, *_: object) -> None:
        for _, node in self.members:
            await node.stop()

    @property
    def hosts(self) -> list[VirtualHost]:
        return [host for host, _ in self.members]

    @property
    def nodes(self) -> list[DHTNode]:
        return [node for _, node in self.members]

    async def add(self, count: int = 1) -> list[tuple[VirtualHost, DHTNode]]:
        added = [await self.join(self.network.host()) for _ in range(count)]
        await asyncio.sleep(2)  # check dials
        return added

    async def join(self, host: VirtualHost, seeds: Sequence[str] | None = None) -> tuple[VirtualHost, DHTNode]:
        if seeds is None:
            live = [member.address for member in self.hosts if member.is_up and member.address]
            seeds = self.rng.sample(live, min(1, len(live)))
        node = DHTNode(host, config=self.config)
        await node.start()
        await node.join(seeds)
        self.members.append((host, node))
        return host, node

    async def end(self, host: VirtualHost, how: str = "crash") -> None:
        """The process of a member is gone, and its tasks with it."""
        getattr(host, how)()
        await next(node for member, node in self.members if member is host).stop()

    def node_of(self, host: VirtualHost) -> DHTNode:
        return next(node for member, node in self.members if member is host)

    def live_ids(self) -> set[bytes]:
        return {host.id for host in self.hosts if host.is_up and host.address}

    def nearest(self, target: Key, count: int, *, searcher: DHTNode) -> list[bytes]:
        others = self.live_ids() - {searcher.id}
        return sorted(others, key=lambda node_id: distance(node_id, target))[:count]


def make_record(
    host: VirtualHost,
    *,
    identity: Identity | None = None,
    capabilities: Sequence[str] = (SKILL,),
    seq: int = 1,
    life_s: float = 900,
    age_s: float = 0,
    network: str = "",
) -> AgentRecord:
    now_ms = round((host.runtime.unix_now() - age_s) * 1000)
    addresses = host.advertised_addresses
    return AgentRecord(
        public_key=(identity or host.identity).public_key,
        seq=seq,
        issued_ms=now_ms,
        expires_ms=now_ms + round(life_s * 1000),
        network_id=network_id_of(network),
        addresses=addresses,
        reach=Reach.DIRECT if addresses else Reach.NONE,
        name="Reviewer",
        role="reviewer",
        description="",
        capabilities=tuple(CapabilityClaim(name) for name in capabilities),
    )


async def publish(host: VirtualHost, node: DHTNode, **fields: Any) -> PublishReport:
    record = make_record(host, **fields)
    return await node.publish(record.seal(host.identity), record, SKILL)


def owners(found: Any) -> list[bytes]:
    return sorted(record.owner for record in found.records)


# Lookups


@pytest.mark.parametrize(("count", "seed"), [(2, 1), (3, 2), (5, 3), (12, 4), (21, 5), (22, 6), (35, 7), (60, 8)])
def test_a_strict_lookup_equals_a_brute_force_sort(count: int, seed: int):
    async def main() -> None:
        async with Swarm(seed=seed) as swarm:
            await swarm.add(count)
            for _ in range(12):
                searcher = swarm.rng.choice(swarm.nodes)
                target = swarm.rng.choice([swarm.rng.randbytes(32), swarm.rng.choice(swarm.hosts).id])

                outcome = await searcher.lookup(target, LookupMode.STRICT)

                found = [contact.id for contact in outcome.closest]
                assert found == swarm.nearest(target, 20, searcher=searcher)
                assert outcome.complete
                assert outcome.asked <= 60
            for node in swarm.nodes:
                node.routing_table.check_invariants()
                assert {contact.id for contact in node.routing_table} <= swarm.live_ids() - {node.id}

    run(main())


def test_any_node_is_found_by_its_id():
    async def main() -> None:
        async with Swarm(seed=3) as swarm:
            await swarm.add(40)
            for host in swarm.hosts[::5]:
                searcher = swarm.rng.choice([node for node in swarm.nodes if node.id != host.id])

                found = await searcher.find_node(host.id)

                assert found[0] == Contact(host.id, (host.address,))

    run(main())


def test_after_a_third_is_gone_lookups_find_the_nearest_that_live_and_tables_shed_the_dead():
    async def main() -> None:
        async with Swarm(seed=5) as swarm:
            await swarm.add(40)
            for count, host in enumerate(swarm.rng.sample(swarm.hosts, 12)):
                await swarm.end(host, "crash" if count % 2 else "fall_silent")
            live = [(host, node) for host, node in swarm.members if host.is_up]

            for _ in range(20):
                _, searcher = swarm.rng.choice(live)
                target = swarm.rng.randbytes(32)
                outcome = await searcher.lookup(target, LookupMode.STRICT)
                assert outcome.closest[0].id == swarm.nearest(target, 1, searcher=searcher)[0]
            await asyncio.sleep(3000)

            held = [contact.id for _, node in live for contact in node.routing_table]
            dead = [node_id for node_id in held if node_id not in swarm.live_ids()]
            assert len(held) > 20 * len(live)
            assert dead == []

    run(main())


# Who enters a routing table


def test_a_node_that_cannot_be_dialed_looks_up_and_publishes_and_enters_no_table():
    async def main() -> None:
        async with Swarm() as swarm:
            await swarm.add(8)
            host, client = await swarm.join(swarm.network.client())

            outcome = await client.lookup(ROOT, LookupMode.STRICT)
            report = await publish(host, client)
            await asyncio.sleep(120)
            found = await swarm.nodes[0].find_providers(SKILL)

            assert len(outcome.closest) == len(client.routing_table) == 8
            assert (report.asked, report.stored, report.kept_here, report.is_kept) == (8, 8, False, True)
            assert [(record.owner, record.reach) for record in found.records] == [(host.id, Reach.NONE)]
            assert len(client.store) == 0
            assert (client.port, swarm.nodes[0].port) == (0, LISTEN_PORT)
            for node in swarm.nodes:
                assert client.id not in node.routing_table
                assert client.id not in {contact.id for contact in await node.find_node(client.id)}

    run(main())


def test_a_caller_enters_only_after_a_dial_of_ours_was_answered():
    async def main() -> None:
        async with Swarm() as swarm:
            [(listener, node)] = await swarm.add(1)
            caller = swarm.network.host()
            contact = Contact(listener.id, (listener.address,))

            await caller.peers.call(contact, "_dht.ping", {}, timeout_s=5)
            at_once = caller.id in node.routing_table
            await asyncio.sleep(1)

            assert not at_once
            assert node.routing_table.get(caller.id) == Contact(caller.id, (caller.address,))

    run(main())


def test_an_address_that_is_not_the_callers_is_never_believed():
    async def main() -> None:
        async with Swarm() as swarm:
            members = await swarm.add(6)
            victim = members[0][0].address
            for address in (victim, "10.200.0.1:9000"):
                forger = swarm.network.host()
                forger.as_caller = replace(forger.as_caller, listen_address=address)
                for host, _ in members[1:]:
                    contact = Contact(host.id, (host.address,))
                    await forger.peers.call(contact, "_dht.find_node", {"target": forger.id}, timeout_s=5)
                await asyncio.sleep(60)

                for node in swarm.nodes:
                    assert forger.id not in node.routing_table
            assert {contact.addresses[0] for node in swarm.nodes for contact in node.routing_table} == {
                host.address for host in swarm.hosts
            }

    run(main())


def test_what_a_stranger_can_make_us_dial_is_bounded():
    async def main() -> None:
        async with Swarm() as swarm:
            [(listener, _)] = await swarm.add(1)
            stranger = swarm.network.host()
            stranger.as_caller = replace(stranger.as_caller, listen_address="10.200.0.1:9000")
            target = swarm.network.host()
            stranger.as_caller = replace(stranger.as_caller, listen_address=target.address)
            contact = Contact(listener.id, (listener.address,))
            before = swarm.network.digest.message_count

            for _ in range(200):
                await stranger.peers.call(contact, "_dht.ping", {}, timeout_s=5)

            # Two messages for each call, the stranger's own dial, and one check dial with its handshake.
            assert swarm.network.digest.message_count - before < 2 * 200 + 20

    run(main())


def test_nobody_is_dialed_for_whom_there_is_no_room():
    async def main() -> None:
        async with Swarm(config=DHTConfig(routing=RoutingConfig(k=1))) as swarm:
            [(listener, node)] = await swarm.add(1)
            caller = swarm.network.host()
            twin = caller.id[:-1] + bytes([caller.id[-1] ^ 1])
            node.routing_table.observe(Contact(twin, ("10.200.0.1:9000",)), listener.runtime.now())
            dials: list[bytes] = []
            swarm.network.digest.add_message = lambda at_us, source, target, endpoint, body: dials.append(
                target if endpoint == "connect" and source == listener.id else b""
            )

            await caller.peers.call(Contact(listener.id, (listener.address,)), "_dht.ping", {}, timeout_s=5)
            await asyncio.sleep(1)

            # The listener takes a connection with the same word: one, and it dials none.
            assert dials.count(caller.id) == 1
            assert caller.id not in node.routing_table

    run(main())


def dials_of(swarm: Swarm, source: VirtualHost) -> list[bytes]:
    """Fills with the ids that this host dials from now on; also with those whose dials it takes."""
    dials: list[bytes] = []
    swarm.network.digest.add_message = lambda at_us, of, target, endpoint, body: (
        dials.append(target) if endpoint == "connect" and of == source.id else None
    )
    return dials


@pytest.mark.parametrize("address", ["10.200.0.1:22", "0.0.0.0:9000", "224.0.0.1:9000", "169.254.1.1:9000"])
def test_a_candidate_is_not_dialed_where_nobody_is_to_be_dialed(address: str):
    async def main() -> None:
        async with Swarm() as swarm:
            [(listener, node)] = await swarm.add(1)
            caller = swarm.network.host()
            caller.as_caller = replace(caller.as_caller, listen_address=address)
            dials = dials_of(swarm, listener)

            await caller.peers.call(Contact(listener.id, (listener.address,)), "_dht.ping", {}, timeout_s=5)
            await asyncio.sleep(1)

            assert dials.count(caller.id) == 1, "the connection that it took, and none of its own"
            assert caller.id not in node.routing_table

    run(main())


def test_where_others_say_that_a_peer_listens_is_no_reason_for_a_check_dial():
    async def main() -> None:
        async with Swarm() as swarm:
            [(listener, node)] = await swarm.add(1)
            client, target = swarm.network.client(), swarm.network.host()
            client.mount("_dht.", {"_dht.find_node": lambda request, context: {"contacts": []}})
            await client.peers.call(Contact(listener.id, (listener.address,)), "_dht.ping", {}, timeout_s=5)
            liar = swarm.network.host()
            lie = [client.id, [target.address]]
            liar.mount("_dht.", {"_dht.find_node": lambda request, context: {"contacts": [lie]}})
            node.routing_table.observe(Contact(liar.id, (liar.address,)), listener.runtime.now())
            dials = dials_of(swarm, listener)

            outcome = await node.lookup(client.id, LookupMode.STRICT)
            await asyncio.sleep(1)

            assert client.id in [contact.id for contact in outcome.closest]
            assert dials == [liar.id]
            assert client.id not in node.routing_table

    run(main())


def test_started_twice_a_node_has_one_schedule():
    async def main() -> None:
        async with Swarm() as swarm:
            [(_, node)] = await swarm.add(1)
            maintenance = node.maintenance

            await node.start()

            assert node.maintenance is maintenance

    run(main())


def test_a_node_that_moved_is_known_at_its_new_address_once_that_is_proved():
    async def main() -> None:
        async with Swarm() as swarm:
            [(_, node)] = await swarm.add(1)
            moved = swarm.network.host()
            node.routing_table.observe(Contact(moved.id, ("10.200.0.1:9000",)), moved.runtime.now())
            contact = Contact(swarm.hosts[0].id, (swarm.hosts[0].address,))

            await moved.peers.call(contact, "_dht.ping", {}, timeout_s=5)
            await asyncio.sleep(1)

            assert node.routing_table.get(moved.id) == Contact(moved.id, (moved.address,))

    run(main())


def test_a_stopped_node_still_answers_and_starts_nothing():
    async def main() -> None:
        async with Swarm() as swarm:
            [(listener, node)] = await swarm.add(1)
            await node.stop()
            caller = swarm.network.host()

            contact = Contact(listener.id, (listener.address,))
            answer = await caller.peers.call(contact, "_dht.find_node", {"target": bytes(32)}, timeout_s=5)
            await node.stop()

            assert answer == {"contacts": []}
            assert asyncio.all_tasks() == {asyncio.current_task()}

    run(main())


# Seeds, again and again


def test_a_seed_that_lost_everything_is_joined_again_by_those_who_knew_it():
    async def main() -> None:
        async with Swarm() as swarm:
            [(seed, _)] = await swarm.add(1)
            for _ in range(4):
                await swarm.join(swarm.network.host(), [seed.address])
            await swarm.end(seed, "stop")
            await asyncio.sleep(600)

            seed.restart()
            _, reborn = await swarm.join(seed, [])
            await asyncio.sleep(120)

            assert len(reborn.routing_table) == 4
            assert all(seed.id in node.routing_table for node in swarm.nodes[1:5])

    run(main())


def test_two_swarms_with_a_common_seed_that_was_down_become_one():
    async def main() -> None:
        async with Swarm() as swarm:
            bridge = swarm.network.host()
            bridge.crash()
            (left, _), (right, _) = (
                await swarm.join(swarm.network.host(), []),
                await swarm.join(swarm.network.host(), []),
            )
            a, a_node = await swarm.join(swarm.network.host(), [left.address, bridge.address])
            b, b_node = await swarm.join(swarm.network.host(), [right.address, bridge.address])
            assert b.id not in a_node.routing_table

            bridge.restart()
            await swarm.join(bridge, [])
            await asyncio.sleep(600)
            await a_node.find_node(b.id)
            await b_node.find_node(a.id)

            assert b.id in a_node.routing_table
            assert a.id in b_node.routing_table

    run(main())


# Records


def test_a_publish_report_counts_who_was_asked_who_keeps_it_and_why_not():
    async def main() -> None:
        async with Swarm(config=DHTConfig(records=RecordConfig(max_records_per_owner=1))) as swarm:
            members = await swarm.add(6)
            host, node = members[0]

            first = await publish(host, node, seq=2)
            older = await publish(host, node, seq=1)
            await swarm.end(members[1][0])
            newer = await publish(host, node, seq=3)

            assert (first.asked, first.stored, first.refusals) == (6, 6, ())
            assert first.kept_here
            assert first.is_kept
            assert (older.asked, older.stored, older.refusals) == (6, 0, ("stale",) * 6)
            assert not older.is_kept
            assert (newer.asked, newer.stored, newer.refusals) == (5, 5, ())

    run(main())


def test_a_storer_that_is_gone_or_answers_nonsense_is_a_reason_in_the_report():
    async def main() -> None:
        async with Swarm() as swarm:
            members = await swarm.add(4)
            (host, node), (gone, _), (odd, _), _ = members

            gone.mount("_dht.", {"_dht.store": lambda request, context: gone.fall_silent()})
            odd.mount("_dht.", {"_dht.store": lambda request, context: {"stored": "yes"}})
            report = await publish(host, node)

            assert (report.asked, report.stored) == (4, 2)
            assert sorted(report.refusals) == ["bad_answer", "unreachable"]

    run(main())


@pytest.mark.parametrize(
    ("asked", "stored", "kept_here", "is_kept"),
    [
        (0, 0, False, False),
        (1, 1, True, True),  # there is nobody but us
        (5, 1, True, False),  # everybody else refused
        (5, 2, True, True),
        (5, 0, False, False),
        (5, 1, False, True),
    ],
)
def test_a_record_is_kept_when_somebody_else_has_it_or_nobody_else_is_there(
    asked: int, stored: int, kept_here: bool, is_kept: bool
):
    assert PublishReport(SKILL, asked, stored, (), kept_here).is_kept is is_kept


def test_a_strict_search_is_the_union_over_storers():
    async def main() -> None:
        async with Swarm() as swarm:
            members = await swarm.add(8)
            providers = members[:5]
            for index, (host, _) in enumerate(providers):
                record = make_record(host)
                _, keeper = members[-1 - index % 3]  # no storer has them all
                await swarm.network.client().peers.call(
                    Contact(keeper.id, (swarm.hosts[swarm.nodes.index(keeper)].address,)),
                    "_dht.store",
                    {"record": record.seal(host.identity), "capability": SKILL},
                    timeout_s=5,
                )

            found = await members[0][1].find_providers(SKILL)

            assert owners(found) == sorted(host.id for host, _ in providers)
            assert found.complete
            assert found.reason == ""

    run(main())


def test_the_newest_record_of_an_owner_counts_whoever_still_has_an_older_one():
    async def main() -> None:
        async with Swarm() as swarm:
            members = await swarm.add(4)
            host, node = members[0]
            await publish(host, node, seq=7, capabilities=(SKILL, "new"))
            old = make_record(host, seq=3).seal(host.identity)
            stuck = members[1][0]
            answer = FindValueAnswer((old,), 1, 0, False, 1, ()).to_map()
            stuck.mount("_dht.", {"_dht.find_value": lambda request, context: answer})

            found = await members[2][1].find_providers(SKILL)

            assert [record.seq for record in found.records] == [7]

    run(main())


def test_a_fast_search_ends_at_the_first_storer_that_knows():
    async def main() -> None:
        async with Swarm() as swarm:
            members = await swarm.add(30)
            host, node = members[0]
            await publish(host, node)
            searcher = next(node for node in swarm.nodes if not node.store.get(ROOT, 0))

            fast = await searcher.find_providers(SKILL, LookupMode.FAST)
            strict = await searcher.find_providers(SKILL)
            at_home = await node.find_providers(SKILL, LookupMode.FAST) if node.store.get(ROOT, 0) else None

            assert owners(fast) == owners(strict) == [host.id]
            assert fast.reads[0].outcome.asked < strict.reads[0].outcome.asked
            assert at_home is None or at_home.reads[0].outcome is None

    run(main())


def lies(swarm: Swarm, honest: VirtualHost) -> list[bytes]:
    """Records that a storer could send and nobody may believe."""
    forger = Identity.from_seed(b"f" * 32)
    good = make_record(honest).seal(honest.identity)
    return [
        b"",
        b"\xc1",
        good[:-1] + bytes([good[-1] ^ 1]),
        make_record(honest, identity=forger, capabilities=("cooking",)).seal(forger),
        make_record(honest, identity=forger, age_s=1000).seal(forger),
        make_record(honest, identity=forger, network="another").seal(forger),
        make_record(honest, identity=forger, life_s=4000).seal(forger),
    ]


@pytest.mark.parametrize("mode", [LookupMode.STRICT, LookupMode.FAST])
def test_storers_that_lie_add_nothing_and_end_no_search(mode: LookupMode):
    async def main() -> None:
        async with Swarm() as swarm:
            members = await swarm.add(12)
            host, node = members[0]
            await publish(host, node)
            for liar, _ in members[2:8]:
                answer = FindValueAnswer(tuple(lies(swarm, host)), 7, 0, False, 7, ()).to_map()
                liar.mount("_dht.", {"_dht.find_value": lambda request, context, answer=answer: answer})

            searcher = await swarm.join(swarm.network.client())
            found = await searcher[1].find_providers(SKILL, mode)

            assert owners(found) == [host.id]

    run(main())


def test_a_search_says_why_it_may_have_missed_somebody():
    async def main() -> None:
        async with Swarm(config=DHTConfig(records=RecordConfig(max_records_per_key=2))) as swarm:
            members = await swarm.add(4)
            nobody = await members[0][1].find_providers(SKILL)
            for host, node in members[:3]:
                await publish(host, node)
            full = await members[0][1].find_providers(SKILL)
            for host, _ in members[1:]:
                await swarm.end(host)
            cut_off = await members[0][1].find_providers("cooking")

            assert (nobody.records, nobody.complete, nobody.reason) == ((), True, "")
            assert not full.complete
            assert "more providers" in full.reason
            assert not cut_off.complete
            assert cut_off.reason == "none of the 3 nodes asked answered"

    run(main())


def test_a_record_of_a_small_swarm_follows_its_key_as_that_grows():
    async def main() -> None:
        async with Swarm(seed=4) as swarm:
            (owner, node), *_ = await swarm.add(4)
            first = await publish(owner, node)
            await swarm.add(30)
            renewed = await publish(owner, node, seq=2)
            again = await publish(owner, node, seq=3)

            nearest = swarm.nearest(ROOT, 20, searcher=node)
            held = [swarm.node_of(host).store.get(ROOT, 0) for host in swarm.hosts if host.id in nearest]
            assert (first.stored, first.lookups) == (4, 1)
            assert renewed.lookups == 1
            assert again.lookups == 0
            assert sum(bool(records) and records[0].seq == 3 for records in held) >= 19

    run(main())


def test_a_record_survives_all_its_first_storers_when_newcomers_came_before_they_went():
    async def main() -> None:
        config = DHTConfig(lookup=LookupConfig(k=4))
        async with Swarm(seed=4, config=config) as swarm:
            await swarm.add(12)
            owner = swarm.network.client()
            _, client = await swarm.join(owner)
            report = await publish(owner, client, life_s=3000)
            first_storers = [host for host, node in swarm.members if len(node.store)]
            assert report.stored == len(first_storers) >= 4

            newcomers = await swarm.add(36)
            await asyncio.sleep(60)
            nearest = swarm.nearest(ROOT, 4, searcher=client)
            near_newcomers = [(host, node) for host, node in newcomers if host.id in nearest]
            assert near_newcomers, "the seed makes a world where a newcomer belongs to the region"
            assert all(node.store.get(ROOT, 0) for _, node in near_newcomers)

            for host in first_storers:
                await swarm.end(host)
            searcher = next(node for host, node in reversed(newcomers) if not node.store.get(ROOT, 0))
            found = await searcher.find_providers(SKILL)

            assert owners(found) == [owner.id]

    run(main())


def test_nobody_keeps_a_record_for_longer_than_it_lives():
    async def main() -> None:
        async with Swarm() as swarm:
            members = await swarm.add(6)
            host, node = members[0]
            await publish(host, node, life_s=300)
            await asyncio.sleep(200)
            await swarm.add(3)  # a copy does not live longer than the original

            await asyncio.sleep(101)
            found = await members[1][1].find_providers(SKILL)
            await asyncio.sleep(120)

            assert found.records == ()
            assert [len(node.store) for node in swarm.nodes] == [0] * 9

    run(main())


@pytest.mark.parametrize("turns", range(0, 60, 4))
def test_a_search_or_a_publication_that_is_cancelled_leaves_no_task(turns: int):
    async def main() -> None:
        async with Swarm() as swarm:
            members = await swarm.add(4)
            host, node = members[0]
            await asyncio.sleep(5)
            before = asyncio.all_tasks()
            acts = [
                asyncio.ensure_future(publish(host, node)),
                asyncio.ensure_future(members[1][1].find_providers(SKILL)),
                asyncio.ensure_future(members[2][1].join([host.address])),
            ]
            for _ in range(turns):
                await asyncio.sleep(0.01)

            for act in acts:
                act.cancel()
            await asyncio.gather(*acts, return_exceptions=True)

            # What the others do because somebody joined again is theirs, and goes on.
            left = {task.get_name() for task in asyncio.all_tasks() - before}
            assert left <= {"offer records to one that is back"}
            await asyncio.sleep(5)
            assert asyncio.all_tasks() == before

    run(main())


def test_a_search_that_would_ask_nobody_knocks_at_the_seeds_first():
    async def main() -> tuple[int, float]:
        async with Swarm() as swarm:
            ((seed, _),) = await swarm.add()
            host, node = await swarm.join(swarm.network.host(), [seed.address])
            await swarm.end(seed)
            while len(node.routing_table):
                await node.find_node(seed.id)
                await asyncio.sleep(1)
            seed.restart()
            await swarm.join(seed, [])
            await asyncio.sleep(2)  # for the back-off, which is shorter than any period of maintenance
            before = host.network.loop.time()

            found = await node.find_node(seed.id)

            return len(found), host.network.loop.time() - before

    count, took_s = run(main())

    assert count == 1
    assert took_s < 3


def test_many_searches_at_once_knock_once():
    async def main() -> int:
        async with Swarm() as swarm:
            ((seed, _),) = await swarm.add()
            _, node = await swarm.join(swarm.network.host(), [seed.address])
            await swarm.end(seed)
            while len(node.routing_table):
                await node.find_node(seed.id)
                await asyncio.sleep(1)
            knocks = 0
            knock = node._knock

            async def counted() -> None:
                nonlocal knocks
                knocks += 1
                await knock()

            node._knock = counted

            await asyncio.gather(*(node.find_node(seed.id) for _ in range(20)))

            return knocks

    assert run(main()) == 1
