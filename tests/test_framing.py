from __future__ import annotations

import asyncio
import struct

import pytest

from synapse_p2p.exceptions import InvalidMessageError
from synapse_p2p.framing import encode_frame, read_frame, write_frame


def reader_of(data: bytes) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return reader


def test_a_frame_is_its_payload_behind_four_bytes_of_length():
    assert encode_frame(b"hello") == struct.pack("!I", 5) + b"hello"
    assert encode_frame(b"") == bytes(4)


async def test_frames_are_read_one_after_the_other():
    reader = reader_of(encode_frame(b"first") + encode_frame(b""))

    assert await read_frame(reader, 5) == b"first"
    assert await read_frame(reader, 5) == b""


async def test_a_length_over_the_limit_is_refused_before_its_body_comes():
    reader = asyncio.StreamReader()
    reader.feed_data(struct.pack("!I", 6))

    with pytest.raises(InvalidMessageError, match="frame too large: 6 > 5"):
        await read_frame(reader, max_size=5)


@pytest.mark.parametrize("data", [b"", b"\x00\x00", struct.pack("!I", 10) + b"short"])
async def test_a_frame_that_is_cut_short_is_refused(data: bytes):
    with pytest.raises(InvalidMessageError, match="incomplete frame"):
        await read_frame(reader_of(data), max_size=20)


async def test_a_written_frame_is_read_at_the_other_end():
    received: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        received.set_result(await read_frame(reader, 100))
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with server:
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        await write_frame(writer, b"over the wire")

        assert await received == b"over the wire"

        writer.close()
        await writer.wait_closed()
