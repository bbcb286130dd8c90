"""What the figures of a swarm are called, what is wanted of ours, and how a comparison reads. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from statistics import median
from typing import TypeAlias

OURS = "synapse"
KADEMLIA = "kademlia"
LIBTORRENT = "libtorrent"

Round: TypeAlias = Mapping[str, float]
"""One swarm of one system: figures by name. A figure that a system does not have is not in it."""
Rounds: TypeAlias = Mapping[str, Sequence[Round]]
"""The rounds of each system at one number of nodes, in step: the same index ran at about the same time."""

LABELS = {
    "join_s": "join of all, one after another, s",
    "join_cpu_s": "its CPU until quiet, s",
    "handshakes_per_join": "handshakes per join",
    "handshake_cpu_ms": "CPU of a handshake, both ends, ms",
    "join_rest_cpu_s": "join CPU without handshakes, s",
    "memory_kib": "memory per node, KiB",
    "put_mean_ms": "put, mean, ms",
    "put_p50_ms": "put, p50, ms",
    "put_p99_ms": "put, p99, ms",
    "put_cpu_ms": "put, CPU of all nodes, ms",
    "put_requests": "requests per put",
    "put_handshakes": "handshakes per put",
    "put_success": "puts kept, %",
    "first_get_mean_ms": "first get of a node, mean, ms",
    "first_get_requests": "requests per first get",
    "get_mean_ms": "get, mean, ms",
    "get_p50_ms": "get, p50, ms",
    "get_p99_ms": "get, p99, ms",
    "get_cpu_ms": "get, CPU of all nodes, ms",
    "get_requests": "requests per get",
    "get_handshakes": "handshakes per get",
    "get_success": "gets that found, %",
    "gets_per_s": "gets/s, 16 in flight",
    "fresh_mean_ms": "fresh get, mean, ms",
    "fresh_requests": "requests per fresh get",
    "fresh_success": "fresh gets that found, %",
    "miss_mean_ms": "miss, mean, ms",
    "miss_requests": "requests per miss",
    "killed_success": "30 % killed: gets that found, %",
    "killed_mean_ms": "30 % killed: get, mean, ms",
    "killed_p50_ms": "30 % killed: get, p50, ms",
    "killed_p99_ms": "30 % killed: get, p99, ms",
    "killed_requests": "30 % killed: requests per get",
}
COMPARED = (
    "join_s",
    "join_rest_cpu_s",
    "memory_kib",
    "put_mean_ms",
    "put_cpu_ms",
    "get_mean_ms",
    "get_cpu_ms",
    "gets_per_s",
    "killed_mean_ms",
)


class Outcome(Enum):
    """What became of a limit. One that could not be measured was not met either."""

    MET = "pass"
    MISSED = "MISS"
    NOT_MEASURED = "NOT MEASURED"


@dataclass(frozen=True, slots=True)
class Limit:
    """What is wanted of a figure of ours: at most `bound`, or that many times the same of another system.

    `at` is the number of nodes at which it is wanted; None for every. With `is_least` at least `bound` is wanted, in
    the worst round; all others are medians of the rounds.
    """

    figure: str
    bound: float
    of: str | None = None
    at: int | None = None
    is_least: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """A limit, beside what was measured; None where it was not."""

    limit: Limit
    nodes: int
    measured: float | None

    @property
    def outcome(self) -> Outcome:
        if self.measured is None:
            return Outcome.NOT_MEASURED
        is_met = self.measured >= self.limit.bound if self.limit.is_least else self.measured <= self.limit.bound
        return Outcome.MET if is_met else Outcome.MISSED

    def __str__(self) -> str:
        limit = self.limit
        of = f" times {limit.of}'s" if limit.of else ""
        measured = "" if self.measured is None else f"{number(self.measured)}{of}, "
        wanted = f"{'at least' if limit.is_least else 'at most'} {number(limit.bound)}{of}"
        return f"{self.outcome.value}: {self.nodes} nodes: {LABELS[limit.figure]}: {measured}wanted {wanted}"


LIMITS = (
    Limit("get_mean_ms", 1.0, of=KADEMLIA),
    Limit("get_mean_ms", 3.0, of=LIBTORRENT),
    Limit("get_requests", 3.0),
    Limit("fresh_requests", 5.0),
    Limit("miss_requests", 25.0, at=100),
    Limit("put_requests", 28.0, at=100),
    Limit("killed_success", 100.0, is_least=True),
    Limit("killed_mean_ms", 50.0),
    Limit("join_rest_cpu_s", 10.0, of=KADEMLIA, at=100),
)


def completed(figures: Round) -> Round:
    """With the join's CPU less that of its handshakes, which a system that encrypts nothing does not have."""
    # Each of a swarm's nodes joined once, so handshakes per join, times the nodes, are all of them.
    per_swarm_s = (
        figures.get("handshakes_per_join", 0.0) * figures["nodes"] * figures.get("handshake_cpu_ms", 0.0) / 1e3
    )
    return {**figures, "join_rest_cpu_s": figures["join_cpu_s"] - per_swarm_s}


def ratio(rounds: Rounds, figure: str, other: str) -> float | None:
    """The median of the rounds' ratios, ours to another's; None where a side was not measured."""
    pairs = zip(rounds.get(OURS, ()), rounds.get(other, ()), strict=False)
    ratios = [a[figure] / b[figure] for a, b in pairs if figure in a and b.get(figure)]
    return median(ratios) if ratios else None


def verdicts(rounds: Rounds, nodes: int, limits: Sequence[Limit] = LIMITS) -> list[Verdict]:
    """Every limit that holds for this number of nodes."""
    return [Verdict(limit, nodes, _measured(rounds, limit)) for limit in limits if limit.at in (None, nodes)]


def _measured(rounds: Rounds, limit: Limit) -> float | None:
    if limit.of is not None:
        return ratio(rounds, limit.figure, limit.of)
    values = _values(rounds.get(OURS, ()), limit.figure)
    if not values:
        return None
    return min(values) if limit.is_least else median(values)


def table(rounds: Rounds, absent: Mapping[str, str]) -> str:
    """A Markdown table: a row for each figure, a column for each system, medians with their range.

    `absent` says why a system has no column of figures.
    """
    names = list(rounds)
    rows = [["figure", *names], ["---", *("---:" for _ in names)]]
    for figure, label in LABELS.items():
        cells = [_cell(_values(rounds[name], figure)) for name in names]
        if any(cells):
            rows.append([label, *(cell or "-" for cell in cells)])
    text = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    reasons = [f"{name}: not measured: {reason}" for name, reason in absent.items()]
    return "\n".join([text, *([""] if reasons else []), *reasons])


def ratios_table(rounds: Rounds) -> str:
    """Ours as a multiple of the others'; empty where ours was not measured."""
    others = [name for name in rounds if name != OURS and rounds[name]]
    if not rounds.get(OURS) or not others:
        return ""
    rows = [["ours, as a multiple of", *others], ["---", *("---:" for _ in others)]]
    for figure in COMPARED:
        found = [ratio(rounds, figure, other) for other in others]
        rows.append([LABELS[figure], *("-" if value is None else number(value) for value in found)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def number(value: float) -> str:
    """Three digits that say something, and no more."""
    magnitude = abs(value)
    digits = 0 if magnitude >= 100 else 1 if magnitude >= 10 else 2
    return f"{value:,.{digits}f}"


def _values(own: Sequence[Round], figure: str) -> list[float]:
    return [each[figure] for each in own if figure in each]


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    middle, low, high = (number(pick(values)) for pick in _PICKS)
    return middle if low == high else f"{middle} ({low} to {high})"


_PICKS: tuple[Callable[[Sequence[float]], float], ...] = (median, min, max)
