"""Hostile hosts among honest ones: a share that colludes, lies or is silent; ids ground near keys; a bad restart."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dht.config import DHTConfig
from dht.contact import Contact
from dht.messages import Store
from simulations import values
from simulations.adversary import (
    Colluding,
    Conduct,
    Flooder,
    IdentityMill,
    Liar,
    Poisoner,
    Ring,
    Silent,
)
from simulations.network import VirtualHost
from simulations.oracle import nearest_points
from simulations.places import HOSTILE_OCTETS, Places
from simulations.population import Population, Resident, contacts_of
from simulations.scenarios.base import Outcome, Settings
from simulations.scenarios.overlay import (
    SETTLE_S,
    Figures,
    Gets,
    OverlayScenario,
    Swarm,
    inspected,
    put_values,
    read_values,
    strict_messages,
    value_count,
)
from simulations.statistics import wilson_low
from synapse_p2p.background import TaskScope

POISONED_WEIGHT = 4.0
NODES_PER_SYBIL = 10
"""Honest nodes for each Sybil, where several keys are attacked: all together stay a tenth of the network."""


@dataclass(frozen=True, slots=True)
class _Mix:
    """A share of the nodes that is hostile, and what is demanded of reads then."""

    share: float
    required: float
    kind: str = "colluders"
    weight: float = 1.0

    @property
    def summary(self) -> str:
        poisoned = f", {self.weight:g} times as likely to be in a table" if self.weight != 1 else ""
        return f"{self.share:.0%} {self.kind}{poisoned}: gets >= {self.required:.1%}"


_MIXES = {
    "colluders-10": _Mix(0.1, 0.999),
    "colluders-20": _Mix(0.2, 0.995),
    "colluders-30": _Mix(0.3, 0.99),
    "colluders-50": _Mix(0.5, 0.95),
    "poisoned-20": _Mix(0.2, 0.99, weight=POISONED_WEIGHT),
    "poisoned-30": _Mix(0.3, 0.99, weight=POISONED_WEIGHT),
    "poisoned-50": _Mix(0.5, 0.90, weight=POISONED_WEIGHT),
    "silent-20": _Mix(0.2, 0.99, "silent"),
    "liars-20": _Mix(0.2, 0.99, "liars"),
    "flooders-2": _Mix(0.02, 0.99, "flooders"),
    "hoarders-2": _Mix(0.02, 0.99, "hoarders"),
}
ROOM_BYTES = 80 * 1024
"""Of a store where somebody hoards: so little that a few could fill all of them. Its shares are the usual ones."""


def _config(settings: Settings) -> DHTConfig:
    config = values.config()
    if _MIXES[HOSTILE.variant(settings)].kind != "hoarders":
        return config
    usual = config.records
    room = ROOM_BYTES / usual.max_bytes
    small = replace(
        usual,
        max_bytes=ROOM_BYTES,
        max_bytes_per_owner=round(room * usual.max_bytes_per_owner),
        max_bytes_per_group=round(room * usual.max_bytes_per_group),
    )
    return replace(config, records=small)


async def _play_hostile(swarm: Swarm) -> Outcome:
    settings = swarm.settings
    mix = _MIXES[HOSTILE.variant(settings)]
    population = swarm.population
    gets = Gets(swarm)
    hostile_count = round(mix.share * settings.nodes)
    for _ in range(hostile_count):
        population.add_hostile(population.places)
    await population.start_residents(settings.nodes - hostile_count)
    population.acquaint(contacts_of(population.hostile), weight=mix.weight)
    _instruct(population, mix.kind)
    async with TaskScope("flood") as scope:
        if mix.kind in ("flooders", "hoarders"):
            for number, host in enumerate(population.hostile):
                hoard = _hoard(population, host, number) if mix.kind == "hoarders" else ()
                scope.spawn(_flooder(population, host, hoard).run(), name="flooder")
        await asyncio.sleep(SETTLE_S)
        strict = await strict_messages(swarm)
        await put_values(swarm, value_count(settings))
        swarm.custody.begin_window()
        await read_values(swarm, gets)
    swarm.custody.recount()
    figures: Figures = {
        "hostile_share": mix.share,
        "hostile_weight": mix.weight,
        "hostile_kind": mix.kind,
        "strict_messages_mean": strict,
        **swarm.custody.figures(),
    }
    if mix.kind == "hoarders":
        figures["values_kept_mean"] = round(float(figures["values"]) / value_count(settings), 5)
    return gets.outcome(mix.required, figures)


def _instruct(population: Population, kind: str) -> None:
    rng = population.world.rng
    honest = population.contacts()
    ring = Ring(contacts_of(population.hostile))
    nowhere = Places(octets=(90, 100)).next_ip  # too far for honest hosts to get there

    def conduct_of(_: VirtualHost) -> Conduct:
        match kind:
            case "silent":
                return Silent()
            case "liars":
                return Liar(honest, nowhere, rng)
            case _:
                return Colluding(ring, rng)

    population.instruct(conduct_of)


def _hoard(population: Population, host: VirtualHost, number: int) -> Iterator[tuple[Contact, Mapping[str, Any]]]:
    """Values of its own, each for those who are near its key: all flooders together have more than there is room."""
    by_point = {contact.point: contact for contact in population.contacts()}
    points, k = sorted(by_point), population.config.lookup.k
    first = (number + 1) * 10**6
    for value in range(first, first + HOARDED_VALUES * len(points) // (k * len(population.hostile))):
        record = Store(values.sealed(host, value)).to_map()
        for point in nearest_points(points, int.from_bytes(values.key_of(value), "big"), k):
            yield by_point[point], record


HOARDED_VALUES = 90
"""For each store, which has room for 60."""


def _flooder(population: Population, host: VirtualHost, hoard: Iterable[tuple[Contact, Mapping[str, Any]]]) -> Flooder:
    """One that floods with stores of garbage and of one good record of its own, which is not theirs to keep."""
    rng = population.world.rng
    garbage: list[Mapping[str, Any]] = [{"record": rng.randbytes(1000)} for _ in range(4)]
    good = Store(values.sealed(host, 10**6)).to_map()
    return Flooder(host, population.contacts(), rng, records=[*garbage, good], hoard=hoard)


HOSTILE = OverlayScenario(
    "overlay-hostile",
    "a share of all nodes is hostile from the start; values are put and read among them",
    inspected(_play_hostile, _config),
    {name: mix.summary for name, mix in _MIXES.items()},
    ("one-path", "narrow", "no-diversity", "patient", "no-quotas"),
)


@dataclass(frozen=True, slots=True)
class _Siege:
    """Ids ground near a key: in how many /24s they live, whom tables met first, and where the ids lie."""

    networks: int
    is_first: bool
    required: float
    is_thin: bool = False
    ids: int = 20  # for each key

    def keys(self, nodes: int) -> int:
        """How many keys are attacked in a swarm of so many honest nodes."""
        return max(1, nodes // (NODES_PER_SYBIL * self.ids))

    @property
    def summary(self) -> str:
        where = "thinly over the region" if self.is_thin else "nearest"
        order = "Sybils" if self.is_first else "honest nodes"
        demanded = f"gets >= {self.required:.0%}" if self.required else "report only: the known hole"
        return f"{self.ids} ids {where} to each key, in {self.networks} /24s, {order} met first: {demanded}"


_SIEGES = {
    "two-honest-first": _Siege(2, False, 0.99),
    "twenty-honest-first": _Siege(20, False, 0.99),
    "two-sybils-first": _Siege(2, True, 0.99),
    "many-honest-first": _Siege(60, False, 0.99, ids=60),
    "twenty-sybils-first": _Siege(20, True, 0.0),
    "thin-sybils-first": _Siege(20, True, 0.0, is_thin=True),
}


async def _play_sybils(swarm: Swarm) -> Outcome:
    settings = swarm.settings
    siege = _SIEGES[SYBILS.variant(settings)]
    population = swarm.population
    gets = Gets(swarm)
    await population.start_residents(settings.nodes)
    keys = siege.keys(settings.nodes)
    _besiege(population, siege, keys)
    sybils = contacts_of(population.hostile)
    if siege.is_first:
        population.offer_to_all(sybils)
    population.acquaint()
    if not siege.is_first:
        population.offer_to_all(sybils)
    await asyncio.sleep(SETTLE_S)
    strict = await strict_messages(swarm)
    await put_values(swarm, keys)
    swarm.custody.begin_window()
    await read_values(swarm, gets)
    swarm.custody.recount()
    return gets.outcome(
        siege.required, {"attacked_keys": keys, "strict_messages_mean": strict, **swarm.custody.figures()}
    )


def _besiege(population: Population, siege: _Siege, keys: int) -> None:
    """Hostile hosts round the key of each value, who know each other alone."""
    rng = population.world.rng
    nodes = len(population.residents)
    # Of so many the wanted ids are mostly nearer to a point than the nearest honest one.
    mill = IdentityMill(rng, siege.ids * nodes)
    ring = Ring()
    for number in range(keys):
        key = values.key_of(number)
        # Each attack has networks of its own: limits by place would stop the second for what the first does.
        places = Places(siege.networks, octets=(HOSTILE_OCTETS[0] + number, HOSTILE_OCTETS[0] + number + 1))
        radius = population.config.lookup.k * 2**256 // nodes
        identities = mill.spread(key, siege.ids, radius) if siege.is_thin else mill.nearest(key, siege.ids)
        for identity in identities:
            population.add_hostile(places, identity)
    ring.add(contacts_of(population.hostile))
    population.instruct(lambda host: Colluding(ring, rng))


SYBILS = OverlayScenario(
    "overlay-sybils",
    "ids ground near the keys of some values; those are put and read under siege",
    inspected(_play_sybils),
    {name: siege.summary for name, siege in _SIEGES.items()},
    ("no-density", "no-diversity", "crowded"),
)


HONEST_WANTED = 8
RESTART_TIME_S = 60.0
RESTART_PAUSE_S = 1.0
POISON_COUNT = 1000
ACCOMPLICES = 0.5
"""The share of the poison that is hostile hosts which answer; the rest is dead, private, or a victim's address."""
POISON_NETWORKS = 4
"""Of the hostile hosts among the poison: limits by place are what keeps them out."""
REQUIRED_RESTARTS = 0.99


async def _play_restart(swarm: Swarm) -> Outcome:
    settings = swarm.settings
    population = swarm.population
    honest_counts: list[int] = []
    notes: list[str] = []
    await population.start_residents(settings.nodes)
    population.acquaint()
    seed = _poisoned_seed(population)
    await asyncio.sleep(SETTLE_S)

    async def restart() -> None:
        honest = await _restart_one(swarm, seed)
        honest_counts.append(honest)
        if honest < HONEST_WANTED:
            notes.append(f"{honest} honest contacts after {RESTART_TIME_S:g} s")
        good = sum(count >= HONEST_WANTED for count in honest_counts)
        swarm.progress("restarts", len(honest_counts), settings.lookups, Outcome(len(honest_counts), good, (), notes))

    for _ in range(settings.lookups):
        await restart()
    good = sum(count >= HONEST_WANTED for count in honest_counts)
    figures = {
        "restarts": len(honest_counts),
        "restarts_good": good,
        "restart_success_low": round(wilson_low(good, len(honest_counts)), 5),
        "fewest_honest_contacts": min(honest_counts),
    }
    return Outcome(len(honest_counts), good, (), notes[:100], REQUIRED_RESTARTS, figures)


async def _restart_one(swarm: Swarm, poisoned_seed: VirtualHost) -> int:
    """Restart somebody with nothing but three seeds, one of them poisoned; how many honest contacts it has a minute
    later.
    """
    population, rng = swarm.population, swarm.population.world.rng
    resident = population.any_living()
    resident.die()
    resident.host.restart()
    await asyncio.sleep(RESTART_PAUSE_S)
    honest = rng.sample(population.living(), 2)
    resident.begin([poisoned_seed.address, *(each.host.address for each in honest)])
    await asyncio.sleep(RESTART_TIME_S)
    if resident.node is None:
        return 0
    points = {each.host.id for each in population.residents}
    return sum(contact.id in points for contact in resident.node.routing_table)


def _poisoned_seed(population: Population) -> VirtualHost:
    """A hostile host that names a thousand others: dead ones, private ones, victims, and accomplices."""
    rng = population.world.rng
    places = Places(POISON_NETWORKS, octets=HOSTILE_OCTETS)
    seed = population.add_hostile(places)
    accomplices = [population.add_hostile(places) for _ in range(round(ACCOMPLICES * POISON_COUNT))]
    ring = Ring(contacts_of(accomplices))
    dead = Places(octets=(90, 95)).next_ip
    poison = list(ring.sample(len(ring), rng))
    for number in range(POISON_COUNT - len(poison)):
        who = rng.randbytes(32)
        match number % 3:
            case 0:
                poison.append(Contact(who, (f"{dead()}:9000",)))
            case 1:
                poison.append(Contact(who, (f"192.168.{rng.randrange(256)}.{rng.randrange(1, 255)}:9000",)))
            case _:
                victim: Resident = rng.choice(population.residents)
                poison.append(Contact(who, victim.host.advertised_addresses))
    conducts: dict[bytes, Conduct] = {seed.id: Poisoner(poison, rng)}
    population.instruct(lambda host: conducts.get(host.id) or Colluding(ring, rng))
    return seed


RESTART = OverlayScenario(
    "overlay-restart",
    f"restarts through three seeds, one of which names {POISON_COUNT:,} poisoned addresses; a lookup is a restart",
    inspected(_play_restart),
    sabotages=("trust-all", "no-diversity"),
)
