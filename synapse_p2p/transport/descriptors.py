"""What a process may have open, and what it does when it has it open already.

Owns the one line that the log gets for it. Where there is no `resource` module (Windows), nothing is known of a limit.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable

try:
    import resource
except ImportError:  # Windows has none
    resource = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)  # of the process, of the machine
REPEATS_LOGGED_EVERY_S = 60.0


def descriptor_limit() -> int | None:
    """How many files and sockets this process may have open now; None where that is unknown or unlimited."""
    if resource is None:
        return None
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def is_out_of_descriptors(error: BaseException | None) -> bool:
    """Whether a call failed because nothing more can be opened."""
    return isinstance(error, OSError) and error.errno in OUT_OF_DESCRIPTORS


class DescriptorShortage:
    """Frees a descriptor when there is none left, and says so at most once a minute.

    `drop_oldest` closes the oldest connection of somebody who has proved nothing; false when there is none.
    """

    def __init__(self, drop_oldest: Callable[[], bool], now: Callable[[], float]) -> None:
        self._drop_oldest = drop_oldest
        self._now = now
        self._logged_at: float | None = None
        self._untold_count = 0

    def make_room(self) -> bool:
        """Whether a descriptor is free once the loop has turned."""
        has_room = self._drop_oldest()
        self._untold_count += 1
        now = self._now()
        if self._logged_at is None or now - self._logged_at >= REPEATS_LOGGED_EVERY_S:
            logger.warning(
                "out of file descriptors (limit %s), %d times since the last such line: unproved connections are "
                "closed to make room; raise the limit (ulimit -n), or lower max_sessions",
                descriptor_limit() or "unknown",
                self._untold_count,
            )
            self._logged_at = now
            self._untold_count = 0
        return has_room
