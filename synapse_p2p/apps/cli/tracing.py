"""`trace`: one lookup, step by step, and the drawing of it.

`drawing` is pure: the map that `--json` prints comes in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from synapse_p2p.apps.cli.blocks import Block, Line, Table, Tone
from synapse_p2p.apps.cli.connecting import entered, in_time, place_of
from synapse_p2p.apps.cli.settings import Settings

BAR_CHARS = 32
ID_BITS = 256
_ENDS = {"answered": "answered", "failed": "FAILED", "": "left behind"}


async def trace(settings: Settings, target: str | None) -> dict[str, Any]:
    """A lookup for an id, for the key of a capability, or for a random key. Raises ConfigError for another target."""
    from dht.agents.index import capability_root
    from dht.contact import Contact
    from synapse_p2p.capability import normalize_capability
    from synapse_p2p.identity import network_id_of, parse_node_id
    from synapse_p2p.runtime import system_runtime

    place = place_of(settings)
    if target is None:
        key, what = system_runtime().token_bytes(32), "a random key"
    elif len(target) == 64:
        key, what = parse_node_id(target), "the node with this id"
    else:
        key = capability_root(network_id_of(place.network), normalize_capability(target))
        what = f"those who know of {target}"
    point = Contact(key, ()).point
    async with entered(place, settings) as swarm:
        outcome = await in_time(swarm.lookup(key), settings, "the lookup is not over")
    began = outcome.trace[0].at if outcome.trace else 0.0

    def bits(node_id: bytes) -> int:
        return ID_BITS - (Contact(node_id, ()).point ^ point).bit_length()

    return {
        "target": key.hex(),
        "what": what,
        "hops": outcome.hops,
        "asked": outcome.asked,
        "failed": outcome.failed,
        "complete": outcome.complete,
        "steps": [
            {
                "at_ms": round((step.at - began) * 1000, 3),
                "event": step.event.value,
                "id": step.contact_id.hex(),
                "bits": bits(step.contact_id),
                "depth": step.depth,
                "path": step.path,
                "why": "" if step.why is None else step.why.value,
            }
            for step in outcome.trace
        ],
        "closest": [
            {"id": contact.id.hex(), "bits": bits(contact.id), "addresses": list(contact.addresses)}
            for contact in outcome.closest
        ],
    }


def drawing(found: Mapping[str, Any]) -> list[Block]:
    """A row for each node asked, in order: how deep it was met, how many bits it has in common with the target, and
    when it was asked and answered.
    """
    asked: dict[str, dict[str, Any]] = {}
    for step in found["steps"]:
        if step["event"] == "asked":
            asked[step["id"]] = {**step, "end": "", "end_ms": None, "is_slow": False}
        elif step["id"] in asked and step["event"] == "slow":
            asked[step["id"]]["is_slow"] = True
        elif step["id"] in asked:
            asked[step["id"]].update(end=step["event"], end_ms=step["at_ms"])
    last_ms = max([step["at_ms"] for step in found["steps"]], default=0.0)
    rows = tuple(
        (
            str(each["depth"]),
            each["id"][:16],
            str(each["bits"]),
            _bar(each["at_ms"], last_ms if each["end_ms"] is None else each["end_ms"], last_ms, each["end"]),
            _end_text(each),
            each["why"],
        )
        for each in asked.values()
    )
    nearest = found["closest"][0] if found["closest"] else None
    ends = "nobody answered" if nearest is None else f"nearest: {nearest['id'][:16]}, {nearest['bits']} bits in common"
    blocks: list[Block] = [Line(f"lookup of {found['what']}, {found['target'][:16]}")]
    if rows:
        blocks.append(Table(("DEPTH", "NODE", "BITS", f"0 to {last_ms:.0f} ms", "", "WHY"), rows))
    summary = f"{found['asked']} asked, {found['failed']} failed, {found['hops'] or 0} hops; {ends}"
    return [*blocks, Line(summary, Tone.GOOD if found["complete"] else Tone.WARNING)]


def _bar(start_ms: float, end_ms: float, last_ms: float, end: str) -> str:
    scale = (BAR_CHARS - 1) / last_ms if last_ms else 0.0
    first, last = round(start_ms * scale), round(end_ms * scale)
    mark = {"answered": "o", "failed": "x"}.get(end, ".")
    return f"{' ' * first}{'-' * (last - first)}{mark}".ljust(BAR_CHARS)


def _end_text(asked: Mapping[str, Any]) -> str:
    text = _ENDS[asked["end"]]
    if asked["end_ms"] is not None:
        text += f" after {asked['end_ms'] - asked['at_ms']:.1f} ms"
    return f"{text}, slow" if asked["is_slow"] else text
