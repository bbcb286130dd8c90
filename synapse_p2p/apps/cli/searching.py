"""`find` and `describe`: who can do what, and what exactly."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from synapse_p2p.apps.cli.arguments import where_of
from synapse_p2p.apps.cli.connecting import entered, in_time, nothing_found, place_of
from synapse_p2p.apps.cli.exit_codes import CommandError
from synapse_p2p.apps.cli.screen import Screen
from synapse_p2p.apps.cli.settings import Settings, settled
from synapse_p2p.apps.cli.views import view_of_agents
from synapse_p2p.apps.cli.waiting import wait
from synapse_p2p.background import TaskScope
from synapse_p2p.exceptions import ConfigError, RemoteError, SynapseError

if TYPE_CHECKING:
    from dht.peer import Peer
    from dht.results import FoundAgent
    from dht.swarm import Swarm

MAX_DESCRIBED = 8
"""Agents that are described at once: more is no reading for people, and `--limit` says otherwise."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is looked for; as `Swarm.find` has it."""

    capabilities: tuple[str, ...]
    where: Mapping[str, Any] | None = None
    limit: int | None = None
    max_age_s: float | None = None
    is_probed: bool = True
    is_explained: bool = False

    @property
    def query(self) -> str:
        """For people."""
        return ", ".join(self.capabilities)


def find_as_said(
    screen: Screen,
    capabilities: Sequence[str],
    *,
    where: Sequence[str] | None = None,
    limit: int | None = None,
    max_age: float | None = None,
    probe: bool = True,
    explain: bool = False,
    seed: Sequence[str] | None = None,
    network: str | None = None,
    network_key_file: str | None = None,
    data_dir: str | None = None,
    timeout: float | None = None,
    json: bool = False,
    jsonl: bool = False,
) -> None:
    """The command, by the names of its options. Raises CommandError, and what settings and conditions raise."""
    given = {
        "seed": seed,
        "network": network,
        "network-key-file": network_key_file,
        "data-dir": data_dir,
        "timeout": timeout,
    }
    settings = settled(given)
    wanted = Wanted(tuple(capabilities), where_of(where or ()), limit, max_age, probe, explain)
    if jsonl:
        found = wait(find_each(settings, wanted, screen.emit))
    else:
        found = wait(find(settings, wanted))
        if json or found["agents"] or explain:
            screen.print(found, view_of_agents, is_json=json)
    check_found(found, wanted, settings)


async def find(settings: Settings, wanted: Wanted) -> dict[str, Any]:
    """Those who have answered when the search has ended, or the time for it; one that is explained has to end in time.
    Raises CommandError.
    """
    async with entered(place_of(settings), settings) as swarm:
        search = swarm.find(
            *wanted.capabilities,
            where=wanted.where,
            limit=wanted.limit,
            max_age=wanted.max_age_s,
            timeout=None if wanted.is_explained else settings.timeout_s,
            probe=wanted.is_probed,
            explain=wanted.is_explained,
        )
        found = await (in_time(search, settings, "the search is not over") if wanted.is_explained else search)
    result = _result([agent_map(agent) for agent in found], complete=found.complete, reason=found.reason)
    if found.explanation is not None:
        result["explanation"] = str(found.explanation)
    return result


async def find_each(settings: Settings, wanted: Wanted, on_found: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """The same, with each told of as soon as it has answered."""
    agents: list[dict[str, Any]] = []
    async with entered(place_of(settings), settings) as swarm:
        stream = swarm.stream_find(
            *wanted.capabilities,
            where=wanted.where,
            limit=wanted.limit,
            max_age=wanted.max_age_s,
            timeout=settings.timeout_s,
            probe=wanted.is_probed,
        )
        async with stream:
            async for agent in stream:
                agents.append(agent_map(agent))
                on_found(agents[-1])
    return _result(agents, complete=stream.complete, reason=stream.reason)


def check_found(found: Mapping[str, Any], wanted: Wanted, settings: Settings) -> None:
    """Raises CommandError where nobody was found."""
    if not found["agents"]:
        why = "" if found["complete"] else f", as far as could be seen: {found['reason']}"
        raise nothing_found(f"nobody offers {wanted.query}{why}", wanted.capabilities, settings)


async def describe(settings: Settings, target: str, limit: int | None) -> dict[str, Any]:
    """What agents with a capability, or whoever is at an address or has an id, can do in full. Raises CommandError."""
    async with entered(place_of(settings), settings) as swarm:
        if is_place(target):
            described = _described_place(swarm, target, settings.timeout_s)
            return {"described": [await in_time(described, settings, f"{target} has not told all of it")]}
        found = await swarm.find(target, limit=limit or MAX_DESCRIBED, timeout=settings.timeout_s)
        listed = _result([agent_map(agent) for agent in found], complete=found.complete, reason=found.reason)
        check_found(listed, Wanted((target,)), settings)
        async with TaskScope("describe") as scope:
            described = [scope.spawn_awaited(_described_agent(agent, settings)) for agent in found]
            return {"described": [await each for each in described]}


def agent_map(agent: FoundAgent) -> dict[str, Any]:
    """One agent, as `--json` has it."""
    return {
        "id": agent.id.hex(),
        "name": agent.name,
        "role": agent.role,
        "description": agent.description,
        "capabilities": list(agent.capabilities),
        "addresses": list(agent.addresses),
        "reach": agent.reach.name.lower(),
        "age_s": round(agent.age_s, 3),
        "claims": [
            {"name": claim.name, "version": str(claim.version or ""), "attributes": dict(claim.attributes)}
            for claim in agent.claims
        ],
    }


def is_place(target: str) -> bool:
    """Whether this is an address or an id; a capability has no colon, and is no 64 hexadecimal digits."""
    from dht.peer import parse_place

    if ":" not in target and len(target) != 64:
        return False
    with contextlib.suppress(ConfigError):
        parse_place(target)
        return True
    return False


def _result(agents: Sequence[Mapping[str, Any]], *, complete: bool, reason: str) -> dict[str, Any]:
    return {"agents": list(agents), "complete": complete, "reason": reason}


async def _described_agent(agent: FoundAgent, settings: Settings) -> dict[str, Any]:
    described: dict[str, Any] = {
        "id": agent.id.hex(),
        "name": agent.name,
        "role": agent.role,
        "description": agent.description,
        "address": ", ".join(agent.addresses),
        "capabilities": [],
        "methods": [],
        "problem": "",
    }

    async def ask() -> None:
        described["capabilities"] = [asdict(capability) for capability in await agent.describe()]
        described["methods"] = _method_maps(await agent.call("_synapse.methods"))

    try:
        await in_time(ask(), settings, "it has not told all of it")
    except (SynapseError, CommandError) as error:
        described["problem"] = str(error)
    return described


async def _described_place(swarm: Swarm, target: str, timeout_s: float) -> dict[str, Any]:
    peer = swarm.peer(target, timeout=timeout_s)
    info = await peer.call("_synapse.info")
    agent = await _of_agent(peer)
    return {
        "id": _text(info, "id"),
        "name": _text(agent, "name"),
        "role": _text(agent, "role"),
        "description": _text(agent, "description"),
        "address": "" if len(target) == 64 else target,
        "capabilities": agent.get("in_full", []),
        "methods": _method_maps(await peer.call("_synapse.methods")),
        "problem": "",
    }


async def _of_agent(peer: Peer) -> dict[str, Any]:
    """What an agent says of itself; empty for a server that is none."""
    try:
        info = await peer.call("_agent.info")
        capabilities = await peer.call("_agent.capabilities")
    except RemoteError as error:
        if error.code != "not_found":
            raise
        return {}
    in_full = [
        {
            "name": _text(each, "name"),
            "description": _text(each, "description"),
            "version": _text(each, "version"),
            "input_schema": _map(each, "input_schema"),
            "output_schema": _map(each, "output_schema"),
            "attributes": _map(each, "attributes"),
        }
        for each in (capabilities if isinstance(capabilities, list) else [])
    ]
    return {**(info if isinstance(info, dict) else {}), "in_full": in_full}


def _method_maps(methods: Any) -> list[dict[str, str]]:
    # A peer's word, in whatever shape it came.
    listed = methods if isinstance(methods, list) else []
    return [{"name": _text(each, "name"), "description": _text(each, "description")} for each in listed]


def _text(said: Any, name: str) -> str:
    value = said.get(name) if isinstance(said, dict) else None
    return value if isinstance(value, str) else ""


def _map(said: Any, name: str) -> dict[str, Any]:
    value = said.get(name) if isinstance(said, dict) else None
    return value if isinstance(value, dict) else {}
