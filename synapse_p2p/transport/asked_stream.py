"""The result of one call of ours that is a stream: who waits for its items, and how it ends.

It ends once: with its last item, an error after the items that came before it, or because nobody reads it any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any

from synapse_p2p.exceptions import RemoteError, Timeout
from synapse_p2p.messages import Code
from synapse_p2p.protocol.session import Session
from synapse_p2p.protocol.streams import StreamReader


class AskedStream:
    """To its owner `AskedCalls` it is the future of a call, with an end in the place of a result.

    `on_taken` is told when an item was taken, for the peer may be granted more by that, and when those left were
    dropped; `withdraw` tells the peer that nobody reads.
    """

    def __init__(
        self,
        session: Session,
        reader: StreamReader,
        *,
        endpoint: str,
        address: str,
        on_taken: Callable[[], None],
        withdraw: Callable[[int], None],
    ) -> None:
        self._session = session
        self._reader = reader
        self._endpoint = endpoint
        self._address = address
        self._on_taken = on_taken
        self._withdraw = withdraw
        self._is_ended = False
        self._error: Exception | None = None
        self._waiting: asyncio.Future[None] | None = None
        self._is_closed = False

    # For who reads

    def has_item(self) -> bool:
        """Whether an item can be taken now."""
        return bool(self._reader)

    def take(self) -> Any:
        """The next item, where `has_item`."""
        item = self._session.take_item(self._reader)
        self._on_taken()
        return item

    async def wait(self, timeout_s: float | None) -> bool:
        """Return when an item can be taken, or false after the last. Raises the error it ended with; Timeout when none
        comes in time.
        """
        if not self._reader and not self._is_ended:
            self._waiting = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._waiting
            except TimeoutError:
                raise Timeout(
                    f"{self._address} sent no item of {self._endpoint} for {timeout_s} s; a stream that may be silent "
                    "for longer is one for with_options(timeout_s=None)"
                ) from None
            finally:
                self._waiting = None
        if self._reader:
            return True
        if self._error is not None:
            raise self._error
        return False

    def close(self) -> None:
        """Nobody reads any more: the peer stops, unless it has ended by itself."""
        if not self._is_closed:
            self._is_closed = True
            self._session.streams.drop(self._reader)
            self._on_taken()
            if not self._is_ended:
                self._is_ended = True
                self._withdraw(self._reader.call_id)

    def __enter__(self) -> AskedStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # For the owner

    def on_items(self) -> None:
        """Something has arrived."""
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def done(self) -> bool:
        """Whether it has ended."""
        return self._is_ended

    def finish(self) -> None:
        """The peer has sent the last item."""
        self._is_ended = True
        self.on_items()

    def set_result(self, _: Any) -> None:
        """The peer answered with one value, as releases do that know no streams."""
        text = f"{self._endpoint} returns one value: await client.call({self._endpoint!r}, ...)"
        self.set_exception(RemoteError(Code.BAD_REQUEST, text))

    def set_exception(self, error: Exception) -> None:
        """It failed, after the items that have arrived."""
        self._error = error
        self.finish()
