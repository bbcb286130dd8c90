"""Pools over TCP, with real servers around them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import time
from typing import Any

import pytest

from synapse_p2p.config import ServerConfig, SessionConfig
from synapse_p2p.exceptions import PeerUnavailable
from synapse_p2p.identity import Identity
from synapse_p2p.server import Server
from synapse_p2p.transport.base import parse_address
from tests.transport.pool_nodes import (
    Peer,
    echo,
)

pytestmark = pytest.mark.usefixtures("nothing_is_left")


def make_server(number: int, port: int = 0) -> Server:
    server = Server(
        port=port,
        identity=Identity.from_seed(bytes([number]) * 32),
        config=ServerConfig(session=SessionConfig(goodbye_timeout_s=0.5)),
    )
    server.endpoint(name="echo")(echo)
    return server


def peer_of(server: Server) -> Peer:
    return Peer(server.identity.node_id, server.listening_addresses)


async def ask(caller: Server, called: Server, value: Any) -> Any:
    return await caller.sessions.call(peer_of(called), "echo", {"value": value}, timeout_s=10)


async def test_servers_that_dial_each_other_at_once_lose_no_call_over_tcp():
    for _ in range(25):
        servers = [make_server(1), make_server(2)]
        for server in servers:
            await server.start()
        pairs = [(*pair, value) for value in range(10) for pair in itertools.permutations(servers)]
        answers = await asyncio.gather(*(ask(*pair) for pair in pairs))
        later = await asyncio.gather(*(ask(*pair) for pair in pairs))
        await asyncio.gather(*(server.stop() for server in servers))

        assert answers == later == [value for _, _, value in pairs]
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_server_that_restarts_at_its_port_is_reached_again_over_tcp():
    caller, called = make_server(1), make_server(2)
    await called.start()
    answers = [await ask(caller, called, 1)]
    await called.stop(grace=0)
    again = make_server(2, called.port)
    await again.start()
    answers.append(await ask(caller, again, 2))
    await asyncio.gather(caller.stop(), again.stop())

    assert answers == [1, 2]
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_hundred_clients_and_their_strays_leave_nothing_over_tcp():
    server = make_server(1)
    await server.start()
    clients = [make_server(number) for number in range(2, 42)]
    strays = [await asyncio.open_connection(*parse_address(server.listening_addresses[0])) for _ in range(20)]
    for number, (_, writer) in enumerate(strays):
        writer.write(b"\xa5SYNN\x01\x01\x00garbage"[:number])
    answers = await asyncio.gather(*(ask(client, server, number) for number, client in enumerate(clients)))
    await server.stop(grace=0)
    for reader, writer in strays:
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    await asyncio.gather(*(client.stop() for client in clients))

    assert answers == list(range(40))
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_stop_with_a_hundred_silent_peers_and_a_stubborn_handler_is_over_in_time(
    caplog: pytest.LogCaptureFixture,
):
    grace_s, is_released, began = 0.3, asyncio.Event(), asyncio.Event()

    async def stubborn() -> None:
        began.set()
        while not is_released.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await is_released.wait()

    server, client = make_server(1), make_server(2)
    server.endpoint(name="stubborn")(stubborn)
    await server.start()
    silent = [socket.create_connection(parse_address(server.listening_addresses[0])) for _ in range(100)]
    for number, peer in enumerate(silent):
        peer.sendall(b"\xa5SYNN\x01\x01"[: number % 8])
    call = asyncio.create_task(client.sessions.call(peer_of(server), "stubborn", {}, timeout_s=60))
    await began.wait()

    started_at = time.monotonic()
    await server.stop(grace=grace_s)
    stopped_after_s = time.monotonic() - started_at
    with pytest.raises(PeerUnavailable) as raised:
        await call
    is_released.set()
    for peer in silent:
        peer.close()
    await client.stop()
    if left := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(left, timeout=5)

    assert raised.value.may_have_started
    assert stopped_after_s < grace_s + 0.5 + 0.5 + 1.0  # for the handler, for the goodbyes, for a machine that is busy
    assert "handlers ignore" in caplog.text
    assert asyncio.all_tasks() == {asyncio.current_task()}
