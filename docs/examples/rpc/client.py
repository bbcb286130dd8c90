"""Calls from an async program."""

import asyncio

from synapse_p2p import Client, PeerUnavailable, RemoteError, Timeout


async def main() -> None:
    client = Client(port=9998, timeout=5)

    print("what is there:")
    for method in await client.call("_synapse.methods"):
        print(f"  {method['name']}: {method['description']}")

    print("by place and by name:", await client.call("add", 2, 3), await client.call("add", a=2, b=3))
    print("many at once:", await asyncio.gather(*(client.call("add", n, n) for n in range(5))))
    print("a plain function:", await client.call("text.count", "to be or not to be"))
    print("a private one:", await client.call("whoami"))

    try:
        await client.call("spend", 1000)
    except RemoteError as error:
        print("refused:", error)
    try:
        await client.call("add", 2)
    except RemoteError as error:
        print("a wrong call:", error.code)
    try:
        await Client(port=1).with_options(timeout_s=2).call("add", 2, 3)
    except (PeerUnavailable, Timeout) as error:
        print("nobody there:", type(error).__name__)


asyncio.run(main())
