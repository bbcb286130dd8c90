"""Which pictures the cells of a sweep have together."""

from __future__ import annotations

from typing import Any

import pytest

from simulations.pictures.shapes import Picture, Responses
from simulations.pictures.sweep import pictures_of_sweep
from simulations.report import run_scenario
from simulations.scenarios import SCENARIOS, Settings
from simulations.scenarios.base import Start


def cell(
    success: float = 1.0, lookups: int = 100, nodes: int = 50, sabotage: str = "", **figures: Any
) -> dict[str, Any]:
    settings = {"sabotage": sabotage}
    return {"lookups": lookups, "lookup_success": success, "nodes": nodes, "settings": settings, **figures}


def dead(share: float, success: float = 1.0, massacres: int = 1, **others: Any) -> dict[str, Any]:
    return cell(success, dead_share=share, massacres=massacres, **others)


def the_picture(name: str, cells: list[dict[str, Any]]) -> tuple[Picture, Responses]:
    picture = next(each for each in pictures_of_sweep(cells)[0] if each.name == name)
    assert isinstance(picture.drawing, Responses)
    return picture, picture.drawing


def test_runs_that_differ_in_their_seed_are_one_point_of_all_their_lookups():
    cells = [dead(0.5, 0.9), dead(0.3, 1.0), dead(0.5, 0.7, lookups=300)]

    picture, drawing = the_picture("dead", cells)

    ((label, points),) = drawing.series
    assert label == "once"
    assert [(point.x, point.y) for point in points] == [(0.3, 1.0), (0.5, pytest.approx(300 / 400))]
    assert all(point.low < point.y <= point.high for point in points)
    assert picture.caption.startswith("3 runs of 100 to 300 lookups")
    assert "75.00%, at 50%" in picture.alt


def test_what_else_differs_is_a_series_of_its_own():
    cells = [dead(0.3), dead(0.5), dead(0.3, massacres=6), dead(0.3, nodes=100, sabotage="narrow")]

    _, drawing = the_picture("dead", cells)

    assert [label for label, _ in drawing.series] == [
        "once, n = 50, no sabotage",
        "6 times, n = 50, no sabotage",
        "once, n = 100, narrow",
    ]


def test_hostile_hosts_are_told_apart_by_kind_and_by_how_often_tables_have_them():
    cells = [
        cell(hostile_share=0.2, hostile_kind="colluders", hostile_weight=1.0),
        cell(hostile_share=0.3, hostile_kind="colluders", hostile_weight=4.0),
        cell(hostile_share=0.2, hostile_kind="silent", hostile_weight=1.0),
    ]

    _, drawing = the_picture("hostile", cells)

    assert [label for label, _ in drawing.series] == ["colluders", "colluders, 4 times as likely in tables", "silent"]


def test_sessions_are_drawn_by_their_median_in_minutes():
    _, drawing = the_picture("sessions", [cell(session_median_s=120.0), cell(0.9, session_median_s=600.0)])

    assert [point.x for _, points in drawing.series for point in points] == pytest.approx([2.0, 10.0])
    assert drawing.is_log_x


def test_hops_by_size_are_means_over_seeds_beside_the_model():
    cells = [cell(nodes=nodes, mean_hops=hops) for nodes, hops in ((100, 1.2), (100, 1.4), (1000, 1.9))]

    _, drawing = the_picture("size", cells)

    ((_, points),) = drawing.series
    assert [(point.x, point.y) for point in points] == [(100, pytest.approx(1.3)), (1000, 1.9)]
    assert points[0].low < 1.3 < points[0].high
    assert points[1].low == points[1].high == 1.9
    assert drawing.model[1] == (1000, pytest.approx(1.865, abs=0.001))


def test_one_value_makes_no_picture_and_the_reason_is_named():
    pictures, left_out = pictures_of_sweep([dead(0.3, mean_hops=None), dead(0.3, lookups=0)])

    assert pictures == []
    assert len(left_out) == 4
    assert "two values of dead_share" in left_out[0].why


@pytest.mark.parametrize(
    ("scenario", "variants", "name"),
    [
        ("overlay-massacre", ("30", "50"), "dead"),
        ("overlay-hostile", ("colluders-10", "silent-20"), "hostile"),
        ("overlay-churn", ("weibull-40", "half-life-2"), "sessions"),
    ],
)
def test_the_scenarios_say_what_their_pictures_need(scenario: str, variants: tuple[str, ...], name: str):
    settings = [Settings(12, 10, 1, 0.01, Start.ORACLE, variant=variant) for variant in variants]

    cells = [run_scenario(SCENARIOS[scenario], each).figures for each in settings]

    _, drawing = the_picture(name, cells)
    assert len([point for _, points in drawing.series for point in points]) == 2
