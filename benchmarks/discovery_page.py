"""What the runs of `discovery.py` gave, as a table in its page and as a plot beside it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks.dht_figures import number
from benchmarks.discovery_designs.catalog import (
    GOSSIP,
    GOSSIP_SHIPPED,
    OURS,
    OURS_SMALL,
    SINGLE_KEY,
    SINGLE_KEY_SHIPPED,
    new_design,
)

Run: TypeAlias = Mapping[str, Any]

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
_MEASURED = re.compile(re.escape(BEGIN) + ".*" + re.escape(END), re.DOTALL)
HEADER = (
    "agents / providers",
    "design",
    "late joiner: share found",
    "late joiner: got 5",
    "churn: share found",
    "churn: dead among found",
    "a crashed agent is found for, p50 / p99",
    "messages per agent and hour",
    "requests of a search",
    "busiest node, messages an hour (times the mean)",
    "busiest node, MiB an hour (times the mean)",
    "most records held (mean)",
    "most KiB held (mean)",
)
GREY = "#767676"
"""Of all lines and letters of the plot: it stands out as well from white as from black."""
COLOURS = {
    OURS: "#0072B2",
    OURS_SMALL: "#56B4E9",
    SINGLE_KEY: "#E69F00",
    SINGLE_KEY_SHIPPED: "#E69F00",
    GOSSIP: "#009E73",
    GOSSIP_SHIPPED: "#009E73",
}
"""Okabe and Ito's: they differ for those too who see fewer colours."""


def write_page(path: Path, runs: Sequence[Run], about: Mapping[str, Any]) -> None:
    """Write the measured part of the page anew. Raises ValueError where the page has none."""
    text = path.read_text(encoding="utf-8")
    if not _MEASURED.search(text):
        raise ValueError(f"{path} has no {BEGIN} and {END}")
    where = ", ".join(f"{key} {value}" for key, value in about.items())
    cpu_min = sum(run["cpu_s"] for run in runs) / 60
    measured = f"{BEGIN}\n{where[:1].upper()}{where[1:]}.\nAll runs together took {cpu_min:.0f} min of CPU; seed 1.\n\n"
    measured += f"{table(runs)}\n{END}"
    path.write_text(_MEASURED.sub(lambda _: measured, text), encoding="utf-8")


def table(runs: Sequence[Run]) -> str:
    """A Markdown table with a row for each run."""
    rows = [HEADER, ("---:", "---", *("---:",) * (len(HEADER) - 2)), *map(_row, runs)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def write_plot(path: Path, runs: Sequence[Run]) -> None:
    """Draw the plot. The same figures give the same bytes, with one version of matplotlib."""
    import matplotlib

    settings = {
        "svg.hashsalt": "discovery",  # else the names inside differ from time to time
        "svg.fonttype": "none",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), GREY),
    }
    with matplotlib.rc_context(settings):
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 5.6), layout="constrained")
        FigureCanvasSVG(figure)
        panels = figure.subplots(2, 3).flat
        _draw_bars(next(panels), runs, "late_recall", "a newcomer's first search: share found")
        _draw_bars(next(panels), runs, "churn_recall", "everybody comes and goes: share found")
        _draw_times(next(panels), runs)
        _draw_bars(next(panels), runs, "messages_per_agent_hour", "messages per agent and hour", scale="log")
        _draw_bars(next(panels), runs, "node_messages_hour_max", "busiest node: messages an hour", scale="log")
        _draw_bars(next(panels), runs, "kib_held_max", "most held by one node, KiB", scale="log")
        handles = [matplotlib.patches.Patch(color=COLOURS[name], label=new_design(name).label) for name in _COMPARED]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
        figure.savefig(path, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    # It ends lines with spaces, which nobody needs.
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(line.rstrip() for line in lines) + "\n", encoding="utf-8")


_COMPARED = (OURS, SINGLE_KEY, GOSSIP)
_BAR_WIDTH = 0.26


def _draw_bars(axes: Any, runs: Sequence[Run], figure: str, title: str, *, scale: str = "linear") -> None:
    """A group of bars for each size, in which every design was played."""
    sizes = list(dict.fromkeys((run["nodes"], run["providers"]) for run in runs if run["design"] in _COMPARED))
    for place, design in enumerate(_COMPARED):
        values = {(run["nodes"], run["providers"]): run[figure] for run in runs if run["design"] == design}
        at = [index + (place - 1) * _BAR_WIDTH for index, size in enumerate(sizes) if size in values]
        axes.bar(at, [values[size] for size in sizes if size in values], _BAR_WIDTH, color=COLOURS[design])
    if scale == "log":
        axes.set_yscale(scale)
        axes.set_ylim(*_decades([run[figure] for run in runs if run["design"] in _COMPARED]))
        axes.minorticks_off()
    axes.set_title(title, fontsize=9)
    axes.set_xticks(range(len(sizes)), [f"{nodes:,}\n{providers:,}" for nodes, providers in sizes])
    axes.set_xlabel("agents, and how many offer it", fontsize=8)


def _draw_times(axes: Any, runs: Sequence[Run]) -> None:
    """How long the last of the crashed are found: at our times, and at those that the designs come with."""
    latest = {run["design"]: run["gone_s_p99"] / 3600 for run in runs if run["design"] != OURS_SMALL}
    designs = [name for name in (GOSSIP_SHIPPED, SINGLE_KEY_SHIPPED, GOSSIP, SINGLE_KEY, OURS) if name in latest]
    axes.barh(range(len(designs)), [latest[name] for name in designs], color=[COLOURS[name] for name in designs])
    axes.set_yticks(range(len(designs)), [new_design(name).label for name in designs])
    axes.set_xscale("log")
    axes.set_xlim(*_decades(list(latest.values())))
    axes.minorticks_off()
    axes.set_title("a crashed agent is found for, p99, hours", fontsize=9)


def _decades(values: Sequence[float]) -> tuple[float, float]:
    """The powers of ten between which these are: a bar on such a scale has to begin somewhere that is plain to see."""
    return 10.0 ** math.floor(math.log10(min(values))), 10.0 ** (math.floor(math.log10(max(values))) + 1)


def _row(run: Run) -> tuple[str, ...]:
    return (
        f"{run['nodes']:,} / {run['providers']:,}",
        new_design(run["design"]).label,
        _percent(run["late_recall"]),
        _percent(run["late_served"]),
        _percent(run["churn_recall"]),
        _percent(run["churn_dead_share"]),
        f"{_duration(run['gone_s_p50'])} / {_duration(run['gone_s_p99'])}",
        number(run["messages_per_agent_hour"]),
        number(run["requests_per_search"]),
        _beside_mean(run, "node_messages_hour"),
        _beside_mean(run, "node_kib_hour", unit=1024),
        f"{run['records_held_max']:,.0f} ({number(run['records_held_mean'])})",
        f"{number(run['kib_held_max'])} ({number(run['kib_held_mean'])})",
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 2 * 3600 else f"{seconds / 60:.1f} min"


def _beside_mean(run: Run, name: str, *, unit: float = 1) -> str:
    most, mean = run[f"{name}_max"], run[f"{name}_mean"]
    return f"{number(most / unit)} ({most / mean:.1f})"
