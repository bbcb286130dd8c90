"""Who finds agents, and at what cost: our index beside a single key that is not sharded and a gossip cache.

    python -m benchmarks.discovery [--long] [--workers 2] [--results FILE] [--page FILE]

All designs run on the same virtual network, with the same latencies, providers and deaths; see `discovery_run.py`. What
an earlier run finished is in the file of results, and not played again. At the end the table of the page and the plot
beside it are written anew, for which matplotlib has to be there (`pip install -e '.[plots]'`).
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from benchmarks.discovery_designs.catalog import (
    GOSSIP,
    GOSSIP_SHIPPED,
    OURS,
    OURS_SMALL,
    SINGLE_KEY,
    SINGLE_KEY_SHIPPED,
)
from benchmarks.discovery_page import write_page, write_plot
from benchmarks.discovery_run import Cell, Figures, run_cell
from benchmarks.releases import ROOT
from benchmarks.rpc import machine

SIZES = ((100, 10), (100, 100), (300, 10))
"""Nodes, and how many of them offer the capability."""
LARGE_SIZES = ((300, 100), (300, 300), (1000, 10), (1000, 100), (1000, 1000))
SHIPPED_SIZE = (30, 10)
"""For what runs for days of virtual time."""


def cells_of(sizes: Sequence[tuple[int, int]]) -> tuple[Cell, ...]:
    """Every design at our times, at these sizes."""
    return tuple(Cell(design, nodes, providers) for nodes, providers in sizes for design in (OURS, SINGLE_KEY, GOSSIP))


CELLS = cells_of(SIZES)
LONG_CELLS = (
    Cell(OURS_SMALL, 100, 100),
    *(Cell(design, *SHIPPED_SIZE) for design in (SINGLE_KEY_SHIPPED, GOSSIP_SHIPPED)),
    *cells_of(LARGE_SIZES),
)
"""More agents, shards at work, and the times that designs come with: hours of a core."""


def read_results(path: Path) -> dict[Cell, Figures]:
    """What was finished earlier, by cell."""
    if not path.exists():
        return {}
    runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
    return {Cell(run["design"], run["nodes"], run["providers"], run["seed"]): run for run in runs}


def play(cells: Sequence[Cell], path: Path, workers: int) -> dict[Cell, Figures]:
    """Play what is missing, and keep every run in the file as soon as it is over."""
    results = read_results(path)
    missing = [cell for cell in cells if cell not in results]
    # Spawned, not forked: a run shall not depend on what was played before it in the same process.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_be_quiet, max_tasks_per_child=1) as pool:
        cell_of = {pool.submit(run_cell, cell): cell for cell in missing}
        for future in as_completed(cell_of):
            cell = cell_of[future]
            results[cell] = future.result()
            print(f"{cell}: {results[cell]['cpu_s']} s of CPU", flush=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            runs = list(results.values())
            path.write_text(json.dumps({"machine": machine(), "runs": runs}, indent=1) + "\n", encoding="utf-8")
    return results


def _be_quiet() -> None:
    # Nodes warn of what is done to them here on purpose.
    logging.disable(logging.WARNING)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Our index beside a single key and a gossip cache.")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--long", action="store_true", help="what takes hours of a core too")
    parser.add_argument("--results", type=Path, default=ROOT / "build" / "discovery.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "explanation" / "discovery.md")
    options = parser.parse_args()
    cells = (*CELLS, *LONG_CELLS) if options.long else CELLS
    results = play(cells, options.results, options.workers)
    runs = [results[cell] for cell in cells]
    write_page(options.page, runs, machine())
    write_plot(options.page.with_name("discovery.svg"), runs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
