from __future__ import annotations

import asyncio
import random

from hypothesis import given
from hypothesis import strategies as st

from dht.maintenance import JITTER, Job, Maintenance, Timetable
from simulations.virtual_loop import run
from synapse_p2p.background import TaskScope
from synapse_p2p.runtime import Runtime


async def nothing() -> None:
    pass


@given(st.lists(st.floats(0.1, 1000), min_size=1, max_size=20), st.integers())
def test_every_job_is_due_about_one_period_from_now(periods: list[float], seed: int):
    timetable = Timetable(random.Random(seed))
    jobs = [Job(f"job {number}", period, nothing) for number, period in enumerate(periods)]

    for job in jobs:
        timetable.plan(job, now=100.0)

    assert timetable.take_due(100.0 + min(periods) * (1 - JITTER) - 0.001) == []
    due = timetable.take_due(100.0 + max(periods) * (1 + JITTER) + 0.001)
    assert sorted(job.name for job in due if isinstance(job, Job)) == sorted(job.name for job in jobs)
    assert timetable.next_time() is None


def make_runtime() -> Runtime:
    rng = random.Random(1)
    return Runtime(
        now=lambda: asyncio.get_running_loop().time(), unix_now=lambda: 0.0, rng=rng, token_bytes=rng.randbytes
    )


def test_a_job_runs_again_and_again_and_never_overlaps_itself():
    async def main() -> list[str]:
        seen: list[str] = []

        async def slow() -> None:
            seen.append("begin")
            await asyncio.sleep(25)
            seen.append("end")

        async with TaskScope() as scope:
            maintenance = Maintenance(make_runtime(), scope)
            maintenance.every("slow", 10, slow)
            await asyncio.sleep(200)
            maintenance.stop()
        return seen

    seen = run(main())

    assert seen[:6] == ["begin", "end"] * 3
    assert 5 <= seen.count("begin") <= 6


def test_a_job_that_fails_is_logged_and_runs_again(caplog):
    async def main() -> int:
        count = 0

        async def broken() -> None:
            nonlocal count
            count += 1
            raise ZeroDivisionError

        async with TaskScope() as scope:
            maintenance = Maintenance(make_runtime(), scope)
            maintenance.every("broken", 10, broken)
            await asyncio.sleep(55)
            maintenance.stop()
        return count

    count = run(main())

    assert count >= 4
    assert len([record for record in caplog.records if "broken" in record.message]) == count


def test_a_stopped_maintenance_starts_nothing():
    async def main() -> int:
        count = 0

        async def job() -> None:
            nonlocal count
            count += 1

        async with TaskScope() as scope:
            maintenance = Maintenance(make_runtime(), scope)
            maintenance.every("job", 10, job)
            maintenance.stop()
            await asyncio.sleep(100)
        return count

    assert run(main()) == 0


def test_a_beat_comes_to_the_moment_whatever_the_jobs_do():
    async def main() -> list[float]:
        loop, beats = asyncio.get_running_loop(), []

        async def slow() -> None:
            await asyncio.sleep(3)

        async with TaskScope() as scope:
            maintenance = Maintenance(make_runtime(), scope)
            maintenance.every("slow", 0.7, slow)
            maintenance.beat(1.0, lambda: beats.append(loop.time()))
            await asyncio.sleep(5.5)
            maintenance.stop()
            await asyncio.sleep(5)
        return beats

    assert run(main()) == [1.0, 2.0, 3.0, 4.0, 5.0]
