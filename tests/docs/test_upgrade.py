"""Each row of docs/how-to/upgrade.md holds. A row without a check here fails, and so does a check without its row."""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import dht
import synapse_p2p
from dht import FoundAgent, Swarm
from synapse_p2p import (
    AgentCapability,
    AgentNode,
    CallContext,
    CallError,
    Client,
    ConfigError,
    HandshakeFailed,
    Identity,
    PeerUnavailable,
    ProtocolViolation,
    RemoteError,
    RPCError,
    RPCRequest,
    RPCResponse,
    Server,
    ServerConfig,
    SynapseError,
    Timeout,
    background,
    exceptions,
    framing,
    serializers,
    types,
    utils,
)
from synapse_p2p import agent as agent_module
from synapse_p2p.apps.cli.entry import VERBS_OF_RELEASE_2
from synapse_p2p.serializers import MessagePackRPCSerializer
from synapse_p2p.transport.memory import MemoryTransport
from synapse_p2p.transport.plain_call import PlainCaller
from tests.cli.typing_commands import typed

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "upgrade.md"
MIB = 2**20

Check = Callable[[], Awaitable[None] | None]
CHECKS: dict[tuple[str, str], Check] = {}


def rows() -> list[tuple[str, str]]:
    """(release, first cell) of each row of both tables."""
    found: list[tuple[str, str]] = []
    release = ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## From release "):
            release = line.removeprefix("## From release ")
        elif line.startswith("|") and not line.startswith(("| name |", "| --- |")):
            name, here, changed = (cell.strip() for cell in line.strip("|").split("|"))
            assert name, line
            assert here, line
            assert changed or release == "2.5", line
            found.append((release, name))
    return found


def holds(release: str, name: str) -> Callable[[Check], Check]:
    """Decorator: this is the check of one row."""

    def take(check: Check) -> Check:
        assert (release, name) not in CHECKS
        CHECKS[release, name] = check
        return check

    return take


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row[0]} {row[1]}")
async def test_row_of_the_page_holds(row: tuple[str, str]):
    assert row in CHECKS, "this row has no check"

    outcome = CHECKS[row]()

    if inspect.isawaitable(outcome):
        await outcome


def test_no_check_is_without_its_row():
    assert sorted(CHECKS) == sorted(rows())


# What the checks need


@asynccontextmanager
async def serving(app: Server) -> AsyncIterator[Client]:
    """A client of `app`, which runs meanwhile."""
    await app.start()
    try:
        yield Client(port=app.port)
    finally:
        await app.stop()


@asynccontextmanager
async def two_agents() -> AsyncIterator[tuple[Swarm, Swarm]]:
    """The swarms of two agents named Rita and Rolf; the second one joined through the first."""
    agents = [AgentNode(name=name, role="reviewer", capabilities=["code-review"]) for name in ("Rita", "Rolf")]
    for member in agents:
        member.endpoint("shout")(str.upper)
        member.task_handler(_do)
    first = Swarm(agents[0])
    await first.start()
    second = Swarm(agents[1], bootstrap=[agents[0].listening_addresses[0]])
    await second.start()
    try:
        yield first, second
    finally:
        await second.stop(grace=0)
        await first.stop(grace=0)


async def _do(task: str, context: dict[str, Any]) -> str:
    return f"did {task}"


async def plain_refusal_of(client: Client, endpoint: str) -> RemoteError:
    """What a caller of release 1 is told."""
    caller = PlainCaller(
        client.address,
        client.port,
        serializer_class=MessagePackRPCSerializer,
        max_upload_size=MIB,
        max_download_size=MIB,
    )
    return await refusal_of(caller.call(RPCRequest(endpoint=endpoint, id="1"), timeout_s=10))


async def refusal_of(call: Awaitable[Any]) -> RemoteError:
    with pytest.raises(RemoteError) as caught:
        await call
    return caught.value


@contextmanager
def logged(name: str) -> Iterator[list[logging.LogRecord]]:
    """The records that a logger takes meanwhile; they go nowhere else."""
    records: list[logging.LogRecord] = []
    logger, handler = logging.getLogger(name), logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logger.addHandler(handler)
    propagates, logger.propagate = logger.propagate, False
    try:
        yield records
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates


async def bytes_answered(app: Server, sent: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", app.port)
    writer.write(sent)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


@asynccontextmanager
async def raw_server(answer: bytes) -> AsyncIterator[Client]:
    """A client of something that answers every call with these bytes and closes."""

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        writer.close()
        await writer.wait_closed()

    listener = await asyncio.start_server(respond, "127.0.0.1", 0)
    async with listener:
        yield Client(port=listener.sockets[0].getsockname()[1])


def refused_import(name: str) -> str:
    with pytest.raises(ImportError) as caught:
        getattr(synapse_p2p, name)
    return str(caught.value)


class FromElsewhere:
    """The writer of a stream whose other end is on another machine; it keeps what is written."""

    def __init__(self) -> None:
        self.written = b""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("192.0.2.7", 4000) if name == "peername" else default

    def write(self, data: bytes) -> None:
        self.written += data

    async def drain(self) -> None: ...

    def close(self) -> None: ...

    async def wait_closed(self) -> None: ...

    def is_closing(self) -> bool:
        return False


# Release 1.3


@holds("1.3", "`Server(address, port, serializer_class, max_upload_size)`")
def _() -> None:
    app = Server("127.0.0.1", 0, serializers.MessagePackRPCSerializer)

    assert app.max_upload_size == MIB


@holds("1.3", "calls from other machines")
async def _() -> None:
    answers = {}
    for plain in ("loopback", "anywhere"):
        writer, reader = FromElsewhere(), asyncio.StreamReader()
        request = RPCRequest("_synapse.ping", id="1")
        reader.feed_data(framing.encode_frame(serializers.MessagePackRPCSerializer.serialize(request)))
        await Server(plain=plain).handle_data(reader, writer)  # type: ignore[arg-type]
        answers[plain] = serializers.MessagePackRPCSerializer.deserialize(writer.written[4:])

    assert answers["anywhere"] == RPCResponse("1", ok=True, result="pong")
    assert answers["loopback"].error.code == "bad_request"
    assert 'Server(plain="anywhere")' in answers["loopback"].error.message


@holds("1.3", "`@app.endpoint(name, publish, description)`")
async def _() -> None:
    app = Server(port=0)

    @app.endpoint("sum", publish=False, description="Adds.")
    def add(a: int, b: int) -> int:
        return a + b

    with logged("synapse_p2p.endpoints") as records:
        app.endpoint("sum")(add)
    async with serving(app) as client:
        assert await client.call("sum", 1, 2) == 3
    assert [record.levelname for record in records] == ["WARNING"]


@holds("1.3", "endpoints named `_synapse.…`, `_agent.…`")
def _() -> None:
    for prefix in ("_synapse.", "_agent.", "_node.", "_dht.", "_swarm."):
        with pytest.raises(ConfigError, match=prefix):
            Server().endpoint(prefix + "mine")(_do)


@holds("1.3", "parameters `rpc` and `node`")
async def _() -> None:
    app = Server(port=0)

    @app.endpoint()
    async def where(rpc: RPCRequest, node: types.Node, caller: CallContext) -> list[Any]:
        return [rpc.endpoint, node.ip, caller.peer]

    async with serving(app) as client:
        endpoint, ip, peer = await client.call("where")
        refusal = await refusal_of(client.call("where", rpc="mine"))
    assert (endpoint, ip, len(peer)) == ("where", "127.0.0.1", 32)
    assert refusal.code == "bad_request"
    assert "'rpc'" in refusal.message


@holds("1.3", "a call with wrong arguments")
async def _() -> None:
    app, ran = Server(port=0), []

    @app.endpoint()
    async def add(a: int, b: int) -> None:
        ran.append((a, b))

    async with serving(app) as client:
        refusal = await refusal_of(client.call("add", 1, c=2))
    assert refusal.code == "bad_request"
    assert "'c'" in refusal.message
    assert ran == []


@holds("1.3", "a call of an unknown endpoint")
async def _() -> None:
    async with serving(Server(port=0)) as client:
        refusal = await refusal_of(client.call("nothing"))
        plain = await plain_refusal_of(client, "nothing")
    assert (refusal.code, refusal.message) == ("not_found", "Unregistered endpoint called: nothing")
    assert (plain.code, plain.message) == ("bad_request", "Unregistered endpoint called: nothing")


@holds("1.3", "an exception in a handler")
async def _() -> None:
    messages = []
    for expose_errors in (False, True):
        app = Server(port=0, expose_errors=expose_errors)

        @app.endpoint()
        async def fail() -> None:
            raise ValueError("a secret")

        @app.endpoint()
        async def refuse() -> None:
            raise CallError("not_today", "come back tomorrow")

        with logged("synapse_p2p.endpoints") as records:
            async with serving(app) as client:
                messages.append((await refusal_of(client.call("fail"))).message)
                refusal = await refusal_of(client.call("refuse"))
        assert [str(record.exc_info[1]) for record in records if record.exc_info] == ["a secret"]
        assert str(refusal) == "not_today: come back tomorrow"
    assert re.fullmatch(r"internal error \(reference [0-9a-f]+\)", messages[0])
    assert "a secret" in messages[1]


@holds("1.3", "a result that MsgPack cannot carry")
async def _() -> None:
    app = Server(port=0)

    @app.endpoint()
    async def numbers() -> Any:
        return {1, 2}

    with logged("synapse_p2p.endpoints"):
        async with serving(app) as client:
            refusal = await refusal_of(client.call("numbers"))
    assert refusal.code == "internal_error"


@holds("1.3", "half a frame, then silence")
async def _() -> None:
    app = Server(port=0, config=ServerConfig(header_timeout_s=0.05))

    async with serving(app):
        await asyncio.wait_for(bytes_answered(app, b"\0\0"), timeout=5)  # it returns: the other end closed
    assert ServerConfig().header_timeout_s == 10


@holds("1.3", "`@app.background(period)`")
async def _() -> None:
    app, slow_runs, plain_runs = Server(port=0), [], asyncio.Queue[None]()
    loop = asyncio.get_running_loop()

    @app.background(0.001)
    async def slow() -> None:
        slow_runs.append(1)
        await asyncio.Event().wait()

    @app.background(0.01)
    def plain() -> None:
        loop.call_soon_threadsafe(plain_runs.put_nowait, None)

    async with serving(app):
        for _ in range(3):
            await plain_runs.get()
    assert slow_runs == [1]
    with pytest.raises(ConfigError, match="period"):
        app.background(0)(slow)


@holds("1.3", "`app.run()`")
async def _() -> None:
    # What signals do to it is for tests/docs/test_readme.py: each program there is ended by SIGTERM.
    with pytest.raises(ConfigError, match=re.escape("await server.start()")):
        Server(port=0).run()
    # The port that is taken is for tests/docs/test_mistakes_page.py, which runs a whole program.


@holds("1.3", "`app.start()`")
async def _() -> None:
    app = Server(port=0)

    async with serving(app):
        assert app.port == app._server.sockets[0].getsockname()[1] != 0
        assert await app.start() is app._server


@holds("1.3", "`app.stop()`")
async def _() -> None:
    app = Server(port=0)
    await app.start()
    _, writer = await asyncio.open_connection("127.0.0.1", app.port)

    await asyncio.wait_for(app.stop(), timeout=5)

    writer.close()


@holds("1.3", "`app.serve()`")
async def _() -> None:
    app = Server(port=0)
    await app.start()
    serve = asyncio.ensure_future(app.serve())
    await asyncio.sleep(0)  # it has to begin before it can end

    await app.stop()

    await asyncio.wait_for(serve, timeout=5)


@holds("1.3", "`app.handle_data(reader, writer)`")
async def _() -> None:
    listener = await asyncio.start_server(Server().handle_data, "127.0.0.1", 0)

    async with listener:
        assert await Client(port=listener.sockets[0].getsockname()[1]).call("_synapse.ping") == "pong"


@holds("1.3", "`app.endpoint_directory`")
def _() -> None:
    app = Server()
    app.endpoint("do")(_do)

    assert app.endpoint_directory["do"] is _do
    with pytest.raises(TypeError, match="item assignment"):
        app.endpoint_directory["other"] = _do  # type: ignore[index]


@holds("1.3", "`app.endpoint_metadata`")
def _() -> None:
    app = Server()
    app.endpoint("do", description="Does it.")(_do)

    app.endpoint_metadata.clear()

    known = app.endpoint_metadata["do"]
    assert (known.name, known.publish, known.description) == ("do", True, "Does it.")


@holds("1.3", "`app.background_executor.tasks`")
def _() -> None:
    app = Server()
    app.background(5)(_do)

    assert [(task.name, task.callable, task.period) for task in app.background_executor.tasks] == [("_do", _do, 5)]


@holds("1.3", "`Client(address, port, serializer_class, max_download_size, timeout)`")
async def _() -> None:
    assert Client("127.0.0.1", 9999, serializers.MessagePackRPCSerializer).max_download_size == MIB
    assert Client().timeout == 30

    class NeverConnects:
        async def connect(self, host: str, port: int, receiver: Any) -> Any:
            await asyncio.Event().wait()

    with pytest.raises(Timeout, match="not started"):
        await Client(timeout=0.01, transport=NeverConnects()).call("add")  # type: ignore[arg-type]


@holds("1.3", "a server of an older release on another machine")
async def _() -> None:
    transport = MemoryTransport()
    refused = exchange_error(RPCError("bad_request", f"frame too large: {0xA553594E} > 4096"))

    class Old(asyncio.Protocol):
        def connection_made(self, stream: Any) -> None:
            self.stream = stream

        def data_received(self, data: bytes) -> None:
            self.stream.write(refused)
            self.stream.close()

    await transport.listen("10.0.0.5", 9999, Old)  # type: ignore[arg-type]
    with pytest.raises(HandshakeFailed, match=r"Client\('legacy://10.0.0.5', 9999\)"):
        await Client("10.0.0.5", transport=transport).call("add")
    with pytest.raises(RemoteError, match="frame too large"):  # asked in plain, it answers
        await Client("legacy://10.0.0.5", transport=transport).call("add")


def exchange_error(error: RPCError) -> bytes:
    return framing.encode_frame(MessagePackRPCSerializer.serialize(RPCResponse(id="", ok=False, error=error)))


@holds("1.3", "`client.call(endpoint, *args, **kwargs)`")
async def _() -> None:
    app = Server(port=0)

    @app.endpoint()
    async def describe(endpoint: str, timeout: int) -> list[Any]:
        return [endpoint, timeout]

    async with serving(app) as client:
        assert await client.call("describe", endpoint="mine", timeout=3) == ["mine", 3]


@holds("1.3", "`RuntimeError` of a failed call")
async def _() -> None:
    async with serving(Server(port=0)) as client:
        with pytest.raises(RuntimeError) as caught:
            await client.call("nothing")
    assert isinstance(caught.value, RemoteError)
    assert caught.value.code == "not_found"
    assert caught.value.message == str(caught.value)


@holds("1.3", "`TimeoutError` of a call")
async def _() -> None:
    app = Server(port=0)

    @app.endpoint()
    async def hang() -> None:
        await asyncio.Event().wait()

    async with serving(app) as client:
        client.timeout = 0.05
        with pytest.raises(TimeoutError) as caught:
            await client.call("hang")
    assert isinstance(caught.value, Timeout)


@holds("1.3", "`ConnectionRefusedError`, `socket.gaierror` of a call")
async def _() -> None:
    app = Server(port=0)
    async with serving(app):
        port = app.port
    for client in (Client(port=port), Client("nowhere.invalid")):
        with pytest.raises(ConnectionError) as caught:
            await client.call("add")
        assert isinstance(caught.value, PeerUnavailable)
        assert isinstance(caught.value, OSError)
        assert not isinstance(caught.value, (ConnectionRefusedError, socket.gaierror))


@holds("1.3", "`InvalidMessageError` of a call")
async def _() -> None:
    for answer, error in (
        (b"\xff" * 4, HandshakeFailed),
        (b"\0\0\0\1\xc1", HandshakeFailed),
        (b"\0\0", PeerUnavailable),
    ):
        async with raw_server(answer) as client:
            with pytest.raises(error):
                await client.call("add")
    assert issubclass(HandshakeFailed, ProtocolViolation)
    assert issubclass(exceptions.InvalidMessageError, ProtocolViolation)


@holds("1.3", "`TypeError` for arguments that MsgPack cannot carry")
async def _() -> None:
    with pytest.raises(ValueError, match=r"argument by is of type set.*send a list") as caught:
        await Client().call("add", by={1})
    assert isinstance(caught.value, ConfigError)


@holds("1.3", "`AgentNode(name, role, description, capabilities, ...)`")
def _() -> None:
    agent = AgentNode(name="Rita", role="reviewer", description="Reviews.", capabilities=["python"], port=4000)

    assert isinstance(agent, Server)
    assert (agent.name, agent.role, agent.description, agent.port) == ("Rita", "reviewer", "Reviews.", 4000)
    assert agent.capabilities == [AgentCapability("python")]


@holds("1.3", "`@agent.task_handler`")
async def _() -> None:
    agent = AgentNode(name="Rita", role="reviewer", port=0)

    @agent.task_handler
    def handle(task: str, context: dict[str, Any]) -> list[Any]:
        return [task, context]

    async with serving(agent) as client:
        assert await client.call("_agent.ask", "it") == ["it", {}]
    with pytest.raises(ConfigError, match="handler"):
        agent.task_handler(lambda task: task)


@holds("1.3", "`agent.capability(...)`")
def _() -> None:
    agent = AgentNode(name="Rita", role="reviewer")

    added = agent.capability("python", description="Reads it.", input_schema={"type": "object"})

    assert agent.capabilities == [added] == [AgentCapability("python", "Reads it.", {"type": "object"}, {})]


@holds("1.3", "`AgentCapability`")
def _() -> None:
    capability = AgentCapability("python")

    assert (capability.description, capability.input_schema, capability.output_schema) == ("", {}, {})


@holds("1.3", "`_synapse.ping`, `_synapse.methods`")
async def _() -> None:
    app = Server(port=0)
    app.endpoint("do", description="Does it.")(_do)
    app.endpoint("hidden", publish=False)(_do)

    async with serving(app) as client:
        assert await client.call("_synapse.ping") == "pong"
        assert await client.call("_synapse.methods") == [{"name": "do", "publish": True, "description": "Does it."}]


@holds("1.3", "`_agent.info`, `_agent.capabilities`, `_agent.ask`")
async def _() -> None:
    agent = AgentNode(name="Rita", role="reviewer", capabilities=["python"], port=0)
    information = {"name": "Rita", "role": "reviewer", "description": "", "capabilities": ["python"]}
    descriptor = {"name": "python", "description": "", "input_schema": {}, "output_schema": {}}

    async with serving(agent) as client:
        assert await client.call("_agent.info") == information
        [described] = await client.call("_agent.capabilities")
        assert described == descriptor | {"version": "", "attributes": {}}
        refusal = await refusal_of(client.call("_agent.ask", "it", context={}))
    assert refusal.code == "failed"
    assert str(refusal).startswith("no_task_handler: agent has no task handler")


@holds("1.3", "`RPCRequest`, `RPCResponse`, `RPCError`, `RemoteProcedureCall`")
def _() -> None:
    assert RPCRequest("sum") == RPCRequest("sum", "", [], {}, "request")
    assert RPCResponse("1", True) == RPCResponse("1", True, None, None, "response")
    assert RPCError(code="bad_request", message="no") == RPCError("bad_request", "no")
    assert synapse_p2p.RemoteProcedureCall is RPCRequest


@holds("1.3", "`synapse_p2p.framing`")
async def _() -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(framing.encode_frame(b"abc") + b"\0\0\0\4")

    assert await framing.read_frame(reader, 3) == b"abc"
    with pytest.raises(exceptions.InvalidMessageError, match="frame too large: 4 > 3"):
        await framing.read_frame(reader, 3)
    assert inspect.iscoroutinefunction(framing.write_frame)


@holds("1.3", "`synapse_p2p.serializers`")
def _() -> None:
    request = RPCRequest("sum", "1", [1], {"b": 2})

    written = serializers.MessagePackRPCSerializer.serialize(request)

    assert serializers.MessagePackRPCSerializer.deserialize(written) == request
    assert issubclass(serializers.MessagePackRPCSerializer, serializers.BaseRPCSerializer)


@holds("1.3", "`synapse_p2p.exceptions.InvalidMessageError`")
def _() -> None:
    assert issubclass(exceptions.InvalidMessageError, SynapseError)
    assert synapse_p2p.InvalidMessageError is exceptions.InvalidMessageError


@holds("1.3", "`synapse_p2p.types`")
def _() -> None:
    assert types.Node("ab", "127.0.0.1", 1) == types.Node(identifier="ab", ip="127.0.0.1", port=1)
    assert types.BackgroundTask(name="do", callable=_do, period=5).period == 5
    assert re.fullmatch("[0-9a-f]{8}", types.build_node_from_peer_name(("127.0.0.1", 1)).identifier)


@holds("1.3", "`synapse_p2p.utils`")
def _() -> None:
    nodes = [types.Node(identifier, "127.0.0.1", 1) for identifier in ("ff", "01", "0f")]

    assert re.fullmatch("[0-9a-f]{64}", utils.random_hash())
    assert utils.xor_distance(1, "ff") == 0xFE
    assert [node.identifier for node in utils.sort_nodes_by_xor_distance(0, nodes)] == ["01", "0f", "ff"]


@holds("1.3", "`synapse_p2p.background.BackgroundTaskHandler`")
async def _() -> None:
    handler, ran = background.BackgroundTaskHandler(), asyncio.Event()

    async def run() -> None:
        ran.set()
        await asyncio.Event().wait()

    handler.start()
    handler.add_task(types.BackgroundTask("run", run, 60))
    await asyncio.wait_for(ran.wait(), timeout=5)
    assert len(handler._running) == 1
    await handler.stop()
    assert not handler._running


@holds("1.3", "`synapse_p2p.agent.AgentTaskHandler`")
def _() -> None:
    assert not hasattr(agent_module, "AgentTaskHandler")
    assert AgentNode(name="Rita", role="reviewer").task_handler(_do) is _do


@holds("1.3", "`__logo__`")
def _() -> None:
    assert "__version__" in refused_import("__logo__")


@holds("1.3", "`loguru`")
def _() -> None:
    assert "loguru" not in sys.modules
    assert not any("loguru" in requirement for requirement in metadata.requires("synapse-p2p") or ())
    for module in (synapse_p2p, dht):
        logger = logging.getLogger(module.__name__)
        assert (logger.level, logger.handlers) == (logging.NOTSET, [])


@holds("1.3", "what is installed")
def _() -> None:
    # That a foreign dht is named is for tests/docs/test_foreign_dht.py.
    for package in ("synapse_p2p", "dht", "simulations"):
        assert "synapse-p2p" in metadata.packages_distributions().get(package, ["synapse-p2p"])


# Release 2.5


@holds("2.5", "`Node(name, role, description, capabilities)`")
def _() -> None:
    assert "AgentNode" in refused_import("Node")
    assert "Swarm" in refused_import("Node")
    with pytest.raises(TypeError, match="role"):
        AgentNode(name="Rita")  # type: ignore[call-arg]


@holds("2.5", "`Node(bind, port)`")
async def _() -> None:
    assert AgentNode(name="Rita", role="reviewer").address == "127.0.0.1"
    async with Swarm(AgentNode(name="Rita", role="reviewer"), listen="127.0.0.1:0") as swarm:
        assert swarm.status().listening[0].startswith("127.0.0.1:")


@holds("2.5", "`Node(advertise)`")
async def _() -> None:
    async with Swarm(listen="127.0.0.1:0", advertise="127.0.0.1:4000") as swarm:
        assert swarm.status().advertised == ("127.0.0.1:4000",)


@holds("2.5", "`Node(node_id)`")
def _() -> None:
    identity = Identity.from_seed(bytes(32))

    assert Server(identity=identity).identity.node_id.hex() == identity.node_id.hex()
    with pytest.raises(TypeError, match="node_id"):
        AgentNode(name="Rita", role="reviewer", node_id="my-id")


@holds("2.5", "`Node(swarm)`")
async def _() -> None:
    async with Swarm(listen="127.0.0.1:0", network="red") as red:
        blue = Swarm(bootstrap=red.status().listening, network="blue")
        with pytest.raises(dht.JoinFailed):
            await blue.start(wait_joined=True, join_timeout=0.5)


@holds("2.5", "`Node(seeds)`")
def _() -> None:
    with pytest.raises(ConfigError, match="host"):
        Swarm(bootstrap=["seed.example"])


@holds("2.5", "`Node(kind)`, `NodeKind`")
async def _() -> None:
    assert "Swarm" in refused_import("NodeKind")
    async with Swarm(listen="127.0.0.1:0") as seed:
        assert seed.status().mode is dht.SwarmMode.NODE
        async with Swarm(bootstrap=seed.status().listening) as client:
            assert client.status().mode is dht.SwarmMode.CLIENT


@holds("2.5", "`Node(heartbeat_interval, peer_timeout)`")
async def _() -> None:
    async with two_agents() as (first, second):
        assert [agent.name for agent in await first.find("code-review")] == ["Rolf"]
        await second.stop(grace=0)
        assert not await first.find("code-review")


@holds("2.5", "`Node(max_upload_size)`")
def _() -> None:
    assert inspect.signature(Server).parameters["max_upload_size"].default == MIB


@holds("2.5", "`Node(team)`")
def _() -> None:
    _not_options_yet("team")


@holds("2.5", "`Node(mdns)`")
def _() -> None:
    _not_options_yet("mdns")


@holds("2.5", "`Node(conversation_log)` and other `conversation_…` options")
def _() -> None:
    _not_options_yet(
        "conversation_log",
        "conversation_max_events",
        "conversation_keep_recent",
        "conversation_retention",
        "summarizer",
    )


def _not_options_yet(*names: str) -> None:
    """Once one of them exists, the row has to go."""
    known = {*inspect.signature(Server).parameters, *inspect.signature(Swarm).parameters}
    assert known.isdisjoint(names)
    for name in names:
        with pytest.raises(TypeError, match=name):
            AgentNode(name="Rita", role="reviewer", **{name: None})


@holds("2.5", "`Capability`")
def _() -> None:
    assert "AgentCapability" in refused_import("Capability")


@holds("2.5", "`@node.ask`")
async def _() -> None:
    agent = AgentNode(name="Rita", role="reviewer", port=0)
    agent.task_handler(_do)

    async with serving(agent) as client:
        assert await client.call("_node.ask", "it") == "did it"


@holds("2.5", "`@node.endpoint`")
async def _() -> None:
    agent = AgentNode(name="Rita", role="reviewer", port=0)
    agent.endpoint("sum", description="Adds.")(lambda a, b: a + b)

    async with serving(agent) as client:
        assert await client.call("sum", 1, 2) == 3


@holds("2.5", "`@node.periodic(seconds)`")
def _() -> None:
    agent = AgentNode(name="Rita", role="reviewer")

    agent.background(5)(print)

    assert [task.period for task in agent.background_executor.tasks] == [5]


@holds("2.5", "`every`, `IntervalSchedule`")
def _() -> None:
    for name in ("every", "IntervalSchedule"):
        assert "background(period)" in refused_import(name)


@holds("2.5", "`cron`, `CronSchedule`, `solar`, `SolarSchedule`")
def _() -> None:
    for name in ("cron", "CronSchedule", "solar", "SolarSchedule"):
        assert "no counterpart yet" in refused_import(name)


@holds("2.5", "`@node.on(event)`")
def _() -> None:
    assert not hasattr(AgentNode, "on")
    assert not hasattr(Swarm, "on")


@holds("2.5", "`node.artifact`, `AdvertisedArtifact`, `ServedArtifact`")
async def _() -> None:
    agent = AgentNode(name="Rita", role="reviewer", port=0)
    agent.endpoint("card")(lambda: {"model": "none"})

    async with serving(agent) as client:
        assert await client.call("card") == {"model": "none"}
    for name in ("AdvertisedArtifact", "ServedArtifact"):
        assert "an endpoint of your own" in refused_import(name)


@holds("2.5", "`node.peers`, `Peer`")
async def _() -> None:
    assert "FoundAgent" in refused_import("Peer")
    async with two_agents() as (first, _):
        (found,) = await first.find("code-review")
    assert isinstance(found, FoundAgent)
    assert (found.name, found.role, found.capabilities) == ("Rolf", "reviewer", ("code-review",))


@holds("2.5", "`node.join()`, `node.add_peer`")
async def _() -> None:
    async with Swarm(listen="127.0.0.1:0") as seed, Swarm(listen="127.0.0.1:0") as other:
        report = await other.join(seed.status().listening)
        assert report.joined == 1


@holds("2.5", "`node.broadcast`, `node.reply`, `node.replies`, `Broadcast`, `BroadcastReply`")
async def _() -> None:
    for name in ("Broadcast", "BroadcastReply"):
        assert "Swarm.find" in refused_import(name)
    async with two_agents() as (first, _):
        assert [await agent.call("shout", "hello") for agent in await first.find("code-review")] == ["HELLO"]


@holds("2.5", "`node.self_peer()`, `node.node_info()`")
async def _() -> None:
    async with Swarm(AgentNode(name="Rita", role="reviewer", capabilities=["python"])) as swarm:
        assert swarm.status().capabilities == ("python",)
        assert len(swarm.status().id) == 32


@holds("2.5", "`node.conversation`, `ConversationEvent`, `BaseConversationLog` and the rest of conversations")
def _() -> None:
    for name in (
        "BaseConversationLog",
        "ConversationEvent",
        "MemoryConversationLog",
        "SqliteConversationLog",
        "default_summarizer",
    ):
        assert "context" in refused_import(name)


@holds("2.5", "`Client.from_peer(peer)`")
async def _() -> None:
    assert not hasattr(Client, "from_peer")
    async with two_agents() as (first, _):
        (found,) = await first.find("code-review")
        assert await found.call("shout", "hello") == "HELLO"
        assert await found.ask("it") == "did it"


@holds("2.5", "`Client.peers()`")
def _() -> None:
    assert not hasattr(Client, "peers")
    assert inspect.iscoroutinefunction(Swarm.find)


@holds("2.5", "`Connection` and the parameter `connection`")
async def _() -> None:
    app = Server(port=0)
    app.endpoint("echo")(lambda connection: connection)

    async with serving(app) as client:
        assert await client.call("echo", connection="mine") == "mine"
    assert "CallContext" in refused_import("Connection")


@holds("2.5", "`synapse_p2p.teams`")
async def _() -> None:
    assert "Swarm.ask" in refused_import("teams")
    async with two_agents() as (first, _):
        answer = await first.ask("code-review", "it")
    assert (answer.result, answer.agent.name) == ("did it", "Rolf")


@holds("2.5", "`_synapse.info`")
async def _() -> None:
    async with serving(Server(port=0)) as client:
        assert sorted(await client.call("_synapse.info")) == ["id", "network", "version"]


@holds("2.5", "`_synapse.peers`, `_synapse.join`, `_synapse.heartbeat`, `_synapse.broadcast.reply`")
async def _() -> None:
    await _unregistered("_synapse.peers", "_synapse.join", "_synapse.heartbeat", "_synapse.broadcast.reply")


@holds("2.5", "`_synapse.artifacts`, `_synapse.artifact.get`, `_synapse.conversation.…`")
async def _() -> None:
    conversation = [f"_synapse.conversation.{name}" for name in ("event", "sync", "list")]
    await _unregistered("_synapse.artifacts", "_synapse.artifact.get", *conversation)


async def _unregistered(*names: str) -> None:
    async with serving(AgentNode(name="Rita", role="reviewer", port=0)) as client:
        for name in names:
            refusal = await refusal_of(client.call(name))
            assert (refusal.code, refusal.message) == ("not_found", f"Unregistered endpoint called: {name}")


@holds("2.5", "`_node.info`, `_node.capabilities`, `_node.ask`")
async def _() -> None:
    agent = AgentNode(name="Rita", role="reviewer", capabilities=["python"], port=0)
    agent.task_handler(_do)

    async with serving(agent) as client:
        for name, arguments in (("info", []), ("capabilities", []), ("ask", ["it"])):
            assert await client.call(f"_node.{name}", *arguments) == await client.call(f"_agent.{name}", *arguments)


@holds("2.5", "`synapse.ask`")
async def _() -> None:
    agent = AgentNode(name="Rita", role="reviewer", port=0)
    agent.task_handler(_do)
    agent.endpoint("synapse.ask")(_do)

    async with serving(agent) as client:
        assert await client.call("_agent.ask", "it") == "did it"
        assert await client.call("synapse.ask", "it", {}) == "did it"


@holds("2.5", "`BaseRPCSerializer`, `MessagePackRPCSerializer`")
def _() -> None:
    for name in ("BaseRPCSerializer", "MessagePackRPCSerializer"):
        assert f"synapse_p2p.serializers.{name}" in refused_import(name)
        assert hasattr(serializers, name)


@holds("2.5", "`synapse_p2p.utils.sort_connections_by_xor_distance`")
def _() -> None:
    nodes = [types.Node("ff", "127.0.0.1", 1), types.Node("01", "127.0.0.1", 1)]

    assert utils.sort_nodes_by_xor_distance(0, nodes, reverse=True) == nodes


@holds("2.5", "`synapse_p2p.types.PeriodicTask`")
def _() -> None:
    assert not hasattr(types, "PeriodicTask")
    assert types.BackgroundTask("do", _do, 5).period == 5


@holds("2.5", "`sn`, the command")
def _() -> None:
    commands = metadata.entry_points(group="console_scripts")
    listed = typed("--help").out

    assert sorted(command.name for command in commands if command.value.startswith("synapse_p2p")) == [
        "sn",
        "synapse",
        "synapse-p2p",
    ]
    for verb, command in VERBS_OF_RELEASE_2.items():
        assert f"\n  {command.split()[0]} " in listed
        assert verb in ("watch", "ask", "broadcast", "list-swarms")


# Nothing is left out


EXPORTED = {
    "1.3": "AgentCapability AgentNode Client RPCError RPCRequest RPCResponse RemoteProcedureCall Server __logo__",
    "2.5": """AdvertisedArtifact BaseConversationLog BaseRPCSerializer Broadcast BroadcastReply Capability Client
        Connection ConversationEvent CronSchedule IntervalSchedule MessagePackRPCSerializer Node NodeKind Peer
        ServedArtifact SolarSchedule cron every solar""",
}


@pytest.mark.parametrize("release", EXPORTED)
def test_page_names_what_the_release_exported(release: str):
    table = " ".join(name for of, name in rows() if of == release)

    missing = [name for name in EXPORTED[release].split() if not re.search(rf"\b{name}\b", table)]

    assert missing == []
