"""The phases that scenarios share: everybody joins; one thing is begun again and again."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from typing import Any

from simulations.scenarios.base import Progress, Settings
from simulations.world import World
from synapse_p2p.background import TaskScope


async def grow(world: World, settings: Settings, progress: Progress) -> None:
    """Let all nodes of the settings join."""
    joined = itertools.count(1)
    await world.grow(settings.nodes, lambda: progress("join", next(joined), settings.nodes))


async def paced(count: int, pause_s: float, one: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Begin `count` of these, `pause_s` apart, and wait for the last to end."""
    loop = asyncio.get_running_loop()
    first_at = loop.time()
    async with TaskScope("paced") as scope:
        under_way: list[asyncio.Task[None]] = []
        for number in range(1, count + 1):
            under_way.append(scope.spawn_awaited(one()))
            await asyncio.sleep(max(0.0, first_at + number * pause_s - loop.time()))
            if len(under_way) > 1000:  # a long run begins very many
                under_way = [each for each in under_way if not each.done() or each.exception() is not None]
        for each in under_way:
            await each
