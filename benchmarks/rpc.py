"""What a call costs: this package beside releases 1.3.1 and 2.5.0 and beside a bare asyncio Protocol.

    python -m benchmarks.rpc [--rounds 7] [--json]

Every server and every client is a process of its own; all are pinned to one core, and take turns on it within every
round, so that a slow moment of the machine meets all of them. Costs are the CPU seconds of both processes, divided by
the calls; a ratio is the median of the ratios of the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.releases import python_of

WORKER = Path(__file__).with_name("rpc_worker.py")
OURS = "this release"
OUR_CLIENT = "this release, Client"
BARE = "bare Protocol"
MAX_COST_OF_SESSION = 3.0  # times the CPU of the bare Protocol, which neither encrypts nor proves nor checks anything


@dataclass(frozen=True, slots=True)
class System:
    """One row: what runs at both ends. `release` is the one it is installed from; None for this one.

    Where others make `rarity` calls, it makes one: else those that are slow by far would take up the whole time.
    """

    name: str
    kind: str
    release: str | None = None
    rarity: int = 1


@dataclass(frozen=True, slots=True)
class Load:
    """What is measured of some systems: `count` calls a round, `in_flight` of them at once.

    `max_cost` is the target: what ours may cost, as a multiple of the bare Protocol's CPU; None where there is none.
    """

    name: str
    in_flight: int
    count: int
    systems: tuple[System, ...]
    max_cost: float | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One round of one system."""

    client_cpu_us: float  # per call
    server_cpu_us: float
    calls_per_s: float

    @property
    def cpu_us(self) -> float:
        """Both ends together, per call."""
        return self.client_cpu_us + self.server_cpu_us


DIALING = (
    System(OURS, "plain"),
    System("1.3.1", "plain", "1.3.1"),
    System("2.5.0", "plain", "2.5.0"),
    System(BARE, "bare-dialing"),
)
LASTING = (
    System(OURS, "session"),
    System(OUR_CLIENT, "client"),
    System("2.5.0, a connection for each call", "plain", "2.5.0", rarity=10),  # it has no other way
    System(BARE, "bare"),
)
LOADS = (
    Load("plain, a connection for each call, one at a time", in_flight=1, count=300, systems=DIALING),
    Load("plain, a connection for each call, 64 at once", in_flight=64, count=640, systems=DIALING),
    Load(
        "one encrypted session, one call at a time",
        in_flight=1,
        count=1000,
        systems=LASTING,
        max_cost=MAX_COST_OF_SESSION,
    ),
    Load(
        "one encrypted session, 64 calls in flight",
        in_flight=64,
        count=6400,
        systems=LASTING,
        max_cost=MAX_COST_OF_SESSION,
    ),
)


class Pair:
    """A server and a client of one system, on one core, until it is closed."""

    def __init__(self, system: System, core: int) -> None:
        self._rarity = system.rarity
        python = sys.executable if system.release is None else str(python_of(system.release))
        self._server = _spawn(python, "server", system.kind, str(core))
        place = _line_of(self._server)
        self._client = _spawn(python, "client", system.kind, str(core), place)

    def measure(self, load: Load) -> Sample:
        """Make the calls of one round."""
        count = max(1, load.count // self._rarity // load.in_flight) * load.in_flight
        before_s = float(_ask(self._server, "cpu"))
        wall_s, client_s = map(float, _ask(self._client, f"{load.in_flight} {count}").split())
        server_s = float(_ask(self._server, "cpu")) - before_s
        return Sample(client_s / count * 1e6, server_s / count * 1e6, count / wall_s)

    def close(self) -> None:
        """End both processes."""
        for process in (self._client, self._server):
            process.terminate()
            process.communicate()


def measure(rounds: int, core: int) -> dict[str, dict[str, list[Sample]]]:
    """The samples of each system under each load, by their names, one for each round."""
    with contextlib.ExitStack() as stack:
        systems = dict.fromkeys(system for load in LOADS for system in load.systems)
        pairs = {system: Pair(system, core) for system in systems}
        for pair in pairs.values():
            stack.callback(pair.close)
        samples: dict[str, dict[str, list[Sample]]] = {load.name: {} for load in LOADS}
        for index in range(rounds + 1):
            for load in LOADS:
                for system in load.systems:
                    sample = pairs[system].measure(load)
                    if index > 0:  # the first round warms up
                        samples[load.name].setdefault(system.name, []).append(sample)
        return samples


def summary(samples: dict[str, dict[str, list[Sample]]]) -> list[dict[str, Any]]:
    """One row for each system under each load: medians of the rounds."""
    return [
        {
            "load": load,
            "system": system,
            "cpu_us_per_call": median(sample.cpu_us for sample in own),
            "client_cpu_us": median(sample.client_cpu_us for sample in own),
            "server_cpu_us": median(sample.server_cpu_us for sample in own),
            "calls_per_s": median(sample.calls_per_s for sample in own),
            "cpu_of_ours": _ratio(own, by_system[OURS], "cpu_us"),
            "cpu_of_bare": _ratio(own, by_system[BARE], "cpu_us"),
            "rate_of_bare": _ratio(own, by_system[BARE], "calls_per_s"),
        }
        for load, by_system in samples.items()
        for system, own in by_system.items()
    ]


def _ratio(own: list[Sample], other: list[Sample], quantity: str) -> float:
    return median(getattr(a, quantity) / getattr(b, quantity) for a, b in zip(own, other, strict=True))


def machine() -> dict[str, Any]:
    """Where and with what it ran."""
    return {
        "date": date.today().isoformat(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "msgpack": version("msgpack"),
        "cryptography": version("cryptography"),
    }


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def print_table(rows: list[dict[str, Any]]) -> None:
    """The rows as Markdown, one table for each load."""
    for load in dict.fromkeys(row["load"] for row in rows):
        print(f"\n**{load}**\n")
        print(
            "| system | CPU us/call | client | server | calls/s | CPU, x of ours | CPU, x of bare | rate, x of bare |"
        )
        print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
        for row in rows:
            if row["load"] == load:
                cpu = f"{row['cpu_us_per_call']:.0f} | {row['client_cpu_us']:.0f} | {row['server_cpu_us']:.0f}"
                ratios = f"{row['cpu_of_ours']:.2f} | {row['cpu_of_bare']:.2f} | {row['rate_of_bare']:.2f}"
                print(f"| {row['system']} | {cpu} | {row['calls_per_s']:,.0f} | {ratios} |")


def verdicts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What ours costs under each load that has a target, and whether that is within it."""
    return [
        {"load": load.name, "cost": row["cpu_of_bare"], "max_cost": load.max_cost, "is_met": is_met}
        for load in LOADS
        for row in rows
        if load.max_cost is not None and (row["load"], row["system"]) == (load.name, OURS)
        for is_met in [row["cpu_of_bare"] <= load.max_cost]
    ]


def print_verdicts(told: list[dict[str, Any]]) -> None:
    """A line for each target."""
    print()
    for each in told:
        word = "met" if each["is_met"] else "MISSED"
        cost = f"{each['cost']:.2f} times the CPU of the bare Protocol, at most {each['max_cost']:.1f}"
        print(f"Target {word}: {each['load']}: {cost}.")


def _spawn(python: str, *args: str) -> subprocess.Popen[str]:
    # Release 1.3.1 logs every call to stderr, as it does where it is used.
    return subprocess.Popen(
        [python, "-I", str(WORKER), *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def _ask(process: subprocess.Popen[str], line: str) -> str:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()
    return _line_of(process)


def _line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{process.args} ended: run it by hand to see why")
    return line.strip()


def main() -> int:
    """The command; its exit status is 1 when a target was missed."""
    parser = argparse.ArgumentParser(description="What a call costs, beside earlier releases and a bare Protocol.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="samples and medians as JSON, not as tables")
    options = parser.parse_args()
    core = max(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    samples = measure(options.rounds, core)
    rows = summary(samples)
    told = verdicts(rows)
    if options.json:
        all_samples = {
            load: {system: [asdict(sample) for sample in own] for system, own in by_system.items()}
            for load, by_system in samples.items()
        }
        print(json.dumps({"machine": machine(), "rows": rows, "verdicts": told, "samples": all_samples}, indent=1))
    else:
        print(", ".join(f"{key} {value}" for key, value in machine().items()))
        print_table(rows)
        print_verdicts(told)
    return 0 if all(each["is_met"] for each in told) else 1


if __name__ == "__main__":
    sys.exit(main())
