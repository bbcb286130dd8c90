from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

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
