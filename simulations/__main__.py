"""`python -m simulations`, or `synapse simulate`: list the scenarios, run one, run one many times."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

from simulations.pictures.page import PAGE_NAME, write_run_page, write_sweep_page
from simulations.progress import ProgressLine, Watch
from simulations.report import PROGRAM, file_stem, replay_command, run_scenario, write_report
from simulations.scenarios import SCENARIOS
from simulations.scenarios.base import DEFAULT_LOOKUPS, DEFAULT_NODES, DEFAULT_SEED, Settings, Start
from simulations.sweep import MAX_CELLS, CellEnd, Grid, sweep
from synapse_p2p.exceptions import ConfigError

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130  # as shells have it: 128 and the number of SIGINT
MIB = 1024 * 1024

T = TypeVar("T")


def main(arguments: Sequence[str] | None = None, *, program: str = PROGRAM) -> int:
    """The exit code: 0 when all went as the scenario demands, 1 when not, 130 when Ctrl-C ended it early.

    A wrong command exits with 2. `program` is how we were called: commands that are printed begin with it.
    """
    parser = _parser(program)
    options = parser.parse_args(arguments)
    try:
        return options.do(options)
    except ConfigError as error:
        parser.error(str(error))
    except OSError as error:
        if not getattr(options, "out", None):
            raise
        parser.error(f"--out {options.out}: {error.strerror or error}")


def _list(options: argparse.Namespace) -> int:
    if options.json:
        scenarios = [
            {"name": each.name, "summary": each.summary, "variants": each.variants, "sabotages": list(each.sabotages)}
            for each in SCENARIOS.values()
        ]
        print(json.dumps({"scenarios": scenarios}))
        return 0
    width = max(len(name) for name in SCENARIOS)
    for scenario in SCENARIOS.values():
        print(f"{scenario.name:{width}} {scenario.summary}")
        for name, summary in scenario.variants.items():
            print(f"  --variant {name:{width}} {summary}")
        if scenario.sabotages:
            print(f"  --sabotage {' or '.join(scenario.sabotages)}")
    return 0


def _run(options: argparse.Namespace) -> int:
    settings = Settings(
        options.nodes,
        options.lookups,
        options.seed,
        options.hours,
        options.start,
        options.wire,
        options.variant,
        options.sabotage,
    )
    SCENARIOS[options.scenario].check(settings)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)  # what cannot work is said before the run, not after
    line = ProgressLine(sys.stderr)
    watch = Watch(line.show)
    with _ctrl_c_ends_early(watch):
        report = run_scenario(SCENARIOS[options.scenario], settings, watch, program=options.program)
    line.end()
    if options.json:
        print(json.dumps(report.figures))
    else:
        _print_figures(report.figures)
    if options.out is not None:
        stem = file_stem(options.scenario, settings)
        write_report(report, options.out, stem)
        command = replay_command(options.scenario, settings, options.program)
        _draw(options.out, lambda: write_run_page(report, command, options.out, stem))
    if report.figures["interrupted"]:
        return EXIT_INTERRUPTED
    if report.failure is None:
        return 0
    if options.out is None:
        print(report.failure, end="", file=sys.stderr)
    else:
        error = report.figures["error"] or "lookups failed"
        again = replay_command(options.scenario, settings, options.program)
        print(f"{error}; to see the same again: {again}", file=sys.stderr)
    return EXIT_FAILED


def _sweep(options: argparse.Namespace) -> int:
    cells = Grid(
        options.nodes,
        options.seeds,
        options.lookups,
        options.hours,
        options.start,
        options.wire,
        options.variant,
        options.sabotage,
    ).cells()
    for settings in cells:
        SCENARIOS[options.scenario].check(settings)
    ends: dict[Settings, CellEnd] = {}
    is_interrupted = False
    line = ProgressLine(sys.stderr)
    line.show_cells(0, len(cells), 0)
    try:
        scenario, workers = SCENARIOS[options.scenario], options.workers
        with closing(sweep(scenario, cells, options.out, workers=workers, program=options.program)) as sweeping:
            for end in sweeping:
                ends[end.settings] = end
                line.show_cells(len(ends), len(cells), sum(not each.is_passed for each in ends.values()))
    except KeyboardInterrupt:
        is_interrupted = True
    line.end()
    in_order = [ends[settings] for settings in cells if settings in ends]
    failed = [end for end in in_order if not end.is_passed]
    if options.json:
        _print_sweep_json(options.scenario, in_order, len(cells) - len(ends))
    else:
        _print_table(in_order)
    for end in failed:
        why = end.reason or (end.figures and end.figures["error"]) or "lookups failed"
        again = replay_command(options.scenario, end.settings, options.program)
        print(f"{why}; to see the same again: {again}", file=sys.stderr)
    _draw(options.out, lambda: write_sweep_page(options.scenario, in_order, len(cells), options.out))
    if is_interrupted:
        print(f"{len(cells) - len(ends)} of {len(cells)} cells remain; the same command goes on", file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_FAILED if failed else 0


def _draw(folder: Path, write_page: Callable[[], Path]) -> None:
    """Write a page and its pictures, or say why there are none: the figures are kept all the same."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # that it looks for its fonts is not of interest here
    try:
        write_page()
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "matplotlib":
            raise
        print(
            f"the figures are in {folder}, without {PAGE_NAME} and pictures, for matplotlib is not installed; type "
            "pip install 'synapse-p2p[plots]' and the same command again",
            file=sys.stderr,
        )


def _print_figures(figures: dict[str, Any]) -> None:
    """What there is, one line each; JSON alone has what was typed and the notes of a run that went well."""
    for name, value in figures.items():
        if value is not None and name not in ("settings", "notes"):
            print(f"{name:16} {value}")


def _print_sweep_json(scenario_name: str, ends: Sequence[CellEnd], remaining: int) -> None:
    cells = [end.figures or {"settings": end.settings.as_map(), "passed": False, "error": end.reason} for end in ends]
    failed = sum(not end.is_passed for end in ends)
    print(json.dumps({"scenario": scenario_name, "failed": failed, "remaining": remaining, "cells": cells}))


def _print_table(ends: Sequence[CellEnd]) -> None:
    """One line a cell. What is the same in all of them is in the command that was typed."""
    print(f"{'settings':44} {'found':>8} {'hops':>7} {'messages':>11} {'virtual':>11} {'wall':>8} {'peak':>8}  end")
    for end in ends:
        figures: dict[str, Any] = end.figures or {}
        columns = (
            _shown(figures.get("lookup_success"), 8, "{:.2%}"),
            _shown(figures.get("mean_hops"), 7, "{:.3f}"),
            _shown(figures.get("messages"), 11, "{:,}"),
            _shown(figures.get("virtual_s"), 11, "{:,.1f} s"),
            _shown(figures.get("wall_s"), 8, "{:,.1f} s"),
            _shown(_in_mib(figures.get("peak_rss_bytes")), 8, "{:,.0f} MiB"),
        )
        verdict = ("passed" if end.is_passed else "FAILED") + (", kept" if end.was_kept else "")
        print(f"{end.settings.arguments():44} {' '.join(columns)}  {verdict}")


def _shown(value: float | None, width: int, form: str) -> str:
    return ("-" if value is None else form.format(value)).rjust(width)


def _in_mib(size_bytes: int | None) -> float | None:
    return None if size_bytes is None else size_bytes / MIB


@contextmanager
def _ctrl_c_ends_early(watch: Watch) -> Iterator[None]:
    """The first Ctrl-C asks the run to end with what it has; the second one ends the program."""

    def end_early(_: int, frame: FrameType | None) -> None:
        if watch.is_interrupted:
            raise KeyboardInterrupt
        watch.interrupt()

    previous = signal.signal(signal.SIGINT, end_early)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser that says in one line what is wrong; the usage is a `--help` away."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def _parser(program: str) -> argparse.ArgumentParser:
    parser = _Parser(prog=program, description="Real node code on a virtual clock.")
    parser.set_defaults(program=program)
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="the scenarios")
    listing.set_defaults(do=_list)
    _add_json(listing)

    run = commands.add_parser("run", help="run a scenario and print its figures")
    run.set_defaults(do=_run)
    run.add_argument("scenario", choices=sorted(SCENARIOS))
    run.add_argument("--nodes", type=int, default=DEFAULT_NODES, help="how many nodes join (default %(default)s)")
    run.add_argument("--lookups", type=int, default=DEFAULT_LOOKUPS, help="how many lookups (default %(default)s)")
    run.add_argument("--seed", type=int, default=DEFAULT_SEED, help="where all chance comes from (default %(default)s)")
    run.add_argument("--hours", type=float, help="virtual hours that the swarm lives once it stands")
    run.add_argument("--start", type=_start, default=Start.PROTOCOL, metavar="|".join(start.value for start in Start))
    run.add_argument("--variant", default="", help="one of those that `list` names (default: the scenario's first)")
    run.add_argument(
        "--out", type=Path, metavar="DIR", help="keep figures, pictures and the trace of a failure in files"
    )
    _add_shared(run)

    many = commands.add_parser("sweep", help="run a scenario for many seeds and parameters, on all cores")
    many.set_defaults(do=_sweep)
    numbers = _listed(_whole_numbers)
    many.add_argument("scenario", choices=sorted(SCENARIOS))
    many.add_argument("--nodes", type=numbers, default=[DEFAULT_NODES], help="such as 100,1000")
    many.add_argument("--lookups", type=numbers, default=[DEFAULT_LOOKUPS], help="such as 100,1000")
    many.add_argument("--seeds", type=numbers, default=[DEFAULT_SEED], help="such as 1,2,3 or 1-200")
    many.add_argument("--hours", type=_listed(lambda text: [float(text)]), default=[None], help="such as 1,24")
    many.add_argument("--start", type=_listed(lambda text: [_start(text)]), default=[Start.PROTOCOL])
    many.add_argument("--variant", type=lambda text: text.split(","), default=[""], help="such as 30,50")
    many.add_argument("--workers", type=int, default=_cores(), help="processes at once (default: one a core)")
    many.add_argument("--out", type=Path, metavar="DIR", required=True, help="a folder; it keeps finished cells")
    _add_shared(many)
    return parser


def _add_shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--wire", action="store_true", help="seal and frame messages as the real wire does")
    parser.add_argument("--sabotage", default="", help="a defence that nodes go without; `list` names them")
    _add_json(parser)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one line of JSON")


def _start(text: str) -> Start:
    try:
        return Start(text)
    except ValueError:
        names = " or ".join(start.value for start in Start)
        raise argparse.ArgumentTypeError(f"{text!r} is not {names}") from None


def _listed(values_of: Callable[[str], Sequence[T]]) -> Callable[[str], list[T]]:
    """A reader of values between commas; `values_of` reads what stands between two, and may raise ValueError."""

    def read(text: str) -> list[T]:
        try:
            return [value for part in text.split(",") for value in values_of(part)]
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a list such as 1,2,3") from None

    return read


def _whole_numbers(text: str) -> Sequence[int]:
    """`7` is one number, `1-200` is two hundred."""
    first, dash, last = text.partition("-")
    start, stop = int(first), int(last if dash else first) + 1
    if stop <= start:
        raise ValueError(f"{text!r} is an empty range")
    if stop - start > MAX_CELLS:
        raise argparse.ArgumentTypeError(f"{text!r} has {stop - start} values; a sweep has at most {MAX_CELLS} runs")
    return range(start, stop)


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    sys.exit(main())
