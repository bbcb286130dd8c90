"""What a call costs is measured on real processes; what is wanted of it is judged by a pure table."""

import ast
import contextlib
import runpy
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.rpc import LASTING, LOADS, WORKER, Load, Pair, Sample, summary, verdicts
from benchmarks.rpc_targets import BARE, GRPC, MANY, ONE, OURS, TARGETS, Figures


def test_calls_over_a_session_cost_what_both_processes_took():
    session = next(system for system in LASTING if system.module == "session")
    with contextlib.closing(Pair(session, 0)) as pair:
        one = pair.measure(Load("one", 1, 50, ()))
        dials = pair.measure(Load("dials", 0, 5, ()))
        memory = pair.bytes_per_session(20)

    assert one.client_cpu_us > 0
    assert one.server_cpu_us > 0
    assert dials.cpu_us > one.cpu_us  # a handshake is dear
    assert 0 <= memory < 1_000_000


def rows(ours_us: float, bare_us: float, grpc_us: float) -> list[dict[str, object]]:
    by_system = {
        name: [Sample(us / 2, us / 2, 1e6 / us)] for name, us in ((OURS, ours_us), (BARE, bare_us), (GRPC, grpc_us))
    }
    return summary({ONE: by_system, MANY: by_system})


@pytest.mark.parametrize(
    ("ours_us", "grpc_us", "are_met"), [(20.0, 400.0, True), (21.0, 400.0, False), (20.0, 79.0, False)]
)
def test_a_target_is_met_up_to_its_bound(ours_us: float, grpc_us: float, are_met: bool):
    told = verdicts(rows(ours_us, 10.0, grpc_us), 14 * 1024)

    assert len(told) == 5  # the others were not measured
    assert all(verdict.is_met for verdict in told) is are_met


def test_every_load_with_a_target_is_played_by_those_that_it_compares():
    asked: set[tuple[str, str]] = set()

    class Asked(dict):
        def get(self, key, default=None):
            asked.add(key)
            return default

    for target in TARGETS:
        target.judge(Figures(Asked(), 0.0))
    played = {(load.name, system.name) for load in LOADS for system in load.systems}

    assert asked <= played
    assert len(asked) >= 6


def names_in(module: str) -> set[str]:
    tree = ast.parse(WORKER.with_name("rpc_systems").joinpath(f"{module}.py").read_text(encoding="utf-8"))
    imported = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    return imported | {node.name for node in tree.body if isinstance(node, ast.AsyncFunctionDef)}


def test_every_system_serves_and_connects():
    modules = {system.module for load in LOADS for system in load.systems}

    assert len(modules) >= 10
    assert all({"serve", "connect"} <= names_in(module) for module in modules)


class StepLoop:
    """Reads the lines that it was given, and lets tasks run one after another."""

    def __init__(self, *lines: str) -> None:
        self.lines = list(lines)

    async def in_thread(self, function: Any) -> str:
        return self.lines.pop(0) if self.lines else ""

    async def at_once(self, count: int, function: Any, *args: Any) -> None:
        for _ in range(count):
            await function(*args)


class CountingSystem:
    """Counts what it was asked for."""

    def __init__(self) -> None:
        self.calls = self.opened = self.closed = 0

    async def serve(self) -> str:
        return "here"

    async def connect(self, place: str) -> tuple[Any, Any]:
        assert place == "here"
        self.opened += 1
        return self.call, self.close

    async def call(self, value: bytes) -> bytes:
        self.calls += 1
        return value

    async def close(self) -> None:
        self.closed += 1


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    pytest.importorskip("resource")
    monkeypatch.setattr(sys, "path", [*sys.path])  # it adds to it
    return SimpleNamespace(**runpy.run_path(str(WORKER)))


def test_a_client_needs_no_loop_but_that_of_its_system(worker: SimpleNamespace, capsys: pytest.CaptureFixture[str]):
    system = CountingSystem()
    loop = StepLoop("call 4 40 32\n", "call 1 5 32\n", "dial 3 32\n", "hold 2\n")

    with pytest.raises(StopIteration):  # it ran to its end, and no event loop was there
        worker.run_client(system, loop, "here").send(None)

    assert system.calls == 40 + 5 + 3 + 2
    assert (system.opened, system.closed) == (1 + 3 + 2, 3)
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_a_server_tells_what_it_is_asked_for(worker: SimpleNamespace, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(StopIteration):
        worker.run_server(CountingSystem(), StepLoop("cpu_s\n", "rss_bytes\n", "cpu_s\n")).send(None)

    place, before_s, rss_bytes, after_s = capsys.readouterr().out.split()
    assert place == "here"
    assert 0 < float(before_s) <= float(after_s)
    assert int(rss_bytes) == 0 or int(rss_bytes) > 1_000_000  # 0 where the system does not tell
