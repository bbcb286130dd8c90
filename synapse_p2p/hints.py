"""What annotations say: a type hint read into a shape, once, when a function is registered.

Owns which hints are known and what a name in the text of one stands for. A hint that cannot be read is Opaque, never
an error: what annotates a parameter is the business of its author. Pure.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping
from enum import Enum, Flag
from typing import Any, ForwardRef, NewType, get_args, get_origin

from synapse_p2p.schema import is_json_scalar, is_model, sent_as, shown_default
from synapse_p2p.shapes import (
    ANYTHING,
    Choice,
    Described,
    Flags,
    ListOf,
    MapOf,
    Member,
    Model,
    OneOf,
    Opaque,
    Record,
    Scalar,
    Shape,
    StreamOf,
    TupleOf,
)

MAX_TEXT_CHARS = 200  # of a hint that JSON Schema cannot express

_SCALARS = (type(None), bool, int, float, str)
_MAPS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
_LISTS: dict[Any, Callable[..., Any]] = {
    list: list,
    collections.abc.Sequence: list,
    collections.abc.MutableSequence: list,
    collections.abc.Collection: list,
    collections.abc.Iterable: list,
    set: set,
    collections.abc.Set: set,
    collections.abc.MutableSet: set,
    frozenset: frozenset,
    tuple: tuple,
}
_STREAMS = (
    collections.abc.AsyncIterator,
    collections.abc.AsyncIterable,
    collections.abc.AsyncGenerator,
)
# By name, for `ReadOnly` is younger than the oldest Python here, and each has a twin in typing_extensions.
_TRANSPARENT = ("Required", "NotRequired", "ReadOnly", "Final")


class HintReader:
    """Reads the hints of one function. A class that it meets twice, or inside itself, is one shape."""

    def __init__(self, names: Mapping[str, Any]) -> None:
        """`names` are what text in a hint may speak of: the globals of the function."""
        self._names = names
        self._records: dict[type, Record] = {}
        self._open: list[Any] = []  # the texts and aliases that are being read, each within the one before

    def read(self, hint: Any) -> Shape:
        """The shape of a hint; Anything for the `empty` of a signature."""
        return self._read(hint, self._names)

    def _read(self, hint: Any, names: Mapping[str, Any]) -> Shape:
        if hint is Any or hint is object or hint is inspect.Parameter.empty:
            return ANYTHING
        if hint is None:
            return Scalar(type(None))
        if isinstance(hint, type) and get_origin(hint) is None:
            return self._read_class(hint)
        if isinstance(hint, (str, ForwardRef)):
            return self._read_text(hint, names)
        if isinstance(hint, NewType):
            return self._read(hint.__supertype__, names)
        if type(hint).__name__ == "TypeAliasType" and not get_args(hint):  # `type X = ...`, and its twin
            return self._read_alias(hint, names)
        return self._read_generic(hint, names)

    def _read_text(self, hint: str | ForwardRef, names: Mapping[str, Any]) -> Shape:
        meant = _evaluated(hint, names)
        if isinstance(meant, (str, ForwardRef)):
            return _opaque(meant)
        return self._read_within(hint, meant, names)

    def _read_alias(self, alias: Any, names: Mapping[str, Any]) -> Shape:
        try:
            return self._read_within(alias, alias.__value__, names)
        except NameError:  # it is evaluated only now
            return _opaque(alias)

    def _read_within(self, name: Any, meant: Any, names: Mapping[str, Any]) -> Shape:
        """What a name means; Opaque for one within itself, such as that of JSON, which has no class to refer to."""
        if name in self._open:
            return _opaque(name)
        self._open.append(name)
        shape = self._read(meant, names)
        self._open.pop()
        return shape

    def _read_class(self, hint: type) -> Shape:
        if hint in _SCALARS:
            return Scalar(hint)
        if hint in _LISTS:
            return ListOf(ANYTHING, _LISTS[hint])
        if hint in _MAPS:
            return MapOf(ANYTHING)
        if hint in _STREAMS:
            return StreamOf(ANYTHING)
        if is_model(hint):
            return Model(hint)
        if issubclass(hint, Flag):
            return Flags(hint)
        if issubclass(hint, Enum):
            return Choice(tuple((sent_as(member), member) for member in hint))
        # By what it has, for the TypedDict of typing_extensions is another than that of typing.
        if dataclasses.is_dataclass(hint) or hasattr(hint, "__required_keys__"):
            return self._read_record(hint)
        return _opaque(hint)

    def _read_record(self, owner: type) -> Shape:
        if owner not in self._records:
            record = self._records[owner] = Record(owner)  # there before its fields are read: one may be of its kind
            outside, self._open = self._open, []  # a name comes to an end in a class, which is read once
            read = self._read_dataclass if dataclasses.is_dataclass(owner) else self._read_typed_dict
            record.members.update(read(owner))
            self._open = outside
        return self._records[owner]

    def _read_dataclass(self, owner: Any) -> dict[str, Member]:
        members = {}
        for field in dataclasses.fields(owner):
            base = next((base for base in owner.__mro__ if field.name in vars(base).get("__annotations__", ())), owner)
            members[field.name] = Member(
                self._read(field.type, _names_of_class(base)),
                is_required=field.init
                and field.default is dataclasses.MISSING
                and field.default_factory is dataclasses.MISSING,
                default=shown_default(field.default),
                is_taken=field.init,
            )
        return members

    def _read_typed_dict(self, owner: Any) -> dict[str, Member]:
        members, names = {}, _names_of_class(owner)
        for name, hint in owner.__annotations__.items():
            meant = _evaluated(hint, names)
            is_required = _requirement(meant)
            if is_required is None:
                is_required = name in owner.__required_keys__
            members[name] = Member(self._read(meant, names), is_required=is_required)
        return members

    def _read_generic(self, hint: Any, names: Mapping[str, Any]) -> Shape:
        origin, args = get_origin(hint), get_args(hint)
        if origin is typing.Union or origin is types.UnionType:
            return OneOf(tuple(self._read(arg, names) for arg in args))
        if origin is typing.Literal:
            return _choice(hint, args)
        if origin is typing.Annotated:
            return self._read_annotated(hint, names)
        if getattr(origin, "_name", None) in _TRANSPARENT:
            return self._read(args[0], names)
        if origin is tuple:
            return self._read_tuple(hint, args, names)
        if origin in _LISTS:
            return ListOf(self._read(args[0], names) if args else ANYTHING, _LISTS[origin])
        if origin in _STREAMS:
            return StreamOf(self._read(args[0], names) if args else ANYTHING)
        if origin in _MAPS and not args:
            return MapOf(ANYTHING)
        if origin in _MAPS and args[0] in (str, Any):
            return MapOf(self._read(args[1], names))
        return _opaque(hint)

    def _read_tuple(self, hint: Any, args: tuple[Any, ...], names: Mapping[str, Any]) -> Shape:
        if hint is typing.Tuple:  # noqa: UP006 - the old spelling, bare, is what is looked for
            return ListOf(ANYTHING, tuple)
        if len(args) == 2 and args[1] is Ellipsis:
            return ListOf(self._read(args[0], names), tuple)
        if any(_is_unpacked(arg) for arg in args):
            return _opaque(hint)
        return TupleOf(tuple(self._read(arg, names) for arg in args))

    def _read_annotated(self, hint: Any, names: Mapping[str, Any]) -> Shape:
        shape = self._read(hint.__origin__, names)
        text = next((text for text in hint.__metadata__ if isinstance(text, str)), None)
        return shape if text is None else Described(shape, text)


def names_of(function: Callable[..., Any]) -> Mapping[str, Any]:
    """What the annotations of a function can speak of: the globals of its module."""
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function)
    if isinstance(function, type):
        return _names_of_module(function.__module__)
    if not hasattr(function, "__globals__"):
        function = type(function).__call__
    return getattr(function, "__globals__", {})


def _choice(hint: Any, values: tuple[Any, ...]) -> Shape:
    members = tuple((sent_as(value) if isinstance(value, Enum) else value, value) for value in values)
    # Bytes have no place in JSON Schema, and integers beyond 64 bits cannot be sent.
    return Choice(members) if all(is_json_scalar(sent) for sent, _ in members) else _opaque(hint)


def _is_unpacked(hint: Any) -> bool:
    return getattr(get_origin(hint), "_name", None) == "Unpack" or getattr(hint, "__unpacked__", False)


def _opaque(hint: Any) -> Opaque:
    if isinstance(hint, ForwardRef):
        hint = hint.__forward_arg__
    if isinstance(hint, type):
        module = "" if hint.__module__ == "builtins" else f"{hint.__module__}."
        return Opaque(f"{module}{hint.__qualname__}"[:MAX_TEXT_CHARS])
    return Opaque((hint if isinstance(hint, str) else repr(hint))[:MAX_TEXT_CHARS])


def _evaluated(hint: Any, names: Mapping[str, Any]) -> Any:
    """What the text of a hint stands for; the text again, where that cannot be told. Other hints are what they are."""
    if not isinstance(hint, (str, ForwardRef)):
        return hint
    text = hint if isinstance(hint, str) else hint.__forward_arg__
    if isinstance(hint, ForwardRef) and isinstance(hint.__forward_module__, str):
        names = {**names, **_names_of_module(hint.__forward_module__)}
    try:
        return eval(text, dict(names))  # noqa: S307 - an annotation is its author's own code, as it is for `inspect`
    except Exception:
        # It may name what exists for type checkers alone, or fail in any other way.
        return text


def _requirement(hint: Any) -> bool | None:
    """Whether the hint of a TypedDict's key says itself that the key is required; None where it does not say.

    Python sees neither word in an annotation that is text.
    """
    while (word := getattr(get_origin(hint), "_name", None)) in _TRANSPARENT:
        if word in ("Required", "NotRequired"):
            return word == "Required"
        hint = get_args(hint)[0]
    return None


def _names_of_class(owner: type) -> Mapping[str, Any]:
    # The class itself, for one that was made in a function and speaks of itself has its name nowhere else.
    return {**_names_of_module(owner.__module__), **vars(owner), owner.__name__: owner}


def _names_of_module(name: str) -> Mapping[str, Any]:
    return vars(sys.modules[name]) if name in sys.modules else {}
