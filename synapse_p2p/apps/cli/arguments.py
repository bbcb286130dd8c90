"""What is typed after a command: conditions, contexts, and the arguments of a call. Pure.

A value is JSON where it can be read as JSON, else text: `5`, `true`, `[1,2]`, `"5"` for the text of a five, `gold`.
Raises ConfigError that shows the form wanted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from synapse_p2p.exceptions import ConfigError

_CONDITION = re.compile(r"\s*([^\s=<>!]+)\s*(<=|>=|!=|=|<|>| in )\s*(.*)", re.DOTALL)
_NAMED = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)


def value_of(text: str) -> Any:
    """JSON, else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def where_of(conditions: Iterable[str]) -> dict[str, Any] | None:
    """`price<5`, `tier=gold`, `lang in de,en` as `Swarm.find` takes them; None for none. All have to hold."""
    where: dict[str, dict[str, Any]] = {}
    for condition in conditions:
        read = _CONDITION.fullmatch(condition)
        if read is None:
            raise ConfigError(f"--where {condition!r} is no condition; write 'price<5', tier=gold, or 'lang in de,en'")
        name, operator, text = read[1], read[2].strip(), read[3]
        texts = [each.strip() for each in text.split(",")] if operator == "in" else [text]
        if not all(map(str.strip, texts)):
            raise ConfigError(
                f"--where {condition!r} lacks a value; write 'price<5', or 'tier=\"\"' for no text at all"
            )
        operators = where.setdefault(name, {})
        if operator in operators:
            raise ConfigError(f"--where says {name} {operator} twice")
        values = [value_of(each) for each in texts]
        operators[operator] = values if operator == "in" else values[0]
    return {**where} or None


def context_of(pairs: Iterable[str], file_text: str | None) -> dict[str, Any]:
    """The map of a context file, a JSON object, with `key=value` pairs over it."""
    context: Any = {}
    if file_text is not None:
        try:
            context = json.loads(file_text)
        except ValueError as error:
            raise ConfigError(f"the context file is no JSON: {error}") from error
        if not isinstance(context, dict):
            raise ConfigError('the context file has to hold a JSON object, such as {"diff": "..."}')
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not (key and equals):
            raise ConfigError(f"--context {pair!r} is not key=value")
        context[key] = value_of(text)
    return context


def call_arguments(texts: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
    """Positions and names: `2 3`, `a=2 b=3`; a text with `=` in it is given as JSON, `'"a=2"'`."""
    positions: list[Any] = []
    names: dict[str, Any] = {}
    for text in texts:
        named = _NAMED.fullmatch(text)
        if named is None:
            if names:
                raise ConfigError(f"argument {text!r} stands behind named ones: those come last")
            positions.append(value_of(text))
        elif named[1] in names:
            raise ConfigError(f"argument {named[1]} is given twice")
        else:
            names[named[1]] = value_of(named[2])
    return positions, names
