from __future__ import annotations

import asyncio
from typing import Any, cast

from simulations.virtual_loop import run
from synapse_p2p.protocol.counts import SessionCounts
from synapse_p2p.transport.outflow import Outflow


class SlowStream:
    """A stream of which `rate` bytes leave in a second of the loop's time."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._unsent_bytes = 0.0
        self._at = asyncio.get_running_loop().time()

    def write(self, data: bytes) -> None:
        self._unsent_bytes = self.unsent_bytes() + len(data)

    def stop(self) -> None:
        self.unsent_bytes()
        self._rate = 0

    def unsent_bytes(self) -> int:
        now = asyncio.get_running_loop().time()
        self._unsent_bytes = max(0.0, self._unsent_bytes - self._rate * (now - self._at))
        self._at = now
        return round(self._unsent_bytes)


def outflow_at(rate: float, stalled_at: list[float]) -> Outflow:
    loop = asyncio.get_running_loop()
    stream: Any = SlowStream(rate)
    return Outflow(stream, stall_s=10, on_stall=lambda: stalled_at.append(loop.time()))


def test_a_peer_that_reads_nothing_stalls_once():
    async def main() -> list[float]:
        stalled_at: list[float] = []
        outflow = outflow_at(0, stalled_at)
        outflow.write(b"x" * 1000)
        outflow.pause()
        await asyncio.sleep(100)
        return stalled_at

    assert run(main()) == [10]


def test_a_peer_that_reads_slowly_does_not_stall_while_it_reads():
    async def main() -> list[float]:
        stalled_at: list[float] = []
        outflow = outflow_at(10, stalled_at)
        outflow.write(b"x" * 1000)  # the last byte leaves after 100 s
        outflow.pause()
        await asyncio.sleep(1000)
        return stalled_at

    assert run(main()) == [110]


def test_one_who_stops_reading_early_in_a_period_has_no_second_one():
    async def main() -> list[float]:
        stalled_at: list[float] = []
        loop = asyncio.get_running_loop()
        stream: Any = SlowStream(10)
        outflow = Outflow(stream, stall_s=10, on_stall=lambda: stalled_at.append(loop.time()))
        outflow.write(b"x" * 1000)
        outflow.pause()
        await asyncio.sleep(1)
        stream.stop()
        await asyncio.sleep(100)
        return stalled_at

    assert run(main()) == [12.5]  # looked at in quarters: progress was seen last after 2.5 s


def test_what_is_written_in_the_meantime_is_no_progress():
    async def main() -> list[float]:
        stalled_at: list[float] = []
        outflow = outflow_at(0, stalled_at)
        outflow.write(b"x" * 1000)
        outflow.pause()
        await asyncio.sleep(5)
        outflow.write(b"x" * 1000)
        await asyncio.sleep(95)
        return stalled_at

    assert run(main()) == [10]


def test_a_queue_that_drained_stalls_no_more():
    async def main() -> list[float]:
        stalled_at: list[float] = []
        outflow = outflow_at(0, stalled_at)
        outflow.write(b"x" * 1000)
        outflow.pause()
        await asyncio.sleep(9)
        outflow.resume()
        await asyncio.sleep(100)
        return stalled_at

    assert run(main()) == []


async def test_everybody_who_waits_for_room_is_woken():
    outflow = outflow_at(0, [])
    outflow.pause()
    waiting = [asyncio.create_task(outflow.wait_for_room()) for _ in range(3)]
    await asyncio.sleep(0)
    was_waiting = not any(task.done() for task in waiting)
    outflow.resume()
    await asyncio.gather(*waiting)

    assert was_waiting


async def test_one_who_gives_up_waiting_leaves_the_others_waiting():
    outflow = outflow_at(0, [])
    outflow.pause()
    waiting = [asyncio.create_task(outflow.wait_for_room()) for _ in range(2)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.sleep(0)
    is_still_waiting = not waiting[1].done()
    outflow.resume()
    await waiting[1]

    assert is_still_waiting
    assert waiting[0].cancelled()


async def test_with_room_nobody_waits():
    outflow = outflow_at(0, [])

    await outflow.wait_for_room()

    assert not outflow.is_full


async def test_what_is_held_leaves_with_the_next_that_is_written():
    stream = Written()
    outflow = Outflow(cast(Any, stream), stall_s=10, on_stall=lambda: None)
    outflow.hold(b"the last of a handshake, ")
    outflow.hold(b"in two pieces, ")
    assert stream.written == []

    outflow.write(b"and a call")
    outflow.release()
    outflow.write(b"another")
    assert stream.written == [b"the last of a handshake, in two pieces, and a call", b"another"]


async def test_what_nothing_took_along_is_released_once_and_nothing_is_no_write():
    stream = Written()
    counts = SessionCounts()
    outflow = Outflow(cast(Any, stream), stall_s=10, on_stall=lambda: None, counts=counts)
    outflow.release()
    outflow.hold(b"")
    outflow.release()
    assert stream.written == []

    outflow.hold(b"held")
    outflow.release()
    outflow.release()
    assert (stream.written, counts.sent_bytes) == ([b"held"], 4)

    outflow.hold(b"too late")
    stream.is_closed = True
    outflow.release()
    assert stream.written == [b"held"]


class Written:
    """A stream that notes what is written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.is_closed = False

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def is_closing(self) -> bool:
        return self.is_closed
