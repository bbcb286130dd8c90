"""The gates of the overlay: what it has to stand, in figures, each with a defence without which it must not.

A gate is some runs of one scenario, the cells, whose figures are put together and compared with limits; then the same
with a sabotage, which has to miss. `python -m simulations.gates` plays them all, `--only NAME` some; finished cells are
kept in a folder, so that the same command goes on where it was stopped. `make gates` writes the page of results.
"""

from __future__ import annotations

import argparse
import operator
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from simulations.gates_page import GateResult, PageText, write_page
from simulations.scenarios import SCENARIOS, Settings
from simulations.scenarios.base import Start
from simulations.scenarios.overlay_churn import EARLY_GETS
from simulations.statistics import wilson_low
from simulations.sweep import Cell, CellEnd, play_cells

FOLDER = Path("build/gates")
WORKERS = 2
_SIGNS: dict[str, Callable[[float, float], bool]] = {">=": operator.ge, "<=": operator.le}


@dataclass(frozen=True, slots=True)
class Limit:
    """What a figure is compared with: a number, or another figure of the same runs."""

    figure: str
    sign: str
    bound: float | str

    def bound_in(self, figures: Mapping[str, Any]) -> float:
        """The number."""
        return float(figures[self.bound]) if isinstance(self.bound, str) else self.bound

    def is_met(self, figures: Mapping[str, Any]) -> bool:
        """Whether these figures keep it; not where the figure is missing, for nothing was measured then."""
        if figures.get(self.figure) is None or (isinstance(self.bound, str) and figures.get(self.bound) is None):
            return False
        return _SIGNS[self.sign](float(figures[self.figure]), self.bound_in(figures))

    def __str__(self) -> str:
        return f"{self.figure} {self.sign} {self.bound}"


@dataclass(frozen=True, slots=True)
class Gate:
    """`full` is one cell of the full gate, played with so many seeds; `short` the form that the tests play, None where
    that of another gate tells as much.

    `budget_s` is what a cell of it may take of a core, `sabotaged_s` what the one may that has to miss. A gate without
    limits is a report. `sabotage` is the defence without which both miss; `sabotaged` is played without it, where
    `full` would take long or is not hard enough. The short form of some is too small to miss: of 200 nodes most know
    most others.
    """

    name: str
    scenario: str
    full: Settings
    short: Settings | None
    limits: tuple[Limit, ...]
    short_limits: tuple[Limit, ...]
    budget_s: float
    seeds: int = 1
    sabotage: str = ""
    sabotaged: Settings | None = None
    sabotaged_s: float = 60.0
    is_short_sabotaged: bool = True

    def cells(self) -> list[Settings]:
        """The runs of the full gate."""
        return [replace(self.full, seed=seed) for seed in range(1, self.seeds + 1)]

    def sabotaged_cell(self) -> Settings | None:
        """The one run that has to miss."""
        if not self.sabotage:
            return None
        return replace(self.sabotaged or replace(self.full, lookups=SABOTAGED_LOOKUPS), sabotage=self.sabotage)

    def missed(self, figures: Mapping[str, Any], *, short: bool = False) -> list[Limit]:
        """The limits that these figures do not keep."""
        return [limit for limit in (self.short_limits if short else self.limits) if not limit.is_met(figures)]


def put_together(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of several runs as if of one: counts are added, the smallest of the `fewest_` counts, and means are
    weighted by the number of gets, as are quantiles, of which that is an approximation.
    """
    together: dict[str, Any] = {}
    for name in dict.fromkeys(name for run in runs for name in run):
        values = [run[name] for run in runs if isinstance(run.get(name), int | float)]
        if not values or len(values) < len(runs):
            continue
        if name.startswith("fewest_"):
            together[name] = min(values)
        elif "_mean" in name or "_p99" in name:
            weights = [max(1, run.get("gets", 1)) for run in runs]
            pairs = zip(values, weights, strict=True)
            together[name] = round(sum(value * weight for value, weight in pairs) / sum(weights), 4)
        elif name.endswith("_max"):
            together[name] = max(values)
        elif not name.endswith("_low"):
            together[name] = sum(values)
    for low, good, tried in (
        ("get_success_low", "gets_found", "gets"),
        ("restart_success_low", "restarts_good", "restarts"),
        ("join_success_low", "joined_in_time", "newcomers"),
        ("early_nearest_low", "early_nearest", "early_lookups"),
        ("early_get_success_low", "early_gets_found", "early_gets"),
    ):
        if tried in together:
            together[low] = round(wilson_low(together[good], together[tried]), 5)
    return together


SABOTAGED_LOOKUPS = 1000
"""So many that a run without a failure would keep the limits: what misses then has failed, and was not too short."""
_NODES = 1000
_HOURS = 2.0
_SHORT_NODES = 200
_FEW_NODES = 120
_FEWEST = (130, None, 80)
"""Lookups, hours and nodes where many are hostile: a few reads tell."""


def _settings(variant: str, lookups: int, hours: float | None = None, nodes: int = _NODES) -> Settings:
    return Settings(nodes, lookups, 1, hours, Start.ORACLE, variant=variant)


def _gets(at_least: float) -> Limit:
    return Limit("get_success_low", ">=", at_least)


_NOTHING_LOST = Limit("values_lost", "<=", 0)
_EIGHT_STORERS = Limit("fewest_storers_p01", ">=", 8)
_MOST_KEPT = Limit("values_kept_mean", ">=", 0.99)
_ONE_STRICT = Limit("get_messages_mean", "<=", "strict_messages_mean")
_EARLY_GETS = Limit("early_gets_found", ">=", round(0.99 * EARLY_GETS))
"""Those within the minute that a network has to heal, while `_gets` are about those from its end on. They are too few
to prove 99 %, so they are counted."""
_UNHURT = Limit("get_seconds_p99", "<=", 2.0)
_SHORT_GETS = _gets(0.97)
"""Of 200 reads of which none fails, the lower bound is 0.981; of those under a sabotage it is far below this."""


def _hostile(name: str, variant: str, at_least: float, **changes: Any) -> Gate:
    gate = Gate(
        name,
        "overlay-hostile",
        _settings(variant, 10_000),
        _settings(variant, 200, nodes=_FEW_NODES),
        (_gets(at_least),),
        (_gets(0.97 if at_least >= 0.99 else round(at_least - 0.02, 2)),),
        budget_s=150,
        sabotage="narrow",
        sabotaged=_settings(variant, SABOTAGED_LOOKUPS),
    )
    return replace(gate, **changes)


def _sybils(name: str, variant: str, sabotage: str, *more: Limit, is_short_sabotaged: bool = True) -> Gate:
    return Gate(
        name,
        "overlay-sybils",
        _settings(variant, 2500),
        _settings(variant, 200, nodes=_SHORT_NODES),
        (_gets(0.99), _ONE_STRICT, *more),
        (_SHORT_GETS, _ONE_STRICT, *more),
        budget_s=35,
        seeds=4,
        sabotage=sabotage,
        is_short_sabotaged=is_short_sabotaged,
    )


def _steps(start: Start, of_formula: float) -> Gate:
    return Gate(
        f"hops and requests, started by {start.value}",
        "steps",
        Settings(_NODES, 10_000, 1, None, start),
        Settings(60, 200, 1, None, start),
        (
            Limit("hops_to_formula_mean", "<=", of_formula),
            Limit("early_to_strict_mean", "<=", 0.35),
            Limit("early_nearest_low", ">=", 0.999),
        ),
        (
            Limit("hops_to_formula_mean", "<=", of_formula),
            Limit("early_to_strict_mean", "<=", 0.35),
            Limit("early_nearest_low", ">=", 0.96),
        ),
        budget_s=240,
        sabotage="small-buckets",
        sabotaged=Settings(100, 8000, 1, None, start),
        sabotaged_s=100,
    )


GATES = (
    _steps(Start.PROTOCOL, 1.20),
    _steps(Start.ORACLE, 1.10),
    Gate(
        "churn as in BitTorrent, for a day",
        "overlay-churn",
        _settings("weibull-40", 10_000, 24.0),
        _settings("half-life-10", 130, 0.2, nodes=40),
        (_gets(0.995), _NOTHING_LOST, _EIGHT_STORERS),
        (_SHORT_GETS, _NOTHING_LOST, _EIGHT_STORERS),
        budget_s=4800,
        sabotage="no-replication",
        sabotaged=_settings("weibull-40", 1000, 6.0, nodes=100),
        sabotaged_s=200,
    ),
    Gate(
        "half-life of 10 min",
        "overlay-churn",
        _settings("half-life-10", 10_000, _HOURS),
        None,
        (_gets(0.99),),
        (),
        budget_s=1300,
        sabotage="no-replication",
        sabotaged=_settings("half-life-10", 1000, 1.0, nodes=100),
        sabotaged_s=100,
    ),
    Gate(
        "30 % killed at once",
        "overlay-massacre",
        _settings("30", 10_000),
        _settings("30", 300, nodes=_SHORT_NODES),
        (_gets(0.99), _NOTHING_LOST),
        (_SHORT_GETS, _NOTHING_LOST),
        budget_s=60,
        sabotage="narrow",
    ),
    Gate(
        "30 % of 500 killed, six times",
        "overlay-massacre",
        _settings("30-six-times", 10_000, nodes=500),
        None,
        (_gets(0.99), _NOTHING_LOST, _EIGHT_STORERS),
        (),
        budget_s=900,
        sabotage="no-replication",
        sabotaged=_settings("30-six-times", 1000, nodes=200),
        sabotaged_s=200,
    ),
    Gate(
        "partition of 10 min, healed",
        "overlay-partition",
        _settings("halves", 10_000),
        _settings("halves", 200, nodes=80),
        (_gets(0.99), _EARLY_GETS, _NOTHING_LOST),
        (_SHORT_GETS, _EARLY_GETS, _NOTHING_LOST),
        budget_s=120,
        sabotage="forgetful",
        sabotaged=_settings("halves", 1000, nodes=200),
        is_short_sabotaged=False,  # half of a small swarm finds the other again, and a large one takes 40 s
    ),
    _hostile(
        "10 % collude",
        "colluders-10",
        0.999,
        short=_settings("colluders-10", 400, nodes=_SHORT_NODES),
        sabotaged=_settings("colluders-10", 4000),
        sabotaged_s=80,
    ),
    _hostile("20 % collude", "colluders-20", 0.995),
    _hostile("30 % collude", "colluders-30", 0.99, short=_settings("colluders-30", *_FEWEST)),
    _hostile("50 % collude", "colluders-50", 0.95, short=_settings("colluders-50", *_FEWEST)),
    _hostile(
        "20 % collude, tables poisoned 4x, for two hours",
        "poisoned-20",
        0.99,
        full=_settings("poisoned-20", 10_000, _HOURS),
        budget_s=450,
    ),
    _hostile("30 % collude, tables poisoned 4x", "poisoned-30", 0.99, short=_settings("poisoned-30", *_FEWEST)),
    _hostile("50 % collude, tables poisoned 4x", "poisoned-50", 0.90, short=_settings("poisoned-50", *_FEWEST)),
    # The same cell, without d alone: in a small swarm one path finds nearly as much, so there is no short form.
    _hostile("the same, where paths share nobody", "poisoned-50", 0.90, short=None, sabotage="one-path"),
    _hostile(
        "20 % of 10,000 collude, tables poisoned 4x",
        "poisoned-20",
        0.99,
        full=_settings("poisoned-20", 10_000, nodes=10_000),
        short=None,
        budget_s=450,
    ),
    _hostile(
        "20 % are silent",
        "silent-20",
        0.99,
        limits=(_gets(0.99), _UNHURT),
        short=_settings("silent-20", 400, nodes=_SHORT_NODES),
        short_limits=(_SHORT_GETS, _UNHURT),
        budget_s=120,
        sabotage="patient",
    ),
    _hostile("20 % lie", "liars-20", 0.99, short=_settings("liars-20", 400, nodes=_SHORT_NODES), budget_s=240),
    # A simulated node has all the time that it wants: what a flood can take is the room of its store.
    _hostile(
        "2 % flood, and fill what they can",
        "hoarders-2",
        0.99,
        limits=(_gets(0.99), _MOST_KEPT, _NOTHING_LOST),
        short=_settings("hoarders-2", 130, nodes=60),
        short_limits=(_SHORT_GETS, _MOST_KEPT, _NOTHING_LOST),
        budget_s=300,
        sabotage="no-quotas",
        sabotaged=_settings("hoarders-2", SABOTAGED_LOOKUPS, nodes=200),
    ),
    # More than is asked of it: diversity stands in for the defence that is missing, and 99 % are found all the same.
    replace(
        _sybils("20 ids in two /24s, honest nodes first", "two-honest-first", "crowded", is_short_sabotaged=False),
        limits=(_gets(0.995), _ONE_STRICT),
    ),
    _sybils("20 ids in twenty /24s, honest nodes first", "twenty-honest-first", "crowded", is_short_sabotaged=False),
    _sybils(
        "60 ids in as many /24s, honest first", "many-honest-first", "no-density", Limit("fewest_storers", ">=", 8)
    ),
    _sybils("20 ids in two /24s, Sybils first", "two-sybils-first", "no-diversity"),
    replace(
        _sybils("20 ids in twenty /24s, Sybils first: report only", "twenty-sybils-first", ""),
        limits=(),
        short=None,
        budget_s=120,
        seeds=2,
    ),
    replace(_sybils("20 ids spread thinly, Sybils first: report only", "thin-sybils-first", ""), limits=(), short=None),
    Gate(
        "restart with one of three seeds hostile",
        "overlay-restart",
        _settings("", 100, nodes=60),
        _settings("", 40, nodes=40),
        (Limit("restart_success_low", ">=", 0.99),),
        (Limit("restart_success_low", ">=", 0.91),),
        budget_s=30,
        seeds=4,
        sabotage="trust-all",
        sabotaged=_settings("", 400, nodes=60),
        sabotaged_s=120,
    ),
    Gate(
        "flash crowd: all join within 120 s",
        "overlay-flash-crowd",
        _settings("", 1000),
        _settings("", 200, nodes=60),
        (Limit("join_success_low", ">=", 0.99), _gets(0.99)),
        (Limit("join_success_low", ">=", 0.93), _SHORT_GETS),
        budget_s=250,
        sabotage="no-offers",
        sabotaged=_settings("", 400, nodes=400),
        sabotaged_s=100,
        is_short_sabotaged=False,
    ),
    Gate(
        "rolling restart, nothing but keys left",
        "overlay-rolling",
        _settings("without-state", 10_000, 0.5),
        _settings("without-state", 200, 0.5, nodes=24),
        (_gets(0.999), _NOTHING_LOST, _EIGHT_STORERS),
        (_SHORT_GETS, _NOTHING_LOST, _EIGHT_STORERS),
        budget_s=450,
        sabotage="no-offers",
        sabotaged=_settings("without-state", 4000, 0.5, nodes=100),
    ),
)


PAGE = PageText(
    "What the overlay stands",
    (
        "Real node code on a virtual network, hosts at public addresses, tables from global knowledge at the start.",
        "Rates are the lower end of the 95 % Wilson interval. What hostile hosts do is in `simulations/adversary.py`;",
        "every gate is played once more without the defence that it is about, and has to miss then.",
        "What is done to a swarm is mostly done at once, and its 10,000 reads take some minutes of virtual time then,",
        "where two hours were meant: the column says how long each run lasts.",
    ),
    "make gates",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 when every gate is passed and every sabotage misses, 1 when not."""
    return play_gates(
        GATES, PAGE, gates_parser("simulations.gates", "What the overlay has to stand.").parse_args(arguments)
    )


def play_gates(all_gates: Sequence[Gate], page: PageText, options: argparse.Namespace) -> int:
    """What a program about these gates does, with the options of `gates_parser`; its exit code, as of `main`."""
    gates = [gate for gate in all_gates if not options.only or any(word in gate.name for word in options.only)]
    if options.list:
        _list(gates)
        return 0
    began_at = time.monotonic()
    ends = _play(gates, options.out, options.workers)
    took_s = time.monotonic() - began_at
    results = [_judge(gate, ends) for gate in gates]
    for result in results:
        print(result.line())
    if options.page is not None and not options.only:
        write_page(options.page, page, results, took_s=took_s, workers=options.workers)
    return 0 if all(result.is_good for result in results) else 1


def _play(gates: Iterable[Gate], folder: Path, workers: int) -> dict[Cell, CellEnd]:
    """Every cell of every gate, the longest first, so that no core waits for another at the end."""
    budgets = _budgets(gates)
    cells = sorted(budgets, key=lambda cell: -budgets[cell])
    ends: dict[Cell, CellEnd] = {}
    with closing(play_cells(cells, folder, workers=workers)) as playing:
        for cell, end in playing:
            ends[cell] = end
            took_s = "kept" if end.was_kept else f"{(end.figures or {}).get('cpu_s', 0):.0f} s"
            print(
                f"{len(ends)} of {len(cells)}: {cell.scenario.name} {cell.settings.arguments()}: "
                f"{took_s} of {budgets[cell]:.0f} s",
                file=sys.stderr,
                flush=True,
            )
    return ends


def _budgets(gates: Iterable[Gate]) -> dict[Cell, float]:
    """What every cell may take of a core, in seconds; some gates share that of their sabotage."""
    budgets: dict[Cell, float] = {}
    for gate in gates:
        sabotaged = gate.sabotaged_cell()
        for settings in [*gate.cells(), *([] if sabotaged is None else [sabotaged])]:
            budget_s = gate.sabotaged_s if settings is sabotaged else gate.budget_s
            budgets[Cell(SCENARIOS[gate.scenario], settings)] = budget_s
    return budgets


def _judge(gate: Gate, ends: Mapping[Cell, CellEnd]) -> GateResult:
    scenario = SCENARIOS[gate.scenario]
    own = [ends[Cell(scenario, settings)] for settings in gate.cells()]
    runs = [end.figures for end in own if end.figures is not None and end.figures.get("error") is None]
    figures = put_together(runs) if len(runs) == len(own) else {}
    sabotaged = gate.sabotaged_cell()
    sabotaged_end = None if sabotaged is None else ends[Cell(scenario, sabotaged)].figures or {}
    return GateResult(
        name=gate.name,
        command=f"python -m simulations run {gate.scenario} {gate.full.arguments()}",
        cells=len(own),
        figures=figures,
        limits=[(str(limit), figures.get(limit.figure), limit.is_met(figures)) for limit in gate.limits],
        sabotage=gate.sabotage,
        is_sabotage_noticed=sabotaged_end is None or bool(gate.missed(put_together([sabotaged_end]))),
        virtual_s=sum(run["virtual_s"] for run in runs),
        cpu_s=sum(run["cpu_s"] for run in runs),
        budget_s=gate.budget_s * gate.seeds,
    )


def _list(gates: Sequence[Gate]) -> None:
    total_s = sum(_budgets(gates).values())
    for gate in gates:
        limits = ", ".join(map(str, gate.limits)) or "report only"
        print(f"{gate.name}: {gate.seeds} cells of {gate.budget_s:.0f} s; {limits}; misses: {gate.sabotage or '-'}")
    print(f"in all {total_s / 60:.0f} min of a core, {total_s / WORKERS / 60:.0f} min on {WORKERS}")


def gates_parser(module: str, description: str) -> argparse.ArgumentParser:
    """The options of a program that plays gates."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("--only", action="append", metavar="WORDS", help="gates whose name has these words; repeatable")
    parser.add_argument("--list", action="store_true", help="what there is, with the budget of each cell")
    parser.add_argument("--out", type=Path, default=FOLDER, metavar="DIR", help="keeps finished cells (%(default)s)")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the page of results here, if all were played")
    parser.add_argument("--workers", type=int, default=WORKERS, help="processes at once (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
