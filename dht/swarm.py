"""A swarm, as users see it: join, offer what an agent can do, find others by what they can do, and ask them.

The facade over a server, a node of the overlay and an agent's record. It wires; who is near, who is true and who stays
connected is decided elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from dht.agents.record import AgentRecord, CapabilityClaim, Reach
from dht.asking import Asking
from dht.bootstrap import JoinReport, SeedAddress
from dht.config import DHTConfig
from dht.contact import Contact
from dht.exceptions import JoinFailed
from dht.lookup import LookupMode
from dht.node import DHTNode, ProvidersFound
from dht.requester import UNREACHABLE
from dht.results import Answer, FindResult, FoundAgent, SwarmMode, SwarmStatus
from synapse_p2p.agent import AgentNode
from synapse_p2p.background import TaskScope, wait_at_most
from synapse_p2p.capability import normalize_capability
from synapse_p2p.exceptions import ConfigError, RemoteError
from synapse_p2p.identity import Identity
from synapse_p2p.server import Server, run_until_signal
from synapse_p2p.transport.base import format_address, is_loopback, parse_address

logger = logging.getLogger(__name__)

ALL_INTERFACES = "0.0.0.0"  # noqa: S104 - what a node that strangers join has to listen on
LOOPBACK = "127.0.0.1"

_FIND_COMMAND = (
    '  python -c "import asyncio; from dht import Swarm; r = asyncio.Runner(); '
    "s = Swarm(bootstrap=['{reachable}']{network}); r.run(s.start()); "
    "print(*r.run(s.find('{capability}')), sep='\\n'); r.run(s.stop()); r.close()\""
)


@dataclass(frozen=True, slots=True)
class SwarmConfig:
    """Patience and periods of a swarm's user side; the overlay's own are in `dht`."""

    dht: DHTConfig = field(default_factory=DHTConfig)
    probe_timeout_s: float = 1.0  # a found agent that is silent this long is left out
    watch_address_s: float = 2.0  # between looks whether peers see us at another address

    def __post_init__(self) -> None:
        for name in ("probe_timeout_s", "watch_address_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"SwarmConfig.{name} is {getattr(self, name)}; it has to be above 0")


class Swarm:
    """One process' place in a swarm: a node with an agent, a node that offers nothing, or a client.

    Without an agent and without `listen` a swarm with seeds is a client and opens no port. A node listens where
    `listen` says (`host:port`, port 0 for any free one), else where its agent was told to, else on a free port: on
    loopback when every seed is on loopback, else on all addresses. `advertise` (`host:port`) is where others dial it;
    by default the address at which most peers see it.
    """

    def __init__(
        self,
        agent: AgentNode | None = None,
        *,
        bootstrap: Iterable[str] = (),
        listen: str | None = None,
        advertise: str | None = None,
        network: str = "",
        identity: Identity | None = None,
        config: SwarmConfig | None = None,
    ) -> None:
        if isinstance(bootstrap, str):
            raise ConfigError(f"bootstrap is a list of addresses: write bootstrap=[{bootstrap!r}]")
        self._agent = agent
        self._config = config or SwarmConfig()
        self._seeds = tuple(SeedAddress.parse(seed) for seed in bootstrap)
        self._server: Server = agent if agent is not None else Server(port=0, identity=identity, network=network)
        self._is_node = agent is not None or listen is not None or not self._seeds
        self._place(listen, advertise, network, identity)
        self._node: DHTNode | None = None
        self._scope: TaskScope | None = None
        self._first_join: asyncio.Future[JoinReport] | None = None
        self._report = JoinReport((), 0)
        self._published: tuple[str, ...] | None = None
        self._seq = 0
        self._claims = _claims(agent)

    # Its life

    async def start(self, *, join_timeout: float = 5, wait_joined: bool = False) -> None:
        """Listen, join, publish. Returns when joined, or after `join_timeout` seconds with one warning; joining goes
        on.

        With `wait_joined` a swarm that was not joined by then is stopped again and JoinFailed raised. Started already,
        it does nothing.
        """
        if self._scope is not None:
            return
        if self._is_node:
            await self._server.start()
        runtime = self._server.runtime
        self._scope = TaskScope("swarm")
        self._node = DHTNode(self._server, config=self._config.dht)
        await self._node.start()
        self._first_join = asyncio.get_running_loop().create_future()
        joining = self._scope.spawn(self._join_until_joined(), name="join")
        if self._agent is not None:
            self._agent._swarm = self
            lease_s = self._config.dht.records.lease_s * self._config.dht.renew_fraction
            self._node.maintenance.every("renew", lease_s, self._publish)
            self._node.maintenance.every("watch address", self._config.watch_address_s, self._publish_if_moved)
        deadline = runtime.now() + join_timeout
        await wait_at_most(self._first_join, join_timeout)
        if self._report.tried and not self._report.joined:
            await self._on_join_late(wait_joined)
        else:
            # Joined; what we offer is published before anybody is told that we are here.
            await wait_at_most(joining, max(0.0, deadline - runtime.now()))

    async def stop(self, *, grace: float = 5) -> None:
        """Take no new calls, let those that run finish for `grace` seconds, and leave. Bounded in time."""
        if self._scope is not None:
            await self._scope.close()
        if self._node is not None:
            await self._node.stop()
        await self._server.stop(grace=grace)
        if self._agent is not None:
            self._agent._swarm = None
        self._scope = self._node = self._first_join = None
        self._published = None

    async def __aenter__(self) -> Swarm:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    def run(self) -> None:
        """Start, say where we are, and serve until SIGINT or SIGTERM; a second signal ends at once."""
        run_until_signal(self._run, instead="await swarm.start()")

    async def _run(self, stopped: asyncio.Event) -> None:
        try:
            await self.start()
            print(self._introduction(), flush=True)  # noqa: T201 - whoever runs it by hand looks for this on the screen
            await stopped.wait()
        finally:
            await self.stop()

    async def join(self, bootstrap: Iterable[str]) -> JoinReport:
        """Join through more addresses, now; they are remembered like those given at first."""
        node = self._started()
        seeds = tuple(SeedAddress.parse(seed) for seed in bootstrap)
        self._seeds = tuple(dict.fromkeys((*self._seeds, *seeds)))
        self._report = await node.join(seed.text for seed in seeds)
        if self._agent is not None:
            await self._publish()
        return self._report

    # Finding and asking

    async def find(
        self, *capabilities: str, limit: int | None = None, max_age: float | None = None, probe: bool = True
    ) -> FindResult:
        """The agents that have all of these capabilities, verified, in random order, ourselves left out.

        `max_age` is seconds since an agent signed its record. With `probe` those that do not answer within
        `probe_timeout_s` are left out. Raises ConfigError for a name that cannot be one. Cost: one strict lookup, about
        20 requests, and a ping to each agent found.
        """
        names = _normalized(capabilities)
        providers = await self._started().find_providers(names[0])
        agents = self._matching(providers, names)
        if max_age is not None:
            agents = [agent for agent in agents if agent.age_s <= max_age]
        self._server.runtime.rng.shuffle(agents)
        if probe:
            agents = await self._answering(agents, limit)
        complete = providers.outcome.complete and not providers.is_truncated
        reason = "" if complete else providers.reason
        if limit is not None and len(agents) > limit:
            agents, complete, reason = agents[:limit], False, f"limit {limit}"
        return FindResult(tuple(agents), complete, reason)

    async def ask(
        self,
        capability: str,
        task: str,
        *,
        context: Mapping[str, Any] | None = None,
        timeout: float = 600,
        idempotent: bool = False,
    ) -> Answer:
        """Have a task done by some agent with this capability, and by another if that one is not there or busy.

        A provider's own failure is an answer: RemoteError, with `.answer`. A call that may have started is repeated
        elsewhere only when `idempotent`. Raises NoAgentFound when nobody is left to try, Timeout after `timeout`
        seconds.
        """
        name = _normalized([capability])[0]

        async def find(mode: LookupMode) -> FindResult:
            providers = await self._started().find_providers(name, mode)
            agents = self._matching(providers, [name])
            self._server.runtime.rng.shuffle(agents)
            return FindResult(tuple(agents), providers.outcome.complete, providers.reason)

        asking = Asking(
            name, find=find, is_answering=self._is_answering, now=self._server.runtime.now, timeout_s=timeout
        )
        return await asking.run(task, dict(context or {}), idempotent=idempotent)

    def status(self) -> SwarmStatus:
        """A look at our own node, without asking anybody."""
        node = self._started()
        return SwarmStatus(
            id=node.id,
            mode=SwarmMode.NODE if self._is_node else SwarmMode.CLIENT,
            network=self._server.network,
            listening=self._server.listening_addresses,
            advertised=self._server.advertised_addresses,
            seeds_joined=self._report.joined,
            seeds_tried=self._report.tried,
            contacts=len(node.routing_table),
            sessions=len(self._server.sessions.peer_ids()),
            records_held=len(node.store),
            capabilities=tuple(claim.name for claim in self._claims),
        )

    async def call_agent(
        self, contact: Contact, endpoint: str, args: list[Any], kwargs: dict[str, Any], *, timeout_s: float | None
    ) -> Any:
        """One call to one agent, over the session with it or a new one. Raises RemoteError, Timeout,
        PeerUnavailable.
        """
        return await self._server.sessions.call_with(contact, endpoint, args, kwargs, timeout_s=timeout_s)

    # Where we are

    def _place(self, listen: str | None, advertise: str | None, network: str, identity: Identity | None) -> None:
        """Give the server its address, network and identity, by the rules of the class."""
        server = self._server
        if identity is not None:
            server.identity = identity
        if network:
            server.network = network
        if advertise is not None:
            parse_address(advertise)
            server.advertise = (advertise,)
        seeds_are_here = all(is_loopback(seed.host) for seed in self._seeds)
        if listen is not None:
            server.address, server.port = parse_address(listen)
        elif self._agent is None or not self._agent.bind_given:
            server.address, server.port = (LOOPBACK if seeds_are_here else ALL_INTERFACES), 0
        if self._is_node and is_loopback(server.address) and not seeds_are_here:
            self._is_node = False
            logger.warning(
                "this node listens on %s alone and its seeds are elsewhere: nobody could dial it, so it starts as a "
                "client. Give it listen='%s:0'",
                server.address,
                ALL_INTERFACES,
            )

    def _started(self) -> DHTNode:
        if self._node is None:
            raise ConfigError("the swarm is not started: `await swarm.start()`, or `async with Swarm(...) as swarm:`")
        return self._node

    def _introduction(self) -> str:
        """What `run` prints: who and where we are, and how to find us from another terminal."""
        status = self.status()
        capability = status.capabilities[0] if status.capabilities else "anything"
        address = next(iter(status.advertised or status.listening), None)
        lines = [
            f"id          {status.id.hex()}",
            f"listening   {', '.join(status.listening) or 'nowhere (a client)'}",
            f"advertised  {', '.join(status.advertised) or 'not yet known: no peer has told us how it sees us'}",
            f"joined      {status.seeds_joined} of {status.seeds_tried} seeds"
            if self._seeds
            else "joined      no seeds: a first node",
        ]
        if address is not None:
            host, port = parse_address(address)
            reachable = format_address(LOOPBACK if host in (ALL_INTERFACES, "::") else host, port)
            network = f", network={status.network!r}" if status.network else ""
            lines += [
                "find it from another terminal with:",
                _FIND_COMMAND.format(reachable=reachable, network=network, capability=capability),
            ]
        if any(not is_loopback(parse_address(listening)[0]) for listening in status.listening):
            lines.append("open swarm: anyone who reaches this port may ask")
        return "\n".join(lines)

    # Joining and publishing

    async def _join_until_joined(self) -> None:
        node = self._started()
        pause_s = self._config.dht.join_retry_min_s
        while True:
            self._report = await node.join(seed.text for seed in self._seeds)
            if self._first_join is not None and not self._first_join.done():
                self._first_join.set_result(self._report)
            if self._agent is not None:
                await self._publish()
            if self._report.joined or not self._report.tried:
                return
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, self._config.dht.join_retry_max_s)

    async def _on_join_late(self, wait_joined: bool) -> None:
        report = self._report if self._report.seeds else JoinReport((), 0)
        if wait_joined:
            await self.stop(grace=0)
            raise JoinFailed(report)
        logger.warning("not joined yet, still trying: %s", report)

    async def _publish(self) -> None:
        """Sign what the agent offers as of now and store it under each of its capabilities, and those above them."""
        node, server, agent = self._started(), self._server, self._agent
        assert agent is not None, "only an agent has something to publish"
        addresses = server.advertised_addresses
        now_ms = round(server.runtime.unix_now() * 1000)
        self._seq = max(self._seq + 1, now_ms)
        record = AgentRecord(
            public_key=server.identity.public_key,
            seq=self._seq,
            issued_ms=now_ms,
            expires_ms=now_ms + round(self._config.dht.records.lease_s * 1000),
            network_id=server.network_id,
            addresses=addresses,
            reach=Reach.DIRECT if addresses else Reach.NONE,
            name=agent.name,
            role=agent.role,
            description=agent.description[:200],
            capabilities=self._claims,
        )
        envelope = record.seal(server.identity)
        self._published = addresses
        async with TaskScope("publish") as scope:
            published = [scope.spawn_awaited(node.publish(envelope, record, name)) for name in record.indexed_names()]
            for report in published:
                logger.debug("published: %s", await report)

    async def _publish_if_moved(self) -> None:
        if self._server.advertised_addresses != self._published:
            await self._publish()

    # Choosing among those found

    def _matching(self, providers: ProvidersFound, names: list[str]) -> list[FoundAgent]:
        unix_ms = round(self._server.runtime.unix_now() * 1000)
        own_id = self._server.identity.node_id
        return [
            FoundAgent.from_record(record, unix_ms=unix_ms, caller=self)
            for record in providers.records
            if record.owner != own_id and all(name in record.indexed_names() for name in names)
        ]

    async def _answering(self, agents: list[FoundAgent], limit: int | None) -> list[FoundAgent]:
        """Those that answer a ping. With a limit, no more are asked than it takes to reach it, twice the limit at a
        time.
        """
        wanted = len(agents) if limit is None else limit
        answering: list[FoundAgent] = []
        position = 0
        while position < len(agents) and len(answering) <= wanted:
            batch = agents[position : position + max(2 * wanted, 16)]
            position += len(batch)
            async with TaskScope("probe") as scope:
                probes = [scope.spawn_awaited(self._is_answering(agent)) for agent in batch]
                answering += [agent for agent, probe in zip(batch, probes, strict=True) if await probe]
        return answering

    async def _is_answering(self, agent: FoundAgent) -> bool:
        peers = self._server.sessions
        if agent.reach is Reach.NONE and not peers.is_connected(agent.id):
            return False
        try:
            await peers.call(agent.contact, "_dht.ping", {}, timeout_s=self._config.probe_timeout_s)
        except UNREACHABLE:
            return False
        except RemoteError:
            return True  # it is there, whatever it thinks of us
        return True


def _normalized(capabilities: Iterable[str]) -> list[str]:
    names = [normalize_capability(name) for name in capabilities]
    if not names:
        raise ConfigError('name at least one capability, as in find("code-review")')
    return names


def _claims(agent: AgentNode | None) -> tuple[CapabilityClaim, ...]:
    if agent is None:
        return ()
    names = dict.fromkeys(normalize_capability(capability.name) for capability in agent.capabilities)
    return tuple(CapabilityClaim(name) for name in names)
