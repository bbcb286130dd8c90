"""Getting into a swarm: all seeds at once, then a search for ourselves, and the far side of the key space.

Source: Kademlia section 2.3 (join); the exchange of random peers spreads the load that seeds would carry alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TypeAlias

from dht.config import DHTConfig
from dht.contact import Contact
from dht.keyspace import ID_BITS, KEY_SIZE_BYTES, Key, random_key_in_bucket
from dht.lookup import LookupMode
from dht.region import RegionEstimate
from dht.requester import UNREACHABLE, Requester
from dht.routing import RoutingTable
from synapse_p2p.address import PeerAddress
from synapse_p2p.background import TaskScope, wait_at_most
from synapse_p2p.exceptions import (
    HandshakeFailed,
    InvalidMessageError,
    RemoteError,
    Timeout,
)
from synapse_p2p.identity import NODE_ID_SIZE_BYTES, NodeID
from synapse_p2p.peers import Host
from synapse_p2p.protocol.code import Code

SeedAddress: TypeAlias = PeerAddress
"""An address to join through. With an id, whoever else answers there is not joined."""

EXCHANGE_COUNT = 20
LARGE_FACTOR = 10
"""From so many times k nodes on a network is large: in a smaller one a join asks nearly everybody anyway."""
PATIENCE_S = 4.0
"""How long the slow seeds hold up a join that another seed has answered."""
_IS_IT_THERE = "is it running, and is the way to it open?"


class SeedState(StrEnum):
    """How a seed took our call. `JOINED` is one that answered as a member of the swarm."""

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
    """How a join went. `contacts` is the size of the routing table after it.

    `remembered` is how many peers known from before let us in, where no seed did.
    """

    seeds: tuple[SeedReport, ...]
    contacts: int
    remembered: int = 0

    @property
    def joined(self) -> int:
        """How many seeds let us in."""
        return sum(seed.state is SeedState.JOINED for seed in self.seeds)

    @property
    def tried(self) -> int:
        """How many seeds there were, without ourselves."""
        return sum(seed.state is not SeedState.OURSELVES for seed in self.seeds)

    @property
    def is_in(self) -> bool:
        """Whether anybody let us in, or there was nobody to ask but ourselves: then we are the swarm."""
        return bool(self.joined or self.remembered or not self.tried)

    def __str__(self) -> str:
        lines = [f"joined {self.joined} of {self.tried} seeds, {self.contacts} contacts known"]
        if self.remembered:
            lines.append(f"  {self.remembered} peers known from before let us in")
        for seed in self.seeds:
            said = (seed.text or seed.state).removeprefix(f"{_without_id(seed.address)} ")
            lines.append(f"  {seed.address}: {said}")
        return "\n".join(lines)


class Bootstrap:
    """Joins one node to a swarm, as often as it is asked to."""

    def __init__(
        self, host: Host, table: RoutingTable, requester: Requester, config: DHTConfig, estimate: RegionEstimate
    ) -> None:
        self._host = host
        self._table = table
        self._requester = requester
        self._config = config
        self._estimate = estimate
        self._reports: dict[SeedAddress, SeedReport] = {}  # the latest of each seed that was ever asked
        self._measure_at = host.runtime.now() + config.measure_s
        self._remembered = 0  # who let us in the last time that no seed did

    async def join(self, seeds: tuple[SeedAddress, ...], remembered: Sequence[Contact] = ()) -> JoinReport:
        """Ask all seeds at once, then look for our own id and through the rest of the key space.

        Where no seed let us in, peers of before are asked the same. Cost: a lookup of about 20 requests for each of the
        log2(n) - 4 farthest k-buckets, where anybody let us in.
        """
        named: list[Contact] = []
        async with TaskScope("join") as scope:
            asked = [scope.spawn_awaited(self._ask_seed(seed, named)) for seed in seeds]
            deadline = self._host.runtime.now() + PATIENCE_S
            for task in asked:
                await wait_at_most(task, max(0.0, deadline - self._host.runtime.now()))
            if not self.report(seeds).joined:
                for task in asked:
                    await task
        if remembered and not self.report(seeds).joined:
            self._remembered = await self._ask_remembered(remembered, named)
        if named:
            await self._find_neighbours(named)
        return self.report(seeds)

    def report(self, seeds: tuple[SeedAddress, ...]) -> JoinReport:
        """What is known of these seeds by now."""
        unknown = SeedState.NO_ANSWER
        reports = (
            self._reports.get(seed) or SeedReport(seed.text, unknown, f"no answer yet; {_IS_IT_THERE}")
            for seed in seeds
        )
        return JoinReport(tuple(reports), len(self._table), self._remembered)

    async def refresh(self) -> None:
        """Look through the k-buckets that no lookup went through for `refresh_s`: one lookup for each that is far, and
        our own id for all others.

        Source: Kademlia section 2.3. Cost: about log2(n) - 3 strict lookups.
        """
        depth = self._depth_of_neighbours()
        if any(index >= depth for index in self._stale_buckets()):
            await self._look_through(self._host.identity.node_id, LookupMode.STRICT)
        await self._look_through_stale(LookupMode.STRICT)

    async def announce(self) -> None:
        """Look for our own id: those near it hear of us, and check where we are. Cost: one guarded lookup."""
        if len(self._table):
            await self._look_through(self._host.identity.node_id, LookupMode.GUARDED)

    async def measure(self) -> None:
        """Look whether the network has another size by now, and add a point to an estimate of too few, the first at
        once.

        Cost: nothing mostly, else a lookup, one in `measure_s`.
        """
        estimate, runtime = self._estimate, self._host.runtime
        self._requester.look_at_neighbours()
        if estimate.is_outdated(len(self._table)):
            estimate.forget()
        if estimate.is_sure or not len(self._table):
            return
        if estimate.size is None or runtime.now() >= self._measure_at:
            self._measure_at = runtime.now() + self._config.measure_s
            target = runtime.rng.getrandbits(ID_BITS).to_bytes(KEY_SIZE_BYTES, "big")
            await self._look_through(target, LookupMode.STRICT)

    async def _look_through(self, target: Key, mode: LookupMode, seeds: Iterable[Contact] = ()) -> None:
        """Look for our own id, or for a random key, and note what a whole lookup tells of the network's size."""
        outcome = await self._requester.lookup(target, mode, seeds=seeds)
        if outcome.complete and mode is not LookupMode.EARLY:
            self._estimate.note(target, outcome.closest)

    async def _find_neighbours(self, named: list[Contact]) -> None:
        # Those that seeds named at random are asked beside those that we know: no seed alone decides whom we meet.
        await self._look_through(self._host.identity.node_id, LookupMode.GUARDED, named)
        # The nearest k-buckets are full of whom that lookup met; only those that could hold more are searched. In a
        # large network to hear of some members is enough: half the requests, and no more hops after it.
        size = self._estimate.size
        is_large = size is not None and size > LARGE_FACTOR * self._config.lookup.k
        mode = LookupMode.EARLY if is_large else LookupMode.STRICT
        await self._look_through_stale(mode)

    async def _look_through_stale(self, mode: LookupMode) -> None:
        """Look for a random key in each stale k-bucket that a lookup of our own id, just made, did not see."""
        runtime = self._host.runtime
        for index in self._stale_buckets():
            self._table.mark_refreshed(index, runtime.now())
            if index < self._depth_of_neighbours():
                key = random_key_in_bucket(self._host.identity.node_id, index, runtime.rng)
                await self._look_through(key, mode)

    def _stale_buckets(self) -> list[int]:
        return self._table.stale_buckets(self._host.runtime.now(), self._config.refresh_s)

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

    async def _ask_seed(self, seed: SeedAddress, named: list[Contact]) -> None:
        """Note how the seed took it, and add to `named` whom it told us of."""
        self._reports[seed] = await self._enter_through(seed, named)

    async def _ask_remembered(self, remembered: Sequence[Contact], named: list[Contact]) -> int:
        """How many of them let us in. Of each the first address is asked, which is the one that was proved."""
        seeds = [replace(SeedAddress.parse(contact.addresses[0]), id=contact.id) for contact in remembered]
        async with TaskScope("join") as scope:
            asked = [scope.spawn_awaited(self._enter_through(seed, named)) for seed in seeds]
            reports = [await task for task in asked]
        return sum(report.state is SeedState.JOINED for report in reports)

    async def _enter_through(self, seed: SeedAddress, named: list[Contact]) -> SeedReport:
        try:
            peer = await self._requester.connect_seed(seed.address, seed.id)
            contact = Contact(peer.id, peer.addresses or (seed.address,))
            answer = await self._requester.exchange(contact, EXCHANGE_COUNT)
        except (*UNREACHABLE, RemoteError, InvalidMessageError) as error:
            return _failed(seed, error)
        if peer.addresses:
            self._requester.admit(contact)
        named += (contact, *answer.contacts)
        return SeedReport(seed.text, SeedState.JOINED, "joined", peer.id)


def _without_id(address: str) -> str:
    return address.rpartition("@")[2]


def _failed(seed: SeedAddress, error: Exception) -> SeedReport:
    match error:
        case HandshakeFailed(reason="self"):
            return SeedReport(seed.text, SeedState.OURSELVES, "this node itself, skipped")
        case Timeout() | HandshakeFailed(reason="timeout"):
            return SeedReport(seed.text, SeedState.NO_ANSWER, f"no answer; {_IS_IT_THERE}")
        case HandshakeFailed(refusal="network"):
            text = (
                "it belongs to another network; write its name in network=, and its key, if it has one, in network_key="
            )
            return SeedReport(seed.text, SeedState.REFUSED, text)
        case HandshakeFailed(reason="refused" | "crypto" | "version"):
            return SeedReport(seed.text, SeedState.REFUSED, str(error))
        case HandshakeFailed():
            return SeedReport(seed.text, SeedState.NOT_OURS, str(error))
        case RemoteError(code=Code.BUSY):
            return SeedReport(seed.text, SeedState.REFUSED, "it is busy")
        case RemoteError() | InvalidMessageError():
            # Somebody of our kind, such as a server without a swarm: it can name nobody.
            return SeedReport(seed.text, SeedState.NOT_OURS, "it answers, but not as a member of a swarm")
        case _:
            return SeedReport(seed.text, SeedState.UNREACHABLE, str(error))
