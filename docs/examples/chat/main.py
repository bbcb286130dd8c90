"""Three people in a chat without a server: who is in a room is whoever offers it. Ends by itself."""

import asyncio

from member import Member
from synapse_p2p import RemoteError


async def main() -> None:
    ann, bob, cleo = (Member(name, room="lounge") for name in ("Ann", "Bob", "Cleo"))
    seeds = await ann.enter()
    await bob.enter(seeds)
    await bob.say("anybody here?")
    await ann.say("me")
    await cleo.enter(seeds)
    await cleo.say("hello, both")

    impostor = Member("Ann", room="lounge")
    try:
        await impostor.enter(seeds)
    except RemoteError as error:
        print("kept out:", error)

    await ann.leave()  # she was the seed of all: nobody needs her any more
    await bob.say("where did she go?")

    for member in (ann, bob, cleo):
        print(f"\n{member.name} saw")
        print(*(f"  {line}" for line in member.screen), sep="\n")
    await bob.leave()
    await cleo.leave()


asyncio.run(main())
