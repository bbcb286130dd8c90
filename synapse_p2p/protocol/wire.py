"""Bounded MsgPack, and the frames and messages that travel inside a session.

Owns every limit on what is decoded. Decides nothing about calls: that is `session.py`. Layout: docs/spec/wire.md.

    frame:    u8 kind | u24 length | body          kind 0 control, 1 task (2, part, comes with streaming)
    message:  MsgPack array [type, id, ...]        id 0 where a message belongs to no call
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NoReturn, TypeAlias

import msgpack

from synapse_p2p.exceptions import FrameTooLarge, InvalidMessageError, ProtocolViolation

FRAME_HEADER_BYTES = 4
MAX_U24 = 2**24 - 1
MAX_DEPTH = 32
MAX_ENDPOINT_CHARS = 256
MAX_FAIL_MESSAGE_CHARS = 2048
MAX_ID = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Limits:
    """What one decoded value may hold.

    `max_elements` and `max_map_entries` are budgets over all containers together: a limit on each container alone does
    not stop a megabyte of empty lists. A list weighs 4 elements and a map 8 besides what they hold, for an empty one
    takes 64 bytes where an element takes 8.
    """

    max_elements: int
    max_map_entries: int
    max_depth: int = MAX_DEPTH


CONTROL_LIMITS = Limits(max_elements=8_192, max_map_entries=8_192)
TASK_LIMITS = Limits(max_elements=262_144, max_map_entries=65_536)

_LIST_WEIGHT = 4
_MAP_WEIGHT = 8
_MAX_UNCHECKED_BYTES = 1024


def pack(value: Any) -> bytes:
    """MsgPack bytes of a value. Raises TypeError, ValueError or OverflowError for what MsgPack cannot carry."""
    packed = msgpack.packb(value)
    assert packed is not None, "packb returns bytes; its type says more"
    return packed


def unpack(data: bytes | memoryview, limits: Limits) -> Any:
    """The one value that `data` holds. Raises InvalidMessageError; nothing a peer sends raises anything else.

    Cost: one pass, two above 1 KiB; extension types, surplus bytes, map keys that are not text or bytes, and values
    past the limits are refused.
    """
    elements = limits.max_elements
    entries = limits.max_map_entries

    def count_list(items: list[Any]) -> list[Any]:
        nonlocal elements
        elements -= len(items) + _LIST_WEIGHT
        if elements < 0:
            raise ValueError("too many elements")
        return items

    def count_map(items: dict[Any, Any]) -> dict[Any, Any]:
        nonlocal entries, elements
        entries -= len(items)
        elements -= _MAP_WEIGHT
        if entries < 0 or elements < 0:
            raise ValueError("too many map entries")
        return items

    try:
        if len(data) > _MAX_UNCHECKED_BYTES:
            _refuse_empty_promises(data)
        value = msgpack.unpackb(
            data,
            list_hook=count_list,
            object_hook=count_map,
            max_array_len=min(limits.max_elements, len(data)),
            max_map_len=limits.max_map_entries,
            max_ext_len=0,
            ext_hook=_refuse_extension,
        )
    except Exception as error:
        # msgpack raises half a dozen unrelated types here (ValueError, StackError, OverflowError, UnicodeDecodeError
        # ...).
        raise InvalidMessageError(f"not a valid MsgPack message: {type(error).__name__}") from error
    # Nesting takes containers, and each has its weight: most messages hold too few to be too deep.
    may_be_deep = limits.max_elements - elements > _LIST_WEIGHT * limits.max_depth
    if may_be_deep and _is_deeper_than(value, limits.max_depth):
        raise InvalidMessageError(f"nested deeper than {limits.max_depth}")
    return value


def _refuse_empty_promises(data: bytes | memoryview) -> None:
    """Raise for a value that is not whole, before anything of it is built.

    msgpack makes room for what an array announces before its elements come, so 3 KiB of nested announcements would take
    60 MiB and 40 ms. In a value that is whole they add up to its bytes at most; below 1 KiB they come to 3 MiB.
    """
    unpacker = msgpack.Unpacker(max_buffer_size=len(data), read_size=len(data))
    unpacker.feed(data)
    unpacker.skip()


def _refuse_extension(code: int, data: bytes) -> NoReturn:
    raise ValueError("extension types are not used")


def _is_deeper_than(value: Any, max_depth: int) -> bool:
    level = [value] if type(value) in (list, dict) else []
    for _ in range(max_depth):
        below: list[Any] = []
        for container in level:
            items = container.values() if type(container) is dict else container
            below.extend(item for item in items if type(item) is list or type(item) is dict)
        if not below:
            return False
        level = below
    return True


class FrameKind(IntEnum):
    """Which queue and which limit a frame belongs to."""

    CONTROL = 0
    TASK = 1


class MessageType(IntEnum):
    """The first element of a message. Numbers are for ever; 8 to 10 are streaming's."""

    CALL = 1
    RESULT = 2
    FAIL = 3
    CANCEL = 4
    PING = 5
    PONG = 6
    GOODBYE = 7


@dataclass(frozen=True, slots=True)
class Call:
    """`[1, id, endpoint, args, kwargs, options]`: please run this."""

    id: int
    endpoint: str
    args: list[Any]
    kwargs: dict[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Result:
    """`[2, id, value]`: it returned."""

    id: int
    value: Any


@dataclass(frozen=True, slots=True)
class Fail:
    """`[3, id, code, message, details]`: it did not return."""

    id: int
    code: str
    message: str
    details: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Cancel:
    """`[4, id]`: nobody wants the answer any more."""

    id: int


@dataclass(frozen=True, slots=True)
class Ping:
    """`[5, 0]`: are you there?"""


@dataclass(frozen=True, slots=True)
class Pong:
    """`[6, 0]`: I am."""


@dataclass(frozen=True, slots=True)
class Goodbye:
    """`[7, 0, code, text]`: I take no new calls and will close."""

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """A message of a type this release does not serve. `id` is 0 where it names none."""

    type: int
    id: int


Message: TypeAlias = Call | Result | Fail | Cancel | Ping | Pong | Goodbye | Unknown


def encode_message(message: Message) -> bytes:
    """The MsgPack array of a message. Raises what `pack` raises, for values of the user's that cannot travel."""
    match message:
        case Call(id, endpoint, args, kwargs, options):
            return pack([MessageType.CALL, id, endpoint, args, kwargs, options])
        case Result(id, value):
            return pack([MessageType.RESULT, id, value])
        case Fail(id, code, text, details):
            return pack([MessageType.FAIL, id, code, text[:MAX_FAIL_MESSAGE_CHARS], details])
        case Cancel(id):
            return pack([MessageType.CANCEL, id])
        case Ping():
            return _PING
        case Pong():
            return _PONG
        case Goodbye(code, text):
            return pack([MessageType.GOODBYE, 0, code, text])
        case Unknown(number, id):
            return pack([number, id])


_PING = pack([int(MessageType.PING), 0])
_PONG = pack([int(MessageType.PONG), 0])


def check_readable(message: Message, body: bytes) -> None:
    """Raise ValueError for a task message that packs, but that the other end would refuse and close the session for.

    MsgPack carries keys that are numbers, any depth and any count; readers do not. Cost: none for plain values, else
    that of decoding `body`.
    """
    match message:
        case Call(_, _, args, kwargs):
            values = [*args, *kwargs.values()]
        case Result(_, value):
            values = [value]
        case Fail(_, _, _, details):
            values = [details]
        case _:
            return
    if all(type(value) in _PLAIN for value in values):
        return
    try:
        unpack(body, TASK_LIMITS)
    except InvalidMessageError as error:
        raise ValueError(f"the other end would not read it ({error.__cause__ or error})") from error


_PLAIN = frozenset({type(None), bool, int, float, str, bytes})


def decode_message(body: bytes | memoryview, kind: FrameKind) -> Message:
    """The message in a frame's body. Elements after the known ones are ignored. Raises InvalidMessageError."""
    value = unpack(body, CONTROL_LIMITS if kind is FrameKind.CONTROL else TASK_LIMITS)
    match value:
        case [int() as number, int() as call_id, *rest] if (
            _is_int(number) and _is_int(call_id) and 0 <= call_id <= MAX_ID
        ):
            return _decode(number, call_id, rest)
    raise InvalidMessageError("a message is an array that starts with a type and an id")


def _decode(number: int, call_id: int, rest: list[Any]) -> Message:
    match number, rest:
        case MessageType.CALL, [str() as endpoint, list() as args, dict() as kwargs, dict() as options, *_]:
            if len(endpoint) > MAX_ENDPOINT_CHARS:
                raise InvalidMessageError(f"an endpoint's name has at most {MAX_ENDPOINT_CHARS} characters")
            if not all(type(name) is str for name in kwargs) or not all(type(name) is str for name in options):
                raise InvalidMessageError("names of keyword arguments and options are text")
            return Call(_own_id(call_id), endpoint, args, kwargs, options)
        case MessageType.RESULT, [value, *_]:
            return Result(_own_id(call_id), value)
        case MessageType.FAIL, [str() as code, str() as text, (dict() | None) as details, *_]:
            return Fail(_own_id(call_id), code, text, details)
        case MessageType.CANCEL, _:
            return Cancel(_own_id(call_id))
        case MessageType.PING, _:
            return Ping()
        case MessageType.PONG, _:
            return Pong()
        case MessageType.GOODBYE, [str() as code, str() as text, *_]:
            return Goodbye(code, text)
    if number in set(MessageType):
        raise InvalidMessageError(f"a {MessageType(number).name} of another shape")
    return Unknown(number, call_id)


def _own_id(call_id: int) -> int:
    if call_id == 0:
        raise InvalidMessageError("a message of a call has an id above 0")
    return call_id


def _is_int(value: Any) -> bool:
    return type(value) is int  # True and False are ints to Python and no ids to us


def encode_frame(kind: FrameKind, body: bytes) -> bytes:
    """Header and body. Raises FrameTooLarge where the length does not fit its three bytes."""
    if len(body) > MAX_U24:
        raise FrameTooLarge(limit_bytes=MAX_U24, actual_bytes=len(body))
    return bytes((kind,)) + len(body).to_bytes(3, "big") + body


class FrameReader:
    """Cuts a byte stream into frames. Invariant: what is buffered is less than one frame within its limit."""

    __slots__ = ("_buffer", "_max_bytes", "_wanted_bytes")

    def __init__(self, *, max_control_frame_bytes: int, max_task_frame_bytes: int) -> None:
        self._buffer = bytearray()
        self._max_bytes = {FrameKind.CONTROL: max_control_frame_bytes, FrameKind.TASK: max_task_frame_bytes}
        self._wanted_bytes = FRAME_HEADER_BYTES  # in the buffer, before anything more can be said

    def feed(self, data: bytes) -> Iterator[tuple[FrameKind, bytes]]:
        """The frames that are whole now, in order; exhaust it before feeding more.

        Raises ProtocolViolation at the first unknown kind or too large frame, after the good ones before it.
        """
        if self._buffer:
            self._buffer += data
            # A frame that arrives in many pieces is joined once, not at every piece.
            if len(self._buffer) < self._wanted_bytes:
                return
            data = bytes(self._buffer)
            self._buffer.clear()
        position = yield from self._cut(data)
        self._buffer += data[position:]

    def buffered_bytes(self) -> int:
        """How much of an unfinished frame is held."""
        return len(self._buffer)

    def _cut(self, data: bytes) -> Generator[tuple[FrameKind, bytes], None, int]:
        position = 0
        self._wanted_bytes = FRAME_HEADER_BYTES
        while len(data) - position >= FRAME_HEADER_BYTES:
            try:
                kind = FrameKind(data[position])
            except ValueError:
                raise ProtocolViolation(f"unknown frame kind {data[position]}") from None
            size_bytes = int.from_bytes(data[position + 1 : position + FRAME_HEADER_BYTES], "big")
            if size_bytes > self._max_bytes[kind]:
                raise FrameTooLarge(limit_bytes=self._max_bytes[kind], actual_bytes=size_bytes)
            end = position + FRAME_HEADER_BYTES + size_bytes
            if end > len(data):
                self._wanted_bytes = end - position
                break
            yield kind, data[position + FRAME_HEADER_BYTES : end]
            position = end
        return position
