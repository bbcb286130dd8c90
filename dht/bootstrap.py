"""Getting into a swarm: all seeds at once, then a search for ourselves, and the far side of the key space.

Source: Kademlia section 2.3 (join); the exchange of random peers spreads the load that seeds would carry alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from dht.config import DHTConfig
from dht.contact import Contact
from dht.keyspace import random_key_in_bucket
from dht.lookup import LookupMode
from dht.requester import UNREACHABLE, Requester
from dht.routing import RoutingTable
from synapse_p2p.background import TaskScope
from synapse_p2p.exceptions import (
    ConfigError,
    HandshakeFailed,
    InvalidMessageError,
    PeerUnavailable,
    RemoteError,
    Timeout,
)
from synapse_p2p.identity import NODE_ID_SIZE_BYTES, NodeID
from synapse_p2p.peers import Host
from synapse_p2p.transport.base import parse_address

EXCHANGE_COUNT = 20


class SeedState(StrEnum):
    """How a seed took our call."""

    JOINED = "joined"
    OURSELVES = "ourselves"
    UNREACHABLE = "unreachable"
    NO_ANSWER = "no answer"
    NOT_OURS = "not ours"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class SeedReport:
    """One seed: its address as given, what happened, and a sentence for people."""

    address: str
    state: SeedState
    text: str = ""
    node_id: NodeID | None = None


@dataclass(frozen=True, slots=True)
class JoinReport:
    """How a join went. `contacts` is the size of the routing table after it."""

    seeds: tuple[SeedReport, ...]
    contacts: int

    @property
    def joined(self) -> int:
        """How many seeds let us in."""
        return sum(seed.state is SeedState.JOINED for seed in self.seeds)

    @property
    def tried(self) -> int:
        """How many seeds there were, without ourselves."""
        return sum(seed.state is not SeedState.OURSELVES for seed in self.seeds)

    def __str__(self) -> str:
        lines = [f"joined {self.joined} of {self.tried} seeds, {self.contacts} contacts known"]
        lines += [f"  {seed.address}: {seed.text or seed.state}" for seed in self.seeds]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class SeedAddress:
    """`host:port`, or `id@host:port` where the id is checked."""

    text: str
    host: str
    port: int
    expected_id: NodeID | None

    @classmethod
    def parse(cls, text: str) -> SeedAddress:
        """Raises ConfigError that shows the forms."""
        id_text, at, address = text.rpartition("@")
        host, port = parse_address(address)
        if port == 0:
            raise ConfigError(f"seed {text!r} has port 0; write the port that the seed prints when it starts")
        expected_id = None
        if at:
            try:
                expected_id = bytes.fromhex(id_text)
            except ValueError:
                expected_id = b""
            if len(expected_id) != NODE_ID_SIZE_BYTES:
                raise ConfigError(f"seed {text!r}: before the @ stands a node's id, 64 hexadecimal digits")
        return cls(text, host, port, expected_id)

    @property
    def address(self) -> str:
        """What is dialed."""
        return self.text.rpartition("@")[2]


class Bootstrap:
    """Joins one node to a swarm, as often as it is asked to."""

    def __init__(self, host: Host, table: RoutingTable, requester: Requester, config: DHTConfig) -> None:
        self._host = host
        self._table = table
        self._requester = requester
        self._config = config

    async def join(self, seeds: tuple[SeedAddress, ...]) -> JoinReport:
        """Ask all seeds at once, then look for our own id and through the rest of the key space.

        Cost: a lookup of about 20 requests for each of the log2(n) - 4 farthest k-buckets.
        """
        async with TaskScope("join") as scope:
            asked = [scope.spawn_awaited(self._ask_seed(seed)) for seed in seeds]
            answers = [await answer for answer in asked]
        if len(self._table):
            await self._find_neighbours([contact for _, named in answers for contact in named])
        return JoinReport(tuple(report for report, _ in answers), len(self._table))

    async def refresh(self, index: int) -> None:
        """Look through one k-bucket's part of the key space."""
        runtime = self._host.runtime
        self._table.mark_refreshed(index, runtime.now())
        target = random_key_in_bucket(self._host.identity.node_id, index, runtime.rng)
        await self._requester.lookup(target, LookupMode.STRICT)

    async def _find_neighbours(self, named: list[Contact]) -> None:
        # Those that seeds named at random are asked beside those that we know: no seed alone decides whom we meet.
        await self._requester.lookup(self._host.identity.node_id, LookupMode.STRICT, seeds=named)
        # The nearest k-buckets are full of whom that lookup met; only those that could hold more are searched.
        now = self._host.runtime.now()
        for index in self._table.stale_buckets(now, self._config.refresh_s):
            if index < self._depth_of_neighbours():
                await self.refresh(index)
            else:
                self._table.mark_refreshed(index, now)

    def _depth_of_neighbours(self) -> int:
        """The first k-bucket whose whole part of the key space the lookup of our own id saw: our k nearest are in
        it.
        """
        own_id = self._host.identity.node_id
        nearest = self._table.closest(own_id, self._config.lookup.k)
        if len(nearest) < self._config.lookup.k:
            return 0
        farthest_point = nearest[-1].point ^ int.from_bytes(own_id, "big")
        return 8 * NODE_ID_SIZE_BYTES - farthest_point.bit_length()

    async def _ask_seed(self, seed: SeedAddress) -> tuple[SeedReport, tuple[Contact, ...]]:
        try:
            peer = await self._requester.connect_seed(seed.address, seed.expected_id)
        except (HandshakeFailed, PeerUnavailable, Timeout) as error:
            return _failed(seed, error), ()
        report = SeedReport(seed.text, SeedState.JOINED, "joined", peer.id)
        try:
            answer = await self._requester.exchange(Contact(peer.id, peer.addresses or (seed.address,)), EXCHANGE_COUNT)
        except (*UNREACHABLE, RemoteError, InvalidMessageError):
            return report, ()  # a seed that only lets us in is still a seed
        return report, answer.contacts


def _failed(seed: SeedAddress, error: Exception) -> SeedReport:
    match error:
        case HandshakeFailed(reason="self"):
            return SeedReport(seed.text, SeedState.OURSELVES, "this node itself, skipped")
        case HandshakeFailed(reason="refused" | "crypto" | "version"):
            return SeedReport(seed.text, SeedState.REFUSED, str(error))
        case HandshakeFailed():
            return SeedReport(seed.text, SeedState.NOT_OURS, str(error))
        case Timeout():
            return SeedReport(seed.text, SeedState.NO_ANSWER, "no answer; is it running, and is the way to it open?")
        case _:
            return SeedReport(seed.text, SeedState.UNREACHABLE, str(error))
