"""What faults do to messages and clocks, to the second."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from dht.contact import Contact
from simulations.delivery import Digest
from simulations.disturbance import MAX_RETRANSMISSIONS, RETRANSMIT_AFTER_S, Disturbance, HostClock
from simulations.network import EPOCH_S, VirtualHost, VirtualNetwork
from simulations.virtual_loop import VirtualLoop, run
from synapse_p2p.exceptions import Timeout

ONE_WAY_S = 0.04
A, B, C = b"a" * 32, b"b" * 32, b"c" * 32


def in_disturbance(check: Callable[[VirtualLoop, Disturbance], Awaitable[None]]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        await check(loop, Disturbance(loop, random.Random(1)))

    run(main())


def test_without_faults_messages_take_as_long_as_they_do():
    async def check(loop: VirtualLoop, disturbance: Disturbance) -> None:
        assert disturbance(A, B) == pytest.approx(ONE_WAY_S)

    in_disturbance(check)


def test_a_paused_host_sends_and_receives_when_the_pause_is_over():
    async def check(loop: VirtualLoop, disturbance: Disturbance) -> None:
        disturbance.pause(A, 5.0)
        disturbance.pause(A, 1.0)
        await asyncio.sleep(1)

        assert disturbance(B, A) == pytest.approx(4.0)
        assert disturbance(A, B) == pytest.approx(4.0 + ONE_WAY_S)
        assert disturbance(B, C) == pytest.approx(ONE_WAY_S)
        await asyncio.sleep(4)
        assert disturbance(A, B) == pytest.approx(ONE_WAY_S)

    in_disturbance(check)


@pytest.mark.parametrize("one_way", [False, True])
def test_a_partition_holds_what_leaves_and_unless_it_is_one_way_what_enters(one_way: bool):
    async def check(loop: VirtualLoop, disturbance: Disturbance) -> None:
        disturbance.cut(frozenset({A, B}), one_way=one_way, duration_s=3.0)

        assert disturbance(A, C) == pytest.approx(3.0 + ONE_WAY_S)
        assert disturbance(C, A) == pytest.approx(ONE_WAY_S if one_way else 3.0 + ONE_WAY_S)
        assert disturbance(A, B) == pytest.approx(ONE_WAY_S)
        await asyncio.sleep(3)
        assert disturbance(A, C) == pytest.approx(ONE_WAY_S)

    in_disturbance(check)


def test_overlapping_partitions_all_hold():
    async def check(loop: VirtualLoop, disturbance: Disturbance) -> None:
        disturbance.cut(frozenset({A}), one_way=False, duration_s=3.0)
        disturbance.cut(frozenset({C}), one_way=False, duration_s=7.0)

        assert disturbance(A, C) == pytest.approx(7.0 + ONE_WAY_S)
        assert disturbance(A, B) == pytest.approx(3.0 + ONE_WAY_S)

    in_disturbance(check)


def test_a_lost_message_is_late_by_its_retransmissions_and_the_share_is_kept():
    async def check(loop: VirtualLoop, disturbance: Disturbance) -> None:
        disturbance.lose(0.25, 60.0)

        late_s = [round(disturbance(A, B) - ONE_WAY_S, 6) for _ in range(2000)]

        possible = {round(RETRANSMIT_AFTER_S * (2**count - 1), 6) for count in range(MAX_RETRANSMISSIONS + 1)}
        assert set(late_s) <= possible
        assert 400 < sum(late > 0 for late in late_s) < 600
        await asyncio.sleep(60)
        assert disturbance(A, B) == pytest.approx(ONE_WAY_S)

    in_disturbance(check)


async def two_hosts(loop: VirtualLoop, disturbance: Disturbance) -> tuple[VirtualHost, VirtualHost]:
    network = VirtualNetwork(loop, random.Random(1), disturbance, Digest())
    caller, answerer = network.host(), network.host()
    answerer.mount("_dht.", {"_dht.ping": lambda request, context: loop.time()})
    await caller.peers.connect_address(answerer.address)
    return caller, answerer


def test_a_call_of_a_frozen_host_times_out_and_is_answered_late():
    async def check(loop: VirtualLoop, disturbance: Disturbance) -> None:
        caller, answerer = await two_hosts(loop, disturbance)
        contact = Contact(answerer.id, answerer.advertised_addresses)
        disturbance.pause(answerer.id, 5.0)
        frozen_at_s = loop.time()

        with pytest.raises(Timeout):
            await caller.peers.call(contact, "_dht.ping", {}, timeout_s=2.0)
        answered_at_s = await caller.peers.call(contact, "_dht.ping", {}, timeout_s=10.0)

        assert answered_at_s == pytest.approx(frozen_at_s + 5.0)

    in_disturbance(check)


def test_a_machine_that_sleeps_has_a_wall_clock_that_ran_ahead_of_its_monotonic_one():
    async def check(loop: VirtualLoop, disturbance: Disturbance) -> None:
        host, _ = await two_hosts(loop, disturbance)
        clock = HostClock(loop, host)
        monotonic_s, wall_s = host.runtime.now(), host.runtime.unix_now()

        clock.sleep(60.0)
        await asyncio.sleep(100)

        assert host.runtime.unix_now() - wall_s == pytest.approx(100.0)
        assert host.runtime.now() - monotonic_s == pytest.approx(40.0, abs=0.1)

    in_disturbance(check)


def test_sleeps_that_overlap_are_counted_once_and_the_monotonic_clock_never_goes_back():
    async def check(loop: VirtualLoop, disturbance: Disturbance) -> None:
        host, _ = await two_hosts(loop, disturbance)
        clock = HostClock(loop, host)
        begun_s, readings = clock.now(), []

        for step in range(100):
            if step in (10, 15, 50, 51):
                clock.sleep(10.0)
            await asyncio.sleep(1)
            readings.append(clock.now())

        assert readings == sorted(readings)
        assert readings[-1] - begun_s == pytest.approx(100.0 - 15.0 - 11.0, abs=0.1)

    in_disturbance(check)


def test_a_skewed_clock_is_wrong_for_its_own_host_and_for_whoever_shakes_hands_with_it():
    async def check(loop: VirtualLoop, disturbance: Disturbance) -> None:
        network = VirtualNetwork(loop, random.Random(1), disturbance, Digest())
        caller, skewed = network.host(), network.host()

        HostClock(loop, skewed).skew_s = -30.0
        peer = await caller.peers.connect_address(skewed.address)

        assert skewed.runtime.unix_now() == pytest.approx(EPOCH_S + loop.time() - 30.0)
        assert peer.unix_ms / 1000 == pytest.approx(EPOCH_S + loop.time() - 30.0, abs=1.0)

    in_disturbance(check)
