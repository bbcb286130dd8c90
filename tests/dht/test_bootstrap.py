"""Joining: what each kind of seed does, and what the report says of it."""

from __future__ import annotations

import asyncio
import random

import pytest

from dht.bootstrap import PATIENCE_S, SeedAddress, SeedState
from dht.node import DHTNode
from simulations.network import ConstantLatency, Digest, VirtualHost, VirtualNetwork
from simulations.virtual_loop import run
from synapse_p2p.exceptions import ConfigError

NODE_ID = "ab" * 32


def make_network(seed: int = 1) -> VirtualNetwork:
    return VirtualNetwork(asyncio.get_running_loop(), random.Random(seed), ConstantLatency(), Digest())


def make_node(network: VirtualNetwork, *, name: str = "") -> tuple[VirtualHost, DHTNode]:
    host = network.host(network=name)
    return host, DHTNode(host)


async def make_swarm(network: VirtualNetwork, count: int) -> list[tuple[VirtualHost, DHTNode]]:
    members: list[tuple[VirtualHost, DHTNode]] = []
    for _ in range(count):
        host, node = make_node(network)
        await node.start()
        await node.join([member.address for member, _ in members[:1]])
        members.append((host, node))
    return members


async def stop(members: list[tuple[VirtualHost, DHTNode]]) -> None:
    for _, node in members:
        await node.stop()


@pytest.mark.parametrize(
    ("text", "host", "port", "expected_id"),
    [
        ("10.0.0.5:9999", "10.0.0.5", 9999, None),
        ("[::1]:9999", "::1", 9999, None),
        ("seed.example:1", "seed.example", 1, None),
        (f"{NODE_ID}@10.0.0.5:9999", "10.0.0.5", 9999, bytes.fromhex(NODE_ID)),
    ],
)
def test_a_seed_is_an_address_with_or_without_an_id(text: str, host: str, port: int, expected_id: bytes | None):
    seed = SeedAddress.parse(text)

    assert (seed.host, seed.port, seed.id) == (host, port, expected_id)
    assert seed.address == text.rpartition("@")[2]


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("10.0.0.5", "host:port"),
        ("", "host:port"),
        ("::1:9999", "brackets"),
        ("10.0.0.5:0", "port 0"),
        ("10.0.0.5:70000", "port"),
        ("@10.0.0.5:9999", "64 hexadecimal"),
        ("abc@10.0.0.5:9999", "64 hexadecimal"),
        ("zz" * 32 + "@10.0.0.5:9999", "64 hexadecimal"),
    ],
)
def test_text_that_is_no_seed_is_refused_with_the_form_wanted(text: str, hint: str):
    with pytest.raises(ConfigError, match=hint):
        SeedAddress.parse(text)


def test_each_kind_of_seed_is_reported_with_its_reason_and_the_good_one_is_enough():
    async def main() -> None:
        network = make_network()
        members = await make_swarm(network, 3)
        dead, silent, plain = network.host(), network.host(), network.host()
        dead.crash()
        silent.fall_silent()
        foreign, _ = make_node(network, name="another")
        host, node = make_node(network)
        good = members[0][0].address
        seeds = {
            good: (SeedState.JOINED, "joined"),
            dead.address: (SeedState.UNREACHABLE, "cannot be reached: connection refused"),
            silent.address: (SeedState.NO_ANSWER, "no answer"),
            "10.200.0.1:9000": (SeedState.NO_ANSWER, "no answer"),
            host.address: (SeedState.OURSELVES, "itself"),
            f"{NODE_ID}@{members[1][0].address}": (SeedState.NOT_OURS, "is not"),
            f"{members[2][0].id.hex()}@{members[2][0].address}": (SeedState.JOINED, "joined"),
            foreign.address: (SeedState.REFUSED, "another network; write its name in network="),
            plain.address: (SeedState.NOT_OURS, "not as a member of a swarm"),
        }

        report = await node.join(seeds)

        assert [seed.address for seed in report.seeds] == list(seeds)
        for seed in report.seeds:
            state, text = seeds[seed.address]
            assert seed.state is state
            assert text in seed.text
        assert (report.joined, report.tried, report.contacts) == (2, 8, 3)
        assert report.seeds[0].node_id == members[0][0].id
        assert str(report).startswith("joined 2 of 8 seeds, 3 contacts known\n")
        for address in seeds:
            assert address in str(report)
        assert {contact.id for contact in node.routing_table} == {member.id for member, _ in members}
        await stop(members)

    run(main())


def test_without_seeds_a_node_is_a_swarm_of_its_own():
    async def main() -> None:
        _, node = make_node(make_network())

        report = await node.join([])

        assert (report.seeds, report.joined, report.tried, report.contacts) == ((), 0, 0, 0)

    run(main())


def test_a_seed_that_serves_no_swarm_is_no_contact_and_joins_nothing():
    async def main() -> None:
        network = make_network()
        plain = network.host()
        _, node = make_node(network)

        report = await node.join([plain.address])

        assert (report.joined, report.contacts) == (0, 0)
        assert len(node.routing_table) == 0

    run(main())


def test_a_silent_seed_holds_up_a_join_for_a_bounded_time():
    async def main() -> None:
        network = make_network()
        members = await make_swarm(network, 2)
        # It takes the connection, and falls silent before the handshake is over.
        staller = network.host()
        loop = asyncio.get_running_loop()
        host, node = make_node(network)
        loop.call_later(0.1, staller.fall_silent)
        started_at = host.runtime.now()

        report = await node.join([staller.address, members[0][0].address])

        took_s = host.runtime.now() - started_at
        assert [seed.state for seed in report.seeds] == [SeedState.NO_ANSWER, SeedState.JOINED]
        assert PATIENCE_S <= took_s < PATIENCE_S + 0.9  # sooner than a handshake fails
        assert len(node.routing_table) == 2
        await stop(members)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(main())


def test_a_seed_that_stalls_alone_is_waited_for_until_its_handshake_fails():
    async def main() -> None:
        network = make_network()
        staller = network.host()
        _, node = make_node(network)
        asyncio.get_running_loop().call_later(0.1, staller.fall_silent)

        report = await node.join([staller.address])

        assert report.seeds[0].state is SeedState.NO_ANSWER
        assert report.seeds[0].text == "no answer; is it running, and is the way to it open?"

    run(main())


def test_a_newcomer_knows_everybody_of_a_small_swarm_and_they_know_it():
    async def main() -> None:
        network = make_network()
        members = await make_swarm(network, 12)
        await asyncio.sleep(5)

        ids = {host.id for host, _ in members}
        for host, node in members:
            assert {contact.id for contact in node.routing_table} == ids - {host.id}
            node.routing_table.check_invariants()
        await stop(members)

    run(main())


def test_two_nodes_that_name_each_other_and_start_at_once_know_each_other():
    async def main() -> None:
        network = make_network()
        members = [make_node(network) for _ in range(2)]
        for _, node in members:
            await node.start()

        reports = await asyncio.gather(
            *(node.join([other.address for other, _ in members if other is not host]) for host, node in members)
        )
        await asyncio.sleep(2)

        assert [report.joined for report in reports] == [1, 1]
        assert [len(node.routing_table) for _, node in members] == [1, 1]
        await stop(members)

    run(main())


def test_one_seed_given_twice_is_asked_once():
    async def main() -> None:
        network = make_network()
        members = await make_swarm(network, 1)
        _, node = make_node(network)

        report = await node.join([members[0][0].address] * 3)

        assert len(report.seeds) == 1
        await stop(members)

    run(main())


def test_the_report_covers_every_seed_ever_given_and_those_that_did_not_answer_yet():
    async def main() -> None:
        network = make_network()
        members = await make_swarm(network, 1)
        silent = network.host()
        silent.fall_silent()
        _, node = make_node(network)
        await node.join([members[0][0].address])

        joining = asyncio.ensure_future(node.join([silent.address]))
        await asyncio.sleep(0.5)
        report = node.join_report()
        await joining

        assert [seed.state for seed in report.seeds] == [SeedState.JOINED, SeedState.NO_ANSWER]
        assert "no answer yet" in report.seeds[1].text
        await stop(members)

    run(main())
