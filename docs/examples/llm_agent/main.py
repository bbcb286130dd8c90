"""An assistant with a model, and two agents that are its tools; start this, and it ends by itself.

Offline, with a stand-in that is no model. With a model of yours:

    MODEL_URL=http://127.0.0.1:11434/v1 MODEL=llama3.2 python main.py
"""

import asyncio
import os
from contextlib import AsyncExitStack

from assistant import assistant
from dht import Swarm
from model import HttpModel, Model, StandIn
from tools import converter, surveyor

QUESTIONS = [
    "How many degrees Fahrenheit are 37 degrees Celsius?",
    "What is the area of a room of 4.5 by 6 meters?",
    "Who is there?",
]


def chosen_model() -> Model:
    """The one that the environment names, else the stand-in."""
    if url := os.environ.get("MODEL_URL"):
        return HttpModel(url, os.environ.get("MODEL", ""), key=os.environ.get("MODEL_KEY", ""))
    return StandIn()


async def main() -> None:
    async with AsyncExitStack() as stack:
        you = await stack.enter_async_context(Swarm(listen="127.0.0.1:0"))
        for agent in (assistant("Lin", chosen_model()), converter(), surveyor()):
            await stack.enter_async_context(Swarm(agent, bootstrap=you.status().listening))

        for question in QUESTIONS:
            print(question)
            async with you.stream_ask("assistant", question) as items:
                async for item in items:
                    print(" ", item)


asyncio.run(main())
