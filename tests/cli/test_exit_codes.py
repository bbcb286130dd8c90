"""Each error of the packages has its exit code, and codes never change their meaning."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dht.bootstrap import JoinReport
from dht.exceptions import JoinFailed, NoAgentFound
from synapse_p2p.apps.cli.exit_codes import CommandError, ExitCode, command_error_of
from synapse_p2p.exceptions import (
    CallError,
    ConfigError,
    HandshakeFailed,
    InvalidMessageError,
    PeerUnavailable,
    RemoteError,
    Timeout,
)

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "command_line.md"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NoAgentFound("x", complete=True, reason="nobody"), ExitCode.NOTHING_FOUND),
        (JoinFailed(JoinReport((), 0)), ExitCode.UNREACHABLE),
        (RemoteError("forbidden", "no"), ExitCode.REFUSED),
        (RemoteError("busy", "no"), ExitCode.UNREACHABLE),
        (RemoteError("not_found", "no"), ExitCode.NOTHING_FOUND),
        (RemoteError("failed", "no"), ExitCode.FAILED),
        (CallError("no_budget"), ExitCode.FAILED),
        (Timeout("late"), ExitCode.TIMEOUT),
        (HandshakeFailed("identity", "another"), ExitCode.REFUSED),
        (PeerUnavailable("away"), ExitCode.UNREACHABLE),
        (ConfigError("wrong"), ExitCode.USAGE),
        (InvalidMessageError("odd"), ExitCode.FAILED),
        (FileNotFoundError(2, "No such file", "x.json"), ExitCode.USAGE),
    ],
)
def test_an_error_has_its_code(error: Exception, code: ExitCode):
    known = command_error_of(error)

    assert known is not None
    assert known.code is code
    assert str(known)


def test_what_is_typed_next_is_in_quotes_where_a_shell_would_read_it_otherwise():
    error = command_error_of(NoAgentFound("parser>=2,<3", complete=True, reason="nobody"))

    assert error is not None
    assert error.next_commands == ("find 'parser>=2,<3' --explain", "status")


@pytest.mark.parametrize(
    "error",
    [
        JoinFailed(JoinReport((), 0)), RemoteError("forbidden", "no"), RemoteError("busy", "no"),
        Timeout("late"), HandshakeFailed("identity", "no"), PeerUnavailable("away"),
    ],
)  # fmt: skip
def test_who_cannot_go_on_for_a_peer_s_sake_is_told_what_to_type(error: Exception):
    known = command_error_of(error)

    assert known is not None
    assert known.next_commands


def test_a_command_error_is_what_it_is_and_a_bug_is_nobody_s_fault_but_ours():
    error = CommandError(ExitCode.NO_NODE, "none", "up")

    assert command_error_of(error) is error
    assert command_error_of(KeyError("x")) is None


def test_the_page_has_the_codes():
    rows = re.findall(r"^\| (\d+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)

    assert [int(row) for row in rows] == [int(code) for code in ExitCode]
