"""What long messages are made of stays in the process; looked at in new ones, where nothing was freed before."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
from synapse_p2p.transport.large_blocks import keep_large_blocks

def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def messages(count: int) -> None:
    for _ in range(count):
        blocks = [bytes(2**20 + place) + b"x" for place in range(3)]

for prepare in (lambda: None, keep_large_blocks):
    prepare()
    messages(5)
    before = faults()
    messages(20)
    print(faults() - before)
"""

KEPT = """
import asyncio
from synapse_p2p import Client, Server
from synapse_p2p.transport.large_blocks import keep_large_blocks

async def main() -> None:
    server = Server(port=0)

    @server.endpoint()
    async def echo(value: bytes) -> bytes:
        return value

    await server.start()
    async with Client(port=server.port) as client:
        for size in (100, 10_000, 2**20):
            assert len(await client.call("echo", bytes(size))) == size
            print(keep_large_blocks.cache_info().currsize)
    await server.stop()

asyncio.run(main())
"""


def printed(program: str) -> list[int]:
    """The numbers that it prints."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    return [int(line) for line in done.stdout.split()]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc's malloc that gives blocks back so soon")
def test_blocks_of_a_long_message_are_not_mapped_anew_for_the_next():
    usual, kept = printed(FAULTS)

    assert usual > 20 * 256  # a MiB of them, for each message
    assert kept < 20


def test_a_process_keeps_them_from_its_first_long_message_on():
    assert printed(KEPT) == [0, 0, 1]
