"""What a person is told of the system's errors."""

from __future__ import annotations

import asyncio
import errno
import socket

import pytest

from synapse_p2p.transport.reasons import cannot_listen, why_unreachable
from synapse_p2p.transport.tcp import TcpTransport
from tests.transport.test_listening import HOST

BOTH = "Multiple exceptions: [Errno {first}] Connect call failed ('::1', 9, 0, 0), [Errno {second}] Connect call failed"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed ('127.0.0.1', 9)"), "nothing listens there; "),
        (OSError(BOTH.format(first=errno.ECONNREFUSED, second=errno.ECONNREFUSED)), "nothing listens there; "),
        (OSError(BOTH.format(first=errno.ECONNREFUSED, second=errno.ENETUNREACH)), "Multiple exceptions: "),
        (OSError(errno.EHOSTUNREACH, "No route to host"), "No route to host"),
        (OSError("gone"), "gone"),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "no address is known for that name; "),
        (UnicodeError("label empty or too long"), "no address is known for that name; "),
    ],
)
def test_a_failed_dial_says_why_in_words_of_ours_where_there_are_any(error: OSError | UnicodeError, said: str):
    assert why_unreachable(error).startswith(said)


async def test_a_name_of_several_addresses_where_nobody_listens_is_told_as_one():
    with socket.create_server((HOST, 0)) as probe:
        port = probe.getsockname()[1]

    with pytest.raises(OSError, match=r".") as refused:
        await TcpTransport().connect("localhost", port, asyncio.Protocol())  # type: ignore[arg-type] - it is told nothing

    assert why_unreachable(refused.value).startswith("nothing listens there")


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (OSError(errno.EADDRINUSE, "Address already in use"), OSError, "address already in use; stop the program"),
        (OSError(errno.EACCES, "Permission denied"), PermissionError, "permission denied; ports below 1024"),
        (OSError(errno.EADDRNOTAVAIL, "Cannot assign"), OSError, "cannot assign; this machine has no such address"),
        (OSError(errno.ENOBUFS, "No buffer space"), OSError, "no buffer space"),
        (socket.gaierror(socket.EAI_AGAIN, "Try again"), socket.gaierror, "no address is known for that name; "),
        (UnicodeError("label empty"), socket.gaierror, "no address is known for that name; "),
    ],
)
def test_a_port_that_cannot_be_had_is_named_with_what_to_do(error: OSError, kind: type[OSError], said: str):
    told = cannot_listen("10.0.0.5:80", error)

    assert isinstance(told, kind)
    assert told.strerror.startswith(f"cannot listen on 10.0.0.5:80: {said}")
    assert isinstance(told, socket.gaierror) or told.errno == error.errno
