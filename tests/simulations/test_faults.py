"""The timetable of faults: from the seed alone, in order, and over by its end."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulations.faults import (
    MAX_SKEW_S,
    ClockSkew,
    Crash,
    Fault,
    FaultSpec,
    Freeze,
    LoopStall,
    Loss,
    Partition,
    Restart,
    Suspend,
    timetable,
)
from synapse_p2p.exceptions import ConfigError

ALL_KINDS = {Crash, Restart, Freeze, LoopStall, Suspend, ClockSkew, Partition, Loss}


def end_of(at_s: float, fault: Fault) -> float:
    return at_s + getattr(fault, "duration_s", 0.0)


@given(st.integers(0, 2**32), st.integers(2, 40), st.floats(1.0, 7200.0))
def test_a_timetable_is_in_order_and_all_of_it_is_over_by_its_end(seed: int, host_count: int, duration_s: float):
    planned = timetable(random.Random(seed), FaultSpec(), host_count, duration_s)

    assert [fault.at_s for fault in planned] == sorted(fault.at_s for fault in planned)
    assert all(0 <= fault.at_s <= duration_s for fault in planned)
    assert all(end_of(fault.at_s, fault.fault) <= duration_s + 1e-6 for fault in planned)
    crashes = sorted(fault.fault.host for fault in planned if isinstance(fault.fault, Crash))
    assert crashes == sorted(fault.fault.host for fault in planned if isinstance(fault.fault, Restart))
    assert 0 not in crashes


@given(st.integers(0, 2**32), st.integers(2, 40))
def test_every_fault_is_within_the_bounds_of_its_spec_and_every_clock_is_set_right(seed: int, host_count: int):
    spec = FaultSpec()
    last_skew: dict[int, float] = {}

    for planned in timetable(random.Random(seed), spec, host_count, 3600.0):
        match planned.fault:
            case Partition(cut, _, duration_s):
                assert 1 <= len(cut) < host_count
                assert set(cut) <= set(range(host_count))
                assert duration_s <= spec.max_partition_s
            case Loss(share, _):
                assert 0 <= share <= spec.max_loss_share
            case ClockSkew(host, skew_s):
                assert abs(skew_s) <= spec.max_skew_s
                last_skew[host] = skew_s
            case fault:
                assert 0 <= fault.host < host_count
                assert getattr(fault, "duration_s", 0.0) <= spec.max_pause_s
    assert set(last_skew.values()) <= {0.0}


def test_the_seed_alone_says_what_goes_wrong():
    tables = [timetable(random.Random(seed), FaultSpec(), 10, 3600.0) for seed in (1, 1, 2)]

    assert tables[0] == tables[1] != tables[2]


def test_some_seed_has_every_kind_of_fault_and_some_has_few():
    tables = [timetable(random.Random(seed), FaultSpec(), 10, 1800.0) for seed in range(20)]

    assert {type(planned.fault) for table in tables for planned in table} == ALL_KINDS
    assert len({len(table) for table in tables}) > 10


@pytest.mark.parametrize(
    "bad",
    [{"max_per_hour": 0}, {"max_pause_s": -1}, {"max_loss_share": 1}, {"max_skew_s": MAX_SKEW_S + 1}],
)
def test_a_spec_that_makes_no_sense_is_refused(bad: dict[str, float]):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        FaultSpec(**bad)


@pytest.mark.parametrize(("host_count", "duration_s"), [(1, 60.0), (10, 1e9)])
def test_a_timetable_of_nobody_or_without_end_is_refused(host_count: int, duration_s: float):
    with pytest.raises(ConfigError):
        timetable(random.Random(1), FaultSpec(), host_count, duration_s)
