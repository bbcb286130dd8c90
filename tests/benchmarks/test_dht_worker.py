"""The workload, on a swarm that is a dict: what it counts, and of whom."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from benchmarks import dht_worker
from benchmarks.dht_worker import Swarm, spread

REQUESTS_PER_PUT = 7
REQUESTS_PER_GET = 3


class Node:
    def __init__(self, system: System) -> None:
        self.system = system
        self.held: dict[bytes, bytes] = {}
        self.requests = 0
        self.is_up = True

    async def put(self, value: bytes) -> bytes:
        self.requests += REQUESTS_PER_PUT
        key = value[:20]
        for storer in self.system.rng.sample(self.system.nodes, self.system.storers):
            storer.held[key] = value
        return key

    async def get(self, key: bytes) -> bytes | None:
        assert self.is_up
        assert key not in self.held or self.system.storers == len(self.system.nodes)
        self.requests += REQUESTS_PER_GET
        values = [node.held[key] for node in self.system.nodes if node.is_up and key in node.held]
        return values[0] if values else None

    def holds(self, key: bytes) -> bool:
        return key in self.held

    async def requests_sent(self) -> int:
        assert self.is_up
        return self.requests

    async def kill(self) -> None:
        self.is_up = False


class System:
    def __init__(self, *, storers: int = 3) -> None:
        self.rng = random.Random(1)
        self.storers = storers
        self.nodes: list[Node] = []

    async def start(self, others: Sequence[Node]) -> Node:
        assert list(others) == self.nodes
        self.nodes.append(Node(self))
        return self.nodes[-1]

    def missing_key(self, rng: random.Random) -> bytes:
        return rng.randbytes(20)


@pytest.fixture(autouse=True)
def a_dict_needs_no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dht_worker, "STRAGGLERS_S", 0)
    monkeypatch.setattr(dht_worker, "MAX_QUIET_S", 0)


async def test_every_operation_is_counted_and_no_reader_holds_what_it_reads():
    system = System()

    figures = await Swarm(system, random.Random(2)).measure(10)

    assert figures["put_requests"] == REQUESTS_PER_PUT
    assert figures["put_success"] == figures["get_success"] == figures["first_get_success"] == 100
    assert figures["first_get_requests"] == figures["get_requests"] == figures["miss_requests"] == REQUESTS_PER_GET
    assert figures["killed_requests"] == REQUESTS_PER_GET
    assert figures["gets_per_s"] > 0


async def test_three_of_ten_are_killed_and_what_they_alone_held_is_not_found():
    system = System(storers=1)

    figures = await Swarm(system, random.Random(3)).measure(10)

    assert sum(not node.is_up for node in system.nodes) == 3
    assert figures["get_success"] == 100
    assert 40 < figures["killed_success"] < 100


async def test_a_swarm_so_small_that_all_hold_everything_is_measured_all_the_same():
    figures = await Swarm(System(storers=4), random.Random(6)).measure(4)

    assert figures["first_get_success"] == figures["get_success"] == figures["killed_success"] == 100


async def test_what_only_encrypted_systems_have_is_left_out_of_others():
    figures = await Swarm(System(), random.Random(4)).measure(6)

    assert not {"handshakes_per_join", "handshake_cpu_ms", "fresh_requests"} & set(figures)


async def test_a_swarm_that_keeps_nothing_has_no_figures():
    class Forgetful(System):
        async def start(self, others: Sequence[Node]) -> Node:
            node = await super().start(others)

            async def keep_nothing(value: bytes) -> None:
                return None

            node.put = keep_nothing  # type: ignore[method-assign]
            return node

    with pytest.raises(RuntimeError, match="not one put was kept"):
        await Swarm(Forgetful(), random.Random(5)).measure(4)


def test_a_spread_has_the_nearest_rank():
    assert spread(range(1, 101)) == {"mean": 50.5, "p50": 50, "p99": 99}
    assert spread([7]) == {"mean": 7, "p50": 7, "p99": 7}
    assert spread([3, 1, 2]) == {"mean": 2, "p50": 2, "p99": 3}
