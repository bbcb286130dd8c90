"""A look at one node, as of now: nobody is asked for it."""

from __future__ import annotations

from dataclasses import dataclass

from dht.bootstrap import JoinReport
from dht.results import SwarmMode
from synapse_p2p.identity import NodeID


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """What a node knows of itself and of its swarm.

    `suspects` are those of its contacts that failed when they were last asked. `size_estimate` is of the whole network,
    None while too few lookups have told; `region_share` the part of the key space, 0 to 1, within whose distance it
    counts as a key's storer. `own_records` are the values that it has put and renews. `is_connected` says that it has
    contacts and that some were heard lately; `clock_ahead_s` is None while too few others' clocks are known. `seeds`
    are all addresses it was ever told to join through, and `join` how they took it.
    """

    id: NodeID
    mode: SwarmMode
    contacts: int
    suspects: int
    size_estimate: float | None
    region_share: float
    records_held: int
    own_records: int
    is_connected: bool
    clock_ahead_s: float | None
    seeds: tuple[str, ...]
    join: JoinReport
