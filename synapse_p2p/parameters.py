"""What a function takes: which parameters a caller fills, and which the server does.

Owns the check that a call fits before anything runs, the reading of its values, and the words for what does not fit. A
function is analysed once, when it is registered: one that wants neither classes nor checks is called with what came.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias, get_args

from synapse_p2p.context import CallContext
from synapse_p2p.exceptions import ConfigError, InvalidMessageError
from synapse_p2p.hints import HintReader, names_of
from synapse_p2p.messages import RPCRequest
from synapse_p2p.protocol.wire import Call
from synapse_p2p.schema import build, check_of, is_built, is_open, object_schema, schema_of, shown_default
from synapse_p2p.shapes import (
    ANYTHING,
    MAX_SHOWN_CHARS,
    NULL,
    Anything,
    Direction,
    Json,
    Member,
    Misfit,
    OneOf,
    Shape,
    StreamOf,
)
from synapse_p2p.transport.base import parse_address
from synapse_p2p.types import build_node_from_peer_name
from synapse_p2p.uploads import Upload

Bound: TypeAlias = tuple[Sequence[Any], Mapping[str, Any]]
"""The positional and named arguments to run a function with."""

Reading: TypeAlias = Callable[[Any], Any]
"""Makes of a value that was sent the one to hand over. Raises Misfit."""


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
    needs_names: bool  # some of these can be given by name alone
    rest: str | None  # the parameter that takes further positions
    more: str | None  # the parameter that takes further names
    shapes: Mapping[str, Shape]  # of the caller's, with those two
    readings: Mapping[str, Reading]  # of those whose values are built or checked
    returns: Shape

    def bind(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], *, request: RPCRequest | Call, context: CallContext
    ) -> Bound:
        """The arguments to run with. Raises InvalidMessageError that names the parameter in the way."""
        if kwargs or self.needs_names or len(args) != len(self.positional):  # mostly not, and then all is well
            self.check(args, kwargs)
        if Upload in map(type, args) or (kwargs and Upload in map(type, kwargs.values())):
            self._check_uploads(args, kwargs)
        if self.readings:
            args, kwargs = self._read(args, kwargs)
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
        if len(args) > len(self.positional) and self.rest is None:
            raise InvalidMessageError(f"{len(args)} positional arguments given; {self._wanted()}")
        filled = self.positional[: len(args)]
        for name in kwargs:
            if name in self.injected:
                raise InvalidMessageError(f"parameter {name!r} is filled by the server; leave it out")
            if name in filled and name in self.named:
                raise InvalidMessageError(f"parameter {name!r} is given twice, by position and by name")
            if name not in self.named and self.more is None:
                raise InvalidMessageError(f"unknown parameter {name[:MAX_SHOWN_CHARS]!r}; {self._wanted()}")
        for name in self.required:
            if name not in filled and not (name in self.named and name in kwargs):
                raise InvalidMessageError(f"parameter {name!r} is missing; {self._wanted()}")

    def _check_uploads(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        for name, value in (*zip(self.positional, args, strict=False), *kwargs.items()):
            if type(value) is Upload and not isinstance(self.shapes.get(name, ANYTHING), (StreamOf, Anything)):
                raise InvalidMessageError(f"parameter {name[:MAX_SHOWN_CHARS]!r} takes one value, and no stream")

    def schema(self) -> Json:
        """The arguments as the JSON Schema document of one object; `x-positional-only` marks what no name fills."""
        single = [name for name in self.caller.parameters if name not in (self.rest, self.more)]
        more = None if self.more is None else self.shapes[self.more]
        schema = object_schema({name: self._member(name) for name in single}, more=more)
        for name in single:
            if name not in self.named:
                schema["properties"][name]["x-positional-only"] = True
        return schema

    def rest_schema(self) -> Json | None:
        """The document of each positional argument past the named ones; None where there may be none."""
        return None if self.rest is None else schema_of(self.shapes[self.rest], Direction.IN)

    def _member(self, name: str) -> Member:
        default = shown_default(self.caller.parameters[name].default)
        return Member(self.shapes[name], is_required=name in self.required, default=default)

    def _read(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Bound:
        filled = [self._value(name, name, value) for name, value in zip(self.positional, args, strict=False)]
        surplus = enumerate(args[len(filled) :])
        filled += [self._value(self.rest, f"{self.rest}[{index}]", value) for index, value in surplus]
        named = {
            name: self._value(name if name in self.named else self.more, name[:MAX_SHOWN_CHARS], value)
            for name, value in kwargs.items()
        }
        return filled, named

    def _value(self, parameter: str | None, shown_name: str, value: Any) -> Any:
        reading = self.readings.get(parameter or "")
        if reading is None:
            return value
        try:
            return reading(value)
        except Misfit as misfit:
            raise InvalidMessageError(f"parameter '{shown_name}{misfit.path}' {misfit.problem}") from misfit

    def _wanted(self) -> str:
        names = ", ".join(self.caller.parameters)
        return f"it takes ({names})"


def analyse(function: Callable[..., Any], *, injects_names: bool = True, validate: bool = False) -> Parameters:
    """The parameters of a function. `rpc` and `node` are the caller's too where `injects_names` is false.

    Values are built where the hint names a class; `validate` has the others checked against their schemas. Raises
    ConfigError for a function whose signature cannot be read, and where there is nothing to check with.
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
    reader = HintReader(names_of(function))
    shapes = {p.name: _shape_of(p, reader) for p in callers}
    readings = {name: _reading_of(name, shape, validate) for name, shape in shapes.items()}
    return Parameters(
        whole=whole,
        caller=whole.replace(parameters=callers, return_annotation=inspect.Signature.empty),
        injected=injected,
        positional=tuple(p.name for p in by_position),
        named=frozenset(p.name for p in by_name),
        required=tuple(p.name for p in single if p.default is p.empty),
        needs_names=any(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in callers),
        rest=next((p.name for p in callers if p.kind is p.VAR_POSITIONAL), None),
        more=next((p.name for p in callers if p.kind is p.VAR_KEYWORD), None),
        shapes=shapes,
        readings={name: reading for name, reading in readings.items() if reading is not None},
        returns=reader.read(whole.return_annotation),
    )


def _shape_of(parameter: inspect.Parameter, reader: HintReader) -> Shape:
    shape = reader.read(parameter.annotation)
    # `x: int = None` says less than it means, and has long been written.
    if parameter.default is None and not is_open(shape) and NULL not in (shape, *shape.parts()):
        return OneOf((shape, NULL))
    return shape


def _reading_of(name: str, shape: Shape, validate: bool) -> Reading | None:
    if isinstance(shape, StreamOf):
        return functools.partial(_read_upload, name, _reading_of(name, shape.item, validate))
    if is_built(shape):
        return functools.partial(build, shape)
    if not validate:
        return None
    check = check_of(schema_of(shape, Direction.IN), name=f"parameter {name!r}")

    def read(value: Any) -> Any:
        check(value)
        return value

    return read


def _read_upload(name: str, reading: Reading | None, value: Any) -> Any:
    """The upload itself; its items are read as they come."""
    if type(value) is not Upload:
        raise Misfit("takes a stream: give it an asynchronous iterator, with a client of release 3 or newer")
    if reading is not None:

        def read(index: int, item: Any) -> Any:
            try:
                return reading(item)
            except Misfit as misfit:
                text = f"parameter '{name}[{index}]{misfit.path}' {misfit.problem}"
                raise InvalidMessageError(text) from misfit

        value.read_with(read)
    return value


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


def _injected_value(what: Injected, request: RPCRequest | Call, context: CallContext) -> Any:
    match what:
        case Injected.REQUEST:
            if isinstance(request, RPCRequest):
                return request
            return RPCRequest(request.endpoint, str(request.id), request.args, request.kwargs)
        case Injected.NODE:
            return build_node_from_peer_name(parse_address(context.address))
        case Injected.CONTEXT:
            return context
