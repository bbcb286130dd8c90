"""Where the commands begin and end: `synapse`, `synapse-p2p`, `python -m synapse_p2p`, and `sn` of release 2."""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import Any

from synapse_p2p.apps.cli.program import DEFAULT, program_name
from synapse_p2p.apps.cli.quick_find import typed_find

MISSING = "the commands need the packages typer and rich, and this Python has no {name}"
INSTALL = "python -m pip install 'synapse-p2p[cli]'"
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
VERBS_OF_RELEASE_2 = {
    "watch": "watch",
    "ask": "ask CAPABILITY TASK",
    "broadcast": "find CAPABILITY",
    "list-swarms": "status",
}


def main() -> None:
    """Run what was typed, and end the process with its exit code."""
    program = program_name(sys.argv[0])
    for name in ("typer", "rich"):  # the second is used late, and better missed now
        if importlib.util.find_spec(name) is None:
            _fail(f"Error: {MISSING.format(name=name)}\nNext:\n  {INSTALL}")
    find = typed_find(sys.argv[1:], os.environ)
    try:
        if find is None:
            from synapse_p2p.apps.cli.app import app

            app(prog_name=program)
        else:
            _find(program, find)
    except Exception as error:
        from synapse_p2p.apps.cli.exit_codes import command_error_of
        from synapse_p2p.apps.cli.screen import Screen

        known = command_error_of(error)
        if known is None:
            raise
        Screen(program).say_error(str(known), known.next_commands)
        sys.exit(known.code)


def _find(program: str, said: dict[str, Any]) -> None:
    """The command `find`, which ends as typer has commands end."""
    try:
        from synapse_p2p.apps.cli.screen import Screen
        from synapse_p2p.apps.cli.searching import find_as_said

        find_as_said(Screen(program), **said)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        # Who read us has gone. What is still to be written must go somewhere, or Python complains at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def sn() -> None:
    """The command of release 2: says what to type now."""
    verb = next((argument for argument in sys.argv[1:] if not argument.startswith("-")), "")
    commands = [VERBS_OF_RELEASE_2[verb]] if verb in VERBS_OF_RELEASE_2 else [*VERBS_OF_RELEASE_2.values()]
    lines = "".join(f"\n  {DEFAULT} {command}" for command in dict.fromkeys(commands))
    _fail(f"Error: sn is of release 2; the command is {DEFAULT} now\nNext:{lines}")


def _fail(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.exit(EXIT_USAGE)
