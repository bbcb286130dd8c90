"""One lookup on the circle of the key space: who is where, who was asked when, and who led to the nearest. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from dht.outcome import TraceEvent, TraceStep
from simulations.pictures.shapes import Ending, KeyCircle, Picture, Request
from simulations.samples import TracedLookup
from synapse_p2p.identity import NodeID

MAX_REQUESTS = 60
"""Of one lookup that are drawn: more lines of a timetable cannot be told from each other."""
LENS_MARGIN = 1.25
_SPACE = float(1 << 256)


def turn_of(point: NodeID) -> float:
    """Where on the circle, 0 to 1, an id or a key is."""
    return int.from_bytes(point, "big") / _SPACE


def offset_of(turn: float, target: float) -> float:
    """From the target to a place the shorter way round, -0.5 to 0.5 of a turn."""
    return (turn - target + 0.5) % 1.0 - 0.5


def circle_picture(traced: TracedLookup) -> Picture:
    """The lookup that was kept."""
    trace, outcome = traced.outcome.trace, traced.outcome
    path = path_of(trace, outcome.closest[0].id if outcome.closest else None)
    requests = requests_of(trace, path)
    drawn = requests[:MAX_REQUESTS]
    target = turn_of(outcome.target)
    nearest = [turn_of(node_id) for node_id in traced.nearest]
    drawing = KeyCircle(
        members=[turn_of(node_id) for node_id in traced.members],
        searcher=turn_of(traced.searcher),
        target=target,
        nearest=nearest,
        requests=drawn,
        path=[(request.hop, request.turn) for request in requests if request.is_on_path],
        lens=LENS_MARGIN * max((abs(offset_of(turn, target)) for turn in nearest), default=0.5),
    )
    took_ms = max((request.ended_ms for request in requests), default=0.0)
    found = {None: "", True: " It found the nearest node.", False: " It missed the nearest node."}[traced.is_success]
    alt = (
        f"A circle of {traced.member_count:,} nodes. The lookup reached the nearest that answered in {outcome.hops} "
        f"hops; it asked {outcome.asked}, of whom {outcome.failed} failed, in {took_ms:,.0f} ms.{found}"
    )
    caption = (
        f"Every id has its place on the circle; {len(drawing.members) + 1:,} of {traced.member_count:,} nodes are "
        f"drawn, and the {len(nearest)} nearest to the target of all. A number is a hop of the way to the nearest that "
        "answered: who is asked names others, and the searcher asks those itself. Nearness is by XOR, so the nearest "
        f"are on one side or on both.{found} Of all lookups whose trace was seen one that missed is drawn, or else "
        "the one with the most hops, then failures."
    )
    if len(requests) > len(drawn):
        caption += f" The first {len(drawn)} of its {len(requests)} requests are shown."
    size = f"{outcome.asked} requests among {traced.member_count:,} nodes"
    return Picture("circle", "One lookup in the key space", size, alt, caption, drawing)


def path_of(trace: Sequence[TraceStep], last: NodeID | None) -> list[NodeID]:
    """From a contact of the searcher's own to `last`, each named by the one before; empty if `last` was not asked."""
    asked = {step.contact_id: step for step in trace if step.event is TraceEvent.ASKED}
    path: list[NodeID] = []
    while last in asked and last not in path:
        path.append(last)
        last = asked[last].named_by
    return path[::-1]


def requests_of(trace: Sequence[TraceStep], path: Sequence[NodeID]) -> list[Request]:
    """All of a lookup, in the order in which they were sent."""
    began_at = trace[0].at if trace else 0.0
    over_at = trace[-1].at if trace else 0.0
    endings = {TraceEvent.ANSWERED: Ending.ANSWERED, TraceEvent.FAILED: Ending.FAILED}
    ended = {step.contact_id: step for step in trace if step.event in endings}
    requests: list[Request] = []
    for step in trace:
        if step.event is TraceEvent.ASKED:
            end = ended.get(step.contact_id)
            requests.append(
                Request(
                    turn=turn_of(step.contact_id),
                    hop=step.depth,
                    asked_ms=1000 * (step.at - began_at),
                    ended_ms=1000 * ((over_at if end is None else end.at) - began_at),
                    ending=Ending.UNFINISHED if end is None else endings[end.event],
                    is_on_path=step.contact_id in path,
                )
            )
    return requests


def levels_of(turns: Sequence[float], gap: float) -> list[int]:
    """How far out the label of each place is to be, from 0 on, that none covers another less than `gap` turns away."""
    levels: list[int] = []
    for number, turn in enumerate(turns):
        taken = {levels[other] for other in range(number) if abs(offset_of(turns[other], turn)) < gap}
        levels.append(next(level for level in range(number + 1) if level not in taken))
    return levels
