"""How long nodes stay, and who goes at one instant: what was measured in the wild, and the worst of the textbooks.

Pure. Source: Stutzbach and Rejaie, "Understanding Churn in Peer-to-Peer Networks", IMC 2006: sessions are Weibull or
log-normal, most are short, and most peers that are present have been there for long.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from random import Random

T = TypeVar("T")
MINUTE_S = 60.0


class SessionLength(Protocol):
    """How long a node stays."""

    def draw(self, rng: Random) -> float:
        """Seconds of one session."""
        ...

    def draw_rest(self, rng: Random) -> float:
        """Seconds that a node still stays that is met at a random moment of a swarm in equilibrium.

        It is met in a long session more likely than in a short one, and anywhere in it.
        """
        ...

    @property
    def median_s(self) -> float:
        """Half of all sessions are over after so many seconds."""
        ...


@dataclass(frozen=True, slots=True)
class Weibull:
    """With `shape` under 1 whoever has stayed long stays longer still. 37 % of sessions are longer than `scale_s`."""

    shape: float
    scale_s: float

    def draw(self, rng: Random) -> float:
        return rng.weibullvariate(self.scale_s, self.shape)

    def draw_rest(self, rng: Random) -> float:
        # Met with a density of t f(t): then (t / scale)^shape has a gamma distribution, not an exponential one.
        met_s = self.scale_s * rng.gammavariate(1 + 1 / self.shape, 1.0) ** (1 / self.shape)
        return met_s * rng.random()

    @property
    def median_s(self) -> float:
        return self.scale_s * math.log(2) ** (1 / self.shape)


@dataclass(frozen=True, slots=True)
class Exponential:
    """Whoever has stayed long is as likely to go as a newcomer: the worst case for a routing table that trusts age."""

    half_life_s: float

    def draw(self, rng: Random) -> float:
        return rng.expovariate(math.log(2) / self.half_life_s)

    def draw_rest(self, rng: Random) -> float:
        return self.draw(rng)

    @property
    def median_s(self) -> float:
        return self.half_life_s


@dataclass(frozen=True, slots=True)
class LogNormal:
    """The logarithm of a session is normal, with deviation `sigma`."""

    median_s: float
    sigma: float

    def draw(self, rng: Random) -> float:
        return rng.lognormvariate(math.log(self.median_s), self.sigma)

    def draw_rest(self, rng: Random) -> float:
        return rng.lognormvariate(math.log(self.median_s) + self.sigma**2, self.sigma) * rng.random()


BITTORRENT = Weibull(shape=0.40, scale_s=42 * MINUTE_S)
"""The hardest of the measured swarms: a fifth of the sessions end within a minute, half within 17."""

GAMES = Weibull(shape=0.59, scale_s=42 * MINUTE_S)
"""A milder one of the same study: a swarm that shares a game."""
FAST = Exponential(10 * MINUTE_S)
"""Nobody was measured to be so restless in all hours of a day; what stands this stands all that was."""
FASTEST = Exponential(2 * MINUTE_S)
"""Beyond every swarm that was measured: it shows where an overlay breaks."""


def struck(members: Sequence[T], share: float, rng: Random) -> list[T]:
    """Those that die at one instant, as when a data centre goes dark or a bad release is installed: a random share."""
    return rng.sample(members, round(share * len(members)))


def crowd_times(count: int, within_s: float, rng: Random) -> list[float]:
    """When each of a flash crowd arrives, ascending, in seconds from the first moment."""
    return sorted(rng.uniform(0.0, within_s) for _ in range(count))
