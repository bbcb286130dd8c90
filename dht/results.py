"""What a swarm answers, as values: agents found, tasks answered, and how it went.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, overload

from dht.agents.record import AgentRecord, Reach
from dht.contact import Contact
from synapse_p2p.identity import NodeID


class AgentCaller(Protocol):
    """Who makes the calls of a found agent: its swarm."""

    async def call_agent(
        self, contact: Contact, endpoint: str, args: list[Any], kwargs: dict[str, Any], *, timeout_s: float | None
    ) -> Any:
        """The answer of one call to one agent."""
        ...

    async def ask_agent(self, contact: Contact, task: str, context: Mapping[str, Any], *, timeout_s: float) -> Any:
        """What one agent's task handler returns; the task is part of the one that runs here, if one does."""
        ...


@dataclass(frozen=True, slots=True)
class FoundAgent:
    """One agent, from the record that it signed. `age_s` is how long ago it signed it, by its own clock."""

    id: NodeID
    name: str
    role: str
    description: str
    capabilities: tuple[str, ...]
    addresses: tuple[str, ...]
    reach: Reach
    age_s: float
    _caller: AgentCaller = field(repr=False, compare=False)

    @classmethod
    def from_record(cls, record: AgentRecord, *, unix_ms: int, caller: AgentCaller) -> FoundAgent:
        """The agent that a verified record tells of."""
        return cls(
            id=record.owner,
            name=record.name,
            role=record.role,
            description=record.description,
            capabilities=tuple(claim.name for claim in record.capabilities),
            addresses=record.addresses,
            reach=record.reach,
            age_s=max(0.0, (unix_ms - record.issued_ms) / 1000),
            _caller=caller,
        )

    @property
    def contact(self) -> Contact:
        """Where it is reached."""
        return Contact(self.id, self.addresses)

    async def call(self, endpoint: str, *args: Any, **kwargs: Any) -> Any:
        """What the agent's endpoint returns, within 30 s. Raises RemoteError, Timeout, PeerUnavailable."""
        return await self._caller.call_agent(self.contact, endpoint, list(args), kwargs, timeout_s=30.0)

    async def ask(self, task: str, context: Mapping[str, Any] | None = None, *, timeout: float = 600.0) -> Any:
        """What the agent's task handler returns. Raises as `call`. `timeout` is seconds.

        In a task handler it is a part of the task that runs, as `Swarm.ask` has it; DelegationExhausted may be raised.
        """
        return await self._caller.ask_agent(self.contact, task, dict(context or {}), timeout_s=timeout)

    def __str__(self) -> str:
        where = ", ".join(self.addresses) or "no address"
        name, role = _printable(self.name), _printable(self.role)
        return f"{name} ({role}) at {where}, id {self.id.hex()[:16]}: {', '.join(self.capabilities)}"


def _printable(text: str) -> str:
    # An agent chooses its own name, and what is printed may land on a terminal: no stranger's escapes there.
    return "".join(character if character.isprintable() else f"\\x{ord(character):02x}" for character in text)


@dataclass(frozen=True, slots=True)
class FindResult(Sequence[FoundAgent]):
    """Agents in random order, and whether they are all: where `complete` is False, `reason` says why not."""

    agents: tuple[FoundAgent, ...]
    complete: bool
    reason: str = ""

    @overload
    def __getitem__(self, index: int) -> FoundAgent: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[FoundAgent]: ...
    def __getitem__(self, index: int | slice) -> FoundAgent | Sequence[FoundAgent]:
        return self.agents[index]

    def __len__(self) -> int:
        return len(self.agents)

    def __iter__(self) -> Iterator[FoundAgent]:
        return iter(self.agents)


class AttemptEnd(StrEnum):
    """How one provider took the task."""

    ANSWERED = "answered"
    FAILED = "failed"
    UNREACHABLE = "unreachable"
    BUSY = "busy"
    FORBIDDEN = "forbidden"
    TIMEOUT = "timeout"
    EXHAUSTED = "exhausted"  # the task of which this ask is a part may ask nobody any more
    LOOP = "loop"  # it has passed this very task on itself, and takes no question back
    WITHDRAWN = "withdrawn"  # another one answered first


@dataclass(frozen=True, slots=True)
class Attempt:
    """One provider that was tried: how it ended, with what text, how long it took, and why it was chosen."""

    agent: FoundAgent
    end: AttemptEnd
    text: str
    took_s: float
    why: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """A task that came back. `agent` is who did it; `attempts` tells of every provider tried, the last one its own."""

    result: Any
    agent: FoundAgent
    attempts: tuple[Attempt, ...]


class SwarmMode(StrEnum):
    """What we are to others."""

    NODE = "node"
    CLIENT = "client"


@dataclass(frozen=True, slots=True)
class SwarmStatus:
    """A look at our own node."""

    id: NodeID
    mode: SwarmMode
    network: str
    listening: tuple[str, ...]
    advertised: tuple[str, ...]
    seeds_joined: int
    seeds_tried: int
    contacts: int
    sessions: int
    records_held: int
    capabilities: tuple[str, ...]
