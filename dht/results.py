"""What a swarm answers, as values: agents found, tasks answered, and how it went.

Pure.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, TypeVar, overload

from dht.agents.claim import CapabilityClaim, descriptor_of
from dht.agents.record import AgentRecord, Reach
from dht.agents.shards import Shard, ShardReport
from dht.contact import Contact
from dht.exceptions import DescriptorDiffers
from dht.outcome import LookupOutcome, TraceEvent
from synapse_p2p.capability import AgentCapability
from synapse_p2p.identity import NodeID

AgentT = TypeVar("AgentT")


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

    def stream_agent(
        self, contact: Contact, endpoint: str, args: list[Any], kwargs: dict[str, Any], *, timeout_s: float
    ) -> AsyncGenerator[Any, None]:
        """What one agent's streaming endpoint yields."""
        ...

    def stream_ask_agent(
        self, contact: Contact, task: str, context: Mapping[str, Any], *, timeout_s: float
    ) -> AsyncGenerator[Any, None]:
        """What one agent's task handler yields."""
        ...


@dataclass(frozen=True, slots=True)
class FoundAgent:
    """One agent, from the record that it signed. `age_s` is how long ago it signed it, by its own clock; `claims` have
    the version and the attributes of each capability.
    """

    id: NodeID
    name: str
    role: str
    description: str
    capabilities: tuple[str, ...]
    addresses: tuple[str, ...]
    reach: Reach
    age_s: float
    _caller: AgentCaller = field(repr=False, compare=False)
    claims: tuple[CapabilityClaim, ...] = field(default=(), repr=False)

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
            claims=record.capabilities,
            _caller=caller,
        )

    @property
    def contact(self) -> Contact:
        """Where it is reached."""
        return Contact(self.id, self.addresses)

    async def call(self, endpoint: str, *args: Any, **kwargs: Any) -> Any:
        """What the agent's endpoint returns, within 30 s. Raises RemoteError, Timeout, PeerUnavailable."""
        return await self._caller.call_agent(self.contact, endpoint, list(args), kwargs, timeout_s=30.0)

    def stream(self, endpoint: str, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        """What the agent's streaming endpoint yields, as `Client.stream` has it; each item within 30 s."""
        return self._caller.stream_agent(self.contact, endpoint, list(args), kwargs, timeout_s=30.0)

    async def describe(self) -> list[AgentCapability]:
        """What it can do in full, schemas included, checked against its record.

        Raises as `call`, and DescriptorDiffers where it says something else than it has signed.
        """
        answer = await self.call("_agent.capabilities")
        described = []
        for claim in self.claims:
            descriptor = descriptor_of(answer, claim)
            if not isinstance(descriptor, AgentCapability):
                raise DescriptorDiffers(claim.name, descriptor)
            described.append(descriptor)
        return described

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
class ShardRead:
    """One shard that a search read: what most of its storers say of it, None where nobody answered, how many agents
    they sent, and the lookup that it took, None where our own records were enough.
    """

    capability: str
    shard: Shard
    report: ShardReport | None
    agents: int
    outcome: LookupOutcome | None

    def __str__(self) -> str:
        bits = format(self.shard.prefix, f"0{self.shard.depth}b") if self.shard.depth else "root"
        report, outcome = self.report, self.outcome
        lines = [f"read {self.capability} ({bits}): {self.agents} agents"]
        if report is not None:
            full = ", full" if report.is_full else ""
            where = f"depth {report.depth}{full}"
            lines.append(f"  storers hold {report.count} there, of {report.estimate} in all; {where}")
        for step in () if outcome is None else outcome.trace:
            why = f", {step.why.value}" if step.why is not None else ""
            mark = "->" if step.event is TraceEvent.ASKED else "  "
            lines.append(f"  {mark} {step.at:.3f} s {step.event.value} {step.contact_id.hex()[:16]}{why}")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Explanation:
    """How a search went. `capability` is the one that was read, for it seemed the rarest; `reads` are all lookups, with
    those at the roots of the others.
    """

    query: str
    capability: str
    reads: tuple[ShardRead, ...]
    silent: tuple[NodeID, ...] = ()  # found, and left out, for they answered no probe

    def __str__(self) -> str:
        lines = [f"find {self.query}: read {self.capability}"]
        lines += [str(read) for read in self.reads]
        lines += [f"silent: {node_id.hex()[:16]}" for node_id in self.silent]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class FoundAgents(Sequence[AgentT]):
    """Agents in random order, one of each /24 before a second of any; and whether they are all: where `complete` is
    False, `reason` says why not.
    """

    agents: tuple[AgentT, ...]
    complete: bool
    reason: str = ""
    explanation: Explanation | None = None  # where `explain=True` asked for it

    @overload
    def __getitem__(self, index: int) -> AgentT: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[AgentT]: ...
    def __getitem__(self, index: int | slice) -> AgentT | Sequence[AgentT]:
        return self.agents[index]

    def __len__(self) -> int:
        return len(self.agents)

    def __iter__(self) -> Iterator[AgentT]:
        return iter(self.agents)


@dataclass(frozen=True, slots=True)
class FindResult(FoundAgents[FoundAgent]):
    """What a search for agents found."""


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
    """A task that came back. `agent` is who did it; `attempts` tells of every provider tried, the last one its own.

    `progress` is what a `stream_ask` has seen before the result, at most 100 of the newest items.
    """

    result: Any
    agent: FoundAgent
    attempts: tuple[Attempt, ...]
    progress: tuple[Any, ...] = ()


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
