"""`message/send` of A2A: JSON-RPC over HTTP, an agent of a2a-sdk behind uvicorn, asked by the SDK's own client.

The agent answers with a message and keeps no task, the least that the protocol lets it do. Not encrypted.
"""

from __future__ import annotations

import asyncio
import base64
import socket
from typing import Any

import httpx  # pyrefly: ignore[missing-import]
import uvicorn  # pyrefly: ignore[missing-import]
from a2a.client import ClientConfig, ClientFactory  # pyrefly: ignore[missing-import]
from a2a.helpers.proto_helpers import get_message_text, new_text_message  # pyrefly: ignore[missing-import]
from a2a.server.agent_execution import AgentExecutor  # pyrefly: ignore[missing-import]
from a2a.server.request_handlers import DefaultRequestHandler  # pyrefly: ignore[missing-import]
from a2a.server.routes import create_agent_card_routes, create_jsonrpc_routes  # pyrefly: ignore[missing-import]
from a2a.server.tasks import InMemoryTaskStore  # pyrefly: ignore[missing-import]
from a2a.types.a2a_pb2 import AgentCapabilities, AgentCard, AgentInterface, AgentSkill, Role, SendMessageRequest  # pyrefly: ignore[missing-import]
from starlette.applications import Starlette  # pyrefly: ignore[missing-import]

TIMEOUT_S = 30.0


class Echo(AgentExecutor):
    """Says what it was told."""

    async def execute(self, context: Any, event_queue: Any) -> None:
        await event_queue.enqueue_event(new_text_message(get_message_text(context.message)))

    async def cancel(self, context: Any, event_queue: Any) -> None:
        raise NotImplementedError


async def serve() -> str:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    place = f"http://127.0.0.1:{listener.getsockname()[1]}"
    card = AgentCard(
        name="echo",
        description="Says what it was told.",
        version="1",
        capabilities=AgentCapabilities(streaming=False),
        supported_interfaces=[AgentInterface(url=place, protocol_binding="JSONRPC", protocol_version="1.0")],
        default_input_modes=["text/plain"],
        default_output_modes=["text/plain"],
        skills=[AgentSkill(id="echo", name="echo", description="Says what it was told.", tags=["echo"])],
    )
    handler = DefaultRequestHandler(agent_executor=Echo(), task_store=InMemoryTaskStore(), agent_card=card)
    app = Starlette(routes=[*create_agent_card_routes(card), *create_jsonrpc_routes(handler, "/")])
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False))
    _running.append(asyncio.create_task(server.serve(sockets=[listener])))
    while not server.started:
        await asyncio.sleep(0.01)
    return place


async def connect(place: str) -> tuple[Any, Any]:
    http = httpx.AsyncClient(timeout=TIMEOUT_S, limits=httpx.Limits(max_connections=64, max_keepalive_connections=64))
    config = ClientConfig(httpx_client=http, streaming=False)
    client = await ClientFactory(config).create_from_url(place)

    async def call(value: bytes) -> bytes:
        # A message's text is JSON: bytes go as base64, as users send them.
        message = new_text_message(base64.b64encode(value).decode(), role=Role.ROLE_USER)
        async for answer in client.send_message(SendMessageRequest(message=message)):
            return base64.b64decode(get_message_text(answer.message))
        raise RuntimeError("no answer")

    return call, client.close


_running: list[asyncio.Task[None]] = []
