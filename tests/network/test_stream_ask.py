"""Tasks whose progress is seen, over encrypted TCP on loopback: what comes, who does it when one dies, how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterable, AsyncIterator, Coroutine
from typing import Any

import pytest

from dht import AttemptEnd, NoAgentFound, Swarm
from dht.ask_stream import MAX_PROGRESS
from dht.blocking import Swarm as BlockingSwarm
from synapse_p2p import AgentNode, CallError, ConfigError, Identity, PeerUnavailable, RemoteError, SynapseError
from synapse_p2p.access import Allow
from synapse_p2p.exceptions import Timeout


class Teller(AgentNode):
    """Counts to a number, which is the task; `ended` says how that went."""

    def __init__(
        self, name: str, *, waits_after: int = 1 << 30, fails_after: int = 1 << 30, allow: Allow | None = None
    ) -> None:
        identity = Identity.from_seed(os.urandom(32))
        super().__init__(name=name, role="teller", capabilities=["counting"], identity=identity, allow=allow)
        self.ended: list[str] = []

        @self.task_handler
        async def count(task: str, context: dict[str, Any]) -> AsyncIterator[str]:
            how = "stopped"
            try:
                for number in range(int(task)):
                    if number == fails_after:
                        raise CallError("tired", "that is enough")
                    if number == waits_after:
                        await asyncio.sleep(30)
                    yield f"{name} {number}"
                how = "done"
            finally:
                self.ended.append(how)


@contextlib.asynccontextmanager
async def swarm_of(*agents: AgentNode) -> AsyncIterator[Swarm]:
    """All of them, and a client of theirs. The first is the seed."""
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(Swarm(agents[0]))
        seeds = [agents[0].listening_addresses[0]]
        for agent in agents[1:]:
            await stack.enter_async_context(Swarm(agent, bootstrap=seeds))
        yield await stack.enter_async_context(Swarm(bootstrap=seeds))


async def read(
    stream: AsyncIterable[str], into: list[str], *, on_second: Coroutine[Any, Any, None] | None = None
) -> None:
    async for item in stream:
        into.append(item)
        if on_second is not None and len(into) == 2:
            await on_second


async def test_items_come_one_by_one_and_the_last_is_the_answer():
    async with swarm_of(Teller("Ann")) as swarm:
        stream = swarm.stream_ask("counting", "3")
        with pytest.raises(SynapseError, match="nobody has answered yet"):
            _ = stream.answer
        seen = [item async for item in stream]
        asked = await swarm.ask("counting", "3")

    assert seen == ["Ann 0", "Ann 1", "Ann 2"]
    assert (stream.answer.agent.name, stream.answer.result) == ("Ann", "Ann 2")
    assert stream.answer.progress == ("Ann 0", "Ann 1")
    assert [attempt.end for attempt in stream.answer.attempts] == [AttemptEnd.ANSWERED]
    assert (asked.result, asked.progress) == ("Ann 2", ())


async def test_a_handler_that_returns_sends_one_item():
    agent = AgentNode(name="Bob", role="r", capabilities=["counting"], identity=Identity.from_seed(os.urandom(32)))

    @agent.task_handler
    async def handle(task: str, context: dict[str, Any]) -> str:
        return f"all {task}"

    async with swarm_of(agent) as swarm:
        assert [item async for item in swarm.stream_ask("counting", "3")] == ["all 3"]


async def test_an_answer_remembers_the_newest_of_many_items():
    async with swarm_of(Teller("Ann")) as swarm:
        stream = swarm.stream_ask("counting", "300")
        count = len([item async for item in stream])

    assert count == 300
    assert len(stream.answer.progress) == MAX_PROGRESS
    assert stream.answer.progress[-1] == "Ann 298"


async def test_before_the_first_item_another_provider_is_tried():
    quiet, other = Teller("Quiet"), Teller("Other")
    async with swarm_of(Teller("Seed"), quiet, other) as swarm:
        # Who is gone without a word is still in the index.
        await quiet.swarm.stop(grace=0)
        names = {item for _ in range(6) async for item in swarm.stream_ask("counting", "1")}

    assert names <= {"Seed 0", "Other 0"}


async def test_who_is_there_and_refuses_is_followed_by_another_and_none_of_its_items_are_missing():
    closed, other = Teller("Closed", allow=lambda caller: False), Teller("Other")
    async with swarm_of(other, closed) as swarm:
        for _ in range(50):  # until the closed one is the first to be asked: both say that they have nothing to do
            stream = swarm.stream_ask("counting", "2")
            seen = [item async for item in stream]
            assert seen == ["Other 0", "Other 1"]
            if len(stream.answer.attempts) > 1:
                break

    assert [(attempt.agent.name, attempt.end) for attempt in stream.answer.attempts] == [
        ("Closed", AttemptEnd.FORBIDDEN),
        ("Other", AttemptEnd.ANSWERED),
    ]
    assert closed.ended == []


@pytest.mark.parametrize("fails_after", [0, 1, 2, 5])
async def test_an_error_comes_after_the_items_before_it(fails_after: int):
    agent = Teller("Ann", fails_after=fails_after)
    async with swarm_of(agent) as swarm:
        stream = swarm.stream_ask("counting", "9")
        seen: list[str] = []
        with pytest.raises(RemoteError, match="that is enough") as caught:
            await read(stream, seen)

    assert seen == [f"Ann {number}" for number in range(fails_after)]
    assert caught.value.answer is not None
    assert caught.value.answer.agent.name == "Ann"
    assert agent.ended == ["stopped"]


async def test_who_leaves_early_stops_the_work():
    agent = Teller("Ann", waits_after=2)
    async with swarm_of(agent) as swarm:
        async with swarm.stream_ask("counting", "9") as stream:
            async for item in stream:
                if item == "Ann 1":
                    break
        async with asyncio.timeout(5):
            while agent.ended != ["stopped"]:  # noqa: ASYNC110 - a handler of a user's tells nobody
                await asyncio.sleep(0.01)
        assert (await agent_load(swarm))["running"] == 0


async def agent_load(swarm: Swarm) -> dict[str, Any]:
    found = await swarm.find("counting")
    return await found[0].call("_agent.load")


async def test_a_provider_that_dies_at_work_is_an_error_after_its_items():
    seed, agent = Teller("Seed"), Teller("Ann", waits_after=2)
    async with swarm_of(seed, agent) as swarm:
        await seed.set_capabilities(["something-else"])
        seen: list[str] = []
        stream = swarm.stream_ask("counting", "9")
        with pytest.raises(PeerUnavailable):
            await read(stream, seen, on_second=agent.swarm.stop(grace=0))

    assert seen == ["Ann 0", "Ann 1"]
    assert stream.answer.agent.name == "Ann"


async def test_silence_between_items_ends_with_a_timeout():
    agent = Teller("Ann", waits_after=1)
    async with swarm_of(agent) as swarm:
        seen: list[str] = []
        with pytest.raises(Timeout):
            await read(swarm.stream_ask("counting", "3", timeout=0.5), seen)

    assert seen == ["Ann 0"]


async def test_nobody_and_nonsense_are_told_before_anything_is_sent():
    async with swarm_of(Teller("Ann")) as swarm:
        with pytest.raises(NoAgentFound):
            await anext(swarm.stream_ask("flying", "1"))
        with pytest.raises(ConfigError, match="above 0 seconds"):
            swarm.stream_ask("counting", "1", timeout=0)


async def test_a_found_agent_and_a_peer_stream_an_endpoint_of_theirs():
    agent = Teller("Ann")

    @agent.endpoint()
    async def letters(word: str) -> AsyncIterator[str]:
        for letter in word:
            yield letter

    async with swarm_of(agent) as swarm:
        found = (await swarm.find("counting"))[0]
        assert [letter async for letter in found.stream("letters", "abc")] == ["a", "b", "c"]
        assert [letter async for letter in swarm.peer(found.id).stream("letters", "de")] == ["d", "e"]


async def test_a_found_agent_and_a_peer_take_what_the_caller_iterates():
    agent = Teller("Ann")

    @agent.endpoint()
    async def total(numbers: AsyncIterator[int]) -> int:
        return sum([number async for number in numbers])

    @agent.endpoint()
    async def doubled(numbers: AsyncIterator[int], more: int) -> AsyncIterator[int]:
        async for number in numbers:
            yield 2 * number + more

    async def numbers(fails: bool = False) -> AsyncIterator[int]:
        for number in range(4):
            yield number
        if fails:
            raise LookupError("the file is gone")

    async with swarm_of(agent) as swarm:
        found = (await swarm.find("counting"))[0]
        peer = swarm.peer(found.id)
        assert await found.call("total", numbers()) == await peer.call("total", numbers=numbers()) == 6
        assert [item async for item in found.stream("doubled", numbers(), 1)] == [1, 3, 5, 7]
        assert [item async for item in peer.stream("doubled", numbers(), more=0)] == [0, 2, 4, 6]
        with pytest.raises(LookupError, match="the file is gone"):
            await found.call("total", numbers(fails=True))


async def test_a_peer_is_called_for_as_long_as_it_is_given():
    agent = Teller("Ann")

    @agent.endpoint()
    async def sleep() -> None:
        await asyncio.sleep(30)

    @agent.endpoint()
    async def dots() -> AsyncIterator[str]:
        yield "."
        await asyncio.sleep(30)

    async with swarm_of(agent) as swarm:
        peer = swarm.peer((await swarm.find("counting"))[0].id, timeout=0.2)
        with pytest.raises(Timeout):
            await peer.call("sleep")
        seen: list[str] = []
        with pytest.raises(Timeout):
            await read(peer.stream("dots"), seen)

    assert seen == ["."]


async def test_a_peer_tells_how_it_gets_on_for_as_long_as_it_is_given():
    agent = Teller("Ann", waits_after=2)
    async with swarm_of(agent) as swarm:
        peer = swarm.peer((await swarm.find("counting"))[0].id)
        assert [item async for item in peer.stream_ask("2")] == ["Ann 0", "Ann 1"]
        seen: list[str] = []
        with pytest.raises(Timeout):
            await read(peer.stream_ask("3", timeout=0.5), seen)

    assert seen == ["Ann 0", "Ann 1"]


async def test_without_a_loop_items_come_as_well():
    async with swarm_of(Teller("Ann")) as swarm:
        seeds = [(await swarm.find("counting"))[0].addresses[0]]

        def look() -> list[str]:
            with BlockingSwarm(bootstrap=seeds) as blocking:
                return list(blocking.stream_ask("counting", "3"))

        assert await asyncio.to_thread(look) == ["Ann 0", "Ann 1", "Ann 2"]
