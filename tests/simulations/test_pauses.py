"""A process that stands still does nothing at all, and then everything it missed, in order."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dht.contact import Contact
from simulations.delivery import Digest
from simulations.network import ConstantLatency, VirtualHost, VirtualNetwork
from simulations.virtual_loop import VirtualLoop, run
from synapse_p2p.exceptions import PeerUnavailable, Timeout

T = TypeVar("T")
ONE_WAY_S = 0.04
TICKS = 20  # a second apart; all pauses are over by then


class Stage:
    """Two hosts with a session, the loop they live on, and what was seen, by its second."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.loop = loop
        self.network = VirtualNetwork(loop, random.Random(1), ConstantLatency(ONE_WAY_S), Digest())
        self.caller, self.answerer = self.network.host(), self.network.host()
        self.seen: list[tuple[float, Any]] = []
        self.begun_at_s = 0.0
        for host in (self.caller, self.answerer):
            host.mount("_dht.", {"_dht.note": lambda request, context: self.see(request["what"])})

    def see(self, what: Any) -> None:
        self.seen.append((round(self.loop.time() - self.begun_at_s, 6), what))

    def begin(self, host: VirtualHost, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run it in the host's process."""
        return self.network.pauses.context_of(host.id).run(asyncio.ensure_future, coroutine)

    async def call(self, what: Any = None, *, timeout_s: float = 100.0) -> None:
        contact = Contact(self.answerer.id, self.answerer.advertised_addresses)
        await self.caller.peers.call(contact, "_dht.note", {"what": what}, timeout_s=timeout_s)


def on_stage(check: Callable[[Stage], Awaitable[None]]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        stage = Stage(loop)
        await stage.caller.peers.connect_address(stage.answerer.address)
        await asyncio.sleep(1)
        stage.begun_at_s = loop.time()
        await check(stage)

    run(main())


def test_what_is_on_its_way_when_a_pause_begins_arrives_when_it_ends():
    async def check(stage: Stage) -> None:
        calls = [stage.begin(stage.caller, stage.call(number)) for number in range(3)]
        await asyncio.sleep(ONE_WAY_S / 2)

        stage.network.pause(stage.answerer, 5.0)
        await asyncio.gather(*calls)

        ended_at_s = round(ONE_WAY_S / 2 + 5.0, 6)
        assert stage.seen == [(ended_at_s, 0), (ended_at_s, 1), (ended_at_s, 2)]

    on_stage(check)


def test_timers_and_tasks_of_a_paused_process_wait_in_order_and_those_of_others_do_not():
    async def check(stage: Stage) -> None:
        async def tick(what: str) -> None:
            for _ in range(3):
                await asyncio.sleep(1)
                stage.see(what)

        tasks = [stage.begin(stage.answerer, tick(what)) for what in ("a", "b")]
        tasks += [stage.begin(stage.caller, tick("other"))]
        await asyncio.sleep(0.5)
        stage.network.pause(stage.answerer, 4.0)
        await asyncio.gather(*tasks)

        assert [entry for entry in stage.seen if entry[1] == "other"] == [(1, "other"), (2, "other"), (3, "other")]
        own = [entry for entry in stage.seen if entry[1] != "other"]
        assert own == [(at_s, what) for at_s in (4.5, 5.5, 6.5) for what in ("a", "b")]

    on_stage(check)


def test_a_deadline_that_passes_in_a_pause_counts_after_it():
    async def check(stage: Stage) -> None:
        stage.network.cut([stage.answerer])
        call = stage.begin(stage.caller, stage.call(timeout_s=2.0))
        await asyncio.sleep(1)
        stage.network.pause(stage.caller, 10.0)

        with pytest.raises(Timeout):
            await call

        assert stage.loop.time() - stage.begun_at_s == pytest.approx(11.0)

    on_stage(check)


def test_an_answer_that_came_in_a_pause_is_heard_before_the_deadline_that_passed_meanwhile():
    async def check(stage: Stage) -> None:
        call = stage.begin(stage.caller, stage.call(timeout_s=2.0))
        await asyncio.sleep(ONE_WAY_S)
        stage.network.pause(stage.caller, 10.0)

        await call

        assert stage.loop.time() - stage.begun_at_s == pytest.approx(10.0 + ONE_WAY_S)

    on_stage(check)


def test_a_call_of_a_paused_host_times_out_and_one_with_more_time_is_answered_late():
    async def check(stage: Stage) -> None:
        stage.network.pause(stage.answerer, 5.0)

        with pytest.raises(Timeout):
            await stage.call("first", timeout_s=2.0)
        await stage.call("second", timeout_s=10.0)

        assert stage.seen == [(5.0, "first"), (5.0, "second")]

    on_stage(check)


def test_a_longer_pause_stays_and_one_that_is_longer_still_makes_it_longer():
    async def check(stage: Stage) -> None:
        stage.network.pause(stage.answerer, 5.0)
        stage.network.pause(stage.answerer, 1.0)
        await asyncio.sleep(2)
        stage.network.pause(stage.answerer, 7.0)

        await stage.call("x")

        assert stage.seen == [(9.0, "x")]
        assert stage.network.awake_s(stage.answerer.id) == pytest.approx(stage.loop.time() - 9.0)
        assert stage.network.awake_s(stage.caller.id) == stage.loop.time()

    on_stage(check)


def test_a_process_that_dies_in_a_pause_refuses_what_waited_and_its_next_life_does_not_stand_still():
    async def check(stage: Stage) -> None:
        stage.network.pause(stage.answerer, 60.0)
        call = asyncio.ensure_future(stage.call("lost"))
        await asyncio.sleep(1)

        stage.answerer.crash()
        with pytest.raises(PeerUnavailable):
            await call
        stage.answerer.restart()
        stage.answerer.mount("_dht.", {"_dht.note": lambda request, context: stage.see("found")})
        await stage.call()

        assert [what for _, what in stage.seen] == ["found"]
        assert stage.seen[0][0] < 2

    on_stage(check)


def test_pauses_are_in_the_digest():
    async def check(stage: Stage) -> None:
        before = stage.network.digest.hexdigest()

        stage.network.pause(stage.answerer, 60.0)

        assert stage.network.digest.hexdigest() != before

    on_stage(check)


@settings(max_examples=30)
@given(pauses=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=6))
def test_everything_happens_once_never_in_a_pause_and_at_the_first_moment_after_it(pauses: list[tuple[int, int]]):
    still = {second for at_s, duration_s in pauses for second in range(at_s, at_s + duration_s)}

    async def check(stage: Stage) -> None:
        async def at(second: float) -> None:
            await asyncio.sleep(second)
            stage.see(second)

        async def pause(at_s: int, duration_s: int) -> None:
            await asyncio.sleep(at_s)
            stage.network.pause(stage.answerer, duration_s)

        tasks = [asyncio.ensure_future(pause(*each)) for each in pauses]
        tasks += [stage.begin(stage.answerer, at(second + 0.5)) for second in range(TICKS)]
        await asyncio.gather(*tasks)
        awake_s = stage.network.awake_s(stage.answerer.id) - stage.begun_at_s

        expected = []
        for second in range(TICKS):
            awake = next(later for later in range(second, TICKS) if later not in still)
            expected.append((float(awake) if awake != second else second + 0.5, second + 0.5))
        assert stage.seen == sorted(expected)
        assert awake_s == pytest.approx(stage.loop.time() - stage.begun_at_s - len(still))

    on_stage(check)
