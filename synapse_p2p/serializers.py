"""The messages of the plain wire as bytes, and back.

Owns what a request and a response may contain. Pure. A user may bring another one (`serializer_class=`).
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator
from typing import Any, cast

import msgpack

from synapse_p2p.exceptions import ConfigError, InvalidMessageError
from synapse_p2p.messages import RPCError, RPCMessage, RPCRequest, RPCResponse
from synapse_p2p.protocol.wire import MAX_DEPTH, MAX_ENDPOINT_CHARS, TASK_LIMITS, fields_of, unpack

MAX_VALUE_DEPTH = MAX_DEPTH - 2  # a message is a map that holds a list of arguments: two levels are ours
MIN_INT, MAX_INT = -(2**63), 2**64 - 1  # what MsgPack has room for

_REQUEST_KEYS = frozenset({"type", "id", "endpoint", "args", "kwargs"})
_RESPONSE_KEYS = frozenset({"type", "id", "ok", "result", "error"})
_SCALARS = frozenset({str, bytes, bool, float, type(None)})
_SCALAR_KINDS = (str, bytes, bytearray, memoryview, float, type(None))
_SEND_INSTEAD = {
    "set": "a list",
    "frozenset": "a list",
    "datetime": "its isoformat() text or its timestamp()",
    "date": "its isoformat() text",
    "timedelta": "its total_seconds()",
    "Decimal": "its text",
    "UUID": "its text or its bytes",
    "PosixPath": "its text",
    "WindowsPath": "its text",
    "ndarray": "its tolist()",
    "complex": "a list of two numbers",
    "generator": "a list",
}


class BaseRPCSerializer:
    """What a serializer offers. Both methods are pure; a serializer has no state."""

    @classmethod
    def serialize(cls, outgoing: RPCMessage) -> bytes:
        """The bytes of a message. Raises any exception for a value that cannot travel."""
        raise NotImplementedError

    @classmethod
    def deserialize(cls, incoming: bytes) -> RPCMessage:
        """The message in some bytes. Raises InvalidMessageError."""
        raise NotImplementedError


class MessagePackRPCSerializer(BaseRPCSerializer):
    """One MsgPack map for each message, as release 1.3 writes it. Dataclass instances travel as maps."""

    @classmethod
    def serialize(cls, outgoing: RPCMessage) -> bytes:
        """Raises ConfigError that names the argument, the type found there, and what to send instead."""
        if problem := why_unsendable(outgoing):
            raise ConfigError(problem)
        try:
            return cast("bytes", msgpack.packb(_map_of(outgoing), default=fields_of))
        except (TypeError, ValueError, OverflowError) as error:
            # Text that is no Unicode (a lone surrogate) is what the walk above does not look for.
            raise ConfigError(f"MsgPack cannot carry this {outgoing.type}: {error}") from error

    @classmethod
    def deserialize(cls, incoming: bytes) -> RPCMessage:
        """Raises InvalidMessageError; a map without `type` is a request."""
        fields = unpack(incoming, TASK_LIMITS)
        if type(fields) is not dict:
            raise InvalidMessageError("a message is a map")
        message_type = fields.get("type", "request")
        if message_type == "request":
            return _read_request(fields)
        if message_type == "response":
            return _read_response(fields)
        raise InvalidMessageError(f"unknown message type: {_shown(message_type)}")


def why_unsendable(message: RPCMessage) -> str | None:
    """What a user put into a message that cannot travel: its name, its type, what to send instead. None if all can."""
    problems = (_unsendable(value, name, MAX_VALUE_DEPTH) for name, value in _values_of(message))
    return next((problem for problem in problems if problem), None)


def _map_of(message: RPCMessage) -> dict[str, Any]:
    """A message as the map that travels: half the cost of asking a dataclass for its fields."""
    if isinstance(message, RPCRequest):
        return {
            "endpoint": message.endpoint,
            "id": message.id,
            "args": message.args,
            "kwargs": message.kwargs,
            "type": message.type,
        }
    error = message.error and {"code": message.error.code, "message": message.error.message}
    return {"id": message.id, "ok": message.ok, "result": message.result, "error": error, "type": message.type}


def _read_request(fields: dict[Any, Any]) -> RPCRequest:
    _refuse_unknown(fields, _REQUEST_KEYS, "request")
    endpoint, args, kwargs = fields.get("endpoint"), fields.get("args", []), fields.get("kwargs", {})
    if type(endpoint) is not str or not 0 < len(endpoint) <= MAX_ENDPOINT_CHARS:
        raise InvalidMessageError(f"endpoint is text of 1 to {MAX_ENDPOINT_CHARS} characters")
    if type(args) is not list:
        raise InvalidMessageError("args is a list")
    if type(kwargs) is not dict or not all(type(name) is str for name in kwargs):
        raise InvalidMessageError("kwargs is a map from names to values")
    return RPCRequest(endpoint=endpoint, id=_read_id(fields), args=args, kwargs=kwargs)


def _read_response(fields: dict[Any, Any]) -> RPCResponse:
    _refuse_unknown(fields, _RESPONSE_KEYS, "response")
    ok, error = fields.get("ok"), fields.get("error")
    if type(ok) is not bool:
        raise InvalidMessageError("ok is true or false")
    match error:
        case None:
            reason = None
        case {"code": str() as code, "message": str() as message, **surplus} if not surplus:
            reason = RPCError(code, message)
        case _:
            raise InvalidMessageError("error is nil or a map of code and message")
    return RPCResponse(id=_read_id(fields), ok=ok, result=fields.get("result"), error=reason)


def _read_id(fields: dict[Any, Any]) -> str:
    request_id = fields.get("id", "")
    # Release 1.3 turned any id into text; text and numbers are the ones that anybody sent.
    if type(request_id) not in (str, int):
        raise InvalidMessageError("id is text")
    return str(request_id)


def _refuse_unknown(fields: dict[Any, Any], known: frozenset[str], message_type: str) -> None:
    if not known.issuperset(fields):
        unknown = [key for key in fields if key not in known]
        raise InvalidMessageError(f"unknown {message_type} fields: {', '.join(map(_shown, unknown[:4]))}")


def _shown(value: Any) -> str:
    """A peer's value as short text of one line, for an error message. Containers are named, not shown."""
    text = repr(value[:40]) if isinstance(value, (str, bytes)) else repr(value)
    return text if isinstance(value, (str, bytes, int, float, type(None))) else type(value).__name__


def _values_of(message: RPCMessage) -> Iterator[tuple[str, Any]]:
    """What the user put into a message, each under the name that the user knows it by."""
    if isinstance(message, RPCResponse):
        yield "the result", message.result
        return
    for position, value in enumerate(message.args, start=1):
        yield f"argument {position}", value
    for name, value in message.kwargs.items():
        yield f"argument {name}", value


def _unsendable(value: Any, path: str, depth_left: int) -> str | None:
    """Why a value cannot travel, and where in it; None if it can. Cost: a step for each item."""
    if _is_scalar(value):
        return None
    if isinstance(value, int):
        return f"{path} is an integer beyond 64 bits, which MsgPack cannot carry; send its text instead"
    if depth_left == 0:
        return f"{path} is nested deeper than {MAX_VALUE_DEPTH} levels, or contains itself"
    if isinstance(value, dict):
        return _unsendable_map(value, path, depth_left)
    if isinstance(value, (list, tuple)):
        items = ((f"{path}[{index}]", item) for index, item in enumerate(value) if not _is_scalar(item))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = ((f"{path}.{name}", item) for name, item in fields_of(value).items())
    else:
        kind = type(value).__name__
        if kind == "coroutine":
            return f"{path} is a coroutine, so an `await` is missing where it was made"
        instead = "its value" if isinstance(value, enum.Enum) else _SEND_INSTEAD.get(kind, "a map of its fields")
        return f"{path} is of type {kind}, which MsgPack cannot carry; send {instead} instead"
    return next((problem for name, item in items if (problem := _unsendable(item, name, depth_left - 1))), None)


def _is_scalar(value: Any) -> bool:
    # The exact types come first: a long list of numbers passes here item by item.
    if type(value) in _SCALARS:
        return True
    if isinstance(value, int):
        return MIN_INT <= value <= MAX_INT
    return isinstance(value, _SCALAR_KINDS)


def _unsendable_map(value: dict[Any, Any], path: str, depth_left: int) -> str | None:
    for key, item in value.items():
        # Readers refuse other keys: a stranger can choose numbers that make a map slow.
        if not isinstance(key, (str, bytes)):
            return f"{path} has the key {key!r:.40}, of type {type(key).__name__}; keys that travel are text"
        if problem := _unsendable(item, f"{path}[{key!r:.40}]", depth_left - 1):
            return problem
    return None
