"""No job is done twice, whichever worker's message is faster. With --seeds 200 the first test finds that it may be."""

import asyncio

from jobs import Board, CarefulBoard, Worker
from synapse_p2p.testing import VirtualSwarm

JOBS = ["invoice", "letter", "parcel"]


async def work_through(swarm: VirtualSwarm, board: Board) -> list[str]:
    """The jobs that two workers have done, in alphabetical order."""
    ann, ben = Worker("Ann"), Worker("Ben")
    for agent in (board, ann, ben):
        await swarm.agent(agent)
    await asyncio.gather(ann.work(), ben.work())
    return sorted(ann.done + ben.done)


async def test_every_job_is_done_once(swarm: VirtualSwarm) -> None:
    assert await work_through(swarm, Board(JOBS)) == JOBS


async def test_every_job_is_done_once_by_the_careful(swarm: VirtualSwarm) -> None:
    assert await work_through(swarm, CarefulBoard(JOBS)) == JOBS
