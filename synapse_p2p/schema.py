"""Types as JSON Schema (2020-12) documents, values built from what was sent and dumped to what can travel.

Owns documents, dumping, and the check of a value against a schema, which is the work of the `jsonschema` library and
needs the extra `schema`. What each type means is in `shapes.py`. Pure.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping
from enum import Enum, Flag
from typing import Any

from synapse_p2p.exceptions import ConfigError
from synapse_p2p.shapes import (
    MAX_SHOWN_CHARS,
    NO_DEFAULT,
    Anything,
    Choice,
    Described,
    Direction,
    Flags,
    Json,
    Member,
    Misfit,
    Model,
    OneOf,
    Opaque,
    Record,
    SchemaWriter,
    Shape,
    write_object,
)

Check = Callable[[Any], None]
"""Raises Misfit for a value that does not fit."""

MIN_INT, MAX_INT = -(2**63), 2**64 - 1  # what MsgPack has room for: schemas travel
MAX_SHOWN_RULE_CHARS = 100  # of the part of a schema that a value does not fit

_SCALARS = frozenset({type(None), bool, int, float, str, bytes})
_PLAIN = _SCALARS | {list, dict, tuple}


def schema_of(shape: Shape, direction: Direction) -> Json:
    """A shape as a document of its own."""
    writer = SchemaWriter(direction)
    return writer.whole(shape.write(writer))


def object_schema(members: Mapping[str, Member], *, more: Shape | None = None) -> Json:
    """The document of a map with these members; any further one is of the shape `more`, if that is given."""
    writer = SchemaWriter(Direction.IN)
    return writer.whole(write_object(members, writer, more))


def build(shape: Shape, value: Any) -> Any:
    """What a value that was sent is in Python. Raises Misfit. Cost: a step for each item and class it could be."""
    return shape.build(value, {})


def is_built(shape: Shape) -> bool:
    """Whether values of this shape are not what travels, somewhere in them: the hint names a class or a TypedDict."""
    match shape:
        case Record() | Model() | Flags():
            return True
        case Choice():
            return any(isinstance(member, Enum) for _, member in shape.members)
    return any(map(is_built, shape.parts()))


def is_open(shape: Shape) -> bool:
    """Whether a value of this shape may be an instance of anything."""
    return isinstance(shape, (Anything, Opaque)) or (
        isinstance(shape, (OneOf, Described)) and any(map(is_open, shape.parts()))
    )


def dump(value: Any) -> Any:
    """A value with every instance in it as what can travel: maps, lists, and the values of enumerations.

    What no shape knows is left alone. Cost: a step for each item.
    """
    if type(value) in _SCALARS:
        return value
    if isinstance(value, Enum):
        return sent_as(value)
    if isinstance(value, dict):
        return {dump(key): dump(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [dump(item) for item in value]
    if isinstance(value, type):
        return value
    if dataclasses.is_dataclass(value):
        return {each.name: dump(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if is_model(type(value)):
        return value.model_dump(mode="json", by_alias=True)
    return value


def dump_outermost(value: Any) -> Any:
    """The same for a value that is an instance itself; lists and maps are not looked into, which would cost by item."""
    return value if type(value) in _PLAIN else dump(value)


def sent_as(member: Enum) -> Any:
    """How a member of an enumeration travels: its value, where the values of all members can, else its name."""
    if isinstance(member, Flag) or all(is_json_scalar(each.value) for each in type(member)):
        return member.value
    return member.name


def is_model(owner: type) -> bool:
    """Whether a class looks like one of pydantic's."""
    return hasattr(owner, "model_validate") and hasattr(owner, "model_dump")


def shown_default(value: Any) -> Any:
    """A default as a schema shows it; NO_DEFAULT for one that JSON has no words for, and for none."""
    dumped = dump(value)
    return dumped if _is_json(dumped) else NO_DEFAULT


def is_json_scalar(value: Any) -> bool:
    """Whether JSON and MsgPack both have this value."""
    match value:
        case None | bool() | str():
            return type(value) in _SCALARS
        case int():
            return type(value) is int and MIN_INT <= value <= MAX_INT
        case float():
            return type(value) is float and math.isfinite(value)
    return False


def _is_json(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_json, value))
    if isinstance(value, dict):
        return all(type(key) is str and _is_json(item) for key, item in value.items())
    return is_json_scalar(value)


# Checks against a schema


def can_check() -> bool:
    """Whether the library that checks values against schemas is installed."""
    return importlib.util.find_spec("jsonschema") is not None


def check_of(schema: Json, *, name: str) -> Check:
    """A check against a schema. Raises ConfigError where the library is not installed or the schema is none.

    References to other documents are never fetched. Cost of a check: that of the schema, to the first misfit.
    """
    try:
        validator_class = _validator_class()
        from jsonschema.exceptions import SchemaError
        from jsonschema_specifications import REGISTRY
    except ImportError as error:
        raise ConfigError(f"checking {name} needs jsonschema: python -m pip install 'synapse-p2p[schema]'") from error
    try:
        validator_class.check_schema(schema)
    except SchemaError as error:
        raise ConfigError(f"the schema of {name} is no valid JSON Schema: {error.message:.200}") from error
    validator = validator_class(schema, registry=REGISTRY)

    def check(value: Any) -> None:
        # The first error alone: to gather all of a long list takes seconds.
        if (error := next(validator.iter_errors(value), None)) is not None:
            raise _misfit_of(error)

    return check


@functools.cache
def _validator_class() -> Any:
    """That of 2020-12, but for three keywords: what a stranger sends must not make them slow.

    The library's `anyOf` and `oneOf` gather every error of every branch, and its `uniqueItems` compares each item with
    each where they cannot be sorted: one message could hold up a server for minutes.
    """
    from jsonschema import Draft202012Validator, ValidationError, validators

    def any_of(validator: Any, branches: list[Any], value: Any, _: Any) -> Iterator[Any]:
        if not any(validator.evolve(schema=branch).is_valid(value) for branch in branches):
            yield ValidationError("fits no branch")

    def one_of(validator: Any, branches: list[Any], value: Any, _: Any) -> Iterator[Any]:
        if sum(validator.evolve(schema=branch).is_valid(value) for branch in branches) != 1:
            yield ValidationError("fits no branch, or several")

    def unique_items(validator: Any, is_wanted: bool, value: Any, _: Any) -> Iterator[Any]:
        if is_wanted and isinstance(value, list) and len(set(map(_hashable, value))) != len(value):
            yield ValidationError("holds an item twice")

    keywords = {"anyOf": any_of, "oneOf": one_of, "uniqueItems": unique_items}
    return validators.extend(Draft202012Validator, keywords)


def _hashable(value: Any) -> Any:
    """Something that is equal for values that JSON Schema calls equal: 1 and 1.0 are, 1 and True are not."""
    if isinstance(value, list):
        return ("list", *map(_hashable, value))
    if isinstance(value, dict):
        return ("map", frozenset((key, _hashable(item)) for key, item in value.items()))
    return (isinstance(value, bool), value)


def _misfit_of(error: Any) -> Misfit:
    # The library's own message shows the value, at any length.
    steps = (f"[{step}]" if isinstance(step, int) else f".{step[:MAX_SHOWN_CHARS]}" for step in error.absolute_path)
    rule = f"{error.validator_value!r:.{MAX_SHOWN_RULE_CHARS}}"
    return Misfit(f"does not fit its schema: {error.validator} {rule}", "".join(steps))
