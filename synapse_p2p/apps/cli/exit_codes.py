"""How a command ends: stable numbers for scripts, and what is said to people when it went wrong.

Pure. The numbers are in docs/how-to/command_line.md too; they never change their meaning.
"""

from __future__ import annotations

import shlex
from enum import IntEnum

from dht.exceptions import DelegationExhausted, JoinFailed, NoAgentFound
from synapse_p2p.exceptions import (
    CallError,
    ConfigError,
    HandshakeFailed,
    InvalidMessageError,
    PeerUnavailable,
    ProtocolViolation,
    RemoteError,
    SynapseError,
    Timeout,
)


class ExitCode(IntEnum):
    """What the shell sees."""

    OK = 0
    FAILED = 1  # the other side's function failed, or `doctor` found something broken
    USAGE = 2  # the command, a setting or a file of yours is wrong
    NOTHING_FOUND = 3
    UNREACHABLE = 4
    TIMEOUT = 5
    REFUSED = 6  # another network, another key, or an endpoint that is not for you
    NO_NODE = 7  # no node runs on this machine, and no seed was named
    INTERRUPTED = 130  # as shells have it: 128 and the number of SIGINT


class CommandError(Exception):
    """A command that cannot go on. `next_commands` are what to type, without the program's name."""

    def __init__(self, code: ExitCode, text: str, *next_commands: str) -> None:
        super().__init__(text)
        self.code = code
        self.next_commands = next_commands


def command_error_of(error: Exception) -> CommandError | None:
    """What an error of the packages comes to here; None for one that nobody foresaw."""
    match error:
        case CommandError():
            return error
        case NoAgentFound():
            explain = f"find {shlex.quote(error.capability)} --explain"
            return CommandError(ExitCode.NOTHING_FOUND, str(error), explain, "status")
        case JoinFailed():
            return CommandError(ExitCode.UNREACHABLE, str(error), "doctor")
        case RemoteError(code="forbidden"):
            return CommandError(ExitCode.REFUSED, str(error), "id")
        case RemoteError(code="busy" | "unavailable"):
            return CommandError(ExitCode.UNREACHABLE, str(error), "peers")
        case RemoteError(code="not_found"):
            return CommandError(ExitCode.NOTHING_FOUND, str(error))  # it names the nearest that there is
        case RemoteError() | DelegationExhausted() | CallError():
            return CommandError(ExitCode.FAILED, str(error))  # its words say what: they are the other side's
        case Timeout():
            return CommandError(ExitCode.TIMEOUT, str(error), "doctor")
        case HandshakeFailed():
            return CommandError(ExitCode.REFUSED, str(error), "doctor")
        case PeerUnavailable():
            return CommandError(ExitCode.UNREACHABLE, str(error), "doctor")
        case ConfigError():
            return CommandError(ExitCode.USAGE, str(error))
        case ProtocolViolation() | InvalidMessageError() | SynapseError():
            return CommandError(ExitCode.FAILED, str(error))
        case OSError():
            where = f"{error.filename}: " if error.filename else ""
            return CommandError(ExitCode.USAGE, f"{where}{error.strerror or error}")
        case _:
            return None
