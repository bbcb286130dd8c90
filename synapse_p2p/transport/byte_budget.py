"""The bytes that all sessions of this process hold for others: received and not taken, queued, written and not read.

Each session has bounds of its own; many at their bounds would still be too much. Owns the one count of the process.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from synapse_p2p.config import KIB, MIB

HolderT = TypeVar("HolderT")

FREE_BYTES = 256 * KIB  # of each session, which are not counted: so none is kept from what little it needs
MAX_PROCESS_BYTES = 256 * MIB  # beyond those


class ByteBudget:
    """What sessions hold beyond FREE_BYTES. Loops of several threads may share it.

    A session that is gone counts no more, whether it said so or not.
    """

    def __init__(self, max_bytes: int = MAX_PROCESS_BYTES) -> None:
        self.is_over = False
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._held: weakref.WeakKeyDictionary[object, int] = weakref.WeakKeyDictionary()
        self._waiting: weakref.WeakKeyDictionary[object, Callable[[Any], object]] = weakref.WeakKeyDictionary()

    def note(self, holder: object, held_bytes: int) -> None:
        """From now on `holder` holds so many bytes in all. Cost: a step for each that holds much."""
        woken: list[tuple[object, Callable[[Any], object]]] = []
        with self._lock:
            if held_bytes > FREE_BYTES:
                self._held[holder] = held_bytes - FREE_BYTES
            else:
                self._held.pop(holder, None)
                self._waiting.pop(holder, None)
            self.is_over = sum(self._held.values()) > self._max_bytes
            if not self.is_over:
                woken = list(self._waiting.items())
                self._waiting.clear()
        for waiting, wake in woken:
            wake(waiting)

    def has_to_wait(self, holder: HolderT, wake: Callable[[HolderT], object]) -> bool:
        """Whether this one holds a part of what is too much; `wake(holder)` is called once when that is over, in any
        thread. It must not hold the holder itself, as a bound method does: that would keep it here.
        """
        with self._lock:
            if not self.is_over or holder not in self._held:
                return False
            self._waiting[holder] = wake
            return True


PROCESS = ByteBudget()
