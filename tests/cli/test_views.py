"""What people read of a node that has come up, and of figures."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from dht.results import SwarmMode, SwarmStatus
from synapse_p2p import HandshakeFailed
from synapse_p2p.apps.cli.blocks import plain_text
from synapse_p2p.apps.cli.views import Started, span, view_of_start, view_of_status
from synapse_p2p.metrics import Metrics

STATUS = SwarmStatus(
    id=b"\xab" * 32,
    mode=SwarmMode.NODE,
    network="",
    listening=("0.0.0.0:9999",),
    advertised=("10.0.0.7:9999",),
    seeds_joined=0,
    seeds_tried=2,
    contacts=0,
    sessions=0,
    records_held=0,
    capabilities=("python",),
)
STARTED = Started(STATUS, folder="/srv/rita", has_network_key=False, capability="python", network_key_file="")


def shown(started: Started) -> list[str]:
    return plain_text(view_of_start(started, "syn")).splitlines()


def test_an_open_node_says_that_it_is_and_how_others_join_it():
    assert shown(STARTED)[1:] == [
        "listening   0.0.0.0:9999",
        "advertised  10.0.0.7:9999",
        "joined      0 of 2 seeds",
        "key kept in /srv/rita",
        "open swarm: anyone who reaches this port may ask",
        "In another terminal:",
        "  syn status",
        "  syn find python",
        '  syn ask python "Hello"',
        f"  syn up --seed {'ab' * 32}@10.0.0.7:9999",
        "Ctrl-C leaves the swarm in good order.",
    ]


def test_a_closed_one_is_joined_by_name_and_key_in_quotes_where_they_have_to_be():
    closed = dataclasses.replace(
        STARTED,
        status=dataclasses.replace(STATUS, network="our lab"),
        has_network_key=True,
        network_key_file="/etc/our lab.key",
    )

    assert not any("open swarm" in line for line in shown(closed))
    assert shown(closed)[-2].endswith(" --network 'our lab' --network-key-file '/etc/our lab.key'")


def test_commands_that_would_not_find_the_node_are_not_named():
    lines = shown(dataclasses.replace(STARTED, folder=""))

    assert [line for line in lines if line.startswith("  syn")] == [f"  syn up --seed {'ab' * 32}@10.0.0.7:9999"]


def test_a_client_and_a_node_that_nobody_has_seen_say_so():
    client = dataclasses.replace(STATUS, listening=(), advertised=(), mode=SwarmMode.CLIENT)
    unseen = dataclasses.replace(STATUS, advertised=(), seeds_tried=0)

    assert shown(dataclasses.replace(STARTED, status=client))[1:3] == [
        "listening   nowhere (a client)",
        "advertised  nowhere (a client)",
    ]
    lines = shown(dataclasses.replace(STARTED, status=unseen))
    assert lines[2] == "advertised  not yet known: no peer has told us how it sees us"
    assert lines[3] == "joined      no seeds: a first node"
    assert lines[-2] == f"  syn up --seed {'ab' * 32}@127.0.0.1:9999"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s"), (0.4, "0 s"), (59, "59 s"), (60, "1 min"), (5_400, "2 h"), (90_000, "1 d")],
)
def test_a_span_is_told_in_its_largest_unit(seconds: float, text: str):
    assert span(seconds) == text


def told(metrics: Metrics) -> list[str]:
    """The lines of a status that speak of what was counted."""
    status: dict[str, Any] = dict.fromkeys(
        ("uptime_s", "contacts", "suspects", "sessions", "records_held", "own_values", "calls_served"), 0
    ) | {
        "id": "ab" * 32,
        "version": "3.0.0",
        "network": "",
        "has_network_key": False,
        "listening": [],
        "advertised": [],
        "seeds_joined": 0,
        "seeds_tried": 0,
        "is_connected": True,
        "size_estimate": None,
        "agent": None,
        "record": None,
        "stats": dataclasses.asdict(metrics.snapshot()),
    }
    lines = plain_text(view_of_status(status)).splitlines()
    return lines[[line.startswith("calls") for line in lines].index(True) :]


def test_a_status_tells_of_bytes_and_of_trouble_where_there_is_any():
    metrics = Metrics()
    metrics.loop_lag.note(0.01, now=0.0)
    metrics.counts.received_bytes, metrics.counts.sent_bytes = 999, 20_000_000
    quiet = told(metrics)
    for reason, count in (("network", 1), ("busy", 3)):
        for _ in range(count):
            metrics.on_handshake_refused(HandshakeFailed("refused", "no", refusal=reason))
    metrics.loop_lag.note(1.25, now=1.0)

    assert quiet == ["calls       0 served; 0 run or wait now", "traffic     999 B in, 20.0 MB out"]
    assert told(metrics)[2:] == [
        "refused     connections: busy 3, network 1",
        "event loop  was 1.2 s late in the last minutes",
    ]
