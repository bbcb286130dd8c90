"""Many runs, of one scenario or of several, each in a process of its own, and the folder that keeps what they found.

Owns which cells there are, which of them are finished already, and the life of the workers. What one run is, and the
file it leaves, is in report.py. A cell depends on its settings alone: not on who runs it, with what, or after which.
"""

from __future__ import annotations

import itertools
import json
import math
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from simulations.report import PROGRAM, code_version, file_stem, run_scenario, write_report
from simulations.scenarios.base import Playable, Settings, Start
from synapse_p2p.exceptions import ConfigError

MAX_CELLS = 100_000
"""As many runs a sweep can have; more are a slip of the finger."""


@dataclass(frozen=True, slots=True)
class Grid:
    """The parameters of a sweep: every value of each with every value of all others is a cell."""

    nodes: Sequence[int]
    seeds: Sequence[int]
    lookups: Sequence[int]
    hours: Sequence[float | None] = (None,)
    starts: Sequence[Start] = (Start.PROTOCOL,)
    wire: bool = False
    variants: Sequence[str] = ("",)
    sabotage: str = ""

    def cells(self) -> list[Settings]:
        """Each once, the seeds of one place next to each other. Raises ConfigError for one that is refused."""
        axes = (self.nodes, self.lookups, self.hours, self.starts, self.variants, self.seeds)
        count = math.prod(len(axis) for axis in axes)
        if count > MAX_CELLS:
            raise ConfigError(f"a sweep of {count} runs is more than {MAX_CELLS}")
        settings = (
            Settings(nodes, lookups, seed, hours, start, self.wire, variant, self.sabotage)
            for nodes, lookups, hours, start, variant, seed in itertools.product(*axes)
        )
        return list(dict.fromkeys(settings))


@dataclass(frozen=True, slots=True)
class CellEnd:
    """What became of a cell: its figures, or without them the reason why there are none."""

    settings: Settings
    figures: dict[str, Any] | None
    reason: str = ""
    was_kept: bool = False  # it is from an earlier sweep

    @property
    def is_passed(self) -> bool:
        return self.figures is not None and self.figures["passed"] is True


@dataclass(frozen=True, slots=True)
class Cell:
    """One run: what is played, and with which settings."""

    scenario: Playable
    settings: Settings

    def __hash__(self) -> int:
        return hash((self.scenario.name, self.settings))


def sweep(
    scenario: Playable, cells: Sequence[Settings], folder: Path, *, workers: int, program: str = PROGRAM
) -> Generator[CellEnd, None, None]:
    """As `play_cells`, of one scenario."""
    to_play = [Cell(scenario, settings) for settings in cells]
    with closing(play_cells(to_play, folder, workers=workers, program=program)) as playing:
        for _, end in playing:
            yield end


def play_cells(
    cells: Sequence[Cell], folder: Path, *, workers: int, program: str = PROGRAM
) -> Generator[tuple[Cell, CellEnd], None, None]:
    """The end of every cell, in the order in which they end; first those that `folder` has finished.

    The others begin in the order given.

    A run that failed is finished too, for it would fail again; one whose worker died is not. Whoever stops asking,
    or is interrupted, ends the workers: what ended before stays in the folder. Raises OSError for a folder that
    cannot be written to, and what pickle raises for a scenario that no module has by name.
    """
    if workers < 1:
        raise ConfigError(f"--workers is {workers}; it has to be 1 or more")
    folder.mkdir(parents=True, exist_ok=True)
    waiting: deque[Cell] = deque()
    for cell in cells:
        figures = _kept_figures(_figures_path(folder, cell), cell)
        if figures is None:
            waiting.append(cell)
        else:
            yield cell, CellEnd(cell.settings, figures, was_kept=True)
    running: dict[Any, tuple[SpawnProcess, Cell]] = {}  # by what is ready when the process has ended
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                cell = waiting.popleft()
                process = _start(cell, folder, program)
                running[process.sentinel] = process, cell
            for sentinel in connection.wait(list(running)):
                process, cell = running.pop(sentinel)
                yield cell, _end_of(process, cell.settings, _figures_path(folder, cell))
    finally:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.join()


def _figures_path(folder: Path, cell: Cell) -> Path:
    return folder / f"{file_stem(cell.scenario.name, cell.settings)}.json"


def _start(cell: Cell, folder: Path, program: str) -> SpawnProcess:
    _figures_path(folder, cell).unlink(missing_ok=True)  # what is there afterwards is of this run
    # Spawned, not forked: a worker that began as a copy of this process could give another digest than a plain run.
    process = multiprocessing.get_context("spawn").Process(
        target=_work, args=(cell.scenario, cell.settings, folder, program), daemon=True
    )
    with _no_interrupts():
        process.start()
    return process


def _work(scenario: Playable, settings: Settings, folder: Path, program: str) -> None:
    """What a worker does, all of it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    report = run_scenario(scenario, settings, program=program)
    write_report(report, folder, file_stem(scenario.name, settings))


def _end_with_parent() -> None:
    """A parent that is killed can end nobody, and a run may go on for hours."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _end_of(process: SpawnProcess, settings: Settings, path: Path) -> CellEnd:
    process.join()
    figures = _read_figures(path)
    reason = "" if figures is not None else _how_it_died(process.exitcode)
    process.close()
    return CellEnd(settings, figures, reason)


def _how_it_died(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        try:
            return f"its worker was killed by {signal.Signals(-exit_code).name}"
        except ValueError:  # real-time signals have no name
            return f"its worker was killed by signal {-exit_code}"
    return f"its worker ended with code {exit_code} and left no figures"


def _read_figures(path: Path) -> dict[str, Any] | None:
    """The figures in a file; None if there is no file, or no sense in it."""
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return figures if isinstance(figures, dict) else None


def _kept_figures(path: Path, cell: Cell) -> dict[str, Any] | None:
    """The figures of a run of these settings by this code that came to its end; None if there is none."""
    figures = _read_figures(path)
    if figures is None or figures.get("interrupted") is not False:
        return None
    kept = (figures.get("scenario"), figures.get("settings"), figures.get("code"))
    return figures if kept == (cell.scenario.name, cell.settings.as_map(), code_version()) else None


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """Start processes that Ctrl-C does not reach: a terminal sends it to all, and workers are ended from here.

    A process inherits what is blocked. One that arrives in between comes when this ends. Windows has no such thing;
    there a worker that is still starting may say that it was interrupted.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    blocked_before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked_before)
