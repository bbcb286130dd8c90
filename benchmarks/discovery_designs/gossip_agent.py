"""A gossip cache: every agent tells everybody of itself over a GossipSub mesh; a search is a look at what was heard.

Written after agntcy/dir 1.x, whose search reads a cache of announcements that came over one GossipSub topic, and its
periods. Peers to gossip with come from the routing table of the node that it stands on, as there. Messages go one way
over the network that all designs share; connections cost nothing here, and that one broke is known at once, as when the
kernel closes those of a process that was killed. An announcement is the signed record that the index keeps; that every
node checks its signature costs CPU, which is not measured.
"""

from __future__ import annotations

from functools import partial

from benchmarks.discovery_designs.agent import DesignAgent, Held, Times
from benchmarks.discovery_designs.gossip import (
    GRAFT,
    IHAVE,
    IWANT,
    MESSAGE_ID_SIZE_BYTES,
    PRUNE,
    PUBLISH,
    GossipCache,
    GossipConfig,
    GossipRouter,
    Send,
)
from dht.node import DHTNode
from simulations.network import VirtualHost
from synapse_p2p.identity import NodeID

AGNTCY_TIMES = Times(life_s=72 * 3600.0, renew_s=36 * 3600.0)
"""agntcy/dir 1.x: labels are announced again every 36 h (`RepublishInterval`) and stale after 72 h (`MaxLabelAge`)."""
BROKEN = "gossip.broken"
KNOWN_PEERS = 32
"""Of the routing table, looked at in one heartbeat: more than D and D_lazy together. Those who are not in the topic are
left out, as if each had told at once that it came and went.
"""
SEQ_SIZE_BYTES = MESSAGE_ID_SIZE_BYTES - 32


class Topic:
    """Who gossips with whom: finds the agent that a message is for."""

    def __init__(self) -> None:
        self.agents: dict[NodeID, GossipAgent] = {}
        self._hosts: dict[NodeID, VirtualHost] = {}

    def enter(self, agent: GossipAgent) -> None:
        """From now on this agent takes messages."""
        self.agents[agent.host.id] = agent
        self._hosts[agent.host.id] = agent.host

    def send(self, source: VirtualHost, send: Send) -> None:
        """Send one message; a machine without the process says so, when it has come there."""
        target = self._hosts.get(send.target)
        if target is not None:
            source.delivery.send(source, target, send.kind, send.body, partial(self._receive, source, target))

    def _receive(self, source: VirtualHost, target: VirtualHost, kind: str, body: bytes) -> None:
        agent = self.agents.get(target.id)
        if agent is not None:
            agent.on_message(source.id, kind, body)
        elif kind != BROKEN:
            self.send(target, Send(source.id, BROKEN))


class GossipAgent(DesignAgent):
    """An agent that overhears. It takes part in the mesh from the first heartbeat on, whether it offers or not."""

    def __init__(
        self, host: VirtualHost, node: DHTNode, times: Times, topic: Topic, config: GossipConfig | None = None
    ) -> None:
        super().__init__(host, node, times)
        self._topic = topic
        self._config = config or GossipConfig()
        self._rng = host.runtime.rng
        self._router = GossipRouter(host.id, self._rng, self._config)
        self._cache = GossipCache(times.life_s)
        self._is_beating = False
        self._is_stopped = False
        topic.enter(self)
        self._beat_soon(self._config.heartbeat_s * self._rng.random())

    async def announce(self) -> None:
        """See DesignAgent. Cost: each node of the swarm sends it to its mesh."""
        envelope, record = self.sealed_record()
        now = self.host.runtime.now()
        self._cache.hear(self.host.id, record.seq, len(envelope), now)
        message_id = self.host.id + record.seq.to_bytes(SEQ_SIZE_BYTES, "big")
        self._send_all(self._router.publish(message_id, envelope, now))

    async def find(self, limit: int | None) -> list[NodeID]:
        """See DesignAgent. Cost: nothing goes over the network."""
        live = self._cache.live(self.host.runtime.now())
        return live if limit is None else self._rng.sample(live, min(limit, len(live)))

    def held(self) -> Held:
        """See DesignAgent."""
        return self._cache.held(self.host.runtime.now())

    async def stop(self) -> None:
        """See DesignAgent."""
        self.leave()
        await super().stop()

    def leave(self) -> None:
        """The process is gone; the kernel breaks its connections."""
        if not self._is_stopped:
            self._is_stopped = True
            self._topic.agents.pop(self.host.id, None)
            self._send_all([Send(peer, BROKEN) for peer in self._router.mesh])

    def on_message(self, sender: NodeID, kind: str, body: bytes) -> None:
        """Something came."""
        now, router = self.host.runtime.now(), self._router
        if kind == PUBLISH:
            news = router.on_publish(sender, body, now)
            if news is not None:
                message_id, payload, sends = news
                seq = int.from_bytes(message_id[-SEQ_SIZE_BYTES:], "big")
                self._cache.hear(message_id[:-SEQ_SIZE_BYTES], seq, len(payload), now)
                self._send_all(sends)
        elif kind == IHAVE:
            self._send_all(router.on_ihave(sender, body))
        elif kind == IWANT:
            self._send_all(router.on_iwant(sender, body))
        elif kind == GRAFT:
            self._send_all(router.on_graft(sender, now))
        elif kind == PRUNE:
            router.on_prune(sender, now)
        elif kind == BROKEN:
            router.on_gone(sender)
        self._beat_soon(self._config.heartbeat_s)

    def _send_all(self, sends: list[Send]) -> None:
        for send in sends:
            self._topic.send(self.host, send)
        self._beat_soon(self._config.heartbeat_s)

    def _beat_soon(self, after_s: float) -> None:
        """Have the next heartbeat, if there is anything for it to do: a quiet mesh costs nothing."""
        if not (self._is_beating or self._is_stopped or self._router.is_idle):
            self._is_beating = True
            self.host.delivery.loop.call_later(after_s, self._beat)

    def _beat(self) -> None:
        self._is_beating = False
        if not self._is_stopped:
            sample = self.node.routing_table.sample(KNOWN_PEERS, self._rng)
            known = [contact.id for contact in sample if contact.id in self._topic.agents]
            self._send_all(self._router.heartbeat(self.host.runtime.now(), known))
