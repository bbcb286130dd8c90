"""A frame of the plain wire: four bytes of length, big-endian, then that many bytes.

The functions of release 1.3, for programs that speak the plain wire over asyncio streams themselves. The
server and the client cut frames in `protocol/plain.py`.
"""

from __future__ import annotations

import asyncio

from synapse_p2p.exceptions import InvalidMessageError
from synapse_p2p.protocol.plain import HEADER_SIZE_BYTES, encode_frame

__all__ = ["encode_frame", "read_frame", "write_frame"]


async def read_frame(reader: asyncio.StreamReader, max_size: int) -> bytes:
    """The payload of the next frame. Raises InvalidMessageError if it is over `max_size` or cut short."""
    try:
        size_bytes = int.from_bytes(await reader.readexactly(HEADER_SIZE_BYTES), "big")
        if size_bytes > max_size:
            # Not FrameTooLarge: callers of 1.3 catch this class here.
            raise InvalidMessageError(f"frame too large: {size_bytes} > {max_size}")
        return await reader.readexactly(size_bytes)
    except asyncio.IncompleteReadError as error:
        raise InvalidMessageError("incomplete frame") from error


async def write_frame(writer: asyncio.StreamWriter, payload: bytes) -> None:
    """Send one frame and wait while the transport has too much queued."""
    writer.write(encode_frame(payload))
    await writer.drain()
