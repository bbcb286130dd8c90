"""For code that is in no async function: the client, with calls that block.

Owns the one event loop, in a thread of its own, on which such calls run, and its end with the interpreter. What a call
does is in `client.py`; here it is only waited for.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, TypeVar

from synapse_p2p import client
from synapse_p2p.client import Keep
from synapse_p2p.config import MIB
from synapse_p2p.exceptions import ConfigError, SynapseError
from synapse_p2p.identity import Identity, NodeID
from synapse_p2p.metrics import Metrics
from synapse_p2p.runtime import Runtime
from synapse_p2p.serializers import BaseRPCSerializer, MessagePackRPCSerializer
from synapse_p2p.transport.base import Transport

CLOSE_TIMEOUT_S = 2.0  # for what still runs to end once it is cancelled
INTERRUPT_CHECK_S = 0.5  # on Windows Ctrl-C waits for a wait to end, so no single one is longer

T = TypeVar("T")


class Client:
    """Calls the endpoints of one server and blocks until the answer is here. Threads may share it.

    It has the methods of `synapse_p2p.Client`: its session is held between calls, in a thread of the package's. A call
    in a thread that runs an event loop, as every cell of a notebook does, would stop that loop and is refused. After a
    fork, make a new one.
    """

    __slots__ = ("_loop_thread", "async_client")

    def __init__(
        self,
        address: str = "127.0.0.1",
        port: int = 9999,
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
        """The arguments are those of `synapse_p2p.Client`. Its calls run in a thread of the package's, so `metrics`
        are not those of a server that runs elsewhere.
        """
        self.async_client = client.Client(
            address,
            port,
            serializer_class,
            max_download_size,
            timeout,
            identity=identity,
            network=network,
            network_key=network_key,
            expect=expect,
            max_upload_size=max_upload_size,
            transport=transport,
            runtime=runtime,
            metrics=metrics,
        )
        self._loop_thread = shared_loop_thread()

    def with_options(
        self,
        *,
        timeout_s: float | Keep | None = Keep.AS_IT_IS,
        idempotent: bool | Keep = Keep.AS_IT_IS,
        traceparent: str | Keep | None = Keep.AS_IT_IS,
    ) -> Client:
        """The same client with other options: `client.with_options(timeout_s=2).call(...)`. What is not given stays."""
        other = Client.__new__(Client)
        other.async_client = self.async_client.with_options(
            timeout_s=timeout_s, idempotent=idempotent, traceparent=traceparent
        )
        other._loop_thread = self._loop_thread
        return other

    def call(self, endpoint: str, /, *args: Any, **kwargs: Any) -> Any:
        """What the remote function returns. Raises what `synapse_p2p.Client.call` raises, and what `LoopThread.run`
        does.

        Ctrl-C while it waits gives the call up, and cancels the function at the server. An argument that is an iterator
        is sent item by item, each drawn in a thread of its own.
        """
        args, kwargs = _with_uploads(args, kwargs)
        return self._loop_thread.run(
            lambda: self.async_client.call(endpoint, *args, **kwargs),
            instead="await synapse_p2p.Client(...).call(...)",
        )

    def stream(self, endpoint: str, /, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """What the remote asynchronous generator yields: `for item in client.stream("tail", path): ...`.

        As `synapse_p2p.Client.stream`; leaving the loop closes the generator at the server. Cost: for each item a step
        to the thread of the package and back, some 50 us.
        """
        args, kwargs = _with_uploads(args, kwargs)
        return self._loop_thread.iterate(
            lambda: self.async_client.stream(endpoint, *args, **kwargs),
            instead="async for item in synapse_p2p.Client(...).stream(...)",
        )

    @property
    def peer_id(self) -> NodeID | None:
        """Who answered last: the id that the server proved; None before the first call, and on the plain wire."""
        return self.async_client.peer_id

    def close(self) -> None:
        """Close the session; calls in flight end as unavailable. The next call opens another."""
        self._loop_thread.run(self.async_client.close, instead="await synapse_p2p.Client(...).close()")

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


_NO_MORE = object()


class ClosableIterator(Protocol):
    """An asynchronous generator, or what can be closed as one."""

    def __aiter__(self) -> AsyncIterator[Any]: ...

    def __anext__(self) -> Awaitable[Any]: ...

    def aclose(self) -> Awaitable[None]: ...


async def _closed(items: ClosableIterator) -> None:
    await items.aclose()


def _with_uploads(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same arguments, with asynchronous iterators in the places of plain ones."""
    return tuple(map(_as_upload, args)), {name: _as_upload(value) for name, value in kwargs.items()}


def _as_upload(value: Any) -> Any:
    return _drawn_in_threads(value) if hasattr(type(value), "__next__") else value


async def _drawn_in_threads(items: Iterator[Any]) -> AsyncIterator[Any]:
    # Whatever it does to come by an item must not stop the loop, on which all blocking calls run.
    while (item := await asyncio.to_thread(next, items, _NO_MORE)) is not _NO_MORE:
        yield item


class LoopThread:
    """An event loop in a thread of its own, for callers in other threads.

    The thread starts with the first call and ends with `close` or the interpreter, whichever comes first; it waits
    without cost while nothing runs. Invariant: what it runs was begun before `close`, in the process where it started.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: _Running | None = None
        self._is_closed = False
        self._process_id = 0  # of the process where the thread was started; 0 before

    def run(self, begin: Callable[[], Coroutine[Any, Any, T]], *, instead: str) -> T:
        """What the coroutine that `begin` makes returns; it runs in the context variables of the caller.

        Raises what the coroutine raises. Raises ConfigError in a thread that runs an event loop, naming what to write
        `instead`, in a process forked from the one where the thread is, and after `close`. An exception that a signal
        raises here, such as KeyboardInterrupt, cancels the coroutine.
        """
        _refuse_in_running_loop(instead)
        future = self._begin(begin)
        try:
            while not future.done():
                concurrent.futures.wait((future,), timeout=INTERRUPT_CHECK_S)
        except BaseException:
            future.cancel()
            raise
        try:
            return future.result()
        except concurrent.futures.CancelledError as error:
            raise SynapseError("the thread of blocking calls was closed while this one ran") from error

    def iterate(self, begin: Callable[[], ClosableIterator], *, instead: str) -> Generator[Any, None, None]:
        """What the asynchronous iterator that `begin` makes yields; it is closed when nobody reads any more. Raises as
        `run`. Cost: for each item a step to the thread and back, some 50 us.
        """
        items = begin()

        async def next_item() -> Any:
            return await anext(items, _NO_MORE)

        try:
            while (item := self.run(next_item, instead=instead)) is not _NO_MORE:
                yield item
        finally:
            self.run(lambda: _closed(items), instead=instead)

    def close(self) -> None:
        """Cancel what runs, whose callers get a SynapseError, and end the thread. Bounded in time; a second call does
        nothing more.
        """
        if self._is_of_another_process():
            return  # the thread is not here, and the loop's files are shared with the process where it is: hands off
        with self._lock:
            self._is_closed = True
            running, self._running = self._running, None
            if running is None:
                return
            running.loop.call_soon_threadsafe(running.has_to_end.set)
        running.thread.join(CLOSE_TIMEOUT_S)
        atexit.unregister(self.close)

    def __enter__(self) -> LoopThread:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self, begin: Callable[[], Coroutine[Any, Any, T]]) -> concurrent.futures.Future[T]:
        # Asked before the lock is touched: another thread of the parent may have held it at the fork.
        if self._is_of_another_process():
            raise ConfigError(
                "this process was forked from one that made blocking calls, and their thread stayed there: "
                "make a new synapse_p2p.blocking.Client after the fork"
            )
        with self._lock:
            if self._is_closed:
                raise ConfigError("blocking calls are over: their thread was closed, or the interpreter is at its end")
            running = self._running or self._start()
            return asyncio.run_coroutine_threadsafe(begin(), running.loop)

    def _start(self) -> _Running:
        self._process_id = os.getpid()
        # Without a factory the runner would make its loop the current one of this thread, which is another's business.
        runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        has_to_end = asyncio.Event()
        # A daemon: the interpreter waits for other threads before it asks anybody to end, and it asks at `atexit`.
        thread = threading.Thread(target=_serve, args=(runner, has_to_end), name="synapse-blocking", daemon=True)
        self._running = _Running(runner.get_loop(), has_to_end, thread)
        try:
            thread.start()
        except RuntimeError:
            self._running = None
            runner.close()
            raise
        atexit.register(self.close)
        return self._running

    def _is_of_another_process(self) -> bool:
        return self._process_id not in (0, os.getpid())


_shared = LoopThread()


def shared_loop_thread() -> LoopThread:
    """The one on which everything blocking in this process runs; a forked process has one of its own."""
    global _shared  # noqa: PLW0603 - one for the process is what it is for
    if _shared._is_of_another_process():
        _shared = LoopThread()
    return _shared


@dataclass(frozen=True, slots=True)
class _Running:
    """A loop, what makes it end, and the thread it is in."""

    loop: asyncio.AbstractEventLoop
    has_to_end: asyncio.Event
    thread: threading.Thread


def _serve(runner: asyncio.Runner, has_to_end: asyncio.Event) -> None:
    with runner:  # whose end cancels what is left, and waits for it
        runner.run(has_to_end.wait())


def _refuse_in_running_loop(instead: str) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise ConfigError(f"a blocking call would stop the event loop that runs here; write `{instead}` instead")
