from __future__ import annotations

import enum
import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synapse_p2p.context import CallContext
from synapse_p2p.exceptions import ConfigError, InvalidMessageError
from synapse_p2p.messages import RPCRequest
from synapse_p2p.parameters import analyse
from synapse_p2p.types import Node, build_node_from_peer_name

if TYPE_CHECKING:
    from nowhere import Unknown

CONTEXT = CallContext(peer=None, address="127.0.0.1:80")
REQUEST = RPCRequest(endpoint="any", id="7")


class Colour(enum.Enum):
    RED = "red"


@dataclass
class User:
    name: str
    age: int = 3


class Movie(TypedDict):
    title: str


def call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What the function returns for what a caller sends."""
    positional, named = analyse(function).bind(args, kwargs, request=REQUEST, context=CONTEXT)
    return function(*positional, **named)


def plain(a, b, c=3, /, d=4, *, e, f=6):
    return (a, b, c, d, e, f)


def open_ended(a, *rest, b=2, **more):
    return (a, rest, b, more)


def all_injected(rpc, a, node, b=2, *, ctx: CallContext):
    return (rpc, a, node, b, ctx)


@pytest.mark.parametrize("function", [plain, open_ended])
@given(
    args=st.lists(st.integers(), max_size=6),
    kwargs=st.dictionaries(st.sampled_from("abcdefg"), st.integers(), max_size=5),
)
def test_what_fits_is_what_python_says_fits(function: Callable[..., Any], args: list[int], kwargs: dict[str, int]):
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except TypeError:
        with pytest.raises(InvalidMessageError):
            call(function, *args, **kwargs)
        return

    assert call(function, *args, **kwargs) == function(*args, **kwargs)


def test_the_server_fills_the_request_the_node_and_the_context():
    rpc, a, node, b, context = call(all_injected, 1, b=5)

    assert rpc is REQUEST
    assert (a, b) == (1, 5)
    assert node == build_node_from_peer_name(("127.0.0.1", 80))
    assert context is CONTEXT


def test_positions_skip_what_the_server_fills():
    def function(rpc: Any, first: int, node: Node, *rest: int):
        return (rpc.id, first, node.port, rest)

    assert call(function, 1, 2, 3) == ("7", 1, 80, (2, 3))


def test_a_context_is_found_by_its_annotation_alone():
    def by_type(context: CallContext):
        return context

    def optional(ctx: CallContext | None = None):
        return ctx

    def beside_an_unknown_name(ctx: CallContext, other: Unknown = None):
        return ctx

    def named_like_one(context):
        return context

    assert call(by_type) is CONTEXT
    assert call(optional) is CONTEXT
    assert call(beside_an_unknown_name) is CONTEXT
    assert call(named_like_one, "the caller's") == "the caller's"


def test_rpc_and_node_can_be_left_to_the_caller():
    def function(rpc, node):
        return (rpc, node)

    parameters = analyse(function, injects_names=False)

    assert parameters.bind([1, 2], {}, request=REQUEST, context=CONTEXT) == ([1, 2], {})


@pytest.mark.parametrize(
    ("args", "kwargs", "complaint"),
    [
        ([], {}, "parameter 'a' is missing; it takes (a, b)"),
        ([1, 2, 3], {}, "3 positional arguments given; it takes (a, b)"),
        ([1], {"a": 2}, "parameter 'a' is given twice"),
        ([1], {"x": 2}, "unknown parameter 'x'; it takes (a, b)"),
        ([1], {"rpc": 2}, "parameter 'rpc' is filled by the server"),
    ],
)
def test_a_call_that_does_not_fit_names_the_parameter_in_the_way(
    args: list[Any], kwargs: dict[str, Any], complaint: str
):
    with pytest.raises(InvalidMessageError, match=re.escape(complaint)):
        call(all_injected, *args, **kwargs)


def test_a_name_that_a_caller_made_up_is_cut_in_the_answer():
    with pytest.raises(InvalidMessageError) as caught:
        call(plain, 1, 2, **{"x" * 10_000: 1, "e": 1})

    assert len(str(caught.value)) < 200


def test_a_function_without_a_readable_signature_is_refused():
    with pytest.raises(ConfigError, match="cannot be read"):
        analyse(max)


# Values


def with_classes(user: User, /, movies: list[Movie], *rest: User, colour: Colour | None = None, **more: Colour):
    return (user, movies, rest, colour, more)


def test_values_are_built_for_the_parameters_that_name_a_class():
    movies = [{"title": "M"}]
    ada, bob = {"name": "Ada"}, {"name": "Bob", "age": 7}

    assert call(with_classes, ada, movies, bob, colour="red", other="red") == (
        User("Ada"),
        movies,
        (User("Bob", 7),),
        Colour.RED,
        {"other": Colour.RED},
    )
    assert call(with_classes, ada, movies=movies, colour=None) == (User("Ada"), movies, (), None, {})


@pytest.mark.parametrize(
    ("args", "kwargs", "complaint"),
    [
        ([{"name": "Ada", "age": "x"}, []], {}, "parameter 'user.age' has to be an integer, not text"),
        ([{}, []], {}, "parameter 'user.name' is missing"),
        ([{"name": "Ada"}, [{}]], {}, "parameter 'movies[0].title' is missing"),
        ([{"name": "Ada"}], {"movies": [{}]}, "parameter 'movies[0].title' is missing"),
        ([{"name": "Ada"}, [], {"name": "Bob"}, {"name": 1}], {}, "parameter 'rest[1].name' has to be text"),
        ([{"name": "Ada"}, []], {"colour": "blue"}, "parameter 'colour' has to be one of ['red']"),
        ([{"name": "Ada"}, []], {"other": "blue"}, "parameter 'other' has to be one of ['red']"),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_its_path(args: list[Any], kwargs: dict[str, Any], complaint: str):
    with pytest.raises(InvalidMessageError, match=re.escape(complaint)):
        call(with_classes, *args, **kwargs)


def test_built_values_stand_beside_those_that_the_server_fills():
    def function(rpc: Any, user: User, context: CallContext):
        return (rpc, user, context)

    assert call(function, {"name": "Ada"}) == (REQUEST, User("Ada"), CONTEXT)


def test_one_annotation_that_names_nothing_does_not_keep_the_others_from_being_built():
    def function(user: User, other: Unknown):
        return (user, other)

    assert call(function, {"name": "Ada"}, [1]) == (User("Ada"), [1])


def test_a_function_that_names_no_class_gets_the_very_arguments_that_came():
    def function(a: int, b: list[str], c: Any = None, *rest: dict[str, int], **more: float):
        return None

    args, kwargs = ["not a number", 5], {"more": None}

    bound = analyse(function).bind(args, kwargs, request=REQUEST, context=CONTEXT)

    assert bound[0] is args
    assert bound[1] is kwargs


def test_a_default_of_none_lets_none_be_sent():
    def function(user: User = None, count: int = None):  # noqa: RUF013 - the old way to say it
        return (user, count)

    assert call(function, None, None) == (None, None)
    assert analyse(function).schema()["properties"]["count"] == {
        "anyOf": [{"type": "integer"}, {"type": "null"}],
        "default": None,
    }


# Checks


def validated(a: int, b: list[str] | None = None, *rest: bool, user: User | None = None, **more: float):
    return (a, b, rest, user, more)


def test_other_types_are_checked_where_that_is_wanted():
    parameters = analyse(validated, validate=True)

    def complaint_about(*args: Any, **kwargs: Any) -> str:
        with pytest.raises(InvalidMessageError) as caught:
            parameters.bind(args, kwargs, request=REQUEST, context=CONTEXT)
        return str(caught.value)

    assert parameters.bind([1, ["x"], True], {"z": 1.5}, request=REQUEST, context=CONTEXT) == (
        [1, ["x"], True],
        {"z": 1.5},
    )
    assert complaint_about("1") == "parameter 'a' does not fit its schema: type 'integer'"
    assert complaint_about(1, None, True, 0) == "parameter 'rest[1]' does not fit its schema: type 'boolean'"
    assert complaint_about(1, z="x") == "parameter 'z' does not fit its schema: type 'number'"
    assert complaint_about(1, user={"name": 2}) == "parameter 'user.name' has to be text, not an integer"
    assert "parameter 'b' does not fit its schema: anyOf" in complaint_about(1, ["x", 2])


def test_a_check_that_cannot_be_had_is_an_error_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    monkeypatch.setitem(sys.modules, "jsonschema.exceptions", None)

    with pytest.raises(ConfigError, match=r"parameter 'a' needs jsonschema: .* 'synapse-p2p\[schema\]'"):
        analyse(validated, validate=True)


# The schema of a call


def test_the_arguments_of_a_call_are_one_schema():
    parameters = analyse(with_classes)

    schema = parameters.schema()

    assert schema["required"] == ["user", "movies"]
    assert list(schema["properties"]) == ["user", "movies", "colour"]
    assert schema["properties"]["colour"]["default"] is None
    assert schema["additionalProperties"] == {"enum": ["red"]}
    assert set(schema["$defs"]) == {"User", "Movie"}
    assert parameters.rest_schema() == {"$ref": "#/$defs/User", "$defs": {"User": schema["$defs"]["User"]}}


def test_what_the_server_fills_is_not_in_the_schema():
    parameters = analyse(all_injected)

    assert list(parameters.schema()["properties"]) == ["a", "b"]
    assert parameters.schema()["additionalProperties"] is False
    assert parameters.rest_schema() is None
