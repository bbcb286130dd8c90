"""`make demo`: 24 agents in six processes find each other, share out work, and go on when a third of them is killed.

Everything is real: processes, TCP on loopback, encryption, and the kill. Who the agents are and what they do is in
`demo_worker.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import secrets
import sys
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from synapse_p2p.apps.demo_worker import PROCESSES, PROFILES, Profile, Worker
from synapse_p2p.client import Client
from synapse_p2p.exceptions import HandshakeFailed
from synapse_p2p.identity import NETWORK_KEY_SIZE_BYTES
from synapse_p2p.server import Server
from synapse_p2p.signals import ENDING_SIGNALS

if TYPE_CHECKING:
    from dht.node import DHTNode
    from dht.swarm import Swarm

NOTE = b"the tests are green"
TASK = "a calculator"
KILLED = (0, 3)
"""The processes that are killed: a third of the agents, and among them the one through which all others joined."""


class Show:
    """What is on the screen."""

    def __init__(self) -> None:
        self._steps = 0

    def step(self, text: str) -> None:
        """A heading."""
        self._steps += 1
        print(f"\n{self._steps}. {text}", flush=True)

    def tell(self, text: str) -> None:
        """A line below a heading."""
        print(f"   {text}", flush=True)


async def main(*, keep: bool = False) -> None:
    """The demo. With `keep` the swarm stays until Ctrl-C, to be explored."""
    started_at = time.perf_counter()
    print("Synapse P2P: agents that find each other by what they can do. No server, no broker, no registry.")
    workers: list[Worker] = []
    network_key = secrets.token_bytes(NETWORK_KEY_SIZE_BYTES)
    try:
        await _play(Show(), workers, network_key)
        took_s = time.perf_counter() - started_at
        if keep:
            await _keep(workers, network_key)
    finally:
        await asyncio.gather(*(worker.stop() for worker in workers))
    print(f"\nAll processes have ended. The whole demo took {took_s:.1f} s.")
    print("Next: the first program of README.md, in two terminals of your own.")


async def _play(show: Show, workers: list[Worker], network_key: bytes) -> None:
    from dht.swarm import Swarm

    show.step("A first agent starts. Whoever knows its address can join; it is nothing more than the first.")
    first = await Worker.start(PROCESSES[0], [], network_key)
    workers.append(first)
    _tell_joined(show, first.profiles, await first.reports())

    seed = first.addresses[0]
    show.step(
        f"The others join through that one address, {seed}: {len(PROFILES)} agents in {len(PROCESSES)} processes."
    )
    workers += [await Worker.start(profiles, [seed], network_key) for profiles in PROCESSES[1:]]
    for worker in workers[1:]:
        _tell_joined(show, worker.profiles, await worker.reports())
    show.tell("Every connection is encrypted and proves both keys (Noise XX, X25519, AES-GCM; ids are key hashes).")
    await _show_stranger(show, seed)

    seeds = [worker.addresses[0] for worker in workers]  # of some members: any of them will do
    async with Swarm(bootstrap=seeds, network_key=network_key) as you:
        show.step("You come along, know some addresses and no names, and look for everybody who can do 'code-review'.")
        before = time.perf_counter()
        found = await you.find("code-review")
        show.tell(f"{len(found)} agents in {_ms_since(before)}, each with a signed record, each probed a moment ago:")
        show.tell(", ".join(sorted(agent.name for agent in found)))

        show.step(
            f"You ask somebody who can 'design' for {TASK!r}. The work is shared out by agents that look for agents."
        )
        await _ask(show, you, killed=[])

        show.step("Somebody joins, leaves a value with the swarm, and goes. Nobody holds it but the others.")
        key = await _leave_value(show, seeds, network_key)

        killed = [name for place in KILLED for name in workers[place].names]
        show.step(f"{len(killed)} of {len(PROFILES)} are killed, the first one too: SIGKILL, nobody says goodbye.")
        for place in KILLED:
            await workers[place].kill()
            show.tell(f"{', '.join(workers[place].names)} are dead (process {workers[place].process.pid}).")

        show.step("The same question again. Records of the dead are still stored; whoever asks finds out, and goes on.")
        await _ask(show, you, killed)
        found = await you.find("code-review")
        show.tell(f"find('code-review') now returns {', '.join(sorted(agent.name for agent in found))}.")

        show.step("A newcomer joins through the last one alive, and asks for the value.")
        await _read_value(show, workers[-1].addresses[:1], network_key, key)


async def _ask(show: Show, swarm: Swarm, killed: Sequence[str]) -> None:
    before = time.perf_counter()
    stream = swarm.stream_ask("design", TASK, idempotent=True)
    async for item in stream:
        if not item["parts"]:
            show.tell(f"... {item['by']}: {item['did']} ({_ms_since(before)})")
    answer = stream.answer
    took = _ms_since(before)
    for attempt in answer.attempts[:-1]:
        show.tell(f"({attempt.agent.name}: {attempt.end}{f', {attempt.text}' if attempt.text else ''})")
    workers = set()
    for depth, result in _walk(answer.result):
        workers.add(result["by"])
        show.tell(f"{'  ' * depth}{result['by']}, {result['role']}: {result['did']}")
    assert workers.isdisjoint(killed), "a dead agent cannot have answered"
    show.tell(f"All of it in {took}, by {len(workers)} agents.")


def _walk(result: dict[str, Any], depth: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    yield depth, result
    for part in result["parts"]:
        yield from _walk(part, depth + 1)


async def _leave_value(show: Show, seeds: Sequence[str], network_key: bytes) -> bytes:
    async with _node(seeds, network_key) as node:
        report = await node.put(NOTE)
        others = report.stored - (report.key in node.store.held_keys())
        show.tell(f"{NOTE.decode()!r} is kept by {others} others, under the hash of it: {report.key.hex()[:16]}...")
    return report.key


async def _read_value(show: Show, seeds: Sequence[str], network_key: bytes, key: bytes) -> None:
    async with _node(seeds, network_key) as node:
        before = time.perf_counter()
        value = await node.get(key)
        assert value == NOTE, "nobody can change a value: its key is its hash"
        show.tell(f"found in {_ms_since(before)}: {value.decode()!r}")
        if key in node.store.held_keys():
            show.tell("It had it already: who comes to live near a key is handed a copy.")


@contextlib.asynccontextmanager
async def _node(seeds: Sequence[str], network_key: bytes) -> AsyncGenerator[DHTNode]:
    """A member that is no agent."""
    from dht.node import DHTNode

    server = Server("127.0.0.1", 0, network_key=network_key)
    await server.start()
    node = DHTNode(server)
    try:
        await node.start()
        await node.join(seeds)
        yield node
        await node.leave()
    finally:
        await node.stop()
        await server.stop(grace=0)


async def _show_stranger(show: Show, address: str) -> None:
    """Without the network's key nobody gets past the handshake."""
    try:
        async with Client(address) as stranger:
            await stranger.call("_agent.info")
    except HandshakeFailed as error:
        show.tell(f"A stranger without the network's key is turned away: {error}.")
    else:
        raise AssertionError("a stranger was let in")


async def _keep(workers: Sequence[Worker], network_key: bytes) -> None:
    """Say how to reach the swarm, and wait until somebody ends it."""
    alive = [worker for worker in workers if worker.process.returncode is None]
    print(f"\nThe swarm goes on until you press Ctrl-C. Members: {' '.join(worker.addresses[0] for worker in alive)}")
    ended = asyncio.Event()
    with contextlib.suppress(NotImplementedError):  # Windows: there Ctrl-C cancels this
        for number in ENDING_SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, ended.set)
    print(f"Its key: {network_key.hex()}", flush=True)
    await ended.wait()


def _tell_joined(show: Show, profiles: Sequence[Profile], reports: Sequence[dict[str, Any]]) -> None:
    slowest_ms = max(report["joined_ms"] for report in reports)
    who = ", ".join(f"{profile.name} ({profile.role})" for profile in profiles)
    show.tell(f"{who}: joined, each within {slowest_ms:.0f} ms")


def _ms_since(before: float) -> str:
    return f"{(time.perf_counter() - before) * 1000:.0f} ms"


if __name__ == "__main__":
    _parser = argparse.ArgumentParser(prog="python -m synapse_p2p.apps.demo", description=__doc__)
    _parser.add_argument("--keep", action="store_true", help="leave the swarm running, until Ctrl-C")
    try:
        asyncio.run(main(keep=_parser.parse_args().keep))
    except KeyboardInterrupt:
        sys.exit(0)
