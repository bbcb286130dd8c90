"""A node under abuse over real sockets (`python -m benchmarks.abuse`): an honest client is served, and the abusers go.

The full form has the limits of the program, and is judged where nothing else runs (`make gates`). In the short one all
is smaller and the node less patient; limits of wall time are five times as far, for a busy machine. What a client's
calls cost, and its p99 beside its own, are for the full form alone: they are the machine's as much as the node's.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from benchmarks.abuse import FULL, SHORT, Abuse, Attack, Felt, Outcome
from synapse_p2p.config import MIB

pytestmark = [
    pytest.mark.linux,
    pytest.mark.skipif(sys.platform != "linux", reason="hosts are addresses 127.a.b.c, and memory is read in /proc"),
]
ATTACK = Attack("connects", 10, 1.0)
WELL = Felt(calls_s=[0.001] * 200, connects_s=[0.01] * 20, cpu_us=[100.0] * 8)


@pytest.fixture(scope="module")
def abuse() -> Iterator[Abuse]:
    """One node for all short attacks: what one leaves behind, the next would show."""
    playing = Abuse(SHORT)
    yield playing
    playing.close()


@pytest.mark.parametrize("name", SHORT.attacks())
def test_an_honest_client_is_served_during_an_attack_and_the_attackers_go(abuse: Abuse, name: str):
    outcome = abuse.play(SHORT.attacks()[name])

    assert outcome.misses(slack=5.0, costs=False) == []
    assert outcome.made >= outcome.attack.count / 2  # a busy machine may keep the attackers from it
    assert outcome.refused <= outcome.made
    assert not outcome.alone.failures


@pytest.mark.gates
@pytest.mark.parametrize("name", FULL.attacks())
def test_an_honest_client_feels_little_of_a_full_attack(name: str):
    playing = Abuse(FULL)
    try:
        outcome = playing.play(FULL.attacks()[name])
    finally:
        playing.close()

    assert outcome.misses() == []
    assert not outcome.alone.failures


def outcome(**changes: object) -> Outcome:
    seen = {
        "attack": ATTACK,
        "made": 10,
        "refused": 0,
        "alone": WELL,
        "attacked": WELL,
        "node_share_alone": 0.1,
        "node_share_attacked": 0.2,
        "growth_bytes": MIB,
        "gone_s": 1.0,
    }
    return Outcome(**{**seen, **changes})


def felt(**changes: list[float] | list[str]) -> Felt:
    return Felt(**{name: changes.get(name, getattr(WELL, name)) for name in Felt.__slots__})


@pytest.mark.parametrize(
    ("changes", "missed"),
    [
        ({}, None),
        ({"attacked": felt(cpu_us=[119.0] * 8)}, None),
        ({"attacked": felt(cpu_us=[121.0] * 8)}, "its CPU per call grew 1.21 times"),
        ({"attacked": felt(calls_s=[0.001] * 190 + [0.0031] * 10)}, "its p99 grew 3.10 times"),
        ({"attacked": felt(connects_s=[1.1] * 20)}, "the p99 of its connects is 1.10 s"),
        ({"attacked": felt(failures=["late"])}, "the client failed: ['late']"),
        ({"attacked": felt(connects_s=[])}, "the client did nothing"),
        ({"made": 8}, "only 8 were made: the machine is busy"),
        ({"growth_bytes": 33 * MIB}, "the node grew by 33 MiB"),
        ({"gone_s": 2.6}, "they were gone after 2.6 s"),
        ({"gone_s": None}, "they were gone after None s"),
    ],
)
def test_a_limit_is_missed_where_it_does_not_hold(changes: dict[str, object], missed: str | None):
    assert outcome(**changes).misses() == ([] if missed is None else [f"connects: {missed}"])
