"""Runs the calls that a peer makes over one session, and sends back how each ended.

Owns their tasks. Which call runs when, and which is withdrawn, is decided in `protocol/session.py`; what a call does,
by the CallServer.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from synapse_p2p.background import TaskScope
from synapse_p2p.context import CallContext, MountedHandler
from synapse_p2p.exceptions import ConfigError, FrameTooLarge, PeerUnavailable, RemoteError
from synapse_p2p.messages import Items, Refusal
from synapse_p2p.protocol.code import Code
from synapse_p2p.protocol.session import NODE_IS_STOPPING, Session
from synapse_p2p.protocol.streams import StreamReader
from synapse_p2p.protocol.wire import Call
from synapse_p2p.runtime import Runtime
from synapse_p2p.schema import dump
from synapse_p2p.traceparent import is_traceparent, take_up, with_new_parent
from synapse_p2p.transport import byte_budget
from synapse_p2p.transport.failures import unsendable_result
from synapse_p2p.transport.outflow import MUCH_BYTES, Outflow
from synapse_p2p.transport.sending import ItemSender
from synapse_p2p.uploads import Upload

logger = logging.getLogger(__name__)

_NO_READERS: dict[tuple[int, int], asyncio.Future[None]] = {}


class CallServer(Protocol):
    """Who runs the calls that arrive on a connection."""

    def mounted(self, endpoint: str) -> MountedHandler | None:
        """The package's handler for an endpoint, whose name begins with `_`: a plain function that returns at once, run
        without a task.

        It raises RemoteError for the failure to answer with, and nothing else.
        """
        ...

    def serve_session_call(self, call: Call, context: CallContext) -> Awaitable[Any]:
        """The value to answer with, or Items where the call's options ask for a stream. In the place of an argument
        that the caller uploads there is an Upload.

        Raises RemoteError for the failure to answer with, and nothing else.
        """
        ...

    def refusal_of(self, error: Exception, name: str) -> Refusal:
        """What a caller is told of a result that cannot travel; `error` is logged."""
        ...


class ServedCalls:
    """The calls of one peer that run here. Each ends with an answer, a failure, or by being withdrawn.

    `on_answered` is told when a task has queued an answer that is still to be sent, `on_taken` when a handler took an
    item of an upload. No call begins while the peer reads too little; each waits as what it is, without a task. Results
    of those that run by then are queued, as long as the byte budget of the process lasts.
    """

    __slots__ = (
        "_beginning",
        "_context",
        "_loop",
        "_on_answered",
        "_on_taken",
        "_outer",
        "_outflow",
        "_readers",
        "_rng",
        "_scope",
        "_sender",
        "_server",
        "_session",
        "_tasks",
        "arrived",
    )

    def __init__(
        self,
        session: Session,
        outflow: Outflow,
        *,
        server: CallServer,
        scope: TaskScope,
        runtime: Runtime,
        context: CallContext,
        on_answered: Callable[[], None],
        sender: ItemSender,
        on_taken: Callable[[], None],
    ) -> None:
        self._sender = sender
        self._on_taken = on_taken
        self._readers = _NO_READERS  # who waits for items; a map of its own with the first
        self._session = session
        self._outflow = outflow
        self._server = server
        self._scope = scope
        self._rng = runtime.rng
        self._context = context
        self._on_answered = on_answered
        self._loop = asyncio.get_running_loop()
        self.arrived: dict[int, Call] = {}  # and have not begun
        self._beginning: list[Call] | None = None  # what is left of those that begin right now
        self._tasks: dict[int, asyncio.Task[Any]] = {}  # of those that have begun
        # Of no call: one may start in the very moment in which another ends, and this node in a handler of another.
        self._outer = contextvars.copy_context()
        self._outer.run(take_up, None)

    def serve(self, call: Call) -> None:
        """Answer now where the handler is a mounted one; else see that it runs."""
        handler = self._server.mounted(call.endpoint) if call.endpoint[:1] == "_" else None
        if handler is not None and not call.wants_items:  # asked for a stream it is refused as any function is
            try:
                value = handler(call.kwargs, self._context)
            except RemoteError as error:
                self._fail(call, error)
            else:
                self._answer(call, value)
        else:
            self.arrived[call.id] = call

    def begin_arrived(self) -> None:
        """Begin the calls that have arrived, as far as there is room for their answers. One that waits for nothing has
        ended when this returns.

        Not while the session is still telling what else has happened: a call that came to its end since does not begin.
        """
        if self._beginning is not None:
            return  # this is within a handler, and the rest has its turn after that one
        try:
            while self.arrived and not self._outflow.is_full:
                self._beginning = list(self.arrived.values())
                self.arrived.clear()
                self._scope.begin(self._run, self._beginning, context=self._outer, on_lost=self._on_lost)
        finally:
            self._beginning = None

    def is_run_by_current_task(self) -> bool:
        """Whether the task that asks is one of these calls, as that of a handler which stops its own node."""
        return asyncio.current_task() in self._tasks.values()

    def end_others(self) -> None:
        """The node stops, and all tasks but the one that asks have been cancelled: end their calls as well."""
        own = asyncio.current_task()
        for call_id in list(self._session.running):
            if self._tasks.get(call_id) is not own:
                details = {"may_have_started": call_id not in self.arrived}
                self._session.fail(call_id, Code.UNAVAILABLE, NODE_IS_STOPPING, details)

    def withdraw(self, call_id: int) -> None:
        """Nobody waits for this call any more: cancel its task.

        A handler that ends its own session, as one that stops the node does, is left to finish.
        """
        task = self._tasks.pop(call_id, None)
        if task is not None and task is not asyncio.current_task():
            task.cancel()
        self.arrived.pop(call_id, None)
        self._wake_readers(call_id)

    def on_items(self, call_id: int, part: int) -> None:
        """There is something to read of this upload."""
        waiting = self._readers.get((call_id, part))
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    def _wake_readers(self, call_id: int) -> None:
        """Whoever still reads an upload for a handler finds that the call is over."""
        for place in [place for place in self._readers if place[0] == call_id]:
            self.on_items(*place)

    def _context_of(self, call: Call) -> CallContext:
        traceparent = call.options.get("traceparent")
        if traceparent is not None and not is_traceparent(traceparent):
            traceparent = None  # as W3C has it; no reason to refuse the call
        delegation = call.options.get("delegation")
        if call.deadline is None and traceparent is None and delegation is None:
            return self._context
        # Not `replace`, which looks at every field by name: this is done for each call.
        own = self._context
        return CallContext(
            own.peer, own.address, own.listen_address, own.network, call.deadline, traceparent, delegation
        )

    def _on_lost(self, call: Call) -> None:
        """It never began: the program has cancelled its task, or the node stops, which made the place for it free."""
        if self._scope.is_closed:
            self._session.fail(call.id, Code.UNAVAILABLE, NODE_IS_STOPPING, {"may_have_started": False})
        else:
            self._tear_down(call)
        self._on_answered()

    def _tear_down(self, call: Call) -> None:
        self._session.fail(call.id, Code.INTERNAL_ERROR, f"{call.endpoint} was torn down")

    async def _run(self, call: Call, task: asyncio.Task[Any]) -> None:
        if call.id not in self._session.running:
            return  # it was withdrawn, or its place was taken away, before it began
        if self._outflow.is_full:
            self._put_off(call)
            return
        self._tasks[call.id] = task
        if task.get_name() != call.endpoint:
            task.set_name(call.endpoint)
        context = self._context_of(call)
        if context.traceparent is not None:
            take_up(with_new_parent(context.traceparent, self._rng))
        try:
            if "uploads" in call.options:
                for reader in self._session.streams.readers(call.id):
                    self._put_upload(call, reader)
            value = await self._server.serve_session_call(call, context)
            if type(value) is Items:
                await self._send_items(call, value)
                return
            if self._outflow.is_full and byte_budget.PROCESS.is_over:
                raise RemoteError(Code.BUSY, "too many results wait here until they are read; yours was dropped")
        except RemoteError as error:
            self._fail(call, error)
        except BaseException:
            # SystemExit and its like end the program, maybe, and the program itself may cancel any task; the caller is
            # told all the same. Where the call was withdrawn it has ended, and where the node stops it is about to.
            if not self._scope.is_closed:
                self._tear_down(call)
            raise
        else:
            self._answer(call, value)
        finally:
            self._tasks.pop(call.id, None)  # its own entry, or none: no id is used twice
            if not self._tasks:
                self._tasks.clear()  # else it keeps its room, in each of thousands of idle sessions
            if self._readers:
                self._wake_readers(call.id)
            if self._beginning is None or self._session.outbox.queued_bytes > MUCH_BYTES:
                self._on_answered()  # else all are sent together; but whoever is next has to see how much there is

    def _put_off(self, call: Call) -> None:
        """This call, and those that would begin after it, wait until the peer reads more of what it asked for."""
        self.arrived[call.id] = call
        if self._beginning:
            self.arrived.update((later.id, later) for later in self._beginning)
            self._beginning.clear()

    async def _send_items(self, call: Call, items: Items) -> None:
        """Send what a stream gives, at the pace of its reader, and its end. Raises RemoteError for its failure."""
        async with contextlib.aclosing(items.values):
            async for value in items.values:
                try:
                    try:
                        await self._sender.send(call.id, value)
                    except TypeError:
                        await self._sender.send(call.id, dump(value))  # as for results
                except FrameTooLarge as error:
                    text = (
                        f"an item of {call.endpoint} is too large: {error.actual_bytes} > {error.limit_bytes} bytes; "
                        "its stream has to be of smaller ones"
                    )
                    raise RemoteError(Code.TOO_LARGE, text) from error
                except Exception as error:
                    refusal = self._server.refusal_of(unsendable_result(value, error), call.endpoint)
                    raise refusal.as_error() from error
        self._sender.end(call.id)

    def _put_upload(self, call: Call, reader: StreamReader) -> None:
        place = call.options["uploads"][reader.part]
        upload = Upload(functools.partial(self._next_item, reader))
        if isinstance(place, int):
            call.args[place] = upload
        else:
            call.kwargs[place] = upload

    async def _next_item(self, reader: StreamReader) -> Any:
        place = reader.call_id, reader.part
        while not reader:
            if reader.is_ended:
                raise StopAsyncIteration
            if not reader.is_open:
                raise PeerUnavailable("the call is over, and its upload with it", may_have_started=True)
            if place in self._readers:
                raise ConfigError("an upload is iterated by one task at a time")
            if self._readers is _NO_READERS:
                self._readers = {}
            waiting = self._readers[place] = self._loop.create_future()
            try:
                await waiting
            finally:
                del self._readers[place]
        item = self._session.take_item(reader)
        self._on_taken()
        return item

    def _answer(self, call: Call, value: Any) -> None:
        try:
            try:
                self._session.answer(call.id, value)
            except TypeError:
                # An instance of which the function's hints say nothing. To look for one in every result would cost by
                # item, where this costs nothing until there is one.
                self._session.answer(call.id, dump(value))
        except FrameTooLarge as error:
            text = (
                f"the result of {call.endpoint} is too large: {error.actual_bytes} > {error.limit_bytes} bytes; "
                "more than that is a stream"
            )
            self._session.fail(call.id, Code.TOO_LARGE, text)
        except Exception as error:
            # The handler's classes have a say in how they are dumped, so it may be any.
            refusal = self._server.refusal_of(unsendable_result(value, error), call.endpoint)
            self._session.fail(call.id, refusal.code, refusal.message, refusal.details)

    def _fail(self, call: Call, error: RemoteError) -> None:
        code = Code.read(error.code)
        try:
            self._session.fail(call.id, code, error.message, error.details)
        except (FrameTooLarge, TypeError, ValueError, OverflowError) as unsendable:
            # The handler's own words cannot travel; that it failed, and how, can.
            logger.error("the failure of %.80s cannot be sent: %s", call.endpoint, unsendable)
            self._session.fail(call.id, code, f"{call.endpoint} failed, and its reason cannot be sent")
