"""Asks of one swarm: what each needs to look for providers, to choose, and to send the task, is put together here.

How one goes is in `asking.py`, whom it chooses in `agents/selection.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from dht.agent_calls import AgentCalls
from dht.agents.delegation import Delegation, NextAsk, current_delegation
from dht.agents.query import parse_query
from dht.agents.selection import Experience
from dht.ask_stream import AskStream, OpenedStream
from dht.asking import Asking
from dht.lookup import LookupMode
from dht.results import Answer, FindResult, FoundAgent
from dht.searching import Searching
from synapse_p2p.exceptions import ConfigError
from synapse_p2p.server import Server
from synapse_p2p.traceparent import checked_traceparent, traced

ASKED_OF = 16
"""Providers looked for at first to have a task done by one of them."""


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms a task is given away: see `Swarm.ask`."""

    timeout_s: float
    is_idempotent: bool
    budget: int | None
    traceparent: str | None = None

    def __post_init__(self) -> None:
        if self.traceparent is not None:
            checked_traceparent(self.traceparent)

    def traced(self) -> contextlib.AbstractContextManager[None]:
        """Within it calls carry the trace that was named; without one, that of where they are made."""
        return contextlib.nullcontext() if self.traceparent is None else traced(self.traceparent)


class Asks:
    """Remembers how providers did, for as long as the swarm lives."""

    def __init__(self, server: Server, searching: Searching, calls: AgentCalls) -> None:
        self._server = server
        self._searching = searching
        self._calls = calls
        self.experience = Experience()

    async def ask(self, capability: str, task: str, context: Mapping[str, Any], terms: Terms) -> Answer:
        """As `Swarm.ask`."""
        delegation = current_delegation() or Delegation()
        timeout_s = delegation.shortened_s(terms.timeout_s, self._server.runtime.now())

        async def send(agent: FoundAgent, carried: NextAsk, left_s: float) -> Any:
            return await self._calls.send_ask(agent.contact, task, context, carried, left_s)

        with terms.traced():
            return await self._asking(capability, send, delegation, timeout_s, terms).run()

    def stream(self, capability: str, task: str, context: Mapping[str, Any], terms: Terms) -> AskStream:
        """As `Swarm.stream_ask`."""
        if not terms.timeout_s > 0:
            raise ConfigError(f"timeout is {terms.timeout_s}; it has to be above 0 seconds")
        delegation = current_delegation() or Delegation()
        timeout_s = delegation.shortened_s(terms.timeout_s, self._server.runtime.now())
        opened: list[OpenedStream] = []

        async def send(agent: FoundAgent, carried: NextAsk, left_s: float) -> OpenedStream:
            stream = await self._calls.open_ask(agent.contact, task, context, carried, left_s)
            opened.append(stream)
            return stream

        async def start() -> Answer:
            chosen: Answer | None = None
            try:
                with terms.traced():
                    chosen = await self._asking(capability, send, delegation, timeout_s, terms).run()
                return chosen
            finally:
                for stream in opened:  # of two that were asked at once, both may have begun to answer
                    if chosen is None or stream is not chosen.result:
                        stream.close()

        return AskStream(start, timeout_s=timeout_s)

    def _asking(
        self,
        capability: str,
        send: Callable[[FoundAgent, NextAsk, float], Coroutine[Any, Any, Any]],
        delegation: Delegation,
        timeout_s: float,
        terms: Terms,
    ) -> Asking:
        query = parse_query([capability])
        if terms.budget is not None and terms.budget < 1:
            raise ConfigError(
                f"budget is {terms.budget}; it has to be 1 or more, or None for a quarter of what is left"
            )

        async def find(mode: LookupMode) -> FindResult:
            limit = ASKED_OF if mode is LookupMode.FAST else None
            agents, providers = await self._searching.search(query, mode, limit=limit)
            reason = self._searching.incompleteness(providers)
            return FindResult(tuple(agents), not reason, reason)

        return Asking(
            str(query),
            find=find,
            probe=self._searching.probe_load,
            send=send,
            experience=self.experience,
            delegation=delegation,
            own_id=self._server.identity.node_id,
            now=self._server.runtime.now,
            timeout_s=timeout_s,
            budget=terms.budget,
            is_idempotent=terms.is_idempotent,
        )
