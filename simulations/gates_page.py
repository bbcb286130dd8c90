"""The page of results: what every gate gave, beside its limits, and on what it was measured."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulations.report import code_version
from synapse_p2p.version import VERSION

SHOWN = ("gets", "get_success_low", "get_messages_mean", "get_messages_p99", "values", "values_lost", "fewest_storers")


@dataclass(frozen=True, slots=True)
class PageText:
    """What a page of results says beside the results: its title, what they are about, and the command that wrote it."""

    title: str
    about: Sequence[str]
    command: str


@dataclass(frozen=True, slots=True)
class GateResult:
    """What became of a gate. `limits` has the text of each, the figure, and whether that keeps it. `virtual_s` and
    `cpu_s` are of all its runs together.
    """

    name: str
    command: str
    cells: int
    figures: Mapping[str, Any]
    limits: Sequence[tuple[str, float | None, bool]]
    sabotage: str
    is_sabotage_noticed: bool
    virtual_s: float
    cpu_s: float
    budget_s: float

    @property
    def is_passed(self) -> bool:
        """Whether it was played and every limit is kept."""
        return bool(self.figures) and all(is_met for _, _, is_met in self.limits)

    @property
    def is_good(self) -> bool:
        """Whether it passed, and would not without its defence."""
        return self.is_passed and self.is_sabotage_noticed

    @property
    def verdict(self) -> str:
        """In a word or two."""
        if not self.figures:
            return "NOT PLAYED"
        if not self.limits:
            return "report"
        if not self.is_passed:
            return "MISSED"
        return "passed" if self.is_sabotage_noticed else f"passed, BUT ALSO {self.sabotage}"

    def line(self) -> str:
        """For a terminal."""
        limits = "; ".join(f"{text}: {value}" for text, value, _ in self.limits)
        return f"{self.verdict:8} {self.name}: {limits or _shown(self.figures)}"


def write_page(path: Path, text: PageText, results: Sequence[GateResult], *, took_s: float, workers: int) -> None:
    """Write the page anew."""
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    cpu_min = sum(result.cpu_s for result in results) / 60
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {workers} used, Python {platform.python_version()}"
    lines = [
        f"# {text.title}",
        "",
        *text.about,
        "",
        f"`{text.command}` on {today}: {machine}, Synapse P2P {VERSION}, code {code_version()}.",
        f"It took {took_s / 60:.0f} min by the clock, without what an earlier run had finished; the gates themselves",
        f"took {cpu_min:.0f} min of a core.",
        "",
        "| gate | limit | seen | verdict | without | cells | virtual time of each | CPU |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for result in results:
        limits = "<br>".join(f"`{text}`" for text, _, _ in result.limits) or "none"
        seen = "<br>".join(str(value) for _, value, _ in result.limits) or _shown(result.figures)
        noticed = "missed" if result.is_sabotage_noticed else "PASSED"
        without = f"{result.sabotage}: {noticed}" if result.sabotage else ""
        cells = f"{result.cells} x {result.budget_s / result.cells:.0f} s"
        virtual = _duration(result.virtual_s / result.cells) if result.figures else ""
        shown = (result.name, limits, seen, result.verdict, without, cells, virtual, f"{result.cpu_s:.0f} s")
        lines.append(f"| {' | '.join(shown)} |")
    lines += ["", "## All figures", ""]
    for result in results:
        lines += [f"**{result.name}**: `{result.command}`", "", _shown(result.figures, all_of_them=True), ""]
    path.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def _duration(seconds: float) -> str:
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"


def _shown(figures: Mapping[str, Any], *, all_of_them: bool = False) -> str:
    left_out = {"nodes", "seed", "lookups", "lookup_success", "passed", "interrupted", "wall_s", "cpu_s", "virtual_s"}
    names = [name for name in figures if name not in left_out] if all_of_them else SHOWN
    return ", ".join(f"{name} {figures[name]}" for name in names if name in figures)
