"""Conditions on the attributes of a capability: what `where={"tier": "gold", "price": {"<": 5}}` asks for.

Pure. Runs at the searcher and, by what a stranger sent, at storers. Values compare only with their kind: text with text
(by code points), numbers with numbers (by value: 1 is 1.0), true and false with those alone, and these have no order.

    =   !=   <   <=   >   >=   in

An attribute that is a list meets its conditions where one of its values meets them all; `!=` also asks that no value
is equal. What a claim does not state meets no condition, `!=` included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from operator import ge, gt, le, lt, ne
from typing import Any, TypeAlias

from dht.agents.claim import MAX_ATTRIBUTE_CHARS, CapabilityClaim, checked_scalar
from synapse_p2p.capability import Scalar
from synapse_p2p.exceptions import ConfigError, InvalidMessageError

MAX_COMPARISONS = 8
"""In a query, over all attributes: as many as the attributes that one claim may have. A storer makes them for all
claims of a thousand records.
"""
MAX_CHOICES = 16
"""After `in`."""

Kind: TypeAlias = type
_KINDS: dict[type, Kind] = {bool: bool, int: float, float: float, str: str}


class Operator(StrEnum):
    """How an attribute compares with the value in a query. The words travel."""

    EQUAL = "="
    NOT_EQUAL = "!="
    LESS = "<"
    AT_MOST = "<="
    MORE = ">"
    AT_LEAST = ">="
    IN = "in"


_ORDERS: dict[Operator, Callable[[Any, Any], bool]] = {
    Operator.LESS: lt,
    Operator.AT_MOST: le,
    Operator.MORE: gt,
    Operator.AT_LEAST: ge,
}
_EQUALITIES = frozenset((Operator.EQUAL, Operator.IN))
_OPERATORS = {each.value: each for each in Operator}
_HINTS = {
    "==": "; write '='",
    "contains": "; '=' holds for a list where one of its values is equal",
    "not in": "; write a '!=' for each",
    "<>": "; write '!='",
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """One comparison: with one of `values` after IN, else with the only one.

    Raises ConfigError for a value that no attribute can have, and for one that the operator has no use for.
    """

    operator: Operator
    values: tuple[Scalar, ...]
    holds_for: Callable[[Scalar], bool] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        word = self.operator.value
        max_values = MAX_CHOICES if self.operator is Operator.IN else 1
        if not 0 < len(self.values) <= max_values:
            raise ConfigError(f"{word!r} takes 1 to {MAX_CHOICES} values, not {len(self.values)}")
        for value in self.values:
            checked_scalar(f"a value after {word!r}", value)
        if self.operator in _ORDERS and type(self.values[0]) is bool:
            raise ConfigError(f"true and false have no order: {word!r} takes text or a number")
        object.__setattr__(self, "holds_for", _decision(self.operator, self.values))

    @property
    def kinds(self) -> frozenset[Kind]:
        """What is compared with."""
        return frozenset(_KINDS[type(each)] for each in self.values)

    def to_operand(self) -> Scalar | list[Scalar]:
        """What stands after the operator, as it is typed and travels."""
        return list(self.values) if self.operator is Operator.IN else self.values[0]


@dataclass(frozen=True, slots=True)
class Condition:
    """All comparisons with one attribute."""

    attribute: str
    comparisons: tuple[Comparison, ...]
    _holds_for_one: Callable[[Scalar], bool] = field(init=False, repr=False, compare=False)
    _excluded: Callable[[Scalar], bool] | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        decisions = [each.holds_for for each in self.comparisons]
        excluded = tuple(each.values[0] for each in self.comparisons if each.operator is Operator.NOT_EQUAL)
        holds_for_one = decisions[0] if len(decisions) == 1 else lambda value: all(holds(value) for holds in decisions)
        object.__setattr__(self, "_holds_for_one", holds_for_one)
        object.__setattr__(self, "_excluded", _decision(Operator.IN, excluded) if excluded else None)

    def holds_for(self, value: Scalar | tuple[Scalar, ...]) -> bool:
        """Whether an attribute meets them. Cost: a comparison for each, times the values of a list."""
        if not isinstance(value, tuple):
            return self._holds_for_one(value)
        if self._excluded is not None and any(map(self._excluded, value)):
            return False
        return any(map(self._holds_for_one, value))

    def is_contradicted_by(self, claim: CapabilityClaim) -> bool:
        """Whether this claim states the attribute, and does not meet the condition."""
        value: Any = claim.attributes.get(self.attribute)
        return value is not None and not self.holds_for(value)

    def is_stated_by(self, claims: Iterable[CapabilityClaim]) -> bool:
        """Whether one of these claims has the attribute."""
        for claim in claims:  # noqa: SIM110 - as in `query.py`
            if self.attribute in claim.attributes:
                return True
        return False

    def __str__(self) -> str:
        return " and ".join(f"{self.attribute} {each.operator} {each.to_operand()!r}" for each in self.comparisons)


def _decision(operator: Operator, values: tuple[Scalar, ...]) -> Callable[[Scalar], bool]:
    """The comparison as a function: what can be decided once is not decided again for each record."""
    if operator in _EQUALITIES:
        choices = frozenset((_KINDS[type(each)], each) for each in values)
        return lambda value: (_KINDS[type(value)], value) in choices
    compare = _ORDERS.get(operator, ne)
    [operand] = values
    kind = _KINDS[type(operand)]
    return lambda value: _KINDS[type(value)] is kind and compare(value, operand)


def parse_where(where: Mapping[str, Any]) -> tuple[Condition, ...]:
    """The conditions that a user wrote. Raises ConfigError for a mistake, and for a condition that nothing can meet."""
    if not isinstance(where, Mapping):
        raise ConfigError("""where is a map, as in {"tier": "gold", "price": {"<": 5}}""")
    conditions = []
    for attribute, wanted in where.items():
        if type(attribute) is not str or len(attribute) > MAX_ATTRIBUTE_CHARS:
            raise ConfigError(f"an attribute's name is text of at most {MAX_ATTRIBUTE_CHARS} characters: {attribute!r}")
        try:
            condition = Condition(attribute, tuple(_parse_comparisons(wanted)))
        except ConfigError as error:
            raise ConfigError(f"where, attribute {attribute!r}: {error}") from error
        if not _can_hold(condition.comparisons):
            raise ConfigError(f"nothing can meet {str(condition)!r}")
        conditions.append(condition)
    check_comparison_count(sum(len(condition.comparisons) for condition in conditions))
    return tuple(conditions)


def _parse_comparisons(wanted: Any) -> Iterable[Comparison]:
    if isinstance(wanted, (list, tuple, set, frozenset)):
        raise ConfigError('write {"in": [...]} for one of several values')
    if not isinstance(wanted, Mapping):
        yield Comparison(Operator.EQUAL, (wanted,))
        return
    if not wanted:
        raise ConfigError('an empty map asks for nothing; write it as in {"<": 5}')
    for word, operand in wanted.items():
        if word not in _OPERATORS:
            known = ", ".join(repr(each.value) for each in Operator)
            raise ConfigError(f"{word!r} is no operator{_HINTS.get(word, '')}: there are {known}")
        yield _comparison(word, operand)


def _comparison(word: str, operand: Any) -> Comparison:
    is_list = isinstance(operand, (list, tuple))
    if is_list is not (word == Operator.IN):
        raise ConfigError(
            f"{word!r} takes {'one value' if is_list else 'a list'}; write it as in {{'in': ['de', 'en']}}"
        )
    return Comparison(_OPERATORS[word], tuple(operand) if is_list else (operand,))


def check_comparison_count(count: int) -> None:
    """Raises ConfigError for more than a query may have."""
    if count > MAX_COMPARISONS:
        raise ConfigError(f"a query has at most {MAX_COMPARISONS} comparisons with attributes, not {count}")


def _can_hold(comparisons: Sequence[Comparison]) -> bool:
    """Whether some value meets them all."""

    def is_met_by(value: Scalar) -> bool:
        return all(each.holds_for(value) for each in comparisons)

    for each in comparisons:
        if each.operator in _EQUALITIES:
            return any(map(is_met_by, each.values))
    if len(frozenset().union(*(each.kinds for each in comparisons))) > 1:
        return False
    bounds: list[Any] = [
        each.values[0] for each in comparisons if each.operator in (Operator.AT_LEAST, Operator.AT_MOST)
    ]
    if any(map(is_met_by, bounds)):
        return True
    lower: list[Any] = [each.values[0] for each in comparisons if each.operator in (Operator.MORE, Operator.AT_LEAST)]
    upper: list[Any] = [each.values[0] for each in comparisons if each.operator in (Operator.LESS, Operator.AT_MOST)]
    return not lower or not upper or max(lower) < min(upper)


# On the wire: [[attribute, operator, operand], ...]


def where_to_list(where: Iterable[Condition]) -> list[Any]:
    """Conditions as they travel."""
    return [
        [condition.attribute, each.operator.value, each.to_operand()]
        for condition in where
        for each in condition.comparisons
    ]


def read_where(value: Any) -> tuple[Condition, ...]:
    """Conditions that a peer sent. One with an operator from the future is left out: the rest lets more through.

    Raises InvalidMessageError.
    """
    if type(value) is not list or len(value) > MAX_COMPARISONS:
        raise InvalidMessageError(f"where is an array of at most {MAX_COMPARISONS}")
    comparisons: dict[str, list[Comparison]] = {}
    for item in value:
        match item:
            case [str() as attribute, str() as word, operand, *_] if len(attribute) <= MAX_ATTRIBUTE_CHARS:
                pass
            case _:
                raise InvalidMessageError("where holds [attribute, operator, value]")
        if word not in _OPERATORS:
            continue
        try:
            comparison = _comparison(word, operand)
        except ConfigError as error:
            raise InvalidMessageError("where compares with a value that no attribute has") from error
        comparisons.setdefault(attribute, []).append(comparison)
    return tuple(Condition(attribute, tuple(each)) for attribute, each in comparisons.items())
