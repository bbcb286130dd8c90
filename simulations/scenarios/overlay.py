"""What the scenarios of the overlay share: a swarm that stands at once, values put into it, and reads that are counted.

They ask how the overlay stands what is done to it, so everybody knows everybody at the start as an oracle has it, and
hosts have public addresses, which limits of place count.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import TypeAlias

from dht.config import DHTConfig
from dht.lookup import LookupMode
from simulations import sabotage, values
from simulations.checkers import STEP_S, Caps, Deadlines, Durability, Inspector, MonotonicReads, Signatures
from simulations.custody import Custody
from simulations.history import History
from simulations.network import VirtualNetwork
from simulations.pool import REQUESTS
from simulations.population import Population, Resident
from simulations.scenarios.base import MAX_NOTES, Outcome, Play, Progress, Scenario, Settings, Start
from simulations.scenarios.phases import paced
from simulations.statistics import quantile, wilson_low
from simulations.values import Value
from simulations.virtual_loop import VirtualLoop
from simulations.world import World
from synapse_p2p.background import TaskScope
from synapse_p2p.exceptions import ConfigError

SECONDS_PER_HOUR = 3600.0
PUT_PAUSE_S = 0.05
GET_PAUSE_S = 0.02
"""Between the beginnings of two reads where no hours are said; each takes a second at most, so dozens are under way."""
MAX_VALUES = 1000
MIN_VALUES = 20
GETS_PER_VALUE = 10
"""A value is read so often on average: reads of one value go well or badly together, so there have to be many."""
GETS_PER_CHURNED_VALUE = 33
"""The same where nodes come and go for hours: every newcomer is brought the values of its place, and with 1,000 of them
two thirds of a day's work would be that."""
STRICT_LOOKUPS = 100
"""Of random keys, for the messages of one strict lookup in the same swarm."""
TOLD_EVERY = 100
"""Reads between two outcomes so far. Each looks at all reads: after every one of 10,000 that took a tenth of the time.
"""
SETTLE_S = 5.0
CAPS_EVERY_S = 60.0
"""In which the caps of everybody are looked at once, some residents at each step: at every step all of a thousand took
a third of a run."""

Figures = dict[str, int | float | str]


@dataclass(frozen=True, slots=True)
class Swarm:
    """A population, and who looks after its values."""

    settings: Settings
    population: Population
    custody: Custody
    progress: Progress

    @property
    def network(self) -> VirtualNetwork:
        return self.population.world.network

    @property
    def loop(self) -> VirtualLoop:
        return self.network.loop

    @property
    def rng(self) -> random.Random:
        return self.population.world.rng


class OverlayScenario(Scenario):
    """A scenario that starts by oracle, without encryption, and can go without a defence."""

    def check(self, settings: Settings) -> None:
        """See Scenario."""
        super().check(settings)
        if settings.start is not Start.ORACLE or settings.wire:
            raise ConfigError(f"{self.name} starts by oracle and has no wire: say --start oracle, without --wire")

    def new_world(self, loop: VirtualLoop, settings: Settings) -> World:
        """See Scenario."""
        return World(
            loop, seed=settings.seed, start=settings.start, server_config=sabotage.server_config(settings.sabotage)
        )

    def variant(self, settings: Settings) -> str:
        """The one that is meant."""
        return settings.variant or next(iter(self.variants))


def new_swarm(world: World, settings: Settings, progress: Progress, config: DHTConfig | None = None) -> Swarm:
    """Nobody yet, set as the settings say."""
    config = sabotage.dht_config(config or values.config(), settings.sabotage)
    population = Population(world, config)
    return Swarm(settings, population, Custody(population), progress)


Live: TypeAlias = Callable[[Swarm], Awaitable[Outcome]]
"""How a swarm lives, from nobody to its last figures; it is ended by whoever made it."""


def _usual_config(_: Settings) -> DHTConfig:
    return values.config()


def inspected(live: Live, config: Callable[[Settings], DHTConfig] = _usual_config) -> Play:
    """A play with the rules of `simulations.checkers` looked after, at every step and at its end, which takes it some
    hundredths of its time. S6 is about tasks, and the overlay promises none. Workers of a sweep are sent plays, so both
    are functions of a module.
    """
    return partial(_play_inspected, live, config)


async def _play_inspected(
    live: Live, config: Callable[[Settings], DHTConfig], world: World, settings: Settings, progress: Progress
) -> Outcome:
    swarm = new_swarm(world, settings, progress, config(settings))
    population = swarm.population
    history = population.history = History(world.network.awake_s)
    inspector = Inspector(
        (
            Signatures(history, population.config.records),
            MonotonicReads(history),
            Durability(history, population.storers),
            Caps(lambda: population.some_amounts(STEP_S / CAPS_EVERY_S), at_the_end=population.amounts),
            Deadlines(history),
        )
    )

    async def live_to_the_end() -> Outcome:
        try:
            outcome = await live(swarm)
            inspector.look_after_faults()
            return outcome
        finally:
            await population.stop()

    async with TaskScope("scenario") as scope:
        living = scope.spawn_awaited(live_to_the_end())
        await inspector.watch_while(living)
    return living.result()


class Gets:
    """Reads by residents who do not keep the value, and how they went."""

    def __init__(self, swarm: Swarm, *, phase: str = "gets", of: int | None = None) -> None:
        self.count = 0
        self.found = 0
        self.of_lost = 0  # values that nobody honest kept
        self.notes: list[str] = []
        self._messages: list[int] = []
        self._seconds: list[float] = []
        self._swarm = swarm
        self._phase = phase
        self._of = swarm.settings.lookups if of is None else of

    async def get_one(self, among: Sequence[Value] | None = None) -> None:
        """One read of a random value; nothing where there is none. It counts if the reader lived to its end."""
        population, custody, rng = self._swarm.population, self._swarm.custody, self._swarm.population.world.rng
        choice = custody.values if among is None else among
        if not choice:
            return
        value = rng.choice(choice)
        reader = population.any_living()
        for _ in range(8):  # in a small swarm everybody keeps everything, and then anybody will do
            if not custody.holds(reader, value):
                break
            reader = population.any_living()
        await self.get(reader, value)

    async def get(self, reader: Resident, value: Value) -> None:
        """One read."""
        began_at = self._swarm.loop.time()
        requests: list[str] = []
        REQUESTS.set(requests)  # of this task alone: whoever calls gives every read a task of its own
        is_found = await values.get(reader, value)
        if reader.node is None:
            return
        self.count += 1
        self.found += is_found
        self._swarm.population.world.note_lookup("read", began_at, is_success=is_found)
        self.of_lost += self._swarm.custody.is_lost(value)
        self._messages.append(len(requests))
        self._seconds.append(self._swarm.loop.time() - began_at)
        if not is_found and len(self.notes) < MAX_NOTES:
            self.notes.append(f"at {began_at:.3f} s {reader.host.id.hex()[:16]} did not get value {value.number}")
        is_told = self.count % TOLD_EVERY == 0 or self.count == self._of
        self._swarm.progress(self._phase, self.count, self._of, self.outcome(0.0, {}) if is_told else None)

    def figures(self, prefix: str = "get") -> Figures:
        """How they went."""
        figures: Figures = {
            f"{prefix}s": self.count,
            f"{prefix}s_found": self.found,
            f"{prefix}s_of_lost": self.of_lost,
            f"{prefix}_success_low": round(wilson_low(self.found, self.count), 5),
        }
        if self.count:
            figures |= {
                f"{prefix}_messages_mean": round(fmean(self._messages), 3),
                f"{prefix}_messages_p99": quantile(self._messages, 0.99),
                f"{prefix}_seconds_mean": round(fmean(self._seconds), 4),
                f"{prefix}_seconds_p99": round(quantile(self._seconds, 0.99), 4),
            }
        return figures

    def outcome(self, required: float, figures: Figures) -> Outcome:
        """So far. Reads have no hops to tell of."""
        return Outcome(self.count, self.found, (), self.notes, required, {**self.figures(), **figures})


def value_count(settings: Settings, gets_per_value: int = GETS_PER_VALUE) -> int:
    """How many values a scenario of these settings stores."""
    return max(MIN_VALUES, min(MAX_VALUES, settings.lookups // gets_per_value))


async def put_values(swarm: Swarm, count: int, *, first: int = 0, putters: Sequence[Resident] | None = None) -> None:
    """Store so many values, each by a random resident; those whose owner knows them to be kept are looked after."""
    rng = swarm.population.world.rng

    async def put_one(number: int) -> None:
        putter = swarm.population.any_living() if putters is None else rng.choice(putters)
        value = await values.put(putter, number)
        if value is not None:
            swarm.custody.add(value)

    numbers = iter(range(first, first + count))
    await paced(count, PUT_PAUSE_S, lambda: put_one(next(numbers)))
    swarm.progress("puts", count, count)


async def read_values(swarm: Swarm, gets: Gets, *, among: Sequence[Value] | None = None) -> None:
    """As many reads as the settings say, spread over their hours, or in quick succession."""
    settings = swarm.settings
    pause_s = GET_PAUSE_S if settings.hours is None else settings.hours * SECONDS_PER_HOUR / settings.lookups
    await paced(settings.lookups, pause_s, lambda: gets.get_one(among))


async def strict_messages(swarm: Swarm) -> float:
    """The requests of one strict lookup of a random key in this swarm, on average."""
    asked: list[int] = []

    async def look_up() -> None:
        node = swarm.population.any_living().node
        if node is not None:
            world = swarm.population.world
            outcome = await node.lookup(world.random_key(), LookupMode.STRICT)
            asked.append(outcome.asked)
            world.note_trace(node.id, outcome, k=swarm.population.config.lookup.k)

    await paced(STRICT_LOOKUPS, GET_PAUSE_S, look_up)
    return round(fmean(asked), 3)
