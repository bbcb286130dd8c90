from __future__ import annotations

import dataclasses
import enum
from typing import Any, Literal, NotRequired, TypedDict

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from synapse_p2p.exceptions import CallError
from synapse_p2p.hints import HintReader
from synapse_p2p.schema import build, schema_of
from synapse_p2p.shapes import (
    Anything,
    Choice,
    Direction,
    ListOf,
    MapOf,
    Misfit,
    OneOf,
    Opaque,
    Record,
    Scalar,
    Shape,
    TupleOf,
)


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Size(enum.IntEnum):
    SMALL = 1
    LARGE = 2


class Access(enum.Flag):
    READ = 1
    WRITE = 2


@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    y: float = 0.0


@dataclasses.dataclass
class Tree:
    value: Point | None
    children: list[Tree] = dataclasses.field(default_factory=list)
    total: int = dataclasses.field(init=False, default=7)


class Movie(TypedDict):
    title: str
    colours: NotRequired[list[Colour]]


@dataclasses.dataclass
class Circle:
    kind: Literal["circle"]
    radius: float


@dataclasses.dataclass
class Square:
    kind: Literal["square"]
    side: float


@dataclasses.dataclass
class Add:
    left: Add | Multiply | None
    op: Literal["add"]


@dataclasses.dataclass
class Multiply:
    left: Add | Multiply | None
    op: Literal["multiply"]


@dataclasses.dataclass
class Picky:
    age: int

    def __post_init__(self) -> None:
        if self.age < 0:
            raise ValueError("canary")
        if self.age > 150:
            raise CallError("too_old", "not here")


class Address(pydantic.BaseModel):
    city: str


class User(pydantic.BaseModel):
    age: int
    addresses: list[Address] = []


def read(hint: Any) -> Shape:
    return HintReader(globals()).read(hint)


def misfit_of(hint: Any, value: Any) -> tuple[str, str]:
    with pytest.raises(Misfit) as caught:
        build(read(hint), value)
    return caught.value.path, caught.value.problem


LEAVES = (None, bool, int, float, str, Any, bytes, Literal["a", 1, False], Colour, Size, Point, Tree, Movie, Add)


def hints() -> st.SearchStrategy[Any]:
    return st.recursive(
        st.sampled_from(LEAVES),
        lambda inner: st.one_of(
            inner.map(lambda hint: list[hint]),
            inner.map(lambda hint: tuple[hint, ...]),
            inner.map(lambda hint: dict[str, hint]),
            inner.map(lambda hint: hint | None if hint is not None else hint),
            st.tuples(inner, inner).map(lambda pair: tuple[pair]),
            st.sampled_from([set[int], frozenset[str], set[int | str], Circle | Square, Point | Movie]),
        ),
        max_leaves=4,
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.0, 1.0, 0.5, "a", "red", "x", "title"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["x", "title", "k"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@st.composite
def values_near(draw: st.DrawFn, shape: Shape, depth: int = 4) -> Any:
    """A value that mostly fits."""
    if depth == 0 or draw(st.integers(0, 15)) == 0:
        return draw(JSON)

    def near(inner: Shape) -> st.SearchStrategy[Any]:
        return values_near(inner, depth - 1)

    match shape:
        case Scalar():
            return draw(st.from_type(shape.kind).filter(lambda value: value == value))
        case Choice():
            return draw(st.sampled_from([sent for sent, _ in shape.members]))
        case ListOf():
            return draw(st.lists(near(shape.item), max_size=3))
        case TupleOf():
            return [draw(near(item)) for item in shape.items]
        case MapOf():
            return draw(st.dictionaries(st.text(max_size=2), near(shape.value), max_size=2))
        case OneOf():
            return draw(near(draw(st.sampled_from(shape.members))))
        case Record():
            names = [name for name, m in shape.members.items() if m.is_required or (m.is_taken and draw(st.booleans()))]
            return {name: draw(near(shape.members[name].shape)) for name in names}
        case Anything() | Opaque():
            return draw(JSON)
    raise AssertionError(shape)


@given(st.data())
def test_a_value_can_be_built_exactly_where_the_schema_calls_it_valid(data: st.DataObject):
    shape = read(data.draw(hints()))
    value = data.draw(values_near(shape))
    is_valid = Draft202012Validator(schema_of(shape, Direction.IN)).is_valid(value)

    try:
        build(shape, value)
    except Misfit:
        assert not is_valid
    else:
        assert is_valid


@pytest.mark.parametrize(
    ("hint", "value", "built"),
    [
        (int, 3.0, 3),
        (float, 3, 3),
        (Colour, "red", Colour.RED),
        (Size, 2, Size.LARGE),
        (Access, 3, Access.READ | Access.WRITE),
        (Literal[Colour.RED, "other"], "red", Colour.RED),
        (set[int], [1, 2], {1, 2}),
        (frozenset[Point], [{"x": 1}], frozenset([Point(1)])),
        (tuple[Point, ...], [{"x": 1}], (Point(1),)),
        (tuple[int, Colour], [1, "red"], (1, Colour.RED)),
        (dict[str, Point], {"a": {"x": 1, "y": 2.5}}, {"a": Point(1, 2.5)}),
        (Point | None, None, None),
        (Tree, {"value": None, "children": [{"value": {"x": 1}}]}, Tree(None, [Tree(Point(1))])),
        (Movie, {"title": "M", "colours": ["red"]}, {"title": "M", "colours": [Colour.RED]}),
        (Circle | Square, {"kind": "square", "side": 2.0}, Square("square", 2.0)),
        (User, {"age": 3, "addresses": [{"city": "Bonn"}]}, User(age=3, addresses=[Address(city="Bonn")])),
        (list[User], [{"age": 3}], [User(age=3)]),
    ],
)
def test_classes_are_built_wherever_they_stand(hint: Any, value: Any, built: Any):
    result = build(read(hint), value)

    assert result == built
    assert type(result) is type(built)


@pytest.mark.parametrize(
    ("hint", "value", "path", "problem"),
    [
        (int, "3", "", "has to be an integer, not text"),
        (int, True, "", "has to be an integer, not true or false"),
        (Point, [1], "", "has to be a map, not a list"),
        (Point, {"x": "1"}, ".x", "has to be an integer, not text"),
        (Point, {}, ".x", "is missing"),
        (Point, {"x": 1, "z": 1}, ".z", "is unknown"),
        (Tree, {"value": None, "total": 1}, ".total", "is unknown"),
        (Tree, {"value": None, "children": [{"value": {"x": None}}]}, ".children[0].value.x", "has to be an integer"),
        (dict[str, Point], {"a": {"x": None}}, "['a'].x", "has to be an integer, not nil"),
        (dict[str, int], {b"a": 1}, "", "has a key that is no text"),
        (Movie, {"title": "M", "colours": ["green"]}, ".colours[0]", "has to be one of ['red', 'blue']"),
        (Point | None, 3, "", "has to be a map, not an integer"),
        (Point | None, {"x": None}, ".x", "has to be an integer"),
        (Circle | Square, {"kind": "line"}, "", "fits none of the types"),
        (tuple[int, int], [1], "", "has to hold 2 items, not 1"),
        (tuple[int, int], [1, 2, 3], "", "has to hold 2 items, not 3"),
        (Literal[1], True, "", "has to be one of [1]"),
        (Literal[False], 0, "", "has to be one of [False]"),
        (tuple[int, ...], "ab", "", "has to be a list, not text"),
        (set[int], [1, 1], "", "holds an item twice"),
        (set[Any], [[1]], "", "cannot be in a set"),
        (Access, 4, "", "holds a flag that Access does not have"),
        (Picky, {"age": -1}, "", "does not make a valid Picky"),
        (User, {"age": "x"}, ".age", "is refused: Input should be a valid integer"),
        (User, {"age": 1, "addresses": [{"city": "a"}, {}]}, ".addresses[1].city", "is refused: Field required"),
        (list[User], [{"age": 1}, {}], "[1].age", "is refused: Field required"),
    ],
)
def test_what_does_not_fit_is_named_by_its_path(hint: Any, value: Any, path: str, problem: str):
    found_path, found_problem = misfit_of(hint, value)

    assert found_path == path
    assert problem in found_problem
    assert "canary" not in found_problem


def test_names_that_a_caller_made_up_are_cut():
    assert len("".join(misfit_of(Point, {"x" * 10_000: 1}))) < 200
    assert len("".join(misfit_of(dict[str, int], {"x" * 10_000: None}))) < 200


def test_a_refusal_in_the_makers_own_words_passes():
    with pytest.raises(CallError, match="not here"):
        build(read(Picky), {"age": 151})


@pytest.mark.parametrize("is_valid", [True, False])
def test_a_union_within_itself_costs_one_try_for_each_map_and_class(is_valid: bool, monkeypatch: pytest.MonkeyPatch):
    tries = 0
    build_record = Record._build

    def counted(self: Record, value: Any, memo: Any) -> Any:
        nonlocal tries
        tries += 1
        return build_record(self, value, memo)

    monkeypatch.setattr(Record, "_build", counted)
    value: Any = None if is_valid else 1
    for _ in range(30):
        value = {"left": value, "op": "multiply"}

    try:
        build(read(Add | Multiply), value)
    except Misfit:
        assert not is_valid
    else:
        assert is_valid
    assert tries == 2 * 30


def test_a_class_that_only_looks_like_a_model_may_raise_any_value_error():
    class Odd:
        @classmethod
        def model_validate(cls, value: Any) -> Any:
            raise ValueError("canary")

        def model_dump(self) -> Any: ...

    path, problem = misfit_of(Odd, {})

    assert (path, problem) == ("", "does not make a valid Odd")
    assert schema_of(read(Odd), Direction.IN)["$defs"]["Odd"]["x-python"].endswith("Odd")
