"""The gates of the capability index in their short forms; the full ones are played by `make gates`."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from simulations.agent_gates import GATES
from simulations.gates import Gate, put_together
from simulations.report import run_scenario
from simulations.scenarios import SCENARIOS, Settings

SHORT = [gate for gate in GATES if gate.short is not None]
QUICK = {"agents-crowd", "agents-samples"}
"""Scenarios whose short forms are always played, 20 s of a core; the others take two minutes and are marked."""
ALSO_QUICK = {"honest records under foreign keys"}


def is_quick(gate: Gate) -> bool:
    return gate.scenario in QUICK or gate.name in ALSO_QUICK


def params(gates: list[Gate]) -> list[Any]:
    marks = {True: [], False: [pytest.mark.gates]}
    return [pytest.param(gate, id=gate.name, marks=marks[is_quick(gate)]) for gate in gates]


@cache
def played(scenario: str, settings: Settings) -> dict[str, Any]:
    figures = run_scenario(SCENARIOS[scenario], settings).figures
    assert figures["error"] is None
    return put_together([figures])


@pytest.mark.parametrize("gate", params(SHORT))
def test_the_index_stands_what_a_gate_asks_of_it(gate: Gate):
    assert gate.short is not None
    figures = played(gate.scenario, gate.short)

    assert [f"{limit}, not {figures.get(limit.figure)}" for limit in gate.missed(figures, short=True)] == []


@pytest.mark.parametrize("gate", params([gate for gate in SHORT if gate.sabotage and gate.is_short_sabotaged]))
def test_without_its_defence_a_gate_of_the_index_is_missed(gate: Gate):
    assert gate.short is not None

    assert gate.missed(played(gate.scenario, replace(gate.short, sabotage=gate.sabotage)), short=True) != []


def test_every_gate_of_what_is_done_to_the_index_has_a_defence_without_which_it_is_missed():
    hostile = [gate for gate in GATES if gate.scenario == "agents-hostile" or "are left" in gate.name]

    assert len(hostile) >= 5
    assert [gate.name for gate in hostile if not gate.sabotage] == []


def test_every_gate_and_every_sabotage_of_the_index_is_one_that_its_scenario_has():
    for gate in GATES:
        for settings in (*gate.cells(), gate.sabotaged_cell(), gate.short):
            if settings is not None:
                SCENARIOS[gate.scenario].check(settings)
    assert len({gate.name for gate in GATES}) == len(GATES)
