"""A run and its figures, as one map, and the files that they are kept in."""

from __future__ import annotations

import functools
import gc
import hashlib
import json
import logging
import os
import platform
import re
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dht
import simulations
import synapse_p2p
from simulations.progress import Watch
from simulations.samples import Samples
from simulations.scenarios.base import DEFAULT_LOOKUPS, Ended, Playable, Settings, Start
from synapse_p2p.version import VERSION

GC_THRESHOLDS = (100_000, 1, 0)
"""Allocations until the garbage collector looks, and looks at the older. With Python's own it took 15 % of the time of
a run of 600 nodes, most of it in full collections that found nothing. Dead nodes are cycles that only a full one takes:
too seldom, 1,000 nodes in a day of churn grew by 60 MB an hour, and slower with it. A second freeze, once the swarm
stands, gained nothing that could be measured."""
PROGRAM = "python -m simulations"
"""How the command is called where nobody says otherwise."""
_STATUS_OF_THIS_PROCESS = Path("/proc/self/status")


@dataclass(frozen=True, slots=True)
class Report:
    """What is said of one run: its figures, ready for JSON, and for one that failed why.

    `failure` is text of some lines, None unless it failed; `events` has one line for each of the last things before.
    Pictures are made of `samples`.
    """

    figures: dict[str, Any]
    failure: str | None = field(default=None, repr=False)
    events: Sequence[str] = field(default=(), repr=False)
    samples: Samples | None = field(default=None, repr=False)


def run_scenario(
    scenario: Playable, settings: Settings, watch: Watch | None = None, *, program: str = PROGRAM
) -> Report:
    """Live through a scenario. A failure is in the report, not raised; with the command that has it again, which begins
    with `program`.

    `virtual_s` is time inside of the run, `wall_s` outside; `passed` says whether it went as the scenario demands. What
    the machine has a part in (`wall_s`, `cpu_s`, `messages_per_s`, `peak_rss_bytes`, `python`) differs between two runs
    of the same settings, and nothing else does.
    """
    started_at, cpu_at = time.perf_counter(), time.process_time()
    with _rare_collections(), _unheard_warnings():
        ended = scenario.run(settings, watch or Watch())
    wall_s = time.perf_counter() - started_at
    figures = {
        "scenario": scenario.name,
        "nodes": settings.nodes,
        "seed": settings.seed,
        "start": settings.start.value,
        "passed": ended.is_passed,
        "interrupted": ended.is_interrupted,
        "error": _one_line(ended.error),
        "digest": ended.digest,
        **_figures_of(ended),
        "messages": ended.messages,
        "virtual_s": round(ended.virtual_s, 6),
        "wall_s": round(wall_s, 3),
        "cpu_s": round(time.process_time() - cpu_at, 3),
        "messages_per_s": round(ended.messages / wall_s),
        "peak_rss_bytes": _peak_rss_bytes(),
        "python": platform.python_version(),
        "version": VERSION,
        "code": code_version(),
        "settings": settings.as_map(),
    }
    is_failure = not (ended.is_passed or ended.is_interrupted)
    failure = _failure(replay_command(scenario.name, settings, program), ended) if is_failure else None
    return Report(figures, failure, ended.trace, ended.samples)


def replay_command(scenario_name: str, settings: Settings, program: str = PROGRAM) -> str:
    """What to type to see the same run again."""
    return f"{program} run {scenario_name} {settings.arguments()}"


def file_stem(scenario_name: str, settings: Settings) -> str:
    """The name of a run's files without its end: scenario, nodes, what is not as usual, seed."""
    parts = [scenario_name, f"n{settings.nodes}"]
    if settings.lookups != DEFAULT_LOOKUPS:
        parts.append(f"l{settings.lookups}")
    if settings.hours is not None:
        parts.append(f"h{float(settings.hours)}")
    if settings.start is not Start.PROTOCOL:
        parts.append(settings.start.value)
    if settings.wire:
        parts.append("wire")
    parts += [word for word in (settings.variant, settings.sabotage) if word]
    return "-".join([*parts, f"s{settings.seed}"])


def write_report(report: Report, folder: Path, stem: str) -> Path:
    """Keep a report in `folder` as `stem`.json; the path of it. A failure has its trace beside it. Raises OSError.

    Whoever reads a file finds all of it or none. The trace is first: once the figures are there, all is.
    """
    trace_path = folder / f"{stem}.trace.txt"
    if report.failure is None:
        trace_path.unlink(missing_ok=True)  # of an earlier run, under other code
    else:
        title = f"\nthe last {len(report.events)} events: virtual seconds, from, to, what, bytes\n"
        text = report.failure + title + "".join(f"{event}\n" for event in report.events)
        write_whole(trace_path, text.encode())
    path = folder / f"{stem}.json"
    write_whole(path, f"{json.dumps(report.figures, indent=1)}\n".encode())
    return path


def write_whole(path: Path, content: bytes) -> None:
    """Write a file in such a way that whoever reads it finds all of it, or what was there before. Raises OSError."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # beside it: a rename has to stay on one disk
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


@functools.cache
def code_version() -> str:
    """16 hexadecimal digits that stand for the source of the three packages, also where none was released."""
    sources = hashlib.sha256()
    for package in (dht, simulations, synapse_p2p):
        assert package.__file__ is not None
        folder = Path(package.__file__).parent
        for path in sorted(folder.rglob("*.py"), key=lambda path: path.relative_to(folder).as_posix()):
            source = path.read_bytes()
            sources.update(f"{package.__name__}/{path.relative_to(folder).as_posix()} {len(source)}\n".encode())
            sources.update(source)
    return sources.hexdigest()[:16]


def _figures_of(ended: Ended) -> dict[str, Any]:
    outcome = ended.outcome
    histogram: dict[int, int] = {}
    for hops in outcome.hops:
        histogram[hops] = histogram.get(hops, 0) + 1
    return {
        "lookups": outcome.lookups,
        "lookup_success": outcome.success,
        "mean_hops": round(sum(outcome.hops) / len(outcome.hops), 4) if outcome.hops else None,
        "hops": {str(hops): histogram[hops] for hops in sorted(histogram)},
        "notes": list(outcome.notes),
        **outcome.figures,
    }


def _failure(command: str, ended: Ended) -> str:
    error = ended.error
    lines = [
        f"failed at {ended.virtual_s:.6f} s",
        f"Synapse P2P {VERSION}, code {code_version()}, Python {platform.python_version()}",
    ]
    if ended.outcome.notes:
        lines += ["", "notes", *ended.outcome.notes]
    if error is not None:
        lines += ["", "".join(traceback.format_exception(error)).rstrip()]
    lines += ["", f"to see the same again: {command}"]
    return "\n".join(lines) + "\n"


def _one_line(error: Exception | None) -> str | None:
    return None if error is None else " ".join(f"{type(error).__name__}: {error}".split())


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Spare the garbage collector what is there already, and have it look less often, for as long as a run takes."""
    thresholds = gc.get_threshold()
    was_frozen = gc.get_freeze_count()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        if not was_frozen:  # else whoever froze wants it so, and there is no way to thaw only a part
            gc.unfreeze()


@contextmanager
def _unheard_warnings() -> Iterator[None]:
    """Leave out what nodes warn of: a thousand of them live through the same trouble, which is the point of a run."""
    nodes = logging.getLogger("dht")
    level = nodes.level
    nodes.setLevel(logging.ERROR)
    try:
        yield
    finally:
        nodes.setLevel(level)


def _peak_rss_bytes() -> int | None:
    """The most memory this process ever held; None where the system does not say."""
    # What getrusage says of a new process on Linux is never less than what the one that started it held.
    if _STATUS_OF_THIS_PROCESS.exists():
        peak = re.search(
            r"^VmHWM:\s+(\d+) kB$", _STATUS_OF_THIS_PROCESS.read_text(encoding="utf-8", errors="replace"), re.MULTILINE
        )
        if peak is not None:
            return int(peak[1]) * 1024
    try:
        import resource
    except ImportError:
        return None
    maxrss: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return maxrss if sys.platform == "darwin" else maxrss * 1024
