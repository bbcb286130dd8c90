"""`python -m simulations`: list the scenarios, run one."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from simulations.report import run_scenario
from simulations.scenarios import SCENARIOS, Settings
from synapse_p2p.exceptions import ConfigError

PROGRESS_PAUSE_S = 0.2  # between two updates of the line on the screen


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 when every lookup succeeded, 1 when one did not. A wrong command exits with 2."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command == "list":
        for scenario in SCENARIOS.values():
            print(f"{scenario.name:12} {scenario.summary}")
        return 0
    try:
        settings = Settings(nodes=options.nodes, lookups=options.lookups, seed=options.seed)
    except ConfigError as error:
        parser.error(str(error))
    progress = _ProgressLine()
    figures = run_scenario(SCENARIOS[options.scenario], settings, progress)
    progress.end()
    if options.json:
        print(json.dumps(figures))
    else:
        _print_figures(figures)
    if figures["lookup_success"] == 1.0:
        return 0
    again = f"run {options.scenario} --nodes {options.nodes} --lookups {options.lookups} --seed {options.seed}"
    print(f"some lookups failed; to see the same again: python -m simulations {again}", file=sys.stderr)
    return 1


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser that says in one line what is wrong; the usage is a `--help` away."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m simulations", description="Real node code on a virtual clock.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the scenarios")
    run = commands.add_parser("run", help="run a scenario and print its figures")
    run.add_argument("scenario", choices=sorted(SCENARIOS))
    run.add_argument("--nodes", type=int, default=100, help="how many nodes join (default 100)")
    run.add_argument("--lookups", type=int, default=100, help="how many lookups follow (default 100)")
    run.add_argument("--seed", type=int, default=1, help="where all chance comes from (default 1)")
    run.add_argument("--json", action="store_true", help="print one line of JSON")
    return parser


def _print_figures(figures: dict[str, Any]) -> None:
    for name, value in figures.items():
        print(f"{name:16} {value}")


class _ProgressLine:
    """One line that is written over, on a terminal alone."""

    def __init__(self) -> None:
        self._is_shown = sys.stderr.isatty()
        self._last = 0.0

    def __call__(self, phase: str, done: int, of: int) -> None:
        now = time.monotonic()
        if self._is_shown and (done == of or now - self._last > PROGRESS_PAUSE_S):
            self._last = now
            print(f"\r{phase}: {done} of {of}\033[K", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leave a clean line."""
        if self._is_shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
