"""`synapse demo` and `make demo`: 24 agents in six processes find each other, share out work, and go on when a third of
them is killed.

Everything is real: processes, TCP on loopback, encryption, and the kill. Who the agents are and what they do is in
`demo_worker.py`. `python -m synapse_p2p.apps.demo` needs no package of the extra `cli`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import secrets
import shlex
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synapse_p2p.apps.cli import running
from synapse_p2p.apps.cli.blocks import Line, Tone
from synapse_p2p.apps.cli.exit_codes import CommandError, ExitCode
from synapse_p2p.apps.cli.running import RunningNode
from synapse_p2p.apps.cli.screen import Screen
from synapse_p2p.apps.demo_worker import PROCESSES, PROFILES, Profile, Worker
from synapse_p2p.client import Client
from synapse_p2p.exceptions import HandshakeFailed
from synapse_p2p.identity import NETWORK_KEY_SIZE_BYTES
from synapse_p2p.network_key import write_network_key
from synapse_p2p.server import Server
from synapse_p2p.signals import ENDING_SIGNALS

if TYPE_CHECKING:
    from dht.node import DHTNode
    from dht.swarm import Swarm

ABOUT = "24 agents in six processes find each other, share out work, and go on when a third of them is killed."
NOTE = b"the tests are green"
TASK = "a calculator"
WANTED = "code-review"
KILLED = (0, 3)
"""The processes that are killed: a third of the agents, and among them the one through which all others joined."""


class Story:
    """What is told meanwhile."""

    def __init__(self, tell: Callable[[Sequence[Line]], None]) -> None:
        self._tell = tell
        self._steps = 0

    def step(self, text: str) -> None:
        """A heading."""
        self._steps += 1
        self._tell([Line(""), Line(f"{self._steps}. {text}", Tone.HEADING)])

    def tell(self, text: str, tone: Tone = Tone.PLAIN) -> None:
        """A line below a heading."""
        self._tell([Line(f"   {text}", tone)])


async def demo(screen: Screen, *, keep: bool = False, is_json: bool = False) -> None:
    """Play it. The story is told on standard output, or with `is_json` on standard error, beside what was measured.
    With `keep` the swarm stays until Ctrl-C, to be explored. None of its processes outlives it. Raises CommandError
    where one of them does not come up.
    """

    def tell(lines: Sequence[Line]) -> None:
        if is_json:
            screen.say(*lines)
        else:
            screen.show(lines)

    started_at = time.perf_counter()
    tell([Line("Synapse P2P: agents that find each other by what they can do. No server, no broker, no registry.")])
    workers: list[Worker] = []
    network_key = secrets.token_bytes(NETWORK_KEY_SIZE_BYTES)
    try:
        measured = await _play(Story(tell), workers, network_key)
        took_s = measured["took_s"] = round(time.perf_counter() - started_at, 3)
        if keep:
            ended = _on_signal()
            async with _explorable(workers, network_key) as node:
                tell(_explore_lines(screen.program, node))
                if is_json:
                    screen.emit({**measured, "data_dir": node.folder, "seed": node.seed})
                await ended.wait()
        elif is_json:
            screen.emit(measured)
    finally:
        await asyncio.gather(*(worker.stop() for worker in workers))
    tell([Line(""), Line(f"All processes have ended. The whole demo took {took_s:.1f} s.", Tone.GOOD)])
    tell(screen.next_lines([] if keep else ["demo --keep", "up"]))


async def _play(story: Story, workers: list[Worker], network_key: bytes) -> dict[str, Any]:
    """All steps. The result is what was measured."""
    from dht.swarm import Swarm

    measured = {"agents": len(PROFILES), "processes": len(PROCESSES)}
    measured |= await _start_all(story, workers, network_key)
    await _show_stranger(story, workers[0].addresses[0])
    seeds = [worker.addresses[0] for worker in workers]  # of some members: any of them will do
    async with Swarm(bootstrap=seeds, network_key=network_key) as you:
        story.step(f"You come along, know some addresses and no names, and look for who can do {WANTED!r}.")
        before = time.perf_counter()
        found = await you.find(WANTED)
        found_ms = _ms_since(before)
        measured |= {"found": len(found), "found_ms": found_ms}
        story.tell(f"{len(found)} agents in {found_ms:.0f} ms, each with a signed record, each probed a moment ago:")
        story.tell(", ".join(sorted(agent.name for agent in found)), Tone.GOOD)

        story.step(f"You ask somebody who can 'design' for {TASK!r}. Agents look for agents, and share it out.")
        measured["asked_ms"] = await _ask(story, you, killed=[])

        story.step("Somebody joins, leaves a value with the swarm, and goes. Nobody holds it but the others.")
        key, measured["value_copies"] = await _leave_value(story, seeds, network_key)

        killed = await _kill(story, workers)
        measured["killed"] = len(killed)

        story.step("The same question again. Records of the dead are still there; who asks finds out, and goes on.")
        measured["asked_again_ms"] = await _ask(story, you, killed)
        found = await you.find(WANTED)
        measured["found_again"] = len(found)
        story.tell(f"find({WANTED!r}) now returns {', '.join(sorted(agent.name for agent in found))}.", Tone.GOOD)

        story.step("A newcomer joins through the last one alive, and asks for the value.")
        measured["value_ms"] = await _read_value(story, workers[-1].addresses[:1], network_key, key)
    return measured


async def _start_all(story: Story, workers: list[Worker], network_key: bytes) -> dict[str, Any]:
    story.step("A first agent starts. Whoever knows its address can join; it is nothing more than the first.")
    first = await _start(workers, PROCESSES[0], [], network_key)
    joined_ms = [_tell_joined(story, first.profiles, await first.reports())]

    seed = first.addresses[0]
    story.step(
        f"The others join through that one address, {seed}: {len(PROFILES)} agents in {len(PROCESSES)} processes."
    )
    for profiles in PROCESSES[1:]:
        await _start(workers, profiles, [seed], network_key)
    joined_ms += [_tell_joined(story, worker.profiles, await worker.reports()) for worker in workers[1:]]
    story.tell("Every connection is encrypted and proves both keys (Noise XX; an id is the hash of a key).")
    return {"joined_ms": round(max(joined_ms), 3)}


async def _start(workers: list[Worker], profiles: Sequence[Profile], seeds: list[str], network_key: bytes) -> Worker:
    """One more, which ends with us from here on: a Ctrl-C while it starts finds it among the others."""
    starting = asyncio.ensure_future(Worker.start(profiles, seeds, network_key))
    try:
        await asyncio.shield(starting)
    finally:
        workers.append(await starting)
    return workers[-1]


async def _kill(story: Story, workers: Sequence[Worker]) -> list[str]:
    """The names of those who are dead then."""
    killed = [name for place in KILLED for name in workers[place].names]
    story.step(f"{len(killed)} of {len(PROFILES)} are killed, the first one too: SIGKILL, nobody says goodbye.")
    for place in KILLED:
        await workers[place].kill()
        names = ", ".join(workers[place].names)
        story.tell(f"{names} are dead (process {workers[place].process.pid}).", Tone.BAD)
    return killed


async def _ask(story: Story, swarm: Swarm, killed: Sequence[str]) -> float:
    """How long the answer took, in ms."""
    before = time.perf_counter()
    stream = swarm.stream_ask("design", TASK, idempotent=True)
    async for item in stream:
        if not item["parts"]:
            story.tell(f"... {item['by']}: {item['did']} ({_ms_since(before):.0f} ms)", Tone.QUIET)
    answer = stream.answer
    took_ms = _ms_since(before)
    for attempt in answer.attempts[:-1]:
        text = f"({attempt.agent.name}: {attempt.end}{f', {attempt.text}' if attempt.text else ''})"
        story.tell(text, Tone.WARNING)
    story.tell(_said(answer.result))
    for part in answer.result["parts"]:
        story.tell("  " + "; ".join(map(_said, _walk(part))))
    workers = {result["by"] for result in _walk(answer.result)}
    assert workers.isdisjoint(killed), "a dead agent cannot have answered"
    story.tell(f"All of it in {took_ms:.0f} ms, by {len(workers)} agents.", Tone.GOOD)
    return took_ms


def _walk(result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What an agent did, and what those did whom it asked."""
    yield result
    for part in result["parts"]:
        yield from _walk(part)


def _said(result: dict[str, Any]) -> str:
    return f"{result['by']}, {result['role']}: {result['did']}"


async def _leave_value(story: Story, seeds: Sequence[str], network_key: bytes) -> tuple[bytes, int]:
    """Its key, and how many others keep it."""
    async with _node(seeds, network_key) as node:
        report = await node.put(NOTE)
        others = report.stored - (report.key in node.store.held_keys())
        story.tell(f"{NOTE.decode()!r} is kept by {others} others, under the hash of it: {report.key.hex()[:16]}...")
    return report.key, others


async def _read_value(story: Story, seeds: Sequence[str], network_key: bytes, key: bytes) -> float:
    """How long that took, in ms."""
    async with _node(seeds, network_key) as node:
        before = time.perf_counter()
        value = await node.get(key)
        took_ms = _ms_since(before)
        assert value == NOTE, "nobody can change a value: its key is its hash"
        story.tell(f"found in {took_ms:.0f} ms: {value.decode()!r}", Tone.GOOD)
        if key in node.store.held_keys():
            story.tell("It had it already: who comes to live near a key is handed a copy.")
    return took_ms


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


async def _show_stranger(story: Story, address: str) -> None:
    """Without the network's key nobody gets past the handshake."""
    try:
        async with Client(address) as stranger:
            await stranger.call("_agent.info")
    except HandshakeFailed as error:
        story.tell(f"A stranger without the key is turned away: {str(error).partition(';')[0]}.")
    else:
        raise AssertionError("a stranger was let in")


def _on_signal() -> asyncio.Event:
    """Set when somebody ends us."""
    ended = asyncio.Event()
    with contextlib.suppress(NotImplementedError):  # Windows: there Ctrl-C cancels us
        for number in ENDING_SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, ended.set)
    return ended


@contextlib.asynccontextmanager
async def _explorable(workers: Sequence[Worker], network_key: bytes) -> AsyncGenerator[RunningNode]:
    """A member in this process, as `up` makes one: commands find it by its folder, which ends with it."""
    from dht.swarm import Swarm

    seeds = [worker.addresses[0] for worker in workers if worker.process.returncode is None]
    with tempfile.TemporaryDirectory(prefix="synapse-demo-") as folder:
        key_file = Path(folder, "network.key")
        write_network_key(key_file, network_key)
        async with Swarm(listen="127.0.0.1:0", bootstrap=seeds, network_key=network_key, data_dir=folder) as swarm:
            node = running.this_process(swarm.status(), name="the demo", folder=folder, network_key_file=str(key_file))
            running.leave(node)
            yield node


def _explore_lines(program: str, node: RunningNode) -> list[Line]:
    where = f"--data-dir {shlex.quote(node.folder)}"
    commands = [
        f"watch {where}",
        f"find coding {where}",
        f'ask design "a clock" --stream {where}',
        f"up --seed {node.address} --network-key-file {shlex.quote(node.network_key_file)}",
    ]
    return [
        Line(""),
        Line("The swarm goes on, and this process is a member too. In another terminal:", Tone.HEADING),
        *(Line(f"  {program} {command}", Tone.COMMAND) for command in commands),
        Line("Ctrl-C ends it all.", Tone.QUIET),
    ]


def _tell_joined(story: Story, profiles: Sequence[Profile], reports: Sequence[dict[str, Any]]) -> float:
    """How long the slowest took, in ms."""
    slowest_ms: float = max(report["joined_ms"] for report in reports)
    who = ", ".join(f"{profile.name} ({profile.role})" for profile in profiles)
    story.tell(f"{who}: joined, each within {slowest_ms:.0f} ms")
    return slowest_ms


def _ms_since(before: float) -> float:
    return round((time.perf_counter() - before) * 1000, 3)


def main() -> int:
    """The same without the extra `cli`; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m synapse_p2p.apps.demo", description=ABOUT)
    parser.add_argument("--keep", action="store_true", help="leave the swarm running, until Ctrl-C")
    parser.add_argument("--json", action="store_true", help="print what was measured, as one JSON object")
    options = parser.parse_args()
    # As it was called: after `make demo` no other `python` of the user's knows us.
    screen = Screen(f"{shlex.quote(sys.orig_argv[0])} -m synapse_p2p")
    try:
        asyncio.run(demo(screen, keep=options.keep, is_json=options.json))
    except CommandError as error:
        screen.say_error(str(error), error.next_commands)
        return error.code
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
