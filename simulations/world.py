"""Many nodes of the real code on one virtual network, all from one seed; and agents of the user's among them.

A plain world leaves the encryption out and costs the least. In a wire world every node is a complete server, whose
encrypted sessions go over the virtual network byte by byte; there alone agents can live.
"""

from __future__ import annotations

import asyncio
import random
from bisect import insort
from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from typing import Any

from dht.config import DHTConfig, HealthConfig
from dht.contact import Contact
from dht.keyspace import Key
from dht.node import DHTNode
from dht.outcome import LookupOutcome
from dht.swarm import Swarm, SwarmConfig
from simulations.network import LISTEN_PORT, ConstantLatency, Digest, Latency, VirtualHost, VirtualNetwork
from simulations.oracle import introduce_everybody, nearest_point
from simulations.samples import Samples
from simulations.streams import VirtualStreams
from simulations.virtual_loop import VirtualLoop
from synapse_p2p.agent import AgentNode
from synapse_p2p.background import TaskScope
from synapse_p2p.config import ServerConfig
from synapse_p2p.exceptions import ConfigError
from synapse_p2p.identity import NodeID
from synapse_p2p.peers import Host
from synapse_p2p.runtime import Runtime
from synapse_p2p.server import Server
from synapse_p2p.transport.base import parse_address

RARE_BEAT_S = 60.0
"""Between looks at the clock where nobody stands still: a second apart, a thousand nodes have 86 million in a day."""
UNDISTURBED = replace(DHTConfig(), health=HealthConfig(beat_s=RARE_BEAT_S))
"""For worlds in which no process is stopped and no machine sleeps."""
SEEDS_PER_JOIN = 2
"""Through how many random members a newcomer joins: as users do who name more than one."""
JOIN_PAUSE_S = 0.5
"""Between two joins of a small swarm. A join takes some seconds, so a dozen are under way at any time."""
MIN_JOIN_PAUSE_S = 0.05
"""The same in a large swarm, which takes more at once and would need hours of upkeep to grow one by one."""
GROWTH_PER_S = 0.1
"""A swarm grows by this part of its size in a second, between the two."""


class Start(Enum):
    """Where routing tables come from: every node joins by protocol, or an oracle that knows all fills them."""

    PROTOCOL = "protocol"
    ORACLE = "oracle"


class World:
    """The members of a simulated swarm and what an onlooker knows of them. Everything random comes from `seed`.

    `hosts` and `nodes` are those that grew, in the same order; `swarms` are the user's. `samples` are for pictures.
    """

    def __init__(
        self,
        loop: VirtualLoop,
        *,
        seed: int,
        start: Start = Start.PROTOCOL,
        wire: bool = False,
        latency: Latency | None = None,
        config: DHTConfig | None = None,
        server_config: ServerConfig | None = None,
    ) -> None:
        self.rng = random.Random(seed)
        self.digest = Digest()
        self.samples = Samples(random.Random(seed))
        self.network = VirtualNetwork(loop, self.rng, latency or ConstantLatency(), self.digest, config=server_config)
        self.hosts: list[VirtualHost] = []
        self.nodes: list[DHTNode] = []
        self._host_at: dict[int, VirtualHost] = {}  # by id as a number
        self._points: list[int] = []  # those, ascending
        self.swarms: list[Swarm] = []
        self._config = config or DHTConfig()
        self._start = start
        self._streams = VirtualStreams(self.network) if wire else None
        self._servers: list[Server] = []  # of the nodes and the swarms; none in a plain world

    # Nodes

    async def grow(self, count: int, on_joined: Callable[[], None]) -> None:
        """Add `count` nodes, the way `start` says; `on_joined` is called for each that is in.

        By protocol they join `JOIN_PAUSE_S` apart, and less in a large swarm, each through random members of that
        moment. The oracle fills the tables of all nodes and takes no time.
        """
        if self._start is Start.ORACLE:
            await self._grow_at_once(count)
            for _ in range(count):
                on_joined()
            return
        async with TaskScope("joins") as scope:
            joins = []
            for _ in range(count):
                joins.append(scope.spawn_awaited(self._join_node(on_joined)))
                await asyncio.sleep(join_pause_s(len(self.nodes)))
            for join in joins:
                await join

    async def _grow_at_once(self, count: int) -> None:
        for _ in range(count):
            await self._start_node()
        members = [Contact(host.id, host.advertised_addresses) for host in self.hosts]
        now = self.network.loop.time()
        introduce_everybody(self.nodes, members, k=self._config.routing.k, rng=self.rng, now=now)
        for host in self.hosts:
            host.peers.dialed_at = now  # whoever is in tables was dialed
        for server in self._servers:
            server.sessions.dialed_at = now

    async def _join_node(self, on_joined: Callable[[], None]) -> None:
        node = await self._start_node()
        others = self.hosts[:-1]
        seeds = self.rng.sample(others, min(SEEDS_PER_JOIN, len(others)))
        await node.join(seed.address for seed in seeds)
        on_joined()

    async def _start_node(self) -> DHTNode:
        host = self.network.host()
        server = self.new_server(host)
        if server is not None:
            self._servers.append(server)
            await server.start()
        place: Host = host if server is None else server
        node = DHTNode(place, config=self._config)
        self.hosts.append(host)
        self.nodes.append(node)
        point = int.from_bytes(host.id, "big")
        self._host_at[point] = host
        insort(self._points, point)
        await node.start()
        return node

    def new_server(self, host: VirtualHost) -> Server | None:
        """What a node of a wire world stands on, to be started; None in a plain one, where the host itself will do."""
        if self._streams is None:
            return None
        return Server(
            parse_address(host.address)[0],
            LISTEN_PORT,
            identity=host.identity,
            plain="off",
            transport=self._streams.transport(host),
            runtime=_wire_runtime(host),
            config=self.network.config,
        )

    # The user's

    def swarm(self, agent: AgentNode | None = None, **options: Any) -> Swarm:
        """A Swarm on a host of its own, to be started by the caller and ended with the world.

        `options` are those of Swarm. Without `bootstrap` it joins through random members of this moment; it listens on
        its host, and is a client where there is no agent and somebody to join. What it draws comes from the world's
        seed, its key too, unless it was given one. Raises ConfigError in a plain world.
        """
        if self._streams is None:
            raise ConfigError("agents live in a wire world alone: World(loop, seed=..., wire=True)")
        host = self.network.host()
        options.setdefault("bootstrap", self._some_addresses())
        options.setdefault("config", SwarmConfig(dht=self._config))
        if agent is not None or not options["bootstrap"]:
            options.setdefault("listen", host.address)
        if agent is None or not agent.identity_given:
            options.setdefault("identity", host.identity)
        swarm = Swarm(agent, **options)
        # Before it is started the swarm has made nothing of its server but told it who and where it is.
        server = swarm._server
        server.move_to(self._streams.transport(host), _wire_runtime(host))
        self.swarms.append(swarm)
        self._servers.append(server)
        return swarm

    async def agent(self, agent: AgentNode, **options: Any) -> Swarm:
        """The same for an agent, started, joined and published. Raises JoinFailed."""
        swarm = self.swarm(agent, **options)
        await swarm.start(wait_joined=True)
        return swarm

    def _some_addresses(self) -> list[str]:
        addresses = [address for server in self._servers for address in server.advertised_addresses[:1]]
        return self.rng.sample(addresses, min(SEEDS_PER_JOIN, len(addresses)))

    # For pictures

    def note_lookup(self, kind: str, began_at_s: float, *, is_success: bool) -> None:
        """A lookup has ended now; of its `kind` durations are kept."""
        self.samples.add_lookup(kind, began_at_s, self.network.loop.time() - began_at_s, is_success=is_success)

    def note_trace(self, searcher: NodeID, outcome: LookupOutcome, *, k: int, is_success: bool | None = None) -> None:
        """One whose trace is known has ended now; `is_success` is None where nobody judges that.

        Cost: nothing, unless it shows more than the one that is kept; then O(hosts).
        """
        if self.samples.is_wanted(outcome, is_success=is_success):
            self.samples.keep_trace(searcher, outcome, self.network.ids_up(), k=k, is_success=is_success)

    # All of it

    async def stop(self) -> None:
        """End everybody's tasks, those of the user's swarms first."""
        for swarm in self.swarms:
            await swarm.stop(grace=0)
        for node in self.nodes:
            await node.stop()
        for server in self._servers:
            await server.stop(grace=0)

    def random_key(self) -> Key:
        """A point of the key space, every one as likely."""
        return self.rng.randbytes(32)

    def closest_other(self, target: Key, searcher: DHTNode) -> Contact:
        """The node nearest to `target` that is not the searcher: what a lookup has to find. Cost: O(log n)."""
        nearest = nearest_point(
            self._points, int.from_bytes(target, "big"), apart_from=int.from_bytes(searcher.id, "big")
        )
        host = self._host_at[nearest]
        return Contact(host.id, host.advertised_addresses)


def join_pause_s(members: int) -> float:
    """How long a swarm of so many waits for the next to join."""
    return min(JOIN_PAUSE_S, max(MIN_JOIN_PAUSE_S, 1 / (GROWTH_PER_S * max(members, 1))))


def _wire_runtime(host: VirtualHost) -> Runtime:
    """The host's clock and chance. Keys and nonces are drawn elsewhere: so the rest is as in a plain world."""
    keys = random.Random(host.id)
    return Runtime(
        now=host.runtime.now, unix_now=host.runtime.unix_now, rng=host.runtime.rng, token_bytes=keys.randbytes
    )
