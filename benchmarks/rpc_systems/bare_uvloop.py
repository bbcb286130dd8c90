"""The limit on event loops of uvloop: these save of asyncio's own code, and a bare Protocol has little besides."""

from __future__ import annotations

from bare import connect, serve  # noqa: F401  # pyrefly: ignore[missing-import]
from uvloop import new_event_loop

loop_factory = new_event_loop
