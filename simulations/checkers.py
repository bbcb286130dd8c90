"""What has to be true of every run, whatever goes wrong in it, and who looks whether it is.

A step is STEP_S of virtual time. What can be seen only as it happens (a stored record, an answer, the end of a request)
is noted in a History at that moment, so no step misses it. The rules:

    S1  no storer takes a record that its owner did not sign, and nobody reads a value that is none
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
from dht.keyspace import Key, content_key, mutable_key
from dht.records import LABELS, MAX_RECORD_SIZE_BYTES, RENEWAL_LABEL, RecordKind, open_envelope
from dht.store import RecordStore
from dht.stored_record import Slot, StoredRecord
from simulations.bounds import Amount
from simulations.history import Acknowledged, Client, History, ReadValue
from synapse_p2p.background import wait_at_most
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
    def store(self) -> RecordStore: ...


class Inspector:
    """Looks on while a scenario lives, and ends it at the first thing that is wrong."""

    def __init__(self, checkers: Iterable[Checker]) -> None:
        self._checkers = tuple(checkers)
        self._loop = asyncio.get_running_loop()

    async def watch_while(self, task: asyncio.Task[Any]) -> None:
        """Look on until this task ends, at every step. Raises Violation, and what the task failed with."""
        while not task.done():
            await wait_at_most(task, STEP_S)
            self._look()
        task.result()

    async def watch(self, duration_s: float, tasks: Sequence[asyncio.Task[Any]] = ()) -> None:
        """Let time pass, with a look at every step. Raises Violation, and whatever one of the `tasks` failed with."""
        end_s = self._loop.time() + duration_s
        while (left_s := end_s - self._loop.time()) > 0:
            await asyncio.sleep(min(STEP_S, left_s))
            for task in tasks:
                if task.done() and not task.cancelled():
                    task.result()
            self._look()

    def look_after_faults(self) -> None:
        """The last look, when the world is quiet."""
        for checker in self._checkers:
            checker.on_step(self._loop.time())
            checker.after_faults(self._loop.time())

    def _look(self) -> None:
        at_s = self._loop.time()
        for checker in self._checkers:
            checker.on_step(at_s)


class Signatures:
    """S1. It reads an envelope by itself: what a storer made of it is what is in doubt.

    Whoever reads a value takes it as a storer does: what a node hands to its user is what hashes to the key, or a
    version that was stored under it. It remembers every version of every mutable value.
    """

    def __init__(self, history: History, config: RecordConfig) -> None:
        self._history = history
        self._config = config
        self._good: dict[bytes, None] = {}
        self._versions: dict[tuple[Key, int], bytes | None] = {}

    def on_step(self, at_s: float) -> None:
        accepted, self._history.accepted = self._history.accepted, []
        for each in accepted:
            if each.record.record in self._good:
                continue
            if not self._is_signed(each.key, each.record):
                who, owner = _short(each.storer), _short(each.record.owner)
                raise Violation(
                    Rule.SIGNATURE, at_s, f"{who} took version {each.record.seq} of {owner}, who did not sign it"
                )
            if len(self._good) >= MAX_REMEMBERED_SIGNATURES:
                self._good.clear()
            self._good[each.record.record] = None
        read, self._history.values_read = self._history.values_read, []
        for value in read:
            if not self._was_put(value):
                who, key = _short(value.client[0]), _short(value.key)
                raise Violation(
                    Rule.SIGNATURE, at_s, f"{who} got what nobody signed as version {value.seq} of the value {key}"
                )

    def after_faults(self, at_s: float) -> None:
        """Nothing that the last step has not seen."""

    def _is_signed(self, key: Key, record: StoredRecord) -> bool:
        is_agent = record.kind is RecordKind.AGENT
        max_bytes = self._config.max_agent_record_bytes if is_agent else MAX_RECORD_SIZE_BYTES
        try:
            envelope = open_envelope(record.record, max_bytes)
            body = unpack(envelope.body, CONTROL_LIMITS)
            is_signed = verify(body["key"], LABELS[record.kind], envelope.body, envelope.signature)
            match record.kind:
                case RecordKind.IMMUTABLE:
                    seq, belongs = body["expires"], content_key(body["value"]) == key
                case RecordKind.MUTABLE:
                    seq, belongs = body["seq"], mutable_key(body["key"], body["salt"]) == key
                    self._versions[key, seq] = None if "gone" in body else body["value"]
                case RecordKind.AGENT:  # under which keys it belongs is a matter of capabilities, and not of signatures
                    seq, belongs = body["seq"], True
            if (renewal := envelope.renewal) is not None:
                is_signed = is_signed and verify(body["key"], RENEWAL_LABEL, renewal.body, renewal.signature)
                seq = unpack(renewal.body, CONTROL_LIMITS)["seq"]
            return is_signed and belongs and node_id_of(body["key"]) == record.owner and seq == record.seq
        except (RecordRefused, InvalidMessageError, KeyError, TypeError):
            return False

    def _was_put(self, read: ReadValue) -> bool:
        if read.seq:
            version = (read.key, read.seq)
            return version in self._versions and self._versions[version] == read.value
        return read.value is not None and content_key(read.value) == read.key


class MonotonicReads:
    """S2."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._seen: dict[tuple[Client, bytes], int] = {}

    def on_step(self, at_s: float) -> None:
        reads, self._history.reads = self._history.reads, []
        for read in reads:
            seen = self._seen.get((read.client, read.name), 0)
            if read.seq < seen:
                who, name = _short(read.client[0]), _short(read.name)
                raise Violation(
                    Rule.MONOTONIC_READS, at_s, f"{who} got version {read.seq} of {name} after version {seen}"
                )
            self._seen[read.client, read.name] = read.seq

    def after_faults(self, at_s: float) -> None:
        """Nothing that the last step has not seen."""


@dataclass(slots=True)
class _Kept:
    """An acknowledged record, and who holds it as far as is known; the first is looked at first."""

    record: Acknowledged
    holders: list[tuple[Storer, int]]


class Durability:
    """S3. Who held a record and died is excused; who lives and has lost it is not, be it to an older version.

    `storers` lists everybody alive. Cost of a step: one look into one store for each record, and a look into all of
    them when that one has it no more. `all_holders_died` counts what is excused.
    """

    def __init__(self, history: History, storers: Callable[[], Iterable[Storer]]) -> None:
        self._history = history
        self._storers = storers
        self._kept: dict[tuple[Key, Slot], _Kept] = {}
        self.all_holders_died = 0

    def on_step(self, at_s: float) -> None:
        acknowledged, self._history.acknowledged = self._history.acknowledged, []
        alive = {storer.id: storer for storer in self._storers()} if acknowledged else {}
        for record in acknowledged:
            takers = self._history.takers(record)
            if not takers:
                raise Violation(Rule.DURABILITY, at_s, f"{_described(record)} is acknowledged; nobody took it")
            # Whoever took it and lives has it, or has lost it since.
            holders = [(alive[who], life) for who, life in takers if who in alive and alive[who].life == life]
            self._kept[record.key, record.slot] = _Kept(record, holders)
        in_doubt = [
            name
            for name, kept in self._kept.items()
            if kept.record.expires_at_s <= at_s or not kept.holders or not _is_held(kept.record, *kept.holders[0])
        ]
        for name in in_doubt:
            kept = self._kept[name]
            if kept.record.expires_at_s <= at_s:
                del self._kept[name]
            else:
                self._look_for(name, kept, at_s)

    def after_faults(self, at_s: float) -> None:
        """Every record that is still owed has been looked at by the last step."""

    def is_owed(self, key: Key, slot: Slot) -> bool:
        """Whether somebody alive has to have what was acknowledged last under this key, as of the last step."""
        return (key, slot) in self._kept

    def _look_for(self, name: tuple[Key, Slot], kept: _Kept, at_s: float) -> None:
        holders = self._holders_of(kept.record)
        if not holders:
            if alive := [storer for storer, life in kept.holders if storer.is_alive and storer.life == life]:
                who = ", ".join(_short(storer.id) for storer in alive)
                raise Violation(Rule.DURABILITY, at_s, f"nobody holds {_described(kept.record)}, though {who} did")
            self.all_holders_died += 1
            del self._kept[name]
        kept.holders = holders

    def _holders_of(self, record: Acknowledged) -> list[tuple[Storer, int]]:
        return [(storer, storer.life) for storer in self._storers() if _is_held(record, storer, storer.life)]


def _is_held(record: Acknowledged, storer: Storer, life: int) -> bool:
    if not storer.is_alive or storer.life != life:
        return False
    held = storer.store.find(record.key, record.slot)
    return held is not None and held.seq >= record.seq


def _described(record: Acknowledged) -> str:
    whose = f" of {_short(record.slot)}" if record.slot else ""
    return f"version {record.seq}{whose} under {_short(record.key)}"


def _short(name: bytes) -> str:
    return name.hex()[:16]


class Caps:
    """S4. `amounts` gives what is bounded, each time anew: what it is, whose, how much there is, how much may be."""

    def __init__(
        self, amounts: Callable[[], Iterable[Amount]], *, at_the_end: Callable[[], Iterable[Amount]] = tuple
    ) -> None:
        """Where there is so much that a step can look at some of it alone, `at_the_end` has all."""
        self._amounts = amounts
        self._at_the_end = at_the_end

    def on_step(self, at_s: float) -> None:
        self._look(self._amounts(), at_s)

    def after_faults(self, at_s: float) -> None:
        """A cap is no looser while faults last."""
        self._look(self._at_the_end(), at_s)

    def _look(self, amounts: Iterable[Amount], at_s: float) -> None:
        for what, whose, amount, cap in amounts:
            if amount > cap:
                raise Violation(Rule.CAPS, at_s, f"{_short(whose)} has {amount} {what}, and at most {cap} are allowed")


class Deadlines:
    """S5."""

    def __init__(self, history: History) -> None:
        self._history = history

    def on_step(self, at_s: float) -> None:
        for request, ended_at_s in self._history.ended_late:
            if ended_at_s > request.deadline_s + GRACE_S:
                late_s = ended_at_s - request.deadline_s
                raise Violation(
                    Rule.DEADLINES, at_s, f"{request.what} of {_short(request.who)} ended {late_s:.6f} s late"
                )
        self._history.ended_late.clear()
        for request in self._history.open_requests:
            if self._history.now(request.who) > request.deadline_s + GRACE_S:
                raise Violation(Rule.DEADLINES, at_s, f"{request.what} of {_short(request.who)} is still open")

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
