"""A user's program in which each marked line is a mistake that a checker has to find."""

from synapse_p2p import Client, Node, Server, Swarn  # mistake

print(Node, Swarn)
app = Server(prot=0)  # mistake
remote = Server(plain="everywhere")  # mistake


@app.endpoint()
async def add(a: int, b: int) -> int:
    return a + b


async def main() -> None:
    await add("1", 2)  # mistake
    Client(timeout="soon")  # mistake
    app.background("often")  # mistake
