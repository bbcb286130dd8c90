"""What is wanted of a call, and whether it was seen. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

OURS = "this release"
OUR_CLIENT = "this release, Client"
OURS_FAST = "this release, uvloop"
BARE = "bare Protocol"
GRPC = "grpc.aio with TLS"
ONE, MANY, LARGE, FIRST = (
    "one connection, one call at a time",
    "one connection, 64 calls in flight",
    "one connection, an echo of 1 MiB",
    "connect and the first call",
)


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured: a row for each load and system, and the memory of an idle session."""

    rows: Mapping[tuple[str, str], Mapping[str, Any]]
    bytes_per_session: float

    def of(self, load: str, system: str, name: str) -> float | None:
        """One figure; None where it was not measured."""
        return self.rows.get((load, system), {}).get(name)


@dataclass(frozen=True, slots=True)
class Verdict:
    """One target, and what was seen."""

    text: str
    seen: float
    bound: float
    is_met: bool

    def __str__(self) -> str:
        return f"Target {'met' if self.is_met else 'MISSED'}: {self.text}: {self.seen:.2f} (wanted {self.bound:g})."


@dataclass(frozen=True, slots=True)
class Target:
    """A figure, and the most or the least that it may be."""

    text: str
    figure: Callable[[Figures], float | None]
    bound: float
    is_most: bool = True

    def judge(self, figures: Figures) -> Verdict | None:
        """None where the figure was not measured."""
        seen = self.figure(figures)
        if seen is None:
            return None
        return Verdict(self.text, seen, self.bound, seen <= self.bound if self.is_most else seen >= self.bound)


def _ratio_of(load: str, system: str, name: str) -> Callable[[Figures], float | None]:
    return lambda figures: figures.of(load, system, name)


def _first_call_ms(figures: Figures) -> float | None:
    us = figures.of(FIRST, OUR_CLIENT, "cpu_us_per_call")
    return None if us is None else us / 1000


def _session_kib(figures: Figures) -> float:
    return figures.bytes_per_session / 1024


TARGETS = (
    Target("CPU of one call at a time, x of bare", _ratio_of(ONE, OURS, "cpu_of_bare"), 2.0),
    Target("CPU of 64 calls in flight, x of bare", _ratio_of(MANY, OURS, "cpu_of_bare"), 2.0),
    Target("rate of an echo of 1 MiB, x of bare", _ratio_of(LARGE, OURS, "rate_of_bare"), 0.5, is_most=False),
    Target("connect and first call, both ends, ms of CPU", _first_call_ms, 1.5),
    Target("memory of an idle session, KiB of the server", _session_kib, 14.0),
    Target("CPU of one call with uvloop, x of bare without", _ratio_of(ONE, OURS_FAST, "cpu_of_bare"), 1.6),
    Target("gRPC's CPU of one call, x of ours", _ratio_of(ONE, GRPC, "cpu_of_ours"), 4.0, is_most=False),
    Target("gRPC's CPU of 64 in flight, x of ours", _ratio_of(MANY, GRPC, "cpu_of_ours"), 20.0, is_most=False),
    Target("gRPC's rate of 1 MiB, x of ours", _ratio_of(LARGE, GRPC, "rate_of_ours"), 1.0),
)
