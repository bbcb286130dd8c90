"""Who is in the team. None of them knows another by name or address: each asks for what somebody can do."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from checks import findings_of, run_checks
from dht import Swarm
from drafts import CHECKS, draft_of
from synapse_p2p import AgentNode, CallError

MAX_DRAFTS = 3
WANTED = {"to_roman.py": "a number as a Roman numeral", "from_roman.py": "a Roman numeral as a number"}
Files = dict[str, str]
Findings = dict[str, list[str]]


def architect(name: str) -> AgentNode:
    """Splits the job into files, has them written, and sends them back until nobody finds anything."""
    agent = AgentNode(name=name, role="architect", capabilities=["design"])

    @agent.task_handler
    async def design(task: str, context: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        swarm: Swarm = agent.swarm
        yield {"said": f"{task}: {' and '.join(WANTED)}"}
        files: Files = {}
        findings: Findings = {file: [] for file in WANTED}
        for number in range(1, MAX_DRAFTS + 1):
            files |= await written(swarm, findings)
            findings = await judged(swarm, files)
            if not findings:
                yield {"said": f"draft {number}: nothing to find"}
                yield {"files": files}
                return
            for file, found in findings.items():
                yield {"said": f"draft {number}: {file}: {'; '.join(found)}"}
        raise CallError("not_done", f"{MAX_DRAFTS} drafts, and there is something in {', '.join(findings)} still")

    return agent


async def written(swarm: Swarm, findings: Findings) -> Files:
    """Each of these files from some coder, all at once."""
    contexts = [{"file": file, "findings": found} for file, found in findings.items()]
    asks = [swarm.ask("coding/python", WANTED[context["file"]], context=context) for context in contexts]
    return {file: answer.result for file, answer in zip(findings, await asyncio.gather(*asks), strict=True)}


async def judged(swarm: Swarm, files: Files) -> Findings:
    """What the reviewer and the tester find, by file; one that nobody finds anything in is left out."""
    review, test = await asyncio.gather(
        swarm.ask("code-review", "Is it fit to be read?", context={"files": files}),
        swarm.ask("testing", "Does it work?", context={"files": files, "checks": CHECKS}),
    )
    found = {file: [*review.result.get(file, []), *test.result.get(file, [])] for file in files}
    return {file: each for file, each in found.items() if each}


def coder(name: str) -> AgentNode:
    """Writes one file at a time. This one knows two by heart; see llm_agent for who could be in its place."""
    agent = AgentNode(name=name, role="coder", capabilities=["coding/python"])

    @agent.task_handler
    async def code(task: str, context: dict[str, Any]) -> str:
        return draft_of(context["file"], context["findings"])

    return agent


def reviewer(name: str) -> AgentNode:
    """Reads, and runs nothing."""
    agent = AgentNode(name=name, role="reviewer", capabilities=["code-review"])

    @agent.task_handler
    async def review(task: str, context: dict[str, Files]) -> Findings:
        return {file: findings_of(text) for file, text in context["files"].items()}

    return agent


def tester(name: str) -> AgentNode:
    """Runs the files in a process of their own, in a folder of their own."""
    agent = AgentNode(name=name, role="tester", capabilities=["testing"], max_tasks=1)

    @agent.task_handler
    def test(task: str, context: dict[str, Any]) -> Findings:
        return run_checks(context["files"], context["checks"])  # a plain function: it runs in a thread, and may wait

    return agent
