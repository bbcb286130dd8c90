"""Ten broken set-ups, each with the one line that names the cause and what to do next; and healthy ones, which yield
no warning.
"""

from __future__ import annotations

from typing import Any

import pytest

from dht.config import HealthConfig
from dht.records import Refusal
from synapse_p2p.apps.cli.diagnosis import (
    MAX_CLOCK_ERROR_S,
    REFUSALS_IN_WORDS,
    Check,
    Evidence,
    State,
    diagnose,
    diagnose_client,
    diagnose_seeds,
    diagnose_silent,
    is_healthy,
)

GOOD = Evidence(offsets_s=(0.1, -0.2, 0.0), own_dial="", asked=3, naming=3, is_found=True)
SEED = {"address": "10.0.0.5:9999", "state": "joined", "text": "joined"}
STATUS: dict[str, Any] = {
    "clock_ahead_s": 0.2,
    "listening": ["0.0.0.0:9999"],
    "advertised": ["10.0.0.7:9999"],
    "seeds": [SEED],
    "seeds_tried": 1,
    "contacts": 12,
    "suspects": 1,
    "is_connected": True,
    "agent": {"capabilities": ["python"]},
    "record": {
        "expires_in_s": 700.0,
        "is_revoked": False,
        "capabilities": [{"name": "python", "asked": 12, "stored": 12, "is_kept": True, "refusals": []}],
    },
    "last_stall": None,
}
FIRST_NODE = {**STATUS, "seeds": [], "seeds_tried": 0, "contacts": 0, "suspects": 0, "is_connected": False}


def seed(state: str, text: str) -> dict[str, Any]:
    return {**STATUS, "seeds": [{"address": "10.0.0.5:9999", "state": state, "text": text}]}


def kept(*refusals: str) -> dict[str, Any]:
    each = {"name": "python", "asked": 3, "stored": 0, "is_kept": False, "refusals": list(refusals)}
    return {**STATUS, "record": {"expires_in_s": 700.0, "is_revoked": False, "capabilities": [each]}}


def only_problem(checks: list[Check]) -> Check:
    problems = [check for check in checks if check.state in (State.WARNING, State.FAILED)]
    assert len(problems) == 1, problems
    return problems[0]


@pytest.mark.parametrize(
    "status",
    [
        STATUS,
        FIRST_NODE,
        {**STATUS, "agent": None, "record": None},
        {**STATUS, "clock_ahead_s": None},
        {**FIRST_NODE, "advertised": []},
        {**FIRST_NODE, "listening": ["127.0.0.1:1234"], "advertised": ["127.0.0.1:1234"]},
        {**STATUS, "last_stall": {"stalled_s": 3.0, "ago_s": 86_400.0, "blocked_by": ""}},
    ],
    ids=["member", "first", "no agent", "few clocks", "nobody came", "loopback", "old stall"],
)
def test_a_healthy_node_yields_no_warning(status: dict[str, Any]):
    evidence = GOOD if status["contacts"] else Evidence(own_dial="" if status["advertised"] else None)

    checks = diagnose(status, evidence)

    assert is_healthy(checks)
    assert {check.state for check in checks} <= {State.OK, State.SKIPPED}
    assert all(not check.next for check in checks)


@pytest.mark.parametrize(
    ("status", "evidence", "name", "said", "following"),
    [
        ({**STATUS, "clock_ahead_s": 120.0}, GOOD, "clock", "clock is 120 s ahead of those of its peers", "set-ntp"),
        (
            {**STATUS, "clock_ahead_s": None},
            Evidence((-121.0, -119.0, 0.0), "", 3, 3, True),
            "clock",
            "clock is 119 s behind those of its peers",
            "set-ntp",
        ),
        (
            {**STATUS, "listening": ["127.0.0.1:9999"], "advertised": ["127.0.0.1:9999"]},
            GOOD,
            "address",
            "listens on loopback alone, and its seed 10.0.0.5:9999 is elsewhere",
            "syn up --listen 0.0.0.0:0 --seed 10.0.0.5:9999",
        ),
        (
            seed("unreachable", "10.0.0.5:9999 cannot be reached: Connect call failed"),
            GOOD,
            "seeds",
            "10.0.0.5:9999: cannot be reached",
            "syn call 10.0.0.5:9999 _synapse.ping",
        ),
        (
            seed("refused", "it belongs to another network; write"),
            GOOD,
            "seeds",
            "another network",
            "up --network NAME",
        ),
        (
            seed("refused", "the peer refused: it wants another cipher suite; most often network_key="),
            GOOD,
            "seeds",
            "network_key=",
            "syn id network --network-key-file FILE",
        ),
        (
            STATUS,
            Evidence((0.0,), "", 4, 0, None),
            "reachability",
            "none of 4 peers could dial 10.0.0.7:9999: a firewall",
            "open port 9999/tcp",
        ),
        (
            STATUS,
            Evidence((0.0,), "Connect call failed", 4, 0, None),
            "reachability",
            "nobody answers at 10.0.0.7:9999, which is told to others (Connect call failed): the port is not published",
            "docker run -p 9999:9999",
        ),
        (kept("from_the_future"), GOOD, "record", "this machine's clock is ahead", "syn peers"),
        (kept("full", "full", "unheard_of"), GOOD, "record", "their stores are full; unheard_of", "syn doctor"),
        (kept(), GOOD, "record", "nobody keeps it under python: nobody answered", "syn peers"),
        (
            {**STATUS, "record": {**STATUS["record"], "expires_in_s": -65.0}},
            GOOD,
            "record",
            "its lease ended 65 s ago and was not renewed",
            "syn up, again",
        ),
        (
            {**STATUS, "record": {"expires_in_s": None, "is_revoked": True, "capabilities": []}},
            GOOD,
            "record",
            "its key was revoked for good",
            "syn up, as somebody new",
        ),
        (
            {**STATUS, "last_stall": {"stalled_s": 4.2, "ago_s": 30.0, "blocked_by": "handle (agents.py, line 7)"}},
            GOOD,
            "loop",
            "nothing ran in it for 4.2 s, 30 s ago: handle (agents.py, line 7) blocked its event loop",
            "make it a plain function",
        ),
        (
            {**STATUS, "last_stall": {"stalled_s": 4.2, "ago_s": 30.0, "blocked_by": ""}},
            GOOD,
            "loop",
            "something blocked its event loop, or the process was stopped",
            "PYTHONASYNCIODEBUG=1 syn up",
        ),
        (STATUS, Evidence((0.0,), "", 3, 3, False), "search", "a search for python does not come to it", "--explain"),
        ({**STATUS, "suspects": 7}, GOOD, "table", "7 of 12 contacts failed lately", "syn peers"),
        ({**STATUS, "is_connected": False}, GOOD, "table", "nearly none of its 12 contacts answers", "syn peers"),
    ],
    ids=[
        "clock ahead",
        "clock behind, few parties",
        "bound to loopback",
        "seed down",
        "other network",
        "wrong network key",
        "inbound refused",
        "port not published",
        "record refused by clocks",
        "record refused by stores",
        "record kept by nobody",
        "lease expired",
        "key revoked",
        "loop blocked",
        "process stopped",
        "not found",
        "suspects",
        "own network down",
    ],
)
def test_a_broken_set_up_has_one_line_that_names_the_cause_and_what_to_do(
    status: dict[str, Any], evidence: Evidence, name: str, said: str, following: str
):
    problem = only_problem(diagnose(status, evidence)).as_map("syn")

    assert problem["name"] == name
    assert said in problem["text"]
    assert following in problem["next"]


def test_a_node_that_knows_nobody_though_it_has_seeds_has_failed():
    checks = diagnose({**STATUS, "contacts": 0, "suspects": 0}, Evidence(own_dial=""))

    assert [check.name for check in checks if check.state is State.FAILED] == ["table"]
    assert not is_healthy(checks)


def test_where_no_seed_lets_it_in_nothing_else_is_to_blame():
    alone = {**seed("unreachable", "10.0.0.5:9999 cannot be reached"), "contacts": 0, "suspects": 0}

    checks = diagnose(alone, Evidence(own_dial=""))

    assert only_problem(checks).name == "seeds"
    assert [check.name for check in checks if check.state is State.SKIPPED] == ["table", "reachability", "record"]


def test_nodes_that_cannot_be_asked_have_a_line_too():
    client, silent = diagnose_client(7, "Rita"), diagnose_silent(7, "", "127.0.0.1:1", "no answer")

    assert "Rita (process 7) listens nowhere" in only_problem(client).text
    assert "the node (process 7) runs and does not answer at 127.0.0.1:1 (no answer)" in only_problem(silent).text
    assert not is_healthy(client) and not is_healthy(silent)


def test_seeds_that_let_us_in_are_well():
    assert is_healthy(diagnose_seeds([SEED, {**SEED, "state": "ourselves", "text": ""}]))


def test_words_and_bounds_are_those_of_the_overlay():
    assert set(REFUSALS_IN_WORDS) <= {refusal.value for refusal in Refusal}
    assert HealthConfig().max_clock_error_s == MAX_CLOCK_ERROR_S
