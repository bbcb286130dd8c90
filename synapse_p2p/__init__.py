"""RPC and agents: what one node says to another.

Re-exports only. `Swarm` and `DHTNode` live in the package `dht` and are loaded when they are first named: a program
that only calls functions loads no overlay.
"""

from __future__ import annotations

import importlib
import importlib.util
import os.path
import sys
from typing import TYPE_CHECKING, Any

from synapse_p2p.agent import AgentCapability, AgentNode
from synapse_p2p.client import Client
from synapse_p2p.config import ServerConfig
from synapse_p2p.context import CallContext
from synapse_p2p.exceptions import (
    CallError,
    ConfigError,
    FrameTooLarge,
    HandshakeFailed,
    InvalidAnswerError,
    InvalidMessageError,
    PeerUnavailable,
    ProtocolViolation,
    RemoteError,
    SynapseError,
    Timeout,
)
from synapse_p2p.identity import Identity, NodeID, distance
from synapse_p2p.keyfile import KeyFileError, load_identity
from synapse_p2p.messages import RemoteProcedureCall, RPCError, RPCRequest, RPCResponse
from synapse_p2p.server import Server

if TYPE_CHECKING:
    from dht.node import DHTNode as DHTNode
    from dht.swarm import Swarm as Swarm

    __version__: str

__all__ = [
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
    "distance",
    "load_identity",
]

_OF_THE_OVERLAY = {"Swarm": "dht.swarm", "DHTNode": "dht.node"}

_CONTEXT_MAP = "the task's context map, which agents pass on; there is no conversation log yet"
_FIND_AND_CALL = "Swarm.find and a call to each agent found"
_OWN_ENDPOINT = "an endpoint of your own that returns the document"
_PERIOD = "Server.background(period); cron and sun times have no counterpart yet"

_NAMES_OF_OTHER_RELEASES = {
    "AdvertisedArtifact": _OWN_ENDPOINT,
    "BaseConversationLog": _CONTEXT_MAP,
    "BaseRPCSerializer": "synapse_p2p.serializers.BaseRPCSerializer",
    "Broadcast": _FIND_AND_CALL,
    "BroadcastReply": _FIND_AND_CALL,
    "Capability": "AgentCapability",
    "Connection": "CallContext, or synapse_p2p.types.Node",
    "ConversationEvent": _CONTEXT_MAP,
    "CronSchedule": _PERIOD,
    "IntervalSchedule": "Server.background(period)",
    "MemoryConversationLog": _CONTEXT_MAP,
    "MessagePackRPCSerializer": "synapse_p2p.serializers.MessagePackRPCSerializer",
    "Node": "AgentNode, and Swarm to join others",
    "NodeKind": "AgentNode for an agent, Swarm without one for a client",
    "Peer": "dht.FoundAgent, which Swarm.find returns",
    "ServedArtifact": _OWN_ENDPOINT,
    "SolarSchedule": _PERIOD,
    "SqliteConversationLog": _CONTEXT_MAP,
    "__logo__": "__version__; the banner has no counterpart",
    "cron": _PERIOD,
    "default_summarizer": _CONTEXT_MAP,
    "every": "Server.background(period)",
    "solar": _PERIOD,
    "teams": "Swarm.ask, which chooses one agent and fails over; teams have no counterpart yet",
}


def _load(name: str) -> Any:
    if name == "__version__":
        from synapse_p2p.version import installed_version

        return installed_version()
    if name in _OF_THE_OVERLAY:
        _refuse_foreign_overlay(name)
        return getattr(importlib.import_module(_OF_THE_OVERLAY[name]), name)
    if name in _NAMES_OF_OTHER_RELEASES:
        # ImportError, which `from synapse_p2p import ...` shows as it is; of an AttributeError it would hide the text.
        raise ImportError(
            f"synapse_p2p.{name} is of an earlier release; here use {_NAMES_OF_OTHER_RELEASES[name]}", name=__name__
        )
    raise AttributeError(f"module 'synapse_p2p' has no attribute {name!r}")


if not TYPE_CHECKING:
    # Type checkers see the names above and no others: to them a module's __getattr__ would make any name valid.
    __getattr__ = _load


def _refuse_foreign_overlay(name: str) -> None:
    """Raise ImportError where `dht` is not ours, before any line of it runs: others may have taken so short a name."""
    found = _origin_of_overlay()
    if found is None:
        raise ImportError(f"{name} comes from the package dht of synapse-p2p, which is missing: install it again")
    if _folder_above(found) != _folder_above(__file__):
        raise ImportError(
            f"{name} comes from the package dht of synapse-p2p, but {found} is in its place: "
            "run `python -P program.py`, or work in another folder (if that dht was installed, uninstall it)",
            name="dht",
            path=found,
        )


def _origin_of_overlay() -> str | None:
    """Where `import dht` leads, without following it."""
    if "dht" in sys.modules:
        return getattr(sys.modules["dht"], "__file__", None) or "another module named dht"
    spec = importlib.util.find_spec("dht")
    return None if spec is None else spec.origin or str(spec.submodule_search_locations)


def _folder_above(package_file: str) -> str:
    """The folder that holds the package whose `__init__` this is."""
    return os.path.dirname(os.path.dirname(os.path.abspath(package_file)))
