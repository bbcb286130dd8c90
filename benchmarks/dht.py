"""The overlay beside `kademlia`, `opendht` and `libtorrent`: whole swarms on this machine, in one run.

    python -m benchmarks.dht [--nodes 50 100] [--rounds 3] [--systems synapse kademlia] [--json]

Every swarm is a new process, and the systems take turns within every round, so that a slow moment of the machine meets
all of them. The exit status is 1 when a limit was missed or could not be measured. Traffic stays on loopback.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.dht_figures import OURS, Outcome, Round, Verdict, completed, ratios_table, table, verdicts
from benchmarks.dht_worker import SYSTEMS
from benchmarks.releases import ROOT, python_of
from benchmarks.rpc import machine

RELEASES = {"kademlia": "2.2.3", "opendht": "4.4.2", "libtorrent": "2.1.1"}
WORKER = "benchmarks.dht_worker"
TIMEOUT_S = 150.0  # of one swarm; the slowest, ours with 100 nodes, is half handshakes and takes under a minute
MAX_ROUNDS = 3  # where nobody says how many, and fewer where they do not fit BUDGET_S
BUDGET_S = 300.0
SEED = 20_260_000  # of the first round; the next has the next


class Comparison:
    """What was measured so far: rounds by number of nodes and by system, and why a system has none."""

    def __init__(self, systems: list[str], sizes: list[int]) -> None:
        self.rounds: dict[int, dict[str, list[Round]]] = {size: {name: [] for name in systems} for size in sizes}
        self.absent: dict[str, str] = {}
        self._pythons: dict[str, Path] = {}
        for name in systems:
            try:
                self._pythons[name] = Path(sys.executable) if name == OURS else python_of(RELEASES[name], name)
            except (subprocess.CalledProcessError, OSError) as error:
                self.absent[name] = f"not installed: {error}"

    def measure(self, count: int, *, within_s: float = math.inf) -> None:
        """Run every system at every size, in turn, `count` times, or as often as fits the time and once at least."""
        began = time.monotonic()
        for index in range(count):
            passed_s = time.monotonic() - began
            if passed_s + (passed_s / index if index else 0) > within_s:
                return
            for size, by_system in self.rounds.items():
                for name in by_system:
                    if name in self.absent:
                        continue
                    try:
                        figures = run_steadily(self._pythons[name], name, size, SEED + index)
                    except SwarmFailed as error:
                        # Rounds are compared in step: a system that fails in one is out of them all.
                        self.absent[name] = f"failed with {size} nodes: {error}"
                        for every in self.rounds.values():
                            every[name].clear()
                    else:
                        by_system[name].append(figures)

    def verdicts(self) -> list[Verdict]:
        """Every limit at every size."""
        return [verdict for size, rounds in self.rounds.items() for verdict in verdicts(rounds, size)]


class SwarmFailed(Exception):
    """A worker ended without figures; the text is the last that it said."""


def run_steadily(python: Path, name: str, nodes: int, seed: int) -> Round:
    """As `run_swarm`, once more where the bindings of `libtorrent` had a MemoryError, as they do now and then."""
    try:
        return run_swarm(python, name, nodes, seed)
    except SwarmFailed as error:
        if name != "libtorrent" or "MemoryError" not in str(error):
            raise
        return run_swarm(python, name, nodes, seed)


def run_swarm(python: Path, name: str, nodes: int, seed: int) -> Round:
    """The figures of one swarm. Raises SwarmFailed."""
    # Not isolated (-I): the worker is imported from this checkout, and nothing of it else but our own packages.
    command = [str(python), "-m", WORKER, name, str(nodes), str(seed)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    try:
        ended = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise SwarmFailed(f"no figures within {TIMEOUT_S:g} s") from None
    if ended.returncode:
        said = ended.stderr.strip().splitlines() or [f"exit status {ended.returncode}"]
        raise SwarmFailed(said[-1])
    return completed({"nodes": nodes, **json.loads(ended.stdout.splitlines()[-1])})


def report(comparison: Comparison) -> str:
    """Tables and verdicts, for people."""
    parts = [", ".join(f"{key} {value}" for key, value in about().items())]
    for size, rounds in comparison.rounds.items():
        count = max(map(len, rounds.values()))
        parts += [
            f"**{size} nodes in one process; rounds: {count}**",
            table(rounds, comparison.absent),
            ratios_table(rounds),
        ]
    parts.append("\n".join(str(verdict) for verdict in comparison.verdicts()))
    return "\n\n".join(part for part in parts if part)


def about() -> dict[str, Any]:
    """Where and with what it ran."""
    return {**machine(), **RELEASES}


def main() -> int:
    """The command; its exit status is 1 when a limit was not met."""
    parser = argparse.ArgumentParser(description="The overlay beside other DHTs, whole swarms on this machine.")
    parser.add_argument("--nodes", type=int, nargs="+", default=[50, 100])
    parser.add_argument("--rounds", type=int, help="by default as many as fit five minutes, at most 3")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--json", action="store_true", help="every round as JSON, not medians in tables")
    options = parser.parse_args()
    comparison = Comparison(list(dict.fromkeys(options.systems)), sorted(set(options.nodes)))
    if options.rounds is None:
        comparison.measure(MAX_ROUNDS, within_s=BUDGET_S)
    else:
        comparison.measure(options.rounds)
    told = comparison.verdicts()
    if options.json:
        limits = [{"limit": str(verdict), "measured": verdict.measured} for verdict in told]
        print(
            json.dumps(
                {"machine": about(), "rounds": comparison.rounds, "absent": comparison.absent, "limits": limits},
                indent=1,
            )
        )
    else:
        print(report(comparison))
    return 0 if all(verdict.outcome is Outcome.MET for verdict in told) else 1


if __name__ == "__main__":
    sys.exit(main())
