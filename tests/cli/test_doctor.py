"""`doctor` beside real nodes that are set up wrongly: for each the one line that names the cause, and what to do next.

The nodes run in this process, on a loop of their own. Set-ups that take processes are in test_commands.py, a port that
is not published and a node that is stopped; so is what `doctor --seed` says of seeds.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dht.blocking import Swarm
from dht.config import DHTConfig, RecordConfig
from dht.swarm import SwarmConfig
from synapse_p2p import AgentNode
from synapse_p2p.apps.cli import running
from synapse_p2p.network_key import write_network_key
from synapse_p2p.runtime import system_runtime
from synapse_p2p.transport.base import ByteStream, Receiver
from synapse_p2p.transport.tcp import TcpTransport
from tests.cli.typing_commands import PATIENCE_S, typed

BLOCKED_S = 2.2  # a beat is due each second, and one that is a second late tells of a stall


def agent(name: str, **options: Any) -> AgentNode:
    return AgentNode(name=name, role="worker", capabilities=[f"{name}-work"], **options)


@pytest.fixture
def seed(tmp_path: Path) -> Iterator[str]:
    """The address of a healthy member."""
    with Swarm(agent("rita"), listen="127.0.0.1:0", data_dir=tmp_path / "rita") as swarm:
        yield swarm.status().listening[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of the node that is examined."""
    return tmp_path / "olga"


def member(folder: Path, node: AgentNode, seed: str, **options: Any) -> Swarm:
    """A swarm that has started, as `up` makes it, and can be examined."""
    swarm = Swarm(node, bootstrap=[seed], data_dir=folder, **options)
    swarm.start(wait_joined=True)
    running.leave(running.this_process(swarm.status(), name=node.name, folder=str(folder)))
    return swarm


def problems(folder: Path) -> list[dict[str, str]]:
    """What `doctor` has to say against the node."""
    shown = typed("doctor", "--data-dir", str(folder), "--json")
    found = shown.found["checks"]
    wrong = [check for check in found if check["state"] in ("warning", "failed")]
    assert shown.code == (1 if any(check["state"] == "failed" for check in found) else 0)
    assert all(check["next"] for check in wrong)
    return wrong


def only_problem(folder: Path) -> dict[str, str]:
    (problem,) = problems(folder)
    return problem


def until(is_so: Callable[[], bool]) -> None:
    """Wait for it."""
    ends_at = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < ends_at, "it did not come to that"
        time.sleep(0.01)


def test_a_healthy_agent_among_others_yields_no_warning(folder: Path, seed: str):
    swarm = member(folder, agent("olga"), seed)
    try:
        assert problems(folder) == []
    finally:
        swarm.stop()


def test_the_node_here_is_meant_where_the_environment_names_seeds_and_these_where_none_runs(
    folder: Path, seed: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SYNAPSE_SEED", "127.0.0.1:1")
    nobody = typed("doctor", "--data-dir", str(folder), "--json").found
    swarm = member(folder, agent("olga"), seed)
    try:
        node_here = typed("doctor", "--data-dir", str(folder), "--json").found
        asked_for = typed("doctor", "--data-dir", str(folder), "--seed", seed, "--json").found
    finally:
        swarm.stop()

    assert [(check["name"], check["state"]) for check in nobody["checks"]] == [("seeds", "failed")]
    assert node_here["healthy"]
    assert "loop" in [check["name"] for check in node_here["checks"]]
    assert [(check["name"], check["state"]) for check in asked_for["checks"]] == [("seeds", "ok")]


def test_a_clock_that_is_two_minutes_ahead(folder: Path, seed: str, monkeypatch: pytest.MonkeyPatch):
    ahead = replace(system_runtime(), unix_now=lambda: time.time() + 120)
    # The command runs on the machine of the node, and sees the same clock.
    monkeypatch.setattr("synapse_p2p.apps.cli.doctor.time", SimpleNamespace(time=ahead.unix_now))
    swarm = member(folder, agent("olga", runtime=ahead), seed)
    try:
        problem = only_problem(folder)
    finally:
        swarm.stop()

    assert problem["name"] == "clock"
    assert "this machine's clock is 120 s ahead of those of its peers" in problem["text"]
    assert "timedatectl set-ntp true" in problem["next"]


@pytest.mark.parametrize(
    ("options", "text", "following"),
    [
        ({"bootstrap": ["127.0.0.1:1"]}, "127.0.0.1:1: cannot be reached", "synapse up there, or name another seed"),
        ({"network": "other"}, "it belongs to another network", "synapse up --network NAME, as `synapse status` shows"),
        ({"network_key": b"k" * 32}, "most often network_key= is", "synapse id network --network-key-file FILE, here"),
    ],
    ids=["seed down", "other network", "wrong network key"],
)
def test_a_node_that_no_seed_lets_in(folder: Path, seed: str, options: dict[str, Any], text: str, following: str):
    key_file = folder.with_name("network.key")
    if key := options.get("network_key"):
        write_network_key(key_file, key)
    swarm = Swarm(agent("olga"), data_dir=folder, **({"bootstrap": [seed]} | options))
    swarm.start(join_timeout=0.1)
    try:
        until(lambda: swarm.status().seeds_tried == 1)
        node = running.this_process(swarm.status(), name="olga", folder=str(folder))
        running.leave(replace(node, network_key_file=str(key_file) if key else ""))
        problem = only_problem(folder)
    finally:
        swarm.stop(grace=0)

    assert (problem["name"], problem["state"]) == ("seeds", "failed")
    assert text in problem["text"]
    assert problem["next"].startswith(following)


@pytest.mark.linux
def test_a_node_that_is_bound_to_loopback_while_its_seed_is_elsewhere(folder: Path, seed: str):
    elsewhere = seed.replace(
        "127.0.0.1", "0.0.0.0"
    )  # which Linux takes for this machine, and no address of loopback is
    swarm = member(folder, agent("olga"), elsewhere, listen="127.0.0.1:0")
    try:
        problem = only_problem(folder)
    finally:
        swarm.stop()

    assert problem["name"] == "address"
    assert "listens nowhere, so nobody can call it: it was told to listen on loopback" in problem["text"]
    assert problem["next"].startswith("synapse up --listen 0.0.0.0:0 ")


def test_a_firewall_that_keeps_others_out(folder: Path, seed: str):
    firewall = Firewall()
    swarm = member(folder, agent("olga", transport=firewall), seed)
    try:
        until(lambda: firewall.kept_out > 0)
        firewall.is_shut = False  # to commands on this machine; the others try again in ten minutes
        problem = only_problem(folder)
    finally:
        swarm.stop()

    told = re.fullmatch(r"none of 1 peers could dial 127\.0\.0\.1:(\d+): a firewall keeps them out", problem["text"])
    assert problem["name"] == "reachability"
    assert told is not None, problem
    assert problem["next"] == f"open port {told[1]}/tcp for incoming connections, then synapse doctor"


def test_a_record_that_is_refused_by_those_who_should_keep_it(folder: Path, tmp_path: Path):
    small = SwarmConfig(dht=DHTConfig(records=RecordConfig(max_records=1)))  # full with what is its own
    with Swarm(agent("rita"), listen="127.0.0.1:0", data_dir=tmp_path / "rita", config=small) as full:
        swarm = member(folder, agent("olga"), full.status().listening[0])
        try:
            problem = only_problem(folder)
        finally:
            swarm.stop()

    assert (problem["name"], problem["state"]) == ("record", "failed")
    assert problem["text"] == "nobody keeps it under olga-work: their stores are full"
    assert problem["next"] == "synapse peers, then synapse doctor"


def test_a_lease_that_ended_because_the_clock_was_set(folder: Path, seed: str):
    set_by_s = [0.0]
    runtime = replace(system_runtime(), unix_now=lambda: time.time() + set_by_s[0])
    short = SwarmConfig(dht=DHTConfig(records=RecordConfig(lease_s=8), renew_fraction=0.99))
    swarm = member(folder, agent("olga", runtime=runtime), seed, config=short)
    try:
        set_by_s[0] = 9.0  # by 10 s and more it would be taken for sleep, from which a node comes back by itself
        problem = only_problem(folder)
    finally:
        swarm.stop()

    assert problem["name"] == "record"
    assert "s ago and was not renewed: nobody finds it" in problem["text"]
    assert problem["next"].startswith("synapse up, again")


def test_a_loop_that_a_function_blocks(folder: Path, seed: str):
    node = agent("olga")

    @node.endpoint()
    async def freeze() -> None:
        time.sleep(BLOCKED_S)  # noqa: ASYNC251 - what must not be done

    swarm = member(folder, node, seed)
    here = ["--data-dir", str(folder)]
    try:
        assert typed("call", "here", "freeze", *here).code == 0
        until(lambda: typed("status", *here, "--json").found["last_stall"] is not None)
        problem = only_problem(folder)
    finally:
        swarm.stop()

    assert (problem["name"], problem["state"]) == ("loop", "warning")
    assert re.search(r"freeze \(test_doctor\.py:\d+\) blocked its event loop$", problem["text"])
    assert "make it a plain function" in problem["next"]


class Firewall(TcpTransport):
    """The real network, but who comes in is turned away until it is opened. `kept_out` counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.is_shut = True
        self.kept_out = 0

    async def listen(self, host: str, port: int, accept: Callable[[], Receiver]) -> Any:
        return await super().listen(host, port, lambda: self._turn_away() if self.is_shut else accept())

    def _turn_away(self) -> Receiver:
        self.kept_out += 1
        return TurnedAway()


class TurnedAway:
    """Who is told of a connection that nobody wants."""

    def connection_made(self, stream: ByteStream) -> None:
        stream.abort()

    def data_received(self, data: bytes) -> None:
        pass

    def eof_received(self) -> bool | None:
        pass

    def connection_lost(self, exc: Exception | None) -> None:
        pass

    def pause_writing(self) -> None:
        pass

    def resume_writing(self) -> None:
        pass
