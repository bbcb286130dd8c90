"""What a node tells those who operate it: how it is, whom it knows, whose records it keeps, what has happened.

The handlers of `_swarm.`, which are for operators alone: commands on the same machine, with the operator key of the
node's `data_dir`. They read what the node knows at this moment, ask nobody, and answer with maps of plain values; each
list has a bound. Source of the shapes: docs/spec/dht.md, section 12.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from dht.events import (
    Disconnected,
    Dropped,
    EventFeed,
    NodeEvent,
    PeerJoined,
    PeerLeft,
    PeerSuspected,
    Reconnected,
    RecordExpired,
    RecordStored,
)
from dht.node import DHTNode
from dht.results import FoundAgent, SwarmStatus
from synapse_p2p.context import CallContext, MountedHandler
from synapse_p2p.exceptions import InvalidMessageError, RemoteError
from synapse_p2p.messages import Code
from synapse_p2p.server import Server
from synapse_p2p.version import VERSION

if TYPE_CHECKING:
    from dht.publisher import Publisher

MAX_PEERS_TOLD = 256
"""Contacts, and as many sessions with others, in one answer: more than a screen shows, under 64 KiB."""
MAX_AGENTS_TOLD = 256
"""Agents in one answer: at most 1,500 bytes each, so under 400 KiB."""
MAX_EVENTS_TOLD = 256
MAX_EVENTS_KEPT = 1_000
"""Events that wait for operators who look now and then; past it the oldest go."""


class Operations:
    """Answers the operators of one started swarm; made anew at each start."""

    def __init__(
        self,
        server: Server,
        node: DHTNode,
        *,
        status: Callable[[], SwarmStatus],
        agents: Callable[[], list[FoundAgent]],
        publisher: Publisher | None,
        is_running: Callable[[], bool],
    ) -> None:
        self._server = server
        self._node = node
        self._status = status
        self._agents = agents
        self._publisher = publisher
        self._is_running = is_running
        self._started_at = server.runtime.now()
        self._feed: EventFeed | None = None  # from the first question on: until then no event is made for us
        self._kept: deque[tuple[int, float, NodeEvent]] = deque(maxlen=MAX_EVENTS_KEPT)
        self._last_number = 0

    def endpoints(self) -> dict[str, MountedHandler]:
        """What to mount, for operators."""
        handlers: dict[str, MountedHandler] = {
            "_swarm.status": self._answer_status,
            "_swarm.peers": self._answer_peers,
            "_swarm.agents": self._answer_agents,
            "_swarm.events": self._answer_events,
        }
        return {name: partial(self._answer, handler) for name, handler in handlers.items()}

    def _answer(self, handler: MountedHandler, request: Mapping[str, Any], context: CallContext) -> Any:
        if not self._is_running():  # an agent may go on without its swarm
            raise RemoteError(Code.UNAVAILABLE, "the swarm of this node is not started")
        return handler(request, context)

    def _answer_status(self, _: Mapping[str, Any], __: CallContext) -> dict[str, Any]:
        status, node = self._status(), self._node.status()
        return {
            "id": status.id.hex(),
            "version": VERSION,
            "network": status.network,
            "has_network_key": self._server.network_key is not None,
            "mode": status.mode.value,
            "uptime_s": self._server.runtime.now() - self._started_at,
            "unix_ms": round(self._server.runtime.unix_now() * 1000),
            "listening": list(status.listening),
            "advertised": list(status.advertised),
            "seeds": [
                {"address": seed.address, "state": seed.state.value, "text": seed.text} for seed in node.join.seeds
            ],
            "seeds_joined": status.seeds_joined,
            "seeds_tried": status.seeds_tried,
            "contacts": status.contacts,
            "suspects": node.suspects,
            "sessions": status.sessions,
            "is_connected": node.is_connected,
            "size_estimate": node.size_estimate,
            "region_share": node.region_share,
            "records_held": status.records_held,
            "own_values": node.own_records,
            "calls_served": self._server.endpoints.served_count,
            "clock_ahead_s": node.clock_ahead_s,
            "is_clock_wrong": self._node.is_clock_wrong,
            "last_stall": self._stall_map(),
            "agent": self._agent_map(status),
            "record": self._record_map(),
        }

    def _stall_map(self) -> dict[str, Any] | None:
        stall = self._node.last_stall
        if stall is None:
            return None
        ago_s = self._server.runtime.now() - stall.ended_at
        return {"stalled_s": stall.stalled_s, "ago_s": ago_s, "blocked_by": stall.blocked_by}

    def _agent_map(self, status: SwarmStatus) -> dict[str, Any] | None:
        from synapse_p2p.agent import AgentNode  # here: a client has none, and is there sooner

        agent = self._server
        if not isinstance(agent, AgentNode):
            return None
        return {"name": agent.name, "role": agent.role, "capabilities": list(status.capabilities), **agent.load()}

    def _record_map(self) -> dict[str, Any] | None:
        """Where our own record is; None for a node that has none."""
        if self._publisher is None:
            return None
        published = self._publisher.published
        unix_ms = self._server.runtime.unix_now() * 1000
        return {
            "expires_in_s": None if published is None else (published.expires_ms - unix_ms) / 1000,
            "is_revoked": self._publisher.is_revoked,
            "capabilities": [
                {
                    "name": report.capability,
                    "asked": report.asked,
                    "stored": report.stored,
                    "is_kept": report.is_kept,
                    "refusals": sorted(set(report.refusals)),
                }
                for report in self._publisher.reports
            ],
        }

    def _answer_peers(self, _: Mapping[str, Any], context: CallContext) -> dict[str, Any]:
        table, sessions, now = self._node.routing_table, self._server.sessions, self._server.runtime.now()
        known = list(table)
        guests = [peer for peer in sessions.peer_ids() if peer not in table and peer != context.peer]
        return {
            "count": len(known),
            "peers": [
                {
                    "id": contact.id.hex(),
                    "addresses": list(contact.addresses),
                    "is_connected": sessions.is_connected(contact.id),
                    "is_suspect": table.is_suspect(contact.id),
                    "seen_s": now - (table.seen_at(contact.id) or now),
                }
                for contact in known[:MAX_PEERS_TOLD]
            ],
            "guest_count": len(guests),
            "guests": [peer.hex() for peer in guests[:MAX_PEERS_TOLD]],
        }

    def _answer_agents(self, _: Mapping[str, Any], __: CallContext) -> dict[str, Any]:
        agents, table = sorted(self._agents(), key=lambda agent: agent.id), self._node.routing_table
        return {
            "count": len(agents),
            "agents": [
                {
                    "id": agent.id.hex(),
                    "name": agent.name,
                    "role": agent.role,
                    "capabilities": list(agent.capabilities),
                    "addresses": list(agent.addresses),
                    "age_s": agent.age_s,
                    "is_known": agent.id in table and not table.is_suspect(agent.id),
                }
                for agent in agents[:MAX_AGENTS_TOLD]
            ],
        }

    def _answer_events(self, request: Mapping[str, Any], _: CallContext) -> dict[str, Any]:
        after = request.get("after")
        if after is not None and type(after) is not int:
            raise InvalidMessageError("parameter 'after' is a number")
        self._take_events()
        told = [] if after is None else [event for event in self._kept if event[0] > after][:MAX_EVENTS_TOLD]
        now = self._server.runtime.now()
        return {
            "last": told[-1][0] if told else self._last_number if after is None else after,
            "events": [{"number": number, "ago_s": now - at, **_event_map(event)} for number, at, event in told],
        }

    def _take_events(self) -> None:
        if self._feed is None:
            self._feed = self._node.events()
        for event in self._feed.take():
            self._last_number += 1
            self._kept.append((self._last_number, self._server.runtime.now(), event))


def _event_map(event: NodeEvent) -> dict[str, Any]:
    """`event` is a word, `id` whom it is about, where it is about anybody."""
    match event:
        case PeerJoined(contact):
            return {"event": "joined", "id": contact.id.hex()}
        case PeerSuspected(contact):
            return {"event": "suspected", "id": contact.id.hex()}
        case PeerLeft(contact):
            return {"event": "left", "id": contact.id.hex()}
        case RecordStored(_, owner):
            return {"event": "stored", "id": owner.hex()}
        case RecordExpired(_, owner):
            return {"event": "expired", "id": owner.hex()}
        case Disconnected():
            return {"event": "disconnected"}
        case Reconnected():
            return {"event": "reconnected"}
        case Dropped(count):
            return {"event": "dropped", "count": count}
