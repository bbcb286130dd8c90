"""`doctor`: asks a node of this machine how it is and its peers whether they know it, and says what is wrong.

What the answers mean is decided in `diagnosis.py`.
"""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any

from dht.exceptions import JoinFailed
from dht.messages import FindNode, FindNodeAnswer, PingAnswer
from dht.swarm import Swarm
from synapse_p2p.apps.cli.connecting import Place, ask_operated, chosen_node, entered, live_nodes, place_of
from synapse_p2p.apps.cli.diagnosis import (
    Check,
    Evidence,
    diagnose,
    diagnose_client,
    diagnose_seeds,
    diagnose_silent,
    is_healthy,
)
from synapse_p2p.apps.cli.exit_codes import CommandError, ExitCode
from synapse_p2p.apps.cli.running import RunningNode
from synapse_p2p.apps.cli.screen import Screen
from synapse_p2p.apps.cli.settings import Settings
from synapse_p2p.client import Client
from synapse_p2p.exceptions import SynapseError
from synapse_p2p.identity import NodeID, distance

if TYPE_CHECKING:
    from dht.peer import Peer

MAX_ASKED = 5
"""Peers asked about a node: the nearest to it, who know it before all others."""


async def doctor(settings: Settings, screen: Screen, *, are_seeds_meant: bool) -> dict[str, Any]:
    """All checks, of the node on this machine or of seeds: of those that were typed, and, where no node runs here, of
    those in the environment or the settings file, through which nodes here would join.
    """
    is_of_seeds = settings.seeds and (are_seeds_meant or not _runs_here(settings))
    checks = await (_of_seeds(settings) if is_of_seeds else _of_node(dataclasses.replace(settings, seeds=()), screen))
    return {"healthy": is_healthy(checks), "checks": [check.as_map(screen.program) for check in checks]}


def _runs_here(settings: Settings) -> bool:
    try:
        return bool(live_nodes(settings))
    except CommandError:
        return False


async def _of_seeds(settings: Settings) -> list[Check]:
    place = place_of(settings)
    swarm = Swarm(bootstrap=place.seeds, network=place.network, network_key=place.network_key)
    try:
        await swarm.start(join_timeout=settings.timeout_s, wait_joined=True, join_attempts=1)
    except JoinFailed as error:
        report = error.report
    else:
        report = swarm.join_report()
        await swarm.stop(grace=0)
    return diagnose_seeds(
        [{"address": seed.address, "state": seed.state.value, "text": seed.text} for seed in report.seeds]
    )


async def _of_node(settings: Settings, screen: Screen) -> list[Check]:
    node = chosen_node(settings, screen)
    if not node.address:
        return diagnose_client(node.pid, node.name)
    place = place_of(dataclasses.replace(settings, data_dir=node.folder))
    try:
        status = await ask_operated(place, node, "_swarm.status")
        peers = await ask_operated(place, node, "_swarm.peers")
    except CommandError as error:
        if error.code is not ExitCode.UNREACHABLE:
            raise
        return diagnose_silent(node.pid, node.name, node.address, _first_sentence(str(error.__cause__ or error)))
    try:
        evidence = await _evidence(settings, place, node, status, peers["peers"])
    except CommandError:
        evidence = Evidence()  # it answers its operator and lets nobody in: what it says itself is what there is
    return diagnose(status, evidence)


async def _evidence(
    settings: Settings, place: Place, node: RunningNode, status: dict[str, Any], peers: list[dict[str, Any]]
) -> Evidence:
    own_id = bytes.fromhex(node.id)
    nearest = sorted(peers, key=lambda peer: distance(bytes.fromhex(peer["id"]), own_id))
    async with entered(place, settings) as swarm:
        offsets_s: list[float] = []
        asked = naming = 0
        for peer in [each for each in nearest if each["addresses"]][:MAX_ASKED]:
            told = await _told_by(swarm.peer(f"{peer['id']}@{peer['addresses'][0]}"), own_id)
            if told is not None:
                asked += 1
                offsets_s.append(told[0])
                naming += told[1]
        return Evidence(
            tuple(offsets_s),
            await _own_dial(place, node, status),
            asked,
            naming,
            await _is_found(swarm, status, settings.timeout_s),
        )


async def _told_by(peer: Peer, own_id: NodeID) -> tuple[float, bool] | None:
    """By how much our clock is ahead of the peer's, and whether it names us to others; None where it is silent."""
    try:
        began = time.time()
        theirs = PingAnswer.from_map(await peer.call("_dht.ping")).unix_ms / 1000
        ahead_s = (began + time.time()) / 2 - theirs
        answer = FindNodeAnswer.from_map(await peer.call("_dht.find_node", **FindNode(own_id).to_map()))
    except SynapseError:
        return None
    return ahead_s, any(contact.id == own_id for contact in answer.contacts)


async def _own_dial(place: Place, node: RunningNode, status: dict[str, Any]) -> str | None:
    """Why the address that others are told does not answer; empty where it does, None where there is none."""
    address = next(iter(status["advertised"]), None)
    if address is None:
        return None
    try:
        # By a client of its own: the swarm has a session with the node already, and would not dial.
        seed = f"{node.id}@{address}"
        async with Client(seed, timeout=5, network=place.network, network_key=place.network_key) as client:
            await client.call("_synapse.ping")
    except SynapseError as error:
        return _first_sentence(str(error))
    return ""


async def _is_found(swarm: Swarm, status: dict[str, Any], timeout_s: float) -> bool | None:
    agent = status["agent"]
    if agent is None or not agent["capabilities"] or status["record"]["expires_in_s"] is None:
        return None
    found = await swarm.find(agent["capabilities"][0], timeout=timeout_s)
    return any(each.id.hex() == status["id"] for each in found) or not found.complete


def _first_sentence(text: str) -> str:
    return text.partition("; ")[0].partition(". ")[0]
