"""Where a command prints: its findings on standard output, everything else on standard error.

A terminal gets colours by rich, unless NO_COLOR is set (https://no-color.org), TERM is `dumb`, or there is no rich: the
demo does without. A pipe or a file gets plain text.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TextIO

from synapse_p2p.apps.cli.blocks import Block, Line, Tone, json_line, plain_text, printable

_STYLES = {
    Tone.PLAIN: "",
    Tone.HEADING: "bold",
    Tone.GOOD: "green",
    Tone.WARNING: "yellow",
    Tone.BAD: "bold red",
    Tone.QUIET: "dim",
    Tone.COMMAND: "cyan",
}


class Screen:
    """`program` is the name that was called: every command that is named to the user begins with it."""

    def __init__(self, program: str, *, out: TextIO | None = None, err: TextIO | None = None) -> None:
        self.program = program
        self._out = out or sys.stdout
        self._err = err or sys.stderr

    def show(self, blocks: Iterable[Block]) -> None:
        """Findings, for people."""
        _write(self._out, blocks)

    def print(self, found: dict[str, Any], view: Callable[[dict[str, Any]], Iterable[Block]], *, is_json: bool) -> None:
        """Findings, for whom they are asked."""
        if is_json:
            self.emit(found)
        else:
            self.show(view(found))

    def say(self, *blocks: Block) -> None:
        """Talk."""
        _write(self._err, blocks)

    def emit(self, found: Mapping[str, Any]) -> None:
        """Findings, for programs: one line of JSON."""
        self._out.write(json_line(found) + "\n")
        self._out.flush()

    def say_error(self, text: str, next_commands: Iterable[str] = ()) -> None:
        """Why a command ends, and what to type next."""
        self.say(Line(f"Error: {text}", Tone.BAD), *self.next_lines(next_commands))

    def next_lines(self, commands: Iterable[str]) -> list[Line]:
        """Commands to type, under a heading; nothing for none."""
        lines = [Line(f"  {self.program} {command}", Tone.COMMAND) for command in commands]
        return [Line("Next:", Tone.QUIET), *lines] if lines else []


def is_coloured(stream: TextIO) -> bool:
    """Whether escapes are welcome there, and can be made."""
    is_wanted = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return is_wanted and importlib.util.find_spec("rich") is not None


def renderables(blocks: Iterable[Block]) -> list[Any]:
    """The blocks as rich has them. Nothing in them is read as markup: strangers wrote some of it."""
    from rich.table import Table as RichTable
    from rich.text import Text

    made: list[Any] = []
    for block in blocks:
        if isinstance(block, Line):
            made.append(Text(printable(block.text), style=_STYLES[block.tone]))
            continue
        table = RichTable(box=None, header_style="bold", pad_edge=False)
        for heading in block.headings:
            table.add_column(Text(heading), overflow="fold")
        for row in block.rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        made.append(table)
    return made


def _write(stream: TextIO, blocks: Iterable[Block]) -> None:
    blocks = list(blocks)
    if not is_coloured(stream):
        stream.write(plain_text(blocks))
        stream.flush()
        return
    from rich.console import Console

    console = Console(file=stream, highlight=False, emoji=False)
    for renderable in renderables(blocks):
        console.print(renderable, soft_wrap=isinstance(renderable, str))
