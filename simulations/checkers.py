"""What has to be true of every run, whatever goes wrong in it, and who looks whether it is.

A step is STEP_S of virtual time. What can be seen only as it happens (a stored record, an answer, the end of a request)
is noted in a History at that moment, so no step misses it. The rules:

    S1  no storer takes a record that its owner did not sign
    S2  nobody is handed an older version of a record than one it has seen
    S3  a record that was acknowledged and has not expired is held, unless all who held it are dead
    S4  no cap is passed, and nothing is taken that is not given back
    S5  every request ends by its deadline and GRACE_S, while whoever asked does not stand still
    S6  a task is done at most once where that is promised
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from dht.config import RecordConfig
from dht.exceptions import RecordRefused
from dht.keyspace import Key
from dht.records import LABELS, RENEWAL_LABEL, RecordKind, open_envelope
from dht.store import MemoryRecordStore
from simulations.history import Accepted, Acknowledged, History
from synapse_p2p.exceptions import InvalidMessageError, SynapseError
from synapse_p2p.identity import NodeID, node_id_of, verify
from synapse_p2p.protocol.wire import CONTROL_LIMITS, unpack

STEP_S = 0.5
"""Between two looks: half of what a request may be late, so that no lateness hides."""
GRACE_S = 1.0
MAX_REMEMBERED_SIGNATURES = 10_000
"""Envelopes that are known to be good: twenty storers take the same bytes, and a check costs 0.1 ms."""


class Rule(StrEnum):
    """The rules by their names; the module says what they mean."""

    SIGNATURE = "S1"
    MONOTONIC_READS = "S2"
    DURABILITY = "S3"
    CAPS = "S4"
    DEADLINES = "S5"
    AT_MOST_ONCE = "S6"


class Violation(SynapseError, AssertionError):
    """A rule is broken: which, at which virtual second, and how."""

    def __init__(self, rule: Rule, at_s: float, what: str) -> None:
        super().__init__(f"{rule} broken at {at_s:.6f} s: {what}")
        self.rule = rule
        self.at_s = at_s
        self.what = what


class Checker(Protocol):
    """Looks after one rule. Both methods raise Violation; `at_s` is the virtual second of the look."""

    def on_step(self, at_s: float) -> None:
        """Called at every step, so it has to be cheap."""
        ...

    def after_faults(self, at_s: float) -> None:
        """Called once, when all faults are over and the world has had time to settle."""
        ...


class Storer(Protocol):
    """A node that keeps records, as an onlooker sees it. A life ends with its process."""

    @property
    def id(self) -> NodeID: ...

    @property
    def life(self) -> int: ...

    @property
    def is_alive(self) -> bool: ...

    @property
    def store(self) -> MemoryRecordStore: ...


class Inspector:
    """Looks on while a scenario lives, and ends it at the first thing that is wrong."""

    def __init__(self, checkers: Iterable[Checker]) -> None:
        self._checkers = tuple(checkers)
        self._loop = asyncio.get_running_loop()

    async def watch(self, duration_s: float, tasks: Sequence[asyncio.Task[Any]] = ()) -> None:
        """Let time pass, with a look at every step. Raises Violation, and whatever one of the `tasks` failed with."""
        end_s = self._loop.time() + duration_s
        while (left_s := end_s - self._loop.time()) > 0:
            await asyncio.sleep(min(STEP_S, left_s))
            for task in tasks:
                if task.done() and not task.cancelled():
                    task.result()
            for checker in self._checkers:
                checker.on_step(self._loop.time())

    def look_after_faults(self) -> None:
        """The last look, when the world is quiet."""
        for checker in self._checkers:
            checker.on_step(self._loop.time())
            checker.after_faults(self._loop.time())


class Signatures:
    """S1. It reads an envelope by itself: what a storer made of it is what is in doubt."""

    def __init__(self, history: History, config: RecordConfig) -> None:
        self._history = history
        self._config = config
        self._good: dict[bytes, None] = {}

    def on_step(self, at_s: float) -> None:
        accepted, self._history.accepted = self._history.accepted, []
        for record in accepted:
            if record.envelope in self._good:
                continue
            if not self._is_signed(record):
                who, owner = record.storer.hex()[:16], record.owner.hex()[:16]
                raise Violation(
                    Rule.SIGNATURE, at_s, f"{who} took version {record.seq} of {owner}, who did not sign it"
                )
            if len(self._good) >= MAX_REMEMBERED_SIGNATURES:
                self._good.clear()
            self._good[record.envelope] = None

    def after_faults(self, at_s: float) -> None:
        """Nothing that the last step has not seen."""

    def _is_signed(self, record: Accepted) -> bool:
        try:
            envelope = open_envelope(record.envelope, self._config.max_agent_record_bytes)
            body = unpack(envelope.body, CONTROL_LIMITS)
            is_signed = verify(body["key"], LABELS[RecordKind.AGENT], envelope.body, envelope.signature)
            seq = body["seq"]
            if (renewal := envelope.renewal) is not None:
                is_signed = is_signed and verify(body["key"], RENEWAL_LABEL, renewal.body, renewal.signature)
                seq = unpack(renewal.body, CONTROL_LIMITS)["seq"]
            return is_signed and node_id_of(body["key"]) == record.owner and seq == record.seq
        except (RecordRefused, InvalidMessageError, KeyError, TypeError):
            return False


class MonotonicReads:
    """S2."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._seen: dict[tuple[tuple[NodeID, int], NodeID], int] = {}

    def on_step(self, at_s: float) -> None:
        reads, self._history.reads = self._history.reads, []
        for read in reads:
            seen = self._seen.get((read.client, read.owner), 0)
            if read.seq < seen:
                who, owner = read.client[0].hex()[:16], read.owner.hex()[:16]
                raise Violation(
                    Rule.MONOTONIC_READS, at_s, f"{who} got version {read.seq} of {owner} after version {seen}"
                )
            self._seen[read.client, read.owner] = read.seq

    def after_faults(self, at_s: float) -> None:
        """Nothing that the last step has not seen."""


@dataclass(slots=True)
class _Kept:
    """An acknowledged record, and who holds it as far as is known; the first is looked at first."""

    record: Acknowledged
    holders: list[tuple[Storer, int]]


class Durability:
    """S3. Who held a record and died is excused; who lives and has lost it is not.

    `storers` lists everybody alive. Cost of a step: one look into one store for each record, and a look into all of
    them when that one has it no more.
    """

    def __init__(self, history: History, storers: Callable[[], Iterable[Storer]]) -> None:
        self._history = history
        self._storers = storers
        self._kept: dict[tuple[NodeID, Key], _Kept] = {}
        self.all_holders_died = 0

    def on_step(self, at_s: float) -> None:
        acknowledged, self._history.acknowledged = self._history.acknowledged, []
        for record in acknowledged:
            if self._history.newest_accepted.get(record.owner, 0) < record.seq:
                who = record.owner.hex()[:16]
                raise Violation(Rule.DURABILITY, at_s, f"version {record.seq} of {who} is acknowledged; nobody took it")
            self._kept[record.owner, record.key] = _Kept(record, self._holders_of(record))
        for name, kept in list(self._kept.items()):
            if kept.record.expires_at_s <= at_s:
                del self._kept[name]
            elif not kept.holders or not _is_held(kept.record, *kept.holders[0]):
                self._look_for(name, kept, at_s)

    def after_faults(self, at_s: float) -> None:
        """Every record that is still owed has been looked at by the last step."""

    def _look_for(self, name: tuple[NodeID, Key], kept: _Kept, at_s: float) -> None:
        holders = self._holders_of(kept.record)
        if not holders:
            if alive := [storer for storer, life in kept.holders if storer.is_alive and storer.life == life]:
                owner, who = kept.record.owner.hex()[:16], ", ".join(storer.id.hex()[:16] for storer in alive)
                raise Violation(
                    Rule.DURABILITY, at_s, f"nobody holds version {kept.record.seq} of {owner}, though {who} did"
                )
            self.all_holders_died += 1
            del self._kept[name]
        kept.holders = holders

    def _holders_of(self, record: Acknowledged) -> list[tuple[Storer, int]]:
        return [(storer, storer.life) for storer in self._storers() if _is_held(record, storer, storer.life)]


def _is_held(record: Acknowledged, storer: Storer, life: int) -> bool:
    held = storer.store.find(record.key, record.owner)
    return storer.is_alive and storer.life == life and held is not None and held.seq >= record.seq


class Caps:
    """S4. `amounts` gives what is bounded, each time anew: what it is, whose, how much there is, how much may be."""

    def __init__(self, amounts: Callable[[], Iterable[tuple[str, NodeID, int, int]]]) -> None:
        self._amounts = amounts

    def on_step(self, at_s: float) -> None:
        for what, whose, amount, cap in self._amounts():
            if amount > cap:
                raise Violation(
                    Rule.CAPS, at_s, f"{whose.hex()[:16]} has {amount} {what}, and at most {cap} are allowed"
                )

    def after_faults(self, at_s: float) -> None:
        """A cap is no looser while faults last."""


class Deadlines:
    """S5."""

    def __init__(self, history: History) -> None:
        self._history = history

    def on_step(self, at_s: float) -> None:
        for request, ended_at_s in self._history.ended_late:
            if ended_at_s > request.deadline_s + GRACE_S:
                late_s = ended_at_s - request.deadline_s
                raise Violation(
                    Rule.DEADLINES, at_s, f"{request.what} of {request.who.hex()[:16]} ended {late_s:.6f} s late"
                )
        self._history.ended_late.clear()
        for request in self._history.open_requests.values():
            if self._history.now(request.who) > request.deadline_s + GRACE_S:
                raise Violation(Rule.DEADLINES, at_s, f"{request.what} of {request.who.hex()[:16]} is still open")

    def after_faults(self, at_s: float) -> None:
        """A request that is open now has a deadline too."""


class AtMostOnce:
    """S6."""

    def __init__(self, history: History) -> None:
        self._history = history

    def on_step(self, at_s: float) -> None:
        for task, count in self._history.executions.items():
            if count > 1:
                raise Violation(Rule.AT_MOST_ONCE, at_s, f"{task} was done {count} times")

    def after_faults(self, at_s: float) -> None:
        """Nothing that the last step has not seen."""
