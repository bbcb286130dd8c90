"""What a function of one argument has said, remembered: for those that are asked of every contact in every answer.

Pure. `functools.lru_cache` keeps an order, and a hit writes to three places of its list, which in a large process are
in no cache: it takes three times as long as finding the answer does.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

A = TypeVar("A", bound=Hashable)
T = TypeVar("T")


class _Memo(dict[A, T]):
    """Answers by argument, at most `max_count`; at one more all are forgotten, and worked out again."""

    def __init__(self, function: Callable[[A], T], max_count: int) -> None:
        super().__init__()
        self._function = function
        self._max_count = max_count

    def __missing__(self, argument: A) -> T:
        answer = self._function(argument)
        if len(self) >= self._max_count:
            self.clear()
        self[argument] = answer
        return answer


def remembered(max_count: int) -> Callable[[Callable[[A], T]], Callable[[A], T]]:
    """A decorator for a function whose answer depends on its argument alone; so many answers are kept."""
    return lambda function: _Memo(function, max_count).__getitem__
