"""A network without time or bytes: nodes with tables, and lookups played among them by the real machine.

What a node answers, begins with and believes is the code of `dht/region.py` and `dht/routing.py`; here is only who
exists, who lies, who holds what, and how long an answer takes. Each play holds the machine to its promises.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count

from dht.config import LookupConfig, RoutingConfig
from dht.contact import Contact
from dht.keyspace import Key
from dht.lookup import (
    FLIGHT_FACTOR,
    Ask,
    Finished,
    Lookup,
    LookupMode,
    LookupOutcome,
    Peers,
    Strangers,
    TraceEvent,
    Widen,
)
from dht.region import SPACE, GroupOf, Region, answer, every_one_alone, seeds
from dht.routing import RoutingTable

MEDIAN_RTT_S = 0.08
RTT_SIGMA = 0.5
SAME_BITS = 3  # a table keeps at most so many contacts of one k-bucket that share the next three bits:
MAX_SAME = 5

Told = tuple[float, list[Contact] | None, bool]
"""After how many seconds a contact answers; whom it names, None for a failure; whether it has the value."""


def play(
    lookup: Lookup,
    config: LookupConfig,
    tell: Callable[[Contact], Told],
    more: Callable[[int], list[Contact]],
    *,
    timeout_s: float | None = None,
) -> LookupOutcome:
    """Run a lookup in virtual time, late answers and all. `more` gives own contacts to widen with."""
    now = 0.0
    timeout_s = config.request_timeout_s if timeout_s is None else timeout_s
    deadlines: dict[bytes, float] = {}
    asked: set[bytes] = set()
    events: list[tuple[float, int, Contact, list[Contact] | None, bool]] = []
    order = count()
    max_in_flight = FLIGHT_FACTOR * max(config.alpha, config.paths)
    while True:
        step = lookup.poll(now)
        deadlines = {node_id: deadline for node_id, deadline in deadlines.items() if deadline > now}
        match step:
            case Finished(outcome):
                assert lookup.poll(now + 99.0) == step
                check_trace(outcome)
                return outcome
            case Widen(wanted):
                assert not deadlines
                lookup.on_widen(more(wanted), now)
            case Ask(contacts):
                assert contacts
                for contact in contacts:
                    delay_s, closer, has_value = tell(contact)
                    heappush(events, (now + delay_s, next(order), contact, closer, has_value))
                    deadlines[contact.id] = now + timeout_s
                    assert contact.id not in asked
                    asked.add(contact.id)
                assert len(deadlines) <= max_in_flight
                assert len(asked) <= config.max_requests
            case _:
                if timeout_s == config.request_timeout_s:
                    assert step.until == min(deadlines.values())
                if not events or events[0][0] > step.until:
                    now = step.until
                    continue
                now, _, contact, closer, has_value = heappop(events)
                deadlines.pop(contact.id, None)
                if closer is None:
                    lookup.on_failure(contact.id, now)
                elif has_value:
                    lookup.on_found(contact.id, closer, now)
                else:
                    lookup.on_reply(contact.id, closer, now)


def check_trace(outcome: LookupOutcome) -> None:
    """Assert that the trace tells what happened: everybody is asked once, then answers or fails at most once, on the
    same path.
    """
    asked = {step.contact_id: step for step in outcome.trace if step.event is TraceEvent.ASKED}
    ended = [step for step in outcome.trace if step.event in (TraceEvent.ANSWERED, TraceEvent.FAILED)]
    assert len(asked) == outcome.asked == sum(step.event is TraceEvent.ASKED for step in outcome.trace)
    assert len({step.contact_id for step in ended}) == len(ended)
    assert sum(step.event is TraceEvent.FAILED for step in ended) == outcome.failed
    assert [step.at for step in outcome.trace] == sorted(step.at for step in outcome.trace)
    for step in outcome.trace:
        assert (step.why is not None) == (step.event is TraceEvent.ASKED)
        assert asked[step.contact_id].path == step.path < outcome.paths
        assert asked[step.contact_id].at <= step.at
    answered = {step.contact_id for step in ended if step.event is TraceEvent.ANSWERED}
    assert {contact.id for contact in (*outcome.closest, *outcome.region)} <= answered


@dataclass
class Model:
    """Static nodes with tables from global knowledge. `liars` name nobody but each other and deny every value."""

    config: LookupConfig
    rng: random.Random
    nodes: list[Contact] = field(default_factory=list)
    liars: dict[bytes, Contact] = field(default_factory=dict)
    tables: dict[bytes, RoutingTable] = field(default_factory=dict)
    regions: dict[bytes, Region] = field(default_factory=dict)
    holders: dict[Key, set[bytes]] = field(default_factory=dict)
    group_of: GroupOf = every_one_alone
    peers: Peers | None = None

    @classmethod
    def grow(
        cls,
        size: int,
        rng: random.Random,
        *,
        config: LookupConfig | None = None,
        liar_part: float = 0.0,
        liar_weight: float = 1.0,
        spread: float = 0.08,
        knows_size: bool = True,
    ) -> Model:
        """Tables of random members; a liar comes into them `liar_weight` times as easily. Every node knows the size of
        the network but for a relative error of `spread`.
        """
        model = cls(config or LookupConfig(), rng)
        model.nodes = [Contact(rng.randbytes(32), ()) for _ in range(size)]
        model.liars = {contact.id: contact for contact in rng.sample(model.nodes, round(liar_part * size))}
        model.fill(lambda contact: rng.random() ** (1 / (liar_weight if contact.id in model.liars else 1.0)))
        for contact in model.nodes:
            model.regions[contact.id] = model.region_of(size - 1, spread if knows_size else None)
        return model

    def region_of(self, size: int, spread: float | None) -> Region:
        """What a node believes that knows `size` others with a relative error; None for one that knows nothing."""
        k = self.config.k
        if spread is None:
            return Region.unknown(k)
        if size <= k:
            return Region.everything(size, k)
        return Region.of_radius(round(k * SPACE // size * max(0.5, self.rng.gauss(1.0, spread))), k)

    def fill(self, rank: Callable[[Contact], float], *, max_same: int | None = None) -> None:
        """Give every honest node a table: of each k-bucket those of the largest `rank`, drawn anew for each table."""
        in_order = sorted(self.nodes, key=lambda contact: contact.point)
        points = [contact.point for contact in in_order]
        for contact in self.nodes:
            if contact.id in self.liars:
                continue
            table = self.tables[contact.id] = RoutingTable(contact.id, RoutingConfig(k=self.config.k))
            for members in _kbuckets(in_order, points, contact.point):
                taken: dict[int, int] = {}
                shift = max(0, max(member.point ^ contact.point for member in members).bit_length() - 1 - SAME_BITS)
                held = 0
                for member in sorted(members, key=rank, reverse=True):
                    slot = member.point >> shift
                    if max_same is not None and taken.get(slot, 0) >= max_same:
                        continue
                    taken[slot] = taken.get(slot, 0) + 1
                    table.observe(member, 0.0)
                    held += 1
                    if held == self.config.k:
                        break

    def honest(self) -> Contact:
        """Some node that does not lie."""
        while (contact := self.rng.choice(self.nodes)).id in self.liars:
            pass
        return contact

    def storers(self, key: Key) -> list[Contact]:
        """Who stores a record that was put with global knowledge: all within the region, and k in any case."""
        point = int.from_bytes(key, "big")
        near = sorted(self.nodes, key=lambda contact: contact.point ^ point)[: 3 * self.config.k]
        radius = self.config.k * SPACE // max(1, len(self.nodes))
        inside = sum(contact.point ^ point <= radius for contact in near)
        return near[: max(self.config.k, inside)]

    def lookup(
        self,
        asker: Contact,
        target: Key,
        mode: LookupMode,
        *,
        region: Region | None = None,
        on_asked: Callable[[Contact], object] = lambda contact: None,
    ) -> LookupOutcome:
        """One lookup of an honest node."""
        config, table = self.config, self.tables[asker.id]
        region = region or self.regions[asker.id]
        held_by = self.holders.get(target, set())
        radius = min(region.radius, SPACE - 1)
        wanted = config.paths * config.path_seeds if mode is LookupMode.GUARDED else config.k

        def known(number: int) -> list[Contact]:
            def closest(limit: int) -> list[Contact]:
                return table.closest(target, limit)

            return seeds(closest, target, number, region, self.group_of, max_per_group=config.max_per_group)

        def tell(contact: Contact) -> Told:
            on_asked(contact)
            delay_s = MEDIAN_RTT_S * self.rng.lognormvariate(0.0, RTT_SIGMA)
            return delay_s, self.answer(contact, asker, target, radius), contact.id in held_by

        lookup = Lookup(
            target,
            own_id=asker.id,
            seeds=known(wanted),
            mode=mode,
            config=config,
            region=region,
            peers=self.peers or Strangers(config),
        )
        return play(lookup, config, tell, known)

    def answer(self, asked: Contact, asker: Contact, target: Key, radius: int) -> list[Contact]:
        """Whom a node names."""
        k = self.config.k
        if asked.id in self.liars:
            point = int.from_bytes(target, "big")
            return sorted(self.liars.values(), key=lambda contact: contact.point ^ point)[:k]
        table = self.tables[asked.id]

        def closest(limit: int) -> list[Contact]:
            known = table.closest(target, limit + 1)
            return [contact for contact in known if contact.id != asker.id][:limit]

        return answer(
            closest,
            target,
            radius,
            self.regions[asked.id],
            self.group_of,
            k=k,
            max_count=64,
            max_per_group=self.config.max_per_group,
        )

    def put(self, owner: Contact, key: Key) -> int:
        """Store a record by the protocol: inside the region the request is the store. The number of requests.

        Liars say that they keep it.
        """
        region = self.regions[owner.id]
        stored: dict[bytes, Contact] = {}

        def on_asked(contact: Contact) -> None:
            if region.is_inside(contact, key):
                stored[contact.id] = contact

        outcome = self.lookup(owner, key, LookupMode.GUARDED, on_asked=on_asked)
        requests = outcome.asked
        for contact in outcome.closest:
            if len(stored) < self.config.k and contact.id not in stored:
                stored[contact.id] = contact
                requests += 1
        self.holders[key] = {node_id for node_id in stored if node_id not in self.liars}
        return requests


def _kbuckets(in_order: list[Contact], points: list[int], own_point: int) -> Iterable[list[Contact]]:
    """The other nodes by the number of leading bits they share with one."""
    start, stop = 0, len(points)
    for index in range(256):
        if stop - start <= 1:
            return
        bit = 1 << (255 - index)
        middle = bisect_left(points, own_point & ~(2 * bit - 1) | bit, start, stop)
        members, start, stop = (
            (in_order[start:middle], middle, stop) if own_point & bit else (in_order[middle:stop], start, middle)
        )
        if members:
            yield members
