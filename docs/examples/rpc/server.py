"""Functions that others can call, and one that runs by itself."""

from collections import Counter

from synapse_p2p import CallContext, CallError, Server

app = Server(port=9998)
account = {"budget": 100}


@app.endpoint()
async def add(a: int, b: int) -> int:
    """The sum of two numbers."""
    return a + b


@app.endpoint("text.count", description="How often each word occurs.")
def count_words(text: str) -> dict[str, int]:
    # A plain function may take its time: it runs in a thread, and the server goes on.
    return dict(Counter(text.lower().split()))


@app.endpoint()
async def spend(amount: int) -> int:
    """Take from the budget, and tell what is left."""
    if amount > account["budget"]:
        # A refusal in words of our own. The text of any other exception would stay here, in the log.
        raise CallError("out_of_budget", f"{account['budget']} is left")
    account["budget"] -= amount
    return account["budget"]


@app.endpoint(publish=False)
async def whoami(context: CallContext) -> str:
    """Private: it answers those who know the name, and nobody is told it."""
    return "a caller from " + context.address.rpartition(":")[0]


@app.background(30, jitter=5)
async def heartbeat() -> None:
    print("alive, with a budget of", account["budget"])


app.run()
