"""The same calls from a program without a single async function."""

from concurrent.futures import ThreadPoolExecutor

from synapse_p2p import RemoteError
from synapse_p2p.blocking import Client

with Client(port=9998, timeout=5) as client:
    print("one call:", client.call("add", 2, 3))

    # Threads share a client: each of its calls has a connection of its own.
    with ThreadPoolExecutor(5) as pool:
        print("many at once:", list(pool.map(lambda n: client.call("add", n, n), range(5))))

    print("the budget:", client.call("spend", 60), client.call("spend", 40))
    try:
        client.call("spend", 1)
    except RemoteError as error:
        print("refused:", error)
