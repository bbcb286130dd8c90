"""One question and its answer over TCP, on a bare socket.

A call of the plain wire dials, writes once, reads once and closes. asyncio's transports are made for connections that
last; for this one they take twice the CPU. Owns the socket; the deadline, and what an answer means, are the caller's.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
import sys
from typing import Any

from synapse_p2p.exceptions import FrameTooLarge
from synapse_p2p.protocol.plain import FrameReader

READ_SIZE_BYTES = 64 * 1024

_UNDER_WAY = frozenset({errno.EINPROGRESS, errno.EALREADY, errno.EWOULDBLOCK, errno.EINTR})
_RESET_ON_CLOSE = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)


async def dial(host: str, port: int) -> socket.socket:
    """A socket that is connected to the first address of a host that answers. Raises OSError, for a bad name too."""
    loop = asyncio.get_running_loop()
    family = _family_of_literal(host)
    if family is not None:
        return await _connected(family, (host, port))
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        # A name with an empty or too long label, of which no resolver is even asked.
        raise OSError(errno.EINVAL, f"{host!r:.80} is not the name of a host") from error
    failure = OSError(errno.EADDRNOTAVAIL, f"{host!r:.80} has no address")
    for family, _, _, _, address in found:
        try:
            return await _connected(family, address)
        except OSError as error:
            failure = error
    raise failure


async def ask(connection: socket.socket, frame: bytes, reader: FrameReader) -> bytes | None:
    """Send a frame and return the payload of the one that comes back; None if the peer closed before.

    Raises FrameTooLarge. The socket is closed afterwards, however it ends; cancelled, it is reset, so that the peer
    learns that nobody waits.
    """
    try:
        # A peer that refuses early closes on what is still to come: its answer may be here all the same.
        with contextlib.suppress(OSError):
            await _send(connection, frame)
        return await _answer(connection, reader)
    except BaseException:
        # A mere end would look like that of a caller who has sent all and waits.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        raise
    finally:
        connection.close()


async def _connected(family: int, address: Any) -> socket.socket:
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        # Or the last piece of a long frame waits for the peer to confirm those before.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        error = connection.connect_ex(address)
        if error in _UNDER_WAY:
            error = connection.connect_ex(address)  # on one machine it has come about meanwhile
        if error in _UNDER_WAY:
            await asyncio.get_running_loop().sock_connect(connection, address)
        elif error not in (0, errno.EISCONN):
            raise OSError(error, os.strerror(error))
    except BaseException:
        connection.close()
        raise
    return connection


async def _send(connection: socket.socket, frame: bytes) -> None:
    try:
        sent_bytes = connection.send(frame)
    except (BlockingIOError, InterruptedError):
        sent_bytes = 0
    if sent_bytes < len(frame):
        await asyncio.get_running_loop().sock_sendall(connection, memoryview(frame)[sent_bytes:])


async def _answer(connection: socket.socket, reader: FrameReader) -> bytes | None:
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[bytes | None] = loop.create_future()

    def read() -> None:
        if answer.done():
            return
        try:
            data = connection.recv(READ_SIZE_BYTES)
            payload = reader.receive_data(data)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            answer.set_result(None)
        except FrameTooLarge as error:
            answer.set_exception(error)
        else:
            if payload is not None or not data:
                answer.set_result(payload)

    descriptor = connection.fileno()
    try:
        loop.add_reader(descriptor, read)
    except NotImplementedError:
        return await _answer_in_turns(connection, reader)
    try:
        return await answer
    finally:
        loop.remove_reader(descriptor)


async def _answer_in_turns(connection: socket.socket, reader: FrameReader) -> bytes | None:
    """The same on the loop of Windows, which has no readers."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):
        while data := await loop.sock_recv(connection, READ_SIZE_BYTES):
            if (payload := reader.receive_data(data)) is not None:
                return payload
    return None


def _family_of_literal(host: str) -> socket.AddressFamily | None:
    """The family of an IP literal; None for anything else, a literal with a zone among it."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError, UnicodeError, ValueError):
            socket.inet_pton(family, host)
            return family
    return None
