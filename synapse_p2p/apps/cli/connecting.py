"""From settings to a swarm, or to the one node that runs here: which seeds, which network, with which key.

Without a seed a command goes through the nodes that run on this machine, whose files it finds in their data
directories.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import shlex
from collections.abc import AsyncGenerator, Awaitable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from synapse_p2p.apps.cli.blocks import Line, Tone
from synapse_p2p.apps.cli.exit_codes import CommandError, ExitCode
from synapse_p2p.apps.cli.running import RunningNode, is_alive, newest_first, read
from synapse_p2p.apps.cli.screen import Screen
from synapse_p2p.apps.cli.settings import Settings
from synapse_p2p.data_dir import known_data_dirs
from synapse_p2p.exceptions import HandshakeFailed, PeerUnavailable, Timeout

if TYPE_CHECKING:
    from dht.bootstrap import JoinReport
    from dht.swarm import Swarm
    from synapse_p2p.client import Client

T = TypeVar("T")

MAX_LOCAL_SEEDS = 3
"""Nodes of this machine that a command joins through: one is enough, and of three one answers."""


@dataclass(frozen=True, slots=True)
class Place:
    """A swarm to enter. `node` is the newest of the nodes on this machine that are its seeds, None for named seeds."""

    seeds: tuple[str, ...]
    network: str
    network_key: bytes | None
    node: RunningNode | None = None


def place_of(settings: Settings) -> Place:
    """Where a command enters. Raises CommandError where no seed is named and no node runs here."""
    if settings.seeds:
        key_file = settings.network_key_file
        return Place(settings.seeds, settings.network or "", _network_key(key_file))
    nodes = [node for node in live_nodes(settings) if node.address]
    if not nodes:
        raise CommandError(ExitCode.UNREACHABLE, "the node that runs here listens nowhere", "doctor")
    newest = nodes[0]
    networks = {node.network: node for node in nodes}
    if len(networks) > 1:
        raise CommandError(
            ExitCode.USAGE,
            f"nodes of {len(networks)} networks run here: say which one is meant",
            *(f"status --network {shlex.quote(network)}" for network in sorted(networks)),
        )
    key_file = settings.network_key_file or newest.network_key_file
    return Place(
        tuple(node.seed for node in nodes[:MAX_LOCAL_SEEDS]),
        newest.network,
        _network_key(key_file),
        newest,
    )


def operated_place(settings: Settings, screen: Screen) -> tuple[Place, RunningNode]:
    """The node that a command operates, and how it is reached. Raises CommandError where it cannot be."""
    node = chosen_node(settings, screen)
    if not node.address:
        raise CommandError(
            ExitCode.UNREACHABLE, f"{node.name or 'the node'} (process {node.pid}) listens nowhere", "doctor"
        )
    return place_of(dataclasses.replace(settings, seeds=(), data_dir=node.folder)), node


def chosen_node(settings: Settings, screen: Screen) -> RunningNode:
    """The newest node of this machine, or the one whose data directory was named. Raises CommandError for none."""
    nodes = live_nodes(settings)
    newest = nodes[0]
    if len(nodes) > 1:
        screen.say(
            Line(f"{len(nodes)} nodes run here; this is {newest.name or 'one without an agent'}. Others:", Tone.QUIET),
            *(Line(f"  {node.name or '-'}  --data-dir {node.folder}", Tone.QUIET) for node in nodes[1:]),
        )
    return newest


def live_nodes(settings: Settings) -> list[RunningNode]:
    """The nodes that run on this machine, newest first, at least one. Raises CommandError where there is none."""
    folders = known_data_dirs(settings.network) if settings.data_dir is None else [Path(settings.data_dir)]
    found = [node for folder in folders if (node := read(folder)) is not None]
    if settings.network is not None:
        found = [node for node in found if node.network == settings.network]
    live = newest_first(node for node in found if is_alive(node.pid))
    if live:
        return live
    raise CommandError(ExitCode.NO_NODE, _why_none(settings, found), "up", "status --data-dir DIR")


def _why_none(settings: Settings, dead: list[RunningNode]) -> str:
    where = "" if settings.data_dir is None else f" with the data directory {settings.data_dir}"
    network = "" if settings.network is None else f" of network {settings.network!r}"
    advice = "start one, or name a seed with --seed HOST:PORT"
    if dead:
        last = newest_first(dead)[0]
        return (
            f"no node{network} runs here{where}: process {last.pid}, which was {last.name or 'a node'} at "
            f"{last.address}, is gone without a goodbye; {advice}"
        )
    return f"no node{network} runs here{where}: {advice}"


@contextlib.asynccontextmanager
async def entered(place: Place, settings: Settings) -> AsyncGenerator[Swarm]:
    """A swarm as a client of it, joined. Raises CommandError where nobody lets us in."""
    from dht.exceptions import JoinFailed
    from dht.swarm import Swarm

    swarm = Swarm(bootstrap=place.seeds, network=place.network, network_key=place.network_key)
    try:
        await swarm.start(join_timeout=settings.timeout_s, wait_joined=True, join_attempts=1)
    except JoinFailed as error:
        raise _not_let_in(place, settings, error.report) from error
    try:
        yield swarm
    finally:
        await swarm.stop(grace=0)


async def in_time(work: Awaitable[T], settings: Settings, what: str) -> T:
    """Its result. Raises CommandError, which says what is not there when `--timeout` is over."""
    limit = asyncio.timeout(settings.timeout_s)
    try:
        async with limit:
            return await work
    except TimeoutError as error:
        if not limit.expired():
            raise  # one of its calls had less time
        raise CommandError(ExitCode.TIMEOUT, f"{what} after {settings.timeout_s:g} s", "doctor") from error


async def ask_operated(place: Place, node: RunningNode, endpoint: str, /, **arguments: Any) -> Any:
    """One answer of a node to its operator. Raises CommandError where it does not answer."""
    async with operator_client(place, node) as client:
        return await called(node, client, endpoint, **arguments)


def nothing_found(text: str, capabilities: Sequence[str], settings: Settings) -> CommandError:
    """Nobody has these capabilities, as far as `text` says."""
    look = "doctor" if settings.seeds else "status"
    flags = settings.place_flags
    return CommandError(
        ExitCode.NOTHING_FOUND, text, f"find {shlex.join(capabilities)} --explain{flags}", f"{look}{flags}"
    )


def operator_client(place: Place, node: RunningNode) -> Client:
    """A client that a node lets in as its operator. Raises KeyFileError."""
    from synapse_p2p.client import Client  # here: most commands enter the swarm instead
    from synapse_p2p.keyfile import read_identity

    return Client(
        node.seed,
        timeout=5,
        identity=read_identity(node.operator_key),
        network=place.network,
        network_key=place.network_key,
    )


async def called(node: RunningNode, client: Client, endpoint: str, /, *args: Any, **kwargs: Any) -> Any:
    """What a local node answers. Raises CommandError where it does not."""
    try:
        return await client.call(endpoint, *args, **kwargs)
    except (PeerUnavailable, Timeout, HandshakeFailed) as error:
        raise CommandError(
            ExitCode.UNREACHABLE,
            f"{node.name or 'the node'} (process {node.pid}) does not answer at {node.address}: {error}. It may be "
            "blocked, or have ended while another process got its number; stop it and start it again",
            "up",
        ) from error


def _not_let_in(place: Place, settings: Settings, report: JoinReport) -> CommandError:
    from dht.bootstrap import SeedState

    states = [seed.state for seed in report.seeds]
    is_refused = all(state in (SeedState.REFUSED, SeedState.NOT_OURS) for state in states)
    code = ExitCode.REFUSED if is_refused else ExitCode.UNREACHABLE
    reasons = "; ".join(f"{seed.address.rpartition('@')[2]}: {seed.text or seed.state}" for seed in report.seeds)
    if place.node is not None:
        return CommandError(code, f"the node that runs here lets nobody in: {reasons}", "doctor", "up")
    return CommandError(code, f"no seed let us in: {reasons}", f"doctor{settings.place_flags}")


def _network_key(key_file: str | None) -> bytes | None:
    if not key_file:
        return None
    from synapse_p2p.network_key import read_network_key

    return read_network_key(key_file)
