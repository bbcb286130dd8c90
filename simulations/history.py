"""What an onlooker notes of a run: requests, records that were stored, acknowledged and read, tasks that were done.

It judges nothing: that is for `checkers.py`, which take the notes away at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

from dht.keyspace import Key
from dht.stored_record import Slot, StoredRecord
from synapse_p2p.identity import NodeID

Client: TypeAlias = tuple[NodeID, int]
"""A node in one of its lives. One that restarts remembers nothing and is another."""


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """Something that was asked, by whom, and the second by which it has to end, by the clock of the History."""

    who: NodeID
    what: str
    deadline_s: float


@dataclass(frozen=True, slots=True)
class Accepted:
    """A record that a storer took under a key, in which of its lives."""

    storer: NodeID
    life: int
    key: Key
    record: StoredRecord


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A record of which its owner knows that others keep it, until a virtual second."""

    key: Key
    slot: Slot
    seq: int
    expires_at_s: float


@dataclass(frozen=True, slots=True)
class Read:
    """A version that `client` got. `name` is what versions are counted by: an agent's record by its owner, a value by
    its key.
    """

    client: Client
    name: bytes
    seq: int


@dataclass(frozen=True, slots=True)
class ReadValue:
    """What a node told its user that a key has: None where it was deleted. An immutable value has `seq` 0."""

    client: Client
    key: Key
    seq: int
    value: bytes | None


class History:
    """The notes. `accepted`, `acknowledged`, `reads` and `values_read` grow until a checker takes them; `open_requests`
    are few.

    `now` gives the seconds of somebody who asks, which do not pass while he stands still.
    """

    def __init__(self, now: Callable[[NodeID], float]) -> None:
        self.now = now
        self.open_requests: dict[Request, None] = {}
        self.ended_late: list[tuple[Request, float]] = []
        self.accepted: list[Accepted] = []
        self._taken: dict[tuple[Key, Slot], dict[tuple[NodeID, int], int]] = {}  # the newest by each life of a storer
        self.acknowledged: list[Acknowledged] = []
        self.reads: list[Read] = []
        self.values_read: list[ReadValue] = []
        self.executions: dict[str, int] = {}

    @contextmanager
    def request(self, who: NodeID, what: str, timeout_s: float) -> Iterator[None]:
        """Note a request for as long as it is under way; it has to end, in whatever way, within `timeout_s` seconds."""
        request = self.begin(who, what, timeout_s)
        try:
            yield
        finally:
            self.end(request)

    def begin(self, who: NodeID, what: str, timeout_s: float) -> Request:
        """The same in two steps, for what happens very often: a context costs as much again. `end` has to follow."""
        request = Request(who, what, self.now(who) + timeout_s)
        self.open_requests[request] = None
        return request

    def end(self, request: Request) -> None:
        """What was begun is over."""
        del self.open_requests[request]
        ended_at_s = self.now(request.who)
        if ended_at_s > request.deadline_s:
            self.ended_late.append((request, ended_at_s))

    def note_accepted(self, accepted: Accepted) -> None:
        """A storer took a record."""
        self.accepted.append(accepted)
        taken = self._taken.setdefault((accepted.key, accepted.record.slot), {})
        storer, seq = (accepted.storer, accepted.life), accepted.record.seq
        taken[storer] = max(seq, taken.get(storer, 0))

    def takers(self, record: Acknowledged) -> list[tuple[NodeID, int]]:
        """Which storers took this version or a newer one, each with the life in which it did."""
        taken = self._taken.get((record.key, record.slot), {})
        return [storer for storer, seq in taken.items() if seq >= record.seq]

    def note_value(self, client: Client, key: Key, seq: int, value: bytes | None) -> None:
        """A node told its user what a key has."""
        self.values_read.append(ReadValue(client, key, seq, value))
        if seq:
            self.reads.append(Read(client, key, seq))

    def note_execution(self, task: str) -> None:
        """A task was done that must be done at most once."""
        self.executions[task] = self.executions.get(task, 0) + 1
