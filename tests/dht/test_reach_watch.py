"""Nodes behind a NAT, on a virtual network: they become clients, and nodes again when somebody gets through."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import pytest

from dht.agents.record import Reach
from dht.config import DHTConfig
from dht.contact import Contact
from dht.messages import PingAnswer
from dht.results import SwarmMode
from simulations.links import Nat
from simulations.virtual_loop import run
from simulations.world import World
from synapse_p2p.agent import AgentNode
from tests.dht.test_recovery import Places, warnings_in

Ping = Callable[..., Awaitable[PingAnswer]]


@pytest.mark.parametrize("nat", [Nat.DROPS, Nat.REFUSES])
@pytest.mark.parametrize("others", [1, 8])
def test_a_node_that_nobody_can_dial_is_a_client_within_minutes_and_keeps_nothing(
    nat: Nat, others: int, caplog: pytest.LogCaptureFixture
):
    async def main() -> None:
        async with Places() as places:
            await places.add(others)
            inside = await places.inside(nat)
            assert inside.node.status().mode is SwarmMode.NODE, "as long as nothing is known"

            await asyncio.sleep(150)

            assert inside.node.status().mode is SwarmMode.CLIENT
            assert (inside.node.port, inside.node.addresses) == (0, ())
            assert await places.knowing(inside) == 0
            report = await inside.node.put(b"a value")
            assert report.stored == others == report.region_size
            assert len(inside.node.store) == 0
            assert await places.all[0].node.get(report.key) == b"a value"

            await asyncio.sleep(900)
            [warning] = [text for text in warnings_in(caplog) if "nobody can dial" in text]
            assert inside.host.address in warning
            assert inside.node.status().mode is SwarmMode.CLIENT

    run(main())


def test_once_somebody_gets_through_it_is_a_node_again(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "dht")

    async def main() -> None:
        async with Places() as places:
            await places.add(12)
            inside = await places.inside(Nat.DROPS)
            await asyncio.sleep(150)
            assert inside.node.status().mode is SwarmMode.CLIENT

            inside.host.nat = Nat.OPEN
            await asyncio.sleep(DHTConfig().prove_pause_s + 120)

            assert inside.node.status().mode is SwarmMode.NODE
            assert await places.knowing(inside) == 12
            assert sum("no client any more" in record.getMessage() for record in caplog.records) == 1

    run(main())


def test_a_node_that_can_be_dialed_is_asked_nothing_and_asks_nothing():
    async def main() -> None:
        async with Places() as places:
            nodes = await places.add(12)
            asked: list[Contact] = []
            for place in nodes:
                place.node._requester.ping = _count(place.node._requester.ping, asked)  # type: ignore[method-assign]

            await asyncio.sleep(600)

            assert not asked
            assert all(place.node.status().mode is SwarmMode.NODE for place in nodes)

    run(main())


def _count(ping: Ping, asked: list[Contact]) -> Ping:
    async def counting(contact: Contact, *, prove: bool = False) -> PingAnswer:
        if prove:
            asked.append(contact)
        return await ping(contact, prove=prove)

    return counting


def test_one_peer_that_says_it_dials_and_does_not_makes_nobody_a_client():
    async def main() -> None:
        async with Places() as places:
            nodes = await places.add(12)
            liar, victim = nodes[0], nodes[5]
            liar.node._responder._on_prove = lambda contact: True
            victim.host.peers.dialed_at = None

            await asyncio.sleep(300)

            assert victim.host.peers.dialed_at is not None, "the others came"
            assert victim.node.status().mode is SwarmMode.NODE

    run(main())


def test_an_agent_that_nobody_can_dial_says_so_in_its_record_and_takes_it_back():
    async def main() -> None:
        world = World(asyncio.get_running_loop(), seed=1, wire=True)
        await world.grow(10, lambda: None)
        agent = AgentNode(name="Ina", role="insider", capabilities=["inside"])

        @agent.task_handler
        async def handle(task: str, context: dict[str, str]) -> str:
            return task

        swarm = world.swarm(agent)
        host = world.network.at(swarm._server.address + ":9000")
        assert host is not None
        host.put_behind(Nat.DROPS)
        await swarm.start(wait_joined=True)
        assert swarm._publisher is not None

        await asyncio.sleep(200)
        hidden = swarm._publisher.published
        assert swarm.status().mode is SwarmMode.CLIENT
        assert hidden is not None
        assert (hidden.reach, hidden.addresses) == (Reach.NONE, ())

        host.nat = Nat.OPEN
        await asyncio.sleep(DHTConfig().prove_pause_s + 200)
        shown = swarm._publisher.published
        assert swarm.status().mode is SwarmMode.NODE
        assert shown is not None
        assert (shown.reach, shown.addresses) == (Reach.DIRECT, (host.address,))
        async with world.swarm() as client:
            assert (await client.ask("inside", "hello")).result == "hello"
        await world.stop()

    run(main())
