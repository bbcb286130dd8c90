"""A run and its figures, as one map."""

from __future__ import annotations

import platform
import sys
import time
from typing import Any

from simulations.scenarios import Outcome, Scenario, Settings
from simulations.scenarios.base import Progress
from simulations.virtual_loop import VirtualLoop
from simulations.world import World
from synapse_p2p.version import installed_version


def run_scenario(scenario: Scenario, settings: Settings, progress: Progress) -> dict[str, Any]:
    """Play a scenario on a virtual loop of its own; the figures. `virtual_s` is time inside it, `wall_s` outside."""
    started_at, cpu_at = time.perf_counter(), time.process_time()
    loop = VirtualLoop()
    try:
        world = scenario.new_world(loop, settings)
        outcome = loop.run_until_complete(_play(scenario, world, settings, progress))
        virtual_s = loop.time()
    finally:
        loop.close()
    return {
        "scenario": scenario.name,
        "nodes": settings.nodes,
        "seed": settings.seed,
        "digest": world.digest.hexdigest(),
        **_figures(outcome),
        "messages": world.digest.message_count,
        "virtual_s": round(virtual_s, 6),
        "wall_s": round(time.perf_counter() - started_at, 3),
        "cpu_s": round(time.process_time() - cpu_at, 3),
        "peak_rss_bytes": _peak_rss_bytes(),
        "python": platform.python_version(),
        "version": installed_version(),
        "start": "protocol",
    }


async def _play(scenario: Scenario, world: World, settings: Settings, progress: Progress) -> Outcome:
    try:
        return await scenario.play(world, settings, progress)
    finally:
        await world.stop()


def _figures(outcome: Outcome) -> dict[str, Any]:
    histogram: dict[int, int] = {}
    for hops in outcome.hops:
        histogram[hops] = histogram.get(hops, 0) + 1
    return {
        "lookups": outcome.lookups,
        "lookup_success": outcome.successes / outcome.lookups,
        "mean_hops": round(sum(outcome.hops) / len(outcome.hops), 4) if outcome.hops else None,
        "hops": {str(hops): histogram[hops] for hops in sorted(histogram)},
    }


def _peak_rss_bytes() -> int | None:
    """The most memory this process ever held; None where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
