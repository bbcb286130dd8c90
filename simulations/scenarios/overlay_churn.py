"""Nodes that come and go, at random, all at once, in a crowd, in turn; and a network that is cut in two and healed."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from dht.config import DHTConfig, HealthConfig
from simulations import values
from simulations.churn import BITTORRENT, FAST, FASTEST, GAMES, SessionLength, crowd_times, struck
from simulations.population import Resident
from simulations.scenarios.base import Outcome, Settings
from simulations.scenarios.overlay import (
    GET_PAUSE_S,
    GETS_PER_CHURNED_VALUE,
    GETS_PER_VALUE,
    SECONDS_PER_HOUR,
    SETTLE_S,
    Figures,
    Gets,
    OverlayScenario,
    Swarm,
    inspected,
    put_values,
    read_values,
    value_count,
)
from simulations.scenarios.phases import paced
from synapse_p2p.background import TaskScope, wait_at_most

DEFAULT_CHURN_HOURS = 1.0
REPLICATION = ("no-replication",)
OFFERS = ("no-offers",)
ARRIVAL_PAUSE_S = 0.5


async def _stand(swarm: Swarm, gets_per_value: int = GETS_PER_VALUE) -> None:
    """Everybody, and the values."""
    await swarm.population.start_residents(swarm.settings.nodes)
    swarm.population.acquaint()
    await asyncio.sleep(SETTLE_S)
    await put_values(swarm, value_count(swarm.settings, gets_per_value))
    swarm.custody.begin_window()


@dataclass(frozen=True, slots=True)
class _Churn:
    lengths: SessionLength
    summary: str
    required: float


_CHURNS = {
    "weibull-40": _Churn(BITTORRENT, "sessions of Weibull(0.40, 42 min), as in BitTorrent: gets >= 99.5%", 0.995),
    "weibull-59": _Churn(GAMES, "sessions of Weibull(0.59, 42 min): gets >= 99.5%", 0.995),
    "half-life-10": _Churn(FAST, "half of all are gone every 10 min: gets >= 99%", 0.99),
    "half-life-2": _Churn(FASTEST, "half of all are gone every 2 min: report only, it shows where all breaks", 0.0),
}


async def _play_churn(swarm: Swarm) -> Outcome:
    settings = swarm.settings
    churn = _CHURNS[CHURN.variant(settings)]
    gets = Gets(swarm)
    pause_s = (settings.hours or DEFAULT_CHURN_HOURS) * SECONDS_PER_HOUR / settings.lookups
    await _stand(swarm, GETS_PER_CHURNED_VALUE)
    async with TaskScope("churn") as scope:
        scope.spawn(swarm.custody.watch(), name="custody")
        churning = scope.spawn_awaited(swarm.population.churn(churn.lengths), name="churn")
        await paced(settings.lookups, pause_s, gets.get_one)
        if churning.done():
            churning.result()
    swarm.custody.recount()
    figures: Figures = {"session_median_s": round(churn.lengths.median_s, 1), **swarm.custody.figures()}
    return gets.outcome(churn.required, figures)


CHURN = OverlayScenario(
    "overlay-churn",
    "nodes come and go for some hours while values are read; nobody renews a value",
    inspected(_play_churn),
    {name: churn.summary for name, churn in _CHURNS.items()},
    REPLICATION,
)

MASSACRE_PAUSE_S = 1800.0
"""Between two massacres: one period of replication, in which as many come as have died."""


@dataclass(frozen=True, slots=True)
class _Massacre:
    share: float
    required: float
    times: int = 1

    @property
    def summary(self) -> str:
        again = f", {self.times} times, {MASSACRE_PAUSE_S / 60:g} min apart" if self.times > 1 else ""
        return f"{self.share:.0%} die at once{again}: gets >= {self.required:.0%} from then on"


_MASSACRES = {"30": _Massacre(0.3, 0.99), "50": _Massacre(0.5, 0.95), "30-six-times": _Massacre(0.3, 0.99, 6)}


async def _play_massacre(swarm: Swarm) -> Outcome:
    settings = swarm.settings
    massacre = _MASSACRES[MASSACRE.variant(settings)]
    population, gets = swarm.population, Gets(swarm)
    await _stand(swarm)
    for number in range(massacre.times):
        if number:
            await asyncio.sleep(MASSACRE_PAUSE_S)
        dead = struck(population.residents, massacre.share, swarm.rng)
        for resident in dead:
            resident.die()
            population.remove(resident)
        await paced(settings.lookups // massacre.times, GET_PAUSE_S, gets.get_one)
        for _ in dead if massacre.times > 1 else ():
            population.arrive()
            await asyncio.sleep(ARRIVAL_PAUSE_S)
    swarm.custody.recount()
    figures: Figures = {"dead_share": massacre.share, "massacres": massacre.times, **swarm.custody.figures()}
    return gets.outcome(massacre.required, figures)


MASSACRE = OverlayScenario(
    "overlay-massacre",
    "a share of all nodes dies at one instant, and values are read from then on",
    inspected(_play_massacre),
    {name: massacre.summary for name, massacre in _MASSACRES.items()},
    (*REPLICATION, "narrow"),
)

PARTITION_S = 600.0
HEALED_WITHIN_S = 60.0
_PARTITIONS = {"halves": 0.5, "tenth": 0.1}


def _config_of_partition(_settings: Settings) -> DHTConfig:
    return values.config(beat_s=HealthConfig().beat_s)


async def _play_partition(swarm: Swarm) -> Outcome:
    settings = swarm.settings
    share = _PARTITIONS[PARTITION.variant(settings)]
    gets, early = Gets(swarm), Gets(swarm, phase="first minute")
    count = value_count(settings)
    await _stand(swarm)
    apart = struck(swarm.population.residents, share, swarm.rng)
    cut = swarm.network.cut([resident.host for resident in apart])
    await asyncio.sleep(PARTITION_S / 2)
    # Half of these are put on either side, where the other cannot hear of them.
    sides = [apart, [each for each in swarm.population.residents if each not in apart]]
    for number, side in enumerate(sides):
        await put_values(swarm, count // 2, first=count * (number + 1), putters=side)
    await asyncio.sleep(max(0.0, PARTITION_S / 2 - count * 0.05))
    swarm.network.heal(cut)
    await paced(EARLY_GETS, HEALED_WITHIN_S / EARLY_GETS, early.get_one)
    await read_values(swarm, gets)
    swarm.custody.recount()
    return gets.outcome(REQUIRED_AFTER_PARTITION, {**early.figures("early_get"), **swarm.custody.figures()})


EARLY_GETS = 100
REQUIRED_AFTER_PARTITION = 0.99
PARTITION = OverlayScenario(
    "overlay-partition",
    f"a network cut in two for {PARTITION_S / 60:.0f} min and healed; values are read a minute after that",
    inspected(_play_partition, _config_of_partition),
    {name: f"{share:.0%} are cut off from the others: gets >= 99%" for name, share in _PARTITIONS.items()},
    ("forgetful",),
)

CROWD_WITHIN_S = 10.0
CROWD_JOINED_WITHIN_S = 120.0
FIRST_MEMBERS = 20


async def _play_flash_crowd(swarm: Swarm) -> Outcome:
    """A lookup is a newcomer of whom is asked whether it has joined in time."""
    settings = swarm.settings
    population, gets = swarm.population, Gets(swarm)
    joined_s: list[float] = []

    async def arrive(at_s: float) -> None:
        await asyncio.sleep(at_s)
        began_at = swarm.loop.time()
        joining = population.arrive().joining
        assert joining is not None
        await wait_at_most(joining, CROWD_JOINED_WITHIN_S)
        if joining.done():
            joined_s.append(swarm.loop.time() - began_at)
        swarm.progress("joins", len(joined_s), settings.nodes)

    await population.start_residents(FIRST_MEMBERS)
    population.acquaint()
    await asyncio.sleep(SETTLE_S)
    await put_values(swarm, value_count(settings))
    swarm.custody.begin_window()
    async with TaskScope("crowd") as scope:
        crowd = [scope.spawn_awaited(arrive(at_s)) for at_s in crowd_times(settings.nodes, CROWD_WITHIN_S, swarm.rng)]
        for each in crowd:
            await each
    await read_values(swarm, gets)
    swarm.custody.recount()
    figures = {
        "newcomers": settings.nodes,
        "joined_in_time": len(joined_s),
        "join_seconds_max": round(max(joined_s, default=0.0), 3),
        **gets.figures(),
        **swarm.custody.figures(),
    }
    notes = [f"{settings.nodes - len(joined_s)} did not join in time", *gets.notes]
    return Outcome(settings.nodes + gets.count, len(joined_s) + gets.found, (), notes[:100], 0.99, figures)


FLASH_CROWD = OverlayScenario(
    "overlay-flash-crowd",
    f"all nodes join {FIRST_MEMBERS} that are there within {CROWD_WITHIN_S:g} s, then values are read",
    inspected(_play_flash_crowd),
    sabotages=OFFERS,
)

RESTART_TAKES_S = 5.0
DEFAULT_ROLLING_HOURS = 0.5
REQUIRED_WHILE_ROLLING = 0.999
_ROLLINGS = {
    "without-state": "all restart in turn and have nothing but their keys: gets >= 99.9%",
    "with-state": "all restart in turn and still have what they stored: gets >= 99.9%",
}


async def _play_rolling(swarm: Swarm) -> Outcome:
    settings = swarm.settings
    is_kept = ROLLING.variant(settings) == "with-state"
    gets = Gets(swarm)
    duration_s = (settings.hours or DEFAULT_ROLLING_HOURS) * SECONDS_PER_HOUR
    await _stand(swarm)
    async with TaskScope("rolling") as scope:
        scope.spawn(swarm.custody.watch(), name="custody")
        rolling = scope.spawn_awaited(_roll(swarm, duration_s, is_kept=is_kept), name="rolling")
        await paced(settings.lookups, duration_s / settings.lookups, gets.get_one)
        await rolling
    swarm.custody.recount()
    return gets.outcome(REQUIRED_WHILE_ROLLING, swarm.custody.figures())


async def _roll(swarm: Swarm, duration_s: float, *, is_kept: bool) -> None:
    async with TaskScope("restarts") as scope:
        restarts: list[asyncio.Task[None]] = []
        for resident in list(swarm.population.residents):
            restarts.append(scope.spawn_awaited(_restart(swarm, resident, is_kept=is_kept)))
            await asyncio.sleep(duration_s / swarm.settings.nodes)
        for restart in restarts:
            await restart


async def _restart(swarm: Swarm, resident: Resident, *, is_kept: bool) -> None:
    store = None if resident.node is None or not is_kept else resident.node.store
    resident.leave()
    await asyncio.sleep(RESTART_TAKES_S)
    resident.host.restart()
    resident.begin(swarm.population.seeds(), store=store)


ROLLING = OverlayScenario(
    "overlay-rolling",
    "every node is restarted in turn, over some hours, while values are read",
    inspected(_play_rolling),
    _ROLLINGS,
    OFFERS,
)
