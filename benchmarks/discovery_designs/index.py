"""Ours: signed records in nested shards of the capability's key, at the storers of each shard."""

from __future__ import annotations

from benchmarks.discovery_designs.agent import CAPABILITY, DesignAgent, Held
from dht.agents.query import parse_query
from dht.lookup import LookupMode
from synapse_p2p.identity import NodeID


class IndexAgent(DesignAgent):
    """An agent whose record is kept by `DHTNode.publish`, and found as `Swarm.find` does, but for the probe of those
    found: it would make every design's answers fresh.
    """

    async def announce(self) -> None:
        """See DesignAgent."""
        envelope, record = self.sealed_record()
        await self.node.publish(envelope, record, CAPABILITY)

    async def find(self, limit: int | None) -> list[NodeID]:
        """See DesignAgent."""
        found = await self.node.find_matching(parse_query([CAPABILITY]), LookupMode.FRESH, limit=limit)
        return [record.owner for record in found.records]

    def held(self) -> Held:
        """See DesignAgent."""
        sizes = [len(stored.record) for _, stored in self.node.store.items(self.host.runtime.now())]
        return Held(len(sizes), sum(sizes))
