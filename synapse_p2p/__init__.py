"""RPC and agents: what one node says to another.

Re-exports only. Each name is loaded when it is first used: a program that only calls functions loads no overlay, and a
command that prints its help loads nearly nothing. `Swarm` and `DHTNode` live in the package `dht`.
"""

from __future__ import annotations

import importlib
import importlib.util
import os.path
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dht.node import DHTNode as DHTNode
    from dht.swarm import Swarm as Swarm
    from synapse_p2p.agent import AgentCapability as AgentCapability
    from synapse_p2p.agent import AgentNode as AgentNode
    from synapse_p2p.client import Client as Client
    from synapse_p2p.config import ServerConfig as ServerConfig
    from synapse_p2p.context import CallContext as CallContext
    from synapse_p2p.exceptions import CallError as CallError
    from synapse_p2p.exceptions import ConfigError as ConfigError
    from synapse_p2p.exceptions import FrameTooLarge as FrameTooLarge
    from synapse_p2p.exceptions import HandshakeFailed as HandshakeFailed
    from synapse_p2p.exceptions import InvalidAnswerError as InvalidAnswerError
    from synapse_p2p.exceptions import InvalidMessageError as InvalidMessageError
    from synapse_p2p.exceptions import PeerUnavailable as PeerUnavailable
    from synapse_p2p.exceptions import ProtocolViolation as ProtocolViolation
    from synapse_p2p.exceptions import RemoteError as RemoteError
    from synapse_p2p.exceptions import SynapseError as SynapseError
    from synapse_p2p.exceptions import Timeout as Timeout
    from synapse_p2p.identity import Identity as Identity
    from synapse_p2p.identity import NodeID as NodeID
    from synapse_p2p.identity import distance as distance
    from synapse_p2p.keyfile import KeyFileError as KeyFileError
    from synapse_p2p.keyfile import load_identity as load_identity
    from synapse_p2p.messages import RemoteProcedureCall as RemoteProcedureCall
    from synapse_p2p.messages import RPCError as RPCError
    from synapse_p2p.messages import RPCRequest as RPCRequest
    from synapse_p2p.messages import RPCResponse as RPCResponse
    from synapse_p2p.metrics import Metrics as Metrics
    from synapse_p2p.metrics_snapshot import MetricsSnapshot as MetricsSnapshot
    from synapse_p2p.server import Server as Server
    from synapse_p2p.traceparent import current_traceparent as current_traceparent
    from synapse_p2p.traceparent import traced as traced

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

_HOMES = {
    "AgentCapability": "synapse_p2p.agent",
    "AgentNode": "synapse_p2p.agent",
    "CallContext": "synapse_p2p.context",
    "CallError": "synapse_p2p.exceptions",
    "Client": "synapse_p2p.client",
    "ConfigError": "synapse_p2p.exceptions",
    "FrameTooLarge": "synapse_p2p.exceptions",
    "HandshakeFailed": "synapse_p2p.exceptions",
    "Identity": "synapse_p2p.identity",
    "InvalidAnswerError": "synapse_p2p.exceptions",
    "InvalidMessageError": "synapse_p2p.exceptions",
    "KeyFileError": "synapse_p2p.keyfile",
    "Metrics": "synapse_p2p.metrics",
    "MetricsSnapshot": "synapse_p2p.metrics_snapshot",
    "NodeID": "synapse_p2p.identity",
    "PeerUnavailable": "synapse_p2p.exceptions",
    "ProtocolViolation": "synapse_p2p.exceptions",
    "RPCError": "synapse_p2p.messages",
    "RPCRequest": "synapse_p2p.messages",
    "RPCResponse": "synapse_p2p.messages",
    "RemoteError": "synapse_p2p.exceptions",
    "RemoteProcedureCall": "synapse_p2p.messages",
    "Server": "synapse_p2p.server",
    "ServerConfig": "synapse_p2p.config",
    "SynapseError": "synapse_p2p.exceptions",
    "Timeout": "synapse_p2p.exceptions",
    "current_traceparent": "synapse_p2p.traceparent",
    "distance": "synapse_p2p.identity",
    "load_identity": "synapse_p2p.keyfile",
    "traced": "synapse_p2p.traceparent",
}
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
        from synapse_p2p.version import VERSION

        return VERSION
    if name in _HOMES:
        found = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
        return found
    if name in _OF_THE_OVERLAY:
        _refuse_foreign_overlay(name)
        return getattr(importlib.import_module(_OF_THE_OVERLAY[name]), name)
    if name in _NAMES_OF_OTHER_RELEASES:
        # ImportError, which `from synapse_p2p import ...` shows as it is; of an AttributeError it would hide the text.
        raise ImportError(
            f"synapse_p2p.{name} is of an earlier release; here use {_NAMES_OF_OTHER_RELEASES[name]}", name=__name__
        )
    if not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}") is not None:
        return importlib.import_module(f"{__name__}.{name}")  # programs say `import synapse_p2p` alone, and mean all
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
