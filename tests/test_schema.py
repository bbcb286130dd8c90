from __future__ import annotations

import dataclasses
import datetime
import enum
import sys
import urllib.request
from typing import Annotated, Any, Literal, NewType, NotRequired, Optional, TypedDict

import pydantic
import pytest
import referencing.exceptions
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from synapse_p2p.exceptions import ConfigError
from synapse_p2p.hints import HintReader
from synapse_p2p.messages import RPCResponse
from synapse_p2p.schema import (
    can_check,
    check_of,
    dump,
    dump_outermost,
    is_built,
    is_open,
    object_schema,
    schema_of,
    shown_default,
)
from synapse_p2p.serializers import MessagePackRPCSerializer
from synapse_p2p.shapes import NO_DEFAULT, Direction, Member, Misfit, Scalar, Shape

UserID = NewType("UserID", int)


class Colour(enum.Enum):
    RED = "red"


class Odd(enum.Enum):
    PAIR = (1, 2)


class Access(enum.Flag):
    READ = 1


@dataclasses.dataclass
class Point:
    """Where it is."""

    x: int
    y: float = 0.5
    seen: datetime.datetime | None = None
    raw: bytes = b""
    norm: float = dataclasses.field(init=False, default=1.0)


@dataclasses.dataclass
class Tree:
    point: Point
    children: list[Tree] = dataclasses.field(default_factory=list)


class Movie(TypedDict):
    title: str
    year: NotRequired[int]


class Address(pydantic.BaseModel):
    city: str


class User(pydantic.BaseModel):
    age: int = 3
    born: datetime.date | None = None
    home: Address | None = None
    friends: list[User] = []


class Unschemable(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)

    stream: Shape


def read(hint: Any) -> Shape:
    return HintReader(globals()).read(hint)


def schema_in(hint: Any) -> Any:
    return schema_of(read(hint), Direction.IN)


def references_in(schema: Any) -> set[str]:
    if isinstance(schema, list):
        return set().union(*map(references_in, schema))
    if not isinstance(schema, dict):
        return set()
    own = {schema["$ref"]} if "$ref" in schema else set()
    return own.union(*map(references_in, schema.values()))


LEAVES = [
    *(None, bool, int, float, str, bytes, list, dict, set, tuple, Any, object, datetime.datetime, complex, UserID),
    *(Colour, Odd, Access, Point, Tree, Movie, User, Unschemable, Literal["a", 1, None], Literal[b"x"], "Nowhere"),
]
HINTS = st.recursive(
    st.sampled_from(LEAVES),
    lambda inner: st.one_of(
        inner.map(lambda hint: list[hint]),
        inner.map(lambda hint: set[hint]),
        inner.map(lambda hint: tuple[hint, ...]),
        inner.map(lambda hint: dict[str, hint]),
        inner.map(lambda hint: dict[hint, int]),
        inner.map(lambda hint: Optional[hint]),  # noqa: UP045 - text has no |
        inner.map(lambda hint: Annotated[hint, "words"]),
        st.lists(inner, max_size=3).map(lambda hints: tuple[tuple(hints)]),
        st.dictionaries(st.sampled_from(["a", "b", "c"]), inner, max_size=3).map(
            lambda fields: dataclasses.make_dataclass("Made", fields.items())
        ),
    ),
    max_leaves=6,
)


@given(HINTS, st.sampled_from(Direction))
def test_every_hint_makes_a_valid_schema_that_travels(hint: Any, direction: Direction):
    schema = schema_of(read(hint), direction)

    Draft202012Validator.check_schema(schema)
    assert references_in(schema) <= {f"#/$defs/{name}" for name in schema.get("$defs", ())}
    sent = MessagePackRPCSerializer.deserialize(MessagePackRPCSerializer.serialize(RPCResponse("7", True, schema)))
    assert isinstance(sent, RPCResponse)
    assert sent.result == schema


@pytest.mark.parametrize(
    ("hint", "schema"),
    [
        (int, {"type": "integer"}),
        (Any, {}),
        (bytes, {"x-python": "bytes"}),
        (datetime.datetime, {"x-python": "datetime.datetime"}),
        (list[int], {"type": "array", "items": {"type": "integer"}}),
        (list, {"type": "array"}),
        (set[int], {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}),
        (
            tuple[int, str],
            {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "minItems": 2, "maxItems": 2},
        ),
        (tuple[()], {"type": "array", "maxItems": 0}),
        (dict[str, int], {"type": "object", "additionalProperties": {"type": "integer"}}),
        (dict, {"type": "object"}),
        (int | None, {"anyOf": [{"type": "integer"}, {"type": "null"}]}),
        (Literal["a", 1], {"enum": ["a", 1]}),
        (Colour, {"enum": ["red"]}),
        (Odd, {"enum": ["PAIR"]}),
        (Access, {"type": "integer"}),
        (Annotated[int, "how many"], {"type": "integer", "description": "how many"}),
        (
            Movie,
            {
                "$ref": "#/$defs/Movie",
                "$defs": {
                    "Movie": {
                        "type": "object",
                        "properties": {"title": {"type": "string"}, "year": {"type": "integer"}},
                        "required": ["title"],
                        "additionalProperties": False,
                    }
                },
            },
        ),
    ],
)
def test_a_type_is_said_in_json_schema(hint: Any, schema: Any):
    assert schema_in(hint) == schema


def test_a_field_with_a_default_may_be_left_out_on_the_way_in_and_is_there_on_the_way_out():
    taken = schema_in(Point)["$defs"]["Point"]
    given = schema_of(read(Point), Direction.OUT)["$defs"]["Point"]

    assert taken["description"] == "Where it is."
    assert taken["required"] == ["x"]
    assert list(taken["properties"]) == ["x", "y", "seen", "raw"]
    assert taken["properties"]["y"] == {"type": "number", "default": 0.5}
    assert taken["properties"]["seen"]["default"] is None
    assert taken["properties"]["raw"] == {"x-python": "bytes"}
    assert given["required"] == ["x", "y", "seen", "raw", "norm"]


def test_a_class_within_itself_is_a_reference():
    schema = schema_in(Tree)

    assert schema["$ref"] == "#/$defs/Tree"
    assert schema["$defs"]["Tree"]["properties"]["children"] == {"type": "array", "items": {"$ref": "#/$defs/Tree"}}
    assert set(schema["$defs"]) == {"Tree", "Point"}


def test_classes_of_one_name_and_of_any_script_have_definitions_of_their_own():
    first = dataclasses.make_dataclass("Größe", [("a", int)])
    second = dataclasses.make_dataclass("Größe", [("b", int)])

    schema = schema_in(tuple[first, second, first])

    assert [item["$ref"] for item in schema["prefixItems"]] == [
        "#/$defs/Gr__e",
        "#/$defs/Gr__e2",
        "#/$defs/Gr__e",
    ]
    assert list(schema["$defs"]["Gr__e2"]["properties"]) == ["b"]


def test_the_definitions_of_a_model_move_up_under_its_name():
    schema = schema_in(list[User])

    assert schema["items"] == {"$ref": "#/$defs/User"}
    assert set(schema["$defs"]) == {"User", "User.User", "User.Address"}
    assert Draft202012Validator(schema).is_valid([{"home": {"city": "Bonn"}, "friends": [{}]}])
    assert not Draft202012Validator(schema).is_valid([{"friends": [{"home": {}}]}])


def test_an_object_of_several_members_is_one_document():
    members = {"a": Member(Scalar(int)), "b": Member(read(Movie), is_required=False, default=None)}

    schema = object_schema(members, more=Scalar(str))

    assert schema["required"] == ["a"]
    assert schema["properties"] == {"a": {"type": "integer"}, "b": {"$ref": "#/$defs/Movie", "default": None}}
    assert schema["additionalProperties"] == {"type": "string"}
    assert list(schema["$defs"]) == ["Movie"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, None),
        ({"a": [1, "b"]}, {"a": [1, "b"]}),
        (Colour.RED, "red"),
        ((1, 2), [1, 2]),
        (Address(city="Bonn"), {"city": "Bonn"}),
        (b"raw", NO_DEFAULT),
        (float("nan"), NO_DEFAULT),
        (2**64, NO_DEFAULT),
        ({1: 2}, NO_DEFAULT),
        (dataclasses.MISSING, NO_DEFAULT),
    ],
)
def test_a_default_is_shown_where_json_can(value: Any, shown: Any):
    assert shown_default(value) == shown


@pytest.mark.parametrize(
    ("value", "dumped"),
    [
        (Point(1), {"x": 1, "y": 0.5, "seen": None, "raw": b"", "norm": 1.0}),
        ({"a": [Colour.RED], Colour.RED: (Odd.PAIR, Access.READ)}, {"a": ["red"], "red": ["PAIR", 1]}),
        (User(born=datetime.date(2000, 1, 2)), {"age": 3, "born": "2000-01-02", "home": None, "friends": []}),
        ([Tree(Point(1), [])], [{"point": dump(Point(1)), "children": []}]),
        ({"title": "M"}, {"title": "M"}),
    ],
)
def test_instances_are_dumped_wherever_they_stand(value: Any, dumped: Any):
    assert dump(value) == dumped


@pytest.mark.parametrize("value", [{1}, datetime.date(2000, 1, 1), Point, User])
def test_what_no_shape_knows_is_left_alone(value: Any):
    assert dump(value) is value


def test_only_the_outermost_instance_is_dumped_where_nothing_is_known():
    inside = [Point(1)]

    assert dump_outermost(inside) is inside
    assert dump_outermost(Colour.RED) == "red"


@pytest.mark.parametrize(
    ("hint", "has_classes", "may_be_any_instance"),
    [
        (int, False, False),
        (list[Any], False, False),
        (Literal["a"], False, False),
        (Any, False, True),
        (Any | None, False, True),
        (bytes, False, True),
        (Annotated[Any, "words"], False, True),
        (Movie, True, False),
        (list[dict[str, Colour]], True, False),
        (Literal[Colour.RED], True, False),
        (Access | None, True, False),
        (User, True, False),
    ],
)
def test_it_is_known_beforehand_what_has_to_be_built_and_dumped(
    hint: Any, has_classes: bool, may_be_any_instance: bool
):
    assert is_built(read(hint)) is has_classes
    assert is_open(read(hint)) is may_be_any_instance


# Checks against a schema


@pytest.mark.parametrize(
    ("schema", "value", "path", "problem"),
    [
        ({"type": "integer"}, "x", "", "does not fit its schema: type 'integer'"),
        (schema_in(list[int]), [1, "x"], "[1]", "type 'integer'"),
        (schema_in(Tree), {"point": {"x": "1"}}, ".point.x", "type 'integer'"),
        ({"required": ["a"]}, {}, "", "required ['a']"),
        ({"anyOf": [{"type": "null"}, {"type": "integer"}]}, "x", "", "anyOf"),
        ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, 1, "", "oneOf"),
        ({"uniqueItems": True}, [1, {"a": [2]}, {"a": [2.0]}], "", "uniqueItems"),
    ],
)
def test_a_misfit_shows_the_path_and_the_rule_but_not_the_value(schema: Any, value: Any, path: str, problem: str):
    with pytest.raises(Misfit) as caught:
        check_of(schema, name="it")(value)

    assert caught.value.path == path
    assert problem in caught.value.problem


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({}, object()),
        ({"anyOf": [{"type": "null"}, {"type": "integer"}]}, 1),
        ({"oneOf": [{"type": "string"}, {"type": "integer"}]}, 1),
        ({"uniqueItems": True}, [1, True, "1", [1], [True], {"a": 1}, {"a": 2}]),
        ({"uniqueItems": False}, [1, 1]),
        ({"uniqueItems": True}, "aa"),
    ],
)
def test_what_fits_passes(schema: Any, value: Any):
    assert check_of(schema, name="it")(value) is None


class Counted(str):
    """Text that counts how often it is shown and compared."""

    __slots__ = ()
    shown = compared = 0
    __hash__ = str.__hash__

    def __repr__(self) -> str:
        Counted.shown += 1
        return str.__repr__(self)

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return str.__eq__(self, other)

    def __lt__(self, other: Any) -> Any:
        return NotImplemented


@pytest.mark.parametrize("keyword", ["anyOf", "oneOf", "allOf"])
def test_a_check_ends_at_the_first_misfit_of_a_long_list(keyword: str):
    schema = {keyword: [{"type": "array", "items": {"type": "integer"}}]}
    Counted.shown = 0

    with pytest.raises(Misfit):
        check_of(schema, name="it")([Counted(number) for number in range(1000)])

    assert Counted.shown == 1


def test_the_items_of_a_long_list_are_not_compared_with_each_other():
    Counted.compared = 0

    check_of({"uniqueItems": True}, name="it")([1, *(Counted(number) for number in range(1000))])

    assert Counted.compared < 1000


def test_a_schema_that_is_none_is_refused_with_its_name():
    with pytest.raises(ConfigError, match="the schema of this one is no valid JSON Schema"):
        check_of({"type": "text"}, name="this one")


def test_other_documents_are_never_fetched(monkeypatch: pytest.MonkeyPatch):
    fetched = []
    monkeypatch.setattr(urllib.request, "urlopen", fetched.append)

    with pytest.raises(referencing.exceptions.Unresolvable):
        check_of({"$ref": "http://example.org/schema"}, name="it")(1)
    assert fetched == []


def test_a_check_without_the_library_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    assert can_check()
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    monkeypatch.setitem(sys.modules, "jsonschema.exceptions", None)

    assert not can_check()
    with pytest.raises(ConfigError, match=r"pip install 'synapse-p2p\[schema\]'"):
        check_of({}, name="it")
