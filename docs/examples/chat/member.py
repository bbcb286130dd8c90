"""Somebody in a chat room. The room is a capability, so its members are found like any agents."""

import asyncio
import re
import secrets
from collections import deque
from collections.abc import Sequence

from dht import Swarm
from synapse_p2p import AgentNode, CallContext, CallError, Identity, NodeID, RemoteError, SynapseError

MAX_LINES = 1000  # on a screen, the newest
MAX_MEMBERS = 200  # whom one member knows by name
MAX_CHARS = 500  # in one message
_NAME = re.compile(r"\w[\w -]{0,31}")


class Member(AgentNode):
    """One member of one room. `screen` has the lines that it sees.

    A name belongs to the key that came with it first. Who speaks is never read from a message: the session proves the
    key, and the key has a name.
    """

    def __init__(self, name: str, *, room: str) -> None:
        self.room = f"chat/{room}"
        identity = Identity.from_seed(secrets.token_bytes(32))  # somebody new each time, as in most chats
        super().__init__(name=name, role="member", capabilities=[self.room], identity=identity)
        self.screen: deque[str] = deque(maxlen=MAX_LINES)
        self.names: dict[NodeID, str] = {}
        self._place: Swarm | None = None
        for function in (self.on_enter, self.on_message, self.on_leave):
            self.endpoint()(function)

    # What this one does

    async def enter(self, seeds: Sequence[str] = ()) -> tuple[str, ...]:
        """Join the room; the addresses through which others can. Raises RemoteError where the name is taken."""
        place = self._place = Swarm(self, bootstrap=seeds, listen="127.0.0.1:0")
        await place.start(wait_joined=bool(seeds))
        try:
            for found in await place.find(self.room):
                self.names[found.id] = await found.call("on_enter", self.name)
        except RemoteError:
            await place.stop()
            raise
        return place.status().listening

    async def say(self, text: str) -> None:
        """Tell everybody in the room, and see it too."""
        self.screen.append(f"{self.name}: {text}")
        await self._tell_all("on_message", text)

    async def leave(self) -> None:
        """Say goodbye, and be found no more."""
        await self._tell_all("on_leave")
        if self._place is not None:
            await self._place.stop()

    async def _tell_all(self, endpoint: str, *args: str) -> None:
        members = await self.swarm.find(self.room)
        told = await asyncio.gather(*(found.call(endpoint, *args) for found in members), return_exceptions=True)
        for found, outcome in zip(members, told, strict=True):
            if isinstance(outcome, SynapseError):
                self.screen.append(f"({found.name} did not hear that)")
            elif isinstance(outcome, BaseException):
                raise outcome

    # What others do

    async def on_enter(self, name: str, caller: CallContext) -> str:
        """Somebody comes in; our name for theirs."""
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise CallError("no_name", "a name is up to 32 letters, digits and blanks")
        if len(self.names) >= MAX_MEMBERS:
            raise CallError("full", "there is no room in the room")
        taken_by = {self.name: self.identity.node_id, **{known: who for who, known in self.names.items()}}
        if taken_by.get(name, caller.peer) != caller.peer:
            raise CallError("name_taken", f"{name} is in the room already")
        self.names[_peer_of(caller)] = name
        self.screen.append(f"{name} came in")
        return self.name

    async def on_message(self, text: str, caller: CallContext) -> None:
        """Somebody says something."""
        shown = "".join(character if character.isprintable() else " " for character in str(text)[:MAX_CHARS])
        self.screen.append(f"{self._name_of(caller)}: {shown}")

    async def on_leave(self, caller: CallContext) -> None:
        """Somebody goes."""
        self.screen.append(f"{self._name_of(caller)} left")
        del self.names[_peer_of(caller)]

    def _name_of(self, caller: CallContext) -> str:
        name = self.names.get(_peer_of(caller))
        if name is None:
            raise CallError("not_here", "come in first, with on_enter(name)")
        return name


def _peer_of(caller: CallContext) -> NodeID:
    if caller.peer is None:
        raise CallError("nobody", "a plain caller proves no key, and has no name")
    return caller.peer
