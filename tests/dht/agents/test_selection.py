"""Which provider is asked: the choice within one ask, what is remembered between asks, and what it does to a queue."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dht.agents import selection
from dht.agents.selection import (
    BUSY_MEMORY_S,
    FAILURE_MEMORY_S,
    MAX_CAPABILITIES,
    MAX_PROVIDERS,
    MAX_SPEED,
    MIN_HEDGE_S,
    MIN_TIMES,
    PROVIDER_MEMORY_S,
    Ask,
    Experience,
    Finished,
    Load,
    Probe,
    Search,
    Selection,
    Step,
    Wait,
    Why,
)

A, B, C, D, E = (bytes([number]) * 32 for number in range(1, 6))
IDLE = Load(0, 0, 8, 32)


def load(running: int = 0, waiting: int = 0, service_s: float | None = 1.0, max_tasks: int = 8) -> Load:
    return Load(running, waiting, max_tasks, 32, service_s)


def selection_of(*candidates: bytes, experience: Experience | None = None, **options: Any) -> Selection:
    made = Selection("x", experience or Experience(), **{"is_repeatable": False} | options)
    assert made.poll(0.0) == Search()
    made.add(candidates, is_last=True)
    return made


def used_to(took_s: float, count: int = MIN_TIMES, now: float = 0.0) -> Experience:
    """An experience of so many tasks of a provider that nobody knows any more."""
    experience = Experience()
    for _ in range(count):
        experience.on_took(b"z" * 32, "x", took_s, now)
    return experience


# The first of them


def test_two_are_probed_and_the_lighter_one_is_asked():
    choice = selection_of(A, B, C)

    assert choice.poll(0.0) == Probe((A, B))
    assert choice.poll(0.0) == Wait(None)
    choice.on_probe(A, load(8, 4), 0.1, 0.1)
    choice.on_probe(B, load(3), 0.2, 0.2)

    assert choice.poll(0.2) == Ask(B, Why.LIGHTER)
    assert choice.poll(0.2) == Wait(None)


def test_the_other_is_waited_for_no_longer_than_a_task_would_wait_here():
    choice = selection_of(A, B)
    choice.poll(0.0)

    choice.on_probe(A, load(8, 7, service_s=0.5), 0.1, 0.1)  # 16 tasks of 0.5 s, eight at a time: half a second

    assert choice.poll(0.1) == Wait(pytest.approx(0.1 + 0.1 + 0.5))
    assert choice.poll(0.71) == Ask(A, Why.FIRST)


def test_one_with_a_place_free_is_not_kept_waiting_for_one_that_is_silent():
    choice = selection_of(A, B)
    choice.poll(0.0)

    choice.on_probe(A, load(7, service_s=60.0), 0.1, 0.1)

    assert choice.poll(0.21) == Ask(A, Why.FIRST)


def test_the_one_that_lives_is_asked_and_the_next_two_are_probed_when_neither_does():
    choice = selection_of(A, B, C, D)
    choice.poll(0.0)
    choice.on_silence(A, 1.0)
    choice.on_silence(B, 1.0)

    assert choice.poll(1.0) == Probe((C, D))
    choice.on_silence(C, 2.0)
    choice.on_probe(D, IDLE, 0.9, 2.0)
    assert choice.poll(2.0) == Ask(D, Why.LIVE)


def test_one_that_is_full_is_not_asked_beside_one_that_is_not_however_quick_it_says_it_is():
    choice = selection_of(A, B)
    choice.poll(0.0)
    choice.on_probe(A, Load(8, 32, 8, 32, 0.0), 0.01, 0.1)
    choice.on_probe(B, load(8, 30, service_s=60.0), 0.1, 0.1)

    assert choice.poll(0.1) == Ask(B, Why.LIGHTER)


def test_a_probe_that_comes_late_changes_nothing():
    choice = selection_of(A, B)
    choice.poll(0.0)
    choice.on_probe(A, IDLE, 0.1, 0.1)
    assert choice.poll(0.3) == Ask(A, Why.FIRST)

    choice.on_probe(B, IDLE, 0.4, 0.4)

    assert choice.poll(0.4) == Wait(None)


# The next of them


def test_all_are_tried_before_it_is_given_up_and_a_second_search_is_made_first():
    choice = Selection("x", Experience(), is_repeatable=False)
    choice.add([A], is_last=False)
    assert choice.poll(0.0) == Probe((A,))
    choice.on_probe(A, None, 0.1, 0.1)
    assert choice.poll(0.1) == Ask(A, Why.ALONE)
    choice.on_end(A, is_final=False)

    assert choice.poll(1.0) == Search()
    choice.add([B, A], is_last=True)
    assert choice.poll(1.0) == Probe((B,))
    choice.on_silence(B, 2.0)
    assert choice.poll(2.0) == Finished(None)
    assert choice.poll(3.0) == Finished(None)


def test_one_that_failed_a_moment_ago_is_probed_after_all_others_and_after_a_second_search():
    experience = Experience()
    experience.on_failed(A, 0.0)
    choice = Selection("x", experience, is_repeatable=False)
    choice.add([A], is_last=False)

    assert choice.poll(1.0) == Search()
    choice.add([A, B, C], is_last=True)
    assert choice.poll(1.0) == Probe((B, C))
    choice.on_silence(B, 2.0)
    choice.on_silence(C, 2.0)
    assert choice.poll(2.0) == Probe((A,))


@pytest.mark.parametrize("memory_s", [FAILURE_MEMORY_S, BUSY_MEMORY_S])
def test_a_failure_is_forgotten_after_a_while(memory_s: float):
    experience = Experience()

    experience.on_failed(A, 10.0, for_s=memory_s)

    assert experience.has_failed(A, 10.0 + memory_s - 0.1)
    assert not experience.has_failed(A, 10.0 + memory_s)


def test_a_shorter_memory_does_not_shorten_a_longer_one():
    experience = Experience()
    experience.on_failed(A, 0.0)

    experience.on_failed(A, 1.0, for_s=BUSY_MEMORY_S)

    assert experience.has_failed(A, FAILURE_MEMORY_S - 1)


def test_one_that_will_refuse_it_seems_comes_after_those_that_may_not_and_before_those_that_failed():
    experience = Experience()
    experience.on_failed(B, 0.0)
    choice = selection_of(A, B, C, experience=experience, unlikely={A})

    first = choice.poll(1.0)
    choice.on_silence(C, 1.0)
    second = choice.poll(1.0)
    choice.on_silence(A, 1.0)

    assert (first, second, choice.poll(1.0)) == (Probe((C,)), Probe((A,)), Probe((B,)))


def test_the_first_final_end_is_the_end_and_a_later_one_changes_nothing():
    choice = asked_twice()

    choice.on_end(A, is_final=True)
    choice.on_end(B, is_final=True)

    assert choice.poll(9.0) == Finished(A)


# A second one beside a slow one


def asked_twice() -> Selection:
    choice = selection_of(A, B, experience=used_to(2.0), is_repeatable=True)
    choice.poll(0.0)
    choice.on_probe(A, IDLE, 0.1, 0.1)
    assert choice.poll(0.3) == Ask(A, Why.FIRST)
    assert choice.poll(0.3) == Wait(2.3)
    assert choice.poll(2.3) == Probe((B,))
    choice.on_probe(B, IDLE, 0.1, 2.4)
    assert choice.poll(2.4) == Ask(B, Why.SECOND)
    return choice


def test_past_the_usual_time_one_more_is_asked_and_never_a_third():
    choice = asked_twice()
    choice.add([C, D], is_last=True)

    assert choice.poll(100.0) == Wait(None)
    choice.on_end(A, is_final=False)
    assert choice.poll(100.0) == Wait(None)
    choice.on_end(B, is_final=False)
    assert choice.poll(100.0) == Probe((C, D))


def test_when_those_probed_for_a_second_ask_are_silent_the_next_are_probed():
    choice = selection_of(A, B, C, D, experience=used_to(2.0), is_repeatable=True)
    choice.poll(0.0)
    choice.on_silence(B, 0.1)
    choice.on_probe(A, IDLE, 0.1, 0.1)
    choice.poll(0.1)
    assert choice.poll(3.0) == Probe((C, D))
    choice.on_silence(C, 4.0)
    choice.on_silence(D, 4.0)

    assert choice.poll(4.0) == Wait(None)


def test_the_usual_time_is_what_nineteen_of_twenty_tasks_took_at_most_of_those_seen_lately():
    experience = Experience()
    for number in range(1, 101):
        experience.on_took(A, "x", number / 10, 0.0)

    assert experience.hedge_after_s("x") == pytest.approx(9.7)  # of the last 64: 3.7 to 10.0
    assert experience.hedge_after_s("y") is None


def test_the_usual_time_is_not_known_from_few_tasks_and_never_too_short_to_measure():
    assert used_to(5.0, MIN_TIMES - 1).hedge_after_s("x") is None
    assert used_to(0.001).hedge_after_s("x") == MIN_HEDGE_S


# What is known of a provider


@pytest.mark.parametrize(
    "answer",
    [
        {},
        None,
        [],
        {"running": 1, "waiting": 0, "max_tasks": 8},
        {"running": -1, "waiting": 0, "max_tasks": 8, "queue": 32},
        {"running": 1, "waiting": 0, "max_tasks": 0, "queue": 32},
        {"running": 1.5, "waiting": 0, "max_tasks": 8, "queue": 32},
        {"running": "1", "waiting": 0, "max_tasks": 8, "queue": 32},
    ],
)
def test_an_answer_of_another_shape_says_nothing_of_the_load(answer: Any):
    assert Load.from_map(answer) is None


@pytest.mark.parametrize(
    ("said", "read"), [(1e300, 3600.0), (float("nan"), None), (float("inf"), None), (-1, None), ("1", None), (2, 2.0)]
)
def test_a_claimed_time_is_read_within_bounds(said: Any, read: float | None):
    claimed = Load.from_map({"running": 2**63, "waiting": 0, "max_tasks": 8, "queue": 32, "service_s": said})

    assert claimed == Load(4096, 0, 8, 32, read)


def lighter(first: Load | None, second: Load | None, experience: Experience) -> bytes:
    choice = selection_of(A, B, experience=experience)
    choice.poll(0.0)
    choice.on_probe(A, first, 0.01, 0.01)
    choice.on_probe(B, second, 0.01, 0.01)
    step = choice.poll(0.01)
    assert isinstance(step, Ask)
    return step.id


def test_our_own_asks_count_where_a_provider_says_that_it_has_none():
    experience = Experience()
    for _ in range(6):
        experience.on_asked(A, "x")

    assert lighter(load(0), load(5), experience) == B
    for _ in range(6):
        experience.on_ended(A)
    assert lighter(load(0), load(5), experience) == A


def test_one_that_was_slow_with_us_is_not_light_because_it_says_so():
    experience = used_to(1.0)

    experience.on_took(A, "x", 60.0, 0.0)
    once = lighter(load(0), load(8, 8), experience)
    for _ in range(3):
        experience.on_took(A, "x", 60.0, 0.0)

    assert (once, lighter(load(0), load(8, 8), experience)) == (A, B)


def test_one_that_takes_long_for_tasks_that_take_long_is_not_slow_with_those_that_do_not():
    experience = used_to(1.0)
    for _ in range(30):
        experience.on_took(A, "films", 3600.0, 0.0)

    assert experience.outlook(A, "x", load(0), 0.0).work_s == 0.0


def test_how_slow_it_was_is_forgotten():
    experience = used_to(1.0)
    for _ in range(4):
        experience.on_took(A, "x", 60.0, -PROVIDER_MEMORY_S)

    assert lighter(load(0), load(8, 8), experience) == A


def test_nobodys_word_is_taken_for_being_quicker_than_all_others_by_far():
    experience = used_to(8.0)
    boast, honest = load(40, service_s=0.0), load(1, service_s=8.0)

    assert experience.outlook(A, "x", boast, 0.0).work_s == 40 * 8.0 / MAX_SPEED / 8
    assert lighter(boast, honest, experience) == B


def test_one_that_does_not_say_how_busy_it_is_counts_as_having_a_task_ahead():
    assert lighter(None, load(4), Experience()) == B
    assert lighter(None, load(8, 8), Experience()) == A


def test_all_that_is_remembered_is_bounded():
    experience = Experience()
    experience.on_asked(A, "x")
    for number in range(2 * MAX_PROVIDERS):
        provider = number.to_bytes(32, "big")
        experience.on_failed(provider, 0.0)
        experience.on_took(provider, f"capability-{number}", 1.0, 0.0)

    experience.check_invariants()
    assert len(experience._providers) == MAX_PROVIDERS
    assert len(experience._times) == MAX_CAPABILITIES
    experience.on_ended(A)  # one that has a task of ours is not forgotten


# Properties


class Driven:
    """One selection, driven at random. `alive`: what is known to the onlooker, who checks each step."""

    def __init__(self, data: st.DataObject) -> None:
        self.data = data
        self.now = 0.0
        self.experience = used_to(1.0) if data.draw(st.booleans()) else Experience()
        self.candidates = [bytes([number]) * 32 for number in range(data.draw(st.integers(0, 7)))]
        for candidate in self.candidates:
            if data.draw(st.booleans()):
                self.experience.on_failed(candidate, data.draw(st.sampled_from([-29.0, -25.0, 0.0])))
        self.silent = {c for c in self.candidates if data.draw(st.booleans())}
        self.is_repeatable = data.draw(st.booleans())
        self.choice = Selection("x", self.experience, is_repeatable=self.is_repeatable)
        self.searches = 0
        self.probing: list[bytes] = []
        self.answered: list[bytes] = []
        self.asked: list[bytes] = []
        self.tried: list[bytes] = []

    def step(self) -> Step:
        step = self.choice.poll(self.now)
        self.choice.check_invariants()
        match step:
            case Search():
                assert not self.asked
                self.searches += 1
                shown = self.candidates if self.searches == 2 else self.candidates[: self.data.draw(st.integers(0, 7))]
                self.choice.add(shown, is_last=self.searches == 2)
            case Probe(ids):
                self._check_probe(ids)
                self.probing, self.answered = list(ids), []
            case Ask(candidate, _):
                self._check_ask(candidate)
                self.probing.clear()
                self.asked.append(candidate)
                self.tried.append(candidate)
            case Wait():
                self._let_something_happen(step.until)
            case Finished():
                pass
        return step

    def _check_ask(self, candidate: bytes) -> None:
        assert candidate not in self.tried, "nobody is asked twice"
        assert candidate not in self.silent
        assert len(self.asked) < (2 if self.is_repeatable else 1)
        if self.experience.has_failed(candidate, self.now):
            assert all(self.experience.has_failed(other, self.now) for other in self.answered)

    def _check_probe(self, candidates: tuple[bytes, ...]) -> None:
        assert 1 <= len(candidates) <= 2
        assert not self.probing
        assert not set(candidates) & set(self.tried)
        if any(self.experience.has_failed(candidate, self.now) for candidate in candidates):
            left = [candidate for candidate in self.candidates if candidate not in self.tried]
            assert all(self.experience.has_failed(candidate, self.now) for candidate in left)

    def _let_something_happen(self, until: float | None) -> None:
        assert self.probing or self.asked or until is not None, "nothing is to come"
        things: list[tuple[str, bytes]] = [("probe", c) for c in self.probing] + [("end", c) for c in self.asked]
        if until is not None:
            assert until > self.now
            things.append(("time", b""))
        if self.candidates and self.data.draw(st.integers(0, 5)) == 0:
            self.experience.on_failed(self.data.draw(st.sampled_from(self.candidates)), self.now)  # in another ask
        what, candidate = self.data.draw(st.sampled_from(things))
        if what == "time":
            assert until is not None
            self.now = until
        elif what == "probe":
            self.probing.remove(candidate)
            if candidate in self.silent:
                self.tried.append(candidate)
                self.choice.on_silence(candidate, self.now)
            else:
                self.choice.on_probe(
                    candidate, self.data.draw(st.sampled_from([None, IDLE, load(9, 9)])), 0.1, self.now
                )
        else:
            self.asked.remove(candidate)
            self.choice.on_end(candidate, is_final=self.data.draw(st.integers(0, 3)) == 0)


@given(st.data())
@settings(max_examples=200)
def test_nobody_who_failed_is_chosen_before_others_all_are_tried_and_there_is_one_end(data: st.DataObject):
    driven = Driven(data)

    for _ in range(100):
        step = driven.step()
        if isinstance(step, Finished):
            break
    else:
        raise AssertionError("it has no end")

    if step.by is None:
        assert sorted(driven.tried) == sorted(driven.candidates)
        assert not driven.asked
        assert driven.searches == 2
    else:
        assert step.by in driven.tried
    for candidate in [*driven.probing, *driven.asked]:
        driven.choice.on_probe(candidate, IDLE, 0.1, driven.now)
        driven.choice.on_end(candidate, is_final=True)
    assert driven.choice.poll(driven.now + 100) == step


@given(
    st.lists(st.sampled_from(["ask", "end", "took", "fail", "hedge"]), max_size=80),
    st.randoms(use_true_random=False),
)
def test_what_is_remembered_stays_within_its_bounds(steps: list[str], rng: random.Random):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "MAX_PROVIDERS", 4)
        patch.setattr(selection, "MAX_CAPABILITIES", 2)
        experience, asked = Experience(), []
        for now, step in enumerate(steps):
            provider, capability = bytes([rng.randrange(9)]), f"c{rng.randrange(4)}"
            match step:
                case "ask":
                    experience.on_asked(provider, capability)
                    asked.append(provider)
                case "end" if asked:
                    experience.on_ended(asked.pop(rng.randrange(len(asked))))
                case "took":
                    experience.on_took(provider, capability, rng.random(), now)
                case "fail":
                    experience.on_failed(provider, now)
                case "hedge":
                    experience.take_hedge(capability)
            assert sum(known.asked for known in experience._providers.values()) == len(asked)
            experience.check_invariants()


def share_of_a_liar(rng: random.Random, experience: Experience, asks: int = 2000) -> float:
    """Of ten providers with half their places taken, how often one that says it has nothing to do is asked."""
    liar, others = b"l" * 32, [bytes([number]) * 32 for number in range(9)]
    taken = 0
    for _ in range(asks):
        candidates = [liar, *others]
        rng.shuffle(candidates)
        choice = selection_of(*candidates, experience=experience)
        step = choice.poll(0.0)
        assert isinstance(step, Probe)
        for candidate in step.ids:
            said = Load(0, 0, 4096, 4096, 0.0) if candidate == liar else load(4)
            choice.on_probe(candidate, said, 0.01, 0.01)
        step = choice.poll(0.01)
        assert isinstance(step, Ask)
        taken += step.id == liar
    return taken / asks


def test_a_liar_wins_the_pairs_that_it_is_in_and_none_of_them_once_it_was_slow_with_us():
    rng = random.Random(5)
    experience = used_to(1.0)

    fooled = share_of_a_liar(rng, experience)
    for _ in range(4):
        experience.on_took(b"l" * 32, "x", 30.0, 0.0)
    warned = share_of_a_liar(rng, experience)

    assert fooled == pytest.approx(2 / 10, abs=0.03)
    assert warned == 0.0


# What it does to a queue


class Queues:
    """Providers with places and a queue each, whose loads are told once an epoch. Time is counted in mean tasks."""

    def __init__(self, rng: random.Random, *, providers: int, places: int, epoch: float) -> None:
        self.rng = rng
        self.ids = [number.to_bytes(32, "big") for number in range(providers)]
        self.index = {provider: number for number, provider in enumerate(self.ids)}
        self.places = places
        self.epoch = epoch
        self.running = [0] * providers
        self.queue: list[deque[Any]] = [deque() for _ in self.ids]
        self.done = [0] * providers
        self.service_s = [0.0] * providers
        self.told = [self.load_of(number) for number in range(providers)]
        self.waits: list[float] = []
        self._ends: list[Any] = []
        self._told_at = 0.0

    def load_of(self, number: int) -> Load:
        service_s = self.service_s[number] if self.done[number] else None
        return Load(self.running[number], len(self.queue[number]), self.places, 4096, service_s)

    def pass_time(self, now: float) -> None:
        while (self._ends and self._ends[0][0] <= now) or self._told_at + self.epoch <= now:
            if self._ends and self._ends[0][0] <= min(now, self._told_at + self.epoch):
                self._end(*heapq.heappop(self._ends))
            else:
                self._told_at += self.epoch
                self.told = [self.load_of(number) for number in range(len(self.ids))]

    def ask(self, number: int, now: float, service_s: float, experience: Experience | None) -> None:
        task = (now, service_s, experience)
        if self.running[number] < self.places:
            self._begin(number, now, task)
        else:
            self.queue[number].append(task)

    def _begin(self, number: int, now: float, task: Any) -> None:
        self.running[number] += 1
        self.waits.append(now - task[0])
        heapq.heappush(self._ends, (now + task[1], len(self.waits), number, task))

    def _end(self, at: float, _: int, number: int, task: Any) -> None:
        asked_at, service_s, experience = task
        self.running[number] -= 1
        self.done[number] += 1
        self.service_s[number] += (service_s - self.service_s[number]) / min(self.done[number], 64)
        if experience is not None:
            experience.on_ended(self.ids[number])
            experience.on_took(self.ids[number], "x", at - asked_at, at)
        if self.queue[number]:
            self._begin(number, at, self.queue[number].popleft())


def p99_wait(rule: str, *, seed: int = 1, tasks: int = 12_000) -> float:
    """Of open arrivals at 80 % of capacity with log-normal service times, in mean service times."""
    rng = random.Random(seed)
    queues = Queues(rng, providers=50, places=8, epoch=1.0)
    askers = [Experience() for _ in range(50)]
    now = 0.0
    for _ in range(tasks):
        now += rng.expovariate(0.8 * 8 * 50)
        queues.pass_time(now)
        service_s = rng.lognormvariate(-0.5, 1.0)
        asker = None
        if rule == "random":
            number = rng.randrange(50)
        elif rule == "shortest queue":
            number = min(
                range(50), key=lambda each: (queues.told[each].running + queues.told[each].waiting, rng.random())
            )
        elif rule == "true queue":
            number = min(range(50), key=lambda each: (queues.running[each] + len(queues.queue[each]), rng.random()))
        else:
            asker = rng.choice(askers)
            chosen = chosen_by(asker, queues, now)
            asker.on_asked(chosen, "x")
            number = queues.index[chosen]
        queues.ask(number, now, service_s, asker)
    settled = queues.waits[tasks // 5 :]
    return sorted(settled)[len(settled) * 99 // 100]


def chosen_by(asker: Experience, queues: Queues, now: float) -> bytes:
    choice = Selection("x", asker, is_repeatable=False)
    choice.add(queues.rng.sample(queues.ids, 20), is_last=True)
    step = choice.poll(now)
    assert isinstance(step, Probe)
    for provider in step.ids:
        choice.on_probe(provider, queues.told[queues.index[provider]], 0.001, now)
    step = choice.poll(now)
    assert isinstance(step, Ask)
    return step.id


def test_by_loads_up_to_an_epoch_old_the_longest_waits_are_half_those_of_random_choice(
    record_property: Callable[[str, object], None],
):
    """An epoch is the mean time of a task. Who takes the shortest queue by such news sends all to the same one. Who saw
    all queues as they are would wait for nobody; no asker can, and that is here to be reported.
    """
    waits = {rule: p99_wait(rule) for rule in ("random", "shortest queue", "selection", "true queue")}
    for rule, wait in waits.items():
        record_property(rule, round(wait, 3))

    assert waits["selection"] <= 0.5 * waits["random"], waits
    assert waits["selection"] <= 2 * waits["shortest queue"], waits
    assert waits["true queue"] <= waits["selection"], waits
