"""The overlay: join a swarm through any node, find agents by what they can do, ask them.

Re-exports only. Each name is loaded when it is first used: a command that wants an error's class loads no node.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dht.agents.record import AgentRecord as AgentRecord
    from dht.agents.record import Reach as Reach
    from dht.ask_stream import AskStream as AskStream
    from dht.bootstrap import JoinReport as JoinReport
    from dht.bootstrap import SeedReport as SeedReport
    from dht.bootstrap import SeedState as SeedState
    from dht.config import DHTConfig as DHTConfig
    from dht.config import LookupConfig as LookupConfig
    from dht.config import RecordConfig as RecordConfig
    from dht.config import RoutingConfig as RoutingConfig
    from dht.contact import Contact as Contact
    from dht.exceptions import DelegationExhausted as DelegationExhausted
    from dht.exceptions import DescriptorDiffers as DescriptorDiffers
    from dht.exceptions import IdentityRevoked as IdentityRevoked
    from dht.exceptions import JoinFailed as JoinFailed
    from dht.exceptions import NoAgentFound as NoAgentFound
    from dht.exceptions import RecordRefused as RecordRefused
    from dht.exceptions import StoreDamaged as StoreDamaged
    from dht.find_stream import FindStream as FindStream
    from dht.node import DHTNode as DHTNode
    from dht.owned import MutableValue as MutableValue
    from dht.owned import PutReport as PutReport
    from dht.peer import Peer as Peer
    from dht.results import Answer as Answer
    from dht.results import Attempt as Attempt
    from dht.results import AttemptEnd as AttemptEnd
    from dht.results import Explanation as Explanation
    from dht.results import FindResult as FindResult
    from dht.results import FoundAgent as FoundAgent
    from dht.results import SwarmMode as SwarmMode
    from dht.results import SwarmStatus as SwarmStatus
    from dht.status import NodeStatus as NodeStatus
    from dht.swarm import Swarm as Swarm
    from dht.swarm import SwarmConfig as SwarmConfig

__all__ = [
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

_HOMES = {
    "AgentRecord": "dht.agents.record",
    "Answer": "dht.results",
    "AskStream": "dht.ask_stream",
    "Attempt": "dht.results",
    "AttemptEnd": "dht.results",
    "Contact": "dht.contact",
    "DHTConfig": "dht.config",
    "DHTNode": "dht.node",
    "DelegationExhausted": "dht.exceptions",
    "DescriptorDiffers": "dht.exceptions",
    "Explanation": "dht.results",
    "FindResult": "dht.results",
    "FindStream": "dht.find_stream",
    "FoundAgent": "dht.results",
    "IdentityRevoked": "dht.exceptions",
    "JoinFailed": "dht.exceptions",
    "JoinReport": "dht.bootstrap",
    "LookupConfig": "dht.config",
    "MutableValue": "dht.owned",
    "NoAgentFound": "dht.exceptions",
    "NodeStatus": "dht.status",
    "Peer": "dht.peer",
    "PutReport": "dht.owned",
    "Reach": "dht.agents.record",
    "RecordConfig": "dht.config",
    "RecordRefused": "dht.exceptions",
    "RoutingConfig": "dht.config",
    "SeedReport": "dht.bootstrap",
    "SeedState": "dht.bootstrap",
    "StoreDamaged": "dht.exceptions",
    "Swarm": "dht.swarm",
    "SwarmConfig": "dht.swarm",
    "SwarmMode": "dht.results",
    "SwarmStatus": "dht.results",
}


def _load(name: str) -> Any:
    if name in _HOMES:
        found = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
        return found
    if not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}") is not None:
        return importlib.import_module(f"{__name__}.{name}")  # `import dht` alone brought all modules once
    raise AttributeError(f"module 'dht' has no attribute {name!r}")


if not TYPE_CHECKING:
    # Type checkers see the names above and no others: to them a module's __getattr__ would make any name valid.
    __getattr__ = _load
