"""`up`: a node, or an agent of the user's, until Ctrl-C; what it leaves for the other commands meanwhile."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from dht.bootstrap import SeedAddress
from dht.swarm import ALL_INTERFACES, LOOPBACK, Swarm
from synapse_p2p.agent import AgentNode
from synapse_p2p.apps.cli import running
from synapse_p2p.apps.cli.blocks import Line, Tone
from synapse_p2p.apps.cli.exit_codes import CommandError, ExitCode
from synapse_p2p.apps.cli.screen import Screen
from synapse_p2p.apps.cli.settings import Settings
from synapse_p2p.apps.cli.views import Started, view_of_start
from synapse_p2p.data_dir import default_folders
from synapse_p2p.keyfile import KeyFault, KeyFileError
from synapse_p2p.network_key import read_network_key
from synapse_p2p.transport.base import is_loopback

NODE_NAME = "node"
"""The folder of nodes without an agent."""


def up(settings: Settings, screen: Screen, *, agent_place: str | None, is_verbose: bool, is_json: bool) -> None:
    """Serve until a signal. Raises CommandError, ConfigError, OSError."""
    if not logging.getLogger().handlers:
        level = logging.INFO if is_verbose else logging.WARNING
        logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    agent = None if agent_place is None else load_agent(agent_place)
    network_key = None if not settings.network_key_file else read_network_key(settings.network_key_file)
    why_not = "there is no home folder to keep it in"
    for data_dir in _folders(settings, agent):
        if data_dir is None and agent is None:
            screen.say(Line(f"the key of this node is not kept: {why_not}. Give it --data-dir DIR", Tone.WARNING))
        swarm = Swarm(
            agent,
            bootstrap=settings.seeds,
            listen=_listen(settings, agent),
            advertise=settings.advertise,
            network=settings.network or "",
            network_key=network_key,
            data_dir=data_dir,
        )
        try:
            return _serve(swarm, settings, screen, agent, has_network_key=network_key is not None, is_json=is_json)
        except KeyFileError as error:
            # Another node has that folder, or it cannot be written: of the default ones there are more.
            if settings.data_dir is not None or error.fault not in (KeyFault.IN_USE, KeyFault.STORAGE):
                raise
            why_not = str(error)
    raise AssertionError("without a folder there is no key file that could be wrong")


def load_agent(place: str) -> AgentNode:
    """The agent at `module:attribute`, or what the function there returns. Raises CommandError.

    The working directory comes first among the places where modules are looked for, as with `python -m`.
    """
    module_name, colon, attribute = place.partition(":")
    if not (module_name and colon and attribute):
        raise CommandError(ExitCode.USAGE, f"--agent {place!r} is not module:attribute, such as reviewer:agent")
    if module_name.endswith(".py") or "/" in module_name:
        raise CommandError(
            ExitCode.USAGE,
            f"--agent wants the name of a module, not of a file: go to its folder and write "
            f"{Path(module_name).stem}:{attribute}",
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise  # it is there, and something that it imports is not
        raise CommandError(
            ExitCode.USAGE, f"there is no module {module_name!r} in {os.getcwd()}, nor among those installed"
        ) from error
    found = _attribute_of(module, attribute)
    if not isinstance(found, AgentNode) and callable(found):
        found = found()
    if not isinstance(found, AgentNode):
        raise CommandError(ExitCode.USAGE, f"{place} is of type {type(found).__name__}, and no AgentNode")
    return found


def _attribute_of(module: ModuleType, path: str) -> Any:
    found: Any = module
    for name in path.split("."):
        if not hasattr(found, name):
            agents = sorted(name for name, value in vars(module).items() if isinstance(value, AgentNode))
            also = f"; its agents are {', '.join(agents)}" if agents else ""
            raise CommandError(ExitCode.USAGE, f"module {module.__name__!r} has no {path!r}{also}")
        found = getattr(found, name)
    return found


def _folders(settings: Settings, agent: AgentNode | None) -> list[str | Path | None]:
    """Data directories to try, in order. None leaves it to the swarm, which has one for an agent, by its name, and none
    for a node without an agent.
    """
    if settings.data_dir is not None:
        return [settings.data_dir]
    if agent is not None:
        return [None]
    return [*default_folders(settings.network or "", NODE_NAME), None]


def _listen(settings: Settings, agent: AgentNode | None) -> str | None:
    """Where to listen. A swarm that has seeds and no agent would be a client without it, and `up` is for nodes."""
    if agent is not None or settings.listen is not None or not settings.seeds:
        return settings.listen
    is_here = all(is_loopback(SeedAddress.parse(seed).host) for seed in settings.seeds)
    return f"{LOOPBACK if is_here else ALL_INTERFACES}:0"


def _serve(
    swarm: Swarm, settings: Settings, screen: Screen, agent: AgentNode | None, *, has_network_key: bool, is_json: bool
) -> None:
    with contextlib.ExitStack() as left:

        def on_started() -> None:
            started = Started(
                swarm.status(),
                folder="" if swarm.data_dir is None else str(swarm.data_dir),
                has_network_key=has_network_key,
                capability=next(iter(swarm.status().capabilities), ""),
                network_key_file=os.path.abspath(settings.network_key_file) if settings.network_key_file else "",
            )
            left.enter_context(_left_file(started, "" if agent is None else agent.name, screen))
            if is_json:
                screen.emit(started.as_map())
            else:
                screen.show(view_of_start(started, screen.program))

        swarm.run(on_started=on_started)
    if not is_json:
        screen.say(Line("left in good order", Tone.QUIET))


@contextlib.contextmanager
def _left_file(started: Started, name: str, screen: Screen) -> Iterator[None]:
    """Within it the other commands on this machine find the node."""
    if not started.folder:
        yield
        return
    node = running.this_process(
        started.status, name=name, folder=started.folder, network_key_file=started.network_key_file
    )
    try:
        running.leave(node)
    except OSError as error:
        screen.say(Line(f"other commands will not find this node by themselves: {error}", Tone.WARNING))
    try:
        yield
    finally:
        running.take_away(node)
