"""Nodes that were away, on a virtual network: without a network, blocked, stopped, or asleep with their machine."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from dht.config import DHTConfig, HealthConfig, RecordConfig
from dht.contact import Contact
from dht.events import (
    Disconnected,
    EventFeed,
    NodeEvent,
    PeerJoined,
    PeerLeft,
    PeerSuspected,
    Reconnected,
    RecordExpired,
    RecordStored,
)
from dht.node import DHTNode
from dht.results import SwarmMode
from dht.store import MemoryRecordStore
from simulations.host_clock import HostClock
from simulations.links import Nat
from simulations.network import ConstantLatency, Digest, VirtualHost, VirtualNetwork
from simulations.virtual_loop import run
from synapse_p2p.exceptions import PeerUnavailable, Timeout
from tests.dht.test_node import SKILL, make_record

T = TypeVar("T")

RULE_OFF = HealthConfig(lost_after_s=1e9)


class Place:
    """A node whose process can stand still, and whose machine can sleep."""

    def __init__(self, network: VirtualNetwork, config: DHTConfig, *, data_dir: Path | None = None) -> None:
        self.network = network
        self.host: VirtualHost = network.host()
        self.clock = HostClock(network.loop, self.host)
        self.context = network.pauses.context_of(self.host.id)
        self.node = DHTNode(self.host, config=config, data_dir=data_dir)

    @property
    def id(self) -> bytes:
        return self.host.id

    async def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """What the process itself does."""
        return await asyncio.get_running_loop().create_task(coroutine, context=self.context)

    async def start(self, seeds: list[str]) -> None:
        async def begin() -> None:
            await self.node.start()
            await self.node.join(seeds)

        await self.run(begin())

    def stand_still(self, duration_s: float) -> None:
        self.network.pause(self.host, duration_s)

    def sleep(self, duration_s: float) -> None:
        self.stand_still(duration_s)
        self.clock.sleep(duration_s)

    def known(self) -> set[bytes]:
        return {contact.id for contact in self.node.routing_table}

    async def look_around(self, duration_s: float, *, pause_s: float = 10.0) -> None:
        """A user who searches for something again and again."""
        until = asyncio.get_running_loop().time() + duration_s
        while asyncio.get_running_loop().time() < until:
            await self.run(self.node.find_node(self.network.rng.randbytes(32)))
            await asyncio.sleep(pause_s)


class Places:
    """Nodes that joined through the first."""

    def __init__(self, config: DHTConfig | None = None) -> None:
        self.network = VirtualNetwork(asyncio.get_running_loop(), random.Random(1), ConstantLatency(), Digest())
        self.network.rng = random.Random(2)  # type: ignore[attr-defined]
        self.config = config or DHTConfig()
        self.all: list[Place] = []

    async def __aenter__(self) -> Places:
        return self

    async def __aexit__(self, *_: object) -> None:
        for place in self.all:
            await place.node.stop()

    async def add(self, count: int, config: DHTConfig | None = None) -> list[Place]:
        added = [Place(self.network, config or self.config) for _ in range(count)]
        for place in added:
            await place.start([other.host.address for other in self.all[:2]])
            self.all.append(place)
        await asyncio.sleep(5)
        return added

    async def inside(self, nat: Nat) -> Place:
        """One more, behind a NAT, that joined through the first."""
        place = Place(self.network, self.config)
        place.host.put_behind(nat)
        await place.start([self.all[0].host.address])
        self.all.append(place)
        return place

    async def knowing(self, whom: Place) -> int:
        return sum(whom.id in place.known() for place in self.all if place is not whom)


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def waiting_in(feed: EventFeed, *kinds: type[NodeEvent]) -> list[NodeEvent]:
    return [event for event in feed._waiting if isinstance(event, kinds)]


# Our network


@pytest.mark.parametrize("is_rule_on", [True, False])
def test_a_node_cut_off_for_ten_minutes_keeps_its_contacts_by_the_rule_alone(is_rule_on: bool):
    async def main() -> None:
        async with Places() as places:
            await places.add(14)
            health = HealthConfig() if is_rule_on else RULE_OFF
            [lonely] = await places.add(1, replace(places.config, health=health))
            before = lonely.known()
            events = lonely.node.events()

            cut = places.network.links.cut([lonely.id])
            await lonely.look_around(600)
            kept = lonely.known()
            places.network.links.heal(cut)
            await asyncio.sleep(30)

            assert len(before) == 14
            assert (kept == before) is is_rule_on
            assert is_rule_on or len(kept) < 3
            told = [Disconnected(), Reconnected()] if is_rule_on else []
            assert waiting_in(events, Disconnected, Reconnected) == told
            if is_rule_on:
                assert not waiting_in(events, PeerLeft)
                assert lonely.node.routing_table.suspect_count() == 0
                assert await places.knowing(lonely) == 14

    run(main())


def test_a_call_from_anybody_ends_a_loss():
    async def main() -> None:
        async with Places() as places:
            node = (await places.add(8))[0]
            events = node.node.events()
            cut = places.network.links.cut([node.id])
            await node.look_around(60)
            assert waiting_in(events, Disconnected, Reconnected) == [Disconnected()]

            places.network.links.heal(cut)
            stranger = places.network.host()
            await stranger.peers.call(Contact(node.id, (node.host.address,)), "_dht.ping", {}, timeout_s=5)

            assert waiting_in(events, Disconnected, Reconnected) == [Disconnected(), Reconnected()]

    run(main())


def test_contacts_that_died_while_nobody_was_heard_are_found_out_afterwards():
    async def main() -> None:
        async with Places() as places:
            [node, *others] = await places.add(12)
            cut = places.network.links.cut([node.id])
            await node.look_around(60)
            for dead in others[:3]:
                dead.host.fall_silent()
                await dead.node.stop()
            places.network.links.heal(cut)
            await node.look_around(300)

            assert node.known() == {other.id for other in others[3:]}

    run(main())


# Our loop and our machine


@pytest.mark.parametrize("blocked_s", [0.1, 1.0, 10.0, 30.0, 60.0])
def test_a_node_that_stood_still_evicts_no_honest_peer_and_is_found_again(
    blocked_s: float, caplog: pytest.LogCaptureFixture
):
    async def main() -> None:
        async with Places() as places:
            [node, *others] = await places.add(14)
            events = node.node.events()
            # Its dials are under way when it stops, so that their time is up when it goes on.
            node.host.peers.retire_sessions()
            searches = [asyncio.ensure_future(node.run(node.node.find_node(bytes([n]) * 32))) for n in range(6)]
            await asyncio.sleep(0.02)
            node.stand_still(blocked_s)
            for other in others:  # who lose a little patience meanwhile
                await other.run(other.node.find_node(node.id))
            await asyncio.sleep(blocked_s)
            await asyncio.gather(*searches)
            await asyncio.sleep(10)

            assert not waiting_in(events, PeerSuspected, PeerLeft)
            assert node.known() == {other.id for other in others}
            assert node.node.routing_table.suspect_count() == 0
            for other in others[::4]:
                assert (await other.run(other.node.find_node(node.id)))[0].id == node.id

    run(main())
    warned = [message for message in warnings_in(caplog) if "nothing ran here" in message]
    assert len(warned) in {0.1: (0,), 1.0: (0, 1)}.get(blocked_s, (1,))


def test_without_the_watch_on_the_loop_a_node_that_stood_still_blames_its_peers():
    async def main() -> None:
        config = DHTConfig(health=HealthConfig(min_stall_s=1e9, min_sleep_s=1e9, lost_after_s=1e9))
        async with Places(config) as places:
            [node, *_] = await places.add(14)
            events = node.node.events()
            for _ in range(4):
                node.host.peers.retire_sessions()
                searches = [asyncio.ensure_future(node.run(node.node.find_node(bytes([n]) * 32))) for n in range(6)]
                await asyncio.sleep(0.02)
                node.stand_still(60.0)
                await asyncio.gather(*searches)
                await asyncio.sleep(60)

            assert waiting_in(events, PeerSuspected, PeerLeft)

    run(main())


@pytest.mark.parametrize("is_watched", [True, False])
def test_after_a_sleep_of_two_hours_a_node_is_found_again_within_ten_seconds(is_watched: bool):
    async def main() -> None:
        health = HealthConfig() if is_watched else HealthConfig(min_stall_s=1e9, min_sleep_s=1e9)
        async with Places() as places:
            others = await places.add(8, replace(places.config, health=HealthConfig(beat_s=60)))
            [sleeper] = await places.add(1, replace(places.config, health=health))
            events = sleeper.node.events()
            called: list[float] = []
            loop = asyncio.get_running_loop()

            async def put_anew() -> None:
                called.append(loop.time())
                record = make_record(sleeper.host)
                await sleeper.node.publish(record.seal(sleeper.host.identity), record, SKILL)

            sleeper.node.on_resumed.append(put_anew)
            await sleeper.run(put_anew())
            sleeper.sleep(7200.0)
            woke_at = loop.time() + 7200.0
            for place in others:
                await place.look_around(70, pause_s=35)
            await asyncio.sleep(woke_at - loop.time())
            forgotten = await places.knowing(sleeper)
            await asyncio.sleep(10)

            found = await others[3].run(others[3].node.find_providers(SKILL))
            named = await others[3].run(others[3].node.find_node(sleeper.id))

            assert forgotten == 0
            assert [record.owner for record in found.records] == ([sleeper.id] if is_watched else [])
            assert (sleeper.id in {contact.id for contact in named}) is is_watched
            assert [when for when in called[1:] if when > woke_at + 2] == []
            assert len(called) == 1 + is_watched
            assert not waiting_in(events, PeerLeft)

    run(main())


def test_a_hook_that_fails_keeps_nobody_else_from_coming_back(caplog: pytest.LogCaptureFixture):
    async def main() -> None:
        async with Places() as places:
            [_, _, node] = await places.add(3)
            called: list[str] = []

            async def fail() -> None:
                raise ZeroDivisionError

            async def note() -> None:
                called.append("note")

            node.node.on_resumed.extend([fail, note])
            node.sleep(600.0)
            await asyncio.sleep(620)

            assert called == ["note"]
            assert len(node.known()) == 2

    run(main())
    assert "putting anew what is ours failed" in caplog.text


# What listeners hear


def test_a_nodes_events_tell_of_peers_and_records_and_end_with_it():
    async def main() -> None:
        async with Places() as places:
            [first, _] = await places.add(2)
            events = first.node.events()
            [third] = await places.add(1)
            record = make_record(third.host, life_s=30)
            await third.node.publish(record.seal(third.host.identity), record, SKILL)
            await asyncio.sleep(100)
            third.host.crash()
            await third.node.stop()
            for _ in range(20):
                await first.run(first.node.find_node(third.id))
                await asyncio.sleep(10)
            await first.node.stop()

            told = [event async for event in events]

            kinds = [type(event) for event in told]
            assert kinds.count(PeerJoined) == kinds.count(PeerLeft) == 1
            assert kinds.count(RecordStored) == kinds.count(RecordExpired) == 1
            assert kinds.index(PeerJoined) < kinds.index(RecordStored) < kinds.index(RecordExpired)
            assert third.id in {event.contact.id for event in told if isinstance(event, PeerLeft)}

    run(main())


# Leaving


async def go(place: Place, how: str) -> float:
    begun = asyncio.get_running_loop().time()
    if how == "leave":
        await place.run(place.node.leave())
    else:
        await place.node.stop()
    place.host.stop()
    return asyncio.get_running_loop().time() - begun


@pytest.mark.parametrize(("how", "known"), [("leave", 0), ("stop", 14)])
def test_a_node_that_leaves_is_out_of_its_neighbours_tables_at_once(how: str, known: int):
    async def main() -> None:
        async with Places() as places:
            leaver, *others = await places.add(15)
            events = others[0].node.events()

            took_s = await go(leaver, how)
            await asyncio.sleep(0.1)

            assert took_s < 1.0
            assert await places.knowing(leaver) == known
            assert bool(waiting_in(events, PeerLeft)) is (known == 0)
            for other in others:
                other.node.routing_table.check_invariants()

    run(main())


def test_a_node_that_comes_back_after_it_left_is_known_again():
    async def main() -> None:
        async with Places() as places:
            leaver, *others = await places.add(8)
            await go(leaver, "leave")
            await asyncio.sleep(5)

            leaver.host.restart()
            leaver.node = DHTNode(leaver.host, config=places.config)
            await leaver.start([others[0].host.address])
            await asyncio.sleep(10)

            assert await places.knowing(leaver) == 7

    run(main())


def test_leaving_does_not_wait_for_those_who_do_not_answer():
    async def main() -> None:
        async with Places() as places:
            leaver, *others = await places.add(8)
            for other in others[:4]:
                other.host.fall_silent()
            begun = asyncio.get_running_loop().time()

            await leaver.run(leaver.node.leave())
            took_s = asyncio.get_running_loop().time() - begun
            await leaver.node.leave()

            assert took_s == pytest.approx(places.config.leave_timeout_s, abs=0.01)
            assert all(leaver.id not in other.known() for other in others[4:])

    run(main())


def test_nobody_can_say_that_somebody_else_leaves():
    async def main() -> None:
        async with Places() as places:
            members = await places.add(4)
            stranger = places.network.host()
            contact = Contact(members[0].id, (members[0].host.address,))

            for request in ({"leaving": True}, {"leaving": True, "id": members[1].id}):
                await stranger.peers.call(contact, "_dht.ping", request, timeout_s=5)

            assert members[0].known() == {member.id for member in members[1:]}
            assert stranger.id not in members[0].known()

    run(main())


def test_leaving_and_coming_again_and_again_brings_no_more_dials_than_staying():
    async def main() -> None:
        async with Places() as places:
            [member] = await places.add(1)
            flapper = places.network.host()
            contact = Contact(member.id, (member.host.address,))
            before = places.network.digest.message_count

            for count in range(200):
                await flapper.peers.call(contact, "_dht.ping", {"leaving": count % 2 == 0}, timeout_s=5)

            # Two messages for each call; its own dial, and the check dials of some virtual seconds.
            assert places.network.digest.message_count - before < 2 * 200 + 80

    run(main())


# Coming back in another life


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(("-wal", "-shm")))


async def reborn(places: Places, place: Place, seeds: list[str], data_dir: Path | None) -> None:
    place.host.restart()
    place.node = DHTNode(place.host, config=places.config, data_dir=data_dir)
    await place.start(seeds)


@pytest.mark.parametrize("remembers", [True, False])
@pytest.mark.parametrize("how", ["in order", "killed"])
def test_with_all_its_seeds_dead_a_node_comes_back_through_peers_that_it_remembers(
    how: str, remembers: bool, tmp_path: Path
):
    async def main() -> None:
        async with Places() as places:
            seed = (await places.add(10))[0]
            traveller = Place(places.network, places.config, data_dir=tmp_path)
            places.all.append(traveller)
            await traveller.start([seed.host.address])
            await asyncio.sleep(2 * places.config.remember_s)
            if how == "in order":
                await traveller.node.leave()
            traveller.host.crash()
            files = names_in(tmp_path)
            if how == "killed":
                await traveller.node.stop()
            seed.host.crash()
            await seed.node.stop()
            await asyncio.sleep(60)

            await reborn(places, traveller, [seed.host.address], tmp_path if remembers else None)
            report = traveller.node.join_report()
            await asyncio.sleep(10)

            assert files == ["known.peers", "records.db"]
            assert (report.joined, report.remembered > 0, report.is_in) == (0, remembers, remembers)
            assert len(traveller.known()) == (9 if remembers else 0)
            assert traveller.node.has_joined is remembers

    run(main())


def test_records_kept_for_others_are_there_in_the_next_life(tmp_path: Path):
    async def main() -> None:
        async with Places() as places:
            [first] = await places.add(1)
            storer = Place(places.network, places.config, data_dir=tmp_path)
            places.all.append(storer)
            await storer.start([first.host.address])
            await asyncio.sleep(5)
            report = await first.node.put(b"kept")
            await storer.node.stop()

            await reborn(places, storer, [], tmp_path)

            assert report.stored == 2
            assert storer.node.status().records_held == 1
            assert await storer.run(storer.node.get(report.key)) == b"kept"

    run(main())


def test_a_store_that_was_given_is_left_to_its_giver(tmp_path: Path):
    async def main() -> None:
        async with Places() as places:
            host = places.network.host()
            store = MemoryRecordStore(RecordConfig())
            node = DHTNode(host, store=store, data_dir=tmp_path)
            await node.start()
            await node.stop()

            assert node.store is store
            assert names_in(tmp_path) == []

    run(main())


def test_two_swarms_of_twenty_that_share_one_late_seed_become_one():
    async def main() -> None:
        config = DHTConfig(health=HealthConfig(beat_s=60))
        async with Places(config) as left, Places(config) as right:
            right.network = left.network
            late = left.network.host()
            late.crash()
            for places in (left, right):
                [first] = await places.add(1)
                for _ in range(19):
                    place = Place(left.network, places.config)
                    await place.start([first.host.address, late.address])
                    places.all.append(place)
            bridge = Place.__new__(Place)
            bridge.network, bridge.host = left.network, late
            bridge.context = left.network.pauses.context_of(late.id)
            assert not any(other.id in place.known() for place in left.all for other in right.all)

            late.restart()
            bridge.node = DHTNode(late, config=left.config)
            await bridge.start([])
            await asyncio.sleep(200)

            try:
                for place, other in list(zip(left.all, reversed(right.all), strict=True))[::3]:
                    assert (await place.run(place.node.find_node(other.id)))[0].id == other.id
                    assert (await other.run(other.node.find_node(place.id)))[0].id == place.id
            finally:
                await bridge.node.stop()

    run(main())


# Clocks, and what a node says of itself


def test_a_node_whose_clock_is_wrong_says_so_and_the_others_do_not(caplog: pytest.LogCaptureFixture):
    async def main() -> None:
        async with Places() as places:
            members = await places.add(8)
            members[3].clock.skew_s = 120.0
            await asyncio.sleep(200)

            wrong = [place.node.is_clock_wrong for place in members]
            ahead_s = members[3].node.status().clock_ahead_s

            assert wrong == [place is members[3] for place in members]
            assert ahead_s == pytest.approx(120.0, abs=0.5)
            assert all(abs(place.node.status().clock_ahead_s or 99) < 1 for place in members if place is not members[3])

    run(main())
    assert ["120 s ahead of" in message for message in warnings_in(caplog)] == [True]


@pytest.mark.parametrize("skew_s", [600.0, -7200.0])
def test_a_value_put_by_a_wrong_clock_is_refused_for_the_clock(skew_s: float):
    async def main() -> None:
        async with Places() as places:
            members = await places.add(8)
            members[3].clock.skew_s = skew_s

            early = await members[3].run(members[3].node.put(b"before the others were asked", ttl_s=3600))
            await asyncio.sleep(200)
            late = await members[3].run(members[3].node.put(b"after", ttl_s=3600))

            assert set(early.refused) == {"from_the_future" if skew_s > 0 else "expired"}
            assert late.refused == ("clock",) * 7

    run(main())


def test_a_nodes_status_is_what_it_knows_of_itself():
    async def main() -> None:
        async with Places() as places:
            [first, second, third] = await places.add(3)
            await second.node.put(b"value")
            client = Place.__new__(Place)
            client.network, client.host = places.network, places.network.client()
            client.context, client.node = places.network.pauses.context_of(client.host.id), DHTNode(client.host)
            alone = client.node.status()
            await client.start([first.host.address])
            third.host.fall_silent()
            with pytest.raises((PeerUnavailable, Timeout)):
                await second.node._requester.ping(Contact(third.id, (third.host.address,)))

            status = second.node.status()
            of_client = client.node.status()
            await client.node.stop()

            assert (status.id, status.mode, of_client.mode) == (second.id, SwarmMode.NODE, SwarmMode.CLIENT)
            assert (status.contacts, status.suspects, status.is_connected) == (2, 1, True)
            assert (status.records_held, status.own_records) == (1, 1)
            assert status.seeds == (first.host.address,)
            assert (status.join.joined, status.join.is_in) == (1, True)
            assert status.region_share == 1.0 or 0 <= status.region_share < 1
            assert (alone.is_connected, alone.contacts, alone.seeds, alone.clock_ahead_s) == (False, 0, (), None)
            assert of_client.is_connected

    run(main())


# Moving


def move(place: Place, address: str) -> None:
    """The same process at another address, as after a change of networks: its connections are gone."""
    host, network = place.host, place.network
    host.peers.retire_sessions()
    del network._hosts[host.address]
    network._hosts[address] = host
    host.address, host.advertised_addresses = address, (address,)
    host.as_caller = replace(host.as_caller, listen_address=address)
    host.as_listener = replace(host.as_listener, address=address, listen_address=address)


def test_a_node_whose_address_changed_is_known_at_the_new_one_without_being_asked():
    async def main() -> None:
        async with Places() as places:
            mover, *others = await places.add(8)
            await asyncio.sleep(70)

            move(mover, "10.99.0.1:9000")
            await asyncio.sleep(70)

            for other in others:
                assert other.node.routing_table.get(mover.id) == Contact(mover.id, ("10.99.0.1:9000",))

    run(main())
