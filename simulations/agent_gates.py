"""The gates of the capability index: what it costs to be found, and to find, in a swarm of 10,000 nodes.

They are gates as those of the overlay, see `gates.py`, and are played and judged as they are: `python -m
simulations.agent_gates`. Several look at one and the same run.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

from simulations.gates import Gate, Limit, gates_parser, play_gates
from simulations.gates_page import PageText
from simulations.scenarios import Settings
from simulations.scenarios.base import Start

_CROWD = Settings(10_000, 300, 1, None, Start.ORACLE)
_SMALL_CROWD = Settings(60, 15, 1, None, Start.ORACLE)
_CROWD_S = 900.0
"""813 s were seen, on a machine that others used."""

_RARE = Gate(
    "ten providers among 10,000 nodes",
    "agents-crowd",
    _CROWD,
    _SMALL_CROWD,
    (Limit("rare_recall_mean", ">=", 0.999), Limit("rare_requests_mean", "<=", 20)),
    (Limit("rare_recall_mean", ">=", 0.999), Limit("rare_requests_mean", "<=", 20)),
    budget_s=_CROWD_S,
)
_FAIR = (
    Limit("shard_low_p_mean", "<=", 0.04),
    Limit("age_low_p_mean", "<=", 0.04),
    Limit("id_low_p_mean", "<=", 0.04),
)
"""Of 100 seeds at most 4 may have a chi-square that chance brings once in a hundred."""
_HEALED = (Limit("survivor_recall_mean_at_2", ">=", 0.999), Limit("survivor_complete_mean_at_2", ">=", 0.999))
"""All are found, by a search that knows that these are all. Where nobody goes back, nobody is found if none is in the
root's part; else all are, by one that reads every shard of the crowd that was, and cannot know.
"""
_REFUSED = (
    Limit("foreign_kept", "<=", 0),
    Limit("foreign_held", "<=", 0),
    Limit("foreign_returned", "<=", 0),
    Limit("other_recall_mean", ">=", 1.0),
)
_FULL = (Limit("full_mean", ">=", 1.0), Limit("lookups_mean", "<=", 3))
"""What is asked is that all are full; the other says what lies may cost, and that is where most of them show."""
GATES = (
    _RARE,
    replace(
        _RARE,
        name="10,000 providers of one capability",
        limits=(
            Limit("records_max", "<=", "cap"),
            Limit("busiest_to_mean", "<=", 4),
            Limit("registration_lookups_mean", "<=", 3),
            Limit("warm_lookups_mean", "<=", 1.1),
            Limit("cold_lookups_mean", "<=", 2.2),
        ),
        short_limits=(
            Limit("records_max", "<=", "cap"),
            Limit("busiest_to_mean", "<=", 4),
            Limit("registration_lookups_mean", "<=", 3),
        ),
        sabotage="one-shard",
        sabotaged=replace(_CROWD, nodes=1000),
        sabotaged_s=120,
    ),
    replace(
        _RARE,
        name="both a capability of all and one of ten",
        limits=(Limit("both_extra_lookups_mean", "<=", 1), Limit("both_recall_mean", ">=", 0.999)),
        short_limits=(Limit("both_extra_lookups_mean", "<=", 1), Limit("both_recall_mean", ">=", 0.999)),
    ),
    replace(
        _RARE,
        name="of 10,000 providers 100 are left",
        limits=_HEALED,
        short_limits=_HEALED,
        sabotage="no-return",
        sabotaged=replace(_CROWD, nodes=300, lookups=20),
        sabotaged_s=45,
    ),
    Gate(
        "every provider is drawn as often, 100 seeds",
        "agents-samples",
        Settings(1400, 50_000, 1, None, Start.ORACLE),
        Settings(300, 1000, 1, None, Start.ORACLE),
        _FAIR,
        _FAIR,
        budget_s=30,
        seeds=100,
        sabotage="no-counts",
        # It takes all draws to see it, and a crowd whose shards are as uneven as most: those of the first seed are not.
        sabotaged=Settings(1400, 50_000, 2, None, Start.ORACLE),
        is_short_sabotaged=False,
    ),
    Gate(
        "crashes as in BitTorrent",
        "agents-churn",
        Settings(1000, 2000, 1, 1.5, Start.ORACLE),
        Settings(40, 10, 1, 0.1, Start.ORACLE),
        (
            Limit("stale_mean", "<=", 0.09),
            Limit("stale_off_mean", "<=", 0.01),
            Limit("probed_dead_mean", "<=", 0.005),
            Limit("ask_success_mean", ">=", 0.999),
        ),
        (Limit("probed_dead_mean", "<=", 0.005), Limit("ask_success_mean", ">=", 0.999)),
        budget_s=1800,  # 0.53 s for an hour of a node, in a small swarm; and the searches
        sabotage="no-probes",
        sabotaged=Settings(100, 100, 1, 0.3, Start.ORACLE),
        sabotaged_s=60,
    ),
    Gate(
        "nine of ten announcements from three /24s",
        "agents-hostile",
        # From 1,000 nodes on there are as many honest providers, announcements and places: more would look on.
        Settings(1000, 1000, 1, None, Start.ORACLE, variant="flood"),
        Settings(50, 20, 1, None, Start.ORACLE, variant="flood"),
        (
            Limit("late_found_mean", ">=", 0.95),
            Limit("honest_unfound_mean", "<=", 0.01),
            Limit("search_success_mean", ">=", 0.99),
            Limit("foreign_held", "<=", 0),
        ),
        (
            Limit("late_found_mean", ">=", 0.95),
            Limit("honest_unfound_mean", "<=", 0.01),
            Limit("search_success_mean", ">=", 0.99),
            Limit("foreign_held", "<=", 0),
        ),
        budget_s=900,  # 0.25 s an announcement, in a small swarm
        sabotage="trust-all",
        sabotaged=Settings(200, 100, 1, None, Start.ORACLE, variant="flood"),
        sabotaged_s=250,
    ),
    Gate(
        "honest records under foreign keys",
        "agents-hostile",
        Settings(1000, 1000, 1, None, Start.ORACLE, variant="foreign"),
        Settings(60, 40, 1, None, Start.ORACLE, variant="foreign"),
        _REFUSED,
        _REFUSED,
        budget_s=30,
        sabotage="no-belonging",
        sabotaged_s=30,
    ),
    Gate(
        "a tenth at wrong depths",
        "agents-hostile",
        Settings(1000, 1000, 1, None, Start.ORACLE, variant="misplaced"),
        Settings(80, 10, 1, None, Start.ORACLE, variant="misplaced"),
        _FULL,
        _FULL,
        budget_s=400,
        sabotage="at-their-word",  # five rules: without any one of them a search is as good
        sabotaged=Settings(80, 10, 1, None, Start.ORACLE, variant="misplaced"),
    ),
    Gate(
        "a tenth at wrong depths, a tenth lying about counts",
        "agents-hostile",
        Settings(1000, 1000, 1, None, Start.ORACLE, variant="liars"),
        # As many searches as nodes: one that begins where an earlier one was lied to has no root to fall back on.
        Settings(60, 60, 1, None, Start.ORACLE, variant="liars"),
        _FULL,
        _FULL,
        budget_s=400,
        sabotage="largest-word",
        sabotaged=Settings(60, 60, 1, None, Start.ORACLE, variant="liars"),
    ),
)
PAGE = PageText(
    "What the capability index costs, and stands",
    (
        "Real node code on a virtual network, hosts at public addresses, tables from global knowledge at the start.",
        "Requests are all calls that a search makes, to whoever; a session that is opened for one is not counted.",
    ),
    "python -m simulations.agent_gates --page FILE",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 when every gate is passed and every sabotage misses, 1 when not."""
    parser = gates_parser("simulations.agent_gates", "What the capability index has to stand.")
    return play_gates(GATES, PAGE, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
