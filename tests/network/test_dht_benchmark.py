"""How the benchmark of the overlay runs, counts and kills our own nodes."""

from __future__ import annotations

import asyncio

import pytest

from benchmarks.dht_systems import synapse


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> synapse.System:
    monkeypatch.setattr(synapse, "NEEDED", ())  # here nothing is put
    return synapse.System()


def test_a_node_that_lacks_what_is_measured_is_refused_in_words(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(synapse, "NEEDED", ("join", "levitate"))

    with pytest.raises(RuntimeError, match="DHTNode has no levitate yet"):
        synapse.System()


async def test_joins_are_counted_and_a_killed_node_answers_nobody(system: synapse.System):
    nodes = [await system.start([])]
    nodes += [await system.start(nodes) for _ in range(2)]
    port = nodes[1].server.port

    handshakes, joined = system.handshakes(), await nodes[1].requests_sent()
    await nodes[1].get(b"\x5a" * 32)
    asked = await nodes[1].requests_sent()
    await nodes[1].kill()
    assert handshakes >= 3  # each with each, once at least
    assert joined == 0  # upkeep is not counted
    assert asked == 2  # both others

    with pytest.raises(OSError, match=str(port)):
        await asyncio.open_connection("127.0.0.1", port)
    for node in (nodes[0], nodes[2]):
        assert not node.server.sessions.is_connected(nodes[1].node.id)
        await node.kill()


async def test_the_cpu_of_a_handshake_is_some_of_this_process(system: synapse.System):
    assert 0.0001 < await system.handshake_cpu_s() < 1
