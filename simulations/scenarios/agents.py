"""What the scenarios of agents share: providers that publish and renew, searches that are counted, what storers serve.

Everybody knows everybody at the start as an oracle has it, as in the scenarios of the overlay. Where records are, and
who finds them, is the affair of the real code alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dht.agents.query import Query, parse_query
from dht.agents.record import AgentRecord, CapabilityClaim, Reach
from dht.announcing import PublishReport
from dht.config import DHTConfig
from dht.finding import ProvidersFound
from dht.keyspace import Key
from dht.lookup import LookupMode
from dht.node import DHTNode
from simulations import sabotage, values
from simulations.network import VirtualHost
from simulations.pool import REQUESTS
from simulations.progress import Watch
from simulations.scenarios.base import Ended, Settings
from simulations.scenarios.overlay import OverlayScenario
from simulations.undefended import RULES, undefended
from synapse_p2p.background import TaskScope
from synapse_p2p.context import CallContext
from synapse_p2p.identity import NodeID

LEAST_CAP = 32
"""Records per key at least: below it the root of a capability can be empty by chance, and shards do not work."""
NODES_PER_RECORD = 10
"""A capability that everybody has is spread over as many shards in a small swarm as in one of 10,000 with the usual
cap."""
RENEWAL_JITTER = 0.1


def cap_for(nodes: int) -> int:
    """Records per key in a swarm of so many: the usual thousand in one of 10,000."""
    return max(LEAST_CAP, nodes // NODES_PER_RECORD)


def agents_config(cap: int, sabotaged: str = "") -> DHTConfig:
    """What nodes are set to: as usual, but for the cap, and for a setting that they go without."""
    config = values.config()
    config = replace(config, records=replace(config.records, max_records_per_key=cap))
    return config if sabotaged in RULES else sabotage.dht_config(config, sabotaged)


class AgentScenario(OverlayScenario):
    """A scenario of the overlay whose nodes can go without a rule of the capability index as well."""

    def run(self, settings: Settings, watch: Watch) -> Ended:
        """See Scenario."""
        with undefended(settings.sabotage):
            return super().run(settings, watch)


class Provider:
    """The agent of one host, whose node keeps its record where searchers look, until it falls silent.

    `first` and `last` have of each capability what the first and the last publication by its own node came to.
    """

    def __init__(self, host: VirtualHost, node: DHTNode, config: DHTConfig, *capabilities: str) -> None:
        self.host = host
        self.node = node
        self.first: dict[str, PublishReport] = {}
        self.last: dict[str, PublishReport] = {}
        self._capabilities = capabilities
        self._lease_s = config.records.lease_s
        self._renew_s = config.records.lease_s * config.renew_fraction
        self._seq = 0
        self._signed_s = 0.0  # when the last version was, by the host's clock
        self._renewing: asyncio.Task[None] | None = None

    @property
    def id(self) -> NodeID:
        return self.host.id

    async def publish(self) -> None:
        """Sign a new version, and have it kept under each capability."""
        envelope, record = self.sealed()
        async with TaskScope("publish") as scope:
            tasks = [
                scope.spawn_awaited(self.node.publish(envelope, record, capability))
                for capability in self._capabilities
            ]
            reports = [await task for task in tasks]
        self.last = {report.capability: report for report in reports}
        self.first = self.first or self.last

    def renew_in(self, scope: TaskScope) -> None:
        """Publish anew half a lease after each version, from now on."""
        self._renewing = scope.spawn(self._renew(), name="renewals")

    def fall_silent(self) -> None:
        """The agent is gone and tells nobody; its node stays, for the sake of others."""
        if self._renewing is not None:
            self._renewing.cancel()

    def sealed_of_late(self) -> tuple[bytes, AgentRecord]:
        """Its next version, signed at a random moment since its last renewal was due."""
        return self.sealed(age_s=self.host.runtime.rng.uniform(0.0, (1 - RENEWAL_JITTER) * self._renew_s))

    def sealed(self, *, age_s: float = 0.0) -> tuple[bytes, AgentRecord]:
        """Its next version, signed so many seconds ago."""
        self._seq += 1
        self._signed_s = self.host.runtime.now() - age_s
        unix_ms = round((self.host.runtime.unix_now() - age_s) * 1000)
        record = AgentRecord(
            public_key=self.host.identity.public_key,
            seq=self._seq,
            issued_ms=unix_ms,
            expires_ms=unix_ms + round(self._lease_s * 1000),
            network_id=self.host.network_id,
            addresses=self.host.advertised_addresses,
            reach=Reach.DIRECT,
            name="agent",
            role="provider",
            description="",
            capabilities=tuple(CapabilityClaim(name) for name in self._capabilities),
        )
        return record.seal(self.host.identity), record

    async def _renew(self) -> None:
        runtime = self.host.runtime
        while True:
            jitter = runtime.rng.uniform(1 - RENEWAL_JITTER, 1 + RENEWAL_JITTER)
            await asyncio.sleep(max(0.0, self._signed_s + self._renew_s * jitter - runtime.now()))
            await self.publish()


@dataclass(frozen=True, slots=True)
class Search:
    """One search that has ended: whom it found, the lookups that it took, and all requests of it."""

    found: ProvidersFound
    lookups: int
    requests: int

    def ids(self) -> list[NodeID]:
        """Whom it found."""
        return [record.owner for record in self.found.records]


async def search(
    node: DHTNode, *capabilities: str, limit: int | None = None, mode: LookupMode = LookupMode.FRESH
) -> Search:
    """A search by this node, counted. It is to be made in a task of its own, as its requests are counted by that."""
    requests: list[str] = []
    REQUESTS.set(requests)
    query: Query = parse_query(capabilities)
    found = await node.find_matching(query, mode, limit=limit)
    lookups = sum(read.outcome is not None for read in found.reads)
    return Search(found, lookups, len(requests))


class Load:
    """How many requests about a capability each host served: those that read its root apart from all others."""

    def __init__(self, capability: str, root: Key) -> None:
        self.served: dict[NodeID, int] = {}
        self.root_reads: dict[NodeID, int] = {}
        self._capability = capability
        self._root = root

    def watch(self, hosts: Iterable[VirtualHost]) -> None:
        """Count what these serve from now on."""
        for host in hosts:
            for endpoint in ("_dht.find_value", "_dht.store"):
                handler = host.endpoints.mounted(endpoint)
                assert handler is not None, "a node lives there"
                host.mount("_dht.", {endpoint: self._counted(host.id, handler)})

    def begin_window(self) -> None:
        """Forget what was served until now."""
        self.served.clear()
        self.root_reads.clear()

    def _counted(
        self, host_id: NodeID, handler: Callable[[Mapping[str, Any], CallContext], Any]
    ) -> Callable[[Mapping[str, Any], CallContext], Any]:
        def serve(request: Mapping[str, Any], context: CallContext) -> Any:
            if request.get("capability") == self._capability:
                counts = self.root_reads if request.get("key") == self._root else self.served
                counts[host_id] = counts.get(host_id, 0) + 1
            return handler(request, context)

        return serve
