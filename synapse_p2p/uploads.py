"""The items that a caller sends after its call: how a handler reads them, and which arguments of a call they are.

A handler sees an asynchronous iterator, and needs no more of it than that. How items arrive is decided in
`protocol/streams.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeAlias

from synapse_p2p.exceptions import ConfigError
from synapse_p2p.protocol.wire import MAX_UPLOADS

Place: TypeAlias = str | int
"""Which argument: a name, or a position counted from 0."""

Uploads: TypeAlias = Mapping[Place, AsyncIterable[Any]]


_PLAIN = frozenset({type(None), bool, int, float, str, bytes, list, dict, tuple})
_NONE: Uploads = {}


class Upload(AsyncIterator[Any]):
    """What a parameter annotated `AsyncIterator[T]` receives. One task at a time may iterate it.

    `next_item` raises StopAsyncIteration after the last item.
    """

    def __init__(self, next_item: Callable[[], Awaitable[Any]]) -> None:
        self._next_item = next_item
        self._reading: Callable[[int, Any], Any] | None = None
        self._count = 0

    def read_with(self, reading: Callable[[int, Any], Any]) -> None:
        """From now on each item is what `reading` makes of its number and what was sent."""
        self._reading = reading

    async def __anext__(self) -> Any:
        item = await self._next_item()
        self._count += 1
        return item if self._reading is None else self._reading(self._count - 1, item)


def take_uploads(args: list[Any], kwargs: dict[str, Any]) -> Uploads:
    """The arguments that are asynchronous iterables; in their places None is left. Raises ConfigError for too many."""
    if _PLAIN.issuperset(map(type, args)) and (not kwargs or _PLAIN.issuperset(map(type, kwargs.values()))):
        return _NONE  # as most calls are; to look at each for a method costs three times as much
    uploads: dict[Place, AsyncIterable[Any]] = {}
    for position, value in enumerate(args):
        if hasattr(type(value), "__aiter__"):
            uploads[position] = value
            args[position] = None
    for name, value in kwargs.items():
        if hasattr(type(value), "__aiter__"):
            uploads[name] = value
            kwargs[name] = None
    if len(uploads) > MAX_UPLOADS:
        raise ConfigError(f"{len(uploads)} arguments are streams; one call carries {MAX_UPLOADS} at most")
    return uploads
