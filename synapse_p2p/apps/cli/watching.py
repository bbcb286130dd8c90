"""`watch`: a live view of a swarm, as the node on this machine sees it: agents, calls, who comes and who is lost.

`Watched` is pure: what the node tells comes in, what has happened since goes out.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from synapse_p2p.apps.cli.blocks import Block, Line, Table, Tone
from synapse_p2p.apps.cli.connecting import called, operated_place, operator_client
from synapse_p2p.apps.cli.screen import Screen, is_coloured, renderables
from synapse_p2p.apps.cli.settings import Settings
from synapse_p2p.apps.cli.views import AGENT_HEADINGS, agent_row, span

MAX_HAPPENINGS = 12
"""Lines of what happened last, under the agents: a screen has 24 or more."""
MAX_AGENTS_SHOWN = 64
_TONES = {"joined": Tone.GOOD, "agent": Tone.GOOD, "suspected": Tone.WARNING, "left": Tone.BAD, "gone": Tone.BAD}
_WORDS = {
    "watching": "is watched",
    "joined": "joined",
    "suspected": "does not answer",
    "left": "left, or is lost",
    "agent": "offers",
    "gone": "offers nothing any more",
    "calls": "calls served",
    "disconnected": "nearly nobody answers: is this machine's network down?",
    "reconnected": "somebody answers again",
    "dropped": "events were lost here",
}


class Watched:
    """What is known of the swarm by now. `happened` is what a screen shows below the agents, the last of it."""

    def __init__(self) -> None:
        self.status: Mapping[str, Any] = {}
        self.agents: dict[str, Mapping[str, Any]] = {}
        self.happened: deque[Mapping[str, Any]] = deque(maxlen=MAX_HAPPENINGS)

    def on_look(
        self, status: Mapping[str, Any], agents: Sequence[Mapping[str, Any]], events: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        """What has happened since the last look, oldest first. The first look begins with `watching`, and finds all
        agents that are there.
        """
        now_there = {agent["id"]: agent for agent in agents}
        names = {node_id: agent["name"] for node_id, agent in (*self.agents.items(), *now_there.items())}
        happened: list[dict[str, Any]] = []
        is_first = not self.status
        if is_first:
            own = status["agent"]
            happened.append({"event": "watching", "id": status["id"], "name": "" if own is None else own["name"]})
        happened += [
            {"event": each["event"], "id": each.get("id", ""), "name": names.get(each.get("id", ""), "")}
            for each in events
            if each["event"] not in ("stored", "expired")  # renewals: they come every few minutes of everybody
        ]
        happened += [
            {"event": "agent", "id": each["id"], "name": each["name"], "capabilities": each["capabilities"]}
            for each in agents
            if self._is_news(each)
        ]
        happened += [
            {"event": "gone", "id": each["id"], "name": each["name"]}
            for each in self.agents.values()
            if each["id"] not in now_there
        ]
        calls = status["calls_served"] - self.status.get("calls_served", status["calls_served"])
        if calls > 0:
            happened.append({"event": "calls", "id": status["id"], "name": "", "count": calls})
        self.status, self.agents = status, now_there
        self.happened.extend(happened[:1] if is_first else happened)  # who is there at first is in the table
        return happened

    def _is_news(self, agent: Mapping[str, Any]) -> bool:
        known = self.agents.get(agent["id"])
        return known is None or known["capabilities"] != agent["capabilities"]


def view_of_watched(watched: Watched) -> list[Block]:
    """The whole screen."""
    status = watched.status
    own = status["agent"]
    size = status["size_estimate"]
    blocks: list[Block] = [
        Line(
            f"{'a node' if own is None else own['name']} {status['id'][:16]}, up {span(status['uptime_s'])}"
            + ("" if size is None else f", in a network of about {max(1, round(size))} nodes"),
            Tone.HEADING,
        ),
        Line(
            f"{status['contacts']} contacts, {status['suspects']} of whom failed lately; "
            f"{status['sessions']} sessions; {status['calls_served']} calls served",
            Tone.QUIET,
        ),
    ]
    if own is not None:
        blocks.append(
            Line(f"tasks: {own['running']} of {own['max_tasks']} running, {own['waiting']} waiting", Tone.QUIET)
        )
    agents = list(watched.agents.values())
    if agents:
        rows = tuple((*agent_row(each), "" if each["is_known"] else "silent") for each in agents[:MAX_AGENTS_SHOWN])
        blocks.append(Table((*AGENT_HEADINGS, ""), rows))
    else:
        blocks.append(Line("no other agent has a record here", Tone.QUIET))
    if len(agents) > MAX_AGENTS_SHOWN:
        blocks.append(Line(f"and {len(agents) - MAX_AGENTS_SHOWN} more", Tone.QUIET))
    return [*blocks, Line(""), *map(happening_line, watched.happened)]


def happening_line(happening: Mapping[str, Any]) -> Line:
    """One thing that happened."""
    event = happening["event"]
    who = f"{happening['name']} {happening['id'][:16]}".strip()
    words = _WORDS.get(event, event)
    match event:
        case "agent":
            text = f"{who} {words} {', '.join(happening['capabilities'])}"
        case "calls":
            text = f"{happening['count']} {words}"
        case _:
            text = f"{who} {words}".strip()
    return Line(text, _TONES.get(event, Tone.PLAIN))


async def watch(
    settings: Settings,
    screen: Screen,
    *,
    interval_s: float,
    seconds: float | None,
    emit: Callable[[Mapping[str, Any]], None] | None,
) -> None:
    """Look every `interval_s`, for `seconds` or until Ctrl-C. `emit` is told of each thing that happens; without it a
    terminal shows a view that is drawn anew, and a pipe gets a line for each thing.
    """
    place, node = operated_place(settings, screen)
    watched, is_live = Watched(), emit is None and is_coloured(sys.stdout)
    loop = asyncio.get_running_loop()
    until = None if seconds is None else loop.time() + seconds
    async with operator_client(place, node) as client:
        last = (await called(node, client, "_swarm.events", after=None))["last"]
        with _Live(is_live) as live:
            while True:
                status = await called(node, client, "_swarm.status")
                agents = await called(node, client, "_swarm.agents")
                events = await called(node, client, "_swarm.events", after=last)
                last = events["last"]
                happened = watched.on_look(status, agents["agents"], events["events"])
                if emit is not None:
                    for happening in happened:
                        emit(happening)
                elif is_live:
                    live.draw(view_of_watched(watched))
                else:
                    screen.show(map(happening_line, happened))
                if until is not None and loop.time() + interval_s > until:
                    return
                await asyncio.sleep(interval_s)


class _Live:
    """A part of the terminal that is drawn again and again; nothing where there is no terminal."""

    def __init__(self, is_wanted: bool) -> None:
        self._live: Any = None
        if is_wanted:
            from rich.live import Live

            self._live = Live(auto_refresh=False, screen=False, vertical_overflow="crop")

    def __enter__(self) -> _Live:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def draw(self, blocks: Sequence[Block]) -> None:
        from rich.console import Group

        self._live.update(Group(*renderables(blocks)), refresh=True)
