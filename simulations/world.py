"""Many nodes of the real code on one virtual network, all from one seed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from dht.config import DHTConfig
from dht.contact import Contact
from dht.keyspace import Key
from dht.node import DHTNode
from simulations.network import ConstantLatency, Digest, Latency, VirtualHost, VirtualNetwork
from simulations.virtual_loop import VirtualLoop
from synapse_p2p.background import TaskScope

SEEDS_PER_JOIN = 2
"""Through how many random members a newcomer joins: as users do who name more than one."""
JOIN_PAUSE_S = 0.5
"""Between two joins. A join takes some seconds, so a dozen are under way at any time."""


class World:
    """The members of a simulated swarm and what an onlooker knows of them. Everything random comes from `seed`."""

    def __init__(
        self, loop: VirtualLoop, *, seed: int, latency: Latency | None = None, config: DHTConfig | None = None
    ) -> None:
        self.rng = random.Random(seed)
        self.digest = Digest()
        self.network = VirtualNetwork(loop, self.rng, latency or ConstantLatency(), self.digest)
        self.hosts: list[VirtualHost] = []
        self.nodes: list[DHTNode] = []
        self._config = config or DHTConfig()

    async def grow(self, count: int, on_joined: Callable[[], None]) -> None:
        """Let `count` nodes join by protocol, `JOIN_PAUSE_S` apart, each through random members of that moment."""
        async with TaskScope("joins") as scope:
            joins = []
            for _ in range(count):
                joins.append(scope.spawn_awaited(self._add_node(on_joined)))
                await asyncio.sleep(JOIN_PAUSE_S)
            for join in joins:
                await join

    async def _add_node(self, on_joined: Callable[[], None]) -> None:
        host = self.network.host()
        node = DHTNode(host, config=self._config)
        seeds = self.rng.sample(self.hosts, min(SEEDS_PER_JOIN, len(self.hosts)))
        self.hosts.append(host)
        self.nodes.append(node)
        await node.start()
        await node.join(seed.address for seed in seeds)
        on_joined()

    async def stop(self) -> None:
        """End every node's tasks."""
        for node in self.nodes:
            await node.stop()

    def random_key(self) -> Key:
        """A point of the key space, every one as likely."""
        return self.rng.randbytes(32)

    def closest_other(self, target: Key, searcher: DHTNode) -> Contact:
        """The member nearest to `target` that is not the searcher: what a lookup has to find. Cost: O(n)."""
        point = int.from_bytes(target, "big")
        own = self.nodes.index(searcher)
        ids = (host.id for index, host in enumerate(self.hosts) if index != own)
        nearest = min(ids, key=lambda node_id: int.from_bytes(node_id, "big") ^ point)
        return next(Contact(host.id, host.advertised_addresses) for host in self.hosts if host.id == nearest)
