"""A swarm for programs without a loop, over real sockets."""

from __future__ import annotations

import asyncio
import inspect

import pytest

from dht import IdentityRevoked, NoAgentFound, blocking
from dht import swarm as of_loops
from synapse_p2p import AgentNode, ConfigError, Identity


def worker(name: str) -> AgentNode:
    agent = AgentNode(
        name=name, role="worker", capabilities=["work"], identity=Identity.from_seed(name.encode().ljust(32))
    )

    @agent.task_handler
    def handle(task: str, context: dict) -> str:
        return f"{name} did {task}"

    @agent.endpoint()
    async def count(up_to: int):
        for number in range(up_to):
            yield number

    return agent


def test_a_program_without_a_loop_joins_finds_and_asks():
    with blocking.Swarm(worker("first"), listen="127.0.0.1:0") as first:
        seeds = list(first.status().listening)
        with blocking.Swarm(worker("second"), bootstrap=seeds), blocking.Swarm(bootstrap=seeds) as client:
            found = client.find("work")
            one = client.find("work", limit=1, timeout=10)

            assert sorted(agent.name for agent in found) == ["first", "second"]
            assert (found.complete, len(found), len(one), one.reason) == (True, 2, 1, "limit 1")
            assert found[0].ask("this") == f"{found[0].name} did this"
            assert found[1].call("_agent.info")["capabilities"] == ["work"] == list(found[1].capabilities)
            assert str(found[:1][0]).startswith(found[0].name)
            assert client.ask("work", "that").result.endswith("did that")
            assert client.join(seeds).joined == 1
            with pytest.raises(NoAgentFound):
                client.ask("cooking", "an egg")


def test_a_program_without_a_loop_is_told_of_agents_as_they_are_found():
    with blocking.Swarm(worker("first"), listen="127.0.0.1:0") as first:
        seeds = list(first.status().listening)
        with blocking.Swarm(worker("second"), bootstrap=seeds), blocking.Swarm(bootstrap=seeds) as client:
            stream = client.stream_find("work", timeout=20)
            assert (stream.complete, stream.reason) == (False, "the search is not over")
            found = sorted(agent.name for agent in stream)
            with client.stream_find("work") as left_early:
                one = next(left_early)

            assert (found, stream.complete, stream.reason) == (["first", "second"], True, "")
            assert one.ask("this") == f"{one.name} did this"
            assert list(one.stream("count", 3)) == [0, 1, 2]
            assert list(left_early) == []
            with pytest.raises(ConfigError, match="limit is 0"):
                client.stream_find("work", limit=0)


def test_a_program_without_a_loop_calls_a_peer_by_its_address_and_by_its_id():
    with blocking.Swarm(worker("first"), listen="127.0.0.1:0") as first:
        seeds = list(first.status().listening)
        with blocking.Swarm(worker("second"), bootstrap=seeds) as second:
            kept = {agent.name: agent for agent in first.agents()}["second"]
            by_address, by_id = second.peer(seeds[0]), second.peer(first.status().id, timeout=20)

            assert kept.ask("this") == "second did this"
            for peer in (by_address, by_id):
                assert peer.call("_agent.info")["name"] == "first"
                assert list(peer.stream("count", 3)) == [0, 1, 2]
                assert peer.ask("that", {"a": 1}) == "first did that"
                assert list(peer.stream_ask("that")) == ["first did that"]
            assert repr(by_address) == f"<Peer {seeds[0]}>"
            with pytest.raises(ConfigError):
                second.peer("nowhere")


def test_a_program_without_a_loop_revokes_the_key_of_its_agent():
    with blocking.Swarm(worker("first"), listen="127.0.0.1:0") as first:
        seeds = list(first.status().listening)
        with blocking.Swarm(worker("second"), bootstrap=seeds) as second:
            second.revoke()

            assert list(first.find("work")) == []
        with pytest.raises(IdentityRevoked, match="revoked for good"):
            blocking.Swarm(worker("second"), bootstrap=seeds).start()


def test_in_a_running_loop_a_blocking_call_names_its_twin():
    async def main() -> None:
        swarm = blocking.Swarm(bootstrap=["127.0.0.1:5"])
        with pytest.raises(ConfigError, match=r"await swarm.find\(...\)"):
            swarm.find("work")
        with pytest.raises(ConfigError, match=r"`await peer.call\(...\)`"):
            swarm.peer("127.0.0.1:5").call("work")
        with pytest.raises(ConfigError, match=r"`swarm.agents\(\)`"):
            swarm.agents()

    asyncio.run(main())


METHODS = ["__init__", "start", "stop", "join", "revoke", "find", "stream_find", "ask", "stream_ask"]


@pytest.mark.parametrize("method", [*METHODS, "status", "peer", "agents"])
def test_methods_take_what_those_of_loops_take(method: str):
    ours = inspect.signature(getattr(blocking.Swarm, method)).parameters
    theirs = inspect.signature(getattr(of_loops.Swarm, method)).parameters

    assert [(each.name, each.kind, each.default) for each in ours.values()] == [
        (each.name, each.kind, each.default) for each in theirs.values()
    ]
