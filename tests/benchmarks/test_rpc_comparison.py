"""What a call costs is measured on real processes; what is wanted of it is judged by a pure table."""

import contextlib

import pytest

from benchmarks.rpc import LASTING, LOADS, Load, Pair, Sample, summary, verdicts
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
