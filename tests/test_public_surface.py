"""What users may rely on: names, signatures and defaults. What is new in them is keyword-only and has a default."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import pytest

import dht
import synapse_p2p
from synapse_p2p import (
    AgentCapability,
    AgentNode,
    CallError,
    Client,
    ConfigError,
    PeerUnavailable,
    ProtocolViolation,
    RemoteError,
    RPCError,
    RPCRequest,
    RPCResponse,
    Server,
    SynapseError,
    Timeout,
    background,
    exceptions,
    framing,
    messages,
    serializers,
    types,
    utils,
)
from synapse_p2p.client import Keep
from synapse_p2p.serializers import MessagePackRPCSerializer

MIB = 2**20
REQUIRED = inspect.Parameter.empty

KEPT_IN_ORDER: dict[Callable[..., Any], dict[str, Any]] = {
    Server: {
        "address": "127.0.0.1",
        "port": 9999,
        "serializer_class": MessagePackRPCSerializer,
        "max_upload_size": MIB,
    },
    Server.endpoint: {"self": REQUIRED, "name": None},
    Server.background: {"self": REQUIRED, "period": REQUIRED},
    Server.run: {"self": REQUIRED},
    Server.start: {"self": REQUIRED},
    Server.stop: {"self": REQUIRED},
    Server.serve: {"self": REQUIRED},
    Server.handle_data: {"self": REQUIRED, "reader": REQUIRED, "writer": REQUIRED},
    Server.mount: {"self": REQUIRED, "prefix": REQUIRED, "endpoints": REQUIRED},
    Client: {
        "address": "127.0.0.1",
        "port": 9999,
        "serializer_class": MessagePackRPCSerializer,
        "max_download_size": MIB,
        "timeout": 30,
    },
    Client.with_options: {"self": REQUIRED},
    AgentNode.task_handler: {"self": REQUIRED, "function": None},
    AgentNode.set_capabilities: {"self": REQUIRED, "capabilities": REQUIRED},
    AgentNode.capability: {"self": REQUIRED, "name": REQUIRED},
    AgentCapability: {
        "name": REQUIRED,
        "description": "",
        "input_schema": {},
        "output_schema": {},
        "version": "",
        "attributes": {},
    },
    RPCRequest: {"endpoint": REQUIRED, "id": "", "args": [], "kwargs": {}, "type": "request"},
    RPCResponse: {"id": REQUIRED, "ok": REQUIRED, "result": None, "error": None, "type": "response"},
    RPCError: {"code": REQUIRED, "message": REQUIRED},
    CallError: {"reason": REQUIRED, "message": ""},
    framing.encode_frame: {"payload": REQUIRED},
    framing.read_frame: {"reader": REQUIRED, "max_size": REQUIRED},
    framing.write_frame: {"writer": REQUIRED, "payload": REQUIRED},
    serializers.BaseRPCSerializer.serialize: {"outgoing": REQUIRED},
    serializers.BaseRPCSerializer.deserialize: {"incoming": REQUIRED},
    serializers.MessagePackRPCSerializer.serialize: {"outgoing": REQUIRED},
    serializers.MessagePackRPCSerializer.deserialize: {"incoming": REQUIRED},
    utils.random_hash: {},
    utils.xor_distance: {"source": REQUIRED, "candidate": REQUIRED},
    utils.sort_nodes_by_xor_distance: {"source": REQUIRED, "nodes": REQUIRED, "reverse": False},
    types.Node: {"identifier": REQUIRED, "ip": REQUIRED, "port": REQUIRED},
    types.BackgroundTask: {"name": REQUIRED, "callable": REQUIRED, "period": REQUIRED},
    background.BackgroundTaskHandler: {},
    background.BackgroundTaskHandler.add_task: {"self": REQUIRED, "task": REQUIRED},
    dht.Swarm: {"agent": None},
    dht.Swarm.start: {"self": REQUIRED},
    dht.Swarm.stop: {"self": REQUIRED},
    dht.Swarm.run: {"self": REQUIRED},
    dht.Swarm.join: {"self": REQUIRED, "bootstrap": REQUIRED},
    dht.Swarm.ask: {"self": REQUIRED, "capability": REQUIRED, "task": REQUIRED},
    dht.Swarm.status: {"self": REQUIRED},
    dht.FoundAgent.ask: {"self": REQUIRED, "task": REQUIRED, "context": None},
}
"""The parameters that may be given by position, in order, with their defaults."""

KEYWORD_ONLY: dict[Callable[..., Any], dict[str, Any]] = {
    Server: {"identity": None, "network": "", "plain": "loopback", "expose_errors": False},
    Server.endpoint: {"publish": True, "description": ""},
    AgentNode: {"name": REQUIRED, "role": REQUIRED, "description": "", "capabilities": None},
    AgentNode.capability: {
        "description": "",
        "input_schema": None,
        "output_schema": None,
        "version": "",
        "attributes": None,
    },
    AgentNode.task_handler: {"reentrant": False},
    Client.with_options: {
        "timeout_s": Keep.AS_IT_IS,
        "idempotent": Keep.AS_IT_IS,
        "traceparent": Keep.AS_IT_IS,
    },
    CallError: {"details": None},
    dht.Swarm: {
        "bootstrap": (),
        "listen": None,
        "advertise": None,
        "network": "",
        "network_key": None,
        "identity": None,
        "data_dir": None,
    },
    dht.Swarm.start: {"join_timeout": 5, "wait_joined": False},
    dht.Swarm.stop: {"grace": 5},
    dht.Swarm.find: {"limit": None, "max_age": None, "probe": True},
    dht.Swarm.ask: {"context": None, "timeout": 600, "idempotent": False, "budget": None},
}
"""The parameters that have to be named. More of them may come, each with a default."""

ASYNC = [
    Server.start,
    Server.stop,
    Server.serve,
    Server.handle_data,
    AgentNode.set_capabilities,
    Client.call,
    framing.read_frame,
    framing.write_frame,
    dht.Swarm.start,
    dht.Swarm.stop,
    dht.Swarm.join,
    dht.Swarm.find,
    dht.Swarm.ask,
    dht.FoundAgent.call,
    dht.FoundAgent.ask,
]


def parameters_of(function: Callable[..., Any], *kinds: Any) -> Mapping[str, inspect.Parameter]:
    return {name: p for name, p in inspect.signature(function).parameters.items() if p.kind in kinds}


def default_of(function: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    """The default; of a dataclass field, what its factory makes."""
    if dataclasses.is_dataclass(function):
        for field in dataclasses.fields(function):
            if field.name == parameter.name and field.default_factory is not dataclasses.MISSING:
                return field.default_factory()
    return parameter.default


@pytest.mark.parametrize("function", KEPT_IN_ORDER, ids=lambda function: function.__qualname__)
def test_what_may_be_given_by_position_is_kept(function: Callable[..., Any]):
    kept = KEPT_IN_ORDER[function]

    found = parameters_of(function, inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)

    defaults = {name: default_of(function, parameter) for name, parameter in found.items()}
    assert list(defaults.items())[: len(kept)] == list(kept.items())
    # A value type may grow at its end; what is called otherwise grows by keywords.
    assert len(defaults) == len(kept) or dataclasses.is_dataclass(function)
    assert REQUIRED not in list(defaults.values())[len(kept) :]


@pytest.mark.parametrize("function", KEYWORD_ONLY, ids=lambda function: function.__qualname__)
def test_keyword_only_parameters_are_kept_and_new_ones_have_a_default(function: Callable[..., Any]):
    kept = KEYWORD_ONLY[function]

    found = {name: p.default for name, p in parameters_of(function, inspect.Parameter.KEYWORD_ONLY).items()}

    assert {name: found.get(name, "missing") for name in kept} == kept
    assert all(default is not REQUIRED for name, default in found.items() if name not in kept)


@pytest.mark.parametrize("function", ASYNC, ids=lambda function: function.__qualname__)
def test_what_is_awaited_stays_awaitable(function: Callable[..., Any]):
    assert inspect.iscoroutinefunction(function)


def test_every_argument_of_a_call_belongs_to_the_remote_function():
    parameters = inspect.signature(Client.call).parameters

    assert [(p.name, p.kind.name) for p in parameters.values()][1:] == [
        ("endpoint", "POSITIONAL_ONLY"),
        ("args", "VAR_POSITIONAL"),
        ("kwargs", "VAR_KEYWORD"),
    ]
    assert parameters["self"].kind is inspect.Parameter.POSITIONAL_ONLY


def test_find_takes_capabilities_by_position():
    kinds = [parameter.kind for parameter in inspect.signature(dht.Swarm.find).parameters.values()]

    assert kinds[1] is inspect.Parameter.VAR_POSITIONAL


def test_agent_takes_the_options_of_a_server():
    agent = AgentNode(name="Rita", role="reviewer", address="::1", port=1, plain="off", expose_errors=True)

    assert (agent.address, agent.port, agent.plain) == ("::1", 1, "off")


def test_server_has_the_attributes_of_release_1_3():
    server = Server()

    assert server._server is None
    assert server.background_executor.tasks == []
    assert server.background_executor._running == set()
    assert "_synapse.ping" in server.endpoint_directory
    assert server.endpoint_metadata["_synapse.ping"].publish is False


def test_synapse_p2p_exports_exactly_these_names():
    assert sorted(synapse_p2p.__all__) == [
        "AgentCapability",
        "AgentNode",
        "CallContext",
        "CallError",
        "Client",
        "ConfigError",
        "FrameTooLarge",
        "HandshakeFailed",
        "Identity",
        "InvalidAnswerError",
        "InvalidMessageError",
        "KeyFileError",
        "Metrics",
        "MetricsSnapshot",
        "NodeID",
        "PeerUnavailable",
        "ProtocolViolation",
        "RPCError",
        "RPCRequest",
        "RPCResponse",
        "RemoteError",
        "RemoteProcedureCall",
        "Server",
        "ServerConfig",
        "SynapseError",
        "Timeout",
        "__version__",
        "current_traceparent",
        "distance",
        "load_identity",
        "traced",
    ]


def test_dht_exports_exactly_these_names():
    assert sorted(dht.__all__) == [
        "AgentRecord",
        "Answer",
        "AskStream",
        "Attempt",
        "AttemptEnd",
        "Contact",
        "DHTConfig",
        "DHTNode",
        "DelegationExhausted",
        "DescriptorDiffers",
        "Explanation",
        "FindResult",
        "FindStream",
        "FoundAgent",
        "IdentityRevoked",
        "JoinFailed",
        "JoinReport",
        "LookupConfig",
        "MutableValue",
        "NoAgentFound",
        "NodeStatus",
        "Peer",
        "PutReport",
        "Reach",
        "RecordConfig",
        "RecordRefused",
        "RoutingConfig",
        "SeedReport",
        "SeedState",
        "StoreDamaged",
        "Swarm",
        "SwarmConfig",
        "SwarmMode",
        "SwarmStatus",
    ]


@pytest.mark.parametrize("package", [synapse_p2p, dht], ids=lambda package: package.__name__)
def test_every_exported_name_exists(package: Any):
    assert [name for name in package.__all__ if getattr(package, name, None) is None] == []


def test_the_overlay_is_loaded_when_a_name_of_it_is_used():
    program = (
        "import sys, dht; assert not {'dht.node', 'dht.swarm', 'synapse_p2p.server'} & set(sys.modules); "
        "from dht import *; assert Swarm is dht.Swarm is sys.modules['dht.swarm'].Swarm; dht.exceptions.JoinFailed"
    )

    subprocess.run([sys.executable, "-c", program], check=True)
    with pytest.raises(AttributeError, match="module 'dht' has no attribute 'Swarn'"):
        _ = dht.Swarn


def test_every_error_is_exported_by_the_package_that_raises_it():
    errors = {
        value.__name__
        for module in (exceptions, dht.exceptions)
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, SynapseError)
    }

    assert errors <= {*synapse_p2p.__all__, *dht.__all__}


@pytest.mark.parametrize(
    ("error", "also"),
    [
        (RemoteError("failed", "no"), RuntimeError),
        (Timeout("late"), TimeoutError),
        (Timeout("late"), asyncio.TimeoutError),
        (PeerUnavailable("gone"), ConnectionError),
        (ConfigError("wrong"), ValueError),
        (exceptions.InvalidMessageError("no message"), ProtocolViolation),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_callers_of_1_3_keep_catching_what_they_caught(error: Exception, also: type[Exception]):
    assert isinstance(error, SynapseError)
    assert isinstance(error, also)


def test_messages_are_the_same_under_all_their_names():
    for name in ("RPCError", "RPCRequest", "RPCResponse", "RemoteProcedureCall"):
        assert getattr(messages, name) is getattr(synapse_p2p, name)
    assert synapse_p2p.RemoteProcedureCall is RPCRequest


@pytest.mark.parametrize("prefix", ["_synapse.", "_agent.", "_node.", "_dht.", "_swarm."])
def test_names_of_the_packages_are_reserved(prefix: str):
    server = Server()

    with pytest.raises(ConfigError, match=prefix):
        server.endpoint(prefix + "mine")(print)
    server.mount(prefix, {prefix + "theirs": lambda arguments, context: None})
    assert server.mounted(prefix + "theirs") is not None


def test_mounting_elsewhere_is_refused():
    with pytest.raises(ConfigError, match="not a prefix"):
        Server().mount("mine.", {"mine.own": lambda arguments, context: None})


@pytest.mark.parametrize(
    "name",
    # All that release 2.5.0 exports and that is not here.
    [
        "AdvertisedArtifact",
        "BaseConversationLog",
        "BaseRPCSerializer",
        "Broadcast",
        "BroadcastReply",
        "Capability",
        "Connection",
        "ConversationEvent",
        "CronSchedule",
        "IntervalSchedule",
        "MemoryConversationLog",
        "MessagePackRPCSerializer",
        "Node",
        "NodeKind",
        "Peer",
        "ServedArtifact",
        "SolarSchedule",
        "SqliteConversationLog",
        "__logo__",
        "cron",
        "default_summarizer",
        "every",
        "solar",
    ],
)
def test_name_of_release_2_says_what_to_use_here(name: str):
    statement = f"from synapse_p2p import {name}"

    with pytest.raises(ImportError, match=rf"synapse_p2p\.{name} is of an earlier release; here use \w+"):
        exec(statement)  # as users write it: `from` turns an AttributeError into a text of its own


def test_name_of_no_release_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Swarn'"):
        _ = synapse_p2p.Swarn
