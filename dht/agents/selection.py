"""Which provider is asked: who is probed, which of two is taken and why, when a second one is asked, when it is over.

Pure. `Experience` is what a swarm remembers of providers, from ask to ask; `Selection` is the choice within one ask.

    searching -> (candidates) choosing -> (two are probed) probing -> (the lighter one) asking -> an end, or choosing
    asking, past the usual time, where the task may be done twice -> probing, for a second one -> both are asked

It is over when one of those asked comes to a final end, or when nobody is left. Candidates come in random order, so
the first two are two at random: of two the lighter one, for whoever takes the lightest of all by news that are not
quite new sends everybody to the same one (Mitzenmacher, "How useful is old information?"). Whoever failed a moment ago,
or will refuse the task as one that goes in circles, is probed after all others.

What a provider says of its load is its word alone. Who claims to have nothing to do wins the pairs that it is in, twice
its share; and what we know ourselves counts beside its word: our own asks that it has, and how long it took.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias

from synapse_p2p.identity import NodeID

FAILURE_MEMORY_S = 30.0
"""How long one that failed is asked after all others; a process that was started again is back by then."""
BUSY_MEMORY_S = 3.0
"""The same of one that had no place: places come free all the time."""
MAX_PROVIDERS = 1024
"""Providers of which anything is remembered; about 200 bytes each."""
PROVIDER_MEMORY_S = 300.0
"""How long a provider is taken to be as quick, or slow, as it was with us."""
MAX_CAPABILITIES = 128
"""Capabilities of which times are remembered: those that the user asks for."""
MAX_TIMES = 64
"""Times of one capability: the last that its providers took for a task of ours."""
MIN_TIMES = 20
"""Before so many nobody is asked beside another: of fewer a 95th percentile is their maximum."""
HEDGE_QUANTILE = 0.95
MIN_HEDGE_S = 0.1
"""No second one is asked sooner: what takes less is not waited for, and a stall of the loop is no slow provider."""
HEDGE_SHARE = 0.1
"""Second asks per ask: when all are slow because all are full, more work is not the cure. Dean and Barroso, "The tail
at scale"."""
MAX_SAVED_HEDGES = 4.0

FIRST_SERVICE_S = 1.0
"""How long a task takes, while nothing is known of it."""
MAX_SPEED = 4.0
"""Nobody's word is taken for being more than so many times quicker than providers usually are with us."""
SLOW = 3.0
"""One that takes so many times the usual time, on average, is slow and not out of luck."""
MAX_PACE = 16.0
"""A single task counts for no more than so many: with the smoothing, one long task makes no slow provider, two do."""
MAX_CLAIM = 4096
"""A claimed count above it counts as it."""
MAX_CLAIMED_S = 3600.0
SMOOTHING = 8  # tasks that a provider's pace looks back on, or so


@dataclass(frozen=True, slots=True)
class Load:
    """What an agent says of its tasks. `service_s`: how long one takes that runs; None: none has ended yet."""

    running: int
    waiting: int
    max_tasks: int
    queue_size: int
    service_s: float | None = None

    @classmethod
    def from_map(cls, value: Any) -> Load | None:
        """The answer of `_agent.load`, within bounds; None for one that says nothing of use."""
        match value:
            case {"running": int(running), "waiting": int(waiting), "max_tasks": int(max_tasks), "queue": int(queue)}:
                counts = [min(count, MAX_CLAIM) for count in (running, waiting, max_tasks, queue)]
            case _:
                return None
        if min(counts) < 0 or counts[2] < 1:
            return None
        match value.get("service_s"):
            case int(claimed_s) | float(claimed_s) if 0 <= claimed_s < math.inf:
                service_s = min(float(claimed_s), MAX_CLAIMED_S)
            case _:
                service_s = None
        return cls(counts[0], counts[1], counts[2], counts[3], service_s)

    @property
    def is_full(self) -> bool:
        """Whether it would refuse one more."""
        return self.running >= self.max_tasks and self.waiting >= self.queue_size


class Why(StrEnum):
    """Why a provider was tried."""

    LIGHTER = "the lighter of two"
    FIRST = "the first of two to answer, with no wait worth asking the other about"
    LIVE = "the only one of two that answered"
    ALONE = "nobody else was left"
    SECOND = "another was slow"
    PROBED = "to be chosen from"


@dataclass(slots=True)
class _Known:
    """What we have seen of one provider. `pace`: how long its tasks take, in what they usually take with others."""

    pace: float = 1.0
    paced_at: float = -math.inf
    avoided_until: float = -math.inf
    asked: int = 0  # asks of ours that it has now


class _Times:
    """How long the tasks of one capability took, and how many second asks are to spare."""

    __slots__ = ("_last", "_sorted", "hedges")

    def __init__(self) -> None:
        self.hedges = 1.0
        self._last: deque[float] = deque(maxlen=MAX_TIMES)
        self._sorted: list[float] = []

    def add(self, took_s: float) -> None:
        self._last.append(took_s)
        self._sorted = sorted(self._last)

    def __len__(self) -> int:
        return len(self._last)

    def quantile(self, share: float) -> float:
        return self._sorted[math.ceil(share * len(self._sorted)) - 1]


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a task would meet. `work_s` is what two are compared by: the work ahead of it, shared out over all places,
    and how much slower than others the provider is with us. `wait_s` is until a place is free.
    """

    work_s: float
    wait_s: float


class Experience:
    """What a swarm remembers of the providers it asked. All of it fades, and none of it is anybody's word.

    Invariant: no more than MAX_PROVIDERS providers where not all of them have an ask of ours, but for the latest; and
    at most MAX_CAPABILITIES capabilities.
    """

    def __init__(self) -> None:
        self._providers: dict[NodeID, _Known] = {}  # the one used last at the end
        self._times: dict[str, _Times] = {}  # the same

    def on_asked(self, provider: NodeID, capability: str) -> None:
        """It was sent a task of ours; say `on_ended` when it has it no more, whatever came of it."""
        self._known(provider).asked += 1
        times = self._times_of(capability)
        times.hedges = min(times.hedges + HEDGE_SHARE, MAX_SAVED_HEDGES)

    def on_ended(self, provider: NodeID) -> None:
        """One task of ours less."""
        self._providers[provider].asked -= 1
        self._forget_surplus()

    def on_took(self, provider: NodeID, capability: str, took_s: float, now: float) -> None:
        """It answered after so long; or was not waited for any longer, which says at least that."""
        times = self._times_of(capability)
        times.add(took_s)
        usual_s = times.quantile(0.5)
        if usual_s > 0:
            known = self._known(provider)
            pace = _pace_of(known, now)
            known.pace = pace + (min(took_s / usual_s, MAX_PACE) - pace) / SMOOTHING
            known.paced_at = now

    def on_failed(self, provider: NodeID, now: float, *, for_s: float = FAILURE_MEMORY_S) -> None:
        """It did not do what it was asked for, and is asked after all others for so long."""
        known = self._known(provider)
        known.avoided_until = max(known.avoided_until, now + for_s)

    def has_failed(self, provider: NodeID, now: float) -> bool:
        """Whether it failed a moment ago."""
        known = self._providers.get(provider)
        return known is not None and now < known.avoided_until

    def hedge_after_s(self, capability: str) -> float | None:
        """How long nearly all tasks of this capability took at most; None while too few are known."""
        times = self._times.get(capability)
        if times is None or len(times) < MIN_TIMES:
            return None
        return max(times.quantile(HEDGE_QUANTILE), MIN_HEDGE_S)

    def take_hedge(self, capability: str) -> bool:
        """Whether a second ask is to spare; it is gone then."""
        times = self._times_of(capability)
        if times.hedges < 1:
            return False
        times.hedges -= 1
        return True

    def outlook(self, provider: NodeID, capability: str, load: Load | None, now: float) -> Outlook:
        """What a task would meet there. One that says nothing of its load counts as having one place, and it taken."""
        known = self._providers.get(provider, _UNKNOWN)
        times = self._times.get(capability)
        usual_s = times.quantile(0.5) if times else 0.0
        guessed_s = _pace_of(known, now) * usual_s or FIRST_SERVICE_S
        if load is None:
            ahead, places, service_s = known.asked + 1, 1, guessed_s
        else:
            ahead, places = max(load.running + load.waiting, known.asked), load.max_tasks
            if load.service_s is None:
                service_s = max(guessed_s, FIRST_SERVICE_S)  # its first tasks still run, and may for long
            else:
                service_s = max(load.service_s, usual_s / MAX_SPEED)
        slower_s = max(0.0, _pace_of(known, now) - SLOW) * usual_s
        wait_s = max(0, ahead + 1 - places) * service_s / places
        return Outlook(ahead * service_s / places + slower_s, wait_s)

    def check_invariants(self) -> None:
        """Assert what must always hold; for tests."""
        busy = [known for known in self._providers.values() if known.asked]
        assert len(self._providers) <= max(MAX_PROVIDERS, len(busy) + 1)
        assert all(known.asked >= 0 for known in self._providers.values())
        assert len(self._times) <= MAX_CAPABILITIES
        assert all(0 <= times.hedges <= MAX_SAVED_HEDGES for times in self._times.values())

    def _known(self, provider: NodeID) -> _Known:
        known = self._providers.pop(provider, None) or _Known()
        self._providers[provider] = known
        self._forget_surplus(but=known)
        return known

    def _forget_surplus(self, *, but: _Known | None = None) -> None:
        """Never one with an ask under way: of those there are as many as the user's own code makes."""
        while len(self._providers) > MAX_PROVIDERS:
            idle = next((each for each, one in self._providers.items() if not one.asked and one is not but), None)
            if idle is None:
                return
            del self._providers[idle]

    def _times_of(self, capability: str) -> _Times:
        times = self._times.pop(capability, None)
        if times is None:
            times = _Times()
        self._times[capability] = times
        if len(self._times) > MAX_CAPABILITIES:
            del self._times[next(iter(self._times))]
        return times


_UNKNOWN = _Known()


def _pace_of(known: _Known, now: float) -> float:
    return known.pace if now - known.paced_at < PROVIDER_MEMORY_S else 1.0


@dataclass(frozen=True, slots=True)
class Search:
    """Look for candidates, then say `add`."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Ask each of them how busy it is, then say `on_probe` or `on_silence`."""

    ids: tuple[NodeID, ...]


@dataclass(frozen=True, slots=True)
class Ask:
    """Give it the task, then say `on_end`."""

    id: NodeID
    why: Why


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do until something happens, or until then."""

    until: float | None


@dataclass(frozen=True, slots=True)
class Finished:
    """It is over: with the end of this one, or, with None, because nobody is left."""

    by: NodeID | None


Step: TypeAlias = Search | Probe | Ask | Wait | Finished


class Selection:
    """The choice within one ask: `poll` says what to do next, and has one answer at a time.

    `is_repeatable`: the task may be done twice, so that a second one may be asked beside a slow first. `unlikely` are
    candidates that will refuse, or so it seems.

    Invariant: a candidate is in one place of: untried, asked, tried; the pair that is probed is part of the untried.
    """

    def __init__(
        self,
        capability: str,
        experience: Experience,
        *,
        is_repeatable: bool,
        unlikely: Collection[NodeID] = (),
    ) -> None:
        self._capability = capability
        self._experience = experience
        self._is_repeatable = is_repeatable
        self._unlikely = unlikely
        self._untried: dict[NodeID, None] = {}  # in random order
        self._asked: dict[NodeID, None] = {}
        self._tried: dict[NodeID, None] = {}
        self._pair: dict[NodeID, _Probed | None] = {}  # those that answered a probe, and those that may yet
        self._pair_size = 0
        self._is_searched_out = False
        self._hedge_at: float | None = None
        self._is_hedged = False
        self._finished: Finished | None = None

    def add(self, candidates: Iterable[NodeID], *, is_last: bool) -> None:
        """Those that a search found, in random order. `is_last`: there is no other search."""
        for candidate in candidates:
            if candidate not in self._asked and candidate not in self._tried:
                self._untried.setdefault(candidate)
        self._is_searched_out = is_last

    def poll(self, now: float) -> Step:
        """What to do now."""
        if self._finished is not None:
            return self._finished
        if self._pair:
            return self._choose(now)
        if self._asked:
            return self._hedge(now)
        pair = self._next_pair(now, only_good=not self._is_searched_out)
        if pair:
            return self._probe(pair)
        if not self._is_searched_out:
            return Search()
        self._finished = Finished(None)
        return self._finished

    def on_probe(self, candidate: NodeID, load: Load | None, took_s: float, now: float) -> None:
        """It lives, and answered after `took_s`. A probe that nobody waits for any more changes nothing."""
        if candidate in self._pair:
            outlook = self._experience.outlook(candidate, self._capability, load, now)
            is_full = load is not None and load.is_full
            self._pair[candidate] = _Probed((is_full, took_s + outlook.work_s), now + took_s + outlook.wait_s)

    def on_silence(self, candidate: NodeID, now: float) -> None:
        """It did not answer a probe, and is not asked."""
        if self._pair.pop(candidate, None) is None and candidate not in self._untried:
            return
        self._untried.pop(candidate, None)
        self._tried[candidate] = None
        self._experience.on_failed(candidate, now)

    def on_end(self, candidate: NodeID, *, is_final: bool) -> None:
        """One that was asked has ended. Final: that is the end of all; else another may be asked in its place."""
        if candidate not in self._asked:
            return
        del self._asked[candidate]
        self._tried[candidate] = None
        if is_final and self._finished is None:
            self._finished = Finished(candidate)

    @property
    def asked_count(self) -> int:
        """How many have the task now."""
        return len(self._asked)

    @property
    def is_finished(self) -> bool:
        """Whether it is over."""
        return self._finished is not None

    def check_invariants(self) -> None:
        """Assert what must always hold; for tests."""
        assert not self._untried.keys() & self._asked.keys()
        assert not self._untried.keys() & self._tried.keys()
        assert not self._asked.keys() & self._tried.keys()
        assert self._pair.keys() <= self._untried.keys()
        assert len(self._pair) <= self._pair_size <= 2
        assert len(self._asked) <= (2 if self._is_hedged else 1)

    def _probe(self, pair: list[NodeID]) -> Probe:
        self._pair = dict.fromkeys(pair)
        self._pair_size = len(pair)
        return Probe(tuple(pair))

    def _choose(self, now: float) -> Step:
        answered = {candidate: probed for candidate, probed in self._pair.items() if probed is not None}
        if not answered:
            return Wait(None)
        # One of them may have failed in another ask since it was probed.
        best = min(answered, key=lambda each: (self._experience.has_failed(each, now), *answered[each].weight))
        if len(answered) < len(self._pair) and now < answered[best].patient_until:
            return Wait(answered[best].patient_until)
        why = Why.LIGHTER
        if len(answered) < len(self._pair):
            why = Why.FIRST
        elif len(self._pair) < 2:
            why = Why.LIVE if self._pair_size == 2 else Why.ALONE
        self._pair = {}
        del self._untried[best]
        if self._asked:
            why = Why.SECOND
        self._asked[best] = None
        self._hedge_at = self._hedge_time(now)
        return Ask(best, why)

    def _hedge_time(self, now: float) -> float | None:
        if not self._is_repeatable or self._is_hedged:
            return None
        after_s = self._experience.hedge_after_s(self._capability)
        return None if after_s is None else now + after_s

    def _hedge(self, now: float) -> Probe | Wait:
        """One is asked: wait for it, or look for a second one beside it."""
        if self._hedge_at is None or now < self._hedge_at:
            return Wait(self._hedge_at)
        pair = self._next_pair(now, only_good=True)
        if not pair or not (self._is_hedged or self._experience.take_hedge(self._capability)):
            self._hedge_at = None
            return Wait(None)
        self._is_hedged = True
        return self._probe(pair)

    def _next_pair(self, now: float, *, only_good: bool) -> list[NodeID]:
        """Two of the best kind that is left; one where it is the last of its kind."""
        kinds: list[list[NodeID]] = [[], [], []]
        for candidate in self._untried:
            has_failed = self._experience.has_failed(candidate, now)
            kind = 2 if has_failed else 1 if candidate in self._unlikely else 0
            kinds[kind].append(candidate)
            if len(kinds[0]) == 2:
                break
        if only_good:
            return kinds[0]
        return next((kind[:2] for kind in kinds if kind), [])


@dataclass(frozen=True, slots=True)
class _Probed:
    """What one of a pair answered: the lighter one is less. To wait for the other longer than a task would wait here
    gains nothing.
    """

    weight: tuple[bool, float]
    patient_until: float
