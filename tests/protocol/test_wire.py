import contextlib
import gc
import json
import math
import time
import tracemalloc
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synapse_p2p.exceptions import FrameTooLarge, InvalidMessageError, ProtocolViolation
from synapse_p2p.protocol import wire
from synapse_p2p.protocol.wire import (
    CONTROL_LIMITS,
    MAX_ENDPOINT_CHARS,
    MAX_FAIL_MESSAGE_CHARS,
    MAX_GOODBYE_CODE_CHARS,
    MAX_ID,
    MAX_U24,
    TASK_LIMITS,
    Call,
    Cancel,
    Credit,
    End,
    Fail,
    FrameKind,
    FrameReader,
    Goodbye,
    Item,
    Limits,
    Message,
    MessageType,
    Ping,
    Pong,
    Result,
    Unknown,
    decode_message,
    encode_frame,
    encode_message,
    pack,
    unpack,
)

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "session_messages.json").read_text())["messages"]
MIB = 2**20

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False),
    st.text(max_size=20),
    st.binary(max_size=20),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8) | st.binary(max_size=8), inner, max_size=5)
    ),
    max_leaves=25,
)
MAPS = st.dictionaries(st.text(max_size=8), VALUES, max_size=3)
IDS = st.integers(1, MAX_ID)
MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(Call, IDS, st.text(max_size=MAX_ENDPOINT_CHARS), st.lists(VALUES, max_size=3), MAPS, MAPS),
    st.builds(Result, IDS, VALUES),
    st.builds(Fail, IDS, st.text(max_size=20), st.text(max_size=40), st.none() | MAPS),
    st.builds(Cancel, IDS),
    st.builds(Ping),
    st.builds(Pong),
    st.builds(Goodbye, st.text(max_size=20), st.text(max_size=40)),
    st.builds(Item, IDS, VALUES, st.integers(0, 7)),
    st.builds(End, IDS, st.integers(0, 7)),
    st.builds(Credit, IDS, st.integers(1, MAX_ID), st.integers(0, 7)),
    st.builds(Unknown, st.integers(11, 1000), st.integers(0, MAX_ID)),
)


def array_of(count: int, item: bytes) -> bytes:
    return b"\xdd" + count.to_bytes(4, "big") + item * count


def announced(count: int, rest: bytes) -> bytes:
    """An array that announces `count` elements and goes on with something else."""
    return b"\xdd" + count.to_bytes(4, "big") + rest


def nested(depth: int) -> bytes:
    return b"\x91" * (depth - 1) + b"\x90"


# Values


@given(VALUES)
def test_any_value_survives_the_wire(value: Any):
    assert unpack(pack(value), TASK_LIMITS) == value


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_any_bytes_are_a_value_or_an_invalid_message(data: bytes):
    try:
        value = unpack(data, CONTROL_LIMITS)
    except InvalidMessageError:
        return
    assert unpack(pack(value), CONTROL_LIMITS) == value or "nan" in repr(value)


@given(VALUES, st.data())
def test_a_value_cut_short_or_continued_is_invalid(value: Any, data: st.DataObject):
    packed = pack(value)

    for wrong in (packed[: data.draw(st.integers(0, len(packed) - 1))], packed + b"\xc0"):
        with pytest.raises(InvalidMessageError):
            unpack(wrong, TASK_LIMITS)


def test_nan_and_infinity_travel():
    assert math.isnan(unpack(pack(math.nan), CONTROL_LIMITS))
    assert unpack(pack([math.inf, -math.inf]), CONTROL_LIMITS) == [math.inf, -math.inf]


@pytest.mark.parametrize("value", [object(), {1, 2}, 2**64, -(2**63) - 1, "\ud800", {"deep": object()}])
def test_what_cannot_travel_raises_where_it_is_packed(value: Any):
    with pytest.raises((TypeError, ValueError, OverflowError)):
        pack(value)


def test_a_memoryview_is_read_as_its_bytes():
    assert unpack(memoryview(b"--" + pack({"a": [1]}))[2:], CONTROL_LIMITS) == {"a": [1]}


@pytest.mark.parametrize("depth", [1, 2, 31, 32, 33, 100, 1023, 1024, 1025, 60_000])
def test_depth_is_bounded_exactly(depth: int):
    if depth <= CONTROL_LIMITS.max_depth:
        assert pack(unpack(nested(depth), CONTROL_LIMITS)) == nested(depth)
    else:
        with pytest.raises(InvalidMessageError):
            unpack(nested(depth), CONTROL_LIMITS)


@pytest.mark.parametrize("depth", [32, 33])
def test_maps_count_for_depth_as_lists_do(depth: int):
    value: Any = {}
    for level in range(depth - 1):
        value = {"in": value} if level % 2 else [value, 1]

    if depth == 32:
        assert unpack(pack(value), CONTROL_LIMITS) == value
    else:
        with pytest.raises(InvalidMessageError, match="deeper than 32"):
            unpack(pack(value), CONTROL_LIMITS)


@pytest.mark.parametrize(
    "extension",
    [
        b"\xc7\x00\x05",
        b"\xc7\x00\xff",
        b"\xd4\x05\x00",
        b"\xd6\xff\x00\x00\x00\x01",
        b"\xd7\xff" + b"\xff" * 8,
        b"\xc7\x0c\xff" + b"\xff" * 12,
        b"\xc7\x01\xff\x00",
        b"\xc9\xff\xff\xff\xff\x01",
    ],
    ids=["empty", "empty time", "one byte", "time", "time 64", "time 96", "time of 1 byte", "4 GiB announced"],
)
@pytest.mark.parametrize("inside", [b"", b"\x91", b"\x81\xa1a"], ids=["alone", "in a list", "in a map"])
def test_extension_types_are_refused(extension: bytes, inside: bytes):
    with pytest.raises(InvalidMessageError):
        unpack(inside + extension, TASK_LIMITS)


@pytest.mark.parametrize("key", [1, None, True, 1.5, -(2**40)])
def test_a_map_key_that_is_neither_text_nor_bytes_is_refused(key: Any):
    with pytest.raises(InvalidMessageError):
        unpack(msgpack.packb({key: 1}), TASK_LIMITS)


@pytest.mark.parametrize("key", [b"\x90", b"\x80", b"\xd4\x05\x00"], ids=["list", "map", "extension"])
def test_a_map_key_that_is_no_scalar_is_refused(key: bytes):
    with pytest.raises(InvalidMessageError):
        unpack(b"\x81" + key + b"\x01", TASK_LIMITS)


@pytest.mark.parametrize("text", [b"\xa2\xff\xfe", b"\xa3\xed\xa0\x80", b"\xa1\x80"])
def test_text_that_is_not_utf_8_is_refused(text: bytes):
    with pytest.raises(InvalidMessageError):
        unpack(text, TASK_LIMITS)


# Budgets


LIMITS = Limits(max_elements=100, max_map_entries=50)


@given(VALUES)
def test_the_budget_is_what_a_count_of_the_value_says(value: Any):
    def weight(item: Any) -> int:
        match item:
            case list():
                return len(item) + wire._LIST_WEIGHT + sum(map(weight, item))
            case dict():
                return wire._MAP_WEIGHT + sum(map(weight, item.values()))
        return 0

    def entries(item: Any) -> int:
        match item:
            case list():
                return sum(map(entries, item))
            case dict():
                return len(item) + sum(map(entries, item.values()))
        return 0

    fits = weight(value) <= 40 and entries(value) <= 6
    try:
        unpack(pack(value), Limits(max_elements=40, max_map_entries=6))
    except InvalidMessageError:
        assert not fits
    else:
        assert fits


@pytest.mark.parametrize(
    ("value", "fits"),
    [
        ([None] * 96, True),
        ([None] * 97, False),
        ([[]] * 19, True),
        ([[]] * 20, False),
        ({str(number): None for number in range(50)}, True),
        ({str(number): None for number in range(51)}, False),
        ([{}] * 10, True),
        ([{}] * 11, False),
        ([{"a": 1}] * 10, True),
    ],
)
def test_containers_weigh_what_is_written(value: Any, fits: bool):
    if fits:
        assert unpack(pack(value), LIMITS) == value
    else:
        with pytest.raises(InvalidMessageError):
            unpack(pack(value), LIMITS)


DENSE = st.lists(
    st.sampled_from([b"\x90", b"\x91", b"\x80", b"\x81\xa0", b"\x93", b"\xc0", b"\xdc\x00\x02"]), max_size=120
)
SMALL_BODIES = st.one_of(st.binary(max_size=80), VALUES.map(pack), DENSE.map(b"".join))


@given(SMALL_BODIES, st.integers(1, 1000), st.integers(1, 60), st.integers(1, 40))
@settings(max_examples=400)
def test_few_bytes_are_judged_as_if_they_were_counted(data: bytes, elements: int, entries: int, depth: int):
    limits = Limits(max_elements=elements, max_map_entries=entries, max_depth=depth)

    assert reading_of(data, limits) == counted_reading_of(data, limits)


@pytest.mark.parametrize("limits", [CONTROL_LIMITS, TASK_LIMITS])
@pytest.mark.parametrize("fill", [b"\x90", b"\x80", b"\x91\x80", b"\xc0", b"\x81\xa0\x80"])
def test_as_many_bytes_as_are_not_counted_are_within_the_budgets(limits: Limits, fill: bytes):
    whole = max(
        (
            b"\xdc" + count.to_bytes(2, "big") + fill * count
            for count in range(4096 // len(fill))
            if limits.are_kept_by(3 + count * len(fill), 1 + count * containers_in(fill))
        ),
        key=len,
    )

    assert counted_reading_of(whole, limits) != "refused"
    assert counted_reading_of(whole, limits) == reading_of(whole, limits)


@pytest.mark.parametrize("count", [19, 20, 21, 30])
def test_a_map_that_announces_too_many_entries_is_refused_however_few_its_keys(count: int):
    limits = Limits(max_elements=10_000, max_map_entries=20)
    data = b"\xde" + count.to_bytes(2, "big") + b"\xa0\xc0" * count  # one key, again and again

    assert reading_of(data, limits) == counted_reading_of(data, limits)
    assert (reading_of(data, limits) == "refused") == (count > 20)


OPENERS = [
    b"\x91",
    b"\xdc\x00\x01",
    b"\xdd\x00\x00\x00\x01",
    b"\x81\xa0",
    b"\xde\x00\x01\xa0",
    b"\xdf\x00\x00\x00\x01\xa0",
]


@pytest.mark.parametrize("depth", [31, 32, 33, 34])
@pytest.mark.parametrize("opener", OPENERS, ids=bytes.hex)
def test_depth_is_bounded_exactly_in_few_bytes(depth: int, opener: bytes):
    data = opener * (depth - 1) + b"\x90"

    assert TASK_LIMITS.are_kept_by(len(data), depth)
    assert (reading_of(data, TASK_LIMITS) == "refused") == (depth > TASK_LIMITS.max_depth)


def containers_in(data: bytes) -> int:
    return sum(0x80 <= byte <= 0x9F or byte >= 0xDC for byte in data if byte < 0xE0)


def reading_of(data: bytes, limits: Limits) -> Any:
    try:
        return repr(unpack(data, limits))  # of NaN, which is not what it is
    except InvalidMessageError:
        return "refused"


def counted_reading_of(data: bytes, limits: Limits) -> Any:
    """The same as a memoryview, of which every container is counted, however small it is."""
    return reading_of(memoryview(data), limits)  # type: ignore[arg-type]


def bombs(size_bytes: int, limits: Limits) -> dict[str, bytes]:
    """Inputs of about `size_bytes` that would take 50 times their size, or more, if nothing were counted."""
    rows = size_bytes // 1024
    maps = size_bytes // 3
    most = limits.max_elements
    return {
        "empty lists": array_of(size_bytes - 5, b"\x90"),
        "empty maps": array_of(size_bytes - 5, b"\x80"),
        "maps of one": array_of(maps, b"\x81\xa0\xc0"),
        "rows of empty lists": array_of(rows, b"\xdc\x03\xff" + b"\x90" * 1023),
        "rows of empty maps": array_of(rows, b"\xdc\x03\xff" + b"\x80" * 1023),
        "rows of maps of one": array_of(rows, b"\xdc\x01\x55" + b"\x81\xa0\xc0" * 341),
        "as many lists as a list may have": array_of(min(most, size_bytes - 5), b"\x90"),
        "as many maps as a list may have": array_of(min(most, maps), b"\x81\xa0\xc0"),
        "a wide map": b"\xdf"
        + (size_bytes // 6).to_bytes(4, "big")
        + b"".join(b"\xa4%04x\xc0" % (number & 0xFFFF) for number in range(size_bytes // 6)),
        "short chains": array_of(min(most, size_bytes // 4), b"\x91\x91\x91\xc0"),
        "nested announcements": announced(most, b"") * 1000,
        "nested announcements of 16 bits": b"\xdc\x20\x00" * 1000,
        "nested announcements, padded": announced(min(most, 32_000), b"") * 1000 + b"\xc0" * (size_bytes - 5000),
        "nested and whole": b"\xdc\x03\xe8" * 1000 + b"\xc0" * (999 * 1000 + 1),
        "2^31 elements announced": b"\xdd\x80\x00\x00\x00",
        "2^31 entries announced": b"\xdf\x80\x00\x00\x00",
        "4 GiB of text announced": b"\xdb\xff\xff\xff\xff",
        "4 GiB of bytes announced": b"\xc6\xff\xff\xff\xff",
        "too deep": b"\x91" * size_bytes,
    }


BOMBS = {
    **{f"control: {name}": (CONTROL_LIMITS, data) for name, data in bombs(64 * 1024, CONTROL_LIMITS).items()},
    **{f"task: {name}": (TASK_LIMITS, data) for name, data in bombs(MIB, TASK_LIMITS).items()},
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_at_little_cost(name: str):
    limits, data = BOMBS[name]

    # Without the budgets: 60 to 75 MiB and up to a second, each. 20 ms is the aim; the rest is for slow machines.
    assert min(refusal_time_of(data, limits) for _ in range(3)) < 5 * 0.020
    assert refusal_peak_of(data, limits) < 8 * MIB


def refusal_time_of(data: bytes, limits: Limits) -> float:
    gc.collect()
    gc.freeze()  # or the time is that of the collector among what thousands of other tests have left
    started = time.process_time()
    with pytest.raises(InvalidMessageError):
        unpack(data, limits)
    return time.process_time() - started


def refusal_peak_of(data: bytes, limits: Limits) -> int:
    tracemalloc.start()
    try:
        with pytest.raises(InvalidMessageError):
            unpack(data, limits)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "announcement", [b"\xdc\x03\xff", b"\xdc\x20\x00", b"\xdd\x00\x00\x03\xff", b"\xdd\x00\x04\x00\x00"]
)
@pytest.mark.parametrize("size_bytes", [1024, 1085, 1200, 4096])
def test_announcements_too_few_to_be_looked_through_are_cheap_too(announcement: bytes, size_bytes: int):
    data = announcement * (size_bytes // len(announcement))

    assert refusal_peak_of(data, TASK_LIMITS) < 4 * MIB


# Messages


def message_of(meaning: dict[str, Any]) -> Message:
    fields = dict(meaning)
    kind = getattr(wire, fields.pop("type"))
    return kind(*fields.values())


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
def test_golden_bytes_are_read_as_they_mean(vector: dict[str, Any]):
    reader = FrameReader(max_control_frame_bytes=1000, max_task_frame_bytes=1000)

    [(kind, body)] = reader.feed(bytes.fromhex(vector["hex"]))

    assert decode_message(body, kind) == message_of(vector["meaning"])


@pytest.mark.parametrize("vector", [v for v in VECTORS if v["canonical"]], ids=lambda vector: vector["name"])
def test_golden_meanings_are_written_as_these_bytes(vector: dict[str, Any]):
    frame = bytes.fromhex(vector["hex"])

    assert encode_frame(FrameKind(frame[0]), encode_message(message_of(vector["meaning"]))) == frame


def test_every_type_of_message_has_golden_bytes_of_now_and_of_the_future():
    numbers = [(bytes.fromhex(vector["hex"])[5], vector["canonical"]) for vector in VECTORS]

    assert {(int(number), is_canonical) for number in MessageType for is_canonical in (True, False)} <= set(numbers)


@given(MESSAGES, st.sampled_from(FrameKind))
def test_any_message_survives_the_wire(message: Message, kind: FrameKind):
    assert decode_message(encode_message(message), kind) == message


@given(st.binary(max_size=100), st.sampled_from(FrameKind))
def test_any_bytes_are_a_message_or_invalid(data: bytes, kind: FrameKind):
    with contextlib.suppress(InvalidMessageError):
        assert isinstance(decode_message(data, kind), get_args(Message))


@given(st.lists(VALUES, max_size=7), st.integers(0, 12), st.integers(0, 3) | st.just(MAX_ID))
def test_any_array_is_a_message_or_invalid(rest: list[Any], number: int, call_id: int):
    try:
        message = decode_message(pack([number, call_id, *rest]), FrameKind.TASK)
    except InvalidMessageError:
        assert number in set(MessageType)
    else:
        assert isinstance(message, Unknown) == (number not in set(MessageType))


RIGHT: dict[MessageType, list[Any]] = {
    MessageType.CALL: [1, 2, "sum", [], {}, {}],
    MessageType.RESULT: [2, 2, None],
    MessageType.FAIL: [3, 2, "busy", "", None],
    MessageType.CANCEL: [4, 2],
    MessageType.PING: [5, 0],
    MessageType.PONG: [6, 0],
    MessageType.GOODBYE: [7, 0, "closing", ""],
}
OTHER_VALUES = [None, True, -1, 1.5, "text", b"bytes", [], {}, {b"key": 1}, 2**63]
ALLOWED = {  # what element `index` of message `type` may be of OTHER_VALUES
    (1, 2): ["text"],
    (1, 3): [[]],
    (1, 4): [{}],
    (1, 5): [{}],
    (2, 2): OTHER_VALUES,
    (3, 2): ["text"],
    (3, 3): ["text"],
    (3, 4): [None, {}, {b"key": 1}],
    (7, 2): ["text"],
    (7, 3): ["text"],
}
WRONG_ELEMENTS = [
    (number, index, value)
    for number, right in RIGHT.items()
    for index in range(1, len(right))
    for value in OTHER_VALUES
    if not any(value == good and type(value) is type(good) for good in ALLOWED.get((number, index), []))
]


@pytest.mark.parametrize("number", RIGHT)
def test_the_messages_that_the_wrong_ones_are_made_of_are_right(number: MessageType):
    assert not isinstance(decode_message(pack(RIGHT[number]), FrameKind.TASK), Unknown)


@pytest.mark.parametrize(("number", "index", "value"), WRONG_ELEMENTS)
def test_an_element_of_another_kind_is_invalid(number: MessageType, index: int, value: Any):
    elements = list(RIGHT[number])
    elements[index] = value

    with pytest.raises(InvalidMessageError):
        decode_message(pack(elements), FrameKind.TASK)


@pytest.mark.parametrize("number", RIGHT)
def test_a_message_without_its_last_element_is_invalid(number: MessageType):
    for size in range(len(RIGHT[number])):
        with pytest.raises(InvalidMessageError):
            decode_message(pack(RIGHT[number][:size]), FrameKind.TASK)


@pytest.mark.parametrize("number", [MessageType.CALL, MessageType.RESULT, MessageType.FAIL, MessageType.CANCEL])
def test_a_message_of_a_call_has_an_id_above_zero(number: MessageType):
    with pytest.raises(InvalidMessageError, match="above 0"):
        decode_message(pack([number, 0, *RIGHT[number][2:]]), FrameKind.TASK)


@pytest.mark.parametrize("value", [None, True, 5, "text", {}, {"1": 2}, [], [5], [True, 0], ["5", 0], [5.0, 0]])
def test_what_is_no_array_of_type_and_id_is_invalid(value: Any):
    with pytest.raises(InvalidMessageError):
        decode_message(pack(value), FrameKind.CONTROL)


@pytest.mark.parametrize("number", [0, 11, -1, 2**64 - 1])
def test_a_type_unknown_here_is_no_fault(number: int):
    assert decode_message(pack([number, 2, "anything"]), FrameKind.TASK) == Unknown(number, 2)


@pytest.mark.parametrize("names", ["kwargs", "options"])
def test_names_of_arguments_and_options_are_text(names: str):
    kwargs, options = ({b"name": 1}, {}) if names == "kwargs" else ({}, {b"name": 1})

    with pytest.raises(InvalidMessageError, match="are text"):
        decode_message(pack([1, 2, "sum", [], kwargs, options]), FrameKind.TASK)


def test_an_endpoints_name_is_bounded():
    longest = Call(2, "e" * MAX_ENDPOINT_CHARS, [], {})

    assert decode_message(encode_message(longest), FrameKind.TASK) == longest
    with pytest.raises(InvalidMessageError, match="at most 256"):
        decode_message(encode_message(Call(2, "e" * (MAX_ENDPOINT_CHARS + 1), [], {})), FrameKind.TASK)


def test_the_text_of_a_failure_is_cut_where_it_is_sent():
    fail = decode_message(encode_message(Fail(2, "failed", "x" * 10_000)), FrameKind.TASK)

    assert fail == Fail(2, "failed", "x" * MAX_FAIL_MESSAGE_CHARS)


def test_the_words_of_a_goodbye_are_cut_where_they_are_read():
    read = decode_message(pack([MessageType.GOODBYE, 0, "c" * 5000, "t" * 5000]), FrameKind.CONTROL)

    assert read == Goodbye("c" * MAX_GOODBYE_CODE_CHARS, "t" * MAX_FAIL_MESSAGE_CHARS)


def test_control_frames_hold_less_than_task_frames():
    body = encode_message(Result(2, [None] * 10_000))

    assert isinstance(decode_message(body, FrameKind.TASK), Result)
    with pytest.raises(InvalidMessageError):
        decode_message(body, FrameKind.CONTROL)


# Frames


FRAMES = st.lists(st.tuples(st.sampled_from(FrameKind), st.binary(max_size=40)), max_size=8)


def reader(*, max_control_frame_bytes: int = 64, max_task_frame_bytes: int = 128) -> FrameReader:
    return FrameReader(max_control_frame_bytes=max_control_frame_bytes, max_task_frame_bytes=max_task_frame_bytes)


def wire_of(frames: list[tuple[FrameKind, bytes]]) -> bytes:
    return b"".join(encode_frame(kind, body) for kind, body in frames)


@given(FRAMES, st.lists(st.integers(0, 400), max_size=20), st.booleans())
def test_any_split_gives_the_same_frames(frames: list[tuple[FrameKind, bytes]], cuts: list[int], byte_by_byte: bool):
    data = wire_of(frames)
    cuts = list(range(len(data))) if byte_by_byte else cuts
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    frame_reader = reader()

    got = [frame for start, end in pairwise(edges) for frame in frame_reader.feed(data[start:end])]

    assert got == frames
    assert frame_reader.buffered_bytes() == 0


@given(FRAMES, st.integers(0, 400))
def test_a_prefix_of_the_bytes_gives_a_prefix_of_the_frames(frames: list[tuple[FrameKind, bytes]], cut: int):
    frame_reader = reader()

    got = list(frame_reader.feed(wire_of(frames)[:cut]))

    assert got == frames[: len(got)]
    assert frame_reader.buffered_bytes() == min(cut, len(wire_of(frames))) - len(wire_of(got))
    assert frame_reader.buffered_bytes() < 4 + 40


@pytest.mark.parametrize(("kind", "limit_bytes"), [(FrameKind.CONTROL, 64), (FrameKind.TASK, 128)])
def test_a_frame_over_its_limit_is_refused_at_its_header(kind: FrameKind, limit_bytes: int):
    assert list(reader().feed(encode_frame(kind, bytes(limit_bytes)))) == [(kind, bytes(limit_bytes))]

    with pytest.raises(FrameTooLarge) as failure:
        list(reader().feed(encode_frame(kind, bytes(limit_bytes + 1))[:4]))

    assert (failure.value.limit_bytes, failure.value.actual_bytes) == (limit_bytes, limit_bytes + 1)


@pytest.mark.parametrize("kind", [3, 4, 0xA5, 255])
def test_an_unknown_kind_is_a_violation_after_the_good_frames_before_it(kind: int):
    frames = reader().feed(encode_frame(FrameKind.TASK, b"good") + bytes((kind, 0, 0, 0)))

    assert next(frames) == (FrameKind.TASK, b"good")
    with pytest.raises(ProtocolViolation, match=f"kind {kind}"):
        next(frames)


def test_an_empty_frame_is_a_frame_and_no_message():
    [(kind, body)] = reader().feed(bytes(4))

    assert (kind, body) == (FrameKind.CONTROL, b"")
    with pytest.raises(InvalidMessageError):
        decode_message(body, kind)


def test_a_frame_in_many_pieces_costs_little_more_than_in_one():
    """Joining the pieces anew at each would copy 4 MiB 16,384 times: 32 GiB."""
    frame_reader = reader(max_task_frame_bytes=4 * MIB)
    data = encode_frame(FrameKind.TASK, bytes(4 * MIB))

    started = time.process_time()
    got = [frame for start in range(0, len(data), 256) for frame in frame_reader.feed(data[start : start + 256])]

    assert time.process_time() - started < 1.0
    assert got == [(FrameKind.TASK, bytes(4 * MIB))]


def test_a_body_too_long_for_its_header_is_refused_where_it_is_made():
    with pytest.raises(FrameTooLarge):
        encode_frame(FrameKind.TASK, bytes(MAX_U24 + 1))


def test_numbers_on_the_wire_are_for_ever():
    assert {kind.name: kind.value for kind in FrameKind} == {"CONTROL": 0, "TASK": 1, "PART": 2}
    assert [(each.name, each.value) for each in MessageType] == [
        ("CALL", 1),
        ("RESULT", 2),
        ("FAIL", 3),
        ("CANCEL", 4),
        ("PING", 5),
        ("PONG", 6),
        ("GOODBYE", 7),
        ("ITEM", 8),
        ("END", 9),
        ("CREDIT", 10),
    ]
