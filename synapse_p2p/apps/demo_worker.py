"""The agents of the demo, and the worker processes in which they live.

A worker reads the network's key from its standard input, where no list of processes shows it, and ends when that does,
so none outlives the demo.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from synapse_p2p.agent import AgentNode
from synapse_p2p.apps.cli.exit_codes import CommandError, ExitCode
from synapse_p2p.background import wait_at_most
from synapse_p2p.identity import SEED_SIZE_BYTES, Identity

if TYPE_CHECKING:
    from dht.swarm import Swarm

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 5.0
PARTS = ("parser", "printer", "tests")


@dataclass(frozen=True, slots=True)
class Profile:
    """One agent of the demo."""

    name: str
    role: str
    capability: str


def _profiles(role: str, capability: str, *names: str) -> list[Profile]:
    return [Profile(name, role, capability) for name in names]


PROCESSES: tuple[tuple[Profile, ...], ...] = tuple(
    zip(
        _profiles("architect", "design", "Ada", "Alan")
        + _profiles("writer", "docs", "Wren", "Will")
        + _profiles("librarian", "search", "Lena", "Luis"),
        _profiles("coder", "coding/python", "Carl", "Cleo", "Cora", "Cyd", "Curt", "Chen"),
        _profiles("reviewer", "code-review", "Rita", "Rolf", "Rosa", "Rhea", "Ravi", "Ruth"),
        _profiles("tester", "testing", "Theo", "Tess", "Tara", "Toni", "Timo", "Thea"),
        strict=True,
    )
)
"""Who lives together: no process has two agents of one trade."""
PROFILES = [profile for profiles in PROCESSES for profile in profiles]


def make_agent(profile: Profile) -> AgentNode:
    """An agent that says what it would do: the demo is about who does it. No key of it is kept."""
    agent = AgentNode(
        name=profile.name,
        role=profile.role,
        capabilities=[profile.capability],
        identity=Identity.from_seed(secrets.token_bytes(SEED_SIZE_BYTES)),
    )
    do = _TRADES.get(profile.role, _do_alone)

    @agent.task_handler
    async def handle(task: str, context: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        async for item in do(agent, task):
            yield {"by": profile.name, "role": profile.role, **item}

    return agent


async def _design(agent: AgentNode, task: str) -> AsyncIterator[dict[str, Any]]:
    """Split the work, have coders do it, whoever they are, and tell of each part that is done."""
    swarm: Swarm = agent.swarm
    asks = [asyncio.ensure_future(swarm.ask("coding", f"the {part} of {task}")) for part in PARTS]
    parts: list[dict[str, Any]] = []
    try:
        for done in asyncio.as_completed(asks):
            parts.append((await done).result)
            yield {"did": f"{len(parts)} of {len(PARTS)} parts are done", "parts": []}
    finally:
        for ask in asks:
            ask.cancel()
    yield {"did": f"split {task!r} in {len(PARTS)}", "parts": parts}


async def _code(agent: AgentNode, task: str) -> AsyncIterator[dict[str, Any]]:
    """Write, and have others look at it."""
    swarm: Swarm = agent.swarm
    asks = [swarm.ask("code-review", task), swarm.ask("testing", task)]
    yield {"did": f"wrote {task}", "parts": [answer.result for answer in await asyncio.gather(*asks)]}


async def _do_alone(agent: AgentNode, task: str) -> AsyncIterator[dict[str, Any]]:
    verb = {"reviewer": "read it", "tester": "ran it"}.get(agent.role, "took care of it")
    yield {"did": verb, "parts": []}


_TRADES: dict[str, Callable[[AgentNode, str], AsyncIterator[dict[str, Any]]]] = {"architect": _design, "coder": _code}


async def work(profiles: Sequence[Profile], seeds: Sequence[str]) -> None:
    """A worker process: its agents join, say so in one line each, and live until standard input ends."""
    from dht.swarm import Swarm

    network_key = bytes.fromhex(await asyncio.to_thread(sys.stdin.readline))
    swarms: list[Swarm] = []
    for profile in profiles:
        started_at = time.perf_counter()
        swarm = Swarm(make_agent(profile), bootstrap=seeds, network_key=network_key)
        await swarm.start(wait_joined=True)
        swarms.append(swarm)
        status = swarm.status()
        # Those of one process join through the same seed; the very first agent of all is it.
        seeds = seeds or status.listening
        joined_ms = (time.perf_counter() - started_at) * 1000
        print(json.dumps({"address": status.listening[0], "id": status.id.hex(), "joined_ms": joined_ms}), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await asyncio.gather(*(swarm.stop(grace=1) for swarm in swarms))


class Worker:
    """A worker process as the demo sees it. `addresses` are those of its agents, once it has reported."""

    def __init__(self, process: asyncio.subprocess.Process, profiles: Sequence[Profile]) -> None:
        self.process = process
        self.profiles = profiles
        self.addresses: list[str] = []

    @classmethod
    async def start(cls, profiles: Sequence[Profile], seeds: Sequence[str], network_key: bytes) -> Worker:
        job = json.dumps({"profiles": [asdict(profile) for profile in profiles], "seeds": list(seeds)})
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "synapse_p2p.apps.demo_worker",
            job,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the demo alone, which ends its workers in good order
        )
        assert process.stdin is not None
        process.stdin.write(network_key.hex().encode() + b"\n")
        return cls(process, profiles)

    @property
    def names(self) -> list[str]:
        return [profile.name for profile in self.profiles]

    async def reports(self) -> list[dict[str, Any]]:
        """What each of its agents said when it had joined, in order. Raises CommandError where one does not join."""
        assert self.process.stdout is not None
        reports = []
        for profile in self.profiles:
            try:
                async with asyncio.timeout(START_TIMEOUT_S):
                    line = await self.process.stdout.readline()
            except TimeoutError:
                text = f"{profile.name} had not joined after {START_TIMEOUT_S:.0f} s: this machine may be too busy"
                raise CommandError(ExitCode.TIMEOUT, text, "demo") from None
            if not line:
                text = f"the process of {profile.name} ended before it had joined; its message is above"
                raise CommandError(ExitCode.FAILED, text, "demo")
            reports.append(json.loads(line))
        self.addresses = [report["address"] for report in reports]
        return reports

    async def kill(self) -> None:
        """SIGKILL: no goodbye, no clean-up."""
        self.process.kill()
        await self.process.wait()

    async def stop(self) -> None:
        """Let it end by itself; it is killed if it does not."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        ended = asyncio.ensure_future(self.process.wait())
        if not await wait_at_most(ended, STOP_TIMEOUT_S):
            self.process.kill()
        await ended


if __name__ == "__main__":
    _job = json.loads(sys.argv[1])
    asyncio.run(work([Profile(**profile) for profile in _job["profiles"]], _job["seeds"]))
