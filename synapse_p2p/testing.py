"""A pytest plugin: agents of yours on a virtual network, in virtual time, with all chance from one seed.

It is not loaded by itself. In the `conftest.py` at the root of your tests:

    pytest_plugins = ["synapse_p2p.testing"]

gives tests the fixture `swarm`, a `VirtualSwarm`, and pytest two options: `--seed S` runs them with that seed, and
`--seeds N` with each from 1 to N, up to the first that fails; what then is printed has the command that shows the same
again. A test is an `async def`, with no other plugin for it, or a plain function that calls `swarm.run(main)`.

Nothing here opens a socket, waits in real time or reads a file. Messages take 5 to 100 ms, a different time each, so
every seed has another order of events. This file is a face: it stands above the simulator, and nothing imports it.
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import os
import random
import shlex
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar, cast

import pytest

from synapse_p2p.agent import AgentNode
from synapse_p2p.exceptions import ConfigError
from synapse_p2p.transport.dialing import time_limit

if TYPE_CHECKING:
    from dht.swarm import Swarm
    from simulations.virtual_loop import VirtualLoop
    from simulations.world import World

T = TypeVar("T")

FIXTURE = "swarm"
DEFAULT_SEED = 1
MAX_VIRTUAL_S = 6 * 3600.0
"""How long a test may go on in virtual time. Agents look after their swarm for ever, so one that waits for what nobody
does would never end."""
MIN_ONE_WAY_S = 0.005
MAX_ONE_WAY_S = 0.1


class VirtualSwarm:
    """What a test does with its agents. It lives as long as `run` runs, and anew with each seed.

    `rng` is for what the test itself wants to draw; `max_virtual_s` is how many virtual seconds a run may take.
    """

    def __init__(self, seed: int = DEFAULT_SEED) -> None:
        self.seed = seed
        self.max_virtual_s = MAX_VIRTUAL_S
        self.rng = random.Random(f"test {seed}")
        self._world: World | None = None

    @property
    def world(self) -> World:
        """The simulated world, for whoever wants more of it: its nodes, its hosts, its digest.

        Raises ConfigError while there is none.
        """
        if self._world is None:
            raise ConfigError("the swarm lives within swarm.run(main), or an async test, and nowhere else")
        return self._world

    def run(self, main: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result of `await main()` in a world of its own, which is ended afterwards. It takes no real time to wait.

        Raises what `main` raises, and Timeout when it has not ended within `max_virtual_s`.
        """
        from simulations.virtual_loop import run

        return run(self._live(main))

    async def agent(self, agent: AgentNode, **options: Any) -> Swarm:
        """Start an agent, on a host of its own; joined and published when this returns. `options` are those of Swarm.

        Every seed needs a new agent: make it in the test, not beside it.
        """
        return await self.world.agent(agent, **options)

    async def client(self, **options: Any) -> Swarm:
        """Somebody who asks and offers nothing, joined when this returns."""
        swarm = self.world.swarm(**options)
        await swarm.start(wait_joined=True)
        return swarm

    async def _live(self, main: Callable[[], Coroutine[Any, Any, T]]) -> T:
        from simulations.world import World

        loop = cast("VirtualLoop", asyncio.get_running_loop())
        self.rng = random.Random(f"test {self.seed}")
        self._world = world = World(loop, seed=self.seed, wire=True, latency=_Jitter(self.seed))
        late = f"the test has not ended within {self.max_virtual_s:g} virtual seconds: who waits for whom?"
        try:
            async with time_limit(self.max_virtual_s, late):
                return await main()
        finally:
            self._world = None
            await world.stop()


class _Jitter:
    """Every message takes another time, wherever it goes."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(f"latency {seed}")

    def __call__(self, source: bytes, target: bytes) -> float:
        return self._rng.uniform(MIN_ONE_WAY_S, MAX_ONE_WAY_S)


# The plugin


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--seed` and `--seeds`."""
    group = parser.getgroup("synapse-p2p", "agents on a virtual network")
    seed_options: dict[str, Any] = {"type": _positive, "default": None}
    group.addoption(
        "--seed", metavar="S", help="run the tests that use the fixture swarm with this seed", **seed_options
    )
    group.addoption("--seeds", metavar="N", help="run them with each seed from 1 to N", **seed_options)


def pytest_configure(config: pytest.Config) -> None:
    """Refuse what cannot be meant."""
    if config.getoption("--seed", None) is not None and config.getoption("--seeds", None) is not None:
        raise pytest.UsageError("--seed is one of them and --seeds is all of them: leave one out")


@pytest.fixture
def swarm() -> VirtualSwarm:
    """Agents on a virtual network, in virtual time."""
    return VirtualSwarm()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that uses the fixture, for every seed; any other test is somebody else's to run.

    The other fixtures of the test are set up once, for all seeds.
    """
    swarm = pyfuncitem.funcargs.get(FIXTURE)
    if not isinstance(swarm, VirtualSwarm):
        return None
    function = _function_of(pyfuncitem)
    names = [name for name in inspect.signature(function).parameters if name in pyfuncitem.funcargs]
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    for seed in _seeds(pyfuncitem.config):
        swarm.seed = seed
        try:
            if inspect.iscoroutinefunction(function):
                swarm.run(lambda: function(**arguments))
            else:
                function(**arguments)
        except (Exception, pytest.fail.Exception):
            _tell(pyfuncitem, seed)
            raise
    return True


def _function_of(item: pytest.Function) -> Callable[..., Any]:
    """The test as it was written: a plugin for async tests may have put another function in its place."""
    owner = item.module if item.instance is None else item.instance
    return getattr(owner, item.originalname)


def _seeds(config: pytest.Config) -> range:
    seed, count = config.getoption("--seed", None), config.getoption("--seeds", None)
    if count is not None:
        return range(1, count + 1)
    first = DEFAULT_SEED if seed is None else seed
    return range(first, first + 1)


def _tell(item: pytest.Function, seed: int) -> None:
    path = os.path.relpath(item.path, item.config.invocation_params.dir)
    test = shlex.quote("::".join([path, *item.nodeid.split("::")[1:]]))
    item.add_report_section(
        "call", "seed", f"failed with seed {seed}; to see the same again:\npytest {test} --seed {seed}"
    )


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return int(text)
