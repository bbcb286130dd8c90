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


def chi_square_p(statistic: float, degrees: int) -> float:
    """How likely chance alone brings a chi-square statistic this large or larger: Q(degrees / 2, statistic / 2).

    Q is the regularized upper incomplete gamma function. Raises ValueError for degrees under 1 or a statistic under 0.
    Source: Abramowitz and Stegun (1964), 26.4.19; its series 6.5.29 where the statistic is small, and the continued
    fraction 6.5.31, evaluated as Lentz does, where it is large. Right to 12 digits.
    """
    if degrees < 1 or statistic < 0:
        raise ValueError(f"chi-square has 1 degree or more and is not negative, not {degrees} and {statistic}")
    a, x = degrees / 2, statistic / 2
    if not x:
        return 1.0
    scale = math.exp(a * math.log(x) - x - math.lgamma(a))
    return max(0.0, 1.0 - scale * _gamma_series(a, x)) if x < a + 1 else scale * _gamma_fraction(a, x)


def pearson(counts: Sequence[int], expected: Sequence[float]) -> float:
    """The chi-square statistic of what was counted in each group against what was to be expected there."""
    return sum((count - mean) ** 2 / mean for count, mean in zip(counts, expected, strict=True))


_PRECISION = 1e-15
_TINY = 1e-300  # in place of a 0 that would be divided by


def _gamma_series(a: float, x: float) -> float:
    term = total = 1 / a
    n = a
    while term > total * _PRECISION:
        n += 1
        term *= x / n
        total += term
    return total


def _gamma_fraction(a: float, x: float) -> float:
    b = x + 1 - a
    c = 1 / _TINY
    d = 1 / b
    fraction = d
    n = 1
    while True:
        numerator = -n * (n - a)
        b += 2
        d = 1 / (numerator * d + b or _TINY)
        c = b + numerator / c or _TINY
        fraction *= c * d
        if abs(c * d - 1) < _PRECISION:
            return fraction
        n += 1
