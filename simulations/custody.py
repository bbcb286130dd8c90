"""Who keeps the values of a scenario, as an onlooker sees it: how few they ever were, and which values are lost.

A storer counts while it lives and holds the record unexpired.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from dht.node import DHTNode
from simulations.population import Population, Resident
from simulations.statistics import quantile
from simulations.values import Value

RECOUNT_S = 60.0
"""Between two counts of everything. In between a value is counted anew whenever a storer of it dies, which is when its
number can fall; so it is too small by a copy made since at most."""


class Custody:
    """The storers of every value, and the fewest that each ever had. Cost of a death: a look at what it held."""

    def __init__(self, population: Population) -> None:
        self._population = population
        self._values: dict[bytes, Value] = {}
        self._storers: dict[bytes, dict[int, None]] = {}  # by key: numbers of the residents, as of the last look
        self._fewest: dict[bytes, int] = {}
        self._in_order: list[Value] = []
        self.lost: list[Value] = []
        population.on_end = self._on_end

    def add(self, value: Value) -> None:
        """Look after this one from now on: its owner was told that it is kept. It is lost if that was a lie."""
        self._values[value.key] = value
        self._in_order.append(value)
        self._look(value.key)

    def begin_window(self) -> None:
        """Forget how few storers there were until now."""
        self._fewest = {value.key: 0 for value in self.lost}
        for key in list(self._storers):
            self._look(key)

    async def watch(self) -> None:
        """Count everything now and then, for ever."""
        while True:
            await asyncio.sleep(RECOUNT_S)
            self.recount()

    def recount(self) -> None:
        """Count everything now."""
        storers: dict[bytes, dict[int, None]] = {key: {} for key in self._storers}
        now = self._population.world.network.loop.time()
        for resident in self._population.residents:
            node = resident.node
            if node is not None:
                for key in node.store.held_keys():
                    if key in storers and node.store.get(key, now):
                        storers[key][resident.number] = None
        for key, numbers in storers.items():
            self._note(key, numbers)

    def is_lost(self, value: Value) -> bool:
        """Whether there was a moment when nobody kept it."""
        return value.key not in self._storers

    def holds(self, resident: Resident, value: Value) -> bool:
        """Whether this resident keeps it, as of the last look."""
        return resident.number in self._storers.get(value.key, {})

    @property
    def values(self) -> Sequence[Value]:
        """All whose owners were told that they are kept, the lost ones too, in the order in which they were put."""
        return self._in_order

    def figures(self) -> dict[str, int | float | str]:
        """What became of the values since the window began."""
        fewest = list(self._fewest.values())
        return {
            "values": len(self._values),
            "values_lost": len(self.lost),
            "fewest_storers": min(fewest, default=0),
            "fewest_storers_p01": quantile(fewest, 0.01) if fewest else 0,
            "fewest_storers_median": quantile(fewest, 0.5) if fewest else 0,
        }

    def _on_end(self, resident: Resident, node: DHTNode) -> None:
        for key in node.store.held_keys():
            storers = self._storers.get(key)
            if storers is not None:
                storers.pop(resident.number, None)
                if len(storers) < self._fewest[key]:
                    self._look(key)

    def _look(self, key: bytes) -> None:
        """Ask everybody alive whether he holds this."""
        now = self._population.world.network.loop.time()
        numbers: dict[int, None] = {}
        for resident in self._population.residents:
            if resident.node is not None and resident.node.store.get(key, now):
                numbers[resident.number] = None
        self._note(key, numbers)

    def _note(self, key: bytes, numbers: dict[int, None]) -> None:
        self._storers[key] = numbers
        self._fewest[key] = min(self._fewest.get(key, len(numbers)), len(numbers))
        if not numbers:
            self.lost.append(self._values[key])
            del self._storers[key]
