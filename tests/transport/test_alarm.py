import asyncio
import contextvars
from unittest.mock import patch

import pytest

from simulations.virtual_loop import run
from synapse_p2p.transport.alarm import Alarm


class Rung:
    """An alarm in virtual time, and when it rang."""

    def __init__(self) -> None:
        self._now = asyncio.get_running_loop().time
        self._started_at = self._now()
        self.alarm = Alarm(self._now)
        self.times: list[float] = []

    def ring(self) -> None:
        self.times.append(pytest.approx(self._now() - self._started_at))

    def at(self, passed_s: float) -> float:
        return self._started_at + passed_s


def test_an_alarm_rings_once_and_can_be_set_again():
    async def main() -> list[float]:
        rung = Rung()
        rung.alarm.set(2.0, rung.ring)
        await asyncio.sleep(5.0)
        rung.alarm.set(1.0, rung.ring)
        await asyncio.sleep(5.0)
        return rung.times

    assert run(main()) == [2.0, 6.0]


def test_setting_an_alarm_takes_the_place_of_what_was_set():
    async def main() -> list[float]:
        rung = Rung()
        rung.alarm.set(1.0, rung.ring)
        rung.alarm.set(3.0, rung.ring)
        await asyncio.sleep(5.0)
        return rung.times

    assert run(main()) == [3.0]


@pytest.mark.parametrize(
    ("deadlines", "rings_at"), [([3.0, 4.0], [3.0]), ([3.0, 2.0], [2.0]), ([3.0, 3.0], [3.0]), ([-1.0], [0.0])]
)
def test_an_alarm_rings_no_later_than_the_earliest_deadline(deadlines: list[float], rings_at: list[float]):
    async def main() -> list[float]:
        rung = Rung()
        for deadline in deadlines:
            rung.alarm.set_no_later(rung.at(deadline), rung.ring)
        await asyncio.sleep(5.0)
        return rung.times

    assert run(main()) == rings_at


def test_who_is_rung_may_set_the_alarm_anew():
    async def main() -> list[float]:
        rung = Rung()

        def ring_and_set() -> None:
            rung.ring()
            rung.alarm.set_no_later(rung.at(4.0), rung.ring)

        rung.alarm.set_no_later(rung.at(1.0), ring_and_set)
        await asyncio.sleep(5.0)
        return rung.times

    assert run(main()) == [1.0, 4.0]


def test_an_alarm_that_is_put_off_needs_no_other_timer():
    async def main() -> tuple[list[float], int]:
        rung = Rung()
        loop = asyncio.get_running_loop()
        with patch.object(loop, "call_later", wraps=loop.call_later) as begun:
            for delay_s in (1.0, 2.0, 3.0):
                rung.alarm.set(delay_s, rung.ring)
        await asyncio.sleep(5.0)
        return rung.times, begun.call_count

    assert run(main()) == ([3.0], 1)


def test_an_alarm_rings_in_the_context_in_which_it_was_made():
    call = contextvars.ContextVar("call", default="none")

    async def main() -> str:
        rung = Rung()
        heard: list[str] = []
        call.set("of another")
        rung.alarm.set(1.0, lambda: heard.append(call.get()))
        await asyncio.sleep(5.0)
        return heard[0]

    assert run(main()) == "none"


def test_a_cancelled_alarm_does_not_ring():
    async def main() -> list[float]:
        rung = Rung()
        rung.alarm.set(1.0, rung.ring)
        rung.alarm.cancel()
        rung.alarm.cancel()
        await asyncio.sleep(5.0)
        return rung.times

    assert run(main()) == []
