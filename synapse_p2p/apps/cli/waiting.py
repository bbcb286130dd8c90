"""A command waits for what it has begun."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable
from typing import TypeVar

from synapse_p2p.apps.cli.exit_codes import ExitCode

T = TypeVar("T")


def wait(work: Awaitable[T]) -> T:
    """Its result; Ctrl-C ends it, and us."""

    async def run() -> T:
        return await work

    try:
        return asyncio.run(run())
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
