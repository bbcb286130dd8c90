"""The drawing of a lookup."""

from __future__ import annotations

from typing import Any

from synapse_p2p.apps.cli.blocks import plain_text
from synapse_p2p.apps.cli.tracing import BAR_CHARS, drawing


def step(at_ms: float, event: str, number: int, *, depth: int = 1, why: str = "") -> dict[str, Any]:
    return {
        "at_ms": at_ms,
        "event": event,
        "id": f"{number:x}" * 64,
        "bits": number,
        "depth": depth,
        "path": 0,
        "why": why,
    }


FOUND: dict[str, Any] = {
    "target": "ee" * 32,
    "what": "a random key",
    "hops": 2,
    "asked": 4,
    "failed": 1,
    "complete": True,
    "steps": [
        step(0.0, "asked", 1, why="nearest"),
        step(0.0, "asked", 2, why="nearest"),
        step(5.0, "answered", 1),
        step(5.0, "asked", 3, depth=2, why="branch"),
        step(7.0, "slow", 2),
        step(10.0, "failed", 2),
        step(10.0, "asked", 4, depth=2),
        step(10.0, "answered", 9),  # nobody whom we saw asked
    ],
    "closest": [{"id": "1" * 64, "bits": 1, "addresses": []}],
}


def test_each_node_has_a_row_with_its_depth_its_nearness_and_its_time():
    lines = plain_text(drawing(FOUND)).splitlines()

    assert lines[0] == "lookup of a random key, eeeeeeeeeeeeeeee"
    assert lines[1].split() == ["DEPTH", "NODE", "BITS", "0", "to", "10", "ms", "WHY"]
    assert [line.split()[:3] for line in lines[2:6]] == [
        [depth, str(number) * 16, str(number)] for depth, number in (("1", 1), ("1", 2), ("2", 3), ("2", 4))
    ]
    assert "answered after 5.0 ms" in lines[2]
    assert "FAILED after 10.0 ms, slow" in lines[3]
    assert "left behind" in lines[4] and lines[4].endswith("branch")
    assert lines[6] == "4 asked, 1 failed, 2 hops; nearest: 1111111111111111, 1 bits in common"


def test_bars_are_to_scale_and_end_in_what_became_of_it():
    lines = plain_text(drawing(FOUND)).splitlines()
    at = lines[1].index("0 to")

    bars = [line[at : at + BAR_CHARS] for line in lines[2:6]]

    assert bars[0] == ("-" * 16 + "o").ljust(BAR_CHARS)
    assert bars[1] == "-" * (BAR_CHARS - 1) + "x"
    assert bars[2] == " " * 16 + "-" * (BAR_CHARS - 17) + "."
    assert bars[3] == " " * (BAR_CHARS - 1) + "."


def test_a_lookup_that_asked_nobody_says_so():
    empty = {**FOUND, "steps": [], "closest": [], "asked": 0, "failed": 0, "hops": None, "complete": False}

    assert plain_text(drawing(empty)).splitlines()[-1] == "0 asked, 0 failed, 0 hops; nobody answered"
