"""`status` and `peers`: what the node on this machine tells its operator."""

from __future__ import annotations

from typing import Any

from synapse_p2p.apps.cli.connecting import ask_operated, called, operated_place, operator_client
from synapse_p2p.apps.cli.screen import Screen
from synapse_p2p.apps.cli.settings import Settings


async def status(settings: Settings, screen: Screen) -> dict[str, Any]:
    """How it is, and what it has counted."""
    place, node = operated_place(settings, screen)
    async with operator_client(place, node) as client:
        found = await called(node, client, "_swarm.status")
        stats = await called(node, client, "_synapse.stats")
    return {**found, "stats": stats, "pid": node.pid, "data_dir": node.folder}


async def peers(settings: Settings, screen: Screen) -> dict[str, Any]:
    """Whom it knows."""
    place, node = operated_place(settings, screen)
    return await ask_operated(place, node, "_swarm.peers")
