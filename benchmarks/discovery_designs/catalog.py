"""The designs that are compared, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from benchmarks.discovery_designs.agent import Design, Times
from benchmarks.discovery_designs.gossip_agent import AGNTCY_TIMES, GossipAgent, Topic
from benchmarks.discovery_designs.index import IndexAgent
from benchmarks.discovery_designs.provider_records import LIBP2P_TIMES, ProviderAgent
from dht.config import DHTConfig
from simulations.world import UNDISTURBED

_RECORDS = DHTConfig().records
OUR_TIMES = Times(life_s=_RECORDS.lease_s, renew_s=_RECORDS.lease_s * DHTConfig().renew_fraction)
SMALL_CAP = 32
"""Records that a storer keeps of a key where shards are to be seen at work among 100 agents; 1,000 by default."""

OURS, OURS_SMALL, SINGLE_KEY, GOSSIP = "index", "index-cap-32", "single-key", "gossip"
SINGLE_KEY_SHIPPED, GOSSIP_SHIPPED = "single-key-48h", "gossip-72h"


def _index(name: str, label: str, cap: int) -> Design:
    config = replace(UNDISTURBED, records=replace(_RECORDS, max_records_per_key=cap))
    return Design(name, label, OUR_TIMES, config, lambda host, node: IndexAgent(host, node, OUR_TIMES))


def _single_key(name: str, label: str, times: Times) -> Design:
    return Design(name, label, times, UNDISTURBED, lambda host, node: ProviderAgent(host, node, times))


def _gossip(name: str, label: str, times: Times) -> Design:
    topic = Topic()
    return Design(name, label, times, UNDISTURBED, lambda host, node: GossipAgent(host, node, times, topic))


_NEW: dict[str, Callable[[], Design]] = {
    OURS: lambda: _index(OURS, "index", _RECORDS.max_records_per_key),
    OURS_SMALL: lambda: _index(OURS_SMALL, f"index, cap {SMALL_CAP}", SMALL_CAP),
    SINGLE_KEY: lambda: _single_key(SINGLE_KEY, "single key", OUR_TIMES),
    GOSSIP: lambda: _gossip(GOSSIP, "gossip cache", OUR_TIMES),
    SINGLE_KEY_SHIPPED: lambda: _single_key(SINGLE_KEY_SHIPPED, "single key, 22 h / 48 h", LIBP2P_TIMES),
    GOSSIP_SHIPPED: lambda: _gossip(GOSSIP_SHIPPED, "gossip cache, 36 h / 72 h", AGNTCY_TIMES),
}
DESIGNS = tuple(_NEW)


def new_design(name: str) -> Design:
    """One for one world. Raises KeyError for a name that is none."""
    return _NEW[name]()
