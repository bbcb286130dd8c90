"""Bounded MsgPack, and the frames and messages that travel inside a session.

Owns every limit on what is decoded. Decides nothing about calls: that is `session.py`. Layout: docs/spec/wire.md.

    frame:    u8 kind | u24 length | body          kind 0 control, 1 task, 2 part
    message:  MsgPack array [type, id, ...]        id 0 where a message belongs to no call
    part:     u64 id | u8 flags | bytes            the next bytes of a task message that is too long for one frame
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from typing import Any, NoReturn, TypeAlias, TypeVar, dataclass_transform

from msgpack import Packer, Unpacker, unpackb

from synapse_p2p.config import KIB, MAX_U24, MIB
from synapse_p2p.exceptions import FrameTooLarge, InvalidMessageError, ProtocolViolation

ValueT = TypeVar("ValueT")

FRAME_HEADER_BYTES = 4
MAX_DEPTH = 32
MAX_ENDPOINT_CHARS = 256
MAX_FAIL_MESSAGE_CHARS = 2048
MAX_GOODBYE_CODE_CHARS = 64  # as it is read: a peer's word in the errors of all calls of a session, and in the log
MAX_ID = 2**63 - 1
MAX_WHOLE_BYTES = 32 * KIB  # a longer task message travels as parts of so many bytes
PART_HEADER_BYTES = 9
MAX_UPLOADS = 8  # of one call
MAX_CREDIT_BYTES = MIB  # of items, that may be on their way in one stream


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
    small_bytes: int = field(init=False)  # a value of no more keeps to both budgets, whatever it holds

    def __post_init__(self) -> None:
        sizes = range(_MAX_SMALL_BYTES, 0, -1)
        object.__setattr__(self, "small_bytes", next((size for size in sizes if self.are_kept_by(size, size)), 0))

    def are_kept_by(self, size_bytes: int, containers: int) -> bool:
        """Whether a value of so many bytes, of which so many can begin a container, keeps to both budgets for sure."""
        # A value takes a byte or more and weighs 1 as an element, besides at most 8 as a container; a key and its
        # value take two.
        return size_bytes + _MAP_WEIGHT * containers <= self.max_elements and size_bytes <= 2 * self.max_map_entries


_LIST_WEIGHT = 4
_MAP_WEIGHT = 8
_MAX_UNCHECKED_BYTES = 1024
_MAX_PROMISES = 3 * 2**17
"""Elements that arrays may announce together where nobody looks whether they come: room of 3 MiB."""
_MAX_SMALL_BYTES = 512  # if each of them announced as many elements, that would be less than is promised above
_MAX_SEARCHED_BYTES = (
    4096  # in more there are too many that look like a container, and looking costs more than it saves
)

_CONTAINER_BYTES = frozenset((*range(0x80, 0xA0), *range(0xDC, 0xE0)))  # first bytes of maps and lists
_OTHER_BYTES = bytes(byte for byte in range(256) if byte not in _CONTAINER_BYTES)
_CONTAINER_MARKS = bytes(byte in _CONTAINER_BYTES for byte in range(256))
PLAIN_TYPES = frozenset({type(None), bool, int, float, str, bytes})

CONTROL_LIMITS = Limits(max_elements=8_192, max_map_entries=8_192)
TASK_LIMITS = Limits(max_elements=262_144, max_map_entries=65_536)


def pack(value: Any) -> bytes:
    """MsgPack bytes of a value. Raises TypeError, ValueError or OverflowError for what MsgPack cannot carry."""
    # Not `packb`, which wraps this in 0.1 us; not one Packer for all, which keeps the room of the largest it packed.
    return Packer(default=fields_of).pack(value)  # type: ignore[return-value] - bytes, where it does not gather them


def fields_of(value: Any) -> dict[str, Any]:
    """A dataclass instance as a map, one level deep: MsgPack asks again for what is below. Raises TypeError."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, int):
        raise OverflowError("an integer beyond 64 bits")
    raise TypeError(f"{type(value).__name__} is no value that MsgPack can carry")


def unpack(data: bytes | memoryview, limits: Limits) -> Any:
    """The one value that `data` holds. Raises InvalidMessageError; nothing a peer sends raises anything else.

    Cost: one pass, two above some KiB; extension types, surplus bytes, map keys that are not text or bytes, and values
    past the limits are refused.
    """
    size_bytes = len(data)
    try:
        if size_bytes <= limits.small_bytes:
            value = unpackb(data, max_ext_len=0, ext_hook=_refuse_extension)
            if size_bytes <= limits.max_depth:
                return value
            containers = bytes(data).translate(_CONTAINER_MARKS).count(1)  # of so few bytes quicker than the way below
        # Where few bytes can begin a container there is no budget to count down: 4 us instead of 16 for an answer with
        # twenty contacts.
        elif (
            size_bytes <= _MAX_SEARCHED_BYTES
            and type(data) is bytes
            and (containers := len(data.translate(None, _OTHER_BYTES))) * size_bytes <= _MAX_PROMISES
            and limits.are_kept_by(size_bytes, containers)
        ):
            value = unpackb(data, max_ext_len=0, ext_hook=_refuse_extension)
        else:
            value, spent = _unpack_counting(data, limits)
            containers = spent // _LIST_WEIGHT  # each has its weight
    except Exception as error:
        # msgpack raises half a dozen unrelated types here (ValueError, StackError, OverflowError, UnicodeDecodeError
        # ...).
        raise InvalidMessageError(f"not a valid MsgPack message: {type(error).__name__}") from error
    # Nesting takes containers: most messages hold too few to be too deep.
    if containers > limits.max_depth and _is_deeper_than(value, limits.max_depth):
        raise InvalidMessageError(f"nested deeper than {limits.max_depth}")
    return value


def _unpack_counting(data: bytes | memoryview, limits: Limits) -> tuple[Any, int]:
    """The value and what it weighs. Raises whatever msgpack raises, and ValueError past a budget."""
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

    if len(data) > _MAX_UNCHECKED_BYTES:
        _refuse_empty_promises(data)
    value = unpackb(
        data,
        list_hook=count_list,
        object_hook=count_map,
        max_array_len=min(limits.max_elements, len(data)),
        max_map_len=limits.max_map_entries,
        max_ext_len=0,
        ext_hook=_refuse_extension,
    )
    return value, limits.max_elements - elements


def _refuse_empty_promises(data: bytes | memoryview) -> None:
    """Raise for a value that is not whole, before anything of it is built.

    msgpack makes room for what an array announces before its elements come, so 3 KiB of nested announcements would take
    60 MiB and 40 ms. In a value that is whole they add up to its bytes at most; below 1 KiB they come to 3 MiB.
    """
    unpacker = Unpacker(max_buffer_size=len(data), read_size=len(data))
    unpacker.feed(data)
    unpacker.skip()


def _refuse_extension(code: int, data: bytes) -> NoReturn:
    raise ValueError("extension types are not used")


def _is_deeper_than(value: Any, max_depth: int) -> bool:
    level = [value] if type(value) in (list, dict) else []
    for _ in range(max_depth):
        # One comprehension for a whole level: a third of the time of one for each container.
        level = [
            item
            for container in level
            for item in (container.values() if type(container) is dict else container)
            if type(item) is list or type(item) is dict
        ]
        if not level:
            return False
    return True


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def quick_value(cls: type[ValueT]) -> type[ValueT]:
    """A dataclass with slots that nobody assigns to: type checkers hold it for frozen, at run time it is not.

    Python 3.11 makes a frozen one of five fields in 0.64 us and this one in 0.15; every call takes six such values.
    """
    return dataclass(slots=True, unsafe_hash=True)(cls)


class FrameKind(IntEnum):
    """Which queue and which limit a frame belongs to."""

    CONTROL = 0
    TASK = 1
    PART = 2


class MessageType(IntEnum):
    """The first element of a message. Numbers are for ever."""

    CALL = 1
    RESULT = 2
    FAIL = 3
    CANCEL = 4
    PING = 5
    PONG = 6
    GOODBYE = 7
    ITEM = 8
    END = 9
    CREDIT = 10


@dataclass(slots=True)
class Call:
    """`[1, id, endpoint, args, kwargs, options]`: please run this.

    `deadline` is what the session makes of the options when it arrives: on our clock, None for no limit.
    """

    id: int
    endpoint: str
    args: list[Any]
    kwargs: dict[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    deadline: float | None = None

    @property
    def wants_items(self) -> bool:
        """Whether the result is to be a stream."""
        return self.options.get("stream") is True


@quick_value
class Result:
    """`[2, id, value]`: it returned."""

    id: int
    value: Any


@quick_value
class Fail:
    """`[3, id, code, message, details]`: it did not return."""

    id: int
    code: str
    message: str
    details: Mapping[str, Any] | None = None


@quick_value
class Cancel:
    """`[4, id]`: nobody wants the answer any more."""

    id: int


@quick_value
class Ping:
    """`[5, 0]`: are you there?"""


@quick_value
class Pong:
    """`[6, 0]`: I am."""


@quick_value
class Goodbye:
    """`[7, 0, code, text]`: I take no new calls and will close."""

    code: str
    text: str


@quick_value
class Item:
    """`[8, id, value, part]`: the next value of a stream. `part` counts the uploads of a call; of results it is 0."""

    id: int
    value: Any
    part: int = 0


@quick_value
class End:
    """`[9, id, part]`: that was the last item."""

    id: int
    part: int = 0


@quick_value
class Credit:
    """`[10, id, bytes, part]`: so many more bytes of items may be sent."""

    id: int
    size_bytes: int
    part: int = 0


@quick_value
class Unknown:
    """A message of a type this release does not serve. `id` is 0 where it names none."""

    type: int
    id: int


Message: TypeAlias = Call | Result | Fail | Cancel | Ping | Pong | Goodbye | Item | End | Credit | Unknown


def encode_message(message: Message) -> bytes:
    """The MsgPack array of a message. Raises what `pack` raises, for values of the user's that cannot travel."""
    match message:
        case Call(id, endpoint, args, kwargs, options):
            return encode_call(id, endpoint, args, kwargs, options)
        case Result(id, value):
            return encode_result(id, value)
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
        case Item(id, value, part):
            return encode_item(id, value, part)
        case End(id, part):
            return pack([MessageType.END, id, part])
        case Credit(id, size_bytes, part):
            return pack([MessageType.CREDIT, id, size_bytes, part])
        case Unknown(number, id):
            return pack([number, id])


_PING = pack([int(MessageType.PING), 0])
_PONG = pack([int(MessageType.PONG), 0])


def encode_call(
    call_id: int, endpoint: str, args: list[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
) -> bytes:
    """What `encode_message` makes of a Call, without the Call."""
    # As `pack` does; through it, these two would cost every call 1 % more.
    return Packer(default=fields_of).pack((_CALL, call_id, endpoint, args, kwargs, options))  # type: ignore[return-value]


def encode_result(call_id: int, value: Any) -> bytes:
    """What `encode_message` makes of a Result, without the Result."""
    return Packer(default=fields_of).pack((_RESULT, call_id, value))  # type: ignore[return-value]


def encode_item(call_id: int, value: Any, part: int) -> bytes:
    """What `encode_message` makes of an Item, without the Item."""
    return pack((_ITEM, call_id, value, part))


_CALL = int(MessageType.CALL)
_RESULT = int(MessageType.RESULT)
_ITEM = int(MessageType.ITEM)


def check_readable(values: Sequence[Any], body: bytes) -> None:
    """Raise ValueError for a task message of ours that packs, but for which the other end would close the session.

    MsgPack carries keys that are numbers, any depth and any count; readers do not. `values` are the user's, `body` is
    the message that holds them. Cost: none for plain values, else that of decoding `body`.
    """
    # By themselves they are in every budget too, while they are few.
    if len(values) < MAX_UNCOUNTED_VALUES:
        for value in values:  # mostly one: a loop is a third of `issuperset` over a map
            if type(value) not in PLAIN_TYPES:
                break
        else:
            return
    try:
        unpack(body, TASK_LIMITS)
    except InvalidMessageError as error:
        raise ValueError(f"the other end would not read it ({error.__cause__ or error})") from error


MAX_UNCOUNTED_VALUES = 1024


def decode_message(body: bytes | memoryview, kind: FrameKind) -> Message:
    """The message in a frame's body. Elements after the known ones are ignored. Raises InvalidMessageError."""
    elements = unpack(body, CONTROL_LIMITS if kind is _CONTROL else TASK_LIMITS)
    if type(elements) is not list or len(elements) < 2:
        raise InvalidMessageError("a message is an array that starts with a type and an id")
    number, call_id = elements[0], elements[1]
    # True and False are ints to Python and no ids to us.
    if type(number) is not int or type(call_id) is not int or not 0 <= call_id <= MAX_ID:
        raise InvalidMessageError("a message is an array that starts with a type and an id")
    # The two that every call takes, and those of which a stream has many, are told apart by hand: a match statement
    # costs three times as much.
    if call_id:
        if number == _RESULT and len(elements) > 2:
            return Result(call_id, elements[2])
        if number == _CALL and len(elements) > 5:
            return _decode_call(call_id, elements)
        if number == _ITEM and len(elements) > 3:
            return Item(call_id, elements[2], _part_of(elements[3]))
    return _decode_rarer(number, call_id, elements[2:])


_CONTROL = FrameKind.CONTROL  # in Python 3.11 finding a member in its class takes ten times as long as reading a name


def _decode_call(call_id: int, elements: list[Any]) -> Call:
    _, _, endpoint, args, kwargs, options = elements if len(elements) == _CALL_ELEMENTS else elements[:_CALL_ELEMENTS]
    if type(endpoint) is not str or type(args) is not list or type(kwargs) is not dict or type(options) is not dict:
        raise InvalidMessageError("a CALL of another shape")
    if len(endpoint) > MAX_ENDPOINT_CHARS:
        raise InvalidMessageError(f"an endpoint's name has at most {MAX_ENDPOINT_CHARS} characters")
    for names in (kwargs, options) if kwargs else (options,):
        for name in names:  # mostly one: `issuperset` over a map takes twice as long
            if type(name) is not str:
                raise InvalidMessageError("names of keyword arguments and options are text")
    return Call(call_id, endpoint, args, kwargs, options)


_CALL_ELEMENTS = 6


def _decode_rarer(number: int, call_id: int, rest: list[Any]) -> Message:
    if call_id == 0 and number in _OF_A_CALL:
        raise InvalidMessageError("a message of a call has an id above 0")
    match number, rest:
        case MessageType.FAIL, [str() as code, str() as text, (dict() | None) as details, *_]:
            return Fail(call_id, code, text, details)
        case MessageType.CANCEL, _:
            return Cancel(call_id)
        case MessageType.PING, _:
            return Ping()
        case MessageType.PONG, _:
            return Pong()
        case MessageType.GOODBYE, [str() as code, str() as text, *_]:
            return Goodbye(code[:MAX_GOODBYE_CODE_CHARS], text[:MAX_FAIL_MESSAGE_CHARS])
        case MessageType.END, [part, *_]:
            return End(call_id, _part_of(part))
        case MessageType.CREDIT, [size_bytes, part, *_] if type(size_bytes) is int and 0 < size_bytes <= MAX_ID:
            return Credit(call_id, size_bytes, _part_of(part))
    if number in set(MessageType):
        raise InvalidMessageError(f"a {MessageType(number).name} of another shape")
    return Unknown(number, call_id)


_OF_A_CALL = frozenset(MessageType) - {MessageType.PING, MessageType.PONG, MessageType.GOODBYE}


def _part_of(value: Any) -> int:
    if type(value) is not int or not 0 <= value < MAX_UPLOADS:
        raise InvalidMessageError(f"a stream's number is 0 to {MAX_UPLOADS - 1}")
    return value


def encode_frame(kind: FrameKind, body: bytes) -> bytes:
    """Header and body. Raises FrameTooLarge where the length does not fit its three bytes."""
    size_bytes = len(body)
    if size_bytes > MAX_U24:
        raise FrameTooLarge(limit_bytes=MAX_U24, actual_bytes=size_bytes)
    return HEADER.pack(kind << 24 | size_bytes) + body


HEADER = struct.Struct(">I")  # of a frame: the kind is its top byte, the length the other three
WHOLE_TASK = FrameKind.TASK << 24  # in the header of a task message that is no longer than MAX_WHOLE_BYTES
_KINDS = tuple(FrameKind)


class PartFlag(IntFlag):
    """What a part is of its message; one in the middle is neither."""

    LAST = 1
    FIRST = 2


@quick_value
class Part:
    """Some bytes of a task message of call `id`."""

    id: int
    is_first: bool
    is_last: bool
    data: bytes | memoryview


def encode_part(call_id: int, flags: int, data: bytes | memoryview) -> bytes:
    """The whole frame of a part."""
    return b"".join((_PART_FRAME.pack(_PART_KIND | len(data) + PART_HEADER_BYTES, call_id, flags), data))


def decode_part(body: bytes) -> Part:
    """The part in a frame's body. Raises InvalidMessageError for one without bytes or with flags of a later release."""
    if len(body) <= PART_HEADER_BYTES:
        raise InvalidMessageError("a part holds some bytes of a message")
    call_id, flags = _PART_HEADER.unpack_from(body)
    if not 0 < call_id <= MAX_ID or flags > PartFlag.FIRST:
        raise InvalidMessageError("a part of no call, or with flags that this release does not know")
    return Part(call_id, flags == PartFlag.FIRST, flags == PartFlag.LAST, memoryview(body)[PART_HEADER_BYTES:])


def begins_call(data: bytes | memoryview) -> bool:
    """Whether a task message that begins with these bytes is a CALL."""
    return len(data) > 1 and 0x96 <= data[0] <= 0x9F and data[1] == _CALL


_PART_HEADER = struct.Struct(">QB")
_PART_FRAME = struct.Struct(">IQB")
_PART_KIND = FrameKind.PART << 24


class FrameReader:
    """Cuts a byte stream into frames. Invariant: what is buffered is less than one frame within its limit."""

    __slots__ = ("_buffer", "_max_bytes", "_wanted_bytes")

    def __init__(self, *, max_control_frame_bytes: int, max_task_frame_bytes: int) -> None:
        self._buffer = bytearray()
        # By FrameKind.
        self._max_bytes = (max_control_frame_bytes, max_task_frame_bytes, PART_HEADER_BYTES + MAX_WHOLE_BYTES)
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
        self._wanted_bytes = FRAME_HEADER_BYTES
        max_bytes = self._max_bytes
        arrived_bytes = len(data)
        position = 0
        while (body_at := position + FRAME_HEADER_BYTES) <= arrived_bytes:
            (header,) = HEADER.unpack_from(data, position)
            number, size_bytes = header >> 24, header & MAX_U24
            if number >= len(max_bytes):
                raise ProtocolViolation(f"unknown frame kind {number}")
            if size_bytes > max_bytes[number]:
                raise FrameTooLarge(limit_bytes=max_bytes[number], actual_bytes=size_bytes)
            end = body_at + size_bytes
            if end > arrived_bytes:
                self._wanted_bytes = end - position
                break
            yield _KINDS[number], data[body_at:end]
            position = end
        if position < arrived_bytes:
            self._buffer += data[position:]

    def buffered_bytes(self) -> int:
        """How much of an unfinished frame is held."""
        return len(self._buffer)
