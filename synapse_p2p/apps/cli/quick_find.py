"""Lines of `find` that are read without typer: loading that and building every command take longer than the search.

Read here are words and options of `find` in their common form, and its settings in the environment. About anything else
typer is asked, which has the help, the completion and the errors; what is read here it reads alike. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_EXPANDED = re.compile(r"[*?\[~$%]")
"""On Windows no shell replaces these, and typer does."""


def typed_find(arguments: Sequence[str], environment: Mapping[str, str]) -> dict[str, Any] | None:
    """What a line says, by the names that the command `find` has for it; what is not there was not said. None for a
    line that typer has to read. `arguments` is without the program's name.
    """
    is_completing = any(name.startswith("_") and name.endswith("_COMPLETE") for name in environment)
    if not arguments or arguments[0] != "find" or is_completing:
        return None
    said: dict[str, Any] = {}
    left = iter(arguments[1:])
    for argument in left:
        option, equals, text = argument.partition("=")
        if argument in _FLAGS:
            name, value = _FLAGS[argument]
        elif option in _OPTIONS and (not equals or option.startswith("--")):
            name, read = _OPTIONS[option]
            value = _read(text if equals else next(left, ""), read)
        else:
            name, value = "capabilities", _read(argument, str)
        if value is None or (name in said and name not in _REPEATED):
            return None
        if name in _REPEATED:
            said.setdefault(name, []).append(value)
        else:
            said[name] = value
    for variable, (name, read) in _ENVIRONMENT.items():
        text = environment.get(variable, "")
        if text and name not in said:
            said[name] = _read(text, read)
    return said if "capabilities" in said and None not in said.values() else None


def _read(text: str, read: Callable[[str], Any]) -> Any:
    """The value of a word; None where there is a doubt."""
    return None if not text or text.startswith("-") or _EXPANDED.search(text) else read(text)


def _count(text: str) -> int | None:
    return int(text) if re.fullmatch("[1-9][0-9]{0,8}", text) else None


def _seconds(text: str) -> float | None:
    return float(text) if re.fullmatch(r"[1-9][0-9]{0,8}(\.[0-9]{1,9})?", text) else None


def _list(text: str) -> list[str] | None:
    return text.split() or None


_FLAGS = {
    "--probe": ("probe", True),
    "--no-probe": ("probe", False),
    "--explain": ("explain", True),
    "--json": ("json", True),
    "--jsonl": ("jsonl", True),
}
_OPTIONS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "--where": ("where", str),
    "-w": ("where", str),
    "--limit": ("limit", _count),
    "-n": ("limit", _count),
    "--max-age": ("max_age", _seconds),
    "--seed": ("seed", str),
    "-s": ("seed", str),
    "--network": ("network", str),
    "--network-key-file": ("network_key_file", str),
    "--data-dir": ("data_dir", str),
    "--timeout": ("timeout", _seconds),
}
_REPEATED = ("capabilities", "where", "seed")
_ENVIRONMENT: dict[str, tuple[str, Callable[[str], Any]]] = {
    "SYNAPSE_SEED": ("seed", _list),
    "SYNAPSE_NETWORK": ("network", str),
    "SYNAPSE_NETWORK_KEY_FILE": ("network_key_file", str),
    "SYNAPSE_DATA_DIR": ("data_dir", str),
    "SYNAPSE_TIMEOUT": ("timeout", _seconds),
}
