"""The single key that the index is compared with: what a storer keeps of it, and what it does with nonsense."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.discovery_designs import provider_records
from benchmarks.discovery_designs.agent import DesignAgent
from benchmarks.discovery_designs.catalog import SINGLE_KEY, new_design
from benchmarks.discovery_designs.provider_records import (
    ADD,
    GET,
    MAX_PER_ANSWER,
    ProviderAgent,
    ProviderRecord,
    ProviderStore,
    read_providers,
)
from benchmarks.discovery_world import DiscoveryWorld
from dht.contact import Contact
from simulations.virtual_loop import run
from synapse_p2p.exceptions import RemoteError

KEYS = [bytes([number]) * 32 for number in range(3)]
PROVIDERS = [bytes([number]) * 32 for number in range(10, 20)]
ADDRESS = "11.0.0.1:9000"


@given(
    st.lists(
        st.tuples(st.sampled_from(KEYS), st.sampled_from(PROVIDERS), st.floats(0.1, 10), st.floats(0, 5)), max_size=60
    ),
    st.integers(1, 6),
)
def test_a_key_keeps_at_most_its_cap_and_renews_whom_it_has(
    added: list[tuple[bytes, bytes, float, float]], max_per_key: int
):
    store = ProviderStore(max_per_key=max_per_key)
    model: dict[bytes, dict[bytes, float]] = {key: {} for key in KEYS}
    now = 0.0
    for key, provider, life_s, pause_s in added:
        now += pause_s
        model = {each: {who: end for who, end in held.items() if end > now} for each, held in model.items()}
        has_room = provider in model[key] or len(model[key]) < max_per_key

        assert store.add(key, ProviderRecord(provider, ADDRESS, now + life_s), now) == has_room

        if has_room:
            model[key][provider] = now + life_s
        store.check_invariants()
        for each in KEYS:
            sample = store.sample(each, max_per_key, now, random.Random(1))
            assert {record.provider for record in sample} == set(model[each])
        assert store.held(now).records == sum(map(len, model.values()))


def test_an_answer_has_no_more_than_its_cap_and_every_provider_now_and_then():
    store = ProviderStore()
    providers = [number.to_bytes(32, "big") for number in range(100)]
    for provider in providers:
        store.add(KEYS[0], ProviderRecord(provider, ADDRESS, 1.0), 0.0)
    rng = random.Random(1)

    samples = [store.sample(KEYS[0], MAX_PER_ANSWER, 0.0, rng) for _ in range(100)]

    assert {len(sample) for sample in samples} == {MAX_PER_ANSWER}
    assert {record.provider for sample in samples for record in sample} == set(providers)


def test_there_are_no_more_keys_than_there_may_be(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(provider_records, "MAX_KEYS", 2)
    store = ProviderStore()

    kept = [store.add(key, ProviderRecord(PROVIDERS[0], ADDRESS, 5.0), 0.0) for key in KEYS]
    later = store.add(KEYS[2], ProviderRecord(PROVIDERS[0], ADDRESS, 9.0), 6.0)

    assert (kept, later) == ([True, True, False], True)


@pytest.mark.parametrize(
    "answer", [None, {}, "text", [1], [[b"short", ADDRESS]], [[KEYS[0]]], [[KEYS[0], 5]], [[KEYS[0], ADDRESS, 1]]]
)
def test_an_answer_that_names_nobody_well_names_nobody(answer: Any):
    assert read_providers(answer) == []


def test_what_is_no_request_is_refused_and_what_is_one_is_kept_in_the_callers_name():
    async def main() -> None:
        world = await small_world()
        storer, caller = list(world.agents.values())[:2]
        assert isinstance(storer, ProviderAgent)
        for endpoint, request in [
            (ADD, {}),
            (ADD, {"key": b"short", "address": ADDRESS}),
            (ADD, {"key": KEYS[0], "address": "not an address"}),
            (ADD, {"key": KEYS[0], "address": "1" * 100}),
            (GET, {}),
            (GET, {"key": "text"}),
        ]:
            with pytest.raises(RemoteError):
                await call(caller, storer, endpoint, request)
        assert storer.held().records == 0

        assert await call(caller, storer, ADD, {"key": KEYS[0], "address": ADDRESS}) is True

        assert await call(caller, storer, GET, {"key": KEYS[0]}) == [[caller.host.id, ADDRESS]]
        await world.stop()

    run(main())


async def small_world() -> DiscoveryWorld:
    world = DiscoveryWorld(asyncio.get_running_loop(), new_design(SINGLE_KEY), 1)
    await world.start(3, 0)
    return world


async def call(caller: DesignAgent, storer: DesignAgent, endpoint: str, request: dict[str, Any]) -> Any:
    contact = Contact(storer.host.id, storer.host.advertised_addresses)
    return await caller.host.peers.call(contact, endpoint, request, timeout_s=2.0)
