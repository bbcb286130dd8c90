from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from synapse_p2p.exceptions import ConfigError
from synapse_p2p.task_queue import Caller, Refuse, Run, TaskQueue, Wait

CALLERS: list[Caller | None] = [b"a", b"b", b"c", "192.0.2.7", None]


def make_queue(*, max_tasks: int = 8, queue_size: int = 32, per_caller: int = 4) -> TaskQueue:
    return TaskQueue(max_tasks=max_tasks, queue_size=queue_size, per_caller=per_caller)


def test_asks_run_up_to_the_bounds_then_wait_then_are_refused():
    queue = make_queue(max_tasks=3, queue_size=1, per_caller=2)

    steps = [queue.on_asked(caller) for caller in (b"a", b"a", b"a", b"b", b"c")]

    assert steps == [Run(1), Run(2), Wait(3), Run(4), Refuse()]


def test_a_freed_place_goes_to_the_caller_with_fewest_running_then_to_who_came_first():
    queue = make_queue(max_tasks=2, per_caller=2)
    for caller in (b"a", b"b", b"a", b"c", b"c"):
        queue.on_asked(caller)

    turns = [queue.on_ended(2), queue.on_ended(1), queue.on_ended(4)]

    assert turns == [4, 3, 5]


def test_who_waits_for_a_place_of_its_own_caller_is_passed_over():
    queue = make_queue(max_tasks=2, per_caller=1)
    for caller in (b"a", b"b", b"b", b"c"):
        queue.on_asked(caller)

    assert queue.on_ended(1) == 4
    assert queue.on_ended(4) is None
    assert queue.on_ended(2) == 3


def test_a_newcomer_displaces_the_newest_ask_of_the_caller_with_most_waiting():
    queue = make_queue(max_tasks=1, queue_size=4)
    for caller in (b"a", b"a", b"a", b"a", b"a"):
        queue.on_asked(caller)

    steps = [queue.on_asked(caller) for caller in (b"b", b"b", b"a")]

    assert steps == [Wait(6, displaced=5), Refuse(), Refuse()]


def test_of_callers_with_equally_many_waiting_the_one_that_asked_last_loses_its_newest():
    queue = make_queue(max_tasks=1, queue_size=6)
    for caller in (b"a", b"a", b"b", b"a", b"b", b"b", b"a"):
        queue.on_asked(caller)

    assert queue.on_asked(b"c") == Wait(8, displaced=7)


def test_callers_that_cannot_be_told_apart_are_not_counted_together():
    queue = make_queue(max_tasks=5, queue_size=3, per_caller=1)

    steps = [queue.on_asked(None) for _ in range(9)]

    assert steps == [*map(Run, range(1, 6)), *map(Wait, range(6, 9)), Refuse()]
    assert queue.on_asked(b"a") == Refuse()


def test_without_a_queue_nobody_waits():
    queue = make_queue(max_tasks=1, queue_size=0)

    assert [queue.on_asked(b"a"), queue.on_asked(b"b")] == [Run(1), Refuse()]


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"max_tasks": 0}, "max_tasks"),
        ({"queue_size": -1}, "queue"),
        ({"per_caller": 0}, "per_caller"),
        ({"per_caller": True}, "per_caller"),
        ({"max_tasks": 1.5}, "max_tasks"),
    ],
)
def test_bounds_that_would_let_nothing_run_are_refused(options: dict[str, Any], name: str):
    with pytest.raises(ConfigError, match=rf"^{name} is"):
        make_queue(**options)


class QueueAgainstAModel(RuleBasedStateMachine):
    """The model keeps lists and looks through them all for each step, in the words of the manual."""

    @initialize(max_tasks=st.integers(1, 4), queue_size=st.integers(0, 6), per_caller=st.integers(1, 3))
    def begin(self, max_tasks: int, queue_size: int, per_caller: int) -> None:
        self.bounds = (max_tasks, queue_size, per_caller)
        self.queue = make_queue(max_tasks=max_tasks, queue_size=queue_size, per_caller=per_caller)
        self.asked = 0
        self.running: list[tuple[int, object]] = []
        self.waiting: list[tuple[int, object]] = []
        self.ended: list[int] = []

    def counted(self, where: list[tuple[int, object]], caller: object) -> int:
        return len([ticket for ticket, held in where if held == caller])

    @rule(caller=st.sampled_from(CALLERS))
    def ask(self, caller: Caller | None) -> None:
        max_tasks, queue_size, per_caller = self.bounds
        self.asked += 1
        ticket, who = self.asked, object() if caller is None else caller

        step = self.queue.on_asked(caller)

        if len(self.running) < max_tasks and self.counted(self.running, who) < per_caller:
            assert step == Run(ticket)
            self.running.append((ticket, who))
            return
        displaced = None
        if len(self.waiting) == queue_size:
            most = max((self.counted(self.waiting, held) for _, held in self.waiting), default=0)
            if most - (self.counted(self.waiting, who) + 1) < 2:
                assert step == Refuse()
                return
            displaced = max(number for number, held in self.waiting if self.counted(self.waiting, held) == most)
            self.waiting = [entry for entry in self.waiting if entry[0] != displaced]
            self.ended.append(displaced)
        assert step == Wait(ticket, displaced)
        self.waiting.append((ticket, who))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end_running(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from(self.running))
        self.running.remove(entry)
        self.ended.append(entry[0])

        turn = self.queue.on_ended(entry[0])

        ready = [
            (self.counted(self.running, who), ticket, who)
            for ticket, who in self.waiting
            if self.counted(self.running, who) < self.bounds[2]
        ]
        if not ready:
            assert turn is None
            return
        _, ticket, who = min(ready, key=lambda each: each[:2])
        assert turn == ticket
        self.waiting.remove((ticket, who))
        self.running.append((ticket, who))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def withdraw_waiting(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(entry)
        self.ended.append(entry[0])

        assert self.queue.on_ended(entry[0]) is None

    @precondition(lambda self: self.ended)
    @rule(data=st.data())
    def end_again(self, data: st.DataObject) -> None:
        assert self.queue.on_ended(data.draw(st.sampled_from(self.ended))) is None

    @invariant()
    def both_agree(self) -> None:
        if not hasattr(self, "queue"):
            return
        self.queue.check_invariants()
        assert (self.queue.running_count, self.queue.waiting_count) == (len(self.running), len(self.waiting))


TestQueueAgainstAModel = QueueAgainstAModel.TestCase
