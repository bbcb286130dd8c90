"""What a scenario is: a name, and a coroutine that makes a world live and says how it went."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from simulations.network import MAX_HOSTS
from simulations.virtual_loop import VirtualLoop
from simulations.world import World
from synapse_p2p.exceptions import ConfigError


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run is made of. The same settings give the same digest."""

    nodes: int
    lookups: int
    seed: int

    def __post_init__(self) -> None:
        if self.nodes < 2:
            raise ConfigError(f"--nodes is {self.nodes}; a swarm has 2 or more")
        if self.nodes > MAX_HOSTS:
            raise ConfigError(f"--nodes is {self.nodes}; a virtual network has room for {MAX_HOSTS}")
        if self.lookups < 1:
            raise ConfigError(f"--lookups is {self.lookups}; it has to be 1 or more")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a scenario saw. `hops` has one entry for each lookup that found its target."""

    lookups: int
    successes: int
    hops: Sequence[int] = field(repr=False)
    notes: tuple[str, ...] = ()


Progress = Callable[[str, int, int], None]
"""Told now and then: the phase, how much of it is done, of how much."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One way for a world to live."""

    name: str
    summary: str
    play: Callable[[World, Settings, Progress], Awaitable[Outcome]]

    def new_world(self, loop: VirtualLoop, settings: Settings) -> World:
        """The world it is played in."""
        return World(loop, seed=settings.seed)
