"""The scenarios: what they demand, what they tell, and how a run of one ends."""

from __future__ import annotations

import asyncio
import itertools
import math
import pickle
from typing import Any

import pytest

from dht.lookup import LookupMode
from simulations import virtual_loop
from simulations.network import MAX_HOSTS
from simulations.progress import Step, Watch
from simulations.report import run_scenario
from simulations.scenarios import SCENARIOS, Outcome, Scenario, Settings
from simulations.scenarios.base import MAX_HOURS, Progress
from simulations.scenarios.lookups import LOOKUPS
from simulations.world import World
from synapse_p2p.exceptions import ConfigError

VOLATILE = {"wall_s", "cpu_s", "messages_per_s", "peak_rss_bytes"}


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_can_be_sent_to_a_worker_of_a_sweep(name: str):
    assert pickle.loads(pickle.dumps(SCENARIOS[name])).name == name


def play(name: str = "lookups", *, nodes: int = 12, lookups: int = 10, seed: int = 1) -> dict[str, Any]:
    settings = Settings(nodes=nodes, lookups=lookups, seed=seed)
    return run_scenario(SCENARIOS[name], settings).figures


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


def test_a_strict_lookup_finds_as_often_and_asks_everybody_who_is_near():
    early = play(nodes=30, lookups=40)
    strict = run_scenario(LOOKUPS, Settings(nodes=30, lookups=40, seed=1, variant="strict")).figures

    assert early["lookup_success"] == strict["lookup_success"] == 1.0
    assert early["messages"] < strict["messages"]


def test_the_steps_of_lookups_are_told_apart_by_mode_and_by_how_warm_they_are():
    figures = play("steps", nodes=60, lookups=60)

    assert (figures["lookups"], figures["lookup_success"], figures["early_lookups"]) == (60, 1.0, 30)
    assert 20 <= figures["strict_requests_mean"] <= 24  # all of the k = 20 nearest
    assert figures["early_to_strict_mean"] == pytest.approx(
        figures["early_requests_mean"] / figures["strict_requests_mean"], abs=1e-3
    )
    for mode in ("early", "strict"):
        assert 0 < figures[f"{mode}_warm_ms_mean"] < figures[f"{mode}_cold_ms_mean"]
    assert figures["early_warm_ms_mean"] < figures["strict_warm_ms_mean"]
    assert figures["hops_to_formula_mean"] == pytest.approx(
        figures["mean_hops"] / (0.38 + 0.149 * math.log2(60)), abs=1e-3
    )


def test_progress_is_told_of_every_join_and_every_lookup():
    steps: list[Step] = []

    run_scenario(SCENARIOS["lookups"], Settings(3, 2, 1), Watch(steps.append))

    told = [(step.phase, step.done, step.of, step.success) for step in steps]
    assert told == [
        *(("join", count, 3, None) for count in (1, 2, 3)),
        *(("lookups", count, 2, 1.0) for count in (1, 2)),
    ]
    assert sorted(step.virtual_s for step in steps) == [step.virtual_s for step in steps]
    assert 0 <= steps[0].events < steps[-1].events


def test_lookups_are_spread_over_the_hours_that_a_swarm_lives():
    at_s: list[float] = []

    figures = run_scenario(
        SCENARIOS["lookups"], Settings(5, 4, 1, hours=2.0), Watch(lambda step: at_s.append(step.virtual_s))
    ).figures

    pauses = [later - earlier for earlier, later in itertools.pairwise(at_s[-4:])]
    assert pauses == pytest.approx([1800.0] * 3, abs=10)
    assert figures["virtual_s"] == pytest.approx(7200.0, abs=60)
    assert figures["lookup_success"] == 1.0


def test_a_lookup_that_misses_is_counted_and_noted():
    async def lose_two(world: World, settings: Settings, progress: Progress) -> Outcome:
        def on_progress(phase: str, done: int, of: int, outcome: Outcome | None = None, /) -> None:
            if (phase, done) == ("join", of):
                for host in world.hosts[:2]:
                    host.fall_silent()
            progress(phase, done, of, outcome)

        return await LOOKUPS.play(world, settings, on_progress)

    figures = run_scenario(Scenario("lose_two", "", lose_two), Settings(6, 12, 1)).figures

    missed = figures["lookups"] - sum(figures["hops"].values())
    assert 0 < missed < 12
    assert (figures["lookup_success"], figures["passed"]) == ((12 - missed) / 12, False)
    assert len(figures["notes"]) == missed
    assert all(" looked for " in note for note in figures["notes"])


def test_a_scenario_that_breaks_reports_its_error_with_what_happened_before():
    async def breaks(world: World, settings: Settings, progress: Progress) -> Outcome:
        await world.grow(settings.nodes, lambda: progress("join", 1, 1, Outcome(4, 3, [1, 1, 2])))
        world.hosts[0].crash()
        raise ZeroDivisionError("no swarm")

    ended = Scenario("breaks", "", breaks).run(Settings(3, 1, 1), Watch())

    assert isinstance(ended.error, ZeroDivisionError)
    assert not ended.is_passed
    assert (ended.outcome.lookups, ended.outcome.successes) == (4, 3)
    assert ended.messages > 10
    assert ended.trace[-1].endswith(f"{ended.trace[-1].split()[1]} fault: crash")
    assert len(ended.trace) == ended.messages + 1


@pytest.mark.filterwarnings("error")
def test_an_interrupted_run_ends_with_the_outcome_so_far_and_no_task():
    watch = Watch()
    worlds: list[World] = []

    async def endless(world: World, settings: Settings, progress: Progress) -> Outcome:
        worlds.append(world)
        await world.grow(settings.nodes, lambda: None)
        for count in itertools.count(1):
            await world.nodes[0].lookup(world.random_key(), LookupMode.STRICT)
            progress("lookups", count, 1_000_000, Outcome(count, count, [1] * count))
            if count == 7:
                watch.interrupt()
        raise AssertionError

    ended = Scenario("endless", "", endless).run(Settings(5, 1, 1), watch)

    assert ended.is_interrupted
    assert not ended.is_passed
    assert (ended.error, ended.trace) == (None, ())
    assert ended.outcome.lookups == 7
    assert ended.virtual_s > 2
    assert worlds[0].network.loop.pending_tasks() == []


def test_an_interrupt_before_the_first_event_ends_the_run_too():
    watch = Watch()
    watch.interrupt()

    ended = LOOKUPS.run(Settings(50, 1000, 1), watch)

    assert ended.is_interrupted
    assert (ended.outcome.lookups, ended.outcome.success) == (0, None)


def test_watching_and_tracing_leave_the_digest_as_it_is():
    async def digest() -> str:
        world = World(asyncio.get_running_loop(), seed=5)
        try:
            await LOOKUPS.play(world, Settings(8, 6, 5), lambda phase, done, of, outcome=None, /: None)
        finally:
            await world.stop()
        return world.digest.hexdigest()

    assert play(nodes=8, lookups=6, seed=5)["digest"] == virtual_loop.run(digest())


@pytest.mark.parametrize(
    ("lookups", "successes", "required", "is_passed"),
    [(10, 10, 1.0, True), (10, 9, 1.0, False), (10, 9, 0.9, True), (10, 8, 0.9, False), (0, 0, 1.0, True)],
)
def test_an_outcome_passes_with_the_share_of_lookups_that_its_scenario_demands(
    lookups: int, successes: int, required: float, is_passed: bool
):
    outcome = Outcome(lookups, successes, [1] * successes, required_success=required)

    assert outcome.is_passed is is_passed


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"nodes": 1}, "--nodes is 1"),
        ({"nodes": 0}, "--nodes is 0"),
        ({"nodes": MAX_HOSTS + 1}, "room"),
        ({"lookups": 0}, "--lookups is 0"),
        ({"seed": -1}, "--seed is -1"),
        ({"hours": 0.0}, "--hours is 0"),
        ({"hours": math.nan}, "--hours is nan"),
        ({"hours": math.inf}, "--hours is inf"),
        ({"hours": MAX_HOURS + 1}, "at most"),
    ],
)
def test_settings_that_make_no_world_are_refused(change: dict[str, Any], text: str):
    with pytest.raises(ConfigError, match=text):
        Settings(**change)


@pytest.mark.parametrize("settings", [Settings(), Settings(7, 8, 9), Settings(7, 8, 9, 0.1), Settings(hours=24)])
def test_what_to_type_gives_the_same_settings(settings: Settings):
    words = settings.arguments().split()

    typed = dict(zip(words[::2], words[1::2], strict=True))

    assert (
        Settings(
            nodes=int(typed["--nodes"]),
            lookups=int(typed["--lookups"]),
            seed=int(typed["--seed"]),
            hours=float(typed["--hours"]) if "--hours" in typed else None,
        )
        == settings
    )
