"""An architect, two coders, a reviewer and a tester make a small package; start this, and it ends by itself."""

import asyncio
import secrets
from contextlib import AsyncExitStack

from dht import Swarm
from team import architect, coder, reviewer, tester


async def main() -> None:
    # The tester runs what it is given. Without the key nobody else gets in, so nobody else gives it anything.
    network_key = secrets.token_bytes(32)
    async with AsyncExitStack() as stack:
        you = await stack.enter_async_context(Swarm(listen="127.0.0.1:0", network_key=network_key))
        for agent in (architect("Ada"), coder("Carl"), coder("Cleo"), reviewer("Rita"), tester("Theo")):
            await stack.enter_async_context(Swarm(agent, bootstrap=you.status().listening, network_key=network_key))

        async with you.stream_ask("design", "Roman numerals, there and back") as progress:
            async for item in progress:
                if "said" in item:
                    print(item["said"])
        files = progress.answer.result["files"]

    for name in sorted(files):
        print(f"{name}: {len(files[name].splitlines())} lines")


asyncio.run(main())
