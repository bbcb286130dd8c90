from __future__ import annotations

import pytest

from benchmarks.dht_figures import (
    LABELS,
    LIMITS,
    Limit,
    Outcome,
    Verdict,
    completed,
    number,
    ratio,
    ratios_table,
    table,
    verdicts,
)


def rounds_of(figure: str, **values: list[float]) -> dict[str, list[dict[str, float]]]:
    return {system: [{figure: value} for value in own] for system, own in values.items()}


def outcome_of(limit: Limit, **values: list[float]) -> Outcome:
    (verdict,) = verdicts(rounds_of(limit.figure, **values), 100, [limit])
    return verdict.outcome


def test_a_ratio_is_the_median_of_the_rounds_ratios_not_the_ratio_of_medians():
    rounds = rounds_of("get_mean_ms", synapse=[1, 20, 3], kademlia=[1, 10, 30])

    assert ratio(rounds, "get_mean_ms", "kademlia") == 1.0


@pytest.mark.parametrize("values", [{"synapse": [1.0]}, {"kademlia": [1.0]}, {"synapse": [1.0], "kademlia": [0.0]}])
def test_a_ratio_to_nothing_is_none(values: dict[str, list[float]]):
    assert ratio(rounds_of("get_mean_ms", **values), "get_mean_ms", "kademlia") is None


def test_a_limit_is_met_at_its_bound_and_missed_just_above():
    limit = Limit("get_requests", 3.0)

    assert outcome_of(limit, synapse=[3.0]) is Outcome.MET
    assert outcome_of(limit, synapse=[3.01]) is Outcome.MISSED


def test_a_least_wanted_is_judged_by_the_worst_round():
    limit = Limit("killed_success", 100.0, is_least=True)

    assert outcome_of(limit, synapse=[100, 100, 100]) is Outcome.MET
    assert outcome_of(limit, synapse=[100, 97.5, 100]) is Outcome.MISSED


def test_a_limit_against_another_system_takes_its_rounds():
    limit = Limit("get_mean_ms", 3.0, of="libtorrent")

    assert outcome_of(limit, synapse=[3.0, 6.0], libtorrent=[1.0, 2.0]) is Outcome.MET
    assert outcome_of(limit, synapse=[4.0, 6.2], libtorrent=[1.0, 2.0]) is Outcome.MISSED


def test_what_could_not_be_measured_is_not_met():
    assert outcome_of(Limit("get_requests", 3.0), kademlia=[3.0]) is Outcome.NOT_MEASURED
    assert outcome_of(Limit("get_mean_ms", 3.0, of="libtorrent"), synapse=[1.0]) is Outcome.NOT_MEASURED


def test_a_limit_of_one_size_is_not_asked_of_another():
    def figures_at(nodes: int) -> list[str]:
        return [verdict.limit.figure for verdict in verdicts({}, nodes)]

    assert len(figures_at(100)) == len(LIMITS)
    assert "put_requests" not in figures_at(50)
    assert "get_requests" in figures_at(50)


def test_every_limit_is_of_a_figure_that_has_a_label():
    assert [limit.figure for limit in LIMITS if limit.figure not in LABELS] == []


def test_the_join_without_handshakes_is_its_cpu_less_all_of_them():
    ours = completed({"nodes": 100, "join_cpu_s": 20.0, "handshakes_per_join": 60.0, "handshake_cpu_ms": 2.0})
    plain = completed({"nodes": 100, "join_cpu_s": 1.5})

    assert ours["join_rest_cpu_s"] == pytest.approx(20.0 - 100 * 60 * 0.002)
    assert plain["join_rest_cpu_s"] == 1.5


@pytest.mark.parametrize(
    ("verdict", "text"),
    [
        (Verdict(Limit("get_requests", 3.0), 50, 2.5), "pass: 50 nodes: requests per get: 2.50, wanted at most 3.00"),
        (
            Verdict(Limit("get_mean_ms", 1.0, of="kademlia"), 100, 4.25),
            "MISS: 100 nodes: get, mean, ms: 4.25 times kademlia's, wanted at most 1.00 times kademlia's",
        ),
        (
            Verdict(Limit("killed_success", 100.0, is_least=True), 50, None),
            "NOT MEASURED: 50 nodes: 30 % killed: gets that found, %: wanted at least 100",
        ),
    ],
)
def test_a_verdict_says_what_was_measured_and_what_is_wanted(verdict: Verdict, text: str):
    assert str(verdict) == text


def test_the_table_has_medians_with_their_range_and_says_who_is_absent():
    rounds = {"synapse": [{"get_mean_ms": 1.0}, {"get_mean_ms": 3.0}, {"get_mean_ms": 2.0}], "opendht": []}

    lines = table(rounds, {"opendht": "not installed: no such release"}).splitlines()

    assert lines == [
        "| figure | synapse | opendht |",
        "| --- | ---: | ---: |",
        "| get, mean, ms | 2.00 (1.00 to 3.00) | - |",
        "",
        "opendht: not measured: not installed: no such release",
    ]


def test_ratios_are_left_out_where_ours_or_all_others_were_not_measured():
    assert ratios_table({"synapse": [], "kademlia": [{"get_mean_ms": 1.0}]}) == ""
    assert ratios_table({"synapse": [{"get_mean_ms": 1.0}], "kademlia": []}) == ""


def test_ratios_have_a_column_for_each_system_that_was_measured():
    rounds = rounds_of("get_mean_ms", synapse=[2.0], kademlia=[1.0], opendht=[], libtorrent=[0.5])

    lines = ratios_table(rounds).splitlines()

    assert lines[0] == "| ours, as a multiple of | kademlia | libtorrent |"
    assert "| get, mean, ms | 2.00 | 4.00 |" in lines


@pytest.mark.parametrize(
    ("value", "text"), [(0.444, "0.44"), (3, "3.00"), (41.02, "41.0"), (1234.5, "1,234"), (-12.34, "-12.3")]
)
def test_numbers_have_three_digits(value: float, text: str):
    assert number(value) == text
