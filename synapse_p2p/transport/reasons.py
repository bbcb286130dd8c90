"""What the system's errors mean to the person at the keyboard: what happened, and what to do about it."""

from __future__ import annotations

import errno
import re
import socket

_ERRNO = re.compile(r"\[Errno (\d+)\]")
_NOTHING_LISTENS = "nothing listens there; is it running, and on this port?"
_NO_SUCH_NAME = "no address is known for that name; correct it, or write the IP address"
_HOW_TO_LISTEN = {
    errno.EADDRINUSE: "stop the program that listens there, or take another port, such as 0 for any that is free",
    errno.EACCES: "ports below 1024 are for administrators, so take a higher one",
    errno.EADDRNOTAVAIL: "this machine has no such address; 0.0.0.0 stands for all that it has",
}


def why_unreachable(error: OSError | UnicodeError) -> str:
    """Why a dial failed, as the end of a sentence that begins with the address."""
    if isinstance(error, (socket.gaierror, UnicodeError)):
        return _NO_SUCH_NAME
    if _is_refused(error):
        return _NOTHING_LISTENS
    return error.strerror or str(error)


def cannot_listen(address: str, error: OSError | UnicodeError) -> OSError:
    """An error of the same kind with the address in its text, and what to do."""
    if isinstance(error, (socket.gaierror, UnicodeError)):
        return socket.gaierror(socket.EAI_NONAME, f"cannot listen on {address}: {_NO_SUCH_NAME}")
    reason = (error.strerror or str(error)).lower()
    advice = _HOW_TO_LISTEN.get(error.errno or 0)
    return OSError(error.errno, f"cannot listen on {address}: {reason}{f'; {advice}' if advice else ''}")


def _is_refused(error: OSError) -> bool:
    """Where a name has several addresses, asyncio puts the errors of all into the text of one that has no number."""
    numbers = set(_ERRNO.findall(str(error)))
    return isinstance(error, ConnectionRefusedError) or numbers == {str(errno.ECONNREFUSED)}
