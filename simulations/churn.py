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

    def survival(self, t_s: float) -> float:
        """The share of sessions that are longer."""
        return math.exp(-((t_s / self.scale_s) ** self.shape))

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


def stale_share(lengths: Weibull, *, lease_s: float, renew_s: float, first_s: float = 0.0) -> float:
    """Of the records that are held, the share whose owner has crashed: nobody says goodbye, and the number of owners
    stays the same.

    An owner publishes `first_s` after it came and then every `renew_s`; a record lives for `lease_s`. Let S(t) be the
    share of sessions longer than t, L the length of one. While its owner lives there is one record, for max(0, L - f)
    seconds, f being `first_s`: in the mean A = integral of S from f on. When the owner crashes, its record lives on for
    lease - ((L - f) mod renew), if L > f: in the mean

        D = lease S(f) - A + renew (S(f + renew) + S(f + 2 renew) + ...),

    for x mod r = x - r floor(x / r), and the mean of floor(x / r) is the sum of the chances that x passes r, 2r, ...
    Owners come at an even rate, so by Little's law (1961) the records of the living and of the dead are as A to D, and
    the share is D / (A + D). Weibull's A is that of the incomplete gamma function; here it is summed up in steps.
    """
    step_s = renew_s / STEPS_PER_RENEWAL
    alive_s, passed = 0.0, 0.0
    number = 0
    while (longer := lengths.survival(first_s + (number + 0.5) * step_s)) > NEGLIGIBLE:
        alive_s += longer * step_s
        number += 1
        if number % STEPS_PER_RENEWAL == 0:
            passed += lengths.survival(first_s + number * step_s)
    dead_s = lease_s * lengths.survival(first_s) - alive_s + renew_s * passed
    return dead_s / (alive_s + dead_s)


STEPS_PER_RENEWAL = 64
NEGLIGIBLE = 1e-7
"""A share of sessions that are so long that they may be left out: with all of them together it is a second."""

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
