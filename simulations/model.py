"""What a model of the overlay without its code says, for runs of the code to be seen beside it. Pure."""

from __future__ import annotations

import math

MODEL_K = 20
MODEL_MIN_NODES = 1_000
"""The smallest network that the formula was fitted to; the largest had 10 million."""


def expected_hops(nodes: int) -> float:
    """The mean hops of a lookup in a network of this size whose tables an oracle filled, with k = MODEL_K."""
    return 0.38 + 0.149 * math.log2(nodes)
