from __future__ import annotations

import collections
import collections.abc
import dataclasses
import datetime
import enum
import functools
import typing
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NewType, NotRequired, Optional, Required, TypedDict

import pydantic
import pytest
import typing_extensions

from synapse_p2p.hints import MAX_TEXT_CHARS, HintReader, names_of
from synapse_p2p.shapes import (
    ANYTHING,
    NULL,
    Choice,
    Described,
    Flags,
    ListOf,
    MapOf,
    Model,
    OneOf,
    Opaque,
    Record,
    Scalar,
    Shape,
    TupleOf,
)

if TYPE_CHECKING:
    from nowhere import Unknown

INTEGER, TEXT = Scalar(int), Scalar(str)
UserID = NewType("UserID", int)
Json = dict[str, "Json"] | int


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Shade(enum.Enum):
    LIGHT = (1, 2)
    DARK = (3, 4)


class Access(enum.Flag):
    READ = 1
    WRITE = 2


@dataclasses.dataclass
class Node:
    name: str
    parent: Node | None = None
    tags: list[str] = dataclasses.field(default_factory=list)
    size: int = dataclasses.field(init=False, default=0)
    maker: Unknown = None


class Movie(TypedDict):
    title: str
    year: NotRequired[int]


class Remake(Movie, total=False):
    of: Required[Movie]
    rating: Annotated[float, "0 to 10"]


class Account(pydantic.BaseModel):
    name: str


def read(hint: Any) -> Shape:
    return HintReader(globals()).read(hint)


@pytest.mark.parametrize(
    ("hint", "shape"),
    [
        (Any, ANYTHING),
        (object, ANYTHING),
        (None, NULL),
        (type(None), NULL),
        (bool, Scalar(bool)),
        (int, INTEGER),
        (float, Scalar(float)),
        (str, TEXT),
        (list, ListOf(ANYTHING)),
        (typing.List, ListOf(ANYTHING)),  # noqa: UP006
        (list[int], ListOf(INTEGER)),
        (collections.abc.Sequence[int], ListOf(INTEGER)),
        (collections.abc.Iterable, ListOf(ANYTHING)),
        (set[int], ListOf(INTEGER, set)),
        (frozenset[str], ListOf(TEXT, frozenset)),
        (tuple, ListOf(ANYTHING, tuple)),
        (typing.Tuple, ListOf(ANYTHING, tuple)),  # noqa: UP006
        (tuple[int, ...], ListOf(INTEGER, tuple)),
        (tuple[int, str], TupleOf((INTEGER, TEXT))),
        (tuple[()], TupleOf(())),
        (dict, MapOf(ANYTHING)),
        (dict[str, int], MapOf(INTEGER)),
        (dict[Any, int], MapOf(INTEGER)),
        (collections.abc.Mapping[str, int], MapOf(INTEGER)),
        (int | None, OneOf((INTEGER, NULL))),
        (Optional[int], OneOf((INTEGER, NULL))),  # noqa: UP045
        (typing.Union[int, str], OneOf((INTEGER, TEXT))),  # noqa: UP007
        (Literal["a", 1, None], Choice((("a", "a"), (1, 1), (None, None)))),
        (Literal[Colour.RED], Choice((("red", Colour.RED),))),
        (Colour, Choice((("red", Colour.RED), ("blue", Colour.BLUE)))),
        (Shade, Choice((("LIGHT", Shade.LIGHT), ("DARK", Shade.DARK)))),
        (Access, Flags(Access)),
        (Annotated[int, 5, "how many"], Described(INTEGER, "how many")),
        (Annotated[int, 5], INTEGER),
        (Final[int], INTEGER),
        (UserID, INTEGER),
        (Account, Model(Account)),
        ("int", INTEGER),
        ("list['int']", ListOf(INTEGER)),
        (list["int"], ListOf(INTEGER)),
        (typing.List["int"], ListOf(INTEGER)),  # noqa: UP006
    ],
)
def test_a_hint_is_read_into_its_shape(hint: Any, shape: Shape):
    assert read(hint) == shape


@pytest.mark.parametrize(
    ("hint", "text"),
    [
        (bytes, "bytes"),
        (datetime.datetime, "datetime.datetime"),
        (collections.OrderedDict[str, int], "collections.OrderedDict[str, int]"),
        (dict[int, str], "dict[int, str]"),
        (tuple[int, *tuple[int, ...]], "tuple[int, *tuple[int, ...]]"),
        (Literal[b"raw"], "typing.Literal[b'raw']"),
        (Literal[2**64], f"typing.Literal[{2**64}]"),
        (typing.TypeVar("T"), "~T"),
        (5, "5"),
        ("Unknown", "Unknown"),
        ("1 +", "1 +"),
        ("'Unknown'", "Unknown"),
        ("x" * 1000, "x" * MAX_TEXT_CHARS),
    ],
)
def test_what_json_schema_cannot_express_keeps_its_text(hint: Any, text: str):
    assert read(hint) == Opaque(text)


def test_one_unknown_name_does_not_spoil_what_is_around_it():
    assert read(dict[str, "Unknown"]) == MapOf(Opaque("Unknown"))
    assert read("dict[str, Unknown]") == Opaque("dict[str, Unknown]")


def test_a_dataclass_is_read_with_its_defaults_and_may_contain_itself():
    record = read(Node)

    assert isinstance(record, Record)
    assert [(name, member.is_required, member.is_taken) for name, member in record.members.items()] == [
        ("name", True, True),
        ("parent", False, True),
        ("tags", False, True),
        ("size", False, False),
        ("maker", False, True),
    ]
    assert record.members["parent"].shape == OneOf((record, NULL))
    assert record.members["maker"].shape == Opaque("Unknown")
    assert record.members["parent"].default is None


def test_a_dataclass_made_in_a_function_may_speak_of_itself():
    @dataclasses.dataclass
    class Local:
        next: Local | None = None

    record = read(Local)

    assert isinstance(record, Record)
    assert record.members["next"].shape == OneOf((record, NULL))


@pytest.mark.parametrize("base", [TypedDict, typing_extensions.TypedDict])
def test_a_typed_dict_says_which_keys_are_required(base: Any):
    class Partial(base, total=False):
        a: Required[int]
        b: int
        c: typing_extensions.ReadOnly[Required[int]]

    record = read(Partial)

    assert isinstance(record, Record)
    assert {name: member.is_required for name, member in record.members.items()} == {"a": True, "b": False, "c": True}
    assert {member.shape for member in record.members.values()} == {INTEGER}


def test_a_typed_dict_keeps_what_its_base_requires():
    record = read(Remake)

    assert isinstance(record, Record)
    assert {name: member.is_required for name, member in record.members.items()} == {
        "title": True,
        "year": False,
        "of": True,
        "rating": False,
    }
    assert record.members["rating"].shape == Described(Scalar(float), "0 to 10")


def test_a_class_that_is_met_twice_is_one_shape():
    reader = HintReader({})

    assert reader.read(Node) is reader.read(Node)


def test_an_alias_within_itself_ends_where_it_begins_again():
    json = typing_extensions.TypeAliasType("json", "dict[str, json] | int")  # type: ignore[misc]
    broken = typing_extensions.TypeAliasType("broken", "Unknown")  # type: ignore[misc]

    reader = HintReader({"json": json})

    assert reader.read(json) == OneOf((MapOf(Opaque("json")), INTEGER))
    assert reader.read(broken) == Opaque("Unknown")
    assert read("Json") == OneOf((MapOf(Opaque("Json")), INTEGER))
    assert read(list[Json]) == ListOf(OneOf((MapOf(OneOf((MapOf(Opaque("Json")), INTEGER))), INTEGER)))


def test_a_class_is_found_again_under_the_very_text_that_led_to_it():
    record = read("Node | None")

    assert isinstance(record, OneOf)
    assert isinstance(record.members[0], Record)
    assert record.members[0].members["parent"].shape == record


def test_names_are_those_of_the_module_whatever_wraps_the_function():
    def plain() -> None: ...

    class Callable:
        def __call__(self) -> None: ...

    @functools.wraps(plain)
    def wrapper() -> None: ...

    for function in (plain, functools.partial(plain), Callable(), Callable().__call__, wrapper, Callable):
        assert names_of(function)["Colour"] is Colour
    assert names_of(print) == {}
