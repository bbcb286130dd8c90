"""Makes the calls of ours over one session: when each may start, and who waits for its end.

The twin of `serving.py`. How a call ends is decided in `protocol/session.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterable, Callable, Mapping
from typing import Any

from synapse_p2p.background import TaskScope
from synapse_p2p.exceptions import ConfigError, FrameTooLarge, PeerUnavailable, SynapseError, Timeout
from synapse_p2p.prompt_future import PromptFuture
from synapse_p2p.protocol.session import CONTROL_PREFIX, Session
from synapse_p2p.protocol.wire import MAX_ENDPOINT_CHARS
from synapse_p2p.traceparent import carried, carrying
from synapse_p2p.transport.asked_stream import AskedStream
from synapse_p2p.transport.failures import no_endpoint, unsendable, unsendable_item
from synapse_p2p.transport.outflow import MUCH_BYTES, Outflow
from synapse_p2p.transport.sending import ItemSender
from synapse_p2p.uploads import Place, Uploads


class AskedCalls:
    """Our calls to one peer. Each ends once: with its answer, an error, or by being cancelled.

    `on_asked` is told when a call was queued or withdrawn, so that this is sent, and whether it is a call and the only
    one in flight; `on_taken` when an item of a stream was taken. The tasks that upload run in `scope`.
    """

    __slots__ = (
        "_address",
        "_control_places",
        "_in_line",
        "_loop",
        "_max_calls",
        "_now",
        "_on_asked",
        "_on_taken",
        "_outflow",
        "_scope",
        "_sender",
        "_session",
        "_uploading",
        "_waiting",
    )

    def __init__(
        self,
        session: Session,
        outflow: Outflow,
        *,
        address: str,
        now: Callable[[], float],
        max_control_calls: int,
        max_calls: int,
        on_asked: Callable[[bool], None],
        sender: ItemSender,
        on_taken: Callable[[], None],
        scope: TaskScope,
    ) -> None:
        self._sender = sender
        self._on_taken = on_taken
        self._scope = scope
        self._uploading: dict[int, list[asyncio.Task[None]]] = {}
        self._session = session
        self._outflow = outflow
        self._address = address
        self._now = now
        self._on_asked = on_asked
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, PromptFuture | AskedStream] = {}
        self._control_places = asyncio.Semaphore(max_control_calls)
        self._max_calls = max_calls  # as many as a peer lets wait; not a semaphore, for a lone call waits for nothing
        self._in_line: dict[asyncio.Future[None], None] = {}  # in order; an empty deque takes 700 bytes a session

    async def call(
        self,
        endpoint: str,
        args: list[Any],
        kwargs: dict[str, Any],
        *,
        timeout_s: float | None,
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        """The peer's answer. Raises as `SessionConnection.call` says.

        One coroutine, whichever way a call goes: each one that is awaited inside another costs 0.3 us a call.
        """
        if type(endpoint) is not str or not 0 < len(endpoint) <= MAX_ENDPOINT_CHARS:
            raise no_endpoint(endpoint)  # sent, it would end the session with every other call
        now = self._now()
        deadline = None if timeout_s is None else now + timeout_s
        is_control = endpoint.startswith(CONTROL_PREFIX)
        if is_control:
            await self._take_control_place(deadline)
            now = self._now()
        else:
            # The overlay's calls carry none: they ask strangers, who could tell by it which lookups are of one task.
            if (traceparent := carried()) is not None:
                options = carrying(options, traceparent)
            if (self._outflow.is_full and self._is_much_unsent()) or len(self._waiting) >= self._max_calls:
                await self._wait_for_room(deadline)
                now = self._now()
        try:
            session = self._session
            if session.is_closing or session.is_draining or session.is_refusing:  # `takes_calls`, without a step more
                raise PeerUnavailable(f"the session with {self._address} is closed")
            try:
                call_id = session.call(endpoint, args, kwargs, now=now, deadline=deadline, options=options)
            except (FrameTooLarge, TypeError, ValueError, OverflowError) as error:
                raise unsendable(endpoint, args, kwargs, error) from error
            answer = self._waiting[call_id] = PromptFuture(loop=self._loop)
            self._on_asked(len(self._waiting) == 1)
            try:
                return await answer
            except asyncio.CancelledError:
                self._withdraw(call_id)
                raise
            except _Expired:
                raise Timeout(f"{self._address} did not answer {endpoint} in the time given") from None
        finally:
            if is_control:
                self._control_places.release()
            if self._in_line:
                self._call_up()

    async def call_uploading(
        self,
        endpoint: str,
        args: list[Any],
        kwargs: dict[str, Any],
        *,
        uploads: Uploads,
        timeout_s: float | None,
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        """The same for a call with uploads, which are iterated until the call ends. Raises what they raise, too."""
        deadline = await self._wait_to_stream(endpoint, timeout_s)
        call_id = self._begin(endpoint, args, kwargs, deadline=deadline, options=options, uploads=uploads)
        answer = self._waiting[call_id] = PromptFuture(loop=self._loop)
        self._start_uploads(call_id, endpoint, uploads)
        self._on_asked(len(self._waiting) == 1)
        try:
            return await answer
        except asyncio.CancelledError:
            self._withdraw(call_id)
            raise
        except _Expired:
            raise Timeout(f"{self._address} did not answer {endpoint} in the time given") from None
        finally:
            self._call_up()

    async def open_stream(
        self,
        endpoint: str,
        args: list[Any],
        kwargs: dict[str, Any],
        *,
        uploads: Uploads,
        timeout_s: float | None,
        options: Mapping[str, Any] | None = None,
    ) -> AskedStream:
        """A call whose result is a stream, which has to be closed; within `timeout_s` it is on its way."""
        await self._wait_to_stream(endpoint, timeout_s)
        call_id = self._begin(endpoint, args, kwargs, options=options, has_items=True, uploads=uploads)
        stream = self._waiting[call_id] = AskedStream(
            self._session,
            self._session.streams.readers(call_id)[0],
            endpoint=endpoint,
            address=self._address,
            on_taken=self._on_taken,
            withdraw=self._withdraw,
        )
        self._start_uploads(call_id, endpoint, uploads)
        self._on_asked(len(self._waiting) == 1)
        return stream

    def on_items(self, call_id: int) -> None:
        """Items of a stream arrived."""
        stream = self._waiting.get(call_id)
        if isinstance(stream, AskedStream):
            stream.on_items()

    def end_stream(self, call_id: int) -> None:
        """A stream is at its end."""
        stream = self._pop(call_id)
        if isinstance(stream, AskedStream):
            stream.finish()

    def end(self, call_id: int, outcome: Any) -> None:
        """The call returned this."""
        answer = self._pop(call_id)
        if answer is not None and not answer.done():
            answer.set_result(outcome)

    def fail(self, call_id: int, error: Exception) -> None:
        """The call did not return."""
        answer = self._pop(call_id)
        if answer is not None and not answer.done():
            answer.set_exception(error)

    def expire(self, call_id: int) -> None:
        """The time given for the call ran out."""
        self.fail(call_id, _Expired())

    def _withdraw(self, call_id: int) -> None:
        if self._pop(call_id) is not None:
            self._session.cancel(call_id)
            self._on_asked(False)

    def _pop(self, call_id: int) -> PromptFuture | AskedStream | None:
        if self._uploading:
            own = asyncio.current_task()
            for task in self._uploading.pop(call_id, ()):
                if task is not own:
                    task.cancel()
        ended = self._waiting.pop(call_id, None)
        if self._in_line and isinstance(ended, AskedStream):
            self._call_up()  # a call does that itself, once it is told
        return ended

    async def _wait_to_stream(self, endpoint: str, timeout_s: float | None) -> float | None:
        """Return when a call with streams may be begun, with its deadline. Raises as `call` does."""
        if type(endpoint) is not str or not 0 < len(endpoint) <= MAX_ENDPOINT_CHARS:
            raise no_endpoint(endpoint)
        if endpoint.startswith(CONTROL_PREFIX):
            raise ConfigError(f"{endpoint} is of the overlay, which has no streams")
        deadline = None if timeout_s is None else self._now() + timeout_s
        await self._wait_for_room(deadline)
        if not self._session.takes_calls:
            self._call_up()  # its turn was of no use
            raise PeerUnavailable(f"the session with {self._address} is closed")
        return deadline

    def _begin(
        self,
        endpoint: str,
        args: list[Any],
        kwargs: dict[str, Any],
        *,
        deadline: float | None = None,
        options: Mapping[str, Any] | None,
        has_items: bool = False,
        uploads: Uploads,
    ) -> int:
        if (traceparent := carried()) is not None:
            options = carrying(options, traceparent)
        try:
            return self._session.call(
                endpoint,
                args,
                kwargs,
                now=self._now(),
                deadline=deadline,
                options=options,
                has_items=has_items,
                uploads=tuple(uploads),
            )
        except (FrameTooLarge, TypeError, ValueError, OverflowError) as error:
            self._call_up()
            raise unsendable(endpoint, args, kwargs, error) from error

    def _start_uploads(self, call_id: int, endpoint: str, uploads: Uploads) -> None:
        if uploads:
            self._uploading[call_id] = [
                self._scope.spawn(self._upload(call_id, part, endpoint, place, items), name=f"upload for {endpoint}")
                for part, (place, items) in enumerate(uploads.items())
            ]

    async def _upload(self, call_id: int, part: int, endpoint: str, place: Place, items: AsyncIterable[Any]) -> None:
        """Send what an argument gives until it or the call ends. A failure of its own ends the call."""
        try:
            async with contextlib.AsyncExitStack() as at_end:
                if hasattr(items, "aclose"):
                    at_end.push_async_callback(items.aclose)
                index = 0
                async for item in items:
                    try:
                        await self._sender.send(call_id, item, part)
                    except (FrameTooLarge, TypeError, ValueError, OverflowError) as error:
                        raise unsendable_item(endpoint, place, index, item, error) from error
                    index += 1
        except asyncio.CancelledError as error:
            own = asyncio.current_task()
            if own is None or own.cancelling():
                raise
            self._fail_upload(call_id, SynapseError(f"an upload of {endpoint} was cancelled from within: {error!r}"))
        except Exception as error:
            self._fail_upload(call_id, error)
        else:
            self._sender.end(call_id, part)

    def _fail_upload(self, call_id: int, error: Exception) -> None:
        self._session.cancel(call_id)
        self.fail(call_id, error)
        self._on_asked(False)

    async def _take_control_place(self, deadline: float | None) -> None:
        """Take one of the places for overlay calls of ours: a burst of them waits here instead of being refused there.

        Raises Timeout.
        """
        if not self._control_places.locked():
            await self._control_places.acquire()  # at once: the limit of time below costs ten times as much
            return
        try:
            async with asyncio.timeout(self._left_s(deadline)):
                await self._control_places.acquire()
        except TimeoutError:
            raise Timeout(f"too many calls to {self._address} were waiting; this one was not started") from None

    async def _wait_for_room(self, deadline: float | None) -> None:
        """Return when one more call may be queued, or the stream has ended. Raises Timeout.

        A burst of calls stands in line here instead of being refused there.
        """
        try:
            async with asyncio.timeout(self._left_s(deadline)):
                while True:
                    if self._outflow.is_full and self._is_much_unsent():
                        await self._outflow.wait_for_room()
                    elif len(self._waiting) >= self._max_calls and self._session.takes_calls:
                        await self._stand_in_line()
                    else:
                        return
        except TimeoutError:
            raise Timeout(f"{self._address} takes no more calls now; this one was not started") from None

    def _is_much_unsent(self) -> bool:
        """Whether calls of ours are held back already. Items are not counted: calls leave before these."""
        return self._session.outbox.call_bytes() > MUCH_BYTES

    async def _stand_in_line(self) -> None:
        place: asyncio.Future[None] = self._loop.create_future()
        self._in_line[place] = None
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self._call_up()  # it was our turn, and is the next one's now
            raise

    def _call_up(self) -> None:
        while self._in_line:
            place = next(iter(self._in_line))
            del self._in_line[place]
            if not place.done():
                place.set_result(None)
                return

    def _left_s(self, deadline: float | None) -> float | None:
        return None if deadline is None else deadline - self._now()


class _Expired(Exception):
    """What a future holds until the call that waits for it, which knows its own name, has worded it."""
