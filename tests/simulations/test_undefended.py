"""Rules that a run goes without: gone for as long as it lasts, and what stands in their place is as said."""

from __future__ import annotations

import inspect

import pytest

from dht.agents.placement import depths_for
from dht.agents.shards import ShardReport, believed_report
from simulations.undefended import _RULES, RULES, _largest_word, _only_deeper, undefended


def in_force() -> list[object]:
    return [getattr(owner, name) for rule in _RULES.values() for owner, name, _ in rule]


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_is_gone_for_as_long_as_it_is_gone_without_and_back_after_a_failure(rule: str):
    were = in_force()

    def fail() -> None:
        with undefended(rule):
            assert all(getattr(owner, name) is stand_in for owner, name, stand_in in _RULES[rule])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()

    assert in_force() == were


def test_any_other_word_changes_nothing():
    were = in_force()

    with undefended("one-shard"):
        assert in_force() == were


@pytest.mark.parametrize("rule", RULES)
def test_what_stands_in_a_rules_place_can_be_called_as_the_rule_is(rule: str):
    for owner, name, stand_in in _RULES[rule]:
        real = getattr(owner, name)
        assert callable(stand_in) == callable(real)
        if callable(real):
            wanted = inspect.signature(real).parameters.values()
            by_name = {each.name: None for each in wanted if each.kind is each.KEYWORD_ONLY}
            inspect.signature(stand_in).bind(*[None] * (len(wanted) - len(by_name)), **by_name)


def test_one_liar_of_three_is_believed_where_no_word_is_held_against_another():
    lie = ShardReport(10**6, 40, is_full=True, estimate=10**9)
    said = [ShardReport(30, 2, is_full=False, estimate=120), lie, ShardReport(31, 2, is_full=False, estimate=124)]

    believed = believed_report(said, answered=3, is_proved=True)

    assert believed is not None and believed.estimate == 124
    assert _largest_word(said, answered=3, is_proved=True) == lie
    assert _largest_word([], answered=3, is_proved=False) is None


def test_who_never_goes_back_stays_deep_when_few_are_left():
    there = {4: False}

    assert depths_for(100, 1000, there) == (0,)
    assert _only_deeper(100, 1000, there) == (4,)
    assert _only_deeper(20_000, 1000, there) == depths_for(20_000, 1000, there) == (4, 5, 6)
    assert _only_deeper(100, 1000) == (0,)
