"""`make demo`: eight agents in six processes find each other, work, keep a value, and go on when two are killed.

Everything is real: processes, TCP on loopback, encryption, and the kill. Each worker process reads the network's key
from its standard input, where no list of processes shows it, and ends when that does, so none outlives the demo.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from synapse_p2p.agent import AgentNode
from synapse_p2p.background import wait_at_most
from synapse_p2p.client import Client
from synapse_p2p.exceptions import HandshakeFailed
from synapse_p2p.identity import NETWORK_KEY_SIZE_BYTES, SEED_SIZE_BYTES, Identity
from synapse_p2p.server import Server

if TYPE_CHECKING:
    from dht.node import DHTNode
    from dht.results import Answer

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 5.0
NOTE = b"the tests are green"
TASK = "Review: def add(a, b): return a - b"


@dataclass(frozen=True, slots=True)
class Profile:
    """One agent of the demo."""

    name: str
    role: str
    capabilities: tuple[str, ...]


ARCHITECT = Profile("Ada", "architect", ("design",))
SEED_PROCESS = (Profile("Lena", "librarian", ("search",)), Profile("Theo", "tester", ("python", "testing")))
OTHER_PROCESSES = (
    (Profile("Carl", "coder", ("python", "coding")), Profile("Wren", "writer", ("docs",))),
    (Profile("Rita", "reviewer", ("python", "code-review")),),
    (Profile("Rolf", "reviewer", ("code-review",)),),
    (Profile("Rosa", "reviewer", ("code-review", "security")),),
)
PROCESS_COUNT = 2 + len(OTHER_PROCESSES)
AGENT_COUNT = 1 + len(SEED_PROCESS) + sum(map(len, OTHER_PROCESSES))


def make_agent(profile: Profile) -> AgentNode:
    """An agent that says what it would do: the demo is about who does it. No key of it is kept."""
    agent = AgentNode(
        name=profile.name,
        role=profile.role,
        capabilities=list(profile.capabilities),
        identity=Identity.from_seed(secrets.token_bytes(SEED_SIZE_BYTES)),
    )

    @agent.task_handler
    async def handle(task: str, context: dict[str, Any]) -> dict[str, Any]:
        return {"by": profile.name, "status": "done", "result": f"{profile.name} took care of {task!r}"}

    return agent


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
    for swarm in swarms:
        await swarm.stop(grace=1)


class Worker:
    """A worker process as the demo sees it."""

    def __init__(self, process: asyncio.subprocess.Process, profiles: Sequence[Profile]) -> None:
        self.process = process
        self.profiles = profiles

    @classmethod
    async def start(cls, profiles: Sequence[Profile], seeds: Sequence[str], network_key: bytes) -> Worker:
        job = json.dumps({"profiles": [asdict(profile) for profile in profiles], "seeds": list(seeds)})
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "synapse_p2p.apps.demo",
            job,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdin is not None
        process.stdin.write(network_key.hex().encode() + b"\n")
        return cls(process, profiles)

    async def reports(self) -> list[dict[str, Any]]:
        """What each of its agents said when it had joined, in order."""
        assert self.process.stdout is not None
        reports = []
        for profile in self.profiles:
            async with asyncio.timeout(START_TIMEOUT_S):
                line = await self.process.stdout.readline()
            if not line:
                raise RuntimeError(f"the process of {profile.name} ended before it had joined; its message is above")
            reports.append(json.loads(line))
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


def step(number: int, text: str) -> None:
    """A heading."""
    print(f"\n{number}. {text}", flush=True)


def tell(text: str) -> None:
    """A line below a heading."""
    print(f"   {text}", flush=True)


async def main() -> None:
    """The demo."""
    started_at = time.perf_counter()
    print("Synapse P2P: agents that find each other by what they can do. No server, no broker, no registry.")
    workers: list[Worker] = []
    try:
        await _show(workers)
    finally:
        for worker in workers:
            await worker.stop()
    print(f"\nAll processes have ended. The whole demo took {time.perf_counter() - started_at:.1f} s.")
    print("Next: the first program of README.md, in two terminals of your own.")


async def _show(workers: list[Worker]) -> None:
    from dht.swarm import Swarm

    step(1, "A first agent starts. Whoever knows its address can join; it is nothing more than the first.")
    network_key = secrets.token_bytes(NETWORK_KEY_SIZE_BYTES)
    seed_worker = await Worker.start(SEED_PROCESS, [], network_key)
    workers.append(seed_worker)
    seed_reports = await seed_worker.reports()
    seed = seed_reports[0]["address"]
    _tell_joined(SEED_PROCESS, seed_reports)

    step(2, f"The others join through that one address, {seed}: {AGENT_COUNT} agents in {PROCESS_COUNT} processes.")
    others = [await Worker.start(profiles, [seed], network_key) for profiles in OTHER_PROCESSES]
    workers.extend(others)
    for worker in others:
        _tell_joined(worker.profiles, await worker.reports())
    async with Swarm(make_agent(ARCHITECT), bootstrap=[seed], network_key=network_key) as swarm:
        status = swarm.status()
        tell(
            f"{ARCHITECT.name:5} {ARCHITECT.role:10} {status.listening[0]:17} id {status.id.hex()[:16]}  (this process)"
        )
        tell("Every connection is encrypted and proves both keys (Noise XX, X25519, AES-GCM; ids are key hashes).")
        await _show_stranger(seed)

        step(3, f"{ARCHITECT.name} looks for everybody who can do 'code-review'. No one has told her who or where.")
        before = time.perf_counter()
        found = await swarm.find("code-review")
        tell(f"{len(found)} agents in {_ms_since(before)}, each with a signed record, each probed a moment ago:")
        for agent in found:
            tell(f"  {agent}")

        step(4, f"She asks one of them: {TASK!r}")
        answer = await _ask(swarm)

        step(5, "Somebody joins, leaves a value with the swarm, and goes. Nobody holds it but the others.")
        key = await _leave_value(seed, network_key)

        killed = [answer.agent.name, next(agent.name for agent in found if agent.id != answer.agent.id)]
        step(
            6,
            f"{killed[0]}, who answered, and {killed[1]} are killed: their processes get SIGKILL, nobody says goodbye.",
        )
        for worker in others:
            if worker.profiles[0].name in killed:
                await worker.kill()
                tell(f"{worker.profiles[0].name} is dead (process {worker.process.pid}).")

        step(
            7, "The same question again. The records of the dead are still stored; she finds out and asks who is left."
        )
        answer = await _ask(swarm)
        assert answer.agent.name not in killed, "a dead agent cannot have answered"
        left = await swarm.find("code-review")
        tell(f"find('code-review') now returns {', '.join(agent.name for agent in left)}.")

        step(
            8, f"A newcomer joins through {ARCHITECT.name} and asks for the value. Two of those that kept it are dead."
        )
        await _read_value(status.listening[0], network_key, key)


async def _leave_value(seed: str, network_key: bytes) -> bytes:
    async with _node(seed, network_key) as node:
        report = await node.put(NOTE)
        others = report.stored - (report.key in node.store.held_keys())
        tell(f"{NOTE.decode()!r} is kept by {others} others, under the hash of it: {report.key.hex()[:16]}...")
    return report.key


async def _read_value(seed: str, network_key: bytes, key: bytes) -> None:
    async with _node(seed, network_key) as node:
        before = time.perf_counter()
        value = await node.get(key)
        assert value == NOTE, "nobody can change a value: its key is its hash"
        tell(f"found in {_ms_since(before)}: {value.decode()!r}")
        if key in node.store.held_keys():
            tell("It had it already: who comes to live near a key is handed a copy.")


@asynccontextmanager
async def _node(seed: str, network_key: bytes) -> AsyncGenerator[DHTNode]:
    """A member that is no agent."""
    from dht.node import DHTNode

    server = Server("127.0.0.1", 0, network_key=network_key)
    await server.start()
    node = DHTNode(server)
    try:
        await node.start()
        await node.join([seed])
        yield node
        await node.leave()
    finally:
        await node.stop()
        await server.stop(grace=0)


async def _show_stranger(address: str) -> None:
    """Without the network's key nobody gets past the handshake."""
    try:
        async with Client(address) as stranger:
            await stranger.call("_agent.info")
    except HandshakeFailed as error:
        tell(f"A stranger without the network's key is turned away: {error}.")
    else:
        raise AssertionError("a stranger was let in")


async def _ask(swarm: Any) -> Answer:
    before = time.perf_counter()
    answer: Answer = await swarm.ask("code-review", TASK)
    for attempt in answer.attempts:
        tell(f"{attempt.agent.name}: {attempt.end}{f' ({attempt.text})' if attempt.text else ''}")
    tell(f"answered in {_ms_since(before)}: {answer.result['result']}")
    return answer


def _tell_joined(profiles: Sequence[Profile], reports: Sequence[dict[str, Any]]) -> None:
    for profile, report in zip(profiles, reports, strict=True):
        who = f"{profile.name:5} {profile.role:10} {report['address']:17} id {report['id'][:16]}"
        tell(f"{who}  joined in {report['joined_ms']:.0f} ms, can {', '.join(profile.capabilities)}")


def _ms_since(before: float) -> str:
    return f"{(time.perf_counter() - before) * 1000:.0f} ms"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        _job = json.loads(sys.argv[1])
        _profiles = [Profile(item["name"], item["role"], tuple(item["capabilities"])) for item in _job["profiles"]]
        asyncio.run(work(_profiles, _job["seeds"]))
    else:
        asyncio.run(main())
