"""One encrypted session of this release, both ends on event loops of uvloop."""

from __future__ import annotations

from session import connect, serve  # noqa: F401  # pyrefly: ignore[missing-import]
from uvloop import new_event_loop

loop_factory = new_event_loop
