"""What a value may be: each shape says itself as JSON Schema (2020-12), and builds a value from what a caller sent.

Owns both directions of one table. `hints.py` reads shapes from annotations, `schema.py` makes whole documents of them.
Pure.

    shape         from                               as JSON Schema            built
    Anything      no annotation, Any                 {}                        as it comes
    Opaque        whatever is not listed here        {} with x-python          as it comes
    Scalar        None, bool, int, float, str        its type                  as it comes
    Choice        Literal, Enum                      enum                      the member
    Flags         Flag                               integer                   the flags
    ListOf        list, set, tuple[X, ...] and kin   array                     list, set, tuple
    TupleOf       tuple[X, Y]                        array of prefixItems      tuple
    MapOf         dict[str, X] and kin               object                    dict
    OneOf         X | Y                              anyOf                     by the first that fits
    Described     Annotated[X, "text"]               X with a description      as X
    Record        dataclass, TypedDict               object, in $defs          an instance; a dict
    Model         what looks like a pydantic model   its own, in $defs         an instance

`bytes` is Opaque: MsgPack has bytes, and JSON Schema no word for them. A value can be built exactly where the schema
calls it valid; a Model judges for itself.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum, Flag
from typing import Any, TypeAlias, cast

from synapse_p2p.exceptions import SynapseError

MAX_SHOWN_CHARS = 64  # of a name that a caller made up
NO_DEFAULT = object()  # None is a default like any other

_JSON_TYPES = {type(None): "null", bool: "boolean", int: "integer", float: "number", str: "string"}
_TYPE_WORDS = {
    type(None): "nil",
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "text",
    bytes: "bytes",
    list: "a list",
    dict: "a map",
}

Json: TypeAlias = dict[str, Any]
Memo: TypeAlias = dict[tuple[int, int], Any]
"""What became of a map as a record, by both ids: a union of classes that contain it tries no pair of them twice, or a
message of a kilobyte would cost 2 to the power of its depth."""


class Direction(Enum):
    """Which way a value goes: a field with a default may be left out on the way in, and is there on the way out."""

    IN = "validation"  # pydantic's words for the two
    OUT = "serialization"


class Misfit(SynapseError):
    """A value is not what it has to be. `path` leads from the value that was looked at to the culprit: `.age`, `[2]`.

    `problem` goes on from there, and shows nothing of the value.
    """

    def __init__(self, problem: str, path: str = "") -> None:
        super().__init__(f"{path} {problem}")
        self.problem = problem
        self.path = path

    def within(self, step: str) -> Misfit:
        """The same, seen from one level further out."""
        return Misfit(self.problem, step + self.path)


class SchemaWriter:
    """Gathers the definitions that the schemas of one document refer to."""

    def __init__(self, direction: Direction) -> None:
        self.direction = direction
        self.definitions: dict[str, Json] = {}
        self._names: dict[type, str] = {}

    def reference(self, owner: type, write: Callable[[str], Json]) -> Json:
        """A reference to the definition of a class; `write` makes it, from its name, the first time."""
        if (name := self._names.get(owner)) is None:
            name = self._names[owner] = self._free_name(owner)
            self.definitions[name] = {}  # keeps its place and its name while it is written, for it may contain itself
            self.definitions[name] = write(name)
        return {"$ref": reference_to(name)}

    def whole(self, schema: Json) -> Json:
        """The schema as a document of its own, with all definitions so far."""
        return {**schema, "$defs": self.definitions} if self.definitions else schema

    def _free_name(self, owner: type) -> str:
        # A name is part of a URI, and those of classes may be in any script.
        name = plain = re.sub(r"[^A-Za-z0-9_]", "_", owner.__name__)
        count = 1
        while name in self.definitions:
            count += 1
            name = f"{plain}{count}"
        return name


class Shape:
    """What a value may be."""

    __slots__ = ()

    def parts(self) -> tuple[Shape, ...]:
        """The shapes within it. A record shows none, for one of them may be itself."""
        return ()

    def write(self, writer: SchemaWriter) -> Json:
        """This shape as JSON Schema."""
        raise NotImplementedError

    def build(self, value: Any, memo: Memo) -> Any:
        """The value to hand over for one that was sent. Raises Misfit."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Anything(Shape):
    """No limits."""

    def write(self, writer: SchemaWriter) -> Json:
        return {}

    def build(self, value: Any, memo: Memo) -> Any:
        return value


@dataclass(frozen=True, slots=True)
class Opaque(Shape):
    """No limits that JSON Schema could express; `text` is how Python says it."""

    text: str

    def write(self, writer: SchemaWriter) -> Json:
        return {"x-python": self.text}

    def build(self, value: Any, memo: Memo) -> Any:
        return value


@dataclass(frozen=True, slots=True)
class Scalar(Shape):
    """One value of a type. As in JSON Schema, 3.0 is an integer and 3 a number, and True is neither."""

    kind: type

    def write(self, writer: SchemaWriter) -> Json:
        return {"type": _JSON_TYPES[self.kind]}

    def build(self, value: Any, memo: Memo) -> Any:
        if type(value) is self.kind:
            return value
        if self.kind is float and type(value) is int:
            return value
        if self.kind is int and type(value) is float and value.is_integer():
            return int(value)
        raise _misfit(_TYPE_WORDS[self.kind], value)


@dataclass(frozen=True, slots=True)
class Choice(Shape):
    """One of some values, each as it travels and as it is handed over."""

    members: tuple[tuple[Any, Any], ...]

    def write(self, writer: SchemaWriter) -> Json:
        return {"enum": [sent for sent, _ in self.members]}

    def build(self, value: Any, memo: Memo) -> Any:
        for sent, member in self.members:
            # Python says True == 1, JSON Schema does not; both say 1.0 == 1.
            if sent == value and isinstance(sent, bool) is isinstance(value, bool):
                return member
        raise Misfit(f"has to be one of {[sent for sent, _ in self.members]!r:.200}")


@dataclass(frozen=True, slots=True)
class Flags(Shape):
    """Some flags of an enumeration, as the sum of their values."""

    owner: type[Flag]

    def write(self, writer: SchemaWriter) -> Json:
        return {"type": "integer"}

    def build(self, value: Any, memo: Memo) -> Any:
        number = Scalar(int).build(value, memo)
        try:
            return self.owner(number)
        except ValueError:
            raise Misfit(f"holds a flag that {self.owner.__name__} does not have") from None


@dataclass(frozen=True, slots=True)
class ListOf(Shape):
    """Any number of items of one shape, handed over as `kind` (list, tuple, set or frozenset)."""

    item: Shape
    kind: Callable[[Iterable[Any]], Any] = list

    def parts(self) -> tuple[Shape, ...]:
        return (self.item,)

    def write(self, writer: SchemaWriter) -> Json:
        items = self.item.write(writer)
        unique = {"uniqueItems": True} if self.kind in (set, frozenset) else {}
        return {"type": "array", **({"items": items} if items else {}), **unique}

    def build(self, value: Any, memo: Memo) -> Any:
        if type(value) is not list:
            raise _misfit("a list", value)
        items = [_build_within(f"[{index}]", self.item, item, memo) for index, item in enumerate(value)]
        if self.kind not in (set, frozenset):
            return self.kind(items)
        try:
            unique = self.kind(items)
        except TypeError:
            raise Misfit("holds lists or maps, which cannot be in a set") from None
        if len(unique) != len(items):
            raise Misfit("holds an item twice")
        return unique


@dataclass(frozen=True, slots=True)
class StreamOf(Shape):
    """Items of one shape that come one by one; JSON Schema has no word for it, so `x-stream` marks the list of them."""

    item: Shape

    def parts(self) -> tuple[Shape, ...]:
        return (self.item,)

    def write(self, writer: SchemaWriter) -> Json:
        items = self.item.write(writer)
        return {"type": "array", **({"items": items} if items else {}), "x-stream": True}

    def build(self, value: Any, memo: Memo) -> Any:
        raise Misfit("is a stream, and has to be one of its own and no part of another value")


@dataclass(frozen=True, slots=True)
class TupleOf(Shape):
    """One item of each of some shapes, in order."""

    items: tuple[Shape, ...]

    def parts(self) -> tuple[Shape, ...]:
        return self.items

    def write(self, writer: SchemaWriter) -> Json:
        if not self.items:  # where an empty prefixItems is no valid schema
            return {"type": "array", "maxItems": 0}
        items = [item.write(writer) for item in self.items]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}

    def build(self, value: Any, memo: Memo) -> Any:
        if type(value) is not list:
            raise _misfit("a list", value)
        if len(value) != len(self.items):
            raise Misfit(f"has to hold {len(self.items)} items, not {len(value)}")
        pairs = zip(self.items, value, strict=True)
        return tuple(_build_within(f"[{index}]", shape, item, memo) for index, (shape, item) in enumerate(pairs))


@dataclass(frozen=True, slots=True)
class MapOf(Shape):
    """Values of one shape under keys that are text."""

    value: Shape

    def parts(self) -> tuple[Shape, ...]:
        return (self.value,)

    def write(self, writer: SchemaWriter) -> Json:
        values = self.value.write(writer)
        return {"type": "object", **({"additionalProperties": values} if values else {})}

    def build(self, value: Any, memo: Memo) -> Any:
        if type(value) is not dict:
            raise _misfit("a map", value)
        if not all(type(key) is str for key in value):
            raise Misfit("has a key that is no text")
        return {
            key: _build_within(f"[{key[:MAX_SHOWN_CHARS]!r}]", self.value, item, memo) for key, item in value.items()
        }


@dataclass(frozen=True, slots=True)
class OneOf(Shape):
    """Any of some shapes; the first that fits builds the value."""

    members: tuple[Shape, ...]

    def parts(self) -> tuple[Shape, ...]:
        return self.members

    def write(self, writer: SchemaWriter) -> Json:
        return {"anyOf": [member.write(writer) for member in self.members]}

    def build(self, value: Any, memo: Memo) -> Any:
        misfits: list[Misfit] = []
        for member in self.members:
            try:
                return member.build(value, memo)
            except Misfit as misfit:
                misfits.append(misfit)
        # A misfit inside the value says most, if it is not one of several: a class was meant, and nearly met.
        inside = [misfit for misfit in misfits if misfit.path]
        others = inside or [misfit for member, misfit in zip(self.members, misfits, strict=True) if member != NULL]
        if len(others) != 1:
            raise Misfit("fits none of the types that are taken here")
        raise Misfit(others[0].problem, others[0].path)


@dataclass(frozen=True, slots=True)
class Described(Shape):
    """A shape, with a sentence for whoever reads the schema."""

    shape: Shape
    text: str

    def parts(self) -> tuple[Shape, ...]:
        return (self.shape,)

    def write(self, writer: SchemaWriter) -> Json:
        return {**self.shape.write(writer), "description": self.text}

    def build(self, value: Any, memo: Memo) -> Any:
        return self.shape.build(value, memo)


@dataclass(frozen=True, slots=True)
class Member:
    """A field of a record, or a parameter. `default` is a JSON value to show, or NO_DEFAULT."""

    shape: Shape
    is_required: bool = True
    default: Any = NO_DEFAULT
    is_taken: bool = True  # False: a field that the class fills by itself


@dataclass(slots=True, eq=False)
class Record(Shape):
    """A map with named fields, and no others. `members` is filled after its making, for a record may contain itself."""

    owner: type
    members: dict[str, Member] = field(default_factory=dict)

    def write(self, writer: SchemaWriter) -> Json:
        return writer.reference(self.owner, lambda _: self._write_definition(writer))

    def build(self, value: Any, memo: Memo) -> Any:
        if type(value) is not dict:
            raise _misfit("a map", value)
        key = (id(self), id(value))
        if key not in memo:
            try:
                memo[key] = self._build(value, memo)
            except Misfit as misfit:
                memo[key] = Misfit(misfit.problem, misfit.path)  # one that was raised would hold on to its frames
        built = memo[key]
        if isinstance(built, Misfit):
            raise Misfit(built.problem, built.path)
        return built

    def _build(self, value: dict[Any, Any], memo: Memo) -> Any:
        for key in value:
            if key not in self.members or not self.members[key].is_taken:
                raise Misfit("is unknown", f".{str(key)[:MAX_SHOWN_CHARS]}")
        for name, member in self.members.items():
            if member.is_required and name not in value:
                raise Misfit("is missing", f".{name}")
        built = {
            name: _build_within(f".{name}", member.shape, value[name], memo)
            for name, member in self.members.items()
            if name in value
        }
        if not dataclasses.is_dataclass(self.owner):
            return built
        try:
            return self.owner(**built)
        except ValueError as error:
            # The text of the error stays here: nobody wrote it for strangers.
            raise Misfit(f"does not make a valid {self.owner.__name__}") from error

    def _write_definition(self, writer: SchemaWriter) -> Json:
        if writer.direction is Direction.IN:
            members = {name: member for name, member in self.members.items() if member.is_taken}
        elif dataclasses.is_dataclass(self.owner):
            members = {name: Member(member.shape) for name, member in self.members.items()}
        else:
            members = self.members
        description = inspect.cleandoc(self.owner.__doc__ or "")
        # A dataclass without a docstring gets its signature for one.
        if description.startswith(f"{self.owner.__name__}("):
            description = ""
        return {**write_object(members, writer), **({"description": description} if description else {})}


@dataclass(frozen=True, slots=True)
class Model(Shape):
    """A class that checks, builds and dumps by itself, as pydantic's do. It is never imported, only recognised."""

    owner: Any

    def write(self, writer: SchemaWriter) -> Json:
        return writer.reference(self.owner, lambda name: self._write_definition(name, writer))

    def build(self, value: Any, memo: Memo) -> Any:
        try:
            return self.owner.model_validate(value)
        except ValueError as error:
            raise _misfit_of_model(error, self.owner.__name__) from error

    def _write_definition(self, name: str, writer: SchemaWriter) -> Json:
        # Its own definitions move up beside ours, each behind the name of the model they belong to.
        template = reference_to(name) + ".{model}"
        try:
            schema = self.owner.model_json_schema(mode=writer.direction.value, ref_template=template)
        except Exception:
            # A model may hold what has no schema, and a class that only looks like one may do anything.
            return Opaque(self.owner.__qualname__).write(writer)
        for inner, definition in schema.pop("$defs", {}).items():
            writer.definitions[f"{name}.{inner}"] = definition
        return cast("Json", schema)


ANYTHING = Anything()
NULL = Scalar(type(None))


def write_object(members: Mapping[str, Member], writer: SchemaWriter, more: Shape | None = None) -> Json:
    """The schema of a map with these members; any further one is of the shape `more`, if that is given."""
    properties = {}
    for name, member in members.items():
        default = {} if member.default is NO_DEFAULT else {"default": member.default}
        properties[name] = {**member.shape.write(writer), **default}
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name, member in members.items() if member.is_required],
        "additionalProperties": False if more is None else more.write(writer),
    }


def reference_to(definition: str) -> str:
    """The URI of a definition within its document."""
    return f"#/$defs/{definition}"


def _build_within(step: str, shape: Shape, value: Any, memo: Memo) -> Any:
    try:
        return shape.build(value, memo)
    except Misfit as misfit:
        raise misfit.within(step) from None


def _misfit(wanted: str, value: Any) -> Misfit:
    return Misfit(f"has to be {wanted}, not {_TYPE_WORDS.get(type(value), type(value).__name__)}")


def _misfit_of_model(error: ValueError, model: str) -> Misfit:
    """The first complaint of a pydantic ValidationError; any other ValueError says no more than that there is one."""
    try:
        first = error.errors()[0]  # type: ignore[attr-defined]
        location, problem = first["loc"], str(first["msg"])
    except (AttributeError, LookupError, TypeError):
        return Misfit(f"does not make a valid {model}")
    steps = (f"[{step}]" if isinstance(step, int) else f".{str(step)[:MAX_SHOWN_CHARS]}" for step in location)
    return Misfit(f"is refused: {problem:.200}", "".join(steps))
