"""The clock and the chance of a process: the one file that reads the real ones.

Everything else is handed a Runtime, so that a simulation can hand it another.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from synapse_p2p.loop_witness import LoopWitness


@dataclass(frozen=True, slots=True)
class Runtime:
    """Where time and chance come from.

    `now` is monotonic seconds, for timeouts; `unix_now` wall seconds, for signed times alone. `rng` never makes a key;
    `token_bytes(n)` does. `watch_loop` begins to watch the event loop that it is called in, whose beat is due every so
    many seconds; None where time stands still while a function runs.
    """

    now: Callable[[], float]
    unix_now: Callable[[], float]
    rng: random.Random
    token_bytes: Callable[[int], bytes]
    watch_loop: Callable[[float], LoopWitness] | None = None


def system_runtime() -> Runtime:
    """The real clock and the operating system's randomness."""
    return Runtime(
        now=time.monotonic,
        unix_now=time.time,
        rng=random.Random(secrets.randbits(64)),
        token_bytes=secrets.token_bytes,
        watch_loop=LoopWitness,
    )
