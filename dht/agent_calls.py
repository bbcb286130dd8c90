"""Calls of one agent, wherever they come from: a found agent, a peer, an ask."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any

from dht.agents.delegation import Delegation, NextAsk, current_delegation
from dht.ask_stream import OneItem, OpenedStream
from dht.contact import Contact
from synapse_p2p.exceptions import RemoteError
from synapse_p2p.messages import Code
from synapse_p2p.server import Server
from synapse_p2p.uploads import take_uploads


class AgentCalls:
    """What is sent to agents over the sessions of one server."""

    def __init__(self, server: Server) -> None:
        self._server = server

    async def call_agent(
        self, contact: Contact, endpoint: str, args: list[Any], kwargs: dict[str, Any], *, timeout_s: float | None
    ) -> Any:
        """One call to one agent, over the session with it or a new one. Arguments that are asynchronous iterables are
        uploads. Raises RemoteError, Timeout, PeerUnavailable, and what an upload raises.
        """
        if uploads := take_uploads(args, kwargs):
            return await self._server.sessions.call_uploading(
                contact, endpoint, args, kwargs, uploads=uploads, timeout_s=timeout_s
            )
        return await self._server.sessions.call_with(contact, endpoint, args, kwargs, timeout_s=timeout_s)

    async def ask_agent(self, contact: Contact, task: str, context: Mapping[str, Any], *, timeout_s: float) -> Any:
        """What one agent's task handler returns; made in a task handler it is a part of the task that runs. Raises as
        `call_agent`, and DelegationExhausted.
        """
        delegation = current_delegation() or Delegation()
        left_s = delegation.shortened_s(timeout_s, self._server.runtime.now())
        carried = delegation.for_next_ask(self._server.identity.node_id)
        return await self.send_ask(contact, task, context, carried, left_s)

    async def stream_agent(
        self, contact: Contact, endpoint: str, args: list[Any], kwargs: dict[str, Any], *, timeout_s: float
    ) -> AsyncGenerator[Any, None]:
        """What one agent's streaming endpoint yields, each item within `timeout_s`. Raises as `call_agent`."""
        uploads = take_uploads(args, kwargs)
        with await self._server.sessions.open_stream(
            contact, endpoint, args, kwargs, uploads=uploads, timeout_s=timeout_s
        ) as stream:
            while await stream.wait(timeout_s):
                yield stream.take()

    async def stream_ask_agent(
        self, contact: Contact, task: str, context: Mapping[str, Any], *, timeout_s: float
    ) -> AsyncGenerator[Any, None]:
        """As `ask_agent`, and what the handler yields meanwhile, each item within `timeout_s`."""
        delegation = current_delegation() or Delegation()
        left_s = delegation.shortened_s(timeout_s, self._server.runtime.now())
        stream = await self.open_ask(
            contact, task, context, delegation.for_next_ask(self._server.identity.node_id), left_s
        )
        try:
            while await stream.wait(left_s):
                yield stream.take()
        finally:
            stream.close()

    async def open_ask(
        self, contact: Contact, task: str, context: Mapping[str, Any], carried: NextAsk, left_s: float
    ) -> OpenedStream:
        """A task at one agent whose first item is there; the stream has to be closed. Raises as `call_agent`."""
        stream = await self._server.sessions.open_stream(
            contact, "_agent.stream_ask", [task, context], {}, timeout_s=left_s, options=carried.options()
        )
        try:
            await stream.wait(left_s)
        except RemoteError as error:
            stream.close()
            if error.code != Code.NOT_FOUND:
                raise
            return OneItem(await self.send_ask(contact, task, context, carried, left_s))
        except BaseException:
            stream.close()
            raise
        return stream

    async def send_ask(
        self, contact: Contact, task: str, context: Mapping[str, Any], carried: NextAsk, left_s: float
    ) -> Any:
        """A task at one agent, with what it carries. Raises as `call_agent`."""
        arguments = [task, context]
        return await self._server.sessions.call_with(
            contact, "_agent.ask", arguments, {}, timeout_s=left_s, options=carried.options()
        )
