"""What an agent of any design does: it announces itself again and again, is looked for, and keeps something for others.

An agent lives on a host with a real DHTNode, whatever its design needs of that; so all designs stand on one overlay.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from dht.agents.record import AgentRecord, CapabilityClaim, Reach
from dht.config import DHTConfig
from dht.node import DHTNode
from simulations.network import VirtualHost
from synapse_p2p.background import TaskScope
from synapse_p2p.identity import NodeID

CAPABILITY = "code-review"
RENEW_SPREAD = 0.1
"""By this part of the time between two announcements each of them is earlier or later: nobody keeps step with others.
"""


@dataclass(frozen=True, slots=True)
class Times:
    """How long others believe an announcement, and after how long it is made again; seconds."""

    life_s: float
    renew_s: float


@dataclass(frozen=True, slots=True)
class Held:
    """What one node keeps for others, in records of this capability and their bytes."""

    records: int
    size_bytes: int


class DesignAgent(ABC):
    """One agent. Until `offer` it only searches, and keeps for others what its design has it keep."""

    def __init__(self, host: VirtualHost, node: DHTNode, times: Times) -> None:
        self.host = host
        self.node = node
        self.times = times
        self._seq = 0
        self._scope = TaskScope("agent")

    def offer(self, *, within_s: float) -> None:
        """Announce the capability at a random moment of the next `within_s` seconds, and then as often as is due.

        The second announcement comes at a random moment of one period: a swarm that stands has been there for long.
        """
        self._scope.spawn(self._keep_offering(within_s), name="offer")

    @abstractmethod
    async def announce(self) -> None:
        """Let others know, once."""

    @abstractmethod
    async def find(self, limit: int | None) -> list[NodeID]:
        """Who has the capability, as far as a search tells that nobody checks: `limit` of them, or all."""

    @abstractmethod
    def held(self) -> Held:
        """What is kept here for others at this moment."""

    async def stop(self) -> None:
        """Announce no more. What others keep lapses."""
        await self._scope.close()

    def sealed_record(self) -> tuple[bytes, AgentRecord]:
        """The next version of what the agent says of itself, signed: the same bytes in every design that carries it."""
        unix_ms = round(self.host.runtime.unix_now() * 1000)
        self._seq = max(self._seq + 1, unix_ms)
        record = AgentRecord(
            public_key=self.host.identity.public_key,
            seq=self._seq,
            issued_ms=unix_ms,
            expires_ms=unix_ms + round(self.times.life_s * 1000),
            network_id=self.host.network_id,
            addresses=self.host.advertised_addresses,
            reach=Reach.DIRECT,
            name="Reviewer",
            role="reviewer",
            description="Reviews changes of Python code.",
            capabilities=(CapabilityClaim(CAPABILITY),),
        )
        return record.seal(self.host.identity), record

    async def _keep_offering(self, within_s: float) -> None:
        rng, renew_s = self.host.runtime.rng, self.times.renew_s
        await asyncio.sleep(rng.uniform(0, within_s))
        await self.announce()
        await asyncio.sleep(rng.uniform(0, renew_s))
        while True:
            await self.announce()
            await asyncio.sleep(renew_s * rng.uniform(1 - RENEW_SPREAD, 1 + RENEW_SPREAD))


@dataclass(frozen=True, slots=True)
class Design:
    """One way to find agents. `label` is for people; `new_agent` is called once for each node that is in."""

    name: str
    label: str
    times: Times
    config: DHTConfig
    new_agent: Callable[[VirtualHost, DHTNode], DesignAgent]
