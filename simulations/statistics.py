"""What figures of a sample say of what they are a sample of. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

Z_95 = 1.959964
"""Deviations of a normal distribution within which 95 % of it lie."""


def wilson_low(successes: int, trials: int, z: float = Z_95) -> float:
    """The lower end of the Wilson interval of a share; 0 without trials. Source: Wilson (1927)."""
    if trials == 0:
        return 0.0
    share, square = successes / trials, z * z
    centre = share + square / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + square / (4 * trials * trials))
    return max(0.0, (centre - spread) / (1 + square / trials))


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest of these values that at least a `share` of them do not exceed. Raises ValueError without any."""
    if not values:
        raise ValueError("a quantile of nothing")
    in_order = sorted(values)
    return in_order[max(0, math.ceil(share * len(in_order)) - 1)]
