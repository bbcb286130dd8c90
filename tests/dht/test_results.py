from __future__ import annotations

from typing import Any

from dht.agents.record import Reach
from dht.results import FindResult, FoundAgent


def make_agent(name: str, caller: Any = None) -> FoundAgent:
    return FoundAgent(bytes(32), name, "reviewer", "", ("python",), ("10.0.0.1:9000",), Reach.DIRECT, 0.0, caller)


def test_what_is_printed_of_an_agent_carries_no_escapes_of_its_own():
    agent = make_agent("a\x1b[31m\nb")

    assert str(agent) == "a\\x1b[31m\\x0ab (reviewer) at 10.0.0.1:9000, id 0000000000000000: python"


def test_names_in_any_script_are_printed_as_they_are():
    assert str(make_agent("Łucja 名前")).startswith("Łucja 名前 (reviewer)")


def test_a_result_reads_as_a_sequence_of_its_agents():
    one, two = make_agent("one"), make_agent("two")

    result = FindResult((one, two), complete=True)

    assert list(result) == [one, two]
    assert result[0] is one
    assert list(result[1:]) == [two]
    assert len(result) == 2
    assert one in result
