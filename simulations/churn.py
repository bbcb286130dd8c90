"""How long nodes stay: the distributions that were measured in the wild, and the one of the textbooks.

Pure. Source: Stutzbach and Rejaie, "Understanding Churn in Peer-to-Peer Networks", IMC 2006: sessions are Weibull or
log-normal, most are short, and most peers that are present have been there for long.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from random import Random

MINUTE_S = 60.0


class SessionLength(Protocol):
    """How long a node stays."""

    def draw(self, rng: Random) -> float:
        """Seconds of one session."""
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

    @property
    def median_s(self) -> float:
        return self.scale_s * math.log(2) ** (1 / self.shape)


@dataclass(frozen=True, slots=True)
class Exponential:
    """Whoever has stayed long is as likely to go as a newcomer: the worst case for a routing table that trusts age."""

    half_life_s: float

    def draw(self, rng: Random) -> float:
        return rng.expovariate(math.log(2) / self.half_life_s)

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


BITTORRENT = Weibull(shape=0.40, scale_s=42 * MINUTE_S)
"""The hardest of the measured swarms: a fifth of the sessions end within a minute, half within 17."""
