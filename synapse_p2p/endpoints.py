"""The functions that a server offers, and the running of them.

Owns names, threads for plain functions, and the end of every exception that a handler raises. Keeps what was said
about who may call each, and does not decide it: that is done before, in `access.py`. A call comes in as a request and
goes out as an Outcome, on any wire.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from synapse_p2p.access import PACKAGE_PREFIXES, Allow, Audience, EndpointAccess, access_of
from synapse_p2p.context import CallContext, MountedHandler
from synapse_p2p.exceptions import (
    CallError,
    ConfigError,
    InvalidAnswerError,
    InvalidMessageError,
    RemoteError,
    SynapseError,
)
from synapse_p2p.messages import Answer, Code, Items, Outcome, Refusal, RPCRequest, code_of
from synapse_p2p.parameters import Parameters, analyse
from synapse_p2p.protocol.counts import EndpointEnds
from synapse_p2p.protocol.wire import MAX_ENDPOINT_CHARS, Call
from synapse_p2p.schema import check_of, dump, dump_outermost, is_built, is_open, schema_of
from synapse_p2p.shapes import ANYTHING, MAX_SHOWN_CHARS, Direction, Misfit, Shape, StreamOf

__all__ = [
    "Answer",
    "Endpoint",
    "EndpointDirectory",
    "EndpointMetadata",
    "MountedHandler",
    "Outcome",
    "Refusal",
    "RefusedError",
]

logger = logging.getLogger(__name__)

REFERENCE_SIZE_BYTES = 4
MAX_COMPARED_CHARS = 64  # of an unknown name, when the nearest known one is sought
_CANCELLED = Code.CANCELLED  # in Python 3.11 finding a member in its class takes ten times as long as reading a name
FOR_OPERATORS = EndpointAccess(Audience.OPERATORS, is_open=False)


@dataclass(frozen=True, slots=True)
class EndpointMetadata:
    """What `_synapse.methods` tells of an endpoint."""

    name: str
    publish: bool = True
    description: str = ""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A function that can be called from afar, analysed once."""

    function: Callable[..., Any]
    metadata: EndpointMetadata
    parameters: Parameters
    is_async: bool
    finish: Callable[[Any], Any] | None  # makes of a result, or an item, what can travel; None: it is that already
    access: EndpointAccess
    is_stream: bool = False  # an asynchronous generator: what it yields are the items of its result
    ends: EndpointEnds = field(default_factory=EndpointEnds, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        function: Callable[..., Any],
        metadata: EndpointMetadata,
        *,
        access: EndpointAccess | None = None,
        injects_names: bool = True,
        validate: bool = False,
        ends: EndpointEnds | None = None,
    ) -> Endpoint:
        """How its calls end is counted in `ends`.

        Raises ConfigError for a function that cannot be called from afar, or not be checked where it is to be."""
        if inspect.isgeneratorfunction(function):
            raise ConfigError(f"{metadata.name!r} is a plain generator; one that is `async def` is a stream")
        if not callable(function):
            raise ConfigError(f"{metadata.name!r} is not a function but of type {type(function).__name__}")
        is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004 - an object with an async __call__ is a function to us
        )
        is_stream = inspect.isasyncgenfunction(function) or inspect.isasyncgenfunction(
            getattr(function, "__call__", None)  # noqa: B004 - the same
        )
        parameters = analyse(function, injects_names=injects_names, validate=validate)
        returns = _item_of(parameters.returns) if is_stream else parameters.returns
        finish = _finish_of(returns, validate)
        access = access or EndpointAccess()
        ends = ends or EndpointEnds()
        return cls(function, metadata, parameters, is_async or is_stream, finish, access, is_stream, ends)

    def contract(self) -> dict[str, Any]:
        """What a caller has to know, in values that travel; the schemas are JSON Schema 2020-12.

        `parameters` is the schema of an object with an argument for each property; `order` says which of them can be
        given by position, `rest` is the schema of each further position (None: there are none), `returns` that of the
        result, or of each of its items where it `streams`; a parameter that takes a stream is a list of its items with
        the mark `x-stream`. What JSON Schema has no words for is `{"x-python": "its name in Python"}`, and takes
        anything.
        """
        return {
            **asdict(self.metadata),
            "parameters": self.parameters.schema(),
            "order": list(self.parameters.positional),
            "rest": self.parameters.rest_schema(),
            "returns": schema_of(self.returns, Direction.OUT),
            "async": self.is_async,
            "streams": self.is_stream,
        }

    @property
    def returns(self) -> Shape:
        """The shape of the result, or of each of its items."""
        return _item_of(self.parameters.returns) if self.is_stream else self.parameters.returns


class RefusedError(SynapseError):
    """A call that ends with a refusal that is worded already. Raised by the package's own endpoints."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class EndpointDirectory(Mapping[str, Callable[..., Any]]):
    """Names and their functions; read as a mapping it is the `endpoint_directory` of release 1.3.

    Invariants: a name is either registered or mounted; at most `max_handlers` calls run at once, and at most
    `handler_threads` of them in threads.
    """

    def __init__(
        self,
        *,
        token_bytes: Callable[[int], bytes],
        handler_threads: int = 8,
        max_handlers: int = 256,
        expose_errors: bool = False,
        now: Callable[[], float] = lambda: 0.0,
        ends: dict[str, EndpointEnds] | None = None,
    ) -> None:
        """`now` is the clock by which it is counted how long calls take. How they end is counted in `ends`, which gets
        an entry for every name that is registered, and for no other.
        """
        if handler_threads < 1:
            raise ConfigError(f"handler_threads is {handler_threads}; it has to be 1 or more")
        self.now = now
        self.ends = {} if ends is None else ends
        self._token_bytes = token_bytes
        self._handler_threads = handler_threads
        self._max_handlers = max_handlers
        self._expose_errors = expose_errors
        self._endpoints: dict[str, Endpoint] = {}
        self._mounted: dict[str, MountedHandler] = {}
        self._mounted_for_operators: set[str] = set()
        self._pool: ThreadPoolExecutor | None = None
        self._running_count = 0
        self.served_count = 0
        """Calls that came to an end here, however; those of packages, such as the overlay's, left out."""

    def __getitem__(self, name: str) -> Callable[..., Any]:
        return self._endpoints[name].function

    def __iter__(self) -> Iterator[str]:
        return iter(self._endpoints)

    def __len__(self) -> int:
        return len(self._endpoints)

    def metadata(self) -> dict[str, EndpointMetadata]:
        """What is known of each registered endpoint, by name; a copy."""
        return {name: endpoint.metadata for name, endpoint in self._endpoints.items()}

    def published(self) -> list[dict[str, Any]]:
        """Name, publish and description of the endpoints that are public, in the order of registration."""
        return [asdict(endpoint.metadata) for endpoint in self._endpoints.values() if endpoint.metadata.publish]

    def contract(self, name: str) -> dict[str, Any]:
        """What a caller of this endpoint has to know, as `Endpoint.contract` has it.

        A mounted one takes named arguments that its package documents. An unknown name raises the error that is
        answered `not_found`, with the nearest published name.
        """
        if (endpoint := self._endpoints.get(name)) is not None:
            return endpoint.contract()
        if name not in self._mounted:
            raise self.unknown(name)
        return {
            **asdict(EndpointMetadata(name, publish=False)),
            "parameters": {"type": "object"},
            "order": [],
            "rest": None,
            "returns": {},
            "async": False,
            "streams": False,
        }

    def unknown(self, name: str) -> RefusedError:
        """What a description of a name ends with when nobody has registered it, or the caller is to think so."""
        return RefusedError(self._not_found(name, f"no endpoint is named {name[:MAX_SHOWN_CHARS]!r}"))

    def is_published(self, name: str) -> bool:
        """Whether `published` tells of it."""
        endpoint = self._endpoints.get(name)
        return endpoint is not None and endpoint.metadata.publish

    def access_of(self, name: str) -> EndpointAccess | None:
        """What was said about who may call an endpoint; None for one that is unknown, or mounted for every node."""
        endpoint = self._endpoints.get(name)
        if endpoint is not None:
            return endpoint.access
        return FOR_OPERATORS if name in self._mounted_for_operators else None

    def register(
        self,
        name: str,
        function: Callable[..., Any],
        *,
        publish: bool = True,
        description: str = "",
        allow: Allow | None = None,
        for_operators: bool = False,
        reserved: bool = False,
        validate: bool = False,
    ) -> None:
        """Offer a function under a name; one that is taken goes to the newcomer, with a warning.

        `allow` says who may call it, `for_operators` that the server's operators alone may; `reserved` is for the
        package's own names; `validate` has arguments and result checked against the types that the function names.
        Raises ConfigError for a name, a function or a rule that cannot be.
        """
        if not isinstance(name, str) or not 0 < len(name) <= MAX_ENDPOINT_CHARS:
            raise ConfigError(f"an endpoint's name is text of 1 to {MAX_ENDPOINT_CHARS} characters, not {name!r:.80}")
        if name.startswith(PACKAGE_PREFIXES) and not reserved:
            raise ConfigError(f"{name!r} begins like the names of the package ({', '.join(PACKAGE_PREFIXES)})")
        description = description or inspect.getdoc(function) or ""
        access = access_of(name, publish=publish, allow=allow, for_operators=for_operators)
        metadata = EndpointMetadata(name, publish, description)
        ends = self.ends.get(name, EndpointEnds())
        endpoint = Endpoint.of(function, metadata, access=access, validate=validate, ends=ends)
        self.ends[name] = ends
        if name in self._endpoints:
            logger.warning("endpoint %s is registered again; the newer function takes its place", name)
        self._endpoints[name] = endpoint

    def mount(self, prefix: str, handlers: Mapping[str, MountedHandler], *, for_operators: bool = False) -> None:
        """Offer a package's handlers, by their full names, in the place of any mounted under these before: to every
        node, or to operators alone.

        They run inside the event loop and have to return at once. Raises ConfigError for a prefix that is not
        reserved, a name that is registered or does not start with it, or a coroutine function.
        """
        if prefix not in PACKAGE_PREFIXES:
            raise ConfigError(f"{prefix!r} is not a prefix for packages ({', '.join(PACKAGE_PREFIXES)})")
        for name, handler in handlers.items():
            if not name.startswith(prefix):
                raise ConfigError(f"endpoints mounted under {prefix!r} are named in full, as in {prefix + 'ping'!r}")
            if name in self._endpoints:
                raise ConfigError(f"{name!r} is registered already")
            if inspect.iscoroutinefunction(handler):
                raise ConfigError(f"{name!r} is mounted, so it has to be a plain function that returns at once")
            self._mounted[name] = functools.partial(self._run_mounted, name, handler)
            if for_operators:
                self._mounted_for_operators.add(name)
            else:
                self._mounted_for_operators.discard(name)

    def mounted(self, name: str) -> MountedHandler | None:
        """The mounted handler of a name, for whoever calls. It raises RemoteError alone, which is the failure to answer
        with.
        """
        return None if name in self._mounted_for_operators else self._mounted.get(name)

    async def serve(self, request: RPCRequest, context: CallContext, *, wants_items: bool = False) -> Outcome:
        """Run a call and say how it ended. Raises CancelledError alone: exceptions of handlers end here.

        A caller that `wants_items` is answered with Items; their iteration raises RemoteError for the handler's.
        """
        try:
            return Answer(await self.answer(request, context, wants_items=wants_items))
        except RemoteError as error:
            return Refusal(Code.read(error.code), error.message, error.details)

    async def answer(self, request: RPCRequest | Call, context: CallContext, *, wants_items: bool = False) -> Any:
        """The same in other words: the value, or RemoteError raised for a refusal."""
        name = request.endpoint
        if self._running_count >= self._max_handlers and not self._ends_at_once(name):
            raise Refusal(Code.BUSY, "too many calls are running here; try again later").as_error()
        self._running_count += 1
        endpoint = self._endpoints.get(name)
        failed: Code | None = _CANCELLED  # unless it comes to another end
        began_at = self.now()
        try:
            if endpoint is None:
                if wants_items and name in self._mounted:
                    raise RefusedError(_returns_one_value(name))
                return await self.invoke(request, context)
            if endpoint.is_stream is not wants_items:
                raise RefusedError(_is_stream(name) if endpoint.is_stream else _returns_one_value(name))
            if wants_items:
                failed = None
                return Items(self._items(endpoint, request, context))  # which are still to come
            # Without `run` between: each coroutine that is awaited inside another costs 0.2 us a call.
            value = await self._begun(endpoint, request.args, request.kwargs, request=request, context=context)
            if endpoint.finish is not None:
                value = endpoint.finish(value)
            failed = None
            endpoint.ends.ok += 1
            return value
        except asyncio.CancelledError as error:
            refusal = self._refusal_of_cancelled(error, name)
            failed = refusal.code
            raise refusal.as_error() from error
        except Exception as error:
            refusal = self.refusal_of(error, name)
            failed = refusal.code
            raise refusal.as_error() from error
        finally:
            self._running_count -= 1
            self.served_count += name not in self._mounted
            if endpoint is not None:
                if failed is not None:
                    endpoint.ends.note(failed)
                endpoint.ends.took_s += self.now() - began_at

    async def invoke(self, request: RPCRequest | Call, context: CallContext) -> Any:
        """The value that the named function returns. Raises what it raises.

        Arguments that do not fit are an InvalidMessageError, and nothing has run then.
        """
        if (mounted := self._mounted.get(request.endpoint)) is not None:
            return self._invoke_mounted(mounted, request, context)
        endpoint = self._endpoints.get(request.endpoint)
        if endpoint is None:
            raise RefusedError(self._not_found(request.endpoint, f"Unregistered endpoint called: {request.endpoint}"))
        return await self.run(endpoint, request.args, request.kwargs, request=request, context=context)

    async def run(
        self,
        endpoint: Endpoint,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        request: RPCRequest | Call,
        context: CallContext,
    ) -> Any:
        """Run a function, registered or not, with what a caller sent and what the server fills in.

        Raises InvalidMessageError for arguments that do not fit.
        """
        result = await self._begun(endpoint, args, kwargs, request=request, context=context)
        return result if endpoint.finish is None else endpoint.finish(result)

    def _begun(
        self,
        endpoint: Endpoint,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        request: RPCRequest | Call,
        context: CallContext,
    ) -> Awaitable[Any]:
        """What is to be awaited for the result, before it is finished. Raises as `run` does, at once."""
        positional, named = endpoint.parameters.bind(args, kwargs, request=request, context=context)
        if endpoint.is_async:
            return endpoint.function(*positional, **named)
        return self._run_in_thread(functools.partial(endpoint.function, *positional, **named))

    async def run_stream(
        self,
        endpoint: Endpoint,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        request: RPCRequest | Call,
        context: CallContext,
    ) -> AsyncGenerator[Any, None]:
        """The same for an asynchronous generator: what it yields."""
        positional, named = endpoint.parameters.bind(args, kwargs, request=request, context=context)
        finish = endpoint.finish
        async with contextlib.aclosing(endpoint.function(*positional, **named)) as values:
            async for value in values:
                yield value if finish is None else finish(value)

    async def _items(
        self, endpoint: Endpoint, request: RPCRequest | Call, context: CallContext
    ) -> AsyncGenerator[Any, None]:
        self._running_count += 1
        outcome: Outcome | None = None
        began_at = self.now()
        try:
            values = self.run_stream(endpoint, request.args, request.kwargs, request=request, context=context)
            async with contextlib.aclosing(values):
                async for value in values:
                    yield value
            outcome = Answer(None)
        except asyncio.CancelledError as error:
            outcome = self._refusal_of_cancelled(error, request.endpoint)
            raise outcome.as_error() from error
        except Exception as error:
            outcome = self.refusal_of(error, request.endpoint)
            raise outcome.as_error() from error
        finally:
            self._running_count -= 1
            endpoint.ends.note(code_of(outcome))
            endpoint.ends.took_s += self.now() - began_at

    def _refusal_of_cancelled(self, error: asyncio.CancelledError, name: str) -> Refusal:
        """Where nobody cancelled this call, the handler awaited something that was: its caller is owed an answer.

        Raises the error where the call was cancelled.
        """
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise error
        return self.refusal_of(SynapseError(f"the handler was cancelled from within: {error!r}"), name)

    def refusal_of(self, error: Exception, name: str) -> Refusal:
        """What the caller is told of an error. One that nobody meant is logged, once, and stays here."""
        match error:
            case RefusedError():
                return error.refusal
            case InvalidMessageError() if not isinstance(error, InvalidAnswerError):
                return Refusal(Code.BAD_REQUEST, str(error))
            case CallError():
                return Refusal(Code.FAILED, error.message, {**error.details, "reason": error.reason})
        reference = self._token_bytes(REFERENCE_SIZE_BYTES).hex()
        logger.error("endpoint %.80s failed (reference %s)", name, reference, exc_info=error)
        message = f"internal error (reference {reference})"
        if self._expose_errors:
            message = f"{type(error).__name__}: {error} (reference {reference})"
        return Refusal(Code.INTERNAL_ERROR, message, {"reference": reference})

    def close(self) -> None:
        """Let the threads go. Those that run a handler end with it; calls that wait for one are cancelled."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)

    def _run_mounted(self, name: str, handler: MountedHandler, kwargs: Mapping[str, Any], context: CallContext) -> Any:
        try:
            return handler(kwargs, context)
        except RemoteError:
            raise
        except Exception as error:
            refusal = self.refusal_of(error, name)
            raise refusal.as_error() from error

    def _invoke_mounted(self, handler: MountedHandler, request: RPCRequest | Call, context: CallContext) -> Any:
        if request.args:
            raise InvalidMessageError(f"{request.endpoint} takes named arguments alone")
        try:
            return handler(request.kwargs, context)
        except RemoteError as error:
            raise RefusedError(Refusal(Code.read(error.code), error.message, error.details)) from error

    async def _run_in_thread(self, function: Callable[[], Any]) -> Any:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._handler_threads, thread_name_prefix="synapse-handler")
        run = functools.partial(contextvars.copy_context().run, _call, function)
        result = await asyncio.get_running_loop().run_in_executor(self._pool, run)
        # A plain function that wraps an async one returns what is still to be awaited.
        return await result if inspect.isawaitable(result) else result

    def _ends_at_once(self, name: str) -> bool:
        # Who asks whether we are alive is answered however much there is to do: a loaded server is not a dead one.
        access = self.access_of(name)
        return name in self._mounted or (access is not None and access.audience is Audience.EVERY_NODE)

    def _not_found(self, name: str, message: str) -> Refusal:
        # The nearest name is a published one: the others are not given away.
        import difflib  # here: few callers err

        names = [known for known, endpoint in self._endpoints.items() if endpoint.metadata.publish]
        nearest = difflib.get_close_matches(name[:MAX_COMPARED_CHARS], names, n=1)
        details = {"nearest": nearest[0]} if nearest else {}
        return Refusal(Code.NOT_FOUND, message, details)


def _is_stream(endpoint: str) -> Refusal:
    """Of a caller that took a stream for a function."""
    text = (
        f"{endpoint} is a stream: write `async for item in client.stream({endpoint!r}, ...)` instead of a call; it "
        "needs a client of release 3 or newer"
    )
    return Refusal(Code.BAD_REQUEST, text)


def _returns_one_value(endpoint: str) -> Refusal:
    """Of a caller that took a function for a stream."""
    text = f"{endpoint} returns one value and is no stream: write `await client.call({endpoint!r}, ...)`"
    return Refusal(Code.BAD_REQUEST, text)


def _item_of(returns: Shape) -> Shape:
    return returns.item if isinstance(returns, StreamOf) else ANYTHING


def _finish_of(returns: Shape, validate: bool) -> Callable[[Any], Any] | None:
    if validate:
        check = check_of(schema_of(returns, Direction.OUT), name="the result")

        def dump_and_check(value: Any) -> Any:
            dumped = dump(value)
            try:
                check(dumped)
            except Misfit as misfit:
                # Our fault, not the caller's: it ends as any other exception of a handler.
                raise SynapseError(f"result{misfit.path} {misfit.problem}") from misfit
            return dumped

        return dump_and_check
    if is_built(returns):
        return dump
    # Nothing is searched for instances that the hint does not speak of: a long list would pay for it item by item.
    return dump_outermost if is_open(returns) else None


def _call(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except StopIteration as error:
        # A Future of Python 3.11 cannot carry this one, and whoever waits for it would wait for ever.
        raise RuntimeError("the handler raised StopIteration") from error
