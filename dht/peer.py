"""One member of a swarm that is known by its address or its id alone."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any

from dht.bootstrap import SeedAddress
from dht.contact import Contact
from dht.results import AgentCaller
from synapse_p2p.exceptions import ConfigError
from synapse_p2p.identity import NODE_ID_SIZE_BYTES, NodeID

CALL_TIMEOUT_S = 30.0


class Peer:
    """Calls one member, wherever it is. Nothing is sent before the first call; an id is then looked for, in one lookup
    where it is not known. `timeout_s` is for a call, and for each item of a stream.
    """

    def __init__(
        self,
        caller: AgentCaller,
        reach: Callable[[SeedAddress | NodeID], Awaitable[Contact]],
        place: SeedAddress | NodeID,
        *,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> None:
        self._caller = caller
        self._reach = reach
        self._place = place
        self._timeout_s = timeout_s

    async def call(self, endpoint: str, *args: Any, **kwargs: Any) -> Any:
        """What its endpoint returns, within `timeout_s`. Raises RemoteError, Timeout, PeerUnavailable."""
        contact = await self._reach(self._place)
        return await self._caller.call_agent(contact, endpoint, list(args), kwargs, timeout_s=self._timeout_s)

    async def stream(self, endpoint: str, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        """What its streaming endpoint yields, each item within `timeout_s`. Raises as `call`."""
        contact = await self._reach(self._place)
        items = self._caller.stream_agent(contact, endpoint, list(args), kwargs, timeout_s=self._timeout_s)
        async with contextlib.aclosing(items):
            async for item in items:
                yield item

    async def ask(self, task: str, context: Mapping[str, Any] | None = None, *, timeout: float = 600.0) -> Any:
        """What its task handler returns. Raises as `call`. `timeout` is seconds."""
        contact = await self._reach(self._place)
        return await self._caller.ask_agent(contact, task, dict(context or {}), timeout_s=timeout)

    async def stream_ask(
        self, task: str, context: Mapping[str, Any] | None = None, *, timeout: float = 600.0
    ) -> AsyncGenerator[Any, None]:
        """What its task handler yields, each item within `timeout` seconds. Raises as `call`."""
        contact = await self._reach(self._place)
        items = self._caller.stream_ask_agent(contact, task, dict(context or {}), timeout_s=timeout)
        async with contextlib.aclosing(items):
            async for item in items:
                yield item

    def __repr__(self) -> str:
        return f"<Peer {self._place.hex() if isinstance(self._place, bytes) else self._place.text}>"


def parse_place(place: str | NodeID) -> SeedAddress | NodeID:
    """`host:port`, `id@host:port`, an id of 32 bytes, or the same as 64 hex digits. Raises ConfigError for others."""
    if isinstance(place, bytes):
        if len(place) != NODE_ID_SIZE_BYTES:
            raise ConfigError(f"a peer's id has {NODE_ID_SIZE_BYTES} bytes, not {len(place)}")
        return place
    if len(place) == 2 * NODE_ID_SIZE_BYTES:
        try:
            return bytes.fromhex(place)
        except ValueError:
            pass  # then it is an address
    return SeedAddress.parse(place)
