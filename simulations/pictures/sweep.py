"""Which pictures the cells of a sweep have together. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from simulations.model import MODEL_K, MODEL_MIN_NODES, expected_hops
from simulations.pictures.lapse import share_of
from simulations.pictures.shapes import LeftOut, Picture, Responses, Share
from simulations.statistics import Z_95

Figures = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Parameter:
    """Something that runs have, and that success may depend on: the figure that has it, times `unit` as is drawn."""

    name: str
    figure: str
    title: str
    x_label: str
    series_of: Callable[[Figures], str]
    is_share: bool = True
    is_log: bool = False
    unit: float = 1.0


def _hostility(figures: Figures) -> str:
    weight = figures["hostile_weight"]
    return figures["hostile_kind"] + (f", {weight:g} times as likely in tables" if weight != 1 else "")


_PARAMETERS = (
    _Parameter(
        "dead",
        "dead_share",
        "Success against the share that died",
        "share of nodes that died at one instant",
        lambda figures: "once" if figures["massacres"] == 1 else f"{figures['massacres']} times",
    ),
    _Parameter(
        "hostile", "hostile_share", "Success against the hostile share", "share of nodes that is hostile", _hostility
    ),
    _Parameter(
        "sessions",
        "session_median_s",
        "Success against the length of a session",
        "median length of a session, minutes",
        lambda _: "reads",
        is_share=False,
        is_log=True,
        unit=1 / 60,
    ),
)


def pictures_of_sweep(cells: Sequence[Figures]) -> tuple[list[Picture], list[LeftOut]]:
    """Of cells that came to an end: what there is to draw, and what there is not, with the reason."""
    made = [_response(parameter, cells) for parameter in _PARAMETERS] + [_size(cells)]
    return [each for each in made if isinstance(each, Picture)], [each for each in made if isinstance(each, LeftOut)]


def _response(parameter: _Parameter, cells: Sequence[Figures]) -> Picture | LeftOut:
    those = [each for each in cells if each.get(parameter.figure) is not None and each.get("lookups")]
    if len({each[parameter.figure] for each in those}) < 2:
        return LeftOut(parameter.title, f"it takes cells with two values of {parameter.figure}, or more")
    series = _series(those, parameter)
    counts = sorted({each["lookups"] for each in those})
    each_of = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    points = [point for _, points in series for point in points]
    worst = min(points, key=lambda point: point.y)
    at = f"{worst.x:.0%}" if parameter.is_share else f"{worst.x:.3g} min"
    return Picture(
        parameter.name,
        parameter.title,
        f"{len(those)} runs",
        f"{len(points)} points of success by {parameter.x_label}: the lowest is {worst.y:.2%}, at {at}.",
        f"{len(those)} runs of {each_of} lookups; those of one series at one place are one point. The bars are "
        "95 % Wilson intervals of all lookups of a point, as if each were independent of the others"
        + ("; series stand a little beside each other." if len(series) > 1 and not parameter.is_log else "."),
        Responses(parameter.x_label, "success", parameter.is_share, True, parameter.is_log, series),
    )


def _series(cells: Sequence[Figures], parameter: _Parameter) -> list[tuple[str, list[Share]]]:
    """The points of each series, ascending."""
    sizes = {each["nodes"] for each in cells}
    sabotages = {each["settings"]["sabotage"] for each in cells}
    pooled: dict[str, dict[float, tuple[int, int]]] = {}
    for each in cells:
        label = parameter.series_of(each)
        label += f", n = {each['nodes']:,}" if len(sizes) > 1 else ""
        label += f", {each['settings']['sabotage'] or 'no sabotage'}" if len(sabotages) > 1 else ""
        x = each[parameter.figure] * parameter.unit
        successes, trials = pooled.setdefault(label, {}).get(x, (0, 0))
        found = round(each["lookup_success"] * each["lookups"])
        pooled[label][x] = successes + found, trials + each["lookups"]
    return [(label, [share_of(x, *points[x]) for x in sorted(points)]) for label, points in pooled.items()]


def _size(cells: Sequence[Figures]) -> Picture | LeftOut:
    title = "Hops against the size of the swarm"
    hops: dict[int, list[float]] = {}
    for each in cells:
        if each.get("mean_hops") is not None:
            hops.setdefault(each["nodes"], []).append(each["mean_hops"])
    if len(hops) < 2:
        return LeftOut(title, "it takes cells that count hops, of two sizes or more")
    sizes = sorted(hops)
    points = [_mean_of(nodes, hops[nodes]) for nodes in sizes]
    model = [(float(nodes), expected_hops(nodes)) for nodes in sizes]
    said = ", ".join(f"{nodes:,}: {point.y:.2f}" for nodes, point in zip(sizes, points, strict=True))
    return Picture(
        "size",
        title,
        f"{sum(map(len, hops.values()))} runs",
        f"Mean hops by nodes. {said}.",
        f"{sum(map(len, hops.values()))} runs; a point is the mean over the seeds, with the 95 % interval of it where "
        f"there are several. The model was fitted from {MODEL_MIN_NODES:,} nodes on, with k = {MODEL_K} and tables "
        "filled by an oracle.",
        Responses(
            "nodes", "mean hops", False, False, True, [("measured", points)], model, "model: 0.38 + 0.149 log2 n"
        ),
    )


def _mean_of(nodes: int, values: Sequence[float]) -> Share:
    mean = fmean(values)
    spread = Z_95 * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return Share(float(nodes), mean - spread, mean, mean + spread)
