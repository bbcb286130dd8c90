"""The attackers of `abuse.py`: a process of its own that does to a listener what nobody should.

    python -m benchmarks.abuse_attacks PLACE yielding|nice

For each line `NAME COUNT SECONDS` on its input it plays that attack, and prints once, as JSON, how much it did and how
many connections were refused: when all that it opens is open, or when it is over. A line `leave` closes what is left.
Sockets block or are asked by hand: an event loop would be slower than what is attacked.

Its addresses are 127.a.b.c, each in a /24 of its own, which are hosts of their own to a listener that exempts none.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import secrets
import select
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TypeAlias

from synapse_p2p.identity import Identity, network_id_of
from synapse_p2p.protocol.channel import SecureChannel
from synapse_p2p.protocol.handshake import Handshake, HandshakeKeys, Parameters, Role
from synapse_p2p.protocol.wire import Call, FrameKind, encode_frame, encode_message
from synapse_p2p.transport.base import parse_address

BIND_ADDRESS_NO_PORT = 24  # of Linux: the port is chosen when it connects, so one address has enough of them
NICENESS = 10  # beside others who want the cores as well
STEP_S = 0.005
MAX_OPEN = 1500  # of a storm of connects: those before are closed at the other end since long
RESULTS_ASKED = 64  # by each of those who never read
CALLS_A_WRITE = 64
SLOW_BODY_BYTES = 1000
RECEIVE_BUFFER_BYTES = 4096  # of those who never read, so that what they ask for stays where it is made
PATIENCE_S = 10.0
Told: TypeAlias = Iterator[tuple[int, int]]  # once: how much was done, and how many connections were refused
ALONE = 1  # number of the address from which one attacks alone


def address_of(number: int) -> str:
    """The address of an attacker; no two share a /24."""
    return f"127.{16 + number // 250}.{number % 250}.7"


class Attackers:
    """All attackers against one listener, and what they have open."""

    def __init__(self, place: str) -> None:
        self._place = parse_address(place)
        self._open: deque[socket.socket] = deque()

    def connects(self, count: int, seconds: float) -> Told:
        """So many connects a second, from one address, without a byte."""
        made = refused = 0
        for due in _due(count, seconds):
            for _ in range(due):
                if self._connect(ALONE, wait=False) is None:
                    refused += 1
                else:
                    made += 1
            while len(self._open) > MAX_OPEN:
                self._open.popleft().close()
        yield made, refused

    def half_headers(self, count: int, seconds: float) -> Told:
        """So many that send half the length of a plain request."""
        yield self._say_and_stay(count, lambda: b"\x00\x00")

    def half_handshakes(self, count: int, seconds: float) -> Told:
        """So many that send a preamble, and of the first message a part."""
        yield self._say_and_stay(count, lambda: _first_words()[:20])

    def silent(self, count: int, seconds: float) -> Told:
        """So many that say nothing."""
        yield self._say_and_stay(count, lambda: b"")

    def slow_senders(self, count: int, seconds: float) -> Told:
        """So many that send a byte a second: half of them a plain request, half of them a handshake."""
        request = SLOW_BODY_BYTES.to_bytes(4, "big") + bytes(SLOW_BODY_BYTES)
        yield self._say_and_stay(count, lambda: b"")
        sending = {sender: (request, _first_words())[number % 2] for number, sender in enumerate(self._open)}
        ends_at = time.monotonic() + seconds
        for position in itertools.count():
            for sender, words in list(sending.items()):
                try:
                    sender.send(words[position : position + 1])
                except OSError:
                    del sending[sender]  # it was closed at the other end
            if not sending or time.monotonic() >= ends_at:
                return
            time.sleep(1.0)

    def unread_results(self, count: int, seconds: float) -> Told:
        """So many proved peers that each ask for 64 results of 1 MiB, and never read."""
        made = refused = 0
        for number in range(count):
            if (proved := self._prove(number, RECEIVE_BUFFER_BYTES)) is None:
                refused += 1
                continue
            attacker, channel = proved
            calls = (Call(2 * asked, "large", [], {}) for asked in range(1, RESULTS_ASKED + 1))
            with contextlib.suppress(ConnectionError):  # out already
                attacker.sendall(channel.seal(_frames_of(calls)))
            made += 1
        yield made, refused

    def full_speed(self, count: int, seconds: float) -> Told:
        """One proved peer that calls without waiting for an answer, as fast as it is read; `count` is of no effect.

        It made so many calls; what it reads it does not look at.
        """
        proved = self._prove(ALONE)
        if proved is None:
            yield 0, 1
            return
        attacker, channel = proved
        attacker.setblocking(False)
        made, unsent, ends_at = 0, b"", time.monotonic() + seconds
        ids = itertools.count(2, 2)
        with contextlib.suppress(ConnectionError):  # closed at the other end
            while time.monotonic() < ends_at:
                readable, writable, _ = select.select([attacker], [attacker], [], STEP_S)
                if readable and not attacker.recv(1 << 20):
                    break
                if writable:
                    if not unsent:
                        calls = (Call(next(ids), "echo", [b"x"], {}) for _ in range(CALLS_A_WRITE))
                        unsent = channel.seal(_frames_of(calls))
                        made += CALLS_A_WRITE
                    unsent = unsent[attacker.send(unsent) :]
        yield made, 0

    def leave(self) -> None:
        """Close everything, by a reset: what comes next finds every port free."""
        while self._open:
            leaving = self._open.popleft()
            leaving.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            leaving.close()

    def _say_and_stay(self, count: int, words: Callable[[], bytes]) -> tuple[int, int]:
        made = 0
        for number in range(count):
            attacker = self._connect(number)
            if attacker is not None:
                with contextlib.suppress(ConnectionError):  # out already
                    attacker.sendall(words())
                made += 1
        return made, count - made

    def _connect(
        self, number: int, *, wait: bool = True, receive_buffer_bytes: int | None = None
    ) -> socket.socket | None:
        attacker = socket.socket()
        if receive_buffer_bytes is not None:
            attacker.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        attacker.setsockopt(socket.IPPROTO_IP, BIND_ADDRESS_NO_PORT, 1)
        attacker.bind((address_of(number), 0))
        attacker.settimeout(PATIENCE_S if wait else 0)
        if attacker.connect_ex(self._place) not in (0, errno.EINPROGRESS):
            attacker.close()
            return None
        self._open.append(attacker)
        return attacker

    def _prove(
        self, number: int, receive_buffer_bytes: int | None = None
    ) -> tuple[socket.socket, SecureChannel] | None:
        """A peer that has proved who it is."""
        attacker = self._connect(number, receive_buffer_bytes=receive_buffer_bytes)
        if attacker is None:
            return None
        handshake = _handshake()
        established = None
        try:
            while established is None:
                attacker.sendall(handshake.data_to_send())
                if not (data := attacker.recv(65_536)):
                    return None
                established = handshake.receive_data(data)
            attacker.sendall(handshake.data_to_send())
        except OSError:
            return None
        return attacker, SecureChannel(established.send, established.receive)


def _handshake() -> Handshake:
    handshake = Handshake(
        Role.DIALER,
        identity=Identity.from_seed(secrets.token_bytes(32)),
        network_id=network_id_of(""),
        keys=HandshakeKeys(secrets.token_bytes(32), secrets.token_bytes(32)),
        parameters=Parameters("client", 0, secrets.token_bytes(8)),
    )
    handshake.start()
    return handshake


def _first_words() -> bytes:
    """Preamble and first message."""
    return _handshake().data_to_send()


def _frames_of(calls: Iterator[Call]) -> bytes:
    return b"".join(encode_frame(FrameKind.TASK, encode_message(call)) for call in calls)


def _due(rate: int, seconds: float) -> Iterator[int]:
    """How many are due now, again and again, so that `rate` of them are in each second."""
    began_at = time.monotonic()
    done = 0
    while (passed_s := time.monotonic() - began_at) < seconds:
        due = int(passed_s * rate) - done
        yield due
        done += due
        time.sleep(STEP_S)


def main() -> None:
    """Play what is asked for until the input ends."""
    place, manner = sys.argv[1:]
    if manner == "yielding":
        # Who attacks from elsewhere takes no core from whom it attacks. Niceness is not enough: it only makes slices
        # shorter, and the 3 ms of each would be the p99 of the client.
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    else:
        os.nice(NICENESS)
    attackers = Attackers(place)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        name, *numbers = line.split()
        if name == "leave":
            attackers.leave()
            print("{}", flush=True)
            continue
        for made, refused in getattr(attackers, name)(int(numbers[0]), float(numbers[1])):
            print(json.dumps({"made": made, "refused": refused}), flush=True)


if __name__ == "__main__":
    main()
