"""One call on the plain wire: dial, ask, read the answer, close, as release 1.3 does it.

Owns the deadline of such a call, what the bytes of an answer mean, and what its failures are called.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any, Protocol

from synapse_p2p.exceptions import (
    ConfigError,
    FrameTooLarge,
    InvalidAnswerError,
    InvalidMessageError,
    PeerUnavailable,
    RemoteError,
    Timeout,
)
from synapse_p2p.messages import Code, RPCRequest, RPCResponse
from synapse_p2p.protocol.plain import HEADER_SIZE_BYTES, FrameReader, encode_frame
from synapse_p2p.serializers import BaseRPCSerializer
from synapse_p2p.transport.base import ByteStream, Transport, format_address
from synapse_p2p.transport.reasons import why_unreachable
from synapse_p2p.transport.tcp_exchange import ask, dial


class PlainCaller:
    """Calls one server, on a new connection each. Sizes are bytes of one message; without a transport it is TCP."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        serializer_class: type[BaseRPCSerializer],
        max_upload_size: int,
        max_download_size: int,
        transport: Transport | None = None,
    ) -> None:
        self._host = host
        self._port = port
        self._name = format_address(host, port)
        self._serializer_class = serializer_class
        self._max_upload_size = max_upload_size
        self._max_download_size = max_download_size
        self._transport = transport

    async def call(self, request: RPCRequest, *, timeout_s: float | None, idempotent: bool = False) -> Any:
        """What the server answers within `timeout_s`; asked once more when `idempotent` and the connection breaks.

        Raises RemoteError, Timeout, PeerUnavailable, InvalidMessageError, FrameTooLarge; ConfigError for arguments that
        cannot travel, or are too many. Being cancelled closes the connection.
        """
        frame = self._frame_of(request)
        line: _Line | None = None
        payload = None
        try:
            async with asyncio.timeout(timeout_s):
                for _ in range(2 if idempotent else 1):
                    line = await self._dial()
                    payload = await line.ask(frame)
                    if payload is not None:
                        break
        except PeerUnavailable as error:
            error.may_have_started = line is not None  # a first try of an idempotent call was sent
            raise
        except TimeoutError as error:
            started = "" if line is not None else "; the call was not started"
            text = f"{self._name} did not answer {request.endpoint} in the time given{started}"
            raise Timeout(text) from error
        if payload is None:
            text = f"{self._name} closed the connection without a whole answer"
            raise PeerUnavailable(text, may_have_started=True)
        return self._result_in(payload, request)

    def _frame_of(self, request: RPCRequest) -> bytes:
        try:
            frame = encode_frame(self._serializer_class.serialize(request))
        except (TypeError, ValueError, OverflowError) as error:
            raise ConfigError(f"{request.endpoint} cannot be called with these arguments: {error}") from error
        size_bytes = len(frame) - HEADER_SIZE_BYTES
        if size_bytes > self._max_upload_size:
            raise ConfigError(
                f"the arguments of {request.endpoint} take {size_bytes} bytes; one call carries at most "
                f"{self._max_upload_size}: send them in pieces, or raise max_upload_size at both ends"
            )
        return frame

    async def _dial(self) -> _Line:
        try:
            if self._transport is None:
                return _SocketLine(await dial(self._host, self._port), self._max_download_size)
            receiver = _AnswerReceiver(self._max_download_size)
            return _StreamLine(await self._transport.connect(self._host, self._port, receiver), receiver)
        except (OSError, UnicodeError) as error:
            # UnicodeError: a name that no resolver can even be asked for.
            raise PeerUnavailable(f"{self._name} cannot be reached: {why_unreachable(error)}") from error

    def _result_in(self, payload: bytes, request: RPCRequest) -> Any:
        try:
            response = self._serializer_class.deserialize(payload)
        except InvalidMessageError as error:
            raise InvalidAnswerError(f"{self._name}: {error}") from error
        if not isinstance(response, RPCResponse):
            # A breach of the wire, but callers of 1.3 catch a RuntimeError here.
            raise RemoteError(Code.INTERNAL_ERROR, f"{self._name} returned a non-response message")
        # A server that could not read a request answers it without an id.
        if response.id != request.id and (response.ok or response.id):
            raise InvalidAnswerError(f"{self._name} answered another request")
        if response.ok:
            return response.result
        if response.error is None:
            raise RemoteError(Code.INTERNAL_ERROR, "RPC call failed")
        raise RemoteError(Code.read(response.error.code), response.error.message)


class _Line(Protocol):
    """A connection that carries one call. It is closed when `ask` returns or raises."""

    async def ask(self, frame: bytes) -> bytes | None:
        """The payload that comes back for a frame; None if the peer closed before. Raises FrameTooLarge."""
        ...


class _SocketLine:
    """TCP without a layer: what a client uses unless it is given a transport."""

    def __init__(self, connection: socket.socket, max_bytes: int) -> None:
        self._connection = connection
        self._max_bytes = max_bytes

    async def ask(self, frame: bytes) -> bytes | None:
        return await ask(self._connection, frame, FrameReader(self._max_bytes))


class _StreamLine:
    """A stream of any transport."""

    def __init__(self, stream: ByteStream, receiver: _AnswerReceiver) -> None:
        self._stream = stream
        self._receiver = receiver

    async def ask(self, frame: bytes) -> bytes | None:
        try:
            self._stream.write(frame)
            return await self._receiver.payload
        finally:
            # Nothing that matters is unsent: either the answer is here, or nobody waits for it any more.
            self._stream.abort()
            await self._receiver.is_lost


class _AnswerReceiver:
    """A Receiver that gathers one answer. `payload` ends with it, or with None when there is none."""

    def __init__(self, max_bytes: int) -> None:
        loop = asyncio.get_running_loop()
        self.payload: asyncio.Future[bytes | None] = loop.create_future()
        self.is_lost: asyncio.Future[None] = loop.create_future()
        self._reader = FrameReader(max_bytes)

    def connection_made(self, stream: ByteStream) -> None:
        """Whoever connects is handed the stream as well."""

    def data_received(self, data: bytes) -> None:
        if self.payload.done():
            return
        try:
            payload = self._reader.receive_data(data)
        except FrameTooLarge as error:
            self.payload.set_exception(error)
            return
        if payload is not None:
            self.payload.set_result(payload)

    def eof_received(self) -> bool | None:
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.payload.done():
            self.payload.set_result(None)
        if not self.is_lost.done():
            self.is_lost.set_result(None)

    def pause_writing(self) -> None:
        """One request is written and nothing follows it: there is nothing to hold back."""

    def resume_writing(self) -> None:
        """See `pause_writing`."""
