"""How long messages take from one host to another.

A model is asked for every message. Two hosts keep the distance that they have; what differs from message to message is
added to it and comes from a Random of the model's own, so that one seed gives one run.
"""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Protocol

from synapse_p2p.exceptions import ConfigError
from synapse_p2p.identity import NodeID

MAX_REMEMBERED_PAIRS = 2**16
"""Pairs of hosts whose distance is kept, some 20 MiB; that of others is the same when it is worked out again."""
_SPREAD = NormalDist()


class Latency(Protocol):
    """How long messages take. A model that draws has a Random of its own."""

    def __call__(self, source: NodeID, target: NodeID) -> float:
        """Seconds one way, of the next message from `source` to `target`."""
        ...


@dataclass(frozen=True, slots=True)
class ConstantLatency:
    """Everybody is equally far from everybody."""

    one_way_s: float = 0.04  # 80 ms there and back: the median between hosts of the Internet, roughly

    def __call__(self, source: NodeID, target: NodeID) -> float:
        return self.one_way_s


class LogNormalLatency:
    """Every pair of hosts has a distance of its own, the same both ways: some are near, and few very far.

    Half of the pairs are within `median_s`, two thirds within a factor of e^`sigma` of it. A message takes up to
    `jitter` of that longer, every value as likely. Measured round trips between hosts of the Internet fit such a
    distribution with sigma from 0.5 to 0.8.
    """

    def __init__(self, seed: int, *, median_s: float = 0.04, sigma: float = 0.5, jitter: float = 0.1) -> None:
        _refuse_negative(median_s=median_s, sigma=sigma, jitter=jitter)
        self._rng = random.Random(seed)
        self._key = _key_of(seed)
        self._median_s = median_s
        self._sigma = sigma
        self._jitter = jitter
        self._base_s = lru_cache(MAX_REMEMBERED_PAIRS)(self._work_out_base_s)

    def __call__(self, source: NodeID, target: NodeID) -> float:
        base_s = self._base_s(source, target) if source < target else self._base_s(target, source)
        return base_s * (1 + self._jitter * self._rng.random())

    def _work_out_base_s(self, smaller: NodeID, larger: NodeID) -> float:
        (share,) = _shares(self._key, smaller + larger, 1)
        return self._median_s * math.exp(self._sigma * _SPREAD.inv_cdf(share))


class CoordinateLatency:
    """Hosts live in a square of one unit a side; far ones are far for everybody, as in the Internet.

    One way takes the distance in units times `s_per_unit`, and at each end the host's own access to the network: up to
    `max_access_s`, every value as likely, the same for all its messages. A message takes up to `jitter` of all that
    longer. A host's place comes from the seed and its id, unless `place` puts it somewhere.
    """

    def __init__(self, seed: int, *, s_per_unit: float = 0.06, max_access_s: float = 0.01, jitter: float = 0.1) -> None:
        _refuse_negative(s_per_unit=s_per_unit, max_access_s=max_access_s, jitter=jitter)
        self._rng = random.Random(seed)
        self._key = _key_of(seed)
        self._s_per_unit = s_per_unit
        self._max_access_s = max_access_s
        self._jitter = jitter
        self._places: dict[NodeID, tuple[float, float, float]] = {}  # x, y, access in seconds; of hosts that talked

    def place(self, node_id: NodeID, x: float, y: float, *, access_s: float = 0.0) -> None:
        """Put a host there; coordinates may lie outside of the square."""
        self._places[node_id] = (x, y, access_s)

    def __call__(self, source: NodeID, target: NodeID) -> float:
        x, y, access_s = self._places.get(source) or self._find_place(source)
        other_x, other_y, other_access_s = self._places.get(target) or self._find_place(target)
        # The two accesses first: floats added in another order would differ by the direction.
        base_s = math.hypot(x - other_x, y - other_y) * self._s_per_unit + (access_s + other_access_s)
        return base_s * (1 + self._jitter * self._rng.random())

    def _find_place(self, node_id: NodeID) -> tuple[float, float, float]:
        x, y, share = _shares(self._key, node_id, 3)
        found = self._places[node_id] = (x, y, share * self._max_access_s)
        return found


def _key_of(seed: int) -> bytes:
    return hashlib.sha256(str(seed).encode()).digest()


def _shares(key: bytes, subject: bytes, count: int) -> list[float]:
    """`count` numbers between 0 and 1, without both, that depend on key and subject alone.

    Not drawn from a Random: then a host's place would depend on who talked before.
    """
    digest = hashlib.blake2b(subject, key=key, digest_size=8 * count).digest()
    steps = (int.from_bytes(digest[at : at + 8], "big") >> 11 for at in range(0, 8 * count, 8))
    return [(step + 0.5) / 2**53 for step in steps]


def _refuse_negative(**values: float) -> None:
    for name, value in values.items():
        if not value >= 0:  # so put, it refuses NaN as well
            raise ConfigError(f"{name} is {value}; it has to be 0 or more")
