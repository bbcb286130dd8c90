"""Who is let in and who is not, over real sessions and plain connections, and what the log says of it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from synapse_p2p import AgentNode, CallContext, Client, ConfigError, Identity, RemoteError, Server
from synapse_p2p.access import REFUSALS_LOGGED_AT_ONCE
from synapse_p2p.serializers import MessagePackRPCSerializer
from synapse_p2p.transport.base import ByteStream
from synapse_p2p.transport.tcp import TcpTransport

EVERYWHERE = "0.0.0.0"
ANN, BOB = Identity.from_seed(b"a" * 32), Identity.from_seed(b"b" * 32)
KEY = b"k" * 32


class PlainSerializer(MessagePackRPCSerializer):
    """A client with a serializer of its own speaks the plain wire."""


@contextlib.asynccontextmanager
async def serving(server: Server) -> AsyncIterator[Server]:
    await server.start()
    try:
        yield server
    finally:
        await server.stop(grace=0)


def with_admin_endpoint(server: Server, **options: Any) -> Server:
    @server.endpoint("admin.reset", publish=False, **options)
    async def reset() -> str:
        return "as new"

    return server


def shared_server(**options: Any) -> Server:
    """One that others reach, with an unpublished endpoint and a published one."""
    server = with_admin_endpoint(Server(EVERYWHERE, 0, **options))

    @server.endpoint()
    async def add(a: int, b: int) -> int:
        return a + b

    return server


async def call(server: Server, endpoint: str, *args: Any, who: Identity = ANN) -> Any:
    async with Client("127.0.0.1", server.port, identity=who, network_key=server.network_key, timeout=10) as client:
        return await client.call(endpoint, *args)


async def plain_call(server: Server, endpoint: str, *args: Any) -> Any:
    return await Client("127.0.0.1", server.port, PlainSerializer, timeout=10).call(endpoint, *args)


async def refused(server: Server, endpoint: str, *args: Any, who: Identity = ANN) -> RemoteError:
    with pytest.raises(RemoteError) as caught:
        await call(server, endpoint, *args, who=who)
    return caught.value


# Unpublished endpoints


async def test_an_unpublished_endpoint_is_forbidden_to_nodes_from_elsewhere():
    async with serving(shared_server()) as server:
        error = await refused(server, "admin.reset")

        assert await call(server, "add", 1, 2) == 3
        assert await call(server, "_synapse.ping") == "pong"

    assert error.code == "forbidden"
    assert error.message == "admin.reset is not open to you: its server names who may call it with allow="
    assert error.details == {}


async def test_on_a_server_that_only_this_machine_reaches_everything_can_be_called():
    async with serving(with_admin_endpoint(Server(port=0))) as server:
        assert await call(server, "admin.reset") == "as new"
        assert await plain_call(server, "admin.reset") == "as new"


async def test_plain_callers_that_are_served_at_all_may_call_what_they_could_in_release_1_3():
    async with serving(shared_server(plain="anywhere")) as server:
        assert await plain_call(server, "admin.reset") == "as new"


@pytest.mark.parametrize(
    "allow", ["anyone", [ANN.node_id], [ANN.node_id.hex()], lambda caller: caller.peer == ANN.node_id]
)
async def test_allow_opens_an_unpublished_endpoint_to_whom_it_names(allow: Any):
    async with serving(with_admin_endpoint(Server(EVERYWHERE, 0), allow=allow)) as server:
        assert await call(server, "admin.reset", who=ANN) == "as new"
        if allow != "anyone":
            assert (await refused(server, "admin.reset", who=BOB)).code == "forbidden"


async def test_a_rule_holds_for_local_and_plain_callers_too():
    async with serving(with_admin_endpoint(Server(port=0), allow=[ANN.node_id])) as server:
        assert await call(server, "admin.reset", who=ANN) == "as new"
        assert (await refused(server, "admin.reset", who=BOB)).code == "forbidden"
        with pytest.raises(RemoteError, match=r"^admin.reset is not open to you") as caught:
            await plain_call(server, "admin.reset")

    assert caught.value.code == "bad_request"


async def test_the_servers_rule_holds_for_users_endpoints_and_an_endpoints_own_wins():
    server = shared_server(allow=[ANN.node_id])

    @server.endpoint(allow="anyone")
    async def hello() -> str:
        return "hello"

    async with serving(server):
        answers = [await call(server, name, *args) for name, *args in (("add", 1, 2), ("admin.reset",), ("hello",))]
        codes = [(await refused(server, name, who=BOB)).code for name in ("add", "admin.reset")]

        assert await call(server, "hello", who=BOB) == "hello"
        assert [method["name"] for method in await call(server, "_synapse.methods", who=BOB)] == ["add", "hello"]
    assert (answers, codes) == ([3, "as new", "hello"], ["forbidden", "forbidden"])


async def test_an_agents_rule_holds_for_asks_and_not_for_what_others_need_to_find_it():
    agent = AgentNode(name="Rita", role="reviewer", address=EVERYWHERE, port=0, allow=[ANN.node_id])

    @agent.task_handler
    async def handle(task: str, context: dict[str, Any]) -> str:
        return f"done: {task}"

    async with serving(agent):
        for prefix in ("_agent.", "_node."):
            assert await call(agent, prefix + "ask", "it") == "done: it"
            assert (await refused(agent, prefix + "ask", "it", who=BOB)).code == "forbidden"
            assert (await call(agent, prefix + "info", who=BOB))["name"] == "Rita"
            assert await call(agent, prefix + "capabilities", who=BOB) == []


async def test_no_way_to_a_task_handler_goes_round_an_agents_rule():
    agent = AgentNode(name="Rita", role="reviewer", address=EVERYWHERE, port=0, allow=[ANN.node_id])
    tasks: list[str] = []

    @agent.task_handler
    async def handle(task: str, context: dict[str, Any]) -> str:
        tasks.append(task)
        return "done"

    async def stream(name: str, task: str, who: Identity) -> list[Any]:
        async with Client("127.0.0.1", agent.port, identity=who, timeout=10) as client:
            return [item async for item in client.stream(name, task)]

    names = [name for name in agent.endpoint_directory if name.startswith(("_agent.", "_node."))]
    async with serving(agent):
        for name in names:
            for attempt in (call(agent, name, "Bob's", who=BOB), stream(name, "Bob's", BOB)):
                with contextlib.suppress(RemoteError):
                    await attempt
        with pytest.raises(RemoteError) as caught:
            await stream("_agent.stream_ask", "Bob's", BOB)
        assert await stream("_agent.stream_ask", "Ann's", ANN) == ["done"]

    assert {"_agent.ask", "_agent.stream_ask", "_node.ask"} <= set(names)
    assert caught.value.code == "forbidden"
    assert tasks == ["Ann's"]


async def test_an_agent_without_a_rule_takes_tasks_from_every_node():
    agent = AgentNode(name="Rita", role="reviewer", address=EVERYWHERE, port=0)

    @agent.task_handler
    async def handle(task: str, context: dict[str, Any]) -> str:
        return f"done: {task}"

    async with serving(agent):
        assert await call(agent, "_agent.ask", "it", who=BOB) == "done: it"


async def test_nothing_of_a_forbidden_call_is_looked_at():
    seen: list[str] = []

    @dataclasses.dataclass
    class Told:
        text: str

        def __post_init__(self) -> None:
            seen.append(self.text)

    server = Server(EVERYWHERE, 0)

    async def told(told: Told) -> None:
        seen.append("ran")

    told.__annotations__["told"] = Told
    server.endpoint("told", allow=[ANN.node_id])(told)

    async with serving(server):
        error = await refused(server, "told", {"text": "built"}, who=BOB)
        misfit = await refused(server, "told", 1, 2, 3, who=BOB)
        await call(server, "told", {"text": "built"}, who=ANN)

    assert (error.code, misfit.code) == ("forbidden", "forbidden")
    assert seen == ["built", "ran"]


# What a description gives away


async def test_describe_tells_who_may_not_call_no_more_than_that_nothing_is_there():
    async with serving(with_admin_endpoint(Server(EVERYWHERE, 0), allow=[ANN.node_id])) as server:
        hidden = await refused(server, "_synapse.describe", "admin.reset", who=BOB)
        absent = await refused(server, "_synapse.describe", "admin.resat", who=BOB)

        assert (await call(server, "_synapse.describe", "admin.reset", who=ANN))["name"] == "admin.reset"

    assert (hidden.code, hidden.details) == (absent.code, absent.details) == ("not_found", {})
    assert hidden.message.replace("reset", "resat") == absent.message


async def test_a_published_endpoint_is_described_to_all_and_hints_name_no_other():
    async with serving(shared_server(allow=[ANN.node_id])) as server:
        described = await call(server, "_synapse.describe", "add", who=BOB)
        near_hidden = await refused(server, "admin.rest", who=BOB)
        near_listed = await refused(server, "ad", who=BOB)

    assert described["order"] == ["a", "b"]
    assert (near_hidden.code, near_hidden.details) == ("not_found", {})
    assert near_listed.details == {"nearest": "add"}


# Operators


async def test_an_operators_endpoint_is_for_operators_alone():
    async def stats() -> dict[str, int]:
        return {"calls": 7}

    server = Server(port=0, operators=[ANN.node_id.hex()], allow="anyone")
    server.endpoints.register("_synapse.stats", stats, publish=False, reserved=True, for_operators=True)

    async with serving(server):
        assert await call(server, "_synapse.stats", who=ANN) == {"calls": 7}
        error = await refused(server, "_synapse.stats", who=BOB)
        with pytest.raises(RemoteError, match="for operators alone"):
            await plain_call(server, "_synapse.stats")
        server.operators.add(BOB.node_id)
        assert await call(server, "_synapse.stats", who=BOB) == {"calls": 7}

    assert (error.code, error.message) == (
        "forbidden",
        "_synapse.stats is for operators alone: its server names them with operators=",
    )


def test_a_server_knows_whether_it_was_given_an_identity_and_who_its_operators_are():
    server = Server(identity=ANN, operators={BOB.node_id, ANN.node_id.hex()})

    assert server.identity_given
    assert not Server().identity_given
    assert server.operators == {ANN.node_id, BOB.node_id}


@pytest.mark.parametrize("options", [{"operators": "me"}, {"operators": [b"me"]}, {"allow": 7}])
def test_a_server_refuses_a_rule_that_is_none(options: Any):
    with pytest.raises(ConfigError, match=f"^{next(iter(options))}="):
        Server(**options)


def test_an_endpoint_refuses_a_rule_that_is_none():
    with pytest.raises(ConfigError, match="names nobody"):
        with_admin_endpoint(Server(), allow=7)


# Rules that break


async def test_a_rule_that_raises_is_logged_once_and_the_caller_learns_nothing_of_it(caplog: pytest.LogCaptureFixture):
    def broken(caller: CallContext) -> bool:
        raise LookupError("canary")

    async with serving(with_admin_endpoint(Server(port=0), allow=broken)) as server:
        errors = [await refused(server, "admin.reset") for _ in range(3)]
        described = await refused(server, "_synapse.describe", "admin.reset")

    failures = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert {(error.code, "canary" in str(error)) for error in errors} == {("forbidden", False)}
    assert described.code == "not_found"
    assert len(failures) == 1
    assert failures[0].exc_info is not None
    assert "admin.reset" in failures[0].getMessage()


# Network keys


async def test_a_network_key_turns_the_plain_wire_off_on_this_machine_too():
    async with serving(Server(port=0, network_key=KEY)) as server:
        with pytest.raises(RemoteError, match=r"this network has a key.* this machine too.*network_key=") as caught:
            await plain_call(server, "_synapse.ping")

        assert await call(server, "_synapse.ping") == "pong"
    assert caught.value.code == "bad_request"


async def test_plain_calls_from_anywhere_and_a_network_key_exclude_each_other():
    late = Server(port=0, plain="anywhere")
    late.network_key = KEY

    with pytest.raises(ConfigError, match="exclude each other"):
        Server(plain="anywhere", network_key=KEY)
    with pytest.raises(ConfigError, match="exclude each other"):
        await late.start()


# What the log says


async def test_a_refusal_is_one_line_that_no_name_can_break(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "synapse_p2p.access")
    name = "admin\nrefused call endpoint='x'\x1b[2K\u202e" + "x" * 200
    server = Server(EVERYWHERE, 0)

    @server.endpoint(name, publish=False)
    async def hidden() -> None: ...

    async with serving(server):
        await refused(server, name, who=BOB)

    (record,) = [record for record in caplog.records if record.name == "synapse_p2p.access"]
    line = record.getMessage()
    assert line.startswith("refused call endpoint=\"admin\\nrefused call endpoint='x'\\x1b[2K\\u202exxx")
    assert f" peer={BOB.node_id.hex()} address=127.0.0.1:" in line
    assert line.endswith(" reason=not published")
    assert line.isprintable()
    assert len(line) < 300


class ElsewhereTransport(TcpTransport):
    """Loopback whose callers seem to come from another host."""

    async def listen(self, host: str, port: int, accept: Any) -> Any:
        def accept_elsewhere() -> Any:
            receiver = accept()
            made = receiver.connection_made
            receiver.connection_made = lambda stream: made(ElsewhereStream(stream))
            return receiver

        return await super().listen(host, port, accept_elsewhere)


class ElsewhereStream:
    peer_address = "192.0.2.7:4000"

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


async def test_a_plain_caller_turned_away_at_the_door_has_its_line(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "synapse_p2p.access")

    async with serving(Server(port=0, transport=ElsewhereTransport())) as server:
        _, merely_looking = await asyncio.open_connection("127.0.0.1", server.port)
        merely_looking.close()
        await merely_looking.wait_closed()
        with pytest.raises(RemoteError, match="from this machine alone"):
            await plain_call(server, "_synapse.ping")
        assert await call(server, "_synapse.ping") == "pong"

    assert [record.getMessage() for record in caplog.records if record.name == "synapse_p2p.access"] == [
        "refused call endpoint='' peer=- address=192.0.2.7:4000 reason=plain calls are served from this machine alone"
    ]


async def test_a_flood_of_refusals_does_not_fill_the_log(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "synapse_p2p.access")
    flood = REFUSALS_LOGGED_AT_ONCE + 50

    async with serving(shared_server()) as server, Client("127.0.0.1", server.port, identity=ANN) as client:
        for _ in range(flood):
            with contextlib.suppress(RemoteError):
                await client.call("admin.reset")

    lines = [record.getMessage() for record in caplog.records if record.name == "synapse_p2p.access"]
    told_later = sum(int(line.partition("(")[2].split()[0]) for line in lines[:-1] if "(" in line)
    assert REFUSALS_LOGGED_AT_ONCE < len(lines) < REFUSALS_LOGGED_AT_ONCE + 20
    assert lines[-1].startswith("refused ")
    assert len(lines) - 1 + told_later + int(lines[-1].split()[1]) == flood
