"""A client: calls of one server's functions, over one encrypted session that lasts.

Owns the options of a call, and which wire it takes: the plain one of releases 1 and 2 only where a server proves that
it speaks nothing else, and never where that would be a step down. Every keyword of `call` belongs to the remote
function.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncGenerator, Mapping
from enum import Enum
from types import TracebackType
from typing import Any

from synapse_p2p.address import PeerAddress
from synapse_p2p.config import MIB, SessionConfig
from synapse_p2p.exceptions import ConfigError, HandshakeFailed, PeerUnavailable, Timeout
from synapse_p2p.identity import SEED_SIZE_BYTES, Identity, NodeID, checked_network_key, checked_node_id
from synapse_p2p.messages import RPCRequest
from synapse_p2p.metrics import Metrics
from synapse_p2p.protocol.session import MAX_DEADLINE_MS
from synapse_p2p.runtime import Runtime, system_runtime
from synapse_p2p.serializers import BaseRPCSerializer, MessagePackRPCSerializer
from synapse_p2p.traceparent import checked_traceparent
from synapse_p2p.transport.asked_stream import AskedStream
from synapse_p2p.transport.base import Transport, format_address, is_loopback
from synapse_p2p.transport.dialing import SessionDialer
from synapse_p2p.transport.held_session import HeldSession, ServesNothing
from synapse_p2p.transport.plain_call import PlainCaller
from synapse_p2p.transport.sending import ITEMS_A_TURN
from synapse_p2p.transport.spoken import spoke_encrypted
from synapse_p2p.transport.tcp import TcpTransport
from synapse_p2p.uploads import Uploads, take_uploads
from synapse_p2p.version import VERSION

LEGACY_SCHEME = "legacy://"
DEFAULT_PORT = 9999
IDLE_S = 30.0  # a session on which nothing happens this long is closed
MAX_TIMEOUT_S = MAX_DEADLINE_MS / 1000
PLAIN_MEMORY_S = 300.0  # how long a server that proved to speak the plain wire alone is not asked anew
REQUEST_ID_SIZE_BYTES = 16


class Keep(Enum):
    """Stands for an option that is not given, where None means something."""

    AS_IT_IS = "as it is"


class Client:
    """Calls the endpoints of one server. Many tasks may share it: their calls travel on one session.

    The session is opened by the first call, and closed after 30 s without one, by `close()`, the end of `async with`,
    and when `asyncio.run` or `asyncio.Runner` ends its loop. A loop that is closed without them is its owner's to tidy
    up. The session belongs to the loop that runs: used in another one, the client starts afresh there.
    """

    def __init__(
        self,
        address: str = "127.0.0.1",
        port: int = DEFAULT_PORT,
        serializer_class: type[BaseRPCSerializer] = MessagePackRPCSerializer,
        max_download_size: int = MIB,
        timeout: float | None = 30,
        *,
        identity: Identity | None = None,
        network: str = "",
        network_key: bytes | None = None,
        expect: NodeID | str | None = None,
        max_upload_size: int = MIB,
        transport: Transport | None = None,
        runtime: Runtime | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """`address` is a host, `host:port` or `id@host:port`; `timeout` is seconds from dial to answer, None no limit.

        With an id in the address or in `expect` (32 bytes or 64 hex digits) nobody else's answer is taken. `identity`
        is who we are to the server, somebody new by default; `network` and `network_key` have to be those of the
        server.
        Sizes are bytes of one plain message; a session takes 4 MiB, or as much as these say where that is more. The
        plain wire is spoken where the server proves that it speaks nothing else, and is on this machine or written
        `legacy://host`; a serializer of your own travels on no other. What happens over sessions is counted in
        `metrics`, such as those of a server of the same program. Raises ConfigError.
        """
        if timeout is not None and not 0 < timeout <= MAX_TIMEOUT_S:
            raise ConfigError(f"timeout is {timeout}; it has to be above 0 seconds and at most ten years, or None")
        self.address, self.port, named_id = _place_of(address, port)
        self.serializer_class = serializer_class
        self.max_download_size = max_download_size
        self.max_upload_size = max_upload_size
        self.timeout = timeout
        self.expect = _expected_id(expect, named_id)
        self.network = network
        self.network_key = checked_network_key(network_key)
        self.metrics = metrics or Metrics()
        self.idempotent = False
        self.traceparent: str | None = None
        self._runtime = runtime or system_runtime()
        self._is_legacy_allowed = address.startswith(LEGACY_SCHEME)
        self._speaks_plain_alone = serializer_class is not MessagePackRPCSerializer
        self._check_settings()
        self._session_config = SessionConfig().with_messages_of(max(max_upload_size, max_download_size))
        self._session = self._make_session(identity, transport)
        self._plain = PlainCaller(
            self.address,
            self.port,
            serializer_class=serializer_class,
            max_upload_size=max_upload_size,
            max_download_size=max_download_size,
            transport=transport,
        )
        self._memory = _Memory()

    def with_options(
        self,
        *,
        timeout_s: float | Keep | None = Keep.AS_IT_IS,
        idempotent: bool | Keep = Keep.AS_IT_IS,
        traceparent: str | Keep | None = Keep.AS_IT_IS,
    ) -> Client:
        """The same client with other options: `client.with_options(timeout_s=2).call(...)`. What is not given stays.

        Both use one session. A call that is `idempotent` may run twice, so it is tried once more when the connection
        breaks. `traceparent` (W3C Trace Context) goes with calls on a session as it stands; the plain wire has no room
        for it. Without one calls carry that of the handler, or the `traced` block, in which they are made. Raises
        ConfigError.
        """
        other = copy.copy(self)
        if timeout_s is not Keep.AS_IT_IS:
            if timeout_s is not None and not 0 < timeout_s <= MAX_TIMEOUT_S:
                text = "it has to be above 0 seconds and at most ten years, or None"
                raise ConfigError(f"timeout_s is {timeout_s}; {text}")
            other.timeout = timeout_s
        if idempotent is not Keep.AS_IT_IS:
            other.idempotent = idempotent
        if traceparent is not Keep.AS_IT_IS:
            other.traceparent = None if traceparent is None else checked_traceparent(traceparent)
        return other

    async def call(self, endpoint: str, /, *args: Any, **kwargs: Any) -> Any:
        """What the remote function returns.

        Raises RemoteError when it failed, Timeout, PeerUnavailable when no answer is to be had (`may_have_started` says
        whether the function may have run), HandshakeFailed when the server is not whom we want, and ConfigError for
        arguments that cannot travel. Being cancelled makes the server stop the function. Cost: a round trip; the first
        call makes two more and two signatures.

        Arguments that are asynchronous iterables are sent item by item while the function runs, to parameters annotated
        `AsyncIterator[T]`. What they raise ends the call and is raised here; once the call has ended they are closed.
        """
        positional = list(args)
        uploads = take_uploads(positional, kwargs)
        deadline = None if self.timeout is None else self._runtime.now() + self.timeout
        if not self._speaks_plain_alone and not self._is_known_to_be_plain():
            try:
                if uploads:
                    return await self._session.call_uploading(
                        endpoint, positional, kwargs, uploads=uploads, deadline=deadline, options=self._options()
                    )
                return await self._session.call(
                    endpoint,
                    positional,
                    kwargs,
                    deadline=deadline,
                    idempotent=self.idempotent,
                    options=self._options(),
                )
            except HandshakeFailed as error:
                self._take_plain_or_raise(error)
        if uploads:
            raise self._no_streams()
        return await self._call_plain(endpoint, positional, kwargs, deadline)

    def stream(self, endpoint: str, /, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        """What the remote asynchronous generator yields: `async for item in client.stream("tail", path): ...`.

        Leaving the loop closes the generator at the server, at once within `contextlib.aclosing(...)`, else when the
        garbage collector comes by. A reader that is slow makes the generator wait: at most 1 MiB of items is on its
        way. `timeout` is the longest wait for an item, the first included, and None waits while the session lives.

        Raises what `call` raises, after the items that came before it; Timeout when no item came in time, and
        HandshakeFailed (`plain`) or ConfigError where there is but the plain wire, which carries no streams. Nothing
        happens before the first item is asked for.
        """
        return self._stream(endpoint, list(args), kwargs)

    async def _stream(self, endpoint: str, args: list[Any], kwargs: dict[str, Any]) -> AsyncGenerator[Any, None]:
        uploads = take_uploads(args, kwargs)
        may_repeat = not uploads  # of which some may be gone
        while True:
            try:
                with await self._open_stream(endpoint, args, kwargs, uploads) as stream:
                    while await stream.wait(self.timeout):
                        for _ in range(ITEMS_A_TURN):
                            if not stream.has_item():
                                break
                            may_repeat = False
                            yield stream.take()
                        else:
                            await asyncio.sleep(0)  # what is here already must not keep the loop from all else
                    return
            except PeerUnavailable as error:
                if error.may_have_started or not may_repeat:
                    raise
                may_repeat = False

    async def _open_stream(
        self, endpoint: str, args: list[Any], kwargs: dict[str, Any], uploads: Uploads
    ) -> AskedStream:
        deadline = None if self.timeout is None else self._runtime.now() + self.timeout
        if not self._speaks_plain_alone and not self._is_known_to_be_plain():
            try:
                return await self._session.open_stream(
                    endpoint, args, kwargs, uploads=uploads, deadline=deadline, options=self._options()
                )
            except HandshakeFailed as error:
                self._take_plain_or_raise(error)
        raise self._no_streams()

    def _options(self) -> Mapping[str, Any] | None:
        return None if self.traceparent is None else {"traceparent": self.traceparent}

    def _no_streams(self) -> Exception:
        if self._speaks_plain_alone:
            return ConfigError(
                "a serializer_class of your own travels on the plain wire, which carries no streams: leave it out, or "
                "send whole lists with client.call"
            )
        return HandshakeFailed(
            "plain",
            f"{self._name} speaks only the plain wire of releases 1 and 2, which carries no streams: upgrade it to "
            "release 3, or send whole lists with client.call",
        )

    async def close(self) -> None:
        """Close the session of the running loop; calls in flight end as unavailable. The next call opens another."""
        await self._session.close()

    @property
    def peer_id(self) -> NodeID | None:
        """Who answered last: the id that the server proved; None before the first call, and on the plain wire."""
        return self._session.peer_id

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def _name(self) -> str:
        return format_address(self.address, self.port)

    def _make_session(self, identity: Identity | None, transport: Transport | None) -> HeldSession:
        dialer = SessionDialer(
            identity or Identity.from_seed(self._runtime.token_bytes(SEED_SIZE_BYTES)),
            network=self.network,
            network_key=self.network_key,
            server=ServesNothing(),
            transport=transport or TcpTransport(),
            runtime=self._runtime,
            agent=f"synapse-p2p/{VERSION}",
            dial_timeout_s=None,
            session_config=self._session_config,
            metrics=self.metrics,
        )
        return HeldSession(
            dialer, self._name, self.expect, runtime=self._runtime, session_config=self._session_config, idle_s=IDLE_S
        )

    def _is_known_to_be_plain(self) -> bool:
        until = self._memory.plain_until
        # Another client may have met it encrypted since.
        return until is not None and self._runtime.now() < until and not spoke_encrypted(self._name)

    async def _call_plain(
        self, endpoint: str, args: list[Any], kwargs: Mapping[str, Any], deadline: float | None
    ) -> Any:
        request_id = self._runtime.token_bytes(REQUEST_ID_SIZE_BYTES).hex()
        request = RPCRequest(endpoint=endpoint, id=request_id, args=args, kwargs=dict(kwargs))
        left_s = None if deadline is None else deadline - self._runtime.now()
        try:
            return await self._plain.call(request, timeout_s=left_s, idempotent=self.idempotent)
        except PeerUnavailable:
            # It is away, so it may come back as another release: the next call asks.
            self._memory.plain_until = None
            raise

    def _take_plain_or_raise(self, error: HandshakeFailed) -> None:
        """Return where the next call, and this one, may take the plain wire; else raise what the user should know."""
        if error.refusal == "busy":
            raise PeerUnavailable(str(error)) from error
        if error.reason == "timeout":
            raise Timeout(str(error)) from error
        if error.reason != "plain":
            raise error
        if reason := self._why_not_plain():
            text = f"{self._name} speaks only the plain wire of releases 1 and 2, {reason}"
            raise HandshakeFailed("plain", text) from error
        self._memory.plain_until = self._runtime.now() + PLAIN_MEMORY_S

    def _why_not_plain(self) -> str:
        """The end of a sentence; empty where a server that speaks nothing else may be called in plain."""
        if self.expect is not None:
            return f"which proves no id, and nobody but {self.expect.hex()} is to answer: upgrade it to release 3"
        if self.network_key is not None:
            return "which knows no network keys: upgrade it to release 3"
        if not is_loopback(self.address) and not self._is_legacy_allowed:
            return (
                "which everybody on the way can read and change, so it is spoken on this machine alone: upgrade it to "
                f"release 3, or write Client({LEGACY_SCHEME + self.address!r}, {self.port}) if you accept that"
            )
        return ""

    def _check_settings(self) -> None:
        has_secrets = self.expect is not None or self.network_key is not None
        if self._is_legacy_allowed and has_secrets:
            raise ConfigError(
                f"{LEGACY_SCHEME} is for servers of releases 1 and 2, which prove no id and know no network keys: "
                "leave out either it, or the id and the key"
            )
        if not self._speaks_plain_alone:
            return
        if has_secrets:
            raise ConfigError("a serializer_class of your own travels on the plain wire, which proves no id and no key")
        if not is_loopback(self.address) and not self._is_legacy_allowed:
            raise ConfigError(
                "a serializer_class of your own travels on the plain wire alone, which everybody on the way can read: "
                f"write Client({LEGACY_SCHEME + self.address!r}, {self.port}, ...) if you accept that"
            )


class _Memory:
    """What a client and those made of it with other options know of their server."""

    plain_until: float | None = None  # on the runtime's clock: until then it is taken to speak the plain wire alone


def _place_of(address: str, port: int) -> tuple[str, int, NodeID | None]:
    """Host, port, and the id where one is named. A port in the address wins over the default one."""
    text = address.removeprefix(LEGACY_SCHEME)
    is_host = "@" not in text and "/" not in text and text.count(":") != 1 and not text.startswith("[")
    if is_host:
        return text, port, None  # a bare IPv6 host is one too
    place = PeerAddress.parse(text)
    if port not in (DEFAULT_PORT, place.port):
        raise ConfigError(f"address {address!r} names port {place.port}, and port is {port}: leave one out")
    return place.host, place.port, place.id


def _expected_id(expect: NodeID | str | None, named_id: NodeID | None) -> NodeID | None:
    expected_id = None if expect is None else checked_node_id(expect, named="expect")
    if named_id is not None and expected_id not in (None, named_id):
        raise ConfigError("the address names one id and expect another: leave one out")
    return expected_id or named_id
