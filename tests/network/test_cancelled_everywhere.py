"""Every public coroutine, cancelled at every place where it waits, over real sockets.

The servers have room for one call at a time: a place that a cancelled call did not give back would be missed by the
next.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from dht import AgentRecord, FindResult, Swarm
from dht.agents.record import CapabilityClaim, Reach
from dht.keyspace import Key
from dht.lookup import LookupMode
from dht.node import DHTNode
from synapse_p2p import AgentNode, Client, RemoteError, Server
from synapse_p2p.config import PoolConfig, ServerConfig, SessionConfig
from synapse_p2p.exceptions import Timeout
from synapse_p2p.identity import NodeID
from synapse_p2p.serializers import MessagePackRPCSerializer
from tests.network.cancellation import cancelled_at_every_await, open_descriptors, until

ONE_AT_A_TIME = ServerConfig(
    max_handlers=1,
    session=SessionConfig(max_calls_served=1, max_control_calls=1, goodbye_timeout_s=0.2),
    pool=PoolConfig(redial_pause_s=1e-6, max_redial_pause_s=1e-6),
)
GRACE_S = 0.02
LONG_S = 0.3  # that a handler takes which is seen to end before


@pytest.fixture(autouse=True)
def nobody_complained(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    gc.collect()  # a task or a socket that was forgotten says so now
    assert [record.getMessage() for record in caplog.get_records("call") if record.levelno > logging.INFO] == []


@dataclass(frozen=True)
class Peer:
    id: NodeID
    addresses: tuple[str, ...]


def peer_of(server: Server) -> Peer:
    return Peer(server.identity.node_id, server.listening_addresses)


def make_server(*, port: int = 0) -> Server:
    server = Server(port=port, config=ONE_AT_A_TIME)

    @server.endpoint("slow")
    async def slow() -> str:
        for _ in range(3):
            await asyncio.sleep(0)
        return "done"

    @server.endpoint("long")
    async def long() -> str:
        await asyncio.sleep(LONG_S)
        return "done"

    @server.endpoint("tail")
    async def tail(rows: AsyncIterator[int] | None = None) -> AsyncIterator[int]:
        for number in range(3):
            await asyncio.sleep(0)
            yield number

    @server.endpoint("total")
    async def total(rows: AsyncIterator[int]) -> int:
        return sum([row async for row in rows])

    @server.endpoint("for_ever")
    async def for_ever() -> None:
        await asyncio.Event().wait()

    @server.endpoint("in_a_thread")
    def in_a_thread() -> str:
        return "done"

    server.mount("_dht.", {"_dht.mounted": lambda request, context: "done"})
    return server


async def call_as_client(server: Server) -> Any:
    async with Client(port=server.port, timeout=5) as client:
        return await client.call("slow")


def told(name: str, count: int) -> None:
    print(f"{name}: cancelled at each of {count} suspensions")
    assert count > 0, "it never waited, so nothing was seen"


# The harness itself


async def test_the_harness_sees_a_cancellation_that_is_swallowed():
    async def swallows() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    with pytest.raises(AssertionError, match="suspension 1, while it waits: it took no notice"):
        await cancelled_at_every_await(swallows, settle=turn)


@pytest.mark.linux
async def test_the_harness_sees_a_result_that_is_lost_on_its_way():
    sockets: list[socket.socket] = []

    async def make_one() -> socket.socket:
        await asyncio.sleep(0)
        sockets.append(socket.socket())
        return sockets[-1]

    async def opens() -> None:
        made = await asyncio.shield(asyncio.ensure_future(make_one()))
        made.close()

    with pytest.raises(AssertionError, match=r"suspension 1, while it waits: 1 more descriptors are open"):
        await cancelled_at_every_await(opens, settle=turn, settle_s=0.05)
    for made in sockets:
        made.close()


async def test_the_harness_sees_a_task_that_is_left():
    left: list[asyncio.Task[Any]] = []

    async def leaves() -> None:
        left.append(asyncio.ensure_future(asyncio.Event().wait()))
        await asyncio.sleep(0)

    with pytest.raises(AssertionError, match="suspension 1, while it waits: tasks are left"):
        await cancelled_at_every_await(leaves, settle=turn, settle_s=0.05)
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


async def test_the_harness_cancels_before_and_after_that_for_which_an_operation_waits():
    ends: list[str] = []

    async def waits() -> None:
        coming = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.001, lambda: coming.done() or coming.set_result(None))
        try:
            await coming
        except asyncio.CancelledError:
            ends.append("cancelled" if coming.cancelled() else "woken")
            raise
        ends.append("done")

    count = await cancelled_at_every_await(waits, settle=turn)

    assert count == 1
    assert ends[:4] == ["cancelled", "done", "woken", "done"]
    assert set(ends[4:]) <= {"cancelled", "woken", "done"}


async def turn() -> None:
    await asyncio.sleep(0)


# A server


async def test_a_start_cancelled_anywhere_leaves_no_port():
    server = make_server()

    async def starts_and_stops_again() -> None:
        await server.start()
        assert await call_as_client(server) == "done"
        await server.stop(grace=0)

    told("Server.start", await cancelled_at_every_await(server.start, settle=starts_and_stops_again))


@contextlib.asynccontextmanager
async def pair() -> AsyncIterator[tuple[Server, Server]]:
    """One who calls and one who is called."""
    caller, called = make_server(), make_server()
    await called.start()
    try:
        yield caller, called
    finally:
        await asyncio.gather(caller.stop(grace=0), called.stop(grace=0))


async def call(caller: Server, called: Server, endpoint: str = "slow") -> Any:
    return await caller.sessions.call_with(peer_of(called), endpoint, [], {}, timeout_s=5)


async def hang_up(caller: Server) -> None:
    await caller.sessions.stop(grace=0)
    caller.sessions.open()


@pytest.mark.parametrize("operation", ["stop", "serve"])
async def test_a_server_whose_end_is_cancelled_anywhere_can_be_ended_and_started_again(operation: str):
    caller, called = make_server(), make_server()
    busy: list[asyncio.Task[Any]] = []

    async def keep_busy() -> None:
        with contextlib.suppress(ConnectionError):
            await call(caller, called, "for_ever")

    async def start_and_call() -> None:
        await called.start()
        busy.append(asyncio.ensure_future(keep_busy()))
        await until(called.sessions.peer_ids)

    async def stop_soon() -> None:
        await until(lambda: called.listening_addresses)
        assert await call(caller, called) == "done"
        await called.stop(grace=GRACE_S)

    async def stop_when_it_serves() -> None:
        busy.append(asyncio.ensure_future(stop_soon()))

    async def works_again() -> None:
        for task in busy:
            task.cancel()
        await asyncio.gather(*busy, return_exceptions=True)
        busy.clear()
        await called.stop(grace=0)
        await called.start()
        assert await call(caller, called) == "done"
        await called.stop(grace=0)
        await hang_up(caller)

    if operation == "stop":
        count = await cancelled_at_every_await(
            lambda: called.stop(grace=GRACE_S), arrange=start_and_call, settle=works_again
        )
    else:
        count = await cancelled_at_every_await(called.serve, arrange=stop_when_it_serves, settle=works_again)
    await asyncio.gather(caller.stop(grace=0), called.stop(grace=0))

    told(f"Server.{operation}", count)


# Streams


async def rows() -> AsyncIterator[int]:
    for number in range(3):
        await asyncio.sleep(0)
        yield number


async def read(client: Client) -> list[int]:
    async with contextlib.aclosing(client.stream("tail")) as items:
        return [item async for item in items]


STREAMS: dict[str, Callable[[Client], Awaitable[Any]]] = {
    "stream": read,
    "call with an upload": lambda client: client.call("total", rows()),
}


@pytest.mark.parametrize("is_connected", [False, True], ids=["dialing", "connected"])
@pytest.mark.parametrize("name", STREAMS)
async def test_a_stream_cancelled_anywhere_leaves_a_client_that_works(name: str, is_connected: bool):
    server = make_server()
    await server.start()
    async with Client(port=server.port, timeout=5) as client:

        async def arrange() -> None:
            await client.close()
            if is_connected:
                assert await client.call("slow") == "done"

        async def works() -> None:
            assert await read(client) == [0, 1, 2]
            assert await client.call("total", rows()) == 3
            await client.close()

        count = await cancelled_at_every_await(
            lambda: STREAMS[name](client), arrange=arrange, settle=works, may_stay="session with"
        )
    await server.stop(grace=0)

    told(f"Client.{name}", count)


# A pool of sessions


CALLS: dict[str, Callable[[Server, Server], Awaitable[Any]]] = {
    "connect": lambda caller, called: caller.sessions.connect(peer_of(called)),
    "connect_address": lambda caller, called: caller.sessions.connect_address(called.listening_addresses[0]),
    "connect_address, a name": lambda caller, called: caller.sessions.connect_address(f"localhost:{called.port}"),
    "connect_address, with an id": lambda caller, called: caller.sessions.connect_address(
        called.listening_addresses[0], called.identity.node_id
    ),
    "check_dial": lambda caller, called: caller.sessions.check_dial(peer_of(called)),
    "call": lambda caller, called: caller.sessions.call(peer_of(called), "slow", {}, timeout_s=5),
    "call of a plain function": lambda caller, called: call(caller, called, "in_a_thread"),
    "call of a mounted one": lambda caller, called: call(caller, called, "_dht.mounted"),
    "call_with": call,
    "call_with, no limit": lambda caller, called: caller.sessions.call_with(
        peer_of(called), "slow", [], {}, timeout_s=None
    ),
    "call_with, a second address": lambda caller, called: caller.sessions.call_with(
        Peer(called.identity.node_id, ("127.0.0.1:1", *called.listening_addresses)), "slow", [], {}, timeout_s=5
    ),
}


@pytest.mark.parametrize("is_connected", [False, True], ids=["dialing", "connected"])
@pytest.mark.parametrize("name", CALLS)
async def test_a_use_of_a_pool_cancelled_anywhere_leaves_only_a_session_that_serves(name: str, is_connected: bool):
    async with pair() as (caller, called):

        async def arrange() -> None:
            await hang_up(caller)
            if is_connected:
                assert await call(caller, called) == "done"

        async def works() -> None:
            assert await call(caller, called) == "done"
            assert await call(caller, called, "_dht.mounted") == "done"
            assert await call_as_client(called) == "done"

        count = await cancelled_at_every_await(lambda: CALLS[name](caller, called), arrange=arrange, settle=works)

    if count or not is_connected:
        told(f"SessionPool.{name}", count)


@pytest.mark.parametrize("endpoint", ["_dht.mounted", "slow"])
async def test_a_call_cancelled_anywhere_while_it_waits_behind_another_takes_no_place(endpoint: str):
    async with pair() as (caller, called):
        ahead: list[asyncio.Task[Any]] = []

        async def let_one_go_ahead() -> None:
            assert await call(caller, called) == "done"
            ahead.append(asyncio.ensure_future(call(caller, called, endpoint)))
            await asyncio.sleep(0)

        async def works() -> None:
            assert await asyncio.gather(*ahead) == ["done"] * len(ahead)
            ahead.clear()
            assert await call(caller, called, endpoint) == "done"

        count = await cancelled_at_every_await(
            lambda: call(caller, called, endpoint), arrange=let_one_go_ahead, settle=works
        )

    told(f"SessionPool.call_with({endpoint!r}) behind another", count)


async def test_a_pools_stop_cancelled_anywhere_can_be_repeated_and_undone():
    async with pair() as (caller, called):
        busy: list[asyncio.Task[Any]] = []

        async def keep_busy() -> None:
            with contextlib.suppress(ConnectionError):
                await call(caller, called, "for_ever")

        async def call_for_ever() -> None:
            assert await call(caller, called) == "done"
            busy.append(asyncio.ensure_future(keep_busy()))
            await asyncio.sleep(0)

        async def works_again() -> None:
            await hang_up(caller)
            await asyncio.gather(*busy)
            busy.clear()
            assert await call(caller, called) == "done"

        count = await cancelled_at_every_await(
            lambda: caller.sessions.stop(grace=GRACE_S), arrange=call_for_ever, settle=works_again
        )

    told("SessionPool.stop", count)


# A client

HELD_SESSION = "session with"  # the task of an open session of a client's begins so


class OfTheirOwn(MessagePackRPCSerializer):
    """A serializer of the user's: such a client speaks the plain wire."""


@pytest.mark.parametrize("endpoint", ["slow", "in_a_thread", "no such endpoint"])
@pytest.mark.parametrize("serializer", [MessagePackRPCSerializer, OfTheirOwn], ids=["session", "plain"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_clients_call_cancelled_anywhere_leaves_at_most_its_session(
    host: str, serializer: type[MessagePackRPCSerializer], endpoint: str
):
    server = make_server()
    await server.start()
    client = Client(host, server.port, serializer, timeout=5)

    async def ask() -> Any:
        try:
            return await client.call(endpoint)
        except RemoteError as error:
            return error.code

    async def works() -> None:
        assert await client.call("slow") == "done"
        await client.close()

    dialing = await cancelled_at_every_await(ask, settle=works, may_stay=HELD_SESSION)
    connected = await cancelled_at_every_await(
        ask, arrange=lambda: client.call("slow"), settle=works, may_stay=HELD_SESSION
    )
    await server.stop(grace=0)

    told(f"Client({host!r}, serializer={serializer.__name__}).call({endpoint!r}), dialing", dialing)
    told(f"Client({host!r}, serializer={serializer.__name__}).call({endpoint!r}), connected", connected)


@pytest.mark.parametrize("operation", ["close", "async with"])
async def test_a_clients_end_cancelled_anywhere_can_be_repeated_and_it_calls_again(operation: str):
    server = make_server()
    await server.start()
    client = Client(port=server.port, timeout=5)

    async def call_and_end() -> None:
        async with client:
            assert await client.call("slow") == "done"

    async def works() -> None:
        await call_and_end()

    if operation == "close":
        count = await cancelled_at_every_await(
            client.close, arrange=lambda: client.call("slow"), settle=works, may_stay=HELD_SESSION
        )
    else:
        count = await cancelled_at_every_await(call_and_end, settle=works, may_stay=HELD_SESSION)
    await server.stop(grace=0)

    told(f"Client: {operation}", count)


@pytest.mark.parametrize("wire", ["pool", "session", "plain"])
async def test_wherever_a_call_is_cancelled_its_handler_ends_before_its_time(wire: str):
    async with pair() as (caller, called):
        client = Client(port=called.port, serializer_class=OfTheirOwn if wire == "plain" else MessagePackRPCSerializer)

        async def ask(endpoint: str = "long") -> Any:
            return await (call(caller, called, endpoint) if wire == "pool" else client.call(endpoint))

        async def works() -> None:
            assert await ask("slow") == "done"
            await client.close()

        count = await cancelled_at_every_await(ask, settle=works, settle_s=LONG_S / 2, may_stay=HELD_SESSION)

    told(f"a long call ({wire})", count)


@pytest.mark.parametrize("operation", ["check_dial", "Client.call"])
async def test_wherever_a_dial_is_cancelled_that_nobody_else_waits_for_it_hangs_up(operation: str):
    callers: list[asyncio.StreamWriter] = []
    says_nothing = await asyncio.start_server(lambda _, writer: callers.append(writer), "127.0.0.1", 0)
    address = says_nothing.sockets[0].getsockname()
    quick = ServerConfig(pool=PoolConfig(check_dial_timeout_s=LONG_S, redial_pause_s=1e-6, max_redial_pause_s=1e-6))
    caller = Server(config=quick)
    client = Client(*address, timeout=LONG_S)

    async def dial() -> str:
        try:
            if operation == "check_dial":
                await caller.sessions.check_dial(Peer(bytes(32), (f"127.0.0.1:{address[1]}",)))
            else:
                await client.call("slow")
        except Timeout:
            return "late"
        raise AssertionError("nobody answers there")

    async def let_go() -> None:
        for writer in callers:
            writer.transport.abort()
        callers.clear()

    count = await cancelled_at_every_await(dial, settle=let_go, settle_s=LONG_S / 2)
    await asyncio.gather(caller.stop(grace=0), client.close())
    says_nothing.close()

    told(f"{operation} of one who says nothing", count)


# A node of the overlay


async def start_node(*seeds: str) -> tuple[Server, DHTNode]:
    server = Server(port=0)
    await server.start()
    node = DHTNode(server)
    await node.start()
    await node.join(seeds)
    return server, node


async def stop_nodes(*nodes: tuple[Server, DHTNode]) -> None:
    for _, node in nodes:
        await node.stop()
    await asyncio.gather(*(server.stop(grace=0) for server, _ in nodes))


def record_of(server: Server) -> AgentRecord:
    now_ms = round(server.runtime.unix_now() * 1000)
    return AgentRecord(
        public_key=server.identity.public_key,
        seq=now_ms,
        issued_ms=now_ms,
        expires_ms=now_ms + 60_000,
        network_id=server.network_id,
        addresses=server.advertised_addresses,
        reach=Reach.DIRECT,
        name="Reviewer",
        role="worker",
        description="",
        capabilities=(CapabilityClaim("code-review"),),
    )


TARGET: Key = bytes(range(32))


@pytest.mark.parametrize("operation", ["join", "find_node", "lookup", "find_providers", "publish"])
async def test_a_nodes_question_cancelled_anywhere_leaves_nothing_and_can_be_asked_again(operation: str):
    seed = await start_node()
    address = seed[0].listening_addresses[0]
    others = [await start_node(address) for _ in range(3)]
    server, node = asking = await start_node()
    record = record_of(server)
    envelope = record.seal(server.identity)

    async def ask() -> Any:
        match operation:
            case "join":
                return await node.join([address])
            case "find_node":
                return await node.find_node(TARGET)
            case "lookup":
                return await node.lookup(TARGET, LookupMode.FAST)
            case "find_providers":
                return await node.find_providers("code-review")
            case _:
                return await node.publish(envelope, record, "code-review")

    async def works() -> None:
        report = await node.join([address])
        assert report.joined == 1
        assert (await node.publish(envelope, record, "code-review")).is_kept
        assert [found.name for found in (await node.find_providers("code-review")).records] == ["Reviewer"]

    count = await cancelled_at_every_await(ask, settle=works)
    await stop_nodes(asking, *others, seed)

    told(f"DHTNode.{operation}", count)


async def test_a_nodes_stop_cancelled_anywhere_leaves_nothing_and_it_starts_again():
    seed = await start_node()
    server, node = await start_node()

    async def look_after_something() -> None:
        await node.start()
        node.maintenance.every("often", 0.001, asyncio.Event().wait)  # type: ignore[arg-type]
        await until(lambda: any(task.get_name() == "often" for task in asyncio.all_tasks()))

    async def works_again() -> None:
        await node.stop()
        await node.start()
        assert (await node.join(seed[0].listening_addresses)).joined == 1
        await node.stop()

    count = await cancelled_at_every_await(node.stop, arrange=look_after_something, settle=works_again)
    await stop_nodes((server, node), seed)

    told("DHTNode.stop", count)


# A swarm


def make_agent(name: str, *capabilities: str) -> AgentNode:
    agent = AgentNode(name=name, role="worker", capabilities=list(capabilities), config=ONE_AT_A_TIME)

    @agent.task_handler
    async def handle(task: str, context: dict) -> str:
        await asyncio.sleep(0)
        return f"{name}: {task}"

    return agent


@contextlib.asynccontextmanager
async def swarm_of_three() -> AsyncIterator[tuple[str, Swarm]]:
    """A seed with its address, a reviewer, and a client, which is returned."""
    seed = make_agent("seed")
    async with Swarm(seed):
        address = seed.listening_addresses[0]
        async with (
            Swarm(make_agent("Reviewer", "code-review"), bootstrap=[address]),
            Swarm(bootstrap=[address]) as client,
        ):
            yield address, client


async def the_reviewer(client: Swarm) -> Any:
    found: FindResult = await client.find("code-review")
    assert [agent.name for agent in found] == ["Reviewer"]
    return found[0]


@pytest.mark.parametrize("operation", ["join", "find", "ask", "FoundAgent.call", "FoundAgent.ask", "Peer.call"])
async def test_a_use_of_a_swarm_cancelled_anywhere_leaves_nothing_and_can_be_repeated(operation: str):
    async with swarm_of_three() as (address, client):
        reviewer = await the_reviewer(client)

        async def use() -> Any:
            match operation:
                case "join":
                    return await client.join([address])
                case "find":
                    return await client.find("code-review")
                case "ask":
                    return await client.ask("code-review", "read", timeout=5)
                case "FoundAgent.call":
                    return await reviewer.call("_agent.info")
                case "FoundAgent.ask":
                    return await reviewer.ask("read", timeout=5)
                case _:
                    return await client.peer(reviewer.id).call("_agent.info")

        async def works() -> None:
            assert await (await the_reviewer(client)).ask("read") == "Reviewer: read"
            assert (await client.ask("code-review", "read")).result == "Reviewer: read"

        count = await cancelled_at_every_await(use, settle=works)

    told(f"Swarm.{operation}", count)


@pytest.mark.parametrize("operation", ["start", "start, wait_joined", "stop", "async with"])
async def test_a_swarm_whose_life_is_cancelled_anywhere_can_be_ended_and_started_again(operation: str):
    async with swarm_of_three() as (address, client):
        swarm = Swarm(make_agent("Writer", "writing"), bootstrap=[address])

        async def live() -> None:
            match operation:
                case "start":
                    await swarm.start()
                case "start, wait_joined":
                    await swarm.start(wait_joined=True)
                case "stop":
                    await swarm.stop(grace=GRACE_S)
                case _:
                    async with swarm:
                        await swarm.find("code-review")

        async def arrange() -> None:
            if operation == "stop":
                await swarm.start()

        async def works_again() -> None:
            await swarm.stop(grace=0)
            async with swarm:
                assert (await client.ask("writing", "a line")).result == "Writer: a line"

        # The others hold sessions with it for a moment: what is open is counted when they have noticed.
        count = await cancelled_at_every_await(live, arrange=arrange, settle=works_again)

    told(f"Swarm.{operation}", count)


@pytest.mark.linux
async def test_the_count_of_descriptors_is_a_count():
    before = open_descriptors()

    with socket.socket():
        during = open_descriptors()

    assert during == before + 1
