"""The comparison of the index with two other designs: that its world is fair, what it claims, and how it is told."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from benchmarks import discovery
from benchmarks.discovery import CELLS, play, read_results
from benchmarks.discovery_designs.agent import RENEW_SPREAD
from benchmarks.discovery_designs.catalog import (
    DESIGNS,
    GOSSIP,
    GOSSIP_SHIPPED,
    OUR_TIMES,
    OURS,
    SINGLE_KEY,
    SINGLE_KEY_SHIPPED,
    new_design,
)
from benchmarks.discovery_page import BEGIN, END, table, write_page, write_plot
from benchmarks.discovery_run import (
    CHURN_SEARCHES,
    LOOKS_PER_LIFE,
    Cell,
    Figures,
    measure_disappearance,
    measure_late_joiners,
    measure_load,
    play_churning,
)
from benchmarks.discovery_world import DiscoveryWorld
from dht.node import DHTNode
from simulations.churn import FASTEST
from simulations.population import Resident
from simulations.virtual_loop import run
from synapse_p2p.background import TaskScope

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "discovery.md"
NODES, PROVIDERS, JOINERS = 30, 6, 4


def figures_of(design: str) -> Figures:
    """Load and late joiners of a small swarm, without the long wait for the dead to be gone."""

    async def main() -> Figures:
        world = DiscoveryWorld(asyncio.get_running_loop(), new_design(design), 1)
        await world.start(NODES, PROVIDERS)
        await asyncio.sleep(90)
        figures = {**await measure_load(world), **await measure_late_joiners(world, JOINERS)}
        await world.stop()
        return figures | {"digest": world.digest.hexdigest()}

    return run(main())


@pytest.fixture(scope="module")
def small() -> dict[str, Figures]:
    return {design: figures_of(design) for design in (OURS, SINGLE_KEY, GOSSIP)}


def test_a_late_joiner_finds_all_in_the_index_and_nobody_in_a_gossip_cache(small: dict[str, Figures]):
    assert small[OURS]["late_recall"] == small[OURS]["late_served"] == 1.0
    assert small[SINGLE_KEY]["late_recall"] == 1.0
    assert small[GOSSIP]["late_recall"] < 0.2


def test_the_index_costs_fewest_messages_and_a_gossip_cache_most(small: dict[str, Figures]):
    costs = [small[design]["messages_per_agent_hour"] for design in (OURS, SINGLE_KEY, GOSSIP)]

    assert costs == sorted(costs)
    assert 2 * costs[0] < costs[1]


def test_a_search_of_the_index_asks_fewer_than_one_of_a_single_key_and_a_cache_asks_nobody(small: dict[str, Figures]):
    requests = [small[design]["requests_per_search"] for design in (GOSSIP, OURS, SINGLE_KEY)]

    assert requests[0] == 0
    assert requests == sorted(requests)


def test_the_busiest_node_has_more_to_do_beside_the_mean_where_there_are_storers(small: dict[str, Figures]):
    def unevenness(design: str) -> float:
        return small[design]["node_messages_hour_max"] / small[design]["node_messages_hour_mean"]

    assert unevenness(GOSSIP) < unevenness(OURS)
    assert small[OURS]["node_messages_hour_max"] < small[GOSSIP]["node_messages_hour_max"]


def test_who_crashed_is_found_for_longer_than_half_a_life_and_no_longer_than_all_of_it():
    async def main() -> Figures:
        world = DiscoveryWorld(asyncio.get_running_loop(), new_design(GOSSIP), 1)
        await world.start(12, 8)
        await asyncio.sleep(OUR_TIMES.renew_s)
        gone = await measure_disappearance(world)
        await world.stop()
        return gone

    gone = run(main())

    look_s = OUR_TIMES.life_s / LOOKS_PER_LIFE
    earliest_s = OUR_TIMES.life_s - OUR_TIMES.renew_s * (1 + RENEW_SPREAD) - look_s
    assert earliest_s <= gone["gone_s_p50"] <= gone["gone_s_p99"] <= OUR_TIMES.life_s


def test_the_same_cell_gives_the_same_figures_and_every_search_of_a_churning_swarm_counts():
    cell = Cell(GOSSIP, 12, 6)

    first, second = run(play_churning(cell)), run(play_churning(cell))

    assert first == second
    assert first["churn_searches"] >= 0.9 * CHURN_SEARCHES
    assert 0.5 < first["churn_recall"] <= 1
    assert 0 < first["churn_dead_share"] < 1


def test_one_seed_gives_every_design_the_same_providers_and_the_same_moments_of_death():
    async def lives(design: str) -> tuple[set[bytes], list[float]]:
        loop = asyncio.get_running_loop()
        world = DiscoveryWorld(loop, new_design(design), 3)
        died_s: list[float] = []
        on_end = world.population.on_end

        def note(resident: Resident, node: DHTNode) -> None:
            died_s.append(loop.time())
            on_end(resident, node)

        world.population.on_end = note
        await world.start(10, 4)
        offering = set(world.providers)
        async with TaskScope("churn") as scope:
            scope.spawn(world.churn(FASTEST))
            await asyncio.sleep(180)
        deaths = list(died_s)
        await world.stop()
        return offering, deaths

    of_each = [run(lives(design)) for design in (OURS, SINGLE_KEY, GOSSIP)]

    assert of_each[0] == of_each[1] == of_each[2]
    assert len(of_each[0][1]) > 4


def test_designs_with_the_times_that_they_come_with_believe_the_dead_for_days():
    lives = {name: new_design(name).times for name in DESIGNS}

    assert lives[SINGLE_KEY_SHIPPED].life_s == 48 * 3600
    assert lives[GOSSIP_SHIPPED].life_s == 72 * 3600
    assert all(times.renew_s <= times.life_s / 2 for times in lives.values())
    assert lives[OURS] == lives[SINGLE_KEY] == lives[GOSSIP] == OUR_TIMES


# How it is told


def a_run(cell: Cell, **figures: float) -> Figures:
    figures_of_one = (
        "late_recall late_served churn_recall churn_dead_share gone_s_p50 gone_s_p99 messages_per_agent_hour "
        "requests_per_search node_messages_hour_max node_kib_hour_max records_held_max records_held_mean "
        "kib_held_max kib_held_mean cpu_s"
    )
    ones: Figures = dict.fromkeys(figures_of_one.split(" "), 1.0)
    means = {"node_messages_hour_mean": 0.5, "node_kib_hour_mean": 0.5}
    own = {"design": cell.design, "nodes": cell.nodes, "providers": cell.providers, "seed": cell.seed}
    return {**ones, **means, **own, **figures}


def test_a_row_of_the_table_says_shares_times_and_multiples():
    row = table([a_run(CELLS[0], late_recall=0.5, gone_s_p50=90, gone_s_p99=48 * 3600)]).splitlines()[-1]

    assert row.startswith("| 100 / 10 | index | 50.0 % | 100.0 % |")
    assert "1.5 min / 48.0 h" in row
    assert "1.00 (2.0)" in row


def test_the_table_takes_the_place_of_the_last_and_leaves_the_rest(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")

    write_page(page, [a_run(CELLS[0])], {"date": "today"})
    write_page(page, [a_run(CELLS[1])], {"date": "today"})

    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "single key" in text
    assert "| index |" not in text
    with pytest.raises(ValueError, match="has no"):
        write_page(_written(tmp_path / "other.md", "nothing"), [], {})


def test_a_run_that_is_in_the_file_is_not_played_again(tmp_path: Path):
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"runs": [a_run(CELLS[0], late_recall=0.25)]}), encoding="utf-8")

    played = play(CELLS[:1], results, workers=1)

    assert played[CELLS[0]]["late_recall"] == 0.25
    assert read_results(tmp_path / "nowhere") == {}


def test_the_same_figures_draw_the_same_plot(tmp_path: Path):
    pytest.importorskip("matplotlib")
    runs = [a_run(cell) for cell in CELLS]

    write_plot(tmp_path / "a.svg", runs)
    write_plot(tmp_path / "b.svg", runs)

    drawn = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert drawn == (tmp_path / "b.svg").read_text(encoding="utf-8")
    assert "<svg" in drawn
    assert "<dc:date>" not in drawn


def test_the_page_has_a_row_for_every_run_of_the_command():
    text = PAGE.read_text(encoding="utf-8")
    measured = text[text.index(BEGIN) : text.index(END)]

    for cell in discovery.CELLS:
        assert f"| {cell.nodes:,} / {cell.providers:,} | {new_design(cell.design).label} |" in measured


def _written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path
