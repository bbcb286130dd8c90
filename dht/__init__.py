"""The overlay: join a swarm through any node, find agents by what they can do, ask them."""

from dht.agents.record import AgentRecord, Reach
from dht.ask_stream import AskStream
from dht.bootstrap import JoinReport, SeedReport, SeedState
from dht.config import DHTConfig, LookupConfig, RecordConfig, RoutingConfig
from dht.contact import Contact
from dht.exceptions import (
    DelegationExhausted,
    DescriptorDiffers,
    IdentityRevoked,
    JoinFailed,
    NoAgentFound,
    RecordRefused,
    StoreDamaged,
)
from dht.find_stream import FindStream
from dht.node import DHTNode
from dht.owned import MutableValue, PutReport
from dht.peer import Peer
from dht.results import Answer, Attempt, AttemptEnd, Explanation, FindResult, FoundAgent, SwarmMode, SwarmStatus
from dht.status import NodeStatus
from dht.swarm import Swarm, SwarmConfig

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
