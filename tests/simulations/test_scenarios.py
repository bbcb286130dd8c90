"""The scenarios, and the figures that a run of one is reported with."""

from __future__ import annotations

from typing import Any

import pytest

from simulations.network import MAX_HOSTS
from simulations.report import run_scenario
from simulations.scenarios import SCENARIOS, Outcome, Scenario, Settings
from simulations.world import World
from synapse_p2p.exceptions import ConfigError

VOLATILE = {"wall_s", "cpu_s", "peak_rss_bytes"}


def play(name: str = "lookups", *, nodes: int = 12, lookups: int = 10, seed: int = 1) -> dict[str, Any]:
    settings = Settings(nodes=nodes, lookups=lookups, seed=seed)
    return run_scenario(SCENARIOS[name], settings, lambda phase, done, of: None)


def test_every_scenario_has_a_summary_and_is_listed_under_its_name():
    for name, scenario in SCENARIOS.items():
        assert scenario.name == name
        assert scenario.summary


@pytest.mark.parametrize("nodes", [2, 3, 21, 30])
def test_every_lookup_of_an_undisturbed_world_finds_the_nearest_node(nodes: int):
    figures = play(nodes=nodes)

    assert (figures["lookups"], figures["lookup_success"]) == (10, 1.0)
    assert sum(figures["hops"].values()) == 10
    assert figures["mean_hops"] == sum(int(hops) * count for hops, count in figures["hops"].items()) / 10
    assert 1 <= figures["mean_hops"] <= 4


def test_a_run_repeats_in_everything_but_what_the_machine_takes():
    first, again = play(), play()

    assert {key: value for key, value in first.items() if key not in VOLATILE} == {
        key: value for key, value in again.items() if key not in VOLATILE
    }


@pytest.mark.parametrize("change", [{"seed": 2}, {"nodes": 13}, {"lookups": 11}])
def test_whatever_is_changed_changes_the_digest(change: dict[str, int]):
    assert play()["digest"] != play(**change)["digest"]


def test_figures_say_what_ran_and_what_it_took():
    figures = play()

    assert (figures["scenario"], figures["nodes"], figures["seed"]) == ("lookups", 12, 1)
    assert len(bytes.fromhex(figures["digest"])) == 32
    assert figures["messages"] > 12 * 10
    assert figures["virtual_s"] >= 6
    assert figures["wall_s"] > 0
    assert figures["peak_rss_bytes"] is None or figures["peak_rss_bytes"] > 10_000_000


def test_progress_is_told_of_every_join_and_every_lookup():
    told: list[tuple[str, int, int]] = []

    run_scenario(SCENARIOS["lookups"], Settings(3, 2, 1), lambda *step: told.append(step))

    assert told == [("join", 1, 3), ("join", 2, 3), ("join", 3, 3), ("lookups", 1, 2), ("lookups", 2, 2)]


def test_lookups_that_fail_are_counted_and_have_no_hops():
    async def fail(world: World, settings: Settings, progress: Any) -> Outcome:
        return Outcome(settings.lookups, 1, [3])

    figures = run_scenario(Scenario("fails", "", fail), Settings(2, 4, 1), lambda *step: None)

    assert (figures["lookup_success"], figures["mean_hops"], figures["hops"]) == (0.25, 3.0, {"3": 1})


def test_a_scenario_that_breaks_leaves_its_error_and_no_task():
    async def breaks(world: World, settings: Settings, progress: Any) -> Outcome:
        await world.grow(settings.nodes, lambda: None)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_scenario(Scenario("breaks", "", breaks), Settings(3, 1, 1), lambda *step: None)


@pytest.mark.parametrize(
    ("nodes", "lookups", "text"),
    [(1, 1, "--nodes"), (0, 1, "--nodes"), (MAX_HOSTS + 1, 1, "room"), (2, 0, "--lookups")],
)
def test_settings_that_make_no_world_are_refused(nodes: int, lookups: int, text: str):
    with pytest.raises(ConfigError, match=text):
        Settings(nodes=nodes, lookups=lookups, seed=1)
