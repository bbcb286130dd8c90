"""The commands' benchmark measures commands that work, and says when a limit is missed."""

from __future__ import annotations

import sys

import pytest

from benchmarks.commands import MAX_FIRST_AGENT_S, MAX_HELP_CPU_S, Costs, measure

SLACK = 5


@pytest.mark.skipif(sys.platform == "win32", reason="it tells no CPU time of processes that have ended")
def test_commands_are_there_within_five_times_their_limits():
    costs = measure(rounds=1)

    assert 0 < costs.help_cpu_s <= SLACK * MAX_HELP_CPU_S
    assert 0 < costs.find_cpu_s <= SLACK * MAX_FIRST_AGENT_S  # the time that passes is the machine's as well
    assert costs.first_agent_s > 0


def test_a_missed_limit_is_said():
    assert Costs(help_cpu_s=0.25, first_agent_s=0.5, find_cpu_s=9).is_within_limits
    assert not Costs(help_cpu_s=0.26, first_agent_s=0.5, find_cpu_s=0.1).is_within_limits
    assert not Costs(help_cpu_s=0.25, first_agent_s=0.51, find_cpu_s=0.1).is_within_limits
