"""A client of the plain wire: one connection for each call, as release 1.3 makes them.

Owns the deadline of a call and what its failures are called. Every keyword of `call` belongs to the remote function:
none is ours.
"""

from __future__ import annotations

import asyncio
import copy
import re
import socket
from enum import Enum
from types import TracebackType
from typing import Any, Protocol

from synapse_p2p.config import MIB
from synapse_p2p.exceptions import (
    ConfigError,
    FrameTooLarge,
    InvalidMessageError,
    PeerUnavailable,
    RemoteError,
    Timeout,
)
from synapse_p2p.messages import Code, RPCRequest, RPCResponse
from synapse_p2p.protocol.plain import HEADER_SIZE_BYTES, FrameReader, encode_frame
from synapse_p2p.runtime import Runtime, system_runtime
from synapse_p2p.serializers import BaseRPCSerializer, MessagePackRPCSerializer
from synapse_p2p.transport.base import ByteStream, Transport, format_address
from synapse_p2p.transport.tcp_exchange import ask, dial

LEGACY_SCHEME = "legacy://"
REQUEST_ID_SIZE_BYTES = 16


_TRACEPARENT = re.compile("[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class Keep(Enum):
    """Stands for an option that is not given, where None means something."""

    AS_IT_IS = "as it is"


class Client:
    """Calls the endpoints of one server. It holds no connection between calls, so many tasks may share it."""

    def __init__(
        self,
        address: str = "127.0.0.1",
        port: int = 9999,
        serializer_class: type[BaseRPCSerializer] = MessagePackRPCSerializer,
        max_download_size: int = MIB,
        timeout: float | None = 30,
        *,
        max_upload_size: int = MIB,
        transport: Transport | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        """Sizes are bytes of one plain message. `timeout` is seconds from dial to answer; None waits for ever.

        `legacy://` before the address says what holds for all of this release's clients: the wire is the plain one.
        """
        if timeout is not None and timeout <= 0:
            raise ConfigError(f"timeout is {timeout}; it has to be above 0 seconds, or None")
        self.address = address.removeprefix(LEGACY_SCHEME)
        self.port = port
        self.serializer_class = serializer_class
        self.max_download_size = max_download_size
        self.max_upload_size = max_upload_size
        self.timeout = timeout
        self.idempotent = False
        self.traceparent: str | None = None
        self._transport = transport
        self._runtime = runtime or system_runtime()

    def with_options(
        self,
        *,
        timeout_s: float | Keep | None = Keep.AS_IT_IS,
        idempotent: bool | Keep = Keep.AS_IT_IS,
        traceparent: str | Keep | None = Keep.AS_IT_IS,
    ) -> Client:
        """The same client with other options: `client.with_options(timeout_s=2).call(...)`. What is not given stays.

        A call that is `idempotent` may run twice, so it is tried once more when the connection breaks. `traceparent`
        (W3C Trace Context) goes with calls where the wire has room for it; the plain wire has none. Raises ConfigError.
        """
        other = copy.copy(self)
        if timeout_s is not Keep.AS_IT_IS:
            if timeout_s is not None and timeout_s <= 0:
                raise ConfigError(f"timeout_s is {timeout_s}; it has to be above 0 seconds, or None")
            other.timeout = timeout_s
        if idempotent is not Keep.AS_IT_IS:
            other.idempotent = idempotent
        if traceparent is not Keep.AS_IT_IS:
            if traceparent is not None and not _TRACEPARENT.fullmatch(traceparent):
                raise ConfigError(f"traceparent {traceparent!r:.80} is not version-trace-parent-flags, as W3C has it")
            other.traceparent = traceparent
        return other

    async def call(self, endpoint: str, /, *args: Any, **kwargs: Any) -> Any:
        """What the remote function returns.

        Raises RemoteError when it failed, Timeout, PeerUnavailable when no answer is to be had, ConfigError for
        arguments that cannot travel, InvalidMessageError or FrameTooLarge for an answer that is none. Being cancelled
        closes the connection.
        """
        request_id = self._runtime.token_bytes(REQUEST_ID_SIZE_BYTES).hex()
        request = RPCRequest(endpoint=endpoint, id=request_id, args=list(args), kwargs=kwargs)
        frame = self._frame_of(request)
        line: _Line | None = None
        payload: bytes | None = None
        try:
            async with asyncio.timeout(self.timeout):
                for _ in range(2 if self.idempotent else 1):
                    line = await self._dial()
                    payload = await line.ask(frame)
                    if payload is not None:
                        break
        except PeerUnavailable as error:
            error.may_have_started = line is not None  # a first try of an idempotent call was sent
            raise
        except TimeoutError as error:
            started = "" if line is not None else "; the call was not started"
            raise Timeout(f"{self._name} did not answer {endpoint} within {self.timeout} s{started}") from error
        if payload is None:
            text = f"{self._name} closed the connection without a whole answer"
            raise PeerUnavailable(text, may_have_started=True)
        return self._result_in(payload, request)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Nothing is held between calls, so there is nothing to close."""

    @property
    def _name(self) -> str:
        return format_address(self.address, self.port)

    def _frame_of(self, request: RPCRequest) -> bytes:
        try:
            frame = encode_frame(self.serializer_class.serialize(request))
        except (TypeError, ValueError, OverflowError) as error:
            raise ConfigError(f"{request.endpoint} cannot be called with these arguments: {error}") from error
        size_bytes = len(frame) - HEADER_SIZE_BYTES
        if size_bytes > self.max_upload_size:
            raise ConfigError(
                f"the arguments of {request.endpoint} take {size_bytes} bytes; one call carries at most "
                f"{self.max_upload_size}: send them in pieces, as a stream, or raise max_upload_size at both ends"
            )
        return frame

    async def _dial(self) -> _Line:
        try:
            if self._transport is None:
                return _SocketLine(await dial(self.address, self.port), self.max_download_size)
            receiver = _AnswerReceiver(self.max_download_size)
            return _StreamLine(await self._transport.connect(self.address, self.port, receiver), receiver)
        except (OSError, UnicodeError) as error:
            # UnicodeError: a name that no resolver can even be asked for.
            raise PeerUnavailable(f"{self._name} cannot be reached: {error}") from error

    def _result_in(self, payload: bytes, request: RPCRequest) -> Any:
        response = self.serializer_class.deserialize(payload)
        if not isinstance(response, RPCResponse):
            # A breach of the wire, but callers of 1.3 catch a RuntimeError here.
            raise RemoteError(Code.INTERNAL_ERROR, f"{self._name} returned a non-response message")
        # A server that could not read a request answers it without an id.
        if response.id != request.id and (response.ok or response.id):
            raise InvalidMessageError(f"{self._name} answered another request")
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
