"""How messages get from one host to another: when each arrives, in which order, and a digest of all that did.

Owns time and order. What a message does when it has arrived is the affair of whoever sent it.
"""

from __future__ import annotations

import contextvars
import hashlib
import random
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, TypeAlias

from simulations.deadlines import Deadlines
from simulations.latency import Latency
from simulations.links import MAX_STOPPED_S, Cut, Links
from simulations.pauses import Pauses
from simulations.virtual_loop import MICROSECONDS, VirtualLoop
from synapse_p2p.identity import NodeID

MAX_UNHASHED_PIECES = 1024
"""Parts of the digest that wait to be hashed together: that takes a third of the time of hashing each."""
MAX_COUNTED_TARGETS = 100_000
"""Hosts whose messages are counted: where nodes come and go for a day, there are ten times as many as at once."""

Receive: TypeAlias = Callable[[str, bytes], None]
"""What happens when a message has arrived; it is given the endpoint and the body."""


NEVER_US = 2**63
"""When a message arrives on a connection that TCP has given up."""


class HostState(Enum):
    """What becomes of a message that arrives. `STOPPED` refuses it; `SILENT` lets it vanish."""

    UP = "up"
    STOPPED = "stopped"
    SILENT = "silent"


_SILENT = HostState.SILENT  # in Python 3.11 finding a member takes ten times as long, and every message asks twice


class Party(Protocol):
    """Who sends and receives."""

    @property
    def id(self) -> NodeID: ...

    @property
    def state(self) -> HostState: ...


class Flow(Protocol):
    """One direction of a connection: its messages do not overtake each other."""

    arrives_us: int
    """When the last message sent arrives; kept by the network, 0 before the first."""


_Message: TypeAlias = tuple[Party, Party, str, bytes, Receive]


class Digest:
    """SHA-256 over everything that arrived and every fault, in order. Two runs alike have one digest."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._unhashed: list[bytes] = []
        self._names: dict[str, bytes] = {}  # of endpoints and faults, of which there are few
        self.message_count = 0
        self.arrivals: dict[NodeID, int] = {}  # messages by target, of MAX_COUNTED_TARGETS at most

    def add_message(self, at_us: int, source: NodeID, target: NodeID, endpoint: str, body: bytes) -> None:
        """`endpoint` is what is called, or for messages that belong to no call what they do."""
        name = self._names.get(endpoint) or self._name(endpoint)
        unhashed = self._unhashed
        unhashed += (_MESSAGE.pack(b"M", at_us, source, target, len(name), len(body)), name, body)
        if len(unhashed) > MAX_UNHASHED_PIECES:
            self._hash_all()
        self.message_count += 1
        try:
            self.arrivals[target] += 1
        except KeyError:
            if len(self.arrivals) < MAX_COUNTED_TARGETS:
                self.arrivals[target] = 1

    def add_fault(self, at_us: int, node_id: NodeID, fault: str) -> None:
        """Something that the scenario did to a host."""
        name = fault.encode()
        self._unhashed += (_FAULT.pack(b"F", at_us, node_id, len(name)), name)

    def hexdigest(self) -> str:
        """64 characters that stand for the run so far."""
        self._hash_all()
        return self._hash.hexdigest()

    def _hash_all(self) -> None:
        events = b"".join(self._unhashed)
        self._unhashed.clear()
        self._hash.update(events)
        self._on_hashed(events)

    def _on_hashed(self, events: bytes) -> None:
        """These went into the hash; see `read_events`."""

    def _name(self, endpoint: str) -> bytes:
        if len(self._names) >= MAX_UNHASHED_PIECES:
            self._names.clear()
        name = self._names[endpoint] = endpoint.encode()
        return name


_MESSAGE = struct.Struct("!cQ32s32sHI")  # kind, microseconds, from, to, bytes of the name, bytes of the body
_FAULT = struct.Struct("!cQ32sH")


@dataclass(frozen=True, slots=True)
class Event:
    """A message that arrived, or a fault, which has no target: at which microsecond, from or of whom, what, bytes."""

    at_us: int
    source: NodeID
    target: NodeID | None
    what: str
    size_bytes: int


def read_events(hashed: bytes) -> Iterator[Event]:
    """The events that a digest has hashed, from their bytes."""
    position = 0
    while position < len(hashed):
        if hashed[position : position + 1] == b"M":
            _, at_us, source, target, name_bytes, size_bytes = _MESSAGE.unpack_from(hashed, position)
            position += _MESSAGE.size
        else:
            _, at_us, source, name_bytes = _FAULT.unpack_from(hashed, position)
            target, size_bytes = None, 0
            position += _FAULT.size
        what = hashed[position : position + name_bytes].decode()
        yield Event(at_us, source, target, what, size_bytes)
        position += name_bytes + size_bytes


class Delivery:
    """Takes messages over and hands each on when it arrives.

    All that arrives in one microsecond is one callback of the loop, in the order in which it was sent. What a cut has
    stopped is held until it can be sent again.
    """

    def __init__(self, loop: VirtualLoop, rng: random.Random, latency: Latency, digest: Digest) -> None:
        self.loop = loop
        self.digest = digest
        self.deadlines = Deadlines(loop)
        self.links = Links(rng, lambda node_id, fault: self.digest.add_fault(loop.now_us, node_id, fault))
        self._latency = latency
        self.pauses: Pauses[_Message] = Pauses(loop, self._hand_over)
        self._context = contextvars.copy_context()  # of deliveries: they are not their sender's
        self._arriving: dict[int, list[_Message]] = {}
        self._stopped: deque[tuple[int, _Message, Flow]] = deque()  # with when it was sent, oldest first

    def send(
        self,
        source: Party,
        target: Party,
        endpoint: str,
        body: bytes,
        receive: Receive,
        *,
        flow: Flow | None = None,
    ) -> float:
        """Call `receive(endpoint, body)` when the message has arrived, unless the target is silent then.

        Returns the second at which that is, as far as it is known now. Messages of one `flow` arrive in the order in
        which they were sent, and late rather than never; without one, a message opens a connection, and is gone when
        a cut stops it. A silent host sends nothing.
        """
        now_us = self.loop.now_us
        at_us = now_us + round(self._latency(source.id, target.id) * MICROSECONDS)
        message = (source, target, endpoint, body, receive)
        if not self.links.is_perfect:
            if self.links.is_cut(source.id, target.id):
                self._stop(now_us, message, flow)
                return at_us / MICROSECONDS
            at_us += self.links.delay_us(now_us, source.id, target.id, len(body), is_opening=flow is None)
        if flow is not None:
            if at_us < flow.arrives_us:
                at_us = flow.arrives_us
            else:
                flow.arrives_us = at_us
        if source.state is not _SILENT:
            self._arrive(at_us, message)
        return at_us / MICROSECONDS

    def cut(self, sources: Iterable[Party], targets: Iterable[Party] | None = None, *, one_way: bool = False) -> Cut:
        """Stop everything between `sources` and `targets`, or all others; `one_way` stops only what sources send.

        What is on its way arrives.
        """
        target_ids = None if targets is None else [target.id for target in targets]
        return self.links.cut([source.id for source in sources], target_ids, one_way=one_way)

    def heal(self, cut: Cut) -> None:
        """End a cut. What it stopped of sessions is sent again when TCP would do so next."""
        self.links.heal(cut)
        stopped, self._stopped = self._stopped, deque()
        for sent_us, message, flow in stopped:
            source, target = message[0].id, message[1].id
            if self.links.is_cut(source, target):
                self._stopped.append((sent_us, message, flow))
                continue
            sent_again_us = self.links.sent_again_us(sent_us, self.loop.now_us)
            if sent_again_us is None or flow.arrives_us == NEVER_US:
                flow.arrives_us = NEVER_US  # the connection is given up, and what comes after a gap is of no use
                continue
            latency_us = round(self._latency(source, target) * MICROSECONDS)
            flow.arrives_us = max(flow.arrives_us, sent_again_us + latency_us)
            self._arrive(flow.arrives_us, message)

    def pause(self, host: Party, duration_s: float) -> None:
        """Let a process stand still for so many seconds, as under SIGSTOP; a longer pause that is under way stays."""
        self.digest.add_fault(self.loop.now_us, host.id, f"pause {duration_s!r} s")
        self.pauses.pause(host.id, duration_s)

    def lose_stopped(self, source: Party) -> None:
        """This host has lost its memory: nothing of what it had sent is sent again."""
        self._stopped = deque(each for each in self._stopped if each[1][0] is not source)

    def _stop(self, now_us: int, message: _Message, flow: Flow | None) -> None:
        if flow is not None and message[0].state is not _SILENT:
            self._stopped.append((now_us, message, flow))
            if now_us - self._stopped[0][0] > MAX_STOPPED_S * MICROSECONDS:
                _, _, given_up = self._stopped.popleft()
                given_up.arrives_us = NEVER_US

    def _arrive(self, at_us: int, message: _Message) -> None:
        if at_us == NEVER_US:
            return
        batch = self._arriving.get(at_us)
        if batch is None:
            self._arriving[at_us] = [message]
            self.loop.call_at_us(at_us, self._deliver, at_us, context=self._context)
        else:
            batch.append(message)

    def _deliver(self, at_us: int) -> None:
        self._hand_over(self._arriving.pop(at_us))

    def _hand_over(self, messages: list[_Message]) -> None:
        """What becomes now of messages that have arrived."""
        now_us, digest = self.loop.now_us, self.digest
        waiting, contexts = self.pauses.waiting, self.pauses.contexts
        for message in messages:
            source, target, endpoint, body, receive = message
            if target.state is _SILENT:
                continue
            if waiting and target.id in waiting:
                waiting[target.id].append(message)
                continue
            digest.add_message(now_us, source.id, target.id, endpoint, body)
            try:
                if contexts and target.id in contexts:
                    contexts[target.id].run(receive, endpoint, body)
                else:
                    receive(endpoint, body)
            except Exception as error:
                # As the loop does it: what fails is reported, and the messages behind it arrive all the same.
                text = f"{endpoint} from {source!r} to {target!r} failed when it arrived"
                self.loop.call_exception_handler({"message": text, "exception": error})
