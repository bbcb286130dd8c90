"""What people read of what a command found: maps of plain values come in, blocks go out. Pure.

The maps are those that `--json` prints; docs/how-to/command_line.md has their keys.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dht.introduction import WILDCARDS
from dht.results import SwarmStatus
from synapse_p2p.apps.cli.blocks import Block, Line, Table, Tone, json_line, json_text
from synapse_p2p.transport.base import format_address, is_loopback, parse_address

SHORT_ID_CHARS = 16
LABEL_WIDTH = 12
LATE_S = 0.2  # of the event loop: people feel it, and calls on the same machine take longer


@dataclass(frozen=True, slots=True)
class Started:
    """A node that has just come up. `folder` and `network_key_file` are empty where there are none; so is
    `capability`, the first that its agent has.
    """

    status: SwarmStatus
    folder: str
    has_network_key: bool
    capability: str
    network_key_file: str

    @property
    def seed(self) -> str:
        """Through which others join: the address that they can dial, as far as we know, and the id behind it."""
        address = next(iter(self.status.advertised or self.status.listening), "")
        if not address:
            return ""
        host, port = parse_address(address)
        return f"{self.status.id.hex()}@{format_address(WILDCARDS.get(host, host), port)}"

    def as_map(self) -> dict[str, Any]:
        """For programs."""
        status = self.status
        return {
            "id": status.id.hex(),
            "network": status.network,
            "has_network_key": self.has_network_key,
            "listening": list(status.listening),
            "advertised": list(status.advertised),
            "seeds_joined": status.seeds_joined,
            "seeds_tried": status.seeds_tried,
            "capabilities": list(status.capabilities),
            "data_dir": self.folder,
            "seed": self.seed,
        }


def view_of_start(started: Started, program: str) -> list[Block]:
    """Who and where it is, and what to type in another terminal."""
    status = started.status
    advertised = ", ".join(status.advertised)
    if not advertised:
        advertised = "not yet known: no peer has told us how it sees us" if status.listening else "nowhere (a client)"
    joined = f"{status.seeds_joined} of {status.seeds_tried} seeds" if status.seeds_tried else "no seeds: a first node"
    blocks: list[Block] = [
        _labelled("id", status.id.hex()),
        _labelled("listening", ", ".join(status.listening) or "nowhere (a client)"),
        _labelled("advertised", advertised),
        _labelled("joined", joined, Tone.PLAIN if status.seeds_joined or not status.seeds_tried else Tone.WARNING),
    ]
    if started.folder:
        blocks.append(_labelled("key kept in", started.folder))
    is_reachable = any(not is_loopback(parse_address(listening)[0]) for listening in status.listening)
    if is_reachable and not started.has_network_key:
        blocks.append(Line("open swarm: anyone who reaches this port may ask", Tone.WARNING))
    blocks.append(Line("In another terminal:", Tone.QUIET))
    here = ["status", *_capability_commands(started.capability)] if started.folder else []
    blocks += [Line(f"  {program} {command}", Tone.COMMAND) for command in here]
    if started.seed:
        named = f" --network {shlex.quote(status.network)}" if status.network else ""
        keyed = f" --network-key-file {shlex.quote(started.network_key_file or 'FILE')}"
        keyed = keyed if started.has_network_key else ""
        blocks.append(Line(f"  {program} up --seed {started.seed}{named}{keyed}", Tone.COMMAND))
    blocks.append(Line("Ctrl-C leaves the swarm in good order.", Tone.QUIET))
    return blocks


def view_of_status(status: Mapping[str, Any]) -> list[Block]:
    """One node, from `_swarm.status` and `_synapse.stats`."""
    agent, record, stats = status["agent"], status["record"], status["stats"]
    size = status["size_estimate"]
    blocks: list[Block] = [] if agent is None else [_labelled("agent", f"{agent['name']} ({agent['role']})")]
    blocks += [
        _labelled("id", status["id"]),
        _labelled("network", _network_text(status)),
        _labelled("up", f"{span(status['uptime_s'])}, release {status['version']}"),
        _labelled("listening", ", ".join(status["listening"]) or "nowhere"),
        _labelled("advertised", ", ".join(status["advertised"]) or "not yet known"),
        _labelled(
            "joined",
            f"{status['seeds_joined']} of {status['seeds_tried']} seeds"
            if status["seeds_tried"]
            else "no seeds: a first node",
        ),
        _labelled(
            "contacts",
            f"{status['contacts']}, of whom {status['suspects']} failed lately; {status['sessions']} sessions",
            Tone.PLAIN if status["is_connected"] or not status["seeds_tried"] else Tone.WARNING,
        ),
        _labelled("network of", "not yet known" if size is None else f"about {max(1, round(size))} nodes"),
        _labelled("keeps", f"{status['records_held']} records for others, and has put {status['own_values']} values"),
        _labelled("calls", f"{status['calls_served']} served; {stats['calls_in']['in_flight']} run or wait now"),
        _labelled("traffic", f"{_size(stats['received_bytes'])} in, {_size(stats['sent_bytes'])} out"),
        *_trouble_lines(stats),
    ]
    if agent is not None:
        blocks += [
            _labelled("offers", ", ".join(agent["capabilities"]) or "nothing"),
            _labelled(
                "tasks",
                f"{agent['running']} of {agent['max_tasks']} running, {agent['waiting']} of {agent['queue']} waiting",
            ),
        ]
    if record is not None:
        blocks.append(_labelled("record", *_record_text(record)))
    return blocks


def view_of_peers(found: Mapping[str, Any]) -> list[Block]:
    """Whom a node knows, from `_swarm.peers`."""
    if not found["peers"] and not found["guests"]:
        return [Line("It knows nobody.", Tone.WARNING)]
    rows = [
        (
            peer["id"][:SHORT_ID_CHARS],
            "suspect" if peer["is_suspect"] else "connected" if peer["is_connected"] else "known",
            f"{span(peer['seen_s'])} ago",
            ", ".join(peer["addresses"]),
        )
        for peer in found["peers"]
    ]
    rows += [(guest[:SHORT_ID_CHARS], "guest", "now", "it dialed us") for guest in found["guests"]]
    left_out = found["count"] + found["guest_count"] - len(rows)
    blocks: list[Block] = [Table(("ID", "STATE", "SEEN", "ADDRESS"), tuple(rows))]
    return [*blocks, Line(f"and {left_out} more", Tone.QUIET)] if left_out > 0 else blocks


AGENT_HEADINGS = ("NAME", "ROLE", "ID", "ADDRESS", "AGE", "CAPABILITIES")


def agent_row(agent: Mapping[str, Any]) -> tuple[str, ...]:
    """One agent under `AGENT_HEADINGS`."""
    return (
        agent["name"],
        agent["role"],
        agent["id"][:SHORT_ID_CHARS],
        ", ".join(agent["addresses"]) or "calls us only",
        span(agent["age_s"]),
        ", ".join(agent["capabilities"]),
    )


def view_of_agents(found: Mapping[str, Any]) -> list[Block]:
    """Agents found, and whether they are all."""
    blocks: list[Block] = []
    if found["agents"]:
        blocks.append(Table(AGENT_HEADINGS, tuple(map(agent_row, found["agents"]))))
    if not found["complete"]:
        blocks.append(Line(f"maybe not all: {found['reason']}", Tone.WARNING))
    if found.get("explanation"):
        blocks += [Line(line, Tone.QUIET) for line in found["explanation"].splitlines()]
    return blocks


def view_of_answer(found: Mapping[str, Any]) -> list[Block]:
    """What an agent answered: text as it is, all else indented JSON."""
    return [Line(line) for line in value_text(found["result"]).splitlines() or [""]]


def attempts_lines(attempts: Sequence[Mapping[str, Any]]) -> list[Line]:
    """Who was tried for a task, and how it ended."""
    return [
        Line(
            f"{attempt['agent']} {attempt['end']} in {attempt['took_s'] * 1000:.0f} ms"
            + (f": {attempt['text']}" if attempt["text"] else ""),
            Tone.QUIET,
        )
        for attempt in attempts
    ]


def view_of_description(found: Mapping[str, Any]) -> list[Block]:
    """What some agents, or one server, can do in full."""
    blocks: list[Block] = []
    for each in found["described"]:
        role = f" ({each['role']})" if each["role"] else ""
        blocks.append(Line(f"{each['name'] or 'a server'}{role} at {each['address'] or 'no address'}", Tone.GOOD))
        blocks.append(_labelled("id", each["id"]))
        if each["description"]:
            blocks.append(_labelled("says", each["description"]))
        for capability in each["capabilities"]:
            blocks += _capability_lines(capability)
        for method in each["methods"]:
            blocks.append(_labelled("endpoint", _joined(" - ", method["name"], method["description"])))
        if each["problem"]:
            blocks.append(Line(f"  {each['problem']}", Tone.WARNING))
    return blocks


_MARKS = {
    "ok": ("ok", Tone.GOOD),
    "warning": ("!", Tone.WARNING),
    "failed": ("FAILED", Tone.BAD),
    "skipped": ("-", Tone.QUIET),
}


def view_of_checks(found: Mapping[str, Any]) -> list[Block]:
    """What `doctor` looked at, each with what to do about it."""
    blocks: list[Block] = []
    for check in found["checks"]:
        mark, tone = _MARKS[check["state"]]
        blocks.append(Line(f"{mark:8}{check['name']:14}{check['text']}", tone))
        if check["next"]:
            blocks.append(Line(f"{'':22}next: {check['next']}", Tone.COMMAND))
    failed = sum(check["state"] == "failed" for check in found["checks"])
    verdict = "healthy" if found["healthy"] else f"{failed} of {len(found['checks'])} checks failed"
    return [*blocks, Line(verdict, Tone.GOOD if found["healthy"] else Tone.BAD)]


def view_of_keys(found: Mapping[str, Any]) -> list[Block]:
    """Key files, and the ids in them."""
    blocks: list[Block] = []
    for key in found["keys"]:
        blocks.append(_labelled("id", key["id"] or "not to be read", Tone.PLAIN if key["id"] else Tone.BAD))
        blocks.append(_labelled("key in", f"{key['path']}{', in use' if key['runs'] else ''}"))
        if key.get("operator_id"):
            blocks.append(_labelled("operator", key["operator_id"]))
        if key["problem"]:
            blocks.append(_labelled("problem", key["problem"], Tone.WARNING))
    return blocks


def view_of_pairs(found: Mapping[str, Any]) -> list[Block]:
    """Each name with its value; what is empty is left out."""
    return [_labelled(name.replace("_", " "), str(value)) for name, value in found.items() if value != ""]


def value_text(value: Any) -> str:
    """A value that came over the wire, for people."""
    return value if isinstance(value, str) else json_text(value)


def span(seconds: float) -> str:
    """A time that passed, in its largest unit: `3 s`, `12 min`, `5 h`, `2 d`."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def _labelled(label: str, text: str, tone: Tone = Tone.PLAIN) -> Line:
    return Line(f"{label:{LABEL_WIDTH}}{text}", tone)


def _joined(between: str, *texts: str) -> str:
    return between.join(text for text in texts if text)


def _capability_commands(capability: str) -> list[str]:
    return [f"find {capability}", f'ask {capability} "Hello"'] if capability else ["find CAPABILITY"]


def _network_text(status: Mapping[str, Any]) -> str:
    name = status["network"] or "the open one without a name"
    return f"{name}, {'with a key' if status['has_network_key'] else 'without a key'}"


def _trouble_lines(stats: Mapping[str, Any]) -> list[Block]:
    """What has gone wrong lately, or at the door; nothing where nothing has."""
    blocks: list[Block] = []
    refused = sorted(stats["handshakes_refused"].items(), key=lambda each: -each[1])
    reasons = ", ".join(f"{reason} {count}" for reason, count in refused if count)
    if reasons:
        blocks.append(_labelled("refused", f"connections: {reasons}"))
    lag = stats["loop_lag"]
    if lag is not None and lag["max_s"] >= LATE_S:
        blocks.append(_labelled("event loop", f"was {lag['max_s']:.1f} s late in the last minutes", Tone.WARNING))
    return blocks


def _size(size_bytes: int) -> str:
    """In its largest unit: `512 B`, `1.5 kB`, `20.0 MB`."""
    for size, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size_bytes >= size:
            return f"{size_bytes / size:.1f} {unit}"
    return f"{size_bytes} B"


def _record_text(record: Mapping[str, Any]) -> tuple[str, Tone]:
    expires_in_s = record["expires_in_s"]
    if record["is_revoked"]:
        return "its key was revoked for good", Tone.BAD
    if expires_in_s is None:
        return "not yet published", Tone.WARNING
    kept = [each for each in record["capabilities"] if each["is_kept"]]
    text = f"kept under {len(kept)} of {len(record['capabilities'])} names"
    if expires_in_s <= 0:
        return f"{text}; it expired {span(-expires_in_s)} ago", Tone.BAD
    tone = Tone.PLAIN if len(kept) == len(record["capabilities"]) else Tone.WARNING
    return f"{text}; {span(expires_in_s)} left", tone


def _capability_lines(capability: Mapping[str, Any]) -> list[Block]:
    version = f" {capability['version']}" if capability["version"] else ""
    blocks: list[Block] = [
        _labelled("capability", _joined(" - ", f"{capability['name']}{version}", capability["description"]))
    ]
    for label, name in (("takes", "input_schema"), ("returns", "output_schema"), ("attributes", "attributes")):
        if capability[name]:
            blocks.append(Line(f"{'':{LABEL_WIDTH}}{label} {json_line(capability[name])}", Tone.QUIET))
    return blocks
