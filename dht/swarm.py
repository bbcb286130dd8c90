"""A swarm, as users see it: join, offer what an agent can do, find others by what they can do, and ask them.

The facade over a server, a node of the overlay and an agent's record. It wires; who is near, who is true and who stays
connected is decided elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from dht.agent_calls import AgentCalls
from dht.agents.claim import claims_of
from dht.agents.delegation import Delegation, within
from dht.agents.query import Query, parse_query
from dht.ask_stream import AskStream
from dht.bootstrap import JoinReport, SeedAddress
from dht.config import DHTConfig
from dht.contact import Contact
from dht.exceptions import IdentityRevoked, JoinFailed
from dht.find_stream import FindStream, OnFound
from dht.introduction import introduce
from dht.kept_identity import KeptIdentity
from dht.keyspace import Key
from dht.lookup import LookupMode, LookupOutcome
from dht.node import DHTNode
from dht.operations import Operations
from dht.peer import CALL_TIMEOUT_S, Peer, parse_place
from dht.results import Answer, Explanation, FindResult, FoundAgent, SwarmMode, SwarmStatus
from dht.searching import Searching, probes_at_once
from synapse_p2p.background import TaskScope, wait_at_most
from synapse_p2p.context import CallContext
from synapse_p2p.endpoints import RefusedError
from synapse_p2p.exceptions import ConfigError, PeerUnavailable
from synapse_p2p.identity import Identity, NodeID
from synapse_p2p.messages import Refusal
from synapse_p2p.metrics import Metrics
from synapse_p2p.server import Server
from synapse_p2p.signals import run_program, run_until_signal
from synapse_p2p.transport.base import is_literal_address, is_loopback, parse_address

if TYPE_CHECKING:
    from dht.asks import Asks
    from dht.publisher import Publisher
    from synapse_p2p.agent import AgentNode

logger = logging.getLogger(__name__)

ALL_INTERFACES = "0.0.0.0"  # noqa: S104 - what a node that strangers join has to listen on
LOOPBACK = "127.0.0.1"


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

    An agent is the same peer at each start: where neither it nor the swarm is given `identity`, its key is kept in
    `data_dir`, by default the user's own folder for this network and name. Without an agent a swarm is somebody new
    each time unless it is given one of both. `network` and `network_key` (32 bytes, the same for all members) say which
    swarm it is.
    """

    def __init__(
        self,
        agent: AgentNode | None = None,
        *,
        bootstrap: Iterable[str] = (),
        listen: str | None = None,
        advertise: str | None = None,
        network: str = "",
        network_key: bytes | None = None,
        identity: Identity | None = None,
        data_dir: str | os.PathLike[str] | None = None,
        config: SwarmConfig | None = None,
    ) -> None:
        self._agent = agent
        self._config = config or SwarmConfig()
        self._seeds = _parse_seeds(bootstrap)
        self._server: Server = agent if agent is not None else Server(port=0, identity=identity)
        self._is_node = agent is not None or listen is not None or not self._seeds
        self._name(network, network_key, identity)
        self._kept = self._keep(identity, data_dir)
        self._place(listen, advertise)
        self._publisher: Publisher | None = None
        if agent is not None:
            from dht.publisher import Publisher  # here, as with `_asks`: a client that only finds loads neither

            self._publisher = Publisher(agent, self._config.dht)
            claims_of(agent.capabilities)  # names that cannot be one are better refused here than in the background
        self._node: DHTNode | None = None
        self._scope: TaskScope | None = None  # set from the beginning of a start to that of a stop
        self._life = asyncio.Lock()  # held while starting, and while ending
        self._calls = AgentCalls(self._server)
        self._searching = Searching(
            self._server, self._started, self._calls, probe_timeout_s=self._config.probe_timeout_s
        )

    # Its life

    async def start(
        self, *, join_timeout: float = 5, wait_joined: bool = False, join_attempts: int | None = None
    ) -> None:
        """Listen, join, publish. Returns when joined, or after `join_timeout` seconds with one warning; joining goes
        on.

        With `wait_joined` a swarm that was not joined by then is stopped again and JoinFailed raised. Started already,
        it does nothing; stopped by somebody meanwhile, it returns, or raises JoinFailed with `wait_joined`. Joining is
        tried `join_attempts` times at most, None for ever: who cannot wait for a seed to come up hears of it sooner.
        Raises OSError when the port cannot be had, ConfigError for an agent that no record can tell of, and
        IdentityRevoked where a node says in that time, and proves, that its key was revoked.
        """
        async with self._life:
            if self._scope is not None:
                return
            if self._node is not None:
                await self._end(None, grace=0)  # a stop was under way and had not come to it
            scope = self._scope = TaskScope("swarm")
            try:
                report = await self._start(scope, join_timeout, join_attempts)
                if wait_joined and not report.is_in:
                    raise JoinFailed(report)
            except BaseException:
                # Failed or cancelled: nobody else knows that there is something to stop.
                self._scope = None
                await self._end(scope, grace=0)
                raise
        if not report.is_in and not scope.is_closed:
            logger.warning("not joined yet, still trying: %s", report)

    async def stop(self, *, grace: float = 5) -> None:
        """Take no new calls, let those that run finish for `grace` seconds, and leave. Bounded in time.

        Being cancelled ends the grace, and leaves nothing behind all the same. Stopped already, it does nothing.
        """
        scope, self._scope = self._scope, None
        try:
            if scope is not None:
                await scope.close()  # with it ends a start that waits
            await self._end_after_start(scope, grace)
        except asyncio.CancelledError:
            await self._end_after_start(scope, 0)
            raise

    async def __aenter__(self) -> Swarm:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    def run(self, *, on_started: Callable[[], None] | None = None) -> None:
        """Start, say where we are, and serve until SIGINT or SIGTERM; a second signal ends at once.

        A mistake of the user's, such as a port that is taken, ends the program with a sentence. Who gives `on_started`
        talks for itself: that is called instead of saying where we are, and mistakes are raised as they are.
        """
        if on_started is None:
            run_program(partial(self._run, self._introduce), instead="await swarm.start()")
        else:
            run_until_signal(partial(self._run, on_started), instead="await swarm.start()")

    async def _run(self, on_started: Callable[[], None], stopped: asyncio.Event) -> None:
        try:
            async with TaskScope("run") as scope:
                starting = scope.spawn_awaited(self.start())
                waiting = scope.spawn_awaited(stopped.wait())
                # A join may take seconds: the signal is heard meanwhile.
                await asyncio.wait((starting, waiting), return_when=asyncio.FIRST_COMPLETED)
                if starting.done():
                    await starting
                    on_started()
                    await waiting
        finally:
            await self.stop()

    def _introduce(self) -> None:
        text = introduce(
            self.status(),
            key_folder="" if self.data_dir is None else str(self.data_dir),
            has_network_key=self._server.network_key is not None,
        )
        print(text, flush=True)  # noqa: T201 - whoever runs it looks for it there

    async def _start(self, scope: TaskScope, join_timeout: float, join_attempts: int | None) -> JoinReport:
        """Begin everything, and wait for the join. `scope` may be closed by a stop at any time."""
        if self._kept is not None:
            await self._kept.take()
        if self._publisher is not None:
            self._check_not_revoked()
            self._publisher.begin(self.data_dir)
            self._publisher.check()  # refuse here what no record can tell of, not in a task
        self._server.sessions.open()
        if self._is_node:
            await self._server.start()
        server = self._server
        node = self._node = DHTNode(server, config=self._config.dht, data_dir=self.data_dir)
        operations = Operations(
            server,
            node,
            status=self.status,
            agents=self.agents,
            publisher=self._publisher,
            is_running=lambda: self._node is node,
        )
        server.mount("_swarm.", operations.endpoints(), for_operators=True)
        if not scope.is_closed:
            await node.start()
            joining = scope.spawn(self._join_until_joined(node, join_attempts), name="join")
            if self._agent is not None and self._publisher is not None:
                self._agent._swarm = self
                lease_s = self._config.dht.records.lease_s * self._config.dht.renew_fraction
                publish = partial(self._publisher.publish, node)
                node.on_resumed.append(publish)
                node.maintenance.every("renew", lease_s, partial(self._publisher.renew, node))
                kept_s = self._config.dht.records.max_ttl_s * self._config.dht.renew_fraction
                node.maintenance.every("revocation", kept_s, partial(self._publisher.keep_revoked, node))
                node.maintenance.every(
                    "publish", self._config.watch_address_s, partial(self._publisher.publish_if_due, node)
                )
            await wait_at_most(joining, join_timeout)
            self._check_not_revoked()
        return node.join_report()

    async def _end_after_start(self, scope: TaskScope | None, grace: float) -> None:
        async with self._life:
            if self._scope is None:  # else it was started anew since, and that start ended what we would
                await self._end(scope, grace)

    async def _end(self, scope: TaskScope | None, grace: float) -> None:
        """May be cancelled and called again: what is done is not done twice."""
        if scope is not None:
            await scope.close()
        if self._node is not None and grace > 0:
            if self._publisher is not None:
                await self._publisher.withdraw_all(self._node)
            await self._node.leave()
        elif self._node is not None:
            await self._node.stop()
        await self._server.stop(grace=grace)
        self._node = None
        if self._agent is not None and self._agent._swarm is self:
            self._agent._swarm = None
        if self._kept is not None:
            self._kept.release()  # last: until here somebody could still meet us

    async def join(self, bootstrap: Iterable[str]) -> JoinReport:
        """Join through more addresses, now; they are remembered like those given at first."""
        seeds = _parse_seeds(bootstrap)
        node = self._started()
        self._seeds = tuple(dict.fromkeys((*self._seeds, *seeds)))
        report = await node.join(seed.text for seed in seeds)
        if self._publisher is not None:
            await self._publisher.publish(node)
        return report

    async def revoke(self) -> None:
        """End the key of our agent for good. There is no way back: nobody finds the agent any more, by none of its
        capabilities, nodes refuse what the key signs for these, and a start with it raises IdentityRevoked.

        For a key that was stolen, or an agent that shall never come back; who just leaves is withdrawn by `stop`. Nodes
        remember it for 48 h after they were told last, which this swarm does every 24 h. The agent stays connected
        until it is stopped, and its key file stays where it is. Raises ConfigError without an
        agent, or with one that offers nothing, and PeerUnavailable where no other node keeps some part of it: call it
        again then, nothing else is published meanwhile.
        """
        node = self._started()
        if self._publisher is None:
            raise ConfigError("this swarm has no agent, so nobody keeps a record of it that could be revoked")
        await self._publisher.revoke(node)

    # Finding and asking

    async def find(
        self,
        *capabilities: str,
        where: Mapping[str, Any] | None = None,
        limit: int | None = None,
        max_age: float | None = None,
        timeout: float | None = None,
        probe: bool = True,
        explain: bool = False,
    ) -> FindResult:
        """The agents that have all of these capabilities, verified, in random order, one of each /24 before a second.

        A name means itself and all below it, so "nlp" finds who offers "nlp/summarization", as "nlp/" does; a range of
        versions may follow it, as in "parser>=2,<3". `where` is about attributes, as in `{"tier": "gold", "price":
        {"<": 5}, "lang": {"in": ["de", "en"]}}`. Our own agent is left out by design, for who searches wants somebody
        else. `limit` is how many are wanted at most, `max_age` is seconds since an agent signed its record; after
        `timeout` seconds it returns those who have answered by then. With `probe` those that do not answer within
        `probe_timeout_s` are left out. With `explain` the result's `explanation` says which keys were read and whom the
        lookups asked; it waits to the end, so it goes without `timeout`. Raises ConfigError for a query that cannot be
        one. Cost: a lookup, about 8 requests, one more where a capability has many providers, and a ping to each agent
        found.
        """
        query = _checked_query(capabilities, where, limit, timeout)
        if explain and timeout is not None:
            raise ConfigError("explain=True tells of a search that has ended: leave timeout= out")
        if timeout is not None:
            return await self._find_until(
                self.stream_find(*capabilities, where=where, limit=limit, max_age=max_age, timeout=timeout, probe=probe)
            )
        found, providers = await self._searching.search(query, LookupMode.FRESH, limit=limit, max_age=max_age)
        agents, reason = found, self._searching.incompleteness(providers)
        silent: list[NodeID] = []
        if probe:
            agents = await self._searching.answering(found, limit, silent)
        if limit is not None and len(agents) > limit:
            agents, reason = agents[:limit], f"limit {limit}"
        explanation = Explanation(str(query), providers.capability, providers.reads, tuple(silent)) if explain else None
        return FindResult(tuple(agents), not reason, reason, explanation)

    def stream_find(
        self,
        *capabilities: str,
        where: Mapping[str, Any] | None = None,
        limit: int | None = None,
        max_age: float | None = None,
        timeout: float | None = None,
        probe: bool = True,
    ) -> FindStream:
        """As `find`, one agent after the other, each as soon as it has answered: `async for agent in
        swarm.stream_find("python")`.

        When it has ended its `complete` and `reason` are those of a FindResult. Who answers first comes first.
        """
        query = _checked_query(capabilities, where, limit, timeout)
        self._started()

        async def search(on_found: OnFound) -> str:
            _, providers = await self._searching.search(
                query, LookupMode.FRESH, limit=limit, max_age=max_age, on_found=on_found
            )
            return self._searching.incompleteness(providers)

        is_there = self._searching.is_answering if probe else None
        return FindStream(search, is_there, limit=limit, timeout_s=timeout, max_probes=probes_at_once(limit))

    async def _find_until(self, stream: FindStream) -> FindResult:
        """All that a stream comes to, in random order."""
        async with stream:
            agents = [agent async for agent in stream]
        self._server.runtime.rng.shuffle(agents)
        return FindResult(tuple(agents), stream.complete, stream.reason)

    async def ask(
        self,
        capability: str,
        task: str,
        *,
        context: Mapping[str, Any] | None = None,
        timeout: float = 600,
        idempotent: bool = False,
        budget: int | None = None,
        traceparent: str | None = None,
    ) -> Answer:
        """Have a task done by some agent with this capability, and by another if that one is not there or busy.

        Of two that live the one with less to do is asked. A provider's own failure is an answer: RemoteError, with
        `.answer`. A call that may have started is repeated elsewhere only when `idempotent`; then a second provider is
        asked too where the first takes longer than nearly all tasks did, and the first answer counts. Raises
        NoAgentFound when nobody is left to try, Timeout after `timeout` seconds.

        Made in a task handler, or in what it starts, it is a part of the task that runs: it has no more time than that,
        and raises DelegationExhausted where a task has been passed on 8 times, or has no asks left. `budget` is how
        many asks it may come to in all, those of others for it included; by default a quarter of what is left. Every
        try carries `traceparent` (W3C Trace Context), by default that of the handler or `traced` block that it is made
        in.
        """
        from dht.asks import Terms

        terms = Terms(timeout, idempotent, budget, traceparent)
        return await self._asks.ask(capability, task, dict(context or {}), terms)

    def stream_ask(
        self,
        capability: str,
        task: str,
        *,
        context: Mapping[str, Any] | None = None,
        timeout: float = 600,
        idempotent: bool = False,
        budget: int | None = None,
        traceparent: str | None = None,
    ) -> AskStream:
        """As `ask`, and what the agent yields meanwhile: `async for item in swarm.stream_ask(...)`; the last item is
        the answer. A handler that yields nothing on the way sends that one item.

        Until the first item is there providers are tried as in `ask`; after it an error is raised as it comes, for then
        work has been done and seen. `timeout` is for the first item, and for each that follows.
        """
        from dht.asks import Terms

        terms = Terms(timeout, idempotent, budget, traceparent)
        return self._asks.stream(capability, task, dict(context or {}), terms)

    def status(self) -> SwarmStatus:
        """A look at our own node, without asking anybody."""
        node = self._started()
        report = node.join_report()
        return SwarmStatus(
            id=node.id,
            mode=SwarmMode.NODE if self._is_node and not node.is_out_of_reach else SwarmMode.CLIENT,
            network=self._server.network,
            listening=self._server.listening_addresses,
            advertised=self._server.advertised_addresses,
            seeds_joined=report.joined,
            seeds_tried=report.tried,
            contacts=len(node.routing_table),
            sessions=len(self._server.sessions.peer_ids()),
            records_held=len(node.store),
            capabilities=()
            if self._agent is None
            else tuple(each.name for each in claims_of(self._agent.capabilities)),
        )

    def join_report(self) -> JoinReport:
        """How every seed given so far took it, as of now."""
        return self._started().join_report()

    async def on_capabilities_changed(self) -> None:
        """Our agent can do other things now: publish that, and withdraw what it cannot do any more.

        Raises ConfigError for what no record can tell of, before anything is published, and for a revoked key.
        """
        if self._node is not None and self._publisher is not None:
            self._check_not_revoked()
            self._publisher.check()
            await self._publisher.publish(self._node)

    def peer(self, place: str | NodeID, *, timeout: float = CALL_TIMEOUT_S) -> Peer:
        """One member, by its address (`host:port`, or `id@host:port` to be sure who answers) or by its id, as bytes or
        64 hex digits. `timeout` is seconds for a call, and for each item of a stream. Raises ConfigError for what is
        neither.
        """
        return Peer(self._calls, self.reach, parse_place(place), timeout_s=timeout)

    async def reach(self, place: SeedAddress | NodeID) -> Contact:
        """The contact at an address, or with an id. Raises PeerUnavailable where nobody is, and what a dial raises."""
        if isinstance(place, SeedAddress):
            proved = await self._server.sessions.connect_address(place.address, place.id)
            return Contact(proved.id, proved.addresses)
        node = self._started()
        known = node.routing_table.get(place)
        if known is not None or self._server.sessions.is_connected(place):
            return known or Contact(place, ())
        for contact in await node.find_node(place):
            if contact.id == place:
                return contact
        raise PeerUnavailable(f"no member has the id {place.hex()}, as far as this node can tell")

    async def lookup(self, key: Key, *, mode: LookupMode = LookupMode.STRICT) -> LookupOutcome:
        """One search through the key space for those nearest to a key of 32 bytes, with its trace: to see how lookups
        go. Agents are found by `find`.
        """
        return await self._started().lookup(key, mode)

    def agents(self) -> list[FoundAgent]:
        """The agents whose records this node keeps for others, without asking anybody whether they are still there.

        In a small swarm that is everybody; for all with some capability there is `find`.
        """
        unix_ms = round(self._server.runtime.unix_now() * 1000)
        records = self._started().agents_held()
        return [FoundAgent.from_record(record, unix_ms=unix_ms, caller=self._calls) for record in records]

    @contextlib.contextmanager
    def taking_up(self, call_context: CallContext, *, is_reentrant: bool) -> Iterator[CallContext]:
        """For our agent: within it the handler of a task runs, with the context given here. Raises RefusedError where
        the task has gone in circles, or may not be passed on to us.
        """
        received = Delegation.received(
            call_context.delegation,
            peer=call_context.peer,
            own_id=self._server.identity.node_id,
            now=self._server.runtime.now(),
            deadline=call_context.deadline,
            is_reentrant=is_reentrant,
        )
        if isinstance(received, Refusal):
            raise RefusedError(received)
        with within(received):
            yield replace(call_context, delegation=received, swarm=self)

    # Who and where we are

    @property
    def metrics(self) -> Metrics:
        """What this node counts: those of its agent, where it has one."""
        return self._server.metrics

    @property
    def data_dir(self) -> Path | None:
        """The folder that holds this node's key while it runs; None where its key is not kept."""
        return None if self._kept is None else self._kept.folder

    @cached_property
    def _asks(self) -> Asks:
        from dht.asks import Asks

        return Asks(self._server, self._searching, self._calls)

    def _name(self, network: str, network_key: bytes | None, identity: Identity | None) -> None:
        """Give the server its network and identity. Raises ConfigError where the agent was given others."""
        server = self._server
        if network and server.network not in ("", network):
            raise ConfigError(f"the agent's network is {server.network!r} and the swarm's {network!r}: leave one out")
        if network_key is not None and server.network_key not in (None, network_key):
            raise ConfigError("the agent was given another network_key than the swarm: leave one out")
        if identity is not None and server.identity_given and server.identity != identity:
            raise ConfigError("the agent was given another identity than the swarm: leave one out")
        server.become(identity=identity, network=network, network_key=network_key)

    def _keep(self, identity: Identity | None, data_dir: str | os.PathLike[str] | None) -> KeptIdentity | None:
        """What keeps this node's key, if anything does."""
        is_given = identity is not None or self._server.identity_given
        if is_given and data_dir is not None:
            raise ConfigError("an identity is given, and data_dir= holds another: leave one out")
        if is_given or (self._agent is None and data_dir is None):
            return None
        name = "" if self._agent is None else self._agent.name
        return KeptIdentity(self._server, name=name, folder=data_dir)

    def _place(self, listen: str | None, advertise: str | None) -> None:
        """Give the server its address, by the rules of the class."""
        server = self._server
        if advertise is not None:
            if not is_literal_address(advertise):
                raise ConfigError(
                    f"advertise is {advertise!r}; others dial an IP address with the real port, as in '10.0.0.5:9999'"
                )
            server.advertise = (advertise,)
        seeds_are_here = all(is_loopback(seed.host) for seed in self._seeds)
        if listen is not None:
            server.address, server.port = parse_address(listen)
        elif self._agent is None or not self._agent.bind_given:
            server.address, server.port = (LOOPBACK if seeds_are_here else ALL_INTERFACES), 0
        if self._is_node and advertise is None and is_loopback(server.address) and not seeds_are_here:
            self._is_node = False
            logger.warning(
                "this node listens on %s alone and its seeds are elsewhere: nobody could dial it, so it starts as a "
                "client. Give it listen='%s:0'",
                server.address,
                ALL_INTERFACES,
            )

    def _check_not_revoked(self) -> None:
        if self._publisher is not None and self._publisher.is_revoked:
            folder = "" if self.data_dir is None else str(self.data_dir)
            raise IdentityRevoked(self._server.identity.node_id, key_folder=folder)

    def _started(self) -> DHTNode:
        if self._node is None:
            raise ConfigError("the swarm is not started: `await swarm.start()`, or `async with Swarm(...) as swarm:`")
        return self._node

    # Joining

    async def _join_until_joined(self, node: DHTNode, attempts: int | None) -> None:
        pause_s = self._config.dht.join_retry_min_s
        while not await self._join_once(node):
            attempts = None if attempts is None else attempts - 1
            if attempts == 0:
                return
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, self._config.dht.join_retry_max_s)

    async def _join_once(self, node: DHTNode) -> bool:
        """Whether that was enough. What goes wrong in a way that nobody foresaw is not the end of joining."""
        try:
            report = await node.join(seed.text for seed in self._seeds)
            if self._publisher is not None:
                await self._publisher.publish(node)
        except Exception:
            logger.exception("joining failed; what is missing will be tried again")
            return bool(node.join_report().joined) or not self._seeds
        return report.is_in


def _checked_query(
    capabilities: Iterable[str], where: Mapping[str, Any] | None, limit: int | None, timeout: float | None
) -> Query:
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}; it has to be 1 or more, or None for all")
    if timeout is not None and not timeout > 0:
        raise ConfigError(f"timeout is {timeout}; it has to be above 0 seconds, or None to wait for the end")
    return parse_query(capabilities, where)


def _parse_seeds(bootstrap: Iterable[str]) -> tuple[SeedAddress, ...]:
    if isinstance(bootstrap, str):
        raise ConfigError(f"bootstrap is a list of addresses: write [{bootstrap!r}]")
    return tuple(dict.fromkeys(SeedAddress.parse(seed) for seed in bootstrap))
