"""A server: functions that others can call, on one port.

Owns the life of the listener, of the calls that come in through it and of the periodic functions. What is offered is in
`endpoints.py`; one connection is led in `transport/`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from enum import StrEnum
from typing import Any, Literal, TypeVar

from synapse_p2p.background import BackgroundTaskHandler, TaskScope
from synapse_p2p.config import MIB, ServerConfig
from synapse_p2p.context import CallContext
from synapse_p2p.endpoints import EndpointDirectory, EndpointMetadata, MountedHandler
from synapse_p2p.exceptions import ConfigError, RemoteError
from synapse_p2p.identity import SEED_SIZE_BYTES, Identity, network_id_of
from synapse_p2p.messages import Answer, Code, Refusal, RPCRequest
from synapse_p2p.protocol.plain import PlainExchange, PlainLimits, encode_frame, plain_response
from synapse_p2p.protocol.wire import Call
from synapse_p2p.runtime import Runtime, system_runtime
from synapse_p2p.serializers import BaseRPCSerializer, MessagePackRPCSerializer
from synapse_p2p.transport.base import ByteStream, Listener, Transport, format_address, is_loopback, parse_address
from synapse_p2p.transport.plain_connection import SESSION_FIRST_BYTE, PlainConnections, serve_streams
from synapse_p2p.transport.pool import SessionPool
from synapse_p2p.transport.tcp import TcpTransport
from synapse_p2p.types import BackgroundTask
from synapse_p2p.version import installed_version

logger = logging.getLogger(__name__)

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

STOP_GRACE_S = 0.5  # for calls that run; with the time to end them `stop` stays well under two seconds
WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 - compared with, never bound here
RUN_GRACE_S = 5.0  # the same when a signal ends `run`


class PlainPolicy(StrEnum):
    """From where plain calls are served: they are neither secret nor is it known who makes them."""

    LOOPBACK = "loopback"
    ANYWHERE = "anywhere"
    OFF = "off"


class Server:
    """Serves its endpoints to plain callers and over encrypted sessions, on one port.

    Invariant: `_server` is set exactly while the port is open.
    """

    def __init__(
        self,
        address: str = "127.0.0.1",
        port: int = 9999,
        serializer_class: type[BaseRPCSerializer] = MessagePackRPCSerializer,
        max_upload_size: int = MIB,
        *,
        identity: Identity | None = None,
        network: str = "",
        plain: Literal["loopback", "anywhere", "off"] = "loopback",
        handler_threads: int | None = None,
        expose_errors: bool = False,
        transport: Transport | None = None,
        runtime: Runtime | None = None,
        config: ServerConfig | None = None,
    ) -> None:
        """`max_upload_size` is bytes of one plain request. `handler_threads` is that of `config` unless it is given.

        `expose_errors` sends callers the text of exceptions: a help while developing, a leak afterwards.
        """
        self.address = address
        self.port = port
        self.serializer_class = serializer_class
        self.max_upload_size = _checked_upload_size(max_upload_size)
        self.network = network
        self.plain = _checked_policy(plain)
        self.config = config or ServerConfig()
        self.runtime = runtime or system_runtime()
        self.identity = identity or Identity.from_seed(self.runtime.token_bytes(SEED_SIZE_BYTES))
        self.endpoints = EndpointDirectory(
            token_bytes=self.runtime.token_bytes,
            handler_threads=self.config.handler_threads if handler_threads is None else handler_threads,
            max_handlers=self.config.max_handlers,
            expose_errors=expose_errors,
        )
        self.background_executor = BackgroundTaskHandler()
        self.advertise: tuple[str, ...] | None = None  # where others are told to dial; None: where they see us
        self._sessions: SessionPool | None = None
        self._transport = transport or TcpTransport()
        self._server: Any = None
        self._listener: Listener | None = None
        self._connections: PlainConnections | None = None
        self._has_stopped = asyncio.Event()
        self._start_lock = asyncio.Lock()
        self._register_builtins()

    # What is offered

    @property
    def endpoint_directory(self) -> EndpointDirectory:
        """The registered functions by name."""
        return self.endpoints

    @property
    def endpoint_metadata(self) -> dict[str, EndpointMetadata]:
        """What is known of each registered function, by name; a copy."""
        return self.endpoints.metadata()

    def endpoint(
        self, name: str | None = None, *, publish: bool = True, description: str = ""
    ) -> Callable[[FunctionT], FunctionT]:
        """Decorator: offer a function, under its own name unless one is given; the docstring describes it.

        `publish=False` keeps it out of `_synapse.methods`. Raises ConfigError for a name of the package's own.
        """

        def decorate(function: FunctionT) -> FunctionT:
            own_name = name or getattr(function, "__name__", "")
            self.endpoints.register(own_name, function, publish=publish, description=description)
            return function

        return decorate

    def background(self, period: float) -> Callable[[FunctionT], FunctionT]:
        """Decorator: run a function every `period` seconds while the server runs. Raises ConfigError for 0 or less."""

        def decorate(function: FunctionT) -> FunctionT:
            task_name = getattr(function, "__name__", repr(function))
            self.background_executor.add_task(BackgroundTask(task_name, function, period))
            return function

        return decorate

    def mount(self, prefix: str, endpoints: Mapping[str, MountedHandler]) -> None:
        """Offer a package's handlers under one of the reserved prefixes, as `EndpointDirectory.mount` has it."""
        self.endpoints.mount(prefix, endpoints)

    # Who and where it is

    @property
    def sessions(self) -> SessionPool:
        """The encrypted sessions with others, opened and accepted. Made at first use: identity and network are final
        then.
        """
        if self._sessions is None:
            self._sessions = SessionPool(
                self.identity,
                network=self.network,
                server=self,
                transport=self._transport,
                runtime=self.runtime,
                listen_port=lambda: self.port if self._server is not None else 0,
                agent=f"synapse-p2p/{installed_version()}",
                config=self.config.pool,
                session_config=self.config.session,
            )
        return self._sessions

    @property
    def peers(self) -> SessionPool:
        """How a package on this server reaches others."""
        return self.sessions

    @property
    def network_id(self) -> bytes:
        """16 bytes that stand for the network's name."""
        return network_id_of(self.network)

    @property
    def listening_addresses(self) -> tuple[str, ...]:
        """The bound addresses with real ports; empty while it does not listen."""
        return self._listener.addresses if self._listener is not None else ()

    @property
    def advertised_addresses(self) -> tuple[str, ...]:
        """Where others can dial us: `advertise`, else the bound address, else the host as which most peers see us.

        Empty while we do not listen, or listen on all addresses and no peer has told us yet how it sees us.
        """
        if not self.listening_addresses:
            return ()
        if self.advertise is not None:
            return self.advertise
        host, port = parse_address(self.listening_addresses[0])
        if host not in WILDCARDS:
            return (format_address(host, port),)
        seen = self.sessions.seen_hosts().most_common(1)
        return (format_address(seen[0][0], port),) if seen else ()

    # Its life

    async def start(self) -> Any:
        """Open the port; the asyncio server where it is TCP. Started already, it returns the same again.

        `port` is the real one afterwards. Raises OSError when the port cannot be had.
        """
        async with self._start_lock:
            if self._server is not None:
                return self._server
            self._connections = PlainConnections(
                make_exchange=self._make_exchange,
                respond=self._respond,
                take_session=self._take_session,
                runtime=self.runtime,
                config=self.config,
            )
            self._listener = await self._transport.listen(self.address, self.port, self._connections.accept)
            self.port = parse_address(self._listener.addresses[0])[1]
            self._server = getattr(self._listener, "server", self._listener)
            self._has_stopped = asyncio.Event()  # a new one, for the loop may be another than last time
            self.background_executor.start()
            return self._server

    async def stop(self, *, grace: float = STOP_GRACE_S) -> None:
        """Close the port, let calls that run finish for `grace` seconds, and end everything. Bounded in time."""
        listener, self._listener, self._server = self._listener, None, None
        if listener is not None:
            listener.close()
        await self.background_executor.stop()
        if self._sessions is not None:
            await self._sessions.stop(grace)
        connections, self._connections = self._connections, None
        if connections is not None:
            await connections.close(grace)
        self.endpoints.close()
        self._has_stopped.set()

    async def serve(self) -> None:
        """Start, say so, and return when the server was stopped; being cancelled stops it."""
        await self.start()
        self._print_startup()
        try:
            await self._has_stopped.wait()
        finally:
            await self.stop()

    def run(self) -> None:
        """Serve until SIGINT or SIGTERM; a second signal does not wait for calls that run.

        Raises ConfigError inside a running event loop: `await server.start()` is the way there.
        """
        run_until_signal(self._serve_until, instead="await server.start()")

    async def _serve_until(self, signalled: asyncio.Event) -> None:
        await self.start()
        self._print_startup()
        try:
            await first_set(signalled, self._has_stopped)
        finally:
            await self.stop(grace=RUN_GRACE_S)

    def _print_startup(self) -> None:
        lines = [f"Listening on {self.address}:{self.port}", "", "Registered Endpoints:"]
        lines += [f"- {name}" for name in self.endpoints]
        if tasks := self.background_executor.tasks:
            lines += ["", "Background Tasks:"]
            lines += [f"- {task.name} ({task.period}s)" for task in tasks]
        # To the screen, as release 1.3 does: whoever runs a server by hand looks for the port there.
        print("\n".join(lines), end="\n\n", flush=True)  # noqa: T201

    # Calls

    def mounted(self, endpoint: str) -> MountedHandler | None:
        """A package's handler, for sessions: it returns at once and raises RemoteError alone."""
        return self.endpoints.mounted(endpoint)

    async def serve_session_call(self, call: Call, context: CallContext) -> Any:
        """The value to answer a session's call with. Raises RemoteError for the failure to answer with."""
        request = RPCRequest(endpoint=call.endpoint, id=str(call.id), args=call.args, kwargs=call.kwargs)
        outcome = await self.endpoints.serve(request, context)
        if isinstance(outcome, Answer):
            return outcome.value
        raise RemoteError(outcome.code, outcome.message, details=outcome.details)

    async def handle_data(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one plain call over asyncio streams, as a callback of `asyncio.start_server`."""
        await serve_streams(
            reader,
            writer,
            make_exchange=self._make_exchange,
            respond=self._respond,
            runtime=self.runtime,
            config=self.config,
        )

    def _make_exchange(self, address: str) -> PlainExchange:
        limits = PlainLimits(
            max_request_bytes=self.max_upload_size,
            header_timeout_s=self.config.header_timeout_s,
            body_grace_s=self.config.body_grace_s,
            min_body_bytes_per_s=self.config.min_body_bytes_per_s,
        )
        refusal = self._refusal_for(address)
        return PlainExchange(self.serializer_class, limits, opened_at=self.runtime.now(), refusal=refusal)

    def _refusal_for(self, address: str) -> Refusal | None:
        """What a plain caller from there is told instead of an answer; None for one that is served."""
        if self.plain is PlainPolicy.ANYWHERE:
            return None
        if self.plain is PlainPolicy.OFF:
            return Refusal(Code.FORBIDDEN, "plain calls are off here: use an encrypted client (synapse-p2p 3 or newer)")
        if is_loopback(parse_address(address)[0]):
            return None
        return Refusal(
            Code.FORBIDDEN,
            "plain calls are served from this machine alone: use an encrypted client (synapse-p2p 3 or newer), "
            'or start the server with Server(plain="anywhere")',
        )

    async def _respond(self, request: RPCRequest, address: str) -> bytes:
        context = CallContext(peer=None, address=address, network=self.network)
        outcome = await self.endpoints.serve(request, context)
        try:
            return encode_frame(self.serializer_class.serialize(plain_response(request.id, outcome)))
        except Exception as error:
            # A serializer of the user's may raise anything for a result that cannot travel: the handler's fault.
            refusal = self.endpoints.refusal_of(error, request.endpoint)
            return encode_frame(self.serializer_class.serialize(plain_response(request.id, refusal)))

    def _take_session(self, stream: ByteStream, data: bytes) -> bool:
        self.sessions.accept(stream, data)
        return True

    def _register_builtins(self) -> None:
        async def ping() -> str:
            """Whether this server answers."""
            return "pong"

        async def methods() -> list[dict[str, Any]]:
            """The published endpoints."""
            return self.endpoints.published()

        async def info() -> dict[str, str]:
            """Who this server is."""
            node_id = self.identity.node_id.hex()
            return {"id": node_id, "version": installed_version(), "network": self.network}

        self._register_reserved({"_synapse.ping": ping, "_synapse.methods": methods, "_synapse.info": info})

    def _register_reserved(self, functions: Mapping[str, Callable[..., Awaitable[Any]]]) -> None:
        for name, function in functions.items():
            self.endpoints.register(name, function, publish=False, reserved=True)


def run_until_signal(main: Callable[[asyncio.Event], Coroutine[Any, Any, None]], *, instead: str) -> None:
    """Run `main` in a loop of its own, with an event that SIGINT and SIGTERM set; a second signal ends it at once.

    Raises ConfigError inside a running event loop, naming what to write `instead`. Logs go to the screen if nobody set
    up logging.
    """
    with contextlib.suppress(RuntimeError):
        asyncio.get_running_loop()
        raise ConfigError(f"run() starts an event loop of its own; in a running one use {instead}")
    if not logging.getLogger().handlers:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")

    async def run() -> None:
        signalled = asyncio.Event()
        with _signals_set(signalled):
            await main(signalled)

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(run())


async def first_set(*events: asyncio.Event) -> None:
    """Return when one of these events is set."""
    async with TaskScope("wait for an event") as scope:
        ended: asyncio.Queue[None] = asyncio.Queue()
        for event in events:
            scope.spawn(event.wait()).add_done_callback(lambda _: ended.put_nowait(None))
        await ended.get()


@contextlib.contextmanager
def _signals_set(event: asyncio.Event) -> Iterator[None]:
    """Within it, SIGINT and SIGTERM set the event; after the first signal both are what they were before."""
    loop = asyncio.get_running_loop()
    caught: list[signal.Signals] = []

    def release() -> None:
        while caught:
            loop.remove_signal_handler(caught.pop())

    def on_signal() -> None:
        release()
        event.set()

    # Windows has none of this, nor has any thread but the first: Ctrl-C cancels the main task there.
    with contextlib.suppress(NotImplementedError, ValueError, RuntimeError):
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, on_signal)
            caught.append(number)
    try:
        yield
    finally:
        release()


def _checked_policy(plain: str) -> PlainPolicy:
    try:
        return PlainPolicy(plain)
    except ValueError:
        words = ", ".join(repr(policy.value) for policy in PlainPolicy)
        raise ConfigError(f"plain is {plain!r}; it has to be one of {words}") from None


def _checked_upload_size(size_bytes: int) -> int:
    # From this length on, the first byte of a plain request would look like that of a session.
    max_bytes = SESSION_FIRST_BYTE << 24
    if not 0 < size_bytes < max_bytes:
        raise ConfigError(f"max_upload_size is {size_bytes} bytes; it has to be above 0 and below {max_bytes}")
    return size_bytes
