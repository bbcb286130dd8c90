"""The pages under docs/spec/ say what the code does: their bounds are the code's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dht import (
    admission,
    contact,
    dial_policy,
    doubt,
    finding,
    getting,
    lookup,
    messages,
    node,
    operations,
    quotas,
    reachability,
    reading,
    records,
    recovery,
    region,
    replication,
    responder,
    round_trips,
    shortlist,
    sqlite_store,
    values,
)
from dht.agents import claim, delegation, index, placement, query, record, renewal, search, versions, where
from dht.config import DHTConfig, DialConfig, HealthConfig, LookupConfig, RecordConfig, RoutingConfig
from synapse_p2p import capability
from synapse_p2p.config import PoolConfig, ServerConfig, SessionConfig
from synapse_p2p.protocol import channel, handshake, outbox, session, streams, wire
from synapse_p2p.transport import base, byte_budget, outflow, spoken, tcp

DOCS = Path(__file__).parents[2] / "docs"
MODULES = (
    admission,
    base,
    byte_budget,
    capability,
    channel,
    claim,
    contact,
    delegation,
    dial_policy,
    finding,
    getting,
    handshake,
    index,
    doubt,
    lookup,
    messages,
    node,
    operations,
    outbox,
    outflow,
    placement,
    query,
    quotas,
    reachability,
    reading,
    record,
    records,
    recovery,
    region,
    renewal,
    replication,
    responder,
    round_trips,
    search,
    shortlist,
    session,
    spoken,
    sqlite_store,
    streams,
    tcp,
    values,
    versions,
    where,
    wire,
)
CONFIGS = (
    DHTConfig,
    DialConfig,
    HealthConfig,
    LookupConfig,
    PoolConfig,
    RecordConfig,
    RoutingConfig,
    ServerConfig,
    SessionConfig,
)
OWNERS = {module.__name__.rpartition(".")[2]: module for module in MODULES} | {cls.__name__: cls() for cls in CONFIGS}
UNITS = {"": 1, "KiB": 1024, "MiB": 1024**2}

BOUND = re.compile(r"^\| `(\w+)\.(\w+)` \| ([\d.]+) ?(\w*) \|$", re.MULTILINE)

BOUNDS = [
    (page.name, *bound) for page in sorted((DOCS / "spec").glob("*.md")) for bound in BOUND.findall(page.read_text())
]


@pytest.mark.parametrize(("page", "owner", "name", "number", "unit"), BOUNDS, ids=lambda part: part or "-")
def test_bound_on_a_page_is_the_one_in_the_code(page: str, owner: str, name: str, number: str, unit: str) -> None:
    assert getattr(OWNERS[owner], name) == float(number) * UNITS[unit], f"{page} says otherwise"


@pytest.mark.parametrize("page", ["dht.md", "records.md", "wire.md"])
def test_page_of_the_specification_names_its_bounds(page: str) -> None:
    assert sum(bound[0] == page for bound in BOUNDS) > 10
