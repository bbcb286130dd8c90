"""What pictures are made of: the numbers and words that are drawn, ready to be drawn. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, TypeAlias


class Share(NamedTuple):
    """A point with its 95 % interval: `y` is between `low` and `high`."""

    x: float
    low: float
    y: float
    high: float


@dataclass(frozen=True, slots=True)
class HopBars:
    """How many lookups took so many hops, beside the mean and what a model says of the mean."""

    counts: Sequence[tuple[int, int]]  # hops, lookups
    mean: float
    model_mean: float
    model_label: str


@dataclass(frozen=True, slots=True)
class Curve:
    """The share of lookups that were over after so many seconds. Both ascend."""

    label: str
    seconds: Sequence[float]
    shares: Sequence[float]


@dataclass(frozen=True, slots=True)
class Latencies:
    """A curve for each kind of lookup."""

    curves: Sequence[Curve]
    is_log: bool


class Step(NamedTuple):
    """A piece of time, and the share of it."""

    begin: float
    end: float
    share: Share


@dataclass(frozen=True, slots=True)
class Lapse:
    """Success over time, and beneath it the faults, in bins of `width`. Times are in `unit`.

    `faults` has for each kind when it happened and how often; `marks` are the bins with faults, if they are few.
    """

    unit: str
    width: float
    begin: float
    end: float
    steps: Sequence[Step]
    faults: Sequence[tuple[str, Sequence[tuple[float, int]]]]
    marks: Sequence[float]


@dataclass(frozen=True, slots=True)
class Loads:
    """How many nodes were given how many messages: `counts` has one number for each step between two `edges`."""

    edges: Sequence[float]
    counts: Sequence[int]
    median: float
    p99: float
    most: float
    is_log: bool


@dataclass(frozen=True, slots=True)
class Responses:
    """How something answers to a parameter of the runs: one series of points for each of `series`, by its label.

    `model` is a line to be seen beside them, empty where there is none.
    """

    x_label: str
    y_label: str
    is_share_x: bool
    is_share_y: bool
    is_log_x: bool
    series: Sequence[tuple[str, Sequence[Share]]]
    model: Sequence[tuple[float, float]] = ()
    model_label: str = ""


class Ending(Enum):
    """What became of a request."""

    ANSWERED = "answered"
    FAILED = "failed"
    UNFINISHED = "still open at the end"


@dataclass(frozen=True, slots=True)
class Request:
    """One of a lookup. `turn` is where on the circle, 0 to 1; times are ms after the first.

    `hop` is its depth; `is_on_path` says that it led to the nearest that answered.
    """

    turn: float
    hop: int
    asked_ms: float
    ended_ms: float
    ending: Ending
    is_on_path: bool


@dataclass(frozen=True, slots=True)
class KeyCircle:
    """The key space as a circle, and one lookup on it. All places are turns, 0 to 1, by the id's part of the space.

    `path` has those who led to the nearest one, the searcher aside, each with its hop; `requests` are all, as they were
    asked. `lens` is how far from the target, in turns, a close look at it has to reach to show the nearest.
    """

    members: Sequence[float]
    searcher: float
    target: float
    nearest: Sequence[float]
    requests: Sequence[Request]
    path: Sequence[tuple[int, float]]
    lens: float


Drawing: TypeAlias = HopBars | Latencies | Lapse | Loads | Responses | KeyCircle


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture: the name of its file, its title, of how much it is, what it tells whoever does not see it, and what
    is written beneath it.
    """

    name: str
    title: str
    size: str
    alt: str
    caption: str
    drawing: Drawing


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A picture that is not drawn, and why."""

    title: str
    why: str
