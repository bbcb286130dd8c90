from __future__ import annotations

import datetime
import decimal
import enum
import re
from dataclasses import dataclass
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synapse_p2p.exceptions import ConfigError, InvalidMessageError
from synapse_p2p.messages import RPCError, RPCRequest, RPCResponse
from synapse_p2p.serializers import MessagePackRPCSerializer

SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary()
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4)
)
serialize = MessagePackRPCSerializer.serialize
deserialize = MessagePackRPCSerializer.deserialize


class Colour(enum.Enum):
    RED = "red"


@dataclass
class Point:
    x: int
    y: list[Any]


@given(
    st.text(min_size=1, max_size=256),
    st.text(),
    st.lists(VALUES, max_size=4),
    st.dictionaries(st.text(), VALUES, max_size=4),
)
def test_a_request_comes_back_as_it_went(endpoint: str, request_id: str, args: list[Any], kwargs: dict[str, Any]):
    request = RPCRequest(endpoint=endpoint, id=request_id, args=args, kwargs=kwargs)

    assert deserialize(serialize(request)) == request


@given(st.text(), VALUES)
def test_a_response_comes_back_as_it_went(request_id: str, result: Any):
    response = RPCResponse(id=request_id, ok=True, result=result)

    assert deserialize(serialize(response)) == response


def test_a_failure_comes_back_as_it_went():
    response = RPCResponse(id="abc", ok=False, error=RPCError(code="bad_request", message="nope"))

    assert deserialize(serialize(response)) == response


def test_the_bytes_of_a_request_are_those_of_release_1_3():
    request = RPCRequest(endpoint="sum", id="7", args=[1, b"2"], kwargs={"scale": 2})

    assert serialize(request) == bytes.fromhex(
        "85a8656e64706f696e74a373756da26964a137a4617267739201c40132a66b776172677381a57363616c6502"
        "a474797065a772657175657374"
    )


def test_the_bytes_of_a_response_are_those_of_release_1_3():
    response = RPCResponse(id="7", ok=False, error=RPCError("bad_request", "no"))

    assert serialize(response) == bytes.fromhex(
        "85a26964a137a26f6bc2a6726573756c74c0a56572726f7282a4636f6465ab6261645f72657175657374a76d657373616765a26e6f"
        "a474797065a8726573706f6e7365"
    )


def test_a_map_without_a_type_is_a_request():
    assert deserialize(msgpack.packb({"endpoint": "sum"})) == RPCRequest(endpoint="sum")


def test_a_number_as_id_becomes_text():
    assert deserialize(msgpack.packb({"endpoint": "sum", "id": 5})).id == "5"


def test_dataclass_instances_travel_as_maps_at_any_depth():
    response = RPCResponse(id="", ok=True, result=[Point(1, [Point(2, [])])])

    assert deserialize(serialize(response)).result == [{"x": 1, "y": [{"x": 2, "y": []}]}]


REQUEST = {"type": "request", "id": "1", "endpoint": "sum", "args": [], "kwargs": {}}
RESPONSE = {"type": "response", "id": "1", "ok": True, "result": None, "error": None}


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        (["not", "a", "map"], "a message is a map"),
        (7, "a message is a map"),
        (REQUEST | {"bogus": 1}, "unknown request fields: 'bogus'"),
        (RESPONSE | {"bogus": 1}, "unknown response fields: 'bogus'"),
        (REQUEST | {"type": "poem"}, "unknown message type: 'poem'"),
        (REQUEST | {"type": ["request"]}, "unknown message type: list"),
        ({"type": "request"}, "endpoint is text"),
        (REQUEST | {"endpoint": ""}, "endpoint is text"),
        (REQUEST | {"endpoint": "x" * 257}, "endpoint is text"),
        (REQUEST | {"endpoint": ["sum"]}, "endpoint is text"),
        (REQUEST | {"args": "abc"}, "args is a list"),
        (REQUEST | {"args": None}, "args is a list"),
        (REQUEST | {"kwargs": [["a", 1]]}, "kwargs is a map"),
        (REQUEST | {"kwargs": {b"a": 1}}, "kwargs is a map"),
        (REQUEST | {"id": ["1"]}, "id is text"),
        (REQUEST | {"id": None}, "id is text"),
        ({"type": "response", "id": "1"}, "ok is true or false"),
        (RESPONSE | {"ok": 1}, "ok is true or false"),
        (RESPONSE | {"error": "text"}, "error is nil or a map"),
        (RESPONSE | {"error": {"code": "x"}}, "error is nil or a map"),
        (RESPONSE | {"error": {"code": "x", "message": "y", "more": 1}}, "error is nil or a map"),
    ],
)
def test_a_message_of_another_shape_is_refused_with_what_is_wrong(message: Any, complaint: str):
    with pytest.raises(InvalidMessageError, match=re.escape(complaint)):
        deserialize(msgpack.packb(message))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_an_invalid_one(data: bytes):
    try:
        message = deserialize(data)
    except InvalidMessageError:
        return

    assert isinstance(message, RPCRequest | RPCResponse)


def test_bytes_after_the_message_are_refused():
    with pytest.raises(InvalidMessageError):
        deserialize(msgpack.packb(REQUEST) + b"\x00")


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ({1, 2}, "argument task is of type set, which MsgPack cannot carry; send a list instead"),
        (datetime.datetime(2024, 1, 1), "argument task is of type datetime"),
        (decimal.Decimal("1.5"), "send its text instead"),
        (Colour.RED, "send its value instead"),
        (object(), "send a map of its fields instead"),
        (Point, "is of type type"),
        ({1: "a"}, "argument task has the key 1, of type int; keys that travel are text"),
        ([0, {"a": [{3}]}], "argument task[1]['a'][0] is of type set"),
        (Point(1, [{2}]), "argument task.y[0] is of type set"),
        (2**64, "beyond 64 bits"),
        ([-(2**63) - 1], "argument task[0] is an integer beyond 64 bits"),
        ("\ud800", "MsgPack cannot carry this request"),
    ],
)
def test_an_argument_that_cannot_travel_is_named_with_what_to_send_instead(value: Any, complaint: str):
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        serialize(RPCRequest(endpoint="ask", kwargs={"task": value}))


def test_a_positional_argument_that_cannot_travel_is_named_by_its_place():
    with pytest.raises(ConfigError, match="argument 2 is of type set"):
        serialize(RPCRequest(endpoint="ask", args=[1, {2}]))


def test_a_forgotten_await_is_named_as_one():
    async def work() -> None:
        """Never run."""

    forgotten = work()

    with pytest.raises(ConfigError, match=r"^argument 1\[0\] is a coroutine, so an `await` is missing"):
        serialize(RPCRequest(endpoint="ask", args=[[forgotten]]))
    forgotten.close()


def test_a_value_that_contains_itself_is_refused():
    value: list[Any] = []
    value.append(value)

    with pytest.raises(ConfigError, match="contains itself"):
        serialize(RPCResponse(id="", ok=True, result=value))


def test_the_deepest_value_that_is_sent_can_also_be_read():
    value: Any = "bottom"
    for _ in range(30):
        value = [value]

    assert deserialize(serialize(RPCRequest(endpoint="deep", args=[value]))).args == [value]
    with pytest.raises(ConfigError, match="deeper than 30"):
        serialize(RPCRequest(endpoint="deep", args=[[value]]))
