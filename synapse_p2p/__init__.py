"""RPC and agents: what one node says to another.

Re-exports only. `Swarm` and `DHTNode` live in the package `dht` and are loaded when they are first named: a program
that only calls functions loads no overlay.
"""

from __future__ import annotations

import importlib
from typing import Any

from synapse_p2p.agent import AgentCapability, AgentNode
from synapse_p2p.client import Client
from synapse_p2p.context import CallContext
from synapse_p2p.exceptions import (
    CallError,
    ConfigError,
    PeerUnavailable,
    ProtocolViolation,
    RemoteError,
    SynapseError,
    Timeout,
)
from synapse_p2p.messages import RemoteProcedureCall, RPCError, RPCRequest, RPCResponse
from synapse_p2p.server import Server

__all__ = [
    "AgentCapability",
    "AgentNode",
    "CallContext",
    "CallError",
    "Client",
    "ConfigError",
    "PeerUnavailable",
    "ProtocolViolation",
    "RPCError",
    "RPCRequest",
    "RPCResponse",
    "RemoteError",
    "RemoteProcedureCall",
    "Server",
    "SynapseError",
    "Timeout",
    "__version__",
]

_LAZY = {"Swarm": "dht.swarm", "DHTNode": "dht.node"}

_NAMES_OF_RELEASE_2 = {
    "AdvertisedArtifact": "an endpoint of your own that returns the document",
    "BaseConversationLog": "the task's context map, which the agents pass on",
    "BaseRPCSerializer": "synapse_p2p.serializers.BaseRPCSerializer",
    "Broadcast": "Swarm.find and a call to each agent found",
    "BroadcastReply": "Swarm.find and a call to each agent found",
    "Capability": "AgentCapability",
    "Connection": "CallContext, or synapse_p2p.types.Node",
    "ConversationEvent": "the task's context map, which the agents pass on",
    "CronSchedule": "Server.background(period)",
    "IntervalSchedule": "Server.background(period)",
    "MemoryConversationLog": "the task's context map, which the agents pass on",
    "MessagePackRPCSerializer": "synapse_p2p.serializers.MessagePackRPCSerializer",
    "Node": "AgentNode, and Swarm to join others",
    "NodeKind": "AgentNode for an agent, Swarm without one for a client",
    "Peer": "what Swarm.find returns",
    "ServedArtifact": "an endpoint of your own that returns the document",
    "SolarSchedule": "Server.background(period)",
    "SqliteConversationLog": "the task's context map, which the agents pass on",
    "cron": "Server.background(period)",
    "default_summarizer": "the task's context map, which the agents pass on",
    "every": "Server.background(period)",
    "solar": "Server.background(period)",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from synapse_p2p.version import installed_version

        return installed_version()
    if name in _LAZY:
        return _load_overlay(name)
    if name in _NAMES_OF_RELEASE_2:
        # ImportError, which `from synapse_p2p import ...` shows as it is; of an AttributeError it would hide the text.
        raise ImportError(f"synapse_p2p.{name} is of release 2; here use {_NAMES_OF_RELEASE_2[name]}")
    raise AttributeError(f"module 'synapse_p2p' has no attribute {name!r}")


def _load_overlay(name: str) -> Any:
    module_name = _LAZY[name]
    try:
        return getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        # `dht` is a name that others may have taken.
        found = getattr(importlib.import_module("dht"), "__file__", None)
        raise ImportError(f"{name} comes from the package dht of synapse-p2p; the dht found is {found}") from error
