"""Hosts that do not play by the rules of the overlay, as hosts of a virtual network.

A `Conduct` says what such a host answers; it is a function of the request, of what the scenario gave it, and of a
`random.Random`, and does nothing. `settle` puts one on a host. A flooder asks instead of answering. What they send are
messages of the real shape: what has none is refused by the wire, and is tested there.

    Silent      takes sessions and never answers
    Liar        names contacts that do not exist, or are elsewhere; gives garbage for values; says "stored" and drops
    Colluding   knows the colluders alone: names those nearest to the target, has no value, says "stored" and drops.
                With ids that were ground near a key (`IdentityMill`) it is the Sybil attack on that key
    Poisoner    names the addresses it was given, in peer exchange and in every other answer
    Flooder     asks at full speed: searches, stores of records good and bad, peer exchange
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

from dht.contact import Contact
from dht.keyspace import ID_BITS, KEY_SIZE_BYTES, Key
from dht.messages import (
    MAX_EXCHANGE_COUNT,
    Exchange,
    ExchangeAnswer,
    FindNode,
    FindNodeAnswer,
    FindValue,
    FindValueAnswer,
    PingAnswer,
    Renew,
    RenewAnswer,
    StoreAnswer,
)
from simulations.connection import WITHHELD
from simulations.network import VirtualHost
from simulations.oracle import nearest_points
from synapse_p2p.background import TaskScope
from synapse_p2p.context import CallContext
from synapse_p2p.exceptions import SynapseError
from synapse_p2p.identity import SEED_SIZE_BYTES, Identity

HOARDED_AT_ONCE = 64
"""Stores of a flooder that hoards, between two pauses."""
NAMED = 20
"""Contacts in an answer, as an honest node with the usual k gives."""
GARBAGE_BYTES = 200
LYING_BITS = 24
"""An invented id shares so many bits with the target: nearer than anybody in a network of some millions."""


class Conduct(Protocol):
    """What a hostile host answers to `_dht.` requests: whom it names near a key, and what it says it holds there."""

    def near(self, target: Key) -> Sequence[Contact]:
        """Whom it names to one who searches."""
        ...

    def sample(self, count: int) -> Sequence[Contact]:
        """Whom it names in peer exchange."""
        ...

    def values(self, key: Key) -> Sequence[bytes]:
        """The records that it gives out for this key."""
        ...


class Silent:
    """Takes sessions and never answers. It has no answers, so `settle` asks it for none."""

    def near(self, target: Key) -> Sequence[Contact]:
        return ()

    def sample(self, count: int) -> Sequence[Contact]:
        return ()

    def values(self, key: Key) -> Sequence[bytes]:
        return ()


class Colluding:
    """One of a ring that knows itself alone and denies every value."""

    def __init__(self, ring: Ring, rng: random.Random) -> None:
        self._ring = ring
        self._rng = rng

    def near(self, target: Key) -> Sequence[Contact]:
        return self._ring.nearest(target, NAMED)

    def sample(self, count: int) -> Sequence[Contact]:
        return self._ring.sample(count, self._rng)

    def values(self, key: Key) -> Sequence[bytes]:
        return ()


class Liar:
    """Half of whom it names does not exist and is very near; the other half are honest nodes at others' addresses."""

    def __init__(self, honest: Sequence[Contact], nowhere: Callable[[], str], rng: random.Random) -> None:
        """`nowhere` gives addresses at which nobody lives."""
        self._honest = honest
        self._nowhere = nowhere
        self._rng = rng

    def near(self, target: Key) -> Sequence[Contact]:
        return self._lies(target, NAMED)

    def sample(self, count: int) -> Sequence[Contact]:
        return self._lies(self._rng.randbytes(KEY_SIZE_BYTES), count)

    def values(self, key: Key) -> Sequence[bytes]:
        return (self._rng.randbytes(GARBAGE_BYTES),)

    def _lies(self, target: Key, count: int) -> list[Contact]:
        rng, honest = self._rng, self._honest
        point = int.from_bytes(target, "big")
        lies: list[Contact] = []
        for number in range(count):
            if number % 2 and len(honest) > 1:
                who, where = rng.sample(honest, 2)
                lies.append(Contact(who.id, where.addresses))
            else:
                invented = point ^ rng.getrandbits(ID_BITS - LYING_BITS)
                lies.append(Contact(invented.to_bytes(KEY_SIZE_BYTES, "big"), (f"{self._nowhere()}:9000",)))
        return lies


class Poisoner:
    """Names whom it was given, whatever it is asked: addresses that are dead, private, or a victim's."""

    def __init__(self, poison: Sequence[Contact], rng: random.Random) -> None:
        self._poison = Ring(poison)
        self._rng = rng

    def near(self, target: Key) -> Sequence[Contact]:
        return self._poison.nearest(target, NAMED)

    def sample(self, count: int) -> Sequence[Contact]:
        return self._poison.sample(count, self._rng)

    def values(self, key: Key) -> Sequence[bytes]:
        return ()


class Ring:
    """Contacts by their place in the key space. It may grow; an id counts once."""

    def __init__(self, members: Iterable[Contact] = ()) -> None:
        self._by_point: dict[int, Contact] = {}
        self._points: list[int] = []
        self.add(members)

    def add(self, members: Iterable[Contact]) -> None:
        """Let these in too."""
        self._by_point.update((member.point, member) for member in members)
        self._points = sorted(self._by_point)

    def nearest(self, target: Key, count: int) -> list[Contact]:
        """Up to `count` members nearest to the target, nearest first."""
        near = nearest_points(self._points, int.from_bytes(target, "big"), count)
        return [self._by_point[point] for point in near]

    def sample(self, count: int, rng: random.Random) -> list[Contact]:
        """Up to `count` members at random."""
        return [self._by_point[point] for point in rng.sample(self._points, min(count, len(self._points)))]

    def __len__(self) -> int:
        return len(self._points)


def settle(host: VirtualHost, conduct: Conduct) -> None:
    """Let a host answer the overlay's requests as this conduct has it."""
    answers = _silence() if isinstance(conduct, Silent) else _answers(host, conduct)
    host.mount("_dht.", answers)


def _silence() -> dict[str, Callable[[Mapping[str, Any], CallContext], Any]]:
    names = ("ping", "find_node", "find_value", "store", "renew", "exchange")
    return {f"_dht.{name}": lambda request, context: WITHHELD for name in names}


def _answers(host: VirtualHost, conduct: Conduct) -> dict[str, Callable[[Mapping[str, Any], CallContext], Any]]:
    def but_caller(contacts: Sequence[Contact], context: CallContext) -> tuple[Contact, ...]:
        return tuple([contact for contact in contacts if contact.id != context.peer])

    def ping(_: Mapping[str, Any], __: CallContext) -> dict[str, Any]:
        return PingAnswer(round(host.runtime.unix_now() * 1000)).to_map()

    def find_node(request: Mapping[str, Any], context: CallContext) -> dict[str, Any]:
        return FindNodeAnswer(but_caller(conduct.near(FindNode.from_map(request).target), context)).to_map()

    def find_value(request: Mapping[str, Any], context: CallContext) -> dict[str, Any]:
        key = FindValue.from_map(request).key
        values = tuple(conduct.values(key))
        contacts = but_caller(conduct.near(key), context)
        return FindValueAnswer(values, len(values), 0, False, len(values), contacts).to_map()

    def store(_: Mapping[str, Any], context: CallContext) -> dict[str, Any]:
        # Who is asked to store is near the key, so whoever is near the host is too: it need not read the record.
        return StoreAnswer(True, None, None, but_caller(conduct.near(host.id), context)).to_map()

    def renew(request: Mapping[str, Any], _: CallContext) -> dict[str, Any]:
        kept = StoreAnswer(True, None, None, ())
        return RenewAnswer((kept,) * len(Renew.from_map(request).places)).to_map()

    def exchange(request: Mapping[str, Any], context: CallContext) -> dict[str, Any]:
        return ExchangeAnswer(but_caller(conduct.sample(Exchange.from_map(request).count), context)).to_map()

    return {
        "_dht.ping": ping,
        "_dht.find_node": find_node,
        "_dht.find_value": find_value,
        "_dht.store": store,
        "_dht.renew": renew,
        "_dht.exchange": exchange,
    }


class IdentityMill:
    """Real keys by the thousand, of which those near a point can be taken: what grinding ids comes to.

    A mill of 20,000 gives twenty ids that are nearer to any key than the nearest of 1,000 honest nodes mostly is.
    Cost: 60 us for each key pair; the seeds alone are kept.
    """

    def __init__(self, rng: random.Random, count: int) -> None:
        self._seeds: dict[int, bytes] = {}
        for _ in range(count):
            seed = rng.randbytes(SEED_SIZE_BYTES)
            self._seeds[int.from_bytes(Identity.from_seed(seed).node_id, "big")] = seed
        self._points = sorted(self._seeds)

    def nearest(self, target: Key, count: int) -> list[Identity]:
        """The `count` nearest to the target that are left, which are taken out."""
        return [self._take(point) for point in nearest_points(self._points, int.from_bytes(target, "big"), count)]

    def spread(self, target: Key, count: int, radius: int) -> list[Identity]:
        """`count` of those within a distance of the target, evenly by rank, which are taken out: as dense as honest
        nodes would be, where that many live there.
        """
        point = int.from_bytes(target, "big")
        inside = sorted((each for each in self._points if each ^ point <= radius), key=lambda each: each ^ point)
        step = len(inside) / count
        return [self._take(inside[int((number + 0.5) * step)]) for number in range(count)] if step >= 1 else []

    def _take(self, point: int) -> Identity:
        self._points.remove(point)
        return Identity.from_seed(self._seeds.pop(point))


class Flooder:
    """Asks at full speed, some requests at a time, and does not care for the answers.

    `records` are envelopes that it stores again and again: good ones of its own, or bad. `hoard` is what it has others
    store once, many at a time, until there is no more of it.
    """

    def __init__(
        self,
        host: VirtualHost,
        victims: Sequence[Contact],
        rng: random.Random,
        *,
        records: Sequence[Mapping[str, Any]],
        hoard: Iterable[tuple[Contact, Mapping[str, Any]]] = (),
        at_once: int = 8,
        pause_s: float = 0.05,
    ) -> None:
        """`records` are requests to `_dht.store`; `pause_s` is between two rounds of `at_once` requests each."""
        self._host = host
        self._victims = victims
        self._rng = rng
        self._records = records
        self._hoard = iter(hoard)
        self._at_once = at_once
        self._pause_s = pause_s
        self.asked = 0
        self.refused = 0

    async def run(self) -> None:
        """Ask until it is cancelled."""
        async with TaskScope("flood") as scope:
            while True:
                for _ in range(self._at_once):
                    scope.spawn(self._ask(self._rng.choice(self._victims)), name="flood")
                for victim, request in itertools.islice(self._hoard, HOARDED_AT_ONCE):
                    scope.spawn(self._send(victim, "_dht.store", request), name="hoard")
                await asyncio.sleep(self._pause_s)

    async def _ask(self, victim: Contact) -> None:
        await self._send(victim, *self._request())

    async def _send(self, victim: Contact, endpoint: str, request: Mapping[str, Any]) -> None:
        self.asked += 1
        self.refused += 1
        with suppress(SynapseError):
            await self._host.peers.call(victim, endpoint, request, timeout_s=1.0)
            self.refused -= 1

    def _request(self) -> tuple[str, Mapping[str, Any]]:
        rng = self._rng
        match rng.randrange(4):
            case 0:
                return "_dht.find_node", FindNode(rng.randbytes(KEY_SIZE_BYTES)).to_map()
            case 1:
                return "_dht.find_value", FindValue(rng.randbytes(KEY_SIZE_BYTES)).to_map()
            case 2:
                return "_dht.exchange", Exchange(MAX_EXCHANGE_COUNT).to_map()
            case _:
                return "_dht.store", rng.choice(self._records) if self._records else {"record": rng.randbytes(100)}
