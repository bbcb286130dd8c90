"""For code that is in no async function: a swarm, with calls that block.

They run on the one event loop, in a thread of its own, that `synapse_p2p.blocking` keeps for all of the process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

from dht import find_stream, peer, results, swarm
from dht.bootstrap import JoinReport
from dht.peer import CALL_TIMEOUT_S
from dht.results import Answer, SwarmStatus
from dht.swarm import SwarmConfig
from synapse_p2p.agent import AgentNode
from synapse_p2p.blocking import LoopThread, shared_loop_thread
from synapse_p2p.capability import AgentCapability
from synapse_p2p.identity import Identity, NodeID

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FoundAgent:
    """As `dht.FoundAgent`, which is in `found`, with calls that block."""

    found: results.FoundAgent
    _loop_thread: LoopThread

    @property
    def id(self) -> NodeID:
        """Who it is."""
        return self.found.id

    @property
    def name(self) -> str:
        """What it calls itself."""
        return self.found.name

    @property
    def capabilities(self) -> tuple[str, ...]:
        """What it can do."""
        return self.found.capabilities

    def call(self, endpoint: str, *args: Any, **kwargs: Any) -> Any:
        """As `dht.FoundAgent.call`."""
        return self._loop_thread.run(
            lambda: self.found.call(endpoint, *args, **kwargs), instead="await agent.call(...)"
        )

    def stream(self, endpoint: str, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """As `dht.FoundAgent.stream`: `for item in agent.stream("tail", path)`."""
        return self._loop_thread.iterate(
            lambda: self.found.stream(endpoint, *args, **kwargs), instead="async for item in agent.stream(...)"
        )

    def describe(self) -> list[AgentCapability]:
        """As `dht.FoundAgent.describe`."""
        return self._loop_thread.run(self.found.describe, instead="await agent.describe()")

    def ask(self, task: str, context: Mapping[str, Any] | None = None, *, timeout: float = 600.0) -> Any:
        """As `dht.FoundAgent.ask`."""
        return self._loop_thread.run(
            lambda: self.found.ask(task, context, timeout=timeout), instead="await agent.ask(...)"
        )

    def __str__(self) -> str:
        return str(self.found)


@dataclass(frozen=True, slots=True)
class FindResult(results.FoundAgents[FoundAgent]):
    """As `dht.FindResult`, of agents whose calls block."""


class FindStream:
    """As `dht.FindStream`, for a plain `for`. Leave it early with `close()`, or by `with`."""

    def __init__(self, async_stream: find_stream.FindStream, loop_thread: LoopThread) -> None:
        self._async_stream = async_stream
        self._loop_thread = loop_thread
        self._agents = loop_thread.iterate(lambda: async_stream, instead="async for agent in swarm.stream_find(...)")

    @property
    def complete(self) -> bool:
        """Whether these were all, once it has ended."""
        return self._async_stream.complete

    @property
    def reason(self) -> str:
        """Why not; empty where they were."""
        return self._async_stream.reason

    def __iter__(self) -> FindStream:
        return self

    def __next__(self) -> FoundAgent:
        return FoundAgent(next(self._agents), self._loop_thread)

    def close(self) -> None:
        """End it."""
        self._agents.close()

    def __enter__(self) -> FindStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Peer:
    """As `dht.Peer`, which is `async_peer`, with calls that block."""

    def __init__(self, async_peer: peer.Peer, loop_thread: LoopThread) -> None:
        self.async_peer = async_peer
        self._loop_thread = loop_thread

    def call(self, endpoint: str, *args: Any, **kwargs: Any) -> Any:
        """As `dht.Peer.call`."""
        return self._loop_thread.run(
            lambda: self.async_peer.call(endpoint, *args, **kwargs), instead="await peer.call(...)"
        )

    def stream(self, endpoint: str, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """As `dht.Peer.stream`: `for item in peer.stream("tail", path)`."""
        return self._loop_thread.iterate(
            lambda: self.async_peer.stream(endpoint, *args, **kwargs), instead="async for item in peer.stream(...)"
        )

    def ask(self, task: str, context: Mapping[str, Any] | None = None, *, timeout: float = 600.0) -> Any:
        """As `dht.Peer.ask`."""
        return self._loop_thread.run(
            lambda: self.async_peer.ask(task, context, timeout=timeout), instead="await peer.ask(...)"
        )

    def stream_ask(
        self, task: str, context: Mapping[str, Any] | None = None, *, timeout: float = 600.0
    ) -> Iterator[Any]:
        """As `dht.Peer.stream_ask`."""
        return self._loop_thread.iterate(
            lambda: self.async_peer.stream_ask(task, context, timeout=timeout),
            instead="async for item in peer.stream_ask(...)",
        )

    def __repr__(self) -> str:
        return repr(self.async_peer)


class Swarm:
    """A `dht.Swarm` whose methods block until they are done. Threads may share it.

    A call in a thread that runs an event loop, as every cell of a notebook does, would stop that loop and is refused.
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
        """The arguments are those of `dht.Swarm`, which is in `async_swarm`."""
        self.async_swarm = swarm.Swarm(
            agent,
            bootstrap=bootstrap,
            listen=listen,
            advertise=advertise,
            network=network,
            network_key=network_key,
            identity=identity,
            data_dir=data_dir,
            config=config,
        )
        self._loop_thread = shared_loop_thread()

    def start(self, *, join_timeout: float = 5, wait_joined: bool = False, join_attempts: int | None = None) -> None:
        """As `dht.Swarm.start`."""
        self._run(
            lambda: self.async_swarm.start(
                join_timeout=join_timeout, wait_joined=wait_joined, join_attempts=join_attempts
            ),
            "await swarm.start()",
        )

    def stop(self, *, grace: float = 5) -> None:
        """As `dht.Swarm.stop`."""
        self._run(lambda: self.async_swarm.stop(grace=grace), "await swarm.stop()")

    def __enter__(self) -> Swarm:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def join(self, bootstrap: Iterable[str]) -> JoinReport:
        """As `dht.Swarm.join`."""
        return self._run(lambda: self.async_swarm.join(bootstrap), "await swarm.join(...)")

    def revoke(self) -> None:
        """As `dht.Swarm.revoke`: for good."""
        self._run(self.async_swarm.revoke, "await swarm.revoke()")

    def find(
        self,
        *capabilities: str,
        where: Mapping[str, Any] | None = None,
        limit: int | None = None,
        max_age: float | None = None,
        timeout: float | None = None,
        probe: bool = True,
        explain: bool = False,
    ) -> FindResult:
        """As `dht.Swarm.find`."""
        found = self._run(
            lambda: self.async_swarm.find(
                *capabilities,
                where=where,
                limit=limit,
                max_age=max_age,
                timeout=timeout,
                probe=probe,
                explain=explain,
            ),
            "await swarm.find(...)",
        )
        agents = tuple(FoundAgent(agent, self._loop_thread) for agent in found)
        return FindResult(agents, found.complete, found.reason, found.explanation)

    def stream_find(
        self,
        *capabilities: str,
        where: Mapping[str, Any] | None = None,
        limit: int | None = None,
        max_age: float | None = None,
        timeout: float | None = None,
        probe: bool = True,
    ) -> FindStream:
        """As `dht.Swarm.stream_find`: `for agent in swarm.stream_find("python")`."""
        stream = self.async_swarm.stream_find(
            *capabilities, where=where, limit=limit, max_age=max_age, timeout=timeout, probe=probe
        )
        return FindStream(stream, self._loop_thread)

    def ask(
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
        """As `dht.Swarm.ask`."""
        return self._run(
            lambda: self.async_swarm.ask(
                capability,
                task,
                context=context,
                timeout=timeout,
                idempotent=idempotent,
                budget=budget,
                traceparent=traceparent,
            ),
            "await swarm.ask(...)",
        )

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
    ) -> Iterator[Any]:
        """As `dht.Swarm.stream_ask`: `for item in swarm.stream_ask(...)`."""
        return self._loop_thread.iterate(
            lambda: self.async_swarm.stream_ask(
                capability,
                task,
                context=context,
                timeout=timeout,
                idempotent=idempotent,
                budget=budget,
                traceparent=traceparent,
            ),
            instead="async for item in swarm.stream_ask(...)",
        )

    def status(self) -> SwarmStatus:
        """As `dht.Swarm.status`."""

        async def status() -> SwarmStatus:
            return self.async_swarm.status()

        return self._run(status, "swarm.status()")

    def peer(self, place: str | NodeID, *, timeout: float = CALL_TIMEOUT_S) -> Peer:
        """As `dht.Swarm.peer`."""
        return Peer(self.async_swarm.peer(place, timeout=timeout), self._loop_thread)

    def agents(self) -> list[FoundAgent]:
        """As `dht.Swarm.agents`."""

        async def agents() -> list[FoundAgent]:
            return [FoundAgent(agent, self._loop_thread) for agent in self.async_swarm.agents()]

        return self._run(agents, "swarm.agents()")

    def _run(self, begin: Callable[[], Coroutine[Any, Any, T]], instead: str) -> T:
        return self._loop_thread.run(begin, instead=instead)
