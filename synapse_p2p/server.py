"""A server: functions that others can call, on one port.

Owns the life of the listener, of the calls that come in through it and of the periodic functions. What is offered is in
`endpoints.py`; who is turned away, in `guard.py`; one connection is led in `transport/`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import asdict
from enum import StrEnum
from typing import Any, Literal, TypeVar

from synapse_p2p.access import Allow, checked_ids
from synapse_p2p.background import BackgroundTaskHandler
from synapse_p2p.config import MIB, ServerConfig
from synapse_p2p.context import CallContext
from synapse_p2p.endpoints import EndpointDirectory, EndpointMetadata, MountedHandler
from synapse_p2p.exceptions import ConfigError, InvalidMessageError
from synapse_p2p.guard import Guard
from synapse_p2p.identity import SEED_SIZE_BYTES, Identity, NodeID, checked_network_key, network_id_of
from synapse_p2p.loop_beat import LoopBeat
from synapse_p2p.messages import Answer, Code, Outcome, Refusal, RPCRequest, code_of
from synapse_p2p.metrics import Metrics
from synapse_p2p.protocol.plain import PlainExchange, PlainLimits, encode_frame, plain_response
from synapse_p2p.protocol.wire import Call
from synapse_p2p.runtime import Runtime, system_runtime
from synapse_p2p.schema import dump
from synapse_p2p.serializers import BaseRPCSerializer, MessagePackRPCSerializer
from synapse_p2p.signals import first_set, run_program
from synapse_p2p.transport.base import ByteStream, Listener, Transport, format_address, is_loopback, parse_address
from synapse_p2p.transport.plain_connection import SESSION_FIRST_BYTE, PlainConnections, serve_streams
from synapse_p2p.transport.pool import SessionPool
from synapse_p2p.transport.tcp import TcpTransport
from synapse_p2p.trust import TrustConfig
from synapse_p2p.types import BackgroundTask
from synapse_p2p.version import VERSION

logger = logging.getLogger(__name__)

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

STOP_GRACE_S = 5.0  # for calls that run; clients that are merely connected take none of it
WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 - compared with, never bound here


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
        network_key: bytes | None = None,
        allow: Allow | None = None,
        operators: Iterable[NodeID | str] = (),
        plain: Literal["loopback", "anywhere", "off"] = "loopback",
        handler_threads: int | None = None,
        expose_errors: bool = False,
        transport: Transport | None = None,
        runtime: Runtime | None = None,
        config: ServerConfig | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """`max_upload_size` is bytes of one plain request. `handler_threads` is that of `config` unless it is given.

        `allow` says who may call the user's endpoints, where they say nothing themselves: `"anyone"`, `"operators"`, a
        collection of node ids, or a quick plain function of the CallContext. `operators` are the ids that the second of
        these stands for. What happens is counted in `metrics`, its own unless they are given, and told to operators.
        Raises ConfigError for a setting that cannot be.

        `expose_errors` sends callers the text of exceptions: a help while developing, a leak afterwards.
        """
        self.address = address
        self.port = port
        self.serializer_class = serializer_class
        self.max_upload_size = _checked_upload_size(max_upload_size)
        self.network = network
        self.network_key = checked_network_key(network_key)
        self.plain = _checked_policy(plain)
        self._check_plain()
        self.config = config or ServerConfig()
        self.metrics = metrics or Metrics()
        self.runtime = runtime or system_runtime()
        self.identity = identity or Identity.from_seed(self.runtime.token_bytes(SEED_SIZE_BYTES))
        self.identity_given = identity is not None
        self.operators: set[NodeID] = set(checked_ids(operators, named="operators"))
        self.endpoints = EndpointDirectory(
            token_bytes=lambda count: self.runtime.token_bytes(count),  # noqa: PLW0108 - asked late: a server may move
            handler_threads=self.config.handler_threads if handler_threads is None else handler_threads,
            max_handlers=self.config.max_handlers,
            expose_errors=expose_errors,
            now=self.runtime.now,
            ends=self.metrics.endpoints,
        )
        self._beat = LoopBeat(self.metrics.loop_lag, self.runtime.now)
        self._started_at: float | None = None
        self._allow = allow
        self._guard = self._new_guard()
        self.background_executor = BackgroundTaskHandler(runtime=self.runtime)
        self.advertise: tuple[str, ...] | None = None  # where others are told to dial; None: where they see us
        self._sessions: SessionPool | None = None
        self._transport = transport or TcpTransport(make_room=self._make_room)
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
        self,
        name: str | None = None,
        *,
        publish: bool = True,
        description: str = "",
        allow: Allow | None = None,
        validate: bool = False,
    ) -> Callable[[FunctionT], FunctionT]:
        """Decorator: offer a function, under its own name unless one is given; the docstring describes it.

        An asynchronous generator is a stream, which callers iterate with `client.stream`; what they leave early is
        closed here. A parameter annotated `AsyncIterator[T]` receives what the caller iterates, item by item.

        A parameter annotated with a dataclass, TypedDict, Enum or pydantic model receives one, built from what the
        caller sent; values of other types are checked where `validate` is true, and the result too (needs the extra
        `schema`). Returned instances travel as maps; name their type, or one that contains it, after the arrow.
        `publish=False` keeps it out of `_synapse.methods`, and forbids it to nodes that come from elsewhere, unless
        `allow` names them. `allow` is as that of the server, for this one alone. Raises ConfigError for a name of the
        package's own, for a rule that is none, and where a check is wanted and cannot be had.
        """

        def decorate(function: FunctionT) -> FunctionT:
            own_name = name or getattr(function, "__name__", "")
            self.endpoints.register(
                own_name, function, publish=publish, description=description, allow=allow, validate=validate
            )
            return function

        return decorate

    def background(self, period: float, *, jitter: float = 0.0) -> Callable[[FunctionT], FunctionT]:
        """Decorator: run a function every `period` seconds while the server runs, first at its start.

        A run that takes longer makes those due meanwhile fall out; a failure is logged and ends that run alone. Each
        pause is up to `jitter` seconds shorter or longer, so that many servers do not act in step. Raises ConfigError
        for a period of 0 or less and for a jitter not below the period.
        """

        def decorate(function: FunctionT) -> FunctionT:
            task_name = getattr(function, "__name__", repr(function))
            self.background_executor.add_task(BackgroundTask(task_name, function, period, jitter))
            return function

        return decorate

    def mount(self, prefix: str, endpoints: Mapping[str, MountedHandler], *, for_operators: bool = False) -> None:
        """Offer a package's handlers under one of the reserved prefixes, as `EndpointDirectory.mount` has it."""
        self.endpoints.mount(prefix, endpoints, for_operators=for_operators)

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
                network_key=self.network_key,
                server=self,
                transport=self._transport,
                runtime=self.runtime,
                listen_port=lambda: self._announced_port() if self._server is not None else 0,
                agent=f"synapse-p2p/{VERSION}",
                drop_stranger=lambda: self._connections is not None and self._connections.drop_oldest(),
                config=self.config.pool,
                session_config=self.config.session.with_messages_of(self.max_upload_size),
                metrics=self.metrics,
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

    @property
    def trust(self) -> TrustConfig:
        """Which hosts limits by place do not count: all of them where a network key keeps strangers out."""
        return self.config.trust if self.network_key is None else TrustConfig.everybody()

    def _announced_port(self) -> int:
        """Where peers dial us back, at the host as which they see us: the port outside, where the user gave one."""
        return self.port if self.advertise is None else parse_address(self.advertise[0])[1]

    def move_to(self, transport: Transport, runtime: Runtime) -> None:
        """Live on another transport, by another clock and chance: so a simulation takes in a server of the user's.

        Its endpoints, identity and address stay what they are. Raises ConfigError while it runs or has sessions.
        """
        if self._sessions is not None or self._listener is not None:
            raise ConfigError("this server lives somewhere already: stop it first, or make a new one")
        self._transport, self.runtime = transport, runtime
        self.endpoints.now = runtime.now
        self._beat = LoopBeat(self.metrics.loop_lag, runtime.now)
        self._guard = self._new_guard()
        tasks, self.background_executor = self.background_executor.tasks, BackgroundTaskHandler(runtime=runtime)
        for task in tasks:
            self.background_executor.add_task(task)

    # Its life

    async def start(self) -> Any:
        """Open the port; the asyncio server where it is TCP. Started already, it returns the same again.

        `port` is the real one afterwards. Raises OSError when the port cannot be had.
        """
        async with self._start_lock:
            if self._server is not None:
                return self._server
            self._check_plain()  # a swarm sets the network key after we were made
            self.sessions.open()
            self._connections = PlainConnections(
                make_exchange=self._make_exchange,
                respond=self._respond,
                refusal_for=self._refusal_for,
                take_session=self._take_session,
                runtime=self.runtime,
                config=self.config,
                counts=self.metrics.counts,
            )
            self._listener = await self._transport.listen(self.address, self.port, self._connections.accept)
            self.port = parse_address(self._listener.addresses[0])[1]
            self._server = getattr(self._listener, "server", self._listener)
            hosts = [parse_address(address)[0] for address in self._listener.addresses]
            self._guard.is_on_loopback = all(map(is_loopback, hosts))
            self._on_start()
            self._has_stopped = asyncio.Event()  # a new one, for the loop may be another than last time
            self.background_executor.start()
            self._started_at = self.runtime.now()
            if self.runtime.watch_loop is not None:  # else no time passes while something runs
                self._beat.start()
            return self._server

    async def stop(self, *, grace: float = STOP_GRACE_S) -> None:
        """Close the port, let calls that run finish for `grace` seconds, and end everything. Bounded in time.

        What arrives meanwhile is refused, and who is connected with no call running here takes none of the grace. It
        waits for a start that is under way. Being cancelled ends the grace; a second stop ends what is left.
        """
        async with self._start_lock:
            deadline = self.runtime.now() + grace
            listener, self._listener, self._server = self._listener, None, None
            if listener is not None:
                listener.close()
            if self._connections is not None:
                self._connections.drain()
            self._on_stop()
            self._beat.stop()
            self._started_at = None
            try:
                await self.background_executor.stop()
                if self._sessions is not None:
                    await self._sessions.stop(max(0.0, deadline - self.runtime.now()))
                if self._connections is not None:
                    await self._connections.close(max(0.0, deadline - self.runtime.now()))
                    self._connections = None
            finally:
                self.endpoints.close()
                self._guard.close_log()
                self._has_stopped.set()

    def _on_start(self) -> None:
        """For a server that keeps calls waiting: take them."""

    def _on_stop(self) -> None:
        """For a server that keeps calls waiting: end them, they will not get their turn."""

    async def serve(self) -> None:
        """Start, say so, and return when the server was stopped; being cancelled stops it."""
        await self.start()
        try:
            self._print_startup()
            await self._has_stopped.wait()
        finally:
            await self.stop()

    def run(self) -> None:
        """Serve until SIGINT or SIGTERM; a second signal ends the process, whatever still runs.

        A port that cannot be had ends the program with a sentence, as `run_program` has it. Raises ConfigError inside a
        running event loop: `await server.start()` is the way there.
        """
        run_program(self._serve_until, instead="await server.start()")

    async def _serve_until(self, signalled: asyncio.Event) -> None:
        await self.start()
        try:
            self._print_startup()
            await first_set(signalled, self._has_stopped)
        finally:
            await self.stop()

    def _print_startup(self) -> None:
        lines = [f"Listening on {self.address}:{self.port}", "", "Registered Endpoints:"]
        lines += [f"- {name}" for name in self.endpoints]
        if tasks := self.background_executor.tasks:
            lines += ["", "Background Tasks:"]
            lines += [f"- {task.name} ({task.period}s)" for task in tasks]
        # To the screen, as release 1.3 does: whoever runs a server by hand looks for the port there.
        print("\n".join(lines), end="\n\n", flush=True)  # noqa: T201

    def become(self, *, identity: Identity | None = None, network: str = "", network_key: bytes | None = None) -> None:
        """Be somebody else, or in another network, from the next start on; what is not given stays as it is.

        Raises ConfigError while it listens or has sessions, for its peers know it as who it is.
        """
        wanted = (
            identity or self.identity,
            network or self.network,
            checked_network_key(network_key) or self.network_key,
        )
        if wanted == (self.identity, self.network, self.network_key):
            return
        if self.listening_addresses or self._sessions:
            raise ConfigError(
                "the server runs already, and its peers know its identity and network: set them before it starts, "
                "or stop it first"
            )
        self.identity, self.network, self.network_key = wanted
        self._check_plain()
        self._sessions = None  # its sessions would prove what it was made with

    # Calls

    def mounted(self, endpoint: str) -> MountedHandler | None:
        """A package's handler, for sessions: it returns at once and raises RemoteError alone."""
        return self.endpoints.mounted(endpoint)

    def refusal_of(self, error: Exception, name: str) -> Refusal:
        """What a caller is told of an error that nobody meant, which is logged."""
        return self.endpoints.refusal_of(error, name)

    def serve_session_call(self, call: Call, context: CallContext) -> Awaitable[Any]:
        """The value to answer a session's call with, or Items. Raises RemoteError for the failure to answer with."""
        refusal = self._guard.refusal_of(call.endpoint, context)
        if refusal is not None:
            raise refusal.as_error()
        return self.endpoints.answer(call, context, wants_items=call.wants_items)

    async def handle_data(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one plain call over asyncio streams, as a callback of `asyncio.start_server`."""
        await serve_streams(
            reader,
            writer,
            make_exchange=self._make_exchange,
            respond=self._respond,
            refusal_for=self._refusal_for,
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
        return PlainExchange(self.serializer_class, limits, opened_at=self.runtime.now())

    async def _respond(self, request: RPCRequest, address: str) -> bytes:
        metrics = self.metrics
        code: Code | None = Code.CANCELLED  # unless it comes to another end
        metrics.plain_calls_running += 1
        try:
            frame, code = await self._answer_plain(request, address)
            return frame
        finally:
            metrics.plain_calls_running -= 1
            metrics.counts.served.note(code)

    async def _answer_plain(self, request: RPCRequest, address: str) -> tuple[bytes, Code | None]:
        """The framed response, and the code that it failed with."""
        context = self._context_of_plain_call(address)
        outcome = self._guard.refusal_of(request.endpoint, context) or await self.endpoints.serve(request, context)
        try:
            return self._frame(request, outcome), code_of(outcome)
        except Exception as error:
            # A serializer of the user's may raise anything for a result that cannot travel: the handler's fault.
            if (frame := self._frame_dumped(request, outcome)) is not None:
                return frame, code_of(outcome)
            refusal = self.endpoints.refusal_of(error, request.endpoint)
            return self._frame(request, refusal), refusal.code

    def _context_of_plain_call(self, address: str) -> CallContext:
        return CallContext(peer=None, address=address, network=self.network)

    def _frame(self, request: RPCRequest, outcome: Outcome) -> bytes:
        return encode_frame(self.serializer_class.serialize(plain_response(request.id, outcome)))

    def _frame_dumped(self, request: RPCRequest, outcome: Outcome) -> bytes | None:
        """The response with every instance in it dumped, whatever the hints say; None where that is no help."""
        try:
            return self._frame(request, Answer(dump(outcome.value))) if isinstance(outcome, Answer) else None
        except Exception:
            return None  # what is logged is what the result as it was lacked

    def _take_session(self, stream: ByteStream, data: bytes) -> bool:
        self.sessions.accept(stream, data)
        return True

    # Who may call

    def _new_guard(self) -> Guard:
        return Guard(self.endpoints, allow=self._allow, operators=self.operators, runtime=self.runtime)

    def _refusal_for(self, address: str) -> Refusal | None:
        """What a plain caller from there is told instead of an answer; None for one that is served."""
        if self.network_key is not None:
            why = "this network has a key, and plain calls are off with it, on this machine too"
            cure = "use an encrypted client (synapse-p2p 3 or newer) with network_key="
        elif self.plain is PlainPolicy.ANYWHERE:
            return None
        elif self.plain is PlainPolicy.OFF:
            why = "plain calls are off here"
            cure = 'use an encrypted client (synapse-p2p 3 or newer), or start the server without plain="off"'
        elif is_loopback(parse_address(address)[0]):
            return None
        else:
            why = "plain calls are served from this machine alone"
            cure = 'use an encrypted client (synapse-p2p 3 or newer), or start the server with Server(plain="anywhere")'
        self._guard.note_refusal("", None, address, why)
        self.metrics.counts.served.note(Code.FORBIDDEN)
        return Refusal(Code.FORBIDDEN, f"{why}: {cure}")

    def _check_plain(self) -> None:
        if self.network_key is not None and self.plain is PlainPolicy.ANYWHERE:
            raise ConfigError(
                'plain="anywhere" and network_key= exclude each other: a plain caller proves no key; leave one out'
            )

    # What it offers by itself

    def _make_room(self) -> bool:
        return self.sessions.make_room()

    def _register_builtins(self) -> None:
        async def ping() -> str:
            """Whether this server answers."""
            return "pong"

        async def methods() -> list[dict[str, Any]]:
            """The published endpoints."""
            return self.endpoints.published()

        async def describe(name: str, *, caller: CallContext) -> dict[str, Any]:
            """The full contract of an endpoint: name, description, parameters, order, rest, returns, async, streams."""
            if not isinstance(name, str):
                raise InvalidMessageError("parameter 'name' is text")
            if self._guard.is_hidden(name, caller):
                raise self.endpoints.unknown(name)
            return self._contract_of(name)

        async def info() -> dict[str, str]:
            """Who this server is."""
            node_id = self.identity.node_id.hex()
            return {"id": node_id, "version": VERSION, "network": self.network}

        self._register_reserved(
            {
                "_synapse.ping": ping,
                "_synapse.methods": methods,
                "_synapse.describe": describe,
                "_synapse.info": info,
            }
        )

        # Mounted, so that it is answered when all places for handlers are taken.
        self.mount("_synapse.", {"_synapse.stats": self._answer_stats}, for_operators=True)

    def _answer_stats(self, _: Mapping[str, Any], __: CallContext) -> dict[str, Any]:
        """What has been counted here."""
        uptime_s = None if self._started_at is None else self.runtime.now() - self._started_at
        return {"uptime_s": uptime_s, **asdict(self.metrics.snapshot())}

    def _contract_of(self, name: str) -> dict[str, Any]:
        return self.endpoints.contract(name)

    def _register_reserved(self, functions: Mapping[str, Callable[..., Any]]) -> None:
        for name, function in functions.items():
            self.endpoints.register(name, function, publish=False, reserved=True)


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
