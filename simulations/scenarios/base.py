"""What a scenario is: a name, and a way to live through it that ends with figures.

Most scenarios are a coroutine that is played in a World on a VirtualLoop: a `Scenario`. One that has another engine,
without a world, is any object that fits `Playable`.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, cast

from dht.config import DHTConfig
from simulations import virtual_loop
from simulations.network import MAX_HOSTS
from simulations.progress import Step, Watch
from simulations.samples import Samples
from simulations.trace import TracingDigest
from simulations.virtual_loop import VirtualLoop
from simulations.world import Start, World
from synapse_p2p.exceptions import ConfigError

DEFAULT_NODES = 100
DEFAULT_LOOKUPS = 100
DEFAULT_SEED = 1
MAX_HOURS = 24 * 365 * 10
"""The longest a run can be, in virtual hours: ten years, in which seconds as floats still tell microseconds apart."""
MAX_NOTES = 100
"""What a run may say of itself at most; a run in which everything fails says the same thing again and again."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run is made of. The same settings give the same digest.

    `hours` is virtual time, counted from when the swarm stands; None leaves it to the scenario. With `wire` the
    bytes between nodes are those of the real wire, sealed and framed; without it, what they seal. `variant` is one that
    the scenario names, empty for its first, and `sabotage` a defence that nodes go without.
    """

    nodes: int = DEFAULT_NODES
    lookups: int = DEFAULT_LOOKUPS
    seed: int = DEFAULT_SEED
    hours: float | None = None
    start: Start = Start.PROTOCOL
    wire: bool = False
    variant: str = ""
    sabotage: str = ""

    def __post_init__(self) -> None:
        if self.nodes < 2:
            raise ConfigError(f"--nodes is {self.nodes}; a swarm has 2 or more")
        if self.nodes > MAX_HOSTS:
            raise ConfigError(f"--nodes is {self.nodes}; a virtual network has room for {MAX_HOSTS}")
        if self.lookups < 1:
            raise ConfigError(f"--lookups is {self.lookups}; it has to be 1 or more")
        if self.seed < 0:
            raise ConfigError(f"--seed is {self.seed}; it has to be 0 or more, for -1 would be the same chance as 1")
        if self.hours is not None and not 0 < self.hours <= MAX_HOURS:  # refuses nan too
            raise ConfigError(f"--hours is {self.hours}; it has to be more than 0 and at most {MAX_HOURS}")

    def arguments(self) -> str:
        """What to type after the name of a scenario for the same run."""
        words = [f"--nodes {self.nodes} --lookups {self.lookups} --seed {self.seed}"]
        if self.hours is not None:
            words.append(f"--hours {self.hours}")
        if self.start is not Start.PROTOCOL:
            words.append(f"--start {self.start.value}")
        if self.wire:
            words.append("--wire")
        if self.variant:
            words.append(f"--variant {self.variant}")
        if self.sabotage:
            words.append(f"--sabotage {self.sabotage}")
        return " ".join(words)

    def as_map(self) -> dict[str, int | float | str | bool | None]:
        """The same as JSON has it."""
        return {
            "nodes": self.nodes,
            "lookups": self.lookups,
            "seed": self.seed,
            "hours": None if self.hours is None else float(self.hours),
            "start": self.start.value,
            "wire": self.wire,
            "variant": self.variant,
            "sabotage": self.sabotage,
        }


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a scenario saw, at its end or so far. `hops` has one entry for each lookup that found its target.

    `notes` says what went wrong, one line each, MAX_NOTES of them at most; `figures` holds numbers that only this
    scenario has. It is passed when `required_success` of the lookups succeeded: the share, 0 to 1. What must never
    happen is raised instead.
    """

    lookups: int
    successes: int
    hops: Sequence[int] = field(repr=False)
    notes: Sequence[str] = ()
    required_success: float = 1.0
    figures: Mapping[str, int | float | str] = field(default_factory=dict)

    @property
    def success(self) -> float | None:
        """The share of lookups that succeeded; None without any."""
        return self.successes / self.lookups if self.lookups else None

    @property
    def is_passed(self) -> bool:
        return self.success is None or self.success >= self.required_success


class Progress(Protocol):
    """Told now and then by a scenario: the phase, how much of it is done, of how much, and the outcome so far.

    The outcome that was told last is what an interrupted run is reported with.
    """

    def __call__(self, phase: str, done: int, of: int, outcome: Outcome | None = None, /) -> None: ...


@dataclass(frozen=True, slots=True)
class Ended:
    """A run that is over: what it saw, and why it ended before its end, if it did.

    `trace` has the newest things that happened, oldest first, and is empty for a run that went as it should. `samples`
    are what pictures are made of; None of an engine that keeps none.
    """

    outcome: Outcome
    digest: str
    messages: int
    virtual_s: float
    error: Exception | None = None
    is_interrupted: bool = False
    trace: Sequence[str] = field(default=(), repr=False)
    samples: Samples | None = field(default=None, repr=False)

    @property
    def is_passed(self) -> bool:
        return self.error is None and not self.is_interrupted and self.outcome.is_passed


class Playable(Protocol):
    """What the command runs. Its engine is its own affair; it has to keep one digest for one map of settings."""

    @property
    def name(self) -> str: ...

    @property
    def summary(self) -> str: ...

    def run(self, settings: Settings, watch: Watch) -> Ended:
        """Live through it. What fails is in the answer, not raised; `watch` is told, and may end it early."""
        ...


Play: TypeAlias = Callable[[World, Settings, Progress], Awaitable[Outcome]]


@dataclass(frozen=True, slots=True)
class Scenario:
    """One way for a world to live, or several alike: `variants` has what each is by name, the usual one first.

    `sabotages` are the defences that its nodes can be made to go without; `config` is how its nodes are set.
    """

    name: str
    summary: str
    play: Play
    variants: Mapping[str, str] = field(default_factory=dict)
    sabotages: Sequence[str] = ()
    config: DHTConfig | None = None

    def check(self, settings: Settings) -> None:
        """Raises ConfigError for settings that are not for this scenario."""
        _check_word("--variant", settings.variant, tuple(self.variants), self.name)
        _check_word("--sabotage", settings.sabotage, tuple(self.sabotages), self.name)

    def new_world(self, loop: VirtualLoop, settings: Settings) -> World:
        """The world it is played in."""
        return World(loop, seed=settings.seed, start=settings.start, wire=settings.wire, config=self.config)

    def run(self, settings: Settings, watch: Watch) -> Ended:
        """Play it on a virtual loop of its own."""
        self.check(settings)
        life = _Life(self, settings, watch)
        error: Exception | None = None
        try:
            virtual_loop.run(life.live())
        except Exception as failure:
            # An interrupted loop raises because its main task did not end. Whatever else breaks then is no verdict.
            error = None if watch.is_interrupted else failure
        return life.ended(error)


def _check_word(option: str, word: str, known: Sequence[str], name: str) -> None:
    if word and word not in known:
        raise ConfigError(f"{name} has no {option} {word}; it has {', '.join(known) or 'none'}")


class _Life:
    """One run of a scenario while it goes."""

    def __init__(self, scenario: Scenario, settings: Settings, watch: Watch) -> None:
        self._scenario = scenario
        self._settings = settings
        self._watch = watch
        self._digest = TracingDigest()
        self._samples: Samples | None = None
        self._loop: VirtualLoop | None = None
        self._outcome = Outcome(0, 0, ())
        self._is_complete = False

    async def live(self) -> None:
        self._loop = loop = cast("VirtualLoop", asyncio.get_running_loop())
        self._watch.on_interrupt(loop.stop)
        world = self._scenario.new_world(loop, self._settings)
        world.digest = world.network.digest = self._digest  # nothing has happened yet that it could miss
        self._digest.on_fault = world.samples.add_fault
        self._samples = world.samples
        self._samples.arrivals = self._digest.arrivals
        try:
            self._outcome = await self._scenario.play(world, self._settings, self._on_progress)
        finally:
            await world.stop()
        self._is_complete = True

    def ended(self, error: Exception | None) -> Ended:
        is_interrupted = self._watch.is_interrupted and not self._is_complete
        ended = Ended(
            outcome=self._outcome,
            digest=self._digest.hexdigest(),
            messages=self._digest.message_count,
            virtual_s=0.0 if self._loop is None else self._loop.time(),
            error=error,
            is_interrupted=is_interrupted,
            samples=self._samples,
        )
        if ended.is_passed or is_interrupted:
            return ended
        return dataclasses.replace(ended, trace=tuple(self._digest.lines()))

    def _on_progress(self, phase: str, done: int, of: int, outcome: Outcome | None = None, /) -> None:
        if outcome is not None:
            self._outcome = outcome
        assert self._loop is not None
        step = Step(phase, done, of, self._loop.time(), self._digest.message_count, self._outcome.success)
        self._watch.tell(step)
