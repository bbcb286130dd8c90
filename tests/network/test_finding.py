"""Agents of many capabilities over encrypted TCP on loopback: found exactly, while they come, change and are killed."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager

import pytest

from dht import DHTConfig, RecordConfig, Swarm, SwarmConfig
from dht.agents.record import Reach
from dht.results import FindResult
from synapse_p2p import AgentNode, Identity

SKILLS = [f"skill-{number}" for number in range(12)]
LEASE_S = 10.0
STILL_S = 2.0
"""By then who is asked anything has heard what was published."""


def config(*, lease_s: float = LEASE_S, max_records_per_key: int = 1000) -> SwarmConfig:
    records = RecordConfig(lease_s=lease_s, max_records_per_key=max_records_per_key)
    return SwarmConfig(dht=DHTConfig(records=records, expire_s=1.0), watch_address_s=0.5, probe_timeout_s=3.0)


def an_agent(name: str, skills: Iterable[str]) -> AgentNode:
    agent = AgentNode(name=name, role="worker", capabilities=list(skills), identity=Identity.from_seed(os.urandom(32)))

    @agent.task_handler
    async def handle(task: str, context: dict) -> str:
        return name

    return agent


class Agents:
    """The agents that are alive, each a swarm of its own on a port of its own."""

    def __init__(self, settings: SwarmConfig) -> None:
        self.settings = settings
        self.swarms: dict[str, Swarm] = {}
        self.skills: dict[str, list[str]] = {}

    async def add(self, name: str, skills: Iterable[str]) -> Swarm:
        seeds = [next(iter(self.swarms.values())).status().listening[0]] if self.swarms else []
        swarm = Swarm(an_agent(name, skills), bootstrap=seeds, listen="127.0.0.1:0", config=self.settings)
        await swarm.start(wait_joined=True)
        self.swarms[name] = swarm
        self.skills[name] = list(skills)
        return swarm

    async def kill(self, names: Iterable[str]) -> None:
        """As processes end that are killed: every connection at once, and nobody is told."""
        killed = [self.swarms.pop(name) for name in names]
        for swarm in killed:
            swarm._server.sessions._connections.abort()
        await asyncio.gather(*(swarm.stop(grace=0) for swarm in killed))

    def offering(self, skill: str, *, but: str = "") -> list[str]:
        return sorted(name for name in self.swarms if name != but and skill in self.skills[name])


def names(found: FindResult) -> list[str]:
    return sorted(agent.name for agent in found)


@asynccontextmanager
async def agents(settings: SwarmConfig | None = None) -> AsyncGenerator[Agents]:
    there = Agents(settings or config())
    try:
        yield there
    finally:
        await asyncio.gather(*(swarm.stop(grace=0) for swarm in there.swarms.values()))


@pytest.mark.parametrize(("count", "lease_s"), [(12, LEASE_S), pytest.param(40, 30.0, marks=pytest.mark.gates)])
async def test_agents_of_twelve_skills_are_found_exactly_while_they_come_change_and_are_killed(
    count: int, lease_s: float
):
    rng = random.Random(1)
    async with agents(config(lease_s=lease_s)) as there:
        for number in range(count):
            await there.add(f"agent-{number}", rng.sample(SKILLS, 3))

        async def find_all(name: str) -> None:
            for skill in SKILLS:
                found = await there.swarms[name].find(skill)
                assert names(found) == there.offering(skill, but=name), f"{name} looked for {skill}"
                assert found.complete

        for name in list(there.swarms):
            await find_all(name)

        # One that comes late, and one that learns something else.
        await there.add("late", SKILLS[:3])
        await find_all("late")
        changing = there.swarms["agent-1"]
        there.skills["agent-1"] = ["cooking", SKILLS[0]]
        await changing._agent.set_capabilities(there.skills["agent-1"])
        began_at = time.monotonic()
        assert names(await there.swarms["late"].find("cooking")) == ["agent-1"]
        await find_all("agent-2")
        assert time.monotonic() - began_at < 25, "within 5 s, five times over"

        # A third is killed: asks go on at once, and within a lease nobody is named who is gone.
        victims = rng.sample([name for name in there.swarms if name != "late"], count * 3 // 10)
        await there.kill(victims)
        killed_at = time.monotonic()
        for skill in SKILLS:
            if there.offering(skill, but="late"):
                answer = await there.swarms["late"].ask(skill, "do it")
                assert answer.result in there.offering(skill, but="late")
        await find_all("late")
        await asyncio.sleep(max(0.0, lease_s + STILL_S - (time.monotonic() - killed_at)))
        for skill in SKILLS:
            unprobed = await there.swarms["late"].find(skill, probe=False)
            assert names(unprobed) == there.offering(skill, but="late")


@pytest.mark.parametrize("count", [pytest.param(100, marks=pytest.mark.gates)])
async def test_a_crowd_that_is_spread_over_shards_is_found_and_found_again_after_it_collapsed(count: int):
    # A shorter lease, and one process is busy with nothing but renewals: each of a hundred writes to 40 storers.
    async with agents(config(lease_s=20.0, max_records_per_key=32)) as there:
        for number in range(count):
            await there.add(f"agent-{number}", ["popular"])
        await asyncio.sleep(40)  # two leases: some have moved as it grew
        searcher = "agent-0"
        crowd = await there.swarms[searcher].find("popular")
        few = await there.swarms[searcher].find("popular", limit=5)

        assert len(set(names(crowd))) == len(crowd) >= 0.8 * (count - 1)  # shards of a dozen, see ADR 15
        assert not crowd.complete
        assert len(few) == 5
        assert max(len(swarm._node.store.get(key, swarm._server.runtime.now()))
                   for swarm in there.swarms.values() for key in swarm._node.store.held_keys()) <= 32  # fmt: skip

        await there.kill([f"agent-{number}" for number in range(count - 80, count)])
        await asyncio.sleep(40)
        left = await there.swarms[searcher].find("popular")

        assert names(left) == there.offering("popular", but=searcher)
        # That one has heard of a crowd lately, and reads its shards; who has not reads the root, and knows.
        await there.add("late", ["cooking"])
        seen = await there.swarms["late"].find("popular")
        assert (names(seen), seen.complete) == (there.offering("popular", but="late"), True)


async def test_agents_without_a_port_are_found_by_those_who_hold_a_session_and_harm_nobody():
    async with agents() as there:
        for number in range(4):
            await there.add(f"agent-{number}", [SKILLS[0]])
        seed = there.swarms["agent-0"].status().listening[0]
        portless = [
            Swarm(an_agent(f"portless-{number}", [SKILLS[0]]), bootstrap=[seed], config=config()) for number in range(2)
        ]
        try:
            for swarm in portless:
                swarm._is_node = False
                await swarm.start(wait_joined=True)
            others = await there.swarms["agent-1"].find(SKILLS[0])
            listed = await there.swarms["agent-1"].find(SKILLS[0], probe=False)
            asked = [await there.swarms["agent-1"].ask(SKILLS[0], "do it") for _ in range(4)]

            assert names(others)[:3] == there.offering(SKILLS[0], but="agent-1")
            assert {agent.name for agent in listed if agent.reach is Reach.NONE} == {"portless-0", "portless-1"}
            assert {answer.result for answer in asked} <= {*there.swarms, "portless-0", "portless-1"}
        finally:
            for swarm in portless:
                await swarm.stop(grace=0)
