"""A node whose port leads nowhere, over encrypted TCP on loopback: it finds out, and it finds out when that is over."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest

from dht import DHTConfig, Swarm, SwarmConfig
from dht.results import SwarmMode

CONFIG = SwarmConfig(
    dht=DHTConfig(liveness_s=0.3, prove_s=1.0, prove_pause_s=1.0, check_dial_pause_s=1.0), watch_address_s=0.3
)


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


async def until_mode(swarm: Swarm, mode: SwarmMode) -> None:
    for _ in range(600):
        if swarm.status().mode is mode:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"it is no {mode} after a minute")


async def test_a_port_that_is_not_forwarded_makes_a_client_and_once_it_is_a_node(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("dht.admission.PROVE_PAUSE_S", 1.0)
    outside = closed_port()
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(Swarm(listen="127.0.0.1:0", config=CONFIG))
        seed = first.status().listening[0]
        members = [
            await stack.enter_async_context(Swarm(bootstrap=[seed], listen="127.0.0.1:0", config=CONFIG))
            for _ in range(4)
        ]
        inside = await stack.enter_async_context(
            Swarm(bootstrap=[seed], listen="127.0.0.1:0", advertise=f"127.0.0.1:{outside}", config=CONFIG)
        )

        await until_mode(inside, SwarmMode.CLIENT)
        assert [each.status().contacts for each in (first, *members)] == [4] * 5, "nobody knows it"
        assert all(each.status().mode is SwarmMode.NODE for each in (first, *members))
        assert [record for record in caplog.records if f"nobody can dial 127.0.0.1:{outside}" in record.getMessage()]

        async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            host, _, port = inside.status().listening[0].rpartition(":")
            other_reader, other_writer = await asyncio.open_connection(host, int(port))
            await asyncio.gather(_copy(reader, other_writer), _copy(other_reader, writer))

        router = await asyncio.start_server(forward, "127.0.0.1", outside)
        try:
            await until_mode(inside, SwarmMode.NODE)
        finally:
            router.close()
            await inside.stop(grace=0)
            await asyncio.sleep(0.1)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()
