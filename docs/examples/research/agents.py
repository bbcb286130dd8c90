"""Sources that stream what they have, and a researcher that reads all of them at once."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

from dht import FoundAgent, Swarm
from ranking import relevance, summary_of
from synapse_p2p import AgentNode, CallError, SynapseError

MAX_NOTES = 100
"""Taken of one source: how much it sends is its choice, and how much is kept is ours."""
SOURCE_TIMEOUT_S = 20.0


def source(name: str, sentences: Sequence[str]) -> AgentNode:
    """Has sentences, and sends those that have to do with the question, one by one."""
    agent = AgentNode(name=name, role="source", capabilities=["library/biology"])

    @agent.task_handler
    async def search(task: str, context: dict[str, Any]) -> AsyncIterator[str]:
        for sentence in sentences:
            if relevance(sentence, task):
                yield sentence

    return agent


def closed_source(name: str) -> AgentNode:
    """Every swarm has one."""
    agent = AgentNode(name=name, role="source", capabilities=["library/biology"])

    @agent.task_handler
    async def search(task: str, context: dict[str, Any]) -> None:
        raise CallError("closed", "open again in spring")

    return agent


def researcher(name: str) -> AgentNode:
    """Finds who has a library, reads them all, and says how far it is; the last item is the report."""
    agent = AgentNode(name=name, role="researcher", capabilities=["research"])

    @agent.task_handler
    async def research(task: str, context: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        swarm: Swarm = agent.swarm
        sources = [found async for found in swarm.stream_find("library")]  # and all below it
        yield {"said": f"{len(sources)} sources"}
        notes: list[tuple[str, str]] = []
        not_read: list[str] = []
        reading = [asyncio.ensure_future(notes_of(swarm, each, task)) for each in sources]
        try:
            for number, done in enumerate(asyncio.as_completed(reading), start=1):
                name, sentences, why_not = await done
                notes += [(sentence, name) for sentence in sentences]
                not_read += [f"{name} ({why_not})"] if why_not else []
                yield {"said": f"read {number} of {len(sources)}"}
        finally:
            for task_of_source in reading:
                task_of_source.cancel()  # whoever asked may have left: then nobody is to read on
        yield {"said": f"{len(notes)} notes"}
        summary = [{"text": text, "source": name} for text, name in summary_of(notes, task)]
        yield {"summary": summary, "not_read": sorted(not_read)}

    return agent


async def notes_of(swarm: Swarm, found: FoundAgent, question: str) -> tuple[str, list[str], str]:
    """The name of a source, what it sends, and why that is not all; one that fails is no reason to stop."""
    notes: list[str] = []
    try:
        async with aclosing(swarm.peer(found.id).stream_ask(question, timeout=SOURCE_TIMEOUT_S)) as sent:
            async for note in sent:
                if isinstance(note, str):
                    notes.append(note)
                if len(notes) == MAX_NOTES:
                    break
    except SynapseError as error:
        return found.name, notes, str(error)
    return found.name, notes, ""
