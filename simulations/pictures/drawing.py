"""Draws pictures with matplotlib, which no other file knows of. Import it late: it takes a second, and may be missing.

All colours are Okabe and Ito's, which differ for those too who see fewer, and no two things differ by colour alone.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from itertools import cycle, pairwise
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from simulations.pictures.circle import levels_of, offset_of
from simulations.pictures.shapes import (
    Ending,
    HopBars,
    KeyCircle,
    Lapse,
    Latencies,
    Loads,
    Picture,
    Request,
    Responses,
    Share,
)

WIDTH_IN = 9.0
DOTS_PER_IN = 100
"""A picture is 900 pixels wide, as a page shows it, and its letters are as large as the page's."""
BLACK, BLUE, ORANGE, GREEN, RED, SKY, PINK = (
    "#222222",
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#56B4E9",
    "#CC79A7",
)
GREY, PALE = "#767676", "#C8C8C8"
COLOURS = (BLUE, RED, GREEN, PINK, ORANGE, SKY, BLACK)
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
MAX_TICKS = 8  # of places of its own that an axis names
HATCHES = ("", "///", "...", "xxx", "---", "ooo", "+++")
SETTINGS = {
    "font.size": 11,
    "font.family": "DejaVu Sans",  # it comes with matplotlib: a picture is the same on every machine
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "hatch.linewidth": 0.6,
    "hatch.color": "white",
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), BLACK),
}
ENDINGS = {Ending.ANSWERED: (BLUE, "o", ""), Ending.FAILED: (RED, "X", "///"), Ending.UNFINISHED: (PALE, "v", "...")}


def draw(picture: Picture) -> bytes:
    """The picture as PNG, WIDTH_IN wide, on white. The same data gives the same bytes with one matplotlib."""
    with matplotlib.rc_context(SETTINGS):
        match picture.drawing:
            case HopBars() as bars:
                figure = _hops(bars)
            case Latencies() as latencies:
                figure = _latencies(latencies)
            case Lapse() as lapse:
                figure = _lapse(lapse)
            case Loads() as loads:
                figure = _loads(loads)
            case Responses() as responses:
                figure = _responses(responses)
            case KeyCircle() as circle:
                figure = _circle(circle)
        figure.suptitle(f"{picture.title} ({picture.size})", fontsize=12)
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=DOTS_PER_IN, facecolor="white", metadata={"Software": None})
    return png.getvalue()


def _figure(height_in: float) -> Figure:
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _hops(bars: HopBars) -> Figure:
    figure = _figure(4.2)
    axes = figure.subplots()
    total = sum(count for _, count in bars.counts)
    hops = [hops for hops, _ in bars.counts]
    drawn = axes.bar(hops, [count / total for _, count in bars.counts], 0.8, color=SKY, edgecolor=BLUE)
    axes.bar_label(drawn, [f"{count:,}" for _, count in bars.counts], padding=2)
    axes.axvline(bars.mean, color=BLACK, label=f"measured mean: {bars.mean:.2f}")
    axes.axvline(bars.model_mean, color=RED, linestyle="--", label=bars.model_label)
    axes.set_xticks(range(min(hops), max(hops) + 1))
    axes.set_xlim(min(*hops, bars.model_mean) - 0.8, max(*hops, bars.model_mean) + 0.8)
    axes.set_xlabel("hops to the node nearest to the target")
    axes.set_ylabel("share of lookups (above: how many)")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(visible=False, axis="x")
    axes.margins(y=0.12)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def _latencies(latencies: Latencies) -> Figure:
    figure = _figure(4.2)
    axes = figure.subplots()
    slowest = max(curve.seconds[-1] for curve in latencies.curves)
    for curve, colour, line in zip(latencies.curves, cycle(COLOURS), cycle(LINES)):
        seconds, shares = [curve.seconds[0], *curve.seconds, slowest], [0.0, *curve.shares, 1.0]
        axes.step(seconds, shares, where="post", color=colour, linestyle=line, label=curve.label, linewidth=1.8)
    if latencies.is_log:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(_plain))
    else:
        axes.set_xlim(left=0)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("virtual seconds")
    axes.set_ylabel("share that is over")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


def _lapse(lapse: Lapse) -> Figure:
    figure = _figure(5.2 if lapse.faults else 4.0)
    if lapse.faults:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        _draw_faults(below, lapse)
        last = below
    else:
        above = last = figure.subplots()
    for number, (begin, end, share) in enumerate(lapse.steps):
        labels = (None, None) if number else ("success", "95 % interval")
        above.plot((begin, end), (share.y, share.y), color=BLUE, linewidth=2.4, label=labels[0])
        above.fill_between((begin, end), share.low, share.high, color=SKY, alpha=0.4, linewidth=0, label=labels[1])
    for number, at in enumerate(lapse.marks):
        above.axvline(at, color=RED, linestyle="--", linewidth=1.2, label="faults" if not number else None)
    _share_axis(above, [step.share for step in lapse.steps])
    above.set_ylabel("share that succeeded")
    last.set_xlabel(f"virtual time, {lapse.unit}")
    last.set_xlim(lapse.begin, lapse.end)
    figure.legend(loc="outside lower center", ncols=5, frameon=False)
    return figure


def _draw_faults(axes: Any, lapse: Lapse) -> None:
    heights: dict[float, int] = {}
    for (kind, times), colour, hatch in zip(
        lapse.faults, cycle((RED, ORANGE, GREEN, PINK, GREY, BLACK)), cycle(HATCHES)
    ):
        bottoms = [heights.get(at, 0) for at, _ in times]
        axes.bar(
            [at for at, _ in times],
            [count for _, count in times],
            lapse.width,
            bottom=bottoms,
            color=colour,
            hatch=hatch,
            label=kind,
        )
        for at, count in times:
            heights[at] = heights.get(at, 0) + count
    axes.set_ylabel(f"faults per {lapse.width:.3g} {lapse.unit}")
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))


def _loads(loads: Loads) -> Figure:
    figure = _figure(4.2)
    axes = figure.subplots()
    axes.stairs(loads.counts, loads.edges, fill=True, color=SKY, edgecolor=BLUE)
    for at, colour, line, label in (
        (loads.median, BLACK, "-", f"median {loads.median:,.0f}"),
        (loads.p99, RED, "--", f"99 % have at most {loads.p99:,.0f}"),
        (loads.most, PINK, ":", f"busiest {loads.most:,.0f}"),
    ):
        axes.axvline(at, color=colour, linestyle=line, label=label, linewidth=1.8)
    if loads.is_log:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(_plain))
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("messages that arrived at a host")
    axes.set_ylabel("hosts")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def _responses(responses: Responses) -> Figure:
    figure = _figure(4.6)
    axes = figure.subplots()
    styles = zip(responses.series, _asides(responses), cycle(COLOURS), cycle(LINES), cycle(MARKERS))
    for (label, points), aside, colour, line, marker in styles:
        y = [point.y for point in points]
        beneath = [max(0.0, point.y - point.low) for point in points]
        above = [max(0.0, point.high - point.y) for point in points]
        axes.errorbar(
            [point.x + aside for point in points],
            y,
            yerr=(beneath, above),
            color=colour,
            linestyle=line,
            marker=marker,
            capsize=4,
            label=label,
        )
    if responses.model:
        axes.plot(*zip(*responses.model, strict=True), color=GREY, linestyle=":", label=responses.model_label)
    if responses.is_log_x:
        axes.set_xscale("log")
        at = sorted({point.x for _, points in responses.series for point in points})
        axes.xaxis.set_major_locator(FixedLocator(at) if len(at) <= MAX_TICKS else LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, 0) if responses.is_share_x else FuncFormatter(_plain))
    axes.margins(x=0.08)
    if responses.is_share_y:
        _share_axis(axes, [point for _, points in responses.series for point in points])
    axes.set_xlabel(responses.x_label)
    axes.set_ylabel(responses.y_label)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def _asides(responses: Responses) -> list[float]:
    """How far each series stands aside of where it is, that one does not cover another at the same place."""
    places = [point.x for _, points in responses.series for point in points]
    apart = 0.0 if responses.is_log_x else (max(places) - min(places)) / 100
    return [apart * (number - (len(responses.series) - 1) / 2) for number in range(len(responses.series))]


def _circle(circle: KeyCircle) -> Figure:
    figure = _figure(7.6)
    axes = figure.subplot_mosaic("rt;ll", width_ratios=(1.3, 1.0), height_ratios=(4.0, 0.8))
    ring, timetable, lens = (axes[letter] for letter in "rtl")
    _draw_ring(ring, circle)
    _draw_timetable(timetable, circle.requests)
    _draw_lens(lens, circle)
    figure.legend(*ring.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def _draw_ring(axes: Any, circle: KeyCircle) -> None:
    axes.add_patch(Circle((0, 0), 1, fill=False, edgecolor=PALE))
    at_searcher = _at(circle.searcher)
    for request in circle.requests:
        axes.plot(*zip(at_searcher, _at(request.turn), strict=True), color=PALE, linewidth=0.7, zorder=1)
    _scatter_all(axes, circle, _at)
    ends = [at_searcher, *(_at(turn) for _, turn in circle.path)]
    for begin, end in pairwise(ends):
        arrow = {"arrowstyle": "-|>", "color": BLACK, "linewidth": 1.6, "shrinkA": 5, "shrinkB": 5}
        axes.annotate("", end, begin, arrowprops=arrow, zorder=6)
    levels = levels_of([turn for _, turn in circle.path], 0.03)
    for (hop, turn), level in zip(circle.path, levels, strict=True):
        axes.text(*_at(turn, 1.11 + 0.1 * level), str(hop), ha="center", va="center", fontweight="bold")
    axes.set_aspect("equal")
    limit = 1.25
    axes.set_xlim(-limit, limit)
    axes.set_ylim(-limit, limit)
    axes.set_axis_off()


def _draw_timetable(axes: Any, requests: Sequence[Request]) -> None:
    for row, request in enumerate(requests, start=1):
        colour, _, hatch = ENDINGS[request.ending]
        axes.barh(
            row,
            request.ended_ms - request.asked_ms,
            0.8,
            left=request.asked_ms,
            color=colour,
            hatch=hatch,
            edgecolor=BLACK if request.is_on_path else None,  # else of older releases the hatches would have it too
            linewidth=1.6,
        )
    hops = [(row, request.hop) for row, request in enumerate(requests, start=1) if request.is_on_path]
    axes.set_yticks([row for row, _ in hops], [f"hop {hop}" for _, hop in hops])
    axes.set_ylim(max(8, len(requests)) + 0.7, 0.3)
    axes.set_xlim(left=0)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("virtual ms after the first request")
    axes.set_title("requests, as they were sent", fontsize=11)


def _draw_lens(axes: Any, circle: KeyCircle) -> None:
    """A piece of the circle round the target, straightened."""

    def at(turn: float) -> tuple[float, float]:
        return 100 * offset_of(turn, circle.target), 0.0

    reach = min(0.5, circle.lens)
    axes.axhline(0, color=PALE, zorder=0)
    _scatter_all(axes, circle, at)
    inside = [(hop, turn) for hop, turn in circle.path if abs(offset_of(turn, circle.target)) <= reach]
    levels = levels_of([turn for _, turn in inside], reach / 25)
    for (hop, turn), level in zip(inside, levels, strict=True):
        axes.text(at(turn)[0], 0.45 + 0.4 * level, str(hop), ha="center", va="center", fontweight="bold")
    axes.set_xlim(-100 * reach, 100 * reach)
    axes.set_ylim(-0.5, 1.1)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False)
    axes.set_xlabel("round the target, straightened: per cent of the circle")


def _scatter_all(axes: Any, circle: KeyCircle, at: Callable[[float], tuple[float, float]]) -> None:
    """Everybody who is on the circle, where `at` says."""

    def scatter(turns: Sequence[float], label: str, zorder: int, **style: Any) -> None:
        if turns:
            axes.scatter(*zip(*map(at, turns), strict=True), label=label, zorder=zorder, **style)

    scatter(circle.members, "node", 2, s=8, color=GREY, linewidths=0)
    for ending, (colour, marker, _) in ENDINGS.items():
        turns = [request.turn for request in circle.requests if request.ending is ending]
        edge = GREY if ending is Ending.UNFINISHED else colour
        scatter(turns, f"asked, {ending.value}", 4, s=34, color=colour, marker=marker, edgecolors=edge, linewidths=0.8)
    nearest = f"the {len(circle.nearest)} nearest"
    scatter(circle.nearest, nearest, 3, s=90, facecolors="none", edgecolors=GREEN, linewidths=1.4)
    scatter([circle.target], "target", 5, s=130, color=ORANGE, marker="*", edgecolors=BLACK, linewidths=0.8)
    scatter([circle.searcher], "searcher", 5, s=60, color=BLACK, marker="s")
    axes.plot([], [], color=BLACK, linewidth=1.6, label="way to the nearest")


def _at(turn: float, radius: float = 1.0) -> tuple[float, float]:
    """Clockwise from the top."""
    return radius * math.sin(2 * math.pi * turn), radius * math.cos(2 * math.pi * turn)


def _share_axis(axes: Any, shares: Sequence[Share]) -> None:
    """From the tenth under the lowest to a little over 100 %."""
    least = max(0.0, math.floor(10 * min(share.low for share in shares) - 1e-9) / 10)
    axes.set_ylim(least, 1 + (1 - least) / 25)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def _plain(value: float, _: int) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
