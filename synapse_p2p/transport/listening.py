"""Listening sockets that survive a process without descriptors.

`asyncio` cannot be told what to do when `accept` fails for want of a descriptor: it logs a traceback and looks away for
a second, and Python 3.11 does both once for each place in the backlog. These sockets never let it come to that. They
ask for room, and where there is none they turn the caller away with a descriptor kept for this (the way of libev and
libuv: a caller left waiting would keep the loop awake for nothing).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import socket
import sys
from collections.abc import Callable
from typing import Any, TypeAlias

from synapse_p2p.transport.base import format_address
from synapse_p2p.transport.descriptors import is_out_of_descriptors
from synapse_p2p.transport.reasons import cannot_listen

NOT_ON_THIS_MACHINE = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
"""What a name's IPv6 address fails with where there is no IPv6; its other addresses do."""

ACCEPTS_A_TURN = 1
"""Callers let in before the loop has its turn, which costs little beside what a caller does. asyncio would take all
that wait, and nobody is served meanwhile; nor is anybody heard, so of a thousand the first would have to go for the
last before a word of theirs was read.
"""

MakeRoom: TypeAlias = Callable[[], bool]
"""Frees a descriptor by the next turn of the loop; false when there is none to free."""


class ListeningSocket(socket.socket):
    """A bound TCP socket whose `accept` fails for want of a caller alone.

    Closing it closes those as well whom it has accepted and whom asyncio has not come to yet: of a server that is
    closed it would forget them open.
    """

    def __init__(self, family: int, make_room: MakeRoom) -> None:
        # The protocol is named, for asyncio lets small writes leave at once only where it is.
        super().__init__(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._make_room = make_room
        self._spare: int | None = None
        self._just_accepted: list[socket.socket] = []
        self._open_spare()

    @property
    def is_closed(self) -> bool:
        """Whether nobody is to be served any more who came through it."""
        return self.fileno() < 0

    def accept(self) -> tuple[socket.socket, object]:
        """The next caller. Raises BlockingIOError when there is none to be had in this turn of the loop."""
        if len(self._just_accepted) >= ACCEPTS_A_TURN:
            raise BlockingIOError
        try:
            accepted = super().accept()
        except OSError as error:
            if not is_out_of_descriptors(error):
                raise
        else:
            if not self._just_accepted:
                # In the next turn of the loop, and before asyncio makes transports of them there.
                asyncio.get_running_loop().call_soon(self._just_accepted.clear)
            self._just_accepted.append(accepted[0])
            return accepted
        # Asked, for the kernel looks for a descriptor before it looks for a caller.
        if self._is_somebody_waiting() and not self._make_room():
            self._turn_away()
        # What was freed is there in the next turn of the loop, and so is the next caller.
        raise BlockingIOError

    def close(self) -> None:
        self._let_go()
        super().close()

    def detach(self) -> int:
        """As of any socket; so uvloop ends a server's, whose descriptor it closes itself."""
        self._let_go()
        return super().detach()

    def _let_go(self) -> None:
        for caller in self._just_accepted:
            caller.close()
        self._just_accepted.clear()
        self._close_spare()

    def _is_somebody_waiting(self) -> bool:
        if not hasattr(select, "poll"):  # Windows, which has no such limit either
            return True
        waiting = select.poll()
        waiting.register(self, select.POLLIN)
        return bool(waiting.poll(0))

    def _turn_away(self) -> None:
        self._close_spare()
        with contextlib.suppress(OSError):  # it has hung up meanwhile, or another thread took the descriptor
            caller, _ = super().accept()
            caller.close()
        self._open_spare()

    def _open_spare(self) -> None:
        with contextlib.suppress(OSError):
            self._spare = os.open(os.devnull, os.O_RDONLY)

    def _close_spare(self) -> None:
        spare, self._spare = self._spare, None
        if spare is not None:
            os.close(spare)


async def bound_sockets(host: str, port: int, make_room: MakeRoom) -> list[ListeningSocket]:
    """A socket for each address that a host stands for; an empty host stands for all of this machine's.

    Raises OSError with the address in its text; nothing stays open then.
    """
    sockets: list[ListeningSocket] = []
    failures: list[OSError] = []
    try:
        for family, address in await _addresses_of(host, port):
            try:
                sockets.append(_bound(family, address, make_room))
            except OSError as error:
                if error.errno not in NOT_ON_THIS_MACHINE:
                    raise
                failures.append(error)
        if not sockets:
            raise failures[0]
    except OSError:
        for bound in sockets:
            bound.close()
        raise
    return sockets


async def _addresses_of(host: str, port: int) -> list[tuple[int, Any]]:
    """Family and socket address of each; at once where no name has to be resolved."""
    try:
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICHOST
        )
    except (socket.gaierror, UnicodeError):
        found = await _resolved(host, port)
    return list(dict.fromkeys((info[0], info[4]) for info in found))


async def _resolved(host: str, port: int) -> list[Any]:
    loop = asyncio.get_running_loop()
    try:
        return await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:  # the second: a name that no resolver can even be asked for
        raise cannot_listen(format_address(host, port), error) from error


def _bound(family: int, address: Any, make_room: MakeRoom) -> ListeningSocket:
    listening = ListeningSocket(family, make_room)
    try:
        if os.name == "posix" and sys.platform != "cygwin":
            # A port of connections that are not quite gone yet is free; on Windows the option means another thing.
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and hasattr(socket, "IPPROTO_IPV6"):
            # Else "::" would take the IPv4 port as well, and a socket for 0.0.0.0 could not have it.
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind(address)
    except OSError as error:
        listening.close()
        raise cannot_listen(format_address(address[0], address[1]), error) from None
    return listening
