"""What a command prints, before it is known where: lines and tables. Pure.

Text may come from strangers, who choose the names of their agents: nothing that a terminal would obey gets through.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias


class Tone(StrEnum):
    """What a line means to its reader; a terminal gives it a colour."""

    PLAIN = "plain"
    HEADING = "heading"
    GOOD = "good"
    WARNING = "warning"
    BAD = "bad"
    QUIET = "quiet"
    COMMAND = "command"  # something to type


@dataclass(frozen=True, slots=True)
class Line:
    """One line of text."""

    text: str
    tone: Tone = Tone.PLAIN


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under their headings. The last column takes the room that is left, and may be long."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


Block: TypeAlias = Line | Table


def plain_text(blocks: Iterable[Block]) -> str:
    """As a file or a pipe gets it: no colour, columns two blanks apart, each line ended."""
    return "".join(f"{line}\n" for block in blocks for line in _plain_lines(block))


def printable(text: str) -> str:
    """The same with what moves a cursor, rings a bell or turns the writing around written out."""
    return "".join(character if character.isprintable() else f"\\x{ord(character):02x}" for character in text)


def json_line(value: Any) -> str:
    """One line. Bytes, which JSON has no word for, are hexadecimal digits, and keys that are not text become it."""
    return json.dumps(_as_json(value))


def json_text(value: Any) -> str:
    """The same over several lines, for people; letters of all scripts stay what they are."""
    return json.dumps(_as_json(value), indent=2, ensure_ascii=False)


def _as_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else str(_as_json(key)): _as_json(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(each) for each in value]
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no such numbers, whatever the module json says
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _plain_lines(block: Block) -> list[str]:
    if isinstance(block, Line):
        return [printable(block.text)]
    rows = [tuple(map(printable, row)) for row in (block.headings, *block.rows)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(block.headings))]
    return [_padded(row, widths) for row in rows]


def _padded(row: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
