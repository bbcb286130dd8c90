"""The one text of a JSON value, so that programs in any language hash the same bytes: RFC 8785 (JCS).

Pure. UTF-8 without spaces; keys sorted by their UTF-16 code units; numbers as ECMAScript writes them, which knows one
kind of number alone: 1.0 is 1, and a whole number beyond 2^53 is written as the double next to it.
"""

from __future__ import annotations

import json
import math
from typing import Any

from synapse_p2p.exceptions import ConfigError

MAX_DEPTH = 64
"""Lists and maps in each other: twice what travels. A value that holds itself ends here too."""
_MAX_EXACT_INT = 2**53
_quoted = json.JSONEncoder(ensure_ascii=False).encode  # `json.dumps` makes an encoder for each text
_MAX_PLAIN_DIGITS, _MAX_LEADING_ZEROS = 21, 6  # ECMAScript, Number::toString: beyond them there is an exponent


def canonical_json(value: Any) -> bytes:
    """The bytes of a value. Raises ConfigError for what JSON cannot say. Cost: a step for each item, and a sort."""
    pieces: list[str] = []
    _write(value, pieces, MAX_DEPTH)
    try:
        return "".join(pieces).encode()
    except UnicodeEncodeError:
        raise ConfigError("half a surrogate pair is no text") from None


def _write(value: Any, pieces: list[str], depth_left: int) -> None:
    match value:
        case None | bool() | str():
            pieces.append(_quoted(value))
        case int() | float():
            pieces.append(_number(value))
        case list() | tuple():
            _write_all(((None, item) for item in value), "[]", pieces, depth_left)
        case dict():
            if not all(isinstance(key, str) for key in value):
                raise ConfigError("the keys of a JSON object are text")
            members = sorted(value.items(), key=lambda member: member[0].encode("utf-16-be", "surrogatepass"))
            _write_all(members, "{}", pieces, depth_left)
        case _:
            raise ConfigError(f"JSON has no {type(value).__name__}")


def _write_all(members: Any, brackets: str, pieces: list[str], depth_left: int) -> None:
    if not depth_left:
        raise ConfigError(f"this value is more than {MAX_DEPTH} lists and maps deep")
    separator = brackets[0]
    for key, item in members:
        pieces.append(separator if key is None else f"{separator}{_quoted(key)}:")
        _write(item, pieces, depth_left - 1)
        separator = ","
    pieces.append(brackets[1] if separator == "," else brackets)


def _number(value: float) -> str:
    if isinstance(value, int) and -_MAX_EXACT_INT <= value <= _MAX_EXACT_INT:
        return int.__repr__(value)
    try:
        value = float(value)
    except OverflowError:
        raise ConfigError("a whole number of more than 1,024 bits is no JSON number") from None
    if not math.isfinite(value):
        raise ConfigError(f"{value} is no JSON number")
    if not value:
        return "0"  # also for -0
    # Both languages write the fewest digits that give the number back; they differ in where the point goes.
    mantissa, _, exponent = float.__repr__(abs(value)).partition("e")
    whole, _, fraction = mantissa.partition(".")
    point = len(whole) + int(exponent or 0)
    digits = (whole + fraction).lstrip("0")
    point -= len(whole + fraction) - len(digits)
    return ("-" if value < 0 else "") + _placed(digits.rstrip("0"), point)


def _placed(digits: str, point: int) -> str:
    """`0.digits` times ten to the power of `point`."""
    if 0 < point <= _MAX_PLAIN_DIGITS:
        whole, fraction = digits[:point].ljust(point, "0"), digits[point:]
        return f"{whole}.{fraction}" if fraction else whole
    if -_MAX_LEADING_ZEROS < point <= 0:
        return f"0.{'0' * -point}{digits}"
    fraction = f".{digits[1:]}" if len(digits) > 1 else ""
    return f"{digits[0]}{fraction}e{point - 1:+d}"
