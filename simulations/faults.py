"""Faults as values, and a timetable of them drawn from a seed.

Pure. What a fault does to a world is in `fault_player.py`. Hosts are numbers, 0 to the count of hosts; times are
virtual seconds from the beginning of the timetable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from synapse_p2p.exceptions import ConfigError

if TYPE_CHECKING:
    from random import Random

MAX_PLANNED_FAULTS = 100_000
"""The most faults of a timetable; a year of the highest rate would fill the memory."""
MAX_SKEW_S = 60.0
"""How wrong a wall clock may be: two hosts then differ by no more than twice that, and believe each other's records."""


@dataclass(frozen=True, slots=True)
class Crash:
    """A process dies and tells nobody."""

    host: int


@dataclass(frozen=True, slots=True)
class Restart:
    """A process comes up again under its key: with what its store held, or with nothing."""

    host: int
    with_state: bool


@dataclass(frozen=True, slots=True)
class Freeze:
    """A process stands still, as under SIGSTOP: what arrives waits until it goes on."""

    host: int
    duration_s: float


@dataclass(frozen=True, slots=True)
class LoopStall:
    """Something blocks a process' event loop: what arrives, and what it would send, is late by the rest of it."""

    host: int
    duration_s: float


@dataclass(frozen=True, slots=True)
class Suspend:
    """A machine sleeps: as frozen, and its monotonic clock has stood still while the wall clock ran ahead."""

    host: int
    duration_s: float


@dataclass(frozen=True, slots=True)
class ClockSkew:
    """A host's wall clock is wrong by so many seconds from now on; a negative number is behind."""

    host: int
    skew_s: float


@dataclass(frozen=True, slots=True)
class Partition:
    """Nothing gets from `cut` to all others, nor back; with `one_way` what others send still gets in."""

    cut: tuple[int, ...]
    one_way: bool
    duration_s: float


@dataclass(frozen=True, slots=True)
class Loss:
    """This share of all messages, 0 to 1, is lost on the way, and sent again."""

    share: float
    duration_s: float


Fault: TypeAlias = Crash | Restart | Freeze | LoopStall | Suspend | ClockSkew | Partition | Loss


@dataclass(frozen=True, slots=True)
class FaultSpec:
    """How bad it may get. How often a kind comes is drawn from the seed: between never and `max_per_hour` of it.

    `max_per_hour` counts faults of one kind in the whole world. The durations are the longest that are drawn.
    """

    max_per_hour: float = 30.0
    max_down_s: float = 300.0  # between a crash and the restart after it
    max_pause_s: float = 60.0  # of a freeze, a stall, a suspend
    max_partition_s: float = 120.0
    max_loss_share: float = 0.3
    max_skew_s: float = MAX_SKEW_S  # either way

    def __post_init__(self) -> None:
        for name in ("max_per_hour", "max_down_s", "max_pause_s", "max_partition_s", "max_skew_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"FaultSpec.{name} is {getattr(self, name)}; it has to be above 0, and finite")
        if self.max_skew_s > MAX_SKEW_S:
            raise ConfigError(f"FaultSpec.max_skew_s is {self.max_skew_s}; it has to be at most {MAX_SKEW_S}")
        if not 0 < self.max_loss_share < 1:
            raise ConfigError(f"FaultSpec.max_loss_share is {self.max_loss_share}; it has to be between 0 and 1")


@dataclass(frozen=True, slots=True)
class PlannedFault:
    """A fault and when it happens."""

    at_s: float
    fault: Fault


def timetable(rng: Random, spec: FaultSpec, host_count: int, duration_s: float) -> list[PlannedFault]:
    """What goes wrong in `duration_s` seconds, in order of time. Host 0 neither crashes nor comes back.

    Everything is over by the end: each crash has its restart, each clock is set right, and nothing lasts longer.
    Raises ConfigError for fewer than 2 hosts, and for more than MAX_PLANNED_FAULTS. Cost: O(n log n) of the faults.
    """
    if host_count < 2:
        raise ConfigError(f"a world with faults has 2 hosts or more, not {host_count}")
    if spec.max_per_hour * len(_KINDS) * duration_s / 3600 > MAX_PLANNED_FAULTS:
        raise ConfigError(f"{duration_s:g} s at {spec.max_per_hour:g} faults per hour are too many to plan")
    planned: list[PlannedFault] = []
    for draw in _KINDS:
        per_hour = rng.uniform(0.0, spec.max_per_hour)
        at_s = rng.expovariate(per_hour / 3600)
        while at_s < duration_s:
            planned += draw(rng, spec, host_count, at_s, duration_s)
            at_s += rng.expovariate(per_hour / 3600)
    planned.sort(key=lambda fault: fault.at_s)  # stable: at one time, in the order in which they were drawn
    return planned


def _crash(rng: Random, spec: FaultSpec, host_count: int, at_s: float, end_s: float) -> list[PlannedFault]:
    host = rng.randrange(1, host_count)
    back_at_s = min(at_s + rng.uniform(0.0, spec.max_down_s), end_s)
    return [PlannedFault(at_s, Crash(host)), PlannedFault(back_at_s, Restart(host, rng.random() < 0.5))]


def _freeze(rng: Random, spec: FaultSpec, host_count: int, at_s: float, end_s: float) -> list[PlannedFault]:
    return [PlannedFault(at_s, Freeze(rng.randrange(host_count), _pause(rng, spec, at_s, end_s)))]


def _loop_stall(rng: Random, spec: FaultSpec, host_count: int, at_s: float, end_s: float) -> list[PlannedFault]:
    return [PlannedFault(at_s, LoopStall(rng.randrange(host_count), _pause(rng, spec, at_s, end_s)))]


def _suspend(rng: Random, spec: FaultSpec, host_count: int, at_s: float, end_s: float) -> list[PlannedFault]:
    return [PlannedFault(at_s, Suspend(rng.randrange(host_count), _pause(rng, spec, at_s, end_s)))]


def _clock_skew(rng: Random, spec: FaultSpec, host_count: int, at_s: float, end_s: float) -> list[PlannedFault]:
    host = rng.randrange(host_count)
    wrong = ClockSkew(host, rng.uniform(-spec.max_skew_s, spec.max_skew_s))
    return [PlannedFault(at_s, wrong), PlannedFault(rng.uniform(at_s, end_s), ClockSkew(host, 0.0))]


def _partition(rng: Random, spec: FaultSpec, host_count: int, at_s: float, end_s: float) -> list[PlannedFault]:
    cut = tuple(sorted(rng.sample(range(host_count), rng.randint(1, max(1, host_count // 2)))))
    duration_s = min(rng.uniform(0.0, spec.max_partition_s), end_s - at_s)
    return [PlannedFault(at_s, Partition(cut, rng.random() < 0.5, duration_s))]


def _loss(rng: Random, spec: FaultSpec, host_count: int, at_s: float, end_s: float) -> list[PlannedFault]:
    duration_s = min(rng.uniform(0.0, spec.max_partition_s), end_s - at_s)
    return [PlannedFault(at_s, Loss(rng.uniform(0.0, spec.max_loss_share), duration_s))]


def _pause(rng: Random, spec: FaultSpec, at_s: float, end_s: float) -> float:
    return min(rng.uniform(0.0, spec.max_pause_s), end_s - at_s)


_KINDS = (_crash, _freeze, _loop_stall, _suspend, _clock_skew, _partition, _loss)
