"""What an onlooker notes of a run: requests, records that were stored, acknowledged and read, tasks that were done.

It judges nothing: that is for `checkers.py`, which take the notes away at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from dht.keyspace import Key
from synapse_p2p.identity import NodeID


@dataclass(frozen=True, slots=True)
class Request:
    """Something that was asked, by whom, and the second by which it has to end, by the clock of the History."""

    who: NodeID
    what: str
    deadline_s: float


@dataclass(frozen=True, slots=True)
class Accepted:
    """A record that a storer took."""

    storer: NodeID
    owner: NodeID
    seq: int
    envelope: bytes


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A record of which its owner knows that others keep it, until a virtual second."""

    owner: NodeID
    key: Key
    seq: int
    expires_at_s: float


@dataclass(frozen=True, slots=True)
class Read:
    """A version of `owner`'s record that `client` got. A client that restarts remembers nothing and is another."""

    client: tuple[NodeID, int]
    owner: NodeID
    seq: int


class History:
    """The notes. `accepted`, `acknowledged` and `reads` grow until a checker takes them; `open_requests` are few.

    `now` gives the seconds of somebody who asks, which do not pass while he stands still.
    """

    def __init__(self, now: Callable[[NodeID], float]) -> None:
        self.now = now
        self._request_count = 0
        self.open_requests: dict[int, Request] = {}
        self.ended_late: list[tuple[Request, float]] = []
        self.accepted: list[Accepted] = []
        self.newest_accepted: dict[NodeID, int] = {}  # of each owner, by any storer
        self.acknowledged: list[Acknowledged] = []
        self.reads: list[Read] = []
        self.executions: dict[str, int] = {}

    @contextmanager
    def request(self, who: NodeID, what: str, timeout_s: float) -> Iterator[None]:
        """Note a request for as long as it is under way; it has to end, in whatever way, within `timeout_s` seconds."""
        request = Request(who, what, self.now(who) + timeout_s)
        self._request_count += 1
        number = self._request_count
        self.open_requests[number] = request
        try:
            yield
        finally:
            del self.open_requests[number]
            if self.now(who) > request.deadline_s:
                self.ended_late.append((request, self.now(who)))

    def note_accepted(self, record: Accepted) -> None:
        """A storer took a record."""
        self.accepted.append(record)
        self.newest_accepted[record.owner] = max(record.seq, self.newest_accepted.get(record.owner, 0))

    def note_execution(self, task: str) -> None:
        """A task was done that must be done at most once."""
        self.executions[task] = self.executions.get(task, 0) + 1
