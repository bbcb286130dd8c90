"""Ask a question, watch how the answer comes about, and read it; start this, and it ends by itself."""

import asyncio
from contextlib import AsyncExitStack

from agents import closed_source, researcher, source
from dht import Swarm
from library import ARCHIVE, FIELD_NOTES, HANDBOOK


async def main() -> None:
    async with AsyncExitStack() as stack:
        you = await stack.enter_async_context(Swarm(listen="127.0.0.1:0"))
        agents = [source("handbook", HANDBOOK), source("field notes", FIELD_NOTES), source("archive", ARCHIVE)]
        for agent in (*agents, closed_source("museum"), researcher("Rosa")):
            await stack.enter_async_context(Swarm(agent, bootstrap=you.status().listening))

        async with you.stream_ask("research", "How do bees tell each other the way to food?") as items:
            async for item in items:
                if "said" in item:
                    print(item["said"])
        report = items.answer.result
        print()
        for sentence in report["summary"]:
            print(f"- {sentence['text']} [{sentence['source']}]")
        print("not read:", *report["not_read"])


asyncio.run(main())
