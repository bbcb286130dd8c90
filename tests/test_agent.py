from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Coroutine, Iterable
from typing import Any

import pytest

from simulations.virtual_loop import run
from synapse_p2p import (
    AgentCapability,
    AgentNode,
    CallContext,
    CallError,
    Client,
    ConfigError,
    Identity,
    PeerUnavailable,
    RemoteError,
    Timeout,
)
from synapse_p2p.agent import _caller_of, _Turns
from synapse_p2p.endpoints import RefusedError
from synapse_p2p.runtime import Runtime
from synapse_p2p.serializers import MessagePackRPCSerializer
from synapse_p2p.task_queue import TaskQueue
from synapse_p2p.transport.memory import MemoryTransport

ANN, BOB = Identity.from_seed(b"a" * 32), Identity.from_seed(b"b" * 32)


class PlainSerializer(MessagePackRPCSerializer):
    """A client with a serializer of its own speaks the plain wire."""


def make_agent(**options: Any) -> AgentNode:
    return AgentNode(name="Reviewer", role="reviewer", port=0, **options)


@contextlib.asynccontextmanager
async def serving(agent: AgentNode) -> AsyncIterator[Client]:
    await agent.start()
    try:
        yield Client(port=agent.port, timeout=10)
    finally:
        await agent.stop(grace=0)


@pytest.mark.parametrize("prefix", ["_agent.", "_node."])
async def test_an_agent_says_who_it_is_and_what_it_can_do(prefix: str):
    described = AgentCapability(
        "code-review",
        description="Reviews code",
        input_schema={"type": "object"},
        version="2.1.0",
        attributes={"price": 0.5, "lang": ("de", "en")},
    )
    agent = make_agent(description="Reviews Python code", capabilities=["python", described])

    async with serving(agent) as client:
        assert await client.call(prefix + "info") == {
            "name": "Reviewer",
            "role": "reviewer",
            "description": "Reviews Python code",
            "capabilities": ["python", "code-review"],
        }
        assert await client.call(prefix + "capabilities") == [
            {
                "name": "python",
                "description": "",
                "input_schema": {},
                "output_schema": {},
                "version": "",
                "attributes": {},
            },
            {
                "name": "code-review",
                "description": "Reviews code",
                "input_schema": {"type": "object"},
                "output_schema": {},
                "version": "2.1.0",
                "attributes": {"price": 0.5, "lang": ["de", "en"]},
            },
        ]


def test_a_capability_can_be_added_later():
    agent = make_agent(capabilities=["python"])

    added = agent.capability("code-review", description="Reviews code", version="2.1", attributes={"tier": "gold"})

    assert agent.capabilities == [AgentCapability("python"), added]
    assert added == AgentCapability("code-review", "Reviews code", version="2.1", attributes={"tier": "gold"})


async def test_capabilities_are_set_anew_while_the_agent_runs():
    agent = make_agent(capabilities=["python"])
    agent.task_handler(lambda task, context: context["diff"])
    review = AgentCapability("review", input_schema={"type": "object", "required": ["diff"]})

    async with serving(agent) as client:
        before = await client.call("_agent.info")
        await agent.set_capabilities([review, "rust"])
        await agent.set_capabilities([review])
        after = await client.call("_agent.info")
        with pytest.raises(RemoteError, match="does not fit its schema"):
            await client.call("_agent.ask", "go", {})
        answer = await client.call("_agent.ask", "go", {"diff": 1})

    assert (before["capabilities"], after["capabilities"], answer) == (["python"], ["review"], 1)


async def test_a_list_that_cannot_be_set_changes_nothing():
    agent = make_agent(capabilities=["python"])

    with pytest.raises(ConfigError, match="no valid JSON Schema"):
        await agent.set_capabilities(["rust", AgentCapability("review", input_schema={"type": "text"})])

    assert agent.capabilities == [AgentCapability("python")]


async def test_one_name_is_no_list_of_capabilities():
    agent = make_agent()

    with pytest.raises(ConfigError, match="write \\['python'\\]"):
        await agent.set_capabilities("python")
    with pytest.raises(ConfigError, match="are a list"):
        make_agent(capabilities="python")

    assert agent.capabilities == []


class TellingSwarm:
    """What an agent asks of its swarm: to tell others of its capabilities, as the last of which `none` is refused."""

    def __init__(self, agent: AgentNode) -> None:
        self.agent = agent
        self.told: list[list[str]] = []
        self.may_go_on = asyncio.Event()

    async def on_capabilities_changed(self) -> None:
        names = [capability.name for capability in self.agent.capabilities]
        self.told.append(names)
        if names[-1] == "none":
            await self.may_go_on.wait()
            raise ConfigError("a swarm cannot tell of this")


async def test_a_swarm_tells_others_of_the_capabilities_that_are_set():
    agent = make_agent(capabilities=["python"])
    swarm = agent._swarm = TellingSwarm(agent)
    swarm.may_go_on.set()

    await agent.set_capabilities(["rust"])
    with pytest.raises(ConfigError, match="cannot tell"):
        await agent.set_capabilities(["go", "none"])

    assert swarm.told == [["rust"], ["go", "none"]]
    assert agent.capabilities == [AgentCapability("rust")]


async def test_capabilities_set_meanwhile_stay_where_others_are_refused():
    agent = make_agent(capabilities=["python"])
    swarm = agent._swarm = TellingSwarm(agent)

    refused = asyncio.create_task(agent.set_capabilities(["none"]))
    await asyncio.sleep(0)
    await agent.set_capabilities(["rust"])
    swarm.may_go_on.set()

    with pytest.raises(ConfigError):
        await refused
    assert agent.capabilities == [AgentCapability("rust")]


@pytest.mark.parametrize("prefix", ["_agent.", "_node."])
async def test_a_task_goes_to_the_handler_with_its_context(prefix: str):
    agent = make_agent()

    @agent.task_handler
    async def handle(task: str, context: dict[str, Any]) -> Any:
        return {"task": task, "language": context.get("language")}

    async with serving(agent) as client:
        answer = await client.call(prefix + "ask", "write a test", context={"language": "python"})
        bare = await client.call(prefix + "ask", "write a test")

    assert answer == {"task": "write a test", "language": "python"}
    assert bare == {"task": "write a test", "language": None}


async def test_a_plain_function_may_do_the_work_and_learn_who_asks():
    agent = make_agent()

    @agent.task_handler
    def handle(task: str, context: dict[str, Any], asker: CallContext) -> Any:
        return [task, asker.peer, asker.network, asker.deadline is not None, asker.address.partition(":")[0]]

    async with serving(agent):
        client = Client(port=agent.port, identity=ANN, timeout=10)
        plain = Client(port=agent.port, serializer_class=PlainSerializer)

        assert await client.call("_agent.ask", "go") == ["go", ANN.node_id, "", True, "127.0.0.1"]
        assert await plain.call("_agent.ask", "go") == ["go", None, "", False, "127.0.0.1"]


async def test_a_handler_may_name_its_parameters_as_it_likes():
    agent = make_agent()

    @agent.task_handler
    async def handle(rpc: str, node: dict[str, Any]) -> Any:
        return [rpc, node]

    async with serving(agent) as client:
        assert await client.call("_agent.ask", "go", {"a": 1}) == ["go", {"a": 1}]


async def test_an_agent_without_a_handler_says_so():
    async with serving(make_agent()) as client:
        with pytest.raises(RemoteError, match="agent has no task handler"):
            await client.call("_agent.ask", "anything")


async def test_a_handlers_refusal_reaches_the_asker_in_its_words():
    agent = make_agent()

    @agent.task_handler
    async def handle(task: str, context: dict[str, Any]) -> Any:
        raise CallError("out_of_budget", "come back tomorrow")

    async with serving(agent) as client:
        with pytest.raises(RemoteError, match="come back tomorrow") as caught:
            await client.call("_agent.ask", "anything")

    assert (caught.value.code, caught.value.reason) == ("failed", "out_of_budget")


async def test_a_context_that_is_no_map_is_a_bad_request():
    agent = make_agent()

    @agent.task_handler
    async def handle(task: str, context: dict[str, Any]) -> Any:
        return "never"

    async with serving(agent) as client:
        with pytest.raises(RemoteError, match="'context' is a map") as caught:
            await client.call("_agent.ask", "go", context=[1])

    assert caught.value.code == "bad_request"


def test_a_function_that_cannot_take_a_task_is_refused_when_it_is_given():
    agent = make_agent()

    with pytest.raises(ConfigError, match=r"handler\(task, context\)"):

        @agent.task_handler
        async def handle(task: str) -> Any:
            return task


async def test_agents_own_endpoints_are_not_published():
    agent = make_agent()

    @agent.endpoint("public.tool", description="A public tool")
    async def public_tool() -> str:
        return "ok"

    async with serving(agent) as client:
        methods = await client.call("_synapse.methods")

    assert methods == [{"name": "public.tool", "publish": True, "description": "A public tool"}]


def test_an_agent_without_a_swarm_says_so():
    with pytest.raises(ConfigError, match=r"Swarm\(agent"):
        _ = make_agent().swarm


def test_an_agent_knows_the_swarm_that_was_mounted():
    agent, swarm = make_agent(), object()

    agent._swarm = swarm

    assert agent.swarm is swarm


def test_it_is_remembered_whether_the_user_chose_the_bind():
    assert make_agent().bind_given
    assert AgentNode(name="a", role="b", address="0.0.0.0").bind_given
    assert not AgentNode(name="a", role="b").bind_given


# How much it takes on, on virtual time


class Office:
    """A running agent whose every task takes the seconds that it names, and callers of it."""

    def __init__(self, **bounds: Any) -> None:
        loop, rng = asyncio.get_running_loop(), random.Random(7)
        self.runtime = Runtime(now=loop.time, unix_now=loop.time, rng=rng, token_bytes=rng.randbytes)
        self.transport = MemoryTransport()
        self.agent = AgentNode(name="Rita", role="reviewer", transport=self.transport, runtime=self.runtime, **bounds)
        self.started: list[tuple[str, float]] = []  # what began to run, and when
        self.most_at_once = 0
        self._running = 0

        @self.agent.task_handler
        async def handle(task: str, context: dict[str, Any]) -> str:
            self.started.append((task, loop.time()))
            self._running += 1
            self.most_at_once = max(self.most_at_once, self._running)
            try:
                await asyncio.sleep(float(context.get("takes", 10)))
            finally:
                self._running -= 1
            return task

    def caller(self, identity: Identity) -> Client:
        return Client(identity=identity, transport=self.transport, runtime=self.runtime, timeout=None)

    def plain_caller(self) -> Client:
        return Client(serializer_class=PlainSerializer, transport=self.transport, runtime=self.runtime, timeout=None)

    async def __aenter__(self) -> Office:
        await self.agent.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.agent.stop(grace=0)


async def asked(client: Client, tasks: Iterable[str], *, takes: float = 10) -> list[asyncio.Future[Any]]:
    """Asks that have all arrived, a moment apart."""
    asks = []
    for task in tasks:
        asks.append(asyncio.ensure_future(client.call("_agent.ask", task, {"takes": takes})))
        await asyncio.sleep(0.001)
    return asks


async def ends_of(asks: list[asyncio.Future[Any]]) -> list[str]:
    """How each ended: its answer, or the code of its failure."""
    ends = []
    for ask in asks:
        try:
            ends.append(await ask)
        except RemoteError as error:
            ends.append(error.code)
        except PeerUnavailable as error:
            ends.append("may have started" if error.may_have_started else "never started")
    return ends


def on_virtual_time(main: Coroutine[Any, Any, Any]) -> Any:
    return run(main)


@pytest.mark.parametrize("options", [{"max_tasks": 0}, {"queue": -1}, {"per_caller": 0}, {"queue": 1.5}])
def test_bounds_that_let_nothing_run_are_refused(options: dict[str, Any]):
    with pytest.raises(ConfigError, match=f"^{next(iter(options))} is"):
        make_agent(**options)


def test_asks_run_up_to_the_bound_wait_their_turn_and_beyond_it_are_told_busy():
    async def main() -> Any:
        async with Office(max_tasks=2, queue=1, per_caller=9) as office:
            first = await asked(office.caller(ANN), ["1", "2", "3"])
            with pytest.raises(RemoteError, match="as many tasks as it takes") as caught:
                await office.caller(ANN).call("_agent.ask", "4")
            return await ends_of(first), office.started, office.most_at_once, caught.value

    ends, started, most_at_once, busy = on_virtual_time(main())

    assert (ends, most_at_once) == (["1", "2", "3"], 2)
    assert [at for _, at in started] == pytest.approx([0, 0, 10], abs=0.1)
    assert (busy.code, busy.details) == ("busy", {"may_have_started": False})


def test_what_one_caller_runs_is_counted_over_all_its_connections_and_both_names():
    async def main() -> Any:
        async with Office(per_caller=2) as office:
            asks = await asked(office.caller(ANN), ["1"])
            other = office.caller(ANN)
            asks += [asyncio.ensure_future(other.call("_node.ask", task)) for task in ("2", "3")]
            return await ends_of(asks), office.most_at_once

    assert on_virtual_time(main()) == (["1", "2", "3"], 2)


def test_one_caller_cannot_shut_the_others_out():
    async def main() -> Any:
        async with Office(max_tasks=2, queue=6, per_caller=2) as office:
            greedy = await asked(office.caller(ANN), [f"a{number}" for number in range(60)])
            modest = await asked(office.caller(BOB), ["b0", "b1"])
            return await ends_of(greedy), await ends_of(modest), [task for task, _ in office.started]

    greedy, modest, started = on_virtual_time(main())

    assert modest == ["b0", "b1"]
    assert greedy == [*(f"a{number}" for number in range(6)), *["busy"] * 54]
    assert started[:5] == ["a0", "a1", "b0", "a2", "b1"]


def test_a_waiting_ask_that_is_cancelled_or_out_of_time_leaves_its_place_in_the_queue_at_once():
    async def main() -> Any:
        async with Office(max_tasks=1, queue=1) as office:
            client = office.caller(ANN)
            running = await asked(client, ["runs"])
            cancelled = await asked(client, ["cancelled"])
            cancelled[0].cancel()
            await asyncio.sleep(0.001)
            with pytest.raises(Timeout):
                await client.with_options(timeout_s=1).call("_agent.ask", "expires")
            await asyncio.sleep(0.001)
            hung_up = asyncio.ensure_future(office.plain_caller().call("_agent.ask", "hangs up"))
            await asyncio.sleep(0.001)
            hung_up.cancel()
            await asyncio.sleep(0.001)
            last = await asked(client, ["last"])
            return await ends_of(running + last), [task for task, _ in office.started]

    assert on_virtual_time(main()) == (["runs", "last"], ["runs", "last"])


def test_a_task_that_fails_or_is_cancelled_gives_its_place_to_the_next():
    async def main() -> Any:
        async with Office(max_tasks=1, queue=2) as office:
            client = office.caller(ANN)
            cancelled = await asked(client, ["cancelled"])
            fails = asyncio.ensure_future(client.call("_agent.ask", "fails", {"takes": "no number"}))
            last = await asked(client, ["last"])
            cancelled[0].cancel()
            return await ends_of([fails, *last])

    assert on_virtual_time(main()) == ["internal_error", "last"]


def test_a_stop_ends_what_waits_and_lets_what_runs_finish():
    async def main() -> Any:
        async with Office(max_tasks=1) as office:
            asks = await asked(office.caller(ANN), ["runs", "waits", "waits too"])
            plain = asyncio.ensure_future(office.plain_caller().call("_agent.ask", "plain"))
            await asyncio.sleep(0.001)
            stopping = asyncio.ensure_future(office.agent.stop(grace=60))
            waiting = await ends_of(asks[1:])
            with pytest.raises(RemoteError, match="the node is stopping"):
                await plain
            waited_until = asyncio.get_running_loop().time()
            running = await ends_of(asks[:1])
            await stopping
            async with office:
                again = await ends_of(await asked(office.caller(ANN), ["again"]))
            return waiting, waited_until, running, again

    waiting, waited_until, running, again = on_virtual_time(main())

    assert waiting == ["never started", "never started"]
    assert waited_until < 1
    assert (running, again) == (["runs"], ["again"])


def test_an_agent_with_sixty_four_asks_of_one_caller_still_answers_its_ping():
    async def main() -> Any:
        async with Office() as office:
            client = office.caller(ANN)
            asks = await asked(client, map(str, range(64)), takes=60)
            before = asyncio.get_running_loop().time()
            answer = await client.call("_synapse.ping")
            took_s = asyncio.get_running_loop().time() - before
            return answer, took_s, await ends_of(asks), office.most_at_once

    answer, took_s, ends, most_at_once = on_virtual_time(main())

    assert answer == "pong"
    assert took_s < 0.1
    assert ends == [*map(str, range(36)), *["busy"] * 28]
    assert most_at_once == 4


def test_plain_callers_of_this_machine_are_not_counted_as_one():
    async def main() -> Any:
        async with Office(max_tasks=3, per_caller=1) as office:
            plain = await asked(office.plain_caller(), ["1", "2", "3", "4"])
            return await ends_of(plain), office.most_at_once

    assert on_virtual_time(main()) == (["1", "2", "3", "4"], 3)


def test_an_agent_says_how_busy_it_is_and_how_long_a_task_takes():
    async def main() -> Any:
        async with Office(max_tasks=2, queue=5, per_caller=9) as office:
            client = office.caller(ANN)
            idle = await client.call("_agent.load")
            await ends_of(await asked(client, ["quick"], takes=10))
            used_to_it = (await client.call("_agent.load"))["service_s"]
            asks = await asked(client, ["1", "2", "3"], takes=42)
            busy = await office.plain_caller().call("_node.load")
            await ends_of(asks)
            return idle, used_to_it, busy, (await client.call("_node.load"))["service_s"]

    idle, used_to_it, busy, later = on_virtual_time(main())

    assert idle == {"running": 0, "waiting": 0, "max_tasks": 2, "queue": 5, "service_s": None}
    assert used_to_it == pytest.approx(10)
    assert busy == {"running": 2, "waiting": 1, "max_tasks": 2, "queue": 5, "service_s": used_to_it}
    assert used_to_it < later < 42


def test_tasks_that_run_far_longer_than_those_before_make_an_agent_look_slow():
    async def main() -> Any:
        async with Office(max_tasks=2) as office:
            client = office.caller(ANN)
            await ends_of(await asked(client, ["quick"], takes=1))
            asks = await asked(client, ["long", "long too"], takes=60)
            told = []
            for pause_s in (2, 38, 40):
                await asyncio.sleep(pause_s)
                told.append((await client.call("_agent.load"))["service_s"])
            await ends_of(asks)
            return told

    assert on_virtual_time(main()) == pytest.approx([1, 40, (1 + 60 + 60) / 3], abs=0.1)


def test_tasks_that_fail_or_are_cancelled_do_not_make_an_agent_look_quick():
    async def main() -> Any:
        async with Office(per_caller=9) as office:
            client = office.caller(ANN)
            await ends_of(await asked(client, ["quick"], takes=10))
            before = await client.call("_agent.load")
            cancelled = await asked(client, ["cancelled"])
            cancelled[0].cancel()
            with pytest.raises(RemoteError):
                await client.call("_agent.ask", "fails", {"takes": "no number"})
            return before, await client.call("_agent.load")

    before, after = on_virtual_time(main())

    assert before == after


def test_an_agent_says_how_busy_it_is_to_a_caller_whose_own_asks_take_all_its_places():
    async def main() -> Any:
        async with Office(max_tasks=64, per_caller=64, queue=300) as office:
            client = office.caller(ANN)
            asks = await asked(client, map(str, range(80)), takes=60)
            before = asyncio.get_running_loop().time()
            load = await client.call("_agent.load")
            took_s = asyncio.get_running_loop().time() - before
            await ends_of(asks)
            return load["running"], took_s

    running, took_s = on_virtual_time(main())

    assert running == 64
    assert took_s < 0.1


async def test_an_agent_says_how_busy_it_is_to_whom_it_says_who_it_is():
    async with serving(make_agent(allow=[ANN.node_id], plain="off")) as client:
        assert (await client.call("_agent.info"))["name"] == "Reviewer"
        assert (await client.call("_agent.load"))["running"] == 0
        with pytest.raises(RemoteError) as refused:
            await client.call("_agent.ask", "read")

    assert refused.value.code == "forbidden"


@pytest.mark.parametrize("reentrant", [True, False])
async def test_a_handler_is_declared_with_brackets_too(reentrant: bool):
    agent = make_agent()

    @agent.task_handler(reentrant=reentrant)
    async def handle(task: str, context: dict[str, Any]) -> Any:
        return task

    async with serving(agent) as client:
        assert await client.call("_agent.ask", "read") == "read"
    assert await handle("read", {}) == "read"


@pytest.mark.parametrize(
    ("peer", "address", "caller"),
    [
        (ANN.node_id, "127.0.0.1:7", ANN.node_id),
        (None, "192.0.2.7:7", "192.0.2.7"),
        (None, "[2001:db8::7]:7", "2001:db8::7"),
        (None, "127.0.0.1:7", None),
        (None, "[::1]:7", None),
    ],
)
def test_a_caller_is_its_id_or_else_its_host(peer: bytes | None, address: str, caller: Any):
    assert _caller_of(CallContext(peer=peer, address=address)) == caller


async def test_who_is_cancelled_in_the_moment_of_its_turn_passes_the_place_on():
    turns = _Turns(TaskQueue(max_tasks=1, queue_size=9, per_caller=9))
    ran: list[str] = []

    async def ask(name: str) -> None:
        async with turns.turn_of(b"a"):
            ran.append(name)
            await release.wait()
        if name == "first":
            asks[1].cancel()  # it has got its turn, and has not run yet

    release = asyncio.Event()
    asks = [asyncio.ensure_future(ask(name)) for name in ("first", "second", "third")]
    await asyncio.sleep(0)
    release.set()
    await asyncio.wait(asks)

    assert asks[1].cancelled()
    assert ran == ["first", "third"]
    async with turns.turn_of(b"a"):
        ran.append("nothing was lost")


async def test_a_closed_queue_takes_no_asks_until_it_is_opened():
    turns = _Turns(TaskQueue(max_tasks=1, queue_size=9, per_caller=9))

    turns.close()

    with pytest.raises(RefusedError, match="stopping"):
        async with turns.turn_of(b"a"):
            raise AssertionError("it ran")
    turns.open()
    async with turns.turn_of(b"a"):
        pass
