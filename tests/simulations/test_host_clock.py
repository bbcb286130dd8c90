"""The clocks of a host, to the second."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from simulations.delivery import Digest
from simulations.host_clock import HostClock
from simulations.network import EPOCH_S, ConstantLatency, VirtualNetwork
from simulations.virtual_loop import VirtualLoop, run


def in_network(check: Callable[[VirtualLoop, VirtualNetwork], Awaitable[None]]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        await check(loop, VirtualNetwork(loop, random.Random(1), ConstantLatency(), Digest()))

    run(main())


def test_a_machine_that_sleeps_has_a_wall_clock_that_ran_ahead_of_its_monotonic_one():
    async def check(loop: VirtualLoop, network: VirtualNetwork) -> None:
        host = network.host()
        clock = HostClock(loop, host)
        monotonic_s, wall_s = host.runtime.now(), host.runtime.unix_now()

        clock.sleep(60.0)
        await asyncio.sleep(100)

        assert host.runtime.unix_now() - wall_s == pytest.approx(100.0)
        assert host.runtime.now() - monotonic_s == pytest.approx(40.0)

    in_network(check)


def test_sleeps_that_overlap_are_counted_once_and_the_monotonic_clock_never_goes_back():
    async def check(loop: VirtualLoop, network: VirtualNetwork) -> None:
        clock = HostClock(loop, network.host())
        begun_s, readings = clock.now(), []

        for step in range(100):
            if step in (10, 15, 50, 51):
                clock.sleep(10.0)
            if step == 52:
                clock.sleep(1.0)
            await asyncio.sleep(1)
            readings.append(clock.now())

        assert readings == sorted(readings)
        assert readings[12] == readings[20]
        assert readings[-1] - begun_s == pytest.approx(100.0 - 15.0 - 11.0)

    in_network(check)


def test_a_machine_that_is_woken_has_slept_until_then():
    async def check(loop: VirtualLoop, network: VirtualNetwork) -> None:
        clock = HostClock(loop, network.host())

        clock.wake()
        clock.sleep(60.0)
        await asyncio.sleep(10)
        clock.wake()
        await asyncio.sleep(5)
        clock.wake()
        await asyncio.sleep(5)

        assert clock.now() == pytest.approx(10.0)

    in_network(check)


def test_a_skewed_clock_is_wrong_for_its_own_host_and_for_whoever_shakes_hands_with_it():
    async def check(loop: VirtualLoop, network: VirtualNetwork) -> None:
        caller, skewed = network.host(), network.host()

        HostClock(loop, skewed).skew_s = -30.0
        peer = await caller.peers.connect_address(skewed.address)

        assert skewed.runtime.unix_now() == pytest.approx(EPOCH_S + loop.time() - 30.0)
        assert peer.unix_ms / 1000 == pytest.approx(EPOCH_S + loop.time() - 30.0, abs=1.0)

    in_network(check)
