"""From a query to agents who are there: searches, and asks those found whether they live."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from dht.agents.query import Query
from dht.agents.record import AgentRecord, Reach
from dht.find_stream import OnFound
from dht.finding import ProvidersFound
from dht.lookup import LookupMode
from dht.node import DHTNode
from dht.requester import UNREACHABLE
from dht.results import AgentCaller, FoundAgent
from synapse_p2p.background import TaskScope
from synapse_p2p.exceptions import RemoteError
from synapse_p2p.identity import NodeID
from synapse_p2p.peers import Host

if TYPE_CHECKING:
    from dht.asking import Probed

MIN_PROBES = 16
MAX_PROBES = 128
"""Found agents that are asked at once whether they live: storers' answers decide how many there are."""


def sought_for(limit: int) -> int:
    """How many are looked for where so many are wanted, as some may not answer."""
    return max(2 * limit, MIN_PROBES)


class Searching:
    """One swarm's searches. `started` gives its node, or raises where there is none; `caller` is whose agents call."""

    def __init__(
        self, host: Host, started: Callable[[], DHTNode], caller: AgentCaller, *, probe_timeout_s: float
    ) -> None:
        self._host = host
        self._started = started
        self._caller = caller
        self._probe_timeout_s = probe_timeout_s

    async def search(
        self,
        query: Query,
        mode: LookupMode,
        *,
        limit: int | None = None,
        max_age: float | None = None,
        on_found: OnFound | None = None,
    ) -> tuple[list[FoundAgent], ProvidersFound]:
        """Agents that match, in the order of `ProvidersFound`, and how the search went.

        With a limit more are looked for, as some may not answer. `on_found` is told of each as it is found.
        """
        runtime = self._host.runtime
        unix_ms = round(runtime.unix_now() * 1000)
        own_id = self._host.identity.node_id

        def fits(record: AgentRecord) -> bool:
            is_old = max_age is not None and unix_ms - record.issued_ms > max_age * 1000
            return record.owner != own_id and not is_old

        sought = None if limit is None else sought_for(limit)

        def on_taken(record: AgentRecord) -> None:
            if on_found is not None:
                on_found(FoundAgent.from_record(record, unix_ms=unix_ms, caller=self._caller))

        providers = await self._started().find_matching(query, mode, limit=sought, fits=fits, on_taken=on_taken)
        agents = [FoundAgent.from_record(record, unix_ms=unix_ms, caller=self._caller) for record in providers.records]
        return agents, providers

    def incompleteness(self, providers: ProvidersFound) -> str:
        """Why a search may have missed somebody; empty where it did not."""
        node = self._started()
        if not len(node.routing_table) and node.join_report().tried:
            return "this node has lost all its contacts" if node.has_joined else "this node has joined nobody yet"
        return providers.reason

    async def answering(self, agents: list[FoundAgent], limit: int | None, silent: list[NodeID]) -> list[FoundAgent]:
        """Those that answer a ping; others are added to `silent`.

        With a limit, no more are asked than it takes to pass it, some at a time.
        """
        wanted = len(agents) if limit is None else limit
        answering: list[FoundAgent] = []
        position = 0
        while position < len(agents) and len(answering) <= wanted:
            batch = agents[position : position + probes_at_once(wanted)]
            position += len(batch)
            async with TaskScope("probe") as scope:
                probes = [scope.spawn_awaited(self.is_answering(agent)) for agent in batch]
                for agent, probe in zip(batch, probes, strict=True):
                    if await probe:
                        answering.append(agent)
                    else:
                        silent.append(agent.id)
        return answering

    async def is_answering(self, agent: FoundAgent) -> bool:
        return await self._probe(agent, "_dht.ping") is not None

    async def probe_load(self, agent: FoundAgent) -> Probed | None:
        from dht.agents.selection import Load  # here: these two are loaded for asks
        from dht.asking import Probed

        answer = await self._probe(agent, "_agent.load")
        return None if answer is None else Probed(Load.from_map(answer))

    async def _probe(self, agent: FoundAgent, endpoint: str) -> Mapping[str, Any] | None:
        """What it answers, which is nobody's word for it; None for one that is silent. A refusal is an empty answer."""
        peers = self._host.peers
        if agent.reach is Reach.NONE and not peers.is_connected(agent.id):
            return None
        try:
            # A dial may take longer than a call is given; a probe takes no longer than that.
            async with asyncio.timeout(self._probe_timeout_s):
                answer = await peers.call(agent.contact, endpoint, {}, timeout_s=self._probe_timeout_s)
        except (*UNREACHABLE, TimeoutError):
            return None
        except RemoteError:
            return {}  # it is there, whatever it thinks of us
        return answer if isinstance(answer, dict) else {}


def probes_at_once(wanted: int | None) -> int:
    """How many agents are asked at once, where so many are wanted: twice as many, for some are gone."""
    return MAX_PROBES if wanted is None else min(max(2 * wanted, MIN_PROBES), MAX_PROBES)
