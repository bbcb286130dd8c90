"""A board that hands out jobs, and workers that ask it for one after another. One kind of board has a race."""

import asyncio
from collections.abc import Sequence

from synapse_p2p import AgentNode

WRITE_S = 0.002  # how long the board's database takes


class Board(AgentNode):
    """Gives each job to whoever asks first. That is the idea."""

    def __init__(self, jobs: Sequence[str]) -> None:
        super().__init__(name="Bo", role="board", description="Hands out jobs.", capabilities=["jobs"])
        self.jobs = jobs
        self.worker_of: dict[str, str] = {}
        self.task_handler(self.take)

    async def take(self, task: str, context: dict[str, str]) -> str | None:
        """The next job for a worker; None when all are taken."""
        job = self.next_job()
        if job is not None:
            await self.write_down(job, context["worker"])  # and meanwhile another worker asks ...
            self.worker_of[job] = context["worker"]
        return job

    def next_job(self) -> str | None:
        """A job that nobody has."""
        return next((job for job in self.jobs if job not in self.worker_of), None)

    async def write_down(self, job: str, worker: str) -> None:
        """In a database, so that no job is forgotten."""
        await asyncio.sleep(WRITE_S)


class CarefulBoard(Board):
    """The same without the race: between the look and the note of it nobody else gets a turn."""

    async def take(self, task: str, context: dict[str, str]) -> str | None:
        job = self.next_job()
        if job is not None:
            self.worker_of[job] = context["worker"]
            await self.write_down(job, context["worker"])
        return job


class Worker(AgentNode):
    """Does jobs until there are none left."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, role="worker", description="Does what the board has.", capabilities=["work"])
        self.done: list[str] = []

    async def work(self) -> None:
        """Ask whoever has jobs for one after another."""
        while True:
            answer = await self.swarm.ask("jobs", "a job, please", context={"worker": self.name})
            if answer.result is None:
                return
            self.done.append(answer.result)
