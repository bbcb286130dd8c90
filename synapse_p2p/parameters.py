"""What a function takes: which parameters a caller fills, and which the server does.

Owns the check that a call fits before anything runs, and the words for one that does not. A function is
analysed once, when it is registered. Pure.
"""

from __future__ import annotations

import inspect
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias, get_args

from synapse_p2p.context import CallContext
from synapse_p2p.exceptions import ConfigError, InvalidMessageError
from synapse_p2p.messages import RPCRequest
from synapse_p2p.transport.base import parse_address
from synapse_p2p.types import build_node_from_peer_name

MAX_SHOWN_CHARS = 64  # of a name that a caller made up

Bound: TypeAlias = tuple[Sequence[Any], Mapping[str, Any]]
"""The positional and named arguments to run a function with."""


class Injected(Enum):
    """What the server fills in by itself."""

    REQUEST = "rpc"  # by name, as in release 1.3
    NODE = "node"  # by name, as in release 1.3
    CONTEXT = "CallContext"  # by annotation


@dataclass(frozen=True, slots=True)
class Parameters:
    """The parameters of one function. `caller` is its signature without those that the server fills."""

    whole: inspect.Signature
    caller: inspect.Signature
    injected: Mapping[str, Injected]
    positional: tuple[str, ...]  # of the caller's: those that a position can fill, in order
    named: frozenset[str]  # of the caller's: those that a name can fill
    required: tuple[str, ...]
    takes_more_positions: bool
    takes_more_names: bool

    def bind(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], *, request: RPCRequest, context: CallContext
    ) -> Bound:
        """The arguments to run with. Raises InvalidMessageError that names the parameter in the way."""
        self.check(args, kwargs)
        if not self.injected:
            return args, kwargs
        arguments = OrderedDict(self.caller.bind(*args, **kwargs).arguments)
        for name, what in self.injected.items():
            arguments[name] = _injected_value(what, request, context)
        # BoundArguments orders them by the signature, whatever order they have here.
        bound = inspect.BoundArguments(self.whole, arguments)
        return bound.args, bound.kwargs

    def check(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Raises InvalidMessageError where a call with these would not fit."""
        if len(args) > len(self.positional) and not self.takes_more_positions:
            raise InvalidMessageError(f"{len(args)} positional arguments given; {self._wanted()}")
        filled = self.positional[: len(args)]
        for name in kwargs:
            if name in self.injected:
                raise InvalidMessageError(f"parameter {name!r} is filled by the server; leave it out")
            if name in filled and name in self.named:
                raise InvalidMessageError(f"parameter {name!r} is given twice, by position and by name")
            if name not in self.named and not self.takes_more_names:
                raise InvalidMessageError(f"unknown parameter {name[:MAX_SHOWN_CHARS]!r}; {self._wanted()}")
        for name in self.required:
            if name not in filled and not (name in self.named and name in kwargs):
                raise InvalidMessageError(f"parameter {name!r} is missing; {self._wanted()}")

    def _wanted(self) -> str:
        names = ", ".join(self.caller.parameters)
        return f"it takes ({names})"


def analyse(function: Callable[..., Any], *, injects_names: bool = True) -> Parameters:
    """The parameters of a function. `rpc` and `node` are the caller's too where `injects_names` is false.

    Raises ConfigError for a function whose signature cannot be read.
    """
    whole = _signature_of(function)
    injected = {
        name: what
        for name, parameter in whole.parameters.items()
        if (what := _injected_by(parameter, injects_names)) is not None
    }
    callers = [parameter for name, parameter in whole.parameters.items() if name not in injected]
    by_position = [p for p in callers if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    by_name = [p for p in callers if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    single = [p for p in callers if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return Parameters(
        whole=whole,
        caller=whole.replace(parameters=callers, return_annotation=inspect.Signature.empty),
        injected=injected,
        positional=tuple(p.name for p in by_position),
        named=frozenset(p.name for p in by_name),
        required=tuple(p.name for p in single if p.default is p.empty),
        takes_more_positions=any(p.kind is p.VAR_POSITIONAL for p in callers),
        takes_more_names=any(p.kind is p.VAR_KEYWORD for p in callers),
    )


def _signature_of(function: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(function, eval_str=True)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{function!r} cannot be an endpoint: its parameters cannot be read") from error
    except Exception:
        # An annotation may name what exists for type checkers alone, or fail in any other way when it is
        # evaluated. Its text still shows whether a CallContext is wanted.
        return inspect.signature(function)


def _injected_by(parameter: inspect.Parameter, injects_names: bool) -> Injected | None:
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        return None
    if _names_call_context(parameter.annotation):
        return Injected.CONTEXT
    if injects_names and parameter.name in (Injected.REQUEST.value, Injected.NODE.value):
        return Injected(parameter.name)
    return None


def _names_call_context(annotation: Any) -> bool:
    if isinstance(annotation, str):
        return re.search(r"\bCallContext\b", annotation) is not None
    return annotation is CallContext or CallContext in get_args(annotation)


def _injected_value(what: Injected, request: RPCRequest, context: CallContext) -> Any:
    match what:
        case Injected.REQUEST:
            return request
        case Injected.NODE:
            return build_node_from_peer_name(parse_address(context.address))
        case Injected.CONTEXT:
            return context
