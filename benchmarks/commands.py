"""How soon commands are there, against their limits: the help, and the first agent that a search of a local node finds.

    python -m benchmarks.commands [--rounds 9] [--json]

A node with an agent is started in a folder of its own, and each command in a process of its own, once before it counts,
so that the bytecode is there as for any user. The help is CPU time, user and kernel, from the start of the process to
its end; a first agent is the time that passes from the start of the process to its line, and the CPU time to its end.
Of all rounds the median counts.

The exit status is 1 when a limit is missed: a busy machine makes the search later, and the help no dearer.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
MAX_HELP_CPU_S = 0.25
MAX_FIRST_AGENT_S = 0.5
COMMAND = (sys.executable, "-m", "synapse_p2p")
FIND = ("find", "soup")
AGENT = """
from synapse_p2p import AgentNode

cook = AgentNode(name="Ada", role="cook", description="Cooks.", capabilities=["soup"])
"""


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds, medians of all rounds."""

    help_cpu_s: float
    first_agent_s: float
    find_cpu_s: float

    @property
    def is_within_limits(self) -> bool:
        """Whether both of them are met."""
        return self.help_cpu_s <= MAX_HELP_CPU_S and self.first_agent_s <= MAX_FIRST_AGENT_S


def main() -> None:
    """Measure, print, and exit with 1 when a limit is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.commands", description="How soon commands are there.")
    parser.add_argument("--rounds", type=int, default=9, help="how often each command is run (default 9)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    options = parser.parse_args()
    costs = measure(options.rounds)
    if options.json:
        print(json.dumps(asdict(costs)))
    else:
        print(f"Python {platform.python_version()}, {platform.machine()}, {options.rounds} rounds")
        print(f"help         {costs.help_cpu_s * 1000:6.0f} ms of CPU, at most {MAX_HELP_CPU_S * 1000:.0f}")
        print(
            f"first agent  {costs.first_agent_s * 1000:6.0f} ms, at most {MAX_FIRST_AGENT_S * 1000:.0f}; "
            f"{costs.find_cpu_s * 1000:.0f} ms of CPU to the end"
        )
    sys.exit(0 if costs.is_within_limits else 1)


def measure(rounds: int) -> Costs:
    """What each command costs beside one node with one agent, in `rounds` rounds after one that does not count."""
    with tempfile.TemporaryDirectory() as folder, a_node(Path(folder)) as environment:
        helps, finds = [], []
        for _ in range(rounds + 1):
            helps.append(run(("--help",), environment))
            finds.append(run(FIND, environment))
    return Costs(
        median(cpu_s for _, cpu_s in helps[1:]),
        median(first_s for first_s, _ in finds[1:]),
        median(cpu_s for _, cpu_s in finds[1:]),
    )


@contextmanager
def a_node(folder: Path) -> Iterator[Mapping[str, str]]:
    """A node with an agent, and the environment in which commands find it."""
    (folder / "kitchen.py").write_text(AGENT, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SYNAPSE_", "PYTHON"))}
    environment |= {"HOME": str(folder), "XDG_STATE_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    environment |= {"PYTHONPATH": str(ROOT)}
    command = [*COMMAND, "up", "--agent", "kitchen:cook", "--data-dir", str(folder / "cook"), "--json"]
    with subprocess.Popen(command, env=environment, cwd=folder, stdout=subprocess.PIPE) as node:
        try:
            assert node.stdout is not None
            if not node.stdout.readline():
                raise RuntimeError("the node ended before it was up")
            yield environment | {"SYNAPSE_DATA_DIR": str(folder / "cook")}
        finally:
            node.terminate()


def run(arguments: Sequence[str], environment: Mapping[str, str]) -> tuple[float, float]:
    """Seconds until a command wrote its first line, and what it took of the CPU to its end."""
    before, began_at = os.times(), time.perf_counter()
    with subprocess.Popen([*COMMAND, *arguments], env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        first_s = time.perf_counter() - began_at
        process.stdout.read()
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with {process.returncode}")
    after = os.times()
    return first_s, after.children_user + after.children_system - before.children_user - before.children_system


if __name__ == "__main__":
    main()
